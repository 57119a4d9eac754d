//! How a service stands: its mark and word, and what is wrong with it, also where only its hosts tell that.
//!
//! ```text
//! │ ? chat   not seen   4/4 ≥3   r3                                                │
//! │   ▲ 4 of 4 ready replicas were last seen 17s ago: gpu-1, gpu-2 are not reached │
//! ```

use ratatui::style::Style;

use crate::api::{Condition, Gate, ReplicaView, ServiceView, Unseen, time};
use crate::tui::state::State;
use crate::tui::words;

/// Mark, colour and word of a service; not those of one that is well while nobody sees it, or its GPUs are lost.
pub fn standing(state: &State, service: &ServiceView) -> (&'static str, Style, &'static str) {
    let theme = &state.theme;
    let (mark, style) = words::condition_mark(service.condition, theme);
    let word = service.condition.word();
    let Some(snapshot) = state.snapshot.as_ref() else { return (mark, style, word) };
    if service.condition != Condition::Serving {
        return (mark, style, word);
    }
    let unseen = snapshot.unseen_count(service, state.now);
    let ready = usize::try_from(service.ready).unwrap_or(usize::MAX);
    match unseen {
        0 if snapshot.lost(service).is_some() => ("▲", theme.bad, word),
        0 => (mark, style, word),
        n if n < ready => ("?", theme.warn, word),
        _ => ("?", theme.warn, "not seen"),
    }
}

/// What is wrong with a service, a line each: what the controller says, what is not seen any more, what has failed and
/// waits for a person, which GPUs are lost.
pub fn troubles(state: &State, service: &ServiceView) -> Vec<String> {
    let snapshot = state.snapshot.as_ref();
    let unseen = snapshot.and_then(|s| s.unseen(service, state.now));
    let lost = snapshot.and_then(|s| s.lost(service));
    let lost = lost.map(|(words, host)| {
        format!("{words} → m moves it to other GPUs, `gpudeck drain {host}` all that runs there")
    });
    let under_way = service.rollout.as_ref().filter(|r| r.outcome.is_none());
    let failed = under_way.filter(|r| matches!(r.gate, Some(Gate::Failed { .. })));
    let failed = failed.and_then(|r| Some(format!("{}: {}", r.to, words::gate(r, state.now)?)));
    service.trouble.clone().into_iter().chain(unseen).chain(lost).chain(failed).collect()
}

/// From here on nothing of a service is broken.
pub const WELL: u8 = 3;

/// How grave it is: of many services the worst are shown first, the least number.
pub fn gravity(state: &State, service: &ServiceView) -> u8 {
    let is_sick =
        || standing(state, service).0 != words::condition_mark(service.condition, &state.theme).0;
    match service.condition {
        Condition::Down => 0,
        Condition::Degraded => 1,
        _ if is_sick() => 2,
        Condition::Held => 3,
        Condition::RollingBack => 4,
        _ if service.trouble.is_some() => 5,
        Condition::Rolling => 6,
        Condition::Elsewhere => 7,
        Condition::Stopping => 8,
        Condition::Serving => 9,
        Condition::Stopped => 10,
    }
}

/// What stands in a replica's row in place of its mark, its word and its time: it was ready when it was last seen.
pub fn seen(state: &State, replica: &ReplicaView) -> Option<String> {
    let unseen = state.snapshot.as_ref()?.unseen_replica(replica, state.now)?;
    Some(match unseen {
        Unseen::For(time) => {
            format!("seen {} ago", time::short(std::time::Duration::from_secs(time.as_secs())))
        }
        Unseen::Never => "not seen".to_owned(),
    })
}

/// How many of these services' ready replicas are not seen.
pub fn unseen(state: &State, services: &[&ServiceView]) -> usize {
    let of = |s: &&ServiceView| state.snapshot.as_ref().map_or(0, |n| n.unseen_count(s, state.now));
    services.iter().map(of).sum()
}
