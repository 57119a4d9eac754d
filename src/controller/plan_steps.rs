//! The steps of a plan in full: on which devices, why there, how long, with what capacity.

use std::collections::BTreeMap;

use super::core::Core;
use super::measured::Key;
use crate::api::hub::Hub;
use crate::api::{PlanMove, PlanPlace, PlanStep, PlanTime};
use crate::base::{DeviceId, HostName, ReplicaKey, time, wrap};
use crate::rollout::forecast::{Forecast, How, Stage, Unknown};
use crate::rollout::{Release, ReplicaPlan, ServiceState, Timings};
use crate::spec::{StepSpec, Strategy};

/// The model with its engine and the kind of devices a replica has: what measurements are kept by.
pub fn key_of(hub: &Hub, release: &Release, replica: u32) -> Key {
    match release.replica(replica) {
        Some(plan) => key_for_plan(hub, release, plan),
        None => String::new(),
    }
}

/// The same for a plan that is not (yet) one of the release's.
pub fn key_for_plan(hub: &Hub, release: &Release, plan: &ReplicaPlan) -> Key {
    key_of_model(release) + &kind_of(hub, plan)
}

/// How it begins, whatever the devices.
pub(super) fn key_of_model(release: &Release) -> Key {
    let engine = crate::engine::of(&release.spec.engine).name();
    format!("{} | {engine} | ", release.spec.model)
}

/// `2×NVIDIA H100`, `cpu`.
fn kind_of(hub: &Hub, plan: &ReplicaPlan) -> String {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    hub.with(|s| {
        for rank in &plan.ranks {
            let sample = s.hosts.get(&rank.host).and_then(|h| h.sample.as_ref());
            for device in &rank.devices {
                let gpu = sample.and_then(|s| s.gpus.list().iter().find_map(|g| g.part(device)));
                let name = match (device, gpu) {
                    (DeviceId::Cpu, _) => "cpu".to_owned(),
                    (_, Some(gpu)) => gpu.name.to_owned(),
                    (_, None) => "unknown GPU".to_owned(),
                };
                *names.entry(name).or_default() += 1;
            }
        }
    });
    let parts: Vec<String> = names
        .into_iter()
        .map(|(name, n)| if name == "cpu" { name } else { format!("{n}×{name}") })
        .collect();
    parts.join(" + ")
}

/// Devices by their index on the host: `GPU 0-3`.
pub fn devices_text(hub: &Hub, host: &HostName, devices: &[DeviceId]) -> String {
    if devices == [DeviceId::Cpu] {
        return "cpu".to_owned();
    }
    let labels: Vec<String> = hub.with(|s| {
        let sample = s.hosts.get(host).and_then(|h| h.sample.as_ref());
        let gpus = sample.map(|s| s.gpus.list()).unwrap_or_default();
        gpus.iter()
            .flat_map(|g| devices.iter().filter_map(|d| g.part(d)))
            .map(|part| part.label)
            .collect()
    });
    let mut words = vec![wrap::gpus(&labels)];
    let lost = devices.len().saturating_sub(labels.len());
    if lost > 0 {
        words.push(format!("{lost} GPU{} not seen now", if lost == 1 { "" } else { "s" }));
    }
    words.retain(|part| !part.is_empty());
    words.join(", ")
}

/// Where the ranks of a replica are.
pub fn places(hub: &Hub, plan: &ReplicaPlan) -> Vec<PlanPlace> {
    plan.ranks
        .iter()
        .map(|rank| PlanPlace {
            host: rank.host.clone(),
            devices: rank.devices.clone(),
            devices_text: devices_text(hub, &rank.host, &rank.devices),
        })
        .collect()
}

/// What is known of the times and the throughput of a rollout.
pub struct Known {
    /// For the forecast.
    pub timings: Timings,
    /// Combinations of which no load was ever measured.
    unmeasured: Vec<Key>,
    /// Tokens a second of a replica, the lower one of old and new.
    tokens_per_s: Option<f64>,
    /// Loads that take longer than the healthy deadline allows.
    pub warnings: Vec<String>,
}

/// Looks up what was measured of this release and of the one that is served.
pub fn known(core: &Core, state: &ServiceState, release: &Release) -> Known {
    let indexes = 0..u32::try_from(release.replicas.len()).unwrap_or(0);
    let keys: BTreeMap<ReplicaKey, Key> = indexes
        .map(|replica| {
            let key = ReplicaKey { release: release.number, replica };
            (key, key_of(&core.hub, release, replica))
        })
        // What runs on is not loaded.
        .filter(|(key, _)| !release.keeps.contains_key(key))
        .collect();
    let old = state
        .replicas
        .keys()
        .find_map(|k| Some(key_of(&core.hub, state.releases.get(&k.release)?, k.replica)));
    let lender = release.borrowing.as_ref().and_then(|borrowing| {
        let lending = core.state.services.get(&borrowing.lender)?.releases.get(&borrowing.of)?;
        Some(key_of(&core.hub, lending, borrowing.replicas.first()?.replica))
    });
    let timings = core.measured.timings(release, &keys, old.as_ref(), lender.as_ref());
    let mut distinct: Vec<&Key> = keys.values().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let deadline = release.spec.rollout.healthy_deadline;
    let mut warnings = Vec::new();
    for key in &distinct {
        if let Some(load) = core.measured.load(key).filter(|l| *l >= deadline) {
            warnings.push(format!(
                "loading took {} when measured ({key}), longer than healthy_deadline = {}: the rollout would be taken back; set healthy_deadline = \"{}m\"",
                time::short(load),
                time::short(deadline),
                load.as_secs() / 60 * 2 + 2,
            ));
        }
    }
    let stop = timings.stop.unwrap_or_default();
    if let Some(limit) = release.spec.rollout.progress_limit().filter(|limit| stop >= *limit) {
        warnings.push(format!(
            "stopping a replica took {} when measured, longer than progress_deadline = {}: the rollout would be taken back; set progress_deadline = \"{}m\"",
            time::short(stop),
            time::short(limit),
            stop.as_secs() / 60 * 2 + 2,
        ));
    }
    let rates = distinct.iter().copied().chain(old.as_ref()).map(|k| core.measured.tokens_per_s(k));
    let tokens_per_s = rates.reduce(|a, b| Some(a?.min(b?))).flatten();
    let unmeasured =
        distinct.into_iter().filter(|k| core.measured.load(k).is_none()).cloned().collect();
    Known { timings, unmeasured, tokens_per_s, warnings }
}

impl Known {
    fn unknown(&self, unknown: &Unknown, release: &Release) -> Vec<String> {
        let mut out = Vec::new();
        if unknown.loads > 0 {
            let what = self.unmeasured.join("; ");
            out.push(format!("{} never measured to load: {what}", count(unknown.loads)));
        }
        if unknown.drains > 0 {
            let most = time::short(release.spec.rollout.drain_deadline);
            out.push(format!(
                "{} never measured to drain: at most {most} each",
                count(unknown.drains)
            ));
        }
        if unknown.commands > 0 {
            out.push("the commands of its `run` steps".to_owned());
        }
        if unknown.person {
            out.push("a person's approval".to_owned());
        }
        out
    }
}

fn count(n: u32) -> String {
    if n == 1 { "1 replica".to_owned() } else { format!("{n} replicas") }
}

/// The steps, and the time of all together.
pub fn steps(
    core: &Core,
    state: &ServiceState,
    release: &Release,
    forecast: &Forecast,
    known: &Known,
) -> (Vec<PlanStep>, PlanTime) {
    let lowest = forecast.lowest_stage();
    let journey = release.spec.rollout.journey();
    let specs = journey.iter().map(Some).chain([None]);
    // Where the steps are skipped there is just the last stretch.
    let skipped = (journey.len() + 1).saturating_sub(forecast.stages.len().max(1));
    let steps: Vec<PlanStep> = forecast
        .stages
        .iter()
        .zip(specs.skip(skipped))
        .enumerate()
        .map(|(index, (stage, spec))| PlanStep {
            title: stage.title.clone(),
            gate: spec.and_then(|s| gate(s, release)).map(|gate| match &stage.inconclusive {
                Some(why) => format!("{gate}; foreseen: inconclusive, a person decides ({why})"),
                None => gate,
            }),
            moves: moves(core, state, release, stage),
            new_weight_percent: stage.new_weight_percent,
            ready_after: stage.ready_after,
            idle_after: stage.idle_after,
            lowest_ready: stage.lowest_ready,
            lowest_serving: stage.lowest_serving,
            lowest: lowest == Some(index),
            tokens_per_s_after: known
                .tokens_per_s
                .map(|t| t * f64::from(stage.ready_after.saturating_sub(stage.idle_after))),
            tokens_per_s_lowest: known.tokens_per_s.map(|t| t * f64::from(stage.lowest_serving)),
            time: PlanTime {
                known_ms: stage.took_ms,
                unknown: known.unknown(&stage.unknown, release),
            },
        })
        .collect();
    let sum = forecast.stages.iter().fold(Unknown::default(), |sum, stage| Unknown {
        loads: sum.loads + stage.unknown.loads,
        drains: sum.drains + stage.unknown.drains,
        commands: sum.commands + stage.unknown.commands,
        person: sum.person || stage.unknown.person,
    });
    let known_ms = forecast.stages.iter().map(|s| s.took_ms).sum();
    (steps, PlanTime { known_ms, unknown: known.unknown(&sum, release) })
}

fn gate(step: &StepSpec, release: &Release) -> Option<String> {
    match step {
        StepSpec::Bake(d) => Some(format!("{} pass and nothing fails", time::short(*d))),
        StepSpec::Analyse(name) => {
            let spec = release.spec.analysis.get(name).cloned().unwrap_or_default();
            Some(spec.gates(release.spec.device).join("; "))
        }
        StepSpec::Approve(true) => Some("a person promotes".to_owned()),
        StepSpec::Run(run) => {
            Some(format!("the command ends with exit code 0 within {}", time::short(run.timeout)))
        }
        _ => None,
    }
}

fn moves(core: &Core, state: &ServiceState, release: &Release, stage: &Stage) -> Vec<PlanMove> {
    let plan = |key: ReplicaKey| {
        let of = if key.release == release.number {
            Some(release)
        } else {
            state.releases.get(&key.release).map(|known| &**known)
        };
        of.and_then(|r| r.replica(key.replica))
    };
    let names = |keys: &[ReplicaKey]| {
        keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    };
    // The old ones are gone by then: there is nothing to be beside.
    let recreates =
        !release.keeps_any() && release.spec.rollout.effective_strategy() == Strategy::Recreate;
    let lent = release.borrowing.iter().flat_map(|b| &b.replicas);
    let borrows = |key| plan(key).is_some_and(|p| lent.clone().any(|l| l.plan.conflicts_with(p)));
    stage
        .moves
        .iter()
        .map(|m| PlanMove {
            replica: m.replica,
            verb: m.verb,
            ranks: plan(m.replica.key()).map(|p| places(&core.hub, p)).unwrap_or_default(),
            how: match &m.how {
                How::Beside if borrows(m.replica.key()) => {
                    "surge: beside the old ones, on what is borrowed".to_owned()
                }
                How::Beside if state.stable.is_none() || recreates => "on free devices".to_owned(),
                How::Beside => "surge: beside the old ones, on spare devices".to_owned(),
                How::InPlaceOf { replicas } => format!("in place of {}", names(replicas)),
                How::GoesFirst => "recreate: all old ones go first".to_owned(),
                How::MakesWay { for_replica } => format!("makes way for {for_replica}"),
                How::MakesRoom => "makes room: no more may live at a time".to_owned(),
                How::Surplus => "the new release is complete".to_owned(),
            },
            at_ms: m.at_ms,
            ready_after: m.ready_after,
        })
        .collect()
}
