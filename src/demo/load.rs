//! A constant load of chat requests, every other one streamed, for as long as it is held.

use std::io;
use std::ops::RangeInclusive;
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

/// How the requests of a load are.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadShape {
    /// Requests a second.
    pub rate_per_s: f64,
    /// Most requests in flight; beyond that a request is skipped, and counted as such.
    pub max_in_flight: usize,
    /// A request that takes longer has failed.
    pub request_time: Duration,
    /// Tokens asked for, evenly spread over the range; none: as many as the engine likes.
    pub tokens: Option<RangeInclusive<u32>>,
    /// Every request is streamed, not just every other one.
    pub all_streamed: bool,
}

impl LoadShape {
    /// So many short requests a second.
    pub fn of_rate(rate_per_s: f64) -> Self {
        Self {
            rate_per_s,
            max_in_flight: 512,
            request_time: Duration::from_mins(1),
            tokens: None,
            all_streamed: false,
        }
    }

    /// The tokens of a request: the same for the same number.
    fn tokens_of(&self, number: u64) -> Option<u32> {
        let range = self.tokens.as_ref()?;
        let width = u64::from(range.end().saturating_sub(*range.start())) + 1;
        // A prime far from the usual widths: neighbours differ much.
        let offset = number.wrapping_mul(7_919) % width;
        Some(range.start().saturating_add(u32::try_from(offset).unwrap_or(0)))
    }
}

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
        Self::shaped(url, LoadShape::of_rate(rate_per_s), model)
    }

    /// The same with requests of another shape.
    pub fn shaped(url: &str, shape: LoadShape, model: &str) -> io::Result<Self> {
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
        if !(0.01..=10_000.0).contains(&shape.rate_per_s) {
            let words = "the load's rate is not between 0.01 and 10000 a second";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
        }
        let counts = Arc::new(Counts::default());
        let mut task = JoinSet::new();
        task.spawn(send(authority, shape, model.to_owned(), Arc::clone(&counts)));
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

async fn send(authority: String, shape: LoadShape, model: String, counts: Arc<Counts>) {
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / shape.rate_per_s));
    // After a pause of this process there is no burst.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut requests = JoinSet::new();
    for number in 0_u64.. {
        tick.tick().await;
        while requests.try_join_next().is_some() {}
        if requests.len() >= shape.max_in_flight {
            counts.skipped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let stream = shape.all_streamed || number % 2 == 1;
        let mut body = serde_json::json!({
            "model": model,
            "stream": stream,
            "messages": [{ "role": "user", "content": "Say something." }],
        });
        if let (Some(tokens), Some(fields)) = (shape.tokens_of(number), body.as_object_mut()) {
            fields.insert("max_tokens".to_owned(), tokens.into());
        }
        let limit = shape.request_time;
        counts.sent.fetch_add(1, Ordering::SeqCst);
        let (authority, counts) = (authority.clone(), Arc::clone(&counts));
        requests.spawn(async move {
            let asked = ask(&authority, body.to_string(), stream);
            let good = matches!(tokio::time::timeout(limit, asked).await, Ok(Some(())));
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
        let mut body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let mut read = Read::default();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.ok()?.into_data() {
                read.take(&data);
            }
        }
        let whole = !stream || read.is_whole_stream();
        (good && whole).then_some(())
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may be over before the answer is read.
        _ = connection => answer.await,
    }
}

/// What counts of an answer: five hundred long ones in flight are not kept.
#[derive(Default)]
struct Read {
    /// The last bytes.
    tail: Vec<u8>,
    has_error: bool,
}

impl Read {
    /// How an engine that fails in a stream says so in it (vLLM).
    const ERROR: &[u8] = b"\"error\"";
    /// Longer than what is looked for, with the line's end behind it.
    const TAIL_BYTES: usize = 32;

    fn take(&mut self, piece: &[u8]) {
        self.tail.extend_from_slice(piece);
        let has = |bytes: &[u8]| bytes.windows(Self::ERROR.len()).any(|part| part == Self::ERROR);
        self.has_error = self.has_error || has(&self.tail);
        self.tail.drain(..self.tail.len().saturating_sub(Self::TAIL_BYTES));
    }

    fn is_whole_stream(&self) -> bool {
        !self.has_error && self.tail.trim_ascii_end().ends_with(b"[DONE]")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_spread_over_the_whole_range() {
        let shape = LoadShape { tokens: Some(10..=109), ..LoadShape::of_rate(1.0) };
        let mut asked: Vec<u32> = (0..100).map(|n| shape.tokens_of(n).unwrap()).collect();
        let first: u32 = asked.iter().take(10).sum();
        assert!((300..900).contains(&first), "the first ten are of many kinds: {asked:?}");
        asked.sort_unstable();
        assert_eq!(asked, (10..=109).collect::<Vec<u32>>());
        assert_eq!(LoadShape::of_rate(1.0).tokens_of(3), None);
    }

    #[test]
    fn an_answer_is_read_in_pieces_of_any_size() {
        let whole = |text: &str, size: usize| {
            let mut read = Read::default();
            text.as_bytes().chunks(size).for_each(|piece| read.take(piece));
            assert!(read.tail.len() <= Read::TAIL_BYTES);
            read.is_whole_stream()
        };
        let tokens = "data: {\"choices\":[{\"delta\":{\"content\":\" a\"}}]}\n\n".repeat(40);
        for size in [1, 3, 64, 10_000] {
            assert!(whole(&format!("{tokens}data: [DONE]\n\n"), size));
            assert!(!whole(&tokens, size));
            assert!(!whole(
                &format!("{tokens}data: {{\"error\":{{}}}}\n\n{tokens}data: [DONE]\n"),
                size
            ));
        }
    }
}
