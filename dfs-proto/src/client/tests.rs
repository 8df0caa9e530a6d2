//! The typed client over transports that misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;

use super::retry::{RetryPolicy, retry};
use super::{Call, CallError, Client, ReplyBody, Transport, TransportError, TransportFault};
use crate::admin::{CellMap, Map};
use crate::clock::SystemClock;
use crate::error::FsError;
use crate::promise::StreamNumber;
use crate::rpc::{Envelope, encode_reply};
use crate::session::{Events, SessionEvent};
use crate::version::Epoch;

/// Answers every call with the same body.
#[derive(Debug)]
struct Canned(Vec<Bytes>);

impl Transport for Canned {
    fn send(&self, _call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>> {
        let pieces: Vec<_> = self.0.iter().cloned().map(Ok).collect();
        let stream = futures_util::stream::iter(pieces).boxed();
        Box::pin(async move { Ok(ReplyBody::Pieces(stream)) })
    }
}

fn canned(pieces: Vec<Bytes>) -> Client {
    Client::new(Arc::new(Canned(pieces)))
}

#[tokio::test]
async fn a_reply_that_comes_in_pieces_is_put_together() {
    let whole = encode_reply(&Ok(CellMap::default())).unwrap();
    let pieces = whole.chunks(2).map(Bytes::copy_from_slice).collect();
    let answer = canned(pieces).call(&Envelope::default(), &Map {}, vec![]).await.unwrap();
    assert_eq!(answer.reply, CellMap::default());
}

#[tokio::test]
async fn a_garbled_or_empty_reply_is_an_error_not_a_panic() {
    for pieces in
        [vec![], vec![Bytes::from_static(b"HTTP/1.1 200")], vec![Bytes::from(vec![9; 64])]]
    {
        let error = canned(pieces).call(&Envelope::default(), &Map {}, vec![]).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
}

#[tokio::test]
async fn stream_items_survive_any_cutting_and_an_error_ends_the_stream() {
    let items =
        [SessionEvent::Started { epoch: Epoch(7), stream: StreamNumber(1) }, SessionEvent::Idle];
    let mut bytes = Vec::new();
    for item in &items {
        bytes.extend_from_slice(&encode_reply(&Ok(item.clone())).unwrap());
    }
    bytes.extend_from_slice(
        &encode_reply(&Err::<SessionEvent, _>(FsError::SessionUnknown)).unwrap(),
    );
    for size in 1..bytes.len() {
        let pieces = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
        let stream = canned(pieces).open_stream(&Envelope::default(), &Events {}).await.unwrap();
        let got: Vec<_> = stream.collect().await;
        assert_eq!(got.len(), 3);
        assert_eq!(got[0].as_ref().unwrap(), &items[0]);
        assert_eq!(got[1].as_ref().unwrap(), &items[1]);
        assert!(matches!(got[2], Err(CallError::Fs(FsError::SessionUnknown))));
    }
}

fn lost() -> CallError {
    TransportError::new(TransportFault::Lost, "test", "lost").into()
}

#[tokio::test]
async fn transient_failures_are_repeated_and_others_are_not() {
    let policy = RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
    let tries = AtomicU32::new(0);
    let result = retry(&SystemClock, policy, |_| {
        let count = tries.fetch_add(1, Ordering::SeqCst);
        async move { if count < 3 { Err(lost()) } else { Ok(count) } }
    });
    assert_eq!(result.await.unwrap(), 3);

    let tries = AtomicU32::new(0);
    let result = retry::<(), _>(&SystemClock, policy, |_| {
        tries.fetch_add(1, Ordering::SeqCst);
        async { Err(FsError::NotFound.into()) }
    });
    assert!(matches!(result.await, Err(CallError::Fs(FsError::NotFound))));
    assert_eq!(tries.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn retrying_ends_at_its_deadline() {
    let policy = RetryPolicy {
        first_delay: Duration::from_millis(1),
        delay_max: Duration::from_millis(5),
        give_up_after: Some(Duration::from_millis(50)),
    };
    let result = retry::<(), _>(&SystemClock, policy, |_| async { Err(lost()) }).await;
    assert!(matches!(result, Err(CallError::Transport(_))));
}
