//! How the JSON face says no: an HTTP status, and JSON with code, name, message and remedy.

use dfs_proto::FsError;
use hyper::Response;
use hyper::header::{self, HeaderName, HeaderValue};
use serde::Serialize;

use super::super::http_status;
use super::respond::{ResponseBody, json};

/// A refused request.
#[derive(Debug)]
pub struct Refusal {
    status: u16,
    error: FsError,
    /// Boxed, for it is rare and large.
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

/// The form on the wire.
#[derive(Serialize)]
struct Body {
    error: Told,
}

#[derive(Serialize)]
struct Told {
    code: u16,
    name: String,
    message: String,
    remedy: &'static str,
}

impl From<FsError> for Refusal {
    fn from(error: FsError) -> Refusal {
        let header = match &error {
            FsError::RateLimited { retry_after_secs } => {
                Some((header::RETRY_AFTER, (*retry_after_secs).into()))
            }
            FsError::Unauthenticated | FsError::TicketExpired | FsError::TicketRefused { .. } => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
            }
            _ => None,
        };
        let status = match &error {
            // The face's own session: nothing that a login would mend.
            FsError::SessionUnknown => 503,
            // The file is there; its bytes are not to be had from any node that was asked.
            FsError::ChunkMissing(_) | FsError::ChunkCorrupt(_) | FsError::NeedChunks(_) => 503,
            _ => http_status(&error),
        };
        Refusal { status, error, header: header.map(Box::new) }
    }
}

impl Refusal {
    /// An error that HTTP has a status of its own for.
    pub fn with_status(status: u16, error: FsError) -> Refusal {
        Refusal { status, ..Refusal::from(error) }
    }

    /// A resource that does not take this method.
    pub fn method(method: &hyper::Method, allowed: &'static str) -> Refusal {
        let what = format!("method {} (allowed: {allowed})", super::target::shown(method.as_str()));
        let header = Some(Box::new((header::ALLOW, HeaderValue::from_static(allowed))));
        Refusal { status: 405, error: FsError::Unsupported { what }, header }
    }

    /// A range that a content of `size` bytes does not have.
    pub fn range(size: u64) -> Refusal {
        let value = HeaderValue::try_from(format!("bytes */{size}"));
        let header = value.ok().map(|value| Box::new((header::CONTENT_RANGE, value)));
        let error = FsError::invalid(format!("range (the content has {size} bytes)"));
        Refusal { status: 416, error, header }
    }

    pub fn into_response(self) -> Response<ResponseBody> {
        let Refusal { status, error, header } = self;
        let told = Told {
            code: error.code(),
            name: name_of(&error),
            message: error.to_string(),
            remedy: remedy(&error),
        };
        let mut response = json(status, &Body { error: told });
        if let Some((name, value)) = header.map(|header| *header) {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// The variant's name as serde writes it: stable, as the code is.
fn name_of(error: &FsError) -> String {
    match serde_json::to_value(error) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(serde_json::Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// What whoever asked can do. Exhaustive, so that a new error needs a sentence.
fn remedy(error: &FsError) -> &'static str {
    match error {
        FsError::NotFound | FsError::NoAttribute => "check the path; names are case-sensitive",
        FsError::Exists => "choose another name, or remove what is there first",
        FsError::NotDirectory => "use /v1/files/ for what is no directory",
        FsError::IsDirectory => "use /v1/directories/ for directories",
        FsError::NotEmpty => "remove what the directory holds first",
        FsError::AccessDenied | FsError::NotPermitted => {
            "ask the owner or an administrator for permission, or log in as another user"
        }
        FsError::InvalidArgument { .. } | FsError::Malformed { .. } => {
            "correct the request; PROTOCOL.md describes the JSON face"
        }
        FsError::TooManyLinks => "remove some of the file's names",
        FsError::CrossVolume => "copy the content instead",
        FsError::Loop => "choose a place that is not below the directory itself",
        FsError::NoSpace { .. } => "remove something, or ask the administrator for space",
        FsError::ReadOnly => "write to another volume",
        FsError::Stale => "look the path up again: the file was removed or replaced meanwhile",
        FsError::Conflict { .. } => "get the current content, apply the change to it, put it again",
        FsError::Fenced => "put it again: another client took the lock meanwhile",
        FsError::LockBusy { .. } | FsError::LockTimeout { .. } => {
            "try again when the holder has closed the file"
        }
        FsError::NeedChunks(_) | FsError::ChunkMissing(_) | FsError::ChunkCorrupt(_) => {
            "try again; if it stays, tell the administrator: `dfs where` shows the copies"
        }
        FsError::CapabilityRefused(_) | FsError::SessionUnknown | FsError::OpSettled => {
            "send the request again, without its Idempotency-Key or with a fresh one"
        }
        FsError::Unauthenticated => {
            "log in with POST /v1/login and send the ticket as `Authorization: Bearer TICKET`"
        }
        FsError::TicketExpired | FsError::TicketRefused { .. } => {
            "log in again with POST /v1/login, or renew with POST /v1/renew"
        }
        FsError::LoginRefused => "check user and password",
        FsError::RateLimited { .. } => "wait as long as the header Retry-After says",
        FsError::UnknownVolume { .. } => "check the first name after the resource in the path",
        FsError::Unavailable { .. } | FsError::NotOfCell { .. } => {
            "try again later; `dfs status` shows which servers live"
        }
        FsError::TimedOut { .. } => {
            "try again; if it was a change, look first whether it was done, or repeat it with the \
             same Idempotency-Key"
        }
        FsError::TooLarge { .. } => "send less at once",
        FsError::VersionMismatch { .. } => "tell the administrator: servers differ in version",
        FsError::UnknownOperation { .. } => {
            "check the URL; a cell with roles apart answers logins where the auth role is"
        }
        FsError::Unsupported { .. } => "use what is allowed instead",
        FsError::Internal { .. } => "give the administrator the incident",
        FsError::JoinRefused { .. } => "ask the administrator for a new join token",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::chunk::ChunkHash;
    use http_body_util::BodyExt;

    async fn told(refusal: Refusal) -> (u16, hyper::HeaderMap, serde_json::Value) {
        let (parts, body) = refusal.into_response().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn an_error_has_status_code_name_message_and_remedy() {
        let (status, _, body) = told(FsError::NotFound.into()).await;
        assert_eq!((status, &body["error"]["code"]), (404, &1.into()));
        assert_eq!(body["error"]["name"], "not-found");
        assert_eq!(body["error"]["message"], "no such file or directory");
        assert!(!body["error"]["remedy"].as_str().unwrap().is_empty());
        let (status, _, body) = told(FsError::invalid("mode `9`").into()).await;
        assert_eq!((status, body["error"]["name"].as_str()), (400, Some("invalid-argument")));
        assert_eq!(body["error"]["message"], "mode `9` is not valid");
        let (status, _, body) = told(FsError::ChunkMissing(ChunkHash([7; 32])).into()).await;
        assert_eq!((status, body["error"]["name"].as_str()), (503, Some("chunk-missing")));
    }

    #[tokio::test]
    async fn headers_say_what_http_clients_look_for() {
        let (status, headers, _) = told(FsError::RateLimited { retry_after_secs: 7 }.into()).await;
        assert_eq!((status, headers[header::RETRY_AFTER].to_str().unwrap()), (429, "7"));
        let (status, headers, _) = told(FsError::Unauthenticated.into()).await;
        assert_eq!((status, headers[header::WWW_AUTHENTICATE].to_str().unwrap()), (401, "Bearer"));
        let (status, headers, _) = told(Refusal::range(9)).await;
        assert_eq!((status, headers[header::CONTENT_RANGE].to_str().unwrap()), (416, "bytes */9"));
        let (status, headers, _) = told(Refusal::method(&hyper::Method::PATCH, "GET")).await;
        assert_eq!((status, headers[header::ALLOW].to_str().unwrap()), (405, "GET"));
    }
}
