//! The audit trail: who asked for what, when, why, and what came of it. JSON lines in one file, each
//! chained to the one before by a hash, so that an edit, a removal or another order is found.
//!
//! A line is one JSON object whose last field is `hash`: BLAKE3 over the hash before and the text of
//! the line up to that field. Beside it `audit.head` names the last line, so that lines cut off at the
//! end are missed too, as is the file itself: whoever opens such a trail writes a line of it (`gap`) that
//! [`verify`] tells for ever. The journal's checkpoints name a line, too ([`Known`]), by which a trail that was
//! removed or made anew with its head is missed.
//! Somebody who may write all of them can make a new chain; copy the head elsewhere
//! (`gpudeck audit verify --output json`) if that must be noticed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::JournalError;
use crate::base::{Timestamp, text};

/// The file's name, in the deck's state directory.
pub const FILE: &str = "audit.jsonl";

/// Names the last line: `SEQUENCE HASH`.
const HEAD_FILE: &str = "audit.head";

/// The event of a line that says that lines are missing before it.
const GAP: &str = "gap";

/// Why the end of a trail cannot be believed.
const HEADLESS: &str = "audit.head, which names the last line, is gone or says nothing: lines may be missing at the end";

/// Why a trail that is not there is missed.
const GONE: &str = "the trail is gone: the journal tells of what somebody asked for";

/// Longest line that is written or read, in bytes.
const MAX_LINE_BYTES: usize = 64 << 10;

/// The hash before the first line.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One line, as read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Its number, from 1.
    pub seq: u64,
    /// What was written: `at`, `who`, `what`, …
    #[serde(flatten)]
    pub entry: Value,
    /// Its hash.
    pub hash: String,
}

/// The open trail.
pub struct Audit {
    path: PathBuf,
    file: File,
    length: u64,
    next_seq: u64,
    hash: String,
    /// A write failed in the middle and could not be taken back.
    broken: bool,
    /// Lines are missing, and that is not written down yet.
    gap: Option<Gap>,
    /// What was missing when it was opened.
    found: Option<String>,
}

/// The line that stands where lines are missing.
#[derive(Clone, Debug, Serialize)]
struct Gap {
    at: Timestamp,
    event: &'static str,
    /// What [`HEAD_FILE`] said.
    head: Head,
    result: String,
}

impl Gap {
    fn now(head: Head, result: String) -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let at = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        Self { at: Timestamp(at), event: GAP, head, result }
    }
}

/// A line of the trail by its number and hash: the one that was written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

/// What is known of a trail from elsewhere: from the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// A line that was written.
    pub mark: Option<Head>,
    /// Things were done already that somebody asked for: there must be a trail.
    pub is_begun: bool,
}

impl Head {
    /// None: there is none, or it says nothing.
    fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(HEAD_FILE)).ok()?;
        let (seq, hash) = text.trim().split_once(' ')?;
        Some(Self { seq: seq.parse().ok()?, hash: hash.to_owned() })
    }
}

fn missing_words(count: u64, last: u64) -> String {
    let noun = if count == 1 { "line is" } else { "lines are" };
    format!("{count} {noun} missing at the end: the last one was number {last}")
}

#[derive(Serialize)]
struct Out<'a, T> {
    seq: u64,
    #[serde(flatten)]
    entry: &'a T,
}

fn chained(previous: &str, text: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous.as_bytes());
    hasher.update(text.as_bytes());
    hasher.finalize().to_hex().to_string()
}

impl Audit {
    /// Opens (or begins) the trail in `dir`, whose lock the caller holds. What stands after the last line's end was
    /// never acknowledged and is cut off. Where the end is not what was written last, or not what is known of it, that
    /// is written down before anything else; the rest is not judged here.
    pub fn open(dir: &Path, known: &Known) -> Result<Self, JournalError> {
        let path = dir.join(FILE);
        let is_new = !path.exists();
        let file = open_file(&path)?;
        let mut audit = Self {
            path,
            file,
            length: 0,
            next_seq: 1,
            hash: START.to_owned(),
            broken: false,
            gap: None,
            found: None,
        };
        let head = Head::read(dir);
        let at_head = audit.find_end(head.as_ref().map(|h| h.seq))?;
        let at_mark = audit.find_end(known.mark.as_ref().map(|m| m.seq))?;
        let is_fresh = head.is_none() && audit.length == 0;
        audit.gap = match head {
            Some(head) => audit.gap_to(head, at_head),
            None => audit.gap_without_head(),
        };
        if audit.gap.is_none() {
            audit.gap = match known.mark.clone() {
                Some(mark) => audit.gap_to(mark, at_mark),
                None if known.is_begun && audit.next_seq == 1 => Some(audit.gap_of_all()),
                None => None,
            };
        }
        audit.found = audit.gap.as_ref().map(|g| g.result.clone());
        if is_fresh && audit.gap.is_none() {
            // Before the first line: one without a head has lost it.
            audit.note_head(0);
        }
        if is_new {
            sync_dir(dir);
        }
        // On a full disk it waits for the next line, which is not written without it.
        if let Err(error) = audit.write_gap() {
            tracing::error!(%error, "lines are missing in the audit trail, and that is not written down");
        }
        Ok(audit)
    }

    /// All lines, oldest first.
    pub fn lines(&self) -> Result<Vec<Line>, JournalError> {
        self.path.parent().map_or(Ok(Vec::new()), read)
    }

    /// The line that was written last: for [`Known::mark`] of a later life.
    pub fn last(&self) -> Head {
        Head { seq: self.next_seq - 1, hash: self.hash.clone() }
    }

    /// What was missing at the end of the trail when it was opened.
    pub fn found_gap(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// What is missing if `head` was the last line; `at_head` is the hash of the line with its number. A head
    /// that is behind is none: it is written after the line.
    fn gap_to(&self, head: Head, at_head: Option<String>) -> Option<Gap> {
        let last = self.next_seq - 1;
        let result = if head.seq > last {
            missing_words(head.seq - last, head.seq)
        } else if head.seq > 0 && at_head.as_ref() != Some(&head.hash) {
            format!("line {} is not the one that stood here", head.seq)
        } else {
            return None;
        };
        Some(Gap::now(head, result))
    }

    /// What is missing if nothing names the last line: before the first one that was done.
    fn gap_without_head(&self) -> Option<Gap> {
        (self.length > 0).then(|| Gap::now(self.last(), HEADLESS.to_owned()))
    }

    /// There is no trail, and there was one.
    fn gap_of_all(&self) -> Gap {
        Gap::now(self.last(), GONE.to_owned())
    }

    fn write_gap(&mut self) -> Result<(), JournalError> {
        if let Some(gap) = self.gap.clone() {
            self.write(&gap)?;
            self.gap = None;
        }
        Ok(())
    }

    /// Where the last whole line ends, and what it says of itself; the hash of line number `wanted`.
    fn find_end(&mut self, wanted: Option<u64>) -> Result<Option<String>, JournalError> {
        let path = self.path.clone();
        let (mut end, mut last, mut found) = (0, None, None);
        let file = File::open(&path).map_err(JournalError::io("cannot open", &path))?;
        for_each_line(&path, BufReader::new(file), |number, bytes, line| {
            end = bytes;
            if let Some(text) = line {
                last = Some(text.to_owned());
                if Some(number) == wanted {
                    found = serde_json::from_str::<Line>(text).ok().map(|line| line.hash);
                }
            }
            Ok(())
        })?;
        self.file.set_len(end).map_err(JournalError::io("cannot cut", &path))?;
        self.length = end;
        if let Some(line) = last.as_deref().and_then(|text| serde_json::from_str::<Line>(text).ok())
        {
            self.next_seq = line.seq.saturating_add(1);
            self.hash = line.hash;
        }
        Ok(found)
    }

    /// Appends one line; it is on disk when this returns its number.
    pub fn append<T: Serialize>(&mut self, entry: &T) -> Result<u64, JournalError> {
        self.write_gap()?;
        self.write(entry)
    }

    fn write<T: Serialize>(&mut self, entry: &T) -> Result<u64, JournalError> {
        if self.broken {
            // The file is opened and read again: what stands there is what counts.
            self.file = open_file(&self.path)?;
            self.find_end(None)?;
            self.file.sync_data().map_err(JournalError::io("cannot sync", &self.path))?;
            self.broken = false;
        }
        let seq = self.next_seq;
        let json = serde_json::to_string(&Out { seq, entry })
            .map_err(|e| JournalError::Record { what: e.to_string() })?;
        let Some(open) = json.strip_suffix('}').filter(|j| j.len() < MAX_LINE_BYTES - 128) else {
            return Err(JournalError::Record { what: "it is too long for the audit trail".into() });
        };
        let hash = chained(&self.hash, open);
        let line = format!("{open},\"hash\":\"{hash}\"}}\n");
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            self.broken = self.file.set_len(self.length).is_err();
            return Err(JournalError::io("cannot write", &self.path)(error));
        }
        if let Err(error) = self.file.sync_data() {
            // Whether it is on the disk nobody knows, and this open file does not say so again.
            let _ = self.file.set_len(self.length);
            self.broken = true;
            return Err(JournalError::io("cannot sync", &self.path)(error));
        }
        self.length += line.len() as u64;
        self.next_seq += 1;
        self.hash = hash;
        self.note_head(seq);
        Ok(seq)
    }

    /// It may be one behind after a crash, which `verify` knows.
    fn note_head(&self, seq: u64) {
        let head = self.path.with_file_name(HEAD_FILE);
        if let Err(error) = write_head(&head, seq, &self.hash) {
            tracing::warn!(path = %head.display(), %error, "the head of the audit trail is behind");
        }
    }
}

fn open_file(path: &Path) -> Result<File, JournalError> {
    let mut open = OpenOptions::new();
    open.create(true).append(true).read(true).mode(0o600);
    open.open(path).map_err(JournalError::io("cannot open", path))
}

/// Lets names in the directory last. Where that fails, what is missing after a power cut is told.
fn sync_dir(dir: &Path) {
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        tracing::warn!(dir = %dir.display(), %error, "the audit trail's directory is not synced");
    }
}

fn write_head(path: &Path, seq: u64, hash: &str) -> io::Result<()> {
    let aside = path.with_extension("head.new");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(format!("{seq} {hash}\n").as_bytes())?;
    // After a crash an empty one would look like somebody's work.
    file.sync_data()?;
    fs::rename(&aside, path)?;
    if let Some(dir) = path.parent() {
        sync_dir(dir);
    }
    Ok(())
}

/// Calls `look` with the number, the end in bytes of all that is whole, and the text of each line; the text of a last
/// line without its end is none, as is one that is no text.
fn for_each_line(
    path: &Path,
    mut reader: impl BufRead,
    mut look: impl FnMut(u64, u64, Option<&str>) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    let (mut end, mut whole_end) = (0_u64, 0_u64);
    for number in 1_u64.. {
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(MAX_LINE_BYTES as u64)
            .read_until(b'\n', &mut line)
            .map_err(JournalError::io("cannot read", path))?;
        if read == 0 {
            return Ok(());
        }
        end += read as u64;
        let whole = line.pop() == Some(b'\n');
        if whole {
            whole_end = end;
        }
        look(number, whole_end, std::str::from_utf8(&line).ok().filter(|_| whole))?;
    }
    Ok(())
}

/// The lines of a trail, oldest first; none where there is no file. Lines that are no JSON are left
/// out: [`verify`] is what judges.
pub fn read(dir: &Path) -> Result<Vec<Line>, JournalError> {
    let path = dir.join(FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(JournalError::io("cannot open", &path)(e)),
    };
    let mut lines = Vec::new();
    for_each_line(&path, BufReader::new(file), |_, _, text| {
        lines.extend(text.and_then(|t| serde_json::from_str(t).ok()));
        Ok(())
    })?;
    Ok(lines)
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Lines that follow each other without a break from the first on.
    pub lines: u64,
    /// The hash of the last of them: write it down elsewhere to prove later what stood here.
    pub head: Option<String>,
    /// The first line (from 1) at which something is wrong, and what.
    pub problem: Option<(u64, String)>,
    /// Lines that say that others are missing before them, and what: that was found when the trail was opened.
    pub gaps: Vec<(u64, String)>,
}

impl AuditReport {
    /// The first thing that is wrong: a line, and what.
    pub fn worst(&self) -> Option<(u64, &str)> {
        let all = self.gaps.first().into_iter().chain(&self.problem);
        all.map(|(line, what)| (*line, what.as_str())).min()
    }
}

/// Checks the whole chain, and that a line that is known from elsewhere stands in it (`mark`, read before); takes no
/// lock and changes nothing.
pub fn verify(dir: &Path, mark: Option<&Head>) -> Result<AuditReport, JournalError> {
    let path = dir.join(FILE);
    // Read first: a line that is appended meanwhile must not look like a missing one.
    let head = Head::read(dir);
    let mut report = AuditReport::default();
    let file = match File::open(&path) {
        Ok(file) => Some(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(JournalError::io("cannot open", &path)(e)),
    };
    let mut hash = START.to_owned();
    if let Some(file) = file {
        for_each_line(&path, BufReader::new(file), |number, _, text| {
            if report.problem.is_some() {
                return Ok(());
            }
            match check_line(number, text, &hash) {
                Ok(line) => {
                    report.gaps.extend(gap_in(&line));
                    hash = line.hash;
                    report.lines = number;
                    let named = [(head.as_ref(), HEAD_FILE), (mark, "the journal")];
                    for (named, by) in named {
                        if named.is_some_and(|named| named.seq == number && named.hash != hash) {
                            let words = format!("it is not the line that stood here ({by})");
                            report.problem.get_or_insert((number, words));
                        }
                    }
                }
                Err(words) => report.problem = Some((number, words)),
            }
            Ok(())
        })?;
    }
    if report.problem.is_none() {
        let last = head.iter().chain(mark).map(|named| named.seq).max().unwrap_or_default();
        report.problem = if last > report.lines {
            Some((report.lines + 1, missing_words(last - report.lines, last)))
        } else if head.is_none() && report.lines > 0 {
            Some((report.lines, HEADLESS.to_owned()))
        } else {
            None
        };
    }
    report.head = (report.lines > 0).then_some(hash);
    Ok(report)
}

/// What a line tells of lines that are missing before it.
fn gap_in(line: &Line) -> Option<(u64, String)> {
    (line.entry.get("event")?.as_str()? == GAP).then(|| {
        let what = line.entry.get("result").and_then(Value::as_str);
        let what = text::clean(what.unwrap_or("lines are missing"), 200);
        (line.seq, format!("it was found when the trail was opened: {what}"))
    })
}

/// Line `number` if it is the one that follows `previous`.
fn check_line(number: u64, text: Option<&str>, previous: &str) -> Result<Line, String> {
    let text = text.ok_or("it is torn, or not text")?;
    let line: Line = serde_json::from_str(text).map_err(|_| "it is not a line of the trail")?;
    if line.seq != number {
        return Err(format!("line {number} was expected here, it says that it is {}", line.seq));
    }
    let end = format!(",\"hash\":\"{}\"}}", line.hash);
    let open = text.strip_suffix(&end).ok_or("its hash is not where it belongs")?;
    if chained(previous, open) != line.hash {
        return Err("it was changed, or does not follow the line before it".to_owned());
    }
    Ok(line)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use serde_json::json;

    use super::*;

    fn open(dir: &Path) -> Result<Audit, JournalError> {
        Audit::open(dir, &Known::default())
    }

    fn trail(count: usize) -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let mut audit = open(dir.path()).unwrap();
        for n in 0..count {
            audit
                .append(&json!({ "who": { "user": "ada" }, "what": n, "why": "a \"b\"\n" }))
                .unwrap();
        }
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        (dir, text.lines().map(str::to_owned).collect())
    }

    fn problem_of(dir: &Path, lines: &[String]) -> Option<u64> {
        let text: String = lines.iter().flat_map(|l| [l.as_str(), "\n"]).collect();
        fs::write(dir.join(FILE), text).unwrap();
        verify(dir, None).unwrap().problem.map(|(line, _)| line)
    }

    #[test]
    fn an_edit_a_removal_and_another_order_are_found_with_their_line() {
        let (dir, lines) = trail(6);
        assert_eq!(problem_of(dir.path(), &lines), None);
        assert_eq!(read(dir.path()).unwrap().len(), 6);
        for at in 0..6 {
            let mut edited = lines.clone();
            edited[at] = edited[at].replace("ada", "bob");
            assert_eq!(problem_of(dir.path(), &edited), Some(at as u64 + 1), "edit of {at}");
            let mut removed = lines.clone();
            removed.remove(at);
            assert_eq!(problem_of(dir.path(), &removed), Some(at as u64 + 1), "removal of {at}");
            let mut doubled = lines.clone();
            doubled.insert(at, lines[at].clone());
            assert_eq!(problem_of(dir.path(), &doubled), Some(at as u64 + 2), "double of {at}");
            if at < 5 {
                let mut swapped = lines.clone();
                swapped.swap(at, at + 1);
                assert_eq!(problem_of(dir.path(), &swapped), Some(at as u64 + 1), "swap at {at}");
            }
        }
        assert_eq!(problem_of(dir.path(), &lines), None);
    }

    #[test]
    fn any_flipped_byte_is_found() {
        let (dir, lines) = trail(3);
        let whole = lines.join("\n") + "\n";
        for at in 0..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 1;
            fs::write(dir.path().join(FILE), &bytes).unwrap();
            let line = whole[..at].matches('\n').count() as u64 + 1;
            assert_eq!(verify(dir.path(), None).unwrap().problem.unwrap().0, line, "byte {at}");
        }
    }

    #[test]
    fn goes_on_after_a_torn_line_and_after_a_restart() {
        let (dir, lines) = trail(2);
        fs::write(dir.path().join(FILE), format!("{}\n{}\n{{\"seq\":3,", lines[0], lines[1]))
            .unwrap();
        let mut audit = open(dir.path()).unwrap();
        assert_eq!(audit.append(&json!({ "what": "again" })).unwrap(), 3);
        let report = verify(dir.path(), None).unwrap();
        assert_eq!((report.lines, report.problem), (3, None));
    }

    #[test]
    fn lines_cut_off_at_the_end_are_told_for_ever() {
        for kept in [0, 3, 5] {
            let (dir, lines) = trail(6);
            assert_eq!(problem_of(dir.path(), &lines[..kept]), Some(kept as u64 + 1));
            let mut audit = open(dir.path()).unwrap();
            let found = audit.found_gap().unwrap();
            assert!(found.contains(&format!("{} line", 6 - kept)), "{found}");
            audit.append(&json!({ "what": "goes on" })).unwrap();
            drop(audit);
            let mut audit = open(dir.path()).unwrap();
            assert_eq!(audit.found_gap(), None, "it is written down once");
            audit.append(&json!({ "what": "goes on" })).unwrap();
            let report = verify(dir.path(), None).unwrap();
            assert_eq!((report.lines, &report.problem), (kept as u64 + 3, &None));
            let (line, what) = report.worst().unwrap();
            assert_eq!(line, kept as u64 + 1);
            assert!(what.contains("the last one was number 6"), "{what}");
            let read = read(dir.path()).unwrap();
            assert!(lines[5].contains(read[kept].entry["head"]["hash"].as_str().unwrap()));
        }
    }

    #[test]
    fn another_line_in_place_of_the_last_is_told_for_ever() {
        let (dir, lines) = trail(3);
        fs::write(dir.path().join(FILE), lines[..2].join("\n") + "\n").unwrap();
        let head = fs::read(dir.path().join(HEAD_FILE)).unwrap();
        let second: Line = serde_json::from_str(&lines[1]).unwrap();
        write_head(&dir.path().join(HEAD_FILE), 2, &second.hash).unwrap();
        let mut forged = open(dir.path()).unwrap();
        for _ in 0..2 {
            forged.append(&json!({ "what": "something else" })).unwrap();
        }
        fs::write(dir.path().join(HEAD_FILE), head).unwrap();
        open(dir.path()).unwrap().append(&json!({ "what": "goes on" })).unwrap();
        let report = verify(dir.path(), None).unwrap();
        assert_eq!(report.worst().unwrap().0, 5, "{report:?}");
    }

    #[test]
    fn a_crash_between_a_line_and_the_head_is_no_gap() {
        let (dir, _) = trail(4);
        let behind = fs::read(dir.path().join(HEAD_FILE)).unwrap();
        open(dir.path()).unwrap().append(&json!({ "what": "the last" })).unwrap();
        fs::write(dir.path().join(HEAD_FILE), behind).unwrap();
        assert_eq!(open(dir.path()).unwrap().found_gap(), None);
        let report = verify(dir.path(), None).unwrap();
        assert_eq!((report.lines, report.worst()), (5, None));
        // Also between the first line and its head.
        let (dir, _) = trail(0);
        let behind = fs::read(dir.path().join(HEAD_FILE)).unwrap();
        open(dir.path()).unwrap().append(&json!({ "what": "the first" })).unwrap();
        fs::write(dir.path().join(HEAD_FILE), behind).unwrap();
        assert_eq!(open(dir.path()).unwrap().found_gap(), None);
        assert_eq!(verify(dir.path(), None).unwrap().worst(), None);
    }

    #[test]
    fn a_trail_whose_head_is_gone_is_told_for_ever() {
        for left in [Some(""), None] {
            let (dir, lines) = trail(4);
            fs::write(dir.path().join(FILE), lines[..3].join("\n") + "\n").unwrap();
            match left {
                Some(text) => fs::write(dir.path().join(HEAD_FILE), text).unwrap(),
                None => fs::remove_file(dir.path().join(HEAD_FILE)).unwrap(),
            }
            assert_eq!(verify(dir.path(), None).unwrap().worst(), Some((3, HEADLESS)));
            let mut audit = open(dir.path()).unwrap();
            assert_eq!(audit.found_gap(), Some(HEADLESS));
            audit.append(&json!({ "what": "goes on" })).unwrap();
            let report = verify(dir.path(), None).unwrap();
            assert!(report.worst().is_some_and(|(line, _)| line == 4), "{report:?}");
        }
    }

    #[test]
    fn a_trail_that_was_removed_or_made_anew_with_its_head_is_told_for_ever() {
        let known = |mark| Known { mark, is_begun: true };
        for (kept, marked) in [(0, true), (0, false), (1, true), (3, true)] {
            let (dir, lines) = trail(5);
            let mark = open(dir.path()).unwrap().last();
            assert_eq!(mark.seq, 5);
            for file in [FILE, HEAD_FILE] {
                fs::remove_file(dir.path().join(file)).unwrap();
            }
            if kept > 0 {
                fs::write(dir.path().join(FILE), lines[..kept].join("\n") + "\n").unwrap();
                let last: Line = serde_json::from_str(&lines[kept - 1]).unwrap();
                write_head(&dir.path().join(HEAD_FILE), last.seq, &last.hash).unwrap();
            }
            let mark = Some(mark).filter(|_| marked);
            if let Some(mark) = &mark {
                let report = verify(dir.path(), Some(mark)).unwrap();
                assert_eq!(report.worst().unwrap().0, kept as u64 + 1);
            }
            let mut audit = Audit::open(dir.path(), &known(mark)).unwrap();
            assert!(audit.found_gap().is_some(), "{kept} {marked}");
            audit.append(&json!({ "what": "goes on" })).unwrap();
            let mark = audit.last();
            drop(audit);
            let audit = Audit::open(dir.path(), &known(Some(mark.clone()))).unwrap();
            assert_eq!(audit.found_gap(), None, "it is written down once");
            let report = verify(dir.path(), Some(&mark)).unwrap();
            assert_eq!(report.worst().unwrap().0, kept as u64 + 1, "{report:?}");
        }
        // Another chain of the same length.
        let (dir, _) = trail(2);
        let mut mark = open(dir.path()).unwrap().last();
        assert_eq!(verify(dir.path(), Some(&mark)).unwrap().worst(), None);
        mark.hash.replace_range(..1, "-");
        assert_eq!(verify(dir.path(), Some(&mark)).unwrap().worst().unwrap().0, 2);
        let audit = Audit::open(dir.path(), &known(Some(mark))).unwrap();
        assert!(audit.found_gap().unwrap().contains("not the one that stood here"));
    }

    #[test]
    fn one_line_without_a_head_has_lost_it() {
        let (dir, lines) = trail(4);
        fs::write(dir.path().join(FILE), format!("{}\n", lines[0])).unwrap();
        fs::remove_file(dir.path().join(HEAD_FILE)).unwrap();
        assert_eq!(verify(dir.path(), None).unwrap().worst(), Some((1, HEADLESS)));
        assert_eq!(open(dir.path()).unwrap().found_gap(), Some(HEADLESS));
    }

    #[test]
    fn a_whole_line_that_is_no_text_is_not_cut_off() {
        let (dir, _) = trail(2);
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 5;
        bytes[at] = 0xff;
        fs::write(&path, &bytes).unwrap();
        open(dir.path()).unwrap().append(&json!({ "what": "goes on" })).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(&bytes));
        assert_eq!(verify(dir.path(), None).unwrap().worst().unwrap().0, 2);
    }

    #[test]
    fn no_trail_is_a_good_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(verify(dir.path(), None).unwrap(), AuditReport::default());
    }
}
