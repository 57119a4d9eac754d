//! The log of a rank that has ended and was replaced: its host keeps it for some time (the newest sixteen of a service
//! that failed or ended by themselves), whether or not a release knows of it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::actions::{Means, reading_runtime};
use super::core::Core;
use crate::api::{ApiError, ErrorKind, PreviousLog, PreviousLogRequest};
use crate::base::{Hint, HostName, RankId, ReplicaId, text};
use crate::runtime::RuntimeError;
use crate::spec::RuntimeSpec;
use crate::wire::{RankReport, RankStatus};

/// Longest time for one host.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest piece of a log.
const MAX_BYTES: u32 = 256 << 10;

/// Where it may be, and which one is not meant.
pub(super) struct Places {
    /// What each host is asked with.
    runtimes: BTreeMap<HostName, Vec<RuntimeSpec>>,
    /// The start of the replica that is shown without being asked for an earlier one.
    present: Option<ReplicaId>,
}

/// A rank that has ended, and where.
struct Ended {
    host: HostName,
    spec: RuntimeSpec,
    rank: RankId,
    how: String,
}

impl Core {
    /// Where earlier starts of a replica may have left their logs.
    pub(super) fn places_of_logs(&self, wanted: &PreviousLogRequest) -> Option<Places> {
        let state = self.state.services.get(&wanted.service);
        if state.is_none() && !self.known_services().contains(&wanted.service) {
            return None;
        }
        let hosts = self.deck.hosts.keys();
        let mut runtimes: BTreeMap<HostName, Vec<RuntimeSpec>> =
            hosts.map(|host| (host.clone(), vec![RuntimeSpec::Process])).collect();
        for release in state.into_iter().flat_map(|state| state.releases.values()) {
            for rank in release.replicas.iter().flat_map(|replica| &replica.ranks) {
                if let Some(asked) = runtimes.get_mut(&rank.host)
                    && !asked.contains(&release.spec.runtime)
                {
                    asked.push(release.spec.runtime.clone());
                }
            }
        }
        let present = state.into_iter().flat_map(|state| &state.replicas);
        let present = present
            .map(|(key, replica)| replica.id(*key))
            .filter(|id| id.replica == wanted.replica)
            .max_by_key(|id| (id.release, id.attempt));
        Some(Places { runtimes, present })
    }
}

/// Reads the end of the log of the start before the present one.
pub(super) async fn read(
    means: &Arc<Means>,
    places: Places,
    wanted: &PreviousLogRequest,
) -> Result<PreviousLog, ApiError> {
    let Places { runtimes, present } = places;
    let asks = runtimes.iter().flat_map(|(host, specs)| specs.iter().map(move |s| (host, s)));
    let looks = asks.map(|(host, spec)| async move {
        let listed = async {
            let runtime = reading_runtime(means, spec, host).await?;
            runtime.list().await
        };
        match tokio::time::timeout(PATIENCE, listed).await {
            Ok(Ok(reports)) => Ok((host, spec, reports)),
            Ok(Err(error)) => Err((host, error.to_string())),
            Err(_) => Err((host, format!("{host} did not answer in time"))),
        }
    });
    let (mut found, mut unseen) = (Vec::new(), BTreeSet::new());
    for look in futures::future::join_all(looks).await {
        match look {
            Ok((host, spec, reports)) => found.extend(reports.into_iter().filter_map(|report| {
                let how = ended(&report)?;
                let (host, spec) = (host.clone(), spec.clone());
                Some(Ended { host, spec, rank: report.rank, how })
            })),
            Err((host, why)) => {
                tracing::debug!(%host, why, "its logs were not looked for");
                unseen.insert(host.to_string());
            }
        }
    }
    let Some(last) = newest(found, wanted, present) else {
        return Err(none(wanted, &unseen));
    };
    let unread = |error: RuntimeError| ApiError {
        kind: ErrorKind::Unreachable,
        message: error.to_string(),
        hint: error.hint(),
    };
    let runtime = reading_runtime(means, &last.spec, &last.host)
        .await
        .map_err(|e| unread(RuntimeError::Link(e)))?;
    let length = wanted.length.min(MAX_BYTES);
    let log = runtime.read_log(&last.rank, None, length).await.map_err(unread)?;
    let Ended { host, rank, how, .. } = last;
    Ok(PreviousLog { rank, host, how, log })
}

/// How a rank has ended, for people; none: it has not.
fn ended(report: &RankReport) -> Option<String> {
    match &report.status {
        RankStatus::Running { .. } => None,
        RankStatus::Exited { signal: Some(signal), at, .. } => {
            Some(format!("was killed by signal {signal} at {at}"))
        }
        RankStatus::Exited { code: Some(code), at, .. } => {
            Some(format!("ended with exit code {code} at {at}"))
        }
        RankStatus::Exited { at, .. } => Some(format!("ended at {at}")),
        RankStatus::Lost => Some("is gone, and nobody saw how it ended".to_owned()),
    }
}

/// The newest that is meant.
fn newest(
    found: Vec<Ended>,
    wanted: &PreviousLogRequest,
    present: Option<ReplicaId>,
) -> Option<Ended> {
    let is_meant = |ended: &Ended| {
        let rank = &ended.rank;
        rank.service == wanted.service
            && (rank.replica.replica, rank.rank) == (wanted.replica, wanted.rank)
            && Some(rank.replica) != present
    };
    let all = found.into_iter().filter(is_meant);
    all.max_by_key(|ended| (ended.rank.replica.release, ended.rank.replica.attempt))
}

fn none(wanted: &PreviousLogRequest, unseen: &BTreeSet<String>) -> ApiError {
    let PreviousLogRequest { service, replica, rank, .. } = wanted;
    let message = format!("no host keeps the log of an earlier {service}/{replica}/{rank}");
    if unseen.is_empty() {
        let hint =
            "what was stopped leaves none; of what failed or ended by itself the newest are kept";
        return ApiError { kind: ErrorKind::NotFound, message, hint: Some(hint.to_owned()) };
    }
    let hosts = unseen.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    ApiError {
        kind: ErrorKind::Unreachable,
        message: text::clean(&format!("{message} that could be asked; not asked: {hosts}"), 300),
        hint: Some("ask again when they are reached".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{Attempt, DeckId, ReleaseId, ReleaseNumber};

    fn id(release: u64, replica: u32, attempts: u32) -> ReplicaId {
        let attempt = (1..attempts).fold(Attempt::FIRST, |attempt, _| attempt.next());
        ReplicaId { release: ReleaseNumber(release), replica, attempt }
    }

    fn ended(service: &str, replica: ReplicaId, rank: u32) -> Ended {
        let rank = RankId {
            deck: DeckId(uuid::Uuid::from_u128(1)),
            service: service.parse().unwrap(),
            release_id: ReleaseId(uuid::Uuid::from_u128(2)),
            replica,
            rank,
        };
        let host = "h1".parse().unwrap();
        Ended { host, spec: RuntimeSpec::Process, rank, how: String::new() }
    }

    #[test]
    fn the_start_before_the_present_one_is_meant() {
        let wanted = PreviousLogRequest {
            service: "chat".parse().unwrap(),
            replica: 0,
            rank: 1,
            length: 100,
        };
        let all = || {
            vec![
                ended("chat", id(3, 0, 1), 1),
                ended("chat", id(3, 0, 3), 1),
                ended("chat", id(3, 0, 2), 1),
                ended("chat", id(9, 1, 1), 1),
                ended("chat", id(9, 0, 1), 0),
                ended("code", id(9, 0, 1), 1),
            ]
        };
        let newest = |all, present| newest(all, &wanted, present).map(|e| e.rank.replica);
        assert_eq!(newest(all(), Some(id(3, 0, 4))), Some(id(3, 0, 3)));
        assert_eq!(newest(all(), Some(id(3, 0, 3))), Some(id(3, 0, 2)), "it has ended, too");
        // Of a release that was taken back nothing is left but that.
        let mut back = all();
        back.push(ended("chat", id(4, 0, 1), 1));
        assert_eq!(newest(back, Some(id(3, 0, 4))), Some(id(4, 0, 1)));
        assert_eq!(newest(Vec::new(), None), None);
    }

    #[test]
    fn who_cannot_be_asked_is_told() {
        let wanted =
            PreviousLogRequest { service: "chat".parse().unwrap(), replica: 0, rank: 0, length: 1 };
        assert_eq!(none(&wanted, &BTreeSet::new()).kind, ErrorKind::NotFound);
        let away = none(&wanted, &BTreeSet::from(["h2".to_owned()]));
        assert!(away.message.ends_with("not asked: h2"), "{away:?}");
    }
}
