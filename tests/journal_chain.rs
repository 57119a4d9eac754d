//! The journal on a real disk: torn, flipped, full, opened twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpudeck::base::Hint;
use gpudeck::journal::{Journal, JournalError, RecordKind, verify};
use proptest::prelude::*;
use serde_json::{Value, json};

fn segment(dir: &Path, n: u32) -> PathBuf {
    dir.join(format!("journal.{n:06}.jsonl"))
}

fn filled(dir: &Path, count: u64) -> Vec<u8> {
    let (mut journal, _) = Journal::open(dir).unwrap();
    for n in 0..count {
        journal.append(&[json!({ "event": n, "text": "line\nend \u{0} ü" })]).unwrap();
    }
    drop(journal);
    fs::read(segment(dir, 1)).unwrap()
}

#[test]
fn a_last_record_torn_at_any_byte_is_cut_and_kept_aside() {
    let source = tempfile::tempdir().unwrap();
    let whole = filled(source.path(), 5);
    let body = &whole[..whole.len() - 1];
    let last = body.iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in last..whole.len() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(segment(dir.path(), 1), &whole[..cut]).unwrap();
        let (mut journal, records) = Journal::open(dir.path()).unwrap();
        assert_eq!(records.len(), 4, "cut at {cut}");
        let aside = dir.path().join("journal.torn-1");
        assert_eq!(fs::read(&aside).unwrap_or_default(), &whole[last..cut], "cut at {cut}");
        assert_eq!(journal.append(&[json!("again")]).unwrap(), 5);
        drop(journal);
        let (_, records) = Journal::open(dir.path()).unwrap();
        assert_eq!(records.last().unwrap().value, json!("again"));
        assert!(verify(dir.path()).unwrap().is_good());
    }
}

#[test]
fn any_flipped_byte_before_the_last_line_end_is_refused_with_its_line() {
    let source = tempfile::tempdir().unwrap();
    let whole = filled(source.path(), 4);
    // The very last byte is the line end of the last record: without it the record is torn.
    for at in 0..whole.len() - 1 {
        for bit in [0x01_u8, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= bit;
            let dir = tempfile::tempdir().unwrap();
            fs::write(segment(dir.path(), 1), &bytes).unwrap();
            let line = whole[..at].split(|b| *b == b'\n').count() as u64;
            match Journal::open(dir.path()) {
                Err(error @ JournalError::Corrupt { line: said, .. }) => {
                    assert_eq!(said, line, "byte {at}: {error}");
                    assert!(error.hint().is_some());
                }
                // The flip may hit the digit of the version.
                Err(JournalError::Version { .. }) => assert_eq!(line, 1),
                other => panic!("byte {at} of line {line}: {:?}", other.map(|(_, r)| r.len())),
            }
            assert!(!verify(dir.path()).unwrap().is_good());
            assert_eq!(fs::read(segment(dir.path(), 1)).unwrap(), bytes, "nothing was changed");
        }
    }
}

#[test]
fn lost_swapped_and_doubled_records_are_found() {
    let source = tempfile::tempdir().unwrap();
    let whole = String::from_utf8(filled(source.path(), 4)).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    for order in [[0, 1, 3, 4].as_slice(), &[0, 2, 1, 3, 4], &[0, 1, 1, 2], &[0, 1, 2, 4], &[1, 2]]
    {
        let dir = tempfile::tempdir().unwrap();
        let text = order.iter().map(|i| lines[*i]).collect::<Vec<_>>().join("\n") + "\n";
        fs::write(segment(dir.path(), 1), text).unwrap();
        assert!(
            matches!(Journal::open(dir.path()), Err(JournalError::Corrupt { .. })),
            "{order:?}"
        );
    }
}

#[test]
fn an_unknown_version_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let text = String::from_utf8(filled(dir.path(), 1)).unwrap();
    fs::write(segment(dir.path(), 1), text.replace("gpudeck-journal 3", "gpudeck-journal 4"))
        .unwrap();
    let error = Journal::open(dir.path()).err().unwrap();
    assert!(matches!(error, JournalError::Version { found: 4, .. }), "{error}");
    assert!(error.hint().unwrap().contains("newer"));
}

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    match Journal::open(dir.path()).err().unwrap() {
        JournalError::Locked { pid, .. } => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other}"),
    }
    drop(journal);
    Journal::open(dir.path()).unwrap();
}

#[test]
fn a_checkpoint_is_where_reading_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path()).unwrap();
    let mut seq = 0;
    for n in 0..8 {
        assert_eq!(journal.append(&[json!(n), json!(n)]).unwrap(), seq + 2);
        assert_eq!(journal.checkpoint(&json!({ "state": n })).unwrap(), seq + 3);
        seq += 3;
    }
    journal.append(&[json!("after")]).unwrap();
    drop(journal);
    let (journal, records) = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.last_seq(), seq + 1);
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].kind, RecordKind::Checkpoint);
    assert_eq!(records[0].value, json!({ "state": 7 }));
    assert_eq!(records[1].read::<String>().unwrap(), "after");
    let report = verify(dir.path()).unwrap();
    assert!(report.is_good());
    assert_eq!(report.segments.len(), 4, "older segments go");
}

/// Four segments, of which the first was removed as the oldest.
fn segmented(dir: &Path) {
    let (mut journal, _) = Journal::open(dir).unwrap();
    for n in 0..4 {
        journal.append(&[json!(n)]).unwrap();
        journal.checkpoint(&json!({ "state": n })).unwrap();
    }
}

#[test]
fn a_missing_segment_is_told_and_the_newest_is_not_done_without() {
    for gone in [vec![3], vec![4], vec![3, 4]] {
        let dir = tempfile::tempdir().unwrap();
        segmented(dir.path());
        assert!(verify(dir.path()).unwrap().is_good());
        for n in &gone {
            fs::remove_file(segment(dir.path(), *n)).unwrap();
        }
        let report = verify(dir.path()).unwrap();
        let problems: Vec<_> = report.segments.iter().filter_map(|s| s.problem.as_ref()).collect();
        let [problem] = problems.as_slice() else { panic!("{gone:?}: {report:#?}") };
        let (first, last) = (gone[0], gone[gone.len() - 1]);
        assert!(
            matches!(problem, JournalError::Missing { from, to, is_newest: false, .. }
                if (*from, *to) == (first, last)),
            "{problem}"
        );
        assert!(problem.hint().unwrap().contains("the present state is whole"));
        // The state is that of the newest segment all the same.
        let (journal, records) = Journal::open(dir.path()).unwrap();
        assert_eq!(records[0].value, json!({ "state": 3 }));
        assert!(matches!(journal.lacks(), Some(JournalError::Missing { .. })));
    }
    for gone in [vec![5], vec![4, 5], vec![2, 3, 4, 5]] {
        let dir = tempfile::tempdir().unwrap();
        segmented(dir.path());
        for n in &gone {
            fs::remove_file(segment(dir.path(), *n)).unwrap();
        }
        assert!(!verify(dir.path()).unwrap().is_good(), "{gone:?}");
        let error = Journal::open(dir.path()).err().expect("an older state");
        assert!(matches!(error, JournalError::Missing { is_newest: true, .. }), "{error}");
        assert!(error.hint().unwrap().contains("take-over"));
    }
    // A head that is behind, lacking or nonsense (a crash, an older gpudeck) hinders nobody, and is mended.
    for head in [None, Some("4\n"), Some("what?")] {
        let dir = tempfile::tempdir().unwrap();
        segmented(dir.path());
        let file = dir.path().join("journal.head");
        match head {
            None => fs::remove_file(&file).unwrap(),
            Some(text) => fs::write(&file, text).unwrap(),
        }
        assert!(verify(dir.path()).unwrap().is_good());
        let (journal, _) = Journal::open(dir.path()).unwrap();
        assert!(journal.lacks().is_none());
        assert_eq!(fs::read_to_string(&file).unwrap(), "5\n");
    }
}

#[test]
fn records_that_are_cut_off_at_the_end_are_missed() {
    for left in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 3);
        assert!(verify(dir.path()).unwrap().is_good());
        let file = segment(dir.path(), 1);
        let whole = fs::read_to_string(&file).unwrap();
        let cut: String = whole.split_inclusive('\n').take(1 + left).collect();
        fs::write(&file, cut).unwrap();
        let report = verify(dir.path()).unwrap();
        let problem = report.segments[0].problem.as_ref().unwrap();
        let words =
            format!("after record {left} there was record 3, which is missing or another one");
        assert!(problem.to_string().ends_with(&words), "{problem}");
        assert!(problem.hint().unwrap().contains("take-over"));
        // A controller says so, and goes on: the hosts keep what is newer.
        let (mut journal, records) = Journal::open(dir.path()).unwrap();
        assert_eq!(records.len(), left);
        assert!(matches!(journal.lacks(), Some(JournalError::CutOff { known: 3, .. })));
        journal.append(&[json!("on")]).unwrap();
        assert!(verify(dir.path()).unwrap().is_good());
    }
    // Another record in the place of the last one; and a file that says nothing hinders nobody.
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3);
    let name = dir.path().join("journal.last");
    let last = fs::read_to_string(&name).unwrap();
    let (seq, link) = last.trim().split_once(' ').unwrap();
    fs::write(&name, format!("{seq} {}\n", link.chars().rev().collect::<String>())).unwrap();
    assert!(!verify(dir.path()).unwrap().is_good());
    for text in ["", "what?", "7"] {
        fs::write(&name, text).unwrap();
        assert!(verify(dir.path()).unwrap().is_good(), "{text}");
        let (journal, _) = Journal::open(dir.path()).unwrap();
        assert!(journal.lacks().is_none());
        assert!(fs::read_to_string(&name).unwrap().starts_with(&last), "it is mended");
    }
}

#[test]
fn a_checkpoint_that_was_cut_off_leaves_the_segment_before_in_use() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3);
    // What a crash between writing and renaming leaves.
    fs::write(dir.path().join("journal.000002.jsonl.new"), "gpudeck-journal 1 dead").unwrap();
    let (mut journal, records) = Journal::open(dir.path()).unwrap();
    assert_eq!(records.len(), 3);
    journal.checkpoint(&json!("state")).unwrap();
    drop(journal);
    let (_, records) = Journal::open(dir.path()).unwrap();
    assert_eq!(records.len(), 1);
    assert!(verify(dir.path()).unwrap().is_good());
}

#[test]
fn a_segment_of_another_journal_is_noticed() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&ours, &theirs] {
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&[dir.path().display().to_string()]).unwrap();
        journal.checkpoint(&json!(1)).unwrap();
    }
    fs::copy(segment(theirs.path(), 2), segment(ours.path(), 2)).unwrap();
    assert!(!verify(ours.path()).unwrap().is_good());
}

/// A real full file system: a tmpfs of a few pages.
#[test]
fn a_full_file_system_leaves_the_journal_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "gpudeck-test"])
        .arg(dir.path())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        let lab = std::env::var("GPUDECK_LAB").is_ok_and(|v| v == "1");
        assert!(!lab, "a tmpfs could not be mounted, which the lab needs");
        eprintln!("skipped: needs root to mount a small tmpfs");
        return;
    }
    let result = std::panic::catch_unwind(|| fill_up(dir.path()));
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    result.unwrap();
}

fn fill_up(dir: &Path) {
    let inner = dir.join("journal");
    let (mut journal, _) = Journal::open(&inner).unwrap();
    let large = "x".repeat(10_000);
    let mut kept = 0;
    let error = loop {
        match journal.append(&[&large]) {
            Ok(seq) => kept = seq,
            Err(error) => break error,
        }
        assert!(kept < 100, "the disk never filled");
    };
    assert!(matches!(error, JournalError::NoSpace { .. }), "{error}");
    assert!(error.hint().unwrap().contains("free space"));
    let length = fs::metadata(segment(&inner, 1)).unwrap().len();
    assert!(matches!(journal.append(&[&large]), Err(JournalError::NoSpace { .. })));
    assert!(matches!(journal.checkpoint(&vec![&large; 30]), Err(JournalError::NoSpace { .. })));
    assert_eq!(fs::metadata(segment(&inner, 1)).unwrap().len(), length);
    // What still fits is taken.
    assert_eq!(journal.append(&["small"]).unwrap(), kept + 1);
    drop(journal);
    let (_, records) = Journal::open(&inner).unwrap();
    assert_eq!(records.len() as u64, kept + 1);
    // A power cut tore a record, and there is no room to keep it.
    let torn = fs::read(segment(&inner, 1)).unwrap();
    let file = OpenOptions::new().append(true).open(segment(&inner, 1)).unwrap();
    (&file).write_all(b"99 torn").unwrap();
    let mut filler = File::create(dir.join("filler")).unwrap();
    while filler.write_all(&[7; 64]).is_ok() {}
    let (_, records) = Journal::open(&inner).unwrap();
    assert_eq!(records.len() as u64, kept + 1);
    assert_eq!(fs::read(segment(&inner, 1)).unwrap(), torn);
    assert!(!inner.join("journal.torn-1").exists(), "no empty file is left");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,8}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_appended_is_read_back(
        batches in prop::collection::vec(prop::collection::vec(any_json(), 0..5), 0..6),
        checkpoint_after in 0_usize..6,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut expected: Vec<Value> = Vec::new();
        for (index, batch) in batches.iter().enumerate() {
            let (mut journal, records) = Journal::open(dir.path()).unwrap();
            let read: Vec<Value> = records.into_iter().map(|r| r.value).collect();
            prop_assert_eq!(&read, &expected);
            journal.append(batch).unwrap();
            expected.extend(batch.iter().cloned());
            if index == checkpoint_after {
                journal.checkpoint(&expected).unwrap();
                expected = vec![Value::from(expected)];
            }
        }
        prop_assert!(verify(dir.path()).unwrap().is_good());
    }
}
