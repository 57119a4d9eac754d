//! The epoch a controller acts under on one host, shared between those who act.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Epoch;

/// The epoch of a host's claim as it stands now. Clones share one value: whoever renews or takes
/// the claim sets it, whoever acts on the host reads it just before.
#[derive(Clone, Debug, Default)]
pub struct EpochCell(Arc<AtomicU64>);

impl EpochCell {
    /// A cell that holds `epoch`.
    pub fn new(epoch: Epoch) -> Self {
        Self(Arc::new(AtomicU64::new(epoch.0)))
    }

    /// The epoch now.
    pub fn get(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Acquire))
    }

    /// Sets the epoch that a claim was answered with.
    pub fn set(&self, epoch: Epoch) {
        self.0.store(epoch.0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_epoch() {
        let cell = EpochCell::new(Epoch(3));
        let other = cell.clone();
        other.set(Epoch(4));
        assert_eq!(cell.get(), Epoch(4));
    }
}
