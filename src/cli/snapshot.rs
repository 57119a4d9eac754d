//! `gpudeck snapshot`: hosts and GPUs at this moment, for programs: JSON, CSV or Prometheus' text.

use std::fmt::Write as _;

use clap::ValueEnum;

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{show, table};
use crate::api::{
    Gpu, GpuHealth, Gpus, HostLinkState, HostView, MemoryUse, Snapshot, Timestamp, age, text,
};

/// The form of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The hosts as the controller's interface has them
    Json,
    /// A row for each GPU, and one for each host without
    Csv,
    /// The text format of Prometheus
    Prometheus,
}

/// `--output csv` and `--output prometheus` are forms of this command alone: they are read as
/// `--format`.
pub fn normalise(arguments: &[String]) -> Vec<String> {
    let other = |word: &str| matches!(word, "csv" | "prometheus");
    if !arguments.iter().skip(1).any(|word| word == "snapshot") {
        return arguments.to_vec();
    }
    let mut out: Vec<String> = Vec::with_capacity(arguments.len());
    let mut format = None;
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        let joined = word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o="));
        if let Some(value) = joined.filter(|value| other(value)) {
            format = Some(value.to_owned());
        } else if matches!(word.as_str(), "--output" | "-o")
            && let Some(value) = words.next_if(|next| other(next))
        {
            format = Some(value.clone());
        } else {
            out.push(word.clone());
        }
    }
    out.extend(format.into_iter().flat_map(|value| ["--format".to_owned(), value]));
    out
}

/// Prints the snapshot once every host has been heard of.
pub async fn run(args: &Args, format: Option<Format>) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let snapshot = show::settle(&client).await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_millis();
    let now = Timestamp(u64::try_from(now).unwrap_or(u64::MAX));
    let default = if args.output == Output::Json { Format::Json } else { Format::Csv };
    match format.unwrap_or(default) {
        Format::Json => table::json(&snapshot.hosts)?,
        Format::Csv => table::out(csv(&snapshot, now).trim_end())?,
        Format::Prometheus => table::out(prometheus(&snapshot, now).trim_end())?,
    }
    Ok(Success::Done)
}

fn gpus(host: &HostView) -> &[Gpu] {
    host.sample.as_ref().map_or(&[], |sample| sample.gpus.list())
}

fn health(gpu: &Gpu) -> String {
    match &gpu.health {
        GpuHealth::Ok => "ok".to_owned(),
        GpuHealth::Degraded { why } => format!("degraded: {why}"),
        GpuHealth::Lost => "lost".to_owned(),
    }
}

fn link(host: &HostView) -> &'static str {
    match host.link {
        HostLinkState::Up => "up",
        HostLinkState::Limited { .. } => "limited",
        HostLinkState::Connecting { .. } => "connecting",
        HostLinkState::Asking { .. } => "asking",
        HostLinkState::Down { .. } => "down",
    }
}

const HEADINGS: &str = "host,link,age_ms,gpu,uuid,vendor,name,health,utilisation_percent,\
    memory_used_bytes,memory_total_bytes,temperature_celsius,power_milliwatts,power_limit_milliwatts,\
    sm_clock_mhz,memory_clock_mhz,fan_percent,pstate,ecc_uncorrected,ecc_corrected,xid,throttle_reasons,\
    processes";

/// One row for each GPU, and one for each host without (RFC 4180). What is not known is empty.
pub fn csv(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut out = format!("{HEADINGS}\r\n");
    for host in snapshot.hosts.values() {
        let age = age(now, host.sampled).map(|age| age.as_millis().to_string());
        let head = [host.name.to_string(), link(host).to_owned(), age.unwrap_or_default()];
        if gpus(host).is_empty() {
            let mut row = head.to_vec();
            let why = host.sample.as_ref().map_or("", |sample| match sample.gpus {
                Gpus::Hung { .. } => "driver hung",
                Gpus::None { .. } | Gpus::Some(_) => "none",
            });
            row.extend(std::iter::repeat_n(String::new(), HEADINGS.split(',').count() - 3));
            if let Some(cell) = row.get_mut(7) {
                why.clone_into(cell);
            }
            line(&mut out, &row);
        }
        for gpu in gpus(host) {
            let mut row = head.to_vec();
            row.extend(cells(gpu));
            line(&mut out, &row);
        }
    }
    out
}

fn cells(gpu: &Gpu) -> Vec<String> {
    fn cell<T: ToString>(value: Option<T>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    vec![
        gpu.index.to_string(),
        gpu.uuid.clone(),
        format!("{:?}", gpu.vendor).to_lowercase(),
        gpu.name.clone(),
        health(gpu),
        cell(gpu.utilisation_percent),
        cell(gpu.memory.map(|m: MemoryUse| m.used.0)),
        cell(gpu.memory.map(|m| m.total.0)),
        cell(gpu.temperature_c),
        cell(gpu.power_mw),
        cell(gpu.power_limit_mw),
        cell(gpu.sm_clock_mhz),
        cell(gpu.memory_clock_mhz),
        cell(gpu.fan_percent),
        cell(gpu.pstate.as_ref()),
        cell(gpu.ecc_uncorrected),
        cell(gpu.ecc_corrected),
        cell(gpu.xid.map(|x| x.code)),
        gpu.throttle_reasons.join(" "),
        gpu.processes.len().to_string(),
    ]
}

fn line(out: &mut String, row: &[String]) {
    let quoted = |cell: &String| {
        let cell = text::clean(cell, 200);
        // A sheet would take what begins like this for a formula.
        let cell = if cell.starts_with(['=', '+', '@']) { format!("'{cell}") } else { cell };
        if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    let cells: Vec<String> = row.iter().map(quoted).collect();
    let _ = write!(out, "{}\r\n", cells.join(","));
}

/// One family of metrics: what it is called, what it means, its samples.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    samples: Vec<(String, f64)>,
}

/// Prometheus' text format; units are its base units. What is not known has no sample.
pub fn prometheus(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut families: Vec<Family> = Vec::new();
    let mut add = |name: &'static str, help: &'static str, labels: &str, value: Option<f64>| {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let at = families.iter().position(|f| f.name == name).unwrap_or_else(|| {
            families.push(Family { name, help, kind, samples: Vec::new() });
            families.len() - 1
        });
        if let (Some(family), Some(value)) = (families.get_mut(at), value) {
            family.samples.push((labels.to_owned(), value));
        }
    };
    let percent = |p: Option<u32>| p.map(|p| f64::from(p) / 100.0);
    for host in snapshot.hosts.values() {
        let labels = format!("host=\"{}\"", escape(host.name.as_str()));
        let l = labels.as_str();
        let up = matches!(host.link, HostLinkState::Up | HostLinkState::Limited { .. });
        add("gpudeck_host_up", "Whether the host is reached.", l, Some(f64::from(u8::from(up))));
        let old = age(now, host.sampled).map(|age| age.as_secs_f64());
        add("gpudeck_host_sample_age_seconds", "Age of the host's last sample.", l, old);
        let offset = host.clock.map(|c| c.offset_ms as f64 / 1e3);
        add(
            "gpudeck_host_clock_offset_seconds",
            "The host's clock less the controller's.",
            l,
            offset,
        );
        let Some(sample) = &host.sample else { continue };
        let cpu = sample.cpu_percent.map(|c| f64::from(c) / 100.0);
        add("gpudeck_host_cpu_ratio", "Use of all processors, 0 to 1.", l, cpu);
        add("gpudeck_host_load1", "Load average over one minute.", l, sample.load_1m);
        let used = |m: Option<MemoryUse>| m.map(|m| m.used.0 as f64);
        let total = |m: Option<MemoryUse>| m.map(|m| m.total.0 as f64);
        add("gpudeck_host_memory_used_bytes", "Main memory in use.", l, used(sample.memory));
        add("gpudeck_host_memory_total_bytes", "Main memory.", l, total(sample.memory));
        let hung = f64::from(u8::from(matches!(sample.gpus, Gpus::Hung { .. })));
        add(
            "gpudeck_host_gpu_driver_hung",
            "Whether the GPU driver does not answer.",
            l,
            Some(hung),
        );
        for gpu in sample.gpus.list() {
            let labels = format!(
                "{labels},gpu=\"{}\",uuid=\"{}\",name=\"{}\"",
                gpu.index,
                escape(&gpu.uuid),
                escape(&gpu.name)
            );
            let l = labels.as_str();
            let healthy = f64::from(u8::from(gpu.health == GpuHealth::Ok));
            add("gpudeck_gpu_healthy", "Whether nothing is known to be wrong.", l, Some(healthy));
            let busy = percent(gpu.utilisation_percent);
            add("gpudeck_gpu_utilization_ratio", "Time in which a kernel ran, 0 to 1.", l, busy);
            let busy = percent(gpu.memory_utilisation_percent);
            add(
                "gpudeck_gpu_memory_utilization_ratio",
                "Time in which memory was used, 0 to 1.",
                l,
                busy,
            );
            add("gpudeck_gpu_memory_used_bytes", "Frame buffer in use.", l, used(gpu.memory));
            add("gpudeck_gpu_memory_total_bytes", "Frame buffer.", l, total(gpu.memory));
            let celsius = gpu.temperature_c.map(f64::from);
            add("gpudeck_gpu_temperature_celsius", "Core temperature.", l, celsius);
            let watts = |mw: Option<u32>| mw.map(|mw| f64::from(mw) / 1e3);
            add("gpudeck_gpu_power_watts", "Power drawn.", l, watts(gpu.power_mw));
            add("gpudeck_gpu_power_limit_watts", "Power limit.", l, watts(gpu.power_limit_mw));
            let hertz = |mhz: Option<u32>| mhz.map(|mhz| f64::from(mhz) * 1e6);
            add(
                "gpudeck_gpu_sm_clock_hertz",
                "Clock of the multiprocessors.",
                l,
                hertz(gpu.sm_clock_mhz),
            );
            add(
                "gpudeck_gpu_memory_clock_hertz",
                "Clock of the memory.",
                l,
                hertz(gpu.memory_clock_mhz),
            );
            add("gpudeck_gpu_fan_ratio", "Fan speed, 0 to 1.", l, percent(gpu.fan_percent));
            let count = |n: Option<u64>| n.map(|n| n as f64);
            let help = "Uncorrected memory errors since the driver was loaded.";
            add("gpudeck_gpu_ecc_uncorrected_total", help, l, count(gpu.ecc_uncorrected));
            let help = "Corrected memory errors since the driver was loaded.";
            add("gpudeck_gpu_ecc_corrected_total", help, l, count(gpu.ecc_corrected));
            let xid = gpu.xid.map(|x| x.code as f64);
            add("gpudeck_gpu_last_xid", "Number of the last Xid error.", l, xid);
            let throttled = f64::from(u8::from(!gpu.throttle_reasons.is_empty()));
            let throttled = (gpu.health != GpuHealth::Lost).then_some(throttled);
            add("gpudeck_gpu_throttled", "Whether clocks are lowered.", l, throttled);
        }
    }
    let mut out = String::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        let Family { name, help, kind, samples } = family;
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
    }
    out
}

/// A label's value.
fn escape(value: &str) -> String {
    text::clean(value, 100).replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::tui::fixture::{NOW, rich};

    #[test]
    fn absent_is_empty_in_csv_and_no_sample_in_prometheus() {
        let csv = csv(&rich(), NOW);
        let rows: Vec<&str> = csv.lines().collect();
        let columns = HEADINGS.split(',').count();
        let whole = rows.iter().filter(|r| !r.contains('"'));
        assert!(whole.clone().count() > 20);
        assert!(whole.clone().all(|row| row.split(',').count() == columns), "{csv}");
        let row = rows.iter().find(|r| r.starts_with("node2,up,1000,7,")).unwrap();
        assert!(row.contains(",evilname,ok,,,,,,700000,"), "{row}");
        assert!(rows.iter().any(|r| r.starts_with("node5,") && r.contains(",driver hung,")));
        assert!(!csv.contains('\u{1b}'));

        let text = prometheus(&rich(), NOW);
        let gpu7 = |line: &&str| line.contains("host=\"node2\",gpu=\"7\"");
        let names: Vec<&str> =
            text.lines().filter(gpu7).filter_map(|line| line.split('{').next()).collect();
        assert!(!names.contains(&"gpudeck_gpu_utilization_ratio"), "{names:?}");
        assert!(names.contains(&"gpudeck_gpu_power_limit_watts"));
        assert!(text.contains("gpudeck_gpu_last_xid{host=\"node2\",gpu=\"5\""));
        assert!(text.contains("gpudeck_host_up{host=\"node4\"} 0\n"));
        assert!(text.contains("gpudeck_host_gpu_driver_hung{host=\"node5\"} 1\n"));
        for name in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
            let name = name.split(' ').next().unwrap();
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
        }
    }

    #[test]
    fn the_forms_of_this_command_are_found_wherever_they_stand() {
        let words = |line: &str| -> Vec<String> {
            normalise(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(words("g snapshot --output csv").join(" "), "g snapshot --format csv");
        assert_eq!(words("g snapshot -o prometheus").join(" "), "g snapshot --format prometheus");
        assert_eq!(words("g snapshot --output=csv").join(" "), "g snapshot --format csv");
        assert_eq!(words("g --output csv snapshot").join(" "), "g snapshot --format csv");
        assert_eq!(words("g --output=csv snapshot").join(" "), "g snapshot --format csv");
        assert_eq!(words("g snapshot --output json").join(" "), "g snapshot --output json");
        assert_eq!(words("g plan --output csv").join(" "), "g plan --output csv");
    }
}
