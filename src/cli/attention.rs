//! What `status` tells below its table: rollouts and what they wait for, and hosts that a person must see to.

use super::hosts::gpus_note;
use super::show::{held, step_words};
use crate::api::{Gate, Gpus, HostView, Outcome, Rollout, ServiceView, UpgradeHost, text};

/// Longest line.
const MAX_WORDS: usize = 400;

/// A line for the rollout under way, for the one that failed and left nothing, and for what is queued.
pub fn of_service(view: &ServiceView) -> Vec<String> {
    let name = &view.name;
    let mut lines = Vec::new();
    if let Some(rollout) = view.rollout.as_ref().filter(|r| r.outcome.is_none()) {
        let from = rollout.from.map_or_else(|| "nothing".to_owned(), |from| from.to_string());
        let held = held(name, rollout).map(|held| format!("; {held}")).unwrap_or_default();
        let step = step_words(&view.steps, rollout.step);
        let mark = if needs_a_person(rollout) { "!" } else { "·" };
        lines.push(format!("{mark} {name}: {from} → {}, {step}{held}", rollout.to));
    }
    lines.extend(first_failed(view).map(|words| format!("! {name}: {words}")));
    if let Some(queued) = &view.queued {
        let why = queued.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        lines.push(format!("· {name}: queued by {}: {}{why}", queued.by, queued.what()));
    }
    if let Some(why) = &view.queue_trouble {
        lines.push(format!("! {name}: the queued rollout did not begin: {why}"));
    }
    lines.iter().map(|line| text::clean(line, MAX_WORDS)).collect()
}

/// Whether it goes on only when somebody says how.
fn needs_a_person(rollout: &Rollout) -> bool {
    let gate = rollout.gate.as_ref();
    rollout.paused.is_some()
        || gate.is_some_and(|gate| {
            matches!(gate, Gate::Approve | Gate::Inconclusive { .. } | Gate::Failed { .. })
        })
}

/// That the last rollout came to nothing by itself, and there was nothing to go back to. Who aborted it knows.
pub fn first_failed(view: &ServiceView) -> Option<String> {
    let rollout = view.rollout.as_ref().filter(|_| view.stable.is_none())?;
    let outcome = rollout.outcome.as_ref()?;
    if matches!(outcome, Outcome::Completed | Outcome::Aborted { .. }) {
        return None;
    }
    // Who stopped it since then knows.
    if view.history.iter().any(|r| r.stop.as_ref().is_some_and(|stop| stop.at >= rollout.began)) {
        return None;
    }
    Some(format!(
        "the rollout to {}, with nothing before it, {}; nothing is served (`gpudeck rollout retry {}`)",
        rollout.to,
        outcome.text(),
        view.name
    ))
}

/// What is wrong with a host that only a person can mend.
pub fn of_host(host: &HostView) -> Option<String> {
    let mut words = Vec::new();
    if let Some(UpgradeHost::Failed { why }) = &host.maintenance.upgrade {
        let retry = format!("`gpudeck hosts upgrade --retry {}`", host.name);
        words.push(format!("UPGRADE FAILED: {why} ({retry})"));
    }
    if let Some(sample) = &host.sample
        && matches!(sample.gpus, Gpus::Hung { .. })
    {
        let read = sample.gpu_trouble.as_ref().map(|why| format!("GPUs NOT READ: {why}"));
        words.push(read.unwrap_or_else(|| "DRIVER HUNG".to_owned()));
    }
    words.extend(gpus_note(host));
    let line = format!("! {}: {}", host.name, words.join("; "));
    (!words.is_empty()).then(|| text::clean(&line, MAX_WORDS))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tui::fixture::rich;

    fn rolling() -> ServiceView {
        let under_way = |s: &ServiceView| s.rollout.as_ref().is_some_and(|r| r.outcome.is_none());
        rich().services.into_values().find(under_way).unwrap()
    }

    #[test]
    fn a_held_rollout_says_from_where_to_where_and_what_it_waits_for() {
        let mut view = rolling();
        let rollout = view.rollout.as_mut().unwrap();
        (rollout.paused, rollout.gate) = (None, Some(Gate::Approve));
        let way = format!("{}: {} → {}, step ", view.name, rollout.from.unwrap(), rollout.to);
        let line = of_service(&view).remove(0);
        assert!(line.starts_with(&format!("! {way}")), "{line}");
        assert!(line.ends_with("; waits for approval: promote or abort"), "{line}");
        view.rollout.as_mut().unwrap().gate = None;
        let line = of_service(&view).remove(0);
        assert!(line.starts_with(&format!("· {way}")), "{line}");
    }

    #[test]
    fn a_first_rollout_that_failed_is_told_and_one_that_somebody_ended_is_not() {
        let mut view = rolling();
        view.stable = None;
        view.history.iter_mut().for_each(|release| release.stop = None);
        let rollout = view.rollout.as_mut().unwrap();
        rollout.outcome = Some(Outcome::Failed { why: "exit code 1".to_owned() });
        let at = rollout.began;
        let lines = of_service(&view);
        assert!(
            lines.iter().any(|l| l.contains("failed: exit code 1; nothing is served")),
            "{lines:?}"
        );
        let mut aborted = view.clone();
        aborted.rollout.as_mut().unwrap().outcome =
            Some(Outcome::Aborted { why: "ada".to_owned() });
        assert_eq!(first_failed(&aborted), None);
        let release = view.history.first_mut().unwrap();
        release.stop = Some(crate::api::Stop {
            release: release.number,
            at,
            by: "ada".to_owned(),
            reason: None,
        });
        assert_eq!(first_failed(&view), None);
    }

    #[test]
    fn a_host_that_needs_somebody_is_named() {
        let mut host = rich().hosts.into_values().find(|h| !h.ranks.is_empty()).unwrap();
        let mut sample = crate::api::HostSample::clone(host.sample.as_ref().unwrap());
        sample.gpus = Gpus::Hung { for_ms: 9_000 };
        sample.gpu_trouble = None;
        host.sample = Some(sample.into());
        host.maintenance.upgrade = Some(UpgradeHost::Failed { why: "exit code 1".to_owned() });
        let line = of_host(&host).unwrap();
        assert!(line.contains("UPGRADE FAILED: exit code 1"), "{line}");
        assert!(line.ends_with("; DRIVER HUNG"), "{line}");
    }
}
