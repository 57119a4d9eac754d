//! What must always be true of an upgrade of hosts.

use super::hosts::Kind;
use super::*;
use deciding::rollout::LentTo;

impl HostUpgrade {
    /// What is written down is true, and may happen now.
    pub(super) fn check_line(&self, line: &Line) {
        let Line::Went(host, state) = line else { return };
        let upgrade = self.upgrade();
        let entry = upgrade.hosts.iter().find(|e| e.host == *host).unwrap();
        match state {
            UpgradeHost::Draining { .. } => {
                assert_eq!(entry.state, UpgradeHost::Waiting, "{host} is begun again");
                let under_way = upgrade.hosts.iter().filter(|e| e.state.is_under_way()).count();
                let most = usize::try_from(upgrade.max_parallel).unwrap();
                assert!(under_way < most, "{under_way} are under way, and {host} is begun");
                let retried = entry.retries > 0;
                assert!(!self.stopped || retried, "{host} is begun after it was stopped");
                assert!(upgrade.paused.is_none(), "{host} is begun while it is paused");
                self.check_nothing_is_out_for_the_last(host);
            }
            UpgradeHost::Done => {
                let command = self.machines[host].command.expect("done without its command");
                let well = !matches!(command.kind, Kind::Fails | Kind::Hangs | Kind::NeverBack);
                assert!(command.over && well, "{host} is done: {command:?}");
                let restarted = self.machines[host].boot > self.machines[host].boot_before;
                assert_eq!(restarted, command.kind != Kind::Well, "{host} is done: {command:?}");
                assert!(self.is_reached(host), "{host} is done and not reached");
                assert_eq!(self.gpus(host), GPUS, "{host} is done and lacks GPUs");
            }
            _ => {}
        }
    }

    /// What stopped for a host that is done serves again, or was waited for long enough.
    fn check_nothing_is_out_for_the_last(&self, next: &HostName) {
        for entry in &self.upgrade().hosts {
            let retried = self.upgrade().entry(next).is_some_and(|e| e.retries > 0);
            assert!(
                retried || !matches!(entry.state, UpgradeHost::Failed { .. }),
                "{next} is begun after {} failed",
                entry.host
            );
            let waited = self.now > entry.since.plus(PATIENCE);
            let closed = self.kept.host_cordon(&entry.host).is_some();
            if entry.state != UpgradeHost::Done || waited || closed {
                continue;
            }
            for (service, world) in &self.worlds {
                let out = world.state.loans.iter().find(
                    |loan| matches!(&loan.to, LentTo::Maintenance { host } if *host == entry.host),
                );
                assert!(out.is_none(), "{next} is begun while {service} misses {out:?}");
            }
        }
    }

    /// A command begins: only on a host that is cordoned, empty, and has not run it.
    pub(super) fn check_command(&self, host: &HostName) {
        assert!(self.machines[host].command.is_none(), "{host} runs the command again");
        assert!(self.kept.host_cordon(host).is_some(), "{host} is not cordoned");
    }

    /// Nothing of ours runs on a host that somebody may be about to restart.
    pub(super) fn check_hosts(&self) {
        for entry in &self.upgrade().hosts {
            let at_work =
                matches!(entry.state, UpgradeHost::Running { .. } | UpgradeHost::Returning { .. });
            for world in self.worlds.values().filter(|_| at_work) {
                let there = world.look_at_host(&entry.host).1;
                assert!(there.is_empty(), "{there:?} run on {}, which is worked at", entry.host);
            }
        }
    }

    /// It is over: hosts that are done take new ranks unless a person closed them, those that failed after something was
    /// done to them do not.
    pub(super) fn check_end(&mut self) {
        let upgrade = self.upgrade().clone();
        assert!(upgrade.ended.is_some(), "the upgrade has not ended: {upgrade:#?}");
        let mut failed = 0;
        for entry in &upgrade.hosts {
            let closed = self.kept.host_cordon(&entry.host).is_some();
            match &entry.state {
                UpgradeHost::Done => {
                    let persons = self.persons.contains(&entry.host);
                    assert_eq!(closed, persons, "{} is done", entry.host);
                }
                UpgradeHost::Failed { why } => {
                    failed += 1;
                    let worked_at = self.machines[&entry.host].command.is_some();
                    assert!(closed || !worked_at, "{} failed ({why}) and is open", entry.host);
                }
                UpgradeHost::Skipped { .. } => {}
                state => panic!("{} is still {state:?}", entry.host),
            }
        }
        let stopped = self.stopped;
        self.count(match (failed, stopped) {
            (0, false) => "hosts: all upgraded",
            (0, true) => "hosts: upgraded until it was stopped",
            _ => "hosts: upgrade failed",
        });
    }
}
