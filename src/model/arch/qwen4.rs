//! Qwen 4: several streams of the hidden state in place of norms, an index of pooled keys beside attention, and tables
//! of words' sequences for some layers, which are larger than all else (`modeling_qwen4_exp.py`; vLLM `models/qwen4_exp`).

use super::{Build, Certainty, Keeps};

/// The family, by the name of its language model.
pub(super) const KIND: &str = "qwen4_exp_text";

/// No table has more parts, each as long as a prime number of its own.
const MOST_PARTS: u64 = 256;
/// Layers with tables of their own: each is counted from the first prime on.
const MOST_TABLES: u64 = 8;

impl Build<'_> {
    /// What mixes the streams before and after attention and experts of a layer.
    pub(super) fn qwen4_streams(&mut self, at: &str) {
        for part in ["attn_hyper_connection", "mlp_hyper_connection"] {
            self.qwen4_mixer(&format!("{at}.{part}"), true);
        }
    }

    /// What makes one of the streams after the last layer, in place of a norm.
    pub(super) fn qwen4_end(&mut self) {
        self.qwen4_mixer("model.hyper_connection_mixer", false);
    }

    fn qwen4_mixer(&mut self, at: &str, injects: bool) {
        let get = |key: &str, usual: u64| self.conf.number(&[key]).unwrap_or(usual).min(1 << 14);
        let (streams, rank) = (get("hc_count", 4), get("hc_lowrank", 320));
        let all = streams.saturating_mul(self.n.hidden);
        self.plain(&format!("{at}.hc_norm.weight"), &[all], 1);
        self.plain(&format!("{at}.input_mix_weight_down.weight"), &[rank, all], 1);
        self.plain(&format!("{at}.input_mix_weight_up.weight"), &[all, rank], 1);
        if injects {
            self.plain(&format!("{at}.block_inject_weight.weight"), &[streams, all], 1);
        }
    }

    /// The index of a layer of attention: queries and one key, of which so many tokens keep one between them.
    pub(super) fn qwen4_index(&mut self, at: &str, layer: u64) {
        let get = |key: &str| self.conf.number(&[key]).filter(|n| (1..=1 << 14).contains(n));
        let Some((heads, width)) = get("indexer_n_heads").zip(get("indexer_head_dim")) else {
            return;
        };
        let pooled = get("indexer_compress_ratio").unwrap_or(1);
        let at = format!("{at}.indexer");
        self.plain(&format!("{at}.index_qk_proj.weight"), &[(heads + 1) * width, self.n.hidden], 1);
        for norm in ["q_layernorm", "k_layernorm"] {
            self.plain(&format!("{at}.{norm}.weight"), &[width], 1);
        }
        // Two bytes a value, in a page of its own (vLLM `qsa_cache.py`, `QSACompressedKeyCache`): of the pool's own type
        // whatever that of keys and values is.
        let index = u32::try_from((2 * width).div_ceil(pooled)).unwrap_or(u32::MAX);
        self.keeps(layer, Keeps::Latent { width: 0, rotary: 0, index, sparse: false });
    }

    /// A table of sequences of words, and what it is joined with, for a layer that has one.
    pub(super) fn qwen4_table(&mut self, at: &str, layer: u64) {
        let conf = self.conf;
        let layers = conf.numbers("ple_layer_ids").unwrap_or_default();
        // Numbered from one, and each once, in order.
        let Some(before) = layers.contains(&(layer + 1)).then(|| {
            let mut earlier: Vec<u64> = layers.into_iter().filter(|n| *n <= layer).collect();
            earlier.sort_unstable();
            earlier.dedup();
            earlier.len() as u64
        }) else {
            return;
        };
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
        let parts =
            get("ngram_size", 3).saturating_sub(1).saturating_mul(get("heads_per_ngram", 8));
        let base = conf.stated(&["ngram_vocab_size_base"]).unwrap_or(20_000_000).min(1 << 31);
        let (width, hidden) = (get("ple_embed_dim", self.n.hidden), self.n.hidden);
        let streams = get("hc_count", 4).min(64);
        if parts == 0 || before >= MOST_TABLES || parts > MOST_PARTS / (before + 1) {
            let why = "its tables of sequences of words are too many to be counted";
            return self.doubt_by(Certainty::Guess, (500, 1_000), why);
        }
        let rows = primes(base, before * parts, parts);
        let divisor = get("make_ngram_vocab_size_divisible_by", 128).max(1);
        let at = format!("{at}.ple");
        let table = format!("{at}.ple_embedding.ngram_embedding.weight");
        let shape = [rows.next_multiple_of(divisor), width / parts];
        let quantised = conf.object("quantization_config");
        let method = quantised.and_then(|q| q.get("quant_method")?.as_str());
        // As `SGLang` builds it (`qwen4.py`); what other methods make of it differs from file to file.
        if method == Some("fp8") || conf.text_of("ple_embedding_dtype") == Some("float8_e4m3fn") {
            self.typed(&table, &shape, 1, ("F8_E4M3", 1));
        } else {
            self.plain(&table, &shape, 1);
            if quantised.is_some() {
                let why = "its table of sequences of words may be stored in fewer bits";
                self.doubt_by(Certainty::Close, (400, 0), why);
            }
        }
        let all = streams.saturating_mul(hidden);
        self.plain(&format!("{at}.key_proj.weight"), &[all, width], 1);
        self.plain(&format!("{at}.value_proj.weight"), &[hidden, width], 1);
        for norm in ["norm_key", "norm_query", "norm_conv"] {
            self.plain(&format!("{at}.{norm}.weight"), &[all], 1);
        }
        let kernel = get("ple_conv_kernel_size", 4).min(1 << 10);
        self.plain(&format!("{at}.conv1d.weight"), &[all, 1, kernel], 1);
        // Every rank keeps all of it (`MambaSpec`, `tp_replicated`).
        let seen = all * kernel.saturating_sub(1) * get("ngram_size", 3).min(64);
        let keeps = Keeps::State { conv: seen, recurrent: 0, recurrent_bytes: 2, whole: seen };
        self.keeps(layer, keeps);
    }
}

/// The sum of `count` primes in order, from the one after `skipped` of those that are not below `base`.
fn primes(base: u64, skipped: u64, count: u64) -> u64 {
    let odd =
        |n: u64| !n.is_multiple_of(2) && (3..=n.isqrt()).step_by(2).all(|d| !n.is_multiple_of(d));
    let is_prime = |n: u64| n == 2 || n > 2 && odd(n);
    let (skipped, count) = (skipped.min(MOST_PARTS), count.min(MOST_PARTS));
    let wanted =
        usize::try_from(skipped).unwrap_or(0)..usize::try_from(skipped + count).unwrap_or(0);
    (base..).filter(|n| is_prime(*n)).take(wanted.end).skip(wanted.start).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::primes;
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    const TABLES: &str = r#""ple_layer_ids":[6,2,2],"indexer_n_heads":4,"indexer_kv_heads":1,"indexer_head_dim":128,
        "indexer_budget":2048,"indexer_compress_ratio":16"#;

    fn of(more: &str) -> crate::model::ModelFacts {
        facts(&format!(
            r#"{{"architectures":["Qwen4ExpForCausalLM"],"model_type":"qwen4_exp_text","dtype":"bfloat16"{more}}}"#
        ))
    }

    #[test]
    fn primes_are_counted_from_the_base_on() {
        assert_eq!(primes(10, 0, 3), 11 + 13 + 17);
        assert_eq!(primes(11, 1, 2), 13 + 17);
        assert_eq!(primes(0, 0, 2), 5);
    }

    /// What `transformers` builds of its defaults with two tables: 298,595,297,676 bytes, 140 of which are buffers. The
    /// tables have 320,001,536 and 320,005,120 rows.
    #[test]
    fn tables_of_sequences_are_counted_to_the_row() {
        let facts = of(&format!(",{TABLES}"));
        assert_eq!(facts.weight_bytes.0, 298_595_297_676 - 2 * 2 * (3 + 16 + 16));
        assert_eq!(facts.certainty, Certainty::Close);
        let rows: Vec<u64> = facts
            .tensors
            .iter()
            .filter(|t| t.name.contains("ngram_embedding"))
            .map(|t| t.shape[0])
            .collect();
        assert_eq!(rows, [320_001_536, 320_005_120]);
        // A rank of four has a quarter of them.
        let setup = Setup { tensor: 4, ..Setup::new(rules("vllm")) };
        let rank = predict(&facts, &setup).ranks[0].clone();
        assert!(rank.weights.value < 298_595_297_676 / 4 + (1 << 30), "{:?}", rank.weights);
        // Ten layers: two heads of 256 and a key of 128 for each 16 tokens.
        let one = predict(&facts, &Setup::new(rules("vllm"))).ranks[0].cache_per_token;
        assert_eq!(one.value, 10 * (2 * 2 * 2 * 256 + 2 * 128 / 16));
    }

    /// Files store a table in many parts, of which each rank has its share.
    #[test]
    fn parts_of_a_table_are_divided() {
        let facts = of(&format!(",{TABLES}"));
        let table = facts.tensors.iter().find(|t| t.name.contains("ngram_embedding")).unwrap();
        let parted = |part: &str| crate::model::tensors::Tensor {
            name: table.name.replace("ngram_embedding.", &format!("ngram_embedding.{part}.")),
            ..table.clone()
        };
        for part in ["shard_0", "shards.0"] {
            let split = crate::model::tensors::split(&parted(part), &facts.layout);
            assert_eq!(split, crate::model::tensors::split(table, &facts.layout), "{part}");
            assert_ne!(split, crate::model::tensors::Split::Whole, "{part}");
        }
    }

    /// A release in FP8 has its tables so as well; what others do with them is in the bar.
    #[test]
    fn tables_have_the_type_of_the_release() {
        let bytes = |more: &str| {
            let facts = of(&format!(",{TABLES}{more}"));
            let tables = facts.tensors.iter().filter(|t| t.name.contains("ngram_embedding"));
            (tables.map(|t| t.bytes).sum::<u64>(), facts.certainty)
        };
        let rows = (320_001_536 + 320_005_120) * 128;
        assert_eq!(bytes("").0, 2 * rows);
        let fp8 = r#","quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}"#;
        assert_eq!(bytes(fp8).0, rows);
        assert_eq!(bytes(r#","ple_embedding_dtype":"float8_e4m3fn""#).0, rows);
    }

    #[test]
    fn without_tables_it_is_small() {
        let facts = of("");
        assert!(facts.weight_bytes.0 < 140_000_000_000, "{}", facts.weight_bytes.0);
        let many = of(r#","ple_layer_ids":[2],"heads_per_ngram":4096"#);
        assert_eq!(many.certainty, Certainty::Guess);
        let layers: Vec<String> = (1..=48).map(|n: u64| n.to_string()).collect();
        let each = format!(
            r#","ple_layer_ids":[{}],"ngram_size":2,"heads_per_ngram":1"#,
            layers.join(",")
        );
        assert_eq!(of(&each).certainty, Certainty::Guess);
    }
}
