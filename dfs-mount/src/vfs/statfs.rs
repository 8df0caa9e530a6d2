//! Size and free space of the volume.

use dfs_proto::attr::VolumeSpace;
use dfs_proto::directory::StatFs;

use super::{Caller, Error, Vfs};

impl Vfs {
    pub async fn statfs(&self, caller: &Caller) -> Result<VolumeSpace, Error> {
        let fid = self.session().root().fid;
        self.ask(caller, &StatFs { fid }).await
    }
}
