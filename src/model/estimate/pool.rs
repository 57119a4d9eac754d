//! The cache of one rank: how an engine groups its layers, and the tokens that fit.

use super::pages::Pages;
use super::{Bar, Pool, Setup};
use crate::model::cache::{CacheBits, Keeps, LayerCache};
use crate::model::tensors::mul_div;

/// The cache of one rank.
pub(super) struct PoolOf<'a> {
    pub(super) setup: &'a Setup,
    pub(super) caches: &'a [LayerCache],
    pub(super) tensor: u64,
    pub(super) bits: CacheBits,
    pub(super) block: u64,
    pub(super) context: u64,
    /// Tokens are counted as requests of full length could hold them: vLLM since 0.21.
    pub(super) by_requests: bool,
}

/// Layers of one kind.
struct Kind {
    layers: u64,
    window: Option<u64>,
    state: bool,
    /// Bytes of a token in one of them.
    token: u64,
}

/// How vLLM groups a rank's layers.
struct Groups {
    /// Bytes of one block of one group.
    bytes_per_block: u64,
    count: u64,
    /// Blocks of a request of full length.
    blocks_per_request: u64,
}

impl PoolOf<'_> {
    fn per_token(&self, cache: LayerCache) -> u64 {
        cache.per_token(self.tensor, self.bits).unwrap_or(0)
    }

    fn all_tokens(&self) -> u64 {
        self.caches.iter().map(|c| self.per_token(*c)).fold(0, u64::saturating_add)
    }

    fn states(&self) -> u64 {
        self.caches.iter().map(|c| c.keeps.per_request(self.tensor)).sum()
    }

    /// States that are kept: llama.cpp keeps one for each slot, whether it serves a request or not.
    fn kept_states(&self) -> u64 {
        self.states().saturating_mul(self.slots())
    }

    /// Requests that the cache is made for from the beginning.
    fn slots(&self) -> u64 {
        if self.setup.rules.pool == Pool::Cells { self.setup.requests().max(1) } else { 1 }
    }

    /// Parts of llama.cpp's cache, and cells of each in layers that see everything: one part for all
    /// slots, or (`--no-kv-unified`) one for each (`llama-context.cpp`, `n_ctx_seq`).
    fn cells(&self) -> (u64, u64) {
        let parts = if self.setup.unified { 1 } else { self.slots() };
        (parts, (self.context / parts).max(1).next_multiple_of(256))
    }

    /// Cells of layers that look back `window` tokens, in all parts together: the windows of all slots
    /// and one physical batch, `PAD(min(size_base, n_swa·(unified ? n_seq_max : 1) + n_ubatch), 256)`
    /// (`llama-kv-cache-iswa.cpp`).
    fn window_cells(&self, window: u64) -> u64 {
        let (parts, each) = self.cells();
        let seen = window.saturating_mul(self.slots() / parts).saturating_add(self.setup.batch());
        parts.saturating_mul(seen.min(each).next_multiple_of(256))
    }

    fn windows(&self) -> bool {
        self.caches.iter().any(|c| c.keeps.window().is_some_and(|w| w < self.context))
    }

    fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = Vec::new();
        for cache in self.caches {
            let state = matches!(cache.keeps, Keeps::State { .. });
            let window = cache.keeps.window();
            let token = self.per_token(*cache);
            let alike = |k: &&mut Kind| k.state == state && k.window == window && k.token == token;
            match kinds.iter_mut().find(alike) {
                Some(kind) => kind.layers += 1,
                None => kinds.push(Kind { layers: 1, window, state, token }),
            }
        }
        // Where all see alike, layers with more heads have larger pages of the same tokens.
        let one = kinds.first().map(|k| (k.state, k.window));
        if kinds.iter().all(|k| Some((k.state, k.window)) == one) {
            kinds.truncate(1);
            for kind in &mut kinds {
                kind.layers = self.caches.len() as u64;
            }
        }
        kinds
    }

    /// Tokens of a block of these layers, where a page has so many bytes: layers whose tokens take less
    /// have more of them in a page (`unify_kv_cache_spec_page_size`).
    fn block_of(&self, kind: &Kind, page: u64) -> u64 {
        let own = kind.token.saturating_mul(self.block);
        match page.checked_div(own) {
            Some(times) if own > 0 && page.is_multiple_of(own) => self.block.saturating_mul(times),
            _ => self.block,
        }
    }

    /// Groups of the engine's versions: those whose logs are known, and those since about 0.30, where two steps
    /// may be under way at a time (`max_in_flight_tokens` of `async_scheduling`), and a request may have a third
    /// state: Kimi's delta attention since 0.30, Mamba-2 since 0.32, gated delta networks since 0.33
    /// (`num_prefill_checkpoint_blocks`).
    fn versions(&self) -> [Groups; 2] {
        [self.groups(1), self.groups(2)]
    }

    fn paged(&self) -> bool {
        self.caches.iter().any(|c| matches!(c.keeps, Keeps::Paged { .. }))
    }

    /// vLLM `_get_kv_cache_groups_uniform_page_size`, with so many steps under way.
    fn groups(&self, steps: u64) -> Groups {
        let batch = self.setup.batch().saturating_mul(steps);
        if self.paged() {
            let pages = Pages::of(self.caches);
            return Groups {
                bytes_per_block: if steps > 1 { pages.packed() } else { pages.padded() },
                count: 1,
                blocks_per_request: pages.blocks_per_request(self.context, batch).max(1),
            };
        }
        let kinds = self.kinds();
        // Without attention nothing is kept for the next request with the same beginning.
        let alone = kinds.iter().all(|k| k.state);
        let blocks = |kind: &Kind, block: u64| match (kind.state, kind.window) {
            (true, _) if alone => 1,
            // A state, and the one it is being made from (`mamba_cache_mode = align`).
            (true, _) => 1 + steps,
            (false, Some(window)) => {
                (window.saturating_sub(1) + batch).min(self.context).div_ceil(block) + 1
            }
            (false, None) => self.context.div_ceil(block),
        };
        if kinds.len() <= 1 {
            return Groups {
                bytes_per_block: match kinds.first() {
                    Some(k) if k.state => self.states().max(1),
                    _ => self.all_tokens().saturating_mul(self.block).max(1),
                },
                count: 1,
                blocks_per_request: kinds.first().map_or(1, |k| blocks(k, self.block)).max(1),
            };
        }
        let least = kinds.iter().map(|k| k.layers).min().unwrap_or(1).max(1);
        let most = kinds.iter().map(|k| k.layers).max().unwrap_or(1);
        let size = if 2 * most < 3 * least { most } else { least };
        let page = self
            .caches
            .iter()
            .map(|c| {
                self.per_token(*c).saturating_mul(self.block).max(c.keeps.per_request(self.tensor))
            })
            .max()
            .unwrap_or(1);
        Groups {
            bytes_per_block: page.saturating_mul(size).max(1),
            count: kinds.iter().map(|k| k.layers.div_ceil(size)).sum(),
            blocks_per_request: kinds
                .iter()
                .map(|k| {
                    let block = self.block_of(k, page);
                    k.layers.div_ceil(size).saturating_mul(blocks(k, block))
                })
                .fold(0, u64::saturating_add)
                .max(1),
        }
    }

    /// Cache of one request of full length.
    pub(super) fn needed(&self) -> Bar {
        let rules = &self.setup.rules;
        if self.caches.iter().all(|c| c.keeps.is_nothing()) {
            return Bar::default();
        }
        match rules.pool {
            Pool::Groups => {
                let needs = |of: &Groups| of.blocks_per_request.saturating_mul(of.bytes_per_block);
                let [first, later] = self.versions();
                let (value, other) = (needs(&first), needs(&later));
                // Since about 0.30 the block that stands for none is not counted on (`get_kv_cache_configs`).
                let reserved = other.saturating_add(later.bytes_per_block);
                Bar { value, low: value.min(other), high: value.max(reserved) }
            }
            Pool::Tokens | Pool::Cells => {
                let all = match rules.pool {
                    Pool::Cells => {
                        let (parts, each) = self.cells();
                        parts.saturating_mul(each)
                    }
                    _ => self.context.next_multiple_of(self.block),
                };
                let tokens = |keeps: Keeps| match (rules.pool, keeps.window()) {
                    (Pool::Cells, Some(window)) => self.window_cells(window),
                    _ => all,
                };
                let sum = self
                    .caches
                    .iter()
                    .map(|c| self.per_token(*c).saturating_mul(tokens(c.keeps)))
                    .fold(0, u64::saturating_add);
                Bar::exact(sum.saturating_add(self.kept_states()))
            }
        }
    }

    /// Tokens that fit into so much memory.
    pub(super) fn tokens(&self, available: Bar) -> Bar {
        let (value, low, high) =
            (self.within(available.value), self.within(available.low), self.within(available.high));
        Bar { value: value.0, low: low.1.min(value.1), high: high.2.max(value.2) }
    }

    /// Tokens that fit: the engine's own count, and the least and most that its versions say.
    fn within(&self, available: u64) -> (u64, u64, u64) {
        let rules = &self.setup.rules;
        let all = self.all_tokens();
        if all == 0 {
            // Only states: as many tokens as one likes, for so many requests.
            let requests = available.checked_div(self.states()).unwrap_or(0);
            let tokens = requests.saturating_mul(self.context);
            return (tokens, tokens, tokens);
        }
        match rules.pool {
            Pool::Groups => {
                let [groups, other] = self.versions();
                let blocks = available / groups.bytes_per_block;
                let requests = mul_div(blocks, self.context, groups.blocks_per_request);
                let later = mul_div(
                    available / other.bytes_per_block,
                    self.context,
                    other.blocks_per_request,
                );
                if self.paged() {
                    return (requests, requests.min(later), requests.max(later));
                }
                // Until 0.20: blocks of one group. Since then: what requests of full length could hold.
                let plain = (blocks / groups.count.max(1)).saturating_mul(self.block);
                if groups.count <= 1 {
                    return (plain, plain, plain);
                }
                let whole = self.states() > 0 || self.by_requests;
                let value = if whole { requests } else { plain };
                (value, plain.min(requests).min(later), plain.max(requests).max(later))
            }
            Pool::Tokens => {
                let mut left = available;
                if self.states() > 0 {
                    left = two_pools(self.setup, available).0;
                }
                let whole = |per: u64| left / per.max(1) / self.block * self.block;
                let plain = whole(all);
                if !self.windows() {
                    return (plain, plain, plain);
                }
                // `--swa-full-tokens-ratio 0.8`.
                let windows: u64 = self
                    .caches
                    .iter()
                    .filter(|c| c.keeps.window().is_some())
                    .map(|c| self.per_token(*c))
                    .sum();
                let hybrid = whole(all - windows + mul_div(windows, 8, 10));
                (hybrid, plain, hybrid.max(plain))
            }
            Pool::Cells => {
                let sum = |windows: bool| -> u64 {
                    self.caches
                        .iter()
                        .filter(|c| c.keeps.window().is_some() == windows)
                        .map(|c| {
                            let cells = c.keeps.window().map_or(1, |w| self.window_cells(w));
                            self.per_token(*c).saturating_mul(cells)
                        })
                        .fold(0, u64::saturating_add)
                };
                let fixed = sum(true).saturating_add(self.kept_states());
                let tokens = match available.saturating_sub(fixed).checked_div(sum(false)) {
                    Some(tokens) => tokens / 256 * 256,
                    // Windows alone take the same however many tokens there are.
                    None if available >= fixed => self.cells().0.saturating_mul(self.cells().1),
                    None => 0,
                };
                (tokens, tokens, tokens)
            }
        }
    }
}

/// What `SGLang` divides its memory into where layers keep states: for tokens, and for states, nine
/// tenths of the former (`--mamba-full-memory-ratio 0.9`). What it logs of its cache is the former alone:
/// it has a line of its own for states.
pub(super) fn two_pools(setup: &Setup, available: u64) -> (u64, u64) {
    if setup.cache_available.is_some() {
        return (available, mul_div(available, 9, 10));
    }
    let tokens = mul_div(available, 10, 19);
    (tokens, available.saturating_sub(tokens))
}
