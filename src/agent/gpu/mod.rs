//! The GPUs of a host, read from a driver or played from a scenario.
//!
//! One trait, one conformance suite (`tests/agent_far_end.rs`), two implementations. A driver can
//! hang inside the kernel, so NVML runs in a child process that can be killed ([`child`]);
//! [`monitor`] is what the agent asks.

pub mod child;
pub mod monitor;
pub mod nvml;
pub mod played;
pub mod scenario;

use serde::{Deserialize, Serialize};

use crate::wire::{GpuHealth, Gpus};

/// Where GPU values come from.
pub trait GpuSource: Send {
    /// Reads everything now. May block for as long as the driver likes.
    fn read(&mut self) -> Gpus;

    /// Versions of what answers; known after the first good reading.
    fn versions(&self) -> DriverVersions;
}

/// Versions of a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverVersions {
    /// Of the NVIDIA driver.
    pub driver: Option<String>,
    /// Of CUDA, as the driver supports it: `12.4`.
    pub cuda: Option<String>,
}

/// What uncorrected memory errors say about a GPU's health.
fn health_of(ecc_uncorrected: Option<u64>) -> GpuHealth {
    match ecc_uncorrected {
        None | Some(0) => GpuHealth::Ok,
        Some(1) => GpuHealth::Degraded { why: "1 uncorrected memory error".to_owned() },
        Some(n) => GpuHealth::Degraded { why: format!("{n} uncorrected memory errors") },
    }
}
