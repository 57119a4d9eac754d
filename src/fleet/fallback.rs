//! Following a host on which the agent cannot be (mounted noexec, no space, another processor): the
//! text of `nvidia-smi` and `/proc`, from one shell script on one channel. It only reads; nothing can
//! be started there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::lines::LineReader;
use super::outbox::Outbox;
use super::roll::Roll;
use super::{FleetEvent, smi};
use crate::base::{HostName, quote, text};
use crate::ssh::{Connection, ExecChannel, SshError};
use crate::wire::{Gpu, GpuHealth, Gpus, HostFacts, HostSample};

const SCRIPT: &str = include_str!("fallback.sh");

/// Seconds between samples: `nvidia-smi` itself takes one on a large host.
const EVERY_S: u32 = 5;

/// A driver that has not answered for so many seconds hangs. (With an agent it has less: there a process that has begun
/// with the driver already is asked.)
const PATIENCE_S: u32 = 3;

/// The same for its first answer, and for one after it has hung. One that takes longer each time (without persistence
/// mode it initialises every GPU for each program) has this long, too.
const FIRST_PATIENCE_S: u32 = 10;

/// A script that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(45);

/// Longest line, and most lines of a part.
const MAX_LINE: usize = 16 << 10;
const MAX_LINES: usize = 2_000;

/// The lines of each part of a round.
type Parts = BTreeMap<String, String>;

/// The parts that the script has; what else a host makes up is not kept.
const KNOWN: [&str; 12] = [
    "apps", "boot", "cpus", "driver", "facts", "gpus", "hung", "load", "memory", "none", "stat",
    "uptime",
];

/// What has come of a round.
#[derive(Default)]
struct Round {
    parts: Parts,
    /// The part that the next line is of; none: of none that is known.
    part: Option<&'static str>,
    lines: usize,
}

impl Round {
    /// Takes a line in; all parts when it was the last.
    fn line(&mut self, line: &str) -> Option<Parts> {
        let Some(name) = line.strip_prefix("gpudeck:") else {
            self.lines += 1;
            if let Some(part) = self.part
                && self.lines <= MAX_LINES
            {
                self.parts.entry(part.to_owned()).or_default().extend([line, "\n"]);
            }
            return None;
        };
        if name == "end" {
            return Some(std::mem::take(self).parts);
        }
        self.part = KNOWN.into_iter().find(|known| *known == name);
        if let Some(part) = self.part {
            self.parts.insert(part.to_owned(), String::new());
        }
        None
    }
}

/// Reads the host until the connection or the script ends; returns why. `told` is called once, when
/// the first sample is there.
pub(super) async fn follow(
    host: &HostName,
    connection: &dyn Connection,
    outbox: &Outbox,
    told: impl FnOnce(),
) -> SshError {
    match read(host, connection, outbox, told).await {
        Ok(()) => SshError::closed("the script that reads the host ended"),
        Err(error) => error,
    }
}

async fn read(
    host: &HostName,
    connection: &dyn Connection,
    outbox: &Outbox,
    told: impl FnOnce(),
) -> Result<(), SshError> {
    let ExecChannel { mut stdin, stdout, control: _control } =
        connection.exec("exec sh -s").await?;
    let program = program(EVERY_S, PATIENCE_S, FIRST_PATIENCE_S);
    let lost = |error: std::io::Error| SshError::closed(&text::clean(&error.to_string(), 200));
    stdin.write_all(program.as_bytes()).await.map_err(lost)?;
    // The shell reads its program from there: its end would be the script's.
    let _held = stdin;
    let mut reader = LineReader::new(stdout, MAX_LINE);
    let mut told = Some(told);
    let mut meter = Meter::default();
    let mut round = Round::default();
    loop {
        let line = timeout(SILENCE, reader.next()).await.map_err(|_| SshError::Timeout {
            address: host.to_string(),
            phase: "reading the host without an agent".to_owned(),
            after: SILENCE,
        })?;
        let Some(line) = line.map_err(lost)? else { return Ok(()) };
        let Some(parts) = round.line(&String::from_utf8_lossy(line)) else { continue };
        if parts.contains_key("facts") {
            let facts = Box::new(facts(&parts));
            outbox.put(FleetEvent::Facts { host: host.clone(), facts });
        }
        let sample = Arc::new(meter.sample(&parts));
        outbox.put(FleetEvent::Sample { host: host.clone(), sample });
        if let Some(told) = told.take() {
            told();
        }
    }
}

/// The script with what it is to ask for, a round every so many seconds.
fn program(every_s: u32, patience_s: u32, first_patience_s: u32) -> String {
    let values = [
        ("fields", smi::GPU_FIELDS.join(",")),
        ("more", smi::MORE_FIELDS.join(",")),
        ("reasons", smi::REASON_FIELDS[0].to_owned()),
        ("reasons_before", smi::REASON_FIELDS[1].to_owned()),
        ("apps", smi::APP_FIELDS.join(",")),
        ("every", every_s.to_string()),
        ("patience", patience_s.to_string()),
        ("first", first_patience_s.to_string()),
    ];
    let mut program = String::new();
    for (name, value) in &values {
        program.extend([name, "=", &quote::shell_word(value), "\n"]);
    }
    program.push_str(SCRIPT);
    program
}

fn facts(parts: &Parts) -> HostFacts {
    let part = |name: &str| parts.get(name).map_or("", String::as_str);
    let mut lines = part("facts").lines().map(|line| text::clean(line.trim(), 80));
    let mut next = || lines.next().unwrap_or_default();
    let (hostname, kernel, arch, user, os) = (next(), next(), next(), next(), next());
    let first = |name: &str| part(name).lines().next().map(|l| text::clean(l.trim(), 64));
    HostFacts {
        hostname,
        os,
        kernel,
        arch,
        user,
        agent_version: "none".to_owned(),
        boot_id: first("boot").unwrap_or_default(),
        cpus: first("cpus").and_then(|n| n.parse().ok()).unwrap_or(0),
        memory: smi::memory(part("memory")).map_or(crate::base::Bytes::ZERO, |m| m.total),
        driver_version: first("driver")
            .filter(|v| v.starts_with(|c: char| c.is_ascii_digit()) && v.len() < 20),
        ..HostFacts::default()
    }
}

/// Makes samples; differences are against the sample before.
#[derive(Default)]
struct Meter {
    ticks: Option<(u64, u64)>,
    hung_since: Option<Instant>,
    roll: Roll,
}

impl Meter {
    fn sample(&mut self, parts: &Parts) -> HostSample {
        let part = |name: &str| parts.get(name).map_or("", String::as_str);
        let uptime = part("uptime").split(['.', ' ']).next().and_then(|s| s.trim().parse().ok());
        let load = part("load").split(' ').next().and_then(|l| l.parse().ok());
        let ticks = smi::cpu_ticks(part("stat"));
        let before = std::mem::replace(&mut self.ticks, ticks);
        let cpu_percent = ticks.zip(before).and_then(|((busy, all), (busy_was, all_was))| {
            let (busy, all) = (busy.checked_sub(busy_was)?, all.checked_sub(all_was)?);
            #[allow(clippy::cast_possible_truncation)] // a percentage
            let percent = (busy as f64 / all as f64 * 100.0) as f32;
            (all > 0).then_some(percent)
        });
        HostSample {
            monotonic_ms: uptime.unwrap_or(0_u64).saturating_mul(1000),
            gpus: self.gpus(parts),
            cpu_percent,
            load_1m: load,
            memory: smi::memory(part("memory")),
            uptime_s: uptime,
            ..HostSample::default()
        }
    }

    fn gpus(&mut self, parts: &Parts) -> Gpus {
        if parts.contains_key("hung") {
            let since = *self.hung_since.get_or_insert_with(Instant::now);
            // It had some seconds before it was given up.
            let for_ms =
                since.elapsed().saturating_add(Duration::from_secs(PATIENCE_S.into())).as_millis();
            return Gpus::Hung { for_ms: u64::try_from(for_ms).unwrap_or(u64::MAX) };
        }
        self.hung_since = None;
        let Some(listed) = parts.get("gpus") else {
            return Gpus::None { why: "there is no nvidia-smi".to_owned() };
        };
        let mut gpus = match smi::parse_gpus(listed) {
            Ok(gpus) => gpus,
            Err(why) => return Gpus::None { why },
        };
        self.roll.complete(&mut gpus);
        let apps = parts.get("apps").map_or("", String::as_str);
        if smi::tells_idle(apps) {
            let whole = |gpu: &&mut Gpu| gpu.health != GpuHealth::Lost;
            gpus.iter_mut().filter(whole).for_each(|gpu| gpu.processes = Some(Vec::new()));
        }
        for (uuid, process) in smi::parse_apps(apps) {
            if let Some(gpu) = gpus.iter_mut().find(|gpu| gpu.uuid == uuid) {
                gpu.processes.get_or_insert_default().push(process);
            }
        }
        Gpus::Some(gpus)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// The script beside an `nvidia-smi`, round by round.
    struct Script {
        child: Child,
        lines: Receiver<String>,
        dir: tempfile::TempDir,
    }

    impl Script {
        fn start(smi: &str) -> Self {
            Self::patient(smi, 2, 2)
        }

        fn patient(smi: &str, patience_s: u32, first_patience_s: u32) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("nvidia-smi");
            std::fs::write(&path, format!("#!/bin/sh\nhere=${{0%/*}}\n{smi}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let mut child = Command::new("sh")
                .arg("-s")
                .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let program = program(1, patience_s, first_patience_s);
            child.stdin.as_mut().unwrap().write_all(program.as_bytes()).unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let (send, lines) = channel();
            std::thread::spawn(move || {
                stdout
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|l| send.send(l.clone()).is_ok())
                    .count()
            });
            Self { child, lines, dir }
        }

        fn round(&self) -> Parts {
            let (mut parts, mut part) = (Parts::new(), String::new());
            loop {
                let line = self.lines.recv_timeout(Duration::from_secs(10)).unwrap();
                match line.strip_prefix("gpudeck:") {
                    Some("end") => return parts,
                    Some(name) => {
                        part = name.to_owned();
                        parts.insert(part.clone(), String::new());
                    }
                    None => parts.get_mut(&part).unwrap().extend([&line, "\n"]),
                }
            }
        }
    }

    impl Drop for Script {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn parts_that_a_host_makes_up_are_not_kept() {
        let mut round = Round::default();
        for n in 0..10_000 {
            assert!(round.line(&format!("gpudeck:{n}")).is_none());
            assert!(round.line("x").is_none());
        }
        assert!(round.parts.is_empty());
        // Neither are more lines than a part may have.
        assert!(round.line("gpudeck:gpus").is_none());
        assert!((0..10_000).all(|_| round.line("x").is_none()));
        assert_eq!(round.parts["gpus"], "", "the others count, too");
        assert_eq!(round.line("gpudeck:end").unwrap().len(), 1);
        assert!(round.line("gpudeck:stat").is_none() && round.line("cpu 1").is_none());
        assert_eq!(round.line("gpudeck:end").unwrap()["stat"], "cpu 1\n");
    }

    #[test]
    fn a_busy_gpu_that_is_divided_is_not_free() {
        let gpu = |n: u32| {
            format!(
                "{n}, GPU-{n}, NVIDIA H100, 00000000:1{n}:00.0, 81559, 69573, 87, 61, 500, 700\n"
            )
        };
        let processes = |apps: &str| {
            let parts = [("gpus", [gpu(0), gpu(1)].concat()), ("apps", apps.to_owned())];
            let parts = parts.map(|(name, text)| (name.to_owned(), text)).into();
            let Gpus::Some(gpus) = Meter::default().sample(&parts).gpus else { unreachable!() };
            gpus.into_iter().map(|gpu| gpu.processes.map(|list| list.len())).collect::<Vec<_>>()
        };
        assert_eq!(processes(""), [Some(0), Some(0)]);
        assert_eq!(processes("GPU-1, 7, 60000, python3\n"), [Some(0), Some(1)]);
        // The first one may be that which is divided; the second one has programs of its own, so it is not.
        let apps = "MIG-c6d4f1ef, 8, 9000, python3\nGPU-1, 7, 60000, python3\n";
        assert_eq!(processes(apps), [None, Some(1)]);
    }

    #[test]
    fn every_part_of_the_script_is_known() {
        let parts = SCRIPT.split("part ").skip(1).filter_map(|rest| rest.split(['\n', ' ']).next());
        for part in parts.filter(|p| !p.is_empty() && *p != "end" && *p != "hung;") {
            assert!(KNOWN.contains(&part), "{part}");
        }
    }

    #[test]
    fn a_driver_that_keeps_its_pipes_open_does_not_stop_the_hosts_values() {
        // Killing the program does not close what it writes to: as of a process in state D.
        let script = Script::start(
            "echo x >> $here/asked; if [ -e $here/well ]; then echo 0, GPU-1; else setsid sleep 12; fi",
        );
        let first = script.round();
        assert!(first.contains_key("hung") && first.contains_key("uptime"), "{first:?}");
        assert!(first.contains_key("facts") && !first.contains_key("gpus"), "{first:?}");
        let second = script.round();
        assert!(second.contains_key("hung") && second.contains_key("stat"), "{second:?}");
        let asked = || std::fs::read_to_string(script.dir.path().join("asked")).unwrap().len();
        assert_eq!(asked(), 2, "no other one is started beside it");

        // It answers again: what is late is not told, what is asked anew is.
        std::fs::write(script.dir.path().join("well"), "").unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let well = loop {
            let round = script.round();
            if !round.contains_key("hung") {
                break round;
            }
            assert!(Instant::now() < deadline, "{round:?}");
        };
        assert_eq!(well.get("gpus").map(String::as_str), Some("0, GPU-1\n"), "{well:?}");
        assert!(well.contains_key("driver") && well.contains_key("apps"), "{well:?}");
    }

    #[test]
    fn a_driver_begins_slowly_and_hangs_soon() {
        // What `timeout` was told is the word before the program.
        let script = Script::patient(
            "limit=$(tr '\\0' ' ' </proc/$PPID/cmdline); limit=${limit%% nvidia-smi*}; echo ${limit##* } >>$here/limits
            case $1 in *driver_version) [ -e $here/begun ] || sleep 2; : >$here/begun; echo 550.1 ;; --query-gpu*) echo 0, GPU-1 ;; esac
            if [ -e $here/hangs ]; then sleep 10; fi",
            3,
            8,
        );
        let limits = || {
            let text = std::fs::read_to_string(script.dir.path().join("limits")).unwrap();
            text.lines().map(|line| line.parse().unwrap()).collect::<Vec<u32>>()
        };
        let first = script.round();
        assert!(first.contains_key("gpus"), "it initialises its GPUs: {first:?}");
        assert!(limits().iter().all(|limit| *limit == 8), "{:?}", limits());
        let deadline = Instant::now() + Duration::from_secs(120);
        while limits().last() != Some(&3) {
            assert!(Instant::now() < deadline, "{:?}", limits());
            script.round();
        }
        std::fs::write(script.dir.path().join("hangs"), "").unwrap();
        while !script.round().contains_key("hung") {
            assert!(Instant::now() < deadline, "it does not hang");
        }
        // Once it has hung it begins anew.
        std::fs::remove_file(script.dir.path().join("hangs")).unwrap();
        while limits().last() != Some(&8) {
            assert!(Instant::now() < deadline, "{:?}", limits());
            script.round();
        }
    }

    #[test]
    fn an_old_driver_is_asked_the_short_question_from_then_on() {
        let script = Script::start(
            "case $1 in *driver_version) echo 470.1 ;; *compute_mode*) echo long >> $here/long; echo 'is not a valid field'; exit 2 ;; --query-gpu*) echo 0, GPU-1 ;; esac",
        );
        let first = script.round();
        assert_eq!(first.get("driver").map(String::as_str), Some("470.1\n"), "{first:?}");
        let second = script.round();
        assert_eq!(second.get("gpus").map(String::as_str), Some("0, GPU-1\n"), "{second:?}");
        let long = std::fs::read_to_string(script.dir.path().join("long")).unwrap();
        // Three longer ones, each of them once.
        assert_eq!(long.lines().count(), 3);
    }

    #[test]
    fn a_driver_is_asked_for_throttling_by_the_name_that_it_knows() {
        let script = Script::start(
            "case $1 in *event_reasons*) echo 'Field is not a valid field to query.'; exit 2 ;; --query-gpu=driver*) echo 470.1 ;; *throttle_reasons*) echo throttle ;; --query-gpu*) echo short ;; esac",
        );
        for _ in 0..2 {
            let round = script.round();
            assert_eq!(round.get("gpus").map(String::as_str), Some("throttle\n"), "{round:?}");
        }
    }
}
