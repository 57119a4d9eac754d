//! Experts that a model of an unknown family may have under names that nobody here knows.

use serde_json::{Map, Value};

use super::{Build, Certainty};

/// A configuration is looked through so deep, and so many of its values.
const MAX_DEPTH: usize = 8;
const MAX_VALUES: usize = 20_000;

/// No model has more experts in a layer.
const MOST_EXPERTS: u64 = 1 << 16;

/// What a key with `expert` or `moe` in its name says that is no number of experts.
const OTHERS: [&str; 23] = [
    "per_tok", "topk", "top_k", "size", "dim", "freq", "interval", "every", "step", "start",
    "coef", "loss", "group", "shared", "hidden", "capacity", "offset", "period", "rank", "bits",
    "moe_k", "layers", "layer_",
];

impl Build<'_> {
    /// Where none of its numbers was read as that of its experts, any that may be one is how many times more it may be:
    /// a model that may be so large fits nowhere before its files are seen.
    pub(super) fn doubt_unread_experts(&mut self, top: &Map<String, Value>) {
        if self.tensors.iter().any(|t| t.name.contains("experts.")) {
            return;
        }
        let mut left = MAX_VALUES;
        let most = most_experts(top, 0, &mut left);
        if most > 1 {
            let why = format!(
                "its settings speak of {most} experts under a name that is not known here: it may be so many times as large"
            );
            self.doubt_by(Certainty::Guess, (400, most.saturating_mul(1_000)), &why);
        }
    }
}

/// The largest number that may be one of experts.
fn most_experts(place: &Map<String, Value>, depth: usize, left: &mut usize) -> u64 {
    let mut most = 0;
    for (key, value) in place {
        let key = key.to_ascii_lowercase();
        let speaks = key.contains("expert") || key.contains("moe");
        let counts = speaks && !OTHERS.iter().any(|other| key.contains(other));
        most = most.max(of_value(value, counts, depth, left));
    }
    most
}

fn of_value(value: &Value, counts: bool, depth: usize, left: &mut usize) -> u64 {
    *left = left.saturating_sub(1);
    if *left == 0 || depth >= MAX_DEPTH {
        return 0;
    }
    match value {
        Value::Number(n) if counts => n.as_u64().filter(|n| *n <= MOST_EXPERTS).unwrap_or(0),
        Value::Array(all) => {
            all.iter().map(|v| of_value(v, counts, depth + 1, left)).max().unwrap_or(0)
        }
        Value::Object(inner) => most_experts(inner, depth + 1, left),
        _ => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::facts;

    fn of(more: &str) -> crate::model::ModelFacts {
        facts(&format!(
            r#"{{"architectures":["FooForCausalLM"],"model_type":"foo","hidden_size":2048,"intermediate_size":8192,
            "num_hidden_layers":24,"num_attention_heads":16,"vocab_size":100000,"torch_dtype":"bfloat16"{more}}}"#
        ))
    }

    #[test]
    fn experts_under_names_that_nobody_knows_make_a_model_as_large_as_they_may() {
        let dense = of("");
        assert!(dense.spread.unwrap().1 < 10_000, "{dense:?}");
        for more in [
            r#","n_experts":32"#,
            r#","num_moe_experts":32"#,
            r#","expert_num":32,"moe_topk":2"#,
            r#","num_experts_per_layer":32"#,
            r#","moe_config":{"moe_num_experts":32,"moe_top_k":2}"#,
            r#","block_configs":[{"ffn":{"moe":null}},{"ffn":{"moe":{"num_experts_here":32}}}]"#,
        ] {
            let facts = of(more);
            assert_eq!(facts.certainty, Certainty::Guess, "{more}");
            assert!(facts.spread.unwrap().1 >= 32_000, "{more}: {:?}", facts.spread);
            assert!(
                facts.notes.iter().any(|n| n.contains("32 experts")),
                "{more}: {:?}",
                facts.notes
            );
        }
        // What is no number of experts, and what was read as one.
        for more in [
            r#","num_experts_per_tok":8,"moe_intermediate_size":1408,"moe_layer_freq":2,"moe_layers":[3,47]"#,
            r#","num_experts":32,"moe_intermediate_size":1408,"num_experts_per_tok":4"#,
        ] {
            assert_eq!(of(more).spread.unwrap().1, dense.spread.unwrap().1, "{more}");
        }
    }
}
