//! A transport that loses, repeats and refuses calls as a seed says.
//!
//! Faults by kind: the call is not delivered; it is delivered and its reply is lost; it is
//! delivered twice. Streams are cut after some pieces. A partition refuses everything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;

use super::transport::{Call, Dial, Peer, ReplyBody, Transport, TransportError, TransportFault};

/// How often each fault happens. Units: per cent of calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odds {
    pub undelivered: u8,
    pub reply_lost: u8,
    pub delivered_twice: u8,
}

/// The weather between a client and everybody it dials. Shared by all transports it wraps.
#[derive(Debug)]
pub struct Weather {
    odds: Mutex<Odds>,
    is_partitioned: AtomicBool,
    state: AtomicU64,
    calls: AtomicU64,
}

impl Weather {
    pub fn new(seed: u64, odds: Odds) -> Arc<Weather> {
        Arc::new(Weather {
            odds: Mutex::new(odds),
            is_partitioned: AtomicBool::new(false),
            state: AtomicU64::new(seed),
            calls: AtomicU64::new(0),
        })
    }

    pub fn set_odds(&self, odds: Odds) {
        *self.odds.lock().unwrap_or_else(PoisonError::into_inner) = odds;
    }

    /// Cuts or restores every connection.
    pub fn partition(&self, is_partitioned: bool) {
        self.is_partitioned.store(is_partitioned, Ordering::SeqCst);
    }

    /// Calls that were asked for, delivered or not.
    pub fn call_count(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn odds(&self) -> Odds {
        *self.odds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next of a splitmix64 sequence, as 0..100.
    fn roll(&self) -> u8 {
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(step, Ordering::SeqCst).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u8::try_from((z ^ (z >> 31)) % 100).expect("below 100")
    }
}

/// Dials through bad weather.
#[derive(Clone, Debug)]
pub struct HostileDialer {
    pub inner: Arc<dyn Dial>,
    pub weather: Arc<Weather>,
}

impl Dial for HostileDialer {
    fn dial(&self, peer: &Peer) -> Result<Arc<dyn Transport>, TransportError> {
        let inner = self.inner.dial(peer)?;
        Ok(Arc::new(Hostile { inner, weather: Arc::clone(&self.weather) }))
    }
}

#[derive(Debug)]
struct Hostile {
    inner: Arc<dyn Transport>,
    weather: Arc<Weather>,
}

fn fault(kind: TransportFault) -> TransportError {
    TransportError::new(kind, "hostile network", format!("{kind:?} on purpose"))
}

impl Transport for Hostile {
    fn send(&self, call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>> {
        let (inner, weather) = (Arc::clone(&self.inner), Arc::clone(&self.weather));
        Box::pin(async move {
            weather.calls.fetch_add(1, Ordering::SeqCst);
            let odds = weather.odds();
            if weather.is_partitioned.load(Ordering::SeqCst) || weather.roll() < odds.undelivered {
                return Err(fault(TransportFault::Unreachable));
            }
            if weather.roll() < odds.delivered_twice {
                let twin = inner.send(call.clone()).await;
                drop(twin);
            }
            let reply = inner.send(call).await?;
            if weather.is_partitioned.load(Ordering::SeqCst) || weather.roll() < odds.reply_lost {
                return Err(fault(TransportFault::Lost));
            }
            Ok(cut_when_partitioned(reply, weather))
        })
    }
}

fn cut_when_partitioned(reply: ReplyBody, weather: Arc<Weather>) -> ReplyBody {
    let ReplyBody::Pieces(pieces) = reply else {
        return reply;
    };
    let checked = pieces.map(move |piece| match weather.is_partitioned.load(Ordering::SeqCst) {
        true => Err(fault(TransportFault::Lost)),
        false => piece,
    });
    ReplyBody::Pieces(checked.boxed())
}
