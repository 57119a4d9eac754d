//! The tower of GLM-OCR and GLM 5 Next (`modeling_glm_ocr.py`, `modeling_glm5_next.py`).

use super::Tower;

impl Tower<'_, '_> {
    pub(super) fn glm_next(&mut self) {
        let width = self.n(&["hidden_size"]);
        let inner = self.n(&["intermediate_size"]);
        let joined = self.n(&["out_hidden_size"]);
        // GLM-OCR states no width of what joins its tower, which has one for each colour.
        let deep = match self.n(&["projection_intermediate_size"]) {
            0 => joined * self.n(&["in_channels"]),
            stated => stated,
        };
        let patch = self.n(&["patch_size"]);
        let time = self.n(&["temporal_patch_size"]);
        let merge = self.n(&["spatial_merge_size"]).max(1);
        let head = width.checked_div(self.n(&["num_heads", "num_attention_heads"])).unwrap_or(0);
        let bias = self.c.flag("attention_bias") != Some(false);
        self.w("patch_embed.proj.weight", &[width, 3, time, patch, patch]);
        self.w("patch_embed.proj.bias", &[width]);
        for l in 0..self.layers() {
            self.norm(&format!("blocks.{l}.norm1"), width, false);
            self.norm(&format!("blocks.{l}.norm2"), width, false);
            self.lin(&format!("blocks.{l}.attn.qkv"), 3 * width, width, bias);
            self.lin(&format!("blocks.{l}.attn.proj"), width, width, bias);
            self.norm(&format!("blocks.{l}.attn.q_norm"), head, false);
            self.norm(&format!("blocks.{l}.attn.k_norm"), head, false);
            self.lin(&format!("blocks.{l}.mlp.gate_proj"), inner, width, bias);
            self.lin(&format!("blocks.{l}.mlp.up_proj"), inner, width, bias);
            self.lin(&format!("blocks.{l}.mlp.down_proj"), width, inner, bias);
        }
        self.lin("merger.proj", joined, joined, false);
        self.norm("merger.post_projection_norm", joined, true);
        self.lin("merger.gate_proj", deep, joined, false);
        self.lin("merger.up_proj", deep, joined, false);
        self.lin("merger.down_proj", joined, deep, false);
        self.w("downsample.weight", &[joined, width, merge, merge]);
        self.w("downsample.bias", &[joined]);
        self.norm("post_layernorm", width, false);
    }
}
