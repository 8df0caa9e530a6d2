//! Which service answers which operation.

use std::sync::Arc;

use dfs_proto::admin::{Announce, Map, RenewCertificate, Status};
use dfs_proto::auth::{Keys, WhoAmI};
use dfs_proto::file::{Fetch, Missing, PutChunks, Replicate, Store, SyncChunks};
use dfs_proto::lock::{
    BreakLocks, CancelRange, EndSession, ListLocks, LockEvents, ReclaimRanges, Release, TestRange,
    UnlockRange,
};
use dfs_proto::session::{CloseSession, Events};

use super::network::Network;
use crate::admin::Admin;
use crate::admin::registry::Registry;
use crate::auth::AuthService;
use crate::directory::Directory;
use crate::file::FileNodes;
use crate::lock::LockService;
use crate::rpc::{Router, stream_of};

/// Registers handlers of a cloneable service: `METHOD(context, request)` for each.
macro_rules! unary {
    ($router:ident, $service:ident, $($method:ident),+ $(,)?) => {$(
        let service = $service.clone();
        $router.unary(move |context, request| {
            let service = service.clone();
            async move { service.$method(context, request).await }
        });
    )+};
}

/// The same for handlers that need no context.
macro_rules! plain {
    ($router:ident, $service:ident, $($method:ident),+ $(,)?) => {$(
        let service = $service.clone();
        $router.unary(move |_context, request| {
            let service = service.clone();
            async move { service.$method(request).await }
        });
    )+};
}

/// The same for handlers that look at the context only.
macro_rules! looking {
    ($router:ident, $service:ident, $($method:ident),+ $(,)?) => {$(
        let service = $service.clone();
        $router.unary(move |context, request| {
            let service = service.clone();
            async move { service.$method(&context, request).await }
        });
    )+};
}

pub fn auth(router: &mut Router, auth: &Arc<AuthService>) {
    plain!(router, auth, renew, logout, users);
    looking!(router, auth, login, add_user, remove_user, set_password, change_password);
    let service = Arc::clone(auth);
    router.unary(move |context, _request: WhoAmI| {
        let who = service.whoami(&context);
        async move { who }
    });
    let service = Arc::clone(auth);
    router.unary(move |_context, request: Keys| {
        let keys = service.keys(&request);
        async move { Ok(keys) }
    });
}

/// The cell's list of nodes. This process needs the others' addresses itself, so it listens in.
pub fn registry(router: &mut Router, registry: &Arc<Registry>, network: &Network) {
    network.set_map(registry.map(&Map {}));
    plain!(router, registry, join_token, join);
    let service = Arc::clone(registry);
    router.unary(move |_context, request: Map| {
        let map = service.map(&request);
        async move { Ok(map) }
    });
    let (service, listener) = (Arc::clone(registry), network.clone());
    router.unary(move |context, request: Announce| {
        let (service, listener) = (Arc::clone(&service), listener.clone());
        async move {
            let map = service.announce(&context, request).await?;
            listener.set_map(map.clone());
            Ok(map)
        }
    });
    let service = Arc::clone(registry);
    router.unary(move |context, request: RenewCertificate| {
        let renewed = service.renew_certificate(&context, &request);
        async move { renewed }
    });
}

/// The cell's map at a process that only knows what it was told.
pub fn map(router: &mut Router, network: &Network) {
    let network = network.clone();
    router.unary(move |_context, _request: Map| {
        let map = network.map();
        async move { Ok(map) }
    });
}

/// Handlers that answer at once.
macro_rules! at_once {
    ($router:ident, $service:ident, $($method:ident: $request:ty => $answer:expr),+ $(,)?) => {$(
        let service = $service.clone();
        $router.unary(move |_context, request: $request| {
            let answer = $answer(service.$method(&request));
            async move { answer }
        });
    )+};
}

pub fn lock(router: &mut Router, lock: &LockService) {
    plain!(router, lock, grant, lock_range);
    at_once!(
        router,
        lock,
        release: Release => Ok,
        end_session: EndSession => Ok,
        test_range: TestRange => Ok,
        unlock_range: UnlockRange => Ok,
        cancel_range: CancelRange => Ok,
        reclaim_ranges: ReclaimRanges => std::convert::identity,
        list: ListLocks => Ok,
        break_locks: BreakLocks => Ok,
    );
    let service = lock.clone();
    router.stream(move |_context, _request: LockEvents| {
        let events = stream_of(service.events());
        async move { Ok(events) }
    });
}

pub fn directory(router: &mut Router, directory: &Directory) {
    unary!(
        router,
        directory,
        lookup,
        getattr,
        readdir,
        setattr,
        mkdir,
        symlink,
        mknod,
        link,
        unlink,
        rmdir,
        rename,
        outcome,
        open,
        create,
        yield_lock,
        renew_write,
        commit,
        whereabouts,
        get_xattr,
        list_xattr,
        set_xattr,
        remove_xattr,
        open_session,
        heartbeat,
        acknowledge,
        node_heartbeat,
        lock_range,
        test_range,
        unlock_range,
        cancel_range,
        reclaim_ranges,
        locks_of,
        break_locks,
    );
    plain!(router, directory, all_locks, lookup_parent, readlink, statfs, fsync, open_volume);
    let service = directory.clone();
    router.unary(move |context, _request: CloseSession| {
        let service = service.clone();
        async move { service.close_session(context).await }
    });
    let service = directory.clone();
    router.stream(move |context, _request: Events| {
        let service = service.clone();
        async move { service.events(&context).await.map(stream_of) }
    });
}

pub fn file(router: &mut Router, file: &Arc<FileNodes>) {
    let service = Arc::clone(file);
    router.with_payload(move |context, request: Fetch, _payload| {
        let service = Arc::clone(&service);
        async move { service.fetch(&context, request).await }
    });
    let service = Arc::clone(file);
    router.with_payload(move |context, request: PutChunks, payload| {
        let service = Arc::clone(&service);
        async move { Ok((service.put(&context, request, payload).await?, Vec::new())) }
    });
    let service = Arc::clone(file);
    router.with_payload(move |context, request: Store, payload| {
        let service = Arc::clone(&service);
        async move { Ok((service.store(&context, request, payload).await?, Vec::new())) }
    });
    let service = Arc::clone(file);
    router.with_payload(move |context, request: Replicate, payload| {
        let service = Arc::clone(&service);
        async move { Ok((service.replicate(&context, request, payload).await?, Vec::new())) }
    });
    let service = Arc::clone(file);
    router.unary(move |context, request: Missing| {
        let service = Arc::clone(&service);
        async move { service.missing(&context, request).await }
    });
    let service = Arc::clone(file);
    router.unary(move |context, request: SyncChunks| {
        let service = Arc::clone(&service);
        async move { service.sync(&context, request).await }
    });
}

pub fn admin(router: &mut Router, admin: &Arc<Admin>) {
    let service = Arc::clone(admin);
    router.unary(move |_context, _request: Status| {
        let status = service.status();
        async move { Ok(status) }
    });
}
