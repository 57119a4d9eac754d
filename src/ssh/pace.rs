//! Not too many handshakes at once, and none held up by a host that hangs.
//!
//! A handshake costs this machine and the server computing time, and a server lets only some
//! connections wait for their login (`MaxStartups`). So they take turns. Nobody takes one before
//! the server has said its first word, and nobody keeps one for long: hosts that hang, in whatever
//! phase, do not use them up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Handshakes at once, all hosts together.
const AT_ONCE: usize = 32;
/// Handshakes at once with one address: below sshd's `MaxStartups 10:30:100`.
const AT_ONCE_PER_ADDRESS: usize = 8;
/// Whoever takes longer goes on without a turn.
const KEPT_FOR: Duration = Duration::from_secs(2);

/// Who may shake hands.
pub struct Pace {
    all: Arc<Semaphore>,
    addresses: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), addresses: Mutex::default() }
    }
}

/// One connection's turn: not taken yet, held, or given back.
#[derive(Default)]
pub(super) struct Turn {
    held: Mutex<Vec<OwnedSemaphorePermit>>,
    taken: Notify,
}

impl Pace {
    fn address(&self, address: &str) -> Arc<Semaphore> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.retain(|_, places| places.strong_count() > 0);
        if let Some(places) = addresses.get(address).and_then(Weak::upgrade) {
            return places;
        }
        let places = Arc::new(Semaphore::new(AT_ONCE_PER_ADDRESS));
        addresses.insert(address.to_owned(), Arc::downgrade(&places));
        places
    }

    /// Waits for a turn.
    pub(super) fn take(
        &self,
        address: &str,
        turn: Arc<Turn>,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (here, all) = (self.address(address), Arc::clone(&self.all));
        async move {
            // A closed semaphore does not happen, and would only mean that nothing is paced.
            let permits = [here.acquire_owned().await.ok(), all.acquire_owned().await.ok()];
            let permits: Vec<_> = permits.into_iter().flatten().collect();
            turn.held.lock().unwrap_or_else(PoisonError::into_inner).extend(permits);
            turn.taken.notify_one();
        }
    }
}

impl Turn {
    /// Does `work`, in which the turn may be taken; gives it back afterwards, or soon.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        struct GiveBack<'a>(&'a Turn);
        impl Drop for GiveBack<'_> {
            fn drop(&mut self) {
                self.0.give_back();
            }
        }
        let _give_back = GiveBack(self);
        let lease = async {
            self.taken.notified().await;
            tokio::time::sleep(KEPT_FOR).await;
            self.give_back();
            std::future::pending::<()>().await;
        };
        tokio::pin!(work, lease);
        tokio::select! {
            done = &mut work => done,
            () = &mut lease => work.await,
        }
    }

    fn give_back(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    async fn one<T>(pace: &Pace, address: &str, work: impl Future<Output = T>) -> T {
        let turn = Arc::new(Turn::default());
        let taking = pace.take(address, Arc::clone(&turn));
        turn.during(async {
            taking.await;
            work.await
        })
        .await
    }

    #[tokio::test]
    async fn hosts_that_hang_delay_the_others_by_seconds_only() {
        let pace = Arc::new(Pace::default());
        let mut hanging = tokio::task::JoinSet::new();
        for n in 0..60 {
            let pace = Arc::clone(&pace);
            hanging.spawn(async move {
                one(&pace, &format!("hang{n}"), std::future::pending::<()>()).await;
            });
        }
        tokio::task::yield_now().await;
        let done =
            tokio::time::timeout(Duration::from_secs(30), one(&pace, "good", async { 7 })).await;
        assert_eq!(done, Ok(7));
    }

    #[tokio::test]
    async fn one_address_gets_eight_at_once() {
        let pace = Arc::new(Pace::default());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..30 {
            let (pace, now, most) = (Arc::clone(&pace), Arc::clone(&now), Arc::clone(&most));
            all.spawn(async move {
                let work = async {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                };
                one(&pace, "one", work).await;
            });
        }
        while all.join_next().await.is_some() {}
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE_PER_ADDRESS);
    }
}
