//! How a rank that runs differs from its release, in words that hold no value of a variable, and no argument that is
//! not the release's own. Pure.

use std::collections::BTreeSet;

use crate::wire::{ArgumentsSeen, GpusSeen, RankSeen, RankWanted};

/// Most arguments that are named.
const NAMED: usize = 4;

/// What of a rank differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Arguments of its process.
    Command(String),
    /// Variables.
    Environment(String),
    /// GPUs.
    Devices(String),
    /// Paths.
    Mounts(String),
}

/// Variables by name, and whether each is set at all.
pub(super) fn environment<'a>(
    otherwise: impl IntoIterator<Item = (&'a str, bool)>,
) -> Option<Difference> {
    let words = otherwise.into_iter().map(|(name, is_set)| {
        let how = if is_set { "has another value" } else { "is not set" };
        format!("{name} {how}")
    });
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then(|| Difference::Environment(words.join(", ")))
}

/// GPUs that are not those it is to have.
pub(super) fn devices(seen: &BTreeSet<String>, wanted: &BTreeSet<String>) -> Option<Difference> {
    let list = |gpus: &BTreeSet<String>| {
        let names: Vec<&str> = gpus.iter().map(String::as_str).collect();
        if names.is_empty() { "no GPU".to_owned() } else { names.join(", ") }
    };
    let words = || Difference::Devices(format!("has {}, not {}", list(seen), list(wanted)));
    (seen != wanted).then(words)
}

/// What the host of a process tells of it.
pub(super) fn of_process(wanted: &RankWanted, seen: &RankSeen) -> Vec<Difference> {
    let arguments = seen.arguments.as_ref().and_then(|seen| arguments(&wanted.argv, seen));
    let mut out: Vec<Difference> =
        arguments.map(|words| Difference::Command(format!("runs {words}"))).into_iter().collect();
    // What was not asked about is nobody's answer.
    let asked = seen.variables.iter().flatten().filter(|v| wanted.env.contains_key(&v.name));
    let (gpus, plain): (Vec<_>, Vec<_>) = asked.partition(|variable| variable.gpus.is_some());
    out.extend(environment(plain.into_iter().map(|v| (v.name.as_str(), v.is_set))));
    out.extend(gpus.into_iter().filter_map(|v| v.gpus.as_ref()).find_map(of_gpus));
    out
}

fn of_gpus(gpus: &GpusSeen) -> Option<Difference> {
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<String>>();
    let something = || BTreeSet::from(["what names no GPU".to_owned()]);
    devices(&gpus.seen.as_deref().map_or_else(something, set), &set(&gpus.wanted))
}

fn arguments(argv: &[String], seen: &ArgumentsSeen) -> Option<String> {
    let lacks: Vec<String> = seen.missing.iter().filter_map(|at| argument(argv, *at)).collect();
    let mut words = Vec::new();
    if !lacks.is_empty() {
        let more = lacks.len().saturating_sub(NAMED);
        let mut named = lacks.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if more > 0 {
            named = format!("{named} and {more} more");
        }
        words.push(format!("without {named}"));
    }
    match seen.more {
        0 => {}
        1 => words.push("with 1 argument that its release does not have".to_owned()),
        more => words.push(format!("with {more} arguments that its release does not have")),
    }
    if seen.reordered {
        words.push("with its arguments in another order".to_owned());
    }
    (!words.is_empty()).then(|| words.join(", "))
}

/// An argument of the release, with the option before it whose value it is.
fn argument(argv: &[String], at: u32) -> Option<String> {
    let at = usize::try_from(at).ok()?;
    let word = argv.get(at)?;
    let is_option = |word: &&String| word.starts_with('-');
    let option = at.checked_sub(1).filter(|at| *at > 0).and_then(|at| argv.get(at));
    Some(match option.filter(|_| !word.starts_with('-')).filter(is_option) {
        Some(option) => format!("`{option} {word}`"),
        None => format!("`{word}`"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::wire::VariableSeen;

    fn wanted() -> RankWanted {
        let rank = crate::base::RankId {
            deck: crate::base::DeckId(uuid::Uuid::from_u128(1)),
            service: "chat".parse().unwrap(),
            release_id: crate::base::ReleaseId(uuid::Uuid::from_u128(2)),
            replica: "r1-0-a1".parse().unwrap(),
            rank: 0,
        };
        let argv = ["vllm", "serve", "--port", "1", "--fast"].map(str::to_owned).to_vec();
        let env = ["MODE", "CUDA_VISIBLE_DEVICES"].map(|name| (name.to_owned(), "a".to_owned()));
        RankWanted { rank, argv, env: BTreeMap::from(env) }
    }

    #[test]
    fn what_is_not_known_is_no_difference() {
        assert_eq!(of_process(&wanted(), &RankSeen::default()), []);
        let same = RankSeen { arguments: Some(ArgumentsSeen::default()), variables: Some(vec![]) };
        assert_eq!(of_process(&wanted(), &same), []);
    }

    #[test]
    fn each_part_is_told_in_the_words_of_the_release() {
        let variable = |name: &str, is_set, gpus: Option<GpusSeen>| VariableSeen {
            name: name.to_owned(),
            is_set,
            gpus,
        };
        let gpus = GpusSeen { seen: Some(vec!["0".to_owned()]), wanted: vec!["GPU-1".to_owned()] };
        let seen = RankSeen {
            arguments: Some(ArgumentsSeen { missing: vec![3, 4, 99], more: 2, reordered: false }),
            variables: Some(vec![
                variable("MODE", true, None),
                variable("FOREIGN", true, None),
                variable("CUDA_VISIBLE_DEVICES", true, Some(gpus)),
            ]),
        };
        let command =
            "runs without `--port 1`, `--fast`, with 2 arguments that its release does not have";
        assert_eq!(
            of_process(&wanted(), &seen),
            [
                Difference::Command(command.to_owned()),
                Difference::Environment("MODE has another value".to_owned()),
                Difference::Devices("has 0, not GPU-1".to_owned()),
            ]
        );
        let nothing = GpusSeen { seen: None, wanted: vec![] };
        let variables = Some(vec![variable("CUDA_VISIBLE_DEVICES", true, Some(nothing))]);
        let words = of_process(&wanted(), &RankSeen { arguments: None, variables });
        assert_eq!(words, [Difference::Devices("has what names no GPU, not no GPU".to_owned())]);
    }
}
