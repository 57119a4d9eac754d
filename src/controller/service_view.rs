//! A service as doors see it.

use std::collections::BTreeMap;

use super::deck_ledger::Ledger;
use super::gateways::Gateways;
use super::taken_back;
use super::traffic::Traffic;
use crate::api::view::TrafficView;
use crate::api::{MemoryView, ReleaseView, ReplicaView, ServiceView};
use crate::base::{HostName, ReleaseNumber, ReplicaId, ServiceName, TrafficMode, TrafficServer};
use crate::rollout::{Condition, Direction, Phase, Release, ServiceState, forecast};
use crate::spec::{DeckSpec, ServiceSpec};

/// What the view needs besides the state.
pub struct Surroundings<'a> {
    /// The deck.
    pub deck: &'a DeckSpec,
    /// The spec in the work tree, or what is wrong with it.
    pub spec: Option<&'a Result<ServiceSpec, String>>,
    /// What the gateway saw.
    pub traffic: Option<&'a Traffic>,
    /// The releases, newest first.
    pub history: &'a [ReleaseView],
    /// The last table that the gateways have taken, if that is known.
    pub taken: Option<&'a [TrafficServer]>,
    /// A mistake outside the rollout.
    pub trouble: Option<&'a str>,
    /// Who else holds hosts of it, in words: what is served is known there, not here.
    pub elsewhere: Option<&'a str>,
    /// What a gateway has not read of its file, in words.
    pub gateway_file: Option<&'a String>,
    /// Which of its replicas fail again and again, and what to do.
    pub restarting: Option<&'a str>,
    /// Plans and how they went.
    pub ledger: &'a Ledger,
    /// What its engines logged of their memory, the oldest first.
    pub memory: &'a [MemoryView],
}

/// Builds the view of one service.
pub fn view(
    name: &ServiceName,
    state: Option<&ServiceState>,
    around: &Surroundings<'_>,
) -> ServiceView {
    let empty = ServiceState::new(name.clone());
    let state = state.filter(|_| around.elsewhere.is_none()).unwrap_or(&empty);
    let served = state.stable.and_then(|n| state.releases.get(&n));
    let target = state.rollout.as_ref().and_then(|r| state.releases.get(&r.to));
    let written = around.spec.and_then(|s| s.as_ref().ok());
    let shown_spec = served.or(target).map(|r| &r.spec).or(written);
    let wanted = wanted(state);
    let trouble = match around.spec {
        Some(Err(mistake)) => Some(mistake.clone()),
        _ => state
            .held
            .as_ref()
            .filter(|_| state.is_held())
            .map(|held| format!("held before its next step: {}", held.why))
            .or_else(|| around.elsewhere.map(str::to_owned))
            .or_else(|| around.trouble.map(str::to_owned))
            .or_else(|| {
                let why = state.traffic_trouble.as_ref()?;
                Some(format!("the gateway does not do as it is told: {why}"))
            })
            .or_else(|| around.restarting.map(|words| format!("restarting: {words}")))
            .or_else(|| around.gateway_file.cloned())
            .or_else(|| lends(state)),
    };
    ServiceView {
        name: name.clone(),
        condition: match around.elsewhere {
            Some(_) => Condition::Elsewhere,
            None => state.condition(),
        },
        model: shown_spec.map(|s| s.model.clone()).unwrap_or_default(),
        engine: shown_spec
            .map(|s| crate::engine::of(&s.engine).name().to_owned())
            .unwrap_or_default(),
        wanted,
        ready: state.ready_total(),
        floor: state.floor(),
        stable: state.stable,
        queued: state.queued.clone(),
        queue_trouble: state.queue_trouble.clone(),
        rollout: state.rollout.clone(),
        steps: target.map(|r| step_titles(r, state)).unwrap_or_default(),
        replicas: replicas(state, around),
        history: around.history.iter().take(50).cloned().collect(),
        pending_change: waits(state, written, around.elsewhere.is_some()),
        taken_back: written.and_then(|written| taken_back::last(state, written)),
        url: shown_spec.and_then(|s| url(around.deck, state, s)),
        traffic: traffic(state, around),
        trouble,
        progress: state.rollout.as_ref().and_then(|r| around.ledger.chronicle(name, r.to)).cloned(),
        memory: around.memory.iter().rev().take(8).cloned().collect(),
    }
}

/// How many replicas are meant to serve: of what is stable, or else of what is deployed for the first time.
fn wanted(state: &ServiceState) -> u32 {
    let first = state.active_rollout().filter(|r| r.direction == Direction::Forward).map(|r| r.to);
    let release = state.stable.or(first).and_then(|n| state.releases.get(&n));
    release.map_or(0, |r| r.spec.replicas.get())
}

/// Whether the spec in the deck is neither served, nor being rolled out, nor queued.
fn waits(state: &ServiceState, written: Option<&ServiceSpec>, elsewhere: bool) -> bool {
    let Some(written) = written else { return false };
    // A queued one that is not what is in the deck any more does not begin, and says so.
    if state.queued.as_ref().is_some_and(|queued| queued.to.is_none()) {
        return false;
    }
    let going = state.active_rollout().filter(|r| r.direction == Direction::Forward).map(|r| r.to);
    match going.or(state.stable).and_then(|n| state.releases.get(&n)) {
        Some(release) => *written != release.spec,
        None => !elsewhere,
    }
}

/// What it gets. Where nothing of it is left the last seconds are no traffic of now.
fn traffic(state: &ServiceState, around: &Surroundings<'_>) -> TrafficView {
    let has_ended = state.replicas.is_empty() && around.elsewhere.is_none();
    let seen = around.traffic.filter(|_| !has_ended);
    seen.map(|traffic| traffic.view(|_| true)).unwrap_or_default()
}

/// What it lends, in words.
fn lends(state: &ServiceState) -> Option<String> {
    let loan = state.loans.first()?;
    Some(match state.loans.len() {
        1 => format!("{} is {}", loan.replica, loan.to),
        n => format!("{n} replicas are {}", loan.to),
    })
}

pub(super) fn url(deck: &DeckSpec, state: &ServiceState, spec: &ServiceSpec) -> Option<String> {
    let gateways = || Gateways::to_be(deck, &state.service, Some(state), spec);
    spec.url.clone().or_else(|| gateways()?.url())
}

fn step_titles(release: &Release, state: &ServiceState) -> Vec<String> {
    let Some(rollout) = &state.rollout else { return Vec::new() };
    forecast::stage_titles(release, rollout.kind, rollout.from.is_none())
}

fn replicas(state: &ServiceState, around: &Surroundings<'_>) -> Vec<ReplicaView> {
    let weight = weights(state, around.taken);
    let mut views: Vec<ReplicaView> = state
        .replicas
        .iter()
        .filter(|(_, replica)| replica.phase != Phase::Stopped)
        .filter_map(|(key, replica)| {
            let release = state.releases.get(&key.release)?;
            let id = state.replica_id(key.release, key.replica)?;
            let plan = release.replica(key.replica)?;
            let (is, to_be) = weight(&id);
            Some(ReplicaView {
                id,
                taken_over_by: (*key != id.key()).then_some(*key),
                phase: replica.phase.clone(),
                since: replica.since,
                trouble: replica.trouble.clone(),
                silent: replica.proved && replica.phase == Phase::Loading,
                ranks: state
                    .rank_ids(*key)
                    .into_iter()
                    .zip(&plan.ranks)
                    .map(|(rank, plan)| crate::api::RankView {
                        rank,
                        host: plan.host.clone(),
                        devices: plan.devices.clone(),
                        port: plan.port,
                    })
                    .collect(),
                weight_percent: is,
                weight_wanted_percent: (is != to_be).then_some(to_be),
                traffic: around.traffic.map(|t| t.view_of(&id)).unwrap_or_default(),
            })
        })
        .collect();
    views.sort_by_key(|r| (std::cmp::Reverse(r.release()), r.id));
    views
}

/// Of each replica its share of the traffic by the table that the gateways have taken, and by the one that
/// is wanted.
fn weights(
    state: &ServiceState,
    taken: Option<&[TrafficServer]>,
) -> impl Fn(&ReplicaId) -> (u32, u32) {
    let wanted = shares(&state.traffic);
    let taken = match taken {
        _ if state.traffic_applied == state.traffic_version => None,
        Some(taken) => Some(shares(taken)),
        // Nothing was ever taken; otherwise it was before this controller began, and is not known.
        None => (state.traffic_applied == 0).then(BTreeMap::new),
    };
    move |id| {
        let share = |of: &BTreeMap<ReplicaId, u32>| of.get(id).copied().unwrap_or(0);
        (share(taken.as_ref().unwrap_or(&wanted)), share(&wanted))
    }
}

/// Each replica's share of a table by weight, percent, rounded.
fn shares(table: &[TrafficServer]) -> BTreeMap<ReplicaId, u32> {
    let open = || table.iter().filter(|s| s.mode == TrafficMode::Ready);
    let sum: u32 = open().map(|s| u32::from(s.weight)).sum();
    let percent = |s: &TrafficServer| (u32::from(s.weight) * 100 + sum / 2).checked_div(sum);
    open().map(|s| (s.replica, percent(s).unwrap_or(0))).collect()
}

/// The ranks of a service, for the hosts' views.
pub fn ranks_on<'a>(
    views: impl Iterator<Item = &'a ServiceView>,
    host: &crate::base::HostName,
) -> Vec<crate::api::RankView> {
    views
        .flat_map(|s| &s.replicas)
        .flat_map(|r| &r.ranks)
        .filter(|rank| rank.host == *host)
        .cloned()
        .collect()
}

/// The ranks of all services by host: as [`ranks_on`] for every host, in one pass.
pub fn ranks_by_host<'a>(
    views: impl Iterator<Item = &'a ServiceView>,
) -> BTreeMap<HostName, Vec<crate::api::RankView>> {
    let mut by_host: BTreeMap<HostName, Vec<crate::api::RankView>> = BTreeMap::new();
    for rank in views.flat_map(|s| &s.replicas).flat_map(|r| &r.ranks) {
        by_host.entry(rank.host.clone()).or_default().push(rank.clone());
    }
    by_host
}

/// The number a new release gets.
///
/// Git knows of releases that another controller made, the journal of those whose commit was lost.
pub fn next_release(
    state: &super::record::DeckState,
    next_in_git: Option<ReleaseNumber>,
) -> ReleaseNumber {
    let next = ReleaseNumber(state.last_release.0.saturating_add(1));
    next_in_git.map_or(next, |in_git| in_git.max(next))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{Attempt, Timestamp};

    #[test]
    fn a_service_that_has_ended_has_no_traffic_of_before() {
        use crate::gateway::ServerCounters;
        let release = ReleaseNumber(1);
        let id = ReplicaId { release, replica: 0, attempt: Attempt::FIRST };
        let mut seen = Traffic::default();
        for (at, requests) in [(0, 100), (1_000, 130)] {
            let counters = ServerCounters { requests, ..ServerCounters::default() };
            let totals = BTreeMap::from([("g chat".to_owned(), BTreeMap::from([(id, counters)]))]);
            seen.observe(Timestamp(at), totals);
        }
        let deck = "id = \"019a0000-0000-7000-8000-000000000001\"\nname = \"d\"\n";
        let deck = crate::spec::parse_deck(deck, "deck.toml").unwrap();
        let ledger = Ledger::default();
        let around = |elsewhere| Surroundings {
            deck: &deck,
            elsewhere,
            spec: None,
            traffic: Some(&seen),
            history: &[],
            taken: None,
            trouble: None,
            gateway_file: None,
            restarting: None,
            ledger: &ledger,
            memory: &[],
        };
        let mut state = ServiceState::new("chat".parse().unwrap());
        assert_eq!(traffic(&state, &around(None)), TrafficView::default());
        assert!(traffic(&state, &around(Some("bob has it"))).requests_per_s.is_some());
        let pending =
            crate::rollout::ReplicaState::pending(Attempt::FIRST, Timestamp(1), Timestamp(1));
        state.replicas.insert(id.key(), pending.into());
        assert!(traffic(&state, &around(None)).requests_per_s.is_some());
    }

    #[test]
    fn a_change_that_is_on_its_way_does_not_wait() {
        use crate::rollout::{Event, EventKind, QueuedRollout, RolloutKind, step};
        let service: ServiceName = "chat".parse().unwrap();
        let release = crate::controller::saved::tests::release(
            crate::base::DeckId(uuid::Uuid::from_u128(1)),
            &service,
        );
        let written = release.spec.clone();
        let mut edited = written.clone();
        edited.context = Some(1_024);
        let mut state = ServiceState::new(service);
        assert!(waits(&state, Some(&written), false), "nothing serves");
        assert!(!waits(&state, Some(&written), true), "what serves is known elsewhere");
        let kind = crate::controller::saved::tests::requested(release);
        assert_eq!(wanted(&state), 0, "nothing is served");
        step(&mut state, &Event { at: Timestamp(1), kind });
        assert_eq!(wanted(&state), written.replicas.get(), "it comes for the first time");
        assert!(!waits(&state, Some(&written), false), "it is being rolled out");
        assert!(waits(&state, Some(&edited), false), "another one is");
        state.queued = Some(QueuedRollout {
            asked: Timestamp(2),
            kind: RolloutKind::Apply,
            to: None,
            digest: None,
            by: "ada".to_owned(),
            reason: None,
            accept_outage: false,
        });
        assert!(!waits(&state, Some(&edited), false), "it is queued");
        let aborted = EventKind::Aborted { by: "ada".to_owned(), reason: None };
        step(&mut state, &Event { at: Timestamp(3), kind: aborted });
        assert_eq!(wanted(&state), 0, "it goes again");
    }

    #[test]
    fn a_weight_is_what_the_gateways_have_taken() {
        let id = |release| ReplicaId {
            release: ReleaseNumber(release),
            replica: 0,
            attempt: Attempt::FIRST,
        };
        let (old, new) = (id(1), id(2));
        let table = |weights: [u16; 2]| -> Vec<TrafficServer> {
            [old, new]
                .into_iter()
                .zip(weights)
                .map(|(replica, weight)| TrafficServer {
                    replica,
                    address: "10.0.0.1".to_owned(),
                    port: 21000,
                    weight,
                    mode: TrafficMode::Ready,
                    by_rule: false,
                    taken_over_by: None,
                })
                .collect()
        };
        let mut state = ServiceState::new("chat".parse().unwrap());
        state.traffic = table([3, 1]).into();
        state.traffic_version = 5;
        let seen = |state: &ServiceState, taken: Option<&[TrafficServer]>| {
            let of = weights(state, taken);
            (of(&old), of(&new))
        };
        assert_eq!(seen(&state, None), ((0, 75), (0, 25)), "nothing was ever taken");
        state.traffic_applied = 4;
        assert_eq!(seen(&state, Some(&table([1, 0]))), ((100, 75), (0, 25)));
        assert_eq!(seen(&state, None), ((75, 75), (25, 25)), "what was taken is not known");
        state.traffic_applied = 5;
        assert_eq!(seen(&state, Some(&table([1, 0]))), ((75, 75), (25, 25)));
    }
}
