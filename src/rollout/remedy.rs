//! The smallest change that would make a plan possible: candidates are tried with the same rehearsal,
//! the first of each kind that works is told.

use std::cmp::Ordering;

use super::count;
use super::forecast::{Forecast, Timings};
use super::rehearsal;
use super::release::Release;
use super::state::{RolloutKind, ServiceState};
use crate::base::DeviceId;
use crate::spec::{Count, StepSpec, Strategy};

/// For a rollout that would stand still.
pub(super) fn for_standstill(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
) -> Option<String> {
    let desired = release.spec.replicas.get();
    let less_ready = sizes(1, desired).find_map(|unavailable| {
        let mut changed = release.clone();
        changed.spec.rollout.max_unavailable = Count::Number(unavailable);
        let forecast = attempt(state, &changed, kind)?;
        let outage = if forecast.outage { ", an OUTAGE" } else { "" };
        let ready = forecast.lowest_ready;
        Some(match forecast.lowest_serving() {
            serving if serving < ready => format!(
                "set max_unavailable = {unavailable} (then only {serving} of {desired} get requests at times)"
            ),
            _ => format!(
                "set max_unavailable = {unavailable} (then {ready} of {desired} stay ready{outage})"
            ),
        })
    });
    let scaled = scaled(state, release, kind);
    let rolling = rolling(state, release, kind, |_| true);
    // Beside a strategy that changes all replicas at once `max_unavailable` says nothing.
    let less_ready = less_ready.filter(|_| rolling.is_none());
    joined([scaled, rolling, less_ready, freed(state, release, kind, |_| true)])
}

/// For a rollout in which the service stops serving.
pub(super) fn for_outage(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
) -> Option<String> {
    let desired = release.spec.replicas.get();
    let more_ready =
        sizes(1, desired.saturating_sub(1)).collect::<Vec<_>>().into_iter().rev().find_map(
            |unavailable| {
                let mut changed = release.clone();
                changed.spec.rollout.max_unavailable = Count::Number(unavailable);
                let forecast = attempt(state, &changed, kind).filter(|f| !f.outage)?;
                Some(format!(
                    "set max_unavailable = {unavailable} (then {} of {desired} stay ready)",
                    forecast.lowest_ready
                ))
            },
        );
    if let Some(rolling) = rolling(state, release, kind, |f| !f.outage) {
        return Some(rolling);
    }
    joined([None, None, more_ready, freed(state, release, kind, |f| !f.outage)])
}

/// What if one `scale` were another number (the nearest that works; the other scales stay in order), or
/// left out, so that the canary's size follows from its weight?
fn scaled(state: &ServiceState, release: &Release, kind: RolloutKind) -> Option<String> {
    let desired = release.spec.replicas.get();
    let scales: Vec<(usize, Count)> = scales(&release.spec.rollout.steps).collect();
    let works = |steps: Vec<StepSpec>| {
        let mut changed = release.clone();
        changed.spec.rollout.steps = steps;
        attempt(state, &changed, kind).is_some_and(|f| !f.outage)
    };
    scales.iter().find_map(|(index, written)| {
        let present = count::scale(*written, desired);
        let mut others: Vec<u32> = sizes(1, desired).filter(|n| *n != present).collect();
        others.sort_by_key(|n| (n.abs_diff(present), *n));
        let other = others.into_iter().find(|n| {
            let mut steps = release.spec.rollout.steps.clone();
            for (at, scale) in &scales {
                let size = count::scale(*scale, desired);
                let size = match at.cmp(index) {
                    Ordering::Less => size.min(*n),
                    Ordering::Equal => *n,
                    Ordering::Greater => size.max(*n),
                };
                steps.splice(*at..=*at, [StepSpec::Scale(Count::Number(size))]);
            }
            works(steps)
        });
        if let Some(n) = other {
            return Some(format!("write scale = {n} instead of scale = {written}"));
        }
        let mut steps = release.spec.rollout.steps.clone();
        steps.remove(*index);
        works(steps).then(|| {
            format!("leave out scale = {written} (the canary is then as large as its weight)")
        })
    })
}

fn scales(steps: &[StepSpec]) -> impl Iterator<Item = (usize, Count)> {
    steps.iter().enumerate().filter_map(|(index, step)| match step {
        StepSpec::Scale(scale) => Some((index, *scale)),
        _ => None,
    })
}

/// What if a strategy that changes all replicas at once were left out?
fn rolling(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
    good: impl Fn(&Forecast) -> bool,
) -> Option<String> {
    let strategy = release.spec.rollout.effective_strategy();
    if !matches!(strategy, Strategy::BlueGreen | Strategy::Recreate) {
        return None;
    }
    let mut changed = release.clone();
    let rollout = &mut changed.spec.rollout;
    rollout.strategy = Some(Strategy::Rolling);
    rollout.steps.clear();
    let forecast = attempt(state, &changed, kind).filter(|f| good(f))?;
    let outage = if forecast.outage { ", an OUTAGE" } else { "" };
    let desired = release.spec.replicas;
    Some(format!(
        "set strategy = \"rolling\" (then {} of {desired} stay ready{outage})",
        forecast.lowest_ready
    ))
}

fn attempt(state: &ServiceState, release: &Release, kind: RolloutKind) -> Option<Forecast> {
    rehearsal::run(state, release, kind, &Timings::default()).ok()
}

fn joined(changes: [Option<String>; 4]) -> Option<String> {
    let found: Vec<String> = changes.into_iter().flatten().collect();
    (!found.is_empty()).then(|| found.join(", or "))
}

/// Numbers to try: small ones one by one, then powers of two, to bound the work for large services.
fn sizes(from: u32, to: u32) -> impl Iterator<Item = u32> {
    (from..=to).filter(move |n| *n <= 16 || n.is_power_of_two() || *n == to)
}

/// What if the first `n` replicas had spare GPUs on their hosts?
fn freed(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
    good: impl Fn(&Forecast) -> bool,
) -> Option<String> {
    let gpus = release.replicas.first()?.gpus().count();
    if gpus == 0 {
        return None;
    }
    let most = u32::try_from(release.replicas.len()).unwrap_or(u32::MAX);
    let n = sizes(1, most).find(|n| {
        let mut changed = release.clone();
        let take = usize::try_from(*n).unwrap_or(usize::MAX);
        for (index, plan) in changed.replicas.iter_mut().enumerate().take(take) {
            for (rank, plan) in plan.ranks.iter_mut().enumerate() {
                for (at, device) in plan.devices.iter_mut().enumerate() {
                    // No driver gives a GPU this name.
                    *device = DeviceId::Gpu(format!("spare {index} {rank} {at}"));
                }
            }
        }
        attempt(state, &changed, kind).is_some_and(|f| good(&f))
    })?;
    let s = if gpus == 1 { "" } else { "s" };
    Some(match n {
        1 => format!("have {gpus} spare GPU{s} on one host"),
        n => format!("have {gpus} spare GPU{s} on one host for each of {n} replicas"),
    })
}
