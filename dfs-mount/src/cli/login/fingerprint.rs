//! Fingerprints: SHA-256 of a CA certificate's DER form, by which people compare certificates.

use std::fmt;
use std::str::FromStr;

use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::parse_hex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// A certificate's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fingerprint (64 hexadecimal digits)")]
pub struct FingerprintError(String);

impl Fingerprint {
    /// The fingerprint of the certificate in `pem`.
    ///
    /// # Errors
    /// If there is none, or more than one: which of them would be trusted could not be seen.
    pub fn of_pem(pem: &[u8]) -> Result<Fingerprint, String> {
        let mut certificates = CertificateDer::pem_slice_iter(pem);
        let first = match certificates.next() {
            Some(Ok(certificate)) => certificate,
            Some(Err(error)) => return Err(format!("damaged PEM: {error}")),
            None => return Err("there is no certificate in it".to_owned()),
        };
        if certificates.next().is_some() {
            return Err("there is more than one certificate in it".to_owned());
        }
        Ok(Fingerprint(ChunkHash::of(&first).0))
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Reads hexadecimal digits in either case, with or without colons and `sha256:` before them.
    fn from_str(text: &str) -> Result<Fingerprint, FingerprintError> {
        let lower = text.trim().to_ascii_lowercase();
        let bare = lower.strip_prefix("sha256:").unwrap_or(&lower).replace(':', "");
        parse_hex(&bare).map(Fingerprint).ok_or_else(|| FingerprintError(text.to_owned()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "hello world" in place of a certificate: only its bytes count.
    const PEM: &str = "-----BEGIN CERTIFICATE-----\naGVsbG8gd29ybGQ=\n-----END CERTIFICATE-----\n";
    const HASH: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";

    #[test]
    fn the_fingerprint_is_the_sha_256_of_the_der_form() {
        assert_eq!(Fingerprint::of_pem(PEM.as_bytes()).unwrap().to_string(), HASH);
        let with_text = format!("subject=CN cell\n{PEM}");
        assert_eq!(Fingerprint::of_pem(with_text.as_bytes()).unwrap().to_string(), HASH);
    }

    #[test]
    fn all_usual_ways_to_write_one_mean_the_same() {
        let pairs: Vec<&str> = (0..32).map(|index| &HASH[2 * index..2 * index + 2]).collect();
        for text in [
            HASH.to_owned(),
            HASH.to_uppercase(),
            pairs.join(":"),
            format!("sha256:{HASH}"),
            format!("SHA256:{}", pairs.join(":").to_uppercase()),
        ] {
            assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), HASH, "{text}");
        }
    }

    #[test]
    fn what_is_no_fingerprint_is_refused_by_value() {
        for text in ["", "abc", &HASH[1..], &format!("{HASH}0"), &HASH.replace('b', "g")] {
            let error = text.parse::<Fingerprint>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn no_certificate_or_two_are_refused() {
        for (pem, reason) in [
            (String::new(), "no certificate"),
            ("garbage".to_owned(), "no certificate"),
            (PEM.replace("CERTIFICATE", "PRIVATE KEY"), "no certificate"),
            (format!("{PEM}{PEM}"), "more than one"),
            (PEM.replace("aGVsbG8", "!!!"), "damaged"),
        ] {
            let error = Fingerprint::of_pem(pem.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
