//! The fake cell's opens, locks and outcomes.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::capability::{ReadRight, WriteRight};
use dfs_proto::client::{ReplyBody, TransportError};
use dfs_proto::directory::{
    LockWait, NodeAddress, Open, OpenAccess, OpenReply, Outcome, OutcomeReply, Placement,
    RenewWrite, WriteGrant,
};
use dfs_proto::id::{FileId, SessionId};
use dfs_proto::rpc::{Envelope, encode_reply};
use dfs_proto::version::{DataVersion, FencingToken};

use super::fake_cell::{CAPABILITY_KEY, FakeCell, NODES, Request, session};

impl FakeCell {
    pub(super) async fn open(&self, request: &Request) -> Result<ReplyBody, TransportError> {
        let result = match self.admit::<Open>(request) {
            Ok((who, it)) => self.open_admitted(&who, &it).await,
            Err(error) => Err(error),
        };
        Ok(ReplyBody::Whole(encode_reply(&result).expect("small")))
    }

    async fn open_admitted(&self, who: &Envelope, it: &Open) -> Result<OpenReply, FsError> {
        self.known(who)?;
        let session = session(who)?;
        let OpenAccess::Write { wait, .. } = it.access else {
            return self.opened(session, it.fid, it.have, false);
        };
        loop {
            let freed = self.lock_freed.notified();
            {
                let mut cell = self.cell();
                let file = cell.files.get(&it.fid).ok_or(FsError::Stale)?;
                if file.lock.is_none_or(|(holder, _)| holder == session) {
                    drop(cell);
                    return self.opened(session, it.fid, it.have, true);
                }
                cell.recall(it.fid);
            }
            let holder = "other".to_owned();
            match wait {
                LockWait::No => return Err(FsError::LockBusy { holder }),
                LockWait::UpTo(millis) => {
                    let wait = Duration::from_millis(millis.into());
                    if tokio::time::timeout(wait, freed).await.is_err() {
                        return Err(FsError::LockTimeout { holder });
                    }
                }
            }
        }
    }

    pub(super) fn opened(
        &self,
        session: SessionId,
        fid: FileId,
        have: Option<DataVersion>,
        is_write: bool,
    ) -> Result<OpenReply, FsError> {
        let write = is_write.then(|| self.grant(session, fid)).transpose()?;
        let cell = self.cell();
        let file = cell.files.get(&fid).ok_or(FsError::Stale)?;
        let version = file.attr.data_version;
        let expires_secs = self.clock.wall().secs + 600;
        let address = |node| NodeAddress { node, host: None, port: 1 };
        Ok(OpenReply {
            attr: file.attr.clone(),
            manifest: (have != Some(version)).then(|| file.manifest.clone()),
            placement: Placement { replicas: NODES.map(address).to_vec() },
            read: CAPABILITY_KEY.seal_read(ReadRight { fid, expires_secs }),
            write,
            sequence: cell.sequence(),
        })
    }

    fn grant(&self, session: SessionId, fid: FileId) -> Result<WriteGrant, FsError> {
        let mut cell = self.cell();
        let fresh = cell.next_token();
        let file = cell.files.get_mut(&fid).ok_or(FsError::Stale)?;
        let token = match file.lock {
            Some((holder, token)) if holder == session => token,
            _ => fresh,
        };
        (file.lock, file.fence) = (Some((session, token)), token);
        let base = file.attr.data_version;
        Ok(self.write_grant(session, fid, base, token))
    }

    pub(super) fn write_grant(
        &self,
        session: SessionId,
        fid: FileId,
        base: DataVersion,
        token: FencingToken,
    ) -> WriteGrant {
        let expires_secs = self.clock.wall().secs + 600;
        let replicas = NODES.to_vec();
        let right = WriteRight { fid, base, token, session, replicas, expires_secs };
        WriteGrant { token, capability: CAPABILITY_KEY.seal_write(right) }
    }

    pub(super) fn renew_write(
        &self,
        who: &Envelope,
        it: RenewWrite,
    ) -> Result<WriteGrant, FsError> {
        let file = self.cell().files.get(&it.fid).ok_or(FsError::Stale)?.clone();
        if file.lock != Some((session(who)?, it.token)) {
            return Err(FsError::Fenced);
        }
        Ok(self.write_grant(session(who)?, it.fid, file.attr.data_version, it.token))
    }

    pub(super) fn take_back(&self, fid: FileId, token: FencingToken) -> Result<(), FsError> {
        let mut cell = self.cell();
        cell.yields.push((fid, token));
        if let Some(file) = cell.files.get_mut(&fid) {
            file.lock.take_if(|(_, held)| *held == token);
        }
        self.lock_freed.notify_waiters();
        Ok(())
    }

    pub(super) fn outcome(&self, who: &Envelope, it: Outcome) -> Result<OutcomeReply, FsError> {
        if session(who)? != it.op.session {
            return Err(FsError::NotPermitted);
        }
        let mut cell = self.cell();
        Ok(match cell.ledger.entry(it.op).or_insert(None) {
            Some(reply) => OutcomeReply::Committed(reply.sequence),
            None => OutcomeReply::Refused,
        })
    }
}
