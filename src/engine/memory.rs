//! How engines divide a model, keep its cache and find their budget: the rules that
//! [`crate::model::predict`] works with.
//!
//! Figures for what an engine takes besides weights and cache were measured by others on H100 and are
//! wide on purpose: a rank that does not fit costs more than a GPU that stays half empty.

use crate::base::Bytes;
use crate::model::estimate::{Bar, Budget, Pool, Remainder, Rules};
use crate::model::tensors::mul_div;
use crate::model::{ModelFacts, RankMemory, Setup, WeightSplit, predict};

use super::MemoryEstimate;

/// vLLM: a share of the GPU for everything; blocks of 16 tokens, shared by groups of layers.
pub const VLLM: Rules = Rules {
    engine: "vllm",
    split: WeightSplit::Tensors,
    data_inside: false,
    remainder: Remainder::BeforeLast,
    pool: Pool::Groups,
    budget: Budget::Share,
    vocabulary: 64,
    block: 16,
    // 0.9 until 0.31.
    utilisation: 0.92,
    utilisation_low: 0.9,
    batch: 8_192,
    batch_small: 2_048,
    batch_largest: 16_384,
    requests: 256,
    requests_large: 1_024,
    context: Bar::mib(277, 50, 700),
    communication: Bar::mib(1_000, 300, 1_874),
    // Seen on H100: 440 to 655 here, up to 1,890 by others.
    graphs: Bar::mib(700, 300, 2_300),
    loading: Bar::mib(0, 0, 0),
};

/// `SGLang`: a static share for weights and cache; a token a page.
pub const SGLANG: Rules = Rules {
    engine: "sglang",
    split: WeightSplit::Tensors,
    data_inside: true,
    remainder: Remainder::Last,
    pool: Pool::Tokens,
    budget: Budget::Static,
    vocabulary: 64,
    block: 1,
    utilisation: 0.88,
    utilisation_low: 0.8,
    batch: 8_192,
    batch_small: 8_192,
    batch_largest: 16_384,
    requests: 256,
    requests_large: 256,
    context: Bar::mib(500, 200, 1_200),
    communication: Bar::mib(1_000, 300, 2_000),
    graphs: Bar::mib(1_500, 500, 3_000),
    // It counts what the driver has less after loading: libraries that were loaded meanwhile, too.
    // Seen: 0.10 to 0.28 GiB, from Qwen3-0.6B to QwQ-32B over four GPUs.
    loading: Bar::mib(145, 60, 320),
};

/// llama.cpp: whole layers on each GPU, and just what it needs.
pub const LLAMA_CPP: Rules = Rules {
    engine: "llamacpp",
    split: WeightSplit::Layers,
    data_inside: false,
    remainder: Remainder::WithOutput,
    pool: Pool::Cells,
    budget: Budget::Needed,
    vocabulary: 1,
    block: 256,
    utilisation: 1.0,
    utilisation_low: 1.0,
    batch: 512,
    batch_small: 512,
    batch_largest: 512,
    requests: 4,
    requests_large: 4,
    context: Bar::mib(500, 200, 768),
    communication: Bar::mib(100, 0, 256),
    graphs: Bar::mib(0, 0, 0),
    loading: Bar::mib(0, 0, 0),
};

/// The rules of the engine of this name, where they are known.
pub fn rules(engine: &str) -> Option<Rules> {
    match engine.to_ascii_lowercase().as_str() {
        "vllm" | "aphrodite" => Some(VLLM),
        "sglang" | "sgl" => Some(SGLANG),
        "llamacpp" | "llama.cpp" | "llama-server" | "ollama" => Some(LLAMA_CPP),
        _ => None,
    }
}

/// Names that [`rules`] knows, for people.
pub const NAMES: [&str; 3] = ["vllm", "sglang", "llamacpp"];

/// The engine that serves files of this format when none is named.
pub fn usual(gguf: bool) -> Rules {
    if gguf { LLAMA_CPP } else { VLLM }
}

/// Words of a GPU's full name that say nothing of its memory.
const SILENT: [&str; 26] = [
    "nvidia",
    "amd",
    "instinct",
    "radeon",
    "tesla",
    "quadro",
    "geforce",
    "graphics",
    "sxm",
    "sxm2",
    "sxm3",
    "sxm4",
    "sxm5",
    "sxm6",
    "pcie",
    "oam",
    "hbm2",
    "hbm2e",
    "hbm3",
    "hbm3e",
    "ac",
    "generation",
    "blackwell",
    "edition",
    "server",
    "workstation",
];

/// A GPU's name without what makes no difference: `NVIDIA A100-SXM4-80GB` and `a100-80` are one.
fn plain_name(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let words = lower.split(['_', ' ', '-', '(', ')']).filter(|w| !w.is_empty());
    let words = words.filter(|w| !SILENT.contains(w));
    // `80gb`, `80gib`, `80g`.
    let size = |word: &str| {
        let digits = word.trim_end_matches("gib").trim_end_matches("gb").trim_end_matches('g');
        let is_size = digits.len() < word.len() && digits.bytes().all(|b| b.is_ascii_digit());
        if is_size && !digits.is_empty() { digits.to_owned() } else { word.to_owned() }
    };
    words.map(size).collect::<Vec<_>>().join("-")
}

/// Memory of a GPU as the driver's own tools and engines see it, by names such as `h100-80`, or as those
/// tools print them (`NVIDIA H100 80GB HBM3`).
pub fn gpu_memory(name: &str) -> Option<Bytes> {
    let mib = match plain_name(name).as_str() {
        "h100" | "h100-80" | "h800" | "h800-80" => 81_090,
        "h100-64" => 65_250,
        "h100-94" | "h100-nvl" | "h100-nvl-94" => 95_320,
        "h100-96" => 97_320,
        "h200" | "h200-141" | "h200-nvl" | "h200-nvl-141" | "h20-3e" | "h20-141" => 143_156,
        "h20" | "h20-96" => 97_280,
        "gh200" | "gh200-96" | "gh200-480" => 97_280,
        "gh200-144" | "gh200-144-480" => 146_830,
        "b200" | "b200-180" | "b200-192" => 182_640,
        "b300" | "b300-288" | "gb300" => 275_040,
        "gb200" => 188_416,
        "a100" | "a100-80" | "a800" | "a800-80" => 81_050,
        "a100-40" | "a800-40" => 40_440,
        "a40" | "a40-48" => 45_410,
        "a10" | "a10-24" | "a10g" | "a10g-24" => 22_520,
        "a16" | "a16-16" => 14_910,
        "a2" | "a2-16" => 14_910,
        "a30" | "a30-24" => 24_060,
        "a6000" | "rtx-a6000" => 48_540,
        "a5000" | "rtx-a5000" => 24_060,
        "l40" | "l40s" | "l40s-48" | "l40-48" | "l20" | "l20-48" => 45_460,
        "l4" | "l4-24" => 22_560,
        "t4" | "t4-16" => 15_090,
        "p40" | "p40-24" => 22_910,
        "p100" | "p100-16" => 16_270,
        "v100" | "v100-16" | "v100s" => 16_150,
        "v100-32" | "v100s-32" => 32_500,
        "rtx-3090" | "3090" | "rtx3090" | "rtx-3090-ti" => 24_120,
        "rtx-4090" | "4090" | "rtx4090" | "rtx-4090-d" => 24_080,
        "rtx-4080" | "4080" | "rtx-4080-super" => 15_940,
        "rtx-5090" | "5090" | "rtx5090" | "rtx-5090-d" => 32_110,
        "rtx-pro-6000" | "pro-6000" | "rtx-pro-6000-max-q" => 97_250,
        "rtx-6000-ada" | "6000-ada" | "rtx-5880-ada" => 48_520,
        "mi210" => 65_520,
        "mi250" | "mi250x" => 65_520,
        "mi300x" | "mi300" => 196_590,
        "mi325x" => 262_120,
        "mi355x" | "mi350x" => 294_890,
        "gb10" | "dgx-spark" => 122_570,
        _ => return None,
    };
    Some(Bytes::mib(mib))
}

/// The rank that takes most, as placing asks for it: what must be free on each of its devices for
/// one request of full length, and whether that is sure to be enough.
pub(super) fn heaviest(facts: &ModelFacts, setup: &Setup) -> MemoryEstimate {
    let prediction = predict(facts, setup);
    let total = |rank: &RankMemory| of_budget(rank, setup, |bar| bar.value);
    let Some(rank) = prediction.ranks.iter().max_by_key(|r| total(r)) else {
        return MemoryEstimate::default();
    };
    MemoryEstimate {
        weights: Bytes(rank.weights.value),
        kv_cache: Bytes(rank.cache_needed.value),
        overhead: Bytes(rank.counted.value.saturating_sub(rank.weights.value)),
        total: Bytes(total(rank)),
        high: Bytes(of_budget(rank, setup, |bar| bar.high)),
        fits: prediction.fits,
        notes: prediction.notes,
    }
}

/// What a rank needs of the share of a GPU that its engine takes, at one end of the bars.
fn of_budget(rank: &RankMemory, setup: &Setup, end: fn(&Bar) -> u64) -> u64 {
    let needed = end(&rank.counted).saturating_add(end(&rank.cache_needed));
    if setup.rules.budget != Budget::Static {
        return needed;
    }
    // Weights and cache have a share that follows from the GPU's memory, and placing knows one for all GPUs; steps and
    // graphs are outside of it, and have to find room on the GPU all the same.
    let share = setup.utilisation.unwrap_or(setup.rules.utilisation).clamp(0.0, 1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u64
    let part = |of: u64, share: f64| (of as f64 * share) as u64;
    let within = match (setup.gpu, setup.budget()) {
        (Some(gpu), Some(budget)) if budget.value > 0 => {
            mul_div(needed, part(gpu, share), budget.value)
        }
        _ => needed,
    };
    let parts = [rank.weights, rank.cache_needed, rank.activation, rank.graphs, rank.communication];
    let whole = parts.iter().map(end).fold(0, u64::saturating_add);
    within.max(part(whole, share))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn engines_and_gpus_have_names() {
        for name in NAMES {
            assert_eq!(rules(name).unwrap().engine, name);
        }
        assert!(rules("triton").is_none());
        assert!(gpu_memory("H100-80").unwrap() > Bytes::gib(79));
        assert!(gpu_memory("h101").is_none());
    }

    #[test]
    fn gpus_have_the_names_that_their_tools_print() {
        for (printed, short) in [
            ("NVIDIA H100 80GB HBM3", "h100-80"),
            ("NVIDIA H100 PCIe", "h100"),
            ("NVIDIA H100 NVL", "h100-94"),
            ("NVIDIA H200", "h200-141"),
            ("NVIDIA A100-SXM4-80GB", "a100-80"),
            ("NVIDIA A100 80GB PCIe", "a100-80"),
            ("NVIDIA A100-SXM4-40GB", "a100-40"),
            ("NVIDIA A100-PCIE-40GB", "a100-40"),
            ("NVIDIA L40S", "l40s"),
            ("NVIDIA L4", "l4-24"),
            ("Tesla T4", "t4"),
            ("Tesla V100-SXM2-32GB", "v100-32"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
            ("NVIDIA RTX A6000", "a6000"),
            ("AMD Instinct MI300X OAM", "mi300x"),
        ] {
            let memory = gpu_memory(printed).unwrap_or_else(|| panic!("{printed}"));
            assert_eq!(Some(memory), gpu_memory(short), "{printed}");
        }
        // An instance of one is smaller, and a name alone is none.
        assert_eq!(gpu_memory("NVIDIA H100 80GB HBM3 MIG 1g.10gb"), None);
        assert_eq!(gpu_memory("NVIDIA"), None);
    }
}
