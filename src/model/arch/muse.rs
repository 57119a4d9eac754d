//! Muse: gated attention, norms around both halves of a layer, and (Spark) experts that see a shorter vector
//! (`modeling_muse_glimmer.py`, `modeling_muse_spark.py`).

use super::Build;

/// The dense family and that with experts, by the names of their language models.
pub(super) const KINDS: [&str; 2] = ["muse_glimmer_text", "muse_spark_text"];

impl Build<'_> {
    /// Spark's gates of what a layer adds.
    pub(super) fn muse_gates(&mut self, at: &str) {
        for half in ["post_attention_residual_gate", "post_feedforward_residual_gate"] {
            self.plain(&format!("{at}.{half}.gate"), &[self.n.hidden], 1);
        }
    }

    /// What shortens the vector that Spark's experts see, and lengthens what they make; how wide it is.
    pub(super) fn muse_latent(&mut self, at: &str, usual: u64) -> u64 {
        let (conf, hidden) = (self.conf, self.n.hidden);
        let stated = conf.number(&["moe_hidden_size"]).filter(|n| *n > 0);
        let Some(seen) = stated.filter(|_| conf.is(&KINDS)) else { return usual };
        self.linear(&format!("{at}.pre_expert_proj"), seen, hidden, false);
        self.linear(&format!("{at}.post_expert_proj"), hidden, seen, false);
        for norm in ["pre_expert_norm", "post_expert_norm"] {
            self.plain(&format!("{at}.{norm}.weight"), &[seen], 1);
        }
        seen
    }
}
