//! All processes of one rank.
//!
//! A supervisor leads a session of its own and is the reaper of its descendants. What belongs to
//! its rank is everything else in that session, and everything below the supervisor or the engine
//! (a child may have left the session). The kernel gives a pid to nobody while a session or group
//! of that number has members, so a supervisor's pid seen in another process means that its
//! session is empty.

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

use super::process::{self, ProcStat, ProcessId};

/// How to find the processes of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The rank's supervisor.
    pub supervisor: ProcessId,
    /// The engine process: leader of its process group.
    pub engine: ProcessId,
    /// The supervisor leads a session of its own (it always tries to).
    pub own_session: bool,
}

impl Group {
    /// The living processes of the rank, the supervisor left out.
    pub fn members(&self) -> Vec<ProcessId> {
        self.members_of(&process::all())
    }

    fn members_of(&self, all: &[ProcStat]) -> Vec<ProcessId> {
        let same =
            |s: &ProcStat, id: &ProcessId| s.pid == id.pid && s.start_ticks == id.start_ticks;
        let session_is_ours = self.own_session
            && !all.iter().any(|s| {
                s.pid == self.supervisor.pid && s.start_ticks != self.supervisor.start_ticks
            });
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for s in all {
            children.entry(s.ppid).or_default().push(s.pid);
        }
        let mut ours: BTreeSet<u32> = BTreeSet::new();
        let mut below: Vec<u32> = Vec::new();
        for s in all {
            let roots = same(s, &self.supervisor) || same(s, &self.engine);
            if roots || (session_is_ours && s.session == self.supervisor.pid) {
                below.push(s.pid);
            }
        }
        while let Some(pid) = below.pop() {
            if ours.insert(pid) {
                below.extend(children.get(&pid).into_iter().flatten());
            }
        }
        all.iter()
            .filter(|s| ours.contains(&s.pid) && !same(s, &self.supervisor) && !s.is_dead())
            .map(|s| ProcessId { pid: s.pid, start_ticks: s.start_ticks })
            .collect()
    }

    /// Asks the rank to end: SIGTERM to its engine alone while that lives, which then lets its requests finish and ends
    /// its workers itself (vLLM, SGLang; told at once, the workers would take the requests with them). Else to
    /// everything that is left.
    pub fn terminate(&self) {
        if self.engine.is_alive() {
            signal(&[self.engine], Signal::TERM);
        } else {
            self.terminate_all();
        }
    }

    /// SIGTERM to everything of the rank.
    pub fn terminate_all(&self) {
        signal(&self.members(), Signal::TERM);
    }

    /// Ends everything that is left.
    pub fn kill(&self) {
        if self.engine.is_alive()
            && let Some(pid) = pid(self.engine.pid)
        {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        signal(&self.members(), Signal::KILL);
    }
}

/// Sends a signal to each; one that has ended meanwhile is no error.
pub fn signal(members: &[ProcessId], signal: Signal) {
    for member in members {
        if member.is_alive()
            && let Some(pid) = pid(member.pid)
        {
            let _ = kill_process(pid, signal);
        }
    }
}

fn pid(raw: u32) -> Option<Pid> {
    // Pid 1 and "all processes" can never be meant.
    i32::try_from(raw).ok().filter(|raw| *raw > 1).and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(pid: u32, parent: u32, session: u32, start_ticks: u64) -> ProcStat {
        let comm = String::new();
        ProcStat { pid, comm, state: 'S', ppid: parent, session, start_ticks, cpu_ticks: 0 }
    }

    #[test]
    fn finds_all_that_belongs_and_nothing_else() {
        let group = Group {
            supervisor: ProcessId { pid: 10, start_ticks: 1 },
            engine: ProcessId { pid: 11, start_ticks: 2 },
            own_session: true,
        };
        let pids = |all: &[ProcStat]| -> Vec<u32> {
            group.members_of(all).iter().map(|m| m.pid).collect()
        };
        let mut all = vec![
            proc(1, 0, 1, 0),
            proc(10, 1, 10, 1),
            proc(11, 10, 10, 2),
            proc(12, 11, 10, 3),
            proc(13, 12, 13, 4), // left the session, still below
            proc(14, 1, 10, 5),  // reparented, still in the session
            proc(20, 1, 20, 1),
        ];
        assert_eq!(pids(&all), [11, 12, 13, 14]);
        // The supervisor was killed: the engine and its session are still found.
        all.retain(|s| s.pid != 10);
        assert_eq!(pids(&all), [11, 12, 13, 14]);
        // Pids 10 and 11 belong to others by now.
        assert_eq!(pids(&[proc(10, 1, 10, 90), proc(11, 10, 10, 91)]), [0u32; 0]);
    }
}
