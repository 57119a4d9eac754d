//! Faults, and what people do at a bad moment.

use deciding::spec::{Count, RolloutSpec};

use super::*;

impl World {
    pub(super) fn hold() -> EventKind {
        let (hosts, why) = (["h0".parse().unwrap()].into(), "login-lost".to_owned());
        EventKind::HoldBegan { hosts, why, cause: HoldCause::Away }
    }

    /// An engine lives on and answers nothing, for a while or until it is ended.
    pub(super) fn hang(&mut self, replica: ReplicaId) {
        self.count("engine hangs after ready");
        let for_ever = self.rng.one_in(2);
        let until = self.now.plus(Duration::from_secs(self.rng.below(1_800)));
        self.hung.insert(replica, if for_ever { FOR_EVER } else { until });
        // From here on only a new token may bring traffic back.
        self.generated.remove(&replica);
        self.tell(EventKind::ReplicaUnready { replica, why: "timeout".to_owned() });
    }

    /// What the controller knows of tokens, by what it was really told.
    pub(super) fn note_tokens(&mut self, event: &EventKind) {
        match event {
            EventKind::ReplicaReady { replica } if self.generated.contains(replica) => {
                self.proved.insert(*replica)
            }
            EventKind::ReplicaUnready { replica, .. } => self.proved.remove(replica),
            EventKind::RankEnded { rank, .. } => self.proved.remove(&rank.replica),
            _ => false,
        };
    }

    pub(super) fn fault(&mut self) {
        match self.rng.below(14) {
            12 => {
                if self.state.retryable() {
                    self.count("person retries");
                }
                self.by_ada(|by| EventKind::Retried { by, reason: None });
            }
            13 => {
                if self.rng.one_in(3) {
                    self.skip();
                }
            }
            8 => self.take_over(),
            9 if self.one_clock => {}
            9 => {
                self.count("clock jumps");
                let jump = i64::try_from(self.rng.below(1_200_000)).unwrap() - 600_000;
                self.clock_error_ms = jump;
                self.clock_jumps += 1;
            }
            10 => {
                self.count("disk full");
                self.disk_full_until = self.now.plus(Duration::from_secs(self.rng.below(90)));
            }
            0 => {
                let running = self.running();
                if !running.is_empty() {
                    let rank = running[self.rng.index(running.len())].clone();
                    self.count("rank dies");
                    self.kill(&rank, "killed");
                }
            }
            1 if self.no_gateway => {}
            1 => {
                let time = Duration::from_secs(self.rng.below(400));
                if self.rng.one_in(2) {
                    self.count("gateway away");
                    self.break_gateway(time);
                } else {
                    self.count("gateway restarts without its table");
                    self.restart_gateway(time);
                }
            }
            2 => {
                let host: HostName = format!("h{}", self.rng.below(4)).parse().unwrap();
                let time = Duration::from_secs(self.rng.below(600));
                if self.rng.one_in(2) {
                    self.count("host dies");
                    self.restart_host(&host, time);
                } else {
                    self.count("host not reached");
                    self.lose_host(host.as_str(), time);
                }
            }
            3 => {
                let long = self.rng.one_in(3);
                let away = if long { 60 + self.rng.below(5_400) } else { 0 };
                self.crash_for(Duration::from_secs(away));
            }
            4 => {
                let ready: Vec<ReplicaId> = self
                    .phases()
                    .into_iter()
                    .filter(|(_, p)| *p == Phase::Ready)
                    .map(|(id, _)| id)
                    .collect();
                if !ready.is_empty() && self.rng.one_in(3) {
                    let replica = ready[self.rng.index(ready.len())];
                    self.hang(replica);
                }
            }
            5 | 6 => self.old_event(),
            7 => {
                self.count("person pauses");
                self.by_ada(|by| EventKind::Paused { by, reason: None });
            }
            _ => {
                self.count("person resumes or promotes");
                if self.rng.one_in(4) {
                    let all = self.rng.one_in(3);
                    self.by_ada(|by| EventKind::Promoted { all, by, step: None, reason: None });
                } else if self.rng.one_in(8) {
                    self.count("person aborts");
                    self.by_ada(|by| EventKind::Aborted { by, reason: None });
                } else {
                    self.by_ada(|by| EventKind::Resumed { by, reason: None });
                }
            }
        }
    }

    pub(super) fn count_policy(&mut self, rollout: &RolloutSpec) {
        let usual = RolloutSpec::default();
        if matches!(rollout.max_unavailable, Count::Percent(_)) {
            self.count("percentages");
        }
        if rollout.healthy_deadline != usual.healthy_deadline {
            self.count("other deadlines");
        }
        if rollout.progress_deadline.is_zero() {
            self.count("no progress deadline");
        }
        if self.no_gateway {
            self.count("service without a gateway");
        }
    }

    pub(super) fn skip(&mut self) {
        if self.state.skippable().is_some() {
            self.count("person skips");
        }
        let reason = "it is known".to_owned();
        self.by_ada(|by| EventKind::Skipped { by, reason });
    }

    pub(super) fn awaited_run(&self) -> Option<Run> {
        let (rollout, run) = self.state.awaited_run()?;
        Some((rollout.to, rollout.step, run.attempt))
    }

    /// Whoever ran this command is gone.
    pub(super) fn lose_command(&mut self, lost: Option<Run>) {
        let Some((release, step, attempt)) = lost.filter(|_| self.awaited_run() == lost) else {
            return;
        };
        self.count("command lost with its controller");
        if self.bug == Some(Bug::RunAgainUnderItsName) {
            if let Some(StepSpec::Run(run)) =
                self.state.releases[&release].spec.rollout.steps.get(step)
            {
                let run = Box::new(run.clone());
                let again = vec![Action::RunCommand { release, step, attempt, run }];
                let journey = self.journey();
                self.check_journey(&EventKind::Tick, journey, &again);
                self.take(again);
            }
            return;
        }
        self.tell(EventKind::RunLost { release, step, attempt });
    }
}
