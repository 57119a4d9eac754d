//! Which of a program's last lines says why it ended. Engines end with a trace of calls, a word of
//! advice or a farewell of a library; what went wrong stands before that.

use super::text::clean;

/// Longest line that is kept.
const MAX_LINE: usize = 400;

/// Lines that only lead somewhere else, in small letters.
const POINTERS: [&str; 6] = [
    "see root cause above",
    "root cause",
    "see the error above",
    "validation error for ",
    "validation errors for ",
    "please check the logs",
];

/// Beginnings of lines that say nothing by themselves.
const NOISE: [&str; 10] = [
    "File \"",
    "Traceback (",
    "^^^",
    "~~~",
    "For further information",
    "During handling of the above",
    "The above exception was",
    "[rank",
    "raise ",
    "return ",
];

/// How much a line says of why a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Noise,
    Word,
    Pointer,
    Cause,
}

fn weight(line: &str) -> Weight {
    let line = bare(line);
    if line.is_empty() || NOISE.iter().any(|start| line.starts_with(start)) {
        return Weight::Noise;
    }
    if !names_an_error(line) {
        Weight::Word
    } else if is_pointer(line) {
        Weight::Pointer
    } else {
        Weight::Cause
    }
}

fn is_pointer(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    POINTERS.iter().any(|mark| line.contains(mark))
}

/// `ValueError: …`, `torch.OutOfMemoryError: …`, `vllm: error: …`, `Value error, …`.
fn names_an_error(line: &str) -> bool {
    let kinds = ["Error: ", "Exception: ", "error: ", "rror, ", "panicked at "];
    kinds.iter().any(|kind| line.find(kind).is_some_and(|at| at < 100))
}

/// Without what a logger puts before the text: `(EngineCore pid=12) ERROR 11-27 13:25:12 [core.py:1] `.
fn bare(line: &str) -> &str {
    let mut line = line.trim();
    if line.starts_with('(')
        && let Some((who, rest)) = line.split_once(") ")
        && who.contains(" pid=")
    {
        line = rest.trim_start();
    }
    if ["ERROR ", "CRITICAL "].iter().any(|level| line.starts_with(level))
        && let Some((_, rest)) = line.split_once("] ")
    {
        line = rest.trim_start();
    }
    line
}

/// The line that says why, without what a logger put before it; empty if there is no line at all.
///
/// That is the last one that names an error and does not only point at another; else the last that
/// names one; else the last that says something.
pub fn why(text: &str) -> &str {
    let mut best = (Weight::Noise, "");
    for line in text.lines() {
        let found = weight(line);
        if found >= best.0 && !line.trim().is_empty() {
            best = (found, line);
        }
    }
    bare(best.1)
}

/// The last lines of a log, cleaned and at most so many bytes; where the one that says why comes
/// before them, it is put first.
pub fn excerpt(text: &str, most: usize) -> String {
    let cleaned = |line: &str| clean(line.trim_end(), MAX_LINE);
    let reason = cleaned(why(text));
    let mut left = most.saturating_sub(reason.len() + 1);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().rev().map(cleaned).filter(|line| !line.is_empty()) {
        let Some(rest) = left.checked_sub(line.len() + 1) else { break };
        left = rest;
        lines.push(line);
    }
    if !reason.is_empty() && !lines.iter().any(|line| line.ends_with(&reason)) {
        lines.push(reason);
    }
    lines.reverse();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vLLM 0.20 ended on an H100, shortened.
    const TOO_LONG: &str = "\
(EngineCore pid=9) ERROR 11-27 13:31:40 [core.py:1136]     _check_enough_kv_cache_memory(
(EngineCore pid=9) ERROR 11-27 13:31:40 [core.py:1136] ValueError: To serve at least one request with the models's max seq len (131072), (16.0 GiB KV cache is needed
(APIServer pid=8) Traceback (most recent call last):
(APIServer pid=8)   File \"/opt/vllm/v1/engine/utils.py\", line 1178, in wait_for_engine_startup
(APIServer pid=8)     raise RuntimeError(
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
";

    #[test]
    fn the_cause_is_found_before_what_points_at_it() {
        assert!(
            why(TOO_LONG).starts_with("ValueError: To serve at least one"),
            "{}",
            why(TOO_LONG)
        );
        let advice = "\
(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=1)   Value error, invalid literal for int() with base 10: 'GPU-a' [type=value_error]
(APIServer pid=1)     For further information visit https://errors.pydantic.dev/2.14/v/value_error
";
        assert!(why(advice).starts_with("Value error, invalid literal"), "{}", why(advice));
        let above = "\
OSError: [Errno 28] No space left on device
RuntimeError: the workers did not start, see the error above
RuntimeError: Worker failed. See the error above for details.
";
        assert_eq!(why(above), "OSError: [Errno 28] No space left on device");
        let farewell = "torch.OutOfMemoryError: CUDA out of memory.\n\
            [rank0]:[W1127 13:22:07 ProcessGroupNCCL.cpp:1575] Warning: destroy_process_group() was not called\n";
        assert_eq!(why(farewell), "torch.OutOfMemoryError: CUDA out of memory.");
    }

    #[test]
    fn without_an_error_it_is_the_last_line_that_says_something() {
        assert_eq!(
            why("loading\nmain: exiting due to model loading failure\n\n"),
            "main: exiting due to model loading failure"
        );
        assert_eq!(
            why("usage: vllm\nvllm: error: unrecognized arguments: --no-such-flag\n"),
            "vllm: error: unrecognized arguments: --no-such-flag"
        );
        assert_eq!(why(""), "");
        assert_eq!(why("\n  \n"), "");
    }

    #[test]
    fn an_excerpt_has_the_cause_though_it_lies_before() {
        let rest: String = (0..200).map(|i| format!("  File \"x.py\", line {i}\n")).collect();
        let excerpt = excerpt(&format!("ValueError: \x1b[31mno memory\n{rest}"), 500);
        assert!(excerpt.len() <= 500, "{}", excerpt.len());
        assert!(excerpt.starts_with("ValueError: no memory\n"), "{excerpt}");
        assert!(excerpt.ends_with("line 199"), "{excerpt}");
        assert_eq!(why(&excerpt), "ValueError: no memory");
        assert_eq!(super::excerpt("one\ntwo\n", 100), "one\ntwo");
    }
}
