//! The commands of `run` steps: begun when the decider says so, ended when it no longer waits for
//! them, told to it when they are over.
//!
//! The state is the order: while a service's rollout waits for a command that this controller did not
//! begin, whoever did is gone, and it is lost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::core::{Core, Input};
use super::run_command::{Order, run};
use crate::base::{Attempt, ReleaseNumber, ReplicaKey, ServiceName};
use crate::rollout::{EventKind, Phase, RunEnd, ServiceState};
use crate::spec::RunSpec;

/// Which run of which step's command.
type Which = (ReleaseNumber, usize, Attempt);

/// The commands under way. Dropping it kills them.
pub struct Runs {
    /// Where it is written down which processes are ours.
    dir: PathBuf,
    running: BTreeMap<ServiceName, Running>,
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
        Self { dir, running: BTreeMap::new() }
    }

    /// Whether no command runs.
    pub fn is_quiet(&self) -> bool {
        self.running.values().all(|r| r.task.is_finished())
    }
}

/// The run that the decider waits for.
fn awaited(state: &ServiceState) -> Option<Which> {
    let (rollout, run) = state.awaited_run()?;
    Some((rollout.to, rollout.step, run.attempt))
}

impl Core {
    /// Begins a command.
    pub(super) fn begin_command(&mut self, service: &ServiceName, which: Which, spec: &RunSpec) {
        let Some(dir) = self.options.deck_dir.clone() else { return };
        let order = Order {
            command: spec.command.clone(),
            timeout: spec.timeout,
            dir,
            env: self.command_env(service, which),
            note: self.runs.dir.join(format!("run-{service}.json")),
        };
        let (cancel, result) = (CancellationToken::new(), Arc::new(OnceLock::new()));
        let (inputs, stop, over) = (self.means.inputs.clone(), cancel.clone(), Arc::clone(&result));
        // One that is ended to make room for this one lets go of its processes first.
        let before = self.runs.running.remove(service);
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.cancel.cancel();
                let _ = before.task.await;
            }
            if let Some(ended) = run(order, stop).await {
                let _ = over.set(ended);
                let look = Input::Ask(Box::new(|core: &mut Core| core.tend_runs()));
                let _ = inputs.send(look).await;
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

    /// Tells what has ended, and what was lost with an earlier controller. Told again until it could
    /// be written down.
    pub(super) fn tend_runs(&mut self) {
        let mut told = Vec::new();
        for (service, state) in &self.state.services {
            let Some((release, step, attempt)) = awaited(state) else { continue };
            let ours = self.runs.running.get(service);
            match ours.filter(|r| r.which == (release, step, attempt)).map(|r| r.result.get()) {
                Some(None) => {}
                Some(Some((end, output))) => {
                    let (end, output) = (end.clone(), output.clone());
                    let kind = EventKind::RunEnded { release, step, attempt, end, output };
                    told.push((service.clone(), kind));
                }
                // The next controller is the one to run it again.
                None if self.is_handing_over() || self.not_fenced().is_err() => {}
                None => {
                    let kind = EventKind::RunLost { release, step, attempt };
                    told.push((service.clone(), kind));
                }
            }
        }
        for (service, kind) in told {
            self.happened(&service, kind);
        }
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
