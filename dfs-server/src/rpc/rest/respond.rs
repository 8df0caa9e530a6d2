//! Building responses.

use bytes::Bytes;
use dfs_proto::FsError;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// A body; an error in the middle of one breaks the connection, so that nobody takes what came for
/// the whole.
pub type ResponseBody = UnsyncBoxBody<Bytes, FsError>;

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A response with a body of some type.
pub fn build(
    status: u16,
    content_type: &'static str,
    body: ResponseBody,
) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A line of JSON. Nobody on the way may keep it: it is one user's, and tickets are among it.
pub fn json(status: u16, value: &impl Serialize) -> Response<ResponseBody> {
    let mut bytes = serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "answer does not encode as JSON");
        Vec::new()
    });
    bytes.push(b'\n');
    let mut response = build(status, "application/json", full(bytes));
    keep_private(&mut response);
    response
}

/// Marks a response as its receiver's alone, and its content type as final.
pub fn keep_private(response: &mut Response<ResponseBody>) {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}
