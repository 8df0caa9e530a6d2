//! Making and comparing secrets: random bytes, their text forms, and the hash they are stored as.
//!
//! Randomness here comes from the operating system and never from a seed: what it makes are keys
//! and passwords. Secrets made here have at least 128 random bits, so a plain SHA-256 hides them;
//! passwords that people choose go through `auth::password` instead.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use dfs_proto::credential::Secret;

/// `N` random bytes.
///
/// # Panics
/// If the operating system has no randomness: going on without it would make guessable keys.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// What is stored of a secret of high entropy, and looked up by: a guesser learns nothing from how
/// long a comparison of hashes takes.
pub fn stored_form(secret: &Secret) -> [u8; 32] {
    sha256(secret.expose().as_bytes())
}

/// A random secret of `N` bytes, in hexadecimal.
pub fn random_hex<const N: usize>() -> Secret {
    Secret::new(hex(&random::<N>()))
}

/// Characters of made passwords: none that people confuse (0 O, 1 l I), none that shells read.
const PASSWORD_ALPHABET: &[u8; 56] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz";

/// Units: characters. Why: log2(56) times 24 is 139 bits, which no one guesses.
const PASSWORD_CHARS: usize = 24;

/// A random password that can be typed.
pub fn random_password() -> Secret {
    let mut text = String::with_capacity(PASSWORD_CHARS);
    while text.len() < PASSWORD_CHARS {
        // Bytes that would make some characters likelier than others are thrown away.
        let fair = random::<32>().into_iter().filter(|byte| usize::from(*byte) < 224);
        let chars = fair.map(|byte| char::from(PASSWORD_ALPHABET[usize::from(byte) % 56]));
        text.extend(chars.take(PASSWORD_CHARS - text.len()));
    }
    Secret::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_secrets_differ_and_have_their_length() {
        let (one, other) = (random_password(), random_password());
        assert_eq!(one.expose().len(), PASSWORD_CHARS);
        assert_ne!(one.expose(), other.expose());
        assert_eq!(random_hex::<32>().expose().len(), 64);
        assert_ne!(random::<16>(), random::<16>());
    }

    #[test]
    fn hexadecimal_reads_back() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(dfs_proto::id::parse_hex(&hex(&[1, 2, 254])), Some([1, 2, 254]));
    }
}
