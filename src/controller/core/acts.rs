//! Actions are begun.

use super::super::actions::Of;
use super::super::gateways::Routes;
use super::Core;
use crate::api::Severity;
use crate::base::ServiceName;
use crate::rollout::{Action, Outcome, Phase, Release, Shared};

/// How the outcome of a release that was never begun begins.
pub(in crate::controller) const NEVER_BEGUN: &str = "it was never begun";

impl Core {
    /// Where the table of a service goes; what it has left and another service fills by now is not its own any more.
    fn routes_of(&self, service: &ServiceName) -> Routes {
        let Some(state) = self.state.services.get(service) else { return Routes::default() };
        let mut routes = Routes::of(&self.deck, state);
        if !routes.leaving.is_empty() {
            let others = self.state.services.values();
            let others = others.filter(|s| s.service != *service && !s.replicas.is_empty());
            let others: Vec<_> = others.flat_map(|s| Routes::of(&self.deck, s).serving).collect();
            routes.leave_to(&others);
        }
        routes
    }

    pub(in crate::controller) fn begin(&mut self, service: &ServiceName, actions: Vec<Action>) {
        let held = self.is_handing_over()
            || self.taking_over.is_some()
            || self.is_behind()
            || self.is_elsewhere(service);
        let actions = if held { Vec::new() } else { actions };
        self.prepare_hosts(service, &actions);
        let routes = self.routes_of(service);
        for action in actions {
            if let Action::RecordOutcome { release, outcome } = &action {
                self.record_outcome(service, *release, outcome);
                continue;
            }
            if let Action::RunCommand { release, step, attempt, run } = &action {
                self.begin_command(service, (*release, *step, *attempt), run);
                continue;
            }
            let Some(release) = self.release_of(service, &action) else { continue };
            let engine = match &action {
                Action::AwaitDrained { replica } => self.engine_at(service, *replica),
                _ => None,
            };
            let state = self.state.services.get(service);
            let is_new = match &action {
                Action::StartRank { rank, .. } => state.is_some_and(|s| s.is_new(rank.replica)),
                _ => false,
            };
            let of = Of { spec: &release.spec, engine, is_new };
            self.actions.begin(service, &self.deck, &routes, of, action);
        }
        if !held {
            self.actions.reroute(service, &self.deck, routes);
            // Those that empty what this one may fill by now.
            for other in self.actions.leaving_something(service) {
                let routes = self.routes_of(&other);
                self.actions.reroute(&other, &self.deck, routes);
            }
        }
        self.end_commands(service);
        if let Some(state) = self.state.services.get(service) {
            self.actions.keep_waiting_for(service, |id| {
                state
                    .replica_of(*id)
                    .is_some_and(|r| matches!(r.phase, Phase::Loading | Phase::Draining { .. }))
            });
        }
    }

    /// The release an action belongs to.
    fn release_of(&self, service: &ServiceName, action: &Action) -> Option<Shared<Release>> {
        let state = self.state.services.get(service)?;
        let number = match action {
            Action::StartRank { rank, .. } | Action::StopRank { rank, .. } => rank.replica.release,
            Action::AwaitToken { replica, .. } | Action::AwaitDrained { replica } => {
                replica.release
            }
            Action::ApplyTraffic { servers, .. } => servers
                .iter()
                .map(|s| s.replica.release)
                .max()
                .or(state.rollout.as_ref().map(|r| r.to))
                .or(state.stable)?,
            Action::RunCommand { release, .. } | Action::RecordOutcome { release, .. } => *release,
        };
        state.releases.get(&number).or_else(|| state.releases.values().next_back()).cloned()
    }

    /// Notes in Git that releases were never begun which were committed here, and whose rollout did not get into the
    /// journal: this controller ended in between, or the commit failed half made.
    pub(in crate::controller) fn note_never_begun(&mut self) {
        for (service, number) in self.state.ledger.never_begun(&self.state.services) {
            let entries = self.repo.as_ref().and_then(|r| r.history(&service, usize::MAX).ok());
            let is_open = entries
                .is_some_and(|all| all.iter().any(|e| e.release == number && e.outcome.is_none()));
            if is_open {
                let why = format!("{NEVER_BEGUN}: its rollout did not get into the journal");
                self.say(Severity::Warning, Some(&service), &format!("{number}: {why}"));
                self.record_outcome(&service, number, &Outcome::Failed { why });
            }
        }
    }
}
