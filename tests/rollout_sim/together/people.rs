//! People who do something to one of the services while they are rolled out together: they stop it, roll it out alone, or
//! edit its spec. What they did stays.

use std::collections::{BTreeMap, BTreeSet};

use deciding::base::{ReleaseNumber, ServiceName};
use deciding::rollout::group::{Begin, Group, GroupEntry, GroupState, GroupSteer};
use deciding::rollout::{EventKind, RolloutKind, ServiceState};

use super::{Line, Mistake, Together};
use crate::build::{single, spec};
use crate::world::Nature;

/// The digest of each spec as it was agreed to.
pub const AGREED: &str = "agreed";

/// The last thing that a person did to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Stopped,
    Applied,
}

/// What others did to single services.
#[derive(Default)]
pub struct Others {
    /// So often they do something yet.
    pub acts: u64,
    /// They wait until one of the services was rolled out.
    pub patient: bool,
    did: BTreeMap<ServiceName, Did>,
    /// What they rolled out.
    releases: BTreeSet<(ServiceName, ReleaseNumber)>,
    /// Specs that are not as they were agreed to.
    edited: BTreeSet<ServiceName>,
}

impl Others {
    pub fn touched(&self, service: &ServiceName) -> bool {
        self.did.contains_key(service)
    }

    pub fn check_forward(&self, service: &ServiceName) {
        let did = self.did.get(service);
        assert!(did.is_none(), "{service} begins after a person {did:?} it");
        assert!(!self.edited.contains(service), "{service} begins with a spec that was edited");
    }

    pub fn check_back(&self, state: &ServiceState) {
        let service = &state.service;
        assert_ne!(self.did.get(service), Some(&Did::Stopped), "{service} is begun after a stop");
        let theirs = |number: ReleaseNumber| self.releases.contains(&(service.clone(), number));
        assert!(!state.stable.is_some_and(theirs), "{service}: what a person rolled out is undone");
        let active = state.active_rollout();
        assert!(active.is_none(), "{service} is undone beside {active:?}");
    }

    pub fn check_end(&self, state: &ServiceState) {
        if self.did.get(&state.service) == Some(&Did::Stopped) {
            assert_eq!(state.stable, None, "{} is served after a stop", state.service);
        }
    }
}

impl Mistake {
    /// The services as a decider with this mistake sees them.
    pub fn blind_to_people(
        self,
        group: &Group,
        services: &mut BTreeMap<ServiceName, ServiceState>,
    ) {
        for entry in &group.services {
            let Some(state) = services.get_mut(&entry.service) else { continue };
            let was_stopped = self == Self::IgnoreStop && state.stopped.take().is_some();
            let GroupState::Done { release, .. } = entry.state else { continue };
            let at_rest = !state.stopping && state.active_rollout().is_none();
            let is_newer = at_rest && state.stable.is_some_and(|stable| stable != release);
            if was_stopped || (self == Self::UndoNewer && is_newer) {
                state.stopping = false;
                state.stable = Some(release);
            }
        }
    }
}

impl Together {
    /// As the controller compares before it begins one.
    pub fn is_as_agreed(&self, seen: &Group, begin: &Begin) -> bool {
        let present = if self.others.edited.contains(&begin.service) { "edited" } else { AGREED };
        seen.entry(&begin.service).unwrap().is_as_agreed(present)
    }

    /// Somebody does something to one of them.
    pub fn meddle(&mut self) {
        let done = |e: &&GroupEntry| matches!(e.state, GroupState::Done { .. });
        let done = self.group.services.iter().find(done);
        if self.others.patient && done.is_none() {
            return;
        }
        let any = &self.group.services[self.rng.index(self.group.services.len())];
        let entry = done.filter(|_| self.others.patient).unwrap_or(any).clone();
        let service = entry.service;
        if self.world(&service).disk_is_full() {
            return;
        }
        self.others.acts -= 1;
        match self.rng.below(4) {
            // What they rolled out is served, and not to go with the others.
            _ if self.theirs_is_served() => self.steer(GroupSteer::Abort),
            0 => self.stop(&service, &entry.state),
            1 if !self.others.edited.remove(&service) => {
                self.count("together: a spec is edited");
                self.others.edited.insert(service);
            }
            1 => {}
            _ => self.apply(&service),
        }
    }

    /// What somebody rolled out alone is served.
    pub fn theirs_is_served(&self) -> bool {
        self.worlds.iter().any(|(service, world)| {
            let theirs = |number| self.others.releases.contains(&(service.clone(), number));
            world.state.active_rollout().is_none() && world.state.stable.is_some_and(theirs)
        })
    }

    fn stop(&mut self, service: &ServiceName, state: &GroupState) {
        let world = self.world(service);
        if !world.state.replicas.is_empty() {
            world.tell(EventKind::StopRequested { by: "bob".to_owned(), reason: None });
            self.count("together: a person stops one");
        } else if *state == GroupState::Waiting && self.group.ended.is_none() {
            let why = "stopped by bob".to_owned();
            self.write(Line::Went(service.clone(), GroupState::Skipped { why }));
            self.count("together: a person stops one");
        } else {
            return;
        }
        self.others.did.insert(service.clone(), Did::Stopped);
    }

    fn apply(&mut self, service: &ServiceName) {
        let world = self.world(service);
        if world.state.active_rollout().is_some() || world.state.stopping {
            return;
        }
        let mut release = crate::build::release(world.fresh_number(), spec(2, 1, 0), &single(0, 2));
        release.service = service.clone();
        let nature = if self.rng.one_in(5) { Nature::Crashes } else { Nature::Good };
        self.keep(&release);
        self.count("together: a person applies one");
        self.others.did.insert(service.clone(), Did::Applied);
        self.others.releases.insert((service.clone(), release.number));
        self.world(service).request(&release, RolloutKind::Apply, nature);
    }
}
