//! The GPUs that a host has had since it was started. A driver that has lost one may not list it to the next
//! process that asks: what is missing is known by what was there, kept in the agent's state directory, and
//! by what the kernel module itself has in its hands (`/proc/driver/nvidia/gpus`).

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::agent::state;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuHealth, GpuVendor};

/// The file in the state directory.
pub const FILE: &str = "gpus.json";

/// Most GPUs that are remembered.
const MAX_GPUS: usize = 64;

/// Who a GPU is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The driver's UUID.
    pub uuid: SmolStr,
    /// Product name.
    pub name: SmolStr,
    /// Index in the driver's order, when it was last listed.
    pub index: u32,
    /// PCI bus id.
    pub pci_bus_id: Option<SmolStr>,
    /// Who made it; in the file each maker has a list of its own.
    #[serde(default, skip)]
    pub vendor: GpuVendor,
}

impl Named {
    /// The GPU, which nothing else is known of.
    pub fn lost(&self) -> Gpu {
        Gpu {
            index: self.index,
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            pci_bus_id: self.pci_bus_id.clone(),
            vendor: self.vendor,
            health: GpuHealth::Lost,
            ..Gpu::default()
        }
    }

    /// Whether it is in this slot. The library writes the domain with eight digits, the kernel with four.
    pub fn is_at(&self, bus: &str) -> bool {
        let bare = |bus: &str| bus.trim_start_matches('0').to_ascii_lowercase();
        self.pci_bus_id.as_deref().is_some_and(|own| bare(own) == bare(bus))
    }

    fn cleaned(self) -> Option<Self> {
        let of = |text: &SmolStr, most| SmolStr::from(clean(text, most));
        let named = Self {
            uuid: of(&self.uuid, 80),
            name: of(&self.name, 96),
            index: self.index,
            pci_bus_id: self.pci_bus_id.map(|bus| of(&bus, 32)),
            vendor: self.vendor,
        };
        is_name(named.vendor, &named.uuid).then_some(named)
    }
}

/// A UUID of the driver's, and no stand-in of ours. Of AMD's that have none the slot is the name.
fn is_name(vendor: GpuVendor, uuid: &str) -> bool {
    let is_slot = vendor == GpuVendor::Amd && uuid.starts_with("PCI-");
    (uuid.starts_with("GPU-") || is_slot) && !uuid.contains('?')
}

/// The GPUs of this host, by whom they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Lists", into = "Lists")]
pub struct Roll(Vec<Named>);

/// NVIDIA's and AMD's apart: an agent from before AMD's were kept takes all of a list for NVIDIA's.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Lists {
    gpus: Vec<Named>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    amd: Vec<Named>,
}

impl From<Roll> for Lists {
    fn from(roll: Roll) -> Self {
        let (gpus, amd) = roll.0.into_iter().partition(|named| named.vendor == GpuVendor::Nvidia);
        Self { gpus, amd }
    }
}

impl From<Lists> for Roll {
    fn from(lists: Lists) -> Self {
        let of = |vendor| move |named: Named| Named { vendor, ..named }.cleaned();
        let nvidia = lists.gpus.into_iter().filter_map(of(GpuVendor::Nvidia));
        let amd = lists.amd.into_iter().filter_map(of(GpuVendor::Amd));
        Self(nvidia.take(MAX_GPUS).chain(amd.take(MAX_GPUS)).collect())
    }
}

/// As it is on disk.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    #[serde(flatten)]
    lists: Lists,
}

impl Roll {
    /// Those of one maker.
    pub fn of(&self, vendor: GpuVendor) -> impl Iterator<Item = &Named> {
        self.0.iter().filter(move |named| named.vendor == vendor)
    }

    /// Takes over who is in a reading; whether that is new. Where a lost one stands in a list says nothing.
    pub fn learn(&mut self, gpus: &[Gpu]) -> bool {
        let before = self.clone();
        for gpu in gpus.iter().filter(|g| is_name(g.vendor, &g.uuid)) {
            let named = Named {
                uuid: gpu.uuid.clone(),
                name: gpu.name.clone(),
                index: gpu.index,
                pci_bus_id: gpu.pci_bus_id.clone(),
                vendor: gpu.vendor,
            };
            let same = |known: &&mut Named| known.vendor == gpu.vendor && known.uuid == gpu.uuid;
            if let Some(known) = self.0.iter_mut().find(same) {
                if gpu.health != GpuHealth::Lost {
                    *known = named;
                }
            } else if self.of(gpu.vendor).count() < MAX_GPUS {
                self.0.push(named);
            }
        }
        // As they are kept, so that a list that was read is the one that was written.
        self.0.sort_by_key(|named| named.vendor == GpuVendor::Amd);
        *self != before
    }

    /// What was kept since the host was started; a file of another boot, or one that is none, is nothing.
    pub fn load(path: &Path, boot_id: &str) -> Self {
        let kept: Kept = state::read_json(path).ok().flatten().unwrap_or_default();
        if boot_id.is_empty() || kept.boot_id != boot_id {
            return Self::default();
        }
        kept.lists.into()
    }

    /// Keeps them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, path: &Path, boot_id: &str) -> io::Result<()> {
        if boot_id.is_empty() || Self::load(path, boot_id) == *self {
            return Ok(());
        }
        let kept = Kept { boot_id: boot_id.to_owned(), lists: self.clone().into() };
        state::write_json(path, &kept)
    }
}

/// The GPUs that NVIDIA's kernel module has in its hands, in the order of their slots, which is the
/// library's, too. `proc` is `/proc` on a host. Those that it was told to leave alone are left out.
pub fn of_kernel(proc: &Path) -> Vec<Named> {
    let Ok(slots) = fs::read_dir(proc.join("driver/nvidia/gpus")) else { return Vec::new() };
    let slots = slots.flatten().take(MAX_GPUS);
    let mut found: Vec<Named> = slots
        .filter_map(|slot| {
            let bus = slot.file_name().into_string().ok()?;
            let text = fs::read_to_string(slot.path().join("information")).ok()?;
            of_slot(&bus, &text)
        })
        .collect();
    found.sort_by(|a, b| a.pci_bus_id.cmp(&b.pci_bus_id));
    found
}

fn of_slot(bus: &str, information: &str) -> Option<Named> {
    let value = |key: &str| {
        let mut lines = information.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    };
    if value("GPU Excluded").is_some_and(|excluded| excluded != "No") {
        return None;
    }
    let bus = clean(bus, 32);
    let uuid = match value("GPU UUID").map(|uuid| clean(uuid, 80)) {
        Some(uuid) if is_name(GpuVendor::Nvidia, &uuid) => uuid,
        // One that was never started has question marks in their place.
        _ => format!("PCI-{bus}"),
    };
    let name = value("Model").filter(|name| !name.is_empty()).unwrap_or("GPU");
    let name = clean(name, 96).into();
    let (uuid, pci_bus_id) = (uuid.into(), Some(bus.into()));
    Some(Named { uuid, name, index: u32::MAX, pci_bus_id, vendor: GpuVendor::Nvidia })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn gpu(uuid: &str, index: u32, health: GpuHealth) -> Gpu {
        let pci_bus_id = Some("00000000:18:00.0".into());
        Gpu { uuid: uuid.into(), index, name: "H100".into(), health, pci_bus_id, ..Gpu::default() }
    }

    #[test]
    fn who_was_there_is_kept_until_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut roll = Roll::default();
        let other = Gpu { vendor: GpuVendor::Amd, ..gpu("PCI-0000:03:00.0", 1, GpuHealth::Ok) };
        let named = [
            other,
            gpu("GPU-1", 0, GpuHealth::Ok),
            gpu("index-1", 1, GpuHealth::Lost),
            gpu("PCI-x", 2, GpuHealth::Lost),
        ];
        assert!(roll.learn(&named) && !roll.learn(&named));
        // One that is lost has no place of its own.
        assert!(!roll.learn(&[gpu("GPU-1", 7, GpuHealth::Lost)]));
        assert!(roll.learn(&[gpu("GPU-1", 3, GpuHealth::Ok)]));
        let seen = |vendor| -> Vec<_> {
            roll.of(vendor).map(|named| (named.uuid.as_str(), named.index)).collect()
        };
        assert_eq!(seen(GpuVendor::Nvidia), [("GPU-1", 3)]);
        assert_eq!(seen(GpuVendor::Amd), [("PCI-0000:03:00.0", 1)]);
        // As the agent tells it to the process that asks the drivers.
        let told = serde_json::to_string(&roll).unwrap();
        assert_eq!(serde_json::from_str::<Roll>(&told).unwrap(), roll);
        roll.keep(&path, "boot").unwrap();
        assert_eq!(Roll::load(&path, "boot"), roll);
        assert_eq!(Roll::load(&path, "another"), Roll::default());
        for text in
            ["", "nonsense", r#"{"boot_id":"boot","gpus":[{"uuid":"x","name":"y","index":0}]}"#]
        {
            fs::write(&path, text).unwrap();
            assert_eq!(Roll::load(&path, "boot"), Roll::default(), "{text}");
        }
        Roll::default().keep(&dir.path().join("none"), "boot").unwrap();
        assert!(!dir.path().join("none").exists(), "a host without GPUs has nothing written");
    }

    #[test]
    fn the_kernel_module_says_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let slot = |bus: &str, text: &str| {
            let slot = dir.path().join("driver/nvidia/gpus").join(bus);
            fs::create_dir_all(&slot).unwrap();
            fs::write(slot.join("information"), text).unwrap();
        };
        assert_eq!(of_kernel(dir.path()), []);
        slot(
            "0000:3b:00.0",
            "Model: \t\t NVIDIA L40S\nIRQ:   \t\t 181\nGPU UUID: \t GPU-????????-????-????-????-????????????\nGPU Excluded:\t No\n",
        );
        slot(
            "0000:18:00.0",
            "Model: \t\t NVIDIA L40S\nGPU UUID: \t GPU-1\nBus Location: \t 0000:18:00.0\n",
        );
        slot("0000:af:00.0", "Model: NVIDIA L40S\nGPU UUID: GPU-3\nGPU Excluded:\t Yes\n");
        let found = of_kernel(dir.path());
        let seen: Vec<_> = found.iter().map(|n| (n.uuid.as_str(), n.name.as_str())).collect();
        assert_eq!(seen, [("GPU-1", "NVIDIA L40S"), ("PCI-0000:3b:00.0", "NVIDIA L40S")]);
        assert!(found[1].is_at("00000000:3B:00.0") && !found[1].is_at("00000000:3C:00.0"));
    }
}
