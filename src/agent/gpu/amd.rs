//! GPUs of AMD, from the files of the amdgpu driver in sysfs.
//!
//! The files are those of the kernel's documentation: `Documentation/gpu/amdgpu/driver-misc.rst` (memory,
//! product, unique id, link), `thermal.rst` (hwmon, clocks), `ras.rst` (memory errors, bad pages), `xgmi.rst` (who is
//! linked with whom); partitions are those of `current_compute_partition` and `current_memory_partition`, processes
//! those of the compute driver (`/sys/class/kfd`). A file that is not there is a value that is absent.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use smol_str::SmolStr;

use super::amd_metrics::{self, Metrics, Tables};
use super::amd_paths;
use super::nvml_identity::driver_of;
use super::processes::{Listed, ProcessTable};
use super::roll::Roll;
use super::{DriverVersions, GpuSource, Want, health_of};
use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuHealth, GpuVendor, Gpus, MemoryUse, PcieLink, ProcessKind};

/// AMD's number among PCI vendors.
pub(super) const VENDOR: &str = "0x1002";

/// Longest file that is read.
const MAX_FILE: u64 = 16 << 10;

/// The same for the table of bad pages, 28 bytes each; a GPU with more is broken anyway.
const MAX_BAD_PAGES: u64 = 128 << 10;

/// Most GPUs, and most processes on them, that are looked at.
const MAX_GPUS: usize = 64;
const MAX_PROCESSES: usize = 1024;

/// Processes and memory errors are read again after so long.
const TURN: Duration = Duration::from_millis(4_900);

/// AMD GPUs below a root that holds `class/drm`, `class/kfd` and `module`: `/sys`, or a tree of a test.
#[derive(Debug)]
pub struct AmdSource {
    root: PathBuf,
    known: BTreeMap<PathBuf, Gpu>,
    tables: BTreeMap<PathBuf, Tables>,
    turned: Option<Instant>,
    processes: ProcessTable,
}

impl AmdSource {
    /// From the files below `root`, `/sys` on a host.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            known: BTreeMap::new(),
            tables: BTreeMap::new(),
            turned: None,
            processes: ProcessTable::default(),
        }
    }

    /// Takes over which GPUs an earlier process has seen: who is missing among them is lost.
    pub fn remember(&mut self, roll: &Roll) {
        for named in roll.of(GpuVendor::Amd) {
            if self.known.values().all(|gpu| gpu.uuid != named.uuid) {
                // Which directory it had is not known any more, nor needed.
                self.known.insert(PathBuf::from(named.uuid.as_str()), named.lost());
            }
        }
    }

    /// One that is there is not lost under another directory, and one that a virtual machine was given is not
    /// missing.
    fn forget_who_is_there(&mut self, devices: &[PathBuf]) {
        let there: Vec<SmolStr> = devices
            .iter()
            .filter_map(|device| self.known.get(device).map(|gpu| gpu.uuid.clone()))
            .collect();
        let root = &self.root;
        self.known.retain(|path, gpu| {
            devices.contains(path)
                || !there.contains(&gpu.uuid)
                    && driver_of(root, gpu.pci_bus_id.as_deref()).as_deref() != Some("vfio-pci")
        });
    }

    /// The counters of memory errors that a GPU's health hangs on, of each that is there.
    pub fn wear(&self) -> Vec<Vec<Option<u64>>> {
        let of = |device: PathBuf| {
            let mut gpu = Gpu::default();
            ras(&device, &mut gpu);
            vec![gpu.ecc_uncorrected, gpu.retired_pages_pending.map(u64::from)]
        };
        self.cards().into_iter().map(of).collect()
    }

    /// Devices of AMD with their directories, in the order of their bus ids.
    fn cards(&self) -> Vec<PathBuf> {
        let cards = fs::read_dir(self.root.join("class/drm")).into_iter().flatten().flatten();
        let mut found: Vec<(String, PathBuf)> = cards
            .filter(|entry| is_card(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path().join("device"))
            .filter(|device| text(&device.join("vendor")).as_deref() == Some(VENDOR))
            .map(|device| (bus_id(&device).unwrap_or_default(), device))
            .take(MAX_GPUS)
            .collect();
        found.sort();
        found.into_iter().map(|(_, device)| device).collect()
    }
}

impl GpuSource for AmdSource {
    fn read(&mut self, want: Want) -> Gpus {
        let devices = self.cards();
        if devices.is_empty() && self.known.is_empty() {
            return Gpus::None { why: "no GPU of AMD".to_owned() };
        }
        let turn = want == Want::Fresh || self.turned.is_none_or(|t| t.elapsed() >= TURN);
        let held = turn.then(|| {
            self.turned = Some(Instant::now());
            self.processes.next_round();
            by_gpu(&self.root)
        });
        // Without the compute driver nobody says who uses them.
        let has_kfd = self.root.join("class/kfd/kfd").exists();
        for (index, device) in (0..).zip(&devices) {
            let mut gpu = read_gpu(index, device);
            let tables = self.tables.entry(device.clone()).or_default();
            tables.take(table(device), Instant::now(), want == Want::LookedAt, &mut gpu);
            match &held {
                Some(held) => {
                    ras(device, &mut gpu);
                    let own = gpu.pci_bus_id.as_ref().and_then(|bus| held.get(bus.as_str()));
                    let list = own.into_iter().flatten();
                    let list = list.map(|(pid, listed)| self.processes.describe(*pid, *listed));
                    gpu.processes = has_kfd.then(|| list.collect());
                }
                None => {
                    if let Some(before) = self.known.get(device) {
                        gpu.ecc_corrected = before.ecc_corrected;
                        gpu.ecc_uncorrected = before.ecc_uncorrected;
                        gpu.ecc_enabled = before.ecc_enabled;
                        gpu.retired_pages = before.retired_pages;
                        gpu.retired_pages_pending = before.retired_pages_pending;
                        gpu.processes.clone_from(&before.processes);
                        gpu.paths.clone_from(&before.paths);
                    }
                }
            }
            gpu.health = health_of(&gpu);
            self.known.insert(device.clone(), gpu);
        }
        self.tables.retain(|device, _| devices.contains(device));
        self.forget_who_is_there(&devices);
        link_up(&devices, &mut self.known);
        if turn {
            amd_paths::find(&devices, &mut self.known);
        }
        // Those that are there have the numbers that the driver gives them; those that are lost come after.
        let is_there = |device: &Path| devices.iter().any(|there| there == device);
        let mut gpus: Vec<Gpu> = Vec::with_capacity(self.known.len());
        gpus.extend(devices.iter().filter_map(|device| self.known.get(device)).cloned());
        let gone = self.known.iter().filter(|(device, _)| !is_there(device));
        for (index, (_, gpu)) in (next_index(&gpus)..).zip(gone) {
            gpus.push(Gpu { index, ..lost(gpu) });
        }
        Gpus::Some(gpus)
    }

    fn versions(&self) -> DriverVersions {
        // Only a driver that was installed beside the kernel's own has a version.
        DriverVersions { driver: text(&self.root.join("module/amdgpu/version")), cuda: None }
    }
}

/// The number after those of all these.
fn next_index(gpus: &[Gpu]) -> u32 {
    gpus.iter().map(|gpu| gpu.index.saturating_add(1)).max().unwrap_or(0)
}

/// `card0`, not `card0-DP-1` and not `renderD128`.
fn is_card(name: &str) -> bool {
    name.strip_prefix("card")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// A file's beginning.
fn beginning(path: &Path, most: u64) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path).ok()?.take(most).read_to_end(&mut content).ok()?;
    Some(content)
}

/// The same, of a file that holds text.
fn content(path: &Path, most: u64) -> Option<String> {
    Some(String::from_utf8_lossy(&beginning(path, most)?).into_owned())
}

/// The driver's table of a GPU. It asks the GPU's firmware for it, as it does for the sensors.
fn table(device: &Path) -> Option<Metrics> {
    amd_metrics::parse(&beginning(&device.join("gpu_metrics"), amd_metrics::MOST)?)
}

/// A file's text without its line end.
pub(super) fn text(path: &Path) -> Option<String> {
    let text = content(path, MAX_FILE)?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty() && t.len() < 4096)
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

fn small(path: &Path) -> Option<u32> {
    u32::try_from(number(path)?).ok()
}

fn bus_id(device: &Path) -> Option<String> {
    let uevent = text(&device.join("uevent"))?;
    let slot = uevent.lines().find_map(|l| l.strip_prefix("PCI_SLOT_NAME="))?;
    Some(clean(slot, 32))
}

fn read_gpu(index: u32, device: &Path) -> Gpu {
    let file = |name: &str| device.join(name);
    let bus = bus_id(device);
    let uuid = match text(&file("unique_id")) {
        Some(id) => format!("GPU-{}", clean(&id, 32)),
        None => format!("PCI-{}", bus.as_deref().unwrap_or("unknown")),
    };
    let name = text(&file("product_name"))
        .map(|name| clean(&name, 96))
        .or_else(|| text(&file("device")).map(|id| format!("AMD GPU {}", clean(&id, 16))));
    let memory = |kind: &str| {
        Some(MemoryUse {
            used: Bytes(number(&file(&format!("mem_info_{kind}_used")))?),
            total: Bytes(number(&file(&format!("mem_info_{kind}_total")))?),
        })
    };
    let mut gpu = Gpu {
        index,
        uuid: uuid.into(),
        name: name.unwrap_or_else(|| "AMD GPU".to_owned()).into(),
        vendor: GpuVendor::Amd,
        pci_bus_id: bus.map(Into::into),
        memory: memory("vram"),
        // What the processors see of it: the same thing as NVIDIA's BAR1.
        bar1: memory("vis_vram"),
        utilisation_percent: small(&file("gpu_busy_percent")),
        memory_utilisation_percent: small(&file("mem_busy_percent")),
        pcie: PcieLink {
            generation: text(&file("current_link_speed")).as_deref().and_then(generation),
            max_generation: text(&file("max_link_speed")).as_deref().and_then(generation),
            width: small(&file("current_link_width")),
            max_width: small(&file("max_link_width")),
            ..PcieLink::default()
        },
        numa_node: small(&file("numa_node")),
        ..Gpu::default()
    };
    let mode = |kind: &str| text(&file(&format!("current_{kind}_partition")));
    if let Some(compute) = mode("compute") {
        // One partition is the whole GPU.
        gpu.mig = Some(!compute.eq_ignore_ascii_case("SPX"));
        let memory = mode("memory").map(|memory| format!("/{memory}")).unwrap_or_default();
        gpu.partition = Some(clean(&format!("{compute}{memory}"), 24).into());
    }
    let clocks = |name: &str| text(&file(name)).map(|t| levels(&t)).unwrap_or_default();
    (gpu.sm_clock_mhz, gpu.max_sm_clock_mhz) = clocks("pp_dpm_sclk");
    (gpu.memory_clock_mhz, gpu.max_memory_clock_mhz) = clocks("pp_dpm_mclk");
    if let Some(sensors) = sensors(device) {
        hwmon(&sensors, &mut gpu);
    }
    gpu
}

/// The GPU's directory of sensors.
fn sensors(device: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(device.join("hwmon")).ok()?.flatten();
    entries.map(|entry| entry.path()).min()
}

fn hwmon(sensors: &Path, gpu: &mut Gpu) {
    let value = |name: &str| number(&sensors.join(name));
    let degrees = |name: &str| value(name).and_then(|milli| u32::try_from(milli / 1000).ok());
    let milliwatts = |name: &str| value(name).and_then(|micro| u32::try_from(micro / 1000).ok());
    let megahertz = |name: &str| value(name).and_then(|hz| u32::try_from(hz / 1_000_000).ok());
    // 1 is the edge of the die; where there is none (MI300) 2 is its junction.
    let sensor = ["temp1", "temp2"].into_iter().find(|s| value(&format!("{s}_input")).is_some());
    if let Some(sensor) = sensor {
        gpu.temperature_c = degrees(&format!("{sensor}_input"));
        gpu.slowdown_temperature_c = degrees(&format!("{sensor}_crit"));
        gpu.shutdown_temperature_c = degrees(&format!("{sensor}_emergency"));
    }
    gpu.power_mw = milliwatts("power1_average").or_else(|| milliwatts("power1_input"));
    gpu.power_limit_mw = milliwatts("power1_cap");
    gpu.sm_clock_mhz = megahertz("freq1_input").or(gpu.sm_clock_mhz);
    gpu.memory_clock_mhz = megahertz("freq2_input").or(gpu.memory_clock_mhz);
    // 255 is full speed.
    gpu.fan_percent = value("pwm1").and_then(|pwm| u32::try_from(pwm.min(255) * 100 / 255).ok());
}

/// Present and highest clock of a table of levels: `0: 500Mhz`, `1: 2100Mhz *`.
pub fn levels(table: &str) -> (Option<u32>, Option<u32>) {
    let clock = |line: &str| -> Option<u32> {
        let (_, value) = line.split_once(':')?;
        let digits = value.trim().to_ascii_lowercase();
        digits.split("mhz").next()?.trim().parse().ok()
    };
    let now = table.lines().find(|l| l.trim_end().ends_with('*')).and_then(clock);
    (now, table.lines().filter_map(clock).max())
}

/// The PCI Express generation of a speed: `16.0 GT/s PCIe` is 4.
pub fn generation(speed: &str) -> Option<u32> {
    Some(match speed.split_ascii_whitespace().next()? {
        "2.5" => 1,
        "5" | "5.0" => 2,
        "8" | "8.0" => 3,
        "16" | "16.0" => 4,
        "32" | "32.0" => 5,
        "64" | "64.0" => 6,
        _ => return None,
    })
}

/// Memory errors since the driver was loaded: `ue: 0`, `ce: 3`; and pages taken out of use.
fn ras(device: &Path, gpu: &mut Gpu) {
    if let Some(table) = content(&device.join("ras/gpu_vram_bad_pages"), MAX_BAD_PAGES) {
        (gpu.retired_pages, gpu.retired_pages_pending) = bad_pages(&table);
    }
    let Some(counts) = text(&device.join("ras/umc_err_count")) else { return };
    let count = |key: &str| -> Option<u64> {
        let line = counts.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    gpu.ecc_uncorrected = count("ue");
    gpu.ecc_corrected = count("ce");
    gpu.ecc_enabled = gpu.ecc_uncorrected.map(|_| true);
}

/// Pages that are out of use, and whether others are bad and not yet (or cannot be taken) out of use:
/// `0x00000001 : 0x00001000 : R`, `P` pending, `F` failed.
fn bad_pages(table: &str) -> (Option<u32>, Option<bool>) {
    let flags =
        || table.lines().filter_map(|line| line.rsplit_once(':')).map(|(_, flag)| flag.trim());
    let reserved = u32::try_from(flags().filter(|flag| *flag == "R").count()).ok();
    (reserved, Some(flags().any(|flag| flag == "P" || flag == "F")))
}

/// GPUs of one XGMI hive are linked with each other.
fn link_up(devices: &[PathBuf], known: &mut BTreeMap<PathBuf, Gpu>) {
    let hive = |device: &PathBuf| {
        let id = text(&device.join("xgmi_hive_info/xgmi_hive_id")).filter(|id| id != "0");
        Some((id?, known.get(device)?.uuid.clone()))
    };
    let hives: Vec<Option<(String, SmolStr)>> = devices.iter().map(hive).collect();
    for (device, own) in devices.iter().zip(&hives) {
        let Some(gpu) = known.get_mut(device) else { continue };
        gpu.nvlink_peers = own
            .iter()
            .flat_map(|(hive, uuid)| {
                let others = hives.iter().flatten().filter(move |(h, u)| h == hive && u != uuid);
                others.map(|(_, uuid)| uuid.clone())
            })
            .collect();
    }
}

fn lost(gpu: &Gpu) -> Gpu {
    Gpu {
        index: gpu.index,
        uuid: gpu.uuid.clone(),
        name: gpu.name.clone(),
        vendor: gpu.vendor,
        pci_bus_id: gpu.pci_bus_id.clone(),
        health: GpuHealth::Lost,
        ..Gpu::default()
    }
}

/// Who computes on which GPU, by its bus id: `class/kfd/kfd/proc/PID/vram_GPUID` holds the bytes.
fn by_gpu(root: &Path) -> BTreeMap<String, Vec<(u32, Listed)>> {
    let kfd = root.join("class/kfd/kfd");
    let nodes = fs::read_dir(kfd.join("topology/nodes")).into_iter().flatten().flatten();
    let mut nodes_by_id: BTreeMap<u64, Node> = BTreeMap::new();
    for node in nodes.take(MAX_GPUS * 4) {
        let id = number(&node.path().join("gpu_id")).filter(|id| *id != 0);
        let Some(properties) = text(&node.path().join("properties")) else { continue };
        if let (Some(id), Some(bus)) = (id, location(&properties)) {
            nodes_by_id.insert(id, Node { bus, units: units(&properties) });
        }
    }
    let mut held: BTreeMap<String, Vec<(u32, Listed)>> = BTreeMap::new();
    let processes = fs::read_dir(kfd.join("proc")).into_iter().flatten().flatten();
    for process in processes.take(MAX_PROCESSES) {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        for (id, node) in &nodes_by_id {
            let bytes = number(&process.path().join(format!("vram_{id}"))).filter(|b| *b > 0);
            if let Some(bytes) = bytes {
                let busy = number(&process.path().join(format!("stats_{id}/cu_occupancy")));
                let percent = busy.zip(node.units).map(|(busy, units)| busy * 100 / units);
                let listed = Listed {
                    bytes: Some(bytes),
                    kind: Some(ProcessKind::Compute),
                    sm_percent: percent.and_then(|p| u32::try_from(p.min(100)).ok()),
                    ..Listed::default()
                };
                held.entry(node.bus.clone()).or_default().push((pid, listed));
            }
        }
    }
    for list in held.values_mut() {
        list.sort_by_key(|(pid, _)| *pid);
    }
    held
}

/// A GPU as the compute driver knows it.
struct Node {
    bus: String,
    /// Compute units.
    units: Option<u64>,
}

/// A number among a node's properties.
fn property(properties: &str, key: &str) -> Option<u64> {
    let line = properties.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Compute units of a node.
fn units(properties: &str) -> Option<u64> {
    let lanes = property(properties, "simd_count")?;
    lanes.checked_div(property(properties, "simd_per_cu")?).filter(|units| *units > 0)
}

/// The bus id in a node's properties: `location_id` is bus, device and function, `domain` the rest.
fn location(properties: &str) -> Option<String> {
    let at = property(properties, "location_id")?;
    let domain = property(properties, "domain").unwrap_or(0);
    Some(format!("{domain:04x}:{:02x}:{:02x}.{}", at >> 8 & 0xff, at >> 3 & 0x1f, at & 7))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// Writes files below a directory.
    fn put(dir: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// A host with two MI300X as the kernel's documentation shows them, and what is no GPU of AMD.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let drm = dir.path().join("class/drm");
        put(
            &drm.join("card1/device"),
            &[
                ("vendor", "0x1002\n"),
                ("device", "0x74a1\n"),
                ("uevent", "DRIVER=amdgpu\nPCI_ID=1002:74A1\nPCI_SLOT_NAME=0000:05:00.0\n"),
                ("unique_id", "8d1f2c3b4a596877\n"),
                ("product_name", "AMD Instinct MI300X OAM\n"),
                ("gpu_busy_percent", "87\n"),
                ("mem_busy_percent", "41\n"),
                ("mem_info_vram_total", "206141652992\n"),
                ("mem_info_vram_used", "103070826496\n"),
                ("mem_info_vis_vram_total", "206141652992\n"),
                ("mem_info_vis_vram_used", "1048576\n"),
                ("current_link_speed", "32.0 GT/s PCIe\n"),
                ("max_link_speed", "32.0 GT/s PCIe\n"),
                ("current_link_width", "16\n"),
                ("max_link_width", "16\n"),
                ("numa_node", "1\n"),
                ("pp_dpm_sclk", "0: 500Mhz\n1: 800Mhz *\n2: 2100Mhz\n"),
                ("pp_dpm_mclk", "0: 900Mhz\n1: 1300Mhz *\n"),
                ("ras/umc_err_count", "ue: 0\nce: 12\n"),
                (
                    "ras/gpu_vram_bad_pages",
                    "0x027f5d43 : 0x00001000 : R\n0x027f5d4b : 0x00001000 : R\n",
                ),
                ("xgmi_hive_info/xgmi_hive_id", "11743423\n"),
                ("current_compute_partition", "SPX\n"),
                ("current_memory_partition", "NPS1\n"),
                ("hwmon/hwmon4/temp1_input", "61000\n"),
                ("hwmon/hwmon4/temp1_crit", "100000\n"),
                ("hwmon/hwmon4/temp1_emergency", "105000\n"),
                ("hwmon/hwmon4/power1_average", "512000000\n"),
                ("hwmon/hwmon4/power1_cap", "750000000\n"),
                ("hwmon/hwmon4/pwm1", "128\n"),
                ("hwmon/hwmon4/freq1_input", "1987000000\n"),
            ],
        );
        put(
            &drm.join("card0/device"),
            &[
                ("vendor", "0x1002\n"),
                ("device", "0x73bf\n"),
                ("uevent", "PCI_SLOT_NAME=0000:03:00.0\n"),
                ("numa_node", "-1\n"),
                ("gpu_busy_percent", ""),
            ],
        );
        put(&drm.join("card2/device"), &[("vendor", "0x10de\n")]);
        put(&drm.join("card1-DP-1/device"), &[("vendor", "0x1002\n")]);
        put(&drm.join("renderD128/device"), &[("vendor", "0x1002\n")]);
        let me = std::process::id();
        put(
            &dir.path().join("class/kfd/kfd"),
            &[
                ("topology/nodes/0/gpu_id", "0\n"),
                ("topology/nodes/0/properties", "cpu_cores_count 64\n"),
                ("topology/nodes/1/gpu_id", "51140\n"),
                (
                    "topology/nodes/1/properties",
                    "simd_count 1216\nsimd_per_cu 4\nlocation_id 1280\ndomain 0\n",
                ),
                (&format!("proc/{me}/stats_51140/cu_occupancy"), "76\n"),
                (&format!("proc/{me}/vram_51140"), "4294967296\n"),
                ("proc/notapid/vram_51140", "1\n"),
            ],
        );
        put(dir.path(), &[("module/amdgpu/version", "6.10.5\n")]);
        dir
    }

    fn gpus(source: &mut AmdSource, want: Want) -> Vec<Gpu> {
        match source.read(want) {
            Gpus::Some(gpus) => gpus,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_what_the_driver_shows() {
        let dir = tree();
        let mut source = AmdSource::new(dir.path().to_owned());
        let [plain, rich] = &gpus(&mut source, Want::Due)[..] else { panic!("not two") };
        assert_eq!((rich.index, rich.uuid.as_str()), (1, "GPU-8d1f2c3b4a596877"));
        assert_eq!((rich.name.as_str(), rich.vendor), ("AMD Instinct MI300X OAM", GpuVendor::Amd));
        assert_eq!(rich.memory.unwrap().used, Bytes(103_070_826_496));
        assert_eq!(rich.bar1.unwrap().used, Bytes::mib(1));
        assert_eq!(
            (rich.utilisation_percent, rich.memory_utilisation_percent),
            (Some(87), Some(41))
        );
        assert_eq!((rich.temperature_c, rich.slowdown_temperature_c), (Some(61), Some(100)));
        assert_eq!(rich.shutdown_temperature_c, Some(105));
        assert_eq!((rich.power_mw, rich.power_limit_mw), (Some(512_000), Some(750_000)));
        assert_eq!((rich.sm_clock_mhz, rich.max_sm_clock_mhz), (Some(1987), Some(2100)));
        assert_eq!((rich.memory_clock_mhz, rich.max_memory_clock_mhz), (Some(1300), Some(1300)));
        assert_eq!((rich.fan_percent, rich.numa_node), (Some(50), Some(1)));
        assert_eq!((rich.pcie.generation, rich.pcie.width), (Some(5), Some(16)));
        assert_eq!((rich.ecc_uncorrected, rich.ecc_corrected), (Some(0), Some(12)));
        assert_eq!((rich.retired_pages, rich.retired_pages_pending), (Some(2), Some(false)));
        assert_eq!((rich.partition.as_deref(), rich.mig), (Some("SPX/NPS1"), Some(false)));
        assert_eq!(rich.health, GpuHealth::Ok);
        assert_eq!(rich.listed().len(), 1);
        assert_eq!(rich.listed()[0].sm_percent, Some(25), "76 of 304 compute units");
        assert_eq!(rich.listed()[0].pid, std::process::id());
        assert_eq!(rich.listed()[0].memory, Some(Bytes::gib(4)));

        // What is not there is absent, not zero.
        assert_eq!((plain.index, plain.uuid.as_str()), (0, "PCI-0000:03:00.0"));
        assert_eq!(plain.name, "AMD GPU 0x73bf");
        assert!(plain.memory.is_none() && plain.utilisation_percent.is_none());
        assert!(plain.temperature_c.is_none() && plain.numa_node.is_none());
        assert!(plain.listed().is_empty() && plain.nvlink_peers.is_empty());
        assert!(plain.retired_pages.is_none() && plain.partition.is_none() && plain.mig.is_none());
        assert_eq!(source.versions().driver.as_deref(), Some("6.10.5"));
    }

    #[test]
    fn a_hive_is_linked_and_a_hot_bad_divided_card_is_shown_as_such() {
        let dir = tree();
        let other = dir.path().join("class/drm/card0/device");
        put(
            &other,
            &[
                ("unique_id", "2f00\n"),
                ("xgmi_hive_info/xgmi_hive_id", "11743423\n"),
                ("ras/gpu_vram_bad_pages", "0x1 : 0x1000 : R\n0x2 : 0x1000 : P\nnonsense\n"),
                ("current_compute_partition", "CPX\n"),
                // No edge on this one: the junction.
                ("hwmon/hwmon7/temp2_input", "71000\n"),
                ("hwmon/hwmon7/temp2_crit", "100000\n"),
                ("hwmon/hwmon7/temp2_label", "junction\n"),
                ("hwmon/hwmon7/power1_input", "140000000\n"),
            ],
        );
        let mut source = AmdSource::new(dir.path().to_owned());
        let [one, two] = &gpus(&mut source, Want::Due)[..] else { panic!("not two") };
        assert_eq!(
            (&*one.nvlink_peers, &*two.nvlink_peers),
            (&[two.uuid.clone()][..], &[one.uuid.clone()][..])
        );
        assert_eq!((one.temperature_c, one.slowdown_temperature_c), (Some(71), Some(100)));
        assert_eq!(
            (one.power_mw, one.mig, one.partition.as_deref()),
            (Some(140_000), Some(true), Some("CPX"))
        );
        assert_eq!((one.retired_pages, one.retired_pages_pending), (Some(1), Some(true)));
        assert!(matches!(&one.health, GpuHealth::Degraded { why } if why.contains("pages")));
        // Between its turns nothing of it is forgotten.
        let again = gpus(&mut source, Want::Due);
        assert_eq!((&again[0].health, again[0].retired_pages), (&one.health, Some(1)));
        // Another hive, another island.
        put(&other, &[("xgmi_hive_info/xgmi_hive_id", "5\n")]);
        assert!(gpus(&mut source, Want::Due).iter().all(|gpu| gpu.nvlink_peers.is_empty()));
    }

    #[test]
    fn the_drivers_table_says_why_it_is_slowed_and_what_passes_its_links() {
        let dir = tree();
        let device = dir.path().join("class/drm/card1/device");
        // Revision 1.4: throttled by nothing, 12 GB/s over PCI Express, XGMI links of which one tells.
        let table = |kb: u64| {
            let mut table = vec![0xff; 288];
            let places: [(usize, &[u8]); 5] = [
                (0, &[0x20, 1, 1, 4]),
                (40, &[0; 4]),
                (72, &12_u64.to_le_bytes()),
                (104, &kb.to_le_bytes()),
                (168, &kb.to_le_bytes()),
            ];
            for (at, value) in places {
                table[at..at + value.len()].copy_from_slice(value);
            }
            fs::write(device.join("gpu_metrics"), table).unwrap();
        };
        let mut source = AmdSource::new(dir.path().to_owned());
        assert_eq!(gpus(&mut source, Want::Due)[1].throttle_reasons, None, "no such file");
        table(1);
        let gpu = gpus(&mut source, Want::LookedAt).remove(1);
        assert_eq!(gpu.throttle_reasons, Some(Vec::new()));
        assert_eq!((gpu.pcie.bytes_per_s, gpu.pcie.width), (Some(12_000_000_000), Some(16)));
        assert_eq!(gpu.nvlink.rx_bytes_per_s, None, "nothing is before it");
        table(9);
        let gpu = gpus(&mut source, Want::LookedAt).remove(1);
        assert!(gpu.nvlink.rx_bytes_per_s > Some(0) && gpu.nvlink.tx_bytes_per_s > Some(0));
        // Traffic is shown while somebody looks, and why it is slowed always.
        let gpu = gpus(&mut source, Want::Due).remove(1);
        assert_eq!((gpu.pcie.bytes_per_s, gpu.nvlink.rx_bytes_per_s), (None, None));
        assert_eq!(gpu.throttle_reasons, Some(Vec::new()));
    }

    #[test]
    fn a_card_that_goes_is_lost_and_errors_degrade() {
        let dir = tree();
        let mut source = AmdSource::new(dir.path().to_owned());
        gpus(&mut source, Want::Due);
        let device = dir.path().join("class/drm/card1/device");
        put(&device, &[("ras/umc_err_count", "ue: 2\nce: 12\n")]);
        let seen = gpus(&mut source, Want::Fresh);
        assert!(matches!(&seen[1].health, GpuHealth::Degraded { why } if why.starts_with('2')));
        fs::remove_dir_all(&device).unwrap();
        let seen = gpus(&mut source, Want::Due);
        assert_eq!((seen[1].health.clone(), seen[1].memory), (GpuHealth::Lost, None));
        assert_eq!(seen[1].uuid, "GPU-8d1f2c3b4a596877");
    }

    #[test]
    fn after_a_loss_each_card_has_a_number_of_its_own() {
        let dir = tree();
        let mut source = AmdSource::new(dir.path().to_owned());
        gpus(&mut source, Want::Due);
        let first = dir.path().join("class/drm/card0/device");
        fs::remove_dir_all(&first).unwrap();
        let seen = gpus(&mut source, Want::Due);
        let shown: Vec<_> = seen.iter().map(|g| (g.index, g.uuid.as_str(), &g.health)).collect();
        // An engine is told the driver's number, which counts those that are there.
        let there = (0, "GPU-8d1f2c3b4a596877", &GpuHealth::Ok);
        assert_eq!(shown, [there, (1, "PCI-0000:03:00.0", &GpuHealth::Lost)]);
    }

    #[test]
    fn a_card_that_was_lost_is_known_to_the_next_process_until_it_is_back() {
        let dir = tree();
        let mut roll = Roll::default();
        roll.learn(&gpus(&mut AmdSource::new(dir.path().to_owned()), Want::Due));
        let (first, aside) = (dir.path().join("class/drm/card0"), dir.path().join("aside"));
        fs::rename(&first, &aside).unwrap();
        let mut source = AmdSource::new(dir.path().to_owned());
        source.remember(&roll);
        let shown = |source: &mut AmdSource| -> Vec<_> {
            let gpus = gpus(source, Want::Due);
            gpus.iter().map(|g| (g.uuid.to_string(), g.health.clone(), g.vendor)).collect()
        };
        let one = |uuid: &str, health| (uuid.to_owned(), health, GpuVendor::Amd);
        let lost = one("PCI-0000:03:00.0", GpuHealth::Lost);
        assert_eq!(shown(&mut source), [one("GPU-8d1f2c3b4a596877", GpuHealth::Ok), lost]);
        // It comes back by another number.
        fs::rename(&aside, dir.path().join("class/drm/card7")).unwrap();
        let shown = shown(&mut source);
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown.iter().all(|(_, health, _)| *health == GpuHealth::Ok), "{shown:?}");
    }

    #[test]
    fn no_amd_no_gpu() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = AmdSource::new(dir.path().to_owned());
        assert!(matches!(source.read(Want::Due), Gpus::None { .. }));
    }

    #[test]
    fn odd_tables() {
        assert_eq!(levels("0: 500Mhz *\n"), (Some(500), Some(500)));
        assert_eq!(levels("S: 19Mhz *\n0: 500Mhz\n"), (Some(19), Some(500)));
        assert_eq!(levels("nonsense"), (None, None));
        assert_eq!(generation("2.5 GT/s PCIe"), Some(1));
        assert_eq!(generation("Unknown"), None);
    }
}
