//! A constant load of chat requests, every other one streamed, for as long as it is held.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Most requests in flight; beyond that a request is skipped, and counted as such.
const MAX_IN_FLIGHT: usize = 512;

/// A request that takes longer has failed.
const REQUEST_TIME: Duration = Duration::from_mins(1);

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// What became of the requests so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadCounts {
    /// Sent and not ended.
    pub in_flight: u64,
    /// Answered whole, with a 200.
    pub ok: u64,
    /// Anything else.
    pub failed: u64,
    /// Not sent because too many were in flight.
    pub skipped: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    ok: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
}

/// A running load; it ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    counts: Arc<Counts>,
    _task: JoinSet<()>,
}

impl Load {
    /// Sends `rate_per_s` chat requests a second to `url` (`http://host:port`), for the model of
    /// that name, each on a connection of its own and whatever became of those before.
    pub fn start(url: &str, rate_per_s: f64, model: &str) -> io::Result<Self> {
        let authority = url
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'))
            .filter(|rest| !rest.is_empty() && !rest.contains('/'))
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the load's URL is not http://host:port",
                )
            })?
            .to_owned();
        if !(0.01..=10_000.0).contains(&rate_per_s) {
            let words = "the load's rate is not between 0.01 and 10000 a second";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
        }
        let counts = Arc::new(Counts::default());
        let mut task = JoinSet::new();
        let period = Duration::from_secs_f64(1.0 / rate_per_s);
        task.spawn(send(authority, period, model.to_owned(), Arc::clone(&counts)));
        Ok(Self { counts, _task: task })
    }

    /// What became of the requests so far.
    pub fn counts(&self) -> LoadCounts {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let (ok, failed) = (read(&self.counts.ok), read(&self.counts.failed));
        LoadCounts {
            in_flight: read(&self.counts.sent).saturating_sub(ok).saturating_sub(failed),
            ok,
            failed,
            skipped: read(&self.counts.skipped),
        }
    }
}

async fn send(authority: String, period: Duration, model: String, counts: Arc<Counts>) {
    let mut tick = tokio::time::interval(period);
    // After a pause of this process there is no burst.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut requests = JoinSet::new();
    for number in 0_u64.. {
        tick.tick().await;
        while requests.try_join_next().is_some() {}
        if requests.len() >= MAX_IN_FLIGHT {
            counts.skipped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let stream = number % 2 == 1;
        let body = serde_json::json!({
            "model": model,
            "stream": stream,
            "messages": [{ "role": "user", "content": "Say something." }],
        });
        counts.sent.fetch_add(1, Ordering::SeqCst);
        let (authority, counts) = (authority.clone(), Arc::clone(&counts));
        requests.spawn(async move {
            let asked = ask(&authority, body.to_string(), stream);
            let good = matches!(tokio::time::timeout(REQUEST_TIME, asked).await, Ok(Some(())));
            let count = if good { &counts.ok } else { &counts.failed };
            count.fetch_add(1, Ordering::SeqCst);
        });
    }
}

/// One request; none when it was not answered whole and well.
async fn ask(authority: &str, body: String, stream: bool) -> Option<()> {
    let connection = TcpStream::connect(authority).await.ok()?;
    let _ = connection.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.ok()?;
    let request = Request::post("/v1/chat/completions")
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .ok()?;
    let answer = async {
        let response = sender.send_request(request).await.ok()?;
        let good = response.status().is_success();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.ok()?;
        let body = body.to_bytes();
        let text = String::from_utf8_lossy(&body);
        // An engine that fails in a stream says so in it (vLLM).
        let whole = !stream || (text.trim_end().ends_with("[DONE]") && !text.contains("\"error\""));
        (good && whole).then_some(())
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may be over before the answer is read.
        _ = connection => answer.await,
    }
}
