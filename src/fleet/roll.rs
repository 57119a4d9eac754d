//! The GPUs that `nvidia-smi` has listed since the connection was made: one that it lists no more is lost,
//! and one that does not say any more who it is is still the one it was.

use crate::wire::{Gpu, GpuHealth};

/// Most GPUs that are remembered.
const MAX_GPUS: usize = 64;

/// Those that were listed, as they were.
#[derive(Default)]
pub(super) struct Roll(Vec<Gpu>);

impl Roll {
    /// Completes a list by those that are missing in it, and remembers it.
    pub(super) fn complete(&mut self, gpus: &mut Vec<Gpu>) {
        for at in 0..gpus.len() {
            let Some(gpu) = gpus.get(at).filter(|gpu| !is_named(gpu)) else { continue };
            let lists = |uuid: &str| gpus.iter().any(|gpu| gpu.uuid == uuid);
            let is = |known: &&Gpu| match (&gpu.pci_bus_id, &known.pci_bus_id) {
                (Some(bus), Some(other)) => bare(bus) == bare(other),
                _ => gpu.index == known.index,
            };
            let known = self.0.iter().filter(|known| !lists(&known.uuid)).find(is);
            if let (Some(known), Some(place)) = (known.map(lost), gpus.get_mut(at)) {
                *place = Gpu { index: place.index, ..known };
            }
        }
        for known in &self.0 {
            if gpus.iter().all(|gpu| gpu.uuid != known.uuid) {
                let index = gpus.iter().map(|gpu| gpu.index.saturating_add(1)).max();
                gpus.push(Gpu { index: index.unwrap_or(0), ..lost(known) });
            }
        }
        for gpu in gpus.iter().filter(|gpu| is_named(gpu)) {
            if let Some(known) = self.0.iter_mut().find(|known| known.uuid == gpu.uuid) {
                known.index = gpu.index;
            } else if self.0.len() < MAX_GPUS {
                self.0.push(lost(gpu));
            }
        }
    }
}

/// It says who it is, and is not called after its place.
fn is_named(gpu: &Gpu) -> bool {
    gpu.uuid.starts_with("GPU-")
}

fn bare(bus: &str) -> String {
    bus.trim_start_matches('0').to_ascii_lowercase()
}

/// Who it is, and nothing else.
fn lost(gpu: &Gpu) -> Gpu {
    Gpu {
        index: gpu.index,
        uuid: gpu.uuid.clone(),
        name: gpu.name.clone(),
        pci_bus_id: gpu.pci_bus_id.clone(),
        health: GpuHealth::Lost,
        ..Gpu::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, uuid: &str, bus: &str) -> Gpu {
        Gpu { index, uuid: uuid.into(), pci_bus_id: Some(bus.into()), ..Gpu::default() }
    }

    fn seen(gpus: &[Gpu]) -> Vec<(u32, &str, bool)> {
        gpus.iter().map(|g| (g.index, g.uuid.as_str(), g.health == GpuHealth::Lost)).collect()
    }

    #[test]
    fn who_is_missing_is_lost_and_who_is_nameless_is_who_was_there() {
        let mut roll = Roll::default();
        let all = [
            gpu(0, "GPU-a", "00000000:10:00.0"),
            gpu(1, "GPU-b", "00000000:1A:00.0"),
            gpu(2, "GPU-c", "00000000:12:00.0"),
        ];
        let mut gpus = all.to_vec();
        roll.complete(&mut gpus);
        assert_eq!(gpus, all);

        let [a, _, c] = all.clone();
        let mut gpus = vec![a.clone(), Gpu { index: 1, ..c.clone() }];
        roll.complete(&mut gpus);
        let wanted = [(0, "GPU-a", false), (1, "GPU-c", false), (2, "GPU-b", true)];
        assert_eq!(seen(&gpus), wanted);

        let nameless =
            Gpu { health: GpuHealth::Lost, ..gpu(1, "PCI-0000:1A:00.0", "0000:1A:00.0") };
        let mut gpus = vec![a, nameless, c];
        roll.complete(&mut gpus);
        let wanted = [(0, "GPU-a", false), (1, "GPU-b", true), (2, "GPU-c", false)];
        assert_eq!(seen(&gpus), wanted);
    }
}
