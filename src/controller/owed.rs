//! Hosts that are being taken over from another controller. From before the first of them is claimed until what was
//! left on them is in the journal, a file says whose each of them was: a take-over that comes to nothing, also because
//! this process ends in the middle of it, gives them back, and acts on none of them meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::lasting;
use crate::base::HostName;

/// What is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// The journal's term when it was written: it grows with what a take-over writes into the journal, and then nothing
    /// of an earlier one is owed.
    term: u64,
    /// Whose each host was, as its claim named them.
    hosts: BTreeMap<HostName, String>,
}

/// The hosts that are owed to those who had them.
#[derive(Default)]
pub struct Owed {
    /// None: it is not written down.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    noted: Noted,
    /// A take-over is under way: they are not given back yet.
    under_way: bool,
}

impl Owed {
    /// What an earlier life of this controller left undone, if its journal has no later `term`.
    pub fn open(file: &Path, term: u64) -> Self {
        let noted = fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let noted = noted.filter(|noted: &Noted| noted.term == term).unwrap_or_default();
        let state = State { noted, under_way: false };
        Self { file: Some(file.to_owned()), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A take-over of these hosts begins; it is on disk when this returns.
    ///
    /// # Errors
    /// It cannot be written: nothing may be claimed.
    pub fn begin(&self, term: u64, hosts: BTreeMap<HostName, String>) -> io::Result<()> {
        let mut state = self.state();
        let mut noted = state.noted.clone();
        noted.term = term;
        noted.hosts.extend(hosts);
        self.write(&noted)?;
        *state = State { noted, under_way: true };
        Ok(())
    }

    /// What was left on these hosts is in the journal, in this term: they are ours.
    pub fn settle<'a>(&self, term: u64, hosts: impl IntoIterator<Item = &'a HostName>) {
        let mut state = self.state();
        for host in hosts {
            state.noted.hosts.remove(host);
        }
        state.noted.term = term;
        state.under_way = false;
        self.write_or_say(&state.noted);
    }

    /// The take-over has come to nothing.
    pub fn give_up(&self) {
        self.state().under_way = false;
    }

    /// To whom a host is to be given back now.
    pub fn to(&self, host: &HostName) -> Option<String> {
        let state = self.state();
        state.noted.hosts.get(host).filter(|_| !state.under_way).cloned()
    }

    /// Whether a host is in this list, also while a take-over is under way.
    pub fn has(&self, host: &HostName) -> bool {
        self.state().noted.hosts.contains_key(host)
    }

    /// It was given back, or somebody else has taken it.
    pub fn is_given_back(&self, host: &HostName) {
        let mut state = self.state();
        if !state.under_way && state.noted.hosts.remove(host).is_some() {
            self.write_or_say(&state.noted);
        }
    }

    fn write_or_say(&self, noted: &Noted) {
        if let Err(error) = self.write(noted) {
            // One that is given back twice is nobody's loss: its holder is asked first.
            tracing::warn!(%error, "which hosts are to be given back is not written down");
        }
    }

    fn write(&self, noted: &Noted) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if noted.hosts.is_empty() && !file.exists() {
            return Ok(());
        }
        lasting::replace(file, &serde_json::to_vec(noted).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> BTreeMap<HostName, String> {
        names.iter().map(|name| (name.parse().unwrap(), "ada@m1".to_owned())).collect()
    }

    fn to(owed: &Owed, host: &str) -> Option<String> {
        owed.to(&host.parse().unwrap())
    }

    #[test]
    fn what_a_take_over_did_not_come_to_is_owed_in_the_next_life_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("owed.json");
        let first = Owed::open(&file, 3);
        first.begin(3, hosts(&["h1", "h2"])).unwrap();
        assert_eq!(to(&first, "h1"), None, "it is under way");
        // A kill.
        let second = Owed::open(&file, 3);
        assert_eq!(to(&second, "h1").as_deref(), Some("ada@m1"));
        second.is_given_back(&"h1".parse().unwrap());
        let third = Owed::open(&file, 3);
        assert_eq!((to(&third, "h1"), to(&third, "h2").is_some()), (None, true));
        // A kill between the journal and this file: what the journal has is ours.
        assert_eq!(to(&Owed::open(&file, 4), "h2"), None);
    }

    #[test]
    fn what_is_settled_is_ours_and_the_rest_stays_owed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("owed.json");
        let owed = Owed::open(&file, 0);
        owed.begin(0, hosts(&["h1", "away"])).unwrap();
        owed.give_up();
        assert_eq!(to(&owed, "h1").as_deref(), Some("ada@m1"));
        owed.begin(0, hosts(&["h1"])).unwrap();
        owed.settle(1, [&"h1".parse().unwrap()]);
        for owed in [owed, Owed::open(&file, 1)] {
            assert_eq!((to(&owed, "h1"), to(&owed, "away").is_some()), (None, true));
        }
    }
}
