//! Keys that move: the selection, what is scrolled, what is beside.

use super::select_service;
use crate::api::{HostName, ServiceName};
use crate::tui::command::Panel;
use crate::tui::state::{Selected, State};
use crate::tui::update::releases;
use crate::tui::{layout, panels};

pub(super) fn half(state: &mut State, halves: isize) {
    let half = isize::try_from(layout::page(state) / 2).unwrap_or(1).max(1);
    scroll(state, half * halves);
}

pub(super) fn scroll(state: &mut State, by: isize) {
    // A position beyond the end would have to be scrolled back before anything moves.
    let most = panels::most_scrolled(state);
    if let Some(detail) = &mut state.detail {
        detail.scroll = detail.scroll.min(most).saturating_add_signed(by).min(most);
        return;
    }
    let page = layout::page(state).saturating_sub(1);
    match state.panel {
        Panel::Fleet => {
            let rows: Vec<HostName> = state.hosts().iter().map(|h| h.name.clone()).collect();
            state.host.step(&rows, by);
        }
        Panel::Services => {
            let rows = state.service_rows();
            let before = state.selected_row().map(|r| r.service().clone());
            state.service.step(&rows, by);
            if state.selected_row().map(|r| r.service().clone()) != before {
                state.release = Selected::default();
            }
        }
        Panel::Rollout => {
            let rows = releases(state);
            state.release.step(&rows, by);
        }
        Panel::Events => {
            let events = state.snapshot.iter().flat_map(|s| &s.events);
            let count = events.filter(|e| crate::tui::update::shows_event(state, e)).count();
            let most = count.saturating_sub(page);
            state.events_back = state.events_back.min(most).saturating_add_signed(-by).min(most);
        }
        Panel::Logs => {
            let filter = state.filter(Panel::Logs).cloned();
            if let Some(follow) = &mut state.follow {
                let shown = |l: &&String| filter.as_ref().is_none_or(|f| f.matches(l));
                let most = follow.lines.iter().filter(shown).count().saturating_sub(page);
                follow.back = follow.back.min(most).saturating_add_signed(-by).min(most);
            }
        }
    }
}

pub(super) fn sideways(state: &mut State, by: isize) {
    match state.panel {
        Panel::Logs => {
            if let Some(follow) = &mut state.follow {
                follow.left = follow.left.saturating_add_signed(by * 16).min(4_000);
            }
        }
        Panel::Events => {
            state.events_left = state.events_left.saturating_add_signed(by * 16).min(1_000);
        }
        Panel::Rollout => {
            let names: Vec<ServiceName> = state.services().iter().map(|s| s.name.clone()).collect();
            let Some(now) = state.selected_service().map(|s| s.name.clone()) else { return };
            let at = names.iter().position(|n| *n == now).unwrap_or(0);
            let to = at.saturating_add_signed(by).min(names.len().saturating_sub(1));
            if let Some(name) = names.get(to) {
                select_service(state, name.clone());
            }
        }
        Panel::Fleet | Panel::Services => {}
    }
}
