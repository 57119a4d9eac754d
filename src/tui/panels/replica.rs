//! One replica in one line, as the services, a service's details and its rollout show it.
//!
//! ```text
//! │ r12-0  ◑ ▰▰▰▱ loading  34s   node3 GPU 0-3 try 2  1.3/s   0% 182 ms    10% │
//! ```

use ratatui::style::Style;

use super::services::{ERRORS, MEAN, RATE, SHARE};
use super::standing;
use crate::api::{DeviceId, ReplicaView, ServiceView, wrap};
use crate::tui::draw::Pen;
use crate::tui::state::State;
use crate::tui::words;

/// Columns of a replica's row from which its own traffic is shown.
const WITH_TRAFFIC: u16 = 84;

/// Whether a replica is of the release that comes.
fn is_new(service: &ServiceView, replica: &ReplicaView) -> bool {
    let rolling = service.rollout.as_ref().filter(|r| r.outcome.is_none());
    rolling.is_some_and(|r| r.to == replica.release() && r.from != Some(r.to))
}

/// Where what the gateway sees ends in rows up to `right`: requests, errors, mean.
fn traffic_ends(right: u16) -> [u16; 3] {
    let mean = right.saturating_sub(SHARE - 1);
    let errors = mean.saturating_sub(MEAN + 1);
    [errors.saturating_sub(ERRORS + 1), errors, mean]
}

/// The heads above the numbers of replicas in rows from `x` to `right`.
pub fn replica_heads(pen: &mut Pen<'_>, x: u16, y: u16, right: u16) {
    let (style, room) = (pen.theme.header, right.saturating_sub(x));
    // On a small screen the row is its title's.
    if room >= 48 {
        pen.put_right(x, y, right, "SHARE", style);
    }
    if room >= WITH_TRAFFIC {
        for (head, end) in ["REQ/S", "ERRORS", "MEAN"].into_iter().zip(traffic_ends(right)) {
            pen.put_right(x, y, end, head, style);
        }
    }
}

/// One replica in one line.
pub fn replica_row(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    replica: &ReplicaView,
    x: u16,
    y: u16,
    right: u16,
) {
    let theme = pen.theme;
    let release = if is_new(service, replica) { theme.new } else { theme.old };
    let (word, mut mark, mut style, done) = words::phase(replica, theme);
    let seen = standing::seen(state, replica);
    let lost = state.snapshot.as_ref().is_some_and(|s| !s.lost_gpus(replica).is_empty());
    if seen.is_some() {
        (mark, style) = ("?", theme.warn);
    } else if lost {
        (mark, style) = ("▲", theme.bad);
    }
    let weight = words::weight(replica);
    let (errors, errors_style) = words::errors(&replica.traffic, theme);
    let room = right.saturating_sub(x);
    // From the right: weight, then the traffic where there is room.
    let mut end = pen.put_right(x, y, right, &weight, weight_style(replica, theme.text, theme.dim));
    end = end.min(right.saturating_sub(4)).saturating_sub(1);
    if room >= WITH_TRAFFIC {
        let [rate_end, errors_end, mean_end] = traffic_ends(right);
        let mean = words::millis(replica.traffic.mean_response_ms);
        pen.put_right(x, y, mean_end.min(end), &mean, theme.dim);
        pen.put_right(x, y, errors_end, &errors, errors_style);
        pen.put_right(x, y, rate_end, &words::rate(&replica.traffic), theme.dim);
        end = rate_end.saturating_sub(RATE + 1);
    }
    let mut at = pen.put(x, y, end, &format!("{:<6} ", replica.id.key()), release);
    at = pen.put(at, y, end, &format!("{mark} "), style);
    if room >= 60 {
        at = pen.put(at, y, end, &format!("{} ", words::track(done)), style);
    }
    if let Some(seen) = seen {
        at = pen.put(at, y, end, &format!("{seen:<15} "), style);
    } else {
        at = pen.put(at, y, end, &format!("{word:<8} "), style);
        let since = words::ago(state.now, replica.since);
        at = pen.put(at, y, end, &format!("{since:<6} "), theme.dim);
    }
    let note = words::phase_note(&replica.phase, state.now).or_else(|| replica.trouble.clone());
    at = pen.put_cut(at, y, end, &places_of(state, replica), theme.text);
    // Behind the columns, which it would push aside.
    if replica.id.attempt.0.get() > 1 {
        at = pen.put(at + 1, y, end, &format!("try {}", replica.id.attempt), theme.warn);
    }
    if let Some(note) = note {
        pen.put_cut(at + 1, y, end, &format!("▲ {note}"), theme.warn);
    }
}

fn weight_style(replica: &ReplicaView, some: Style, none: Style) -> Style {
    let any = replica.weight_percent > 0 || replica.weight_wanted_percent.is_some();
    if any { some } else { none }
}

/// Where a replica runs: `node1 GPU 0-3, node2 GPU 0-3`.
fn places_of(state: &State, replica: &ReplicaView) -> String {
    let place = |rank: &crate::api::RankView| {
        let host = state.snapshot.as_ref().and_then(|s| s.hosts.get(&rank.host));
        let gpus = host.and_then(|h| h.sample.as_ref()).map_or(&[][..], |s| s.gpus.list());
        if rank.devices.contains(&DeviceId::Cpu) {
            return format!("{} cpu", rank.host);
        }
        let labels: Vec<String> = rank
            .devices
            .iter()
            .filter_map(|d| gpus.iter().find_map(|g| g.part(d)))
            .map(|part| part.label)
            .collect();
        if labels.is_empty() {
            return format!("{} ({} GPUs)", rank.host, rank.devices.len());
        }
        format!("{} {}", rank.host, wrap::gpus(&labels))
    };
    replica.ranks.iter().map(place).collect::<Vec<_>>().join(", ")
}
