//! States in words and marks: the same ones on every panel.

use ratatui::style::Style;

use super::theme::Theme;
use crate::api::{
    Bytes, ClockView, Condition, Gate, MemoryUse, Outcome, Phase, ReplicaView, Rollout,
    ServiceView, Severity, Timestamp, TrafficView, time,
};

/// What stands where a value is not known.
pub const ABSENT: &str = "–";

/// Mark and colour of a condition.
pub const fn condition_mark(condition: Condition, theme: &Theme) -> (&'static str, Style) {
    match condition {
        Condition::Stopped => ("○", theme.dim),
        Condition::Serving => ("●", theme.good),
        Condition::Degraded => ("▲", theme.warn),
        Condition::Down => ("✖", theme.bad),
        Condition::Rolling => ("▶", theme.accent),
        Condition::Held => ("║", theme.warn),
        Condition::RollingBack => ("◀", theme.warn),
        Condition::Stopping => ("◌", theme.dim),
        Condition::Elsewhere => ("?", theme.warn),
    }
}

/// A replica's phase: word, mark, colour, and how far it is from 0 to 4.
pub fn phase(replica: &ReplicaView, theme: &Theme) -> (&'static str, &'static str, Style, usize) {
    match replica.phase {
        // It has loaded long ago, runs, and does not serve.
        Phase::Loading if replica.silent => ("no token", "▲", theme.bad, 3),
        Phase::Pending { .. } => ("pending", "○", theme.dim, 0),
        Phase::Starting => ("starting", "◔", theme.accent, 1),
        Phase::Waiting { .. } => ("waiting", "║", theme.warn, 1),
        Phase::Loading => ("loading", "◑", theme.accent, 3),
        Phase::Ready => ("ready", "●", theme.good, 4),
        Phase::Draining { .. } => ("draining", "◐", theme.warn, 2),
        Phase::Stopping => ("stopping", "◌", theme.warn, 1),
        Phase::Stopped => ("stopped", "○", theme.dim, 0),
        Phase::Failed { .. } => ("FAILED", "✖", theme.bad, 0),
    }
}

/// What a phase has to add: what it waits for, why it failed.
pub fn phase_note(phase: &Phase, now: Timestamp) -> Option<String> {
    match phase {
        Phase::Waiting { why, retry_at, .. } => {
            Some(format!("{why} (asked again in {})", left(now, *retry_at)))
        }
        Phase::Failed { cause } => Some(cause.clone()),
        Phase::Draining { deadline } => Some(format!("at most {} more", left(now, *deadline))),
        Phase::Pending { not_before } if *not_before > now => {
            Some(format!("not before {}", left(now, *not_before)))
        }
        _ => None,
    }
}

/// A track of four for how far something is.
pub const fn track(done: usize) -> &'static str {
    match done {
        0 => "▱▱▱▱",
        1 => "▰▱▱▱",
        2 => "▰▰▱▱",
        3 => "▰▰▰▱",
        _ => "▰▰▰▰",
    }
}

/// Mark and colour of an event.
pub const fn severity(severity: Severity, theme: &Theme) -> (&'static str, Style) {
    match severity {
        Severity::Info => ("·", theme.dim),
        Severity::Warning => ("▲", theme.warn),
        Severity::Error => ("✖", theme.bad),
    }
}

/// How a rollout ended: mark, colour, word, and why.
pub fn outcome<'o>(
    outcome: &'o Outcome,
    theme: &Theme,
) -> (&'static str, Style, &'static str, &'o str) {
    let (word, why) = outcome.words();
    let (mark, style) = match outcome {
        Outcome::Completed => ("✔", theme.good),
        Outcome::RolledBack { .. } | Outcome::Aborted { .. } => ("↩", theme.warn),
        Outcome::Failed { .. } => ("✖", theme.bad),
    };
    (mark, style, word, why)
}

/// What holds a rollout, in a few words, with the time that is left.
pub fn gate(rollout: &Rollout, now: Timestamp) -> Option<String> {
    if rollout.outcome.is_some() {
        return None;
    }
    if let Some(paused) = rollout.paused {
        let by = rollout.paused_by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let why = rollout.paused_why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        return Some(format!("PAUSED for {}{by}{why}", whole(now.since(paused))));
    }
    Some(match rollout.gate.as_ref()? {
        Gate::Bake { until } => format!("baking, {} left", left(now, *until)),
        Gate::Analyse { name, until, awaits_request: true } => {
            format!("analysing {name}: {}", awaits_request(now, *until))
        }
        Gate::Analyse { name, until, .. } => {
            format!("analysing {name}, {} left", left(now, *until))
        }
        Gate::Run { command, attempt, until } => {
            let again = match attempt.0.get() {
                1 => String::new(),
                n => format!(" (attempt {n})"),
            };
            format!("running {command}{again}, at most {} more", left(now, *until))
        }
        Gate::Inconclusive { why } => {
            format!("INCONCLUSIVE: {why}. Retry (r), skip (s) or abort (x)")
        }
        Gate::Approve => "WAITS FOR YOU: promote (P) or abort (x)".to_owned(),
        Gate::Failed { why } => format!("FAILED: {why}. Retry (r) or abort (x)"),
    })
}

/// Since when the clock of a rollout's gate stands: a pause stops that of `bake` and `analyse`, a command runs on.
fn gate_stands(rollout: &Rollout) -> Option<Timestamp> {
    let stops = matches!(rollout.gate, Some(Gate::Bake { .. } | Gate::Analyse { .. }));
    rollout.paused.filter(|_| stops)
}

/// That an analysis has not begun.
fn awaits_request(now: Timestamp, until: Timestamp) -> String {
    format!("waits for the first request, {} at most", left(now, until))
}

/// The time that is left at a gate: in full, and shorter. None at one that has no clock.
pub fn gate_left(rollout: &Rollout, now: Timestamp) -> Option<Vec<String>> {
    let stands = gate_stands(rollout);
    let (until, awaits) = match rollout.gate.as_ref()? {
        Gate::Analyse { until, awaits_request, .. } => (*until, *awaits_request),
        Gate::Bake { until } | Gate::Run { until, .. } => (*until, false),
        Gate::Inconclusive { .. } | Gate::Approve | Gate::Failed { .. } => return None,
    };
    let rest = left(stands.unwrap_or(now), until);
    Some(match () {
        () if stands.is_some() => vec![format!("paused, {rest} left"), "paused".to_owned()],
        () if awaits => vec![awaits_request(now, until), format!("no request yet, ≤{rest}")],
        () => vec![format!("{rest} left"), rest],
    })
}

/// The share of a timed gate that has passed; none while it has not begun.
pub fn gate_share(rollout: &Rollout, now: Timestamp) -> Option<f64> {
    let now = gate_stands(rollout).unwrap_or(now);
    let until = match rollout.gate.as_ref()? {
        Gate::Analyse { awaits_request: true, .. } => return None,
        Gate::Bake { until } | Gate::Analyse { until, .. } | Gate::Run { until, .. } => *until,
        Gate::Inconclusive { .. } | Gate::Approve | Gate::Failed { .. } => return None,
    };
    let from = rollout.step_settled.unwrap_or(rollout.step_since);
    let whole = until.since(from).as_secs_f64();
    if whole <= 0.0 {
        return Some(1.0);
    }
    Some((now.since(from).as_secs_f64() / whole).clamp(0.0, 1.0))
}

/// The time that is left until `then`.
pub fn left(now: Timestamp, then: Timestamp) -> String {
    match then.since(now).as_millis().div_ceil(1_000) {
        0 => "0s".to_owned(),
        s => time::short(std::time::Duration::from_secs(u64::try_from(s).unwrap_or(u64::MAX))),
    }
}

/// How long ago something was, in whole seconds.
pub fn ago(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.since(then).as_secs();
    if seconds == 0 {
        return "now".to_owned();
    }
    time::short(std::time::Duration::from_secs(seconds))
}

/// How long ago something was, as a phrase: `12s ago`.
pub fn how_long_ago(now: Timestamp, then: Timestamp) -> String {
    if now.since(then).as_secs() == 0 {
        return "just now".to_owned();
    }
    format!("{} ago", ago(now, then))
}

/// A time in whole seconds.
pub fn whole(time: std::time::Duration) -> String {
    match time.as_secs() {
        0 => "0s".to_owned(),
        seconds => time::short(std::time::Duration::from_secs(seconds)),
    }
}

/// How many replicas are ready of those that are wanted; more than that during a rollout.
pub fn ready(service: &ServiceView) -> String {
    let (ready, wanted) = (service.ready, service.wanted);
    if ready > wanted {
        format!("{ready} ready ({wanted} wanted)")
    } else {
        format!("{ready} of {wanted} ready")
    }
}

/// Requests a second.
pub fn rate(traffic: &TrafficView) -> String {
    traffic.requests_per_s.map_or_else(|| ABSENT.to_owned(), |r| format!("{r:.1}/s"))
}

/// A replica's share of the traffic, and what it is to become while the gateway has not taken it.
pub fn weight(replica: &ReplicaView) -> String {
    let is = replica.weight_percent;
    match replica.weight_wanted_percent {
        Some(to_be) => format!("{is}→{to_be}%"),
        None => format!("{is}%"),
    }
}

/// The share of failed requests, and its colour.
pub fn errors(traffic: &TrafficView, theme: &Theme) -> (String, Style) {
    match traffic.error_rate {
        None => (ABSENT.to_owned(), theme.dim),
        Some(rate) if rate >= 0.01 => (format!("{:.1}%", rate * 100.0), theme.bad),
        Some(rate) if rate > 0.0 => (format!("{:.2}%", rate * 100.0), theme.warn),
        Some(_) => ("0%".to_owned(), theme.text),
    }
}

/// A response time.
pub fn millis(value: Option<f64>) -> String {
    match value {
        None => ABSENT.to_owned(),
        Some(ms) if ms >= 10_000.0 => format!("{:.1} s", ms / 1_000.0),
        Some(ms) => format!("{ms:.0} ms"),
    }
}

/// A number, or the mark for none.
pub fn number<T: std::fmt::Display>(value: Option<T>, unit: &str) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |v| format!("{v}{unit}"))
}

/// Gibibytes as `61.2` or `141`.
pub fn gib(bytes: Bytes) -> String {
    let value = bytes.as_gib_f64();
    if value >= 99.95 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// Used and total as `61.2/80G`.
pub fn memory(memory: Option<MemoryUse>) -> String {
    memory.map_or_else(
        || ABSENT.to_owned(),
        |m| format!("{}/{:.0}G", gib(m.used), m.total.as_gib_f64()),
    )
}

/// The used share of a memory, 0 to 1.
pub fn share(memory: MemoryUse) -> f64 {
    if memory.total == Bytes::ZERO {
        return 0.0;
    }
    memory.used.0 as f64 / memory.total.0 as f64
}

/// Watts of milliwatts.
pub fn watts(milliwatts: Option<u32>) -> String {
    number(milliwatts.map(|m| (m + 500) / 1_000), "W")
}

/// Bytes a second, shortly.
pub fn per_second(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| ABSENT.to_owned(), |b| format!("{}/s", Bytes(b)))
}

/// Speed of a network link, of megabits a second.
pub fn link_speed(megabits: u32) -> String {
    if megabits >= 1_000 && megabits.is_multiple_of(1_000) {
        format!("{} Gbit/s", megabits / 1_000)
    } else {
        format!("{megabits} Mbit/s")
    }
}

/// How a host's clock differs from ours.
pub fn clock(clock: &ClockView) -> String {
    let error_ms = clock.round_trip_us as f64 / 2_000.0;
    // Less than what can be told apart.
    if clock.offset_ms.unsigned_abs() as f64 <= error_ms.max(1.0) {
        return format!("as ours (to {error_ms:.1} ms)");
    }
    let (side, ms) = (if clock.offset_ms > 0 { "ahead" } else { "behind" }, clock.offset_ms);
    let ms = ms.unsigned_abs();
    if ms >= 10_000 {
        let time = crate::api::time::short(std::time::Duration::from_millis(ms));
        format!("{time} {side} of ours")
    } else {
        format!("{ms} ms {side} of ours (to {error_ms:.1} ms)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            memory(Some(MemoryUse { used: Bytes::mib(62_668), total: Bytes::gib(80) })),
            "61.2/80G"
        );
        assert_eq!(memory(None), "–");
        assert_eq!(watts(Some(512_400)), "512W");
        assert_eq!(millis(Some(182.4)), "182 ms");
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(how_long_ago(Timestamp(1_500), Timestamp(1_000)), "just now");
        assert_eq!(how_long_ago(Timestamp(9_500), Timestamp(1_000)), "8s ago");
        assert_eq!(whole(std::time::Duration::from_millis(524)), "0s");
        assert_eq!(whole(std::time::Duration::from_millis(65_524)), "1m05s");
    }

    #[test]
    fn time_left_counts_down_to_nothing() {
        assert_eq!(left(Timestamp(1_000), Timestamp(1_001)), "1s");
        assert_eq!(left(Timestamp(1_000), Timestamp(1_000)), "0s");
        assert_eq!(left(Timestamp(0), Timestamp(125_000)), "2m05s");
    }
}
