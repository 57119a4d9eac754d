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
use super::{FleetEvent, smi};
use crate::base::{HostName, quote, text};
use crate::ssh::{Connection, ExecChannel, SshError};
use crate::wire::{Gpu, GpuHealth, Gpus, HostFacts, HostSample};

const SCRIPT: &str = include_str!("fallback.sh");

/// Seconds between samples: `nvidia-smi` itself takes one on a large host.
const EVERY_S: u32 = 5;

/// A script that says nothing for so long hangs; `nvidia-smi` may take ten seconds, three times.
const SILENCE: Duration = Duration::from_secs(45);

/// Longest line, and most lines of a part.
const MAX_LINE: usize = 16 << 10;
const MAX_LINES: usize = 2_000;

/// The lines of each part of a round.
type Parts = BTreeMap<String, String>;

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
    let values = [
        ("fields", smi::GPU_FIELDS.join(",")),
        ("more", smi::MORE_FIELDS.join(",")),
        ("apps", smi::APP_FIELDS.join(",")),
        ("every", EVERY_S.to_string()),
    ];
    let mut program = String::new();
    for (name, value) in &values {
        program.extend([name, "=", &quote::shell_word(value), "\n"]);
    }
    program.push_str(SCRIPT);
    let lost = |error: std::io::Error| SshError::closed(&text::clean(&error.to_string(), 200));
    stdin.write_all(program.as_bytes()).await.map_err(lost)?;
    // The shell reads its program from there: its end would be the script's.
    let _held = stdin;
    let mut reader = LineReader::new(stdout, MAX_LINE);
    let mut told = Some(told);
    let mut meter = Meter::default();
    let (mut parts, mut part, mut count) = (Parts::new(), String::new(), 0_usize);
    loop {
        let line = timeout(SILENCE, reader.next()).await.map_err(|_| SshError::Timeout {
            address: host.to_string(),
            phase: "reading the host without an agent".to_owned(),
            after: SILENCE,
        })?;
        let Some(line) = line.map_err(lost)? else { return Ok(()) };
        let line = String::from_utf8_lossy(line);
        let Some(name) = line.strip_prefix("gpudeck:") else {
            count += 1;
            if count <= MAX_LINES && !part.is_empty() {
                let lines = parts.entry(part.clone()).or_default();
                lines.push_str(&line);
                lines.push('\n');
            }
            continue;
        };
        if name != "end" {
            part = text::clean(name, 20);
            parts.insert(part.clone(), String::new());
            continue;
        }
        if parts.contains_key("facts") {
            let facts = Box::new(facts(&parts));
            outbox.put(FleetEvent::Facts { host: host.clone(), facts });
        }
        let sample = Arc::new(meter.sample(&parts));
        outbox.put(FleetEvent::Sample { host: host.clone(), sample });
        if let Some(told) = told.take() {
            told();
        }
        parts.clear();
        part.clear();
        count = 0;
    }
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
            // It had ten seconds before it was given up.
            let for_ms = since.elapsed().saturating_add(Duration::from_secs(10)).as_millis();
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
        let apps = parts.get("apps").map_or("", String::as_str);
        if smi::knows_apps(apps) {
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
