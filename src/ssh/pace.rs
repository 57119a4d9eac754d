//! Not too many handshakes at once, and none held up by a host that hangs.
//!
//! A server lets only some connections wait for their login, counted from their first byte
//! (`MaxStartups`). So only some stand at one door, which is an address or the server that a
//! `ProxyCommand` leads to. And a handshake costs this machine computing time: all hosts together
//! take turns, and nobody takes one before the server has said its first word. A turn is kept while the
//! server says something: hosts that hang, in whatever phase, do not use them up, nor do those that talk
//! on and on. A place at a door is kept until the
//! login has ended once the server has spoken, however slow it is: until then it counts there, too.
//! Where a command leads to the host, it stands at two doors: at that of the server that the command logs
//! in to, which is over when the host itself says its first word, and at the host's own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::cut::Heard;

/// Handshakes at once, all hosts together.
const AT_ONCE: usize = 32;
/// At one door at once: below sshd's `MaxStartups 10:30:100`.
const AT_ONE_DOOR: usize = 8;
/// Names that are looked up at once: each holds a thread until the resolver answers, or gives up after many
/// seconds, whoever waits for it. There are 512 for all that blocks (`max_blocking_threads` of tokio).
const LOOKUPS: usize = 64;
/// Whoever hears nothing for so long shakes hands without a turn, and waits without a place.
const KEPT_FOR: Duration = Duration::from_secs(2);
/// Whoever hears something all the time has its turn so many times as long, and no longer.
const MOST_KEPT: u32 = 5;

/// Who may shake hands.
pub struct Pace {
    hands: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    doors: Mutex<HashMap<String, Weak<Semaphore>>>,
    kept_for: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self::keeping(KEPT_FOR)
    }
}

/// One connection's turn: not taken yet, held, or given back.
pub(super) struct Turn {
    held: Mutex<Option<OwnedSemaphorePermit>>,
    taken: Notify,
    kept_for: Duration,
    waited: Mutex<Waited>,
    /// The server has said its first word: a place at its door is kept from then on.
    has_spoken: AtomicBool,
}

/// The doors at which one connection stands.
pub(super) struct Doors {
    /// That of whoever a command goes over.
    way: Turn,
    /// The host's own.
    host: Turn,
}

/// How long a turn was waited for.
#[derive(Default)]
struct Waited {
    whole: Duration,
    since: Option<Instant>,
}

impl Pace {
    /// Turns are given back after so long a silence.
    pub fn keeping(kept_for: Duration) -> Self {
        let (hands, lookups) =
            (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(LOOKUPS)));
        Self { hands, lookups, doors: Mutex::default(), kept_for }
    }

    /// A turn to be waited for.
    pub(super) fn turn(&self) -> Turn {
        Turn {
            held: Mutex::default(),
            taken: Notify::new(),
            kept_for: self.kept_for,
            waited: Mutex::default(),
            has_spoken: AtomicBool::new(false),
        }
    }

    /// A turn to look a name up; for an address nobody is asked.
    pub(super) async fn lookup(&self, name: &str) -> Lookup {
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Lookup { _held: None };
        }
        // A closed semaphore does not happen.
        Lookup { _held: Arc::clone(&self.lookups).acquire_owned().await.ok() }
    }

    /// Places at doors to be waited for.
    pub(super) fn doors(&self) -> Doors {
        Doors { way: self.turn(), host: self.turn() }
    }

    fn places(&self, door: &str) -> Arc<Semaphore> {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.retain(|_, places| places.strong_count() > 0);
        if let Some(places) = doors.get(door).and_then(Weak::upgrade) {
            return places;
        }
        let places = Arc::new(Semaphore::new(AT_ONE_DOOR));
        doors.insert(door.to_owned(), Arc::downgrade(&places));
        places
    }

    /// Waits for a place at the door of a host.
    pub(super) async fn enter(&self, host: &str, doors: &Doors) {
        doors.host.take(self.places(host)).await;
    }

    /// Waits for one at the door of a host, and then at that of the server by which a command leads to it.
    pub(super) async fn enter_by(&self, way: &str, host: &str, doors: &Doors) {
        // Another host at the end of another command may have the same name (`localhost`).
        self.enter(&format!("{way}\n{host}"), doors).await;
        doors.way.take(self.places(way)).await;
    }

    /// Waits for a turn to shake hands: when the server has said its first word, at whose door we stand.
    pub(super) fn shake_hands(
        &self,
        turn: Arc<Turn>,
        doors: Arc<Doors>,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let hands = Arc::clone(&self.hands);
        async move {
            doors.way.give_back();
            doors.host.has_spoken.store(true, Ordering::Release);
            turn.take(hands).await;
        }
    }
}

/// A turn to look a name up, held until that has come to its end.
pub(super) struct Lookup {
    _held: Option<OwnedSemaphorePermit>,
}

impl Lookup {
    /// Does `work` where it may block. Whoever gives up waiting leaves it there, and with it the turn.
    pub(super) async fn with<T: Send + 'static>(
        self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let whole = move || {
            let _turn = self;
            work()
        };
        tokio::task::spawn_blocking(whole).await.map_err(std::io::Error::other)?
    }
}

impl Doors {
    /// Does `work`, in which places may be taken; gives them back afterwards, or where nothing is said.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        self.way.during(self.host.during(work)).await
    }
}

impl Turn {
    async fn take(&self, of: Arc<Semaphore>) {
        self.waited().since = Some(Instant::now());
        // A closed semaphore does not happen, and would only mean that nothing is paced.
        let permit = of.acquire_owned().await.ok();
        {
            let mut waited = self.waited();
            let last = waited.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            waited.whole += last;
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        self.taken.notify_one();
    }

    fn waited(&self) -> std::sync::MutexGuard<'_, Waited> {
        self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `work` within `limit`, in which waiting for this turn does not count: it is our doing and
    /// not the server's. None: it took longer.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let start = Instant::now();
        let deadline = || {
            let waited = self.waited();
            let now = waited.since.map_or(Duration::ZERO, |since| since.elapsed());
            start + limit + waited.whole + now
        };
        tokio::pin!(work);
        loop {
            // While it waits the deadline moves on: not to be looked at all the time.
            let until = deadline().max(Instant::now() + Duration::from_millis(10));
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = tokio::time::sleep_until(until) => {}
            }
            if deadline() <= Instant::now() {
                return None;
            }
        }
    }

    /// Does `work`, in which a place may be taken; gives it back afterwards, or soon where nothing is said.
    async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let lease = async {
            self.taken.notified().await;
            tokio::time::sleep(self.kept_for).await;
            if self.has_spoken.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
        };
        self.leased(work, lease).await
    }

    /// Does `work`, in which the turn may be taken; gives it back afterwards, or when nothing was heard for a
    /// while.
    pub(super) async fn while_heard<T>(&self, heard: &Heard, work: impl Future<Output = T>) -> T {
        let lease = async {
            self.taken.notified().await;
            let since = Instant::now();
            loop {
                // What was heard before counts for nothing: it waited for the turn.
                let silence = heard.silence().min(since.elapsed());
                let left = self.kept_for.saturating_sub(silence);
                let most = (self.kept_for * MOST_KEPT).saturating_sub(since.elapsed());
                if left.min(most).is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(most)).await;
            }
        };
        self.leased(work, lease).await
    }

    /// Does `work`, and gives the turn back when it is done, given up, or the lease is over.
    async fn leased<T>(&self, work: impl Future<Output = T>, lease: impl Future<Output = ()>) -> T {
        struct GiveBack<'a>(&'a Turn);
        impl Drop for GiveBack<'_> {
            fn drop(&mut self) {
                self.0.give_back();
            }
        }
        let give_back = GiveBack(self);
        tokio::pin!(work, lease);
        tokio::select! {
            done = &mut work => done,
            () = &mut lease => {
                drop(give_back);
                work.await
            }
        }
    }

    fn give_back(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
#[allow(clippy::large_futures)] // of a test, once
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    async fn one<T>(pace: &Pace, address: &str, work: impl Future<Output = T>) -> T {
        hearing(&Heard::new(), pace, address, work).await
    }

    async fn hearing<T>(
        heard: &Heard,
        pace: &Pace,
        address: &str,
        work: impl Future<Output = T>,
    ) -> T {
        let (doors, turn) = (Arc::new(pace.doors()), Arc::new(pace.turn()));
        let shaking = pace.shake_hands(Arc::clone(&turn), Arc::clone(&doors));
        doors
            .during(async {
                pace.enter(address, &doors).await;
                turn.while_heard(heard, async {
                    shaking.await;
                    work.await
                })
                .await
            })
            .await
    }

    #[tokio::test]
    async fn waiting_for_a_turn_does_not_count_as_the_servers_time() {
        let pace = Pace::keeping(Duration::from_secs(3));
        let mut others = Vec::new();
        for _ in 0..AT_ONCE {
            others.push(Arc::clone(&pace.hands).acquire_owned().await);
        }
        let turn = Arc::new(pace.turn());
        let shaking = pace.shake_hands(Arc::clone(&turn), Arc::new(pace.doors()));
        let others = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            others.clear();
        };
        let mine = turn.within(Duration::from_secs(1), shaking);
        assert_eq!(tokio::join!(mine, others).0, Some(()));
        // What the server takes does.
        let never = turn.within(Duration::from_millis(10), std::future::pending::<()>());
        assert_eq!(never.await, None);
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

    /// They take longer than a silence may last, and say something all the while.
    #[tokio::test]
    async fn of_hosts_that_are_merely_slow_thirty_two_shake_hands_at_once() {
        let pace = Arc::new(Pace::default());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = tokio::task::JoinSet::new();
        for n in 0..2 * AT_ONCE {
            let (pace, now, most) = (Arc::clone(&pace), Arc::clone(&now), Arc::clone(&most));
            all.spawn(async move {
                let heard = Heard::new();
                let work = async {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let begin = Instant::now();
                    while begin.elapsed() < KEPT_FOR * 3 / 2 {
                        tokio::time::sleep(KEPT_FOR / 40).await;
                        heard.now();
                    }
                    now.fetch_sub(1, Ordering::SeqCst);
                };
                hearing(&heard, &pace, &format!("slow{n}"), work).await;
            });
        }
        while all.join_next().await.is_some() {}
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test]
    async fn hosts_that_talk_on_and_on_do_not_keep_their_turns() {
        let pace = Arc::new(Pace::keeping(Duration::from_millis(100)));
        let mut talking = tokio::task::JoinSet::new();
        for n in 0..2 * AT_ONCE {
            let pace = Arc::clone(&pace);
            talking.spawn(async move {
                let heard = Heard::new();
                let work = async {
                    loop {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        heard.now();
                    }
                };
                hearing(&heard, &pace, &format!("talks{n}"), work).await;
            });
        }
        tokio::task::yield_now().await;
        let done =
            tokio::time::timeout(Duration::from_secs(30), one(&pace, "good", async { 7 })).await;
        assert_eq!(done, Ok(7));
    }

    /// Logins may take longer than a turn is kept: the server counts them all the same.
    #[tokio::test]
    async fn one_address_gets_eight_at_once() {
        let pace = Arc::new(Pace::keeping(Duration::from_millis(20)));
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
        assert_eq!(most.load(Ordering::SeqCst), AT_ONE_DOOR);
    }

    /// A host that asks for a password has long been let through by the server that a command goes over.
    #[tokio::test]
    async fn hosts_that_log_in_slowly_leave_the_door_of_the_command_that_leads_to_them() {
        let pace = Arc::new(Pace::keeping(Duration::from_mins(10)));
        let mut asking = tokio::task::JoinSet::new();
        let by = |host: String| {
            let pace = Arc::clone(&pace);
            async move {
                let (doors, turn) = (Arc::new(pace.doors()), Arc::new(pace.turn()));
                let shaking = pace.shake_hands(Arc::clone(&turn), Arc::clone(&doors));
                let work = async {
                    pace.enter_by("ssh -W %h:%p gate", &host, &doors).await;
                    shaking.await;
                    // The handshake is over, the login is not.
                    turn.give_back();
                    std::future::pending::<()>().await;
                };
                doors.during(work).await;
            }
        };
        for n in 0..40 {
            asking.spawn(by(format!("host{n}:22")));
        }
        for _ in 0..AT_ONE_DOOR + 2 {
            asking.spawn(by("slow:22".to_owned()));
        }
        let way = pace.places("ssh -W %h:%p gate");
        let slow = pace.places("ssh -W %h:%p gate\nslow:22");
        let deadline = Instant::now() + Duration::from_secs(30);
        // All eight places of the way are free, and those of the one host are taken.
        while way.available_permits() < AT_ONE_DOOR || slow.available_permits() > 0 {
            assert!(Instant::now() < deadline, "they hold on to them");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn lookups_that_hang_hold_their_turns_when_nobody_waits_any_more() {
        let pace = Pace::default();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for _ in 0..LOOKUPS {
            let wait = Arc::clone(&wait);
            let hanging = pace.lookup("box").await.with(move || {
                let _ = wait.lock().map(|wait| wait.recv());
                Ok(())
            });
            // Given up at once.
            assert!(tokio::time::timeout(Duration::from_millis(1), hanging).await.is_err());
        }
        assert_eq!(pace.lookups.available_permits(), 0);
        // An address needs none.
        drop(pace.lookup("::1").await);
        drop(go);
        assert!(pace.lookup("box").await.with(|| Ok(7)).await.is_ok_and(|n| n == 7));
    }
}
