//! `gpudeck doctor HOST`: everything that must be well for a host to serve, one check after another,
//! each with what to do.

use std::time::Duration;

use serde::Serialize;
use smol_str::SmolStr;

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{show, table};
use crate::api::{
    Bytes, Checkup, CheckupRequest, Client, Disk, Door, Gpu, GpuHealth, Gpus, HostFacts,
    HostLinkState, HostName, HostView, Intent, Logout, Looking, Snapshot, Timestamp, age, text,
    time, xid,
};

/// Bytes that are written to measure the disk.
const DISK_BYTES: u64 = 64 << 20;

/// A clock further off than that makes logs and leases hard to read, milliseconds.
const CLOCK_OFF_MS: u64 = 1_000;

/// Less space than that is soon none.
const SPACE: Bytes = Bytes::gib(2);

/// A disk slower than that loads a large model for hours, bytes a second.
const SLOW_DISK: u64 = 100 << 20;

/// Longest that an attempt to reach the host is waited for.
const ATTEMPT: Duration = Duration::from_secs(40);

/// An attempt that failed so lately is of now.
const RECENT: Duration = Duration::from_secs(5);

/// Where the next step is.
const ADVICE: &str = "do what stands below each BAD check, then ask again";

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It could not be looked at, or does not matter much.
    Note,
    /// It works, and should be better.
    Poor,
    /// It does not work.
    Bad,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub what: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// In words.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

fn check(what: &'static str, verdict: Verdict, found: impl AsRef<str>) -> Check {
    Check { what, verdict, found: text::clean(found.as_ref(), 300), advice: None }
}

impl Check {
    fn advise(mut self, advice: impl AsRef<str>) -> Self {
        self.advice = Some(text::clean(advice.as_ref(), 300));
        self
    }
}

/// Looks at a host; exit code 0 when nothing is bad, 1 when something is, 7 when it is not reached.
pub async fn run(args: &Args, host: &HostName) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let known = client.snapshot().await?;
    if !known.hosts.contains_key(host) {
        let names: Vec<&str> = known.hosts.keys().map(HostName::as_str).collect();
        return Err(Failure::other(format!("there is no host {host}"))
            .code(8)
            .with_hint(format!("the deck has {}", names.join(", "))));
    }
    let looking = Looking { detail: Some(host.clone()), ..Looking::default() };
    client.look(&looking).await?;
    try_anew(&client, host).await?;
    let request = CheckupRequest { host: host.clone(), disk_bytes: Some(DISK_BYTES) };
    let checkup = client.check_up(&request).await;
    // The clock is compared soon after the connection; and samples have come meanwhile.
    let snapshot = client.snapshot().await?;
    let Some(view) = snapshot.hosts.get(host) else {
        return Err(Failure::other(format!("{host} has left the deck"))
            .with_hint("it was taken out of deck.toml just now"));
    };
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = Timestamp(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX));
    let mut checks = of_view(view, now);
    match &checkup {
        Ok(checkup) => checks.extend(of_checkup(view, checkup)),
        Err(error) => {
            // Without an agent nobody can look; one that is there and does not answer is what is wrong.
            let verdict = if view.link == HostLinkState::Up { Verdict::Bad } else { Verdict::Note };
            checks.push(check("engine, ports, disk speed", verdict, &error.message));
        }
    }
    print(args, &checks)?;
    let bad = checks.iter().filter(|c| c.verdict == Verdict::Bad).count();
    let reached = matches!(view.link, HostLinkState::Up | HostLinkState::Limited { .. });
    match bad {
        0 => Ok(Success::Done),
        _ if !reached => {
            Err(Failure::other(format!("{host} is not reached")).code(7).with_hint(ADVICE))
        }
        1 => Err(Failure::other(format!("one thing is wrong with {host}")).with_hint(ADVICE)),
        n => Err(Failure::other(format!("{n} things are wrong with {host}")).with_hint(ADVICE)),
    }
}

/// A host that is not reached is tried once more, now: what stopped the last attempt may be mended. Others are
/// not waited for.
async fn try_anew(client: &Client, host: &HostName) -> Result<(), Failure> {
    let settled = |s: &Snapshot| s.hosts.get(host).is_none_or(show::settled);
    let seen = show::until(client, ATTEMPT, settled).await?;
    let Some(HostLinkState::Down { tried, trying, .. }) = seen.hosts.get(host).map(|h| &h.link)
    else {
        return Ok(());
    };
    client.send(Intent::Reconnect { host: host.clone() }).await?;
    // An attempt that went on already may have begun before it was mended: the one after it counts.
    let mut attempts = vec![*tried];
    if trying.is_some() {
        let ended = |s: &Snapshot| failed_at(s, host) != attempts.first().copied();
        let seen = show::until(client, ATTEMPT, ended).await?;
        attempts.extend(failed_at(&seen, host));
    }
    let last = attempts.last().copied();
    let ended = |s: &Snapshot| failed_at(s, host) != last && settled(s);
    show::until(client, ATTEMPT, ended).await?;
    Ok(())
}

/// When the last attempt to reach the host failed; none: it is reached, or asks something.
fn failed_at(snapshot: &Snapshot, host: &HostName) -> Option<Timestamp> {
    match snapshot.hosts.get(host)?.link {
        HostLinkState::Down { tried, .. } => Some(tried),
        _ => None,
    }
}

fn print(args: &Args, checks: &[Check]) -> Result<(), Failure> {
    if args.output == Output::Json {
        return table::json(&checks);
    }
    let width = checks.iter().map(|c| c.what.len()).max().unwrap_or(0);
    for Check { what, verdict, found, advice } in checks {
        let mark = match verdict {
            Verdict::Good => "ok  ",
            Verdict::Note => "note",
            Verdict::Poor => "poor",
            Verdict::Bad => "BAD ",
        };
        table::out(&format!("{mark}  {what:<width$}  {found}"))?;
        if let Some(advice) = advice {
            table::out(&format!("      {:<width$}  → {advice}", ""))?;
        }
    }
    Ok(())
}

/// What the snapshot says: the way there, the agent, the data, the driver, every GPU, disk, clock.
pub fn of_view(host: &HostView, now: Timestamp) -> Vec<Check> {
    let mut checks = way(host, now);
    if let Some(facts) = &host.facts {
        let system = format!("{} {}", facts.os, facts.kernel);
        // Where no agent can be there is none to speak of.
        checks.push(if matches!(host.link, HostLinkState::Limited { .. }) {
            check("system", Verdict::Good, format!("{system}, as {}", facts.user))
        } else {
            let HostFacts { agent_version, user, state_dir, .. } = facts;
            let found = format!("{agent_version} as {user} in {state_dir}; {system}");
            check("agent", Verdict::Good, found)
        });
    }
    match (age(now, host.sampled), &host.sample) {
        (Some(age), Some(sample)) => {
            let found = format!("{} old", time::short(age));
            let fresh = age < Duration::from_secs(15);
            checks.push(if fresh {
                check("data", Verdict::Good, found)
            } else {
                check("data", Verdict::Poor, found).advise("see why the link is slow or down")
            });
            let is_hung = matches!(sample.gpus, Gpus::Hung { .. });
            if !is_hung || sample.gpu_trouble.is_none() {
                checks.extend(driver(host, &sample.gpus));
            }
            checks.extend(sample.gpu_trouble.as_ref().map(|why| {
                let whose = if is_hung { "the GPUs" } else { "NVIDIA's GPUs" };
                check("driver", Verdict::Bad, format!("{whose} are not shown: {why}"))
            }));
            checks.extend(folded(sample.gpus.list()));
            if let Some(disk) = sample.disk {
                let found = format!("{} free of {} for the agent's state", disk.free(), disk.total);
                checks.push(if disk.free() < SPACE {
                    check("disk space", Verdict::Bad, found).advise(
                        "free space there, or set GPUDECK_STATE_DIR in agent_env of the host",
                    )
                } else {
                    check("disk space", Verdict::Good, found)
                });
            }
        }
        _ => checks.push(check("data", Verdict::Bad, "no sample was received")),
    }
    checks.push(clock(host));
    checks
}

/// The phases of the connection, as far as the last attempt came.
fn way(host: &HostView, now: Timestamp) -> Vec<Check> {
    let mut checks: Vec<Check> =
        host.way.iter().map(|phase| check("connection", Verdict::Good, phase)).collect();
    match &host.link {
        HostLinkState::Up => checks.push(check("connection", Verdict::Good, "the agent answers")),
        HostLinkState::Limited { why, hint } => {
            let found = format!("only nvidia-smi and /proc are read, no agent: {why}");
            let limited = check("connection", Verdict::Bad, found);
            checks.push(limited.advise(hint.as_deref().unwrap_or("see the host's events")));
        }
        HostLinkState::Asking { question } => {
            let found = format!("question {question} waits for a person");
            let advice = format!("`gpudeck questions`, then `gpudeck answer {question} …`");
            checks.push(check("connection", Verdict::Bad, found).advise(advice));
        }
        HostLinkState::Connecting { phase } => {
            checks.pop();
            let found = format!("still {phase}");
            checks.push(check("connection", Verdict::Bad, found).advise("wait, and run it again"));
        }
        HostLinkState::Down { cause, hint, tried, .. } => {
            let last = checks.pop();
            let phase = last.map(|c| format!("{}: ", c.found)).unwrap_or_default();
            let ago = match now.since(*tried) {
                ago if ago < RECENT => String::new(),
                ago => format!(" (tried {} ago)", time::short(ago)),
            };
            let down = check("connection", Verdict::Bad, format!("{phase}{cause}{ago}"));
            checks.push(match hint {
                Some(hint) => down.advise(hint),
                None => down,
            });
        }
    }
    checks
}

/// A host that has no GPU, as against one whose driver does not let its GPUs be read.
fn is_without_gpu(why: &str) -> bool {
    ["no NVIDIA driver is installed", "no GPU", "libnvidia-ml.so.1 not found"]
        .iter()
        .any(|words| why.contains(words))
        || why.is_empty()
}

fn driver(host: &HostView, gpus: &Gpus) -> Vec<Check> {
    let facts = host.facts.as_ref();
    let version = facts.and_then(|f| f.driver_version.as_deref()).unwrap_or("of unknown version");
    let cuda = facts.and_then(|f| f.cuda_version.as_deref()).unwrap_or("–");
    vec![match gpus {
        Gpus::None { why } if is_without_gpu(why) => {
            check("driver", Verdict::Note, format!("no GPU: {why}"))
                .advise("where there is one, install its driver and load its module")
        }
        Gpus::None { why } => check("driver", Verdict::Bad, format!("no GPU can be read: {why}"))
            .advise("mend what the driver says, or reboot the host; `nvidia-smi` there says the same until then"),
        Gpus::Hung { for_ms } => {
            let time = time::short(Duration::from_millis(*for_ms));
            let found = format!("it does not answer for {time}");
            let advice =
                "look at `dmesg` for Xid errors and at processes in state D; a reboot ends it";
            check("driver", Verdict::Bad, found).advise(advice)
        }
        Gpus::Some(list) => {
            let found = format!("{version}, CUDA {cuda}, {} GPUs", list.len());
            check("driver", Verdict::Good, found)
        }
    }]
}

/// What is to be said about GPUs: what is the same of several of one kind is said once.
fn folded(gpus: &[Gpu]) -> Vec<Check> {
    type Same = (Verdict, String, Option<&'static str>, SmolStr);
    let mut all: Vec<(Same, Vec<u32>)> = Vec::new();
    for one in gpus {
        for (verdict, found, advice) in gpu(one) {
            let same = (verdict, found, advice, one.name.clone());
            match all.iter_mut().find(|(known, _)| *known == same) {
                Some((_, of)) => of.push(one.index),
                None => all.push((same, vec![one.index])),
            }
        }
    }
    let told = |((verdict, found, advice, name), of): (Same, Vec<u32>)| {
        let separator = if found.is_empty() { "" } else { ": " };
        let check = check("GPU", verdict, format!("{} ({name}){separator}{found}", numbers(&of)));
        Check { advice: advice.map(str::to_owned), ..check }
    };
    all.into_iter().map(told).collect()
}

/// `0-3, 6`.
fn numbers(of: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for index in of {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*index) => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let range = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

/// What is to be said about a GPU, without its name: nothing is wrong where there are no words.
fn gpu(gpu: &Gpu) -> Vec<(Verdict, String, Option<&'static str>)> {
    let mut checks = Vec::new();
    let mut say = |verdict, found: String, advice| checks.push((verdict, found, advice));
    let xid = gpu.xid.map(|last| (xid::describe(last.code), xid::meaning(last.code)));
    match (&gpu.health, xid) {
        (GpuHealth::Lost, _) => {
            let found = "has fallen off the bus, or could not be started".to_owned();
            let advice =
                "look at its power, seat and cables; reboot the host; run nvidia-bug-report.sh";
            say(Verdict::Bad, found, Some(advice));
            return checks;
        }
        (GpuHealth::Degraded { why }, _) => {
            let advice = gpu.judged_xid().map_or(
                "drain it and reboot the host, or reset it: nvidia-smi --gpu-reset; where no spare rows are left, have it replaced",
                |grave| xid::meaning(grave.code).advice(),
            );
            say(Verdict::Bad, why.clone(), Some(advice));
        }
        (GpuHealth::Ok, Some((words, meaning))) => {
            say(Verdict::Note, words, Some(meaning.advice()));
        }
        (GpuHealth::Ok, None) => say(Verdict::Good, String::new(), None),
    }
    let hot = ["hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake"];
    let reasons = gpu.throttle_reasons.iter().flatten();
    let slowed: Vec<&str> = reasons.map(SmolStr::as_str).filter(|r| hot.contains(r)).collect();
    if !slowed.is_empty() {
        let advice = "look at its cooling and its power supply";
        say(Verdict::Poor, format!("slowed by {}", slowed.join(", ")), Some(advice));
    }
    // The generation falls when nothing runs; lanes do not.
    if let (Some(width), Some(most)) = (gpu.pcie.width, gpu.pcie.max_width)
        && width < most
    {
        let advice =
            "look at its seat and the slot; some slots have fewer lanes than they are long";
        say(Verdict::Poor, format!("{width} of {most} PCI Express lanes in use"), Some(advice));
    }
    if let (Some(active), Some(links)) = (gpu.nvlink.active, gpu.nvlink.links)
        && active < links
        && active > 0
    {
        let advice =
            "`nvidia-smi nvlink --status` names them; boards without an NVSwitch wire only some";
        say(Verdict::Note, format!("{active} of {links} NVLinks up"), Some(advice));
    }
    if gpu.persistence == Some(false) {
        let found = "persistence is off, each start of an engine waits for the driver".to_owned();
        say(Verdict::Poor, found, Some("nvidia-smi -pm 1, or nvidia-persistenced"));
    }
    checks
}

fn clock(host: &HostView) -> Check {
    match host.clock {
        None => check("clock", Verdict::Note, "not compared yet"),
        Some(clock) => {
            let off = clock.offset_ms.unsigned_abs();
            let side = if clock.offset_ms < 0 { "behind" } else { "ahead of" };
            let found = format!("{off} ms {side} this machine's");
            if off > CLOCK_OFF_MS {
                let advice = "let chrony or systemd-timesyncd keep the time, there and here";
                check("clock", Verdict::Poor, found).advise(advice)
            } else {
                check("clock", Verdict::Good, found)
            }
        }
    }
}

/// What the agent found out when it was asked: container engine, disk, ports of the other hosts.
pub fn of_checkup(host: &HostView, checkup: &Checkup) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(match (&checkup.container_engine, &checkup.container_engine_trouble) {
        (_, Some(trouble)) => check("container engine", Verdict::Poor, trouble)
            .advise("add the user to the group `docker`, or use the runtime `process`"),
        (Some(engine), None) => {
            let version = engine.version.as_deref().unwrap_or("of unknown version");
            check("container engine", Verdict::Good, format!("{} {version}", engine.name))
        }
        (None, None) => check("container engine", Verdict::Note, "none answers")
            .advise("install docker or podman for services with a container; `process` needs none"),
    });
    for program in &checkup.programs {
        let name = &program.program;
        checks.push(match &program.file {
            Some(file) => {
                let version = program.version.as_deref().map(|v| format!(", {v}")).unwrap_or_default();
                check("engine", Verdict::Good, format!("{name}: {file}{version}"))
            }
            None => check("engine", Verdict::Poor, format!("{name} is not there: services with it cannot start here"))
                .advise("install it, give its place in the spec (program = \"/…\", or PATH in env), or keep them elsewhere with placement.hosts"),
        });
    }
    let disks = host.facts.as_ref().map(|f| f.disks.as_slice()).unwrap_or_default();
    let holds: Option<&Disk> = disks.iter().find(|d| d.holds_state);
    let class = holds.map(|d| format!(" ({} {})", d.name, d.class.word())).unwrap_or_default();
    checks.push(match (checkup.disk_write_bytes_per_s, &checkup.disk_trouble) {
        (Some(speed), _) => {
            let found = format!("writes {}/s{class}", Bytes(speed));
            if speed < SLOW_DISK {
                let advice =
                    "the agent's state is on it; a large model on the same disk loads for hours";
                check("disk speed", Verdict::Poor, found).advise(advice)
            } else {
                check("disk speed", Verdict::Good, found)
            }
        }
        (None, Some(trouble)) => check("disk speed", Verdict::Bad, trouble)
            .advise("the agent must be able to write in its state directory"),
        (None, None) => check("disk speed", Verdict::Note, "not measured"),
    });
    checks.extend(checkup.logout.iter().flat_map(logout));
    for note in &checkup.ssh_notes {
        let advice =
            "nothing, if the host is reached without it; `gpudeck ssh-config HOST` shows the rest";
        checks.push(check("SSH configuration", Verdict::Note, note).advise(advice));
    }
    for reached in &checkup.reached {
        let to = &reached.address;
        checks.push(match (reached.took_us, reached.refused) {
            (Some(took), _) => {
                let found = format!("to {to} in {:.1} ms", took as f64 / 1e3);
                check("ports", Verdict::Good, found)
            }
            (None, true) => {
                check("ports", Verdict::Good, format!("to {to}: open, nothing listens now"))
            }
            (None, false) => {
                let why = reached.why.as_deref().unwrap_or("no answer");
                let advice = "ranks of one replica and the gateway connect there: open the host's engine ports";
                check("ports", Verdict::Poor, format!("to {to}: {why}")).advise(advice)
            }
        });
    }
    checks
}

/// What does not outlive the session of whoever logged in.
fn logout(logout: &Logout) -> Vec<Check> {
    let Logout { user, kills, removes_ipc, .. } = logout;
    let mut checks = Vec::new();
    if *kills {
        let found = format!(
            "what {user} started is killed with the SSH session (KillUserProcesses): also ranks of the runtime `process`"
        );
        // A lingering user keeps only what a manager of the user's own has started.
        let advice = format!(
            "add KillExcludeUsers=root {user} to /etc/systemd/logind.conf and restart systemd-logind; containers live on"
        );
        checks.push(check("logout", Verdict::Poor, found).advise(advice));
    }
    if *removes_ipc {
        let found = format!(
            "{user}'s shared memory is removed with the last session (RemoveIPC): ranks of the runtime `process` lose theirs"
        );
        let advice =
            format!("loginctl enable-linger {user}, or RemoveIPC=no in /etc/systemd/logind.conf");
        checks.push(check("logout", Verdict::Poor, found).advise(advice));
    }
    if checks.is_empty() {
        checks.push(check(
            "logout",
            Verdict::Good,
            format!("what {user} started lives on after it"),
        ));
    }
    checks
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::api::{ProgramFound, Reached};
    use crate::tui::fixture::{NOW, rich};

    fn of(name: &str) -> Vec<Check> {
        let snapshot = rich();
        let host = snapshot.hosts.values().find(|h| h.name.as_str() == name).unwrap();
        of_view(host, NOW)
    }

    fn bad(checks: &[Check]) -> Vec<&Check> {
        checks.iter().filter(|c| c.verdict == Verdict::Bad).collect()
    }

    #[test]
    fn a_well_host_has_nothing_bad() {
        let checks = of("node1");
        assert!(bad(&checks).is_empty(), "{checks:#?}");
        let whats: Vec<&str> = checks.iter().map(|c| c.what).collect();
        for what in ["connection", "agent", "data", "driver", "GPU", "disk space", "clock"] {
            assert!(whats.contains(&what), "{what}: {whats:?}");
        }
    }

    #[test]
    fn what_is_wrong_has_advice() {
        let checks = of("node2");
        let wrong = bad(&checks);
        assert_eq!(wrong.len(), 2, "{wrong:#?}");
        assert!(wrong.iter().all(|c| c.advice.is_some()));
        let hung = of("node5");
        assert!(bad(&hung).iter().any(|c| c.what == "driver"), "{hung:#?}");
        let down = of("node4");
        let down = bad(&down);
        assert!(down[0].found.contains("connection refused") && down[0].advice.is_some());
        let all = of("node2").into_iter().map(|c| c.found).collect::<String>();
        assert!(!all.contains('\u{1b}'));
    }

    #[test]
    fn what_is_the_same_of_several_gpus_is_said_once() {
        let gpu = |index, active| Gpu {
            index,
            name: "H100".into(),
            nvlink: crate::api::NvLinks {
                links: Some(18),
                active: Some(active),
                ..Default::default()
            },
            ..Gpu::default()
        };
        let gpus = [gpu(0, 7), gpu(1, 7), gpu(2, 18), gpu(3, 7), gpu(4, 7), gpu(5, 6)];
        let lost = Gpu { index: 6, name: "L40S".into(), health: GpuHealth::Lost, ..Gpu::default() };
        let found: Vec<String> =
            folded(&[&gpus[..], &[lost]].concat()).into_iter().map(|c| c.found).collect();
        assert_eq!(
            found,
            [
                "0-5 (H100)",
                "0-1, 3-4 (H100): 7 of 18 NVLinks up",
                "5 (H100): 6 of 18 NVLinks up",
                "6 (L40S): has fallen off the bus, or could not be started",
            ]
        );
    }

    #[test]
    fn what_a_logout_ends_is_told_with_what_to_do() {
        let of = |kills, removes_ipc| {
            let user = "ann".to_owned();
            logout(&Logout { user, kills, removes_ipc, lingers: false })
        };
        let [well] = &of(false, false)[..] else { unreachable!() };
        assert_eq!((well.verdict, well.advice.as_ref()), (Verdict::Good, None));
        let both = of(true, true);
        let advice: Vec<&str> = both.iter().filter_map(|c| c.advice.as_deref()).collect();
        assert!(advice[0].contains("KillExcludeUsers=root ann"), "{advice:?}");
        assert!(advice[1].contains("loginctl enable-linger ann"), "{advice:?}");
    }

    #[test]
    fn a_driver_that_cannot_be_used_is_bad_and_no_gpu_is_not() {
        let snapshot = rich();
        let host = snapshot.hosts.values().find(|h| h.name.as_str() == "node1").unwrap();
        let verdict = |why: &str| driver(host, &Gpus::None { why: why.to_owned() })[0].verdict;
        let broken =
            "RM detects a driver/library version mismatch: reboot the host or reload the module";
        assert_eq!(verdict(broken), Verdict::Bad);
        assert_eq!(verdict("driver not loaded: modprobe nvidia"), Verdict::Bad);
        let none = "libnvidia-ml.so.1 not found: no NVIDIA driver is installed";
        assert_eq!(verdict(none), Verdict::Note);
        assert_eq!(verdict("the driver shows no GPU"), Verdict::Note);
    }

    #[test]
    fn a_port_that_refuses_is_open_and_one_that_is_silent_is_not() {
        let program = |name: &str, file: Option<&str>, version: Option<&str>| ProgramFound {
            program: name.to_owned(),
            file: file.map(str::to_owned),
            version: version.map(str::to_owned),
        };
        let reached = |took_us, refused| Reached {
            address: "b (10.0.0.2:21000)".to_owned(),
            took_us,
            refused,
            why: Some("why".to_owned()),
        };
        let checkup = Checkup {
            reached: vec![reached(Some(300), false), reached(None, true), reached(None, false)],
            disk_write_bytes_per_s: Some(5 << 20),
            programs: vec![
                program("vllm", Some("/opt/vllm/bin/vllm"), Some("0.20.1")),
                program("llama-server", None, None),
            ],
            ..Checkup::default()
        };
        let snapshot = rich();
        let checks = of_checkup(snapshot.hosts.values().next().unwrap(), &checkup);
        assert_eq!(checks[1].found, "vllm: /opt/vllm/bin/vllm, 0.20.1");
        let verdicts: Vec<(&str, Verdict)> = checks.iter().map(|c| (c.what, c.verdict)).collect();
        assert_eq!(
            verdicts,
            [
                ("container engine", Verdict::Note),
                ("engine", Verdict::Good),
                ("engine", Verdict::Poor),
                ("disk speed", Verdict::Poor),
                ("ports", Verdict::Good),
                ("ports", Verdict::Good),
                ("ports", Verdict::Poor),
            ]
        );
    }
}
