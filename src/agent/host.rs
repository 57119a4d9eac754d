//! The host itself: what it is, and how it is doing. Reads only what a sample shows, from /proc;
//! the disk is asked with one `statvfs`, never by walking the mounts (one of which may be a dead
//! NFS server).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use sysinfo::{MemoryRefreshKind, System};

use super::gpu::DriverVersions;
use super::{hardware, process, users};
use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{Gpus, HostFacts, HostSample, MemoryUse};

/// The device that holds a path, as `major:minor`.
fn device_of(path: &Path) -> Option<(u32, u32)> {
    let device = rustix::fs::stat(path).ok()?.st_dev;
    let number = |device| (rustix::fs::major(device), rustix::fs::minor(device));
    match number(device) {
        // A file system that names no device of its own (btrfs): the one it is mounted from.
        (0, minor) => {
            let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
            let source = mounted_from(&mounts, minor)?;
            Some(number(rustix::fs::stat(source).ok()?.st_rdev))
        }
        found => Some(found),
    }
}

/// The device file that the file system with the anonymous number `0:minor` is mounted from.
fn mounted_from(mountinfo: &str, minor: u32) -> Option<&str> {
    let device = format!("0:{minor}");
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (mount.split_ascii_whitespace().nth(2)? == device).then_some(())?;
        file_system.split_ascii_whitespace().nth(1).filter(|source| source.starts_with("/dev/"))
    })
}

/// What the host is; `sys` is `/sys`, but in tests. The container engine is asked by others.
pub fn facts(
    sys: &Path,
    state_dir: &Path,
    hostname: Option<String>,
    simulated: bool,
    versions: DriverVersions,
) -> HostFacts {
    let text = |path: &str| {
        fs::read_to_string(path).ok().map(|t| clean(t.trim(), 64)).filter(|t| !t.is_empty())
    };
    let hostname = hostname.or_else(|| text("/proc/sys/kernel/hostname")).unwrap_or_default();
    HostFacts {
        hostname,
        os: os_name(),
        kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        arch: std::env::consts::ARCH.to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        user: users::name(rustix::process::getuid().as_raw()),
        state_dir: clean(&state_dir.to_string_lossy(), 1000),
        boot_id: process::boot_id().to_owned(),
        // Of the host, not what the quota of this session leaves.
        cpus: hardware::processors(sys)
            .or_else(|| u32::try_from(std::thread::available_parallelism().ok()?.get()).ok())
            .unwrap_or(0),
        memory: memory(&meminfo()).map_or(Bytes::ZERO, |m| m.total),
        driver_version: versions.driver,
        cuda_version: versions.cuda,
        simulated,
        numa_nodes: hardware::numa_nodes(sys),
        container_engine: None,
        disks: hardware::disks(sys, device_of(state_dir)),
        nics: hardware::nics(sys),
    }
}

fn os_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
        Some(clean(line.trim_matches('"'), 80))
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "Linux".to_owned())
}

/// Memory that a new process can get without swapping, now.
pub fn available_memory() -> Option<Bytes> {
    memory(&meminfo()).map(|m| m.free())
}

fn meminfo() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

fn memory(meminfo: &str) -> Option<MemoryUse> {
    let value = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Bytes(kib.saturating_mul(1024)))
    };
    let total = value("MemTotal")?;
    Some(MemoryUse { used: total.saturating_sub(value("MemAvailable")?), total })
}

/// Bytes received and sent since an interface came up, by its name.
type Counters = BTreeMap<String, (u64, u64)>;

/// Samples the host; differences are against the sample before.
#[derive(Debug)]
pub struct HostMeter {
    system: Option<System>,
    cpu_read_before: bool,
    net_before: Option<(Instant, Counters)>,
    physical: BTreeMap<String, bool>,
}

impl HostMeter {
    /// A meter that has seen nothing yet: the first sample has no rates.
    pub fn new() -> Self {
        Self {
            system: System::new().ok(),
            cpu_read_before: false,
            net_before: None,
            physical: BTreeMap::new(),
        }
    }

    /// The host now, together with GPU values that were read elsewhere, some time ago.
    pub fn sample(&mut self, state_dir: &Path, gpus: Gpus, gpus_age_ms: Option<u64>) -> HostSample {
        let (rx, tx) = self.net_rates();
        HostSample {
            monotonic_ms: process::since_boot_ms(),
            gpus,
            gpu_trouble: None,
            gpus_age_ms,
            cpu_percent: self.cpu(),
            load_1m: System::load_average().ok().map(|l| l.one),
            memory: self.memory(),
            disk: disk(state_dir),
            net_rx_bytes_per_s: rx,
            net_tx_bytes_per_s: tx,
            uptime_s: Some(process::since_boot_ms() / 1000),
        }
    }

    fn cpu(&mut self) -> Option<f32> {
        let system = self.system.as_mut()?;
        system.refresh_cpu_usage();
        // The first reading has nothing to differ from.
        // A tenth of a percent is fine enough, and shorter on the wire.
        let percent = (system.global_cpu_usage() * 10.0).round() / 10.0;
        std::mem::replace(&mut self.cpu_read_before, true).then_some(percent)
    }

    fn memory(&mut self) -> Option<MemoryUse> {
        let system = self.system.as_mut()?;
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let total = Bytes(system.total_memory());
        Some(MemoryUse { used: total.saturating_sub(Bytes(system.available_memory())), total })
    }

    fn net_rates(&mut self) -> (Option<u64>, Option<u64>) {
        match fs::read_to_string("/proc/net/dev") {
            Ok(table) => self.net_rates_of(&table, Instant::now()),
            Err(_) => (None, None),
        }
    }

    /// Bytes a second, added up over the interfaces that were there before. One that is new (a virtual function that
    /// came back from a container brings its whole life) or was reset has no rate yet.
    fn net_rates_of(&mut self, table: &str, now: Instant) -> (Option<u64>, Option<u64>) {
        let counters = self.net_counters(table);
        let mut moved: Option<(u64, u64)> = None;
        let mut millis = 1;
        if let Some((then, before)) = &self.net_before {
            millis = now.duration_since(*then).as_millis().max(1);
            for (name, (rx, tx)) in &counters {
                let Some((rx_before, tx_before)) = before.get(name) else { continue };
                let grown = rx.checked_sub(*rx_before).zip(tx.checked_sub(*tx_before));
                let Some((rx, tx)) = grown else { continue };
                let (all_rx, all_tx) = moved.unwrap_or_default();
                moved = Some((all_rx.saturating_add(rx), all_tx.saturating_add(tx)));
            }
        }
        self.net_before = Some((now, counters));
        let rate = |bytes: u64| u64::try_from(u128::from(bytes) * 1000 / millis).ok();
        (moved.and_then(|m| rate(m.0)), moved.and_then(|m| rate(m.1)))
    }

    /// Bytes received and sent over each interface with hardware behind it; in a container or a
    /// virtual host, which has none, over each but the loopback.
    fn net_counters(&mut self, table: &str) -> Counters {
        let (mut hardware, mut others) = (Counters::new(), Counters::new());
        for (name, rx, tx) in table.lines().filter_map(interface).filter(|i| i.0 != "lo") {
            let known = self.physical.get(name).copied();
            let physical = known.unwrap_or_else(|| has_hardware(name));
            // Names come and go with containers; what is kept is bounded.
            if known.is_none() && self.physical.len() < 1024 {
                self.physical.insert(name.to_owned(), physical);
            }
            let counters = if physical { &mut hardware } else { &mut others };
            if counters.len() < 1024 {
                counters.insert(name.to_owned(), (rx, tx));
            }
        }
        if hardware.is_empty() { others } else { hardware }
    }
}

fn has_hardware(interface: &str) -> bool {
    !interface.contains('/') && Path::new(&format!("/sys/class/net/{interface}/device")).exists()
}

/// Name, bytes received, bytes sent: a line of /proc/net/dev.
fn interface(line: &str) -> Option<(&str, u64, u64)> {
    let (name, counters) = line.split_once(':')?;
    let mut counters = counters.split_ascii_whitespace();
    let rx = counters.next()?.parse().ok()?;
    let tx = counters.nth(7)?.parse().ok()?;
    Some((name.trim(), rx, tx))
}

fn disk(path: &Path) -> Option<MemoryUse> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(disk.f_frsize));
    Some(disk_use(bytes(disk.f_blocks), bytes(disk.f_bfree), bytes(disk.f_bavail)))
}

/// As `df` reckons it: in use is what is not free, and what root alone may fill is neither in use nor left for others.
fn disk_use(size: Bytes, free: Bytes, available: Bytes) -> MemoryUse {
    let used = size.saturating_sub(free);
    MemoryUse { used, total: Bytes(used.0.saturating_add(available.0)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_root_alone_may_fill_is_not_in_use() {
        let disk = disk_use(Bytes::gib(250), Bytes::gib(180), Bytes::gib(7));
        assert_eq!((disk.used, disk.free()), (Bytes::gib(70), Bytes::gib(7)));
        assert_eq!(disk_use(Bytes::gib(1), Bytes::gib(2), Bytes(u64::MAX)).used, Bytes::ZERO);
    }

    #[test]
    fn the_device_of_a_file_system_without_one_is_what_it_is_mounted_from() {
        let mounts = "\
            22 1 0:21 / /proc rw - proc proc rw\n\
            29 1 0:25 /@ / rw,relatime shared:1 - btrfs /dev/nvme0n1p2 rw,ssd\n\
            30 1 0:26 / /net rw - nfs4 server:/export rw\n";
        assert_eq!(mounted_from(mounts, 25), Some("/dev/nvme0n1p2"));
        assert_eq!(mounted_from(mounts, 26), None);
        assert_eq!(mounted_from("29 1 0:25", 25), None);
    }

    #[test]
    fn an_interface_that_comes_or_is_reset_makes_no_rate() {
        let mut meter = HostMeter::new();
        let line =
            |name: &str, rx: u64, tx: u64| format!("{name}: {rx} 0 0 0 0 0 0 0 {tx} 0 0 0\n");
        let start = Instant::now();
        let mut at = 0;
        let mut rates = |table: String| {
            at += 1;
            meter.net_rates_of(&table, start + std::time::Duration::from_secs(at))
        };
        assert_eq!(rates(line("x0", 1_000, 10)), (None, None));
        assert_eq!(rates(line("x0", 3_000, 20)), (Some(2_000), Some(10)));
        let both = |rx, tx| line("x0", rx, tx) + &line("x1", 1 << 50, 1 << 40);
        assert_eq!(rates(both(4_000, 30)), (Some(1_000), Some(10)), "x1 has just come");
        assert_eq!(rates(both(5_000, 40)), (Some(1_000), Some(10)));
        assert_eq!(rates(line("x0", 7, 7)), (None, None), "its driver was loaded again");
        assert_eq!(rates(line("x0", 8, 9)), (Some(1), Some(2)));
    }

    #[test]
    fn samples_this_machine() {
        let mut meter = HostMeter::new();
        let none = || Gpus::None { why: String::new() };
        let first = meter.sample(Path::new("/"), none(), None);
        assert_eq!((first.cpu_percent, first.net_rx_bytes_per_s), (None, None), "no rate yet");
        let sample = meter.sample(Path::new("/"), none(), None);
        assert!(sample.monotonic_ms >= first.monotonic_ms);
        assert!(sample.memory.is_some_and(|m| m.total > m.used && m.used.0 > 0));
        assert!(sample.disk.is_some_and(|d| d.total >= d.used && d.total.0 > 0));
        assert!(sample.cpu_percent.is_some_and(|c| (0.0..=100.0).contains(&c)));
        assert!(sample.load_1m.is_some() && sample.net_rx_bytes_per_s.is_some());
    }

    #[test]
    fn reads_the_kernels_tables() {
        let info = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n";
        assert_eq!(
            memory(info),
            Some(MemoryUse { used: Bytes(600 * 1024), total: Bytes(1000 * 1024) })
        );
        let line = "  eth0: 1234 5 0 0 0 0 0 0 99 6 0 0 0 0 0 0";
        assert_eq!(interface(line), Some(("eth0", 1234, 99)));
        assert_eq!(interface("Inter-|   Receive"), None);
    }
}
