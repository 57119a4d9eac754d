//! What the snapshot says of the host: the way there, the agent, the data, the driver and GPUs, disk space, clock.

use super::connection::way;
use super::gpus::{driver, folded};
use super::{Check, Verdict, check};
use crate::api::{
    Bytes, GatewayView, Gpus, HostFacts, HostLinkState, HostView, Timestamp, age, time,
};
use crate::cli::hosts::FRESH;

/// A clock further off than that makes logs and leases hard to read, milliseconds.
const CLOCK_OFF_MS: u64 = 1_000;

/// Less space than that is soon none.
const SPACE: Bytes = Bytes::gib(2);

/// Whether what a gateway is told lasts.
pub(super) fn of_gateway(gateway: &GatewayView) -> Check {
    let name = &gateway.name;
    match &gateway.config {
        Some(directory) => {
            let found = format!("{name}: a reload keeps what it was told, in {directory}");
            check("gateway", Verdict::Good, found)
        }
        None => check(
            "gateway",
            Verdict::Poor,
            format!("{name}: a reload or restart of HAProxy empties the backends until they are told again"),
        )
        .advise("let gpudeck write the sections: `config` of the gateway in deck.toml"),
    }
}

/// What the snapshot says: the way there, the agent, the data, the driver, every GPU, disk, clock.
pub(super) fn of_view(host: &HostView, now: Timestamp) -> Vec<Check> {
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
            let fresh = age < FRESH;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_without_a_file_is_poor() {
        let of = |config: Option<&str>| {
            of_gateway(&GatewayView {
                name: "main".parse().unwrap(),
                host: "h1".parse().unwrap(),
                config: config.map(str::to_owned),
            })
        };
        assert_eq!(of(Some("/etc/haproxy/gpudeck.d")).verdict, Verdict::Good);
        let poor = of(None);
        assert_eq!(poor.verdict, Verdict::Poor);
        assert!(poor.advice.unwrap().contains("`config` of the gateway"));
    }
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
}
