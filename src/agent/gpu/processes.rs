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
        user: process::user(pid).map(Into::into),
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
/// shown: the value of an option whose name says so.
fn command(cmdline: &[u8]) -> Option<String> {
    let mut shown = String::new();
    let mut hide_next = false;
    for word in cmdline.split(|b| *b == 0).filter(|w| !w.is_empty()) {
        if shown.chars().count() > MAX_COMMAND {
            break;
        }
        if !shown.is_empty() {
            shown.push(' ');
        }
        let word = String::from_utf8_lossy(word.get(..4096).unwrap_or(word));
        if std::mem::take(&mut hide_next) && !word.starts_with('-') {
            shown.push_str("***");
            continue;
        }
        match word.split_once('=') {
            Some((name, _)) if is_secret(name) => {
                shown.push_str(name);
                shown.push_str("=***");
            }
            Some(_) => shown.push_str(&word),
            None => {
                hide_next = word.starts_with('-') && is_secret(&word);
                shown.push_str(&word);
            }
        }
    }
    Some(clean(&shown, MAX_COMMAND)).filter(|c| !c.is_empty())
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // `--max-tokens` and `--tokenizer` are no secrets.
    let ends = ["key", "token", "secret", "password", "passwd", "credential", "credentials"];
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
        assert_eq!(shown(&["evil\u{1b}[2J\n", "b"]), "evil  b");
        assert!(shown(&["y".repeat(100_000).as_str()]).chars().count() <= MAX_COMMAND);
        assert_eq!(command(b""), None);
    }
}
