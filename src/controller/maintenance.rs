//! Cordon, uncordon and drain. A drain is a cordon and a list of moves for each service; the services'
//! deciders walk them, this file only notices when a host is empty or stays as it is.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::begin::plan_changed;
use super::core::{Core, Input};
use super::deck_ledger::DeckEvent;
use super::planning::{self, Draft, PortGiver};
use super::turns::Token;
use super::{plan_steps, world};
use crate::api::hub::Change;
use crate::api::{
    ApiError, CordonedGpu, DeckView, DrainMove, DrainOut, DrainPlan, ErrorKind, IntentReply,
    Maintenance, Severity, UpgradeHost, text,
};
use crate::base::{HostName, ReleaseNumber, ReplicaKey, ServiceName};
use crate::placement::{Demand, HostCapacity, PlacedReplica};
use crate::rollout::maintenance::Comes;
use crate::rollout::maintenance::drain::{self, DrainStep, Obstacle};
use crate::rollout::{EventKind, RequestedMove};

/// Between two looks at what a drain can do about what is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// See `Intent::Drain`.
pub(super) struct DrainWish {
    pub(super) host: HostName,
    pub(super) by: String,
    pub(super) reason: Option<String>,
    pub(super) agreed: Option<String>,
    /// The upgrade of hosts wants it: not any more if somebody uncordons the host meanwhile.
    pub(super) for_upgrade: bool,
}

/// What of one service leaves a host.
pub(super) struct ServiceMoves {
    pub(super) service: ServiceName,
    pub(super) release: ReleaseNumber,
    pub(super) moves: Vec<RequestedMove>,
    /// Those for which there is no other place: they come back when the host does.
    pub(super) out: Vec<u32>,
}

/// What a drain would do, for people and for the services.
pub struct Drainage {
    pub(super) plan: DrainPlan,
    pub(super) services: Vec<ServiceMoves>,
}

/// The drafts of the services that have something on a host.
pub type Drafts = BoxFuture<'static, Result<Vec<Draft>, ApiError>>;

pub(super) fn conflict(message: String, hint: &str) -> ApiError {
    ApiError { kind: ErrorKind::Conflict, message, hint: Some(hint.to_owned()) }
}

impl Core {
    /// A host of the deck, or one that has left it with replicas of ours: they can still be placed elsewhere.
    fn maintained_host(&self, host: &HostName) -> Result<(), ApiError> {
        if self.state.services.values().any(|state| !state.on_host(host).is_empty()) {
            return Ok(());
        }
        self.known_host(host)
    }

    pub(super) fn known_host(&self, host: &HostName) -> Result<(), ApiError> {
        if self.deck.hosts.contains_key(host) {
            return Ok(());
        }
        let near = text::nearest(host.as_str(), self.deck.hosts.keys().map(HostName::as_str));
        Err(ApiError {
            kind: ErrorKind::NotFound,
            message: format!("there is no host {host}"),
            hint: Some(match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => "`gpudeck hosts` lists them".to_owned(),
            }),
        })
    }

    fn gpu_of(&self, host: &HostName, index: u32) -> Result<CordonedGpu, ApiError> {
        let found = self.hub.with(|s| {
            let sample = s.hosts.get(host)?.sample.as_ref()?;
            sample.gpus.list().iter().find(|g| g.index == index).map(crate::api::Gpu::device)
        });
        // A GPU that fell off the bus can still be uncordoned by the index it had.
        let known = || {
            let cordons = self.state.ledger.maintenance.cordons.get(host)?;
            cordons.iter().find_map(|c| c.gpu.clone().filter(|g| g.index == index))
        };
        found.map(|device| CordonedGpu { device, index }).or_else(known).ok_or_else(|| ApiError {
            kind: ErrorKind::NotFound,
            message: format!("{host} has no GPU {index}, or it is not reached"),
            hint: Some("`gpudeck hosts` shows what there is".to_owned()),
        })
    }

    pub(super) fn deck_told(&mut self, event: DeckEvent) -> Result<(), ApiError> {
        self.deck_happened(event).map_err(|e| super::core::journal_error(&e))
    }

    pub(super) fn cordon(
        &mut self,
        host: &HostName,
        gpu: Option<u32>,
        by: &str,
        reason: Option<String>,
    ) -> Result<IntentReply, ApiError> {
        self.maintained_host(host)?;
        let gpu = gpu.map(|index| self.gpu_of(host, index)).transpose()?;
        let known = self.state.ledger.maintenance.cordons.get(host);
        if known.is_some_and(|c| c.iter().any(|c| c.gpu == gpu)) {
            return Ok(IntentReply::NothingToDo);
        }
        let what = gpu.as_ref().map(|g| format!("GPU {} of ", g.index)).unwrap_or_default();
        let why = reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let comes = self.comes_despite(host, gpu.as_ref());
        let (by_whom, host_name) = (by.to_owned(), host.clone());
        self.deck_told(DeckEvent::Cordoned { host: host_name, gpu, by: by_whom, reason })?;
        self.say(Severity::Info, None, &format!("{by} cordons {what}{host}{why}"));
        self.publish_maintenance(host);
        if comes.is_empty() {
            return Ok(IntentReply::Accepted);
        }
        self.say(
            Severity::Warning,
            None,
            &format!("{what}{host} still gets what was planned before: {}", comes.join("; ")),
        );
        Ok(IntentReply::CordonedBut { comes })
    }

    /// What plans that were agreed to before a cordon still start there, in words.
    fn comes_despite(&self, host: &HostName, gpu: Option<&CordonedGpu>) -> Vec<String> {
        let services = self.state.services.iter();
        let words = |(service, comes): (&ServiceName, Comes)| match comes {
            Comes::OfRollout { to, replicas: n } => {
                format!("{service}: the rollout to {to} starts {}", replicas(n))
            }
            Comes::OfMoves { replicas: n } => {
                format!(
                    "{service}: {} {} there",
                    replicas(n),
                    if n == 1 { "moves" } else { "move" }
                )
            }
        };
        services
            .flat_map(|(service, state)| {
                state.comes_despite(host, gpu).into_iter().map(move |comes| (service, comes))
            })
            .map(words)
            .collect()
    }

    pub(super) fn uncordon(
        &mut self,
        host: &HostName,
        gpu: Option<u32>,
        by: &str,
    ) -> Result<IntentReply, ApiError> {
        // A host that left the deck while it was cordoned can be let go, too: something may be out because of it.
        if !self.state.ledger.maintenance.cordons.contains_key(host) {
            self.known_host(host)?;
        }
        let gpu = gpu.map(|index| self.gpu_of(host, index)).transpose()?;
        let cordons =
            self.state.ledger.maintenance.cordons.get(host).map_or(&[][..], Vec::as_slice);
        if !cordons.iter().any(|c| c.gpu == gpu) {
            return Ok(IntentReply::NothingToDo);
        }
        let mut stay: Vec<u32> =
            cordons.iter().filter_map(|c| Some(c.gpu.as_ref()?.index)).collect();
        stay.retain(|index| gpu.as_ref().is_none_or(|gpu| gpu.index != *index));
        let upgrade = self.state.ledger.maintenance.present_upgrade();
        let entry = upgrade.and_then(|u| u.hosts.iter().find(|h| h.host == *host));
        let under_way = entry.map(|e| &e.state).filter(|s| gpu.is_none() && s.is_under_way());
        // While it drains nothing was done to it yet: then this is the way out of it.
        let ends_upgrade = matches!(under_way, Some(UpgradeHost::Draining { .. }));
        if under_way.is_some() && !ends_upgrade {
            return Err(conflict(
                format!("{host} is being upgraded"),
                "it is uncordoned by itself when it is back",
            ));
        }
        let drains =
            self.state.ledger.maintenance.drains.get(host).is_some_and(|d| d.ended.is_none());
        let whole = gpu.is_none();
        let what = gpu.as_ref().map(|g| format!("GPU {} of ", g.index)).unwrap_or_default();
        self.deck_told(DeckEvent::Uncordoned { host: host.clone(), gpu })?;
        let mut words = format!("{by} uncordons {what}{host}");
        if whole && !stay.is_empty() {
            let stay = stay.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            words.push_str(&format!("; its GPU {stay} stays cordoned"));
        }
        self.say(Severity::Info, None, &words);
        if ends_upgrade {
            self.upgrade_failed(host, &format!("{by} uncordoned it"));
        }
        if whole && drains {
            let services: Vec<ServiceName> = self
                .state
                .services
                .iter()
                .filter(|(_, s)| s.moves_from(host))
                .map(|(name, _)| name.clone())
                .collect();
            for service in services {
                self.happened(&service, EventKind::MovesCancelled { by: by.to_owned() });
            }
        }
        self.publish_maintenance(host);
        Ok(IntentReply::Accepted)
    }

    pub(super) fn maintenance_of(&self, host: &HostName) -> Maintenance {
        let ledger = &self.state.ledger.maintenance;
        Maintenance {
            cordons: ledger.cordons.get(host).cloned().unwrap_or_default(),
            drain: ledger.drains.get(host).cloned(),
            upgrade: ledger.upgrade_of(host).cloned(),
        }
    }

    pub(super) fn publish_maintenance(&self, host: &HostName) {
        self.change_host(host, |_| {});
        let upgrade = self.state.ledger.maintenance.upgrade.clone().map(Box::new);
        let deck = self.hub.with(|s| s.deck.clone());
        if deck.upgrade != upgrade {
            self.hub.publish(Change::Deck(DeckView { upgrade, ..deck }));
        }
    }

    /// Reads what is needed to place the replicas of a host elsewhere, off the loop.
    pub(super) fn drain_drafts(&self, host: &HostName) -> Result<Drafts, ApiError> {
        self.maintained_host(host)?;
        let hosts: Vec<HostName> = self.hub.with(|s| {
            let others = s.hosts.values().filter(|h| h.name != *host && world::is_up(h));
            others.map(|h| h.name.clone()).collect()
        });
        let mut work = Vec::new();
        for (service, state) in &self.state.services {
            if let Some(obstacle) = state.keeps_from_draining(host) {
                return Err(in_the_way(service, obstacle));
            }
            if state.on_host(host).is_empty() || state.moves_from(host) {
                continue;
            }
            let Some(release) = state.stable.and_then(|n| state.releases.get(&n)) else { continue };
            let (service, spec) = (service.clone(), release.spec.clone());
            let (means, hosts) = (std::sync::Arc::clone(&self.means), hosts.clone());
            work.push(async move {
                planning::draft(&means, service, spec, String::new(), None, hosts).await
            });
        }
        Ok(Box::pin(async move {
            futures::future::join_all(work).await.into_iter().collect::<Result<Vec<_>, _>>()
        }))
    }

    /// Places every replica of a host elsewhere.
    pub(super) fn drainage(&self, host: &HostName, drafts: &[Draft]) -> Result<Drainage, ApiError> {
        let mut hosts = self.capacities(None);
        for capacity in &mut hosts {
            // Not cordoned: that could be lifted to make room.
            capacity.draining |= capacity.name == *host;
        }
        let mut ports = PortGiver::new(self);
        let mut plan = DrainPlan {
            host: host.clone(),
            moves: Vec::new(),
            out: Vec::new(),
            warnings: Vec::new(),
        };
        let mut services = Vec::new();
        for draft in drafts {
            let Some(state) = self.state.services.get(&draft.service) else { continue };
            let Some(release) = state.stable.and_then(|n| state.releases.get(&n)) else { continue };
            let mut leaving = state.leaving(host);
            let count = u32::try_from(leaving.len()).unwrap_or(u32::MAX);
            if count == 0 {
                continue;
            }
            let mut demand = planning::demand(self, draft, count, &hosts)?;
            // Those that stay are counted in their failure domains.
            demand.staying = world::reusable(&self.state, &draft.service);
            demand.staying.retain(|r| !leaving.contains(&r.replica));
            let may_stop = state.may_stop_of(&leaving);
            let places = self.places_elsewhere(host, may_stop, &mut demand, &hosts)?;
            let out = leaving.split_off(places.len().min(leaving.len()));
            for key in &out {
                let present = release.replica(key.replica);
                plan.out.push(DrainOut {
                    service: draft.service.clone(),
                    replica: *key,
                    from: present.map(|p| plan_steps::places(&self.hub, p)).unwrap_or_default(),
                });
            }
            let first =
                release.replicas.len() + state.moves.iter().filter(|m| m.to.is_none()).count();
            let mut moves = Vec::new();
            for ((from, place), index) in leaving.iter().zip(&places).zip(first..) {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                take(&mut hosts, place, &draft.service);
                let to =
                    planning::replica_plan(self, draft, release.number, index, place, &mut ports)?;
                let key = plan_steps::key_for_plan(&self.hub, release, &to);
                let load = self.measured.load(&key);
                let present = release.replica(from.replica);
                plan.moves.push(DrainMove {
                    service: draft.service.clone(),
                    replica: *from,
                    successor: ReplicaKey { release: release.number, replica: index },
                    from: present.map(|p| plan_steps::places(&self.hub, p)).unwrap_or_default(),
                    to: plan_steps::places(&self.hub, &to),
                    load_ms: load.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
                });
                moves.push(RequestedMove { replica: from.replica, plan: to });
            }
            plan.warnings.extend(draft.warnings.iter().cloned());
            services.push(ServiceMoves {
                service: draft.service.clone(),
                release: release.number,
                moves,
                out: out.iter().map(|key| key.replica).collect(),
            });
        }
        Ok(Drainage { plan, services })
    }

    /// Places for as many of the wanted replicas as there is room for. The others may only stop as far as the
    /// service's floor allows.
    fn places_elsewhere(
        &self,
        host: &HostName,
        may_stop: u32,
        demand: &mut Demand,
        hosts: &[HostCapacity],
    ) -> Result<Vec<PlacedReplica>, ApiError> {
        let count = demand.replicas;
        let mut first = None;
        for out in 0..=count.min(may_stop) {
            demand.replicas = count - out;
            if demand.replicas == 0 {
                return Ok(Vec::new());
            }
            match planning::place_on(self, hosts.to_vec(), demand) {
                Ok(placed) => return Ok(placed.replicas),
                Err(error) => first = first.or(Some(error)),
            }
        }
        let error = first.unwrap_or_else(|| conflict("it is busy".to_owned(), "wait"));
        // The smallest change: so many more would have to be allowed to stop.
        let more = (may_stop.saturating_add(1)..=count).find(|out| {
            demand.replicas = count - out;
            demand.replicas == 0 || planning::place_on(self, hosts.to_vec(), demand).is_ok()
        });
        let state = self.state.services.get(&demand.service);
        let unavailable = more.and_then(|out| state?.unavailable_for(out - may_stop));
        let enough =
            unavailable.map(|n| format!("max_unavailable = {n} of {} is enough", demand.service));
        Err(ApiError {
            message: format!(
                "{host} cannot be drained: {}; of {count} replicas of {} there {may_stop} may stop meanwhile",
                error.message, demand.service
            ),
            hint: match (error.hint, enough) {
                (Some(hint), Some(enough)) => Some(format!("{hint}; or {enough}")),
                (hint, enough) => hint.or(enough).or_else(|| {
                    let service = &demand.service;
                    Some(format!("free GPUs on another host, or give {service} another replica"))
                }),
            },
            ..error
        })
    }

    pub(super) fn drain_plan(
        &self,
        host: &HostName,
        drafts: &[Draft],
    ) -> Result<DrainPlan, ApiError> {
        self.drainage(host, drafts).map(|d| d.plan)
    }

    /// Takes a wish to drain: the drafts are read off the loop, then it begins.
    pub(super) fn drain(
        &mut self,
        wish: DrainWish,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        let work = match self.drain_drafts(&wish.host) {
            Ok(work) => work,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let inputs = self.means.inputs.clone();
        self.tasks.spawn(async move {
            match work.await {
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
                Ok(drafts) => {
                    let begin = Box::new(move |core: &mut Core| {
                        let begun = core.begin_drain(wish, &drafts);
                        core.answer(reply, begun);
                    });
                    let _ = inputs.send(Input::Ask(begin)).await;
                }
            }
        });
    }

    pub(super) fn begin_drain(
        &mut self,
        wish: DrainWish,
        drafts: &[Draft],
    ) -> Result<IntentReply, ApiError> {
        let DrainWish { host, by, reason, agreed, for_upgrade } = wish;
        let (host, by) = (&host, by.as_str());
        if for_upgrade && !self.state.ledger.maintenance.awaits_drain(host) {
            let message = format!("{host} is not to be emptied any more");
            return Err(conflict(message, "its upgrade can be tried again"));
        }
        let drainage = self.drainage(host, drafts)?;
        if agreed.is_some_and(|agreed| agreed != drainage.plan.digest()) {
            return Err(plan_changed());
        }
        if self.state.ledger.maintenance.host_cordon(host).is_none() {
            self.cordon(host, None, by, reason)?;
        }
        self.deck_told(DeckEvent::DrainBegun { host: host.clone(), by: by.to_owned() })?;
        let (moves, out) = (drainage.plan.moves.len(), drainage.plan.out.len());
        let mut words = format!("{by} drains {host}: {} to move away", replicas(moves));
        if out > 0 {
            words.push_str(&format!(", {} to stop until it is uncordoned", replicas(out)));
        }
        self.say(Severity::Info, None, &words);
        self.request_moves(host, drainage, by);
        self.publish_maintenance(host);
        Ok(IntentReply::Accepted)
    }

    fn request_moves(&mut self, host: &HostName, drainage: Drainage, by: &str) {
        for ServiceMoves { service, release, moves, out } in drainage.services {
            let why = format!("{host} is being drained");
            // What moves goes first; then it is looked again at what is left.
            let kind = if moves.is_empty() {
                EventKind::TakenOut { release, replicas: out, host: host.clone() }
            } else {
                EventKind::MovesRequested { release, moves, by: by.to_owned(), why }
            };
            self.happened(&service, kind);
        }
    }

    /// What was out while its host was maintained comes back when the host is uncordoned. A host that is not in the deck
    /// for a while is not yet: somebody may still be at work there.
    pub(super) fn tend_taken_out(&mut self) {
        let back = self.state.ledger.maintenance.coming_back(&self.state.services);
        for (service, replica) in back {
            self.happened(&service, EventKind::LentReturned { replica, elsewhere: false });
        }
    }

    /// Looks after the drains: which hosts are empty, which need moves again (after a rollout, or a
    /// controller that was killed in between), which stay as they are.
    pub(super) fn tend_drains(&mut self) {
        let drains = &self.state.ledger.maintenance.drains;
        let active = drains.iter().filter(|(_, drain)| drain.ended.is_none());
        let active: Vec<HostName> = active.map(|(host, _)| host.clone()).collect();
        for host in active {
            match drain::next(&host, &self.state.services) {
                Some(DrainStep::Ended { trouble }) => self.end_drain(&host, trouble),
                Some(DrainStep::Place) => {
                    if let Some(token) = self.draining.take(&host) {
                        self.drain_again(host, token);
                    }
                }
                None => {}
            }
        }
    }

    fn end_drain(&mut self, host: &HostName, trouble: Option<String>) {
        match &trouble {
            None => self.say(Severity::Info, None, &format!("{host} is drained")),
            Some(why) => {
                self.say(Severity::Error, None, &format!("{host} could not be drained: {why}"));
            }
        }
        let event = DeckEvent::DrainEnded { host: host.clone(), trouble };
        if let Err(error) = self.deck_happened(event) {
            tracing::error!(%error, "the journal cannot be written");
        }
        self.publish_maintenance(host);
    }

    fn drain_again(&mut self, host: HostName, token: Token) {
        let work = self.drain_drafts(&host);
        let inputs = self.means.inputs.clone();
        let by = self
            .state
            .ledger
            .maintenance
            .drains
            .get(&host)
            .map(|d| d.by.clone())
            .unwrap_or_default();
        self.tasks.spawn(async move {
            let drafts = match work {
                Ok(work) => work.await,
                Err(error) => Err(error),
            };
            let go_on = Box::new(move |core: &mut Core| {
                // It may have been uncordoned meanwhile.
                if core.state.ledger.maintenance.drains.get(&host).is_none_or(|d| d.ended.is_some())
                {
                    return;
                }
                match drafts.and_then(|drafts| core.drainage(&host, &drafts)) {
                    Ok(drainage) if drainage.services.is_empty() => core.drain_is_stuck(&host),
                    Ok(drainage) => core.request_moves(&host, drainage, &by),
                    // Right after a start not every host has been reached yet: that passes.
                    Err(_) if core.hub.with(|s| !s.hosts.values().all(settled)) => {}
                    Err(error) => core.end_drain(&host, Some(error.message)),
                }
            });
            let _ = inputs.send(Input::Ask(go_on)).await;
            // To look asks the hosts: not four times a second while it does not help.
            tokio::time::sleep(LOOK_AGAIN).await;
            drop(token);
        });
    }

    /// What is left on the host is none of what a drain moves: it ends, and says so.
    fn drain_is_stuck(&mut self, host: &HostName) {
        let left = drain::left_behind(host, &self.state.services);
        if left.is_some() {
            self.end_drain(host, left);
        }
    }
}

fn replicas(n: usize) -> String {
    if n == 1 { "1 replica".to_owned() } else { format!("{n} replicas") }
}

/// It was heard of once, good or bad.
pub(super) fn settled(host: &crate::api::HostView) -> bool {
    use crate::api::HostLinkState;
    match &host.link {
        HostLinkState::Connecting { .. } => false,
        HostLinkState::Up => host.sample.is_some(),
        HostLinkState::Asking { .. }
        | HostLinkState::Limited { .. }
        | HostLinkState::Down { .. } => true,
    }
}

/// Why a host cannot be drained now.
pub(super) fn in_the_way(service: &ServiceName, obstacle: Obstacle<'_>) -> ApiError {
    match obstacle {
        Obstacle::Loan(loan) => conflict(
            format!("{service} {} is {}, and may come back there", loan.replica, loan.to),
            &format!("{}; until then `gpudeck cordon` keeps new ranks away", loan.to.way_back()),
        ),
        Obstacle::Rollout { to, starts } => {
            let starts = if starts { ", and will start a replica there" } else { "" };
            conflict(
                format!("a rollout of {service} to {to} is under way{starts}"),
                "wait for its end; until then `gpudeck cordon` keeps what is planned later away",
            )
        }
    }
}

/// What was just placed is not free for the next one.
pub(super) fn take(hosts: &mut [HostCapacity], place: &PlacedReplica, service: &ServiceName) {
    for capacity in hosts.iter_mut().filter(|h| h.name == place.host) {
        for gpu in capacity.gpus.iter_mut().filter(|g| place.devices.contains(&g.device())) {
            gpu.reserved_by = Some(service.to_string());
        }
        if place.devices == [crate::base::DeviceId::Cpu] {
            capacity.memory_free = capacity.memory_free.saturating_sub(place.memory_per_device);
        }
    }
}
