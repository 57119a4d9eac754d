//! A placement is made a release: ports, command lines, and the journey to it.

use super::super::core::{Core, now};
use super::super::gateways::Gateways;
use super::super::{plan_steps, service_view, world};
use super::keep::Kept;
use super::{Draft, Laid, invalid, is_served};
use crate::api::view::{PlannedRank, PlannedReplica};
use crate::api::{ApiError, ErrorKind, Forecast};
use crate::base::{
    DeviceId, Hint, HostName, ReleaseId, ReleaseNumber, ReplicaKey, Revision, ServiceName, wrap,
};
use crate::engine::{self, EngineCommand, RankContext};
use crate::placement;
use crate::rollout::{
    Borrowing, RankPlan, Release, ReplicaPlan, RolloutKind, ServiceState, forecast,
};
use crate::spec::RuntimeSpec;

/// A placement made a release, and its journey foreseen.
pub(in crate::controller) fn lay_out(
    core: &Core,
    draft: &Draft,
    kind: RolloutKind,
    placed: placement::Placement,
    borrowing: Option<Borrowing>,
) -> Result<Laid, ApiError> {
    lay_beside(core, draft, kind, placed, &Kept::new(), borrowing)
}

/// The number of the release that would be made of a draft.
pub(super) fn next_number(core: &Core, service: &ServiceName) -> ReleaseNumber {
    let next = || {
        let in_git = core.repo.as_ref().and_then(|repo| repo.next_release().ok());
        service_view::next_release(&core.state, in_git)
    };
    core.beginnings.number_of(service).unwrap_or_else(next)
}

/// [`lay_out`] with replicas that run on: what was placed is what they lack.
pub(super) fn lay_beside(
    core: &Core,
    draft: &Draft,
    kind: RolloutKind,
    placed: placement::Placement,
    kept: &Kept,
    borrowing: Option<Borrowing>,
) -> Result<Laid, ApiError> {
    let (service, spec) = (&draft.service, &draft.spec);
    let empty = ServiceState::new(service.clone());
    let state = core.state.services.get(service).unwrap_or(&empty);
    let number = next_number(core, service);
    let mut ports = PortGiver::new(core);
    for lent in borrowing.iter().flat_map(|b| &b.replicas) {
        ports.occupy(lent.back.as_ref());
    }
    let mut replicas = Vec::new();
    let mut planned_replicas = Vec::new();
    let mut placed_replicas = placed.replicas.iter();
    for index in 0.. {
        if let Some((key, plan)) = kept.get(&index) {
            let name = state.replicas.get(key).map_or(*key, |r| r.id(*key).key());
            planned_replicas.push(running_replica(core, index, name, plan));
            replicas.push(plan.clone());
            continue;
        }
        let Some(replica) = placed_replicas.next() else { break };
        let plan = replica_plan(core, draft, number, index, replica, &mut ports)?;
        let argv = plan.ranks.first().map(|r| r.argv.as_slice()).unwrap_or_default();
        planned_replicas.push(planned_replica(core, index, replica, argv));
        replicas.push(plan);
    }
    let release = Release {
        id: ReleaseId(uuid::Uuid::now_v7()),
        number,
        deck: core.deck.id,
        service: service.clone(),
        revision: draft.revision.clone().unwrap_or(Revision(String::new())),
        spec: spec.clone(),
        replicas,
        gateway: Gateways::only_one(&core.deck, state, spec),
        borrowing: borrowing.map(Box::new),
        keeps: kept
            .iter()
            .map(|(index, (old, _))| (ReplicaKey { release: number, replica: *index }, *old))
            .collect(),
        created: now(),
        author: String::new(),
        reason: None,
    };
    let known = plan_steps::known(core, state, &release);
    let forecast =
        if is_served(state, spec) {
            Forecast::default()
        } else {
            forecast::forecast_with(state, &release, kind, &known.timings).map_err(|e| {
                ApiError { kind: ErrorKind::Unplaceable, message: e.to_string(), hint: e.hint() }
            })?
        };
    let reasons = placed.reasons;
    Ok(Laid { release, replicas: planned_replicas, reasons, forecast, known })
}

/// Where and how a placed replica runs.
pub(in crate::controller) fn replica_plan(
    core: &Core,
    draft: &Draft,
    release: ReleaseNumber,
    index: u32,
    replica: &placement::PlacedReplica,
    ports: &mut PortGiver<'_>,
) -> Result<ReplicaPlan, ApiError> {
    let address = world::engine_address(&core.deck, &replica.host);
    let port = ports.next(&replica.host, &address)?;
    let listen = core.deck.hosts.get(&replica.host).and_then(|h| h.engine_listen);
    let command = command_for(core, draft, (release, index), replica, port)?;
    let rank = RankPlan {
        host: replica.host.clone(),
        devices: replica.devices.clone(),
        memory_per_device: replica.memory_per_device,
        address,
        listen: listen.filter(|a| !a.is_unspecified()).map(|a| a.to_string()),
        port,
        argv: command.argv,
        env: command.env,
        files: command.files,
    };
    Ok(ReplicaPlan::new(vec![rank], replica.shape))
}

/// The command of a placed replica.
pub(super) fn command_for(
    core: &Core,
    draft: &Draft,
    (release, index): (ReleaseNumber, u32),
    replica: &placement::PlacedReplica,
    port: u16,
) -> Result<EngineCommand, ApiError> {
    let spec = &draft.spec;
    let listen = core.deck.hosts.get(&replica.host).and_then(|h| h.engine_listen);
    let bound = listen.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
    let order = order_of(core, &replica.host, &replica.devices);
    let context = RankContext {
        service: &draft.service,
        spec,
        facts: draft.facts.as_ref(),
        shape: replica.shape,
        address: &bound,
        port,
        devices: &replica.devices,
        order: order.as_deref(),
        release,
        replica: index,
        rank: 0,
        cores: None,
        docker: matches!(spec.runtime, RuntimeSpec::Docker(_)),
    };
    engine::of(&spec.engine).command(&context).map_err(|e| invalid(&e))
}

/// The place of each of these GPUs among them as the host's driver counts; none where one of them is not seen.
pub(super) fn order_of(core: &Core, host: &HostName, devices: &[DeviceId]) -> Option<Vec<usize>> {
    let indices = core.hub.with(|s| {
        let gpus = s.hosts.get(host)?.sample.as_ref()?.gpus.list();
        let index = |device: &DeviceId| Some(gpus.iter().find(|g| g.device() == *device)?.index);
        devices.iter().map(index).collect::<Option<Vec<u32>>>()
    })?;
    let before = |index: &u32| indices.iter().filter(|other| *other < index).count();
    Some(indices.iter().map(before).collect())
}

/// One that runs on, as it runs.
fn running_replica(
    core: &Core,
    index: u32,
    name: ReplicaKey,
    plan: &ReplicaPlan,
) -> PlannedReplica {
    let ranks = plan.ranks.iter().map(|rank| PlannedRank {
        host: rank.host.clone(),
        devices: rank.devices.clone(),
        devices_text: plan_steps::devices_text(&core.hub, &rank.host, &rank.devices),
        memory_per_device: rank.memory_per_device,
        free_per_device: None,
        argv: rank.argv.clone(),
    });
    PlannedReplica {
        replica: index,
        in_place_of: Vec::new(),
        shape: plan.shape,
        runs_on_as: Some(name),
        ranks: ranks.collect(),
    }
}

fn planned_replica(
    core: &Core,
    index: u32,
    replica: &placement::PlacedReplica,
    argv: &[String],
) -> PlannedReplica {
    let (text, free) = core.hub.with(|s| {
        let sample = s.hosts.get(&replica.host).and_then(|h| h.sample.as_ref());
        let gpus = sample.map(|s| s.gpus.list()).unwrap_or_default();
        let parts = gpus.iter().flat_map(|g| replica.devices.iter().filter_map(|d| g.part(d)));
        let mine: Vec<_> = parts.collect();
        if replica.devices == [DeviceId::Cpu] {
            return ("cpu".to_owned(), sample.and_then(|s| s.memory).map(|m| m.free()));
        }
        let labels: Vec<String> = mine.iter().map(|g| g.label.clone()).collect();
        (wrap::gpus(&labels), mine.iter().filter_map(|g| g.memory).map(|m| m.free()).min())
    });
    PlannedReplica {
        replica: index,
        in_place_of: replica.in_place_of.clone(),
        shape: (replica.shape.groups() > 1).then_some(replica.shape),
        runs_on_as: None,
        ranks: vec![PlannedRank {
            host: replica.host.clone(),
            devices: replica.devices.clone(),
            devices_text: text,
            memory_per_device: replica.memory_per_device,
            free_per_device: free,
            argv: argv.to_vec(),
        }],
    }
}

/// Gives out engine ports that no living release has, no rank that none of them wants, and no program that is not ours.
pub(in crate::controller) struct PortGiver<'a> {
    core: &'a Core,
    used: std::collections::BTreeSet<(String, u16)>,
}

impl<'a> PortGiver<'a> {
    pub(in crate::controller) fn new(core: &'a Core) -> Self {
        Self { core, used: world::used_ports(&core.state) }
    }

    /// These ports are spoken for.
    fn occupy(&mut self, plan: Option<&ReplicaPlan>) {
        let ranks = plan.into_iter().flat_map(|p| &p.ranks);
        self.used.extend(ranks.map(|rank| (rank.address.clone(), rank.port)));
    }

    /// A port of the host that nothing has, and nobody else is given from now on.
    pub(in crate::controller) fn next(
        &mut self,
        host: &HostName,
        address: &str,
    ) -> Result<u16, ApiError> {
        let first = world::first_port(&self.core.deck, host);
        let listening = self.core.listening_ports.get(host);
        let port = (first..first.saturating_add(999))
            .find(|port| {
                let is_foreign = self.core.foreign_ports.contains(&(host.clone(), *port))
                    || listening.is_some_and(|listening| listening.contains(port));
                let is_stray = self.core.strays.hold(host, *port);
                !is_foreign && !is_stray && !self.used.contains(&(address.to_owned(), *port))
            })
            .ok_or_else(|| ApiError {
                kind: ErrorKind::Unplaceable,
                message: format!("all engine ports of {host} from {first} on are taken"),
                hint: Some("set `first_engine_port` of the host in deck.toml".to_owned()),
            })?;
        self.used.insert((address.to_owned(), port));
        Ok(port)
    }
}
