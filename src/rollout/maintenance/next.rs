//! What is next to be done for hosts that are upgraded: cordon, drain, run a command there, wait until the host is back
//! with all of its GPUs, uncordon, next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{FleetMaintenance, Upgrade, UpgradeEntry, UpgradeHost};
use crate::base::{HostName, ServiceName, Timestamp, text, time};
use crate::rollout::ServiceState;

/// A host must be up for so long after its command before it counts as back: a reboot that was asked for
/// takes a moment to cut the link.
const SETTLE: Duration = Duration::from_secs(10);

/// A host is told so often to forget the command; what is left of it then is not worth waiting for.
const FORGET_TRIES: u32 = 3;

/// Whether a host is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nothing was heard of it yet, good or bad.
    Unknown,
    /// Its agent answers.
    Up,
    /// It is not reached.
    Down {
        /// Why.
        cause: String,
    },
    /// It waits for a person, or answers without an agent.
    Partly,
}

/// What is known of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSeen {
    /// Whether it is reached.
    pub reach: Reach,
    /// GPUs that answer and of which nothing bad is known, by its newest reading. None: there is no reading.
    pub gpus_well: Option<u32>,
    /// When that was read.
    pub read: Option<Timestamp>,
    /// Its present boot.
    pub boot: Option<String>,
}

impl HostSeen {
    /// It was heard of once, good or bad.
    pub const fn is_settled(&self) -> bool {
        match self.reach {
            Reach::Unknown => false,
            Reach::Up => self.gpus_well.is_some(),
            Reach::Down { .. } | Reach::Partly => true,
        }
    }
}

/// What is decided upon.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Now.
    pub now: Timestamp,
    /// The hosts of the deck.
    pub hosts: &'a BTreeMap<HostName, HostSeen>,
    /// The services of the deck.
    pub services: &'a BTreeMap<ServiceName, ServiceState>,
}

/// What is remembered between two looks; a controller that is killed loses nothing by it.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Hosts for which something is being done that answers later.
    pub busy: BTreeSet<HostName>,
    up_since: BTreeMap<HostName, Timestamp>,
    /// Hosts that are back and were told to forget the command: how often, and whether they have.
    forgot: BTreeMap<HostName, (u32, bool)>,
    /// Since when the hosts that are to be drained, or were, are not heard of.
    unheard_since: BTreeMap<HostName, Timestamp>,
    /// Hosts that could not be emptied beside these.
    put_off: BTreeMap<HostName, BTreeSet<HostName>>,
}

impl Watch {
    /// A host has come further.
    pub fn went(&mut self, host: &HostName) {
        self.up_since.remove(host);
        self.forgot.remove(host);
        self.unheard_since.remove(host);
    }

    /// A host was told to forget the command.
    pub fn told_to_forget(&mut self, host: &HostName, has: bool) {
        let (tries, done) = self.forgot.entry(host.clone()).or_default();
        *tries = tries.saturating_add(1);
        *done |= has;
    }

    /// A host could not be emptied beside these: it is tried again when one of them is not away any more.
    pub(super) fn put_off(&mut self, host: &HostName, beside: BTreeSet<HostName>) {
        self.put_off.insert(host.clone(), beside);
    }

    pub(super) fn is_put_off(&self, host: &HostName, away: &BTreeSet<HostName>) -> bool {
        let beside = self.put_off.get(host);
        beside.is_some_and(|beside| !beside.is_empty() && beside.is_subset(away))
    }

    fn has_forgotten(&self, host: &HostName) -> bool {
        self.forgot.get(host).is_some_and(|(tries, has)| *has || *tries >= FORGET_TRIES)
    }

    /// Whether what is not heard of was waited for long enough.
    fn is_unheard_for(&mut self, host: &HostName, now: Timestamp, patience: Duration) -> bool {
        let since = self.unheard_since.entry(host.clone()).or_insert(now);
        now > since.plus(patience)
    }
}

/// What is to be done for an upgrade of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpgradeMove {
    /// One of them has come further: to be journaled.
    Went {
        /// Which.
        host: HostName,
        /// How far.
        state: UpgradeHost,
    },
    /// It is to be cordoned and emptied; it is busy until that has begun or is refused.
    Drain {
        /// Which.
        host: HostName,
    },
    /// The command is to be run there, or to be looked after if it runs; the host is busy until it is over.
    Run {
        /// Which.
        host: HostName,
    },
    /// What the command left there is to be removed; the host is busy until it answers.
    Forget {
        /// Which.
        host: HostName,
    },
}

fn went(host: &HostName, state: UpgradeHost) -> UpgradeMove {
    UpgradeMove::Went { host: host.clone(), state }
}

fn failed(host: &HostName, why: &str) -> UpgradeMove {
    went(host, UpgradeHost::Failed { why: text::clean(why, 400) })
}

impl FleetMaintenance {
    /// What is next for the upgrade of hosts, one thing at a time. None: somebody or something is waited for.
    pub fn next_of_upgrade(&self, seen: &Seen<'_>, watch: &mut Watch) -> Option<UpgradeMove> {
        let upgrade = self.present_upgrade()?;
        let next = upgrade.next_in_row().map(|entry| &entry.host);
        let begins = next.filter(|_| self.upgrade_waits_for(seen, watch).is_none());
        upgrade.hosts.iter().find_map(|entry| {
            let host = &entry.host;
            match &entry.state {
                UpgradeHost::Waiting if begins == Some(host) => {
                    // One that is tried again is cordoned still.
                    let closed = || self.host_cordon(host).is_some();
                    let cordoned_before = entry.cordoned_before.unwrap_or_else(closed);
                    Some(went(host, UpgradeHost::Draining { cordoned_before }))
                }
                UpgradeHost::Draining { cordoned_before } if !watch.busy.contains(host) => {
                    self.drained(upgrade, host, *cordoned_before, seen, watch)
                }
                UpgradeHost::Running { .. } if !watch.busy.contains(host) => {
                    Some(UpgradeMove::Run { host: host.clone() })
                }
                UpgradeHost::Returning { gpus, .. } => returned(upgrade, entry, *gpus, seen, watch),
                _ => None,
            }
        })
    }

    fn drained(
        &self,
        upgrade: &Upgrade,
        host: &HostName,
        cordoned_before: bool,
        seen: &Seen<'_>,
        watch: &mut Watch,
    ) -> Option<UpgradeMove> {
        let patience = upgrade.patience();
        let drain = match self.drains.get(host) {
            Some(drain) if drain.ended.is_none() => return None,
            Some(drain) if drain.since >= upgrade.began => drain,
            _ => {
                // Right after a start not every host has been reached yet: where there is room is not known.
                let unheard = !seen.hosts.values().all(HostSeen::is_settled);
                if unheard && !watch.is_unheard_for(host, seen.now, patience) {
                    return None;
                }
                return Some(UpgradeMove::Drain { host: host.clone() });
            }
        };
        if let Some(why) = &drain.trouble {
            return Some(failed(host, why));
        }
        let Some(there) = seen.hosts.get(host) else {
            return Some(failed(host, "it is not in the deck any more"));
        };
        // Right after a start it has not been reached yet.
        if !there.is_settled() {
            let late = watch.is_unheard_for(host, seen.now, patience);
            let why = format!("nothing was read of it for {}", time::short(patience));
            return late.then(|| failed(host, &why));
        }
        match (&there.reach, there.gpus_well) {
            (Reach::Up, Some(gpus)) => {
                let before = upgrade.entry(host).and_then(|entry| entry.gpus_before);
                let gpus = gpus.max(before.unwrap_or(0));
                let boot = there.boot.clone();
                Some(went(host, UpgradeHost::Running { gpus, boot, cordoned_before }))
            }
            _ => Some(failed(host, "it is not reached")),
        }
    }
}

/// Whether a host is back, with all of its GPUs and for a while.
fn returned(
    upgrade: &Upgrade,
    entry: &UpgradeEntry,
    gpus: u32,
    seen: &Seen<'_>,
    watch: &mut Watch,
) -> Option<UpgradeMove> {
    let host = &entry.host;
    let Err(missing) = is_whole(seen.hosts.get(host), entry.since, gpus) else {
        let since = *watch.up_since.entry(host.clone()).or_insert(seen.now);
        if seen.now.since(since) < SETTLE || watch.busy.contains(host) {
            return None;
        }
        // While it is still waited for: a controller that is killed meanwhile leaves it to the next one.
        if !watch.has_forgotten(host) {
            return Some(UpgradeMove::Forget { host: host.clone() });
        }
        return Some(went(host, UpgradeHost::Done));
    };
    watch.up_since.remove(host);
    watch.forgot.remove(host);
    let patience = upgrade.patience();
    let late = seen.now > entry.since.plus(patience);
    late.then(|| failed(host, &format!("not back after {}: {missing}", time::short(patience))))
}

/// What is missing, in words.
fn is_whole(there: Option<&HostSeen>, since: Timestamp, gpus: u32) -> Result<(), String> {
    let there = there.ok_or("it is not in the deck any more")?;
    match (&there.reach, there.gpus_well) {
        (Reach::Up, Some(well)) if there.read > Some(since) => {
            if well >= gpus {
                return Ok(());
            }
            Err(format!("only {well} of {gpus} GPUs are back and well"))
        }
        (Reach::Down { cause }, _) => Err(cause.clone()),
        _ => Err("it is not reached yet".to_owned()),
    }
}
