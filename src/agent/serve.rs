//! The agent's loop: requests in, answers and samples out, everything bounded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::error::{blocking, failed};
use super::gpu::monitor::GpuMonitor;
use super::gpu::played::PlayedSource;
use super::gpu::{DriverVersions, Want};
use super::kept::{self, KeptAge};
use super::rank::RankWatch;
use super::reads::FileReads;
use super::samples::{self, Follow};
use super::state::{LOCK_WAIT, StateDir};
use super::{
    ageing, checkup, claim, containers, files, gateway_config, haproxy, host, http, key_file, log,
    needs, process, rank, rank_seen, start, stop,
};
use crate::base::{DeckId, Epoch};
use crate::wire::{
    CodecError, FromAgent, Gpus, LineReader, PROTOCOL_VERSION, Refusal, Reply, Request, ToAgent,
    Verb, encode_line,
};

pub use super::gpu::monitor::Choice as GpuChoice;

/// Most requests that are worked on at once; the next line is read when one is done.
const MAX_IN_FLIGHT: usize = 64;

/// Lines that wait for the writer; samples beyond are dropped, answers wait.
const MAX_WAITING: usize = 256;

/// Time between looks at the ranks.
const RANKS_LOOK: Duration = Duration::from_millis(500);

/// A directory or a piece of a file is read within that, or not at all: sooner than a controller gives an answer up.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// When the channel closes, actions that were begun may take so long to reach their end.
const LAST_ACTIONS: Duration = Duration::from_secs(15);

/// How an agent is set up.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where it keeps its state; host-local.
    pub state_dir: PathBuf,
    /// This binary: supervisors and the GPU sampler are started from it.
    pub program: PathBuf,
    /// Where GPU values come from.
    pub gpus: GpuChoice,
}

impl AgentConfig {
    /// As the environment says: `GPUDECK_NVML` names another NVML library, `GPUDECK_SCENARIO` a
    /// scenario (with both, the scenario is the library's), `GPUDECK_SYSFS` another `/sys` for GPUs.
    ///
    /// # Errors
    /// This binary's own path is not known.
    pub fn from_env(state_dir: PathBuf) -> std::io::Result<Self> {
        let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let library = path("GPUDECK_NVML");
        let scenario = path("GPUDECK_SCENARIO");
        let sysfs = path("GPUDECK_SYSFS");
        let gpus = match (library, scenario) {
            (None, Some(scenario)) => GpuChoice::Scenario(scenario),
            (library, scenario) => GpuChoice::Nvml { library, scenario, sysfs },
        };
        Ok(Self { state_dir, program: process::own_program()?, gpus })
    }
}

/// What all requests share.
struct Agent {
    state: StateDir,
    program: PathBuf,
    gpus: GpuMonitor,
    simulated: bool,
    hostname: Option<String>,
    /// Where engines tell a played scenario what they allocate.
    allocations: Option<PathBuf>,
    /// Something has started or ended: the next sample is due now.
    stirred: Notify,
    /// Reads of files outside of the state directory.
    reads: FileReads,
    /// Ports that another host just tries.
    listeners: checkup::Listeners,
}

/// Serves requests until `reader` ends. Supervisors go on living; everything else ends with this
/// future.
///
/// # Errors
/// The state directory cannot be made, or the streams broke.
pub async fn serve<R, W>(reader: R, writer: W, config: AgentConfig) -> Result<(), CodecError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let state = StateDir::open(&config.state_dir)?;
    let mut played = config.gpus.scenario().map(PlayedSource::open);
    let agent = Arc::new(Agent {
        gpus: GpuMonitor::start(&config.gpus, &config.program, state.root()),
        state,
        program: config.program,
        simulated: played.is_some(),
        hostname: played.as_mut().and_then(PlayedSource::hostname),
        allocations: played.as_mut().and_then(PlayedSource::allocations),
        stirred: Notify::new(),
        reads: FileReads::default(),
        listeners: checkup::Listeners::default(),
    });
    let root = agent.state.root().to_owned();
    let _keeping = Owned(tokio::spawn(ageing::keep_young_for_good(root)));
    let (lines, to_write) = mpsc::channel(MAX_WAITING);
    let mut writing = Owned(tokio::spawn(write_lines(writer, to_write)));
    let (subscribe, subscribed) = watch::channel(None);
    let telling = Owned(tokio::spawn(tell(Arc::clone(&agent), lines.clone(), subscribed)));

    let mut reader = LineReader::new(BufReader::with_capacity(64 << 10, reader));
    let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let (mut looking, mut acting) = (JoinSet::new(), JoinSet::new());
    let mut unread = false;
    let result = loop {
        // Also what ended is taken out, so that the sets stay small.
        while looking.try_join_next().is_some() || acting.try_join_next().is_some() {}
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, reader.next_line().await)
        };
        let (permit, line) = tokio::select! {
            next = next => next,
            // Nobody reads what we write: the other side is gone. What it asked for is finished.
            _ = &mut writing.0 => {
                unread = true;
                break Ok(());
            }
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let message: ToAgent = match serde_json::from_slice(&line) {
            Ok(message) => message,
            Err(error) => {
                let Some(id) = id_of(&line) else { break Err(error.into()) };
                let refusal = failed(format!("this agent does not know that request: {error}"));
                reply(&lines, id, Err(refusal)).await;
                continue;
            }
        };
        if let Some(follow) = Follow::of(&message.request) {
            // Its answer comes before the first sample.
            reply(&lines, message.id, Ok(Reply::Done)).await;
            subscribe.send_replace(Some(follow));
            continue;
        }
        let set = if changes(&message.request) { &mut acting } else { &mut looking };
        let (agent, lines) = (Arc::clone(&agent), lines.clone());
        set.spawn(async move {
            let result = handle(&agent, message.request).await;
            reply(&lines, message.id, result).await;
            drop(permit);
        });
    };
    drop(telling);
    looking.abort_all();
    let last = async { while acting.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_ACTIONS, last).await;
    acting.shutdown().await;
    drop(lines);
    // What was answered last is still written, if anybody reads it.
    if !unread {
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut writing.0).await;
    }
    result
}

/// A task that ends with its owner.
pub(super) struct Owned<T = ()>(pub(super) JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn changes(request: &Request) -> bool {
    matches!(request, Request::Act { .. } | Request::Claim { .. })
}

/// The id of a request that is not understood otherwise (from a newer controller).
fn id_of(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(line).ok()?.get("id")?.as_u64()
}

async fn write_lines<W: AsyncWrite + Unpin>(mut writer: W, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if writer.write_all(&line).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

async fn reply(lines: &mpsc::Sender<Vec<u8>>, id: u64, result: Result<Reply, Refusal>) {
    let line = encode_line(&FromAgent::Reply { id, result }).or_else(|error| {
        let result = Err(failed(format!("the answer cannot be sent: {error}")));
        encode_line(&FromAgent::Reply { id, result })
    });
    if let Ok(line) = line {
        let _ = lines.send(line).await;
    }
}

/// Sends samples and rank reports once somebody has subscribed.
async fn tell(
    agent: Arc<Agent>,
    lines: mpsc::Sender<Vec<u8>>,
    mut subscribed: watch::Receiver<Option<Follow>>,
) {
    if subscribed.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let root = agent.state.root();
    let samples = samples::tell(&agent.gpus, root, &lines, subscribed, &agent.stirred);
    tokio::join!(samples, tell_ranks(&agent, &lines));
}

async fn tell_ranks(agent: &Agent, lines: &mpsc::Sender<Vec<u8>>) {
    let mut watch = RankWatch::new(&agent.state);
    let mut told = None;
    let mut ticks = tokio::time::interval(RANKS_LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(reports) = watch.read() else { continue };
        if told.as_ref() == Some(&reports) {
            continue;
        }
        if let Ok(line) = encode_line(&FromAgent::Ranks(reports.clone()))
            && lines.send(line).await.is_err()
        {
            return;
        }
        // What has started or ended shows in the next sample, which is now.
        if told.replace(reports).is_some() {
            agent.stirred.notify_one();
        }
    }
}

async fn handle(agent: &Arc<Agent>, request: Request) -> Result<Reply, Refusal> {
    let state = agent.state.clone();
    match request {
        Request::Hello { protocol } => hello(agent, protocol).await,
        // Answered where they were read.
        Request::Subscribe { .. } | Request::Follow { .. } => Ok(Reply::Done),
        Request::Clock => {
            Ok(Reply::Clock { at: process::now(), monotonic_ms: process::since_boot_ms() })
        }
        Request::CheckUp { reach, disk_bytes, programs } => {
            let root = state.root().to_owned();
            let found = checkup::check_up(root, reach, disk_bytes, programs).await?;
            Ok(Reply::CheckUp(Box::new(found)))
        }
        Request::Listen { port, for_ms } => {
            let within = Duration::from_millis(for_ms);
            agent.listeners.listen(state, port, within).await.map(|()| Reply::Done)
        }
        Request::Claim { deck, epoch, holder, lease_ms, force } => {
            let lease = Duration::from_millis(lease_ms);
            let ask = claim::Ask { epoch, holder, lease, force };
            let granted = move || claim::claim(&state, deck, &ask, process::now());
            blocking(granted).await.map(|epoch| Reply::Claimed { epoch })
        }
        Request::Act { deck, epoch, verb } => act(agent, deck, epoch, verb).await,
        Request::Ranks { deck } => {
            blocking(move || rank::list(&state, deck)).await.map(Reply::Ranks)
        }
        Request::CheckNeeds { needs, ports } => {
            agent.listeners.release(&ports).await;
            needs::check(&needs, &ports, &agent.gpus).await.map(|_| Reply::Done)
        }
        Request::Http { port, address, method, path, body, timeout_ms, key_file } => {
            let timeout = Duration::from_millis(timeout_ms);
            let authorization = match key_file {
                Some(path) => Some(http::bearer(&key_file::read(&agent.reads, &path).await?)?),
                None => None,
            };
            let ask = http::Ask { port, address, method, path, body, timeout, authorization };
            http::request(ask).await.map(Reply::Http)
        }
        Request::GatewayShow { socket, command } => {
            haproxy::check_show(&command)?;
            haproxy::run(&socket, &[command]).await.map(Reply::Texts)
        }
        Request::ListDir { path } => {
            let shown = path.clone();
            let list = move || files::list(&path);
            agent.reads.run(&shown, READ_WITHIN, list).await.map(Reply::Entries)
        }
        Request::ReadFile { path, offset, length } => {
            let shown = path.clone();
            let read = move || files::read(&path, offset, length);
            agent.reads.run(&shown, READ_WITHIN, read).await
        }
        Request::ReadLog { rank, offset, length } => {
            blocking(move || log::read(&state.rank(&rank), offset, length)).await.map(Reply::Log)
        }
        Request::ShowClaim { deck } => {
            blocking(move || claim::show(&state, deck, process::now())).await.map(Reply::Claim)
        }
        Request::RankCommands { deck } => {
            blocking(move || rank::commands(&state, deck)).await.map(Reply::Commands)
        }
        Request::CompareRank(wanted) => {
            Ok(Reply::Compared(rank_seen::compare(&agent.state, &agent.reads, *wanted).await))
        }
        Request::ListServiceStates { deck } => {
            blocking(move || kept::services(&state, deck)).await.map(Reply::Texts)
        }
        Request::LoadServiceState { deck, service } => {
            blocking(move || kept::load(&state, deck, Some(&service))).await.map(Reply::State)
        }
        Request::LoadState { deck } => {
            blocking(move || kept::load(&state, deck, None)).await.map(Reply::State)
        }
    }
}

async fn hello(agent: &Agent, protocol: u32) -> Result<Reply, Refusal> {
    if protocol != PROTOCOL_VERSION {
        return Err(Refusal::Protocol { agent: PROTOCOL_VERSION, asked: protocol });
    }
    // The driver says its version with its first reading.
    let (gpus, (engine, _)) = tokio::join!(agent.gpus.read(Want::Due), containers::engine());
    let versions = match gpus {
        Gpus::None { .. } | Gpus::Some(_) => agent.gpus.versions(),
        Gpus::Hung { .. } => DriverVersions::default(),
    };
    let sys = Path::new("/sys");
    let (root, hostname) = (agent.state.root(), agent.hostname.clone());
    let mut facts = host::facts(sys, root, hostname, agent.simulated, versions);
    facts.container_engine = engine;
    Ok(Reply::Hello { protocol: PROTOCOL_VERSION, facts: Box::new(facts) })
}

/// Changes something: under the host's lock, if the epoch is still the host's.
async fn act(agent: &Arc<Agent>, deck: DeckId, epoch: Epoch, verb: Verb) -> Result<Reply, Refusal> {
    if let Verb::StartRank(start) = &verb {
        // Not under the lock: a mount that does not answer would keep it from everybody.
        start::check_files(&agent.state, &agent.reads, start).await?;
    }
    let lock = agent.state.lock(LOCK_WAIT).await?;
    let state = agent.state.clone();
    claim::check(&state, deck, epoch)?;
    let is_of_ranks =
        matches!(verb, Verb::StartRank(_) | Verb::StopRank { .. } | Verb::RemoveRank { .. });
    match verb {
        Verb::StartRank(mut start) => {
            own(deck, start.rank.deck)?;
            if let Some(dir) = agent.allocations.as_deref().and_then(Path::to_str) {
                let told = start.env.entry("GPUDECK_SIM_ALLOCATIONS".to_owned());
                told.or_insert_with(|| dir.to_owned());
            }
            agent.listeners.release(&start.ports).await;
            start::start(&state, &agent.program, &agent.gpus, *start).await?;
        }
        Verb::StopRank { rank, grace_ms } => {
            own(deck, rank.deck)?;
            let stopping = blocking(move || stop::begin(&state, &rank)).await?;
            // The grace may be long, and other ranks are to be stopped meanwhile.
            drop(lock);
            if let Some(stopping) = stopping {
                stopping.finish(Duration::from_millis(grace_ms)).await?;
            }
        }
        Verb::RemoveRank { rank } => {
            own(deck, rank.deck)?;
            blocking(move || rank::remove(&state, &rank)).await?;
        }
        Verb::Gateway { socket, commands } => {
            return haproxy::run(&socket, &commands).await.map(Reply::Texts);
        }
        Verb::GatewayConfig(config) => {
            let said = gateway_config::write(*config).await?;
            return Ok(Reply::Texts(vec![said]));
        }
        Verb::SaveState { state: text, age } => {
            let age = KeptAge { epoch, written: age };
            blocking(move || kept::save(&state, deck, None, &text, age)).await?;
        }
        Verb::SaveServiceState { service, state: text, age } => {
            let age = KeptAge { epoch, written: age };
            blocking(move || kept::save(&state, deck, Some(&service), &text, age)).await?;
        }
    }
    if is_of_ranks {
        let state = agent.state.clone();
        let told = move || {
            claim::tell_neighbours(&state, deck);
            Ok(())
        };
        blocking(told).await?;
    }
    Ok(Reply::Done)
}

/// A claim on one deck does not reach the ranks of another.
fn own(deck: DeckId, of: DeckId) -> Result<(), Refusal> {
    if deck == of { Ok(()) } else { Err(failed("the rank belongs to another deck")) }
}
