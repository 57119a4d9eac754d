//! Hosts that are there and do not let us in any more: the agent that held the key is gone, a certificate
//! has expired, the server has forgotten us. It is a named state of the host and of the deck, and the
//! services on such hosts are held before their next step, until the login is back.
//!
//! The same hold is for services whose hosts another controller has ([`super::company`]): nothing of them is decided here
//! until it is known that nobody else has them; and for those whose step's command waits ([`super::runs`]).
//!
//! A lost login stays lost until the host has let us in again: that it refuses a connection meanwhile,
//! or that this controller was started anew, says nothing about the login.

use std::collections::BTreeSet;

use super::company::{hosts_of, in_words};
use super::core::Core;
use crate::api::DeckConditionKind;
use crate::base::{HostName, ServiceName};
use crate::rollout::{EventKind, HoldCause, ServiceState};

/// Hosts that are named; of the others the number.
const NAMED: usize = 8;

impl Core {
    /// What was lost in an earlier life is lost until a host says otherwise.
    pub(super) fn remember_lost_logins(&mut self) {
        let held = self.state.services.values().filter_map(|s| s.held.as_ref());
        let held = held.filter(|held| held.cause.is_away());
        let lost = held.flat_map(|held| held.hosts.iter().map(|h| (h.clone(), held.why.clone())));
        self.lost_logins = lost.collect();
    }

    /// A host does not let us in.
    pub(super) fn login_lost(&mut self, host: &HostName, why: &str) {
        if self.deck.hosts.contains_key(host) {
            self.lost_logins.insert(host.clone(), crate::base::text::clean(why, 300));
            self.tend_logins();
        }
    }

    /// A host has let us in.
    pub(super) fn login_back(&mut self, host: &HostName) {
        if self.lost_logins.remove(host).is_some() {
            self.tend_logins();
        }
    }

    /// Holds the services on hosts whose login is lost, lets the others go on, and shows the state.
    pub(super) fn tend_logins(&mut self) {
        let deck = &self.deck;
        self.lost_logins.retain(|host, _| deck.hosts.contains_key(host));
        let nothing = self.lost_logins.is_empty()
            && !self.conditions.contains_key(&DeckConditionKind::LoginLost)
            && self.state.services.values().all(|s| s.held.is_none())
            && self.runs.wait_for_nothing()
            && self.means.claims.others().is_empty();
        if nothing {
            return;
        }
        let mut of_services = BTreeSet::new();
        let mut events: Vec<(ServiceName, EventKind)> = Vec::new();
        let mut held = Vec::new();
        let (mut lost, mut back) = (Vec::new(), false);
        for (name, state) in &self.state.services {
            let mut hosts = hosts_of(state, &self.deck);
            hosts.retain(|host| self.lost_logins.contains_key(host));
            of_services.extend(hosts.iter().cloned());
            let known = state.held.as_ref().map(|held| (held.cause, &held.hosts));
            let has_steps = state.active_rollout().is_some() || !state.moves.is_empty();
            if has_steps && !hosts.is_empty() {
                held.push(name.to_string());
            }
            if self.is_still_elsewhere(state) {
                continue;
            }
            let (hosts, why, cause) = match self.holder_of(state) {
                Some((others, why)) => (others, why, HoldCause::Elsewhere),
                None if !hosts.is_empty() => {
                    let why = format!("login-lost: {}", refusing(&hosts));
                    (hosts, why, HoldCause::Away)
                }
                None => match self.runs.waits_for(name) {
                    Some((host, why)) => (BTreeSet::from([host]), why, HoldCause::Unasked),
                    None => {
                        if known.is_some() {
                            back |= state.is_held_elsewhere();
                            events.push((name.clone(), EventKind::HoldEnded));
                        }
                        continue;
                    }
                },
            };
            if known == Some((cause, &hosts)) {
                continue;
            }
            if cause == HoldCause::Elsewhere && !state.is_held_elsewhere() {
                lost.push(name.clone());
            }
            back |= cause != HoldCause::Elsewhere && state.is_held_elsewhere();
            events.push((name.clone(), EventKind::HoldBegan { hosts, why, cause }));
        }
        for service in lost {
            self.leave_to_other(&service);
        }
        for (service, event) in events {
            self.happened(&service, event);
        }
        if back {
            // What was heard meanwhile was not written down.
            self.ask_anew();
        }
        // A host that never let us in and that nothing is to run on is shown as such, and no more.
        let shown: BTreeSet<HostName> = self.hub.with(|s| {
            let reached = |host: &HostName| s.hosts.get(host).is_some_and(|h| h.facts.is_some());
            let lost = self.lost_logins.keys();
            lost.filter(|host| of_services.contains(*host) || reached(host)).cloned().collect()
        });
        let holds = (!shown.is_empty()).then(|| {
            let held = match held.as_slice() {
                [] => String::new(),
                names => {
                    format!("; held before the next step: the rollout of {}", names.join(", "))
                }
            };
            let hint = "load the key with `ssh-add` and attach again: `gpudeck` and `--wait` lend \
                        the agent all the while, other commands while they run; \
                        `gpudeck questions` shows what waits for an answer";
            (format!("{}{held}", refusing(&shown)), Some(hint.to_owned()))
        });
        self.set_condition(DeckConditionKind::LoginLost, holds);
    }
}

impl Core {
    /// Whether a service was another's when it was heard of last, and that is not to be asked, or not known to be over.
    fn is_still_elsewhere(&self, state: &ServiceState) -> bool {
        let Some(held) = state.held.as_ref().filter(|_| state.is_held_elsewhere()) else {
            return false;
        };
        let unasked = |host: &HostName| {
            self.deck.hosts.contains_key(host) && !self.means.claims.was_asked(host)
        };
        self.taking_over.is_some() || held.hosts.iter().any(unasked)
    }

    /// Which hosts of a service are another's, and whose.
    fn holder_of(&self, state: &ServiceState) -> Option<(BTreeSet<HostName>, String)> {
        // Nothing of it could be decided.
        if state.replicas.is_empty() && state.active_rollout().is_none() && !state.stopping {
            return None;
        }
        let others = self.others_of(state);
        let (words, _) = in_words(&others)?;
        Some((others.into_keys().collect(), format!("hosts-held: {words}")))
    }

    /// A service is another controller's: what is under way here ends, and what became of its releases is for the other
    /// one to write down.
    fn leave_to_other(&mut self, service: &ServiceName) {
        self.actions.end(service);
        self.end_command_of(service);
        self.forget_outcomes(service);
    }
}

/// `node1, node2 do not let us in any more`.
fn refusing(hosts: &BTreeSet<HostName>) -> String {
    let names: Vec<&str> = hosts.iter().take(NAMED).map(HostName::as_str).collect();
    let more = hosts.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let verb = if hosts.len() == 1 { "does" } else { "do" };
    format!("{}{more} {verb} not let us in any more", names.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn many_hosts_are_counted() {
        let hosts = |n: u32| (0..n).map(|i| format!("n{i}").parse().unwrap()).collect();
        assert_eq!(refusing(&hosts(1)), "n0 does not let us in any more");
        assert_eq!(refusing(&hosts(2)), "n0, n1 do not let us in any more");
        assert!(refusing(&hosts(20)).ends_with(" and 12 more do not let us in any more"));
    }
}
