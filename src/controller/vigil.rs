//! Whether ready replicas on silent hosts still serve. That SSH is away says nothing of an engine, so the hosts of
//! the gateways are asked whether they reach it: as long as one does, clients do, too, and it stays in service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::actions::{self, Means};
use super::core::{Core, Input, now};
use super::gateways::{Gateways, Routes};
use crate::base::{HostName, ReplicaId, ServiceName};
use crate::fleet::LinkError;
use crate::rollout::{EventKind, Phase};
use crate::wire::{Refusal, Reply, Request};

/// A host that has said nothing for so long is silent; hosts with ranks are sampled every two seconds at least.
const SILENT: Duration = Duration::from_secs(5);

/// No gateway's host reaches the replica for so long: longer than a switch takes to come up again, shorter than
/// the patience of clients.
const PATIENCE: Duration = Duration::from_secs(8);

/// Time for the answer to one asking, milliseconds.
const ASK_MS: u64 = 2_000;

/// A replica in this start of it.
pub(super) type Key = (ServiceName, ReplicaId);

/// A ready replica on a silent host, and where to ask for it.
struct Doubt {
    key: Key,
    host: HostName,
    address: String,
    port: u16,
    gateways: BTreeSet<HostName>,
}

/// What came of asking for a replica.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Reached,
    NotReached(String),
    /// Nobody could be asked.
    Unknown,
}

/// Asks once a second.
pub async fn watch(means: Arc<Means>) {
    let mut vigil = Vigil::new(PATIENCE);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(doubts) = means.ask(|core| core.doubts()).await else { return };
        let asked = doubts.into_iter().map(|doubt| ask_gateways(&means, doubt));
        let answers = futures::future::join_all(asked).await;
        for ((service, replica), why) in vigil.note(Instant::now(), answers) {
            let kind = EventKind::ReplicaUnready { replica, why };
            if means.inputs.send(Input::Happened { service, kind }).await.is_err() {
                return;
            }
        }
    }
}

/// Since when nobody reaches which replica.
pub(super) struct Vigil {
    patience: Duration,
    unreached: BTreeMap<Key, Instant>,
}

impl Vigil {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, unreached: BTreeMap::new() }
    }

    /// Takes a round of answers, and gives what was not reached for too long.
    pub(super) fn note(&mut self, at: Instant, answers: Vec<(Key, Answer)>) -> Vec<(Key, String)> {
        let mut before = std::mem::take(&mut self.unreached);
        let mut given_up = Vec::new();
        for (key, answer) in answers {
            let Answer::NotReached(why) = answer else { continue };
            let since = before.remove(&key).unwrap_or(at);
            if at.duration_since(since) >= self.patience {
                given_up.push((key, why));
            } else {
                self.unreached.insert(key, since);
            }
        }
        given_up
    }
}

async fn ask_gateways(means: &Means, doubt: Doubt) -> (Key, Answer) {
    let asked = doubt.gateways.iter().map(|gateway| ask(means, gateway, &doubt));
    let answers = futures::future::join_all(asked).await;
    (doubt.key, together(answers))
}

/// Who is reached by one gateway serves; who cannot be asked says nothing.
fn together(answers: Vec<Answer>) -> Answer {
    let mut all = Answer::Unknown;
    for answer in answers {
        match answer {
            Answer::Reached => return Answer::Reached,
            Answer::NotReached(_) => all = answer,
            Answer::Unknown => {}
        }
    }
    all
}

async fn ask(means: &Means, gateway: &HostName, doubt: &Doubt) -> Answer {
    let Ok(link) = actions::link(means, gateway) else { return Answer::Unknown };
    let request = Request::Http {
        port: doubt.port,
        address: Some(doubt.address.clone()),
        method: "GET".to_owned(),
        // Whatever it answers, it is reached.
        path: "/health".to_owned(),
        body: None,
        timeout_ms: ASK_MS,
        // Whoever answers that it wants one is reached.
        key_file: None,
    };
    match link.request(request).await {
        Ok(Reply::Http(_)) => Answer::Reached,
        Err(LinkError::Refused { refusal: Refusal::NoAnswer { .. }, .. }) => {
            let host = &doubt.host;
            Answer::NotReached(format!("{host} is silent, and {gateway} does not reach it either"))
        }
        _ => Answer::Unknown,
    }
}

impl Core {
    /// Nothing was heard of the host lately, or never.
    pub(super) fn is_silent(&self, host: &HostName) -> bool {
        let sampled = self.hub.with(|s| s.hosts.get(host).and_then(|view| view.sampled));
        sampled.is_none_or(|at| now().since(at) >= SILENT)
    }

    fn doubts(&self) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        for (service, state) in &self.state.services {
            let ready = state.replicas.iter().filter(|(_, r)| r.phase == Phase::Ready);
            for (key, replica) in ready {
                let plan = state.releases.get(&key.release).and_then(|r| r.replica(key.replica));
                let Some(first) = plan.and_then(|p| p.ranks.first()) else { continue };
                if !self.is_silent(&first.host) {
                    continue;
                }
                let routes = Routes::of(&self.deck, state);
                let id = replica.id(*key);
                doubts.push(Doubt {
                    key: (service.clone(), id),
                    host: first.host.clone(),
                    address: first.address.clone(),
                    port: first.port,
                    gateways: routes.serving.iter().flat_map(Gateways::hosts).collect(),
                });
            }
        }
        doubts
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{Attempt, ReleaseNumber};

    fn key(replica: u32) -> Key {
        let id = ReplicaId { release: ReleaseNumber(1), replica, attempt: Attempt::FIRST };
        ("chat".parse().unwrap(), id)
    }

    fn away() -> Answer {
        Answer::NotReached("h3 is silent".to_owned())
    }

    #[test]
    fn only_what_nobody_reaches_for_the_whole_time_is_given_up() {
        let mut vigil = Vigil::new(PATIENCE);
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(vigil.note(at(0), vec![(key(0), away()), (key(1), away())]).is_empty());
        // One is reached in between, or its host speaks again: its time begins anew.
        assert!(vigil.note(at(5), vec![(key(0), away()), (key(1), Answer::Reached)]).is_empty());
        let given_up = vigil.note(at(8), vec![(key(0), away()), (key(1), away())]);
        assert_eq!(given_up, [(key(0), "h3 is silent".to_owned())]);
        assert!(vigil.note(at(9), Vec::new()).is_empty());
        assert!(vigil.note(at(17), vec![(key(1), away())]).is_empty());
    }

    #[test]
    fn one_gateway_that_reaches_it_is_enough_and_one_that_cannot_be_asked_says_nothing() {
        assert_eq!(together(vec![away(), Answer::Reached]), Answer::Reached);
        assert_eq!(together(vec![away(), Answer::Unknown]), away());
        assert_eq!(together(vec![Answer::Unknown]), Answer::Unknown);
        assert_eq!(together(Vec::new()), Answer::Unknown);
    }
}
