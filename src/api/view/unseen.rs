//! What is still told of a service though its hosts do not say so any more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{HostLinkState, HostView, ReplicaView, ServiceView, Snapshot, age};
use crate::base::{DownCause, HostName, Timestamp, time};
use crate::rollout::{Condition, Phase};

/// A host that runs something of ours is sampled every two seconds: of one that has said nothing for so long nothing is
/// known any more.
const OLD: Duration = Duration::from_secs(15);

/// Most hosts that are named.
const MOST_NAMED: usize = 5;

/// How long nothing was heard of something; the longest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unseen {
    /// For so long.
    For(Duration),
    /// Since this controller began: what is told of it is from an earlier one's life.
    Never,
}

impl Snapshot {
    /// How many of a service's ready replicas are only known from before, since when, and which hosts are away; none:
    /// all are seen.
    pub fn unseen(&self, service: &ServiceView, now: Timestamp) -> Option<String> {
        if service.condition == Condition::Elsewhere {
            return None;
        }
        let ready = || service.replicas.iter().filter(|r| r.phase == Phase::Ready);
        let mut away: BTreeMap<&HostName, Unseen> = BTreeMap::new();
        let mut count = 0;
        for replica in ready() {
            let hosts = replica.ranks.iter().map(|rank| &rank.host);
            let old: Vec<_> =
                hosts.filter_map(|host| Some((host, self.unseen_host(host, now)?))).collect();
            count += usize::from(!old.is_empty());
            away.extend(old);
        }
        let longest = away.values().max()?;
        let seen = away.values().filter(|unseen| **unseen != Unseen::Never).max();
        let (all, is) = (ready().count(), if away.len() == 1 { "is" } else { "are" });
        let (noun, were) = if all == 1 { ("replica", "was") } else { ("replicas", "were") };
        let ago = |time: &Duration| time::short(Duration::from_secs(time.as_secs()));
        let since = match (seen, longest) {
            (Some(Unseen::For(time)), Unseen::Never) => {
                format!("last seen {} ago, or not since this controller began", ago(time))
            }
            (_, Unseen::For(time)) => format!("last seen {} ago", ago(time)),
            (_, Unseen::Never) => "not seen since this controller began".to_owned(),
        };
        Some(format!(
            "{count} of {all} ready {noun} {were} {since}: {} {is} not reached",
            named(&away.into_keys().collect::<Vec<_>>())
        ))
    }

    /// How many of a service's ready replicas are only known from before.
    pub fn unseen_count(&self, service: &ServiceView, now: Timestamp) -> usize {
        let unseen = |replica: &&ReplicaView| self.unseen_replica(replica, now).is_some();
        match service.condition {
            Condition::Elsewhere => 0,
            _ => service.replicas.iter().filter(unseen).count(),
        }
    }

    /// How long nothing was heard of a ready replica; none: it is seen, or is not said to be ready.
    pub fn unseen_replica(&self, replica: &ReplicaView, now: Timestamp) -> Option<Unseen> {
        if replica.phase != Phase::Ready {
            return None;
        }
        replica.ranks.iter().filter_map(|rank| self.unseen_host(&rank.host, now)).max()
    }

    /// How long a host has said nothing; none: it was heard of just now, or is not known to be away.
    fn unseen_host(&self, host: &HostName, now: Timestamp) -> Option<Unseen> {
        let view = self.hosts.get(host)?;
        let sampled = age(now, view.sampled);
        match &view.link {
            HostLinkState::Down { .. } => Some(sampled.map_or(Unseen::Never, Unseen::For)),
            _ => sampled.filter(|age| *age > OLD).map(Unseen::For),
        }
    }

    /// That hosts on which something of ours is to run are not reached, and which; none: all are. It says nothing that
    /// changes by the passing of time.
    pub fn hosts_away(&self) -> Option<String> {
        let with_ranks: Vec<&HostView> =
            self.hosts.values().filter(|host| !host.ranks.is_empty()).collect();
        // One that does not let us in is there, and has a state of its own.
        let is_away = |host: &&HostView| matches!(&host.link, HostLinkState::Down { kind, .. } if *kind != DownCause::LoginLost);
        let away: Vec<&HostName> =
            with_ranks.iter().copied().filter(is_away).map(|host| &host.name).collect();
        if away.is_empty() {
            return None;
        }
        let (count, all) = (away.len(), with_ranks.len());
        let none = self.hosts.values().filter(|host| !is_away(host)).count() == 0;
        let noun = if all == 1 { "host" } else { "hosts" };
        let which = if none { "no host of the deck is reached; " } else { "" };
        let is = if count == 1 { "is" } else { "are" };
        Some(format!(
            "{which}{count} of {all} {noun} with replicas {is} not reached: {}; what is told of the replicas there is \
             from before",
            named(&away)
        ))
    }
}

/// The first hosts by name, of the others the number.
fn named(hosts: &[&HostName]) -> String {
    let names: Vec<&str> = hosts.iter().take(MOST_NAMED).map(|host| host.as_str()).collect();
    match hosts.len().saturating_sub(MOST_NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
