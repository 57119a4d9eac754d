//! Hosts that a take-over by force has left out because they were not reached. They count as held from then on, as
//! every host that is not reached stays held by whom it knew last. Whoever had them before loses them when they are
//! back; who took them since keeps them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::lasting;
use crate::base::{HostName, Timestamp};

/// What is written down: hosts, each with the time of its take-over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// The journal's term before the newest take-over: it grows with what that one writes into the journal.
    term: u64,
    /// What the newest take-over leaves out, as soon as it is in the journal.
    coming: BTreeMap<HostName, Timestamp>,
    /// What was left out.
    held: BTreeMap<HostName, Timestamp>,
}

/// The hosts that were left out and not heard of since.
#[derive(Default)]
pub struct LeftOut {
    /// None: it is not written down.
    file: Option<PathBuf>,
    noted: Mutex<Noted>,
}

impl LeftOut {
    /// What earlier lives of this controller left out; `term`: the journal's.
    pub fn open(file: &Path, term: u64) -> Self {
        let noted = fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut noted: Noted = noted.unwrap_or_default();
        let coming = std::mem::take(&mut noted.coming);
        // A kill in the middle: what the journal has of it has happened.
        if noted.term < term {
            noted.held.extend(coming);
        }
        Self { file: Some(file.to_owned()), noted: Mutex::new(noted) }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A take-over begins that leaves these hosts out; it is on disk when this returns.
    ///
    /// # Errors
    /// It cannot be written: nothing may be claimed.
    pub fn begin(
        &self,
        term: u64,
        hosts: impl IntoIterator<Item = HostName>,
        at: Timestamp,
    ) -> io::Result<()> {
        let mut noted = self.noted();
        let coming = hosts.into_iter().map(|host| (host, at)).collect();
        let next = Noted { term, coming, held: noted.held.clone() };
        self.write(&next)?;
        *noted = next;
        Ok(())
    }

    /// The take-over is in the journal; which hosts it left out.
    pub fn settle(&self) -> Vec<HostName> {
        let mut noted = self.noted();
        let coming = std::mem::take(&mut noted.coming);
        let hosts = coming.keys().cloned().collect();
        noted.held.extend(coming);
        self.write_or_say(&noted);
        hosts
    }

    /// The take-over has come to nothing.
    pub fn give_up(&self) {
        self.noted().coming.clear();
    }

    /// When a host was left out that was not heard of since.
    pub fn since(&self, host: &HostName) -> Option<Timestamp> {
        self.noted().held.get(host).copied()
    }

    /// All of them.
    pub fn hosts(&self) -> Vec<HostName> {
        self.noted().held.keys().cloned().collect()
    }

    /// The host has said whose it is.
    pub fn is_heard(&self, host: &HostName) {
        let mut noted = self.noted();
        if noted.held.remove(host).is_some() {
            self.write_or_say(&noted);
        }
    }

    /// Forgets hosts that left the deck.
    pub fn keep(&self, wanted: impl Fn(&HostName) -> bool) {
        let mut noted = self.noted();
        let before = noted.held.len();
        noted.held.retain(|host, _| wanted(host));
        if noted.held.len() != before {
            self.write_or_say(&noted);
        }
    }

    fn write_or_say(&self, noted: &Noted) {
        if let Err(error) = self.write(noted) {
            // One that stays in there is asked who holds it before anything is done about it.
            tracing::warn!(%error, "which hosts were left out is not written down");
        }
    }

    fn write(&self, noted: &Noted) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if noted.coming.is_empty() && noted.held.is_empty() && !file.exists() {
            return Ok(());
        }
        lasting::replace(file, &serde_json::to_vec(noted).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn what_was_left_out_is_known_in_the_next_life_if_the_journal_has_the_take_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("left-out.json");
        let first = LeftOut::open(&file, 3);
        first.begin(3, [host("h2")], Timestamp(70)).unwrap();
        assert_eq!(first.since(&host("h2")), None, "it is under way");
        // Killed before and after it was in the journal.
        assert_eq!(LeftOut::open(&file, 3).since(&host("h2")), None);
        let second = LeftOut::open(&file, 4);
        assert_eq!(second.since(&host("h2")), Some(Timestamp(70)));
        // Another one that comes to nothing changes nothing of it.
        second.begin(4, [host("h3")], Timestamp(90)).unwrap();
        second.give_up();
        second.begin(4, [host("h2")], Timestamp(95)).unwrap();
        assert_eq!(second.settle(), [host("h2")]);
        let third = LeftOut::open(&file, 5);
        assert_eq!(
            (third.hosts(), third.since(&host("h2"))),
            (vec![host("h2")], Some(Timestamp(95)))
        );
        third.is_heard(&host("h2"));
        assert!(LeftOut::open(&file, 6).hosts().is_empty());
    }
}
