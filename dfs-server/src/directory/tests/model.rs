//! Random operations of several users, beside a tree in memory that follows Linux: namei.c for the
//! order in which a mutation's checks are made, attr.c and xattr.c for who may change what.

use std::collections::BTreeMap;

use dfs_proto::FsError;
use dfs_proto::attr::FileKind;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{ReadDir, RenameRule, XattrRule};
use dfs_proto::dirent::DirEntry;
use dfs_proto::id::FileId;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};

use super::cell::{Cell, User};
use super::check::check;

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Names of extended attributes.
const XATTRS: [&str; 3] = ["user.a", "user.b", "trusted.a"];
const ROOT: usize = 0;
/// Root, two users of group 100, of whom the second is also in group 50.
pub const USERS: usize = 3;

#[derive(Clone, Debug)]
pub enum Op {
    Make { kind: FileKind, dir: usize, name: usize, mode: u32 },
    Link { node: usize, dir: usize, name: usize },
    Unlink { dir: usize, name: usize },
    Rmdir { dir: usize, name: usize },
    Rename { from: (usize, usize), to: (usize, usize), rule: RenameRule },
    Chmod { node: usize, mode: u32 },
    Chown { node: usize, uid: Option<u32>, gid: Option<u32> },
    Lookup { dir: usize, name: usize },
    SetXattr { node: usize, name: usize, value: u8, rule: XattrRule },
    RemoveXattr { node: usize, name: usize },
    GetXattr { node: usize, name: usize },
}

#[derive(Clone, Debug)]
struct Node {
    kind: FileKind,
    mode: u32,
    uid: u32,
    gid: u32,
    /// For directories: entries, and the directory above.
    children: BTreeMap<&'static str, usize>,
    parent: usize,
    is_gone: bool,
    xattrs: BTreeMap<&'static str, u8>,
}

impl Node {
    fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

struct Model {
    nodes: Vec<Node>,
}

pub type Done = Result<(), FsError>;

fn unless(condition: bool, error: FsError) -> Done {
    if condition { Ok(()) } else { Err(error) }
}

impl Model {
    fn new() -> Model {
        let root = Node {
            kind: FileKind::Directory,
            mode: 0o777,
            uid: 0,
            gid: 0,
            children: BTreeMap::new(),
            parent: ROOT,
            is_gone: false,
            xattrs: BTreeMap::new(),
        };
        Model { nodes: vec![root] }
    }

    /// inode_permission(): owner, group or other; root may search any directory.
    fn may(&self, node: usize, who: &Identity, want: u32) -> bool {
        let node = &self.nodes[node];
        if who.uid == 0 {
            return node.is_dir() || want & 1 == 0 || node.mode & 0o111 != 0;
        }
        let in_group = who.gid == node.gid || who.groups.contains(&node.gid);
        let class = match (who.uid == node.uid, in_group) {
            (true, _) => node.mode >> 6,
            (false, true) => node.mode >> 3,
            (false, false) => node.mode,
        };
        class & want == want
    }

    /// A file id is stale once its inode is gone; then the path walk needs a directory and `x`.
    fn walk(&self, dir: usize, who: &Identity) -> Done {
        unless(!self.nodes[dir].is_gone, FsError::Stale)?;
        unless(self.nodes[dir].is_dir(), FsError::NotDirectory)?;
        unless(self.may(dir, who, 1), FsError::AccessDenied)
    }

    fn child(&self, dir: usize, name: usize) -> Option<usize> {
        self.nodes[dir].children.get(NAMES[name]).copied()
    }

    fn may_delete(&self, dir: usize, victim: usize, who: &Identity, as_dir: bool) -> Done {
        unless(self.may(dir, who, 3), FsError::AccessDenied)?;
        let (holder, node) = (&self.nodes[dir], &self.nodes[victim]);
        let is_sticky = holder.mode & 0o1000 != 0;
        let owns = [0, node.uid, holder.uid].contains(&who.uid);
        unless(!is_sticky || owns, FsError::NotPermitted)?;
        match (as_dir, node.is_dir()) {
            (true, false) => Err(FsError::NotDirectory),
            (false, true) => Err(FsError::IsDirectory),
            _ => Ok(()),
        }
    }

    fn make(&mut self, who: &Identity, op: (FileKind, usize, usize, u32)) -> Done {
        let (kind, dir, name, mode) = op;
        self.walk(dir, who)?;
        unless(self.child(dir, name).is_none(), FsError::Exists)?;
        unless(self.may(dir, who, 3), FsError::AccessDenied)?;
        let holder = &self.nodes[dir];
        let mut mode = match kind {
            FileKind::Symlink => 0o777,
            FileKind::Directory => mode & 0o1777,
            _ => mode,
        };
        let mut gid = who.gid;
        if holder.mode & 0o2000 != 0 {
            gid = holder.gid;
            if kind == FileKind::Directory {
                mode |= 0o2000;
            } else if mode & 0o2010 == 0o2010 && who.uid != 0 && !who.is_in_group(gid) {
                mode &= !0o2000;
            }
        }
        let (children, xattrs) = (BTreeMap::new(), BTreeMap::new());
        let (uid, parent, is_gone) = (who.uid, dir, false);
        self.nodes.push(Node { kind, mode, uid, gid, children, parent, is_gone, xattrs });
        let node = self.nodes.len() - 1;
        self.nodes[dir].children.insert(NAMES[name], node);
        Ok(())
    }

    fn link(&mut self, who: &Identity, node: usize, dir: usize, name: usize) -> Done {
        self.walk(dir, who)?;
        unless(!self.nodes[node].is_gone, FsError::Stale)?;
        unless(self.child(dir, name).is_none(), FsError::Exists)?;
        unless(self.may(dir, who, 3), FsError::AccessDenied)?;
        unless(!self.nodes[node].is_dir(), FsError::NotPermitted)?;
        self.nodes[dir].children.insert(NAMES[name], node);
        Ok(())
    }

    fn remove(&mut self, who: &Identity, dir: usize, name: usize, as_dir: bool) -> Done {
        self.walk(dir, who)?;
        let victim = self.child(dir, name).ok_or(FsError::NotFound)?;
        self.may_delete(dir, victim, who, as_dir)?;
        unless(self.nodes[victim].children.is_empty(), FsError::NotEmpty)?;
        self.drop_name(dir, name);
        Ok(())
    }

    fn drop_name(&mut self, dir: usize, name: usize) {
        let node = self.nodes[dir].children.remove(NAMES[name]).unwrap();
        self.nodes[node].is_gone = self.links(node) == 0;
    }

    fn links(&self, node: usize) -> usize {
        self.nodes.iter().flat_map(|dir| dir.children.values()).filter(|it| **it == node).count()
    }

    fn is_above(&self, above: usize, below: usize) -> bool {
        let mut at = below;
        while at != above && at != ROOT {
            at = self.nodes[at].parent;
        }
        at == above
    }

    fn rename(
        &mut self,
        who: &Identity,
        from: (usize, usize),
        to: (usize, usize),
        rule: RenameRule,
    ) -> Done {
        self.walk(from.0, who)?;
        self.walk(to.0, who)?;
        let source = self.child(from.0, from.1).ok_or(FsError::NotFound)?;
        let target = self.child(to.0, to.1);
        let exchange = rule == RenameRule::Exchange;
        unless(target.is_none() || rule != RenameRule::NoReplace, FsError::Exists)?;
        unless(target.is_some() || !exchange, FsError::NotFound)?;
        unless(!self.is_above(source, to.0), FsError::Loop)?;
        if let Some(target) = target {
            let trap = if exchange { FsError::Loop } else { FsError::NotEmpty };
            unless(!self.is_above(target, from.0), trap)?;
        }
        if target == Some(source) {
            return Ok(());
        }
        let is_dir = self.nodes[source].is_dir();
        self.may_delete(from.0, source, who, is_dir)?;
        match target {
            None => unless(self.may(to.0, who, 3), FsError::AccessDenied)?,
            Some(target) => {
                let as_dir = if exchange { self.nodes[target].is_dir() } else { is_dir };
                self.may_delete(to.0, target, who, as_dir)?;
            }
        }
        if from.0 != to.0 {
            let moves_up = |node: usize| self.nodes[node].is_dir() && !self.may(node, who, 2);
            unless(!moves_up(source), FsError::AccessDenied)?;
            let other = target.filter(|_| exchange);
            unless(!other.is_some_and(moves_up), FsError::AccessDenied)?;
        }
        if let Some(target) = target.filter(|_| !exchange) {
            unless(self.nodes[target].children.is_empty(), FsError::NotEmpty)?;
            self.drop_name(to.0, to.1);
        }
        self.nodes[from.0].children.remove(NAMES[from.1]);
        if let Some(target) = target.filter(|_| exchange) {
            self.nodes[from.0].children.insert(NAMES[from.1], target);
            self.nodes[target].parent = from.0;
        }
        self.nodes[to.0].children.insert(NAMES[to.1], source);
        self.nodes[source].parent = to.0;
        Ok(())
    }

    fn chmod(&mut self, who: &Identity, node: usize, mode: u32) -> Done {
        let node = &mut self.nodes[node];
        unless(!node.is_gone, FsError::Stale)?;
        unless(who.uid == 0 || who.uid == node.uid, FsError::NotPermitted)?;
        let keeps = who.uid == 0 || who.is_in_group(node.gid);
        node.mode = if keeps { mode } else { mode & !0o2000 };
        Ok(())
    }

    fn chown(&mut self, who: &Identity, node: usize, uid: Option<u32>, gid: Option<u32>) -> Done {
        let node = &mut self.nodes[node];
        unless(!node.is_gone, FsError::Stale)?;
        let owns = who.uid == node.uid;
        let uid_ok = uid.is_none_or(|uid| owns && uid == node.uid);
        let gid_ok = gid.is_none_or(|gid| owns && (gid == node.gid || who.is_in_group(gid)));
        unless(who.uid == 0 || (uid_ok && gid_ok), FsError::NotPermitted)?;
        if !node.is_dir() && (uid.is_some() || gid.is_some()) {
            // setattr_should_drop_sgid(), with the group before the change.
            let drops = node.mode & 0o010 != 0 || (who.uid != 0 && !who.is_in_group(node.gid));
            node.mode &= if drops { !0o6000 } else { !0o4000 };
        }
        node.uid = uid.unwrap_or(node.uid);
        node.gid = gid.unwrap_or(node.gid);
        Ok(())
    }

    /// xattr_permission(): who may not know of one is told that there is none.
    fn may_xattr(&self, who: &Identity, node: usize, name: usize, write: bool) -> Done {
        let it = &self.nodes[node];
        unless(!it.is_gone, FsError::Stale)?;
        let refused = if write { FsError::NotPermitted } else { FsError::NoAttribute };
        if XATTRS[name].starts_with("trusted.") {
            return unless(who.uid == 0, refused);
        }
        unless(matches!(it.kind, FileKind::File | FileKind::Directory), refused)?;
        let is_sticky = it.is_dir() && it.mode & 0o1000 != 0;
        let owns = [0, it.uid].contains(&who.uid);
        unless(!write || !is_sticky || owns, FsError::NotPermitted)?;
        unless(self.may(node, who, if write { 2 } else { 4 }), FsError::AccessDenied)
    }

    fn set_xattr(&mut self, who: &Identity, op: (usize, usize, u8), rule: XattrRule) -> Done {
        let (node, name, value) = op;
        self.may_xattr(who, node, name, true)?;
        let has = self.nodes[node].xattrs.contains_key(XATTRS[name]);
        unless(!has || rule != XattrRule::Create, FsError::Exists)?;
        unless(has || rule != XattrRule::Replace, FsError::NoAttribute)?;
        self.nodes[node].xattrs.insert(XATTRS[name], value);
        Ok(())
    }

    fn run(&mut self, who: &Identity, op: &Op) -> Done {
        match *op {
            Op::Make { kind, dir, name, mode } => self.make(who, (kind, dir, name, mode)),
            Op::Link { node, dir, name } => self.link(who, node, dir, name),
            Op::Unlink { dir, name } => self.remove(who, dir, name, false),
            Op::Rmdir { dir, name } => self.remove(who, dir, name, true),
            Op::Rename { from, to, rule } => self.rename(who, from, to, rule),
            Op::Chmod { node, mode } => self.chmod(who, node, mode),
            Op::Chown { node, uid, gid } => self.chown(who, node, uid, gid),
            Op::Lookup { dir, name } => {
                self.walk(dir, who)?;
                self.child(dir, name).map(drop).ok_or(FsError::NotFound)
            }
            Op::SetXattr { node, name, value, rule } => {
                self.set_xattr(who, (node, name, value), rule)
            }
            Op::RemoveXattr { node, name } => {
                self.may_xattr(who, node, name, true)?;
                let removed = self.nodes[node].xattrs.remove(XATTRS[name]);
                removed.map(drop).ok_or(FsError::NoAttribute)
            }
            Op::GetXattr { node, name } => {
                self.may_xattr(who, node, name, false)?;
                let found = self.nodes[node].xattrs.get(XATTRS[name]);
                found.map(drop).ok_or(FsError::NoAttribute)
            }
        }
    }

    /// One line for each name: what a walk of the whole tree sees.
    fn tree(&self, dir: usize, path: &str, lines: &mut Vec<String>) {
        for (name, child) in &self.nodes[dir].children {
            let node = &self.nodes[*child];
            let dirs = node.children.values().filter(|it| self.nodes[**it].is_dir()).count();
            let links = if node.is_dir() { 2 + dirs } else { self.links(*child) };
            let Node { kind, mode, uid, gid, children, xattrs, .. } = node;
            let size = if *kind == FileKind::Symlink { 3 } else { children.len() };
            let owner = format!("{uid}:{gid} {xattrs:?}");
            lines.push(format!("{path}/{name} {kind:?} {mode:o} {owner} {links} {size}"));
            self.tree(*child, &format!("{path}/{name}"), lines);
        }
    }
}

/// The real one: file ids in the order in which the model numbers its nodes.
pub struct Real {
    pub cell: Cell,
    pub users: Vec<User>,
    pub fids: Vec<FileId>,
}

impl Real {
    pub async fn new() -> Real {
        let cell = Cell::new().await;
        let ann = Identity { uid: 1000, gid: 100, groups: Vec::new() };
        let bob = Identity { uid: 2000, gid: 100, groups: vec![50] };
        let mut users = Vec::new();
        for (number, identity) in (1..).zip([Identity::ROOT, ann, bob]) {
            users.push(cell.user_as(number, identity).await);
        }
        let fids = vec![cell.root];
        Real { cell, users, fids }
    }

    pub async fn run(&mut self, user: usize, op: &Op) -> Done {
        let (user, fids) = (&self.users[user], &self.fids);
        match *op {
            Op::Make { kind, dir, name, mode } => {
                let (dir, name) = (fids[dir], NAMES[name]);
                let made = match kind {
                    FileKind::Directory => user.mkdir(dir, name, mode).await,
                    FileKind::Symlink => user.symlink(dir, name, "x/y").await,
                    kind => user.mknod(dir, name, kind, mode).await,
                };
                self.fids.push(made?.attr.fid);
                Ok(())
            }
            Op::Link { node, dir, name } => {
                user.link(fids[node], fids[dir], NAMES[name]).await.map(drop)
            }
            Op::Unlink { dir, name } => user.unlink(fids[dir], NAMES[name]).await.map(drop),
            Op::Rmdir { dir, name } => user.rmdir(fids[dir], NAMES[name]).await.map(drop),
            Op::Rename { from, to, rule } => {
                let (from, to) = ((fids[from.0], NAMES[from.1]), (fids[to.0], NAMES[to.1]));
                user.rename(from, to, rule).await.map(drop)
            }
            Op::Chmod { node, mode } => user.chmod(fids[node], mode).await.map(drop),
            Op::Chown { node, uid, gid } => user.chown(fids[node], uid, gid).await.map(drop),
            Op::Lookup { dir, name } => user.lookup(fids[dir], NAMES[name]).await.map(drop),
            Op::SetXattr { node, name, value, rule } => {
                user.set_xattr(fids[node], XATTRS[name], &[value], rule).await.map(drop)
            }
            Op::RemoveXattr { node, name } => {
                user.remove_xattr(fids[node], XATTRS[name]).await.map(drop)
            }
            Op::GetXattr { node, name } => user.xattr(fids[node], XATTRS[name]).await.map(drop),
        }
    }

    async fn entries(&self, dir: FileId) -> Vec<DirEntry> {
        let root = &self.users[0];
        let mut entries: Vec<DirEntry> = Vec::new();
        loop {
            let after = entries.last().map(|entry| entry.name.clone());
            let request = ReadDir { fid: dir, after, limit: 2 };
            let page = self.cell.directory.readdir(root.context(), request).await.unwrap().page;
            entries.extend(page.entries);
            if page.is_last {
                return entries;
            }
        }
    }

    /// What root sees.
    async fn xattrs(&self, fid: FileId) -> BTreeMap<String, u8> {
        let root = &self.users[0];
        let mut found = BTreeMap::new();
        for name in root.xattrs(fid).await.unwrap() {
            let value = root.xattr(fid, &name).await.unwrap();
            found.insert(name, value[0]);
        }
        found
    }

    async fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut stack = vec![(String::new(), self.cell.root)];
        while let Some((path, dir)) = stack.pop() {
            for DirEntry { name, attr } in self.entries(dir).await {
                let (kind, mode, uid, gid) = (attr.kind, attr.mode, attr.uid, attr.gid);
                let (links, size) = (attr.nlink, attr.size);
                let owner = format!("{uid}:{gid} {:?}", self.xattrs(attr.fid).await);
                lines.push(format!("{path}/{name} {kind:?} {mode:o} {owner} {links} {size}"));
                if kind == FileKind::Directory {
                    stack.push((format!("{path}/{name}"), attr.fid));
                }
            }
        }
        lines
    }
}

fn modes() -> impl Strategy<Value = u32> {
    let special =
        prop_oneof![6 => Just(0), 1 => Just(0o1000), 1 => Just(0o2000), 1 => Just(0o4000)];
    let bits = prop_oneof![4 => Just(0o777), 1 => Just(0o755), 1 => 0..0o1000u32];
    (special, bits).prop_map(|(special, bits)| special | bits)
}

fn kinds() -> impl Strategy<Value = FileKind> {
    prop_oneof![
        3 => Just(FileKind::Directory),
        2 => Just(FileKind::File),
        1 => Just(FileKind::Symlink),
        1 => Just(FileKind::Fifo),
    ]
}

/// Nodes are numbers of any size here; `settled` takes them modulo those that exist.
pub fn ops() -> impl Strategy<Value = Op> {
    let node = || 0..12usize;
    let name = || 0..NAMES.len();
    let place = || (0..6usize, 0..NAMES.len());
    let rule = prop_oneof![
        3 => Just(RenameRule::Replace),
        1 => Just(RenameRule::NoReplace),
        2 => Just(RenameRule::Exchange),
    ];
    let xattr_rule = prop_oneof![
        3 => Just(XattrRule::Any),
        1 => Just(XattrRule::Create),
        1 => Just(XattrRule::Replace),
    ];
    let owner = || proptest::option::of(prop_oneof![Just(0u32), Just(1000), Just(2000)]);
    let group = || proptest::option::of(prop_oneof![Just(50u32), Just(100)]);
    prop_oneof![
        6 => (kinds(), node(), name(), modes())
            .prop_map(|(kind, dir, name, mode)| Op::Make { kind, dir, name, mode }),
        2 => (node(), node(), name()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        1 => (node(), name()).prop_map(|(dir, name)| Op::Unlink { dir, name }),
        1 => (node(), name()).prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        6 => (place(), place(), rule).prop_map(|(from, to, rule)| Op::Rename { from, to, rule }),
        1 => (node(), modes()).prop_map(|(node, mode)| Op::Chmod { node, mode }),
        1 => (node(), owner(), group()).prop_map(|(node, uid, gid)| Op::Chown { node, uid, gid }),
        1 => (node(), name()).prop_map(|(dir, name)| Op::Lookup { dir, name }),
        2 => (node(), name(), 0..3u8, xattr_rule)
            .prop_map(|(node, name, value, rule)| Op::SetXattr { node, name, value, rule }),
        1 => (node(), name()).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        1 => (node(), name()).prop_map(|(node, name)| Op::GetXattr { node, name }),
    ]
}

pub fn settled(op: Op, count: usize) -> Op {
    let place = |(dir, name): (usize, usize)| (dir % count, name);
    match op {
        Op::Make { kind, dir, name, mode } => Op::Make { kind, dir: dir % count, name, mode },
        Op::Link { node, dir, name } => Op::Link { node: node % count, dir: dir % count, name },
        Op::Unlink { dir, name } => Op::Unlink { dir: dir % count, name },
        Op::Rmdir { dir, name } => Op::Rmdir { dir: dir % count, name },
        Op::Rename { from, to, rule } => Op::Rename { from: place(from), to: place(to), rule },
        Op::Chmod { node, mode } => Op::Chmod { node: node % count, mode },
        Op::Chown { node, uid, gid } => Op::Chown { node: node % count, uid, gid },
        Op::Lookup { dir, name } => Op::Lookup { dir: dir % count, name },
        Op::SetXattr { node, name, value, rule } => {
            Op::SetXattr { node: node % count, name, value, rule }
        }
        Op::RemoveXattr { node, name } => Op::RemoveXattr { node: node % count, name },
        Op::GetXattr { node, name } => Op::GetXattr { node: node % count, name },
    }
}

async fn compare(sequence: Vec<(usize, Op)>) {
    let (mut model, mut real) = (Model::new(), Real::new().await);
    for (user, op) in sequence {
        let op = settled(op, model.nodes.len());
        let who = real.users[user].identity.clone();
        let expected = model.run(&who, &op);
        assert_eq!(real.run(user, &op).await, expected, "{op:?} of {}", who.uid);
    }
    let mut expected = Vec::new();
    model.tree(ROOT, "", &mut expected);
    expected.sort();
    let mut tree = real.tree().await;
    tree.sort();
    assert_eq!(tree, expected);
    check(&real.cell).await;
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_volume_is_like_a_local_tree(
        sequence in proptest::collection::vec((0..USERS, ops()), 1..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(compare(sequence));
    }
}
