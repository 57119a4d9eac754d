//! What GPUs a host has, in few words.

use std::collections::BTreeMap;

use super::Gpu;

/// How many GPUs of which kinds: `1× A40, 3× H100 PCIe`.
pub fn models(gpus: &[Gpu]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for gpu in gpus {
        *counts.entry(gpu.name.trim_start_matches("NVIDIA ")).or_default() += 1;
    }
    counts.iter().map(|(name, n)| format!("{n}× {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_gpu_stands_for_those_of_another_kind() {
        let gpu = |name: &str| Gpu { name: name.into(), ..Gpu::default() };
        let gpus = ["NVIDIA H100 PCIe", "NVIDIA A40", "NVIDIA H100 PCIe"].map(gpu);
        assert_eq!(models(&gpus), "1× A40, 2× H100 PCIe");
    }
}
