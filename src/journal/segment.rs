//! Reading segments: which there are, and what one of them holds.
//!
//! A segment appears under its name only when its header (and checkpoint) is on disk, and records
//! are appended in one write each. So the only honest damage is at the end, of what was never acknowledged: a last
//! line without its end, or with zeros in it, where power failed after the file had grown and before all of its
//! pages were on the disk. Both are *torn*. Anything else is corruption and is refused.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::format::{
    BadHeader, Header, Link, MAX_LINE_BYTES, Record, RecordKind, parse_header, parse_record,
};
use super::{JournalError, head};

/// The file name of a segment.
pub fn file_name(segment: u32) -> String {
    format!("journal.{segment:06}.jsonl")
}

/// The segments of a directory in order.
pub fn list(dir: &Path) -> Result<Vec<(u32, PathBuf)>, JournalError> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).map_err(JournalError::io("cannot read", dir))?;
    for entry in entries {
        let entry = entry.map_err(JournalError::io("cannot read", dir))?;
        let name = entry.file_name();
        let Some(number) = name
            .to_str()
            .and_then(|n| n.strip_prefix("journal.")?.strip_suffix(".jsonl")?.parse().ok())
        else {
            continue;
        };
        found.push((number, entry.path()));
    }
    found.sort_unstable();
    Ok(found)
}

/// What is missing between the segments that are there, and after them up to the newest that was written down
/// (`head`). Only the oldest are ever removed, so a gap is damage.
pub(super) fn missing(
    dir: &Path,
    segments: &[(u32, PathBuf)],
    head: Option<u32>,
) -> Vec<JournalError> {
    let gap =
        |from, to, is_newest| JournalError::Missing { dir: dir.to_owned(), from, to, is_newest };
    let pairs = segments.iter().zip(segments.iter().skip(1));
    let between = pairs.map(|((before, _), (after, _))| (before.saturating_add(1), *after));
    let mut missing: Vec<JournalError> = between
        .filter(|(next, after)| next < after)
        .map(|(next, after)| gap(next, after - 1, false))
        .collect();
    let last = segments.last().map_or(0, |(number, _)| *number);
    missing.extend(head.filter(|head| *head > last).map(|head| gap(last + 1, head, true)));
    missing
}

/// What is missing at the end of the newest segment, if `last` was the last record that was written down.
pub(super) fn cut_off(
    path: &Path,
    segment: &Segment,
    last: Option<&head::Last>,
) -> Option<JournalError> {
    let last = last?;
    let there = segment.next_seq.saturating_sub(1);
    let is_whole = last.seq < there || last.seq == there && last.link == segment.link.as_str();
    // A header alone has no record whose link it could be.
    let is_empty = last.seq == there && segment.records.is_empty();
    (!is_whole && !is_empty).then(|| JournalError::CutOff {
        file: path.to_owned(),
        last: there,
        known: last.seq,
    })
}

/// One segment as read.
#[derive(Debug)]
pub struct Segment {
    /// Its header.
    pub header: Header,
    /// Its records.
    pub records: Vec<Record>,
    /// The link of its last record.
    pub link: Link,
    /// Number of the next record.
    pub next_seq: u64,
    /// Bytes up to the end of the last whole record.
    pub good_bytes: u64,
    /// Bytes after that: a record that was being written when the power went.
    pub torn: Vec<u8>,
}

/// Reads and checks one segment; `number` is the one in its file name.
pub fn read(path: &Path, number: u32) -> Result<Segment, JournalError> {
    let file = File::open(path).map_err(JournalError::io("cannot open", path))?;
    let mut reader = BufReader::new(file);
    let corrupt =
        |line: u64, what: String| JournalError::Corrupt { file: path.to_owned(), line, what };

    let mut good_bytes = 0_u64;
    let head = match next_line(&mut reader, path)? {
        Line::Whole(head) => head,
        Line::Torn(_) | Line::End => return Err(corrupt(1, "the header is incomplete".to_owned())),
        Line::TooLong => return Err(corrupt(1, "the line is too long".to_owned())),
    };
    good_bytes += head.len() as u64 + 1;
    let head =
        String::from_utf8(head).map_err(|_| corrupt(1, "the header is not text".to_owned()))?;
    let (header, mut link) = parse_header(&head).map_err(|bad| match bad {
        BadHeader::Version(found) => JournalError::Version { file: path.to_owned(), found },
        BadHeader::Damaged(what) => corrupt(1, what.to_owned()),
    })?;
    if header.segment != number {
        return Err(corrupt(1, format!("it says that it is segment {}", header.segment)));
    }

    let mut records = Vec::new();
    let mut next_seq = header.first_seq;
    let mut torn = Vec::new();
    for line_number in 2_u64.. {
        let raw = match next_line(&mut reader, path)? {
            Line::Whole(raw) => raw,
            Line::Torn(rest) => {
                torn = rest;
                break;
            }
            Line::End => break,
            Line::TooLong => return Err(corrupt(line_number, "the line is too long".to_owned())),
        };
        // JSON has no zeros: these are pages that were never written.
        if raw.contains(&0) {
            torn = unwritten_end(raw, &mut reader, path)?.ok_or_else(|| {
                corrupt(line_number, "the record holds zeros, and whole ones follow it".to_owned())
            })?;
            break;
        }
        let bytes = raw.len() as u64 + 1;
        let text = String::from_utf8(raw)
            .map_err(|_| corrupt(line_number, "the record is not text".to_owned()))?;
        let (record, next) =
            parse_record(&text, next_seq, link).map_err(|what| corrupt(line_number, what))?;
        if record.kind == RecordKind::Checkpoint && line_number != 2 {
            return Err(corrupt(line_number, "a checkpoint is out of place".to_owned()));
        }
        good_bytes += bytes;
        next_seq += 1;
        link = next;
        records.push(record);
    }
    let has_checkpoint = records.first().is_some_and(|r| r.kind == RecordKind::Checkpoint);
    if number > 1 && !has_checkpoint {
        return Err(corrupt(2, "the segment does not begin with a checkpoint".to_owned()));
    }
    Ok(Segment { header, records, link, next_seq, good_bytes, torn })
}

/// The rest of a segment from the line `first`, which holds zeros; none if a line follows that was written whole: then
/// `first` was acknowledged, and is damaged.
fn unwritten_end(
    first: Vec<u8>,
    reader: &mut impl BufRead,
    path: &Path,
) -> Result<Option<Vec<u8>>, JournalError> {
    let mut end = first;
    end.push(b'\n');
    loop {
        match next_line(reader, path)? {
            Line::Whole(line) if line.contains(&0) && end.len() <= MAX_LINE_BYTES => {
                end.extend_from_slice(&line);
                end.push(b'\n');
            }
            Line::Torn(rest) => {
                end.extend_from_slice(&rest);
                return Ok(Some(end));
            }
            Line::End => return Ok(Some(end)),
            Line::Whole(_) | Line::TooLong => return Ok(None),
        }
    }
}

enum Line {
    /// With its line end, which is cut off here.
    Whole(Vec<u8>),
    /// The file ended before the line did.
    Torn(Vec<u8>),
    TooLong,
    End,
}

fn next_line(reader: &mut impl BufRead, path: &Path) -> Result<Line, JournalError> {
    let mut line = Vec::new();
    let limit = MAX_LINE_BYTES as u64 + 1;
    let read = reader
        .by_ref()
        .take(limit)
        .read_until(b'\n', &mut line)
        .map_err(JournalError::io("cannot read", path))?;
    Ok(if read == 0 {
        Line::End
    } else if line.last() == Some(&b'\n') {
        line.pop();
        Line::Whole(line)
    } else if read as u64 == limit {
        Line::TooLong
    } else {
        Line::Torn(line)
    })
}

/// What [`verify`] found.
#[derive(Debug, Default)]
pub struct Report {
    /// One entry a segment, oldest first.
    pub segments: Vec<SegmentReport>,
}

impl Report {
    /// Nothing is damaged (a torn last record is not damage).
    pub fn is_good(&self) -> bool {
        self.segments.iter().all(|s| s.problem.is_none())
    }
}

/// One segment, checked.
#[derive(Debug)]
pub struct SegmentReport {
    /// The file.
    pub file: PathBuf,
    /// Records that are whole.
    pub records: u64,
    /// Number of the first of them.
    pub first_seq: Option<u64>,
    /// Number of the last of them.
    pub last_seq: Option<u64>,
    /// Bytes of a torn last record.
    pub torn_bytes: u64,
    /// The version of its format; none if its header cannot be read.
    pub version: Option<u32>,
    /// The gpudeck that wrote it, as its header says.
    pub written_by: String,
    /// What is wrong with it.
    pub problem: Option<JournalError>,
}

impl SegmentReport {
    /// One that cannot be read, or is not there.
    fn of_damage(dir: &Path, problem: JournalError) -> Self {
        let file = match &problem {
            JournalError::Missing { from, .. } => dir.join(file_name(*from)),
            _ => dir.to_owned(),
        };
        Self {
            file,
            records: 0,
            first_seq: None,
            last_seq: None,
            torn_bytes: 0,
            version: None,
            written_by: String::new(),
            problem: Some(problem),
        }
    }
}

/// Checks every segment of a directory and the chain between them; changes nothing and takes no
/// lock, so the last record may be just being written and show as torn.
pub fn verify(dir: &Path) -> Result<Report, JournalError> {
    let mut report = Report::default();
    let mut before: Option<(u32, Link, u64)> = None;
    // The head first: a segment that is begun meanwhile is not missed then.
    let (head, last) = (head::read(dir), head::read_last(dir));
    let segments = list(dir)?;
    let newest = segments.last().map(|(number, _)| *number);
    let mut gaps = missing(dir, &segments, head).into_iter().peekable();
    let begins_before = |gap: &JournalError, number: u32| match gap {
        JournalError::Missing { from, .. } => *from < number,
        _ => false,
    };
    for (number, file) in segments {
        while let Some(gap) = gaps.next_if(|gap| begins_before(gap, number)) {
            report.segments.push(SegmentReport::of_damage(dir, gap));
        }
        match read(&file, number) {
            Err(problem) => {
                before = None;
                let damaged = SegmentReport::of_damage(dir, problem);
                report.segments.push(SegmentReport { file, ..damaged });
            }
            Ok(segment) => {
                let follows = before.is_none_or(|(previous, link, next_seq)| {
                    // What is missing between them was told.
                    previous.saturating_add(1) != number
                        || (segment.header.previous == link.as_str()
                            && segment.header.first_seq == next_seq)
                });
                let problem = (!follows).then(|| JournalError::Corrupt {
                    file: file.clone(),
                    line: 1,
                    what: "the segment does not follow the one before it".to_owned(),
                });
                // Where the newest segment is gone, that is told.
                let is_newest = newest == Some(number) && head.is_none_or(|head| head <= number);
                let last = last.as_ref().filter(|_| is_newest);
                let problem = problem.or_else(|| cut_off(&file, &segment, last));
                before = Some((number, segment.link, segment.next_seq));
                report.segments.push(SegmentReport {
                    file,
                    records: segment.records.len() as u64,
                    first_seq: segment.records.first().map(|r| r.seq),
                    last_seq: segment.records.last().map(|r| r.seq),
                    torn_bytes: segment.torn.len() as u64,
                    version: Some(segment.header.version),
                    written_by: segment.header.written_by,
                    problem,
                });
            }
        }
    }
    report.segments.extend(gaps.map(|gap| SegmentReport::of_damage(dir, gap)));
    Ok(report)
}
