//! What the GPUs of a fleet come to, added up host by host.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::api::{Bytes, DeviceId, GpuHealth, Gpus, HostLinkState, HostName, HostView, Timestamp};

/// GPUs added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuSums {
    /// How many.
    pub gpus: u32,
    /// Those of hosts that are not reached, which count for nothing else.
    pub unknown: u32,
    /// Those that have fallen off the bus.
    pub lost: u32,
    /// Memory in use, of those that say so.
    pub used: Bytes,
    /// Their memory.
    pub total: Bytes,
    /// Power drawn, of those that say so.
    pub milliwatts: Option<u64>,
    /// Utilisation, added up.
    pub busy_percent: u32,
    /// How many say their utilisation.
    pub measured: u32,
}

impl GpuSums {
    fn of_host(host: &HostView) -> Self {
        let mut sums = Self::default();
        for gpu in host.sample.iter().flat_map(|sample| sample.gpus.list()) {
            let memory = gpu.memory;
            sums.add(Self {
                gpus: 1,
                unknown: 0,
                lost: u32::from(gpu.health == GpuHealth::Lost),
                used: memory.map_or(Bytes::ZERO, |memory| memory.used),
                total: memory.map_or(Bytes::ZERO, |memory| memory.total),
                milliwatts: gpu.power_mw.map(u64::from),
                busy_percent: gpu.utilisation_percent.unwrap_or(0),
                measured: u32::from(gpu.utilisation_percent.is_some()),
            });
        }
        sums
    }

    fn add(&mut self, more: Self) {
        self.gpus = self.gpus.saturating_add(more.gpus);
        self.unknown = self.unknown.saturating_add(more.unknown);
        self.lost = self.lost.saturating_add(more.lost);
        self.used = self.used.saturating_add(more.used);
        self.total = self.total.saturating_add(more.total);
        if let Some(more) = more.milliwatts {
            self.milliwatts = Some(self.milliwatts.unwrap_or(0).saturating_add(more));
        }
        self.busy_percent = self.busy_percent.saturating_add(more.busy_percent);
        self.measured = self.measured.saturating_add(more.measured);
    }
}

/// Whether the host's driver does not answer.
fn hangs(host: &HostView) -> bool {
    host.sample.as_ref().is_some_and(|sample| matches!(sample.gpus, Gpus::Hung { .. }))
}

/// The GPUs of a host that cannot be read now: as many as there were, or at least those that replicas hold.
fn not_read(host: &HostView, before: u32) -> GpuSums {
    let devices = host.ranks.iter().flat_map(|rank| &rank.devices).filter(|d| **d != DeviceId::Cpu);
    let held = devices.collect::<std::collections::HashSet<_>>().len();
    let gpus = before.max(u32::try_from(held).unwrap_or(u32::MAX));
    GpuSums { gpus, unknown: gpus, ..GpuSums::default() }
}

/// Which sample it is: when it arrived, and the host's own clock in it.
type Which = (Option<Timestamp>, Option<u64>);

/// What is known of each host from the frame before: eight thousand GPUs are not looked at four times a second
/// because fifty of them have changed.
#[derive(Clone, Debug, Default)]
pub struct KnownSums(RefCell<HashMap<HostName, (Which, GpuSums)>>);

impl KnownSums {
    /// The GPUs of these hosts.
    pub fn of(&self, hosts: &[&HostView]) -> GpuSums {
        let mut known = self.0.borrow_mut();
        if known.len() > hosts.len().saturating_mul(2) {
            known.clear();
        }
        let mut all = GpuSums::default();
        for host in hosts {
            let which = (host.sampled, host.sample.as_ref().map(|sample| sample.monotonic_ms));
            let sums = match known.get(&host.name) {
                Some((of, sums)) if *of == which => *sums,
                before => {
                    let before = before.map_or(0, |(_, sums)| sums.gpus);
                    let sums =
                        if hangs(host) { not_read(host, before) } else { GpuSums::of_host(host) };
                    known.insert(host.name.clone(), (which, sums));
                    sums
                }
            };
            // What a host said before it was lost is not what it does now.
            let is_reached = matches!(host.link, HostLinkState::Up | HostLinkState::Limited { .. });
            all.add(if is_reached {
                sums
            } else {
                GpuSums { gpus: sums.gpus, unknown: sums.gpus, ..GpuSums::default() }
            });
        }
        all
    }
}
