//! Controllers that die, are replaced, or act on in ignorance of it.

use super::*;

impl World {
    /// The controller dies: of what was under way some was done and nobody heard of it, some was
    /// never done, some goes on. A new one has the journal.
    pub fn crash(&mut self) {
        self.crash_for(Duration::ZERO);
    }

    /// The same, and for so long there is no other one.
    pub fn crash_for(&mut self, away: Duration) {
        self.count("controller killed");
        self.say(|| format!("## the controller is killed; the next one comes after {away:?}"));
        self.journal.truncate(self.durable);
        self.waiting.clear();
        let (read, mut again) = self.checkpoint.clone();
        let read = if self.bug == Some(Bug::ReplayTwice) { read.saturating_sub(20) } else { read };
        for event in self.journal.iter().skip(read) {
            let text = serde_json::to_string(event).unwrap();
            step(&mut again, &serde_json::from_str(&text).unwrap());
        }
        assert_eq!(again, self.state, "replay differs");
        let text = serde_json::to_string(&again).unwrap();
        self.state = serde_json::from_str(&text).unwrap();
        self.checkpoint = (self.journal.len(), again);
        let (seen_alive, lost) = (self.clock(), self.awaited_run());
        self.now = self.now.plus(away);
        let tasks = std::mem::take(&mut self.tasks);
        for task in tasks {
            match self.rng.below(3) {
                0 => {}
                // A command is ended before it is run again.
                _ if matches!(task.action, Action::RunCommand { .. }) => {}
                // What a replaced controller sent is refused also when nobody hears of it.
                1 if task.epoch < self.epoch => {}
                1 => self.silently(&task.action),
                _ => self.tasks.push(task),
            }
        }
        self.new_keeper();
        self.make_good(seen_alive, away);
        let mut actions = outstanding(&self.state);
        if self.bug == Some(Bug::ForgetOutstanding) {
            actions.clear();
        }
        self.take(actions);
        self.lose_command(lost);
        self.hosts_report();
        if self.bug == Some(Bug::LoseQueued) {
            self.wishes.clear();
        }
    }

    /// What the next controller does first: it writes down that nobody was there. (Not on a full disk.)
    pub(super) fn make_good(&mut self, seen_alive: Timestamp, away: Duration) {
        let runs = self.state.active_rollout().is_some()
            || self.state.replicas.values().any(|r| r.phase != Phase::Ready);
        let is_held = self.state.held.is_some();
        if away.is_zero() || is_held || !runs || self.disk_full_until > self.now {
            return;
        }
        self.count("nobody there for long");
        self.away += away;
        if self.bug != Some(Bug::CountTheAbsence) {
            let why = "no controller was there".to_owned();
            let (hosts, cause) = (BTreeSet::new(), HoldCause::Away);
            self.decide_at(EventKind::HoldBegan { hosts, why, cause }, seen_alive);
            self.decide(EventKind::HoldEnded);
        }
    }

    /// The hosts say what runs: whatever ended while nobody listened is told now.
    pub(super) fn hosts_report(&mut self) {
        let state = &self.state;
        let gone: Vec<RankId> = state
            .replicas
            .iter()
            .filter(|(_, r)| {
                matches!(r.phase, Phase::Loading | Phase::Ready | Phase::Draining { .. })
            })
            .flat_map(|(key, _)| state.rank_ids(*key))
            .filter(|rank| self.ranks.get(rank).is_none_or(|there| !there.running))
            .collect();
        for rank in gone {
            let plan = self.state.releases[&rank.replica.release].replica(rank.replica.replica);
            let host = plan.unwrap().ranks[usize::try_from(rank.rank).unwrap()].host.clone();
            if let Some(back) = self.down_until(&host) {
                self.told_ended(rank, host, back, "it is not there any more");
                continue;
            }
            self.tell(EventKind::RankEnded { rank, how: "it is not there any more".to_owned() });
        }
    }

    /// Another controller takes the hosts over, knowing what the first one journaled. The first one
    /// lives, has tasks under way and may decide more, until a host tells it.
    pub(super) fn take_over(&mut self) {
        if !self.waiting.is_empty() {
            return;
        }
        self.count("another controller takes over");
        self.say(|| "## another controller takes over".to_owned());
        let until = self.now.plus(Duration::from_mins(5));
        self.replaced = Some(Replaced { state: self.state.clone(), epoch: self.epoch, until });
        if self.bug != Some(Bug::ReuseEpoch) {
            self.epoch += 1;
        }
        self.new_keeper();
        let (actions, lost) = (outstanding(&self.state), self.awaited_run());
        self.take(actions);
        self.lose_command(lost);
    }

    /// What a replaced controller does in its ignorance.
    pub(super) fn play_replaced(&mut self) {
        let Some(mut replaced) = self.replaced.take().filter(|r| r.until > self.now) else {
            return;
        };
        if self.rng.one_in(8) {
            let ready = replaced.state.replicas.iter().find(|(_, r)| r.phase == Phase::Ready);
            let id = ready.and_then(|(k, _)| replaced.state.replica_id(k.release, k.replica));
            let kind = match (self.rng.below(3), id) {
                (0, Some(replica)) => {
                    EventKind::ReplicaUnready { replica, why: "not reached".to_owned() }
                }
                (1, _) => EventKind::Aborted { by: "bob".to_owned(), reason: None },
                _ => EventKind::Tick,
            };
            let event = Event { at: self.clock(), kind };
            for action in step(&mut replaced.state, &event) {
                self.sequence += 1;
                let due = self.now.plus(Duration::from_millis(self.rng.below(3_000)));
                let epoch = replaced.epoch;
                self.tasks.push(Task { due, sequence: self.sequence, action, epoch });
            }
        }
        self.replaced = Some(replaced);
    }

    /// Done, and nobody heard of it.
    pub(super) fn silently(&mut self, action: &Action) {
        match action {
            // Whose host is away did nothing.
            Action::StartRank { plan, .. } if self.down_until(&plan.host).is_some() => {}
            Action::StopRank { host, .. } if self.down_until(host).is_some() => {}
            Action::StartRank { rank, plan } => {
                let plan = (**plan).clone();
                let busy = self.ranks.values().any(|r| {
                    r.plan.host == plan.host
                        && r.plan.devices.iter().any(|d| plan.devices.contains(d))
                        && (r.running || r.freed > self.now)
                });
                let never = self.nature(rank) == Nature::Never;
                // Started before the kill: only if it could have been, and no stop came since.
                if !busy && !never && !self.ranks.contains_key(rank) && !self.stopped.contains(rank)
                {
                    let entry = Rank { running: true, plan, freed: self.now };
                    self.ranks.insert(rank.clone(), entry);
                    self.check_devices();
                }
            }
            Action::StopRank { rank, .. } => {
                if let Some(there) = self.ranks.get_mut(rank) {
                    there.running = false;
                    there.freed = self.now;
                }
            }
            Action::ApplyTraffic { version, servers } => self.set_table(*version, servers),
            _ => {}
        }
    }
}
