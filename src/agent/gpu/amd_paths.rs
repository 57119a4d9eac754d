//! What lies between the GPUs of AMD, from where the kernel has their devices: the directory of a PCI device is
//! within those of the bridges above it, `devices/pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:00.0/…`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use smol_str::SmolStr;

use super::amd::{VENDOR, text};
use crate::wire::{Gpu, GpuPath, PathKind};

/// A device below one port of a switch: the port and the device.
const BEHIND_A_SWITCH: usize = 2;

/// Where a GPU is.
struct Place {
    uuid: SmolStr,
    /// The host bridge: `pci0000:40`.
    root: String,
    /// From the root port down, the GPU last.
    way: Vec<String>,
    numa: Option<u32>,
}

/// Says what lies between those that are there. A tree that is not the kernel's says nothing.
pub(super) fn find(devices: &[PathBuf], known: &mut BTreeMap<PathBuf, Gpu>) {
    let place = |device: &PathBuf| {
        let gpu = known.get(device)?;
        let (root, way) = way(device)?;
        Some(Place { uuid: gpu.uuid.clone(), root, way, numa: gpu.numa_node })
    };
    let places: Vec<Option<Place>> = devices.iter().map(place).collect();
    for (device, own) in devices.iter().zip(&places) {
        let (Some(gpu), Some(own)) = (known.get_mut(device), own) else { continue };
        let others = places.iter().flatten().filter(|other| other.uuid != own.uuid);
        gpu.paths = others
            .map(|other| GpuPath { to: other.uuid.clone(), over: between(own, other) })
            .collect();
    }
}

fn between(one: &Place, other: &Place) -> PathKind {
    if one.root != other.root {
        // On a machine with one node the kernel says of none on which it is.
        return if one.numa == other.numa { PathKind::Node } else { PathKind::Sys };
    }
    let common = one.way.iter().zip(&other.way).take_while(|(a, b)| a == b).count();
    let below = |place: &Place| place.way.len() - common;
    match below(one).max(below(other)) {
        _ if common == 0 => PathKind::Phb,
        n if n <= BEHIND_A_SWITCH => PathKind::Pix,
        _ => PathKind::Pxb,
    }
}

/// The host bridge of a device, and its way down from there. The card's own bridges count as part of it.
fn way(device: &Path) -> Option<(String, Vec<String>)> {
    let device = device.canonicalize().ok()?;
    let is_root = |name: &str| name.starts_with("pci") && name.contains(':');
    let mut way = Vec::new();
    let mut at: &Path = &device;
    loop {
        let name = at.file_name()?.to_str()?;
        if is_root(name) {
            way.reverse();
            return (!way.is_empty()).then(|| (name.to_owned(), way));
        }
        // Only a device of PCI has such a name.
        if name.split(':').count() != 3 {
            return None;
        }
        if at == device || text(&at.join("vendor")).as_deref() != Some(VENDOR) {
            way.push(name.to_owned());
        }
        at = at.parent()?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use PathKind::{Node, Phb, Pix, Pxb, Sys};

    use super::super::amd::AmdSource;
    use super::super::{GpuSource, Want};
    use super::*;

    #[test]
    fn the_bridges_above_two_gpus_say_what_lies_between_them() {
        let dir = tempfile::tempdir().unwrap();
        // Two below one switch, a third below a second one that hangs on it, each with bridges of its own; one on
        // another port, one on another host bridge of the node, one on the other processor.
        let ways = [
            ("pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:00.0/0000:43:00.0/0000:44:00.0", "0"),
            ("pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:01.0/0000:45:00.0/0000:46:00.0", "0"),
            (
                "pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:02.0/0000:47:00.0/0000:48:00.0/0000:49:00.0",
                "0",
            ),
            ("pci0000:40/0000:40:03.1/0000:50:00.0", "0"),
            ("pci0000:60/0000:60:01.1/0000:61:00.0", "0"),
            ("pci0000:a0/0000:a0:01.1/0000:a1:00.0", "1"),
        ];
        let put = |path: PathBuf, content: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for (n, (way, numa)) in ways.iter().enumerate() {
            let device = dir.path().join("devices").join(way);
            let slot = device.file_name().unwrap().to_str().unwrap();
            put(device.join("vendor"), "0x1002\n");
            put(device.join("uevent"), &format!("PCI_SLOT_NAME={slot}\n"));
            put(device.join("numa_node"), &format!("{numa}\n"));
            let card = dir.path().join(format!("class/drm/card{n}"));
            fs::create_dir_all(&card).unwrap();
            symlink(&device, card.join("device")).unwrap();
        }
        // The card's own bridge, as of a Radeon or an MI210; the ports of switches are another's.
        for own in ["0000:42:00.0/0000:43:00.0", "0000:42:01.0/0000:45:00.0"] {
            let bridge = dir.path().join("devices/pci0000:40/0000:40:01.1/0000:41:00.0").join(own);
            put(bridge.join("vendor"), "0x1002\n");
            put(bridge.parent().unwrap().join("vendor"), "0x1000\n");
        }
        let mut source = AmdSource::new(dir.path().to_owned());
        let first = |source: &mut AmdSource, want| {
            let read = source.read(want);
            let gpus = read.list();
            assert_eq!(gpus.len(), 6);
            let third: Vec<_> = gpus[2].paths.iter().map(|path| path.over).collect();
            (gpus[0].paths.to_vec(), third)
        };
        let (paths, third) = first(&mut source, Want::Due);
        let over: Vec<_> = paths.iter().map(|path| path.over).collect();
        assert_eq!(over, [Pix, Pxb, Phb, Node, Sys]);
        assert_eq!(third, [Pxb, Pxb, Phb, Node, Sys]);
        assert_eq!(paths[0].to, "PCI-0000:46:00.0");
        // Between its turns it is not forgotten.
        assert_eq!(first(&mut source, Want::Due).0, paths);
    }
}
