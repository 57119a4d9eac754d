//! The leased epochs under which this controller may act on hosts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::base::{DeckId, Epoch, EpochCell, HostName};
use crate::fleet::{HostLink, LinkError};
use crate::wire::{Reply, Request};

/// How long a claim holds without being renewed.
const LEASE: Duration = Duration::from_secs(30);

/// A claim is renewed when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::from_secs(20);

/// The claims of one controller.
pub struct Claims {
    deck: DeckId,
    holder: String,
    held: Mutex<BTreeMap<HostName, Claim>>,
}

#[derive(Clone)]
struct Claim {
    epoch: EpochCell,
    until: Option<Instant>,
}

impl Claims {
    /// No claims yet. `holder` names this controller to people and to its own next life.
    pub fn new(deck: DeckId, holder: String) -> Self {
        Self { deck, holder, held: Mutex::new(BTreeMap::new()) }
    }

    /// The cell that holds the host's epoch, claimed or renewed if need be.
    pub async fn ensure(&self, link: &dyn HostLink) -> Result<EpochCell, LinkError> {
        let known = self.held.lock().await.get(link.host()).cloned();
        if let Some(claim) = &known
            && claim
                .until
                .is_some_and(|u| u.saturating_duration_since(Instant::now()) > RENEW_BEFORE)
        {
            return Ok(claim.epoch.clone());
        }
        let asked = Instant::now();
        let request = Request::Claim {
            deck: self.deck,
            epoch: known.filter(|c| c.until.is_some()).map(|c| c.epoch.get()),
            holder: self.holder.clone(),
            lease_ms: u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX),
            force: false,
        };
        match link.request(request).await? {
            Reply::Claimed { epoch } => {
                let mut held = self.held.lock().await;
                let claim = held
                    .entry(link.host().clone())
                    .or_insert_with(|| Claim { epoch: EpochCell::new(epoch), until: None });
                claim.epoch.set(epoch);
                claim.until = Some(asked + LEASE);
                Ok(claim.epoch.clone())
            }
            other => Err(LinkError::Unexpected {
                host: link.host().clone(),
                what: format!("{other:?} instead of a claim").chars().take(120).collect(),
            }),
        }
    }

    /// The hosts on which something is claimed.
    pub async fn hosts(&self) -> Vec<HostName> {
        self.held
            .lock()
            .await
            .iter()
            .filter(|(_, c)| c.until.is_some())
            .map(|(h, _)| h.clone())
            .collect()
    }

    /// The cell of a host's epoch, claimed or not: what reads needs no claim.
    pub async fn cell(&self, host: &HostName) -> EpochCell {
        let mut held = self.held.lock().await;
        let unclaimed = || Claim { epoch: EpochCell::new(Epoch(0)), until: None };
        held.entry(host.clone()).or_insert_with(unclaimed).epoch.clone()
    }
}
