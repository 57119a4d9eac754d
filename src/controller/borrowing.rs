//! Borrowing from a service of lower priority: which of its replicas would give a rollout the room it
//! lacks, where they come back, and telling both services what is due. The rules are in
//! `rollout::lending`.

use std::collections::{BTreeMap, BTreeSet};

use super::core::Core;
use super::planning::{self, Draft, Laid, PortGiver};
use super::{maintenance, plan_steps, world};
use crate::api::{ApiError, ErrorKind, PlanBorrow};
use crate::base::{DeviceId, HostName, ReplicaKey, ServiceName, text};
use crate::placement::{HostCapacity, ShapeNeed};
use crate::rollout::offers::{self, Offer};
use crate::rollout::{
    Borrowing, LentReplica, Phase, Release, ReplicaPlan, RolloutKind, ServiceState, lending,
};
use crate::spec::{DeviceKind, ServiceSpec};

/// Most choices of replicas that are tried.
const MOST_TRIES: usize = 64;

impl Core {
    /// Tells services what is due between them: what is lent, given over, and comes back.
    pub(super) fn tend_loans(&mut self) {
        for (service, kind) in lending::due(&self.state.services) {
            self.happened(&service, kind);
        }
    }

    /// The service that a spec borrows from, with the spec of the release that it serves.
    pub(super) fn lender_of(&self, spec: &ServiceSpec) -> Option<(ServiceName, ServiceSpec)> {
        let name = spec.rollout.borrow.as_ref()?;
        let state = self.state.services.get(name)?;
        let release = state.releases.get(&state.stable?)?;
        Some((name.clone(), release.spec.clone()))
    }
}

/// A plan that borrows, where that makes a rollout possible or keeps more of it ready than `plain`.
///
/// # Errors
/// A spec that names a service that it cannot borrow from.
pub(super) fn better(
    core: &Core,
    draft: &Draft,
    state: &ServiceState,
    kind: RolloutKind,
    plain: &Result<Laid, ApiError>,
) -> Result<Option<Laid>, ApiError> {
    let Some(name) = &draft.spec.rollout.borrow else { return Ok(None) };
    check(core, draft, name)?;
    let Some(from) = state.stable else { return Ok(None) };
    let least = state.wanted(from).min(draft.spec.replicas.get());
    let lowest =
        plain.as_ref().ok().filter(|l| !l.forecast.outage).map(|l| l.forecast.lowest_ready);
    if lowest.is_some_and(|lowest| lowest >= least) {
        return Ok(None);
    }
    let (Some(lender), Some(lenders)) = (core.state.services.get(name), draft.lender.as_deref())
    else {
        return Ok(None);
    };
    let Some(release) = lender.stable.and_then(|n| lender.releases.get(&n)) else {
        return Ok(None);
    };
    let there = lender
        .replicas
        .iter()
        .filter(|(key, r)| key.release == release.number && r.phase == Phase::Ready)
        .filter_map(|(key, _)| Some(offer(key.replica, release.replica(key.replica)?)));
    let offers: Vec<Offer> = there.collect();
    let most = usize::try_from(lender.can_lend()).unwrap_or(usize::MAX);
    let hosts = core.capacities(Some(&draft.service));
    let shapes = planning::demand(core, draft, 1, &hosts)?.shapes;
    let needed = shapes.iter().map(ShapeNeed::devices).min().unwrap_or(1);
    let choices = offers::choices(&offers, &free(&hosts), needed, most);
    for chosen in choices.into_iter().take(MOST_TRIES) {
        let Some(laid) = with(core, draft, (lenders, release), &chosen, state, kind) else {
            continue;
        };
        let helps = lowest.is_none_or(|lowest| laid.forecast.lowest_ready > lowest);
        if helps && !laid.forecast.outage {
            return Ok(Some(laid));
        }
    }
    Ok(None)
}

/// What could be borrowed when its lender is not changing itself is a way, too.
pub(super) fn or_later(core: &Core, spec: &ServiceSpec, error: ApiError) -> ApiError {
    let lender = spec.rollout.borrow.as_ref();
    let busy = lender.filter(|name| {
        core.state.services.get(*name).is_some_and(|state| state.active_rollout().is_some())
    });
    let Some(lender) = busy else { return error };
    let way = format!(
        "{lender}, from which it may borrow, is being rolled out itself and lends nothing: try again when that has ended"
    );
    ApiError {
        hint: Some(error.hint.map_or_else(|| way.clone(), |hint| format!("{hint}; {way}"))),
        ..error
    }
}

fn offer(replica: u32, plan: &ReplicaPlan) -> Offer {
    let mut gpus: BTreeMap<HostName, usize> = BTreeMap::new();
    for (host, _) in plan.gpus() {
        *gpus.entry(host.clone()).or_default() += 1;
    }
    Offer { replica, gpus }
}

/// GPUs that nobody else has, by host.
fn free(hosts: &[HostCapacity]) -> BTreeMap<HostName, usize> {
    let usable = hosts.iter().filter(|h| h.up && !h.cordoned && !h.draining);
    let count = |h: &HostCapacity| {
        h.gpus.iter().filter(|g| g.reserved_by.is_none() && g.healthy.is_ok()).count()
    };
    usable.map(|h| (h.name.clone(), count(h))).collect()
}

/// Who may be borrowed from: another service of the deck, of lower priority, on GPUs.
pub(super) fn check(core: &Core, draft: &Draft, lender: &ServiceName) -> Result<(), ApiError> {
    let service = &draft.service;
    let invalid = |message: String, hint: String| ApiError {
        kind: ErrorKind::Invalid,
        message: format!("services/{service}.toml: borrow = \"{lender}\": {message}"),
        hint: Some(hint),
    };
    let known = core.known_services();
    if lender == service || !known.contains(lender) {
        let others: Vec<&str> =
            known.iter().filter(|s| *s != service).map(ServiceName::as_str).collect();
        let hint = match text::nearest(lender.as_str(), others.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "name another service of this deck".to_owned(),
        };
        return Err(invalid("there is no such other service".to_owned(), hint));
    }
    // What it serves counts, not what is written; without either there is nothing to borrow.
    let Some((_, spec)) = core.lender_of(&draft.spec) else { return Ok(()) };
    let (mine, its) = (draft.spec.placement.priority, spec.placement.priority);
    if its >= mine {
        return Err(invalid(
            format!("its priority {its} is not lower than {mine}"),
            format!("write [placement] priority = {} or more", its.saturating_add(1)),
        ));
    }
    if spec.device != DeviceKind::Gpu || draft.spec.device != DeviceKind::Gpu {
        return Err(invalid(
            "only GPUs can be borrowed".to_owned(),
            "remove borrow from [rollout]".to_owned(),
        ));
    }
    Ok(())
}

/// The plan with these replicas of the lender gone, if there is one and they can come back after it.
fn with(
    core: &Core,
    draft: &Draft,
    (lenders, lender): (&Draft, &Release),
    chosen: &[u32],
    state: &ServiceState,
    kind: RolloutKind,
) -> Option<Laid> {
    let beside = planning::beside(state, &draft.spec, kind);
    let service = (!beside).then_some(&draft.service);
    let reuse = if beside { Vec::new() } else { world::reusable(&core.state, &draft.service) };
    let mut lent: Vec<(u32, &ReplicaPlan)> =
        chosen.iter().filter_map(|i| Some((*i, lender.replica(*i)?))).collect();
    let mut hosts = core.capacities(service);
    for (_, plan) in &lent {
        release_plan(&mut hosts, plan);
    }
    let placed =
        planning::place_draft(core, draft, draft.spec.replicas.get(), hosts, reuse).ok()?;
    let used: BTreeSet<(&HostName, &DeviceId)> =
        placed.replicas.iter().flat_map(|r| r.devices.iter().map(move |d| (&r.host, d))).collect();
    let is_used = |plan: &ReplicaPlan| plan.gpus().any(|gpu| used.contains(&gpu));
    // Fewer may do as well.
    lent.retain(|&(_, plan)| is_used(plan));
    if lent.is_empty() {
        return None;
    }
    // The world after it: the old release is gone, the new one is where it was placed.
    let mut after = core.capacities(None);
    for key in state.replicas.keys() {
        let plan = state.releases.get(&key.release).and_then(|r| r.replica(key.replica));
        if let Some(plan) = plan {
            release_plan(&mut after, plan);
        }
    }
    for (_, plan) in &lent {
        release_plan(&mut after, plan);
    }
    for place in &placed.replicas {
        maintenance::take(&mut after, place, &draft.service);
    }
    let count = u32::try_from(lent.len()).unwrap_or(u32::MAX);
    let homes = planning::place_draft(core, lenders, count, after, Vec::new()).ok()?;
    let mut ports = PortGiver::new(core);
    let mut replicas = Vec::new();
    for ((replica, plan), (home, index)) in
        lent.into_iter().zip(homes.replicas.iter().zip(lender.replicas.len()..))
    {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let back =
            planning::replica_plan(core, lenders, lender.number, index, home, &mut ports).ok()?;
        replicas.push(LentReplica { replica, plan: plan.clone(), back: Some(back) });
    }
    let lender_name = lenders.service.clone();
    let borrowing = Borrowing { lender: lender_name, of: lender.number, replicas };
    planning::lay_out(core, draft, kind, placed, Some(borrowing)).ok()
}

/// As if nothing of ours were on these devices.
fn release_plan(hosts: &mut [HostCapacity], plan: &ReplicaPlan) {
    for rank in &plan.ranks {
        release_devices(hosts, &rank.host, &rank.devices);
    }
}

/// These devices are nobody's any more.
pub(super) fn release_devices(hosts: &mut [HostCapacity], on: &HostName, devices: &[DeviceId]) {
    for capacity in hosts.iter_mut().filter(|h| h.name == *on) {
        for gpu in capacity.gpus.iter_mut().filter(|g| devices.contains(&g.device())) {
            gpu.reserved_by = None;
            gpu.free = gpu.total.saturating_sub(gpu.foreign).max(gpu.free);
        }
    }
}

/// What a release borrows, for people.
pub(super) fn view(core: &Core, release: &Release) -> Vec<PlanBorrow> {
    let Some(borrowing) = &release.borrowing else { return Vec::new() };
    borrowing
        .replicas
        .iter()
        .map(|lent| PlanBorrow {
            lender: borrowing.lender.clone(),
            replica: ReplicaKey { release: borrowing.of, replica: lent.replica },
            from: plan_steps::places(&core.hub, &lent.plan),
            back: lent.back.iter().flat_map(|p| plan_steps::places(&core.hub, p)).collect(),
        })
        .collect()
}
