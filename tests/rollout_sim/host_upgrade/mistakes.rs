//! Mistakes that somebody could make in the decider of an upgrade of hosts.

use super::*;
use deciding::rollout::maintenance::{Drain, HostSeen, Reach};

/// Seeds within which every planted mistake must be caught.
const WITHIN: u64 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The command is run on a host that is not empty.
    SkipDrain,
    /// More hosts at a time than asked for.
    ForgetParallel,
    /// Hosts are begun after a failure, or after a person stopped it.
    ForgetSkip,
    /// A host with fewer GPUs than before counts as back.
    IgnoreGpus,
    /// A host that is not reached counts as back.
    IgnoreDown,
    /// The next host is begun while what stopped for the last one is still out.
    NoWait,
    /// What a person cordoned is uncordoned.
    ForgetCordon,
    /// Hosts are begun although a person holds it.
    ForgetPause,
    /// None at all: what is caught then is the play's own doing.
    Nothing,
}

const MISTAKES: [Mistake; 8] = [
    Mistake::SkipDrain,
    Mistake::ForgetParallel,
    Mistake::ForgetSkip,
    Mistake::IgnoreGpus,
    Mistake::IgnoreDown,
    Mistake::NoWait,
    Mistake::ForgetCordon,
    Mistake::ForgetPause,
];

impl Mistake {
    /// The fleet as a decider with this mistake sees it.
    pub fn blind(self, kept: &mut FleetMaintenance, hosts: &mut BTreeMap<HostName, HostSeen>) {
        let Some(upgrade) = &mut kept.upgrade else { return };
        let entries = upgrade.hosts.iter_mut();
        match self {
            Self::Nothing => {}
            Self::SkipDrain => {
                let draining = entries.filter(|e| matches!(e.state, UpgradeHost::Draining { .. }));
                for entry in draining {
                    let (by, at) = ("ada".to_owned(), entry.since);
                    let drain = Drain { by, since: at, ended: Some(at), trouble: None };
                    kept.drains.insert(entry.host.clone(), drain);
                }
            }
            Self::ForgetPause => upgrade.paused = None,
            Self::ForgetParallel => upgrade.max_parallel = 100,
            Self::ForgetSkip => {
                for entry in entries {
                    entry.state = match entry.state.clone() {
                        UpgradeHost::Skipped { .. } => UpgradeHost::Waiting,
                        UpgradeHost::Failed { .. } => UpgradeHost::Done,
                        state => state,
                    };
                }
            }
            Self::IgnoreGpus => {
                hosts.values_mut().for_each(|host| host.gpus_well = Some(100));
            }
            Self::IgnoreDown => hosts.values_mut().for_each(|host| host.reach = Reach::Up),
            Self::NoWait => {
                let done = entries.filter(|e| e.state == UpgradeHost::Done);
                done.for_each(|entry| entry.since = Timestamp(0));
            }
            Self::ForgetCordon => {
                for entry in entries {
                    if let UpgradeHost::Draining { cordoned_before } = &mut entry.state {
                        *cordoned_before = false;
                    }
                }
            }
        }
    }
}

#[test]
fn mistakes_of_an_upgrade_of_hosts_are_caught() {
    for one in 0..WITHIN {
        seed(one, false, Mistake::Nothing);
    }
    for mistake in MISTAKES {
        let caught = (0..WITHIN)
            .find(|one| std::panic::catch_unwind(|| seed(*one, false, mistake)).is_err());
        println!("{mistake:?}: {caught:?}");
        assert!(caught.is_some(), "{mistake:?} is not caught within {WITHIN} seeds");
    }
}
