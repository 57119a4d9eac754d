//! What an engine says of its memory when it has loaded, read back from its log.
//!
//! The words are those of vLLM's `v1/worker/gpu_worker.py`, `v1/worker/gpu_model_runner.py` and
//! `v1/core/kv_cache_utils.py` (and of its engine before 0.8, `worker/worker.py`), of `SGLang`'s
//! `model_executor/model_runner.py` and `mem_cache/memory_pool.py`, and of llama.cpp's
//! `llama-model.cpp`, `llama-kv-cache.cpp` and `llama-context.cpp`. A log is the engine's own and
//! anybody's who can write to it: it is read within limits, and what makes no sense is left out.

use std::collections::BTreeMap;

use crate::base::Bytes;
use crate::model::observation::{Loaded, least};

/// Most of a log that is looked through.
pub const MAX_LOG: usize = 2 << 20;
/// Longest line.
const MAX_LINE: usize = 2_000;
/// Longest line with all of an engine's arguments.
const MAX_ARGUMENTS: usize = 16 << 10;
/// Tokens of vLLM's blocks, unless it was asked for others.
const USUAL_BLOCK: u64 = 16;
/// Most tokens of a block.
const MAX_BLOCK: u64 = 1 << 20;
/// Most devices that are told apart.
const MAX_DEVICES: usize = 256;
/// Largest memory of one device that is believed.
const MAX_SIZE: f64 = (1u64 << 44) as f64;
/// Most tokens that are believed.
const MAX_TOKENS: u64 = 1 << 40;

fn more(slot: &mut Option<Bytes>, found: Option<Bytes>) {
    *slot = (*slot).max(found);
}

/// The lines of a log, as far as they are believed.
fn lines(log: &str) -> impl Iterator<Item = &str> {
    lines_within(log, MAX_LINE)
}

fn lines_within(log: &str, most: usize) -> impl Iterator<Item = &str> {
    let end = (0..=log.len().min(MAX_LOG)).rev().find(|i| log.is_char_boundary(*i)).unwrap_or(0);
    log.get(..end).unwrap_or_default().lines().filter(move |line| line.len() <= most)
}

/// What follows `mark` in `line`.
fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.find(mark).and_then(|at| line.get(at + mark.len()..))
}

/// The number that `text` begins with, thousands set off by commas, and what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim_start_matches([' ', '=', ':', '(', '~', '≈']);
    let end = text
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_digit() || ".,".contains(*c) || (*i == 0 && *c == '-')))
        .map_or(text.len(), |(i, _)| i);
    let (digits, rest) = text.split_at_checked(end)?;
    let plain: String = digits.trim_end_matches(['.', ',']).replace(',', "");
    Some((plain.parse().ok()?, rest)).filter(|(n, _): &(f64, _)| n.is_finite())
}

/// The size that `text` begins with. The engines count in powers of two and write `GB` all the same.
fn size(text: &str) -> Option<Bytes> {
    let (value, rest) = number(text)?;
    let unit = match rest.trim_start() {
        r if r.starts_with("GiB") || r.starts_with("GB") => 1u64 << 30,
        r if r.starts_with("MiB") || r.starts_with("MB") => 1 << 20,
        r if r.starts_with("KiB") || r.starts_with("KB") => 1 << 10,
        _ => return None,
    };
    let bytes = value * unit as f64;
    // Less than nothing is left for the cache where weights alone are too large.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within 0 and 2⁴⁴
    (bytes < MAX_SIZE).then(|| Bytes(bytes.max(0.0) as u64))
}

/// The count that `text` begins with.
fn count(text: &str) -> Option<u64> {
    let (value, _) = number(text)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within 0 and 2⁴⁰
    (0.0..=MAX_TOKENS as f64).contains(&value).then_some(value as u64)
}

/// Tokens of a block, where vLLM prints the arguments that it was given.
fn stated_block(log: &str) -> Option<u64> {
    let mut lines = lines_within(log, MAX_ARGUMENTS);
    lines.find_map(|line| count(after(line, " block_size=")?)).filter(|n| *n > 0)
}

/// vLLM, of any version.
pub fn vllm(log: &str) -> Loaded {
    vllm_in_blocks(log, None)
}

/// vLLM, of any version, that was asked for blocks of so many tokens.
pub fn vllm_in_blocks(log: &str, asked: Option<u64>) -> Loaded {
    let block = asked.filter(|n| *n > 0).or_else(|| stated_block(log)).unwrap_or(USUAL_BLOCK);
    let block = block.min(MAX_BLOCK);
    let mut out = Loaded::default();
    for line in lines(log) {
        for mark in ["Model loading took ", "Loading model weights took ", "model weights take "] {
            more(&mut out.weights, after(line, mark).and_then(size));
        }
        let cache = after(line, "Available KV cache memory: ")
            .or_else(|| after(line, "the rest of the memory reserved for KV Cache is "))
            .or_else(|| after(line, "larger than the available KV cache memory "));
        out.cache = least(out.cache, cache.and_then(size));
        out.tokens = least(out.tokens, after(line, "GPU KV cache size: ").and_then(count));
        // Until 0.7 it counted blocks.
        let blocks = ["# GPU blocks: ", "# CUDA blocks: ", "# cuda blocks: "];
        let blocks = blocks.iter().find_map(|mark| count(after(line, mark)?));
        out.tokens = least(out.tokens, blocks.map(|n| n.saturating_mul(block)));
        more(
            &mut out.activation,
            after(line, "PyTorch activation peak memory takes ").and_then(size),
        );
        if let Some(usage) = after(line, "Actual usage is ") {
            // `14.9 GiB for weight, 1.4 GiB for peak activation, 0.2 GiB for non-torch memory, and …`
            for (mark, slot) in [
                (" for peak activation", &mut out.activation),
                (" for CUDAGraph memory", &mut out.graphs),
            ] {
                more(slot, before(usage, mark).and_then(size));
            }
        }
        if line.contains("Graph capturing finished") {
            more(&mut out.graphs, after(line, "took ").and_then(size));
        }
        out.refused |= [
            "larger than the available KV cache memory",
            "larger than the maximum number of tokens that can be stored in KV cache",
            "No available memory for the cache blocks",
            "CUDA out of memory",
            "less than desired GPU memory utilization",
        ]
        .iter()
        .any(|mark| line.contains(mark));
    }
    out
}

/// The number and unit just before `mark`: the last two words.
fn before<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let head = text.get(..text.find(mark)?)?;
    let unit = head.rfind(' ')?;
    let start = head.get(..unit)?.rfind(' ').map_or(0, |i| i + 1);
    head.get(start..)
}

/// `SGLang`.
pub fn sglang(log: &str) -> Loaded {
    let mut out = Loaded::default();
    for line in lines(log) {
        if line.contains("Load weight end.") {
            more(&mut out.weights, after(line, "mem usage=").and_then(size));
        }
        if let Some(pool) = after(line, "KV Cache is allocated.") {
            let parts = ["K size: ", "V size: ", "KV size: "];
            let sum = parts
                .iter()
                .filter_map(|mark| field(pool, mark))
                .filter_map(size)
                .fold(0, |sum: u64, b| sum.saturating_add(b.0));
            out.cache = least(out.cache, (sum > 0).then_some(Bytes(sum)));
        }
        // `max_mamba_cache_size: 83, conv_state size: 0.12GB, ssm_state size: 6.46GB`
        if let Some(pool) = after(line, "Mamba Cache is allocated.") {
            let parts = ["conv_state size: ", "ssm_state size: "];
            let sizes = parts.iter().filter_map(|mark| field(pool, mark)).filter_map(size);
            let sum = sizes.fold(0, |sum: u64, b| sum.saturating_add(b.0));
            out.states = least(out.states, (sum > 0).then_some(Bytes(sum)));
        }
        // A pool for windows beside the other one: both together.
        if let Some(both) = after(line, "SWAKVPool mem usage: ").and_then(size) {
            out.cache = Some(both);
        }
        out.tokens = least(out.tokens, after(line, "max_total_num_tokens=").and_then(count));
        if line.contains("apture") && line.contains("graph end.") {
            more(&mut out.graphs, after(line, "mem usage=").and_then(size));
        }
        out.refused |=
            ["Not enough memory.", "CUDA out of memory", "raise the --mem-fraction-static"]
                .iter()
                .any(|mark| line.contains(mark));
    }
    if out.tokens.is_none() {
        let told =
            lines(log).filter_map(|l| count(after(after(l, "KV Cache is alloc")?, "#tokens: ")?));
        out.tokens = told.min();
    }
    out
}

/// What follows `mark` where it is a word of its own: `K size` is no part of `KV size`.
fn field<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let at = text.find(mark)?;
    let start = text.get(..at)?.chars().next_back().is_none_or(|c| !c.is_ascii_alphanumeric());
    start.then(|| text.get(at + mark.len()..)).flatten()
}

/// Buffers of one of llama.cpp's devices.
#[derive(Clone, Copy, Debug, Default)]
struct Buffers {
    model: u64,
    cache: u64,
    compute: u64,
}

/// Where a kind of buffer is summed up.
type Slot = fn(&mut Buffers) -> &mut u64;

/// llama.cpp: with several devices the one that holds most; with none, host memory.
pub fn llama_cpp(log: &str) -> Loaded {
    let mut devices: BTreeMap<String, Buffers> = BTreeMap::new();
    let mut out = Loaded::default();
    for line in lines(log) {
        let kinds: [(&[&str], Slot); 3] = [
            // Until 2024 a model's buffers had no word before `buffer`.
            (&[" model buffer size", "llm_load_tensors:"], |b| &mut b.model),
            (&[" KV buffer size", " RS buffer size", " SWA KV buffer size"], |b| &mut b.cache),
            (&[" compute buffer size"], |b| &mut b.compute),
        ];
        if let Some(bytes) = after(line, "buffer size =").and_then(size)
            && let Some((_, slot)) =
                kinds.iter().rev().find(|(marks, _)| marks.iter().any(|m| line.contains(m)))
            && let Some(name) = device(line)
            && (devices.len() < MAX_DEVICES || devices.contains_key(name))
        {
            let sum = slot(devices.entry(name.to_owned()).or_default());
            // A graph may be reserved again, larger; weights and caches are made once each.
            *sum = if line.contains(" compute buffer") {
                (*sum).max(bytes.0)
            } else {
                sum.saturating_add(bytes.0)
            };
        }
        let context = ["llama_context:", "llama_init_from_model:", "llama_new_context_with_model:"];
        if context.iter().any(|mark| line.contains(mark))
            && let Some(rest) = after(line, " n_ctx ")
        {
            out.tokens = out.tokens.max(count(rest.trim_start()));
        }
        out.refused |=
            ["unable to allocate", "failed to allocate", "cudaMalloc failed: out of memory"]
                .iter()
                .any(|mark| line.contains(mark));
    }
    let on_host = |name: &str| name.starts_with("CPU") || name.ends_with("_Host") || name == "AMX";
    let (host, accelerators): (Vec<_>, Vec<_>) = devices.iter().partition(|(n, _)| on_host(n));
    let heaviest = accelerators
        .iter()
        .filter(|(_, b)| b.model > 0)
        .map(|(_, b)| **b)
        .max_by_key(|b| b.model.saturating_add(b.cache).saturating_add(b.compute));
    let all = heaviest.unwrap_or_else(|| {
        host.iter().fold(Buffers::default(), |sum, (_, b)| Buffers {
            model: sum.model.saturating_add(b.model),
            cache: sum.cache.saturating_add(b.cache),
            compute: sum.compute.saturating_add(b.compute),
        })
    });
    let some = |n: u64| (n > 0).then_some(Bytes(n));
    Loaded {
        weights: some(all.model),
        cache: some(all.cache),
        activation: some(all.compute),
        ..out
    }
}

/// The device of a line such as `load_tensors:   CPU_Mapped model buffer size = 63.84 MiB`; a server
/// reached over RPC is named with its address.
fn device(line: &str) -> Option<&str> {
    let head = line.get(..line.find("buffer size")?)?;
    let head = head.rsplit(": ").next()?.trim();
    let name = head.split_whitespace().next()?;
    (!name.is_empty() && name.len() <= 80).then_some(name)
}

/// A log of an engine that is not known: whichever reader finds something. `block`: tokens of a block, where
/// it was asked for other ones than usual.
pub fn any(log: &str, block: Option<u64>) -> Loaded {
    [vllm_in_blocks(log, block), sglang(log), llama_cpp(log)]
        .into_iter()
        .find(|l| l.weights.is_some() || l.refused || l.tokens.is_some() && l.cache.is_some())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
