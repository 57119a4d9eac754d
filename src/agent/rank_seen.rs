//! How the process of a rank runs against how it was to be started, from what the kernel shows of it. What is read here
//! may hold keys and stays here: told is only which of the asker's own words are otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use zeroize::Zeroizing;

use super::rank::{RankFile, StatusFile};
use super::reads::FileReads;
use super::state::StateDir;
use crate::wire::{
    ArgumentsSeen, GPU_NUMBERS, GPU_VARIABLES, GpusSeen, RankSeen, RankWanted, VariableSeen,
};

/// Most that is read of a command line or an environment; of a longer one nothing is said.
const MAX_BYTES: usize = 2 << 20;

/// A process that is stuck in the kernel does not show them at all.
const WITHIN: Duration = Duration::from_secs(3);

/// Most arguments that are named.
const MAX_MISSING: usize = 32;

/// Words that a script's interpreter comes with before the script: itself, and one argument.
const INTERPRETER_WORDS: usize = 2;

/// Most GPUs that are told.
const MAX_GPUS: usize = 64;

/// Longest name of a GPU or of an instance of one.
const MAX_GPU_NAME: usize = 80;

/// Compares the process of a rank. None: it does not run, or what it has cannot be known.
pub async fn compare(state: &StateDir, reads: &FileReads, wanted: RankWanted) -> Option<RankSeen> {
    let state = state.clone();
    let name = format!("what runs as {}", wanted.rank);
    let seen = reads.run(&name, WITHIN, move || Ok(compare_now(&state, &wanted))).await;
    seen.ok().flatten()
}

fn compare_now(state: &StateDir, wanted: &RankWanted) -> Option<RankSeen> {
    let dir = state.rank(&wanted.rank);
    let file = RankFile::read(&dir)?;
    let status = StatusFile::read(&dir)?;
    let engine = status.group.engine;
    if status.exit.is_some() || !status.is_of_this_boot() || !engine.is_alive() {
        return None;
    }
    let environ = read(engine.pid, "environ")?;
    // What ends shows nothing any more, and no program has an empty command line: what came before is whole.
    let cmdline = read(engine.pid, "cmdline").filter(|bytes| !bytes.is_empty())?;
    if !engine.is_alive() {
        return None;
    }
    Some(RankSeen {
        arguments: arguments(&wanted.argv, &cmdline),
        variables: variables(&wanted.env, file.gpu_numbers.as_deref(), &environ),
    })
}

/// A file of a process, whole. What it holds is wiped from memory afterwards.
fn read(pid: u32, name: &str) -> Option<Zeroizing<Vec<u8>>> {
    let file = File::open(format!("/proc/{pid}/{name}")).ok()?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= MAX_BYTES).then_some(bytes)
}

/// Compares the arguments. A program may have written a title over them, or have become another program (a script that
/// starts it, with `exec`): then nothing is known of them.
fn arguments(argv: &[String], cmdline: &[u8]) -> Option<ArgumentsSeen> {
    let words: Vec<&[u8]> = cmdline.strip_suffix(b"\0")?.split(|byte| *byte == 0).collect();
    let (program, wanted) = argv.split_first()?;
    // A title is filled up with what ends words.
    let filled = words.iter().rev().take_while(|word| word.is_empty()).count();
    let own = wanted.iter().rev().take_while(|word| word.is_empty()).count();
    if filled > own {
        return None;
    }
    let name = file_name(program.as_bytes());
    let is_program = |word: &[u8]| program == "{gpudeck}" || file_name(word) == name;
    // Itself, or after the interpreter that it names in its first line.
    let starts = words.iter().take(INTERPRETER_WORDS + 1).enumerate();
    let starts: Vec<usize> =
        starts.filter(|(_, word)| is_program(word)).map(|(at, _)| at + 1).collect();
    // Not yet itself: on its way from the supervisor to another user.
    let on_its_way = words.get(1..3) == Some(&[b"agent".as_slice(), b"as-user"]);
    let first = starts.first().copied().filter(|_| !on_its_way)?;
    let after = |start: usize| words.get(start..).unwrap_or_default();
    let is_word = |wanted: &str, seen: &[u8]| wanted == "{gpudeck}" || wanted.as_bytes() == seen;
    let is_same = |seen: &[&[u8]]| {
        seen.len() == wanted.len() && wanted.iter().zip(seen).all(|(w, s)| is_word(w, s))
    };
    if starts.iter().any(|start| is_same(after(*start))) {
        return Some(ArgumentsSeen::default());
    }
    let mut left: Vec<&[u8]> = after(first).to_vec();
    let mut missing = Vec::new();
    for (at, word) in wanted.iter().enumerate() {
        match left.iter().position(|seen| is_word(word, seen)) {
            Some(found) => drop(left.remove(found)),
            None => missing.push(u32::try_from(at + 1).unwrap_or(u32::MAX)),
        }
    }
    let reordered = missing.is_empty() && left.is_empty();
    missing.truncate(MAX_MISSING);
    Some(ArgumentsSeen { missing, more: u32::try_from(left.len()).unwrap_or(u32::MAX), reordered })
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Compares the variables that are asked about: what else is set may be anybody's, and is not told.
fn variables(
    wanted: &BTreeMap<String, String>,
    gpu_numbers: Option<&str>,
    environ: &[u8],
) -> Option<Vec<VariableSeen>> {
    let mut seen: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    if !environ.is_empty() {
        for line in environ.strip_suffix(b"\0")?.split(|byte| *byte == 0) {
            // A title that was written over the arguments can be longer than they were.
            let at = line.iter().position(|byte| *byte == b'=')?;
            let (name, value) = line.split_at_checked(at)?;
            // As programs read them: the first one counts.
            seen.entry(name).or_insert(value.get(1..).unwrap_or_default());
        }
    }
    let mut otherwise = Vec::new();
    for (name, value) in wanted {
        let there = seen.get(name.as_bytes()).copied();
        // The numbers of GPUs are known where the agent that started it has written them down.
        let Some(given) = (if value == GPU_NUMBERS { gpu_numbers } else { Some(value.as_str()) })
        else {
            continue;
        };
        if there == Some(given.as_bytes()) {
            continue;
        }
        let names_gpus = value == GPU_NUMBERS || GPU_VARIABLES.contains(&name.as_str());
        let gpus = match gpus(given.as_bytes()).filter(|_| names_gpus) {
            Some(wanted) => {
                // Who is told nothing sees all of them.
                let seen = there.map_or_else(|| Some(vec!["all".to_owned()]), gpus);
                if seen.as_deref().is_some_and(|seen| are_same(seen, &wanted)) {
                    continue;
                }
                Some(GpusSeen { seen, wanted })
            }
            None => None,
        };
        otherwise.push(VariableSeen { name: name.clone(), is_set: there.is_some(), gpus });
    }
    Some(otherwise)
}

/// In which order they come is no difference.
fn are_same(some: &[String], others: &[String]) -> bool {
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<String>>();
    set(some) == set(others)
}

/// The GPUs in the value of a variable; none: it holds something that is no GPU's name or number.
fn gpus(value: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(value).ok()?;
    let names: Vec<&str> = text.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
    let is_number = |name: &str| name.len() <= 5 && name.bytes().all(|b| b.is_ascii_digit());
    let is_name = |name: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/');
        let by_name = name.starts_with("GPU-") || name.starts_with("MIG-");
        by_name && name.len() <= MAX_GPU_NAME && name.bytes().all(plain)
    };
    let good = names.len() <= MAX_GPUS && names.iter().all(|n| is_number(n) || is_name(n));
    good.then(|| names.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    const SAME: Option<ArgumentsSeen> =
        Some(ArgumentsSeen { missing: Vec::new(), more: 0, reordered: false });

    #[test]
    fn arguments_are_compared_behind_whatever_interpreter() {
        let wanted = argv(&["vllm", "serve", "/m", "--port", "1"]);
        let seen = |cmdline: &str| arguments(&wanted, cmdline.replace(' ', "\0").as_bytes());
        assert_eq!(seen("vllm serve /m --port 1 "), SAME);
        assert_eq!(seen("/venv/bin/python3 /venv/bin/vllm serve /m --port 1 "), SAME);
        assert_eq!(seen("/usr/bin/python3 -s /usr/bin/vllm serve /m --port 1 "), SAME);
        let other = ArgumentsSeen { missing: vec![4], more: 3, reordered: false };
        assert_eq!(seen("python3 /venv/bin/vllm serve /m --port 2 --api-key sk-1 "), Some(other));
        let reordered = ArgumentsSeen { missing: vec![], more: 0, reordered: true };
        assert_eq!(seen("vllm serve --port 1 /m "), Some(reordered));
        let own = argv(&["{gpudeck}", "agent", "{gpudeck}"]);
        assert_eq!(arguments(&own, b"/x/gpudeck-1\0agent\0/x/gpudeck-1\0"), SAME);
    }

    #[test]
    fn of_titles_and_other_programs_nothing_is_said() {
        let wanted = argv(&["vllm", "serve", "/m"]);
        let seen = |cmdline: &[u8]| arguments(&wanted, cmdline);
        assert_eq!(seen(b"vllm: engine core"), None, "it does not end as arguments do");
        assert_eq!(seen(b"VLLM::APIServer\0"), None);
        assert_eq!(seen(b"vllm\0\0\0\0"), None, "filled up");
        assert_eq!(seen(b"/opt/engine\0serve\0/m\0"), None, "another program");
        assert_eq!(seen(b"/x/g\0agent\0as-user\x001000\0--\0vllm\0serve\0/m\0"), None);
        assert_eq!(arguments(&argv(&["{gpudeck}"]), b"/x/g\0agent\0as-user\x001\0"), None);
        assert_eq!(arguments(&argv(&["x", ""]), b"x\0\0"), SAME, "an empty one of its own");
    }

    #[test]
    fn variables_are_told_by_name_and_only_those_that_were_asked_about() {
        let environ = b"KEY=sk-1\0MODE=b\0MODE=a\0PATH=/bin\0EMPTY=\0BYTES=\xff\x1b[2J\0";
        let told = |name: &str, value: &str| {
            let wanted = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            variables(&wanted, None, environ).unwrap().pop()
        };
        let otherwise =
            |name: &str, is_set| Some(VariableSeen { name: name.to_owned(), is_set, gpus: None });
        assert_eq!(told("MODE", "b"), None);
        assert_eq!(told("EMPTY", ""), None);
        assert_eq!(told("MODE", "a"), otherwise("MODE", true));
        assert_eq!(told("BYTES", "x"), otherwise("BYTES", true));
        assert_eq!(told("LACKS", ""), otherwise("LACKS", false));
        let nothing = BTreeMap::new();
        assert_eq!(variables(&nothing, None, environ), Some(vec![]));
        let mode = BTreeMap::from([("MODE".to_owned(), "b".to_owned())]);
        for title in [&b"\0\0\0"[..], b"le of a program\0MODE=b\0", b"MODE=b\0\0", b"MODE=b"] {
            assert_eq!(variables(&mode, None, title), None, "{title:?}");
        }
        assert_eq!(variables(&mode, None, b""), Some(vec![otherwise("MODE", false).unwrap()]));
    }

    #[test]
    fn gpus_are_told_by_name_and_nothing_else_is() {
        let told = |value: &str, numbers: Option<&str>, environ: &str| {
            let wanted = BTreeMap::from([("CUDA_VISIBLE_DEVICES".to_owned(), value.to_owned())]);
            variables(&wanted, numbers, environ.as_bytes()).unwrap().pop().map(|v| v.gpus.unwrap())
        };
        let seen = |seen: Option<&[&str]>, wanted: &[&str]| {
            Some(GpusSeen { seen: seen.map(argv), wanted: argv(wanted) })
        };
        let is = |value: &str| format!("CUDA_VISIBLE_DEVICES={value}\0");
        assert_eq!(told("GPU-1,GPU-2", None, &is("GPU-2, GPU-1")), None);
        assert_eq!(told("GPU-1", None, &is("0")), seen(Some(&["0"]), &["GPU-1"]));
        assert_eq!(told("", None, "A=b\0"), seen(Some(&["all"]), &[]));
        assert_eq!(told("GPU-1", None, &is("sk-secret")), seen(None, &["GPU-1"]));
        assert_eq!(told(GPU_NUMBERS, Some("0,3"), &is("0,3")), None);
        assert_eq!(told(GPU_NUMBERS, Some("0,3"), &is("")), seen(Some(&[]), &["0", "3"]));
        assert_eq!(told(GPU_NUMBERS, None, &is("5")), None, "not known");
    }
}
