//! What doors are shown.

use std::collections::BTreeSet;

use super::super::service_view::{self, Surroundings};
use super::{Core, now};
use crate::api::hub::Change;
use crate::api::{EventLine, HostView, Severity, Snapshot};
use crate::base::{HostName, ReplicaId, ServiceName, text};
use crate::controller::traffic::{Totals, Traffic};
use crate::rollout::{EventKind, Gate, Rollout};

impl Core {
    pub(super) fn counters(&mut self, service: &ServiceName, counters: Option<Totals>) {
        let Some(counters) = counters else {
            let traffic = self.traffic.get(service);
            let is_new = |r: &Rollout| {
                r.analysis.unread.is_none() && traffic.is_some_and(|t| t.has_counted(r.to))
            };
            if self.measuring(service).is_some_and(is_new) {
                self.happened(service, EventKind::Unmeasured);
            }
            return;
        };
        let windows = self.traffic.entry(service.clone()).or_default().observe(now(), counters);
        if let Some(rollout) = self.measuring(service) {
            let is_read = |id: &ReplicaId| id.release == rollout.to;
            let again = rollout.analysis.unread.is_some() && windows.keys().any(is_read);
            if again || windows.values().any(|w| w.requests > 0) {
                self.happened(service, EventKind::Measured { windows });
            }
        }
        self.publish_service(service);
    }

    /// Rates that are of now no more are shown no more, also where nobody asks any longer because nothing runs.
    pub(super) fn forget_old_rates(&mut self) {
        let now = now();
        let forget = |(name, traffic): (&ServiceName, &mut Traffic)| {
            traffic.forget_old_rates(now).then(|| name.clone())
        };
        let forgotten: Vec<ServiceName> = self.traffic.iter_mut().filter_map(forget).collect();
        for service in forgotten {
            self.publish_service(&service);
        }
    }

    /// The rollout of a service whose requests are counted for an analysis.
    fn measuring(&self, service: &ServiceName) -> Option<&Rollout> {
        let rollout = self.state.services.get(service)?.active_rollout()?;
        matches!(rollout.gate, Some(Gate::Analyse { .. })).then_some(rollout)
    }

    /// Names of all services, of the deck and of the journal.
    pub(in crate::controller) fn known_services(&self) -> Vec<ServiceName> {
        let all: BTreeSet<_> =
            self.files.services.keys().chain(self.state.services.keys()).cloned().collect();
        all.into_iter().collect()
    }

    /// Shows a service as it is now, or soon when showing it took long lately.
    pub(in crate::controller) fn publish_service(&mut self, service: &ServiceName) {
        self.views.mark(service);
        if self.views.is_due() {
            self.publish_stale();
        }
    }

    /// Shows every service whose view is behind.
    pub(in crate::controller) fn publish_stale(&mut self) {
        let began = std::time::Instant::now();
        let services = self.views.take();
        if services.is_empty() {
            return;
        }
        for service in &services {
            self.show_service(service);
        }
        self.views.shown(began);
    }

    fn show_service(&self, service: &ServiceName) {
        // Who hears how a rollout ended finds that in Git.
        let is_under_way = |s: &Snapshot| {
            let shown = s.services.get(service).and_then(|view| view.rollout.as_ref());
            shown.is_some_and(|rollout| rollout.outcome.is_none())
        };
        if self.unnoted.is_just_asking(service) && self.hub.with(is_under_way) {
            return;
        }
        let history = self.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
        let elsewhere = self.held_elsewhere(service);
        let around = Surroundings {
            deck: &self.deck,
            elsewhere: elsewhere.as_deref(),
            spec: self.files.services.get(service),
            traffic: self.traffic.get(service),
            history,
            taken: self.taken.get(service).map(|table| table.as_slice()),
            trouble: self.trouble.get(service).map(String::as_str),
            gateway_file: self.gateway_files.get(service).and_then(|f| f.values().next()),
            restarting: self.restarting.get(service).map(String::as_str),
            ledger: &self.state.ledger,
            memory: self.files.memory.get(service).map(Vec::as_slice).unwrap_or_default(),
        };
        let view = service_view::view(service, self.state.services.get(service), &around);
        let before = self.hub.with(|s| s.services.get(service).map(|v| ids(&v.replicas)));
        let ranks_changed = before != Some(ids(&view.replicas));
        self.hub.publish(Change::Service(Box::new(view)));
        if ranks_changed {
            self.publish_ranks();
        }
    }

    /// Brings the hosts' lists of ranks up to date.
    pub(in crate::controller) fn publish_ranks(&self) {
        let hosts: Vec<HostView> = self.hub.with(|s| {
            let mut by_host = service_view::ranks_by_host(s.services.values());
            s.hosts
                .values()
                .filter_map(|host| {
                    let ranks = by_host.remove(&host.name).unwrap_or_default();
                    (ranks != host.ranks).then(|| HostView { ranks, ..host.clone() })
                })
                .collect()
        });
        for host in hosts {
            self.hub.publish(Change::Host(Box::new(host)));
        }
    }

    pub(in crate::controller) fn say(
        &self,
        severity: Severity,
        service: Option<&ServiceName>,
        words: &str,
    ) {
        self.tell(EventLine {
            at: now(),
            severity,
            service: service.cloned(),
            host: None,
            text: text::clean(words, 400),
        });
    }

    pub(in crate::controller) fn tell(&self, line: EventLine) {
        tracing::info!(
            service = line.service.as_ref().map(ServiceName::as_str),
            host = line.host.as_ref().map(HostName::as_str),
            "{}",
            line.text
        );
        self.hub.publish(Change::Event(line));
    }
}

fn ids(replicas: &[crate::api::ReplicaView]) -> Vec<ReplicaId> {
    replicas.iter().map(|r| r.id).collect()
}
