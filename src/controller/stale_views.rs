//! Which services' views are behind their state. Showing is for people: it may take a fiftieth of
//! the time at most, so that five hundred replicas that come up at once are decided first.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::ServiceName;

/// Showing rests this many times as long as it took.
const REST_FACTOR: u32 = 50;
/// And no longer than this.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// The views that are behind, and when they may be shown again.
#[derive(Debug, Default)]
pub struct StaleViews {
    services: BTreeSet<ServiceName>,
    not_before: Option<Instant>,
}

impl StaleViews {
    /// A service has changed.
    pub fn mark(&mut self, service: &ServiceName) {
        if !self.services.contains(service) {
            self.services.insert(service.clone());
        }
    }

    /// Something is behind and may be shown now.
    pub fn is_due(&self) -> bool {
        !self.services.is_empty() && self.not_before.is_none_or(|at| at <= Instant::now())
    }

    /// Returns when something is behind and may be shown; never if nothing is.
    pub async fn due(&self) {
        if self.services.is_empty() {
            return std::future::pending().await;
        }
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at).await;
        }
    }

    /// What is behind, all of it; it is to be shown now.
    pub fn take(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.services)
    }

    /// It was shown, which began then.
    pub fn shown(&mut self, began: std::time::Instant) {
        let rest = began.elapsed().saturating_mul(REST_FACTOR).min(LONGEST_REST);
        self.not_before = Some(Instant::now() + rest);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rests_as_long_as_showing_took_and_forgets_nothing() {
        let mut views = StaleViews::default();
        assert!(!views.is_due());
        let (chat, code) = ("chat".parse().unwrap(), "code".parse().unwrap());
        views.mark(&chat);
        assert!(views.is_due(), "the first is shown at once");
        assert_eq!(views.take().len(), 1);
        views.shown(std::time::Instant::now().checked_sub(Duration::from_hours(1)).unwrap());
        let rest_ends = views.not_before.unwrap();
        assert!(rest_ends <= Instant::now() + LONGEST_REST);
        views.mark(&chat);
        views.mark(&code);
        views.due().await;
        assert!(Instant::now() >= rest_ends);
        assert_eq!(views.take(), [chat, code].into());
        assert!(!views.is_due());
    }
}
