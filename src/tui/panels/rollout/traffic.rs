//! How the requests are shared out between the two releases.

use ratatui::layout::Rect;

use crate::api::{ReleaseNumber, ReplicaView, Rollout, ServiceView};
use crate::tui::draw::Pen;

/// How the requests are shared out between the two releases, by weight.
pub(super) fn traffic_bar(
    pen: &mut Pen<'_>,
    service: &ServiceView,
    rollout: &Rollout,
    rest: Rect,
    y: u16,
) {
    let share_of = |release: ReleaseNumber, of: fn(&ReplicaView) -> u32| -> u32 {
        let replicas = service.replicas.iter().filter(|r| r.release() == release);
        replicas.map(of).sum()
    };
    let shares = |of: fn(&ReplicaView) -> u32| {
        shared_out(share_of(rollout.to, of), rollout.from.map_or(0, |from| share_of(from, of)))
    };
    let (new, old) = shares(|r| r.weight_percent);
    let mut x = pen.put(rest.x, y, rest.right(), "traffic ", pen.theme.dim);
    if let Some(from) = rollout.from {
        x = pen.put(x, y, rest.right(), &format!("{from} {old:>3}% "), pen.theme.old);
    }
    let waits = service.replicas.iter().any(|r| r.weight_wanted_percent.is_some());
    let tail = if waits {
        let (to_be, _) = shares(|r| r.weight_wanted_percent.unwrap_or(r.weight_percent));
        format!(" {new:>3}→{to_be}% {}", rollout.to)
    } else {
        format!(" {new:>3}% {}", rollout.to)
    };
    let tail_width = u16::try_from(tail.chars().count()).unwrap_or(0);
    let width = rest.right().saturating_sub(x).saturating_sub(tail_width).min(60);
    if width < 4 {
        pen.put(x, y, rest.right(), &tail, pen.theme.new);
        return;
    }
    let cells = |percent: u32| {
        let cells = crate::tui::draw::scale(f64::from(percent) / 100.0, u32::from(width));
        usize::try_from(cells).unwrap_or(0)
    };
    // A canary of one percent is seen, too.
    let new_cells = if new > 0 { cells(new).max(1) } else { 0 };
    let old_cells = cells(old).min(usize::from(width).saturating_sub(new_cells));
    let none = usize::from(width).saturating_sub(new_cells + old_cells);
    let right = rest.right();
    x = pen.put(x, y, right, &"█".repeat(old_cells), pen.theme.old);
    x = pen.put(x, y, right, &"·".repeat(none), pen.theme.border);
    // Another glyph, too: the two are told apart without colours.
    x = pen.put(x, y, right, &"▒".repeat(new_cells), pen.theme.new);
    pen.put(x, y, right, &tail, pen.theme.new);
}

/// The percents of both sides, of what their replicas have, each rounded: together they are 100.
fn shared_out(new: u32, old: u32) -> (u32, u32) {
    match (new, old) {
        (0, 0) => (0, 0),
        (0, _) => (0, 100),
        (_, 0) => (100, 0),
        (new, _) => (new.min(99), 100 - new.min(99)),
    }
}

#[cfg(test)]
mod tests {
    use super::shared_out;

    #[test]
    fn two_sides_are_a_hundred() {
        // Three of 33 or 34 each beside one, as rounding has it.
        assert_eq!(shared_out(33, 68), (33, 67));
        assert_eq!(shared_out(34, 66), (34, 66));
        assert_eq!(shared_out(0, 99), (0, 100));
        assert_eq!(shared_out(101, 0), (100, 0));
        assert_eq!(shared_out(0, 0), (0, 0));
    }
}
