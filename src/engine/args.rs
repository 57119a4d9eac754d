//! Looking into the arguments that a spec passes on to an engine.

use super::{EngineError, limits};
use crate::model::Rules;
use crate::model::cache::CacheBits;
use crate::model::estimate::Pool;

/// The same arguments with `-` for each `_` in the names of long options: vLLM (`FlexibleArgumentParser`) and llama.cpp
/// (`common_params_parse`) take both.
pub(super) fn dashed(args: &[String]) -> Vec<String> {
    let dash = |arg: &String| match arg.split_once('=') {
        Some((name, value)) if name.starts_with("--") => {
            format!("{}={value}", name.replace('_', "-"))
        }
        None if arg.starts_with("--") => arg.replace('_', "-"),
        _ => arg.clone(),
    };
    args.iter().map(dash).collect()
}

/// The value of the last of these options in `args`: `--name value`, `--name=value`.
pub(super) fn value<'a>(args: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut found = None;
    for (i, arg) in args.iter().enumerate() {
        if names.contains(&arg.as_str()) {
            found = args.get(i + 1).map(String::as_str).or(found);
        } else if let Some((name, value)) = arg.split_once('=')
            && names.contains(&name)
        {
            found = Some(value);
        }
    }
    found
}

/// Whether one of these options is in `args`.
pub(super) fn has(args: &[String], names: &[&str]) -> bool {
    args.iter().any(|arg| names.contains(&arg.split_once('=').map_or(arg.as_str(), |(n, _)| n)))
}

/// What each of the options for types of cached values asks for, in `args` of an engine with these rules, is taken by it.
pub(super) fn cache_types_taken(args: &[String], rules: &Rules) -> Result<(), EngineError> {
    let options: [&[&str]; 3] =
        [&["--kv-cache-dtype"], &["-ctk", "--cache-type-k"], &["-ctv", "--cache-type-v"]];
    let mut named = options.into_iter().filter_map(|names| value(args, names));
    match named.find_map(|name| limits::type_refusal(rules, name)) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The type of llama.cpp's cached values: that of keys and that of values are asked for apart, and half precision unless
/// they are. None: neither is.
pub(super) fn cells(args: &[String]) -> Option<CacheBits> {
    let of = |names: &[&str]| value(args, names).and_then(CacheBits::named);
    let (keys, values) = (of(&["-ctk", "--cache-type-k"]), of(&["-ctv", "--cache-type-v"]));
    if keys.is_none() && values.is_none() {
        return None;
    }
    let (keys, values) = (keys.unwrap_or(CacheBits::HALF), values.unwrap_or(CacheBits::HALF));
    // A key is as wide as a value.
    let (each, sixteen) =
        (u32::midpoint(keys.each, values.each), u32::midpoint(keys.sixteen, values.sixteen));
    Some(CacheBits { each, sixteen, ..CacheBits::HALF })
}

/// Options that change how much memory an engine takes in a way that is not foreseen here.
const UNCOUNTED_VLLM: [&str; 12] = [
    "--speculative-config",
    "-sc",
    "--quantization",
    "-q",
    "--kv-cache-memory-bytes",
    "--kv-cache-memory",
    "--num-gpu-blocks-override",
    "--cpu-offload-gb",
    "--enable-lora",
    "--hf-overrides",
    "--enable-eplb",
    "--model-impl",
];
const UNCOUNTED_SGLANG: [&str; 10] = [
    "--speculative-algorithm",
    "--speculative-draft-model-path",
    "--quantization",
    "--torchao-config",
    "--max-total-tokens",
    "--cpu-offload-gb",
    "--enable-lora",
    "--lora-paths",
    "--json-model-override-args",
    "--enable-symm-mem",
];
const UNCOUNTED_LLAMA_CPP: [&str; 15] = [
    "-md",
    "--model-draft",
    "-mm",
    "--mmproj",
    "--lora",
    "-cmoe",
    "--cpu-moe",
    "-ncmoe",
    "--n-cpu-moe",
    "-ot",
    "--override-tensor",
    "-ts",
    "--tensor-split",
    "-nkvo",
    "--no-kv-offload",
];

/// What of `args` changes the memory of an engine with these rules and is not counted, in words; none: nothing.
pub(super) fn uncounted(args: &[String], rules: &Rules) -> Option<String> {
    let names: &[&str] = match rules.pool {
        Pool::Groups => &UNCOUNTED_VLLM,
        Pool::Tokens => &UNCOUNTED_SGLANG,
        Pool::Cells => &UNCOUNTED_LLAMA_CPP,
    };
    let mut found: Vec<&str> = names.iter().copied().filter(|name| has(args, &[name])).collect();
    let full = |v: &str| matches!(v.to_ascii_lowercase().as_str(), "float32" | "float");
    if rules.pool != Pool::Cells && value(args, &["--dtype"]).is_some_and(full) {
        found.push("--dtype float32");
    }
    // Fewer layers than there can be stay on the host.
    let few = |v: &str| v.parse::<u32>().is_ok_and(|n| n < MORE_LAYERS);
    let layers = ["-ngl", "--gpu-layers", "--n-gpu-layers"];
    if rules.pool == Pool::Cells && value(args, &layers).is_some_and(few) {
        found.push("-ngl");
    }
    (!found.is_empty()).then(|| {
        format!(
            "not counted in the memory that it needs: {} → write `memory` where that makes much of a difference",
            found.join(", ")
        )
    })
}

/// Who asks for so many layers on the GPUs wants them all there.
const MORE_LAYERS: u32 = 99;

/// A number of ranks that one of these options asks for, where `{tensor}` stands for `all`.
pub(super) fn ranks(args: &[String], names: &[&str], all: u64) -> Option<u64> {
    match value(args, names)? {
        "{tensor}" => Some(all),
        number => number.parse().ok().filter(|n| *n > 0),
    }
}

/// The ranks that whole experts are spread over, of `all` of a replica: 1 where experts are cut.
pub(super) fn experts(args: &[String], all: u64) -> u64 {
    if has(args, &["--enable-expert-parallel", "-ep", "--enable-ep-moe"]) {
        return all;
    }
    ranks(args, &["--ep-size", "--expert-parallel-size", "--ep"], all).unwrap_or(1)
}

/// Whether a long option is there that `option` is short for, as argparse understands it.
fn abbreviates(args: &[String], option: &str) -> bool {
    args.iter().any(|arg| {
        let name = arg.split_once('=').map_or(arg.as_str(), |(name, _)| name);
        name.starts_with("--") && name.len() >= SHORTEST && option.starts_with(name)
    })
}

/// An abbreviation with fewer characters means too many things.
const SHORTEST: usize = 7;

/// Refuses options that the adapter sets itself; each with where to set it instead.
pub(super) fn refuse_owned(args: &[String], owned: &[(&str, &str)]) -> Result<(), EngineError> {
    for (option, instead) in owned {
        if has(args, &[option]) || abbreviates(args, option) {
            return Err(EngineError::OwnedSetting {
                setting: (*option).to_owned(),
                hint: format!("remove it from `args`: {instead}"),
            });
        }
    }
    Ok(())
}
