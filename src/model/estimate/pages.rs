//! How vLLM packs layers that keep several things in pages of their own size: `DeepSeek` V4
//! (`v1/core/kv_cache_utils.py`, `_get_packed_kv_cache_groups`).

use crate::model::cache::{Keeps, LayerCache};

/// Layers that need a page for as many tokens.
struct Bucket {
    block: u64,
    /// Only the last so many tokens; 0: all.
    window: u64,
    /// Sizes of pages, and layers that have one of this size.
    pages: Vec<(u64, u64)>,
}

impl Bucket {
    fn layers(&self) -> u64 {
        self.pages.iter().map(|(_, count)| *count).max().unwrap_or(0)
    }

    /// There are as many pages of each size: a pattern that repeats.
    fn balanced(&self) -> bool {
        self.pages.iter().all(|(_, count)| *count == self.layers())
    }
}

/// All pages of a rank.
pub(super) struct Pages {
    buckets: Vec<Bucket>,
    /// Repeats of a pattern in a group; 0: nothing is packed.
    repeats: u64,
}

impl Pages {
    pub(super) fn of(caches: &[LayerCache]) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        for cache in caches {
            let Keeps::Paged { block, page, window } = cache.keeps else { continue };
            let (block, page, window) = (u64::from(block), u64::from(page), u64::from(window));
            let at = buckets.iter().position(|b| b.block == block && b.window == window);
            let at = at.unwrap_or_else(|| {
                buckets.push(Bucket { block, window, pages: Vec::new() });
                buckets.len() - 1
            });
            let Some(bucket) = buckets.get_mut(at) else { continue };
            match bucket.pages.iter_mut().find(|(size, _)| *size == page) {
                Some((_, count)) => *count += 1,
                None => bucket.pages.push((page, 1)),
            }
        }
        let repeats = repeats(&buckets);
        Self { buckets, repeats }
    }

    fn groups(&self, bucket: &Bucket) -> u64 {
        if bucket.balanced() && self.repeats > 0 {
            bucket.layers().div_ceil(self.repeats)
        } else {
            1
        }
    }

    /// Blocks of a request of full length, of which `under_way` tokens may be in steps that are not settled.
    pub(super) fn blocks_per_request(&self, context: u64, under_way: u64) -> u64 {
        let blocks = |b: &Bucket| match b.window {
            0 => context.div_ceil(b.block.max(1)),
            window => {
                (window - 1).saturating_add(under_way).min(context).div_ceil(b.block.max(1)) + 1
            }
        };
        self.buckets
            .iter()
            .map(|b| blocks(b).saturating_mul(self.groups(b)))
            .fold(0, u64::saturating_add)
    }

    /// Bytes of a block: those of the widest group.
    pub(super) fn packed(&self) -> u64 {
        let widest = |b: &Bucket| -> u64 {
            let groups = self.groups(b);
            let bytes = |(page, count): &(u64, u64)| page.saturating_mul(count.div_ceil(groups));
            b.pages.iter().map(bytes).fold(0, u64::saturating_add)
        };
        self.buckets.iter().map(widest).max().unwrap_or(0).max(1)
    }

    /// The same until about 0.30, where every group had as many pages of each size that layers have which see all
    /// tokens.
    pub(super) fn padded(&self) -> u64 {
        let all = self.buckets.iter().filter(|b| b.window == 0).flat_map(|b| &b.pages);
        let each = all.map(|(page, _)| *page).fold(0, u64::saturating_add);
        each.saturating_mul(self.repeats).max(1)
    }
}

/// Repeats that leave the least room unused (`_approximate_gcd`).
fn repeats(buckets: &[Bucket]) -> u64 {
    let patterns: Vec<u64> = buckets.iter().filter(|b| b.balanced()).map(Bucket::layers).collect();
    let mixed = buckets.iter().filter(|b| b.balanced() && b.pages.len() > 1);
    let least = mixed.map(Bucket::layers).max().unwrap_or(0);
    let most = patterns.iter().copied().max().unwrap_or(0);
    let unused = |d: u64| patterns.iter().map(|n| n.next_multiple_of(d) - n).sum::<u64>();
    // Of equals the largest.
    if least == 0 { most } else { (least..=most).rev().min_by_key(|d| unused(*d)).unwrap_or(most) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    fn flash() -> String {
        let ratios: Vec<u64> =
            (0..44).map(|l| if (2..=42).contains(&l) { [4, 128][l % 2] } else { 0 }).collect();
        format!(
            r#"{{"architectures":["DeepseekV4ForCausalLM"],"model_type":"deepseek_v4","torch_dtype":"bfloat16",
            "hidden_size":4096,"num_hidden_layers":43,"num_attention_heads":64,"num_key_value_heads":1,"head_dim":512,
            "qk_rope_head_dim":64,"index_head_dim":128,"index_n_heads":64,"n_routed_experts":256,"vocab_size":129280,
            "sliding_window":128,"max_position_embeddings":1048576,"compress_ratios":{ratios:?},"expert_dtype":"fp4",
            "quantization_config":{{"quant_method":"fp8","weight_block_size":[128,128]}}}}"#
        )
    }

    /// vLLM #44376 (0.22, two GH200, steps of 16384): 30,000 tokens need 6.66 GiB; 5.44 GiB are enough for 13,528.
    #[test]
    fn a_request_of_v4_takes_more_than_its_tokens() {
        let facts = facts(&flash());
        let of = |context, hundredths: u64| {
            let setup = Setup {
                tensor: 2,
                expert: 2,
                context: Some(context),
                batch: Some(16_384),
                cache_available: Some((hundredths << 30) / 100),
                ..Setup::new(rules("vllm"))
            };
            predict(&facts, &setup)
        };
        let needed = |context| of(context, 544).ranks[0].cache_needed;
        let hundredths = |bytes: u64| (bytes * 100 + (1 << 29)) >> 30;
        assert_eq!(hundredths(needed(30_000).value), 666);
        assert_eq!(hundredths(needed(13_528).value), 544);
        assert_eq!(of(30_000, 544).fits, Some(false));
        // 22 pages of each of three sizes; 118 blocks, twice 259, 4099 and 2065.
        assert_eq!(needed(30_000).value, 22 * (37_440 + 8_640 + 1_728) * 6_800);
        assert_eq!(of(30_000, 2_000).fits, Some(true));
    }
}
