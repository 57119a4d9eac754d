//! Ranks as containers of the host's Docker Engine, reached through its socket on the host: no TCP
//! port, no `docker` program here or there.
//!
//! - [`transport`] — HTTP over a stream that the link dials, one request each.
//! - [`create`] — from a rank to the body of a create request; [`labels`] — who a container is.
//! - [`setup`] — what a container was given, to be compared. [`log`] — logs by byte offset; [`error`] — what engines and dials say, for people.
//!
//! Looking takes no lock. A change is dialled with the epoch, so the host's agent refuses it from a
//! controller that was replaced, and holds the host's lock just for that request: never while a
//! container is given time to end.
//!
//! Nothing is pulled here: an image that is not on the host is refused with what to do.

pub mod create;
pub mod error;
pub mod labels;
pub mod log;
pub mod setup;
pub mod transport;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error as BollardError;
use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, SystemVersionComponents,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures::StreamExt;

use self::create::Kind;
use self::error::Engine;
use self::log::Cursors;
use self::setup::Setup;
use super::{RunningRank, Runtime, RuntimeError};
use crate::base::last_words::excerpt;
use crate::base::{DeckId, DeviceId, EpochCell, RankId, Timestamp, text};
use crate::fleet::{HostLink, LinkError};
use crate::spec::DockerRuntime as DockerSpec;
use crate::wire::{
    DialAccess, LogChunk, RankReport, RankStart, RankStatus, Refusal, Reply, Request,
};

/// What a request through bollard gives.
type Answer<T> = Result<T, BollardError>;

/// For a request that an engine answers at once.
const QUICK: Duration = Duration::from_secs(30);
/// For creating and starting: the engine sets up a root file system and runs hooks.
const SLOW: Duration = Duration::from_mins(2);
/// From SIGKILL to giving up; a process in a hung driver call cannot end.
const AFTER_KILL: Duration = Duration::from_secs(30);
/// A container that was created so many seconds ago and is not being started was forgotten.
const ABANDONED_AFTER: i64 = 300;
/// For the log of one that ended: the look at all of a host's containers must come to its end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Containers of a service that ended by themselves and are kept on a host; those beyond it that one start removes.
const ENDED_KEPT: usize = 16;
const PRUNED_AT_ONCE: usize = 32;
/// Most bytes of the last lines in a report, and of what is looked through for them.
const LAST_LINES_BYTES: usize = 2 << 10;
const LOOKED_THROUGH_BYTES: usize = 32 << 10;

/// The `docker` runtime of one host with one engine and image.
pub struct DockerRuntime {
    link: Arc<dyn HostLink>,
    deck: DeckId,
    epoch: EpochCell,
    spec: DockerSpec,
    /// Containers between creating and starting.
    starting: StartsUnderWay,
    /// Reports of containers by id, with the state they were made in: a state says all there is to
    /// know about a container that is never restarted, and an inspection costs a channel.
    reports: Mutex<HashMap<String, (String, RankReport)>>,
    cursors: Mutex<Cursors>,
    kind: Mutex<Option<Kind>>,
}

impl DockerRuntime {
    /// A runtime that acts through `link` for `deck`, under whatever epoch the cell holds then.
    pub fn new(link: Arc<dyn HostLink>, deck: DeckId, epoch: EpochCell, spec: &DockerSpec) -> Self {
        Self {
            link,
            deck,
            epoch,
            spec: spec.clone(),
            starting: StartsUnderWay::default(),
            reports: Mutex::default(),
            cursors: Mutex::default(),
            kind: Mutex::default(),
        }
    }

    /// The same, beside runtimes of other images on the same engine: each sees all containers of the deck there, and
    /// is to know of the others' starts.
    #[must_use]
    pub fn beside(mut self, starting: &StartsUnderWay) -> Self {
        self.starting = starting.clone();
        self
    }

    /// What the engine is. It is asked once; one that does not say is taken for a Docker Engine of root's.
    async fn kind(&self) -> Result<Kind, RuntimeError> {
        if let Some(known) = *locked(&self.kind) {
            return Ok(known);
        }
        let reader = self.reader(QUICK)?;
        let (version, info) = match (reader.version().await, reader.info().await) {
            (Ok(version), Ok(info)) => (version, info),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(host = %self.link.host(), %error, "the container engine does not say what it is");
                return Ok(Kind::default());
            }
        };
        let podman = |c: &SystemVersionComponents| c.name.to_ascii_lowercase().contains("podman");
        let kind = Kind {
            podman: version.components.unwrap_or_default().iter().any(podman),
            rootless: info.security_options.unwrap_or_default().iter().any(|o| is_rootless(o)),
            no_init: false,
        };
        *locked(&self.kind) = Some(kind);
        Ok(kind)
    }

    /// To look: no lock, no epoch.
    fn reader(&self, timeout: Duration) -> Result<Docker, RuntimeError> {
        let client = transport::client(&self.link, &self.spec.socket, DialAccess::Read, timeout);
        client.map_err(|e| self.engine().error(e))
    }

    /// To change, under the epoch of this moment.
    fn actor(&self, timeout: Duration) -> Result<Docker, RuntimeError> {
        let access = DialAccess::Act { deck: self.deck, epoch: self.epoch.get() };
        let client = transport::client(&self.link, &self.spec.socket, access, timeout);
        client.map_err(|e| self.engine().error(e))
    }

    fn engine(&self) -> Engine<'_> {
        Engine { host: self.link.host(), socket: &self.spec.socket, image: &self.spec.image }
    }

    /// The container of that name, if there is one.
    async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match self.reader(QUICK)?.inspect_container(name, None).await {
            Ok(container) => Ok(Some(container)),
            Err(e) if error::status(&e) == Some(404) => Ok(None),
            Err(e) => Err(self.engine().error(e)),
        }
    }

    /// The rank's container, if it has one; somebody else's under that name is an error.
    async fn find(&self, rank: &RankId) -> Result<Option<ContainerState>, RuntimeError> {
        let name = rank.unit_name();
        let Some(container) = self.inspect(&name).await? else { return Ok(None) };
        let labels = container.config.and_then(|c| c.labels).unwrap_or_default();
        if labels::read(&labels).as_ref() != Some(rank) {
            return Err(self.engine().refused(
                format!("the name {name} is taken by a container that is not this rank"),
                format!("remove it: docker rm {name}"),
            ));
        }
        Ok(Some(container.state.unwrap_or_default()))
    }

    /// What must hold before anything is created.
    async fn check(&self, start: &RankStart) -> Result<(), RuntimeError> {
        let wants_gpus = start.needs.iter().any(|need| need.device != DeviceId::Cpu);
        if wants_gpus && self.kind().await?.podman {
            return Err(self.engine().no_gpus_from_podman());
        }
        self.check_files(&start.files).await?;
        self.check_files(start.key_file.as_slice()).await.map_err(lacks_key)?;
        match self.reader(QUICK)?.inspect_image(&self.spec.image).await {
            Ok(_) => {}
            Err(e) if error::status(&e) == Some(404) => return Err(self.engine().no_image()),
            Err(e) => return Err(self.engine().error(e)),
        }
        // Last, so that as little time as possible lies between looking and taking.
        let needs = Request::CheckNeeds { needs: start.needs.clone(), ports: start.ports.clone() };
        match self.link.request(needs).await? {
            Reply::Done => Ok(()),
            other => Err(self.misfit(&other)),
        }
    }

    /// Each file is looked for in the listing of its directory. A directory that the agent may not
    /// read proves nothing: the engine, mostly root, will say.
    async fn check_files(&self, files: &[String]) -> Result<(), RuntimeError> {
        for path in files {
            let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
            if name.is_empty() {
                continue;
            }
            let folder = if folder.is_empty() { "/" } else { folder };
            let no_file = || {
                let refusal = Refusal::NoFile { path: path.clone() };
                RuntimeError::from(LinkError::Refused { host: self.link.host().clone(), refusal })
            };
            match self.link.request(Request::ListDir { path: folder.to_owned() }).await {
                Ok(Reply::Entries(entries)) => {
                    let cut = entries.len() >= 10_000;
                    if !cut && !entries.iter().any(|e| e.name == name) {
                        return Err(no_file());
                    }
                }
                Ok(other) => return Err(self.misfit(&other)),
                Err(LinkError::Refused { refusal: Refusal::NoFile { .. }, .. }) => {
                    return Err(no_file());
                }
                Err(LinkError::Refused { refusal: Refusal::Failed { .. }, .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }

    fn misfit(&self, reply: &Reply) -> RuntimeError {
        let what = text::clean(&format!("{reply:?}"), 120);
        LinkError::Unexpected { host: self.link.host().clone(), what }.into()
    }

    /// False: somebody created it between our looking and our creating.
    async fn create(&self, start: &RankStart) -> Result<bool, RuntimeError> {
        let kind = self.kind().await?;
        let body = create::body(start, &self.spec, kind)
            .map_err(|what| self.engine().refused(what, "correct the service's spec".to_owned()))?;
        let options =
            CreateContainerOptionsBuilder::default().name(&start.rank.unit_name()).build();
        match self.actor(SLOW)?.create_container(Some(options), body).await {
            Err(e) if error::status(&e) == Some(409) => Ok(false),
            Err(e) => Err(self.engine().error(e)),
            Ok(created) => {
                for warning in created.warnings {
                    let warning = text::clean(&warning, 200);
                    tracing::warn!(host = %self.link.host(), warning, "container engine");
                }
                Ok(true)
            }
        }
    }

    /// An engine reserves a name before it shows the container: it is waited for.
    async fn created_elsewhere(&self, start: &RankStart) -> Result<ContainerState, RuntimeError> {
        let deadline = Instant::now() + QUICK;
        loop {
            if let Some(state) = self.find(&start.rank).await? {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                let name = start.rank.unit_name();
                return Err(self.engine().unfinished_create(&name));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts what was created. A container that cannot be started is taken away again.
    async fn start_created(&self, rank: &RankId) -> Result<(), Unstarted> {
        let name = rank.unit_name();
        let actor = self.actor(SLOW).map_err(|error| Unstarted { error, no_init: false })?;
        match actor.start_container(&name, None::<StartContainerOptions>).await {
            Ok(()) => Ok(()),
            Err(e) if error::status(&e) == Some(304) => Ok(()),
            Err(e) => {
                // Only an answer of the engine says that it did not start.
                if error::status(&e).is_some()
                    && let Err(error) = self.remove(rank).await
                {
                    tracing::warn!(%error, name, "a container that did not start is left");
                }
                let no_init = error::is_without_init(&e);
                Err(Unstarted { error: self.engine().error(e), no_init })
            }
        }
    }

    async fn kill(&self, name: &str, signal: &str) -> Result<(), RuntimeError> {
        let options = KillContainerOptionsBuilder::default().signal(signal).build();
        match self.actor(QUICK)?.kill_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            // Gone, or ended just now.
            Err(e) if matches!(error::status(&e), Some(404 | 409)) => Ok(()),
            Err(e) if error::is_not_running(&e) => Ok(()),
            Err(e) => Err(self.engine().error(e)),
        }
    }

    /// Waits until the container does not run; false: it still does after `limit`.
    async fn wait_ended(&self, name: &str, limit: Duration) -> Result<bool, RuntimeError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let client = self.reader(left + QUICK)?;
            let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
            let mut ended = Box::pin(client.wait_container(name, Some(options)));
            // Whatever ends the waiting, the state is what counts.
            let _ = tokio::time::timeout(left, ended.next()).await;
            drop(ended);
            let running = self.inspect(name).await?.is_some_and(|c| {
                let state = c.state.unwrap_or_default();
                state.running == Some(true)
            });
            if !running {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // The engine ended the wait early (it was restarted): not in a busy loop.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn report(&self, id: &str, rank: RankId) -> Result<Option<RankReport>, RuntimeError> {
        let Some(container) = self.inspect(id).await? else { return Ok(None) };
        let state = container.state.unwrap_or_default();
        let status = match state.status {
            Some(ContainerStateStatusEnum::REMOVING) => return Ok(None),
            Some(ContainerStateStatusEnum::DEAD) => RankStatus::Lost,
            _ if state.running == Some(true) => RankStatus::Running {
                pid: state.pid.and_then(|p| u32::try_from(p).ok()).unwrap_or(0),
                since: timestamp(state.started_at.as_deref()),
            },
            _ => self.exited(id, &state).await?,
        };
        Ok(Some(RankReport { rank, status }))
    }

    /// The end of a container's log; nothing where it cannot be read: that it ended is told all the same.
    async fn last_words(&self, id: &str) -> Result<String, RuntimeError> {
        let reader = self.reader(QUICK)?;
        match tokio::time::timeout(LAST_WORDS, log::tail(&reader, id, LOOKED_THROUGH_BYTES)).await {
            Ok(Ok(text)) => return Ok(text),
            Ok(Err(error)) => {
                tracing::debug!(host = %self.link.host(), id, %error, "a log cannot be read");
            }
            Err(_) => tracing::debug!(host = %self.link.host(), id, "a log was not read in time"),
        }
        Ok(String::new())
    }

    /// Forgets the oldest ended containers of a rank's service, all but the newest few. One that was stopped is
    /// removed by whoever stopped it; those that ended by themselves are kept for their logs, and a service that
    /// fails again and again must not fill the disk with them.
    async fn prune(&self, of: &RankId) -> Result<(), RuntimeError> {
        let labels =
            vec![format!("{}={}", labels::DECK, self.deck), labels::of_service(&of.service)];
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.reader(QUICK)?.list_containers(Some(options)).await;
        let mut ended: Vec<(i64, RankId)> = listed
            .map_err(|e| self.engine().error(e))?
            .into_iter()
            .filter(|c| {
                let state = c.state.map(|s| s.to_string()).unwrap_or_default();
                matches!(state.as_str(), "exited" | "dead" | "stopped")
            })
            .filter_map(|c| Some((c.created.unwrap_or(0), labels::read(&c.labels?)?)))
            .filter(|(_, rank)| rank.deck == self.deck && rank.service == of.service)
            .collect();
        ended.sort_by(|a, b| b.cmp(a));
        for (_, rank) in ended.into_iter().skip(ENDED_KEPT).take(PRUNED_AT_ONCE) {
            self.remove(&rank).await?;
        }
        Ok(())
    }

    async fn exited(&self, id: &str, state: &ContainerState) -> Result<RankStatus, RuntimeError> {
        let exit = state.exit_code.and_then(|c| i32::try_from(c).ok());
        // Engines report a death by signal as 128 + its number.
        let signal = exit.filter(|c| (129..=159).contains(c)).map(|c| c - 128);
        let never_started = !was_started(state);
        let mut last_lines = if never_started {
            "the container was created and never started".to_owned()
        } else {
            excerpt(&self.last_words(id).await?, LAST_LINES_BYTES)
        };
        for note in [
            state.oom_killed.filter(|o| *o).map(|_| "killed for lack of memory".to_owned()),
            state.error.clone().filter(|e| !e.is_empty()).map(|e| text::clean(&e, 300)),
        ]
        .into_iter()
        .flatten()
        {
            last_lines.push_str("\ncontainer error: ");
            last_lines.push_str(&note);
        }
        Ok(RankStatus::Exited {
            code: if signal.is_some() || never_started { None } else { exit },
            signal,
            at: timestamp(state.finished_at.as_deref()),
            last_lines,
        })
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn start(&self, start: &RankStart) -> Result<(), RuntimeError> {
        let name = start.rank.unit_name();
        let _starting = self.starting.begin(&name);
        match self.find(&start.rank).await? {
            Some(state) if was_started(&state) => return Ok(()),
            // Created by a start that was cut off before it started.
            Some(_) => self.check(start).await?,
            None => {
                self.check(start).await?;
                if let Err(error) = self.prune(&start.rank).await {
                    tracing::debug!(host = %self.link.host(), %error, "ended containers are left");
                }
                if !self.create(start).await? && was_started(&self.created_elsewhere(start).await?)
                {
                    return Ok(());
                }
            }
        }
        match self.start_created(&start.rank).await {
            Err(Unstarted { error, no_init: true }) => {
                tracing::warn!(host = %self.link.host(), %error, "containers go without an init");
                let kind = self.kind().await?;
                *locked(&self.kind) = Some(Kind { no_init: true, ..kind });
                self.create(start).await?;
                self.start_created(&start.rank).await.map_err(|unstarted| unstarted.error)
            }
            other => other.map_err(|unstarted| unstarted.error),
        }
    }

    async fn stop(&self, rank: &RankId, grace: Duration) -> Result<(), RuntimeError> {
        let name = rank.unit_name();
        match self.find(rank).await? {
            Some(state) if state.running == Some(true) => {}
            _ => return Ok(()),
        }
        self.kill(&name, "SIGTERM").await?;
        if self.wait_ended(&name, grace).await? {
            return Ok(());
        }
        self.kill(&name, "SIGKILL").await?;
        if self.wait_ended(&name, AFTER_KILL).await? {
            return Ok(());
        }
        Err(self.engine().unfinished(format!("{name} still runs after SIGKILL")))
    }

    async fn remove(&self, rank: &RankId) -> Result<(), RuntimeError> {
        let name = rank.unit_name();
        match self.find(rank).await? {
            None => return Ok(()),
            Some(state) if state.running == Some(true) => {
                return Err(self
                    .engine()
                    .refused(format!("{name} still runs"), "stop the replica first".to_owned()));
            }
            Some(_) => {}
        }
        // `v`: with its anonymous volumes.
        let options = RemoveContainerOptionsBuilder::default().v(true).build();
        match self.actor(SLOW)?.remove_container(&name, Some(options)).await {
            Ok(()) => {}
            Err(e) if error::status(&e) == Some(404) || error::is_in_progress(&e) => {}
            Err(e) => return Err(self.engine().error(e)),
        }
        locked(&self.cursors).forget(&name);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<RankReport>, RuntimeError> {
        let before = self.starting.names();
        let filters = HashMap::from([("label", vec![format!("{}={}", labels::DECK, self.deck)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.reader(QUICK)?.list_containers(Some(options)).await;
        let listed = listed.map_err(|e| self.engine().error(e))?;
        let mut there = BTreeSet::new();
        let mut reports = Vec::new();
        for container in listed {
            let (Some(id), Some(found)) = (container.id, container.labels) else { continue };
            let Some(rank) = labels::read(&found).filter(|r| r.deck == self.deck) else {
                tracing::warn!(host = %self.link.host(), id, "a container with unreadable labels");
                continue;
            };
            let state = container.state.map(|s| s.to_string()).unwrap_or_default();
            let name = rank.unit_name();
            if state == "created" && (before.contains(&name) || self.starting.has(&name)) {
                continue;
            }
            if state == "created" && is_abandoned(container.created) {
                // Its start was ended by a stop that came before it was there.
                if let Err(error) = self.remove(&rank).await {
                    tracing::debug!(host = %self.link.host(), %error, "it is left: {name}");
                }
                continue;
            }
            let known = locked(&self.reports).get(&id).filter(|(then, _)| *then == state).cloned();
            let report = match known {
                Some((_, report)) => Some(report),
                None => self.report(&id, rank).await?,
            };
            if let Some(report) = report {
                // At once: whoever asked may not wait for the last one, and goes on from here next time.
                locked(&self.reports).insert(id.clone(), (state, report.clone()));
                there.insert(id);
                reports.push(report);
            }
        }
        locked(&self.reports).retain(|id, _| there.contains(id));
        reports.sort_by(|a, b| a.rank.cmp(&b.rank));
        Ok(reports)
    }

    async fn running(&self) -> Result<Vec<RunningRank>, RuntimeError> {
        let filters = HashMap::from([("label", vec![format!("{}={}", labels::DECK, self.deck)])]);
        let options = ListContainersOptionsBuilder::default().filters(&filters).build();
        let listed = self.reader(QUICK)?.list_containers(Some(options)).await;
        let listed = listed.map_err(|e| self.engine().error(e))?;
        let mut running = Vec::new();
        for container in listed {
            let Some(rank) = container.labels.as_ref().and_then(labels::read) else { continue };
            // It may be gone since it was listed.
            let id = container.id.unwrap_or_default();
            let Some(seen) = self.inspect(&id).await? else { continue };
            let setup = Some(Setup::seen(&seen));
            let argv = seen.config.map(|config| {
                let program = config.entrypoint.into_iter().flatten();
                program.chain(config.cmd.into_iter().flatten()).collect()
            });
            // An engine names the image by its digest when the tag has moved on.
            running.push(RunningRank { rank, argv, image: container.image, setup, told: None });
        }
        Ok(running)
    }

    async fn read_log(
        &self,
        rank: &RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, RuntimeError> {
        if self.find(rank).await?.is_none() {
            let path = format!("log of {}", rank.unit_name());
            let refusal = Refusal::NoFile { path };
            return Err(LinkError::Refused { host: self.link.host().clone(), refusal }.into());
        }
        let name = rank.unit_name();
        let from = locked(&self.cursors).before(&name, offset);
        let access = DialAccess::Read;
        let client = transport::log_client(&self.link, &self.spec.socket, access, QUICK)
            .map_err(|e| self.engine().error(e))?;
        let read = log::read(&client, &name, from, offset, length)
            .await
            .map_err(|e| self.engine().error(e))?;
        locked(&self.cursors).remember(&name, read.cursor);
        Ok(read.chunk)
    }
}

/// Why a container that was created did not start.
struct Unstarted {
    error: RuntimeError,
    /// The engine lacks the program that is to be its first process.
    no_init: bool,
}

/// Whether what was created then, in seconds since the epoch, and is not being started will not be started any more.
/// (By two clocks: nothing but time is lost when they differ.)
fn is_abandoned(created: Option<i64>) -> bool {
    let now = jiff::Timestamp::now().as_second();
    created.is_some_and(|at| now.saturating_sub(at) > ABANDONED_AFTER)
}

/// `name=rootless`, alone or among other words.
fn is_rootless(option: &str) -> bool {
    option.split(',').any(|word| word == "name=rootless")
}

/// Whether it runs or ever ran. Engines write year 1 for never.
/// A file that is not there is no model's.
fn lacks_key(error: RuntimeError) -> RuntimeError {
    match error {
        RuntimeError::Link(LinkError::Refused { host, refusal: Refusal::NoFile { path } }) => {
            let refusal = Refusal::NoKey { path, why: "it is not there".to_owned() };
            RuntimeError::Link(LinkError::Refused { host, refusal })
        }
        other => other,
    }
}

fn was_started(state: &ContainerState) -> bool {
    state.running == Some(true) || timestamp(state.started_at.as_deref()).0 > 0
}

fn timestamp(text: Option<&str>) -> Timestamp {
    let parsed = text.and_then(|t| t.parse::<jiff::Timestamp>().ok());
    Timestamp(parsed.and_then(|t| u64::try_from(t.as_millisecond()).ok()).unwrap_or(0))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The containers that are being started by this process: their state `created` is no end.
#[derive(Clone, Debug, Default)]
pub struct StartsUnderWay(Arc<Mutex<Vec<String>>>);

impl StartsUnderWay {
    /// Until what it returns is dropped, the named container is being started.
    fn begin(&self, name: &str) -> Starting {
        locked(&self.0).push(name.to_owned());
        Starting { all: self.clone(), name: name.to_owned() }
    }

    fn has(&self, name: &str) -> bool {
        locked(&self.0).iter().any(|n| n == name)
    }

    fn names(&self) -> Vec<String> {
        locked(&self.0).clone()
    }
}

/// One start under way; the same container may have several.
struct Starting {
    all: StartsUnderWay,
    name: String,
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut all = locked(&self.all.0);
        if let Some(at) = all.iter().position(|name| *name == self.name) {
            all.swap_remove(at);
        }
    }
}
