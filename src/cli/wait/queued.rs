//! A queued rollout whose end is waited for: whether its turn has not come yet, has come, or never will.

use crate::api::{QueuedRollout, ReleaseNumber, ServiceName, ServiceView, Timestamp};
use crate::cli::exit::Failure;

/// The queued rollout that is waited for.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The rollout before it is to this release.
    behind: ReleaseNumber,
    /// When it was asked for; none: its controller does not say.
    asked: Option<Timestamp>,
    /// As it was shown in the queue.
    seen: Option<QueuedRollout>,
    /// It was accepted so long ago that it would be shown.
    is_shown: bool,
}

/// How far the queued rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its turn has not come.
    Waits,
    /// It is what is rolled out now, or was rolled out last.
    Begun,
    /// It is not in the queue and was never seen there.
    NotShown,
    /// It will not begin.
    Never(NotBegun),
}

/// Why a queued rollout will never begin. It has not failed: nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotBegun {
    /// A person took it out.
    Withdrawn,
    /// What it waited for was aborted, or what it asks for was refused when its turn had come.
    Refused {
        /// Why, in the controller's words.
        why: String,
    },
    /// Another one took its place.
    Overtaken {
        /// Which, in words.
        by: String,
    },
}

impl NotBegun {
    /// For whoever waits: exit code 5, as of whatever was not done.
    pub fn failure(&self, service: &ServiceName) -> Failure {
        let (why, hint) = match self {
            Self::Withdrawn => (
                "it was withdrawn".to_owned(),
                format!(
                    "`gpudeck audit` shows by whom; `gpudeck apply {service}` rolls the spec out"
                ),
            ),
            Self::Refused { why } => {
                (crate::api::text::clean(why, 400), format!("then `gpudeck apply {service}` again"))
            }
            Self::Overtaken { by } => (
                format!("it was overtaken by {by}"),
                format!("`gpudeck rollout status {service} --wait` waits for that one"),
            ),
        };
        let message = format!("the queued rollout of {service} did not begin: {why}");
        Failure::other(message).code(5).with_hint(hint)
    }
}

impl Queued {
    /// The one that was asked for then, behind the rollout to that release.
    pub const fn new(behind: ReleaseNumber, asked: Option<Timestamp>) -> Self {
        Self { behind, asked, seen: None, is_shown: false }
    }

    /// From now on it is shown, or it is not in the queue.
    pub const fn must_be_shown(&mut self) {
        self.is_shown = true;
    }

    /// How far it is by what is shown now.
    pub fn turn(&mut self, view: &ServiceView) -> Turn {
        if let Some(queued) = &view.queued {
            return match self.asked {
                // A view of before.
                Some(asked) if queued.asked < asked => Turn::Waits,
                Some(asked) if queued.asked > asked => {
                    let by = format!("a later one of {} ({})", queued.by, queued.what());
                    Turn::Never(NotBegun::Overtaken { by })
                }
                _ => {
                    self.seen = Some(queued.clone());
                    Turn::Waits
                }
            };
        }
        let Some(rollout) = &view.rollout else { return Turn::Waits };
        if rollout.to > self.behind {
            // Whoever begins directly takes what waits out of the queue. (One of the same person of the same kind
            // is what they waited for as much.)
            let is_another =
                |wish: &QueuedRollout| wish.by != rollout.by || wish.kind != rollout.kind;
            return match &self.seen {
                Some(wish) if is_another(wish) => {
                    let by = format!("the rollout of {} to {}", rollout.by, rollout.to);
                    Turn::Never(NotBegun::Overtaken { by })
                }
                _ => Turn::Begun,
            };
        }
        match &view.queue_trouble {
            _ if self.seen.is_none() && !self.is_shown => Turn::NotShown,
            Some(why) => Turn::Never(NotBegun::Refused { why: why.clone() }),
            None => Turn::Never(NotBegun::Withdrawn),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::api::RolloutKind;
    use crate::tui::fixture::rich;

    const ASKED: Timestamp = Timestamp(50);

    /// A service whose rollout to r4 is under way, and the one queued behind it that is waited for.
    fn waiting() -> (ServiceView, Queued) {
        let mut view = rich().services.into_values().find(|s| s.rollout.is_some()).unwrap();
        view.rollout.as_mut().unwrap().to = ReleaseNumber(4);
        view.queue_trouble = None;
        view.queued = Some(wish(ASKED, "ada"));
        (view, Queued::new(ReleaseNumber(4), Some(ASKED)))
    }

    fn wish(asked: Timestamp, by: &str) -> QueuedRollout {
        QueuedRollout {
            asked,
            kind: RolloutKind::Apply,
            to: None,
            digest: None,
            by: by.to_owned(),
            reason: None,
            accept_outage: false,
        }
    }

    fn begun(view: &mut ServiceView, by: &str) {
        view.queued = None;
        let rollout = view.rollout.as_mut().unwrap();
        rollout.to = ReleaseNumber(5);
        by.clone_into(&mut rollout.by);
        rollout.kind = RolloutKind::Apply;
    }

    #[test]
    fn it_waits_and_begins() {
        let (mut view, mut queued) = waiting();
        assert_eq!(queued.turn(&view), Turn::Waits);
        begun(&mut view, "ada");
        assert_eq!(queued.turn(&view), Turn::Begun);
        // Also where nobody listened while it waited.
        assert_eq!(Queued::new(ReleaseNumber(4), Some(ASKED)).turn(&view), Turn::Begun);
    }

    #[test]
    fn what_was_just_accepted_is_not_taken_for_withdrawn() {
        let (mut view, mut queued) = waiting();
        view.queued = None;
        view.queue_trouble = Some("of an earlier one".to_owned());
        assert_eq!(queued.turn(&view), Turn::NotShown);
        view.queued = Some(wish(Timestamp(49), "bob"));
        assert_eq!(queued.turn(&view), Turn::Waits, "a view of before it");
        (view.queued, view.queue_trouble) = (None, None);
        queued.must_be_shown();
        assert_eq!(queued.turn(&view), Turn::Never(NotBegun::Withdrawn));
    }

    #[test]
    fn withdrawn_refused_and_overtaken_have_names_one_code_and_a_next_step() {
        let why = |change: &dyn Fn(&mut ServiceView)| {
            let (mut view, mut queued) = waiting();
            assert_eq!(queued.turn(&view), Turn::Waits);
            change(&mut view);
            let Turn::Never(why) = queued.turn(&view) else { return String::new() };
            let failure = why.failure(&view.name);
            assert_eq!((failure.code, failure.hint.is_some()), (5, true), "{failure:?}");
            failure.message
        };
        let withdrawn = why(&|view| view.queued = None);
        assert!(withdrawn.ends_with("did not begin: it was withdrawn"), "{withdrawn}");
        let refused = why(&|view| {
            view.queued = None;
            view.queue_trouble = Some("it does not fit".to_owned());
        });
        assert!(refused.ends_with("did not begin: it does not fit"), "{refused}");
        let later = why(&|view| view.queued = Some(wish(Timestamp(51), "bob")));
        assert!(later.contains("overtaken by a later one of bob"), "{later}");
        let direct = why(&|view| begun(view, "bob"));
        assert!(direct.contains("overtaken by the rollout of bob to r5"), "{direct}");
    }
}
