//! Names of users, as the system's name service has them: from `/etc/passwd`, LDAP, SSSD and what else the host is set
//! up for. A name service may hang, so it is asked on a thread of its own, and nobody waits for it for long: until it
//! answers a user is shown by the number.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

use crate::base::text::clean;
use crate::wire::Gpus;

/// Users that are known at once.
const MAX_KNOWN: usize = 1024;

/// Questions that wait for the name service; more are asked again later.
const MAX_WAITING: usize = 64;

/// A name is asked for again after so long,
const AGAIN: Duration = Duration::from_mins(10);

/// and one that there was none of: the account may just have been made.
const NONE_AGAIN: Duration = Duration::from_secs(10);

/// All who ask together wait for so long at most, within so long.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Answers with the name of a user, none where there is no such user; an error: the service cannot answer now.
type Service = Box<dyn Fn(u32) -> nix::Result<Option<String>> + Send>;

/// The name of a user id; the number where it has none, or where that is not known yet.
pub fn name(uid: u32) -> String {
    users().name(uid)
}

/// The same for who acts under that name and can wait: until so long after the name was first asked for. None where the
/// user has none, or where that is not known then.
pub fn name_within(uid: u32, patience: Duration) -> Option<String> {
    users().find(uid, Some(patience))
}

fn users() -> &'static Users {
    static USERS: OnceLock<Users> = OnceLock::new();
    USERS.get_or_init(|| Users::new(Box::new(of_system)))
}

/// Puts names in the place of the numbers of users.
pub fn put_in(gpus: &mut Gpus) {
    let Gpus::Some(gpus) = gpus else { return };
    for process in gpus.iter_mut().flat_map(|gpu| &mut gpu.processes).flatten() {
        if let Some(uid) = process.user.as_ref().and_then(|user| user.parse().ok()) {
            process.user = Some(name(uid).into());
        }
    }
}

fn of_system(uid: u32) -> nix::Result<Option<String>> {
    let user = User::from_uid(Uid::from_raw(uid))?;
    Ok(user.map(|user| clean(&user.name, 64)).filter(|name| !name.is_empty()))
}

/// What is known of users, and the thread that asks for more.
struct Users {
    shared: Arc<Shared>,
    ask: SyncSender<u32>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    answered: Condvar,
}

#[derive(Default)]
struct Table {
    known: BTreeMap<u32, Known>,
    /// What is left of the time to wait, and since when.
    patience: Option<(Duration, Instant)>,
}

struct Known {
    name: Option<String>,
    /// When it was asked for last.
    asked: Instant,
    /// The service has not answered yet.
    waits: bool,
    /// It was asked before.
    again: bool,
}

impl Known {
    fn is_due(&self) -> bool {
        let again = if self.name.is_some() { AGAIN } else { NONE_AGAIN };
        !self.waits && self.asked.elapsed() >= again
    }
}

impl Table {
    /// How long somebody may wait now.
    fn patience(&mut self) -> Duration {
        let (left, since) = self.patience.unwrap_or((PATIENCE.0, Instant::now()));
        let (left, since) =
            if since.elapsed() < PATIENCE.1 { (left, since) } else { (PATIENCE.0, Instant::now()) };
        self.patience = Some((left, since));
        left
    }

    fn waited(&mut self, for_so_long: Duration) {
        if let Some((left, _)) = &mut self.patience {
            *left = left.saturating_sub(for_so_long);
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Users {
    fn new(service: Service) -> Self {
        let (ask, asked) = sync_channel(MAX_WAITING);
        let shared = Arc::new(Shared::default());
        let answering = Arc::clone(&shared);
        let work = move || answer(&answering, &asked, &service);
        // Without the thread (no memory for its stack) users are shown by their numbers.
        let _ = std::thread::Builder::new().name("users".to_owned()).spawn(work);
        Self { shared, ask }
    }

    fn name(&self, uid: u32) -> String {
        self.find(uid, None).unwrap_or_else(|| uid.to_string())
    }

    /// Waits as long as all who ask may, or with a patience of its own until so long after the question was asked: a
    /// service that hangs holds up the first who asks, not all after it.
    fn find(&self, uid: u32, patience: Option<Duration>) -> Option<String> {
        let mut table = self.shared.table();
        if table.known.get(&uid).is_none_or(Known::is_due) {
            self.ask(&mut table, uid);
        }
        let is_awaited =
            |table: &mut Table| table.known.get(&uid).is_some_and(|k| k.waits && k.name.is_none());
        if is_awaited(&mut table) {
            let waits_for = table.known.get(&uid).map_or(Duration::ZERO, |k| k.asked.elapsed());
            let left = match patience {
                // The first time only: one that has failed may do so each time.
                Some(_) if table.known.get(&uid).is_some_and(|known| known.again) => Duration::ZERO,
                Some(patience) => patience.saturating_sub(waits_for),
                None => table.patience(),
            };
            let begun = Instant::now();
            let waited = self.shared.answered.wait_timeout_while(table, left, is_awaited);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
            if patience.is_none() {
                table.waited(begun.elapsed());
            }
        }
        table.known.get(&uid).and_then(|known| known.name.clone())
    }

    fn ask(&self, table: &mut Table, uid: u32) {
        if table.known.len() >= MAX_KNOWN && !table.known.contains_key(&uid) {
            table.known.clear();
        }
        // What finds no room is asked for by whoever wants it next.
        if self.ask.try_send(uid).is_ok() {
            let before = table.known.remove(&uid);
            let again = before.is_some();
            let name = before.and_then(|known| known.name);
            table.known.insert(uid, Known { name, asked: Instant::now(), waits: true, again });
        }
    }
}

/// Asks the service, one question after the other, until nobody asks any more.
fn answer(shared: &Shared, asked: &Receiver<u32>, service: &Service) {
    while let Ok(uid) = asked.recv() {
        let answer = service(uid);
        if let Some(known) = shared.table().known.get_mut(&uid) {
            known.waits = false;
            // A service that has no answer just now has not taken the name away.
            if let Ok(name) = answer {
                known.name = name;
            }
        }
        shared.answered.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use crate::wire::{Gpu, GpuProcess};

    #[test]
    fn a_user_of_a_directory_service_has_a_name() {
        // Neither is in any file of this host.
        let users = Users::new(Box::new(|uid| match uid {
            1_234_501 => Ok(Some("ann".to_owned())),
            1_234_502 => Err(nix::Error::EIO),
            _ => Ok(None),
        }));
        becomes("ann", || users.name(1_234_501));
        assert_eq!(users.name(1_234_502), "1234502", "the service is not reached");
        assert_eq!(users.name(1_234_503), "1234503", "there is no such user");
        becomes("root", || name(0));
    }

    /// On a busy machine the thread may need longer than anybody waits for it.
    #[track_caller]
    fn becomes(wanted: &str, name: impl Fn() -> String) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while name() != wanted {
            assert!(Instant::now() < deadline, "{} is not {wanted}", name());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_name_service_that_hangs_holds_nobody_up_and_is_heard_later() {
        let (go, gate) = sync_channel::<()>(1);
        let users = Users::new(Box::new(move |uid| {
            gate.recv().ok();
            Ok(Some(format!("user{uid}")))
        }));
        let begun = Instant::now();
        for _ in 0..100 {
            for uid in 1..=200 {
                assert_eq!(users.name(uid), uid.to_string());
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        // Who acts under the name waits, but not anew each time.
        let short = Duration::from_millis(20);
        assert_eq!(users.find(1, Some(short)), None, "it was asked for longer ago");
        drop(go);
        becomes("user1", || users.name(1));
    }

    #[test]
    fn who_acts_under_a_name_waits_for_a_slow_service() {
        let (go, gate) = sync_channel::<()>(1);
        let users = Users::new(Box::new(move |_| {
            gate.recv().ok();
            Ok(Some("ann".to_owned()))
        }));
        // All who only show it have stopped to wait.
        while users.shared.table().patience() > Duration::ZERO {
            assert_eq!(users.name(7), "7");
        }
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(go);
        });
        assert_eq!(users.find(7, Some(Duration::from_secs(60))).as_deref(), Some("ann"));
        later.join().unwrap();
    }

    #[test]
    fn an_account_that_is_made_later_is_found_and_few_are_kept() {
        let users = Users::new(Box::new(|uid| Ok((uid != 7).then(|| format!("user{uid}")))));
        assert_eq!(users.name(7), "7");
        let long_ago = Instant::now().checked_sub(NONE_AGAIN);
        let make = |name: Option<&str>, ago: Option<Instant>| {
            let name = name.map(str::to_owned);
            let known = Known { name, asked: ago.unwrap(), waits: false, again: false };
            users.shared.table().known.insert(8, known);
        };
        make(None, Some(Instant::now()));
        assert_eq!(users.name(8), "8", "it was asked just now");
        make(None, long_ago);
        becomes("user8", || users.name(8));
        // While it is asked for again, the name before counts.
        make(Some("old"), Instant::now().checked_sub(AGAIN));
        assert!(["old", "user8"].contains(&users.name(8).as_str()));
        for uid in 0..5_000 {
            users.name(uid);
        }
        assert!(users.shared.table().known.len() <= MAX_KNOWN);
    }

    #[test]
    fn numbers_of_processes_users_become_names_and_names_stay() {
        let of = |user: &str| GpuProcess { user: Some(user.into()), ..GpuProcess::default() };
        let processes = Some(vec![of("0"), of("4294967294"), of("ann"), GpuProcess::default()]);
        let mut gpus = Gpus::Some(vec![Gpu { processes, ..Gpu::default() }]);
        becomes("root", || name(0));
        put_in(&mut gpus);
        let users: Vec<_> = gpus.list()[0].listed().iter().map(|p| p.user.clone()).collect();
        let named = |name: &str| Some(name.into());
        assert_eq!(users, [named("root"), named("4294967294"), named("ann"), None]);
    }
}
