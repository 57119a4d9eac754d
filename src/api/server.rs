//! HTTP/JSON over a Unix socket.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /v1/version` | [`Version`] |
//! | `GET /v1/snapshot` | `Snapshot` |
//! | `GET /v1/stream?door=UUID&changes=true` | one JSON `Delta` a line, the first is the snapshot; with `changes`, samples also as changes |
//! | `POST /v1/intents` | `Intent` → `IntentReply` |
//! | `GET /v1/services/{name}/plan?undo=true&to=r3`, `plan?retry=true` | `PlanView` |
//! | `POST /v1/plan-together` | names of services → list of `PlanView` |
//! | `GET /v1/services/{name}/diff?from=r1&to=r2` | text |
//! | `GET /v1/services/{name}/history` | list of `ReleaseView` |
//! | `GET /v1/hosts/{name}/drain` | `DrainPlan` |
//! | `POST /v1/plan-upgrade` | `UpgradeQuestion` → `UpgradePlan` |
//! | `GET /v1/services/{name}/blame` | list of `BlameLine` |
//! | `GET /v1/releases/{number}` | `ReleaseDetail` |
//! | `GET /v1/drift?service=chat` | `DriftView` |
//! | `POST /v1/inspect` | [`InspectRequest`] → `ModelFacts` |
//! | `POST /v1/what-if` | `WhatIf` → `WhatIfView` |
//! | `POST /v1/log` | [`LogRequest`] → `LogChunk` |
//! | `POST /v1/previous-log` | [`PreviousLogRequest`] → [`PreviousLog`] |
//! | `POST /v1/look` | `Looking` → nothing: what the door shows now |
//! | `GET /v1/agent` | one JSON [`ToLender`] a line: what is asked of the SSH agent that the door lends |
//! | `POST /v1/agent` | [`AgentAnswer`] → nothing |
//! | `POST /v1/checkup` | [`CheckupRequest`] → `Checkup` |
//!
//! An error is an `ApiError` with the HTTP status of its kind.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes as BodyBytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path as UrlPath, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use uuid::Uuid;

use super::desk::Desk;
use super::intent::{Intent, IntentReply};
use super::lend::AgentAnswer;
use super::maintenance::{DrainPlan, UpgradePlan, UpgradeQuestion};
use super::release::{BlameLine, DriftView, ReleaseDetail};
use super::thinned::{Shown, Thinned};
use super::view::{ApiError, ErrorKind, Looking, PlanView, ReleaseView, Snapshot};
use super::who::{self, Who};
use crate::agent::users;
use crate::base::{HostName, RankId, ReleaseNumber, ServiceName};
use crate::model::ModelFacts;
use crate::placement::what_if::{WhatIf, WhatIfView};
use crate::wire::{Checkup, LogChunk};

/// Version of this interface; doors and controller must agree.
pub const API_VERSION: u32 = 2;

/// `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// [`API_VERSION`].
    pub api: u32,
    /// The controller's version.
    pub gpudeck: String,
    /// The controller's process.
    pub pid: u32,
}

/// `POST /v1/log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// Which rank.
    pub rank: RankId,
    /// From this offset; none: the end.
    pub offset: Option<u64>,
    /// At most so many bytes.
    pub length: u32,
}

/// `POST /v1/previous-log`: of the start before the one that is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousLogRequest {
    /// Of which service.
    pub service: ServiceName,
    /// Which replica of it.
    pub replica: u32,
    /// Which rank of that.
    pub rank: u32,
    /// At most so many bytes.
    pub length: u32,
}

/// What a rank logged that has ended and was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousLog {
    /// Which rank it is.
    pub rank: RankId,
    /// Where it ran.
    pub host: HostName,
    /// How it ended, for people: `ended with exit code 1 at …`.
    pub how: String,
    /// The end of its log.
    pub log: LogChunk,
}

/// `POST /v1/checkup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckupRequest {
    /// Which host.
    pub host: HostName,
    /// Measure its disk with so many bytes.
    pub disk_bytes: Option<u64>,
}

/// Who is at the other end of the socket.
#[derive(Clone, Debug)]
struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let peer = stream.io().peer_cred().ok();
        Self { uid: peer.map(|c| c.uid()), pid: peer.and_then(|c| c.pid()) }
    }
}

type Shared = State<Arc<dyn Desk>>;
type Looks = Extension<Arc<Shown>>;

/// Binds the socket with mode 0600, replacing a dead one. The caller holds the deck's lock.
pub fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    let owner_only = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    std::fs::set_permissions(socket, owner_only)?;
    Ok(listener)
}

/// Serves until `stop` is done.
pub async fn serve(
    listener: UnixListener,
    desk: Arc<dyn Desk>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/version", get(version))
        .route("/v1/snapshot", get(snapshot))
        .route("/v1/stream", get(stream))
        .route("/v1/intents", post(intent))
        .route("/v1/services/{name}/plan", get(plan))
        .route("/v1/plan-together", post(plan_together))
        .route("/v1/services/{name}/diff", get(diff))
        .route("/v1/services/{name}/history", get(history))
        .route("/v1/hosts/{name}/drain", get(plan_drain))
        .route("/v1/plan-upgrade", post(plan_upgrade))
        .route("/v1/services/{name}/blame", get(blame))
        .route("/v1/releases/{number}", get(one_release))
        .route("/v1/drift", get(drift))
        .route("/v1/inspect", post(inspect))
        .route("/v1/services/{name}/gateway", get(gateway_config))
        .route("/v1/what-if", post(what_if))
        .route("/v1/log", post(log))
        .route("/v1/previous-log", post(previous_log))
        .route("/v1/look", post(look))
        .route("/v1/agent", get(borrow_agent).post(agent_answers))
        .route("/v1/checkup", post(check_up))
        .layer(Extension(Arc::new(Shown::default())))
        .with_state(desk);
    // Streams never end by themselves, so the server is dropped rather than drained.
    tokio::select! {
        result = axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()) => result,
        () = stop => Ok(()),
    }
}

/// Only the user who runs the controller, and root, may speak to it.
fn admit(peer: &Peer) -> Result<(), ApiError> {
    let own = rustix::process::geteuid().as_raw();
    match peer.uid {
        Some(uid) if uid == own || uid == 0 => Ok(()),
        _ => Err(ApiError {
            kind: ErrorKind::Invalid,
            message: "only the user who runs the controller may speak to it".to_owned(),
            hint: Some("log in as that user, or as root".to_owned()),
        }),
    }
}

/// A name service (LDAP, SSSD) has so long to tell the first time who a user is.
const NAME: Duration = Duration::from_secs(2);

/// The name of a user of this machine, as hosts show it; the number where it has no name, or where the name service
/// does not say. May block for two seconds the first time.
pub fn user_name(uid: u32) -> String {
    users::name_within(uid, NAME).unwrap_or_else(|| format!("uid {uid}"))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict | ErrorKind::Fenced => StatusCode::CONFLICT,
            ErrorKind::Unplaceable | ErrorKind::Outage => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Unreachable => StatusCode::BAD_GATEWAY,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self)).into_response()
    }
}

async fn version(ConnectInfo(peer): ConnectInfo<Peer>) -> Result<Json<Version>, ApiError> {
    admit(&peer)?;
    Ok(Json(Version {
        api: API_VERSION,
        gpudeck: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    }))
}

async fn snapshot(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
) -> Result<Json<Snapshot>, ApiError> {
    admit(&peer)?;
    desk.refresh().await?;
    Ok(Json(desk.hub().snapshot()))
}

#[derive(Deserialize)]
struct StreamQuery {
    door: Option<Uuid>,
    #[serde(default)]
    changes: bool,
}

async fn stream(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Extension(shown): Looks,
    Query(query): Query<StreamQuery>,
) -> Result<Response, ApiError> {
    admit(&peer)?;
    let shown = query.door.map(|door| shown.opened(door));
    let deltas = Thinned::new(Arc::clone(desk.hub()), shown, query.changes);
    let lines = futures::stream::unfold(deltas, |mut deltas| async move {
        let together = deltas.together().await?;
        let mut lines = Vec::with_capacity(1 << 10);
        for delta in &together {
            put_line(&mut lines, delta);
        }
        Some((BodyBytes::from(lines), deltas))
    });
    Ok(ndjson(lines))
}

/// A response that goes on, line by line, until either end goes.
fn ndjson(lines: impl futures::Stream<Item = BodyBytes> + Send + 'static) -> Response {
    Response::builder()
        .header("content-type", "application/x-ndjson")
        .body(Body::from_stream(lines.map(Ok::<_, Infallible>)))
        .unwrap_or_default()
}

fn line<T: Serialize>(message: &T) -> BodyBytes {
    let mut line = Vec::new();
    put_line(&mut line, message);
    line.into()
}

fn put_line<T: Serialize>(lines: &mut Vec<u8>, message: &T) {
    let before = lines.len();
    if serde_json::to_writer(&mut *lines, message).is_err() {
        lines.truncate(before);
    }
    lines.push(b'\n');
}

async fn borrow_agent(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
) -> Result<Response, ApiError> {
    admit(&peer)?;
    Ok(ndjson(desk.borrow_agent()?.map(|asked| line(&asked))))
}

async fn agent_answers(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(answer): Json<AgentAnswer>,
) -> Result<Json<()>, ApiError> {
    admit(&peer)?;
    desk.agent_answers(answer).map(Json)
}

async fn intent(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    headers: HeaderMap,
    Json(intent): Json<Intent>,
) -> Result<Json<IntentReply>, ApiError> {
    admit(&peer)?;
    let uid = peer.uid.unwrap_or_default();
    // A name service may take its time, and everything else goes on meanwhile.
    let user = tokio::task::spawn_blocking(move || user_name(uid)).await;
    let user = user.unwrap_or_else(|_| format!("uid {uid}"));
    let said = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(who::claimed);
    let who = Who {
        user,
        uid: peer.uid,
        pid: peer.pid,
        ssh_key: said(who::KEY_HEADER),
        ssh_from: said(who::FROM_HEADER),
    };
    desk.intent_of(intent, who).await.map(Json)
}

#[derive(Deserialize)]
struct PlanQuery {
    #[serde(default)]
    undo: bool,
    to: Option<String>,
    #[serde(default)]
    retry: bool,
    concurrency: Option<crate::spec::ConcurrencyPolicy>,
}

async fn plan(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    UrlPath(name): UrlPath<String>,
    Query(query): Query<PlanQuery>,
) -> Result<Json<PlanView>, ApiError> {
    admit(&peer)?;
    let service = service(&name)?;
    let plan = if query.undo {
        let to = query.to.as_deref().map(release).transpose()?;
        desk.plan_undo(service, to).await?
    } else if query.retry {
        desk.plan_retry(service).await?
    } else if query.concurrency.is_some() {
        desk.plan_behind(service, query.concurrency).await?
    } else {
        desk.plan(service).await?
    };
    Ok(Json(plan))
}

async fn plan_together(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(services): Json<Vec<ServiceName>>,
) -> Result<Json<Vec<PlanView>>, ApiError> {
    admit(&peer)?;
    desk.plan_together(services).await.map(Json)
}

#[derive(Deserialize)]
struct DiffQuery {
    from: String,
    to: String,
}

async fn diff(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    UrlPath(name): UrlPath<String>,
    Query(query): Query<DiffQuery>,
) -> Result<Json<String>, ApiError> {
    admit(&peer)?;
    desk.diff(service(&name)?, release(&query.from)?, release(&query.to)?).await.map(Json)
}

async fn history(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Vec<ReleaseView>>, ApiError> {
    admit(&peer)?;
    desk.history(service(&name)?).await.map(Json)
}

async fn plan_drain(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<DrainPlan>, ApiError> {
    admit(&peer)?;
    let host = name.parse().map_err(|e: crate::base::id::BadName| invalid(e.to_string()))?;
    desk.plan_drain(host).await.map(Json)
}

async fn plan_upgrade(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(question): Json<UpgradeQuestion>,
) -> Result<Json<UpgradePlan>, ApiError> {
    admit(&peer)?;
    desk.plan_upgrade(question).await.map(Json)
}

async fn blame(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Vec<BlameLine>>, ApiError> {
    admit(&peer)?;
    desk.blame(service(&name)?).await.map(Json)
}

async fn one_release(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    UrlPath(number): UrlPath<String>,
) -> Result<Json<ReleaseDetail>, ApiError> {
    admit(&peer)?;
    desk.release(release(&number)?).await.map(Json)
}

#[derive(Deserialize)]
struct DriftQuery {
    service: Option<String>,
}

async fn drift(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Query(query): Query<DriftQuery>,
) -> Result<Json<DriftView>, ApiError> {
    admit(&peer)?;
    desk.drift(query.service.as_deref().map(service).transpose()?).await.map(Json)
}

async fn gateway_config(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<String>, ApiError> {
    admit(&peer)?;
    desk.gateway_config(service(&name)?).await.map(Json)
}

async fn log(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(request): Json<LogRequest>,
) -> Result<Json<LogChunk>, ApiError> {
    admit(&peer)?;
    desk.log(request.rank, request.offset, request.length).await.map(Json)
}

async fn previous_log(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(request): Json<PreviousLogRequest>,
) -> Result<Json<PreviousLog>, ApiError> {
    admit(&peer)?;
    desk.previous_log(request).await.map(Json)
}

/// `POST /v1/inspect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InspectRequest {
    /// The host.
    pub host: HostName,
    /// An absolute path on it.
    pub path: String,
}

async fn inspect(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(request): Json<InspectRequest>,
) -> Result<Json<ModelFacts>, ApiError> {
    admit(&peer)?;
    desk.inspect(request.host, request.path).await.map(Json)
}

async fn what_if(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(question): Json<WhatIf>,
) -> Result<Json<WhatIfView>, ApiError> {
    admit(&peer)?;
    desk.what_if(question).await.map(Json)
}

async fn look(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Extension(shown): Looks,
    Json(looking): Json<Looking>,
) -> Result<Json<()>, ApiError> {
    admit(&peer)?;
    shown.says(&looking);
    desk.look(looking);
    Ok(Json(()))
}

async fn check_up(
    ConnectInfo(peer): ConnectInfo<Peer>,
    State(desk): Shared,
    Json(request): Json<CheckupRequest>,
) -> Result<Json<Checkup>, ApiError> {
    admit(&peer)?;
    desk.check_up(request).await.map(Json)
}

fn service(name: &str) -> Result<ServiceName, ApiError> {
    name.parse().map_err(|e: crate::base::id::BadName| invalid(e.to_string()))
}

fn release(text: &str) -> Result<ReleaseNumber, ApiError> {
    text.parse().map_err(invalid)
}

fn invalid(message: String) -> ApiError {
    let hint = Some("write it as `gpudeck status` and `gpudeck history` do".to_owned());
    ApiError { kind: ErrorKind::Invalid, message, hint }
}
