//! A draft is placed on the hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::core::Core;
use super::super::world;
use super::{Draft, invalid, on_hosts};
use crate::api::{ApiError, ErrorKind, HostView};
use crate::base::{Bytes, Hint, HostName};
use crate::engine;
use crate::placement::{self, Demand, ShapeNeed};
use crate::rollout::{RolloutKind, ServiceState};
use crate::spec::{DeviceKind, ServiceSpec, Strategy};

/// Blue-green needs places for a whole second set.
pub(in crate::controller) fn beside(
    state: &ServiceState,
    spec: &ServiceSpec,
    kind: RolloutKind,
) -> bool {
    spec.rollout.effective_strategy() == Strategy::BlueGreen
        && kind == RolloutKind::Apply
        && state.stable.is_some()
}

/// Places a draft on what nobody has, the present release of the service included.
pub(super) fn place_beside(core: &Core, draft: &Draft) -> Result<placement::Placement, ApiError> {
    let hosts = || core.capacities(None);
    let replicas = draft.spec.replicas.get();
    let refused = match place_draft(core, draft, replicas, hosts(), Vec::new()) {
        Ok(placed) => return Ok(placed),
        Err(error) => error,
    };
    // In place it may fit. If not, blue-green is not what is in the way.
    let in_place = place(core, draft)?;
    let fitting =
        (1..replicas).rev().find(|n| place_draft(core, draft, *n, hosts(), Vec::new()).is_ok());
    let fitting = fitting.unwrap_or(0);
    let each = in_place.replicas.first().map_or(1, |r| r.devices.len());
    let missing = usize::try_from(replicas - fitting).unwrap_or(usize::MAX).saturating_mul(each);
    let what = match draft.spec.device {
        DeviceKind::Gpu if missing == 1 => "1 more GPU".to_owned(),
        DeviceKind::Gpu => format!("{missing} more GPUs"),
        DeviceKind::Cpu => "more host memory".to_owned(),
    };
    Err(ApiError {
        message: format!(
            "blue-green needs room for a whole second set beside the old one, and {fitting} of \
             {replicas} replicas fit: {}",
            refused.message
        ),
        hint: Some(format!("set strategy = \"rolling\" (it fits in place), or free {what}")),
        ..refused
    })
}

pub(super) fn place(core: &Core, draft: &Draft) -> Result<placement::Placement, ApiError> {
    let hosts = core.capacities(Some(&draft.service));
    let reuse = world::reusable(&core.state, &draft.service);
    place_draft(core, draft, draft.spec.replicas.get(), hosts, reuse)
}

/// Places so many replicas of a draft on these hosts, where those of `reuse` may give way.
pub(in crate::controller) fn place_draft(
    core: &Core,
    draft: &Draft,
    replicas: u32,
    hosts: Vec<placement::HostCapacity>,
    reuse: Vec<placement::Reuse>,
) -> Result<placement::Placement, ApiError> {
    let mut demand = demand(core, draft, replicas, &hosts)?;
    demand.reuse = reuse;
    place_on(core, hosts, &demand)
}

/// Without any host it would be asked how much memory a service needs, which nobody can tell before there is one.
pub(super) fn has_hosts(core: &Core, draft: &Draft) -> Result<(), ApiError> {
    let is_known = draft.facts.is_some() || draft.spec.memory.is_some();
    if is_known || !core.deck.hosts.is_empty() {
        return Ok(());
    }
    Err(ApiError {
        kind: ErrorKind::Unplaceable,
        message: format!("{} has no place: the deck has no hosts", draft.service),
        hint: Some("add one to deck.toml: [hosts.NAME]".to_owned()),
    })
}

/// What so many replicas of a draft want on hosts of these kinds, whatever runs now.
pub(in crate::controller) fn demand(
    core: &Core,
    draft: &Draft,
    replicas: u32,
    hosts: &[placement::HostCapacity],
) -> Result<Demand, ApiError> {
    let spec = &draft.spec;
    if hosts.is_empty() {
        has_hosts(core, draft)?;
    }
    let engine = engine::of(&spec.engine);
    let engine::Shapes { good: mut tried, refused } =
        engine::shapes(&*engine, spec, draft.facts.as_ref());
    if let (true, Some((_, why))) = (tried.is_empty(), refused.first()) {
        return Err(invalid(why));
    }
    let refused_shapes =
        refused.iter().map(|(shape, why)| format!("{}: {why}", placement::not_as(shape))).collect();
    let refused_on = core.without_refused(&*engine, spec, draft.facts.as_ref(), &mut tried, hosts);
    let needs = tried.into_iter().filter_map(|shape| {
        let estimated =
            || Some(core.memory_of(&*engine, spec, draft.facts.as_ref()?, shape, hosts));
        let memory_per_device = match (spec.memory.or_else(estimated), spec.device) {
            (Some(memory), _) => memory,
            (None, DeviceKind::Cpu) => Bytes::ZERO,
            (None, DeviceKind::Gpu) => return None,
        };
        Some(ShapeNeed { shape, memory_per_device })
    });
    let shapes: Vec<ShapeNeed> = needs.collect();
    if shapes.is_empty() {
        return Err(ApiError {
            kind: ErrorKind::Invalid,
            message: format!("how much GPU memory {} needs is not known", draft.service),
            hint: Some(format!(
                "write memory = \"40GiB\" (per GPU) into services/{}.toml",
                draft.service
            )),
        });
    }
    Ok(Demand {
        service: draft.service.clone(),
        replicas,
        indexes: Vec::new(),
        shapes,
        refused_shapes,
        device: spec.device,
        memory_share: engine.memory_share(spec),
        refused_on,
        // What a person wrote is what they found out.
        within_share: spec.memory.is_none(),
        whole_gpus: engine.needs_whole_gpus(spec).map(str::to_owned),
        placement: spec.placement.clone(),
        reuse: Vec::new(),
        staying: Vec::new(),
        weights: draft.facts.as_ref().map_or(Bytes::ZERO, |f| f.weight_bytes),
        weights_on: draft.looked_at.clone(),
        lacking: lacking(core, draft),
    })
}

/// The hosts that lack something without which no rank of the draft can run, each with what that is.
pub(super) fn lacking(core: &Core, draft: &Draft) -> BTreeMap<HostName, String> {
    let mut lacking = draft.lacking.clone();
    if on_hosts::asks_container_engine(&draft.spec) {
        core.hub.with(|snapshot| {
            let unasked = |host: &&HostView| !draft.with_container_engine.contains(&host.name);
            for host in snapshot.hosts.values().filter(|h| world::is_up(h)).filter(unasked) {
                // One that is there and does not answer just now is told of as one without a version.
                if host.facts.as_ref().is_some_and(|facts| facts.container_engine.is_none()) {
                    let why = on_hosts::no_container_engine();
                    lacking.entry(host.name.clone()).or_insert(why);
                }
            }
        });
    }
    lacking
}

/// How long placing one service may hold up the loop, and how often it may try for each shape.
const PLACING: Duration = Duration::from_millis(200);

const PLACING_STEPS: u64 = 20_000;

/// Places a draft on these hosts.
pub(in crate::controller) fn place_on(
    core: &Core,
    hosts: Vec<placement::HostCapacity>,
    demand: &Demand,
) -> Result<placement::Placement, ApiError> {
    let began = std::time::Instant::now();
    let mut budget = placement::Budget {
        used: &mut || began.elapsed().as_secs_f64() / PLACING.as_secs_f64(),
        steps: PLACING_STEPS,
    };
    placement::place(&placement::World { hosts }, demand, &mut budget).map_err(|refusal| {
        let mut message = refusal.to_string();
        let down = core.hub.with(|s| world::why_down(s.hosts.values()));
        for reason in refusal.reasons.iter().chain(&down).take(20) {
            message.push_str("\n  · ");
            message.push_str(reason);
        }
        ApiError { kind: ErrorKind::Unplaceable, message, hint: refusal.hint() }
    })
}
