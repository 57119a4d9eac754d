//! Where everything stands on the screen.
//!
//! ```text
//! from 160×40                                smaller (80×24 and up)       tiny
//! ┌ title ─────────────────────────────────┐ ┌ title ──────────────────┐  ┌ title ──┐
//! │ Fleet                │ Services        │ │ tabs                    │  │ panel   │
//! │                      │                 │ │ the panel with the keys │  │         │
//! │                      ├─────────────────┤ │                         │  │ hints   │
//! │                      │ Rollout         │ │                         │  └─────────┘
//! ├──────────────────────┤                 │ │ strip: what rolls,      │
//! │ Events               ├─────────────────┤ │ and what happened last  │
//! │                      │ Logs if followed│ │ hints                   │
//! │ hints                                  │ └─────────────────────────┘
//! └────────────────────────────────────────┘
//! ```

use ratatui::layout::Rect;

use super::command::Panel;
use super::panels;
use super::state::State;

/// Columns and rows from which several panels are shown at once.
const DASHBOARD: (u16, u16) = (160, 40);

/// The areas of the screen. Those that do not fit are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// Who and how it is.
    pub title: Rect,
    /// The names of the panels.
    pub tabs: Rect,
    /// Everything between title and hints: where dialogs may lie.
    pub body: Rect,
    /// The panels that are shown.
    pub panels: Vec<(Panel, Rect)>,
    /// What rolls, and the last event.
    pub strip: Rect,
    /// The keys.
    pub hints: Rect,
}

impl Areas {
    /// The area of a panel, if it is shown.
    pub fn of(&self, panel: Panel) -> Option<Rect> {
        self.panels.iter().find(|(p, _)| *p == panel).map(|(_, area)| *area)
    }
}

/// Where everything stands now.
pub fn areas(state: &State) -> Areas {
    let (width, height) = state.size;
    let mut rest = Rect::new(0, 0, width, height);
    let mut out = Areas { title: cut_top(&mut rest, 1), ..Areas::default() };
    if height >= 5 {
        out.hints = cut_bottom(&mut rest, 1);
    }
    out.body = rest;
    let dashboard = width >= DASHBOARD.0 && height >= DASHBOARD.1;
    if dashboard && !state.zoom && state.detail.is_none() {
        out.panels = dashboard_panels(state, rest);
        return out;
    }
    if height >= 12 {
        out.tabs = cut_top(&mut rest, 1);
    }
    if height >= 20 && !state.zoom {
        out.strip = cut_bottom(&mut rest, 2);
    }
    out.panels = vec![(state.panel, rest)];
    out
}

fn dashboard_panels(state: &State, body: Rect) -> Vec<(Panel, Rect)> {
    let mut left = Rect { width: body.width * 54 / 100, ..body };
    let mut right = Rect { x: left.right(), width: body.width - left.width, ..body };
    let fleet = panels::fleet::height(state, left.width).clamp(8, body.height - 8);
    let fleet = cut_top(&mut left, fleet);
    let services = panels::services::height(state).clamp(5, body.height / 3);
    let services = cut_top(&mut right, services);
    let mut out = vec![(Panel::Fleet, fleet), (Panel::Services, services)];
    if state.follow.is_some() || state.panel == Panel::Logs {
        let rows = right.height * 2 / 5;
        let logs = cut_bottom(&mut right, rows);
        out.push((Panel::Logs, logs));
    }
    out.push((Panel::Rollout, right));
    out.push((Panel::Events, left));
    out
}

fn cut_top(rest: &mut Rect, rows: u16) -> Rect {
    let rows = rows.min(rest.height);
    let top = Rect { height: rows, ..*rest };
    rest.y += rows;
    rest.height -= rows;
    top
}

fn cut_bottom(rest: &mut Rect, rows: u16) -> Rect {
    let rows = rows.min(rest.height);
    rest.height -= rows;
    Rect { y: rest.bottom(), height: rows, ..*rest }
}

/// Rows of the panel with the keys, for paging.
pub fn page(state: &State) -> usize {
    let areas = areas(state);
    let rows = areas.of(state.panel).unwrap_or(areas.body).height;
    usize::from(rows.saturating_sub(3)).max(1)
}

/// Rows of a text that has a dialog for itself, when it fills the screen.
pub fn text_page(state: &State) -> usize {
    usize::from(areas(state).body.height.saturating_sub(2)).max(1)
}

/// Rows of a dialog's text, for paging.
pub fn dialog_page(state: &State) -> usize {
    usize::from(areas(state).body.height.saturating_sub(6)).max(1)
}
