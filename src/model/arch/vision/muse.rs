//! The tower of Muse (`modeling_muse_glimmer.py`), which Spark has as well.

use serde_json::{Map, Value};

use super::Tower;
use crate::model::arch::conf::whole;

impl Tower<'_, '_> {
    pub(super) fn muse(&mut self, top: &Map<String, Value>) {
        let width = self.n(&["hidden_size"]);
        let inner = self.n(&["intermediate_size"]);
        let patch = self.n(&["patch_size"]);
        let time = self.n(&["patch_temporal"]);
        let positions = self.n(&["pos_emb_height"]) * self.n(&["pos_emb_width"]);
        self.w("patch_embedder.patch_embedding.weight", &[width, 3 * time * patch * patch]);
        self.w("patch_embedder.position_embedding_table.weight", &[positions, width]);
        self.norm("ln_pre", width, true);
        for l in 0..self.layers() {
            self.norm(&format!("layers.{l}.norm1"), width, true);
            self.norm(&format!("layers.{l}.norm2"), width, true);
            for part in ["q_proj", "k_proj", "v_proj", "proj"] {
                self.lin(&format!("layers.{l}.attn.{part}"), width, width, true);
            }
            self.lin(&format!("layers.{l}.mlp.fc1"), inner, width, true);
            self.lin(&format!("layers.{l}.mlp.fc2"), width, inner, true);
        }
        self.norm("ln_post", width, true);
        let stated = |key: &str| top.get(key).and_then(whole).map(|n| n.min(1 << 16));
        let joined = stated("out_hidden_size").unwrap_or(4 * width);
        let middle = stated("projector_hidden_size").unwrap_or(4_096);
        self.lin("vision_adapter.fc1", middle, joined, false);
        self.lin("vision_adapter.fc2", middle, middle, false);
        let out = self.out;
        self.lin("vision_projection", out, middle, false);
    }
}
