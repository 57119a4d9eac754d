//! The devices that a GPU is for those who place and start ranks: itself, or its MIG instances.

use super::{Gpu, MemoryUse, MigInstance};
use crate::base::DeviceId;

/// What a rank is placed on: a whole GPU or one of its MIG instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// As NVIDIA's tools call it: `7`, or `7:1` for the second instance of GPU 7.
    pub label: String,
    /// Product name; of an instance with its profile.
    pub name: &'a str,
    /// Its memory, where the driver says it.
    pub memory: Option<MemoryUse>,
}

impl Gpu {
    /// Its id as a device.
    pub fn device(&self) -> DeviceId {
        DeviceId::Gpu(self.uuid.to_string())
    }

    /// Whether a device is this GPU or one of its MIG instances.
    pub fn has(&self, device: &DeviceId) -> bool {
        self.part(device).is_some()
    }

    /// The device, if it is this GPU or one of its MIG instances.
    pub fn part(&self, device: &DeviceId) -> Option<Part<'_>> {
        let DeviceId::Gpu(uuid) = device else { return None };
        if *uuid == self.uuid {
            let label = self.index.to_string();
            return Some(Part { label, name: &self.name, memory: self.memory });
        }
        let at = self.mig_instances.iter().position(|i| i.uuid == *uuid)?;
        let instance = self.mig_instances.get(at)?;
        let label = format!("{}:{at}", self.index);
        Some(Part { label, name: &instance.name, memory: instance.memory })
    }
}

impl MigInstance {
    /// Its id as a device.
    pub fn device(&self) -> DeviceId {
        DeviceId::Gpu(self.uuid.to_string())
    }

    /// Its profile, as its name ends: `3g.40gb`.
    pub fn profile(&self) -> &str {
        self.name.rsplit_once(" MIG ").map_or(self.name.as_str(), |(_, profile)| profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Bytes;

    #[test]
    fn a_gpu_and_its_instances() {
        let memory = Some(MemoryUse { used: Bytes::ZERO, total: Bytes::gib(40) });
        let gpu = Gpu {
            uuid: "GPU-1".into(),
            index: 7,
            name: "NVIDIA H100 80GB HBM3".into(),
            mig: Some(true),
            mig_instances: vec![
                MigInstance::default(),
                MigInstance {
                    uuid: "MIG-2".into(),
                    name: "NVIDIA H100 80GB HBM3 MIG 3g.40gb".into(),
                    memory,
                },
            ],
            ..Gpu::default()
        };
        let part = |uuid: &str| gpu.part(&DeviceId::Gpu(uuid.to_owned()));
        assert_eq!(part("GPU-1").map(|p| p.label), Some("7".to_owned()));
        let second = part("MIG-2").map(|p| (p.label, p.memory));
        assert_eq!(second, Some(("7:1".to_owned(), memory)));
        assert!(part("MIG-3").is_none() && !gpu.has(&DeviceId::Cpu));
        assert_eq!(gpu.mig_instances.last().map(MigInstance::profile), Some("3g.40gb"));
    }
}
