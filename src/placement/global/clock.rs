//! The time that is used, for those who are deep in something: a division of one host, or what a hundred hosts cost. Real
//! time comes from the caller.

use std::cell::Cell;

/// Tells the share of the time that is used.
#[derive(Clone)]
pub(super) struct Clock<'a> {
    used: Option<&'a dyn Fn() -> f64>,
    /// The share from which on it is to be quick.
    until: Cell<f64>,
}

impl<'a> Clock<'a> {
    /// There is always enough time.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { used: None, until: Cell::new(f64::INFINITY) }
    }

    pub fn new(used: &'a dyn Fn() -> f64) -> Self {
        Self { used: Some(used), until: Cell::new(f64::INFINITY) }
    }

    /// From this share of the time on it is to be quick.
    pub fn hurry_from(&self, share: f64) {
        self.until.set(share);
    }

    /// It is to be quick: what is good enough is taken.
    pub fn hurries(&self) -> bool {
        self.until.get().is_finite() && self.used.is_some_and(|used| used() >= self.until.get())
    }
}

impl std::fmt::Debug for Clock<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").field("until", &self.until.get()).finish_non_exhaustive()
    }
}
