//! Connections that others go over (`ProxyJump`): one for each place, however many hosts are
//! behind it.
//!
//! A place is held by the hosts behind it, and for a while after the last of them, so that one host
//! that comes and goes does not log in there each time. When it is lost, the first host that comes
//! back opens it again and the others wait for that; what came of it is everybody's answer.

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
    Failed {
        at: Instant,
        times: u32,
        error: SshError,
    },
}

/// All places.
pub struct Jumps {
    slots: Mutex<Vec<(Endpoint, Arc<Queue<Slot>>)>>,
    linger: Duration,
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
        Self { slots: Mutex::default(), linger: linger.max(Duration::from_millis(8)) }
    }

    fn slot(&self, endpoint: &Endpoint) -> Arc<Queue<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slot)) = slots.iter().find(|(known, _)| known == endpoint) {
            return Arc::clone(slot);
        }
        // What nobody waits for and nobody holds is forgotten.
        slots.retain(|(_, slot)| {
            Arc::strong_count(slot) > 1
                || slot.try_turn().is_ok_and(|slot| match &*slot {
                    Slot::Idle => false,
                    Slot::Up { connection, .. } => connection.strong_count() > 0,
                    Slot::Failed { at, .. } => at.elapsed() < LONGEST_HOLD,
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
        // A queue of those who want the same connection, not a lock over state others need.
        let mut slot = queue.turn(questions).await;
        let mut times = 0;
        match &*slot {
            Slot::Up { connection, .. } => {
                if let Some(connection) = connection.upgrade().filter(|c| !c.has_ended()) {
                    return Ok(connection);
                }
            }
            Slot::Failed { at, times: before, error } => {
                let hold = FIRST_HOLD.saturating_mul(2u32.saturating_pow((*before).min(8)));
                if *at >= since || at.elapsed() < hold.min(LONGEST_HOLD) {
                    return Err(error.clone());
                }
                times = before.saturating_add(1);
            }
            Slot::Idle => {}
        }
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
                *slot = Slot::Failed { at: Instant::now(), times, error: error.clone() };
                Err(error)
            }
        }
    }
}
