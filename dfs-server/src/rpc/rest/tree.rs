//! Paths: finding what they lead to, showing it, and changing names.

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::directory::{Lookup, MakeDir, ReadDir, ReadLink, RemoveDir, Unlink};
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use dfs_proto::path::Walk;
use dfs_proto::session::OpenVolume;
use hyper::header::{ETAG, HeaderValue};
use hyper::{Response, StatusCode};

use super::caller::{Caller, To};
use super::condition::{Conditions, tag};
use super::refusal::Refusal;
use super::respond::{ResponseBody, full, json, keep_private};
use super::show::{Listing, Shown};
use super::target::Target;

/// Mode of a new directory if the query names none.
const DIRECTORY_MODE_DEFAULT: u32 = 0o755;

/// The number of the one op of a session that changes names.
const NAME_OP: u64 = 1;

/// Whether the last name of a path, if it is a link, stands for what it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Followed,
    Kept,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub parent: FileId,
    pub name: Name,
}

/// Walks a path from the volume's root.
///
/// # Errors
/// `UnknownVolume`, `NotFound`, `NotDirectory`, `AccessDenied`; `InvalidArgument` for a link that
/// leads out of the volume.
pub async fn find(
    caller: &Caller,
    volume: &str,
    path: &[Name],
    last: Links,
) -> Result<Attr, FsError> {
    let volume = OpenVolume { name: volume.to_owned() };
    let root = caller.ask(To::Directory, &volume).await?.root;
    let mut walk = Walk::new(root, path);
    while let Some(step) = walk.next_step()? {
        let request = Lookup { parent: step.dir, name: step.name.clone() };
        let attr = caller.ask(To::Directory, &request).await?.attr;
        if attr.kind == FileKind::Symlink && (!walk.is_at_end() || last == Links::Followed) {
            let target = caller.ask(To::Directory, &ReadLink { fid: attr.fid }).await?;
            walk.follow(&step.name, &target)?;
            continue;
        }
        walk.enter(attr);
    }
    Ok(walk.into_end())
}

/// Where the last name of a path is, whether it exists or not.
///
/// # Errors
/// As [`find`]; `InvalidArgument` for the root.
pub async fn slot(caller: &Caller, target: &Target) -> Result<Slot, FsError> {
    let Some((name, parents)) = target.path.split_last() else {
        return Err(FsError::invalid("the root of a volume as the name to change"));
    };
    let dir = find(caller, &target.volume, parents, Links::Followed).await?;
    match dir.kind {
        FileKind::Directory => Ok(Slot { parent: dir.fid, name: name.clone() }),
        _ => Err(FsError::NotDirectory),
    }
}

/// `GET /v1/stat/...`: attributes of what the path names itself.
///
/// # Errors
/// As [`find`].
pub async fn stat(caller: &Caller, target: &Target) -> Result<Response<ResponseBody>, Refusal> {
    let attr = find(caller, &target.volume, &target.path, Links::Kept).await?;
    let shown = match attr.kind {
        FileKind::Symlink => {
            let link = caller.ask(To::Directory, &ReadLink { fid: attr.fid }).await?;
            Shown::new(&attr).with_target(&link)
        }
        _ => Shown::new(&attr),
    };
    Ok(with_tag(json(200, &shown), &attr))
}

/// `GET /v1/directories/...`: a page of entries.
///
/// # Errors
/// As [`find`]; those of `directory.readdir`.
pub async fn list(caller: &Caller, target: &Target) -> Result<Response<ResponseBody>, Refusal> {
    let dir = find(caller, &target.volume, &target.path, Links::Followed).await?;
    let (after, limit) = (target.query.after.clone(), target.query.limit());
    let request = ReadDir { fid: dir.fid, after, limit };
    let page = caller.ask(To::Directory, &request).await?.page;
    Ok(json(200, &Listing::new(&page)))
}

/// `PUT /v1/directories/...`: makes a directory. `caller` is in a session.
///
/// # Errors
/// As [`slot`]; those of `directory.mkdir`.
pub async fn make(caller: &Caller, target: &Target) -> Result<Response<ResponseBody>, Refusal> {
    let Slot { parent, name } = slot(caller, target).await?;
    let mode = target.query.mode.unwrap_or(DIRECTORY_MODE_DEFAULT);
    let made = caller.change(NAME_OP, &MakeDir { parent, name, mode }).await?;
    Ok(json(201, &Shown::new(&made.attr)))
}

/// `DELETE /v1/directories/...`: removes an empty directory. `caller` is in a session.
///
/// # Errors
/// As [`slot`]; those of `directory.rmdir`.
pub async fn remove_directory(
    caller: &Caller,
    target: &Target,
) -> Result<Response<ResponseBody>, Refusal> {
    let Slot { parent, name } = slot(caller, target).await?;
    caller.change(NAME_OP, &RemoveDir { parent, name }).await?;
    Ok(removed())
}

/// `DELETE /v1/files/...`: removes a name. `caller` is in a session.
///
/// # Errors
/// As [`slot`]; status 412; `InvalidArgument` for a condition, which no removal can keep: the
/// version may change between the look and the removal.
pub async fn remove(
    caller: &Caller,
    target: &Target,
    conditions: &Conditions,
) -> Result<Response<ResponseBody>, Refusal> {
    if *conditions != Conditions::default() {
        let what = "If-Match or If-None-Match with DELETE (a removal has no version)";
        return Err(FsError::invalid(what).into());
    }
    let Slot { parent, name } = slot(caller, target).await?;
    caller.change(NAME_OP, &Unlink { parent, name }).await?;
    Ok(removed())
}

fn removed() -> Response<ResponseBody> {
    let mut response = Response::new(full(Vec::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    keep_private(&mut response);
    response
}

/// Names the version of a file's content.
pub fn with_tag(mut response: Response<ResponseBody>, attr: &Attr) -> Response<ResponseBody> {
    let tag = HeaderValue::try_from(tag(attr.data_version)).ok();
    if let Some(tag) = tag.filter(|_| attr.kind == FileKind::File) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}
