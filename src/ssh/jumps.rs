//! Connections that others go over (`ProxyJump`): one for each place, however many hosts are
//! behind it.
//!
//! A place is held by the hosts behind it, and for a while after the last of them, so that one host
//! that comes and goes does not log in there each time. When it is lost, the first host that comes
//! back opens it again and the others wait for that; what came of it is everybody's answer. Where only a
//! person can mend it, that answer holds for minutes: each of many hosts that tries once a minute would
//! else be one more login that the place refuses, and bans us for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use super::channel::RusshConnection;
use super::connection::connect;
use super::endpoint::{ConnectOptions, Endpoint};
use super::queue::Queue;
use super::{Questions, SshError};

/// The answer to a failed attempt holds for so long at first, doubled with each further failure.
const FIRST_HOLD: Duration = Duration::from_millis(250);
const LONGEST_HOLD: Duration = Duration::from_secs(4);
/// The same where only a person can mend it, as single hosts are tried again (`fleet`).
const FIRST_SLOW_HOLD: Duration = Duration::from_mins(1);
const LONGEST_SLOW_HOLD: Duration = Duration::from_mins(5);
/// A place that nobody uses is kept for so long.
const LINGER: Duration = Duration::from_secs(90);

#[derive(Default)]
enum Slot {
    #[default]
    Idle,
    Up {
        connection: Weak<RusshConnection>,
        /// Holds the connection while it lingers.
        _linger: AbortOnDropHandle<()>,
    },
    Failed(Failure),
}

struct Failure {
    at: Instant,
    /// So many before it.
    times: u32,
    error: SshError,
    /// Somebody could be asked.
    could_ask: bool,
    /// So often had been told before the attempt that another one may end otherwise.
    round: u64,
}

impl Failure {
    /// How long everybody is given this answer. In another round, and for whom a person can be asked where
    /// none could be before, it is as one that passes by itself.
    fn hold(&self, round: u64, can_ask: bool) -> Duration {
        let slow =
            self.error.needs_a_person() && self.round == round && (self.could_ask || !can_ask);
        let (first, longest) =
            if slow { (FIRST_SLOW_HOLD, LONGEST_SLOW_HOLD) } else { (FIRST_HOLD, LONGEST_HOLD) };
        first.saturating_mul(2u32.saturating_pow(self.times.min(8))).min(longest)
    }
}

/// All places.
pub struct Jumps {
    slots: Mutex<Vec<(Endpoint, Arc<Queue<Slot>>)>>,
    linger: Duration,
    round: AtomicU64,
}

impl Default for Jumps {
    fn default() -> Self {
        Self::lingering(LINGER)
    }
}

/// Holds a connection until it ends, or nobody else has held it for so long.
async fn hold(connection: Arc<RusshConnection>, linger: Duration) {
    let mut end = connection.end();
    let ended = end.wait_for(Option::is_some);
    tokio::pin!(ended);
    let mut unused = Duration::ZERO;
    let step = linger / 8;
    while unused < linger {
        tokio::select! {
            _ = &mut ended => return,
            () = tokio::time::sleep(step) => {}
        }
        let used = Arc::strong_count(&connection) > 1;
        unused = if used { Duration::ZERO } else { unused + step };
    }
}

impl Jumps {
    /// Keeps places for so long after their last use.
    pub fn lingering(linger: Duration) -> Self {
        let linger = linger.max(Duration::from_millis(8));
        Self { slots: Mutex::default(), linger, round: AtomicU64::new(0) }
    }

    /// A person has changed something: places that wait for that are tried again by the next who needs
    /// them.
    pub fn ask_again(&self) {
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    fn round(&self) -> u64 {
        self.round.load(Ordering::Relaxed)
    }

    fn slot(&self, endpoint: &Endpoint) -> Arc<Queue<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slot)) = slots.iter().find(|(known, _)| known == endpoint) {
            return Arc::clone(slot);
        }
        // What nobody waits for and nobody holds is forgotten.
        let round = self.round();
        slots.retain(|(_, slot)| {
            Arc::strong_count(slot) > 1
                || slot.try_turn().is_ok_and(|slot| match &*slot {
                    Slot::Idle => false,
                    Slot::Up { connection, .. } => connection.strong_count() > 0,
                    Slot::Failed(failure) => failure.at.elapsed() < failure.hold(round, false),
                })
        });
        let slot = Arc::default();
        slots.push((endpoint.clone(), Arc::clone(&slot)));
        slot
    }

    /// The connection to a place, opened if there is none.
    pub(super) async fn get(
        &self,
        endpoint: &Endpoint,
        options: &ConnectOptions,
        questions: &dyn Questions,
    ) -> Result<Arc<RusshConnection>, SshError> {
        let queue = self.slot(endpoint);
        let since = Instant::now();
        let can_ask = questions.can_ask() && !endpoint.config.batch_mode;
        // A queue of those who want the same connection, not a lock over state others need.
        let mut slot = queue.turn(questions).await;
        let mut times = 0;
        match &*slot {
            Slot::Up { connection, .. } => {
                if let Some(connection) = connection.upgrade().filter(|c| !c.has_ended()) {
                    return Ok(connection);
                }
            }
            Slot::Failed(last) => {
                if last.at >= since || last.at.elapsed() < last.hold(self.round(), can_ask) {
                    return Err(last.error.clone());
                }
                times = last.times.saturating_add(1);
                if last.round != self.round() {
                    times = 0;
                }
            }
            Slot::Idle => {}
        }
        let round = self.round();
        // A jump may have a jump of its own: the way there is a connection like any other.
        let asking = queue.asking(questions);
        match Box::pin(connect(endpoint, options, &asking, &|_| ())).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                let linger = tokio::spawn(hold(Arc::clone(&connection), self.linger));
                *slot = Slot::Up {
                    connection: Arc::downgrade(&connection),
                    _linger: AbortOnDropHandle::new(linger),
                };
                Ok(connection)
            }
            Err(error) => {
                let (at, could_ask) = (Instant::now(), can_ask);
                *slot = Slot::Failed(Failure { at, times, error: error.clone(), could_ask, round });
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_person_can_mend_is_everybodys_answer_for_minutes() {
        let refused = SshError::AuthFailed {
            host: "bastion".to_owned(),
            user: "u".to_owned(),
            tried: Vec::new(),
        };
        let of = |error: &SshError, times, could_ask| Failure {
            at: Instant::now(),
            times,
            error: error.clone(),
            could_ask,
            round: 1,
        };
        let lost = SshError::closed("x");
        assert_eq!(of(&lost, 0, true).hold(1, true), FIRST_HOLD);
        assert_eq!(of(&lost, u32::MAX, true).hold(1, true), LONGEST_HOLD);
        let minutes = [0, 1, 2, 3, u32::MAX].map(|n| of(&refused, n, true).hold(1, true));
        assert_eq!(minutes, [1, 2, 4, 5, 5].map(Duration::from_mins));
        // Told that something has changed, or asked by somebody who can answer where nobody could.
        assert_eq!(of(&refused, 0, true).hold(2, true), FIRST_HOLD);
        assert_eq!(of(&refused, 0, false).hold(1, true), FIRST_HOLD);
        assert_eq!(of(&refused, 0, false).hold(1, false), FIRST_SLOW_HOLD);
    }
}
