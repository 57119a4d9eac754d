//! What stands below which head, and how many are ready in few letters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use super::{LARGE, SMALL, text};
use crate::tui::fixture::{calm, press, service_name, state};

/// The column in which `word` ends in the row `row`, cells counted.
fn end_of(row: &str, word: &str) -> usize {
    let at = row.find(word).unwrap_or_else(|| panic!("no {word} in {row}"));
    row[..at + word.len()].chars().count()
}

#[test]
fn a_replicas_numbers_stand_below_their_heads() {
    for size in [LARGE, (120, 40)] {
        for (keys, table) in [("2+", "CONDITION"), ("3+", "REPLICAS")] {
            let mut state = state(calm(), size);
            press(&mut state, keys);
            let screen = text(&state);
            let head = screen.lines().find(|l| l.contains(table)).unwrap();
            let row = screen.lines().find(|l| l.contains(" r12-0 ")).unwrap();
            for (title, number) in
                [("REQ/S", "4.3/s"), ("ERRORS", "29.0%"), ("MEAN", "182 ms"), ("SHARE", "10%")]
            {
                assert_eq!(end_of(head, title), end_of(row, number), "{title}\n{screen}");
            }
        }
    }
}

#[test]
fn one_more_than_wanted_is_told_as_such() {
    let mut snapshot = calm();
    snapshot.services.get_mut(&service_name("chat")).unwrap().ready = 4;
    let mut state = state(snapshot, SMALL);
    press(&mut state, "2");
    assert!(text(&state).contains(" 3/3+1 ≥2 "), "{}", text(&state));
    press(&mut state, "3");
    assert!(text(&state).contains("chat 3/3+1 r11→r12"), "{}", text(&state));
}
