//! Memory that is counted: what a target takes for one input, on top of what was there before it.
//! More than the limit aborts the process, which the fuzzer reports with the input.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

const LIMIT_BYTES: usize = 64 << 20;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn more(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    PEAK.fetch_max(live, Ordering::Relaxed);
}

fn less(bytes: usize) {
    LIVE.fetch_sub(bytes, Ordering::Relaxed);
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A request that could never be granted is refused as the system would.
        if layout.size() > LIMIT_BYTES {
            eprintln!("a single allocation of {} bytes", layout.size());
            std::process::abort();
        }
        more(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        less(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > LIMIT_BYTES {
            eprintln!("a single allocation of {size} bytes");
            std::process::abort();
        }
        more(size);
        less(layout.size());
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs a target on one input.
pub fn run(target: impl FnOnce()) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    target();
    let taken = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    if taken > LIMIT_BYTES {
        eprintln!("{taken} bytes were taken");
        std::process::abort();
    }
    // Told in steps, so that a log stays short; the last line is the most.
    if taken > MOST.load(Ordering::Relaxed).saturating_mul(5) / 4 {
        MOST.store(taken, Ordering::Relaxed);
        eprintln!("gpudeck: most memory for one input so far: {taken} bytes");
    }
}
