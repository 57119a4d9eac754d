//! The door's end of the socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes as BodyBytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::door::Door;
use super::intent::{Intent, IntentReply};
use super::lend::{AgentAnswer, Lending, ToLender};
use super::maintenance::{DrainPlan, UpgradePlan, UpgradeQuestion};
use super::release::{BlameLine, DriftView, ReleaseDetail};
use super::server::{
    API_VERSION, CheckupRequest, InspectRequest, LogRequest, PreviousLog, PreviousLogRequest,
    Version,
};
use super::view::{ApiError, Delta, ErrorKind, Looking, PlanView, ReleaseView, Snapshot};
use super::who;
use crate::base::{HostName, RankId, ReleaseNumber, ServiceName};
use crate::model::ModelFacts;
use crate::placement::what_if::{WhatIf, WhatIfView};
use crate::spec::ConcurrencyPolicy;
use crate::wire::{Checkup, LogChunk};

/// A controller says within this time who it is; one that does not hangs.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// What is said of a controller that is there and says nothing.
pub const CONTROLLER_SILENT: &str = "the controller is there and does not answer";

/// Most wishes are shorter, in bytes.
const ROOM: usize = 8 << 10;
/// Longest answer or line that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Room for pieces of a stream that is kept.
const LINES_KEPT: usize = 64 << 10;

/// Longest line of what is asked of a lent agent: a message of its protocol in base64.
const MAX_ASKED_BYTES: usize = 2 * super::lend::message::MAX_MESSAGE_BYTES;

/// Where an agent is lent.
const AGENT: &str = "/v1/agent";

/// Whether who listens at the other end is who we are, as the kernel says: whoever has an agent lent to him
/// logs in as its owner. That the socket lies in a directory of ours does not tell where `$GPUDECK_HOME` is
/// shared.
fn is_ours(stream: &UnixStream) -> bool {
    let us = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == us)
}

/// A controller's socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    /// The agent that is lent as long as this, or a copy of it, is there.
    lending: Option<Arc<Lending>>,
    /// Ties what it looks at to its streams.
    door: Uuid,
}

impl Client {
    /// The controller behind `socket`, if one answers there within 20 seconds and speaks this interface.
    pub async fn connect(socket: &Path) -> Result<Self, ApiError> {
        Self::connect_within(socket, ANSWERS_WITHIN).await
    }

    async fn connect_within(socket: &Path, patience: Duration) -> Result<Self, ApiError> {
        let client = Self::unchecked(socket);
        let version = tokio::time::timeout(patience, client.version());
        let Ok(version) = version.await else { return Err(client.silent().await) };
        let version = version?;
        if version.api != API_VERSION {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!(
                    "the controller (pid {}) is gpudeck {} and speaks interface {}, this is gpudeck {} with interface {API_VERSION}",
                    version.pid,
                    version.gpudeck,
                    version.api,
                    env!("CARGO_PKG_VERSION")
                ),
                hint: Some(
                    "run `gpudeck controller upgrade`: it hands over between two steps".to_owned(),
                ),
            });
        }
        Ok(client)
    }

    /// Whatever is behind `socket`, without asking what interface it speaks.
    pub fn unchecked(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), lending: None, door: Uuid::new_v4() }
    }

    /// Lends this process's SSH agent, if it has one, to the controller for as long as this client, or
    /// a copy of it, is there. To be called within a tokio runtime.
    #[must_use]
    pub fn lending_agent(mut self) -> Self {
        self.lending = Lending::of_environment(&self).map(Arc::new);
        self
    }

    /// Lends the agent behind `socket`.
    #[must_use]
    pub fn lending(mut self, socket: PathBuf) -> Self {
        self.lending = Some(Arc::new(Lending::begin(&self, socket)));
        self
    }

    /// That nothing comes from who listens there, and how that process is ended.
    pub async fn silent(&self) -> ApiError {
        let stream = UnixStream::connect(&self.socket);
        let stream = tokio::time::timeout(ANSWERS_WITHIN, stream).await;
        let peer = stream.ok().and_then(Result::ok).and_then(|s| s.peer_cred().ok());
        // 0 is one of another PID namespace.
        let pid = peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let pid = pid.map(|pid| pid.to_string());
        let pid = pid.as_deref().unwrap_or("PID");
        ApiError {
            kind: ErrorKind::Unreachable,
            message: CONTROLLER_SILENT.to_owned(),
            hint: Some(format!(
                "`kill {pid}` ends it, `kill -9 {pid}` where that does not; what serves goes on serving, and the next command starts another controller, which goes on from there"
            )),
        }
    }

    /// Who answers there.
    pub async fn version(&self) -> Result<Version, ApiError> {
        self.get("/v1/version").await
    }

    /// The snapshot as it is now.
    pub async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        self.get("/v1/snapshot").await
    }

    /// What an apply of several services would do, in their order.
    pub async fn plan_together(&self, services: &[ServiceName]) -> Result<Vec<PlanView>, ApiError> {
        self.post("/v1/plan-together", &services).await
    }

    /// What an upgrade of hosts would do.
    pub async fn plan_upgrade(&self, question: &UpgradeQuestion) -> Result<UpgradePlan, ApiError> {
        self.post("/v1/plan-upgrade", question).await
    }

    /// What a drain of a host would do.
    pub async fn plan_drain(&self, host: &HostName) -> Result<DrainPlan, ApiError> {
        self.get(&format!("/v1/hosts/{host}/drain")).await
    }

    /// The releases of a service, newest first.
    pub async fn history(&self, service: &ServiceName) -> Result<Vec<ReleaseView>, ApiError> {
        self.get(&format!("/v1/services/{service}/history")).await
    }

    /// One release, whole.
    pub async fn release(&self, number: ReleaseNumber) -> Result<ReleaseDetail, ApiError> {
        self.get(&format!("/v1/releases/{number}")).await
    }

    /// Which release last changed each line of a service's spec.
    pub async fn blame(&self, service: &ServiceName) -> Result<Vec<BlameLine>, ApiError> {
        self.get(&format!("/v1/services/{service}/blame")).await
    }

    /// How the hosts differ from what the releases say.
    pub async fn drift(&self, service: Option<&ServiceName>) -> Result<DriftView, ApiError> {
        match service {
            Some(service) => self.get(&format!("/v1/drift?service={service}")).await,
            None => self.get("/v1/drift").await,
        }
    }

    /// Our part of the configuration of a service's gateways.
    pub async fn gateway_config(&self, service: &ServiceName) -> Result<String, ApiError> {
        self.get(&format!("/v1/services/{service}/gateway")).await
    }

    /// How a host is, beyond its samples.
    pub async fn check_up(&self, request: &CheckupRequest) -> Result<Checkup, ApiError> {
        self.post("/v1/checkup", request).await
    }

    /// The end of what a rank logged that has ended and was replaced.
    pub async fn previous_log(
        &self,
        request: &PreviousLogRequest,
    ) -> Result<PreviousLog, ApiError> {
        self.post("/v1/previous-log", request).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: BodyBytes,
    ) -> Result<Response<Incoming>, ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| ApiError {
            kind: ErrorKind::Unreachable,
            message: format!("no controller answers on {}: {e}", self.socket.display()),
            hint: Some("any gpudeck command in the deck's directory starts one".to_owned()),
        })?;
        if path == AGENT && !is_ours(&stream) {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!(
                    "{} is another user's: the SSH agent is not lent there",
                    self.socket.display()
                ),
                hint: Some("look who has put that socket there".to_owned()),
            });
        }
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the socket, when the response's body is dropped.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "gpudeck")
            .header("content-type", "application/json");
        let session = who::own_session();
        for (name, value) in [(who::KEY_HEADER, &session.key), (who::FROM_HEADER, &session.from)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(body)).map_err(|e| internal(&e))?;
        sender.send_request(request).await.map_err(broken)
    }

    async fn answer<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ApiError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| internal(&e))?
            .to_bytes();
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|e| internal(&e));
        }
        Err(serde_json::from_slice(&body).unwrap_or_else(|_| ApiError {
            kind: ErrorKind::Internal,
            message: format!(
                "the controller answered {status}: {}",
                crate::base::text::clean(&String::from_utf8_lossy(&body), 200)
            ),
            hint: Some(OTHER_BUILD.to_owned()),
        }))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        Self::answer(self.exchange(Method::GET, path, BodyBytes::new()).await?).await
    }

    /// What is asked of the agent that this door lends.
    pub(super) async fn asked_of_agent(&self) -> Result<BoxStream<'static, ToLender>, ApiError> {
        self.lines(AGENT, MAX_ASKED_BYTES).await
    }

    /// What it answers.
    pub(super) async fn agent_answers(&self, answer: &AgentAnswer) -> Result<(), ApiError> {
        self.post(AGENT, answer).await
    }

    /// A response that goes on, one JSON message a line of at most `longest` bytes.
    async fn lines<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        longest: usize,
    ) -> Result<BoxStream<'static, T>, ApiError> {
        let response = self.exchange(Method::GET, path, BodyBytes::new()).await?;
        if response.status() != StatusCode::OK {
            let refused: Result<serde_json::Value, ApiError> = Self::answer(response).await;
            return Err(refused.err().unwrap_or_else(|| internal(&"no stream")));
        }
        let body = response.into_body().into_data_stream();
        let state = (body, Lines::default());
        let messages = futures::stream::unfold(state, move |(mut body, mut lines)| async move {
            loop {
                if let Some(line) = lines.next() {
                    let message = serde_json::from_slice(line).ok()?;
                    return Some((message, (body, lines)));
                }
                let piece = body.next().await?.ok()?;
                if !lines.push(&piece, longest) {
                    return None;
                }
            }
        });
        Ok(messages.boxed())
    }

    async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ApiError> {
        // It may be a secret: wiped when it is sent, and roomy, so that it does not move while it grows.
        let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM));
        serde_json::to_writer(&mut *bytes, body).map_err(|e| internal(&e))?;
        let body = BodyBytes::from_owner(bytes);
        Self::answer(self.exchange(Method::POST, path, body).await?).await
    }
}

/// What has come of a stream, cut into lines.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins, and from where on its end is to be looked for: a snapshot comes
    /// in hundreds of pieces.
    begin: usize,
    looked: usize,
}

impl Lines {
    /// The next line that is there whole.
    fn next(&mut self) -> Option<&[u8]> {
        let unread = self.bytes.get(self.looked..)?;
        let Some(length) = unread.iter().position(|b| *b == b'\n') else {
            self.looked = self.bytes.len();
            return None;
        };
        let end = self.looked + length;
        let begin = std::mem::replace(&mut self.begin, end + 1);
        self.looked = end + 1;
        self.bytes.get(begin..end)
    }

    /// Takes in another piece; false: the line would be longer than `longest`.
    fn push(&mut self, piece: &[u8], longest: usize) -> bool {
        self.bytes.drain(..self.begin);
        self.looked -= self.begin;
        self.begin = 0;
        if self.bytes.is_empty() {
            // A snapshot's room is not kept for the changes after it.
            self.bytes.shrink_to(LINES_KEPT);
        }
        if self.bytes.len() + piece.len() > longest {
            return false;
        }
        self.bytes.extend_from_slice(piece);
        true
    }
}

fn broken(error: hyper::Error) -> ApiError {
    ApiError {
        kind: ErrorKind::Unreachable,
        message: format!("the controller went away: {error}"),
        hint: Some(
            "run the command again: it starts a controller that goes on from the journal"
                .to_owned(),
        ),
    }
}

/// What to do about an answer that is none.
const OTHER_BUILD: &str = "the controller may be of another build (`gpudeck controller upgrade`); its controller.log says more";

fn internal(error: &dyn std::fmt::Display) -> ApiError {
    ApiError {
        kind: ErrorKind::Internal,
        message: error.to_string(),
        hint: Some(OTHER_BUILD.to_owned()),
    }
}

#[async_trait]
impl Door for Client {
    async fn stream(&self) -> Result<BoxStream<'static, Delta>, ApiError> {
        self.lines(&format!("/v1/stream?door={}&changes=true", self.door), MAX_ANSWER_BYTES).await
    }

    async fn send(&self, intent: Intent) -> Result<IntentReply, ApiError> {
        self.post("/v1/intents", &intent).await
    }

    async fn plan(&self, service: &ServiceName) -> Result<PlanView, ApiError> {
        self.get(&format!("/v1/services/{service}/plan")).await
    }

    async fn inspect(&self, host: &HostName, path: &str) -> Result<ModelFacts, ApiError> {
        let request = InspectRequest { host: host.clone(), path: path.to_owned() };
        self.post("/v1/inspect", &request).await
    }

    async fn what_if(&self, question: &WhatIf) -> Result<WhatIfView, ApiError> {
        self.post("/v1/what-if", question).await
    }

    async fn plan_undo(
        &self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError> {
        let to = to.map(|r| format!("&to={r}")).unwrap_or_default();
        self.get(&format!("/v1/services/{service}/plan?undo=true{to}")).await
    }

    async fn plan_behind(
        &self,
        service: &ServiceName,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<PlanView, ApiError> {
        let policy = match policy {
            None => "",
            Some(ConcurrencyPolicy::Forbid) => "?concurrency=forbid",
            Some(ConcurrencyPolicy::Queue) => "?concurrency=queue",
            Some(ConcurrencyPolicy::Replace) => "?concurrency=replace",
        };
        self.get(&format!("/v1/services/{service}/plan{policy}")).await
    }

    async fn plan_retry(&self, service: &ServiceName) -> Result<PlanView, ApiError> {
        self.get(&format!("/v1/services/{service}/plan?retry=true")).await
    }

    async fn diff(
        &self,
        service: &ServiceName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<String, ApiError> {
        self.get(&format!("/v1/services/{service}/diff?from={from}&to={to}")).await
    }

    async fn look(&self, looking: &Looking) -> Result<(), ApiError> {
        let looking = Looking { door: Some(self.door), ..looking.clone() };
        self.post("/v1/look", &looking).await
    }

    async fn log(
        &self,
        rank: &RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, ApiError> {
        self.post("/v1/log", &LogRequest { rank: rank.clone(), offset, length }).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Somebody else's can only be made by root.
    #[tokio::test]
    async fn an_agent_is_lent_to_our_own_user_only() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(is_ours(&near));
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("controller.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // Who listens is who called listen(2): a child that is nobody does so once more.
        let mut child = std::process::Command::new("python3")
            .args([
                "-c",
                "import os, socket, time\ns = socket.socket(fileno=0)\nos.setuid(65534)\n\
                 s.listen(8)\nprint(1, flush=True)\ntime.sleep(600)",
            ])
            .stdin(std::os::fd::OwnedFd::from(listener))
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(child) = &mut child else { return };
        let mut said = [0; 2];
        let listens = std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said);
        if listens.is_ok() {
            let stream = UnixStream::connect(&socket).await.unwrap();
            assert!(!is_ours(&stream));
            let error = Client::unchecked(&socket).asked_of_agent().await.err().unwrap();
            assert!(error.message.contains("not lent"), "{error:?}");
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Nobody waits for ever for one that hangs.
    #[tokio::test]
    async fn a_controller_that_says_nothing_is_told_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("controller.sock");
        let nobody = Client::connect_within(&socket, Duration::from_millis(20)).await.unwrap_err();
        assert!(nobody.message.starts_with("no controller answers"), "{nobody:?}");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let silent = Client::connect_within(&socket, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(
            (silent.kind, silent.message.as_str()),
            (ErrorKind::Unreachable, CONTROLLER_SILENT)
        );
        let kill = format!("`kill {}` ends it", std::process::id());
        assert!(silent.hint.as_ref().unwrap().starts_with(&kill), "{silent:?}");
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = b"{\"a\":1}\n\n{\"b\":22}\nrest";
        for size in 1..text.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for piece in text.chunks(size) {
                assert!(lines.push(piece, 64));
                while let Some(line) = lines.next() {
                    seen.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            assert_eq!(seen, ["{\"a\":1}", "", "{\"b\":22}"], "in pieces of {size}");
            assert!(!lines.push(&[b'x'; 61], 64), "too long");
        }
    }
}
