//! Logs that are followed: whose, and the next one.

use super::show;
use crate::api::{RankId, ServiceName, ServiceView, Severity};
use crate::tui::command::Panel;
use crate::tui::logs::Follow;
use crate::tui::message::Effect;
use crate::tui::state::{ServiceRow, State};

pub(super) fn logs(state: &mut State, service: Option<&ServiceName>) -> Vec<Effect> {
    let first_of = |service: &ServiceView| {
        service.replicas.iter().flat_map(|r| &r.ranks).map(|r| r.rank.clone()).next()
    };
    let chosen = state
        .selected_release()
        .filter(|_| state.panel == Panel::Rollout && service.is_none() && state.release.row > 0);
    if let (Some(release), Some(view)) = (chosen, state.selected_service()) {
        let mut of_it = view.replicas.iter().filter(|r| r.release() == release);
        let rank = of_it.find_map(|r| r.ranks.first()).map(|r| r.rank.clone());
        let Some(rank) = rank else {
            let name = view.name.clone();
            let words = format!(
                "nothing of {release} runs any more; `gpudeck logs {name} --previous` has the last log that was kept"
            );
            state.say(Severity::Warning, words);
            return Vec::new();
        };
        return follow(state, rank);
    }
    let rank = match (service, state.panel) {
        (Some(name), _) => state.service_named(name).and_then(first_of),
        (None, Panel::Fleet) => {
            state.selected_host().and_then(|h| h.ranks.first()).map(|r| r.rank.clone())
        }
        (None, _) => match state.selected_row() {
            Some(ServiceRow::Replica(name, id)) if state.panel == Panel::Services => {
                let service = state.service_named(&name);
                let replica = service.and_then(|s| s.replicas.iter().find(|r| r.id == id));
                replica.and_then(|r| r.ranks.first()).map(|r| r.rank.clone())
            }
            _ => state.selected_service().and_then(first_of),
        },
    };
    if let Some(rank) = rank {
        follow(state, rank)
    } else {
        state.say(Severity::Warning, "no rank runs here: there is no log to follow");
        Vec::new()
    }
}

fn follow(state: &mut State, rank: RankId) -> Vec<Effect> {
    show(state, Panel::Logs);
    if state.follow.as_ref().is_some_and(|f| f.rank == rank) {
        return Vec::new();
    }
    let ticket = state.next_ticket();
    let (follow, effect) = Follow::start(rank, ticket);
    state.follow = Some(follow);
    vec![effect]
}

pub(super) fn next_rank(state: &mut State, by: isize) -> Vec<Effect> {
    let Some(current) = state.follow.as_ref().map(|f| f.rank.clone()) else { return Vec::new() };
    let ranks = state.ranks_beside(&current);
    let count = isize::try_from(ranks.len()).unwrap_or(0);
    if count == 0 {
        return Vec::new();
    }
    let at = ranks.iter().position(|r| *r == current);
    let at = at.and_then(|i| isize::try_from(i).ok()).map_or(0, |i| (i + by).rem_euclid(count));
    match usize::try_from(at).ok().and_then(|i| ranks.get(i)) {
        Some(rank) => follow(state, rank.clone()),
        None => Vec::new(),
    }
}
