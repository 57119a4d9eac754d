//! Whether this controller may still speak for a service: nobody else has its hosts, as far as they can be asked.
//!
//! What is done on a host is refused there when it is another's. What is only said here (the endpoints) nobody
//! refuses, so the hosts are asked first. One that is not reached stays held by whom it knew last, as everywhere:
//! a dead host does not stop what is said of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as PlainMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::actions::Means;
use super::claims::Claims;
use super::publish::Speaker;
use crate::base::{HostName, ServiceName};
use crate::fleet::{HostLink, LinkError};

/// How long hosts are waited for when they are asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// An asker of the endpoints is content with what the hosts said so long ago.
const RECENTLY: Duration = Duration::from_secs(2);

/// A host that was not reached for so long since this controller began counts as before: until then another may
/// have taken it while this controller was not there.
const REACHED_WITHIN: Duration = Duration::from_secs(10);

/// Why this controller may not speak for a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// Another has a host of it, or had it last.
    #[error("{host} is held by {holder}")]
    Held {
        /// Which host.
        host: HostName,
        /// By whom.
        holder: String,
    },
    /// A host of it was not asked yet.
    #[error("who holds {host} is not known yet")]
    Unknown {
        /// Which host.
        host: HostName,
    },
}

/// When the hosts of each service were asked last.
pub struct Fence {
    born: Instant,
    rounds: PlainMutex<BTreeMap<ServiceName, Round>>,
}

type Round = Arc<Mutex<Option<Instant>>>;

impl Default for Fence {
    fn default() -> Self {
        Self { born: Instant::now(), rounds: PlainMutex::default() }
    }
}

impl Fence {
    fn rounds(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Round>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Means {
    /// Whether this controller may speak for a service, as its hosts said no longer ago than `age`.
    pub(super) async fn may_speak_for(
        &self,
        service: &ServiceName,
        age: Duration,
    ) -> Result<(), Doubt> {
        let wanted = Instant::now();
        let hosts = self.claims.hosts_of(service);
        if hosts.is_empty() || matches!(self.doubt(service), Some(Doubt::Held { .. })) {
            return self.doubt(service).map_or(Ok(()), Err);
        }
        let round = Arc::clone(self.fence.rounds().entry(service.clone()).or_default());
        let mut last = round.lock().await;
        if last.is_none_or(|began| began + age < wanted) {
            let began = Instant::now();
            let links: Vec<_> = hosts.iter().filter_map(|host| self.fleet.link(host)).collect();
            let asked = links.iter().map(|link| async move {
                let asked = tokio::time::timeout(PATIENCE, self.claims.survey(link.as_ref()));
                if let Ok(Err(error)) = asked.await {
                    tracing::debug!(host = %link.host(), %error, "who holds it is not known");
                }
            });
            futures::future::join_all(asked).await;
            *last = Some(began);
        }
        drop(last);
        self.doubt(service).map_or(Ok(()), Err)
    }

    /// Asks each of these hosts now who holds it.
    pub(super) async fn ask_hosts(&self, hosts: &BTreeSet<HostName>) -> Answers {
        let links: Vec<_> = hosts.iter().filter_map(|host| self.fleet.link(host)).collect();
        ask(&self.claims, hosts, &links).await
    }

    /// What speaks against it as far as is known, without asking. For a service that is nowhere any host of the
    /// deck counts: another controller may have begun it anew.
    pub(super) fn doubt(&self, service: &ServiceName) -> Option<Doubt> {
        let hosts = self.claims.hosts_of(service);
        let others = self.claims.others();
        let mut of_it = others.iter().filter(|(host, _)| hosts.is_empty() || hosts.contains(*host));
        if let Some((host, other)) = of_it.next() {
            return Some(Doubt::Held { host: host.clone(), holder: other.holder.clone() });
        }
        let (asked, ours) = (self.claims.known_hosts(), self.claims.ours());
        let is_early = self.fence.born.elapsed() < REACHED_WITHIN;
        let mut unasked = hosts.iter().filter(|host| !asked.contains(*host));
        let host = unasked.find(|host| is_early || !ours.contains(*host))?;
        Some(Doubt::Unknown { host: host.clone() })
    }
}

/// What hosts said when they were asked who holds them.
#[derive(Debug, Default)]
pub struct Answers {
    /// Another has one of them, or had it last.
    held: Option<Doubt>,
    /// One that did not answer, if any.
    silent: Option<HostName>,
    /// Whether any answered that nobody else has it.
    any: bool,
}

impl Answers {
    /// What speaks against beginning what no host refuses (a command of the user's here): each has to say that it is
    /// ours. Whoever was cut off from one cannot know whether another acts there.
    pub fn against_acting(&self) -> Option<Doubt> {
        let silent = self.silent.clone().map(|host| Doubt::Unknown { host });
        self.held.clone().or(silent)
    }

    /// What speaks against writing down what became of the service: one host has to say that it is ours, if there are
    /// any. A dead host does not stop what is said of the others.
    pub fn against_noting(&self) -> Option<Doubt> {
        let silent = self.silent.clone().filter(|_| !self.any);
        self.held.clone().or(silent.map(|host| Doubt::Unknown { host }))
    }
}

/// Asks these hosts who holds them, and sees to it that our claim on each lasts for a while: nobody takes such a
/// host meanwhile without force.
async fn ask(claims: &Claims, hosts: &BTreeSet<HostName>, links: &[Arc<dyn HostLink>]) -> Answers {
    let asked = links.iter().map(|link| async move {
        let ours = async {
            claims.survey(link.as_ref()).await?;
            if claims.holds(link.host()) {
                claims.ensure(link.as_ref()).await?;
            }
            Ok::<(), LinkError>(())
        };
        match tokio::time::timeout(PATIENCE, ours).await {
            Ok(Ok(())) => return Some(link.host().clone()),
            Ok(Err(error)) => {
                tracing::debug!(host = %link.host(), %error, "who holds it is not known");
            }
            Err(_) => tracing::debug!(host = %link.host(), "it does not say who holds it"),
        }
        None
    });
    let heard = futures::future::join_all(asked).await;
    let heard: BTreeSet<HostName> = heard.into_iter().flatten().collect();
    let mut others = claims.others().into_iter().filter(|(host, _)| hosts.contains(host));
    let held = others.next().map(|(host, other)| Doubt::Held { host, holder: other.holder });
    let silent = hosts.iter().find(|host| !heard.contains(*host)).cloned();
    Answers { held, silent, any: !heard.is_empty() }
}

#[async_trait]
impl Speaker for Means {
    async fn may_speak(&self, service: &ServiceName) -> Result<(), String> {
        self.may_speak_for(service, RECENTLY).await.map_err(|doubt| doubt.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn a_command_waits_for_each_host_and_a_note_for_any() {
        let answers = |held, silent: Option<&str>, any| Answers {
            held: bool::then(held, || Doubt::Held { host: host("h1"), holder: "bob".to_owned() }),
            silent: silent.map(host),
            any,
        };
        let unknown = Some(Doubt::Unknown { host: host("h2") });
        for (answers, acting, noting) in [
            (answers(false, None, true), None, None),
            // Of a service without hosts nobody can say anything.
            (answers(false, None, false), None, None),
            (answers(false, Some("h2"), true), unknown.clone(), None),
            (answers(false, Some("h2"), false), unknown.clone(), unknown),
        ] {
            assert_eq!(answers.against_acting(), acting, "{answers:?}");
            assert_eq!(answers.against_noting(), noting, "{answers:?}");
        }
        let held = answers(true, Some("h2"), true);
        assert!(matches!(held.against_acting(), Some(Doubt::Held { .. })));
        assert!(matches!(held.against_noting(), Some(Doubt::Held { .. })));
    }
}
