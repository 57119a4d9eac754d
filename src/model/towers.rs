//! How vLLM divides towers for other media over the ranks of tensor parallelism.

use serde::{Deserialize, Serialize};

/// How a tower is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tower {
    /// As its tensors' names say; nothing more is known.
    #[default]
    Named,
    /// Likewise, and so many heads have to divide (`distributed/utils.py`, `divide`).
    Heads(u64),
    /// Likewise, but attention stays whole where so many heads do not divide (`intern_vit.py`, `disable_tp`).
    HeadsIfEven(u64),
    /// Not at all: it is built by `transformers`, and what joins it to the language model is not divided either.
    Whole,
}

/// A model's towers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Towers {
    /// For images.
    #[serde(default)]
    pub vision: Tower,
    /// For sound.
    #[serde(default)]
    pub audio: Tower,
}

impl Towers {
    /// Whether every one of `ranks` has all of the tensor of this name, which lies in a tower; attention is told
    /// by `mixer`.
    pub fn is_whole(self, name: &str, mixer: bool, ranks: u64) -> bool {
        let joins = self.vision == Tower::Named && name.contains("multi_modal_projector.");
        let audio = joins || name.contains("audio_tower.");
        match if audio { self.audio } else { self.vision } {
            Tower::Whole => true,
            Tower::HeadsIfEven(heads) => mixer && !heads.is_multiple_of(ranks.max(1)),
            Tower::Named | Tower::Heads(_) => false,
        }
    }
}
