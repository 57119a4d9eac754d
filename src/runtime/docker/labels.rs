//! Labels: how a container says which rank it is, to any later controller.

use std::collections::HashMap;

use crate::base::{Attempt, RankId, ReleaseNumber, ReplicaId, ServiceName};

/// The deck's UUID.
pub const DECK: &str = "gpudeck.deck";
const SERVICE: &str = "gpudeck.service";
const RELEASE: &str = "gpudeck.release";
const RELEASE_ID: &str = "gpudeck.release_id";
const ATTEMPT: &str = "gpudeck.attempt";
const REPLICA: &str = "gpudeck.replica";
const RANK: &str = "gpudeck.rank";
/// The first port of the rank, where it has one.
const PORT: &str = "gpudeck.port";

/// The labels of a rank's container.
pub fn write(rank: &RankId, port: Option<u16>) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = [
        (DECK, rank.deck.to_string()),
        (SERVICE, rank.service.to_string()),
        (RELEASE, rank.replica.release.to_string()),
        (RELEASE_ID, rank.release_id.to_string()),
        (ATTEMPT, rank.replica.attempt.to_string()),
        (REPLICA, rank.replica.replica.to_string()),
        (RANK, rank.rank.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if let Some(port) = port {
        labels.insert(PORT.to_owned(), port.to_string());
    }
    labels
}

/// The label that all containers of a service have, as engines are asked for it.
pub fn of_service(service: &ServiceName) -> String {
    format!("{SERVICE}={service}")
}

/// The rank that labels name, if they are ours and whole.
#[allow(clippy::implicit_hasher)] // the type that bollard gives
pub fn read(labels: &HashMap<String, String>) -> Option<RankId> {
    let release: ReleaseNumber = labels.get(RELEASE)?.parse().ok()?;
    Some(RankId {
        deck: labels.get(DECK)?.parse().ok()?,
        service: labels.get(SERVICE)?.parse().ok()?,
        release_id: labels.get(RELEASE_ID)?.parse().ok()?,
        replica: ReplicaId {
            release,
            replica: labels.get(REPLICA)?.parse().ok()?,
            attempt: Attempt(labels.get(ATTEMPT)?.parse().ok()?),
        },
        rank: labels.get(RANK)?.parse().ok()?,
    })
}
