//! Ranks of ours that run on a host and that no release wants: what was left there while the host was not in the deck.
//! They end when a person says so; until then their ports are given to nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::actions::{Means, clearing_runtime};
use super::core::{Core, Input};
use super::drift;
use super::maintenance::conflict;
use crate::api::{ApiError, ErrorKind, IntentReply, Severity};
use crate::base::{Hint as _, HostName, RankId};
use crate::spec::RuntimeSpec;
use crate::wire::{RankReport, RankStatus};

/// From SIGTERM to SIGKILL: the release that would say how long is not known any more.
const GRACE: Duration = Duration::from_secs(30);

/// Those of one host, and the numbers in their command lines that may be the port of each.
pub type OfHost = BTreeMap<RankId, BTreeSet<u16>>;

/// What was seen last.
#[derive(Debug, Default)]
pub struct Strays(BTreeMap<HostName, OfHost>);

impl Strays {
    /// Whether one of them may listen there.
    pub fn hold(&self, host: &HostName, port: u16) -> bool {
        self.0.get(host).is_some_and(|ranks| ranks.values().any(|ports| ports.contains(&port)))
    }

    fn knows(&self, host: &HostName, rank: &RankId) -> bool {
        self.0.get(host).is_some_and(|ranks| ranks.contains_key(rank))
    }
}

/// The numbers of a command line that can be ports.
pub fn ports_in(argv: &[String]) -> BTreeSet<u16> {
    let numbers = argv.iter().flat_map(|word| word.split(|c: char| !c.is_ascii_digit()));
    numbers.filter_map(|number| number.parse().ok()).filter(|port| *port >= 1_024).collect()
}

impl Core {
    /// What was seen on hosts that were looked at.
    pub(super) fn note_strays(&mut self, seen: BTreeMap<HostName, OfHost>) {
        for (host, ranks) in seen {
            if ranks.is_empty() {
                self.strays.0.remove(&host);
            } else {
                self.strays.0.insert(host, ranks);
            }
        }
    }

    /// A host tells its ranks: one that no release wants is looked at, before its port is given out.
    pub(super) fn hear_of_strays(&mut self, host: &HostName, reports: &[RankReport]) {
        let runs = |r: &&RankReport| matches!(r.status, RankStatus::Running { .. });
        let ours = reports.iter().filter(runs).filter(|r| r.rank.deck == self.deck.id);
        let new = |r: &&RankReport| !self.lives(&r.rank) && !self.strays.knows(host, &r.rank);
        let mut unknown = ours.filter(new).peekable();
        if unknown.peek().is_none() {
            return;
        }
        let plan = self.drift_plan_of(host);
        if unknown.all(|r| plan.wants(host, &r.rank)) {
            return;
        }
        let Some(token) = self.stray_looks.take(host) else { return };
        let means = Arc::clone(&self.means);
        self.tasks.spawn(async move {
            // What could not be seen is looked at again, once a minute.
            let _ = drift::look(&means, plan, None).await;
            drop(token);
        });
    }

    /// It is of the present attempt of a replica.
    fn lives(&self, rank: &RankId) -> bool {
        let state = self.state.services.get(&rank.service);
        state.is_some_and(|state| state.key_of(rank.replica).is_some())
    }

    /// Ends a rank that no release wants.
    pub(super) fn end_rank(
        &mut self,
        host: HostName,
        rank: RankId,
        by: String,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        let runtimes = match self.may_end(&host, &rank) {
            Ok(runtimes) => runtimes,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let means = Arc::clone(&self.means);
        self.tasks.spawn(async move {
            let ended = end(&means, &host, &runtimes, &rank).await;
            let inputs = means.inputs.clone();
            let tell = Box::new(move |core: &mut Core| {
                if ended.is_ok() {
                    if let Some(ranks) = core.strays.0.get_mut(&host) {
                        ranks.remove(&rank);
                    }
                    let of = rank.replica;
                    let words = format!("{by} ended {rank} ({of}) on {host}: no release wanted it");
                    core.say(Severity::Warning, None, &words);
                }
                core.answer(reply, ended);
            });
            let _ = inputs.send(Input::Ask(tell)).await;
        });
    }

    /// With what it is looked for there.
    fn may_end(&self, host: &HostName, rank: &RankId) -> Result<Vec<RuntimeSpec>, ApiError> {
        self.known_host(host)?;
        let plan = self.drift_plan_of(host);
        if plan.wants(host, rank) {
            return Err(conflict(
                format!("{rank} of {} is wanted on {host}", rank.replica.release),
                &format!("`gpudeck stop {}` ends the service", rank.service),
            ));
        }
        if rank.deck != self.deck.id {
            return Err(conflict(
                format!("{rank} is of another deck"),
                "ask the controller of that deck",
            ));
        }
        Ok(plan.runtimes_on(host))
    }
}

async fn end(
    means: &Means,
    host: &HostName,
    runtimes: &[RuntimeSpec],
    rank: &RankId,
) -> Result<IntentReply, ApiError> {
    let unreachable = |message: String, hint: Option<String>| ApiError {
        kind: ErrorKind::Unreachable,
        message,
        hint,
    };
    for spec in runtimes {
        let runtime = clearing_runtime(means, spec, host)
            .await
            .map_err(|e| unreachable(e.to_string(), e.hint()))?;
        let running = runtime.running().await.map_err(|e| unreachable(e.to_string(), e.hint()))?;
        if !running.iter().any(|r| r.rank == *rank) {
            continue;
        }
        let stopped = match runtime.stop(rank, GRACE).await {
            Ok(()) => runtime.remove(rank).await,
            Err(error) => Err(error),
        };
        return match stopped {
            Ok(()) => Ok(IntentReply::Accepted),
            Err(error) => Err(unreachable(error.to_string(), error.hint())),
        };
    }
    Ok(IntentReply::NothingToDo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_that_can_be_a_port_is_one() {
        let argv = ["serve", "--port", "22000", "--bind=0.0.0.0:23001", "--tokens", "12", "99999"];
        let ports = ports_in(&argv.map(str::to_owned));
        assert_eq!(ports, BTreeSet::from([22_000, 23_001]));
    }
}
