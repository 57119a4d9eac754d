//! Towers for sound: Whisper's encoder and its like.

use serde_json::{Map, Value};

use super::super::{Build, conf::Conf};
use super::Tower;

/// The tower for sound, where it is one that is known; whether it was.
pub(super) fn add(build: &mut Build<'_>, top: &Map<String, Value>) -> bool {
    let kind = top.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let known =
        ["qwen2_audio", "voxtral", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "minicpmo"]
            .contains(&kind);
    let Some(audio) = Conf::part(top, "audio_config").filter(|_| known) else { return false };
    let out = Conf::text(top).number(&["hidden_size"]).unwrap_or(0);
    Tower { build, c: &audio, out }.whisper(kind);
    true
}

/// The encoder of Whisper itself.
pub(super) fn encoder(build: &mut Build<'_>, c: &Conf<'_>) {
    let out = build.n.hidden;
    Tower { build, c, out }.whisper("whisper");
}

impl Tower<'_, '_> {
    /// `modeling_whisper.py` (the encoder), and what `modeling_qwen2_audio.py`, `modeling_voxtral.py`,
    /// `modeling_qwen2_5_omni.py` and `modeling_qwen3_omni_moe.py` put before and after it.
    fn whisper(&mut self, kind: &str) {
        let or = |n: u64, usual: u64| if n == 0 { usual } else { n };
        let width = or(self.n(&["d_model", "hidden_size"]), 1_280);
        let inner = or(self.n(&["encoder_ffn_dim", "intermediate_size"]), 5_120);
        let layers = or(self.n(&["encoder_layers", "num_hidden_layers"]).min(512), 32);
        let mel = or(self.n(&["num_mel_bins"]), 128);
        let positions = or(self.n(&["max_source_positions"]), 1_500);
        let seen = or(self.n(&["output_dim"]), self.out);
        let out = self.out;
        let third = kind == "qwen3_omni_moe_thinker";
        if third {
            let narrow = or(self.n(&["downsample_hidden_size"]), 480);
            let mel = (0..3).fold(mel, |n, _| n.div_ceil(2));
            for (name, from) in [("conv2d1", 1), ("conv2d2", narrow), ("conv2d3", narrow)] {
                self.w(&format!("audio_tower.{name}.weight"), &[narrow, from, 3, 3]);
                self.w(&format!("audio_tower.{name}.bias"), &[narrow]);
            }
            self.lin("audio_tower.conv_out", width, narrow * mel, false);
        } else {
            self.w("audio_tower.conv1.weight", &[width, mel, 3]);
            self.w("audio_tower.conv1.bias", &[width]);
            self.w("audio_tower.conv2.weight", &[width, width, 3]);
            self.w("audio_tower.conv2.bias", &[width]);
        }
        for l in 0..layers {
            let at = format!("audio_tower.layers.{l}");
            self.lin(&format!("{at}.self_attn.q_proj"), width, width, true);
            self.lin(&format!("{at}.self_attn.k_proj"), width, width, third);
            self.lin(&format!("{at}.self_attn.v_proj"), width, width, true);
            self.lin(&format!("{at}.self_attn.out_proj"), width, width, true);
            self.lin(&format!("{at}.fc1"), inner, width, true);
            self.lin(&format!("{at}.fc2"), width, inner, true);
            self.norm(&format!("{at}.self_attn_layer_norm"), width, true);
            self.norm(&format!("{at}.final_layer_norm"), width, true);
        }
        self.norm("audio_tower.layer_norm", width, true);
        match kind {
            "qwen2_audio" | "voxtral" | "whisper" | "minicpmo" => {
                self.w("audio_tower.embed_positions.weight", &[positions, width]);
                if kind == "voxtral" {
                    self.lin("multi_modal_projector.linear_1", out, inner, false);
                    self.lin("multi_modal_projector.linear_2", out, out, false);
                } else if kind == "minicpmo" {
                    self.lin("multi_modal_projector.linear1", out, inner / 4, true);
                    self.lin("multi_modal_projector.linear2", out, out, true);
                } else if kind == "qwen2_audio" {
                    self.lin("multi_modal_projector.linear", out, width, true);
                }
            }
            _ if third => {
                self.lin("audio_tower.proj1", width, width, true);
                self.lin("audio_tower.proj2", seen, width, true);
            }
            _ => {
                self.w("audio_tower.audio_bos_eos_token.weight", &[2, seen]);
                self.lin("audio_tower.proj", seen, width, true);
            }
        }
    }
}
