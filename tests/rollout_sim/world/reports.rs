//! What is told only later: a host that dies says nothing, an observer notices after a while that its replicas are
//! not reached, and what ended there is told when the host is back.

use super::*;

/// What will be told, if it is still so by then.
#[derive(Clone, Debug)]
enum Word {
    /// By the host, once it is back.
    Ended { rank: RankId, host: HostName, how: &'static str },
    /// By the observer, while nobody reaches its host.
    Silent(ReplicaId),
    /// The keeper of the gateway's table looks whether it is there.
    Look,
}

/// A word, and when it is told.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) due: Timestamp,
    word: Word,
}

/// So long at least and at most nobody reaches a replica before the observer says so.
const NOTICED: (u64, u64) = (8_000, 30_000);

impl World {
    /// A host restarts, and is away for a time. Nobody hears of its ranks' end before it is back.
    pub fn restart_host(&mut self, host: &HostName, time: Duration) {
        let back = self.now.plus(time);
        self.hosts_down.insert(host.clone(), back);
        for rank in self.running() {
            if self.ranks[&rank].plan.host == *host {
                self.end_silently(rank, back, "the host restarted");
            }
        }
    }

    /// A rank ends on a host that is away.
    pub(super) fn end_silently(&mut self, rank: RankId, back: Timestamp, how: &'static str) {
        let Some(there) = self.ranks.get_mut(&rank) else { return };
        there.running = false;
        there.freed = self.now;
        let (replica, host) = (rank.replica, there.plan.host.clone());
        self.told_ended(rank, host, back, how);
        let seen = NOTICED.0 + self.rng.below(NOTICED.1 - NOTICED.0);
        let due = self.now.plus(Duration::from_millis(seen));
        self.reports.push(Report { due, word: Word::Silent(replica) });
    }

    /// A host will say so a little after it is back.
    pub(super) fn told_ended(
        &mut self,
        rank: RankId,
        host: HostName,
        back: Timestamp,
        how: &'static str,
    ) {
        let due = back.plus(Duration::from_millis(self.rng.below(4_000)));
        self.reports.push(Report { due, word: Word::Ended { rank, host, how } });
    }

    /// The next report, if it comes before that moment, is told.
    pub(super) fn report_before(&mut self, until: Timestamp) -> bool {
        let first = self.reports.iter().enumerate().min_by_key(|(_, report)| report.due);
        let Some(index) = first.filter(|(_, r)| r.due <= until).map(|(index, _)| index) else {
            return false;
        };
        let Report { due, word } = self.reports.remove(index);
        self.now = self.now.max(due);
        match word {
            Word::Ended { rank, host, how } => match self.down_until(&host) {
                Some(back) => self.told_ended(rank, host, back, how),
                None => self.tell(EventKind::RankEnded { rank, how: how.to_owned() }),
            },
            Word::Silent(replica) => self.silent(replica),
            Word::Look => self.look_again(),
        }
        true
    }

    /// The observer asks for ready replicas only, and a gateway's host has to be there to be asked.
    fn silent(&mut self, replica: ReplicaId) {
        let serves = self.replica_of(replica).is_some_and(|r| r.phase == Phase::Ready);
        let away = self.ranks.iter().any(|(rank, there)| {
            rank.replica == replica && !there.running && self.down_until(&there.plan.host).is_some()
        });
        if !serves || !away {
            return;
        }
        // The observer asks from the gateways' hosts.
        if self.no_gateway {
            return;
        }
        if self.gateway.down_until > self.now {
            let due = self.now.plus(Duration::from_secs(2));
            self.reports.push(Report { due, word: Word::Silent(replica) });
            return;
        }
        self.count("host noticed to be silent");
        let why = "its host is silent".to_owned();
        self.tell(EventKind::ReplicaUnready { replica, why });
    }

    pub(super) fn look_at_gateway(&mut self, due: Timestamp) {
        self.reports.push(Report { due, word: Word::Look });
    }

    /// Hosts are back, and say soon what they have to say.
    pub(super) fn hosts_are_back(&mut self) {
        self.hosts_down.clear();
        let soon = self.now.plus(Duration::from_secs(5));
        for report in &mut self.reports {
            report.due = report.due.min(soon);
        }
    }
}
