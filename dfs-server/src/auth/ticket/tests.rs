use super::*;
use dfs_proto::credential::{ActAs, Identity};

const NOW: Timestamp = Timestamp::new(1_750_000_000, 0);
const LOGIN: LoginId = LoginId([3; 16]);

fn cell(name: &str) -> Fingerprint {
    Fingerprint::of_der(name.as_bytes())
}

fn signer(cell: Fingerprint) -> TicketSigner {
    let dir = tempfile::tempdir().unwrap();
    TicketSigner::load_or_make(&dir.path().join("ticket.key"), cell).unwrap()
}

fn verifier(signer: &TicketSigner, cell: Fingerprint) -> TicketVerifier {
    let verifier = TicketVerifier::new(cell);
    verifier.set_keys(KeysReply { ticket_key: signer.public_key(), revoked: Vec::new() });
    verifier
}

fn anna() -> TicketHolder {
    let identity = Identity { uid: 10_000, gid: 10_000, groups: vec![5] };
    TicketHolder { user: "anna".into(), act_as: ActAs::Personal { identity }, is_admin: false }
}

fn later(secs: i64) -> Timestamp {
    Timestamp::new(NOW.secs + secs, 0)
}

fn why(result: Result<Arc<VerifiedTicket>, FsError>) -> String {
    match result {
        Err(FsError::TicketRefused { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ticket_says_what_was_signed_until_it_expires() {
    let signer = signer(cell("a"));
    let verifier = verifier(&signer, cell("a"));
    let ticket = signer.sign(&anna(), LOGIN, NOW).unwrap();
    for at in [0, 1, 3599, 3600 + CLOCK_SKEW_SECS - 1] {
        let verified = verifier.verify(&ticket, later(at)).unwrap();
        assert_eq!((&*verified.holder, verified.login), (&anna(), LOGIN));
        assert_eq!(verified.expires, later(3600));
    }
    // Remembered by now, and judged all the same.
    let expired = verifier.verify(&ticket, later(3600 + CLOCK_SKEW_SECS));
    assert_eq!(expired, Err(FsError::TicketExpired));
}

#[test]
fn an_expired_ticket_is_refused_at_first_sight() {
    let signer = signer(cell("a"));
    let ticket = signer.sign(&anna(), LOGIN, NOW).unwrap();
    let expired = verifier(&signer, cell("a")).verify(&ticket, later(86_400));
    assert_eq!(expired, Err(FsError::TicketExpired));
}

#[test]
fn a_change_of_any_character_is_noticed() {
    let signer = signer(cell("a"));
    let verifier = verifier(&signer, cell("a"));
    let text = signer.sign(&anna(), LOGIN, NOW).unwrap().expose().to_owned();
    for at in (0..text.len()).step_by(7) {
        let mut forged = text.clone().into_bytes();
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        let forged = Ticket::new(String::from_utf8(forged).unwrap());
        why(verifier.verify(&forged, NOW));
    }
    assert!(verifier.verify(&Ticket::new(text), NOW).is_ok());
}

#[test]
fn what_is_no_ticket_is_refused_without_a_panic() {
    let signer = signer(cell("a"));
    let verifier = verifier(&signer, cell("a"));
    let long = "v4.public.".to_owned() + &"A".repeat(TICKET_BYTES_MAX);
    for text in ["", "v4.public.", "v4.public.AAAA", "v4.local.AAAA", "\u{e9}", &long] {
        why(verifier.verify(&Ticket::new(text), NOW));
    }
    let footer = signer.sign(&anna(), LOGIN, NOW).unwrap().expose().to_owned() + ".Zm9v";
    why(verifier.verify(&Ticket::new(footer), NOW));
}

#[test]
fn a_ticket_of_another_cell_is_refused_even_under_the_same_key() {
    let (one, other) = (signer(cell("a")), signer(cell("b")));
    let ticket = other.sign(&anna(), LOGIN, NOW).unwrap();
    why(verifier(&one, cell("a")).verify(&ticket, NOW));
    why(verifier(&other, cell("a")).verify(&ticket, NOW));
    assert!(verifier(&other, cell("b")).verify(&ticket, NOW).is_ok());
}

#[test]
fn a_revoked_login_is_refused_at_once_also_if_its_ticket_was_seen() {
    let signer = signer(cell("a"));
    let verifier = verifier(&signer, cell("a"));
    let ticket = signer.sign(&anna(), LOGIN, NOW).unwrap();
    let other = signer.sign(&anna(), LoginId([4; 16]), NOW).unwrap();
    verifier.verify(&ticket, NOW).unwrap();
    verifier.revoke(LOGIN);
    assert!(why(verifier.verify(&ticket, NOW)).contains("log in again"));
    assert!(verifier.verify(&other, NOW).is_ok());
    let keys = KeysReply { ticket_key: signer.public_key(), revoked: vec![LoginId([4; 16])] };
    verifier.set_keys(keys);
    assert!(verifier.verify(&ticket, NOW).is_ok());
    why(verifier.verify(&other, NOW));
}

#[test]
fn a_new_key_ends_tickets_of_the_old_one() {
    let (old, new) = (signer(cell("a")), signer(cell("a")));
    let verifier = verifier(&old, cell("a"));
    let ticket = old.sign(&anna(), LOGIN, NOW).unwrap();
    verifier.verify(&ticket, NOW).unwrap();
    verifier.set_keys(KeysReply { ticket_key: new.public_key(), revoked: Vec::new() });
    why(verifier.verify(&ticket, NOW));
}

#[test]
fn without_keys_the_answer_is_to_wait() {
    let ticket = signer(cell("a")).sign(&anna(), LOGIN, NOW).unwrap();
    let unknown = TicketVerifier::new(cell("a")).verify(&ticket, NOW);
    assert!(unknown.unwrap_err().is_transient());
}

#[test]
fn a_ticket_from_the_future_names_the_difference_of_clocks() {
    let signer = signer(cell("a"));
    let verifier = verifier(&signer, cell("a"));
    let ticket = signer.sign(&anna(), LOGIN, later(CLOCK_SKEW_SECS)).unwrap();
    assert!(verifier.verify(&ticket, NOW).is_ok());
    let ticket = signer.sign(&anna(), LOGIN, later(500)).unwrap();
    assert!(why(verifier.verify(&ticket, NOW)).contains("500 s"));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut known = Known::default();
    let verified =
        Arc::new(VerifiedTicket { holder: Arc::new(anna()), login: LOGIN, expires: NOW });
    for number in 0..3 * REMEMBERED_MAX {
        let hash = secret::sha256(&number.to_le_bytes());
        known.remember(hash, Arc::clone(&verified));
        assert!(known.young.len() + known.old.len() <= 2 * REMEMBERED_MAX);
        assert!(known.recall(&hash).is_some());
    }
}

#[test]
fn the_key_is_kept_private_and_a_damaged_one_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ticket.key");
    let made = TicketSigner::load_or_make(&path, cell("a")).unwrap();
    let again = TicketSigner::load_or_make(&path, cell("a")).unwrap();
    assert_eq!(made.public_key(), again.public_key());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for text in [String::new(), "zz".repeat(64), "00".repeat(64)] {
        std::fs::write(&path, text).unwrap();
        let error = TicketSigner::load_or_make(&path, cell("a")).unwrap_err();
        assert!(error.to_string().contains("ticket.key is damaged"), "{error}");
    }
}

#[test]
fn an_account_with_most_groups_fits_a_ticket_and_more_is_an_error() {
    let signer = signer(cell("a"));
    let holder = |groups: usize| {
        let identity = Identity { uid: 1, gid: 1, groups: vec![u32::MAX - 1; groups] };
        TicketHolder { user: "x".repeat(64), act_as: ActAs::Personal { identity }, is_admin: true }
    };
    let most = signer.sign(&holder(crate::auth::user::ACCOUNT_GROUPS_MAX), LOGIN, NOW).unwrap();
    assert!(verifier(&signer, cell("a")).verify(&most, NOW).is_ok());
    let error = signer.sign(&holder(1000), LOGIN, NOW).unwrap_err();
    assert!(matches!(error, FsError::TooLarge { .. }), "{error}");
}
