//! The processes on the GPUs, with what /proc says about them.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use super::cgroup;
use crate::agent::process;
use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{GpuProcess, ProcessKind};

/// Longest command line that is shown, in characters.
const MAX_COMMAND: usize = 200;

/// Ticks of the processor times in /proc/PID/stat: `USER_HZ`, 100 on every processor gpudeck is
/// built for.
const TICKS_PER_S: f64 = 100.0;

/// What a driver says about a process on one GPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listed {
    /// GPU memory, bytes.
    pub bytes: Option<u64>,
    /// What it does.
    pub kind: Option<ProcessKind>,
    /// Share of the streaming multiprocessors, percent.
    pub sm_percent: Option<u32>,
    /// Share of the video encoder, percent.
    pub encoder_percent: Option<u32>,
    /// Share of the video decoder, percent.
    pub decoder_percent: Option<u32>,
}

/// Describes processes; processor use is against the round before.
#[derive(Debug, Default)]
pub struct ProcessTable {
    /// Of this round.
    now: BTreeMap<u32, Known>,
    /// Of the round before.
    before: BTreeMap<u32, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    host: GpuProcess,
    start_ticks: u64,
    cpu_ticks: u64,
    read: Instant,
}

impl ProcessTable {
    /// A new round begins: who is not described in it is forgotten after it.
    pub fn next_round(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// A process on a GPU. /proc is read once a round, however many GPUs it uses.
    pub fn describe(&mut self, pid: u32, listed: Listed) -> GpuProcess {
        let known = match self.now.get(&pid) {
            Some(known) => known.host.clone(),
            None => {
                let known = read(pid, self.before.get(&pid));
                let host = known.host.clone();
                self.now.insert(pid, known);
                host
            }
        };
        GpuProcess {
            memory: listed.bytes.map(Bytes),
            kind: listed.kind,
            sm_percent: listed.sm_percent,
            encoder_percent: listed.encoder_percent,
            decoder_percent: listed.decoder_percent,
            ..known
        }
    }
}

fn read(pid: u32, before: Option<&Known>) -> Known {
    let stat = process::stat(pid);
    let start_ticks = stat.as_ref().map_or(0, |s| s.start_ticks);
    let cpu_ticks = stat.as_ref().map_or(0, |s| s.cpu_ticks);
    let now = Instant::now();
    // Name, command, user and container do not change while it is the same process.
    let same = before.filter(|b| stat.is_some() && b.start_ticks == start_ticks);
    let mut host = match same {
        Some(known) => known.host.clone(),
        None => identify(pid),
    };
    host.cpu_percent = same.and_then(|b| {
        let seconds = now.duration_since(b.read).as_secs_f64();
        let ticks = cpu_ticks.saturating_sub(b.cpu_ticks);
        #[allow(clippy::cast_possible_truncation)] // a percentage
        let percent = (ticks as f64 / TICKS_PER_S / seconds * 100.0).round() as f32;
        (seconds > 0.05).then_some(percent)
    });
    host.host_memory = resident(pid);
    host.running_s = stat.map(|_| {
        // Start times count from boot as well.
        (process::since_boot_ms() / 1000).saturating_sub(start_ticks / 100)
    });
    Known { host, start_ticks, cpu_ticks, read: now }
}

fn identify(pid: u32) -> GpuProcess {
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let group = cgroup::parse(&group);
    GpuProcess {
        pid,
        name: process::name(pid).into(),
        // The agent puts the name in its place: a name service that hangs is no hung driver.
        user: process::user(pid).map(|uid| uid.to_string().into()),
        command: command(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
            .map(Into::into),
        container: group.container.map(Into::into),
        unit: group.unit.map(Into::into),
        ..GpuProcess::default()
    }
}

fn resident(pid: u32) -> Option<Bytes> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

/// A command line from /proc/PID/cmdline, cleaned and bounded. What looks like a secret is not
/// shown: the value of an option, a variable or a header whose name says so, also where it is within
/// one argument (`sh -c "…"`, `--header "…"`).
fn command(cmdline: &[u8]) -> Option<String> {
    let mut shown = String::new();
    let mut hide = Hide::No;
    for word in cmdline.split(|b| *b == 0).filter(|w| !w.is_empty()) {
        if shown.chars().count() > MAX_COMMAND {
            break;
        }
        if !shown.is_empty() {
            shown.push(' ');
        }
        let word = String::from_utf8_lossy(word.get(..4096).unwrap_or(word));
        if hide == Hide::Next && !word.starts_with('-') {
            shown.push_str("***");
            hide = Hide::No;
            continue;
        }
        // Quotes do not reach from one argument into the next.
        hide = Hide::No;
        for part in word.split_inclusive(char::is_whitespace) {
            hide = show_part(part, hide, &mut shown);
        }
    }
    Some(clean(&shown, MAX_COMMAND)).filter(|c| !c.is_empty())
}

/// What of the next part is a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hide {
    No,
    /// All of it.
    Next,
    /// All up to this quote.
    Until(char),
}

const QUOTES: [char; 2] = ['"', '\''];

/// Shows a part of an argument, which ends with a blank or with the argument; what of the next one is
/// to be hidden.
fn show_part(part: &str, hide: Hide, shown: &mut String) -> Hide {
    let word = part.trim_end();
    let bare = word.trim_matches(QUOTES);
    let next = match hide {
        Hide::Until(quote) if word.ends_with(quote) => return Hide::No,
        Hide::Until(_) => return hide,
        Hide::Next if word.is_empty() => return hide,
        // `Authorization: Bearer …`
        _ if ["bearer", "basic"].iter().any(|scheme| bare.eq_ignore_ascii_case(scheme)) => {
            shown.push_str(word);
            Hide::Next
        }
        Hide::Next if !word.starts_with('-') => hidden(word, shown),
        Hide::Next | Hide::No => {
            // `NAME=value`, `Name:value`, `--header=Name:value`.
            let secret = word.match_indices(['=', ':']).find(|(at, _)| {
                let name = word.get(..*at).unwrap_or_default();
                is_secret(name.trim_matches(QUOTES))
            });
            match secret.and_then(|(at, _)| word.split_at_checked(at + 1)) {
                Some((name, "")) => {
                    shown.push_str(name);
                    Hide::Next
                }
                Some((name, value)) => {
                    shown.push_str(name);
                    hidden(value, shown)
                }
                None => {
                    shown.push_str(word);
                    let option = bare.starts_with('-') && is_secret(bare);
                    if option { Hide::Next } else { Hide::No }
                }
            }
        }
    };
    if word.len() < part.len() {
        shown.push(' ');
    }
    next
}

/// Three stars for a value; one that begins with a quote reaches to the next.
fn hidden(value: &str, shown: &mut String) -> Hide {
    shown.push_str("***");
    let quote = value.chars().next().filter(|c| QUOTES.contains(c));
    let open = |quote: &char| !value.get(1..).unwrap_or_default().contains(*quote);
    quote.filter(open).map_or(Hide::No, Hide::Until)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // `--max-tokens` and `--tokenizer` are no secrets.
    let ends = [
        "key",
        "token",
        "secret",
        "password",
        "passwd",
        "credential",
        "credentials",
        "authorization",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn describes_this_process() {
        let mut table = ProcessTable::default();
        let me = std::process::id();
        let kind = Some(ProcessKind::Compute);
        let listed = Listed { bytes: Some(7), kind, encoder_percent: Some(3), ..Listed::default() };
        let first = table.describe(me, listed);
        assert_eq!((first.pid, first.memory, first.cpu_percent), (me, Some(Bytes(7)), None));
        assert_eq!((first.encoder_percent, first.decoder_percent), (Some(3), None));
        assert!(!first.name.is_empty() && first.command.is_some() && first.user.is_some());
        assert!(first.host_memory.is_some_and(|m| m.0 > 0) && first.running_s.is_some());
        std::thread::sleep(std::time::Duration::from_millis(60));
        table.next_round();
        assert!(table.describe(me, listed).cpu_percent.is_some());

        table.next_round();
        let gone = table.describe(u32::MAX, Listed::default());
        assert_eq!((gone.pid, gone.command, gone.host_memory), (u32::MAX, None, None));
    }

    #[test]
    fn a_command_line_hides_secrets_and_is_bounded() {
        let shown = |words: &[&str]| command(words.join("\0").as_bytes()).unwrap();
        assert_eq!(
            shown(&["vllm", "serve", "--api-key", "s3cret", "--max-tokens", "5"]),
            "vllm serve --api-key *** --max-tokens 5"
        );
        assert_eq!(shown(&["x", "--hf-token=abc", "A_KEY=1"]), "x --hf-token=*** A_KEY=***");
        assert_eq!(shown(&["x", "--use-key", "--flag"]), "x --use-key --flag");
        // Within one argument.
        for (words, wanted) in [
            (
                ["sh", "-c", "vllm serve --api-key S3CRET --port 1"],
                "sh -c vllm serve --api-key *** --port 1",
            ),
            (["sh", "-c", "HF_TOKEN='S3CRET S3CRET' vllm x"], "sh -c HF_TOKEN=*** vllm x"),
            (["sh", "-c", "x --token \"S3CRET\"; y"], "sh -c x --token *** y"),
            (
                ["curl", "--header", "Authorization: Bearer S3CRET"],
                "curl --header Authorization: Bearer ***",
            ),
            (["curl", "--header", "X-Api-Key: S3CRET"], "curl --header X-Api-Key: ***"),
            (["curl", "--header=X-Api-Key:S3CRET", "x"], "curl --header=X-Api-Key:*** x"),
            (
                ["sh", "-c", "curl -H 'Authorization: Basic S3CRET' h"],
                "sh -c curl -H 'Authorization: Basic *** h",
            ),
            (["x", "--max-tokens", "http://a:1/b"], "x --max-tokens http://a:1/b"),
        ] {
            assert_eq!(shown(&words), wanted);
        }
        assert_eq!(shown(&["evil\u{1b}[2J\n", "b"]), "evil  b");
        assert!(shown(&["y".repeat(100_000).as_str()]).chars().count() <= MAX_COMMAND);
        assert_eq!(command(b""), None);
    }
}
