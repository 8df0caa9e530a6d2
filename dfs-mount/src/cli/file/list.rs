//! What `ls`, `stat` and `where` show.

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::directory::{ReadLink, ReplicaState, Where, WhereReply};
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use serde::Serialize;

use super::volume::{Links, Volume, Volumes, check_is_file};
use crate::cli::failure::{Context, Failure};
use crate::cli::output::{Report, Table};
use crate::cli::show;
use crate::config::FileUrl;

/// A file, as JSON has it.
#[derive(Debug, Serialize)]
struct Node {
    name: String,
    /// The name's bytes in hexadecimal, if they are not UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    kind: &'static str,
    mode: String,
    nlink: u32,
    uid: u32,
    gid: u32,
    size_bytes: u64,
    stored_bytes: u64,
    atime: String,
    mtime: String,
    ctime: String,
    fid: String,
    version: String,
    /// Of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip)]
    attr: Attr,
}

impl Node {
    fn new(name: &[u8], attr: Attr, target: Option<Vec<u8>>) -> Node {
        let text = String::from_utf8_lossy(name).into_owned();
        let is_text = text.as_bytes() == name;
        Node {
            name: text,
            name_hex: (!is_text).then(|| name.iter().map(|byte| format!("{byte:02x}")).collect()),
            kind: show::kind_word(attr.kind),
            mode: format!("{:04o}", attr.mode),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size_bytes: attr.size,
            stored_bytes: attr.stored_bytes,
            atime: show::instant(attr.atime),
            mtime: show::instant(attr.mtime),
            ctime: show::instant(attr.ctime),
            fid: attr.fid.to_string(),
            version: attr.data_version.to_string(),
            target: target.map(|target| String::from_utf8_lossy(&target).into_owned()),
            attr,
        }
    }

    fn shown_name(&self) -> String {
        match &self.target {
            Some(target) => format!("{} -> {target}", self.name),
            None => self.name.clone(),
        }
    }

    fn long_row(&self) -> Vec<String> {
        vec![
            show::mode_text(&self.attr),
            self.nlink.to_string(),
            self.uid.to_string(),
            self.gid.to_string(),
            self.size_bytes.to_string(),
            show::minute(self.attr.mtime.secs),
            self.shown_name(),
        ]
    }
}

async fn node(volume: &Volume, name: &[u8], attr: Attr, what: &str) -> Result<Node, Failure> {
    let target = match attr.kind {
        FileKind::Symlink => {
            Some(volume.call(&ReadLink { fid: attr.fid }).await.about(|| what.to_owned())?)
        }
        _ => None,
    };
    Ok(Node::new(name, attr, target))
}

/// What `ls` shows.
#[derive(Debug, Serialize)]
pub struct Listings {
    listings: Vec<Listing>,
    #[serde(skip)]
    is_long: bool,
}

#[derive(Debug, Serialize)]
struct Listing {
    path: String,
    entries: Vec<Node>,
}

impl Report for Listings {
    fn table(&self) -> Table {
        let nodes = self.listings.iter().flat_map(|listing| &listing.entries);
        if !self.is_long {
            return Table::lines(nodes.map(|node| node.name.clone()));
        }
        let header = vec!["mode", "links", "uid", "gid", "size", "modified", "name"];
        Table { header, rows: nodes.map(Node::long_row).collect() }
    }
}

/// The entries of directories, and files themselves. Where there are several paths, names are shown
/// with the path they belong to.
///
/// # Errors
/// A [`Failure`] for the first path that cannot be listed.
pub async fn listings(
    urls: &[FileUrl],
    is_long: bool,
    volumes: &mut Volumes,
) -> Result<Listings, Failure> {
    let mut listings = Vec::new();
    for url in urls {
        let volume = volumes.of(&url.volume).await?;
        let prefix = if urls.len() > 1 { url.path_text() } else { String::new() };
        let entries = entries(volume, url, &prefix).await?;
        listings.push(Listing { path: url.to_string(), entries });
    }
    Ok(Listings { listings, is_long })
}

async fn entries(volume: &Volume, url: &FileUrl, prefix: &str) -> Result<Vec<Node>, Failure> {
    let what = format!("cannot list {url}");
    let found = volume.find(&url.path, Links::Kept).await.about(|| what.clone())?;
    if found.attr.kind != FileKind::Directory {
        let name = url.path.last().map(Name::as_bytes).unwrap_or(b"/");
        return Ok(vec![node(volume, name, found.attr, &what).await?]);
    }
    let mut nodes = Vec::new();
    for entry in volume.entries(found.attr.fid).await.about(|| what.clone())? {
        let mut name = Vec::new();
        if !prefix.is_empty() {
            name.extend_from_slice(prefix.trim_end_matches('/').as_bytes());
            name.push(b'/');
        }
        name.extend_from_slice(entry.name.as_bytes());
        nodes.push(node(volume, &name, entry.attr, &what).await?);
    }
    Ok(nodes)
}

/// What `stat` shows.
#[derive(Debug, Serialize)]
pub struct Attributes {
    files: Vec<StatNode>,
}

#[derive(Debug, Serialize)]
struct StatNode {
    path: String,
    #[serde(flatten)]
    node: Node,
}

impl Report for Attributes {
    fn table(&self) -> Table {
        let pairs = self.files.iter().flat_map(|file| {
            let node = &file.node;
            let mode = show::mode_text(&node.attr);
            let mut pairs = vec![
                ("path", file.path.clone()),
                ("kind", node.kind.to_owned()),
                ("mode", format!("{} ({mode})", node.mode)),
                ("owner", format!("{}:{}", node.uid, node.gid)),
                ("links", node.nlink.to_string()),
                ("size", format!("{} bytes, {} stored", node.size_bytes, node.stored_bytes)),
                ("accessed", node.atime.clone()),
                ("modified", node.mtime.clone()),
                ("changed", node.ctime.clone()),
                ("file id", node.fid.clone()),
                ("version", node.version.clone()),
            ];
            pairs.extend(node.target.iter().map(|target| ("target", target.clone())));
            pairs
        });
        Table::pairs(pairs)
    }
}

/// The attributes of files; a link's own.
///
/// # Errors
/// A [`Failure`] for the first path without any.
pub async fn attributes(urls: &[FileUrl], volumes: &mut Volumes) -> Result<Attributes, Failure> {
    let mut files = Vec::new();
    for url in urls {
        let what = format!("cannot stat {url}");
        let volume = volumes.of(&url.volume).await?;
        let found = volume.find(&url.path, Links::Kept).await.about(|| what.clone())?;
        let name = url.path.last().map(Name::as_bytes).unwrap_or(b"/");
        let node = node(volume, name, found.attr, &what).await?;
        files.push(StatNode { path: url.to_string(), node });
    }
    Ok(Attributes { files })
}

/// What `where` shows.
#[derive(Debug, Serialize)]
pub struct Places {
    files: Vec<Place>,
}

#[derive(Debug, Serialize)]
struct Place {
    path: String,
    fid: String,
    version: String,
    size_bytes: u64,
    /// Names the content: SHA-256 of its manifest.
    content_hash: String,
    chunk_count: u64,
    replicas: Vec<Replica>,
}

#[derive(Debug, Serialize)]
struct Replica {
    node: String,
    host: Option<String>,
    port: u16,
    is_primary: bool,
    chunks_held: Option<u64>,
    error: Option<String>,
}

impl Place {
    fn new(url: &FileUrl, reply: WhereReply) -> Place {
        let replica = |(index, state): (usize, ReplicaState)| Replica {
            node: state.address.node.to_string(),
            host: state.address.host,
            port: state.address.port,
            is_primary: index == 0,
            chunks_held: state.chunks_held.as_ref().ok().copied(),
            error: state.chunks_held.err(),
        };
        Place {
            path: url.to_string(),
            fid: reply.attr.fid.to_string(),
            version: reply.attr.data_version.to_string(),
            size_bytes: reply.attr.size,
            content_hash: reply.manifest_hash.to_string(),
            chunk_count: reply.chunks_total,
            replicas: reply.replicas.into_iter().enumerate().map(replica).collect(),
        }
    }
}

impl Report for Places {
    fn table(&self) -> Table {
        let rows = self.files.iter().flat_map(|file| {
            file.replicas.iter().map(|replica| {
                let held = match (replica.chunks_held, &replica.error) {
                    (Some(held), _) => format!("{held} of {} chunks", file.chunk_count),
                    (None, error) => error.clone().unwrap_or_default(),
                };
                let role = if replica.is_primary { "primary" } else { "replica" };
                let host = replica.host.as_deref().unwrap_or("*");
                vec![
                    replica.node.clone(),
                    role.to_owned(),
                    format!("{host}:{}", replica.port),
                    held,
                    file.path.clone(),
                ]
            })
        });
        let rows: Vec<Vec<String>> = rows.collect();
        match rows.is_empty() {
            true => Table::lines(["no files".to_owned()]),
            false => Table { header: vec!["node", "role", "address", "holds", "file"], rows },
        }
    }
}

/// Where files are; of a directory, each file directly in it.
///
/// # Errors
/// A [`Failure`] for the first path that is neither.
pub async fn places(urls: &[FileUrl], volumes: &mut Volumes) -> Result<Places, Failure> {
    let mut files = Vec::new();
    for url in urls {
        let volume = volumes.of(&url.volume).await?;
        let found = volume.find(&url.path, Links::Followed).await.about(|| lost(url))?;
        if found.attr.kind == FileKind::Directory {
            files.extend(places_in(volume, url, found.attr.fid).await?);
            continue;
        }
        check_is_file(&found.attr).about(|| lost(url))?;
        let reply = volume.call(&Where { fid: found.attr.fid }).await.about(|| lost(url))?;
        files.push(Place::new(url, reply));
    }
    Ok(Places { files })
}

async fn places_in(
    volume: &Volume,
    directory: &FileUrl,
    fid: FileId,
) -> Result<Vec<Place>, Failure> {
    let mut places = Vec::new();
    let entries = volume.entries(fid).await.about(|| lost(directory))?;
    for entry in entries.into_iter().filter(|entry| entry.attr.kind == FileKind::File) {
        let mut url = directory.clone();
        url.path.push(entry.name);
        match volume.call(&Where { fid: entry.attr.fid }).await {
            // Removed since it was listed.
            Err(FsError::Stale) => {}
            reply => places.push(Place::new(&url, reply.about(|| lost(&url))?)),
        }
    }
    Ok(places)
}

fn lost(url: &FileUrl) -> String {
    format!("cannot find out where {url} is")
}

#[cfg(test)]
mod tests;
