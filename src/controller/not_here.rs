//! Releases that this controller knows of by what another one left on the hosts, and whose commits are not in this deck:
//! whoever began them has not sent them yet, or they were not fetched.

use super::core::Core;
use crate::api::{ApiError, ErrorKind, ReleaseView};
use crate::base::{ReleaseNumber, ServiceName};
use crate::rollout::{Outcome, Release, ServiceState};

impl Core {
    /// The releases of a service that Git does not have, the newest first.
    pub(super) fn not_here(&self, service: &ServiceName) -> Vec<ReleaseView> {
        let Some((repo, state)) = self.repo.as_ref().zip(self.state.services.get(service)) else {
            return Vec::new();
        };
        let lacks = |release: &&Release| matches!(repo.release(release.number), Ok(None));
        let releases = state.releases.values().rev().map(|release| &**release);
        releases.filter(lacks).map(|release| view(state, release)).collect()
    }

    /// Why nothing can be told of a release.
    pub(super) fn no_release(&self, number: ReleaseNumber) -> ApiError {
        let mut known =
            self.state.services.values().filter_map(|s| Some((s, s.releases.get(&number)?)));
        match known.next() {
            None => ApiError {
                kind: ErrorKind::NotFound,
                message: format!("there is no release {number}"),
                hint: Some("`gpudeck history SERVICE` lists them".to_owned()),
            },
            Some((state, release)) => lacking(state, release),
        }
    }
}

fn view(state: &ServiceState, release: &Release) -> ReleaseView {
    let rollout = state.rollout.as_ref().filter(|r| r.to == release.number);
    ReleaseView {
        number: release.number,
        revision: release.revision.clone(),
        created: release.created,
        author: release.author.clone(),
        reason: release.reason.clone(),
        outcome: rollout.and_then(|r| r.outcome.clone()).or_else(|| {
            // What is stable was rolled out to its end, whoever did it.
            (state.stable == Some(release.number)).then_some(Outcome::Completed)
        }),
        stop: None,
        progress: None,
        not_here: true,
    }
}

fn lacking(state: &ServiceState, release: &Release) -> ApiError {
    let (number, by) = (release.number, &release.author);
    let serves =
        if state.stable == Some(number) { " serves, and its commit" } else { ": its commit" };
    ApiError {
        kind: ErrorKind::NotFound,
        message: format!("{number}{serves} is only in the deck of {by}, who began it"),
        hint: Some("`gpudeck deck push` there, then `gpudeck deck fetch` here".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_serves_and_is_not_in_git_is_told_with_the_way_to_it() {
        let service: ServiceName = "chat".parse().unwrap();
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &service);
        let mut state = ServiceState::new(service);
        let (number, by) = (release.number, release.author.clone());
        let told = lacking(&state, &release).message;
        assert!(told.starts_with(&format!("{number}: its commit is only in the deck")), "{told}");
        state.stable = Some(number);
        let told = lacking(&state, &release);
        let words = format!("{number} serves, and its commit is only in the deck of {by}");
        assert!(told.message.starts_with(&words), "{told:?}");
        assert!(told.hint.unwrap().contains("deck fetch"));
        assert!(view(&state, &release).not_here);
        assert_eq!(view(&state, &release).outcome, Some(Outcome::Completed));
        state.stable = None;
        assert_eq!(view(&state, &release).outcome, None);
    }
}
