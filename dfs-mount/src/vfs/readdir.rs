//! Listing directories, page by page.
//!
//! A page is fetched by the name it follows, and names are in order: so every entry that exists
//! throughout a listing is seen exactly once, whatever changes meanwhile, and one page is all that
//! a handle keeps. A cookie says where a listing goes on: the page's number and the entry's place
//! in it. The first two entries are `.` and `..`. Cookie 0 starts anew, with fresh content.

use std::sync::Arc;

use dfs_proto::attr::FileKind;
use dfs_proto::directory::{ReadDir, ReadDirReply};
use dfs_proto::dirent::DirEntry;
use dfs_proto::limits::DIR_PAGE_ENTRIES_MAX;
use dfs_proto::name::Name;
use tokio::sync::Mutex;

use super::inode_table::ROOT_NODEID;
use super::node::Node;
use super::{Caller, Error, Vfs};

/// Bits of a cookie that count entries within a page. Why 16: a page has at most 4,096.
const PLACE_BITS: u32 = 16;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

/// Longest listing that is made one page out of memory. Source: `PLACE_BITS`, and two dots.
const KNOWN_ENTRIES_MAX: usize = PLACE_MASK as usize - 2;

/// An open directory.
pub(crate) struct DirHandle {
    node: Arc<Node>,
    listing: Mutex<Listing>,
}

/// What a handle remembers of its listing.
#[derive(Default)]
struct Listing {
    /// The name before each page known so far; the first page follows none.
    starts: Vec<Option<Name>>,
    loaded: Option<Page>,
}

struct Page {
    number: u64,
    entries: Vec<DirEntry>,
    is_last: bool,
}

/// One entry of a listing.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    pub name: &'a [u8],
    pub kind: FileKind,
    /// Where the listing goes on after this entry.
    pub cookie: u64,
    pub nodeid: u64,
}

impl Vfs {
    /// Opens a directory for listing. The first listing asks the server, not this.
    pub fn opendir(&self, nodeid: u64) -> Result<u64, Error> {
        let node = self.node(nodeid)?;
        let handle = DirHandle { node, listing: Mutex::default() };
        Ok(self.inner.directories.insert(handle))
    }

    pub fn releasedir(&self, handle: u64) -> Result<(), Error> {
        self.inner.directories.remove(handle).map(drop).ok_or(Error::BadHandle)
    }

    /// Offers `sink` the entries after `cookie` until it has taken no more (`false`) or the page
    /// ends; nothing is offered only at the end of the directory.
    ///
    /// Without attributes: the kernel cannot be told how long those of a listing are good for. What
    /// it makes of them it makes after it was told that they are stale, and does not notice. Looked
    /// up one by one they are answered from memory, and good for the rest of the lease.
    ///
    /// # Errors
    /// `AccessDenied`, `NotFound` if the directory is gone.
    pub async fn readdir(
        &self,
        caller: &Caller,
        handle: u64,
        mut cookie: u64,
        mut sink: impl FnMut(Listed<'_>) -> bool + Send,
    ) -> Result<(), Error> {
        let handle = self.inner.directories.get(handle).ok_or(Error::BadHandle)?;
        let mut listing = handle.listing.lock().await;
        loop {
            let number = cookie >> PLACE_BITS;
            self.load(caller, &handle.node, &mut listing, cookie).await?;
            let Some(page) = listing.loaded.as_ref().filter(|page| page.number == number) else {
                return Ok(());
            };
            let place = cookie & PLACE_MASK;
            if place < page.places() {
                self.offer(&handle.node, page, cookie, &mut sink);
                return Ok(());
            }
            if page.is_last {
                return Ok(());
            }
            cookie = (number + 1) << PLACE_BITS;
        }
    }

    /// Makes the page of `cookie` the loaded one.
    async fn load(
        &self,
        caller: &Caller,
        node: &Node,
        listing: &mut Listing,
        cookie: u64,
    ) -> Result<(), Error> {
        let number = cookie >> PLACE_BITS;
        let is_loaded = listing.loaded.as_ref().is_some_and(|page| page.number == number);
        if cookie != 0 && is_loaded {
            return Ok(());
        }
        if number == 0 {
            listing.starts = vec![None];
        }
        let start = usize::try_from(number).ok().and_then(|number| listing.starts.get(number));
        let Some(after) = start.cloned() else {
            // A cookie that this handle never gave.
            listing.loaded = None;
            return Ok(());
        };
        if number == 0
            && let Some((all, _)) = self.known_list(caller, node)
            && all.len() <= KNOWN_ENTRIES_MAX
        {
            let entries = all.into_iter().map(|(name, attr)| DirEntry { name, attr }).collect();
            listing.loaded = Some(Page { number, entries, is_last: true });
            return Ok(());
        }
        let request = ReadDir { fid: node.fid, after, limit: DIR_PAGE_ENTRIES_MAX };
        let ReadDirReply { page, .. } =
            self.ask_readdir(caller, &request).await.map_err(Error::through_handle)?;
        let next_start = page.entries.last().map(|entry| entry.name.clone());
        let is_last = page.is_last || next_start.is_none();
        if !is_last && listing.starts.len() as u64 == number + 1 {
            listing.starts.push(next_start);
        }
        listing.loaded = Some(Page { number, entries: page.entries, is_last });
        Ok(())
    }

    fn offer(
        &self,
        directory: &Node,
        page: &Page,
        cookie: u64,
        sink: &mut (impl FnMut(Listed<'_>) -> bool + Send),
    ) {
        for place in cookie & PLACE_MASK..page.places() {
            let cookie = (page.number << PLACE_BITS) | (place + 1);
            let is_taken = match page.at(place) {
                Found::Dot => sink(dot(b".", directory.nodeid, cookie)),
                Found::DotDot => sink(dot(b"..", parent_of(directory), cookie)),
                Found::Entry(found) => {
                    let fid = found.attr.fid;
                    let known = self.inner.inodes.find(fid).map(|node| node.nodeid);
                    sink(listed(found, cookie, known.unwrap_or(fid.inode.0)))
                }
            };
            if !is_taken {
                return;
            }
        }
    }
}

fn listed(found: &DirEntry, cookie: u64, nodeid: u64) -> Listed<'_> {
    let (name, kind) = (found.name.as_bytes(), found.attr.kind);
    Listed { name, kind, cookie, nodeid }
}

/// What is at a place of a page.
enum Found<'a> {
    Dot,
    DotDot,
    Entry(&'a DirEntry),
}

impl Page {
    fn dots(&self) -> u64 {
        if self.number == 0 { 2 } else { 0 }
    }

    fn places(&self) -> u64 {
        self.dots() + self.entries.len() as u64
    }

    fn at(&self, place: u64) -> Found<'_> {
        match (self.number, place) {
            (0, 0) => Found::Dot,
            (0, 1) => Found::DotDot,
            _ => {
                let index = usize::try_from(place - self.dots()).expect("a place within a page");
                Found::Entry(&self.entries[index])
            }
        }
    }
}

fn dot(name: &'static [u8], nodeid: u64, cookie: u64) -> Listed<'static> {
    Listed { name, kind: FileKind::Directory, cookie, nodeid }
}

/// The nodeid of the directory that holds this one, as far as it was seen.
fn parent_of(directory: &Node) -> u64 {
    directory.state().place().map_or(ROOT_NODEID, |place| place.parent)
}
