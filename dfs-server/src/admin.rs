//! What operators ask of a server process, and the list of the cell's nodes.

pub mod registry;

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::admin::{FileNodeState, Role, StatusReply};
use dfs_proto::clock::Clock;
use dfs_proto::id::NodeId;

/// What the directory of this process has to tell.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub sessions: usize,
    pub volumes: Vec<String>,
    pub file_nodes: Vec<FileNodeState>,
}

/// Answers for this process.
pub struct Admin {
    node: NodeId,
    roles: Vec<Role>,
    figures: Box<dyn Fn() -> Figures + Send + Sync>,
    clock: Arc<dyn Clock>,
    started_at: Duration,
}

impl Admin {
    pub fn new(
        node: NodeId,
        roles: Vec<Role>,
        figures: impl Fn() -> Figures + Send + Sync + 'static,
        clock: &Arc<dyn Clock>,
    ) -> Admin {
        let figures = Box::new(figures);
        Admin { node, roles, figures, started_at: clock.boottime(), clock: Arc::clone(clock) }
    }

    pub fn status(&self) -> StatusReply {
        let uptime = self.clock.boottime().saturating_sub(self.started_at);
        let Figures { sessions, volumes, file_nodes } = (self.figures)();
        StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node,
            roles: self.roles.clone(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            sessions: sessions as u64,
            volumes,
            file_nodes,
        }
    }
}
