//! `gpudeck model inspect PATH`: what a model is, and the memory it takes, without a deck.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::args::{Args, InspectOptions, Output, memory_size};
use super::exit::{Failure, Success};
use super::{attach, table};
use crate::api::{Bytes, Door, HostName};
use crate::engine::{limits, memory as engines};
use crate::model::cache::CacheBits;
use crate::model::{
    self, Bar, Correction, ModelFacts, ModelFormat, Observation, Prediction, Setup,
};
use crate::weights::{self, LocalFiles};

/// As many GPUs as a replica of a world may have, and more than any has.
const MOST_GPUS: u64 = 4_096;

/// Inspects the model at `path`: here, or as `HOST:PATH` on a host of the deck.
pub async fn inspect(
    args: &Args,
    path: &str,
    options: &InspectOptions,
) -> Result<Success, Failure> {
    let mut measured = Vec::new();
    let facts = match remote(path) {
        Some((host, path)) => {
            let client = attach::attach(args).await?;
            let snapshot = super::show::settle(&client).await?;
            measured = snapshot
                .services
                .into_values()
                // The newest are first there.
                .flat_map(|s| s.memory.into_iter().rev().map(|m| m.seen))
                .collect();
            client.inspect(&host, path).await?
        }
        None => local(path).await?,
    };
    let mut setup = setup(&facts, options)?;
    measured.retain(|seen| seen.is_of(&facts) && seen.place.engine == setup.rules.engine);
    let here: Vec<&Observation> =
        measured.iter().filter(|seen| same_device(seen.place.device_memory, setup.gpu)).collect();
    setup.correction = Correction::from(&here, &setup);
    let mut prediction = model::predict(&facts, &setup);
    if prediction.is_beyond_counting() {
        return Err(Failure::other("its memory is more bytes than can be counted".to_owned())
            .with_hint(
                "ask for a shorter --context, or compare its config.json with the published one",
            ));
    }
    let kind = options.kv_dtype.as_deref().unwrap_or("auto");
    let refused =
        limits::refusal(&facts, &setup).or_else(|| limits::type_refusal(&setup.rules, kind));
    let refused = refused.map(|error| error.to_string());
    if setup.block.is_some() && setup.rules.pool == model::estimate::Pool::Cells {
        prediction.notes.push(format!(
            "{} has no blocks: no notice is taken of --block-size",
            setup.rules.engine
        ));
    }
    if refused.is_some() {
        prediction.fits = Some(false);
    }
    let prediction = prediction;
    let refused = refused.as_deref();
    match args.output {
        Output::Json => {
            table::json(&as_json(path, &facts, &setup, &prediction, refused, &measured))?;
        }
        Output::Text => {
            print(&facts, &setup, &prediction, refused)?;
            for seen in &measured {
                table::out(&format!("measured: {}", seen.text()))?;
            }
        }
    }
    Ok(Success::Done)
}

/// Whether a device that was measured is the one that is asked about: a GPU is known by its memory,
/// since names differ from tool to tool; host memory is where none is asked for.
fn same_device(measured: Option<Bytes>, asked: Option<u64>) -> bool {
    match (measured, asked) {
        (Some(measured), Some(asked)) => measured.0.abs_diff(asked) <= asked / 50,
        (None, None) => true,
        _ => false,
    }
}

/// `HOST:PATH`; a path that begins with `/` or `.`, or that exists here, is one of this machine.
fn remote(path: &str) -> Option<(HostName, &str)> {
    let (host, rest) = path.split_once(':')?;
    // `hf://…` is an address and no host's path.
    if rest.starts_with("//")
        || !rest.starts_with('/')
        || path.starts_with(['/', '.'])
        || Path::new(path).exists()
    {
        return None;
    }
    Some((host.parse().ok()?, rest))
}

async fn local(path: &str) -> Result<ModelFacts, Failure> {
    if let Some((scheme, _)) = path.split_once("://") {
        let scheme = crate::base::text::clean(scheme, 20);
        return Err(Failure::other(format!("{scheme}:// is an address: a model is inspected where it lies"))
            .with_hint("give a directory or file here, or HOST:/path; a directory with only its config.json is enough"));
    }
    let whole = std::path::absolute(path).map_err(|e| {
        Failure::other(format!("{path} is no path: {e}"))
            .with_hint("give a directory or file here, or HOST:/path")
    })?;
    let whole = followed(&whole);
    let Some(text) = whole.to_str() else {
        return Err(Failure::other(format!("{} is not UTF-8", whole.display()))
            .with_hint("give it a name that is, for example by a link"));
    };
    weights::describe(&LocalFiles, text).await.map_err(|e| {
        // A path that was typed here is in no spec.
        if matches!(&e, weights::WeightsError::Model(m) if m.is_missing()) {
            let missing = Failure::other(e.to_string()).code(8);
            return missing.with_hint("see whether the path is right");
        }
        Failure::of(&e)
    })
}

/// The same with its links followed, so that `..` in what the engine is given means what it says. A file keeps its own
/// name: in a Hugging Face cache it is a link to one that tells nothing.
fn followed(path: &Path) -> PathBuf {
    let of = |path: &Path| std::fs::canonicalize(path).ok();
    let kept = path
        .file_name()
        .filter(|_| path.is_file())
        .and_then(|name| Some(of(path.parent()?)?.join(name)));
    kept.or_else(|| of(path)).unwrap_or_else(|| path.to_owned())
}

fn setup(facts: &ModelFacts, options: &InspectOptions) -> Result<Setup, Failure> {
    let rules = match &options.engine {
        Some(name) => engines::rules(name).ok_or_else(|| {
            Failure::other(format!("the engine `{name}` is not known"))
                .with_hint(format!("use {}", engines::NAMES.join(", ")))
        })?,
        None => engines::usual(facts.format == ModelFormat::Gguf),
    };
    let cache = match options.kv_dtype.as_deref() {
        None | Some("auto") => None,
        Some(name) => Some(CacheBits::named(name).ok_or_else(|| {
            Failure::other(format!("the cache type `{name}` is not known"))
                .with_hint("use auto, bf16, f16, fp8, fp8_e4m3, fp8_e5m2, nvfp4, turboquant_k8v4, f32, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl")
        })?),
    };
    let gpu = match options.gpu.as_deref() {
        None => None,
        Some(name) => {
            let known = engines::gpu_memory(name).or_else(|| memory_size(name).ok());
            Some(known.ok_or_else(|| {
                Failure::other(format!("the GPU `{name}` is not known")).with_hint(
                    "use a name such as h100-80, a100-40, l40s, rtx-4090, what nvidia-smi prints, or its memory: 80GiB",
                )
            })?)
        }
    };
    if let Some(share) = options.utilisation
        && !(share > 0.0 && share <= 1.0)
    {
        return Err(Failure::other(format!("utilisation {share} is not between 0 and 1"))
            .with_hint("give the share of the GPU's memory, such as --utilisation 0.9"));
    }
    // Engines that give whole layers to each GPU have no tensor parallelism: all are stages.
    let (tensor, pipeline): (u64, u64) = match rules.split {
        model::WeightSplit::Layers => (1, u64::from(options.tp) * u64::from(options.pp)),
        model::WeightSplit::Tensors => (options.tp.into(), options.pp.into()),
    };
    let gpus = tensor.saturating_mul(pipeline).saturating_mul(options.dp.into());
    if gpus > MOST_GPUS {
        return Err(Failure::other(format!("a replica of {gpus} GPUs is too much"))
            .with_hint(format!("tp × pp × dp is at most {MOST_GPUS}")));
    }
    // Dense models have nothing that more copies would share: the engine says what it makes of `--ep`.
    let dense = !rules.data_inside && !facts.has_experts();
    let data = if dense { options.dp.into() } else { copies(tensor, options, &rules)? };
    Ok(Setup {
        tensor,
        pipeline,
        data,
        expert: options.ep.into(),
        context: options.context,
        cache,
        block: options.block_size.map(u64::from),
        gpu: gpu.map(|b| b.0),
        gpu_name: options.gpu.clone(),
        utilisation: options.utilisation,
        cache_available: options.kv_available.map(|b| b.0),
        batch: options.max_num_batched_tokens.map(u64::from),
        requests: options.max_num_seqs.map(u64::from),
        eager: options.enforce_eager,
        ..Setup::new(rules)
    })
}

/// The copies of attention. Experts are divided over GPUs that are there: more of them than `tp × dp` are as many
/// copies more, where nothing is said of those.
fn copies(tensor: u64, options: &InspectOptions, rules: &model::Rules) -> Result<u64, Failure> {
    let (data, expert) = (u64::from(options.dp), u64::from(options.ep));
    let ranks = tensor.saturating_mul(data);
    if expert <= 1 || rules.split == model::WeightSplit::Layers || ranks.is_multiple_of(expert) {
        return Ok(data);
    }
    if data == 1 && expert.is_multiple_of(tensor) && !rules.data_inside {
        return Ok(expert / tensor);
    }
    Err(Failure::other(format!("the experts cannot be divided over {expert} of {ranks} GPUs"))
        .with_hint("--ep divides tp × dp: with whole experts on each GPU it is that product"))
}

/// `key`, `key_low` and `key_high`.
fn bar(map: &mut Map<String, Value>, key: &str, bar: Option<Bar>) {
    map.insert(key.to_owned(), json!(bar.map(|b| b.value)));
    map.insert(format!("{key}_low"), json!(bar.map(|b| b.low)));
    map.insert(format!("{key}_high"), json!(bar.and_then(|b| limited(b.high))));
}

/// A figure; none where there is no limit.
fn limited(n: u64) -> Option<u64> {
    (n != u64::MAX).then_some(n)
}

fn as_json(
    path: &str,
    facts: &ModelFacts,
    setup: &Setup,
    prediction: &Prediction,
    refused: Option<&str>,
    measured: &[Observation],
) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("path", json!(path));
    put("entry", json!(facts.entry));
    put("format", json!(facts.format.name()));
    put("architecture", json!(facts.architecture));
    put("quantisation", json!(facts.quantisation));
    put("certainty", json!(facts.certainty));
    put("layers", json!(facts.layers));
    put("attention_heads", json!(facts.attention_heads));
    put("kv_heads", json!(facts.kv_heads));
    put("experts", json!(facts.experts));
    put("model_context", json!(facts.context));
    put("tokenizer", json!(facts.tokenizer));
    put("generation_config", json!(facts.generation_config));
    put("weight_files", json!(facts.parts));
    let stored = facts.stored();
    put("tensors", json!(stored.as_ref().map(|s| s.0)));
    put("bytes_by_type", json!(stored.map(|s| s.1)));
    put("head_size", json!(facts.head_dim));
    let latent = facts.latent.map(|of| {
        json!({"kv_lora_rank": of.rank, "qk_nope_head_dim": of.plain,
            "qk_rope_head_dim": of.rotary, "v_head_dim": of.value})
    });
    put("latent", json!(latent));
    put("tied", json!(facts.tied));
    let windows = facts.windows();
    let windows =
        windows.iter().map(|(tokens, layers)| json!({"tokens": tokens, "layers": layers}));
    put("windows", windows.collect());
    put("engine", json!(setup.rules.engine));
    put("tensor", json!(setup.tensor));
    put("pipeline", json!(setup.pipeline));
    put("data", json!(setup.data));
    put("expert", json!(setup.expert));
    put("gpus", json!(setup.gpus(facts)));
    put("context", json!(prediction.context));
    put("block_size", json!(prediction.block));
    bar(&mut out, "weights_bytes", Some(prediction.weights));
    let ranks = prediction.ranks.iter().map(|rank| {
        let mut map = Map::new();
        map.insert("stage".to_owned(), json!(rank.stage));
        map.insert("tensor".to_owned(), json!(rank.tensor));
        map.insert("layers".to_owned(), json!([rank.layers.0, rank.layers.1]));
        bar(&mut map, "weights_bytes", Some(rank.weights));
        bar(&mut map, "kv_bytes_per_token", Some(rank.cache_per_token));
        bar(&mut map, "kv_bytes_per_token_beyond_windows", Some(rank.cache_beyond_windows));
        bar(&mut map, "state_bytes_per_request", Some(rank.state_per_request));
        bar(&mut map, "activation_bytes", Some(rank.activation));
        bar(&mut map, "graphs_bytes", Some(rank.graphs));
        bar(&mut map, "communication_bytes", Some(rank.communication));
        bar(&mut map, "kv_available_bytes", rank.cache_available);
        bar(&mut map, "kv_needed_bytes", Some(rank.cache_needed));
        bar(&mut map, "kv_tokens", rank.tokens);
        Value::Object(map)
    });
    out.insert("ranks".to_owned(), ranks.collect());
    bar(&mut out, "kv_tokens", prediction.tokens);
    let hundredths = |n: u64| n as f64 / 100.0;
    let requests = prediction.requests;
    out.insert("concurrent_requests".to_owned(), json!(requests.map(|b| hundredths(b.value))));
    out.insert("concurrent_requests_low".to_owned(), json!(requests.map(|b| hundredths(b.low))));
    let most = requests.and_then(|b| limited(b.high)).map(hundredths);
    out.insert("concurrent_requests_high".to_owned(), json!(most));
    out.insert("fits".to_owned(), json!(prediction.fits));
    out.insert("refused".to_owned(), json!(refused));
    out.insert("notes".to_owned(), json!(prediction.notes));
    out.insert("measured".to_owned(), json!(measured));
    Value::Object(out)
}

fn size(bar: Bar) -> String {
    let spread = bar.high.saturating_sub(bar.value).max(bar.value.saturating_sub(bar.low));
    if spread == 0 {
        return Bytes(bar.value).to_string();
    }
    format!("{} ({} to {})", Bytes(bar.value), Bytes(bar.low), Bytes(bar.high))
}

fn print(
    facts: &ModelFacts,
    setup: &Setup,
    prediction: &Prediction,
    refused: Option<&str>,
) -> Result<(), Failure> {
    for line in facts.summary() {
        table::out(&line)?;
    }
    let yes = |b: bool| if b { "yes" } else { "no" };
    table::out(&format!(
        "tokenizer {}, generation config {}",
        yes(facts.tokenizer),
        yes(facts.generation_config)
    ))?;
    if let Some((count, by_type)) = facts.stored() {
        let each: Vec<String> =
            by_type.iter().map(|(kind, bytes)| format!("{kind} {}", Bytes(*bytes))).collect();
        let tied = if facts.tied { ", the head is the embedding" } else { "" };
        table::out(&format!("{count} tensors: {}{tied}", each.join(", ")))?;
    }
    for (tokens, layers) in facts.windows() {
        table::out(&format!("{layers} layers look back {tokens} tokens"))?;
    }
    table::out("")?;
    table::out(&format!(
        "{} with tensor {}, pipeline {}, context {}",
        setup.rules.engine, setup.tensor, setup.pipeline, prediction.context
    ))?;
    if setup.data > 1 || setup.expert > 1 {
        table::out(&format!(
            "data {}, expert {}: {} GPUs",
            setup.data,
            setup.expert,
            setup.gpus(facts)
        ))?;
    }
    let mut rows = Vec::new();
    for rank in prediction.ranks.iter().filter(|r| r.tensor == 0) {
        let name = match (setup.pipeline, setup.tensor) {
            (0 | 1, _) => "each rank".to_owned(),
            (_, 0 | 1) => format!("stage {}", rank.stage),
            _ => format!("stage {}, each rank", rank.stage),
        };
        let mut row =
            |what: &str, value: String| rows.push(vec![name.clone(), what.to_owned(), value]);
        row("weights", size(rank.weights));
        row("KV cache per token", size(rank.cache_per_token));
        if rank.state_per_request.value > 0 {
            row("state per request", size(rank.state_per_request));
        }
        row("KV cache of one full request", size(rank.cache_needed));
        row("activations", size(rank.activation));
        row("graphs", size(rank.graphs));
        row("context and communication", size(rank.communication));
        if let Some(available) = rank.cache_available {
            row("left for the KV cache", size(available));
        }
    }
    table::print(&["RANK", "WHAT", "BYTES"], &rows)?;
    table::out("")?;
    let no_limit = || "no limit".to_owned();
    if let Some(tokens) = prediction.tokens {
        let most = limited(tokens.high).map_or_else(no_limit, |n| n.to_string());
        table::out(&format!("KV cache holds {} tokens ({} to {most})", tokens.value, tokens.low))?;
    } else if facts.caches.is_empty() && prediction.fits.is_some() {
        table::out("KV cache holds – tokens: its files do not tell what it keeps of one")?;
    }
    if let Some(requests) = prediction.requests {
        let of = |n: u64| n as f64 / 100.0;
        let most = limited(requests.high).map_or_else(no_limit, |n| format!("{:.1}", of(n)));
        table::out(&format!(
            "{:.1} requests of {} tokens at a time ({:.1} to {most})",
            of(requests.value),
            prediction.context,
            of(requests.low)
        ))?;
    }
    if let Some(why) = refused {
        table::out(&format!("{} would not start: {why}", setup.rules.engine))?;
    }
    match prediction.fits {
        _ if refused.is_some() => {}
        Some(true) => table::out("it fits")?,
        Some(false) if prediction.requests.is_some_and(|requests| requests.high < 100) => {
            table::out(
                "it does not fit: one request of full length has no room → more GPUs (--tp), or a smaller --context",
            )?;
        }
        Some(false) => {
            table::out("it does not surely fit: one request of full length may not find room")?;
        }
        None => table::out("give --gpu NAME (h100-80) or --kv-available SIZE to see what fits")?,
    }
    for note in prediction.notes.iter().filter(|n| !facts.notes.contains(n)) {
        table::out(&format!("· {note}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
