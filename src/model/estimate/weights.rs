//! What a rank loads of the model's tensors.

use std::collections::BTreeMap;

use super::{Bar, Pool, Rules, Setup, Stage};
use crate::model::facts::{Certainty, ModelFacts};
use crate::model::memory::WeightSplit;
use crate::model::tensors::{self, Place, Ranks, Split, mul_div};

/// Bytes that ranks load, and what more that is where more is kept whole.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    share: u128,
    whole: u128,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.share = self.share.saturating_add(other.share);
        self.whole = self.whole.saturating_add(other.whole);
    }
}

/// What ranks load of a model's tensors, by where these are: each tensor is looked at once, however many stages there
/// are.
pub(super) struct Loads<'a> {
    pub(super) facts: &'a ModelFacts,
    pub(super) setup: &'a Setup,
    /// Ranks that divide a copy of attention.
    attention: u64,
    devices: u64,
    /// Of each layer that has tensors.
    layers: BTreeMap<u64, Sum>,
    /// The embedding: tables of the vocabulary, and the rest.
    tables: Sum,
    positions: Sum,
    head: Sum,
    norm: Sum,
    /// Towers, on the first stage and on each of the others.
    beside: Sum,
    beside_later: Sum,
    has_head: bool,
    /// What vLLM makes for each layer of latent attention.
    absorbed: u64,
}

impl<'a> Loads<'a> {
    /// Where all tensors are, and a rank's share of each.
    pub(super) fn of(facts: &'a ModelFacts, setup: &'a Setup) -> Self {
        let rules = &setup.rules;
        let by_layers = rules.split == WeightSplit::Layers;
        let tensor = if by_layers { 1 } else { setup.tensor.max(1) };
        let devices =
            if by_layers { setup.pipeline } else { tensor.saturating_mul(setup.pipeline) }.max(1);
        let attention = if by_layers { 1 } else { setup.attention(facts).max(1) };
        let mut this = Self {
            facts,
            setup,
            attention,
            devices,
            layers: BTreeMap::new(),
            tables: Sum::default(),
            positions: Sum::default(),
            head: Sum::default(),
            norm: Sum::default(),
            beside: Sum::default(),
            beside_later: Sum::default(),
            has_head: false,
            absorbed: if rules.pool == Pool::Groups { absorbed(facts, attention) } else { 0 },
        };
        if this.is_plain() {
            return this;
        }
        let all = if by_layers { 1 } else { attention.saturating_mul(setup.data.max(1)) };
        let ranks = Ranks {
            tensor,
            expert: all.max(if by_layers { 1 } else { setup.expert }),
            whole_experts: setup.expert > 1,
        };
        let tile = Tile::of(setup);
        for tensor in &facts.tensors {
            this.add(tensor, ranks, tile);
        }
        this
    }

    /// It is not known which layers there are.
    fn is_plain(&self) -> bool {
        self.facts.tensors.is_empty() || self.facts.layout.layers == 0 && self.devices > 1
    }

    fn add(&mut self, tensor: &tensors::Tensor, ranks: Ranks, tile: Tile) {
        let (facts, rules, layout) = (self.facts, &self.setup.rules, &self.facts.layout);
        let place = tensors::place(&tensor.name, layout.layers);
        // Beside a shared weight there may be a bias of the head's own.
        let is_bias = tensor.name.rsplit('.').next() == Some("bias");
        self.has_head |= place == Place::Head && !is_bias;
        if place == Place::Draft {
            return;
        }
        let is_mixer = tensors::is_mixer(&tensor.name);
        // SGLang fills such attention up with heads of no weight instead.
        let mixer = rules.pool == Pool::Groups && is_mixer;
        let whole_tower = place == Place::Beside
            && rules.pool != Pool::Cells
            && (self.setup.whole_towers
                || layout.towers.is_whole(&tensor.name, mixer, ranks.tensor));
        let split = if whole_tower { Split::Whole } else { tensors::split(tensor, layout) };
        let divided = match place {
            Place::Embedding => self.attention,
            _ if is_mixer => self.attention,
            _ => ranks.tensor,
        };
        let held_in = |tensor_ranks, tile: Tile| {
            let ranks = Ranks { tensor: tensor_ranks, ..ranks };
            let share = tensors::share(tensor, split, layout, ranks, rules.vocabulary);
            loaded(facts, rules, tensor, share).unwrap_or_else(|| match split {
                Split::Experts => tile.held(facts, tensor, share, ranks),
                _ => share,
            })
        };
        let share = held_in(divided, tile);
        // What more it is where options of DP attention (`--moe-dense-tp-size 1`, `--enable-dp-lm-head`,
        // DeepEP) keep the rest whole as well, and where a later stage has the towers, too.
        let larger = u128::from(held_in(divided, tile.larger()).saturating_sub(share));
        let held = held_in(self.attention, tile);
        let here = Sum {
            share: share.into(),
            whole: larger.saturating_add(held.saturating_sub(share).into()),
        };
        match place {
            Place::Embedding if split == Split::Vocabulary => self.tables.add(here),
            Place::Embedding => self.positions.add(here),
            Place::Layer(n) => self.layers.entry(n.into()).or_default().add(here),
            Place::Head => self.head.add(here),
            Place::Norm => self.norm.add(here),
            Place::Beside => {
                self.beside.add(here);
                // vLLM builds towers on every stage; whether SGLang does depends on the model.
                self.beside_later.add(match rules.pool {
                    Pool::Groups => here,
                    Pool::Tokens => {
                        Sum { share: 0, whole: larger.saturating_add(u128::from(held)) }
                    }
                    Pool::Cells => Sum::default(),
                });
            }
            Place::Draft => {}
        }
    }

    /// What is on a stage.
    fn on(&self, stage: &Stage) -> Sum {
        let (facts, setup) = (self.facts, self.setup);
        let by_layers = setup.rules.split == WeightSplit::Layers;
        let mut sum = Sum::default();
        let mut take = |here: bool, part: &Sum| {
            if here {
                sum.add(*part);
            }
        };
        if by_layers {
            // llama.cpp reads rows of the embedding on the host; a tied head is copied to a device.
            let host = !setup.gpu_like() && stage.first;
            take(host || stage.last && !self.has_head && setup.gpu_like(), &self.tables);
            take(host, &self.positions);
        } else {
            take(stage.first || stage.last && facts.tied, &self.tables);
            take(stage.first, &self.positions);
        }
        let (from, to) = stage.range;
        if from < to {
            for layer in self.layers.range(from..to).map(|(_, layer)| layer) {
                take(true, layer);
            }
        }
        take(stage.last && (by_layers || !facts.tied), &self.head);
        take(stage.last, &self.norm);
        take(true, if stage.first { &self.beside } else { &self.beside_later });
        sum
    }

    /// What a rank of a stage loads, and how sure that is.
    pub(super) fn weights(&self, stage: &Stage) -> Bar {
        let (facts, rules, devices) = (self.facts, &self.setup.rules, self.devices);
        if self.is_plain() {
            // Plainly, with what engines replicate above it.
            let plain = facts.weight_bytes.0.div_ceil(devices);
            return Bar::around(plain, if devices > 1 { 250 } else { 150 }).plus(rules.loading);
        }
        let bytes = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        let here = self.on(stage);
        let (mut sum, whole) = (bytes(here.share), bytes(here.whole));
        let layers = stage.range.1.saturating_sub(stage.range.0);
        if rules.pool == Pool::Groups && layers > 0 {
            sum = sum.saturating_add(facts.rope_bytes);
            sum = sum.saturating_add(self.absorbed.saturating_mul(layers));
        }
        let loading = rules.loading;
        let sure = match facts.certainty {
            Certainty::Exact => Bar {
                value: sum,
                low: mul_div(sum, 985, 1_000),
                high: mul_div(sum, 1_020, 1_000).saturating_add(64 << 20),
            },
            // Tensors were read, only how the engine divides them is not known.
            Certainty::Guess if facts.parts > 0 => {
                Bar::around(sum, if devices > 1 { 150 } else { 50 })
            }
            certainty => {
                let (less, more) = facts.spread.unwrap_or(certainty.usual_spread());
                Bar::exact(sum).spread((less + 20, more + 20))
            }
        };
        Bar { high: sure.high.saturating_add(whole), ..sure }.plus(loading)
    }
}

/// Bytes on the device of a share of a tensor as stored, where that is decided whatever it is a part of.
fn loaded(facts: &ModelFacts, rules: &Rules, tensor: &tensors::Tensor, share: u64) -> Option<u64> {
    if rules.pool == Pool::Cells {
        return Some(share);
    }
    // Weights in 32 bits are loaded in 16.
    if matches!(tensor.dtype.as_str(), "F32" | "F64")
        && tensor.shape.len() >= 2
        && !["scale", "absmax", ".hc_", ".ape"].iter().any(|part| tensor.name.contains(part))
    {
        return Some(share / if tensor.dtype == "F64" { 4 } else { 2 });
    }
    // The index of GPTQ is dropped unless columns are reordered.
    if tensor.name.ends_with("g_idx") || tensor.name.ends_with(".zero_bias") {
        return Some(0);
    }
    let mxfp4 = facts.quantisation.as_deref().is_some_and(|name| name.starts_with("mxfp4"));
    (!mxfp4).then_some(share)
}

/// How kernels for experts in MXFP4 want them: both sides in whole tiles, of which each rank has its own.
/// vLLM `fused_moe/oracle/mxfp4.py` (`mxfp4_round_up_hidden_size_and_intermediate_size`) and `SGLang`
/// `quantization/mxfp4.py` alike. The kernels are chosen by the GPU's generation, which its memory tells
/// well enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    /// Triton, on Hopper. What is kept of the scales, before and after they are laid out anew, is as much
    /// as values padded to whole tiles of the hidden size (64.38 GiB were logged of gpt-oss-120b).
    Triton,
    /// Marlin, wherever there is nothing else.
    Marlin,
    /// `FlashInfer` on Blackwell, AITER on MI300 and later.
    Wide,
}

impl Tile {
    fn of(setup: &Setup) -> Self {
        match setup.gpu.map(|bytes| bytes >> 30) {
            Some(150..) => Self::Wide,
            Some(0..70) => Self::Marlin,
            _ => Self::Triton,
        }
    }

    /// What it may be instead.
    const fn larger(self) -> Self {
        match self {
            Self::Triton => Self::Marlin,
            other => other,
        }
    }

    /// Values of an expert's own width that are a whole tile.
    const fn inner(self) -> u64 {
        match self {
            Self::Triton => 64,
            Self::Marlin => 128,
            Self::Wide => 256,
        }
    }

    /// Bytes of a rank's `share` of an expert's tensor.
    fn held(self, facts: &ModelFacts, tensor: &tensors::Tensor, share: u64, ranks: Ranks) -> u64 {
        let side = |at: usize| tensor.shape.get(at).copied().unwrap_or(0);
        let pieces = if ranks.whole_experts { 1 } else { ranks.expert.max(1) };
        let bias = tensor.name.ends_with("_bias");
        // Biases are kept in 32 bits, and those of the output by every rank.
        if bias && tensor.name.contains("down_proj") {
            let all = if ranks.whole_experts { share } else { tensor.total() };
            return all.saturating_mul(2);
        }
        let width = match (tensor.dtype.as_str(), tensor.name.contains("down_proj")) {
            ("U8", true) if tensor.shape.len() > 2 => side(2).saturating_mul(32),
            ("U8", false) if tensor.shape.len() > 2 => side(1) / 2,
            _ if bias => side(1) / 2,
            _ => return share,
        };
        if width == 0 {
            return share;
        }
        let padded = width.div_ceil(pieces).next_multiple_of(self.inner()).saturating_mul(pieces);
        let share = mul_div(share, padded, width);
        if bias {
            return share.saturating_mul(2);
        }
        if self == Self::Triton && tensor.name.ends_with("_scales") {
            return share;
        }
        let hidden = facts.hidden_size.map_or(1, u64::from).max(1);
        mul_div(share, hidden.next_multiple_of(256), hidden)
    }
}

/// vLLM keeps the two halves of `kv_b_proj` once more in 16 bits, ready to be multiplied
/// (`MLACommonImpl.process_weights_after_loading`): bytes of a layer.
fn absorbed(facts: &ModelFacts, tensor: u64) -> u64 {
    let latent = facts.layout.latent && facts.layout.expanded == 0;
    let one = facts.tensors.iter().find(|t| {
        latent
            && tensors::module(&t.name).ends_with("kv_b_proj")
            && t.shape.len() == 2
            && !t.name.contains("scale")
    });
    one.map_or(0, |t| {
        let stored = t.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
        // Packed values are fewer than there are.
        let all = facts.latent.map_or(0, |of| {
            let each = u64::from(of.plain) + u64::from(of.value);
            u64::from(of.rank).saturating_mul(each).saturating_mul(facts.layout.heads)
        });
        (stored.max(all) / tensor.max(1)).saturating_mul(2)
    })
}
