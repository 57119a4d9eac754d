//! Which invariant notices which mistake: by its words, so that no mistake counts as caught by a mere accident.

use std::time::Instant;

use super::{BUGS, Bug};
use crate::simulation::seed;

/// Seeds within which every bug must be caught.
const WITHIN: u64 = 500;

impl Bug {
    /// What the invariant says that is there for it; any one of them.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::SkipFsync | Self::ReplayTwice => &["replay differs"],
            Self::ForgetOutstanding | Self::ForgetTraffic | Self::ForgetRestart => {
                &["the gateway lacks for "]
            }
            Self::TrafficBeforeReady => &[", which is not ready"],
            Self::BelieveHealth | Self::MistakeAttempt => &[", which never generated a token"],
            Self::ForgetDrain => &["is stopped before its drain was over"],
            Self::StopReady | Self::DropOldSet | Self::ReplaceWithoutDrain => {
                &[", which is ready, is told to stop"]
            }
            Self::IgnoreFloor => &["below the floor: "],
            Self::ReuseAttempt => &["is started after its stop"],
            Self::WrongPlace => &["does not run where it was planned"],
            Self::AcceptOldEpoch | Self::ReuseEpoch => {
                &["the gateway has another table than version", ", which is ready, is stopped"]
            }
            Self::NoMemoryGate => &["while the memory of the one before is not free"],
            Self::ForgetStop => &["that is not stable stays in the books"],
            Self::MissEnd => &["the hosts hold something else"],
            Self::EmptyTable => &["and none of them gets traffic"],
            Self::ForgetOutcome | Self::LieAboutOutcome => &["not recorded"],
            Self::StopTheClock => &["the rollout has not ended"],
            Self::LateDeadlines => &["nothing has moved for"],
            Self::KeepCanaryTraffic => &["stable carries the floor, no more of it comes"],
            Self::SwitchEarly => &["blue-green: the switch comes in step"],
            Self::RecreateBeside => &["recreate: "],
            Self::ForgetReturn => &["no rest: "],
            Self::ReturnEarly | Self::StartOnBorrowed => &["both run on"],
            Self::IgnoreExitCode => &["was passed without a good end of its command"],
            Self::RunAgainUnderItsName => &["of a command after"],
            Self::LoseQueued => &["a queued rollout was never begun"],
            Self::ReplaceWhatRunsOn => &["which is to run on"],
            Self::CountTheAbsence => &["(healthy_deadline)"],
        }
    }
}

/// What the play of a seed with this bug fails with, if it fails.
fn fails(number: u64, bug: Bug) -> Option<String> {
    let why = std::panic::catch_unwind(|| seed(number, false, Some(bug))).err()?;
    let words = why
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    Some(words.unwrap_or_default())
}

#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let began = Instant::now();
        let mut others = 0;
        let caught = (0..WITHIN).find_map(|number| {
            let why = fails(number, bug)?;
            let is_it = bug.words().iter().any(|words| why.contains(words));
            others += u32::from(!is_it);
            is_it.then_some((number, why))
        });
        match caught {
            Some((number, why)) => {
                let why: String =
                    why.lines().next().unwrap_or_default().chars().take(110).collect();
                let took = began.elapsed();
                println!(
                    "{bug:?}: seed {number}, {took:.1?}, {others} times by other words: {why}"
                );
            }
            None => missed.push((bug, others)),
        }
    }
    assert!(missed.is_empty(), "not caught by its invariant within {WITHIN} seeds: {missed:?}");
}
