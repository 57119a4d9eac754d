//! Where a service's table goes while releases with different gateways live.

use std::collections::BTreeSet;

use super::{Gateways, beside};
use crate::base::{ReleaseNumber, ServiceName};
use crate::controller::actions::Means;
use crate::controller::traffic::Totals;
use crate::rollout::ServiceState;
use crate::spec::DeckSpec;

/// Where a service's table goes. While releases with different gateways live, all of those have the table, so
/// that nobody's clients are left without; those that only earlier releases had are emptied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// They have the table; the newest release's first.
    pub serving: Vec<Gateways>,
    /// What they have of the service is drained and removed.
    pub leaving: Vec<Gateways>,
}

impl Routes {
    /// Those of a service as it is now.
    pub fn of(deck: &DeckSpec, state: &ServiceState) -> Self {
        let rollout = state.active_rollout();
        let lives = |number: &ReleaseNumber| {
            state.stable == Some(*number)
                || rollout.is_some_and(|r| r.to == *number || r.from == Some(*number))
                || state.replicas.keys().any(|key| key.release == *number)
        };
        let of = |live: bool| {
            let releases = state.releases.iter().rev().filter(move |(n, _)| lives(n) == live);
            let newest = state.releases.keys().rev().find(|n| lives(n));
            releases.filter_map(move |(number, release)| {
                let mut gateways = Gateways::of_release(deck, release)?;
                // What was taken out of the deck is gone for good for whoever is to leave it.
                if newest.is_some_and(|newest| newest != number) {
                    gateways.unknown.clear();
                }
                (!gateways.places.is_empty() || !gateways.unknown.is_empty()).then_some(gateways)
            })
        };
        let mut routes = Self::default();
        for gateways in of(true) {
            routes.serving.extend(gateways.beside(&routes.serving));
        }
        // Nothing that is served: the last release's table is the empty one.
        if routes.serving.is_empty() {
            routes.serving.extend(of(false).next());
        }
        for gateways in of(false) {
            let rest = gateways.beside(&routes.serving);
            routes.leaving.extend(rest.and_then(|rest| rest.beside(&routes.leaving)));
        }
        let by_rule = of(true).chain(of(false)).filter(|g| g.canary.is_some());
        let by_rule: BTreeSet<String> = by_rule.map(|g| g.backend).collect();
        for gateways in routes.serving.iter_mut().chain(&mut routes.leaving) {
            gateways.left_canary = gateways.canary.is_none() && by_rule.contains(&gateways.backend);
        }
        routes.leaving = beside::left_by_files(routes.leaving, &routes.serving);
        for gateways in &mut routes.leaving {
            gateways.leaving = true;
        }
        beside::hold_together(&mut routes.serving);
        routes
    }

    /// What `others` fill by now is theirs: it is not emptied any more.
    pub fn leave_to(&mut self, others: &[Gateways]) {
        for left in &mut self.leaving {
            let backends = left.own_backends();
            let is_theirs = |name: &ServiceName| {
                let mut there = others.iter().filter(|other| other.places.contains_key(name));
                there.any(|other| other.own_backends().iter().any(|b| backends.contains(b)))
            };
            left.places.retain(|name, _| !is_theirs(name));
        }
        self.leaving.retain(|left| !left.places.is_empty() || !left.unknown.is_empty());
    }

    /// Whether a gateway is in front of the service.
    pub fn is_empty(&self) -> bool {
        self.serving.is_empty()
    }

    /// What all of them count; none unless all can be read.
    pub async fn counters(&self, means: &Means) -> Option<Totals> {
        let mut all = Totals::new();
        for gateways in &self.serving {
            all.extend(gateways.counters(means).await?);
        }
        Some(all)
    }
}
