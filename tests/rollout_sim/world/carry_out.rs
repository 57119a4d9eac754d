//! What happens: the next thing that is due, and what hosts, engines and the gateway do.

use super::*;

impl World {
    /// Lets the next thing happen.
    pub fn turn(&mut self) {
        if self.faults && self.rng.one_in(25) {
            self.fault();
        }
        let held = self.state.held.is_some();
        if self.faults
            && let Some(dice) = &mut self.holds
            && dice.one_in(if held { 15 } else { 40 })
        {
            self.count("login lost or back");
            self.tell(if held { EventKind::HoldEnded } else { Self::hold() });
        }
        self.tend_queue();
        let next_task = self.tasks.iter().map(|t| (t.due, t.sequence)).min();
        self.play_replaced();
        let tick = Timestamp(self.now.0 + if self.faults { 1_000 } else { 5_000 });
        // The decider names a moment of the controller's clock.
        let wake = next_wake(&self.state).filter(|_| self.bug != Some(Bug::StopTheClock));
        let wake = wake.map_or(tick, |w| {
            let at = w.0.saturating_add_signed(-self.clock_error_ms).max(self.now.0 + 1);
            Timestamp(at).min(tick)
        });
        if self.report_before(next_task.map_or(wake, |(due, _)| due.min(wake))) {
            return;
        }
        match next_task {
            Some((due, sequence)) if due <= wake => {
                self.now = self.now.max(due);
                let index = self.tasks.iter().position(|t| t.sequence == sequence).unwrap();
                let task = self.tasks.swap_remove(index);
                self.carry_out(task);
            }
            _ => {
                self.now = wake;
                self.measure();
                self.tell(EventKind::Tick);
            }
        }
    }

    pub(super) fn down_until(&self, host: &HostName) -> Option<Timestamp> {
        self.hosts_down.get(host).copied().filter(|until| *until > self.now)
    }

    pub(super) fn later(&mut self, task: Task, at: Timestamp) {
        self.sequence += 1;
        self.tasks.push(Task { due: at, sequence: self.sequence, ..task });
    }

    pub(super) fn nature(&self, rank: &RankId) -> Nature {
        self.natures.get(&rank.replica.release).copied().unwrap_or_default()
    }

    pub(super) fn carry_out(&mut self, task: Task) {
        if task.epoch < self.epoch {
            let acts = !matches!(
                task.action,
                Action::AwaitToken { .. }
                    | Action::AwaitDrained { .. }
                    | Action::RunCommand { .. }
                    | Action::RecordOutcome { .. }
            );
            if acts && self.bug != Some(Bug::AcceptOldEpoch) {
                self.count("older epoch refused");
                // So it learns that it was replaced.
                self.replaced = None;
            }
            if !acts || self.bug != Some(Bug::AcceptOldEpoch) {
                return;
            }
        }
        if self.loses_answer(&task) {
            return;
        }
        match task.action.clone() {
            Action::StartRank { rank, plan } => {
                if let Some(until) = self.down_until(&plan.host) {
                    let why = "the host is not reached".to_owned();
                    if self.rng.one_in(2) {
                        let refusal = StartRefusal::NotYet { why };
                        return self.tell(EventKind::RankRefused { rank, refusal });
                    }
                    return self.later(task, until);
                }
                self.start(rank, *plan);
            }
            Action::StopRank { rank, host, .. } => {
                if let Some(until) = self.down_until(&host) {
                    return self.later(task, until);
                }
                let freed = self.now.plus(Duration::from_millis(self.rng.below(8_000)));
                let there = self.replica_of(rank.replica);
                let serves = there.is_some_and(|r| r.phase == Phase::Ready);
                if let Some(there) = self.ranks.get_mut(&rank)
                    && there.running
                {
                    // What is told late about one that died and came back under its number would
                    // be another attempt.
                    assert!(!serves, "a rank of {}, which is ready, is stopped", rank.replica);
                    there.running = false;
                    there.freed = freed;
                    if self.hung.remove(&rank.replica).is_some() {
                        self.count("hung engine stopped");
                    }
                }
                self.tell(EventKind::RankEnded { rank, how: "stopped".to_owned() });
            }
            Action::AwaitToken { replica, plan } => {
                if let Some(until) = self.down_until(&plan.host) {
                    return self.later(task, until);
                }
                if !self.replica_runs(replica) {
                    return; // its end is told by itself
                }
                match self.hung.get(&replica) {
                    Some(&FOR_EVER) => return,
                    Some(&until) if until > self.now => return self.later(task, until),
                    Some(_) => {
                        self.hung.remove(&replica);
                        self.count("hung engine answers again");
                    }
                    None => {}
                }
                let nature = self.natures.get(&replica.release).copied().unwrap_or_default();
                match nature {
                    Nature::Crashes => {
                        let rank =
                            self.ranks.keys().find(|r| r.replica == replica).unwrap().clone();
                        self.kill(&rank, "exit code 1: CUDA out of memory");
                    }
                    // `/health` is fine, and no token ever comes.
                    Nature::Hangs => self.count("engine lies in /health"),
                    _ => {
                        self.generated.insert(replica);
                        self.tell(EventKind::ReplicaReady { replica });
                    }
                }
            }
            Action::ApplyTraffic { version, servers } => {
                self.apply_traffic(version, &servers);
            }
            Action::AwaitDrained { replica } => self.tell(EventKind::Drained { replica }),
            Action::RunCommand { release, step, attempt, run } => {
                let first = attempt == Attempt::FIRST;
                let end = match run.command.first().map(String::as_str) {
                    Some("fails") => RunEnd::Exited { code: 3 },
                    Some("fails-once") if first => RunEnd::Killed { signal: 11 },
                    Some("hangs") => RunEnd::TimedOut,
                    _ => RunEnd::Exited { code: 0 },
                };
                match end {
                    RunEnd::Exited { code: 0 } => {
                        self.count("command ends well");
                        self.good_runs.insert((release, step, attempt));
                    }
                    RunEnd::TimedOut => self.count("command hangs"),
                    _ => self.count("command fails"),
                }
                // Sometimes whoever runs it never says how a hanging one ended.
                if end == RunEnd::TimedOut && self.rng.one_in(3) {
                    return;
                }
                let output = vec!["the last line".to_owned()];
                self.tell(EventKind::RunEnded { release, step, attempt, end, output });
            }
            Action::RecordOutcome { release, outcome } => {
                self.record(release, outcome);
            }
        }
    }

    pub(super) fn record(&mut self, release: ReleaseNumber, outcome: Outcome) {
        if let Some(other) = self.recorded.insert(release, outcome.clone()) {
            assert_eq!(other, outcome, "two outcomes of {release}");
        }
    }

    pub(super) fn start(&mut self, rank: RankId, plan: RankPlan) {
        if let Some(there) = self.ranks.get(&rank) {
            // The same generation again: it conflicts instead of doubling.
            let kind = if there.running {
                EventKind::RankRunning { rank }
            } else {
                EventKind::RankEnded { rank, how: "exit code 1".to_owned() }
            };
            return self.tell(kind);
        }
        if self.nature(&rank) == Nature::Never {
            let refusal = StartRefusal::Never { why: "no such file".to_owned() };
            return self.tell(EventKind::RankRefused { rank, refusal });
        }
        let taken = self.ranks.values().any(|r| {
            r.plan.host == plan.host
                && r.plan.devices.iter().any(|d| *d != DeviceId::Cpu && plan.devices.contains(d))
                && !r.running
                && r.freed > self.now
        });
        let busy = taken && self.bug != Some(Bug::NoMemoryGate);
        let on_cpu = self.ranks.values().filter(|r| r.running && r.plan.devices == [DeviceId::Cpu]);
        let full = self.memory_for.is_some_and(|most| on_cpu.count() >= most);
        if busy || full {
            self.count("memory not yet free");
            let refusal = StartRefusal::NotYet { why: "GPU memory is not free".to_owned() };
            return self.tell(EventKind::RankRefused { rank, refusal });
        }
        assert!(!taken, "{rank:?} starts while the memory of the one before is not free");
        let entry = Rank { running: true, plan, freed: self.now };
        self.ranks.insert(rank.clone(), entry);
        self.check_devices();
        let replica = rank.replica;
        self.tell(EventKind::RankRunning { rank });
        if self.bug == Some(Bug::BelieveHealth) && self.replica_runs(replica) {
            self.tell(EventKind::ReplicaReady { replica });
        }
    }

    /// A rank ends by itself.
    pub fn kill(&mut self, rank: &RankId, how: &'static str) {
        let away = self.ranks.get(rank).filter(|there| there.running);
        if let Some(back) = away.and_then(|there| self.down_until(&there.plan.host)) {
            return self.end_silently(rank.clone(), back, how);
        }
        let freed = self.now.plus(Duration::from_millis(self.rng.below(8_000)));
        if let Some(there) = self.ranks.get_mut(rank)
            && there.running
        {
            there.running = false;
            there.freed = freed;
            self.tell(EventKind::RankEnded { rank: rank.clone(), how: how.to_owned() });
        }
    }

    pub fn running(&self) -> Vec<RankId> {
        self.ranks.iter().filter(|(_, r)| r.running).map(|(id, _)| id.clone()).collect()
    }

    /// The devices that running ranks hold.
    pub fn held(&self) -> BTreeMap<(HostName, DeviceId), RankId> {
        let running = self.ranks.iter().filter(|(_, r)| r.running);
        running
            .flat_map(|(id, r)| {
                r.plan.devices.iter().map(|d| ((r.plan.host.clone(), d.clone()), id.clone()))
            })
            .collect()
    }

    pub fn disk_is_full(&self) -> bool {
        self.disk_full_until > self.now || !self.waiting.is_empty()
    }

    pub fn table(&self) -> &[TrafficServer] {
        &self.gateway.table
    }

    /// Whether the host is reached, and what of the service runs there.
    pub fn look_at_host(&self, host: &HostName) -> (bool, Vec<RankId>) {
        let mut there = self.running();
        there.retain(|rank| self.ranks[rank].plan.host == *host);
        (self.down_until(host).is_none(), there)
    }

    /// A host is without power, and its ranks are not heard of.
    pub fn lose_host(&mut self, host: &str, time: Duration) {
        self.hosts_down.insert(host.parse().unwrap(), self.now.plus(time));
    }

    /// What the gateway counted over the last seconds, by the nature of the releases.
    pub(super) fn measure(&mut self) {
        if self.now.since(self.last_measured) < Duration::from_secs(5) {
            return;
        }
        self.last_measured = self.now;
        let mut windows = BTreeMap::new();
        let later: Vec<RankId> =
            self.running().into_iter().filter(|r| self.nature(r) == Nature::DiesLater).collect();
        for server in &self.gateway.table {
            if server.mode != TrafficMode::Ready || server.weight == 0 {
                continue;
            }
            let bad = self.natures.get(&server.replica.release) == Some(&Nature::Errors);
            let requests = 20;
            let errors = if bad { 7 } else { 0 };
            let window = Window { requests, errors, response_ms_sum: 2_000.0 };
            windows.insert(server.replica, window);
        }
        if !self.no_gateway {
            self.tell(EventKind::Measured { windows });
        }
        for rank in later {
            if self.rng.one_in(30) {
                self.kill(&rank, "segmentation fault");
            }
        }
    }
}
