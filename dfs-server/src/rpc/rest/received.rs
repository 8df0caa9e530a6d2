//! Receiving bodies of requests: bounded in memory and in time, whoever sends.

use std::future::Future;
use std::time::Duration;

use bytes::{Buf, Bytes};
use dfs_proto::FsError;
use http_body_util::BodyExt;
use hyper::body::Body;

use super::refusal::Refusal;

/// Longest JSON body. Units: bytes.
///
/// Why 16 KiB: the longest password with every byte escaped, and a name; anybody may send it.
const JSON_BYTES_MAX: usize = 16 << 10;

/// How long a JSON body may take.
const JSON_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the bytes of one window of a content may take.
///
/// Why a minute: 35 kB/s. A sender slower than that would hold the write lock for hours.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(60);

/// What is read of a body that is of no use any more, and for how long, before it is answered.
///
/// Why: a client that sends first and reads then would find the connection reset instead of the
/// answer. One that sends more waits for `100 Continue` first, and reads instead.
const WASTE_BYTES_MAX: u64 = 2 << 20;
const WASTE_TIMEOUT: Duration = Duration::from_secs(2);

/// A body on its way in.
pub struct Received<B> {
    body: B,
    /// What came with the last frame and did not fit the window.
    rest: Bytes,
    is_awaited: bool,
    is_over: bool,
}

impl<B> Received<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// `is_awaited`: the sender waits until the first byte is asked for (`Expect: 100-continue`).
    pub fn new(body: B, is_awaited: bool) -> Received<B> {
        Received { body, rest: Bytes::new(), is_awaited, is_over: false }
    }

    /// The length that the sender announced.
    pub fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// All of a small body.
    ///
    /// # Errors
    /// `TooLarge`, `Malformed` if it ends too early, status 408 if it takes too long.
    pub async fn json(&mut self) -> Result<Vec<u8>, Refusal> {
        let too_large =
            || FsError::TooLarge { what: "JSON body".into(), limit: JSON_BYTES_MAX as u64 };
        if self.length().is_some_and(|length| length > JSON_BYTES_MAX as u64) {
            return Err(too_large().into());
        }
        let mut bytes = Vec::new();
        let is_whole = in_time(JSON_TIMEOUT, self.read(&mut bytes, JSON_BYTES_MAX + 1)).await?;
        if is_whole { Ok(bytes) } else { Err(too_large().into()) }
    }

    /// Reads until `window` has `wanted` bytes or the body ends; says whether it ended.
    ///
    /// # Errors
    /// `Malformed` if the connection ends before the body, status 408 if it takes too long.
    pub async fn fill(&mut self, window: &mut Vec<u8>, wanted: usize) -> Result<bool, Refusal> {
        in_time(WINDOW_TIMEOUT, self.read(window, wanted)).await
    }

    async fn read(&mut self, bytes: &mut Vec<u8>, wanted: usize) -> Result<bool, FsError> {
        self.is_awaited = false;
        loop {
            let taken = self.rest.len().min(wanted.saturating_sub(bytes.len()));
            bytes.extend_from_slice(&self.rest[..taken]);
            self.rest.advance(taken);
            if self.is_over && self.rest.is_empty() {
                return Ok(true);
            }
            if bytes.len() >= wanted {
                return Ok(false);
            }
            match self.body.frame().await {
                None => self.is_over = true,
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(FsError::malformed(format!("body: {error}"))),
            }
        }
    }

    /// Reads what a sender has under way of a body that is refused.
    pub async fn waste(mut self) {
        if self.is_awaited || self.length().is_some_and(|length| length > WASTE_BYTES_MAX) {
            return;
        }
        let mut left = WASTE_BYTES_MAX;
        let rest = async {
            while let Some(Ok(frame)) = self.body.frame().await {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                left = left.saturating_sub(length);
                if left == 0 {
                    return;
                }
            }
        };
        // However it ends: the answer is what counts.
        let _ = tokio::time::timeout(WASTE_TIMEOUT, rest).await;
    }
}

async fn in_time<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, FsError>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(timeout, work).await {
        Ok(done) => Ok(done?),
        Err(_) => {
            let error = FsError::TimedOut { whom: "client's request body".into() };
            Err(Refusal::with_status(408, error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use std::convert::Infallible;

    fn body(
        pieces: &'static [&'static [u8]],
    ) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let frames = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece))));
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn windows_are_filled_whatever_the_pieces() {
        let mut received = Received::new(body(&[b"abc", b"", b"defgh", b"i"]), false);
        let mut window = Vec::new();
        assert!(!received.fill(&mut window, 4).await.unwrap());
        assert_eq!(window, b"abcd");
        window.clear();
        assert!(!received.fill(&mut window, 1).await.unwrap());
        window.clear();
        assert!(received.fill(&mut window, 100).await.unwrap());
        assert_eq!(window, b"fghi");
        assert!(received.fill(&mut window, 100).await.unwrap());
    }

    #[tokio::test]
    async fn an_end_that_falls_on_a_full_window_is_seen_with_the_next() {
        let mut received = Received::new(body(&[b"abcd"]), false);
        let mut window = Vec::new();
        let is_over = received.fill(&mut window, 4).await.unwrap();
        assert_eq!((is_over, window.len()), (false, 4));
        assert!(received.fill(&mut window, 5).await.unwrap());
        assert_eq!(window, b"abcd");
    }

    #[tokio::test]
    async fn a_json_body_that_does_not_end_is_too_large() {
        let endless = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b'['; 1000]))));
        let body = StreamBody::new(endless.map(|frame: Result<_, Infallible>| frame));
        let refusal = Received::new(body, false).json().await.unwrap_err();
        assert_eq!(refusal.into_response().status(), 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_says_nothing_is_answered() {
        let silent = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let mut received = Received::new(StreamBody::new(silent), false);
        let refusal = received.json().await.unwrap_err();
        assert_eq!(refusal.into_response().status(), 408);
        assert_eq!(
            received.fill(&mut Vec::new(), 1).await.unwrap_err().into_response().status(),
            408
        );
        received.waste().await;
    }

    use futures_util::StreamExt;
}
