//! What an upgrade of hosts would do: every host is emptied by the drain's own planner, in the world that the hosts before
//! it leave, and the services' own decider says how many replicas are ready on the way. Nothing is touched.

use std::collections::{BTreeMap, BTreeSet};

use super::core::Core;
use super::maintenance::{Drafts, ServiceMoves, in_the_way};
use super::planning::{self, Draft};
use super::world;
use crate::api::{ApiError, DrainPlan, ServiceLow, UpgradePlan, UpgradePlanHost};
use crate::base::{HostName, ReplicaKey, ServiceName};
use crate::rollout::maintenance::{Cordon, shared};
use crate::rollout::{EventKind, LentTo, ServiceState, forecast};

/// A host that is away in the plan.
struct Away {
    host: HostName,
    /// It was cordoned before, and stays so.
    cordoned_before: bool,
}

/// What comes of emptying one.
struct Emptied {
    drain: DrainPlan,
    capacity: Vec<ServiceLow>,
}

impl Core {
    /// Reads what is needed to place elsewhere what these hosts have, off the loop.
    pub(super) fn upgrade_drafts(&self, hosts: &[HostName]) -> Drafts {
        let up: Vec<HostName> = self.hub.with(|s| {
            s.hosts.values().filter(|h| world::is_up(h)).map(|h| h.name.clone()).collect()
        });
        let mut work = Vec::new();
        for (service, state) in &self.state.services {
            if hosts.iter().all(|host| state.on_host(host).is_empty()) {
                continue;
            }
            let Some(release) = state.stable.and_then(|n| state.releases.get(&n)) else { continue };
            let (service, spec) = (service.clone(), release.spec.clone());
            let (means, up) = (std::sync::Arc::clone(&self.means), up.clone());
            work.push(async move {
                planning::draft(&means, service, spec, String::new(), None, up).await
            });
        }
        Box::pin(async move { futures::future::join_all(work).await.into_iter().collect() })
    }

    /// In which batches the hosts go, what leaves each, and what is left meanwhile.
    pub(super) fn plan_upgrade(
        &mut self,
        hosts: &[HostName],
        drafts: &[Draft],
        max_parallel: u32,
    ) -> UpgradePlan {
        let present = self.state.clone();
        let planned = self.plan_hosts(hosts, drafts, max_parallel);
        self.state = present;
        self.ahead = world::Ahead::default();
        let mut lowest: BTreeMap<ServiceName, ServiceLow> = BTreeMap::new();
        for low in planned.iter().flat_map(|host| &host.capacity) {
            let known = lowest.entry(low.service.clone()).or_insert_with(|| low.clone());
            known.lowest_ready = known.lowest_ready.min(low.lowest_ready);
        }
        let mut warnings = self.gateways_on(hosts);
        warnings.extend(drafts.iter().flat_map(|draft| draft.warnings.iter().cloned()));
        UpgradePlan {
            max_parallel,
            hosts: planned,
            lowest: lowest.into_values().collect(),
            warnings,
        }
    }

    /// Clients are cut off while the host of a gateway is away.
    pub(super) fn gateways_on(&self, hosts: &[HostName]) -> Vec<String> {
        let there = self.deck.gateways.iter().filter(|(_, gateway)| hosts.contains(&gateway.host));
        let words = |(name, gateway): (_, &crate::spec::GatewaySpec)| {
            let host = &gateway.host;
            format!(
                "the gateway {name} runs on {host}: clients are cut off while that host is away"
            )
        };
        there.map(|(name, gateway)| words((name, gateway))).collect()
    }

    fn plan_hosts(
        &mut self,
        hosts: &[HostName],
        drafts: &[Draft],
        max_parallel: u32,
    ) -> Vec<UpgradePlanHost> {
        let room = usize::try_from(max_parallel).unwrap_or(usize::MAX).max(1);
        let mut batch: Vec<Away> = Vec::new();
        let mut number = 0;
        let mut planned = Vec::new();
        for host in hosts {
            let mut after = None;
            let mut emptied = None;
            if !batch.is_empty() && batch.len() < room {
                match self.empty_beside(host, &batch, drafts) {
                    Ok(beside) => emptied = Some(beside),
                    Err(why) => after = Some(why),
                }
            }
            let is_beside = emptied.is_some();
            if !is_beside {
                for away in batch.drain(..) {
                    self.comes_back(&away);
                }
            }
            let cordoned_before = self.state.ledger.maintenance.host_cordon(host).is_some();
            let emptied = match emptied {
                Some((emptied, cordoned_before)) => {
                    batch.push(Away { host: host.clone(), cordoned_before });
                    Ok(emptied)
                }
                None => self.empty(host, drafts).inspect(|_| {
                    batch.push(Away { host: host.clone(), cordoned_before });
                }),
            };
            planned.push(match emptied {
                Ok(Emptied { drain, capacity }) => {
                    number += usize::from(!is_beside);
                    let host = host.clone();
                    UpgradePlanHost { host, batch: number, after, drain, capacity, refused: None }
                }
                Err(error) => UpgradePlanHost {
                    host: host.clone(),
                    batch: 0,
                    after: None,
                    drain: DrainPlan {
                        host: host.clone(),
                        moves: Vec::new(),
                        out: Vec::new(),
                        warnings: Vec::new(),
                    },
                    capacity: Vec::new(),
                    refused: Some(super::upgrade::not_emptied(host, error)),
                },
            });
        }
        planned
    }

    /// Beside these; why not, in words.
    fn empty_beside(
        &mut self,
        host: &HostName,
        batch: &[Away],
        drafts: &[Draft],
    ) -> Result<(Emptied, bool), String> {
        let away: BTreeSet<HostName> = batch.iter().map(|away| away.host.clone()).collect();
        if let Some(service) = shared(host, &away, &self.state.services) {
            return Err(format!("together they would take {service} under its floor"));
        }
        let cordoned_before = self.state.ledger.maintenance.host_cordon(host).is_some();
        let emptied = self.empty(host, drafts).map_err(|error| error.message)?;
        Ok((emptied, cordoned_before))
    }

    /// As if it were empty. Where that cannot be, everything is as it was.
    fn empty(&mut self, host: &HostName, drafts: &[Draft]) -> Result<Emptied, ApiError> {
        for (service, state) in &self.state.services {
            if let Some(obstacle) = state.keeps_from_draining(host) {
                return Err(in_the_way(service, obstacle));
            }
        }
        let drainage = self.drainage(host, drafts)?;
        if self.state.ledger.maintenance.host_cordon(host).is_none() {
            let cordon =
                Cordon { gpu: None, by: String::new(), reason: None, since: super::core::now() };
            self.state.ledger.maintenance.cordoned(host, cordon);
        }
        let mut capacity = Vec::new();
        for leaving in drainage.services {
            capacity.extend(self.leaves(host, leaving));
        }
        Ok(Emptied { drain: drainage.plan, capacity })
    }

    /// As if what leaves a host had left it.
    fn leaves(&mut self, host: &HostName, leaving: ServiceMoves) -> Option<ServiceLow> {
        let ServiceMoves { service, release, moves, out } = leaving;
        let before = self.state.services.get(&service)?.clone();
        let ready = before.ready_total();
        let (mut state, mut lowest) = (before, ready);
        let (by, why) = (String::new(), format!("{host} is drained"));
        let moved = EventKind::MovesRequested { release, moves: moves.clone(), by, why };
        let taken = EventKind::TakenOut { release, replicas: out.clone(), host: host.clone() };
        for (kind, none) in [(moved, moves.is_empty()), (taken, out.is_empty())] {
            if let Some((after, low)) = forecast::state_when_told(&state, kind).filter(|_| !none) {
                (state, lowest) = (after, lowest.min(low));
            }
        }
        let low = ServiceLow {
            service: service.clone(),
            wanted: state.stable.map_or(0, |stable| state.wanted(stable)),
            floor: state.stays_ready(),
            ready,
            lowest_ready: lowest,
        };
        self.becomes(&service, state);
        Some(low)
    }

    /// As if the host were back, with what stopped for it.
    fn comes_back(&mut self, away: &Away) {
        if away.cordoned_before {
            return;
        }
        self.state.ledger.maintenance.uncordoned(&away.host, None, super::core::now());
        let services: Vec<ServiceName> = self.state.services.keys().cloned().collect();
        for service in services {
            let Some(state) = self.state.services.get(&service) else { continue };
            let out = state.loans.iter().filter(
                |loan| matches!(&loan.to, LentTo::Maintenance { host } if *host == away.host),
            );
            let out: Vec<ReplicaKey> = out.map(|loan| loan.replica).collect();
            let mut state = state.clone();
            for replica in &out {
                let kind = EventKind::LentReturned { replica: *replica, elsewhere: false };
                if let Some((after, _)) = forecast::state_when_told(&state, kind) {
                    state = after;
                }
            }
            if !out.is_empty() {
                self.becomes(&service, state);
            }
        }
    }

    fn becomes(&mut self, service: &ServiceName, state: ServiceState) {
        let before = world::reusable(&self.state, service);
        self.state.services.insert(service.clone(), state);
        self.ahead.goes(before, world::reusable(&self.state, service));
    }
}
