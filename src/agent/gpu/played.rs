//! GPUs played from a scenario, without a driver: for the demo and for tests.

use std::path::Path;

use super::scenario::{GpuScript, Health, Player, Reading};
use super::{DriverVersions, GpuSource, health_of};
use crate::agent::process;
use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuHealth, GpuProcess, Gpus, MemoryUse};

/// Plays a scenario file.
#[derive(Debug)]
pub struct PlayedSource {
    player: Result<Player, String>,
}

impl PlayedSource {
    /// Plays `path`; a file that is no scenario is a host without GPUs that says why.
    pub fn open(path: &Path) -> Self {
        let player = Player::open(path)
            .map_err(|e| format!("scenario {}: {e}", clean(&path.to_string_lossy(), 200)));
        Self { player }
    }

    /// The host's name, if the scenario gives one.
    pub fn hostname(&mut self) -> Option<String> {
        let scenario = self.player.as_mut().ok()?.scenario();
        scenario.hostname.as_ref().map(|name| clean(name, 64))
    }

    /// The driver of the scenario hangs.
    pub fn hangs(&mut self) -> bool {
        self.player.as_mut().is_ok_and(|p| p.scenario().hang)
    }

    /// Where engines tell the scenario what they allocate.
    pub fn allocations(&mut self) -> Option<std::path::PathBuf> {
        self.player.as_mut().ok()?.scenario().allocations.clone()
    }
}

impl GpuSource for PlayedSource {
    fn read(&mut self) -> Gpus {
        let player = match &mut self.player {
            Ok(player) => player,
            Err(why) => return Gpus::None { why: clean(why, 300) },
        };
        let readings = player.read();
        let scripts = &player.scenario().gpus;
        if scripts.is_empty() {
            return Gpus::None { why: "no GPU".to_owned() };
        }
        let default = Reading::default();
        let gpus = scripts
            .iter()
            .map(|script| gpu(script, scripts, readings.get(&script.uuid).unwrap_or(&default)));
        Gpus::Some(gpus.collect())
    }

    fn versions(&self) -> DriverVersions {
        match &self.player {
            Ok(player) => player.versions(),
            Err(_) => DriverVersions::default(),
        }
    }
}

impl Player {
    fn versions(&self) -> DriverVersions {
        let scenario = self.loaded();
        DriverVersions {
            driver: Some(clean(&scenario.driver_version, 40)),
            cuda: Some(clean(&scenario.cuda_version, 40)),
        }
    }
}

fn gpu(script: &GpuScript, all: &[GpuScript], now: &Reading) -> Gpu {
    let lost = script.health == Health::Lost;
    // What a driver says of a lost GPU is who it was.
    let has = |field: &str| !lost && script.has(field);
    let ecc = has("ecc").then(|| script.ecc());
    let peers = script.peers(all).map(|p| clean(&p.uuid, 80));
    Gpu {
        index: script.index.unwrap_or_default(),
        uuid: clean(&script.uuid, 80),
        name: clean(&script.name, 96),
        health: if lost { GpuHealth::Lost } else { health_of(ecc) },
        pci_bus_id: script.pci_bus_id.as_ref().filter(|_| script.has("pci_bus_id")).cloned(),
        memory: has("memory").then_some(MemoryUse {
            used: Bytes(now.memory_used),
            total: Bytes(script.memory_total),
        }),
        utilisation_percent: has("utilisation").then_some(now.utilisation_percent),
        memory_utilisation_percent: has("utilisation").then_some(now.memory_utilisation_percent),
        temperature_c: has("temperature").then_some(now.temperature_c),
        slowdown_temperature_c: has("slowdown_temperature")
            .then_some(script.slowdown_temperature_c),
        power_mw: has("power").then_some(now.power_mw),
        power_limit_mw: has("power_limit").then_some(script.power_limit_mw),
        fan_percent: script.fan_percent.filter(|_| has("fan")),
        sm_clock_mhz: has("clocks").then_some(script.sm_clock_mhz),
        memory_clock_mhz: has("clocks").then_some(script.memory_clock_mhz),
        pstate: has("pstate").then(|| format!("P{}", script.pstate)),
        throttle_reasons: if has("throttle") {
            super::scenario::THROTTLE_REASONS
                .iter()
                .filter(|(name, _)| script.throttle_reasons.iter().any(|r| r == name))
                .map(|(name, _)| (*name).to_owned())
                .collect()
        } else {
            Vec::new()
        },
        ecc_uncorrected: ecc,
        nvlink_peers: if lost { Vec::new() } else { peers.collect() },
        numa_node: script.numa_node.filter(|_| has("numa")),
        processes: if has("processes") {
            now.processes.iter().map(|(pid, bytes)| describe(*pid, Some(*bytes))).collect()
        } else {
            Vec::new()
        },
        ..Gpu::default()
    }
}

/// A process on a GPU, with what /proc says about it.
pub fn describe(pid: u32, bytes: Option<u64>) -> GpuProcess {
    GpuProcess {
        pid,
        name: process::name(pid),
        user: process::user(pid),
        memory: bytes.map(Bytes),
        ..GpuProcess::default()
    }
}
