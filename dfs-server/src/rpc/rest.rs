//! The JSON face: plain HTTP for programs that speak nothing else.
//!
//! PROTOCOL.md, "JSON face", describes it, with a session that a test runs. It translates and
//! decides nothing: what a request may do is judged by the operations that every client uses, asked
//! with the requester's ticket ([`caller`]). Every answer is JSON but a content itself; every error
//! is an HTTP status and JSON with the code of PROTOCOL.md.
//!
//! What changes something runs in a task of its own: a client that hangs up in the middle leaves no
//! lock and no empty file behind.

mod accounts;
mod budget;
mod caller;
mod condition;
mod download;
mod range;
mod received;
mod refusal;
pub(super) mod respond;
mod session;
mod show;
mod store;
mod target;
mod tree;
mod upload;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::clock::Clock;
use dfs_proto::credential::Ticket;
use hyper::body::Body;
use hyper::header::{AUTHORIZATION, EXPECT, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::budget::Budget;
use self::caller::Caller;
use self::condition::Conditions;
use self::download::Download;
use self::received::Received;
use self::refusal::Refusal;
use self::respond::ResponseBody;
use self::session::Standing;
use self::target::{Resource, Target};
use self::upload::Upload;
use super::Router;

pub use self::caller::{Peers, To};

/// The JSON face of one server process.
pub struct Rest {
    router: Arc<Router>,
    peers: Arc<dyn Peers>,
    clock: Arc<dyn Clock>,
    budget: Budget,
    /// Changes under way, and the end of their time.
    changes: TaskTracker,
    stop: CancellationToken,
}

impl Rest {
    pub fn new(router: Arc<Router>, peers: Arc<dyn Peers>, clock: Arc<dyn Clock>) -> Arc<Rest> {
        let (changes, stop) = (TaskTracker::new(), CancellationToken::new());
        Arc::new(Rest { router, peers, clock, budget: Budget::default(), changes, stop })
    }

    /// Whether a path is one of the face.
    pub fn serves(path: &str) -> bool {
        path.starts_with(target::PREFIX) || path == target::PREFIX.trim_end_matches('/')
    }

    /// Answers one request.
    pub async fn answer<B>(
        self: &Arc<Rest>,
        address: IpAddr,
        request: Request<B>,
    ) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display,
    {
        let is_change = matches!(*request.method(), Method::PUT | Method::DELETE);
        let work = Arc::clone(self).serve(address, request);
        if !is_change {
            return work.await;
        }
        let stop = self.stop.clone();
        let change = async move { stop.run_until_cancelled(work).await };
        match self.changes.spawn(change).await {
            Ok(Some(response)) => response,
            Ok(None) => Refusal::from(FsError::unavailable("server stops")).into_response(),
            Err(error) => {
                tracing::error!(%error, "a request of the JSON face broke off");
                let error = FsError::Internal { incident: "rest-change".into() };
                Refusal::from(error).into_response()
            }
        }
    }

    /// Waits until changes under way are done, at most so long; then ends them.
    pub async fn drain(&self, longest: Duration) {
        self.changes.close();
        if tokio::time::timeout(longest, self.changes.wait()).await.is_err() {
            self.stop.cancel();
            self.changes.wait().await;
        }
    }

    async fn serve<B>(
        self: Arc<Rest>,
        address: IpAddr,
        request: Request<B>,
    ) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display,
    {
        let (parts, body) = request.into_parts();
        let mut received = Received::new(body, parts.headers.contains_key(EXPECT));
        match self.route(address, &parts, &mut received).await {
            Ok(response) => response,
            Err(refusal) => {
                received.waste().await;
                refusal.into_response()
            }
        }
    }

    async fn route<B>(
        &self,
        address: IpAddr,
        parts: &Parts,
        received: &mut Received<B>,
    ) -> Result<Response<ResponseBody>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let target = Target::parse(parts.uri.path(), parts.uri.query().unwrap_or(""))?;
        let stranger = Caller::new(Arc::clone(&self.router), Arc::clone(&self.peers), address);
        let resource = target.resource;
        let is_allowed = |method: &str| method == parts.method.as_str();
        if !resource.methods().split(", ").any(is_allowed) {
            return Err(Refusal::method(&parts.method, resource.methods()));
        }
        if let Resource::Login | Resource::Renew | Resource::Logout = resource {
            let body = received.json().await?;
            return Ok(accounts::answer(&stranger, resource, &body).await?);
        }
        let caller = stranger.with_ticket(ticket(&parts.headers)?);
        match parts.method {
            Method::PUT | Method::DELETE => {
                self.change((&caller, address), parts, &target, received).await
            }
            _ => self.read(&caller, parts, &target).await,
        }
    }

    async fn read(
        &self,
        caller: &Caller,
        parts: &Parts,
        target: &Target,
    ) -> Result<Response<ResponseBody>, Refusal> {
        match target.resource {
            Resource::Stat => tree::stat(caller, target).await,
            Resource::Directories => tree::list(caller, target).await,
            _ => {
                let (method, headers, budget) = (&parts.method, &parts.headers, &self.budget);
                Download { caller, target, method, headers, budget }.answer().await
            }
        }
    }

    async fn change<B>(
        &self,
        (caller, address): (&Caller, IpAddr),
        parts: &Parts,
        target: &Target,
        received: &mut Received<B>,
    ) -> Result<Response<ResponseBody>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let conditions = Conditions::of(&parts.headers)?;
        let key = session::requested_key(&parts.headers)?;
        let (place, clock) = ((target.volume.as_str(), address), Arc::clone(&self.clock));
        let standing = Standing::open(caller, key, place, clock).await?;
        let (caller, is_put) = (&standing.caller, parts.method == Method::PUT);
        let work = async {
            match (target.resource, is_put) {
                (Resource::Directories, true) => tree::make(caller, target).await,
                (Resource::Directories, false) => tree::remove_directory(caller, target).await,
                (_, false) => tree::remove(caller, target, &conditions).await,
                (_, true) => {
                    let upload = Upload {
                        standing: &standing,
                        target,
                        conditions: &conditions,
                        budget: &self.budget,
                        clock: &*self.clock,
                    };
                    upload.run(received).await
                }
            }
        };
        standing.keep(work).await
    }
}

/// The ticket that a request bears.
fn ticket(headers: &HeaderMap) -> Result<Ticket, FsError> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, ticket) =
        value.and_then(|value| value.split_once(' ')).ok_or(FsError::Unauthenticated)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(FsError::Unauthenticated);
    }
    Ok(Ticket::new(ticket.trim()))
}
