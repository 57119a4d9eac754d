//! The cells of one host's row: a GPU each.

use ratatui::style::{Modifier, Style};

use super::lies::{Lies, cordoned, reserved};
use crate::api::{ServiceName, WhatIfView, WorldGpu, WorldHost};
use crate::tui::draw::Pen;
use crate::tui::letters;
use crate::tui::state::State;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    None,
    Cursor,
    Target,
}

/// The cells of one host.
pub(super) struct Cells<'a> {
    pub(super) host: &'a WorldHost,
    pub(super) up: bool,
    pub(super) lies: &'a Lies,
    pub(super) each: u16,
    pub(super) view: &'a WhatIfView,
    pub(super) state: &'a State,
}

impl Cells<'_> {
    pub(super) fn draw(
        &self,
        pen: &mut Pen<'_>,
        x: u16,
        y: u16,
        right: u16,
        marks: &dyn Fn(u32) -> Mark,
        changed: &dyn Fn(u32) -> bool,
    ) {
        let mut at = x;
        let mut last = self.host.gpus.first();
        for gpu in &self.host.gpus {
            if last.is_some_and(|last| joined(last) != joined(gpu)) {
                at += 1;
            }
            last = Some(gpu);
            let (text, mut style) = self.cell(pen, gpu.index);
            let text = if self.each == 1 { text.chars().take(1).collect() } else { text };
            style = match marks(gpu.index) {
                Mark::None if changed(gpu.index) => style.add_modifier(Modifier::UNDERLINED),
                Mark::None => style,
                Mark::Cursor => style.add_modifier(Modifier::REVERSED),
                Mark::Target => style.add_modifier(Modifier::REVERSED | Modifier::DIM),
            };
            pen.put(at, y, right, &text, style);
            at = at.saturating_add(self.each);
        }
    }

    /// `a0` for a replica, `·` free, `x` not healthy, `#` held by something else, `-` not to be used.
    fn cell(&self, pen: &Pen<'_>, index: u32) -> (String, Style) {
        let theme = pen.theme;
        let wide = |text: &str| format!("{text:<2}");
        if let Some((s, replica)) = self.lies.get(&(self.host.name.clone(), index)) {
            let style = service_style(self.state, self.view, theme, *s);
            let letter = letter(self.state, self.view, *s);
            return (wide(&format!("{letter}{replica}")), style);
        }
        let sick = |g: &&WorldGpu| g.index == index && g.health != "ok";
        if self.host.gpus.iter().any(|g| sick(&g)) {
            return (wide("x"), theme.bad);
        }
        if reserved(self.view, self.host, index).is_some() {
            return (wide("#"), theme.warn);
        }
        if !self.up
            || self.host.cordoned
            || self.host.draining
            || cordoned(self.view, self.host, index)
        {
            return (wide("-"), theme.dim);
        }
        (wide("·"), theme.dim)
    }
}

/// The island of a GPU, or the `PCIe` switch of one without.
fn joined(gpu: &WorldGpu) -> (Option<u32>, Option<u32>) {
    (gpu.island, gpu.pcie_switch.filter(|_| gpu.island.is_none()))
}

/// GPUs of a host's row, and the columns between its islands and switches.
pub(super) fn cells(host: &WorldHost) -> (u16, u16) {
    let small = |n: usize| u16::try_from(n).unwrap_or(64);
    let gaps = host.gpus.windows(2).filter(|two| match two {
        [one, other] => joined(one) != joined(other),
        _ => false,
    });
    (small(host.gpus.len()), small(gaps.count()))
}

/// The place of a service among those of the deck, as the other panels count them.
fn place(state: &State, view: &WhatIfView, service: usize) -> usize {
    let name = view.world.services.get(service).and_then(|s| s.name.parse::<ServiceName>().ok());
    name.map_or(service, |n| state.service_index(&n))
}

/// The letter that the service has in the fleet too.
pub(super) fn letter(state: &State, view: &WhatIfView, service: usize) -> char {
    letters::letter(place(state, view, service))
}

/// The colour that the service has in the other panels too.
pub(super) fn service_style(
    state: &State,
    view: &WhatIfView,
    theme: &crate::tui::theme::Theme,
    service: usize,
) -> Style {
    let at = place(state, view, service);
    theme.services.get(at % theme.services.len()).copied().unwrap_or(theme.text)
}
