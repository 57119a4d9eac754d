//! A spec that waits in the deck and was tried before: its release was taken back, or failed.

use super::core::acts::NEVER_BEGUN;
use super::core::{Core, now};
use super::planning::Draft;
use crate::api::ReleaseView;
use crate::base::{ReleaseNumber, Timestamp, time};
use crate::rollout::{Outcome, ServiceState};
use crate::spec::{ServiceSpec, parse_service};

/// Releases that are looked at for the same spec, the newest.
const LOOKED_AT: usize = 10;

/// Of which release the spec in the deck is, if that was the last one on its way and it was taken back.
pub(super) fn last(state: &ServiceState, written: &ServiceSpec) -> Option<ReleaseNumber> {
    let rollout = state.rollout.as_ref()?;
    word(rollout.outcome.as_ref()?)?;
    let release = state.releases.get(&rollout.to)?;
    (release.spec == *written).then_some(rollout.to)
}

/// What a plan says of a spec from the work tree whose newest release did not stay.
pub(super) fn caution(core: &Core, state: &ServiceState, draft: &Draft) -> Option<String> {
    // Whoever names a release knows which one it is.
    let repo = core.repo.as_ref().filter(|_| draft.revision.is_none())?;
    let history = core.files.history.get(&draft.service)?;
    let is_the_same = |release: &&ReleaseView| {
        let text = repo.spec_at(&release.revision, &draft.service).ok();
        let spec = text.and_then(|text| parse_service(&text, "services").ok());
        spec.is_some_and(|spec| spec == draft.spec)
    };
    let release = history.iter().take(LOOKED_AT).find(is_the_same)?;
    // What a plan behind a rollout foresees of its end has not happened.
    let is_fact = !core.ahead.is_foreseen(&draft.service, release.number);
    let rollout = state.rollout.as_ref().filter(|r| is_fact && r.to == release.number);
    let outcome = rollout.and_then(|r| r.outcome.as_ref()).or(release.outcome.as_ref())?;
    in_words(release.number, outcome, rollout.and_then(|r| r.ended), now())
}

fn in_words(
    number: ReleaseNumber,
    outcome: &Outcome,
    ended: Option<Timestamp>,
    now: Timestamp,
) -> Option<String> {
    let (word, why) = word(outcome)?;
    // Nothing was tried of one that was never begun; and who aborts one need not mean its spec.
    let advice = match outcome {
        Outcome::Failed { why } if why.starts_with(NEVER_BEGUN) => return None,
        Outcome::Aborted { .. } => "",
        _ => " → change it first, unless something else was wrong",
    };
    let ago = ended.map(|ended| format!(" {} ago", time::short(now.since(ended))));
    Some(format!(
        "the spec is that of {number}, which was {word}{}: {why}{advice}",
        ago.unwrap_or_default()
    ))
}

/// How one ended that did not stay, and why.
fn word(outcome: &Outcome) -> Option<(&'static str, &str)> {
    match outcome {
        Outcome::Completed => None,
        Outcome::RolledBack { why } => Some(("rolled back", why)),
        Outcome::Aborted { why } => Some(("taken back", why)),
        Outcome::Failed { why } => Some(("given up", why)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rollout::{Event, step};

    #[test]
    fn a_spec_is_known_again_once_it_was_taken_back() {
        let service = "chat".parse().unwrap();
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &service);
        let (number, written) = (release.number, release.spec.clone());
        let mut edited = written.clone();
        edited.context = Some(1_024);
        let mut state = ServiceState::new(service);
        let kind = crate::controller::saved::tests::requested(release);
        step(&mut state, &Event { at: Timestamp(1), kind });
        assert_eq!(last(&state, &written), None, "it is on its way");
        let ended = |outcome| {
            let mut state = state.clone();
            state.rollout.as_mut().unwrap().outcome = Some(outcome);
            (last(&state, &written), last(&state, &edited))
        };
        let why = "analysis quick: error rate 56 %".to_owned();
        assert_eq!(ended(Outcome::RolledBack { why: why.clone() }), (Some(number), None));
        assert_eq!(ended(Outcome::Failed { why: why.clone() }), (Some(number), None));
        assert_eq!(ended(Outcome::Completed), (None, None));
        let back = Outcome::RolledBack { why };
        let told = in_words(number, &back, Some(Timestamp(0)), Timestamp(720_000)).unwrap();
        assert!(told.contains("which was rolled back 12m00s ago: analysis quick"), "{told}");
        assert_eq!(in_words(number, &Outcome::Completed, None, Timestamp(0)), None);
    }
}
