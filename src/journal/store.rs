//! The open journal: its lock, appending, checkpoints.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;

use super::format::{Header, Link, Record, RecordKind, VERSION, header_line, push_record};
use super::{JournalError, head, is_full, segment};

/// A lock whose holder is dead is let go of within so long.
const LET_GO_WITHIN: Duration = Duration::from_secs(5);

/// Room that is taken besides for what is written down meanwhile.
const RESERVED_BESIDES: u64 = 32 << 10;

/// Segments kept besides the one in use.
const OLD_SEGMENTS_KEPT: usize = 3;

/// What a segment is written to: a file, or a stand-in that fails in tests.
trait Medium: Send {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Takes the room for so many bytes after `length` of them, which the file does not grow by.
    fn reserve(&mut self, length: u64, bytes: u64) -> io::Result<()>;
}

impl Medium for File {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.sync_data()
    }
    fn reserve(&mut self, length: u64, bytes: u64) -> io::Result<()> {
        Ok(fallocate(&*self, FallocateFlags::KEEP_SIZE, length, bytes)?)
    }
}

/// The journal of one deck, open for appending by this process alone. Calls block on the disk.
pub struct Journal {
    dir: PathBuf,
    file: PathBuf,
    medium: Box<dyn Medium>,
    segment: u32,
    version: u32,
    length: u64,
    next_seq: u64,
    link: Link,
    broken: Option<String>,
    lacks: Option<JournalError>,
    /// Where the last record is named; none: it cannot be.
    last: Option<File>,
    /// Lets a name in the directory last; another one in tests.
    sync_names: fn(&File) -> io::Result<()>,
    /// Held for as long as the journal is open.
    lock: File,
}

impl Journal {
    /// Opens (or begins) the journal in `dir` and returns the records from the latest checkpoint
    /// on. A torn last record is moved to `journal.torn-N`; a damaged one is refused, and so is a journal whose
    /// newest segments are gone. See [`Self::lacks`] for earlier ones.
    pub fn open(dir: &Path) -> Result<(Self, Vec<Record>), JournalError> {
        if !dir.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(JournalError::io("cannot create", dir))?;
            if let Some(parent) = dir.parent() {
                sync_dir(parent)?;
            }
        }
        let lock = lock(dir)?;
        let mut segments = segment::list(dir)?;
        let head = head::read(dir);
        let mut missing = segment::missing(dir, &segments, head);
        if let Some(error) =
            missing.pop_if(|gap| matches!(gap, JournalError::Missing { is_newest: true, .. }))
        {
            return Err(error);
        }
        let latest = match segments.pop() {
            Some(latest) => latest,
            None => begin_first(dir)?,
        };
        let (number, file) = latest;
        let found = segment::read(&file, number)?;
        let cut_off = segment::cut_off(&file, &found, head::read_last(dir).as_ref());
        let handle = OpenOptions::new()
            .append(true)
            .open(&file)
            .map_err(JournalError::io("cannot open", &file))?;
        if !found.torn.is_empty() {
            // It was never acted upon: that it cannot be kept (a full disk) keeps nobody out.
            if let Err(error) = keep_torn(dir, &found.torn) {
                tracing::warn!(%error, "a torn record is cut off and not kept");
            }
            handle.set_len(found.good_bytes).map_err(JournalError::io("cannot cut", &file))?;
            handle.sync_data().map_err(JournalError::io("cannot sync", &file))?;
        }
        let journal = Self {
            dir: dir.to_owned(),
            file,
            medium: Box::new(handle),
            segment: number,
            version: found.header.version,
            length: found.good_bytes,
            next_seq: found.next_seq,
            link: found.link,
            broken: None,
            lacks: cut_off.or_else(|| missing.pop()),
            last: head::open_last(dir).ok(),
            sync_names: File::sync_all,
            lock,
        };
        if head != Some(number) {
            journal.note_head();
        }
        journal.note_last();
        Ok((journal, found.records))
    }

    /// An earlier segment that is missing, which what is read does not need; or records that are gone at the end.
    pub fn lacks(&self) -> Option<&JournalError> {
        self.lacks.as_ref()
    }

    /// Number of the last record; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Whether the segment in use has an older format: a checkpoint begins one of the present format.
    pub fn is_of_older_version(&self) -> bool {
        self.version < VERSION
    }

    /// Bytes in the segment in use: when it has grown large, it is time for a checkpoint.
    pub fn segment_bytes(&self) -> u64 {
        self.length
    }

    /// Appends all of `values`; they are on disk when this returns the number of the last one. With an error it is
    /// none of them: without space the journal is as before and can be tried again.
    ///
    /// A crash before this returns may leave the first of them, whole, and a torn one after those: whoever reads the
    /// journal then must be as well served by any beginning of `values` as by all.
    pub fn append<T: Serialize>(&mut self, values: &[T]) -> Result<u64, JournalError> {
        self.check_usable()?;
        if values.is_empty() {
            return Ok(self.last_seq());
        }
        let mut lines = String::new();
        let mut link = self.link;
        let mut seq = self.next_seq;
        for value in values {
            link = push_record(&mut lines, seq, link, RecordKind::Appended, value)?;
            seq += 1;
        }
        let written = self.medium.put(lines.as_bytes()).and_then(|()| self.medium.sync());
        if let Err(error) = written {
            return Err(self.take_back(&error));
        }
        self.length += lines.len() as u64;
        self.link = link;
        self.next_seq = seq;
        self.note_last();
        Ok(self.last_seq())
    }

    /// Takes the room for `value`, so that it can be appended later, after a little else, though the disk is full by then.
    /// Nothing is written. Where a file system cannot do that nothing is taken.
    ///
    /// # Errors
    /// There is no room for it, or the journal takes nothing now.
    pub fn reserve<T: Serialize>(&mut self, value: &T) -> Result<(), JournalError> {
        self.check_usable()?;
        let mut line = String::new();
        push_record(&mut line, self.next_seq, self.link, RecordKind::Appended, value)?;
        let bytes = RESERVED_BESIDES.saturating_add(line.len() as u64);
        match self.medium.reserve(self.length, bytes) {
            Err(error) if is_full(&error) => Err(JournalError::NoSpace { file: self.file.clone() }),
            _ => Ok(()),
        }
    }

    /// Begins a new segment with the whole `state`; what is read after the next start begins
    /// there. A few older segments are kept. On an error the segment in use stays in use, unless the new one has its
    /// name already: then nothing more is written until [`Self::recover`] has begun another one, since whoever
    /// reads next may find the new one or not.
    pub fn checkpoint<T: Serialize>(&mut self, state: &T) -> Result<u64, JournalError> {
        self.check_usable()?;
        self.begin_segment(state)
    }

    /// Lets a journal of an older format go on in the present one. Where that cannot be written (a full disk), the
    /// journal takes nothing until [`Self::recover`] has: records of this version never stand in a segment of an
    /// older one.
    pub fn renew<T: Serialize>(&mut self, state: &T) -> Result<(), JournalError> {
        let renewed = self.checkpoint(state).map(drop);
        if let Err(error) = &renewed {
            self.broken = Some(error.to_string());
        }
        renewed
    }

    /// Tries to write again after a failure: what could not be told for sure to be on disk is cut
    /// off, and a new segment with the whole `state` makes what was read back meaningless.
    pub fn recover<T: Serialize>(&mut self, state: &T) -> Result<u64, JournalError> {
        if self.broken.is_some() {
            // Only for `verify`: the new segment does not build on what this does.
            let _ = OpenOptions::new()
                .append(true)
                .open(&self.file)
                .and_then(|handle| handle.set_len(self.length));
        }
        let seq = self.begin_segment(state)?;
        self.broken = None;
        Ok(seq)
    }

    fn begin_segment<T: Serialize>(&mut self, state: &T) -> Result<u64, JournalError> {
        let number = self.segment + 1;
        let header = Header::new(number, self.next_seq, self.link);
        let (mut text, link) = header_line(&header)?;
        let link = push_record(&mut text, self.next_seq, link, RecordKind::Checkpoint, state)?;
        let (file, handle, lasts) = write_whole(&self.dir, number, &text, self.sync_names)?;
        self.file = file;
        self.medium = Box::new(handle);
        self.segment = number;
        self.version = VERSION;
        self.length = text.len() as u64;
        self.link = link;
        self.next_seq += 1;
        if let Err(error) = lasts {
            let what = format!("its name may not last: {error}");
            self.broken = Some(what.clone());
            return Err(JournalError::Broken { file: self.file.clone(), what });
        }
        self.note_head();
        self.note_last();
        self.forget_old();
        Ok(self.last_seq())
    }

    fn check_usable(&self) -> Result<(), JournalError> {
        match &self.broken {
            Some(what) => Err(JournalError::Broken { file: self.file.clone(), what: what.clone() }),
            None => Ok(()),
        }
    }

    /// Brings the file back to its length before a failed write.
    fn take_back(&mut self, error: &io::Error) -> JournalError {
        let cut = self.medium.cut(self.length);
        if cut.is_ok() && is_full(error) {
            return JournalError::NoSpace { file: self.file.clone() };
        }
        // After a failed sync the kernel may have dropped the dirty pages and forgotten it: no
        // later success would mean anything.
        let what = match cut {
            Ok(()) => error.to_string(),
            Err(cut) => format!("{error}; cutting back: {cut}"),
        };
        self.broken = Some(what.clone());
        JournalError::Broken { file: self.file.clone(), what }
    }

    /// That it is behind only means that fewer segments would be missed.
    fn note_head(&self) {
        if let Err(error) = head::write(&self.dir, self.segment) {
            tracing::warn!(%error, "the newest segment of the journal is not noted");
        }
    }

    /// Only after the record is on disk, and without waiting: that it is behind only means that fewer records would be
    /// missed.
    fn note_last(&self) {
        let written =
            self.last.as_ref().map(|file| head::write_last(file, self.last_seq(), self.link));
        if let Some(Err(error)) = written {
            tracing::debug!(%error, "the last record of the journal is not noted");
        }
    }

    /// A segment that cannot be deleted only takes space: that must not fail a checkpoint. Those after it stay, too,
    /// since a gap is taken for damage.
    fn forget_old(&self) {
        let Ok(segments) = segment::list(&self.dir) else { return };
        let surplus = segments.len().saturating_sub(OLD_SEGMENTS_KEPT + 1);
        for (_, path) in segments.into_iter().take(surplus) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an old journal segment stays");
                return;
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Closing is not enough: a child that is just being forked shares the open file until it
        // executes, and the lock with it.
        let _ = self.lock.unlock();
    }
}

fn begin_first(dir: &Path) -> Result<(u32, PathBuf), JournalError> {
    let header = Header::new(1, 1, Link::START);
    let (text, _) = header_line(&header)?;
    let (file, _, lasts) = write_whole(dir, 1, &text, File::sync_all)?;
    lasts.map_err(JournalError::io("cannot sync", dir))?;
    Ok((1, file))
}

/// A segment that has its name: where, open for more, and whether its name lasts.
type Named = (PathBuf, File, io::Result<()>);

/// Writes a segment aside and gives it its name when it is on disk. With an error it has none.
fn write_whole(
    dir: &Path,
    number: u32,
    text: &str,
    sync_names: fn(&File) -> io::Result<()>,
) -> Result<Named, JournalError> {
    let file = dir.join(segment::file_name(number));
    // Opened before anything is named: only the sync itself can fail then.
    let names = File::open(dir).map_err(JournalError::io("cannot open", dir))?;
    let aside = dir.join(format!("{}.new", segment::file_name(number)));
    let write = || -> io::Result<File> {
        let mut handle = OpenOptions::new().create(true).append(true).mode(0o600).open(&aside)?;
        // Left over from a start that was cut off.
        handle.set_len(0)?;
        handle.write_all(text.as_bytes())?;
        handle.sync_all()?;
        fs::rename(&aside, &file)?;
        Ok(handle)
    };
    let handle = write().map_err(|error| {
        // The next attempt overwrites it anyway; here it would only take space.
        let _ = fs::remove_file(&aside);
        JournalError::io("cannot write", &file)(error)
    })?;
    Ok((file, handle, sync_names(&names)))
}

fn keep_torn(dir: &Path, torn: &[u8]) -> Result<(), JournalError> {
    for n in 1..1_000_u32 {
        let path = dir.join(format!("journal.torn-{n}"));
        match OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                return file.write_all(torn).map_err(|error| {
                    let _ = fs::remove_file(&path);
                    JournalError::io("cannot write", &path)(error)
                });
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(JournalError::io("cannot create", &path)(e)),
        }
    }
    // A thousand kept already: one more tells nobody anything.
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|d| d.sync_all()).map_err(JournalError::io("cannot sync", dir))
}

fn lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("journal.lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(JournalError::io("cannot open", &path))?;
    let deadline = Instant::now() + LET_GO_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => {
                // The pid is for the message only; on a full disk the lock holds all the same.
                let pid = format!("{}\n", std::process::id());
                let _ = file.set_len(0).and_then(|()| file.write_all(pid.as_bytes()));
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&file).take(20).read_to_string(&mut text);
                let pid: Option<u32> = text.trim().parse().ok();
                if pid.is_some_and(runs) || Instant::now() >= deadline {
                    return Err(JournalError::Locked { dir: dir.to_owned(), pid });
                }
                let _ = file.rewind();
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::Error(e)) => return Err(JournalError::io("cannot lock", &path)(e)),
        }
    }
}

/// Whether a process is there and not merely unreaped. One that was killed can leave its lock with a child that it
/// was just forking: until that one executes, it has the open file, too.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may hold anything, brackets too.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Takes `room` bytes, then fails as a full disk (or as `fail`) does: in the middle.
    struct Failing {
        file: File,
        room: usize,
        fail: io::ErrorKind,
        cut_fails: bool,
    }

    impl Medium for Failing {
        fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
            let fits = bytes.len().min(self.room);
            self.file.write_all(&bytes[..fits])?;
            self.room -= fits;
            if fits < bytes.len() { Err(self.fail.into()) } else { Ok(()) }
        }
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn cut(&mut self, length: u64) -> io::Result<()> {
            if self.cut_fails {
                return Err(io::ErrorKind::Other.into());
            }
            self.file.set_len(length)
        }
        fn reserve(&mut self, _: u64, bytes: u64) -> io::Result<()> {
            let fits = usize::try_from(bytes).is_ok_and(|bytes| bytes <= self.room);
            if fits { Ok(()) } else { Err(self.fail.into()) }
        }
    }

    /// Takes everything, and says whether what it took is on disk; or its disk does not say so any more.
    struct Watched {
        file: File,
        unsynced: Arc<AtomicUsize>,
        sync_fails: bool,
    }

    impl Medium for Watched {
        fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.unsynced.fetch_add(bytes.len(), Ordering::SeqCst);
            self.file.write_all(bytes)
        }
        fn sync(&mut self) -> io::Result<()> {
            if self.sync_fails {
                return Err(io::ErrorKind::Other.into());
            }
            self.unsynced.store(0, Ordering::SeqCst);
            Ok(())
        }
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.file.set_len(length)
        }
        fn reserve(&mut self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_lock_of_a_dead_process_is_waited_for_and_that_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let path = dir.path().join("journal.lock");
        fs::write(&path, format!("{}\n", child.id())).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        // As a child does that it was forking when it was killed.
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            held.unlock()
        });
        let (journal, _) = Journal::open(dir.path()).unwrap();
        letting_go.join().unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        let asked = Instant::now();
        let refused = Journal::open(dir.path()).map(|_| ());
        let pid = Some(std::process::id());
        assert!(matches!(refused, Err(JournalError::Locked { pid: p, .. }) if p == pid));
        assert!(asked.elapsed() < LET_GO_WITHIN, "it waits for a holder that runs");
        drop(journal);
        assert!(Journal::open(dir.path()).is_ok());
    }

    #[test]
    fn what_is_appended_is_on_disk_when_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        let unsynced = Arc::new(AtomicUsize::new(0));
        let watch = |journal: &mut Journal, sync_fails| {
            let file = OpenOptions::new().append(true).open(&journal.file).unwrap();
            let unsynced = Arc::clone(&unsynced);
            journal.medium = Box::new(Watched { file, unsynced, sync_fails });
        };
        watch(&mut journal, false);
        for seq in 1..4 {
            assert_eq!(journal.append(&["one"]).unwrap(), seq);
            assert_eq!(unsynced.load(Ordering::SeqCst), 0, "said before it is on disk");
        }
        // A disk that does not say so has not done it: nothing may follow from this record.
        watch(&mut journal, true);
        assert!(journal.append(&["four"]).is_err());
        assert_eq!(journal.last_seq(), 3);
    }

    fn failing(journal: &mut Journal, room: usize, fail: io::ErrorKind, cut_fails: bool) {
        let file = OpenOptions::new().append(true).open(&journal.file).unwrap();
        journal.medium = Box::new(Failing { file, room, fail, cut_fails });
    }

    #[test]
    fn a_full_disk_takes_nothing_and_can_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&["one"]).unwrap();
        let before = fs::read(&journal.file).unwrap();
        for room in 0..60 {
            failing(&mut journal, room, io::ErrorKind::StorageFull, false);
            let error = journal.append(&["two", "three"]).unwrap_err();
            assert!(matches!(error, JournalError::NoSpace { .. }), "{error}");
            assert_eq!(fs::read(&journal.file).unwrap(), before, "room {room}");
        }
        failing(&mut journal, 10_000, io::ErrorKind::StorageFull, false);
        assert_eq!(journal.append(&["two", "three"]).unwrap(), 3);
        drop(journal);
        let (_, records) = Journal::open(dir.path()).unwrap();
        assert_eq!(records.len(), 3);
    }

    #[test]
    fn room_is_taken_without_a_trace_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        let value = "x".repeat(40_000);
        let before = fs::read(&journal.file).unwrap();
        journal.reserve(&value).unwrap();
        assert_eq!(fs::read(&journal.file).unwrap(), before);
        assert!(crate::journal::verify(dir.path()).unwrap().is_good());
        failing(&mut journal, 50_000, io::ErrorKind::StorageFull, false);
        assert!(matches!(journal.reserve(&value), Err(JournalError::NoSpace { .. })));
        assert_eq!(fs::read(&journal.file).unwrap(), before);
        assert_eq!(journal.append(&["two"]).unwrap(), 1, "the journal is as it was");
    }

    #[test]
    fn an_unknown_failure_ends_writing_until_it_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&["one"]).unwrap();
        failing(&mut journal, 7, io::ErrorKind::Other, true);
        assert!(matches!(journal.append(&["two"]), Err(JournalError::Broken { .. })));
        assert!(matches!(journal.append(&["two"]), Err(JournalError::Broken { .. })));
        assert!(matches!(journal.checkpoint(&"state"), Err(JournalError::Broken { .. })));
        drop(journal);
        let (mut journal, records) = Journal::open(dir.path()).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(fs::read(dir.path().join("journal.torn-1")).unwrap().len(), 7);
        assert_eq!(journal.append(&["two"]).unwrap(), 2);
    }

    #[test]
    fn pages_that_were_never_written_are_a_torn_end_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&["one".to_owned(), "two".to_owned()]).unwrap();
        let acknowledged = fs::metadata(&journal.file).unwrap().len();
        journal.append(&["x".repeat(3000), "y".repeat(3000)]).unwrap();
        let file = journal.file.clone();
        drop(journal);
        let whole = fs::read(&file).unwrap();
        let zeroed = |from: usize, to: usize| {
            let mut bytes = whole.clone();
            bytes.get_mut(from..to).unwrap().fill(0);
            fs::write(&file, bytes).unwrap();
            Journal::open(dir.path()).map(|(_, records)| records.len())
        };
        let at = usize::try_from(acknowledged).unwrap();
        // One sector in the last record, the line ends of both, and everything after what was acknowledged.
        assert_eq!(zeroed(whole.len() - 1000, whole.len() - 488).unwrap(), 3);
        assert_eq!(zeroed(at + 2000, whole.len()).unwrap(), 2);
        assert_eq!(zeroed(at, whole.len()).unwrap(), 2);
        // A whole record follows, or the damage is no zeros: that was acknowledged, or somebody changed it.
        assert!(matches!(zeroed(at + 100, at + 200), Err(JournalError::Corrupt { .. })));
        let mut changed = whole.clone();
        *changed.get_mut(whole.len() - 1000).unwrap() = b'z';
        fs::write(&file, changed).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Corrupt { .. })));
    }

    #[test]
    fn a_segment_whose_name_may_not_last_is_the_last_one_that_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&["one"]).unwrap();
        journal.sync_names = |_| Err(io::ErrorKind::Other.into());
        assert!(matches!(journal.checkpoint(&"then"), Err(JournalError::Broken { .. })));
        // What is said to be written is found, whichever segment is read: nothing is.
        assert!(matches!(journal.append(&["two"]), Err(JournalError::Broken { .. })));
        assert!(matches!(journal.recover(&"later"), Err(JournalError::Broken { .. })));
        assert!(matches!(journal.append(&["two"]), Err(JournalError::Broken { .. })));
        journal.sync_names = File::sync_all;
        journal.recover(&"the whole state").unwrap();
        journal.append(&["three"]).unwrap();
        drop(journal);
        let (_, records) = Journal::open(dir.path()).unwrap();
        let values: Vec<_> = records.iter().map(|r| r.read::<String>().unwrap()).collect();
        assert_eq!(values, ["the whole state", "three"]);
        assert!(crate::journal::verify(dir.path()).unwrap().is_good());
    }

    #[test]
    fn a_broken_journal_goes_on_in_a_new_segment() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&["one"]).unwrap();
        failing(&mut journal, 7, io::ErrorKind::Other, true);
        assert!(matches!(journal.append(&["two"]), Err(JournalError::Broken { .. })));
        assert_eq!(journal.recover(&"the whole state").unwrap(), 2);
        assert_eq!(journal.append(&["three"]).unwrap(), 3);
        drop(journal);
        let (_, records) = Journal::open(dir.path()).unwrap();
        let values: Vec<_> = records.iter().map(|r| r.read::<String>().unwrap()).collect();
        assert_eq!(values, ["the whole state", "three"]);
        assert!(crate::journal::verify(dir.path()).unwrap().is_good());
    }
}
