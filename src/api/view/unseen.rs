//! What is still told of a service though its hosts do not say so any more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{HostLinkState, ServiceView, Snapshot, age};
use crate::base::{HostName, Timestamp, time};
use crate::rollout::{Condition, Phase};

/// A host that runs something of ours is sampled every two seconds: of one that has said nothing for so long nothing is
/// known any more.
const OLD: Duration = Duration::from_secs(15);

/// Most hosts that are named.
const MOST_NAMED: usize = 5;

impl Snapshot {
    /// How many of a service's ready replicas are only known from before, since when, and which hosts are away; none:
    /// all are seen.
    pub fn unseen(&self, service: &ServiceView, now: Timestamp) -> Option<String> {
        if service.condition == Condition::Elsewhere {
            return None;
        }
        let ready = || service.replicas.iter().filter(|r| r.phase == Phase::Ready);
        let mut away: BTreeMap<&HostName, Duration> = BTreeMap::new();
        let mut count = 0;
        for replica in ready() {
            let hosts = replica.ranks.iter().map(|rank| &rank.host);
            let old: Vec<_> =
                hosts.filter_map(|host| Some((host, self.unseen_for(host, now)?))).collect();
            count += usize::from(!old.is_empty());
            away.extend(old);
        }
        let longest = away.values().max()?;
        let names: Vec<&str> = away.keys().take(MOST_NAMED).map(|host| host.as_str()).collect();
        let more = match away.len().saturating_sub(MOST_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (all, is) = (ready().count(), if away.len() == 1 { "is" } else { "are" });
        let (noun, were) = if all == 1 { ("replica", "was") } else { ("replicas", "were") };
        Some(format!(
            "{count} of {all} ready {noun} {were} last seen {} ago: {}{more} {is} not reached",
            time::short(Duration::from_secs(longest.as_secs())),
            names.join(", ")
        ))
    }

    /// For how long a host has said nothing; none: it was heard of just now, or is not known to be away.
    fn unseen_for(&self, host: &HostName, now: Timestamp) -> Option<Duration> {
        let view = self.hosts.get(host)?;
        let sampled = age(now, view.sampled);
        match &view.link {
            HostLinkState::Down { since, .. } => Some(sampled.unwrap_or(now.since(*since))),
            _ => sampled.filter(|age| *age > OLD),
        }
    }
}
