//! From envelope and connection to a context, or a refusal.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::credential::{Ticket, TicketHolder};
use dfs_proto::limits::{DEADLINE_MAX, GROUP_COUNT_MAX, TICKET_BYTES_MAX};
use dfs_proto::rpc::{Access, Envelope};

use super::{Channel, Gate};
use crate::auth::ticket::TicketVerifier;
use crate::request::{Context, NewsCell, Peer};

/// Checks tickets; the auth module's verifier.
pub trait CheckTicket: Send + Sync + 'static {
    /// # Errors
    /// `TicketExpired`, `TicketRefused`, or `Unavailable` while the cell's keys are not known.
    fn check(&self, ticket: &Ticket, now: Timestamp) -> Result<Arc<TicketHolder>, FsError>;
}

impl CheckTicket for TicketVerifier {
    fn check(&self, ticket: &Ticket, now: Timestamp) -> Result<Arc<TicketHolder>, FsError> {
        self.verify(ticket, now).map(|verified| Arc::clone(&verified.holder))
    }
}

impl Gate {
    /// Lets a request in, or not.
    pub(super) fn admit(
        &self,
        channel: Channel,
        envelope: Envelope,
        access: Access,
    ) -> Result<Context, FsError> {
        check_sizes(&envelope)?;
        let address = match &channel {
            Channel::Network { address, .. } => Some(*address),
            Channel::Local => None,
        };
        let peer = self.identify(channel, &envelope, access)?;
        let identity = peer.identity(envelope.caller.as_ref());
        let wait = Duration::from_millis(u64::from(envelope.deadline_ms)).min(DEADLINE_MAX);
        Ok(Context {
            peer,
            identity,
            session: envelope.session,
            op: envelope.op,
            lowest_unanswered: envelope.lowest_unanswered,
            deadline: self.clock.boottime() + wait,
            address,
            news: NewsCell::beside(envelope.stream),
        })
    }

    pub(super) fn identify(
        &self,
        channel: Channel,
        envelope: &Envelope,
        access: Access,
    ) -> Result<Peer, FsError> {
        let proof = match channel {
            Channel::Local => return Ok(Peer::Local),
            Channel::Network { node, .. } => node,
        };
        match (access, proof, &envelope.ticket) {
            (Access::Node, Some(proof), _) => Ok(Peer::Node(proof)),
            (Access::Node, None, _) => Err(FsError::NotPermitted),
            (Access::Public, ..) => Ok(Peer::Anonymous),
            (Access::User | Access::Admin, _, Some(ticket)) => self.bearer(ticket, access),
            (Access::User, Some(proof), None) => Ok(Peer::Node(proof)),
            (Access::User | Access::Admin, ..) => Err(FsError::Unauthenticated),
        }
    }

    fn bearer(&self, ticket: &Ticket, access: Access) -> Result<Peer, FsError> {
        let holder = self.tickets.check(ticket, self.clock.wall())?;
        if access == Access::Admin && !holder.is_admin {
            return Err(FsError::NotPermitted);
        }
        Ok(Peer::User(holder))
    }
}

fn check_sizes(envelope: &Envelope) -> Result<(), FsError> {
    let too_large = |what: &str, limit: usize| {
        Err(FsError::TooLarge { what: what.into(), limit: limit as u64 })
    };
    if envelope.ticket.as_ref().is_some_and(|ticket| ticket.expose().len() > TICKET_BYTES_MAX) {
        return too_large("ticket bytes", TICKET_BYTES_MAX);
    }
    if envelope.caller.as_ref().is_some_and(|caller| caller.groups.len() > GROUP_COUNT_MAX) {
        return too_large("caller's groups", GROUP_COUNT_MAX);
    }
    match (&envelope.op, envelope.session) {
        (Some(op), Some(session)) if op.session != session => {
            Err(FsError::malformed("op id of another session"))
        }
        _ => Ok(()),
    }
}
