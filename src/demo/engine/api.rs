//! The OpenAI-compatible endpoints of the simulated engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Args;
use super::metrics::{Finished, Metrics};

/// Longest answer, in tokens.
const MAX_TOKENS: u32 = 65_536;

const WORDS: [&str; 16] = [
    "this",
    "is",
    "a",
    "SIMULATED",
    "answer",
    "made",
    "of",
    "filler",
    "words",
    "by",
    "a",
    "process",
    "without",
    "any",
    "model",
    "behind",
];

/// The state all requests share.
#[derive(Debug)]
pub(super) struct Engine {
    args: Args,
    metrics: Mutex<Metrics>,
    slots: Arc<Semaphore>,
    // Millionths of an error owed; one is paid when a whole one is reached.
    error_debt: Mutex<u64>,
    // Its core has died, as it plays: everything is answered with a 503.
    sick: AtomicBool,
    // What clients must show.
    key: Option<String>,
}

impl Engine {
    pub(super) fn new(args: Args, key: Option<String>) -> Self {
        let slots = usize::try_from(args.max_concurrency).unwrap_or(1);
        Self {
            args,
            metrics: Mutex::new(Metrics::new()),
            slots: Arc::new(Semaphore::new(slots)),
            error_debt: Mutex::new(0),
            sick: AtomicBool::new(false),
            key,
        }
    }

    /// From now on everything is answered with a 503, or no longer.
    pub(super) fn turn(&self) -> bool {
        !self.sick.fetch_xor(true, Ordering::AcqRel)
    }

    fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this request is one of those that fail: evenly spread, so that any thousand
    /// requests at 0.3 have 300.
    fn fails(&self) -> bool {
        const WHOLE: u64 = 1_000_000;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1, as parsed
        let share = (self.args.error_rate * WHOLE as f64).round() as u64;
        let mut debt = self.error_debt.lock().unwrap_or_else(PoisonError::into_inner);
        *debt += share;
        let due = *debt >= WHOLE;
        if due {
            *debt -= WHOLE;
        }
        due || self.args.lie
    }
}

pub(super) fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/version", get(|| async { Json(json!({ "version": "SIMULATED" })) }))
        .route("/v1/models", get(models))
        .route("/metrics", get(metrics))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .layer(from_fn_with_state(Arc::clone(&engine), unless_locked))
        .layer(from_fn_with_state(Arc::clone(&engine), unless_sick))
        .with_state(engine)
}

async fn unless_sick(State(engine): State<Arc<Engine>>, asked: Request, next: Next) -> Response {
    if engine.sick.load(Ordering::Acquire) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    next.run(asked).await
}

/// As llama.cpp does it; vLLM gives its metrics to everybody.
async fn unless_locked(State(engine): State<Arc<Engine>>, asked: Request, next: Next) -> Response {
    let shown = asked.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let wanted = engine.key.as_ref().map(|key| format!("Bearer {key}"));
    if wanted.is_some() && asked.uri().path() != "/health" && shown != wanted.as_deref() {
        let error = json!({ "error": {
            "message": "SIMULATED: invalid API key", "type": "authentication_error", "code": 401,
        }});
        return (StatusCode::UNAUTHORIZED, Json(error)).into_response();
    }
    next.run(asked).await
}

async fn models(State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(json!({
        "object": "list",
        "data": [{ "id": engine.args.model, "object": "model", "owned_by": "SIMULATED" }],
    }))
}

async fn metrics(State(engine): State<Arc<Engine>>) -> impl IntoResponse {
    let text = engine.metrics().text(&engine.args.model, engine.args.max_concurrency);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// What of a request matters here; the rest is accepted as any engine does.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    messages: Vec<Value>,
    prompt: Value,
    stream_options: StreamOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Chat,
    Text,
}

async fn chat(engine: State<Arc<Engine>>, asked: Json<Asked>) -> Response {
    generate(engine.0, asked.0, Shape::Chat).await
}

async fn completions(engine: State<Arc<Engine>>, asked: Json<Asked>) -> Response {
    generate(engine.0, asked.0, Shape::Text).await
}

async fn generate(engine: Arc<Engine>, asked: Asked, shape: Shape) -> Response {
    let wanted = asked.max_completion_tokens.or(asked.max_tokens);
    let limit = wanted.unwrap_or(engine.args.tokens).clamp(1, MAX_TOKENS);
    let prompt_tokens = count_words(&asked.prompt)
        + asked.messages.iter().map(|m| m.get("content").map_or(0, count_words)).sum::<u64>();
    let mut running = Running::begin(Arc::clone(&engine), limit, wanted.is_some(), shape).await;
    engine.metrics().prompt_tokens += prompt_tokens;
    if engine.fails() {
        running.end(Finished::Error);
        super::log("ERROR a generation failed (as told by its arguments)");
        let error = json!({ "error": {
            "message": "SIMULATED: generation failed", "type": "InternalServerError", "code": 500,
        }});
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response();
    }
    let Some(first) = running.token().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if asked.stream {
        // The head goes out with the first token, so that the time to it can be seen outside.
        let usage = asked.stream_options.include_usage.then_some(prompt_tokens);
        return stream(running, first, usage);
    }
    let mut text = first;
    while let Some(word) = running.token().await {
        text.push_str(&word);
    }
    let choices = json!([match shape {
        Shape::Chat => json!({
            "index": 0,
            "message": { "role": "assistant", "content": text },
            "finish_reason": running.reason(),
        }),
        Shape::Text => json!({ "index": 0, "text": text, "finish_reason": running.reason() }),
    }]);
    let answer = running.envelope(false, &choices, Some(prompt_tokens));
    running.end(running.finished());
    Json(answer).into_response()
}

fn count_words(text: &Value) -> u64 {
    text.as_str().map_or(0, |text| text.split_whitespace().count().try_into().unwrap_or(u64::MAX))
}

fn usage_of(prompt: u64, made: u32) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt.saturating_add(u64::from(made)),
    })
}

/// Server-sent events: a chunk a token, a chunk with the reason, `[DONE]`.
fn stream(running: Running, first: String, usage: Option<u64>) -> Response {
    enum Then {
        Word(String),
        Token,
        Done,
    }
    let events = futures::stream::unfold(
        (running, Then::Word(first)),
        move |(mut running, next)| async move {
            let word = match next {
                Then::Word(word) => Some(word),
                Then::Token => running.token().await,
                Then::Done => return None,
            };
            let Some(word) = word else {
                let mut text = event(&running.chunk(None));
                if let Some(prompt) = usage {
                    let last = running.envelope(true, &json!([]), Some(prompt));
                    text.push_str(&event(&last));
                }
                text.push_str("data: [DONE]\n\n");
                running.end(running.finished());
                return Some((Ok::<_, std::convert::Infallible>(text), (running, Then::Done)));
            };
            let text = event(&running.chunk(Some(&word)));
            Some((Ok(text), (running, Then::Token)))
        },
    );
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// A request being generated; dropped before its end it counts as aborted.
struct Running {
    engine: Arc<Engine>,
    shape: Shape,
    id: String,
    limit: u32,
    limited: bool,
    made: u32,
    began: Instant,
    first_after: Duration,
    last: Instant,
    ended: bool,
    _slot: Option<OwnedSemaphorePermit>,
}

/// Counts a waiting request for as long as it lives.
struct Waiting(Arc<Engine>);

impl Waiting {
    fn new(engine: Arc<Engine>) -> Self {
        engine.metrics().waiting += 1;
        Self(engine)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut metrics = self.0.metrics();
        metrics.waiting = metrics.waiting.saturating_sub(1);
    }
}

impl Running {
    async fn begin(engine: Arc<Engine>, limit: u32, limited: bool, shape: Shape) -> Self {
        let began = Instant::now();
        let waiting = Waiting::new(Arc::clone(&engine));
        // The semaphore is never closed, so there is always a permit.
        let slot = Arc::clone(&engine.slots).acquire_owned().await.ok();
        drop(waiting);
        engine.metrics().running += 1;
        Self {
            engine,
            shape,
            id: format!("simulated-{}", uuid::Uuid::new_v4().simple()),
            limit,
            limited,
            made: 0,
            began,
            first_after: Duration::ZERO,
            last: began,
            ended: false,
            _slot: slot,
        }
    }

    /// The next word when its time has come; none after the last.
    async fn token(&mut self) -> Option<String> {
        if self.made >= self.limit {
            return None;
        }
        let args = &self.engine.args;
        let pause = if self.made == 0 { args.first_token } else { args.token_time };
        tokio::time::sleep(pause).await;
        let now = Instant::now();
        let first = self.made == 0;
        let since = now.duration_since(self.last);
        if first {
            self.first_after = now.duration_since(self.began);
        }
        self.last = now;
        self.engine.metrics().token(first, since);
        let place = args.seed.wrapping_add(u64::from(self.made));
        self.made += 1;
        let word = usize::try_from(place % 16).ok().and_then(|i| WORDS.get(i)).copied();
        let word = word.unwrap_or("word");
        Some(if first { word.to_owned() } else { format!(" {word}") })
    }

    /// `length` when the client set the limit, `stop` when we did.
    fn finished(&self) -> Finished {
        if self.limited { Finished::Length } else { Finished::Stop }
    }

    fn reason(&self) -> &'static str {
        if self.limited { "length" } else { "stop" }
    }

    /// The answer, or a chunk of it, around its `choices`; with the usage if it is to tell it.
    fn envelope(&self, chunk: bool, choices: &Value, prompt_tokens: Option<u64>) -> Value {
        let object = match (self.shape, chunk) {
            (Shape::Chat, true) => "chat.completion.chunk",
            (Shape::Chat, false) => "chat.completion",
            (Shape::Text, _) => "text_completion",
        };
        let created = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        json!({
            "id": self.id,
            "object": object,
            "created": created,
            "model": self.engine.args.model,
            "choices": choices,
            "usage": prompt_tokens.map(|prompt| usage_of(prompt, self.made)),
        })
    }

    /// A chunk of a stream: a word, or the reason of the end.
    fn chunk(&self, word: Option<&str>) -> Value {
        let reason = word.is_none().then(|| self.reason());
        let choice = match (self.shape, word) {
            (Shape::Chat, Some(word)) => {
                let delta = if self.made == 1 {
                    json!({ "role": "assistant", "content": word })
                } else {
                    json!({ "content": word })
                };
                json!({ "index": 0, "delta": delta, "finish_reason": reason })
            }
            (Shape::Chat, None) => json!({ "index": 0, "delta": {}, "finish_reason": reason }),
            (Shape::Text, word) => {
                json!({ "index": 0, "text": word.unwrap_or_default(), "finish_reason": reason })
            }
        };
        self.envelope(true, &json!([choice]), None)
    }

    fn end(&mut self, how: Finished) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut metrics = self.engine.metrics();
        metrics.running = metrics.running.saturating_sub(1);
        metrics.end(how, self.made, self.first_after, self.began.elapsed());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Finished::Abort);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn errors_come_evenly_and_exactly() {
        let args = Args::parse_from(["sim-engine", "--port", "1", "--error-rate", "0.3"]);
        let engine = Engine::new(args, None);
        let failed: Vec<bool> = (0..1000).map(|_| engine.fails()).collect();
        assert_eq!(failed.iter().filter(|f| **f).count(), 300);
        for window in failed.chunks(10) {
            assert_eq!(window.iter().filter(|f| **f).count(), 3);
        }
    }
}
