//! The names under which checkpoints keep towers and what joins them to the language model: `arch`
//! has all of them under `visual.`, while lists of exceptions have the names of the model's own code.

/// Before a tower's blocks, as families of `transformers` and models with their own code name it.
const TOWERS: [&str; 7] = [
    "vision_backbone.image_vit",
    "visual",
    "vision_tower",
    "vision_model",
    "vision_tower.vision_model",
    "vpm",
    "vision_encoder",
];

/// What joins a tower to the language model, by any name.
const JOINERS: [&str; 8] = [
    "multi_modal_projector",
    "mm_projector",
    "connector",
    "mlp1",
    "aligner",
    "vision_projection",
    "img_projection",
    "vision_language_adapter",
];

/// Parts that have one name, outside the tower.
const APART: [&str; 10] = [
    "resampler",
    "embed_vision",
    "embed_audio",
    "audio_tower",
    "image_pooling_2d",
    "image_projector",
    "vision_embed_tokens",
    "sam_model",
    "qwen2_model",
    "projector",
];

/// All names of a module that `arch` has under `visual.`; none where it is another.
pub(super) fn names(module: &str) -> Option<Vec<String>> {
    let own = module.strip_prefix("visual.")?;
    let (first, rest) = own.split_once('.').unwrap_or((own, ""));
    if APART.contains(&first) {
        // Molmo has what joins its tower inside of it.
        return Some(vec![own.to_owned(), format!("vision_backbone.{own}")]);
    }
    if JOINERS.contains(&first) {
        let named = |name: &&str| [*name, rest].join(".").trim_end_matches('.').to_owned();
        return Some(JOINERS.iter().map(named).collect());
    }
    let inner = own.strip_prefix("vision_model.").or_else(|| own.strip_prefix("vision_tower."));
    let inner = inner.unwrap_or(own);
    let mut all: Vec<String> = TOWERS.iter().map(|tower| format!("{tower}.{inner}")).collect();
    // `InternVL` in `transformers` has words of its own for the same layers.
    if let Some(block) = inner.strip_prefix("encoder.layers.") {
        let block = block.replace("attn.qkv", "attention.q_proj");
        let block = block.replace("attn.proj", "attention.projection_layer");
        all.push(format!("vision_tower.encoder.layer.{block}"));
    }
    Some(all)
}

/// Whether a module under `visual.` is part of a tower, not of what joins it.
pub(super) fn is_tower(module: &str) -> bool {
    module.strip_prefix("visual.").is_some_and(|own| {
        let first = own.split('.').next().unwrap_or_default();
        let tower = ["audio_tower", "sam_model", "qwen2_model"].contains(&first);
        tower || !JOINERS.contains(&first) && !APART.contains(&first)
    })
}
