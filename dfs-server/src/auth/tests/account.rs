use super::login::EndingRow;
use super::*;
use dfs_proto::auth::{ChangePassword, RemoveUser, SetPassword, Users};

const PASSWORD: &str = "correct horse";
const OTHER: &str = "battery staple";

impl World {
    /// A cell with one more user, who is logged in.
    async fn with_anna() -> (World, LoginReply) {
        let world = World::new().await;
        world.add_user(user("anna", None)).await.unwrap();
        let login = world.login("anna", PASSWORD).await.unwrap();
        (world, login)
    }

    async fn remove(&self, op: OpId, name: &str) -> Result<(), FsError> {
        let context = Context { op: Some(op), ..from(1) };
        self.auth.remove_user(&context, RemoveUser { user: name.into() }).await
    }

    async fn set_password(&self, op: OpId, password: &str) -> Result<(), FsError> {
        let request = SetPassword { user: "anna".into(), password: Secret::new(password) };
        self.auth.set_password(&Context { op: Some(op), ..from(1) }, request).await
    }

    async fn change(&self, op: OpId, login: &LoginReply, old: &str) -> Result<(), FsError> {
        let peer = Peer::User(Arc::new(login.holder.clone()));
        let request = ChangePassword { old: Secret::new(old), new: Secret::new(OTHER) };
        self.auth.change_password(&Context { op: Some(op), peer, ..from(1) }, request).await
    }

    async fn names(&self) -> Vec<String> {
        let page = self.auth.users(Users { after: None }).await.unwrap();
        page.users.into_iter().map(|entry| entry.user).collect()
    }

    async fn is_over(&self, login: &LoginReply) -> bool {
        let is_refused = matches!(self.check(&login.ticket), Err(FsError::TicketRefused { .. }));
        is_refused && self.renew(&login.renewal).await == Err(FsError::LoginRefused)
    }
}

fn op(number: u64) -> OpId {
    OpId { number, ..OP }
}

#[tokio::test]
async fn users_are_listed_in_order_and_from_a_name_on() {
    let world = World::new().await;
    let ben = world.add_user(user("ben", Some(77))).await.unwrap();
    world.add_user(AddUser { is_admin: true, ..user("anna", None) }).await.unwrap();
    assert_eq!(world.names().await, ["admin", "anna", "ben"]);
    let rest = world.auth.users(Users { after: Some("anna".into()) }).await.unwrap();
    assert!(rest.is_last);
    assert_eq!((rest.users.len(), &rest.users[0].identity), (1, &ben));
    assert!(world.auth.users(Users { after: Some("\0".into()) }).await.is_err());
}

#[tokio::test]
async fn a_removed_user_is_out_at_once_and_after_a_restart_and_others_are_not() {
    let (world, login) = World::with_anna().await;
    let password = world.bootstrap().password;
    let admin = world.login("admin", password.expose()).await.unwrap();
    world.remove(op(1), "anna").await.unwrap();
    assert!(world.is_over(&login).await);
    assert_eq!(world.login("anna", PASSWORD).await, Err(FsError::LoginRefused));
    let world = world.restart().await;
    assert!(world.is_over(&login).await);
    assert_eq!(world.names().await, ["admin"]);
    world.check(&admin.ticket).unwrap();
    world.renew(&admin.renewal).await.unwrap();
}

#[tokio::test]
async fn removal_is_done_once_however_often_it_is_sent() {
    let (world, _) = World::with_anna().await;
    world.remove(op(1), "anna").await.unwrap();
    world.add_user(user("anna", None)).await.unwrap();
    world.remove(op(1), "anna").await.unwrap();
    assert_eq!(world.names().await, ["admin", "anna"]);
    world.remove(op(2), "anna").await.unwrap();
    assert_eq!(world.remove(op(3), "anna").await, Err(FsError::NotFound));
    assert_eq!(world.remove(op(4), "no name").await, Err(FsError::NotFound));
}

#[tokio::test]
async fn the_first_administrator_stays() {
    let world = World::new().await;
    let refused = world.remove(op(1), "admin").await;
    assert!(matches!(refused, Err(FsError::InvalidArgument { .. })), "{refused:?}");
    assert_eq!(world.names().await, ["admin"]);
}

#[tokio::test]
async fn a_later_user_of_the_name_inherits_neither_logins_nor_uid() {
    let (world, login) = World::with_anna().await;
    world.remove(op(1), "anna").await.unwrap();
    assert_eq!(world.add_user(user("anna", None)).await.unwrap().uid, 10_001);
    assert!(world.is_over(&login).await);
    // The uid of somebody who is gone is given to whom an administrator says, and to nobody else.
    assert_eq!(world.add_user(user("ben", Some(10_000))).await.unwrap().uid, 10_000);
    let taken = world.add_user(user("carl", Some(10_000))).await;
    assert_eq!(taken, Err(FsError::Exists));
}

#[tokio::test]
async fn a_chosen_uid_is_not_handed_out_by_itself_when_its_user_is_gone() {
    let world = World::new().await;
    world.add_user(user("anna", Some(10_000))).await.unwrap();
    world.remove(op(1), "anna").await.unwrap();
    assert_eq!(world.add_user(user("ben", None)).await.unwrap().uid, 10_001);
}

/// The state that a crash leaves between the account's change and the end of its logins.
async fn mark(world: &World) {
    let put = |txn: &mut Txn<'_>| {
        txn.put(&key::ending("anna"), EndingRow { since: 0 });
        Ok(())
    };
    world.auth.store.write(Durability::Stable, put).await.unwrap();
}

#[tokio::test]
async fn while_a_user_is_marked_no_login_is_renewed_or_begun() {
    let (world, login) = World::with_anna().await;
    mark(&world).await;
    assert_eq!(world.renew(&login.renewal).await, Err(FsError::LoginRefused));
    let begun = world.login("anna", PASSWORD).await;
    assert!(matches!(begun, Err(FsError::Unavailable { .. })), "{begun:?}");
}

#[tokio::test]
async fn what_a_crash_left_of_an_end_is_completed_by_a_restart_and_by_a_sweep() {
    for restarts in [true, false] {
        let (mut world, login) = World::with_anna().await;
        mark(&world).await;
        if restarts {
            world = world.restart().await;
        } else {
            world.auth.sweep().await.unwrap();
        }
        assert!(world.is_over(&login).await);
        let fresh = world.login("anna", PASSWORD).await.unwrap();
        world.renew(&fresh.renewal).await.unwrap();
    }
}

#[tokio::test]
async fn a_password_that_is_set_counts_alone_and_ends_the_logins() {
    let (world, login) = World::with_anna().await;
    world.set_password(op(1), OTHER).await.unwrap();
    assert!(world.is_over(&login).await);
    assert_eq!(world.login("anna", PASSWORD).await, Err(FsError::LoginRefused));
    let fresh = world.login("anna", OTHER).await.unwrap();
    // Sent again, it ends nothing that came after.
    world.set_password(op(1), OTHER).await.unwrap();
    world.check(&fresh.ticket).unwrap();
    world.renew(&fresh.renewal).await.unwrap();
    let weak = world.set_password(op(2), "short").await;
    assert!(matches!(weak, Err(FsError::InvalidArgument { .. })), "{weak:?}");
    world.remove(op(3), "anna").await.unwrap();
    assert_eq!(world.set_password(op(4), OTHER).await, Err(FsError::NotFound));
}

#[tokio::test]
async fn a_user_changes_the_own_password_and_stays_logged_in() {
    let (world, login) = World::with_anna().await;
    world.change(op(1), &login, PASSWORD).await.unwrap();
    // Sent again, it is answered again though the old password is none any more.
    world.change(op(1), &login, PASSWORD).await.unwrap();
    assert_eq!(world.change(op(2), &login, PASSWORD).await, Err(FsError::LoginRefused));
    world.login("anna", OTHER).await.unwrap();
    world.check(&login.ticket).unwrap();
    world.renew(&login.renewal).await.unwrap();
}

#[tokio::test]
async fn guesses_of_the_old_password_are_limited_with_those_of_logins() {
    let (world, login) = World::with_anna().await;
    for number in 0..3 {
        assert_eq!(world.change(op(number), &login, "guess").await, Err(FsError::LoginRefused));
    }
    for _ in 0..2 {
        assert_eq!(world.login("anna", "guess").await, Err(FsError::LoginRefused));
    }
    let limited = Err(FsError::RateLimited { retry_after_secs: 1 });
    assert_eq!(world.change(op(9), &login, PASSWORD).await, limited);
}

#[tokio::test]
async fn a_machine_has_no_password_to_change() {
    let world = World::new().await;
    let renewed = world.renew(&world.bootstrap().machine_secret).await.unwrap();
    let RenewReply { ticket, holder, lifetime_secs } = renewed;
    let login = LoginReply { ticket, holder, lifetime_secs, renewal: Secret::new("") };
    assert_eq!(world.change(op(1), &login, PASSWORD).await, Err(FsError::NotPermitted));
}
