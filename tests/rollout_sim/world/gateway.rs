//! The gateway: it holds the table that was ordered, is away at times, and may have forgotten the table when it is back.
//! Whoever keeps the table for the controller looks after that, as the controller's own keeper does.

use deciding::rollout::Shared;

use super::*;

/// From an order until the gateway has it, while nothing is in the way: it is told within a second, and looked at
/// every two.
const LAG: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Gateway {
    pub(super) table: Vec<TrafficServer>,
    version: u64,
    pub(super) down_until: Timestamp,
    /// It restarted then, and has not been told its table again.
    emptied: Option<Timestamp>,
    /// What each version of the table was ordered to be, and when: the present one and those after it.
    ordered: BTreeMap<u64, (Timestamp, Shared<Vec<TrafficServer>>)>,
    /// The newest version that the present controller's keeper was given; none before its first.
    kept: Option<u64>,
    told_applied: Option<u64>,
    told_failed: Option<u64>,
    /// Until here it could not be had what was ordered: it was away, or the controller was.
    excused: Timestamp,
}

impl World {
    /// The gateway is away; or one that restarts, and has lost what it was told at run time.
    pub fn break_gateway(&mut self, time: Duration) {
        self.gateway.down_until = self.gateway.down_until.max(self.now.plus(time));
    }

    /// It is as late as that where others are: what is due has not had its turn yet.
    pub fn catch_up(&mut self, now: Timestamp) {
        if now > self.now {
            self.now = now;
            self.gateway.excused = now;
        }
    }

    /// It is there again, from now on.
    pub(super) fn gateway_is_back(&mut self) {
        self.gateway.down_until = self.gateway.down_until.min(self.now);
    }

    pub(super) fn restart_gateway(&mut self, time: Duration) {
        self.break_gateway(time);
        self.gateway.table.clear();
        self.gateway.emptied = Some(self.now).filter(|_| self.gateway.version > 0);
        self.keeper_looks(2_000);
    }

    /// The keeper looks at the gateway so many milliseconds at most after it is back.
    fn keeper_looks(&mut self, within: u64) {
        let pause = Duration::from_millis(50 + self.rng.below(within));
        let due = self.gateway.down_until.max(self.now).plus(pause);
        self.look_at_gateway(due);
    }

    /// Another controller begins: its keeper knows nothing yet.
    pub(super) fn new_keeper(&mut self) {
        self.gateway.kept = None;
        self.gateway.told_applied = None;
        self.gateway.told_failed = None;
        self.gateway.excused = self.now;
    }

    /// Somebody has given the gateway a backend of the service: the keeper finds it at its next look.
    pub fn gets_backend(&mut self) {
        self.lacks_backend = false;
        self.keeper_looks(1_000);
    }

    /// An order reaches the keeper.
    pub(super) fn apply_traffic(&mut self, version: u64, servers: &[TrafficServer]) {
        if self.gateway.kept.is_some_and(|kept| kept > version) {
            return; // left over from a controller that was killed
        }
        self.gateway.kept = Some(version);
        if self.gateway.down_until > self.now {
            self.keeper_looks(1_000);
            if self.gateway.told_failed != Some(version) {
                self.gateway.told_failed = Some(version);
                let why = "no such socket".to_owned();
                self.tell(EventKind::TrafficFailed { version, why, lacks_backend: false });
            }
            return;
        }
        if self.lacks_backend {
            // Told each time: whether it has one by now is seen when the decider asks again.
            let why = "no such backend".to_owned();
            return self.tell(EventKind::TrafficFailed { version, why, lacks_backend: true });
        }
        self.set_table(version, servers);
        self.tell_applied(version);
    }

    /// It took the table, and nobody heard of it: it is told again.
    pub(super) fn lose_table(&mut self, version: u64, servers: &[TrafficServer]) {
        if self.gateway.down_until > self.now || self.gateway.kept.is_some_and(|k| k > version) {
            return self.apply_traffic(version, servers);
        }
        self.gateway.kept = Some(version);
        self.set_table(version, servers);
        self.keeper_looks(1_000);
        self.gateway.told_failed = Some(version);
        let why = "the connection was lost".to_owned();
        self.tell(EventKind::TrafficFailed { version, why, lacks_backend: false });
    }

    fn tell_applied(&mut self, version: u64) {
        let failed = self.gateway.told_failed.take().is_some();
        if self.gateway.told_applied.replace(version) != Some(version) || failed {
            self.tell(EventKind::TrafficApplied { version });
        }
    }

    /// The keeper tells what it was given, if the gateway has something else.
    pub(super) fn look_again(&mut self) {
        let Some(kept) = self.gateway.kept else { return };
        if self.lacks_backend {
            return;
        }
        if self.gateway.down_until > self.now {
            return self.keeper_looks(1_000);
        }
        if self.gateway.emptied.is_some() && self.bug == Some(Bug::ForgetRestart) {
            return;
        }
        let ordered = self.gateway.ordered.get(&kept).map(|(_, servers)| servers.clone());
        if let Some(servers) = ordered {
            if self.gateway.emptied.is_some() {
                self.count("gateway told its table again");
            }
            self.set_table(kept, &servers);
            self.tell_applied(kept);
        }
    }

    /// What is there is never replaced by something older.
    pub(super) fn set_table(&mut self, version: u64, servers: &[TrafficServer]) {
        if version < self.gateway.version || self.gateway.down_until > self.now {
            return;
        }
        self.gateway.table = servers.to_vec();
        self.gateway.version = version;
        self.gateway.emptied = None;
        self.gateway.ordered.retain(|ordered, _| *ordered >= version);
    }

    /// Writes down what was ordered.
    pub(super) fn note_orders(&mut self, actions: &[Action]) {
        for action in actions {
            let Action::ApplyTraffic { version, servers } = action else { continue };
            let order = self.gateway.ordered.entry(*version);
            let (_, first) = order.or_insert_with(|| (self.now, servers.clone()));
            assert_eq!(first, servers, "two tables of version {version} were ordered");
        }
        // What the decider takes for ordered counts as that.
        let (version, servers) = (self.state.traffic_version, &self.state.traffic);
        if version > self.gateway.version {
            let order = self.gateway.ordered.entry(version);
            order.or_insert_with(|| (self.now, servers.clone()));
        }
    }

    /// The gateway has a table that was ordered, and not for long an older one than the newest.
    pub(super) fn check_gateway(&mut self) {
        let gateway = &mut self.gateway;
        gateway.excused = gateway.excused.max(gateway.down_until.min(self.now));
        if self.lacks_backend {
            gateway.excused = self.now;
        }
        if gateway.emptied.is_none()
            && let Some((_, ordered)) = gateway.ordered.get(&gateway.version)
        {
            assert_eq!(
                gateway.table, **ordered,
                "the gateway has another table than version {} was ordered to be",
                gateway.version
            );
        }
        let newer = gateway.ordered.range(gateway.version + 1..).next();
        let since = gateway.emptied.into_iter().chain(newer.map(|(_, (at, _))| *at)).min();
        let lag = since.map(|since| self.now.since(since.max(gateway.excused)));
        assert!(
            lag.is_none_or(|lag| lag <= LAG),
            "the gateway lacks for {lag:?} what was ordered: it has version {} (emptied: {:?})",
            gateway.version,
            gateway.emptied
        );
    }
}
