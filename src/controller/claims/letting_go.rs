//! Claims that end: a take-over that came to nothing gives back what it has taken, and a controller that is stopped does not
//! keep others waiting for its leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Claims, Other};
use crate::base::{Epoch, HostName};
use crate::controller::core::now;
use crate::fleet::{Fleet, HostLink};
use crate::wire::{Reply, Request};

/// A controller that ends waits so long for hosts that are to end its leases.
const LEASES_END_WITHIN: Duration = Duration::from_secs(1);

impl Claims {
    /// These hosts are about to be taken over from others, and those that are `away` are left out. Until
    /// [`Self::settle`] the former are to be given back, and the latter are not held.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn begin_taking(
        &self,
        term: u64,
        from: &BTreeMap<HostName, Other>,
        away: &BTreeSet<HostName>,
    ) -> std::io::Result<()> {
        let whose = from.iter().map(|(host, other)| (host.clone(), other.holder.clone()));
        self.left_out.begin(term, away.iter().cloned(), now())?;
        self.owed.begin(term, whose.collect())
    }

    /// What was left on these hosts is in the journal, in this term.
    pub fn settle(&self, term: u64, hosts: &BTreeSet<HostName>) {
        let left_out = self.left_out.settle();
        // Nor is one of them owed to anybody any more.
        self.owed.settle(term, hosts.iter().chain(&left_out));
        for host in left_out {
            self.note(&host, None);
        }
    }

    /// A take-over of these hosts has come to nothing: from here on none of them that was another's is ours.
    pub fn let_go<'a>(&self, hosts: impl IntoIterator<Item = &'a HostName>) {
        self.owed.give_up();
        self.left_out.give_up();
        for host in hosts {
            if let Some(holder) = self.owed.to(host) {
                self.note(host, Some(Other::before_us(holder)));
            }
        }
    }

    /// Gives such hosts back to those who had them, at once or when they are reached again; of the others the lease ends.
    pub async fn give_up(&self, links: &[Arc<dyn HostLink>]) {
        self.let_go(links.iter().map(|link| link.host()));
        let links = links.iter().map(|link| async move {
            let held = self.held.lock().await.get(link.host()).cloned();
            if self.owed.to(link.host()).is_some() {
                if let Err(error) = self.survey(link.as_ref()).await {
                    tracing::warn!(host = %link.host(), %error, "it is given back later");
                }
            } else if let Some(claim) = held.filter(|claim| claim.until.is_some()) {
                let epoch = Some(claim.epoch.get());
                let _ = self.claim(link.as_ref(), epoch, Duration::ZERO, false).await;
            }
            if let Some(claim) = self.held.lock().await.get_mut(link.host()) {
                claim.until = None;
            }
        });
        futures::future::join_all(links).await;
    }

    /// The controller ends: the leases of its hosts end with it, so that whoever takes over next need not wait for them. The
    /// hosts stay its own, for the next life or until a person takes them.
    pub async fn end_leases(&self, fleet: &Fleet) {
        self.is_ending.store(true, Ordering::Release);
        let ours = self.known().ours.clone();
        let ends = ours.iter().filter_map(|host| fleet.link(host)).map(|link| async move {
            let held = self.held.lock().await.get(link.host()).cloned();
            let Some(claim) = held.filter(|claim| claim.until.is_some()) else { return };
            let epoch = Some(claim.epoch.get());
            if let Err(error) = self.claim(link.as_ref(), epoch, Duration::ZERO, false).await {
                tracing::debug!(host = %link.host(), %error, "its lease ends by itself");
            }
        });
        let all = futures::future::join_all(ends);
        let _ = tokio::time::timeout(LEASES_END_WITHIN, all).await;
    }

    /// Gives a host that has our name back to whom it is owed, if it is: it is none of ours in any case.
    pub(super) async fn give_back(&self, link: &dyn HostLink, epoch: Epoch) -> Option<Other> {
        let holder = self.owed.to(link.host())?;
        // With the present epoch it is renewed, without a lease and in the other name; whoever took it meanwhile
        // has another one, and keeps it.
        let request = Request::Claim {
            deck: self.deck,
            epoch: Some(epoch),
            holder: holder.clone(),
            lease_ms: 0,
            force: false,
        };
        match link.request(request).await {
            Ok(Reply::Claimed { .. }) => self.owed.is_given_back(link.host()),
            Ok(other) => tracing::warn!(host = %link.host(), ?other, "it is not given back yet"),
            Err(error) => tracing::warn!(host = %link.host(), %error, "it is not given back yet"),
        }
        Some(Other::before_us(holder))
    }
}
