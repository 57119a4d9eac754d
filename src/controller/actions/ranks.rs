//! Starting and stopping one rank.

use std::time::Duration;

use super::Means;
use super::runtimes::acting_runtime;
use crate::base::{Bytes, DeviceId, Hint, HostName, RankId};
use crate::controller::core::{Core, Input};
use crate::fleet::LinkError;
use crate::rollout::{EventKind, RankPlan, StartRefusal};
use crate::runtime::RuntimeError;
use crate::spec::RuntimeSpec;
use crate::wire::{DeviceNeed, RankStart, Refusal, is_same_holder};

/// Log kept of each rank.
const LOG_LIMIT: Bytes = Bytes::mib(16);

/// Starts a rank; what came of it.
pub(super) async fn start_rank(
    means: &Means,
    spec: &RuntimeSpec,
    key_file: Option<String>,
    rank: &RankId,
    plan: &RankPlan,
    is_new: bool,
) -> EventKind {
    let mut start = start_of(key_file, rank, plan);
    for need in &mut start.needs {
        need.healthy = is_new;
    }
    let result = match acting_runtime(means, spec, &rank.service, &plan.host).await {
        Ok(runtime) => runtime.start(&start).await,
        Err(error) => Err(RuntimeError::Link(error)),
    };
    match result {
        Ok(()) => EventKind::RankRunning { rank: rank.clone() },
        Err(error) => {
            if let RuntimeError::Link(LinkError::Refused {
                refusal: Refusal::PortInUse { port, .. },
                ..
            }) = &error
            {
                let taken = (plan.host.clone(), *port);
                let note = move |core: &mut Core| {
                    core.foreign_ports.insert(taken);
                };
                // Heard before the refusal: the next plan leaves the port out.
                let _ = means.inputs.send(Input::Ask(Box::new(note))).await;
            }
            let why = in_words(means.claims.holder(), &error);
            let refusal = if error.is_transient() {
                StartRefusal::NotYet { why }
            } else {
                StartRefusal::Never { why }
            };
            EventKind::RankRefused { rank: rank.clone(), refusal }
        }
    }
}

/// Why a rank was not started, with what to do where a person can do something at once.
fn in_words(own: &str, error: &RuntimeError) -> String {
    let RuntimeError::Link(LinkError::Refused { host, refusal }) = error else {
        return error.to_string();
    };
    match refusal {
        Refusal::PortInUse { .. } => {
            let hint = error.hint().map(|hint| format!(" → {hint}")).unwrap_or_default();
            format!("{error}{hint}")
        }
        // Nobody else has it: the claim that this was asked with is just being replaced by a newer one of ours.
        Refusal::Held { holder, .. } if is_same_holder(holder, own) => {
            format!("{host} is just being claimed by this controller")
        }
        _ => error.to_string(),
    }
}

/// How a rank is started.
pub(in crate::controller) fn start_of(
    key_file: Option<String>,
    rank: &RankId,
    plan: &RankPlan,
) -> RankStart {
    RankStart {
        rank: rank.clone(),
        argv: plan.argv.clone(),
        env: plan.env.clone(),
        needs: needs(plan),
        ports: vec![plan.port],
        files: plan.files.clone(),
        key_file,
        log_limit: LOG_LIMIT,
    }
}

fn needs(plan: &RankPlan) -> Vec<DeviceNeed> {
    plan.devices
        .iter()
        .filter(|d| **d != DeviceId::Cpu || plan.memory_per_device > Bytes::ZERO)
        .map(|device| DeviceNeed {
            device: device.clone(),
            memory: plan.memory_per_device,
            healthy: false,
        })
        .collect()
}

/// How a rank is stopped.
pub(super) struct Stop<'a> {
    /// Where.
    pub host: &'a HostName,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Its log stays on the host, among those of ranks that ended by themselves.
    pub keep_log: bool,
}

/// Stops a rank, however long its host is away; how it ended.
pub(super) async fn stop_rank(
    means: &Means,
    spec: &RuntimeSpec,
    rank: &RankId,
    Stop { host, grace, keep_log }: Stop<'_>,
) -> String {
    let mut pause = Duration::from_millis(500);
    loop {
        let result = match acting_runtime(means, spec, &rank.service, host).await {
            Ok(runtime) => match runtime.stop(rank, grace).await {
                // Why it never answered stands in its log; the next starts there see to it that not too many are kept.
                Ok(()) if keep_log => Ok(()),
                Ok(()) => runtime.remove(rank).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(RuntimeError::Link(error)),
        };
        match result {
            Ok(()) => return "stopped".to_owned(),
            // Whoever took the host out of the deck has said that it is gone, and what ran there with it.
            Err(_) if means.fleet.link(host).is_none() => {
                return format!("{host} is not in the deck any more");
            }
            Err(error) => {
                tracing::warn!(%rank, %host, %error, "a rank could not be stopped yet");
                // That the hosts are another controller's is said once, for the whole deck.
                if !is_held(&error) {
                    let words = format!("{rank} on {host} could not be stopped yet: {error}");
                    let say = Input::Say { service: rank.service.clone(), words };
                    let _ = means.inputs.send(say).await;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(15));
    }
}

fn is_held(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Link(LinkError::Refused { refusal: Refusal::Held { .. }, .. }))
}
