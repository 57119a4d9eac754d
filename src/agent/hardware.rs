//! What a host is built of, as sysfs shows it: disks and how fast their kind is, network interfaces
//! and RDMA, NUMA nodes. Read once per connection.

use std::fs;
use std::path::Path;

use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{Disk, DiskClass, Nic};

/// Most disks and interfaces that are told.
const MAX: usize = 64;

/// Sector size in `/sys/block/*/size`, whatever the disk's own is.
const SECTOR: u64 = 512;

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(clean(text.trim(), 80)).filter(|t| !t.is_empty())
}

/// The number in a small file.
pub(super) fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).take(4096).collect();
    names.sort();
    names
}

/// Whole disks below `sys`; `state_device` is the device number of the disk (or partition) that
/// holds the agent's state.
pub fn disks(sys: &Path, state_device: Option<(u32, u32)>) -> Vec<Disk> {
    let block = sys.join("block");
    let devices = state_device.map_or_else(Vec::new, |device| underneath(sys, device));
    let disk = |name: String| -> Option<Disk> {
        let dir = block.join(&name);
        // Loops, RAM disks, CD drives and the layers of device mapper are no disks of their own.
        let own = dir.join("device").exists() && !name.starts_with("sr");
        let size = number::<u64>(&dir.join("size")).filter(|sectors| *sectors > 0)?;
        let model = text(&dir.join("device/model"));
        let seen = class(&name, number(&dir.join("queue/rotational")))?;
        let vendor = text(&dir.join("device/vendor")).unwrap_or_default();
        let is_played = is_hypervisors(&vendor, model.as_deref().unwrap_or_default());
        let class = if is_played { DiskClass::Virtual } else { seen };
        own.then(|| Disk {
            class,
            size: Some(Bytes(size.saturating_mul(SECTOR))),
            model,
            holds_state: devices.iter().any(|device| holds(&dir, &name, *device)),
            name: clean(&name, 40),
        })
    };
    names(&block).into_iter().filter_map(disk).take(MAX).collect()
}

fn class(name: &str, rotational: Option<u8>) -> Option<DiskClass> {
    Some(match rotational {
        _ if name.starts_with("nvme") => DiskClass::Nvme,
        // What a hypervisor says about turning is a guess.
        _ if name.starts_with("vd") || name.starts_with("xvd") => DiskClass::Virtual,
        Some(0) => DiskClass::Ssd,
        Some(_) => DiskClass::Hdd,
        None => return None,
    })
}

/// Makers of disks that are none: what lies behind them the machine cannot see.
const HYPERVISORS: [&str; 5] = ["QEMU", "VMware", "Msft", "NUTANIX", "XENSRC"];

/// What hypervisors and clouds call disks that are none. The disks that a machine in a cloud has for itself are called
/// otherwise, and are disks.
const PLAYED: [&str; 12] = [
    "PersistentDisk",
    "nvme_card-pd",
    "Virtual Disk",
    "MSFT NVMe Accelerator",
    "QEMU HARDDISK",
    "QEMU NVMe",
    "VMware Virtual",
    "Amazon Elastic Block Store",
    "BlockVolume",
    "VBOX HARDDISK",
    "Virtual HDD",
    "VDISK",
];

/// A hypervisor plays the disk: what it says about turning and about its bus is a guess.
fn is_hypervisors(vendor: &str, model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    HYPERVISORS.iter().any(|name| vendor.eq_ignore_ascii_case(name))
        || PLAYED.iter().any(|name| model.starts_with(&name.to_ascii_lowercase()))
}

/// A device with all that it lies on: the partitions and disks below LVM, RAID and encryption.
fn underneath(sys: &Path, device: (u32, u32)) -> Vec<(u32, u32)> {
    let mut found = vec![device];
    let mut next = 0;
    while let Some((major, minor)) = found.get(next).copied() {
        next += 1;
        let slaves = sys.join(format!("dev/block/{major}:{minor}/slaves"));
        for slave in names(&slaves) {
            let number = text(&slaves.join(slave).join("dev"));
            let number = number.as_deref().and_then(|text| text.split_once(':'));
            let number = number.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            if let Some(number) = number.filter(|n| found.len() < 1024 && !found.contains(n)) {
                found.push(number);
            }
        }
    }
    found
}

/// The disk, or a partition of it, has this device number.
fn holds(dir: &Path, name: &str, device: (u32, u32)) -> bool {
    let is = |dev: &Path| text(dev).is_some_and(|t| t == format!("{}:{}", device.0, device.1));
    is(&dir.join("dev"))
        || names(dir)
            .iter()
            .filter(|part| part.starts_with(name))
            .any(|part| is(&dir.join(part).join("dev")))
}

/// Network interfaces below `sys` with hardware behind them.
pub fn nics(sys: &Path) -> Vec<Nic> {
    let net = sys.join("class/net");
    let rdma = rdma(sys);
    let nic = |name: String| -> Option<Nic> {
        let dir = net.join(&name);
        dir.join("device").exists().then(|| Nic {
            up: match text(&dir.join("operstate")).as_deref() {
                Some("up") => true,
                // A driver that does not tell its state still tells whether there is a signal.
                Some("unknown") => number(&dir.join("carrier")) == Some(1_u8),
                _ => false,
            },
            // A link that is down has a speed of -1, which is none.
            speed_mbit_per_s: number(&dir.join("speed")),
            rdma: rdma.iter().find(|(_, of)| of.contains(&name)).map(|(device, _)| device.clone()),
            numa_node: number(&dir.join("device/numa_node")),
            name: clean(&name, 40),
        })
    };
    let bare = rdma.iter().filter(|(_, interfaces)| interfaces.is_empty());
    let bare = bare.flat_map(|(device, _)| ports(sys, device));
    names(&net).into_iter().filter_map(nic).chain(bare).take(MAX).collect()
}

/// The ports of an RDMA device without a network interface (InfiniBand without IP): `mlx5_0`, further ones `mlx5_0:2`.
fn ports(sys: &Path, device: &str) -> Vec<Nic> {
    let dir = sys.join("class/infiniband").join(device);
    let port = |port: String| Nic {
        // `4: ACTIVE`, `400 Gb/sec (4X NDR)`.
        up: text(&dir.join("ports").join(&port).join("state")).is_some_and(|s| s.starts_with('4')),
        speed_mbit_per_s: text(&dir.join("ports").join(&port).join("rate")).and_then(|rate| {
            let gbit: f64 = rate.split_once(" Gb")?.0.parse().ok()?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked
            (0.0..1e6).contains(&gbit).then_some((gbit * 1000.0) as u32)
        }),
        rdma: Some(device.to_owned()),
        numa_node: number(&dir.join("device/numa_node")),
        name: if port == "1" { device.to_owned() } else { clean(&format!("{device}:{port}"), 40) },
    };
    names(&dir.join("ports")).into_iter().map(port).collect()
}

/// RDMA devices, each with the network interfaces on the same hardware.
fn rdma(sys: &Path) -> Vec<(String, Vec<String>)> {
    let dir = sys.join("class/infiniband");
    let of = |device: String| {
        let interfaces = names(&dir.join(&device).join("device/net"));
        (clean(&device, 40), interfaces)
    };
    names(&dir).into_iter().map(of).collect()
}

/// NUMA nodes that are online.
pub fn numa_nodes(sys: &Path) -> Option<u32> {
    count(&text(&sys.join("devices/system/node/online"))?)
}

/// Logical processors that are online, whatever of them this session may use.
pub fn processors(sys: &Path) -> Option<u32> {
    let list = fs::read_to_string(sys.join("devices/system/cpu/online")).ok()?;
    count(list.trim()).filter(|count| *count > 0)
}

/// How many are in a list of the kernel's: `0-1`, `0,2-3`.
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |sum, part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.parse().ok()?, to.parse().ok()?);
        sum.checked_add(to.checked_sub(from)?.checked_add(1)?)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn put(sys: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = sys.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn disks_have_a_speed_class() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path();
        put(
            sys,
            &[
                ("block/nvme0n1/size", "7501476528\n"),
                ("block/nvme0n1/queue/rotational", "0\n"),
                ("block/nvme0n1/device/model", "SAMSUNG MZQL23T8HCLS-00A07   \n"),
                ("block/nvme0n1/dev", "259:0\n"),
                ("block/nvme0n1/nvme0n1p2/dev", "259:2\n"),
                ("block/sda/size", "31251759104\n"),
                ("block/sda/queue/rotational", "1\n"),
                ("block/sda/device/model", "ST16000NM\u{1b}[31m001G\n"),
                ("block/sdb/size", "1000\n"),
                ("block/sdb/queue/rotational", "0\n"),
                ("block/sdb/device/model", "SSD\n"),
                ("block/vda/size", "1000\n"),
                ("block/vda/queue/rotational", "1\n"),
                ("block/vda/device/type", "0\n"),
                ("block/loop0/size", "1000\n"),
                ("block/loop0/queue/rotational", "1\n"),
                ("block/sr0/size", "1000\n"),
                ("block/sr0/device/model", "DVD\n"),
                ("block/sdz/size", "0\n"),
                ("block/sdz/device/model", "empty card reader\n"),
            ],
        );
        let found = disks(sys, Some((259, 2)));
        let seen: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.class)).collect();
        let wanted = [
            ("nvme0n1", DiskClass::Nvme),
            ("sda", DiskClass::Hdd),
            ("sdb", DiskClass::Ssd),
            ("vda", DiskClass::Virtual),
        ];
        assert_eq!(seen, wanted);
        assert_eq!(found[0].size, Some(Bytes(7_501_476_528 * 512)));
        assert!(found[0].holds_state && !found[1].holds_state);
        assert_eq!(found[1].model.as_deref(), Some("ST16000NM001G"));
        assert_eq!(found[3].model, None);
    }

    #[test]
    fn disks_that_a_hypervisor_plays_are_virtual_whatever_they_say() {
        let class = |name: &str, vendor: Option<&str>, model: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = |path: &str| format!("block/{name}/{path}");
            let mut files = vec![
                (file("size"), "1000\n".to_owned()),
                (file("queue/rotational"), "1\n".to_owned()),
                (file("device/model"), format!("{model}  \n")),
            ];
            files.extend(vendor.map(|vendor| (file("device/vendor"), format!("{vendor}\n"))));
            let files: Vec<_> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            put(dir.path(), &files);
            disks(dir.path(), None)[0].class
        };
        for (name, vendor, model) in [
            ("sda", Some("Google"), "PersistentDisk"),
            ("nvme0n1", None, "nvme_card-pd"),
            ("sda", Some("Msft"), "Virtual Disk"),
            ("sda", Some("ATA"), "QEMU HARDDISK"),
            ("sda", Some("QEMU"), "Volume"),
            ("nvme0n1", None, "QEMU NVMe Ctrl"),
            ("sda", Some("VMware"), "Virtual disk"),
            ("nvme0n1", None, "VMware Virtual NVMe Disk"),
            ("nvme0n1", None, "Amazon Elastic Block Store"),
            ("sda", Some("ORACLE"), "BlockVolume"),
        ] {
            assert_eq!(class(name, vendor, model), DiskClass::Virtual, "{model}");
        }
        // Disks that a cloud's machine has for itself.
        let own = "Amazon EC2 NVMe Instance Storage";
        assert_eq!(class("nvme1n1", None, own), DiskClass::Nvme);
        assert_eq!(class("sda", Some("SEAGATE"), "ST16000NM"), DiskClass::Hdd);
    }

    #[test]
    fn a_link_whose_state_is_unknown_is_up_where_there_is_a_signal() {
        let dir = tempfile::tempdir().unwrap();
        let files = |name: &str, carrier: &str| {
            put(
                dir.path(),
                &[
                    (&format!("class/net/{name}/operstate"), "unknown\n"),
                    (&format!("class/net/{name}/carrier"), carrier),
                    (&format!("class/net/{name}/device/numa_node"), "0\n"),
                ],
            );
        };
        files("eth0", "1\n");
        files("eth1", "0\n");
        let seen: Vec<_> = nics(dir.path()).into_iter().map(|nic| (nic.name, nic.up)).collect();
        assert_eq!(seen, [("eth0".to_owned(), true), ("eth1".to_owned(), false)]);
    }

    #[test]
    fn the_disk_below_lvm_on_raid_holds_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path();
        put(
            sys,
            &[
                ("block/nvme0n1/size", "1000\n"),
                ("block/nvme0n1/queue/rotational", "0\n"),
                ("block/nvme0n1/device/model", "A\n"),
                ("block/nvme0n1/nvme0n1p2/dev", "259:2\n"),
                ("block/sda/size", "1000\n"),
                ("block/sda/queue/rotational", "1\n"),
                ("block/sda/device/model", "B\n"),
                ("block/sda/dev", "8:0\n"),
                ("dev/block/253:1/slaves/md0/dev", "9:0\n"),
                ("dev/block/9:0/slaves/nvme0n1p2/dev", "259:2\n"),
                // A circle, which the kernel does not make, ends.
                ("dev/block/259:2/slaves/dm-1/dev", "253:1\n"),
            ],
        );
        let holds: Vec<bool> = disks(sys, Some((253, 1))).iter().map(|d| d.holds_state).collect();
        assert_eq!(holds, [true, false]);
    }

    #[test]
    fn infiniband_without_ip_is_shown_by_its_ports() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path();
        put(
            sys,
            &[
                ("class/infiniband/mlx5_0/device/numa_node", "1\n"),
                ("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
                ("class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n"),
                ("class/infiniband/mlx5_0/ports/2/state", "1: DOWN\n"),
                ("class/infiniband/mlx5_0/ports/2/rate", "2.5 Gb/sec (1X SDR)\n"),
            ],
        );
        let port = |name: &str, up, speed| Nic {
            name: name.to_owned(),
            up,
            speed_mbit_per_s: Some(speed),
            rdma: Some("mlx5_0".to_owned()),
            numa_node: Some(1),
        };
        assert_eq!(nics(sys), [port("mlx5_0", true, 400_000), port("mlx5_0:2", false, 2_500)]);
    }

    #[test]
    fn interfaces_have_speed_and_rdma() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path();
        put(
            sys,
            &[
                ("class/net/ib0/operstate", "up\n"),
                ("class/net/ib0/speed", "400000\n"),
                ("class/net/ib0/device/numa_node", "1\n"),
                ("class/infiniband/mlx5_0/device/net/ib0/mtu", "4092\n"),
                ("class/net/eth0/operstate", "down\n"),
                ("class/net/eth0/speed", "-1\n"),
                ("class/net/eth0/device/numa_node", "-1\n"),
                ("class/net/docker0/operstate", "up\n"),
                ("devices/system/node/online", "0-1,4\n"),
                ("devices/system/cpu/online", "0-95,128-223\n"),
            ],
        );
        let eth0 = Nic { name: "eth0".to_owned(), ..Nic::default() };
        let ib0 = Nic {
            name: "ib0".to_owned(),
            up: true,
            speed_mbit_per_s: Some(400_000),
            rdma: Some("mlx5_0".to_owned()),
            numa_node: Some(1),
        };
        assert_eq!(nics(sys), [eth0, ib0]);
        assert_eq!(numa_nodes(sys), Some(3));
        assert_eq!(processors(sys), Some(192));
        let empty = tempfile::tempdir().unwrap();
        assert_eq!((numa_nodes(empty.path()), nics(empty.path()).len()), (None, 0));
        assert!(disks(empty.path(), None).is_empty());
    }
}
