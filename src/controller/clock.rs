//! The controller's clock: the machine's, which may be set, made fit for deadlines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::core::Core;
use super::deck_ledger::DeckEvent;
use crate::api::DeckConditionKind;
use crate::base::{Timestamp, time};

/// A clock that is never set back: where the machine's is, it runs on from where it was, and no deadline
/// stands still. It follows the machine's forward at once.
struct Clock {
    /// How far it is ahead of the time since the machine was started, in milliseconds.
    ahead_ms: AtomicU64,
}

impl Clock {
    /// What it says `up_ms` milliseconds after the machine was started: `moment`, if it was never later.
    fn at_least(&self, moment: Timestamp, up_ms: u64) -> Timestamp {
        let ahead = moment.0.saturating_sub(up_ms);
        let most = self.ahead_ms.fetch_max(ahead, Ordering::Relaxed).max(ahead);
        Timestamp(up_ms.saturating_add(most))
    }
}

static CLOCK: Clock = Clock { ahead_ms: AtomicU64::new(0) };

/// The time.
pub fn now() -> Timestamp {
    not_before(wall())
}

/// What the machine's own clock says.
fn wall() -> Timestamp {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX))
}

/// How far the time is ahead of the machine's own clock.
pub fn ahead() -> Duration {
    let wall = wall();
    not_before(wall).since(wall)
}

/// What is worth telling of how far it is ahead: nothing up to this.
const TOLD_FROM: Duration = Duration::from_secs(5);

/// What was told last, and is told anew only when it has changed by more than the two clocks' reading does.
#[derive(Debug, Default)]
pub struct Told(Option<Duration>);

impl Told {
    /// What is to be told now if it is so far ahead; none: nothing new. `Some(None)`: it is not ahead any more.
    pub fn of(&mut self, ahead: Duration) -> Option<Option<Duration>> {
        let next = (ahead >= TOLD_FROM).then_some(ahead);
        let same = match (self.0, next) {
            (Some(was), Some(is)) => was.abs_diff(is) < TOLD_FROM / 2,
            (was, is) => was == is,
        };
        if same {
            return None;
        }
        self.0 = next;
        Some(next)
    }
}

impl Core {
    /// Says while times are not this machine's: events and deadlines are dated by them.
    pub(super) fn tend_clock(&mut self) {
        let ahead = ahead();
        let Some(told) = self.clock_told.of(ahead) else { return };
        let holds = told.map(|ahead| {
            let words = format!(
                "times are {} ahead of this machine's clock: it was set back, or what is gone on with was dated by a \
                 clock that is ahead",
                time::short(ahead)
            );
            let hint = "set the clocks of the machines (`timedatectl` shows whether NTP is in use); deadlines \
                        and gates are right meanwhile, and the state ends when this clock has caught up";
            (words, Some(hint.to_owned()))
        });
        self.set_condition(DeckConditionKind::ClockAhead, holds);
        let ahead_ms = told.map_or(0, |ahead| u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX));
        if let Err(error) = self.deck_happened(DeckEvent::ClockAhead { ahead_ms }) {
            tracing::error!(%error, "the journal cannot be written");
        }
    }
}

/// The time, which is `moment` at least from now on: an earlier life of the controller had come so far.
pub fn not_before(moment: Timestamp) -> Timestamp {
    let up = clock_gettime(ClockId::Boottime);
    let up_ms = u64::try_from(up.tv_sec).unwrap_or(0).saturating_mul(1_000)
        + u64::try_from(up.tv_nsec).unwrap_or(0) / 1_000_000;
    CLOCK.at_least(moment, up_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_runs_on_and_one_that_is_set_forward_is_followed() {
        let clock = Clock { ahead_ms: AtomicU64::new(0) };
        assert_eq!(clock.at_least(Timestamp(1_000_000), 500), Timestamp(1_000_000));
        assert_eq!(clock.at_least(Timestamp(1_000_100), 600), Timestamp(1_000_100));
        // Ten minutes back.
        assert_eq!(clock.at_least(Timestamp(400_300), 800), Timestamp(1_000_300));
        assert_eq!(clock.at_least(Timestamp(401_500), 2_000), Timestamp(1_001_500));
        // An hour forward, and on from there.
        assert_eq!(clock.at_least(Timestamp(4_601_600), 2_100), Timestamp(4_601_600));
        assert_eq!(clock.at_least(Timestamp(0), 2_200), Timestamp(4_601_700));
    }

    #[test]
    fn how_far_it_is_ahead_is_told_when_that_changes() {
        let mut told = Told::default();
        let seconds = Duration::from_secs;
        assert_eq!(told.of(Duration::ZERO), None);
        assert_eq!(told.of(seconds(2)), None, "what NTP does");
        assert_eq!(told.of(seconds(600)), Some(Some(seconds(600))));
        assert_eq!(told.of(seconds(601)), None);
        assert_eq!(told.of(seconds(3_600)), Some(Some(seconds(3_600))));
        assert_eq!(told.of(seconds(1)), Some(None));
        assert_eq!(told.of(seconds(1)), None);
    }
}
