//! Processes as /proc shows them: who is who, whether a pid is still the same process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::base::text::clean;

/// What /proc/PID/stat says that is of use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcStat {
    /// Pid.
    pub pid: u32,
    /// Command name as the kernel cut it.
    pub comm: String,
    /// `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Parent.
    pub ppid: u32,
    /// Session.
    pub session: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Processor time it has had, in clock ticks.
    pub cpu_ticks: u64,
}

impl ProcStat {
    /// It has ended and only waits to be reaped.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Reads a line of /proc/PID/stat (proc(5)); the name in it may hold blanks and brackets.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let (pid, comm) = head.split_once('(')?;
        let mut fields = tail.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        // utime and stime are fields 14 and 15 of the line; 6 fields are behind us.
        let user: u64 = fields.nth(7)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        // start time is field 22.
        let start_ticks = fields.nth(6)?.parse().ok()?;
        Some(Self {
            pid: pid.trim().parse().ok()?,
            comm: comm.to_owned(),
            state,
            ppid: parent,
            session,
            start_ticks,
            cpu_ticks: user.saturating_add(system),
        })
    }
}

/// A process that is not mistaken for another one with the same pid (within one boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|s| Self { pid, start_ticks: s.start_ticks })
    }

    /// It lives (a zombie does not).
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|s| s.start_ticks == self.start_ticks && !s.is_dead())
    }
}

/// What /proc says about a pid; `None` if there is no such process.
pub fn stat(pid: u32) -> Option<ProcStat> {
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    ProcStat::parse(&String::from_utf8_lossy(&bytes))
}

/// All processes that can be seen.
pub fn all() -> Vec<ProcStat> {
    pids().filter_map(stat).collect()
}

/// All pids that can be seen.
pub fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// `program` as a file that can be started: where it is this program and its file is gone (cleaned away, or removed by
/// somebody), what runs here, which the kernel keeps.
pub fn startable(program: &Path) -> PathBuf {
    let running = Path::new("/proc/self/exe");
    let is_gone = fs::read_link(running).is_ok_and(|link| {
        let mut deleted = program.as_os_str().to_owned();
        deleted.push(DELETED);
        link == deleted
    });
    if is_gone && !program.exists() { running.to_owned() } else { program.to_owned() }
}

/// The file of this program; see [`startable`].
///
/// # Errors
/// The kernel does not say.
pub fn own_program() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.to_str().and_then(|own| own.strip_suffix(DELETED)).map(PathBuf::from);
    Ok(path.map_or(own, |path| startable(&path)))
}

/// What the kernel adds to the path of a running program whose file is gone.
const DELETED: &str = " (deleted)";

/// Changes with every boot; empty if the kernel does not say.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        clean(text.trim(), 64)
    })
}

/// Milliseconds since boot, suspended time included.
pub fn since_boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or_default();
    seconds * 1000 + millis
}

/// The wall clock.
pub fn now() -> crate::base::Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since_epoch.unwrap_or_default().as_millis();
    crate::base::Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// Command name of a process, cleaned; empty if it is gone.
pub fn name(pid: u32) -> String {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let comm = stat(pid).map(|s| s.comm).unwrap_or_default();
    name_of(&cmdline, &comm)
}

/// Where the kernel cuts a command's name, bytes.
const COMM: usize = 15;

/// The program's own file name, which is better than what the kernel cut. A process may have written a
/// title of many words over its command line; a path may hold blanks as well.
fn name_of(cmdline: &[u8], comm: &str) -> String {
    let mut words = cmdline.split(|b| *b == 0);
    let program = String::from_utf8_lossy(words.next().unwrap_or_default());
    let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let whole = file(&program);
    let is_path = words.any(|word| !word.is_empty())
        || whole == comm
        || comm.len() == COMM && whole.starts_with(comm);
    let name = if is_path { whole } else { file(program.split(' ').next().unwrap_or_default()) };
    clean(if name.is_empty() { comm } else { &name }, 40)
}

/// Number of the user a process runs as; [`super::users`] has the names.
pub fn user(pid: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    Some(fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_name_that_tries_to_fool() {
        let line = "42 (a) S 1 (b) R 7 8 9 0 -1 4194560 0 0 0 0 3 4 0 0 20 0 1 0 777 0 0";
        let stat = ProcStat::parse(line).unwrap();
        assert_eq!((stat.pid, stat.comm.as_str(), stat.state), (42, "a) S 1 (b", 'R'));
        assert_eq!((stat.ppid, stat.session, stat.start_ticks), (7, 9, 777));
        assert_eq!(stat.cpu_ticks, 7);
        assert_eq!(ProcStat::parse("nonsense"), None);
    }

    #[test]
    fn a_program_is_called_by_its_file_whatever_blanks_its_path_holds() {
        assert_eq!(name_of(b"/opt/My App/server\0--port\x001\0", "server"), "server");
        assert_eq!(name_of(b"/opt/My App/server\0", "server"), "server");
        assert_eq!(
            name_of(b"/opt/My App/a long server name\0", "a long server n"),
            "a long server name"
        );
        // Titles that processes give themselves.
        assert_eq!(name_of(b"/usr/bin/python3 -m x/y\0\0\0", "python3"), "python3");
        assert_eq!(name_of(b"nginx: worker process\0\0", "nginx"), "nginx:");
        assert_eq!(name_of(b"/usr/bin/python3\0-m\0vllm\0", "pt_main_thread"), "python3");
        assert_eq!(
            (name_of(b"", "kworker/0:1"), name_of(b"", "")),
            ("kworker/0:1".into(), String::new())
        );
    }

    #[test]
    fn knows_itself_and_not_another_of_its_pid() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let other = ProcessId { start_ticks: me.start_ticks + 1, ..me };
        assert!(!other.is_alive());
        assert!(all().iter().any(|s| s.pid == me.pid));
    }
}
