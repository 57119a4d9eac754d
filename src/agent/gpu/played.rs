//! GPUs played from a scenario, without a driver: for the demo and for tests.

use std::collections::BTreeMap;
use std::path::Path;

use super::nvml_fields::fabric_words;
use super::processes::{Listed, ProcessTable};
use super::scenario::{GpuScript, Health, Player, Reading};
use super::{DriverVersions, GpuSource, Want, health_of};
use crate::agent::process;
use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{
    Gpu, GpuHealth, GpuPath, Gpus, MemoryUse, MigInstance, NvLinks, PathKind, PcieLink,
    ProcessKind, Xid, xid::graver,
};

/// Plays a scenario file.
#[derive(Debug)]
pub struct PlayedSource {
    player: Result<Player, String>,
    processes: ProcessTable,
    xids: BTreeMap<String, Xid>,
}

impl PlayedSource {
    /// Plays `path`; a file that is no scenario is a host without GPUs that says why.
    pub fn open(path: &Path) -> Self {
        let player = Player::open(path)
            .map_err(|e| format!("scenario {}: {e}", clean(&path.to_string_lossy(), 200)));
        Self { player, processes: ProcessTable::default(), xids: BTreeMap::new() }
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
    fn read(&mut self, want: Want) -> Gpus {
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
        self.processes.next_round();
        let mut gpus = Vec::with_capacity(scripts.len());
        for script in scripts {
            let count = u32::try_from(script.xids.len()).unwrap_or(u32::MAX);
            if let Some(code) = script.xids.last().copied()
                && self.xids.get(&script.uuid).is_none_or(|x| x.count != count)
            {
                let monotonic_ms = process::since_boot_ms();
                self.xids.insert(script.uuid.clone(), Xid { code, monotonic_ms, count });
            }
            let now = readings.get(&script.uuid).unwrap_or(&default);
            let xid = self.xids.get(&script.uuid).copied();
            let all = script.xids.iter().filter_map(|code| Some(Xid { code: *code, ..xid? }));
            let grave_xid = all.fold(None, |grave, xid| graver(grave, Some(xid)));
            let xids = (xid, grave_xid);
            gpus.push(gpu(script, scripts, now, want, xids, &mut self.processes));
        }
        Gpus::Some(gpus)
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

fn gpu(
    script: &GpuScript,
    all: &[GpuScript],
    now: &Reading,
    want: Want,
    (xid, grave_xid): (Option<Xid>, Option<Xid>),
    processes: &mut ProcessTable,
) -> Gpu {
    let identity = Gpu {
        index: script.index.unwrap_or_default(),
        uuid: clean(&script.uuid, 80).into(),
        name: clean(&script.name, 96).into(),
        pci_bus_id: script
            .pci_bus_id
            .as_ref()
            .filter(|_| script.has("pci_bus_id"))
            .cloned()
            .map(Into::into),
        xid,
        grave_xid,
        ..Gpu::default()
    };
    // What a driver says of a lost GPU is who it was.
    if script.health == Health::Lost {
        return Gpu { health: GpuHealth::Lost, ..identity };
    }
    let has = |field: &str| script.has(field);
    let peers = script.peers(all).map(|p| clean(&p.uuid, 80).into());
    let ecc = has("ecc");
    let looked_at = want == Want::LookedAt;
    let mut gpu = Gpu {
        memory: has("memory").then_some(MemoryUse {
            used: Bytes(now.memory_used),
            total: Bytes(script.memory_total),
        }),
        bar1: script
            .bar1_total
            .map(|total| MemoryUse { used: Bytes(script.bar1_used), total: Bytes(total) }),
        utilisation_percent: has("utilisation").then_some(now.utilisation_percent),
        memory_utilisation_percent: has("utilisation").then_some(now.memory_utilisation_percent),
        encoder_percent: script.encoder_percent,
        decoder_percent: script.decoder_percent,
        temperature_c: has("temperature").then_some(now.temperature_c),
        slowdown_temperature_c: has("slowdown_temperature")
            .then_some(script.slowdown_temperature_c),
        shutdown_temperature_c: script.shutdown_temperature_c,
        thermal_margin_c: script.thermal_margin_c,
        fabric: script.fabric.and_then(|(state, status)| fabric_words(u32::from(state), status)),
        power_mw: has("power").then_some(now.power_mw),
        power_limit_mw: has("power_limit").then_some(script.power_limit_mw),
        fan_percent: script.fan_percent.filter(|_| has("fan")),
        sm_clock_mhz: has("clocks").then_some(script.sm_clock_mhz),
        max_sm_clock_mhz: script.max_sm_clock_mhz,
        memory_clock_mhz: has("clocks").then_some(script.memory_clock_mhz),
        max_memory_clock_mhz: script.max_memory_clock_mhz,
        pstate: has("pstate").then(|| format!("P{}", script.pstate)).map(Into::into),
        throttle_reasons: has("throttle").then(|| {
            super::scenario::THROTTLE_REASONS
                .iter()
                .filter(|(name, _)| script.throttle_reasons.iter().any(|r| r == name))
                .map(|(name, _)| (*name).into())
                .collect()
        }),
        pcie: script.pcie.map_or_else(PcieLink::default, |link| PcieLink {
            generation: Some(link.generation),
            max_generation: Some(link.max_generation),
            width: Some(link.width),
            max_width: Some(link.max_width),
            rx_bytes_per_s: looked_at.then_some(u64::from(link.rx_kib_per_s) * 1024),
            tx_bytes_per_s: looked_at.then_some(u64::from(link.tx_kib_per_s) * 1024),
            bytes_per_s: None,
        }),
        ecc_enabled: script.ecc_enabled,
        ecc_uncorrected: ecc.then(|| script.ecc()),
        ecc_corrected: ecc.then_some(script.ecc_corrected),
        ecc_uncorrected_aggregate: ecc.then_some(script.ecc_uncorrected_aggregate),
        ecc_corrected_aggregate: ecc.then_some(script.ecc_corrected_aggregate),
        retired_pages: script.retired_pages,
        retired_pages_pending: script.retired_pages_pending,
        remapped_rows: script.remapped_rows,
        row_remap_pending: script.row_remap_pending,
        row_remap_failed: script.row_remap_failed,
        compute_mode: script.compute_mode.map(|mode| compute_mode(mode).into()),
        persistence: script.persistence,
        mig: script.mig,
        mig_instances: script
            .mig_instances
            .iter()
            .zip(&now.instances)
            .map(|(part, used)| MigInstance {
                uuid: clean(&part.uuid, 80).into(),
                name: clean(&part.name, 96).into(),
                memory: Some(MemoryUse { used: Bytes(*used), total: Bytes(part.memory_total) }),
            })
            .collect(),
        nvlink_peers: peers.collect(),
        paths: all
            .iter()
            .filter(|other| other.uuid != script.uuid && other.health != Health::Lost)
            .filter(|_| has("topology"))
            .map(|other| GpuPath {
                to: clean(&other.uuid, 80).into(),
                over: path_kind(script.level(other)),
            })
            .collect(),
        numa_node: script.numa_node.filter(|_| has("numa")),
        processes: if has("processes") {
            let listed = |bytes| Listed {
                bytes: Some(bytes),
                kind: Some(ProcessKind::Compute),
                sm_percent: Some(now.utilisation_percent),
                encoder_percent: Some(script.encoder_percent.unwrap_or(0)),
                decoder_percent: Some(script.decoder_percent.unwrap_or(0)),
            };
            let list = now.processes.iter();
            Some(list.map(|(pid, bytes)| processes.describe(*pid, listed(*bytes))).collect())
        } else {
            None
        },
        ..identity
    };
    if let (Some(_), Some(links)) =
        (script.nvlink_island, u32::try_from(gpu.nvlink_peers.len()).ok().filter(|_| has("nvlink")))
    {
        let rate = |way: usize| {
            let rates = script.nvlink_kib_per_s.filter(|_| looked_at)?;
            rates.get(way).map(|kib| kib * 1024)
        };
        gpu.nvlink = NvLinks {
            links: Some(super::scenario::NVLINKS.max(links)),
            active: Some(links),
            rx_bytes_per_s: rate(0),
            tx_bytes_per_s: rate(1),
        };
    }
    gpu.health = health_of(&gpu);
    gpu
}

const fn compute_mode(number: u32) -> &'static str {
    match number {
        1 => "exclusive_thread",
        2 => "prohibited",
        3 => "exclusive_process",
        _ => "default",
    }
}

const fn path_kind(level: u32) -> PathKind {
    match level {
        0 => PathKind::Internal,
        10 => PathKind::Pix,
        20 => PathKind::Pxb,
        30 => PathKind::Phb,
        40 => PathKind::Node,
        _ => PathKind::Sys,
    }
}
