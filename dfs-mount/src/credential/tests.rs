//! Credential files and ticket renewal.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::auth::RenewReply;
use dfs_proto::client::CallError;
use dfs_proto::clock::ManualClock;
use dfs_proto::credential::{ActAs, Secret, Ticket, TicketHolder};

use super::{Credential, CredentialError, CredentialStore, Machine, Personal, TicketSource, check};

fn credential() -> Credential {
    Credential {
        host: "cell.example".into(),
        port: 7400,
        fingerprint: "ab".repeat(32),
        ca_pem: "-----BEGIN CERTIFICATE-----\n".into(),
        personal: Some(Personal { user: "ann".into(), renewal: Secret::new("hunter2") }),
        machine: Some(Machine { renewal: Secret::new("hunter3") }),
    }
}

#[test]
fn a_saved_credential_is_loaded_again_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let store = CredentialStore::at(dir.path().join("new/dfs"));
    assert_eq!(store.load("cell.example", 7400).unwrap(), None);
    store.save(&credential()).unwrap();
    assert_eq!(store.load("cell.example", 7400).unwrap(), Some(credential()));
    assert_eq!(store.list().unwrap(), [credential()]);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.path("cell.example", 7400)), 0o600);
    assert_eq!(mode(store.dir.clone()), 0o700);
    assert!(store.remove("cell.example", 7400).unwrap());
    assert!(!store.remove("cell.example", 7400).unwrap());
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = CredentialStore::at(dir.path());
    store.save(&credential()).unwrap();
    let path = store.path("cell.example", 7400);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = store.load("cell.example", 7400).unwrap_err();
    assert!(matches!(error, CredentialError::Exposed(_)), "{error}");
}

#[test]
fn a_directory_in_place_of_a_file_is_called_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = CredentialStore::at(dir.path());
    fs::create_dir(store.path("cell.example", 7400)).unwrap();
    let error = store.load("cell.example", 7400).unwrap_err();
    assert!(matches!(error, CredentialError::Directory(_)), "{error}");
    assert!(error.to_string().contains("is a directory"), "{error}");
}

#[test]
fn a_file_of_another_user_is_refused_whoever_asks() {
    let dir = tempfile::tempdir().unwrap();
    let store = CredentialStore::at(dir.path());
    store.save(&credential()).unwrap();
    let path = store.path("cell.example", 7400);
    let found = fs::metadata(&path).unwrap();
    let owner = found.uid();
    check(&path, &found, owner).unwrap();
    for user in [0, owner + 1].into_iter().filter(|user| *user != owner) {
        let error = check(&path, &found, user).unwrap_err();
        let expected = format!("belongs to user {owner}, and this command runs as user {user}");
        assert!(error.to_string().ends_with(&expected), "{error}");
    }
}

#[test]
fn a_broken_file_is_refused_without_showing_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let store = CredentialStore::at(dir.path());
    store.save(&credential()).unwrap();
    let path = store.path("cell.example", 7400);
    fs::write(&path, "renewal = hunter2 oops").unwrap();
    let error = store.load("cell.example", 7400).unwrap_err();
    assert!(matches!(error, CredentialError::Broken { .. }));
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn a_strange_host_does_not_leave_the_directory() {
    let store = CredentialStore::at("/nowhere");
    assert_eq!(store.path("../../etc/x", 1).parent().unwrap(), store.dir());
    assert_eq!(store.path("::1", 1).file_name().unwrap(), "__1_1.toml");
}

fn reply(number: u32) -> RenewReply {
    let act_as = ActAs::Machine { squash_root: false };
    RenewReply {
        ticket: Ticket::new(format!("ticket {number}")),
        holder: TicketHolder { user: "m".into(), act_as, is_admin: false },
        lifetime_secs: 3600,
    }
}

#[tokio::test]
async fn a_ticket_is_renewed_when_a_quarter_of_its_life_is_left_and_not_before() {
    let clock = ManualClock::default();
    let source = TicketSource::renewing(Secret::new("r"), Arc::new(clock.clone()));
    let renewals = AtomicU32::new(0);
    let ask =
        || source.current(None, |_| async { Ok(reply(renewals.fetch_add(1, Ordering::SeqCst))) });
    let first = ask().await.unwrap();
    clock.advance(Duration::from_secs(2699));
    assert_eq!(ask().await.unwrap(), first);
    clock.advance(Duration::from_secs(1));
    assert_ne!(ask().await.unwrap(), first);
    assert_eq!(renewals.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn many_requests_with_an_expired_ticket_cause_one_renewal() {
    let source = TicketSource::renewing(Secret::new("r"), Arc::new(ManualClock::default()));
    let renewals = AtomicU32::new(0);
    let ask = |refused: Option<Ticket>| {
        let (source, renewals) = (&source, &renewals);
        async move {
            let renew = |_| async {
                tokio::task::yield_now().await;
                Ok(reply(renewals.fetch_add(1, Ordering::SeqCst)))
            };
            source.current(refused.as_ref(), renew).await.unwrap().unwrap()
        }
    };
    let old = ask(None).await;
    let (a, b, c) =
        tokio::join!(ask(Some(old.clone())), ask(Some(old.clone())), ask(Some(old.clone())));
    assert!(a == b && b == c && a != old);
    assert_eq!(renewals.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_failed_renewal_is_no_error_while_the_ticket_lives() {
    let clock = ManualClock::default();
    let source = TicketSource::renewing(Secret::new("r"), Arc::new(clock.clone()));
    let first = source.current(None, |_| async { Ok(reply(1)) }).await.unwrap();
    let away = |_| async { Err(CallError::Fs(FsError::unavailable("auth server is away"))) };
    clock.advance(Duration::from_secs(3599));
    assert_eq!(source.current(None, away).await.unwrap(), first);
    clock.advance(Duration::from_secs(1));
    assert!(source.current(None, away).await.is_err());
}
