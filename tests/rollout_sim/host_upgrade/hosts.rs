//! Hosts of their own: they run a command once, restart, stay away, lose a GPU.

use super::*;
use deciding::rollout::maintenance::{HostSeen, Reach};

/// What an upgrade's command does to its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ends with exit code 0.
    Well,
    /// Ends with another one.
    Fails,
    /// Never ends.
    Hangs,
    /// The host restarts.
    Restarts,
    /// Ends with exit code 0, and the host restarts a few seconds after that.
    RestartsSoon,
    /// The host restarts, and a GPU is missing for so many seconds.
    LosesGpu(u64),
    /// The host restarts and is not heard of again.
    NeverBack,
}

#[derive(Clone, Copy, Debug)]
pub struct Command {
    pub kind: Kind,
    ends: Timestamp,
    /// It has had its effect.
    pub over: bool,
}

/// A host.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    away_until: Timestamp,
    /// A GPU is missing until then.
    less_until: Timestamp,
    pub boot: u32,
    /// When its last command was started.
    pub boot_before: u32,
    pub command: Option<Command>,
}

impl Machine {
    pub const fn new() -> Self {
        Self {
            away_until: Timestamp(0),
            less_until: Timestamp(0),
            boot: 0,
            boot_before: 0,
            command: None,
        }
    }
}

const FOR_EVER: Timestamp = Timestamp(u64::MAX);

impl HostUpgrade {
    pub(super) fn is_reached(&self, host: &HostName) -> bool {
        let away = self.machines[host].away_until > self.now;
        !away && self.worlds.values().all(|world| world.look_at_host(host).0)
    }

    /// GPUs that are really there.
    pub(super) fn gpus(&self, host: &HostName) -> u32 {
        if self.machines[host].less_until > self.now { GPUS - 1 } else { GPUS }
    }

    pub(super) fn hosts_seen(&self) -> BTreeMap<HostName, HostSeen> {
        let seen = |host: &HostName| {
            let reach = if self.is_reached(host) {
                Reach::Up
            } else {
                Reach::Down { cause: "no route to host".to_owned() }
            };
            HostSeen {
                reach,
                gpus_well: Some(self.gpus(host)),
                read: Some(Timestamp(self.now.0.saturating_sub(1_000))),
                boot: Some(self.machines[host].boot.to_string()),
            }
        };
        self.machines.keys().map(|host| (host.clone(), seen(host))).collect()
    }

    /// Commands come to their ends, by themselves.
    pub(super) fn machines_go_on(&mut self) {
        for host in self.machines.keys().cloned().collect::<Vec<_>>() {
            let machine = self.machines[&host];
            if let Some(command) = machine.command.filter(|c| c.ends <= self.now) {
                self.have_effect(&host, command);
            }
            let away = self.machines[&host].away_until;
            if away > self.now {
                for world in self.worlds.values_mut() {
                    world.lose_host(host.as_str(), away.since(world.now));
                }
            }
        }
    }

    fn have_effect(&mut self, host: &HostName, command: Command) {
        let restart = match command.kind {
            Kind::Well | Kind::Fails | Kind::Hangs => None,
            Kind::RestartsSoon if !command.over => {
                let ends = self.now.plus(Duration::from_secs(1 + self.rng.below(7)));
                self.machine(host).command = Some(Command { over: true, ends, ..command });
                return;
            }
            Kind::RestartsSoon => Some(self.now.plus(Duration::from_secs(60))),
            Kind::Restarts => Some(self.now.plus(Duration::from_secs(5 + self.rng.below(400)))),
            Kind::LosesGpu(seconds) => {
                let back = self.now.plus(Duration::from_secs(30));
                self.machine(host).less_until = back.plus(Duration::from_secs(seconds));
                Some(back)
            }
            Kind::NeverBack => Some(FOR_EVER),
        };
        let machine = self.machine(host);
        machine.command = Some(Command { over: true, ends: FOR_EVER, ..command });
        if let Some(until) = restart {
            machine.away_until = until;
            machine.boot += 1;
            let now = self.now;
            for world in self.worlds.values_mut() {
                world.catch_up(now);
                world.restart_host(host, until.since(now));
            }
        }
    }

    fn machine(&mut self, host: &HostName) -> &mut Machine {
        self.machines.get_mut(host).unwrap()
    }

    /// Starts the command, or says how it ended.
    pub(super) fn look_after_command(&mut self, host: &HostName) -> Option<UpgradeHost> {
        let entry = self.upgrade().hosts.iter().find(|e| e.host == *host)?.clone();
        let UpgradeHost::Running { gpus, boot, cordoned_before } = entry.state else {
            return Some(entry.state);
        };
        let late = self.now > entry.since.plus(PATIENCE);
        let failed = |why: &str| Some(UpgradeHost::Failed { why: why.to_owned() });
        if !self.is_reached(host) {
            let given_up = self.now > entry.since.plus(PATIENCE).plus(Duration::from_mins(5));
            return if given_up { failed("how it ended is not known") } else { None };
        }
        let Some(command) = self.machines[host].command else {
            if late {
                return failed("it was not reached in time");
            }
            self.start_command(host);
            return None;
        };
        let well = |said: &str| {
            Some(UpgradeHost::Returning { gpus, said: said.to_owned(), cordoned_before })
        };
        if !command.over {
            return if late { failed("the command took too long") } else { None };
        }
        match command.kind {
            Kind::Hangs if !late => None,
            Kind::Hangs => failed("the command took too long"),
            Kind::Fails => failed("exit code 3"),
            Kind::Well | Kind::RestartsSoon => well("exit code 0"),
            _ if boot == Some(self.machines[host].boot.to_string()) => failed("it was ended"),
            _ => well("the host was restarted"),
        }
    }

    fn start_command(&mut self, host: &HostName) {
        self.check_command(host);
        let kind = match self.rng.below(20) {
            0 => Kind::Fails,
            1 => Kind::Hangs,
            2 => Kind::LosesGpu(60 + self.rng.below(2_400)),
            3 => Kind::NeverBack,
            4 | 5 => Kind::RestartsSoon,
            n if n % 2 == 0 => Kind::Well,
            _ => Kind::Restarts,
        };
        self.count(match kind {
            Kind::Well => "hosts: command ends well",
            Kind::Fails => "hosts: command fails",
            Kind::Hangs => "hosts: command hangs",
            Kind::Restarts => "hosts: host restarts",
            Kind::RestartsSoon => "hosts: host restarts after its command",
            Kind::LosesGpu(_) => "hosts: GPU is missing",
            Kind::NeverBack => "hosts: host does not come back",
        });
        let ends = self.now.plus(Duration::from_secs(self.rng.below(300)));
        let machine = self.machine(host);
        machine.boot_before = machine.boot;
        machine.command = Some(Command { kind, ends, over: false });
    }

    /// The command is started once more, under another name; what is left of the last time is ended for it.
    pub(super) fn forget_last_command(&mut self, host: &HostName) {
        self.machine(host).command = None;
    }

    /// What is broken is repaired.
    pub(super) fn repair(&mut self) {
        let now = self.now;
        for machine in self.machines.values_mut() {
            machine.away_until = now;
            machine.less_until = now;
        }
        for world in self.worlds.values_mut() {
            world.calm();
        }
    }
}
