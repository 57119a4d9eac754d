//! Text in lines that fit a width in columns, and numbers in runs.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A text in pieces, the first of at most `width` columns, the others `hang` less; parted after a blank or a
/// comma where there is one in the second half.
pub fn pieces(text: &str, width: usize, hang: usize) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut room = width;
    while rest.width() > room {
        let (mut used, mut end, mut good) = (0, 0, None);
        for (at, c) in rest.char_indices() {
            used += c.width().unwrap_or(0);
            if used > room {
                break;
            }
            end = at + c.len_utf8();
            if used > room / 2 && matches!(c, ' ' | ',') {
                good = Some(end);
            }
        }
        let at = good.unwrap_or(end).max(rest.chars().next().map_or(0, char::len_utf8));
        let (piece, left) = rest.split_at(at);
        out.push(piece);
        rest = left;
        room = width.saturating_sub(hang).max(1);
    }
    if out.is_empty() || !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// Each line of a text in lines of at most `width` columns, broken at blanks, and within a word that is longer than a
/// line. A line keeps the blanks that it begins with; what goes on below it is `hang` columns in.
pub fn lines(text: &str, width: usize, hang: usize) -> Vec<String> {
    let mut out = Vec::new();
    for paragraph in text.lines() {
        let body = paragraph.trim_start_matches(' ');
        let indent = paragraph.len() - body.len();
        // Of a line that goes on.
        let room = width.saturating_sub(hang).max(1);
        let mut line = " ".repeat(indent);
        let (mut used, mut is_bare) = (indent, true);
        for word in body.split(' ') {
            let parts = if is_bare {
                pieces(word, width.saturating_sub(used).max(1), hang.saturating_sub(used))
            } else if used + 1 + word.width() <= width {
                vec![word]
            } else {
                pieces(word, room, 0)
            };
            for (n, part) in parts.into_iter().enumerate() {
                let long = part.width();
                // Two parts of a word never stand side by side.
                if n > 0 || (!is_bare && used + 1 + long > width) {
                    let whole = std::mem::replace(&mut line, " ".repeat(hang));
                    out.push(whole.trim_end().to_owned());
                    (used, is_bare) = (hang, true);
                }
                if !is_bare {
                    line.push(' ');
                    used += 1;
                }
                line.push_str(part);
                used += long;
                // Blanks at the break are not carried over.
                is_bare &= part.is_empty();
            }
        }
        out.push(line.trim_end().to_owned());
    }
    out
}

/// A word of at most `width` columns, with `…` in its middle where it is longer.
pub fn middle_cut(word: &str, width: usize) -> String {
    if word.width() <= width {
        return word.to_owned();
    }
    let room = width.saturating_sub(1);
    let (head, tail) = (room.div_ceil(2), room / 2);
    let taken = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        let fits = |c: &char| {
            used += c.width().unwrap_or(0);
            used <= room
        };
        chars.take_while(fits).collect::<Vec<char>>()
    };
    let head = taken(&mut word.chars(), head);
    let tail = taken(&mut word.chars().rev(), tail);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

/// Numbers as people write them: `0-3,6`.
pub fn ranges(mut numbers: Vec<u32>) -> String {
    numbers.sort_unstable();
    numbers.dedup();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(n) => *last = n,
            _ => parts.push((n, n)),
        }
    }
    let text = |&(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

/// GPUs by their labels: `GPU 0-3,6`; instances of divided GPUs are no numbers: `GPU 2:0,2:1`.
pub fn gpus(labels: &[String]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let numbers: Result<Vec<u32>, _> = labels.iter().map(|label| label.parse()).collect();
    format!("GPU {}", numbers.map_or_else(|_| labels.join(","), ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_parted_where_it_can_be() {
        assert_eq!(pieces("", 20, 3), [""]);
        assert_eq!(pieces("ワイド文字", 4, 0), ["ワイ", "ド文", "字"]);
    }

    #[test]
    fn a_line_goes_on_indented_and_no_word_of_it_is_broken() {
        let text = "  +args = [\"--model\", \"--max-num-seqs=64\"]";
        assert_eq!(lines(text, 24, 4), ["  +args = [\"--model\",", "    \"--max-num-seqs=64\"]"]);
        assert_eq!(lines("a  b", 10, 2), ["a  b"], "blanks within a line stay");
        assert_eq!(lines("ab      cd", 6, 2), ["ab", "  cd"], "and not at its end");
        assert_eq!(lines("x abcdefgh", 6, 2), ["x abcd", "  efgh"]);
        assert_eq!(lines("one\n\ntwo", 10, 0), ["one", "", "two"]);
        assert_eq!(lines("", 10, 2), Vec::<String>::new());
        assert_eq!(lines("    deep enough", 10, 2), ["    deep", "  enough"]);
    }

    #[test]
    fn the_parts_of_a_long_word_make_the_word() {
        for long in 70..=170 {
            let word = "a".repeat(long);
            let told = lines(&word, 80, 6);
            let parts: String = told.iter().map(|line| line.trim_start()).collect();
            assert_eq!(parts, word, "{told:?}");
            assert!(told.iter().all(|line| line.width() <= 80), "{told:?}");
            assert_eq!(told.len() == 1, long <= 80, "{told:?}");
        }
        assert_eq!(lines("abcdefghij k", 8, 4), ["abcdefgh", "    ij k"]);
    }

    #[test]
    fn a_long_name_keeps_its_ends() {
        assert_eq!(middle_cut("chat", 4), "chat");
        assert_eq!(middle_cut("chat-of-the-north", 8), "chat…rth");
        assert_eq!(middle_cut("ワイド文字", 5), "ワ…字");
    }

    #[test]
    fn numbers_are_in_runs() {
        assert_eq!(ranges(vec![3, 0, 1, 2, 6]), "0-3,6");
        let labels = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(gpus(&labels(&["1", "0", "2", "5"])), "GPU 0-2,5");
        assert_eq!(gpus(&labels(&["7"])), "GPU 7");
        assert_eq!(gpus(&labels(&["7:0", "7:1"])), "GPU 7:0,7:1");
        assert_eq!(gpus(&[]), "");
    }
}
