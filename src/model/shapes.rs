//! What the names and shapes of stored tensors tell of a model whose configuration does not say it:
//! layers, vocabulary, heads. Names are those that `tensors` knows.

use std::collections::{BTreeMap, BTreeSet};

use super::ModelFacts;
use super::cache::{Keeps, LayerCache};
use super::facts::Certainty;
use super::tensors::{self, Place, Tensor};

/// Head sizes that are tried, the most usual first.
const USUAL_HEADS: [u64; 3] = [128, 64, 256];

/// One layer's attention, as far as its tensors tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attention {
    /// Outputs of the projections: queries, keys, values.
    query: u64,
    /// Likewise.
    key: u64,
    /// Likewise.
    value: u64,
    /// Inputs of the output's projection: the values of all heads.
    out: u64,
    /// Outputs of one projection to all three.
    fused: u64,
    /// Width of the norm of a head.
    norm: u64,
    /// Outputs of a projection to a latent vector and its rotary part, and the vector alone.
    latent: u64,
    /// Likewise.
    rank: u64,
}

/// What tensors tell.
#[derive(Clone, Debug, Default)]
struct Shapes {
    layers: u32,
    vocab: u64,
    hidden: u64,
    /// Layers with attention of their own keys and values.
    attention: BTreeMap<u32, Attention>,
    /// Layers with parts that only a recurrent state has.
    recurrent: BTreeSet<u32>,
}

impl Attention {
    /// Values of a key, with what the configuration says of heads; whether that is known, not guessed.
    fn head(self, facts: &ModelFacts) -> (u64, bool) {
        let fits = |n: u64| n > 0 && self.key.is_multiple_of(n);
        let heads = facts.attention_heads.map_or(0, u64::from);
        let by_heads = |n: u64| n.checked_div(heads).filter(|each| each * heads == n);
        // A configuration's own may be no more than a share of the hidden size, and queries may come
        // with gates.
        let stated = facts.head_dim.map(u64::from);
        let tried = [by_heads(self.out), stated, by_heads(self.query), Some(self.norm)];
        let known = tried.into_iter().flatten().find(|n| fits(*n));
        match known {
            Some(n) => (n, true),
            None => (USUAL_HEADS.into_iter().find(|n| fits(*n)).unwrap_or(self.key).max(1), false),
        }
    }
}

/// Outputs of a linear layer, from any of its stored parts that tells.
fn rows(tensor: &Tensor) -> Option<u64> {
    let part = tensor.name.rsplit('.').next()?;
    match (part, tensor.shape.as_slice()) {
        // bitsandbytes stores a column of packed values, which tells nothing.
        ("weight" | "weight_packed", [rows, columns]) if *columns > 1 => Some(*rows),
        ("scales", [_, rows]) | ("bias", [rows]) => Some(*rows),
        _ => None,
    }
}

/// Inputs of a linear layer that is stored a value at a time.
fn columns(tensor: &Tensor) -> Option<u64> {
    let plain = tensor.dtype.contains('F') || tensor.dtype == "I8";
    match tensor.shape.as_slice() {
        [_, columns] if plain && tensor.name.ends_with(".weight") => Some(*columns),
        _ => None,
    }
}

impl Shapes {
    /// Reads them.
    fn read(list: &[Tensor]) -> Self {
        let mut this = Self::default();
        let mut draft = u32::MAX;
        for tensor in list {
            let place = tensors::place(&tensor.name, 0);
            let module = tensors::module(&tensor.name);
            let word = module.rsplit('.').next().unwrap_or(module);
            match place {
                Place::Embedding | Place::Head
                    if tensors::is_vocabulary(word) && tensor.shape.len() == 2 =>
                {
                    this.vocab = this.vocab.max(rows(tensor).unwrap_or(0));
                    this.hidden = this.hidden.max(columns(tensor).unwrap_or(0));
                }
                Place::Layer(layer) => {
                    // What joins the halves of a layer for speculative decoding.
                    if matches!(word, "eh_proj" | "enorm" | "hnorm") {
                        draft = draft.min(layer);
                    }
                    this.layers = this.layers.max(layer.saturating_add(1));
                    this.layer(layer, word, tensor);
                }
                _ => {}
            }
        }
        this.layers = this.layers.min(draft);
        for of in this.attention.values_mut().filter(|a| a.key == 0 && a.out > 0) {
            // What is not queries is half keys, half values.
            if let Some(rest) = of.fused.checked_sub(of.out).filter(|n| n.is_multiple_of(2)) {
                (of.query, of.key, of.value) = (of.out, rest / 2, rest / 2);
            }
        }
        this.attention.retain(|layer, a| *layer < draft && (a.key > 0 || a.latent > 0));
        this
    }

    fn layer(&mut self, layer: u32, word: &str, tensor: &Tensor) {
        let attention = &mut self.attention;
        let mut put = |field: fn(&mut Attention) -> &mut u64, value: Option<u64>| {
            if let Some(value) = value {
                *field(attention.entry(layer).or_default()) = value;
            }
        };
        match word {
            "q_proj" | "wq" => put(|a| &mut a.query, rows(tensor)),
            "k_proj" | "wk" => put(|a| &mut a.key, rows(tensor)),
            "v_proj" | "wv" => put(|a| &mut a.value, rows(tensor)),
            "qkv_proj" | "query_key_value" | "Wqkv" | "wqkv" | "W_pack" => {
                put(|a| &mut a.fused, rows(tensor));
            }
            "o_proj" | "wo" | "out_proj" | "dense" => put(|a| &mut a.out, columns(tensor)),
            "kv_a_proj_with_mqa" => put(|a| &mut a.latent, rows(tensor)),
            "kv_a_layernorm" => put(|a| &mut a.rank, tensor.shape.first().copied()),
            "A_log" | "dt_bias" | "conv1d" | "q_conv1d" | "k_conv1d" | "v_conv1d" | "in_proj"
            | "output_gate" => {
                self.recurrent.insert(layer);
            }
            "q_norm" | "k_norm" | "q_layernorm" | "k_layernorm" if tensor.shape.len() == 1 => {
                put(|a| &mut a.norm, tensor.shape.first().copied());
            }
            _ => {}
        }
    }
}

impl Shapes {
    /// What layers keep, where the architecture does not tell, and how sure that is. Windows are those
    /// of `usual`, the caches of a usual decoder.
    fn caches(&self, facts: &ModelFacts, usual: &[LayerCache]) -> (Vec<LayerCache>, Certainty) {
        let mut sure = Certainty::Exact;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let list = self.attention.iter().map(|(layer, of)| {
            let keeps = if of.latent > 0 {
                let rotary = of.latent.saturating_sub(of.rank);
                Keeps::Latent {
                    width: small(of.latent),
                    rotary: small(rotary),
                    index: 0,
                    sparse: false,
                }
            } else {
                let (key, known) = of.head(facts);
                if !known {
                    sure = sure.max(Certainty::Close);
                }
                let kv_heads = of.key / key;
                let value = if of.value > 0 { of.value / kv_heads.max(1) } else { key };
                let own = usual.iter().find(|c| c.layer == *layer);
                Keeps::Attention {
                    kv_heads: small(kv_heads),
                    key: small(key),
                    value: small(value),
                    window: own.and_then(|c| c.keeps.window()).map(small),
                }
            };
            LayerCache::new(*layer, keeps)
        });
        let list: Vec<LayerCache> = list.collect();
        // Layers without keys of their own share another's, or keep something else.
        if list.len() < self.layers as usize {
            sure = Certainty::Guess;
        }
        (list, sure)
    }
}

/// Layers of which the configuration says that they keep a state, and the files that they have keys and values and
/// nothing recurrent, keep these: whoever believed the configuration would have no cache at all.
fn contradict(facts: &mut ModelFacts, shapes: &Shapes) {
    let keeps_state = |layer: u32| {
        let mut own = facts.caches.iter().filter(|c| c.layer == layer).peekable();
        own.peek().is_some() && own.all(|c| matches!(c.keeps, Keeps::State { .. }))
    };
    let told = |layer: u32, of: &Attention| {
        of.key > 0 && of.value > 0 && !shapes.recurrent.contains(&layer)
    };
    let wrong: BTreeSet<u32> = shapes
        .attention
        .iter()
        .filter(|(layer, of)| told(**layer, of) && keeps_state(**layer))
        .map(|(layer, _)| *layer)
        .collect();
    if wrong.is_empty() {
        return;
    }
    let (stored, _) = shapes.caches(facts, &[]);
    facts.caches.retain(|c| !wrong.contains(&c.layer));
    facts.caches.extend(stored.into_iter().filter(|c| wrong.contains(&c.layer)));
    facts.caches.sort_by_key(|c| c.layer);
    facts.cache_certainty = Certainty::Guess;
    facts.notes.push(format!(
        "{} of its layers are recurrent in config.json and have keys and values in the files: these are counted",
        wrong.len()
    ));
}

/// Puts what tensors tell where the configuration was silent.
pub(super) fn complete(facts: &mut ModelFacts) {
    let shapes = Shapes::read(&facts.tensors);
    let small = |n: u64| u32::try_from(n).ok().filter(|n| *n > 0);
    if facts.layers.is_none_or(|n| n == 0) {
        facts.layers = Some(shapes.layers).filter(|n| *n > 0);
    }
    facts.vocab_size = facts.vocab_size.or(small(shapes.vocab));
    facts.hidden_size = facts.hidden_size.or(small(shapes.hidden));
    let mut guessed = None;
    if let Some(first) = shapes.attention.values().next() {
        let (head, known) = first.head(facts);
        let heads = (small(first.query / head), small(first.key / head));
        if known {
            let stated = facts.head_dim.filter(|_| facts.cache_certainty != Certainty::Guess);
            facts.head_dim = stated.or(small(head));
            facts.attention_heads = facts.attention_heads.or(heads.0);
            facts.kv_heads = facts.kv_heads.or(heads.1);
        } else if facts.attention_heads.is_none() {
            guessed = heads.0.zip(heads.1);
        }
    }
    let layout = &mut facts.layout;
    let fill = |to: &mut u64, from: Option<u32>| {
        if *to == 0 {
            *to = from.map_or(0, u64::from);
        }
    };
    if layout.layers == 0 {
        layout.layers = facts.layers.unwrap_or(0);
    }
    fill(&mut layout.vocab, facts.vocab_size);
    fill(&mut layout.heads, facts.attention_heads.or(guessed.map(|g| g.0)));
    fill(&mut layout.kv_heads, facts.kv_heads.or(guessed.map(|g| g.1)));
    if facts.cache_certainty != Certainty::Guess && facts.parts > 0 {
        contradict(facts, &shapes);
    } else if facts.parts > 0 {
        let (caches, sure) = shapes.caches(facts, &facts.caches);
        if caches.is_empty() {
            if !facts.caches.is_empty() {
                facts.notes.push(
                    "its architecture is not known: its cache is that of a usual decoder"
                        .to_owned(),
                );
            }
        } else {
            facts.notes.push(match sure {
                Certainty::Guess => "its architecture is not known: its cache is that of the \
                    layers whose keys its tensors tell"
                    .to_owned(),
                _ => "its architecture is not known: its cache is what its tensors tell".to_owned(),
            });
            let widest = caches.iter().filter_map(|c| match c.keeps {
                Keeps::Attention { kv_heads, .. } => Some(kv_heads),
                _ => None,
            });
            if let Some(kv_heads) = widest.max() {
                facts.kv_heads = Some(kv_heads);
                facts.layout.kv_heads = kv_heads.into();
            }
            facts.layout.latent = caches.iter().any(|c| matches!(c.keeps, Keeps::Latent { .. }));
            facts.caches = caches;
            facts.cache_certainty = sure;
            facts.cache_spread = None;
        }
    }
    if facts.layout.layers == 0 {
        facts.certainty = facts.certainty.max(Certainty::Guess);
        facts.notes.push("the names of its tensors do not tell its layers".to_owned());
    }
}

#[cfg(test)]
pub(crate) mod tests;
