//! Which controller may act on this host for a deck: a lease with a fencing number.
//!
//! The epoch only grows. An action carries the epoch that was granted; an older one is refused, so
//! a controller that was replaced while it slept can do nothing. A lease that ended does not undo
//! its epoch: while nobody else took the host, its holder may go on. The first epoch is the host's clock, so that
//! a host whose state was lost does not grant again what somebody still acts with. Claims of who logs in as another
//! user are heeded as well ([`super::neighbours`]).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{failed, io_refusal};
use super::neighbours::{Neighbour, Note, Notes};
use super::process::now;
use super::rank;
use super::state::{self, LOCK_WAIT, StateDir};
use crate::base::text::clean;
use crate::base::{DeckId, Epoch, Timestamp};
use crate::wire::{ClaimInfo, MAX_HOLDER, RankStatus, Refusal, is_same_holder};

/// Longest lease that is granted: twice what controllers ask for.
const MAX_LEASE: Duration = Duration::from_mins(1);

/// A lease that would end later than this was written by a clock that was set back since. Well beyond the longest: who waited for
/// a lock looks at what was written meanwhile with the time of before.
const TOO_LATE: Duration = Duration::from_mins(2);

/// Until when a lease runs, as it is told. What was written by a clock that was set back since has ended: its holder would
/// have renewed it by the new one, within seconds.
pub(super) fn end_of(until: Timestamp, now: Timestamp) -> Timestamp {
    if until.since(now) > TOO_LATE { now } else { until }
}

/// What `claim.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Format of the file.
    pub version: u32,
    /// The epoch that was granted last.
    pub epoch: Epoch,
    /// To whom.
    pub holder: String,
    /// Until when, by this host's clock.
    pub until: Timestamp,
    /// Since when it has this epoch, by this host's clock.
    #[serde(default)]
    pub since: Timestamp,
    /// When its holder was there last, by this host's clock; none: it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Timestamp>,
}

impl Claim {
    fn held(&self, now: Timestamp) -> Refusal {
        let until = end_of(self.until, now);
        Refusal::Held { held: self.epoch, holder: self.holder.clone(), until }
    }

    fn note(&self, running: usize) -> Note {
        let Self { epoch, since, until, renewed, .. } = *self;
        Note { epoch, holder: self.holder.clone(), since, until, renewed, running }
    }

    fn info(self, now: Timestamp) -> ClaimInfo {
        let Self { epoch, holder, since, until, renewed, .. } = self;
        ClaimInfo { epoch, holder, since, until: end_of(until, now), renewed, now }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The epoch to renew; none for a new one.
    pub epoch: Option<Epoch>,
    /// Who asks.
    pub holder: String,
    /// For how long.
    pub lease: Duration,
    /// Take it from a holder whose lease runs.
    pub force: bool,
}

/// Decides on `ask`, given what is held now: the claim to write, or who holds the host.
fn decide(held: Option<&Claim>, ask: &Ask, now: Timestamp) -> Result<Claim, Refusal> {
    let until = now.plus(ask.lease.min(MAX_LEASE));
    let holder = clean(&ask.holder, MAX_HOLDER);
    let grant = |epoch: u64| Claim {
        version: 1,
        epoch: Epoch(epoch),
        holder: holder.clone(),
        until,
        since: now,
        renewed: Some(now),
    };
    let held_epoch = held.map_or(now.0 / 1000, |c| c.epoch.0);
    match (held, ask.epoch) {
        (Some(claim), Some(asked)) if asked == claim.epoch => {
            // Given back to whom it was taken from: when that one was there last this host no longer knows.
            let renewed = Some(now).filter(|_| is_same_holder(&claim.holder, &ask.holder));
            Ok(Claim { since: claim.since, renewed, ..grant(asked.0) })
        }
        // Somebody took the host since: even when that lease has ended the asker must notice.
        (Some(claim), Some(asked)) if asked < claim.epoch && !ask.force => Err(claim.held(now)),
        (Some(claim), _)
            if end_of(claim.until, now) > now
                && !ask.force
                && !is_same_holder(&claim.holder, &ask.holder) =>
        {
            Err(claim.held(now))
        }
        // An epoch from before the state directory was lost must not be granted twice.
        (_, asked) => Ok(grant(held_epoch.max(asked.map_or(0, |e| e.0)).saturating_add(1))),
    }
}

/// The epoch of `granted` beside what other users of the host hold: of a new one, later than all of theirs.
fn beside(
    others: &[Neighbour],
    granted: &Claim,
    is_new: bool,
    force: bool,
    now: Timestamp,
) -> Result<Epoch, Refusal> {
    let taken = |other: &&Neighbour| {
        let is_later = other.note.epoch >= granted.epoch && !other.is_of(&granted.holder);
        if is_new { other.is_in_the_way(&granted.holder, now) } else { is_later }
    };
    if let Some(other) = others.iter().find(taken).filter(|_| !force) {
        return Err(other.refusal(now));
    }
    let latest = others.iter().map(|other| other.note.epoch.0.saturating_add(1)).max();
    Ok(if is_new { granted.epoch.max(Epoch(latest.unwrap_or(0))) } else { granted.epoch })
}

/// How many engines of the deck run here as this user.
fn running(state: &StateDir, deck: DeckId) -> usize {
    let ranks = rank::list(state, Some(deck)).unwrap_or_default();
    ranks.iter().filter(|rank| matches!(rank.status, RankStatus::Running { .. })).count()
}

/// Says anew to the host's other users what runs here of the deck: something was started or stopped.
pub fn tell_neighbours(state: &StateDir, deck: DeckId) {
    let Some(notes) = Notes::of(state, deck) else { return };
    let (_, lock) = paths(state, deck);
    let Ok(_writing) = state::lock_file(&lock, LOCK_WAIT) else { return };
    if let Ok(Some(claim)) = read(state, deck)
        && let Err(error) = notes.write(&claim.note(running(state, deck)), false)
    {
        tracing::debug!(%error, "other users of the host are not told of the claim");
    }
}

fn paths(state: &StateDir, deck: DeckId) -> (PathBuf, PathBuf) {
    let dir = state.deck(deck);
    (dir.join("claim.json"), dir.join("claim.lock"))
}

/// What is held for a deck.
///
/// # Errors
/// The file cannot be read.
pub fn read(state: &StateDir, deck: DeckId) -> Result<Option<Claim>, Refusal> {
    let (path, _) = paths(state, deck);
    state::read_json(&path).map_err(|e| io_refusal(&e, "read", &path))
}

/// Grants or renews a claim; answers with the epoch that is now the host's.
///
/// # Errors
/// [`Refusal::Held`], or the file cannot be written.
pub fn claim(state: &StateDir, deck: DeckId, ask: &Ask, now: Timestamp) -> Result<Epoch, Refusal> {
    let (path, lock) = paths(state, deck);
    let dir = state.deck(deck);
    if !dir.is_dir() {
        // A claim that lasts is in a directory that does: with it a power cut would take the epoch.
        let lasting = || {
            fs::create_dir_all(&dir)?;
            state::sync_parent(&dir)?;
            dir.parent().map_or(Ok(()), state::sync_parent)
        };
        lasting().map_err(|e| io_refusal(&e, "make", &dir))?;
    }
    // A new epoch waits for the action in progress, whose epoch it ends. A renewal need not: it
    // must succeed while its own holder streams something large under the host's lock.
    let renewal = ask.epoch.is_some() && read(state, deck)?.map(|c| c.epoch) == ask.epoch;
    // Who takes it by force does not wait for a holder that may be gone: from when the new epoch is written nothing
    // of an older one begins, and what has begun ends by itself (see `dial`), which is waited for then.
    let waits_first = !renewal && !ask.force;
    let _acting = if waits_first { Some(state.lock_blocking(LOCK_WAIT)?) } else { None };
    let granted = {
        let _writing = state::lock_file(&lock, LOCK_WAIT)?;
        let before = read(state, deck)?;
        let mut granted = decide(before.as_ref(), ask, now)?;
        let is_new = before.as_ref().is_none_or(|claim| claim.epoch != granted.epoch);
        if let Some(notes) = Notes::of(state, deck) {
            let others = notes.others();
            granted.epoch = beside(&others, &granted, is_new, ask.force, now)?;
            let running = running(state, deck);
            // Where none can be written (somebody else has made the place) the claim is as good as without notes.
            let told = notes.write(&granted.note(running), is_new);
            // Who came at the same moment has written before it looks, as we have: one of us sees the other.
            if told.is_ok()
                && is_new
                && let Some(other) = notes.others().into_iter().find(|o| {
                    o.note.epoch >= granted.epoch && o.is_in_the_way(&granted.holder, now)
                })
            {
                // With the epoch of before: one that is not behind the other's would end that one.
                let epoch = before.map_or(Epoch(0), |claim| claim.epoch);
                let withdrawn = Claim { epoch, until: Timestamp(0), ..granted };
                let _ = notes.write(&withdrawn.note(running), true);
                return Err(other.refusal(now));
            }
        }
        state::write_json(&path, &granted).map_err(|e| io_refusal(&e, "write", &path))?;
        granted
    };
    if !renewal && ask.force {
        state.lock_blocking(LOCK_WAIT).map_err(|refusal| match refusal {
            Refusal::Busy { .. } => Refusal::Busy {
                message: "the host is taken from its holder, but an action that had begun has not ended; try again"
                    .to_owned(),
            },
            other => other,
        })?;
    }
    Ok(granted.epoch)
}

/// Who may act for the deck, for people and other controllers.
///
/// # Errors
/// The file cannot be read.
pub fn show(state: &StateDir, deck: DeckId, now: Timestamp) -> Result<Option<ClaimInfo>, Refusal> {
    let own = read(state, deck)?;
    let others = Notes::of(state, deck).map(|notes| notes.others()).unwrap_or_default();
    let (epoch, holder) =
        own.as_ref().map_or((Epoch(0), ""), |claim| (claim.epoch, claim.holder.as_str()));
    // Also one whose lease has ended: whose the host was last is for a person to know.
    let later = others.iter().filter(|o| o.note.epoch >= epoch && !o.is_of(holder));
    let latest = later.max_by_key(|other| other.note.epoch).map(|other| other.info(now));
    Ok(latest.or_else(|| own.map(|claim| claim.info(now))))
}

/// Whether `epoch` may act for the deck; to be asked under the host's lock.
///
/// # Errors
/// [`Refusal::Held`] when another epoch is the host's.
pub fn check(state: &StateDir, deck: DeckId, epoch: Epoch) -> Result<(), Refusal> {
    match read(state, deck)? {
        Some(claim) if claim.epoch == epoch => {
            let others = Notes::of(state, deck).map(|notes| notes.others()).unwrap_or_default();
            let later = |o: &&Neighbour| o.note.epoch >= epoch && !o.is_of(&claim.holder);
            others.iter().find(later).map_or(Ok(()), |other| Err(other.refusal(now())))
        }
        Some(claim) => Err(claim.held(now())),
        None => Err(failed("nobody has claimed this host for the deck; claim it first")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn ask(epoch: Option<u64>, holder: &str, force: bool) -> Ask {
        Ask {
            epoch: epoch.map(Epoch),
            holder: holder.to_owned(),
            lease: Duration::from_secs(10),
            force,
        }
    }

    fn held(until: u64) -> Claim {
        Claim {
            version: 1,
            epoch: Epoch(4),
            holder: "a".to_owned(),
            until: Timestamp(until),
            since: Timestamp(1),
            renewed: None,
        }
    }

    #[test]
    fn when_its_holder_was_there_last_is_told() {
        let renewed = |holder: &str, lease| {
            let ask = Ask { lease, ..ask(Some(4), holder, false) };
            let claim = decide(Some(&held(NOW.0 + 1)), &ask, NOW).unwrap();
            let info = claim.info(NOW);
            (info.renewed, info.until)
        };
        let lease = Duration::from_secs(10);
        assert_eq!(renewed("a", lease), (Some(NOW), NOW.plus(lease)));
        assert_eq!(renewed("a", Duration::ZERO), (Some(NOW), NOW), "a controller that is stopped");
        assert_eq!(renewed("b", Duration::ZERO), (None, NOW), "given back to b, who is not there");
        // What an earlier version wrote, and what one reads.
        let old = r#"{"version":1,"epoch":4,"holder":"a","until":9,"since":1}"#;
        let claim: Claim = serde_json::from_str(old).unwrap();
        assert_eq!((claim.renewed, claim.note(0).renewed), (None, None));
        assert_eq!(serde_json::to_string(&claim).unwrap(), old);
    }

    #[test]
    fn grants_renews_and_refuses() {
        let running = held(NOW.0 + 1);
        let ended = held(NOW.0);
        let epoch =
            |claim: Option<&Claim>, ask: Ask| decide(claim, &ask, NOW).map(|c| c.epoch.0).ok();
        assert_eq!(epoch(None, ask(None, "a", false)), Some(1001), "the clock in seconds, and one");
        assert_eq!(epoch(Some(&running), ask(Some(4), "a", false)), Some(4));
        assert_eq!(epoch(Some(&ended), ask(Some(4), "a", false)), Some(4));
        let since = |ask: Ask| decide(Some(&running), &ask, NOW).map(|c| c.since).ok();
        assert_eq!(
            since(ask(Some(4), "a", false)),
            Some(Timestamp(1)),
            "a renewal is no new claim"
        );
        assert_eq!(since(ask(None, "b", true)), Some(NOW));
        assert_eq!(epoch(Some(&running), ask(None, "a", false)), Some(5), "same holder, restarted");
        assert_eq!(epoch(Some(&running), ask(None, "b", false)), None);
        assert_eq!(epoch(Some(&running), ask(None, "b", true)), Some(5));
        assert_eq!(epoch(Some(&ended), ask(None, "b", false)), Some(5));
        assert_eq!(epoch(Some(&ended), ask(Some(3), "a", false)), None, "was taken since");
        assert_eq!(epoch(Some(&ended), ask(Some(9), "a", false)), Some(10), "state was lost");
        assert_eq!(epoch(None, ask(Some(2000), "a", false)), Some(2001));
    }

    #[test]
    fn a_clock_that_was_set_back_lengthens_no_lease() {
        let taken = |until| decide(Some(&held(until)), &ask(None, "b", false), NOW).is_ok();
        let longest = NOW.plus(TOO_LATE);
        assert!(!taken(longest.0));
        assert!(taken(longest.0 + 1));
        let told = |until| held(until).info(NOW).until;
        assert_eq!(told(longest.0), longest);
        assert_eq!(told(longest.0 + 1), NOW);
        let refused = |until| decide(Some(&held(until)), &ask(Some(3), "b", false), NOW);
        let refusal = |until| Refusal::Held { held: Epoch(4), holder: "a".to_owned(), until };
        assert_eq!(refused(longest.0), Err(refusal(longest)));
        assert_eq!(refused(longest.0 + 1), Err(refusal(NOW)), "as it is told elsewhere");
        let note = Note {
            epoch: Epoch(3),
            holder: "b".to_owned(),
            since: NOW,
            until: longest,
            renewed: None,
            running: 0,
        };
        let bob =
            |until| Neighbour { user: "bob".to_owned(), note: Note { until, ..note.clone() } };
        assert!(bob(longest).is_in_the_way("a", NOW));
        assert!(!bob(Timestamp(longest.0 + 1)).is_in_the_way("a", NOW));
    }

    #[test]
    fn a_host_that_lost_its_state_grants_no_epoch_twice() {
        let first = decide(None, &ask(None, "a", false), NOW).unwrap();
        // The claim is gone, and another controller takes the host.
        let later = Timestamp(NOW.0 + 5000);
        let second = decide(None, &ask(None, "b", false), later).unwrap();
        assert!(second.epoch > first.epoch);
        let back = |epoch: Epoch| decide(Some(&second), &ask(Some(epoch.0), "a", false), later);
        assert!(back(first.epoch).is_err(), "it must notice that it was replaced");
    }

    #[test]
    fn a_holder_of_the_same_name_is_another_one_and_an_update_is_not() {
        let running = |holder: &str| Claim { holder: holder.to_owned(), ..held(NOW.0 + 1) };
        let me = "root@localhost #4f1c22d09ab7 (/root/d)";
        let granted = |holder: &str| decide(Some(&running(holder)), &ask(None, me, false), NOW);
        assert!(granted(me).is_ok());
        assert!(granted("root@localhost #77aa22d09ab7 (/root/d)").is_err());
        let updated = granted("root@localhost (/root/d)").map(|claim| claim.holder);
        assert_eq!(updated.as_deref(), Ok(me), "written by an earlier version of it");
    }

    #[test]
    fn what_another_user_of_the_host_holds_is_respected_and_outdone_by_force() {
        let other = |epoch, until, running| {
            let (holder, since) = ("b".to_owned(), Timestamp(1));
            let (epoch, until, renewed) = (Epoch(epoch), Timestamp(until), None);
            let note = Note { epoch, holder, since, until, renewed, running };
            [Neighbour { user: "bob".to_owned(), note }]
        };
        let epoch = |others: &[Neighbour], is_new, force| {
            beside(others, &held(NOW.0 + 1), is_new, force, NOW).map(|epoch| epoch.0).ok()
        };
        assert_eq!(epoch(&[], true, false), Some(4));
        assert_eq!(epoch(&other(3, NOW.0, 0), true, false), Some(4));
        assert_eq!(epoch(&other(9, NOW.0, 0), true, false), Some(10), "later than all");
        assert_eq!(epoch(&other(3, NOW.0 + 1, 0), true, false), None, "its lease runs");
        assert_eq!(epoch(&other(3, NOW.0, 1), true, false), None, "its engines run");
        assert_eq!(epoch(&other(9, NOW.0 + 1, 1), true, true), Some(10));
        assert_eq!(epoch(&other(3, NOW.0 + 1, 1), false, false), Some(4), "a renewal");
        assert_eq!(epoch(&other(5, NOW.0, 0), false, false), None, "was taken since");
    }

    #[test]
    fn an_old_epoch_may_not_act() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let deck = DeckId(uuid::Uuid::from_u128(1));
        assert!(check(&state, deck, Epoch(0)).is_err());
        let first = claim(&state, deck, &ask(None, "a", false), NOW).unwrap();
        assert_eq!(check(&state, deck, first), Ok(()));
        let second = claim(&state, deck, &ask(None, "b", true), NOW).unwrap();
        assert!(second > first);
        assert!(
            matches!(check(&state, deck, first), Err(Refusal::Held { held, .. }) if held == second)
        );
        assert_eq!(check(&state, deck, second), Ok(()));
    }

    #[test]
    fn who_takes_a_host_by_force_stops_what_has_not_begun_and_waits_for_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let first = claim(&state, deck, &ask(None, "a", false), NOW).unwrap();
        let acting = state.lock_blocking(Duration::ZERO).unwrap();
        let taker = {
            let state = state.clone();
            std::thread::spawn(move || claim(&state, deck, &ask(None, "b", true), NOW))
        };
        // The action goes on until it notices: as it would when its operator is gone.
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while check(&state, deck, first).is_ok() {
            assert!(
                std::time::Instant::now() < deadline && !taker.is_finished(),
                "nothing notices"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!taker.is_finished(), "it was granted beside an action");
        drop(acting);
        let second = taker.join().unwrap().unwrap();
        assert_eq!(check(&state, deck, second), Ok(()));
    }
}
