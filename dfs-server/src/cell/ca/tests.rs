use super::*;
use crate::cell::tls::PeerCertificate;
use dfs_proto::admin::Role;
use dfs_proto::id::NodeId;
use std::os::unix::fs::PermissionsExt;

const NOW: Timestamp = Timestamp::new(1_750_000_000, 0);
const DAY: i64 = 86_400;

fn cell_dir() -> (tempfile::TempDir, CellDir) {
    let root = tempfile::tempdir().unwrap();
    let dir = CellDir::of(root.path());
    std::fs::create_dir(dir.path()).unwrap();
    (root, dir)
}

fn names(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn peer_of(pem: &str) -> PeerCertificate {
    PeerCertificate::new(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
}

#[test]
fn a_ca_that_exists_is_loaded_and_never_replaced() {
    let (_root, dir) = cell_dir();
    let made = CertificateAuthority::load_or_make(&dir, NOW).unwrap();
    let again = CertificateAuthority::load_or_make(&dir, NOW).unwrap();
    assert_eq!(made.fingerprint(), again.fingerprint());
    assert_eq!(Fingerprint::of_pem(made.pem().as_bytes()), Some(made.fingerprint()));
    let mode = std::fs::metadata(dir.ca_key()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_ca_without_its_key_or_with_another_key_is_an_error_not_a_new_ca() {
    let (_root, dir) = cell_dir();
    let made = CertificateAuthority::load_or_make(&dir, NOW).unwrap();
    std::fs::remove_file(dir.ca_key()).unwrap();
    let missing = CertificateAuthority::load_or_make(&dir, NOW).unwrap_err();
    assert!(matches!(missing, CellError::Missing { .. }), "{missing}");
    load_or_make_key(&dir.ca_key()).unwrap();
    let other = CertificateAuthority::load_or_make(&dir, NOW).unwrap_err();
    assert!(other.to_string().contains("not the key of ca.pem"), "{other}");
    let pem = std::fs::read(dir.ca_certificate()).unwrap();
    assert_eq!(Fingerprint::of_pem(&pem), Some(made.fingerprint()));
}

#[test]
fn a_signing_request_chooses_no_names_and_no_rights() {
    let (_root, dir) = cell_dir();
    let authority = CertificateAuthority::load_or_make(&dir, NOW).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut greedy = CertificateParams::new(names(&["auth.dfs", "node-1.dfs"])).unwrap();
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let request = greedy.serialize_request(&key).unwrap().pem().unwrap();
    let proven = ProvenKey::from_request(&request).unwrap();
    let certified = authority.certify(&names(&["file.dfs", "node-9.dfs"]), &proven, NOW).unwrap();
    let peer = peer_of(&certified);
    assert_eq!(peer.roles(), [Role::File]);
    assert!(peer.is_node(NodeId(9)) && !peer.is_node(NodeId(1)));
    let not_a_ca = Issuer::from_ca_cert_pem(&certified, key).unwrap();
    assert!(!not_a_ca.key_usages().contains(&KeyUsagePurpose::KeyCertSign));
}

#[test]
fn requests_with_a_false_signature_or_another_kind_of_key_are_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let mut forged = request.der().to_vec();
    // The subject is signed: another letter in it makes the signature false.
    let at = forged.windows(5).position(|bytes| bytes == b"rcgen").unwrap();
    forged[at] = b'x';
    let pem = |der: &[u8]| {
        let body = base64(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    };
    assert!(ProvenKey::from_request(&pem(request.der())).is_ok());
    assert!(ProvenKey::from_request(&pem(&forged)).is_err());
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let request = CertificateParams::default().serialize_request(&ed25519).unwrap();
    assert!(ProvenKey::from_request(&request.pem().unwrap()).is_err());
    for garbage in ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----", &"x".repeat(1 << 20)] {
        assert!(ProvenKey::from_request(garbage).is_err());
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS[(bits & 63) as usize]);
    let quad = |three: &[u8]| {
        let byte = |index: usize| u32::from(*three.get(index).unwrap_or(&0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digits = [digit(bits >> 18), digit(bits >> 12), digit(bits >> 6), digit(bits)];
        let mut text = String::from_iter(&digits[..=three.len()]);
        text.extend(std::iter::repeat_n('=', 3 - three.len()));
        text
    };
    bytes.chunks(3).map(quad).collect()
}

#[test]
fn a_certificate_is_kept_until_a_third_of_its_life_is_left_and_then_issued_for_the_same_key() {
    let (_root, dir) = cell_dir();
    let authority = CertificateAuthority::load_or_make(&dir, NOW).unwrap();
    let names = names(&["cell.dfs", "file.dfs", "node-1.dfs"]);
    let at_day = |day: i64| {
        let now = Timestamp::new(NOW.secs + day * DAY, 0);
        authority.certify_own(&dir, &names, now).unwrap();
        let read = |path| std::fs::read(path).unwrap();
        (read(dir.node_certificate()), read(dir.node_key()))
    };
    let (first, key) = at_day(0);
    assert_eq!(at_day(244).0, first);
    let (renewed, same_key) = at_day(246);
    assert_ne!(renewed, first);
    assert_eq!(same_key, key);
    assert_eq!(at_day(247).0, renewed);
}

#[test]
fn a_certificate_that_misses_a_name_or_is_damaged_is_issued_anew() {
    let (_root, dir) = cell_dir();
    let authority = CertificateAuthority::load_or_make(&dir, NOW).unwrap();
    authority.certify_own(&dir, &names(&["cell.dfs", "file.dfs"]), NOW).unwrap();
    authority.certify_own(&dir, &names(&["cell.dfs", "lock.dfs"]), NOW).unwrap();
    let pem = std::fs::read_to_string(dir.node_certificate()).unwrap();
    assert_eq!(peer_of(&pem).roles(), [Role::Lock]);
    std::fs::write(dir.node_certificate(), "torn").unwrap();
    authority.certify_own(&dir, &names(&["cell.dfs"]), NOW).unwrap();
}

#[test]
fn a_machine_whose_clock_was_never_set_makes_no_certificates() {
    let (_root, dir) = cell_dir();
    let error = CertificateAuthority::load_or_make(&dir, Timestamp::new(77, 0)).unwrap_err();
    assert!(matches!(error, CellError::ClockUnset { secs: 77 }), "{error}");
    assert!(CertificateAuthority::load_or_make(&dir, NOW).is_ok());
}

#[test]
fn two_certificates_in_one_pem_have_no_fingerprint() {
    let (_one, one) = cell_dir();
    let (_other, other) = cell_dir();
    let one = CertificateAuthority::load_or_make(&one, NOW).unwrap();
    let other = CertificateAuthority::load_or_make(&other, NOW).unwrap();
    let both = format!("{}{}", one.pem(), other.pem());
    assert_eq!(Fingerprint::of_pem(both.as_bytes()), None);
    assert_eq!(Fingerprint::of_pem(b""), None);
}
