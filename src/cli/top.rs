//! `gpudeck top`: how hosts and GPUs do, again and again, as plain lines that are only ever added:
//! for logs, pipes, slow lines and screen readers.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{show as seen, table, top_details};
use crate::api::{
    Delta, Door, Gpu, GpuHealth, Gpus, HostLinkState, HostName, HostView, Looking, Snapshot,
    Timestamp, age, text, time, xid,
};

/// Longest line, in characters.
const MAX_LINE: usize = 600;

/// What is looked at is said again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A sample older than that is shown with its age.
const OLD: Duration = Duration::from_secs(8);

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub struct Show<'a> {
    /// Only these; all, if there is none.
    pub hosts: &'a [HostName],
    /// Also what the details on the screen show.
    pub details: bool,
}

/// Follows the deck's hosts, a round every `interval`; `rounds` of them, or for ever.
pub async fn run(
    args: &Args,
    show: Show<'_>,
    rounds: Option<u64>,
    interval: Duration,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    // Who looks on sees hosts arrive; who asks for some rounds wants what there is to see in them.
    let mut snapshot = match rounds {
        None => client.snapshot().await?,
        Some(_) => seen::settle(&client).await?,
    };
    for name in show.hosts {
        if !snapshot.hosts.contains_key(name) {
            return Err(Failure::no_host(name, snapshot.hosts.keys()));
        }
    }
    let mut deltas = client.stream().await?;
    let mut due = Instant::now();
    let mut look_due = due;
    let mut left = rounds;
    let mut follows = false;
    while left != Some(0) {
        tokio::select! {
            delta = deltas.next() => match delta {
                Some(delta) => {
                    follows |= matches!(delta, Delta::Snapshot(_));
                    if !snapshot.apply(delta) {
                        deltas = client.stream().await?;
                    }
                }
                None => return Err(Failure::other("the controller has ended")
                    .with_hint("run the command again: it starts one")),
            },
            () = tokio::time::sleep_until(look_due) => {
                look_due = Instant::now() + LOOK_AGAIN;
                let wanted = wanted(&snapshot, show.hosts).map(|h| h.name.clone()).collect();
                // What costs much is measured of one host at a time.
                let detail = match show.hosts {
                    [only] if show.details => Some(only.clone()),
                    _ => None,
                };
                client.look(&Looking { hosts: wanted, detail, ..Looking::default() }).await?;
            }
            () = tokio::time::sleep_until(due), if follows => {
                due = Instant::now() + interval;
                round(args, &snapshot, show)?;
                left = left.map(|n| n - 1);
            }
        }
    }
    Ok(Success::Done)
}

fn wanted<'a>(snapshot: &'a Snapshot, only: &'a [HostName]) -> impl Iterator<Item = &'a HostView> {
    snapshot.hosts.values().filter(move |h| only.is_empty() || only.contains(&h.name))
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}

fn round(args: &Args, snapshot: &Snapshot, show: Show<'_>) -> Result<(), Failure> {
    let now = now();
    if args.output == Output::Json {
        let hosts: Vec<&HostView> = wanted(snapshot, show.hosts).collect();
        return table::json_line(&serde_json::json!({ "at": now, "hosts": hosts }));
    }
    let simulated = if snapshot.deck.simulated { " SIMULATED" } else { "" };
    table::out(&format!("{now}{simulated}"))?;
    for host in wanted(snapshot, show.hosts) {
        for line in lines(host, now, show.details) {
            table::out(&line)?;
        }
    }
    Ok(())
}

fn number<T: std::fmt::Display>(value: Option<T>, unit: &str) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v}{unit}"))
}

/// A host and its GPUs, a line each; every line says of what it speaks.
pub fn lines(host: &HostView, now: Timestamp, details: bool) -> Vec<String> {
    let name = &host.name;
    let link = match &host.link {
        HostLinkState::Up => String::new(),
        HostLinkState::Limited { why, .. } => format!("only looked at (no agent: {why}), "),
        HostLinkState::Connecting { phase } => format!("{phase}, "),
        HostLinkState::Asking { question } => format!("asks question {question}, "),
        HostLinkState::Down { cause, .. } => format!("DOWN ({cause}), "),
    };
    let Some(sample) = &host.sample else {
        return vec![text::clean(&format!("{name}: {link}no sample yet"), 400)];
    };
    let age = age(now, host.sampled).unwrap_or_default();
    let gpus_age = age + Duration::from_millis(sample.gpus_age_ms.unwrap_or(0));
    let is_down = matches!(host.link, HostLinkState::Down { .. });
    let old = if age > OLD || is_down {
        format!(", {} old", time::short(age))
    } else if gpus_age > OLD {
        format!(", its GPUs {} old", time::short(gpus_age))
    } else {
        String::new()
    };
    let memory = sample.memory.map(|m| format!("{} of {}", m.used, m.total));
    let mut lines = vec![format!(
        "{name}: {link}processors {}, load {}, memory {}{old}",
        number(sample.cpu_percent.map(f32::round), " %"),
        number(sample.load_1m.map(|l| format!("{l:.1}")), ""),
        number(memory, ""),
    )];
    if details {
        lines.extend(top_details::of_host(host));
    }
    if let Some(why) = &sample.gpu_trouble {
        let is_hung = matches!(sample.gpus, Gpus::Hung { .. });
        let whose = if is_hung { "the GPUs" } else { "NVIDIA's GPUs" };
        lines.push(format!("{name}: {whose} are not shown: {why}"));
    }
    match &sample.gpus {
        Gpus::None { why } => lines.push(format!("{name}: no GPU: {why}")),
        // Not the driver: it was said above what.
        Gpus::Hung { .. } if sample.gpu_trouble.is_some() => {}
        Gpus::Hung { for_ms } => {
            let time = time::short(Duration::from_millis(*for_ms));
            lines.push(format!("{name}: the GPU DRIVER HANGS for {time}"));
        }
        Gpus::Some(gpus) => {
            for gpu in gpus {
                // Each line stands for itself: who looks for one GPU does not see the host's.
                lines.push(format!("{}{old}", gpu_line(host, gpu)));
                if details && gpu.health != GpuHealth::Lost {
                    lines.extend(top_details::of_gpu(host, gpus, gpu));
                }
            }
        }
    }
    lines.iter().map(|line| text::clean(line, MAX_LINE)).collect()
}

fn gpu_line(host: &HostView, gpu: &Gpu) -> String {
    let name = format!("{} GPU {}", host.name, gpu.index);
    if gpu.health == GpuHealth::Lost {
        // A harmless error that came before has nothing to do with it.
        let xid =
            gpu.judged_xid().map(|x| format!(" ({})", xid::describe(x.code))).unwrap_or_default();
        return format!("{name}: LOST{xid}");
    }
    let watts = |mw: Option<u32>| number(mw.map(|m| (m + 500) / 1_000), " W");
    let memory = gpu.memory.map(|m| format!("{} of {}", m.used, m.total));
    let mut line = format!(
        "{name}: busy {}, memory {}, {}, {} of {}, {}",
        number(gpu.utilisation_percent, " %"),
        number(memory, ""),
        number(gpu.temperature_c, " °C"),
        watts(gpu.power_mw),
        watts(gpu.power_limit_mw),
        number(gpu.sm_clock_mhz, " MHz"),
    );
    match gpu.throttle_reasons.as_deref() {
        Some([]) => {}
        Some(reasons) => line.push_str(&format!(", slowed by {}", reasons.join(" and "))),
        None => line.push_str(", slowed by –"),
    }
    if let GpuHealth::Degraded { why } = &gpu.health {
        line.push_str(&format!(", DEGRADED: {why}"));
    } else if let Some(last) = gpu.xid {
        line.push_str(&format!(", {}", xid::describe(last.code)));
    }
    let rank = host.ranks.iter().find(|rank| rank.devices.iter().any(|d| gpu.has(d)));
    match (rank, gpu.listed().split_first()) {
        (Some(rank), _) => line.push_str(&format!(", {}", rank.rank)),
        (None, Some((process, others))) => {
            let whose = process.user.as_deref().unwrap_or("–");
            let name = Some(process.name.as_str()).filter(|n| !n.is_empty()).unwrap_or("–");
            line.push_str(&format!(", {name} of {whose} (pid {})", process.pid));
            if !others.is_empty() {
                line.push_str(&format!(" and {} more", others.len()));
            }
        }
        (None, None) if gpu.processes.is_none() => line.push_str(", processes –"),
        (None, None) => line.push_str(", free"),
    }
    line
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tui::fixture;

    #[test]
    fn every_line_says_of_what_it_speaks_and_steers_no_terminal() {
        let snapshot = fixture::rich();
        let mut all: Vec<String> = Vec::new();
        for host in snapshot.hosts.values() {
            let lines = lines(host, fixture::NOW, false);
            assert!(lines.iter().all(|l| l.starts_with(host.name.as_str())), "{lines:#?}");
            all.extend(lines);
        }
        assert!(all.iter().all(|line| !line.contains('\u{1b}')));
        let has = |what: &str| assert!(all.iter().any(|l| l.contains(what)), "{what}: {all:#?}");
        has(
            "node2 GPU 0: busy 84 %, memory 61.2 GiB of 80.0 GiB, 62 °C, 546 W of 700 W, 1980 MHz, chat/1/0",
        );
        has("node2 GPU 5: LOST (Xid 79: the GPU has fallen off the bus)");
        has("node2 GPU 6: busy 0 %");
        has("DEGRADED: 2 uncorrected errors");
        has("node2 GPU 7: busy –, memory –, –, – of 700 W");
        has("node3: processors 23 %, load 12.0, memory 210 GiB of 1008 GiB, 12s old");
        has("node4: DOWN (connection refused)");
        // Who looks for one GPU alone is told as well that its values are not of now.
        let stale = |l: &&String| l.starts_with("node4 GPU") || l.starts_with("node3 GPU");
        assert!(all.iter().filter(stale).all(|l| l.ends_with(" old")), "{all:#?}");
        assert!(all.iter().filter(stale).count() >= 8);
        has("the GPU DRIVER HANGS");
    }

    #[test]
    fn a_gpu_whose_processes_are_not_known_is_not_called_free() {
        let mut gpu = fixture::gpu("node1", 7, 0, 0);
        gpu.processes = Some(Vec::new());
        let snapshot = fixture::rich();
        let mut host = snapshot.hosts.values().next().unwrap().clone();
        host.ranks.clear();
        assert!(gpu_line(&host, &gpu).ends_with(", free"));
        gpu.processes = None;
        assert!(gpu_line(&host, &gpu).ends_with(", processes –"));
    }

    #[test]
    fn all_who_use_a_gpu_are_counted() {
        let process = |pid, name: &str| crate::api::GpuProcess {
            pid,
            name: name.into(),
            ..crate::api::GpuProcess::default()
        };
        let mut gpu = fixture::gpu("node1", 7, 0, 0);
        let snapshot = fixture::rich();
        let mut host = snapshot.hosts.values().next().unwrap().clone();
        host.ranks.clear();
        gpu.processes = Some(vec![process(7, "python3")]);
        assert!(gpu_line(&host, &gpu).ends_with(", python3 of – (pid 7)"));
        gpu.processes = Some(vec![process(7, ""), process(8, "x"), process(9, "y")]);
        assert!(gpu_line(&host, &gpu).ends_with(", – of – (pid 7) and 2 more"));
    }

    #[test]
    fn a_harmless_error_is_not_why_a_gpu_is_lost() {
        let snapshot = fixture::rich();
        let host = snapshot.hosts.values().next().unwrap();
        let mut gpu = fixture::gpu("node1", 7, 0, 0);
        gpu.health = GpuHealth::Lost;
        let xid = |code| Some(crate::api::Xid { code, count: 1, monotonic_ms: 0 });
        gpu.xid = xid(31);
        assert!(gpu_line(host, &gpu).ends_with(": LOST"), "{}", gpu_line(host, &gpu));
        gpu.grave_xid = xid(79);
        assert!(gpu_line(host, &gpu).contains(": LOST (Xid 79"));
    }

    #[test]
    fn a_gpu_of_which_nobody_knows_whether_it_is_slowed_does_not_look_as_if_it_were_not() {
        let snapshot = fixture::rich();
        let host = snapshot.hosts.values().next().unwrap();
        let mut gpu = fixture::gpu("node1", 7, 0, 0);
        assert!(!gpu_line(host, &gpu).contains("slowed"));
        gpu.throttle_reasons = Some(vec!["power".into(), "heat".into()]);
        assert!(gpu_line(host, &gpu).contains(", slowed by power and heat"));
        gpu.throttle_reasons = None;
        assert!(gpu_line(host, &gpu).contains(", slowed by –"));
    }

    #[test]
    fn gpu_values_that_the_driver_was_slow_with_are_told_with_their_age() {
        let mut snapshot = fixture::rich();
        let host = snapshot.hosts.values_mut().find(|h| h.name.as_str() == "node1").unwrap();
        std::sync::Arc::make_mut(host.sample.as_mut().unwrap()).gpus_age_ms = Some(20_000);
        let first = lines(host, fixture::NOW, false).remove(0);
        assert!(first.contains("its GPUs 2") && first.ends_with("s old"), "{first}");
    }

    #[test]
    fn details_are_lines_of_the_same_kind() {
        let snapshot = fixture::rich();
        let mut all: Vec<String> = Vec::new();
        for host in snapshot.hosts.values() {
            let lines = lines(host, fixture::NOW, true);
            assert!(lines.iter().all(|l| l.starts_with(host.name.as_str())), "{lines:#?}");
            all.extend(lines);
        }
        for part in [
            "node1 system: ",
            "kernel",
            "CUDA ",
            "node1 disk ",
            "node1 interface ",
            "since boot",
            "clock",
            "GPU 0 clocks: ",
            "GPU 0 units: ",
            "GPU 0 PCI Express: ",
            "GPU 0 NVLink: ",
            "GPU 0 ways",
            "GPU 0 memory errors: ",
            "GPU 0 wear: ",
            "GPU 0 modes: ",
            " process ",
            "container ",
            "unit ",
        ] {
            assert!(all.iter().any(|l| l.contains(part)), "{part}: {all:#?}");
        }
    }
}
