//! The rows: a host each, now and then beside each other.

use ratatui::layout::Rect;

use super::Map;
use super::cells::{Cells, Mark, cells};
use super::lies;
use super::lies::{Lies, lies_now};
use crate::api::WhatIfView;
use crate::tui::draw::{Pen, window};
use crate::tui::state::State;

/// Columns between the two maps.
const GAP: u16 = 2;

impl Map {
    /// Who would be where. A replica that was picked up lies where the cursor would put it.
    fn lies_then(&self, view: &WhatIfView) -> Lies {
        let mut lies = lies::lies_then(view);
        if let (Some(held), Some(target)) = (&self.held, self.target()) {
            let services = &view.world.services;
            let s = services.iter().position(|s| s.name == held.service.as_str()).unwrap_or(0);
            lies.retain(|_, lies| *lies != (s, held.replica));
            let host = target.host.to_string();
            lies.extend(target.gpus.iter().map(|gpu| ((host.clone(), *gpu), (s, held.replica))));
        }
        lies
    }

    pub(super) fn draw_rows(
        &self,
        pen: &mut Pen<'_>,
        state: &State,
        view: &WhatIfView,
        area: Rect,
    ) {
        let world = &view.world;
        let longest = world.hosts.iter().map(|h| h.name.len()).max().unwrap_or(4);
        let name = u16::try_from(longest).unwrap_or(24).clamp(6, 24) + 2;
        let (widest, gaps) = world
            .hosts
            .iter()
            .map(cells)
            .fold((0, 0), |most, (cells, gaps)| (cells.max(most.0), gaps.max(most.1)));
        // Letter and number, or the letter alone where two maps would not fit beside each other.
        let room = area.width.saturating_sub(name + GAP) / 2;
        let before = lies_now(view);
        let after = self.lies_then(view);
        let digits = |n: &u32| n.to_string().len();
        let number = before.values().chain(after.values()).map(|(_, n)| digits(n)).max();
        let wide = u16::try_from(number.unwrap_or(1)).unwrap_or(1).saturating_add(2);
        // One column at least is for what lies between islands.
        let gaps = gaps.max(1);
        let each = if widest.saturating_mul(wide).saturating_add(gaps) <= room { wide } else { 1 };
        let map = widest.saturating_mul(each).saturating_add(gaps).min(room);
        let (now, then) = (area.x + name, area.x + name + map + GAP);
        pen.put(area.x, area.y, area.right(), "HOST", pen.theme.header);
        pen.put(now, area.y, then, "NOW", pen.theme.header);
        pen.put(then, area.y, area.right(), "THEN", pen.theme.header);
        let target = self.target();
        let height = usize::from(area.height.saturating_sub(1));
        let from = window(world.hosts.len(), self.host, height);
        for (y, (row, host)) in
            (area.y + 1..area.bottom()).zip(world.hosts.iter().enumerate().skip(from))
        {
            let style = if row == self.host { pen.theme.strong } else { pen.theme.text };
            pen.put_cut(area.x, y, now - 1, &host.name, style);
            for (x, lies, cursor) in [(now, &before, true), (then, &after, false)] {
                let right = if cursor { then - 1 } else { area.right() };
                // As it is now a host is there although it is supposed to be lost.
                let supposed = self.question.without.iter().any(|h| h.as_str() == host.name);
                let up = host.up || (cursor && supposed);
                let draw = Cells { host, up, lies, each, view, state };
                let marks = |index: u32| -> Mark {
                    let here = row == self.host;
                    let gpu = host.gpus.get(self.gpu).filter(|_| here).map(|g| g.index);
                    let aims = target
                        .as_ref()
                        .is_some_and(|t| t.host.as_str() == host.name && t.gpus.contains(&index));
                    match (cursor, gpu == Some(index)) {
                        (true, true) => Mark::Cursor,
                        (true, false) if aims => Mark::Target,
                        _ => Mark::None,
                    }
                };
                let changed = |index: u32| {
                    let key = (host.name.clone(), index);
                    !cursor && before.get(&key) != after.get(&key)
                };
                draw.draw(pen, x, y, right, &marks, &changed);
            }
        }
    }
}
