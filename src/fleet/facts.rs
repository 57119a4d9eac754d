//! What a host is changes while it is connected: a link negotiates another speed, a disk comes, the
//! container engine is upgraded.

use std::time::Duration;

use super::FleetEvent;
use super::outbox::Outbox;
use super::session::Session;
use crate::wire::{HostFacts, PROTOCOL_VERSION, Reply, Request};

/// A host is asked again so often what it is.
pub(super) const ASK_AGAIN: Duration = Duration::from_mins(1);

/// What is known of a host, and how often it is looked at.
pub(super) struct WatchedFacts {
    pub(super) known: HostFacts,
    pub(super) every: Duration,
}

impl Session {
    /// Asks the host again and again what it is, and tells what has changed. With the question that
    /// every agent answers: older ones do, too.
    pub(super) async fn watch_facts(&self, facts: WatchedFacts, outbox: &Outbox) {
        let WatchedFacts { mut known, every } = facts;
        loop {
            // Not all hosts of a fleet in the same second.
            tokio::time::sleep(every.mul_f64(1.0 + rand::random::<f64>() / 4.0)).await;
            let asked = self.request(Request::Hello { protocol: PROTOCOL_VERSION }).await;
            // One that does not answer now is asked another time.
            let Ok(Some(Reply::Hello { mut facts, .. })) = asked else { continue };
            if facts.driver_version.is_none() {
                // A driver that hangs does not say its version; it has none the less.
                facts.driver_version.clone_from(&known.driver_version);
                facts.cuda_version.clone_from(&known.cuda_version);
            }
            if *facts != known {
                known.clone_from(&facts);
                outbox.put(FleetEvent::Facts { host: self.host.clone(), facts });
            }
        }
    }
}
