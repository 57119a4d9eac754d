//! Replicas of what is stable that fail again and again. Each time they are started anew, so that each failure alone looks
//! like one that heals: what does not heal has a name.

use super::core::{Core, now};
use crate::api::{DeckConditionKind, Severity};
use crate::base::{ServiceName, Timestamp, text};
use crate::rollout::{Phase, ServiceState};

/// A replica that failed so often in a row does not heal by itself.
const OFTEN: u32 = 3;

/// Longest cause of one replica, in characters.
const MAX_CAUSE: usize = 160;

/// Replicas that are named; of more only the number is told.
const NAMED: usize = 3;

/// What is told of a service whose replicas are well again, or gone.
const HEALED: &str = "none of its replicas fails again and again any more";

/// What is told of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    words: String,
    hint: String,
}

/// The replicas of the stable release that fail again and again, in words; none: there are none.
fn restarting(state: &ServiceState, now: Timestamp) -> Option<Told> {
    let stable = state.stable?;
    let release = state.releases.get(&stable)?;
    let again: Vec<_> = state
        .replicas
        .iter()
        .filter(|(key, replica)| {
            key.release == stable
                && !replica.retiring
                && replica.phase != Phase::Stopped
                && replica.failures_in_a_row(now) >= OFTEN
        })
        .collect();
    let (first, _) = again.first()?;
    let service = &state.service;
    let parts = again.iter().take(NAMED).map(|(key, replica)| {
        let ranks = release.replica(key.replica).map_or(&[][..], |plan| plan.ranks.as_slice());
        let mut hosts: Vec<&str> = ranks.iter().map(|rank| rank.host.as_str()).collect();
        hosts.dedup();
        let on = if hosts.is_empty() { String::new() } else { format!(" on {}", hosts.join(", ")) };
        let cause = replica.last_failure.as_ref().or(replica.trouble.as_ref());
        let cause = cause.map(|cause| format!(", last: {}", text::clean(cause, MAX_CAUSE)));
        let (id, times) = (replica.id(**key), replica.failures);
        format!("replica {id}{on} failed {times} times in a row{}", cause.unwrap_or_default())
    });
    let mut words = parts.collect::<Vec<_>>().join("; ");
    if let Some(more) = again.len().checked_sub(NAMED).filter(|more| *more > 0) {
        words.push_str(&format!("; and {more} more"));
    }
    let (replica, failed) = (first.replica, again.first().map(|(_, replica)| replica));
    let cause = failed.and_then(|r| r.last_failure.as_deref().or(r.trouble.as_deref()));
    let host = release.replica(replica).and_then(|plan| plan.ranks.first()).map(|rank| &rank.host);
    let hint = if cause.is_some_and(is_of_a_gpu) {
        // No other release is any better there.
        let all = host.map(|host| format!(", `gpudeck drain {host}` all that runs there"));
        format!(
            "`gpudeck move {service} {replica} HOST GPUS` moves it to other GPUs{}",
            all.unwrap_or_default()
        )
    } else {
        format!(
            "`gpudeck logs {service}/{replica} --previous` shows how it ended; mend that, move it to other GPUs \
             (`gpudeck move`), or `gpudeck rollout undo {service}`"
        )
    };
    Some(Told { words: format!("{words}; it is started again, later each time"), hint })
}

/// Whether it failed for its GPU, which a start does not mend.
fn is_of_a_gpu(cause: &str) -> bool {
    cause.contains("fallen off the bus") || cause.contains("GPU ") && cause.contains(" has errors")
}

impl Core {
    /// Says which replicas fail again and again, and when none does any more.
    pub(super) fn tend_restarts(&mut self) {
        let here = now();
        let mut told = Vec::new();
        for (service, state) in &self.state.services {
            if let Some(found) = restarting(state, here)
                && self.held_elsewhere(service).is_none()
            {
                told.push((service.clone(), found));
            }
        }
        let in_words = |found: &Told| format!("{} → {}", found.words, found.hint);
        let next: std::collections::BTreeMap<ServiceName, String> =
            told.iter().map(|(service, found)| (service.clone(), in_words(found))).collect();
        if self.restarting == next {
            return;
        }
        let before = std::mem::replace(&mut self.restarting, next);
        let hint = told.first().map(|(_, found)| found.hint.clone());
        let words = told.iter().map(|(service, found)| format!("{service}: {}", found.words));
        let words = words.collect::<Vec<_>>().join("; ");
        self.set_condition(DeckConditionKind::Restarting, hint.map(|hint| (words, Some(hint))));
        let changed: Vec<ServiceName> = before
            .keys()
            .chain(self.restarting.keys())
            .filter(|service| before.get(*service) != self.restarting.get(*service))
            .cloned()
            .collect();
        for service in changed {
            if !self.restarting.contains_key(&service) {
                self.say(Severity::Info, Some(&service), HEALED);
            }
            self.publish_service(&service);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{Attempt, DeckId, ReleaseNumber, ReplicaKey};
    use crate::rollout::ReplicaState;

    const MINUTE: u64 = 60_000;

    /// A service whose only stable replica is changed so.
    fn service(change: impl FnOnce(&mut ReplicaState)) -> ServiceState {
        let mut state = ServiceState::new("chat".parse().unwrap());
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &state.service);
        let number = release.number;
        state.releases.insert(number, release.into());
        state.stable = Some(number);
        let mut replica = ReplicaState::pending(Attempt::FIRST, Timestamp(0), Timestamp(0));
        change(&mut replica);
        state.replicas.insert(ReplicaKey { release: number, replica: 0 }, replica.into());
        state
    }

    #[test]
    fn what_fails_again_and_again_is_named_with_its_last_end_and_what_to_do() {
        let often = |replica: &mut ReplicaState| {
            (replica.failures, replica.last_failure) =
                (OFTEN, Some("exit code 1: boom".to_owned()));
            // It starts again, and nothing is wrong with that start yet.
            replica.phase = Phase::Starting;
        };
        let told = restarting(&service(often), Timestamp(MINUTE)).unwrap();
        let named = told.words.contains("failed 3 times in a row, last: exit code 1: boom");
        assert!(told.words.starts_with("replica ") && named, "{}", told.words);
        assert!(told.hint.contains("`gpudeck logs chat/0 --previous`"), "{}", told.hint);

        let dead = |replica: &mut ReplicaState| {
            often(replica);
            replica.last_failure = Some("GPU 3 has fallen off the bus".to_owned());
        };
        let told = restarting(&service(dead), Timestamp(MINUTE)).unwrap();
        let named = told.hint.contains("gpudeck move chat 0");
        assert!(named && !told.hint.contains("undo"), "{}", told.hint);

        let quiet = |change: &dyn Fn(&mut ReplicaState)| {
            let state = service(|replica| {
                often(replica);
                change(replica);
            });
            restarting(&state, Timestamp(11 * MINUTE)).is_none()
        };
        assert!(!quiet(&|_| ()));
        assert!(quiet(&|replica| replica.failures = OFTEN - 1), "twice may be chance");
        assert!(quiet(&|replica| replica.retiring = true), "it is on its way out");
        let ready_since = |since| {
            quiet(&|replica| (replica.phase, replica.since) = (Phase::Ready, Timestamp(since)))
        };
        assert!(ready_since(MINUTE), "it has served for ten minutes");
        assert!(!ready_since(MINUTE + 1), "it may well end again");
    }

    #[test]
    fn what_is_rolled_out_is_the_rollouts_to_tell() {
        let mut state = service(|replica| replica.failures = 9);
        assert!(restarting(&state, Timestamp(MINUTE)).is_some());
        state.stable = Some(ReleaseNumber(77));
        assert_eq!(restarting(&state, Timestamp(MINUTE)), None);
    }
}
