//! The GPUs of a host, read from a driver or played from a scenario.
//!
//! One trait ([`GpuSource`]), one conformance suite (`tests/agent_far_end.rs`), three implementations:
//! NVIDIA's NVML, AMD's files in sysfs, a scenario. A driver can hang inside the kernel, so drivers
//! are asked in a child process that can be killed ([`child`]); [`monitor`] is what the agent asks.

pub mod amd;
pub mod amd_metrics;
mod amd_paths;
pub mod cgroup;
pub mod child;
pub mod monitor;
pub mod nvml;
pub mod nvml_events;
pub mod nvml_fields;
pub mod nvml_identity;
pub mod patience;
pub mod played;
pub mod processes;
pub mod roll;
pub mod scenario;
pub mod wear;
pub mod xids;

use serde::{Deserialize, Serialize};

use crate::wire::{Gpu, GpuHealth, Gpus, xid};

/// Where GPU values come from.
pub trait GpuSource: Send {
    /// Reads what is wanted now. May block for as long as the driver likes.
    fn read(&mut self, want: Want) -> Gpus;

    /// Versions of what answers; known after the first good reading.
    fn versions(&self) -> DriverVersions;

    /// Why GPUs that are beside those of the last reading cannot be read, if there are any.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// How much of a reading must be new. What a driver call costs decides what is read when: memory,
/// utilisation, temperature, power and clocks every time; processes, memory errors and the like
/// every five seconds; who the GPUs are and how they are linked every minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// What is due.
    #[default]
    Due,
    /// A person looks at the details: also traffic over PCI Express and NVLink (20 ms a call), and
    /// what takes turns more often.
    LookedAt,
    /// A decision hangs on it (or something has happened): all that can change, now.
    Fresh,
}

/// Versions of a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverVersions {
    /// Of the NVIDIA driver (or AMD's, where there is no other).
    pub driver: Option<String>,
    /// Of CUDA, as the driver supports it: `12.4`.
    pub cuda: Option<String>,
}

/// What a GPU's counters and the gravest of its Xid errors say about its health.
pub fn health_of(gpu: &Gpu) -> GpuHealth {
    let why = match (gpu.ecc_uncorrected, gpu.judged_xid()) {
        (_, Some(grave)) if grave.code == 79 => return GpuHealth::Lost,
        (_, Some(grave)) => xid::describe(grave.code),
        (Some(1), _) => "1 uncorrected memory error".to_owned(),
        (Some(n), _) if n > 0 => format!("{n} uncorrected memory errors"),
        _ if gpu.row_remap_failed == Some(true) => {
            "a broken memory row could not be replaced".to_owned()
        }
        _ if gpu.row_remap_pending == Some(true) => {
            "memory rows wait for a reset of the GPU to be replaced".to_owned()
        }
        _ if gpu.retired_pages_pending == Some(true) => {
            "memory pages wait for a reboot to be taken out of use".to_owned()
        }
        _ if let Some(state) = gpu.fabric_not_ready() => {
            format!("the fabric of its NVSwitches is not ready: {state}")
        }
        _ => return GpuHealth::Ok,
    };
    GpuHealth::Degraded { why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{NvLinks, Xid};

    #[test]
    fn a_gpu_on_nvswitches_waits_for_their_fabric() {
        let health = |fabric: Option<&str>, links: Option<u32>, mig: Option<bool>| {
            let nvlink = NvLinks { links, ..NvLinks::default() };
            health_of(&Gpu { fabric: fabric.map(Into::into), nvlink, mig, ..Gpu::default() })
        };
        let waits = health(Some("in_progress"), Some(18), Some(false));
        assert!(matches!(waits, GpuHealth::Degraded { why } if why.contains("in_progress")));
        assert_eq!(health(Some("completed"), Some(18), None), GpuHealth::Ok);
        assert_eq!(health(None, Some(18), None), GpuHealth::Ok);
        // Nothing to be joined by, and one that is divided does not use its links.
        assert_eq!(health(Some("not_started"), None, None), GpuHealth::Ok);
        assert_eq!(health(Some("not_started"), Some(18), Some(true)), GpuHealth::Ok);
    }

    #[test]
    fn a_harmless_xid_does_not_hide_a_grave_one() {
        let health = |codes: &[u64]| {
            let mut gpu = Gpu::default();
            for code in codes {
                gpu.xid = Some(Xid { code: *code, monotonic_ms: 1, count: 1 });
                gpu.grave_xid = xid::graver(gpu.grave_xid, gpu.xid);
            }
            health_of(&gpu)
        };
        let degraded = |code| GpuHealth::Degraded { why: xid::describe(code) };
        assert_eq!(health(&[48, 45]), degraded(48));
        assert_eq!(health(&[119, 154, 45]), degraded(119));
        assert_eq!(health(&[79, 45]), GpuHealth::Lost);
        assert_eq!(health(&[45, 43, 63]), GpuHealth::Ok);
    }
}
