//! Threads of this process for a search of placement, which has none of its own.

use std::thread;

use crate::placement::global::Helpers;

/// More than these share too much to be worth it.
const MOST: usize = 8;

/// As many as this machine runs at once, beside the thread that asks; none on a machine that runs one.
pub fn helpers() -> Option<Helpers<'static>> {
    these(thread::available_parallelism().map_or(1, usize::from).min(MOST))
}

/// So many, with the thread that asks.
pub fn these(threads: usize) -> Option<Helpers<'static>> {
    (threads > 1).then(|| Helpers { count: threads - 1, run: &run })
}

fn run(count: usize, help: &(dyn Fn(usize) + Sync), own: &mut dyn FnMut()) {
    thread::scope(|scope| {
        for number in 0..count {
            let helper = thread::Builder::new().name(format!("search {number}"));
            // The search goes on with those that there are.
            if helper.spawn_scoped(scope, move || help(number)).is_err() {
                break;
            }
        }
        own();
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn each_helper_runs_once_beside_the_one_that_asks() {
        assert!(these(1).is_none());
        assert!(helpers().is_none_or(|helpers| helpers.count < MOST));
        let (helped, mut own) = (Mutex::new(Vec::new()), 0);
        let four = these(4).unwrap();
        let help = |number: usize| helped.lock().unwrap().push(number);
        (four.run)(four.count, &help, &mut || own += 1);
        let mut helped = helped.into_inner().unwrap();
        helped.sort_unstable();
        assert_eq!((helped, own), (vec![0, 1, 2], 1));
    }
}
