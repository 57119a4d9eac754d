//! What it means to promote, abort or stop something, in words: what a person reads before saying yes.

use crate::api::{Condition, Group, GroupState, Phase, Rollout, ServiceName, ServiceView};

use super::show::step_words;

/// The rollout under way.
pub fn under_way(view: &ServiceView) -> Option<&Rollout> {
    view.rollout.as_ref().filter(|rollout| rollout.outcome.is_none())
}

/// What a stop does; nothing where nothing runs and none of several services waits for its turn, or where another
/// controller runs it: that is refused whatever the answer is.
pub fn stop(view: &ServiceView, group: Option<&Group>) -> Vec<String> {
    let name = &view.name;
    let running = view.replicas.iter().filter(|r| r.phase != Phase::Stopped).count();
    let rollout = under_way(view);
    if view.condition == Condition::Elsewhere {
        return Vec::new();
    }
    let left_out = group.and_then(|group| left_out(group, name));
    if running == 0 && rollout.is_none() {
        return left_out.into_iter().collect();
    }
    let all = match running {
        1 => format!("the only replica of {name} is"),
        n => format!("all {n} replicas of {name} are"),
    };
    let mut words = vec![match (running, view.ready) {
        (0, _) => format!("No replica of {name} runs."),
        (_, 0) => format!("None is ready now; {all} drained and stopped."),
        (_, ready) => {
            format!("▲ OUTAGE: {all} drained and stopped; {ready} ready now.")
        }
    }];
    words.extend(rollout.map(|r| format!("The rollout to {} ends with it.", r.to)));
    words.extend(withdrawn(view));
    words.extend(left_out);
    words.push("Nothing serves it afterwards, until it is applied again.".to_owned());
    words
}

/// What a stop means for services that are rolled out together, of which this one waits for its turn.
fn left_out(group: &Group, service: &ServiceName) -> Option<String> {
    let waits = |state: &GroupState| matches!(state, GroupState::Waiting);
    let is_one = group.services.iter().any(|e| e.service == *service && waits(&e.state));
    if group.ended.is_some() || !is_one {
        return None;
    }
    let others = if group.atomic { "; the others are taken back" } else { "" };
    Some(format!(
        "{service} is not begun yet; it is left out of the services that are rolled out together{others}."
    ))
}

/// What a promotion does: of everything that is left, or of the step with this index.
pub fn promote(view: &ServiceView, rollout: &Rollout, all: bool, step: usize) -> Vec<String> {
    let from = rollout.from.map_or_else(|| "nothing".to_owned(), |from| from.to_string());
    let mut words = vec![format!("{}: {from} → {}", view.name, rollout.to)];
    if all {
        let last = view.steps.len().saturating_sub(1);
        let left = view.steps.get(rollout.step.min(last)..last).unwrap_or_default();
        words.push(if left.is_empty() {
            "Nothing is left to skip.".to_owned()
        } else {
            format!("Skips all that is left, gates and analyses too: {}.", left.join(", "))
        });
        words.push("Every replica is replaced.".to_owned());
    } else {
        words.push(format!("Passes {}.", step_words(&view.steps, step)));
    }
    words.extend(pause_that_ends(rollout).map(|pause| format!("▲ It also ends the pause{pause}.")));
    words
}

/// What an abort does.
pub fn abort(view: &ServiceView, rollout: &Rollout) -> Vec<String> {
    let mut words = match rollout.from {
        Some(from) => vec![
            format!(
                "Takes the rollout of {} to {} back: {from} is served again by all replicas.",
                view.name, rollout.to
            ),
            "Stable is scaled back first, then the new release is drained.".to_owned(),
        ],
        None => vec![
            format!(
                "The rollout of {} to {} is its first one: there is nothing to go back to.",
                view.name, rollout.to
            ),
            "What was started is stopped.".to_owned(),
        ],
    };
    words.extend(withdrawn(view));
    words
}

/// What an abort of services that are rolled out together does.
pub fn abort_together(group: &Group) -> Vec<String> {
    let named = |of: &dyn Fn(&GroupState) -> bool| {
        let names = group.services.iter().filter(|entry| of(&entry.state));
        names.map(|entry| entry.service.to_string()).collect::<Vec<_>>().join(", ")
    };
    let back = named(&|state| {
        matches!(state, GroupState::Rolling { .. })
            || (group.atomic && matches!(state, GroupState::Done { .. }))
    });
    let waiting = named(&|state| matches!(state, GroupState::Waiting));
    let stay = named(&|state| !group.atomic && matches!(state, GroupState::Done { .. }));
    let told = [("Taken back", back), ("Not begun", waiting), ("Stays as rolled out", stay)];
    let told = told.into_iter().filter(|(_, names)| !names.is_empty());
    told.map(|(what, names)| format!("{what}: {names}.")).collect()
}

fn withdrawn(view: &ServiceView) -> Option<String> {
    let queued = view.queued.as_ref()?;
    Some(format!("What {} queued ({}) does not begin.", queued.by, queued.what()))
}

/// Whose pause ends with it, and what it was for: ` of ada (wait for ops)`.
pub fn pause_that_ends(rollout: &Rollout) -> Option<String> {
    rollout.paused?;
    let by = rollout.paused_by.as_ref().map(|by| format!(" of {by}")).unwrap_or_default();
    let why = rollout.paused_why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    Some(format!("{by}{why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::tui::fixture::{calm, rich};

    fn rolling() -> ServiceView {
        rich().services.into_values().find(|view| under_way(view).is_some()).unwrap()
    }

    #[test]
    fn a_stop_says_how_many_and_that_it_is_an_outage() {
        let mut view = calm().services.into_values().find(|s| s.ready > 1).unwrap();
        let n = view.replicas.len();
        let words = stop(&view, None);
        let begin = format!("▲ OUTAGE: all {n} replicas of {} are drained", view.name);
        assert!(words[0].starts_with(&begin), "{words:?}");
        view.ready = 0;
        assert!(!stop(&view, None)[0].contains("OUTAGE"), "nothing is lost by it");
        view.condition = Condition::Elsewhere;
        assert_eq!(stop(&view, None), Vec::<String>::new());
        (view.condition, view.rollout) = (Condition::Stopped, None);
        view.replicas.clear();
        assert_eq!(stop(&view, None), Vec::<String>::new());
    }

    #[test]
    fn a_stop_of_one_that_waits_for_its_turn_says_what_becomes_of_the_others() {
        let mut view = calm().services.into_values().next().unwrap();
        (view.condition, view.rollout) = (Condition::Stopped, None);
        view.replicas.clear();
        let mut group: Group = serde_json::from_value(serde_json::json!({
            "services": [
                { "service": view.name, "after": [], "state": { "state": "waiting" }, "since": 0 },
            ],
            "atomic": false, "by": "ada", "reason": null, "accept_outage": false, "began": 0,
            "ended": null,
        }))
        .unwrap();
        let words = stop(&view, Some(&group));
        assert!(words[0].ends_with("rolled out together."), "{words:?}");
        group.atomic = true;
        let words = stop(&view, Some(&group));
        assert!(words[0].ends_with("together; the others are taken back."), "{words:?}");
        group.ended = Some(crate::api::Timestamp(1));
        assert_eq!(stop(&view, Some(&group)), Vec::<String>::new());
    }

    #[test]
    fn a_promotion_names_what_is_skipped_and_whose_pause_ends() {
        let mut view = rolling();
        view.steps = ["weight 10 %", "analyse default", "all replicas"].map(str::to_owned).to_vec();
        let mut rollout = view.rollout.take().unwrap();
        (rollout.step, rollout.paused) = (1, None);
        let words = promote(&view, &rollout, true, 1);
        assert!(words[1].ends_with("gates and analyses too: analyse default."), "{words:?}");
        let words = promote(&view, &rollout, false, 1);
        assert_eq!(words[1..], ["Passes step 2 of 3: analyse default."]);
        rollout.paused = Some(crate::api::Timestamp(0));
        rollout.paused_by = Some("ada".to_owned());
        rollout.paused_why = None;
        let words = promote(&view, &rollout, false, 1);
        assert_eq!(words[2], "▲ It also ends the pause of ada.");
    }

    #[test]
    fn an_abort_says_what_comes_back() {
        let view = rolling();
        let mut rollout = view.rollout.clone().unwrap();
        let from = rollout.from.unwrap();
        assert!(abort(&view, &rollout)[0].contains(&format!(": {from} is served again")));
        rollout.from = None;
        assert!(abort(&view, &rollout)[0].ends_with("there is nothing to go back to."));
    }

    #[test]
    fn an_abort_of_several_says_what_becomes_of_each() {
        let group = |atomic: bool| -> Group {
            let entry = |service: &str, state: serde_json::Value| serde_json::json!({ "service": service, "after": [], "state": state, "since": 0 });
            serde_json::from_value(serde_json::json!({
                "services": [
                    entry("a", serde_json::json!({ "state": "done", "release": 1, "before": null })),
                    entry("b", serde_json::json!({ "state": "rolling", "release": 2 })),
                    entry("c", serde_json::json!({ "state": "waiting" })),
                ],
                "atomic": atomic, "by": "ada", "reason": null, "accept_outage": false, "began": 0,
                "ended": null,
            }))
            .unwrap()
        };
        assert_eq!(
            abort_together(&group(false)),
            ["Taken back: b.", "Not begun: c.", "Stays as rolled out: a."]
        );
        assert_eq!(abort_together(&group(true)), ["Taken back: a, b.", "Not begun: c."]);
    }
}
