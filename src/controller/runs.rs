//! The commands of `run` steps: begun when the decider says so, ended when it no longer waits for
//! them, told to it when they are over.
//!
//! The state is the order: while a service's rollout waits for a command that this controller did not
//! begin, whoever did is gone, and it is lost.
//!
//! No host refuses what a command does. So before one is begun, and before one is told lost, all hosts of the service
//! are asked who holds them, and it waits until each has said that no other controller does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::actions::Means;
use super::company::hosts_of;
use super::core::{Core, Input};
use super::fence::Doubt;
use super::run_command::{Order, end_leftover, run};
use super::turns::Turns;
use crate::base::{Attempt, HostName, ReleaseNumber, ReplicaKey, ServiceName};
use crate::rollout::{EventKind, Phase, RunEnd, ServiceState};
use crate::spec::RunSpec;

/// Between two times that the hosts are asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A command that waits for so long is shown to wait, and its service is held.
const SHOWN_AFTER: Duration = Duration::from_secs(3);

/// Which run of which step's command.
type Which = (ReleaseNumber, usize, Attempt);

/// The commands under way. Dropping it kills them.
pub struct Runs {
    /// Where it is written down which processes are ours.
    dir: PathBuf,
    running: BTreeMap<ServiceName, Running>,
    /// Those that wait for hosts to say who holds them.
    waits: BTreeMap<ServiceName, Waits>,
    /// Of which it is being asked whether they are lost.
    lost: Turns<ServiceName>,
}

struct Waits {
    which: Which,
    since: Instant,
    doubt: Doubt,
}

/// What a command that was about to begin does.
enum Then {
    Begins,
    Waits,
    /// Nobody waits for it (here).
    Ends,
}

struct Running {
    which: Which,
    cancel: CancellationToken,
    result: Arc<OnceLock<(RunEnd, Vec<String>)>>,
    task: JoinHandle<()>,
}

impl Drop for Runs {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

impl Runs {
    /// None under way; `dir` is the controller's.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, running: BTreeMap::new(), waits: BTreeMap::new(), lost: Turns::default() }
    }

    /// Whether no command waits to begin.
    pub fn wait_for_nothing(&self) -> bool {
        self.waits.is_empty()
    }

    /// The host for which a service's command has waited for a while, and why, for people.
    pub fn waits_for(&self, service: &ServiceName) -> Option<(HostName, String)> {
        let waits = self.waits.get(service).filter(|w| w.since.elapsed() >= SHOWN_AFTER)?;
        let Doubt::Unknown { host } = &waits.doubt else { return None };
        let words = format!(
            "run-waits: {}, and another controller may act there: the step's command is begun when every host of the \
             service has answered (`gpudeck rollout skip {service}` goes on without it)",
            waits.doubt
        );
        Some((host.clone(), words))
    }

    /// Where the process of a service's command is noted.
    fn note(&self, service: &ServiceName) -> PathBuf {
        self.dir.join(format!("run-{service}.json"))
    }

    /// Whether no command runs.
    pub fn is_quiet(&self) -> bool {
        let is_quiet = |(service, r): (&ServiceName, &Running)| {
            r.task.is_finished() || self.waits.contains_key(service)
        };
        self.running.iter().all(is_quiet)
    }
}

/// The run that the decider waits for.
fn awaited(state: &ServiceState) -> Option<Which> {
    let (rollout, run) = state.awaited_run()?;
    Some((rollout.to, rollout.step, run.attempt))
}

/// Asks the hosts of a service until its command may begin; whether it may.
async fn may_begin(means: &Means, service: &ServiceName, which: Which) -> bool {
    loop {
        let name = service.clone();
        let hosts = means.ask(move |core| {
            core.state.services.get(&name).map(|state| hosts_of(state, &core.deck))
        });
        let Some(Some(hosts)) = hosts.await else { return false };
        let doubt = means.ask_hosts(&hosts).await.against_acting();
        let name = service.clone();
        match means.ask(move |core| core.command_may_begin(&name, which, doubt)).await {
            Some(Then::Begins) => return true,
            Some(Then::Waits) => tokio::time::sleep(ASK_AGAIN).await,
            Some(Then::Ends) | None => return false,
        }
    }
}

impl Core {
    /// What a command does now that the hosts were asked.
    fn command_may_begin(
        &mut self,
        service: &ServiceName,
        which: Which,
        doubt: Option<Doubt>,
    ) -> Then {
        let wanted = self.state.services.get(service).and_then(awaited);
        if wanted != Some(which) || self.is_elsewhere(service) {
            self.runs.waits.remove(service);
            return Then::Ends;
        }
        let is_busy = self.is_handing_over() || self.taking_over.is_some() || self.is_behind();
        match doubt {
            None if is_busy => Then::Waits,
            None => {
                self.runs.waits.remove(service);
                Then::Begins
            }
            Some(doubt) => {
                let known = self.runs.waits.get(service).filter(|w| w.which == which);
                let since = known.map_or_else(Instant::now, |w| w.since);
                self.runs.waits.insert(service.clone(), Waits { which, since, doubt });
                Then::Waits
            }
        }
    }

    /// Begins a command, once its service's hosts have said that nobody else holds them.
    pub(super) fn begin_command(&mut self, service: &ServiceName, which: Which, spec: &RunSpec) {
        let Some(dir) = self.options.deck_dir.clone() else { return };
        let order = Order {
            command: spec.command.clone(),
            timeout: spec.timeout,
            dir,
            env: self.command_env(service, which),
            note: self.runs.note(service),
        };
        let (cancel, result) = (CancellationToken::new(), Arc::new(OnceLock::new()));
        let (means, stop, over) = (Arc::clone(&self.means), cancel.clone(), Arc::clone(&result));
        let name = service.clone();
        // One that is ended to make room for this one lets go of its processes first.
        let before = self.runs.running.remove(service);
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.cancel.cancel();
                let _ = before.task.await;
            }
            let may = tokio::select! {
                may = may_begin(&means, &name, which) => may,
                () = stop.cancelled() => false,
            };
            if !may {
                return;
            }
            if let Some(ended) = run(order, stop).await {
                let _ = over.set(ended);
                let look = Input::Ask(Box::new(|core: &mut Core| core.tend_runs()));
                let _ = means.inputs.send(look).await;
            }
        });
        self.runs.running.insert(service.clone(), Running { which, cancel, result, task });
    }

    /// Ends what is not waited for any more.
    pub(super) fn end_commands(&mut self, service: &ServiceName) {
        let wanted = self.state.services.get(service).and_then(awaited);
        if let Some(running) = self.runs.running.get(service)
            && wanted != Some(running.which)
        {
            running.cancel.cancel();
            if running.task.is_finished() {
                self.runs.running.remove(service);
            }
        }
    }

    /// Another controller has the service, and runs its command again: it is ended here, also what an earlier life of
    /// this one left running.
    pub(super) fn end_command_of(&mut self, service: &ServiceName) {
        if let Some(running) = self.runs.running.get(service) {
            running.cancel.cancel();
        } else {
            self.end_left_command(service);
        }
    }

    /// Ends what an earlier life of this controller left running for a service that is another's.
    fn end_left_command(&mut self, service: &ServiceName) {
        let note = self.runs.note(service);
        self.tasks.spawn(async move { end_leftover(&note).await });
    }

    /// The same for all that were another's in the earlier life.
    pub(super) fn end_left_commands(&mut self) {
        let held = self.state.services.values().filter(|state| state.is_held_elsewhere());
        let held: Vec<ServiceName> = held.map(|state| state.service.clone()).collect();
        for service in held {
            self.end_left_command(&service);
        }
    }

    /// Tells what has ended, and what was lost with an earlier controller. Told again until it could
    /// be written down.
    pub(super) fn tend_runs(&mut self) {
        let (mut told, mut lost) = (Vec::new(), Vec::new());
        let services = &self.state.services;
        self.runs
            .waits
            .retain(|service, waits| services.get(service).and_then(awaited) == Some(waits.which));
        for (service, state) in services {
            let Some((release, step, attempt)) = awaited(state) else { continue };
            let ours = self.runs.running.get(service);
            let ours = ours.filter(|r| r.which == (release, step, attempt));
            // Looked at in this order: one that has ended without a result will not have one.
            let ended = ours.filter(|r| r.task.is_finished() && r.result.get().is_none());
            match ours.filter(|_| ended.is_none()).map(|r| r.result.get()) {
                Some(None) => {}
                Some(Some((end, output))) => {
                    let (end, output) = (end.clone(), output.clone());
                    let kind = EventKind::RunEnded { release, step, attempt, end, output };
                    told.push((service.clone(), kind));
                }
                // The next controller is the one to run it again, or the other one.
                None if self.is_handing_over() || self.not_behind().is_err() => {}
                None if self.taking_over.is_some() || self.is_elsewhere(service) => {}
                None => lost.push((service.clone(), (release, step, attempt))),
            }
        }
        for (service, which) in lost {
            self.ask_whether_lost(&service, which);
        }
        for (service, kind) in told {
            self.happened(&service, kind);
        }
    }

    /// Tells that a command is lost, once the hosts have said that no other controller runs it.
    fn ask_whether_lost(&mut self, service: &ServiceName, which: Which) {
        let Some(token) = self.runs.lost.take(service) else { return };
        let (means, service) = (Arc::clone(&self.means), service.clone());
        self.tasks.spawn(async move {
            if may_begin(&means, &service, which).await {
                let (release, step, attempt) = which;
                let kind = EventKind::RunLost { release, step, attempt };
                means.ask(move |core| core.happened(&service, kind)).await;
            }
            drop(token);
        });
    }

    /// What the command is told of the rollout.
    fn command_env(
        &self,
        service: &ServiceName,
        (number, step, attempt): Which,
    ) -> BTreeMap<String, String> {
        let state = self.state.services.get(service);
        let release = state.and_then(|s| s.releases.get(&number));
        let rollout = state.and_then(|s| s.rollout.as_ref());
        let stable = rollout.and_then(|r| r.from);
        let addresses = |of: Option<ReleaseNumber>| -> String {
            let (Some(state), Some(of)) = (state, of) else { return String::new() };
            let ready = state
                .replicas
                .iter()
                .filter(|(key, r)| key.release == of && r.phase == Phase::Ready);
            let address = |key: &ReplicaKey| {
                let first = state.releases.get(&of)?.replica(key.replica)?.ranks.first()?;
                Some(format!("{}:{}", first.address, first.port))
            };
            ready.filter_map(|(key, _)| address(key)).collect::<Vec<_>>().join(" ")
        };
        let url = state
            .zip(release)
            .and_then(|(state, r)| super::service_view::url(&self.deck, state, &r.spec));
        let deck = self.options.deck_dir.as_ref().map(|d| d.display().to_string());
        let pairs = [
            ("DECK", deck),
            ("HOME", self.home.as_ref().map(|home| home.display().to_string())),
            ("SERVICE", Some(service.to_string())),
            ("RELEASE", Some(number.to_string())),
            ("REVISION", release.map(|r| r.revision.0.clone())),
            ("STABLE", Some(stable.map(|s| s.to_string()).unwrap_or_default())),
            ("STEP", Some((step + 1).to_string())),
            ("ATTEMPT", Some(attempt.to_string())),
            ("CANARY_ADDRESSES", Some(addresses(Some(number)))),
            ("STABLE_ADDRESSES", Some(addresses(stable))),
            ("URL", Some(url.unwrap_or_default())),
            ("MODEL", release.map(|r| r.spec.model.clone())),
            ("BY", rollout.map(|r| r.by.clone())),
            ("REASON", Some(release.and_then(|r| r.reason.clone()).unwrap_or_default())),
        ];
        pairs
            .into_iter()
            .filter_map(|(name, value)| Some((format!("GPUDECK_{name}"), value?)))
            .collect()
    }
}
