//! How many steps of different size an engine captures as graphs.

use super::estimate::Bar;

/// Sizes that vLLM captures where nothing limits them.
const ALL: u64 = captured(256);

/// Sizes that vLLM captures for at most so many requests at a time: 1, 2, 4, then by 8 to 256 and by 16
/// to 512, but none above twice the requests (`vllm/config/vllm.py`, `_set_cudagraph_sizes`).
const fn captured(requests: u64) -> u64 {
    let most = if requests < 256 { 2 * requests } else { 512 };
    let small = if most >= 4 { 3 } else { most };
    let eights = if most < 256 { most / 8 } else { 31 };
    let sixteens = if most < 256 { 0 } else { (most - 256) / 16 + 1 };
    small + eights + sixteens
}

/// Memory of the graphs for at most so many requests, where `bar` is that of all sizes.
pub(super) fn for_requests(bar: Bar, requests: u64) -> Bar {
    let part = |bytes: u64| bytes / ALL * captured(requests);
    Bar { value: part(bar.value), low: part(bar.low), high: part(bar.high) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_sizes_as_vllm_logs() {
        // `cudagraph_capture_sizes` of vLLM 0.20.2.
        for (requests, sizes) in
            [(1, 2), (2, 3), (16, 7), (64, 19), (128, 35), (256, 51), (1_024, 51)]
        {
            assert_eq!(captured(requests), sizes, "{requests}");
        }
        let all = Bar { value: 5_100, low: 510, high: 51_000 };
        assert_eq!(for_requests(all, 256), all);
        assert_eq!(for_requests(all, 16), Bar { value: 700, low: 70, high: 7_000 });
    }
}
