//! What sets Gemma 3n apart: an embedding for each layer, four streams of hidden states (`altup`),
//! low-rank residuals (`laurel`), layers that share a cache (`transformers`'
//! `modeling_gemma3n.py`).

use serde_json::{Map, Value};

use super::{Build, Certainty};

/// Values of its towers for images (`MobileNet` v5, 300M) and sound (a conformer) with what joins them
/// to the language model: the same in both published sizes.
const TOWERS: u64 = 983_281_504;

impl Build<'_> {
    pub(super) fn gemma3n_embedding(&mut self) {
        let n = self.n;
        let get = |key: &str| self.conf.number(&[key]).unwrap_or(0);
        let (vocab, each) = (get("vocab_size_per_layer_input"), get("hidden_size_per_layer_input"));
        let streams = get("altup_num_inputs").clamp(1, 64) - 1;
        let all = n.layers * each;
        self.plain("model.embed_tokens_per_layer.weight", &[vocab, all], 1);
        self.linear("model.per_layer_model_projection", all, n.hidden, false);
        self.plain("model.per_layer_projection_norm.weight", &[each], 1);
        for stream in 0..streams {
            self.linear(&format!("model.altup_projections.{stream}"), n.hidden, n.hidden, false);
            self.linear(
                &format!("model.altup_unembed_projections.{stream}"),
                n.hidden,
                n.hidden,
                false,
            );
        }
    }

    pub(super) fn gemma3n_layer(&mut self, at: &str, layer: u64) {
        let n = self.n;
        let get = |key: &str| self.conf.number(&[key]).unwrap_or(0);
        let (each, rank) = (get("hidden_size_per_layer_input"), get("laurel_rank"));
        let streams = get("altup_num_inputs").clamp(1, 64);
        let shared = get("num_kv_shared_layers");
        self.plain(&format!("{at}.altup.correct_output_scale"), &[n.hidden], 1);
        self.plain(&format!("{at}.altup.correction_coefs.weight"), &[streams, streams], 1);
        let pairs = streams * streams;
        self.plain(&format!("{at}.altup.prediction_coefs.weight"), &[pairs, streams], 1);
        self.plain(&format!("{at}.altup.modality_router.weight"), &[streams, n.hidden], 1);
        self.plain(&format!("{at}.altup.router_norm.weight"), &[n.hidden], 1);
        self.linear(&format!("{at}.laurel.linear_left"), rank, n.hidden, false);
        self.linear(&format!("{at}.laurel.linear_right"), n.hidden, rank, false);
        self.plain(&format!("{at}.laurel.post_laurel_norm.weight"), &[n.hidden], 1);
        self.linear(&format!("{at}.per_layer_input_gate"), each, n.hidden, false);
        self.linear(&format!("{at}.per_layer_projection"), n.hidden, each, false);
        self.plain(&format!("{at}.post_per_layer_input_norm.weight"), &[n.hidden], 1);
        // The last layers read what an earlier one of their kind has kept.
        if layer + shared >= n.layers {
            let own = u32::try_from(layer).unwrap_or(u32::MAX);
            self.caches.retain(|c| c.layer != own);
        }
    }
}

/// The towers, where it has them; or has them without a word, where its configuration is `silent`.
pub(super) fn towers(build: &mut Build<'_>, top: &Map<String, Value>, silent: bool) {
    let has = |key: &str| top.get(key).is_some_and(Value::is_object);
    match (has("vision_config"), has("audio_config")) {
        (false, false) if !silent => {}
        (false, false) | (true, true) => build.plain("visual.towers.weight", &[TOWERS], 1),
        _ => {
            build.plain("visual.towers.weight", &[TOWERS], 1);
            build.doubt(Certainty::Close, "its towers for other media are estimated");
        }
    }
}
