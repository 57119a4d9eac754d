//! The driver, and every GPU: what is the same of several is said once.

use std::time::Duration;

use smol_str::SmolStr;

use super::{Check, Verdict, check};
use crate::api::{Gpu, GpuHealth, Gpus, HostView, time, xid};
use crate::cli::no_gpus::is_without_gpu;

pub(super) fn driver(host: &HostView, gpus: &Gpus) -> Vec<Check> {
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
pub(super) fn folded(gpus: &[Gpu]) -> Vec<Check> {
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
            let fabric = gpu.fabric_not_ready().filter(|state| why.ends_with(state));
            let usual = match fabric {
                Some(_) => {
                    "systemctl status nvidia-fabricmanager: it must run, in the version of the driver"
                }
                None => {
                    "drain it and reboot the host, or reset it: nvidia-smi --gpu-reset; where no spare rows are left, have it replaced"
                }
            };
            let advice = gpu.judged_xid().map_or(usual, |grave| xid::meaning(grave.code).advice());
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::tui::fixture::rich;

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
        // As the script says it that reads a host without an agent.
        assert_eq!(verdict("there is no nvidia-smi"), Verdict::Note);
        assert_eq!(verdict("NVIDIA-SMI has failed because it could not communicate"), Verdict::Bad);
    }
}
