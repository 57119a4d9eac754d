//! How a model is to be looked at.

use clap::Subcommand;

/// Models.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Read the headers of a model's files and foresee its memory; needs no deck
    Inspect {
        /// A directory or file of this machine, or `HOST:/PATH` on a host of the deck
        path: String,
        /// How it is to be served
        #[command(flatten)]
        options: Box<InspectOptions>,
    },
}

/// How a model is to be served.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectOptions {
    /// Tensor parallelism
    #[arg(long, alias = "tensor", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub tp: u32,
    /// Pipeline parallelism
    #[arg(long, alias = "pipeline", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub pp: u32,
    /// Data parallelism inside the replica
    #[arg(long, alias = "data", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub dp: u32,
    /// Ranks that whole experts are divided over; 1: no expert parallelism
    #[arg(long, alias = "expert", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ep: u32,
    /// Longest sequence in tokens, such as 32k; default: what the model says
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub context: Option<u64>,
    /// The GPU: h100-80, a100-40, l40s, …, its name as nvidia-smi prints it, or its memory, such as 80GiB
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Share of the GPU that the engine may use; default: the engine's
    #[arg(long, alias = "utilization", value_name = "SHARE")]
    pub utilisation: Option<f64>,
    /// Type of cached values: auto, bf16, fp8, `q8_0`, …
    #[arg(long, value_name = "TYPE")]
    pub kv_dtype: Option<String>,
    /// Tokens of a block of the cache; default: the engine's
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub block_size: Option<u32>,
    /// vllm, sglang or llamacpp; default: llamacpp for GGUF, else vllm
    #[arg(long)]
    pub engine: Option<String>,
    /// Memory for the cache on each rank, where the engine has said it
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub kv_available: Option<crate::api::Bytes>,
    /// Requests at a time; default: the engine's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step; default: the engine's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_batched_tokens: Option<u32>,
    /// No graphs are captured
    #[arg(long)]
    pub enforce_eager: bool,
}

/// A size of memory. `8.11` would be eight bytes, which nobody means: 0, or a size with its unit.
pub(in crate::cli) fn memory_size(text: &str) -> Result<crate::api::Bytes, String> {
    use crate::api::Bytes;
    let size = text.parse::<Bytes>().map_err(|e| e.to_string())?;
    let text = text.trim();
    if size == Bytes::ZERO {
        return Ok(size);
    }
    if !text.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(format!("it has no unit: write for example `{text}GiB`"));
    }
    if size < Bytes::mib(1) {
        return Err(format!("{size} is less than any GPU has left: write for example `8.11GiB`"));
    }
    Ok(size)
}

/// A number of tokens: `32768`, `32k` (× 1024), `1M`.
fn tokens(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, factor) = match lower.strip_suffix('k') {
        Some(number) => (number, 1 << 10),
        None => match lower.strip_suffix('m') {
            Some(number) => (number, 1 << 20),
            None => (lower.as_str(), 1),
        },
    };
    let number: u64 =
        number.parse().map_err(|_| "write a number of tokens, such as 32768 or 32k")?;
    if number == 0 {
        return Err("at least 1".to_owned());
    }
    number.checked_mul(factor).filter(|n| *n <= 1 << 40).ok_or_else(|| "too many".to_owned())
}
