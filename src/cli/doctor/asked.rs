//! What the agent finds out when it is asked: container engine, engines, the disk's speed, ports of the other hosts,
//! and what a logout ends.

use super::{Check, Verdict, check};
use crate::api::{Bytes, Checkup, Disk, HostView, Logout, Reached};

/// A disk slower than that loads a large model for hours, bytes a second.
const SLOW_DISK: u64 = 100 << 20;

/// Of more hosts whose ports are reached their number is told.
const SHOWN_EACH: usize = 8;

/// What the agent found out when it was asked: container engine, disk, ports of the other hosts.
pub(super) fn of_checkup(host: &HostView, checkup: &Checkup) -> Vec<Check> {
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
    checks.extend(ports(checkup));
    checks
}

/// The ports of the other hosts: each that is not well, and those that are.
fn ports(checkup: &Checkup) -> Vec<Check> {
    let is_good = |r: &&Reached| r.took_us.is_some();
    let (good, others): (Vec<_>, Vec<_>) = checkup.reached.iter().partition(is_good);
    let mut checks = Vec::new();
    if good.len() > SHOWN_EACH {
        let took = |r: &&Reached| r.took_us.unwrap_or_default();
        let least = good.iter().map(took).min().unwrap_or_default() as f64 / 1e3;
        let most = good.iter().map(took).max().unwrap_or_default() as f64 / 1e3;
        let found = format!("to {} hosts in {least:.1} to {most:.1} ms", good.len());
        checks.push(check("ports", Verdict::Good, found));
    } else {
        checks.extend(good.into_iter().map(port));
    }
    checks.extend(others.into_iter().map(port));
    if checkup.untried > 0 {
        let found = format!("to {} more hosts: there was no time to try them", checkup.untried);
        let advice = "ask again when those that do not answer are mended or out of the deck";
        checks.push(check("ports", Verdict::Note, found).advise(advice));
    }
    checks
}

/// The port of another host.
fn port(reached: &Reached) -> Check {
    const OPEN: &str = "ranks of one replica and the gateway connect there: open the host's engine ports, or set its `engine_address`";
    let to = &reached.address;
    match reached {
        Reached { took_us: Some(_), listened: true, .. } => {
            check("ports", Verdict::Good, format!("to {to}: open, nothing listens there now"))
        }
        Reached { took_us: Some(took), .. } => {
            let found = format!("to {to} in {:.1} ms", *took as f64 / 1e3);
            check("ports", Verdict::Good, found)
        }
        Reached { refused: true, listened: true, .. } => {
            let found =
                format!("to {to}: refused though its agent listened: a firewall rejects it");
            check("ports", Verdict::Poor, found).advise(OPEN)
        }
        Reached { refused: true, .. } => {
            let found =
                format!("to {to}: refused: nothing listens there, or a firewall rejects it");
            let advice = "nothing listened there to find out (the host is not up, or its port is taken): ask again when it is";
            check("ports", Verdict::Note, found).advise(advice)
        }
        Reached { why, .. } => {
            let why = why.as_deref().unwrap_or("no answer");
            check("ports", Verdict::Poor, format!("to {to}: {why}")).advise(OPEN)
        }
    }
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
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use crate::api::ProgramFound;
    use crate::tui::fixture::rich;

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
    fn of_many_hosts_those_that_are_not_well_are_told_and_those_not_tried() {
        let good = |us| Reached { took_us: Some(us), ..Reached::default() };
        let mut reached: Vec<Reached> = (1..=199).map(|n| good(n * 100)).collect();
        reached.push(Reached { address: "far".to_owned(), ..Reached::default() });
        let checks = ports(&Checkup { reached, untried: 12, ..Checkup::default() });
        let found: Vec<&str> = checks.iter().map(|c| c.found.as_str()).collect();
        assert_eq!(
            found,
            [
                "to 199 hosts in 0.1 to 19.9 ms",
                "to far: no answer",
                "to 12 more hosts: there was no time to try them",
            ]
        );
    }

    #[test]
    fn a_port_that_refuses_is_open_only_if_it_is_reached_while_somebody_listens() {
        let program = |name: &str, file: Option<&str>, version: Option<&str>| ProgramFound {
            program: name.to_owned(),
            file: file.map(str::to_owned),
            version: version.map(str::to_owned),
        };
        let reached = |took_us, refused, listened| Reached {
            address: "b (10.0.0.2:21000)".to_owned(),
            took_us,
            refused,
            listened,
            why: Some("why".to_owned()),
        };
        let checkup = Checkup {
            reached: vec![
                reached(Some(300), false, false),
                reached(Some(300), false, true),
                reached(None, true, false),
                reached(None, true, true),
                reached(None, false, false),
            ],
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
                ("ports", Verdict::Note),
                ("ports", Verdict::Poor),
                ("ports", Verdict::Poor),
            ]
        );
        let [_, open, unknown, rejected, silent] = &checks[checks.len() - 5..] else { panic!() };
        assert!(open.found.contains("open, nothing listens"), "{open:?}");
        assert!(unknown.found.contains("or a firewall rejects it"), "{unknown:?}");
        assert!(rejected.found.contains("though its agent listened"), "{rejected:?}");
        assert!(silent.advice.is_some() && rejected.advice.is_some());
    }
}
