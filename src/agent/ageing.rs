//! Keeps the state of what runs from being cleaned away: `systemd-tmpfiles` removes from `/var/tmp` what was neither
//! read nor written for 30 days, and a rank may run for longer than that.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

/// Time between two rounds.
pub const EVERY: Duration = Duration::from_hours(12);

/// Files and directories that are looked at in one round.
const MAX_ENTRIES: usize = 20_000;

/// Directories below the first one.
const MAX_DEPTH: usize = 6;

/// Programs, below the state directory: they are checked whole when their times have changed. What reading alone changes
/// is none of those times.
const PROGRAMS: &str = "bin";

/// A program that was read within that is young.
const YOUNG: Duration = Duration::from_hours(24 * 2);

/// Says of everything in a directory that it was read just now; programs are read. When it was written stays as it was.
/// What cannot be told so (somebody else's) is left out; links are not followed.
pub fn keep_young(directory: &Path) {
    let mut left = MAX_ENTRIES;
    let mut directories = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        read_now(&directory);
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if left == 0 {
                return;
            }
            left -= 1;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth == 0 && entry.file_name() == PROGRAMS => {
                    programs(&entry.path(), &mut left);
                }
                Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => {
                    directories.push((entry.path(), depth + 1));
                }
                Ok(kind) if kind.is_file() => read_now(&entry.path()),
                _ => {}
            }
        }
    }
}

/// The file of a running agent must not go: supervisors and the process that asks the driver are started from it, and an
/// agent may run for longer than files are kept.
fn programs(directory: &Path, left: &mut usize) {
    read_now(directory);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if *left == 0 {
            return;
        }
        *left -= 1;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            read_a_byte(&entry.path());
        }
    }
}

/// The kernel notes once a day when a file was read. Where it does not (mounted `noatime`) that is said, and the
/// program checked once more.
fn read_a_byte(path: &Path) {
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut [0]));
    let accessed = fs::metadata(path).and_then(|meta| meta.accessed());
    let age = accessed.ok().and_then(|accessed| accessed.elapsed().ok());
    if read.is_ok() && age.is_some_and(|age| age > YOUNG) {
        read_now(path);
    }
}

fn read_now(path: &Path) {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: omit };
    let _ = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// [`keep_young`] now and every twelve hours, until dropped.
pub async fn keep_young_for_good(directory: PathBuf) {
    let mut rounds = tokio::time::interval(EVERY);
    loop {
        rounds.tick().await;
        let directory = directory.clone();
        let _ = tokio::task::spawn_blocking(move || keep_young(&directory)).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::SystemTime;

    use super::*;

    fn mounts_without_access_times(path: &Path) -> bool {
        rustix::fs::statvfs(path).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::NOATIME)
    }

    #[test]
    fn what_is_kept_was_read_just_now_and_written_long_ago() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let old = SystemTime::now() - Duration::from_hours(24 * 40);
        let age = |path: &Path| {
            let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
            fs::File::open(path).unwrap().set_times(times).unwrap();
        };
        let rank = root.path().join("ranks/one");
        fs::create_dir_all(&rank).unwrap();
        let file = rank.join("status.json");
        fs::write(&file, "{}").unwrap();
        std::os::unix::fs::symlink(outside.path(), rank.join("link")).unwrap();
        let program = root.path().join("bin/gpudeck-1");
        fs::create_dir_all(root.path().join("bin")).unwrap();
        fs::write(&program, "ELF").unwrap();
        for path in [&file, &rank, &program, outside.path()] {
            age(path);
        }
        let changed = |path: &Path| {
            let meta = fs::metadata(path).unwrap();
            (meta.ctime(), meta.ctime_nsec())
        };
        let before = changed(&program);
        keep_young(root.path());
        let recent = |path: &Path| {
            let meta = fs::metadata(path).unwrap();
            let day_ago = SystemTime::now() - Duration::from_hours(24);
            (meta.accessed().unwrap() > day_ago, meta.modified().unwrap() > day_ago)
        };
        assert_eq!((recent(&file), recent(&rank)), ((true, false), (true, false)));
        assert_eq!(recent(&program), (true, false), "a running agent's file would go");
        // Where the kernel notes by itself that files are read.
        if !mounts_without_access_times(root.path()) {
            assert_eq!(changed(&program), before, "it would be checked whole again");
        }
        assert_eq!(recent(outside.path()), (false, false), "a link was followed");
    }
}
