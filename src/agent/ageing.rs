//! Keeps the state of what runs from being cleaned away: `systemd-tmpfiles` removes from `/var/tmp` what was neither
//! read nor written for 30 days, and a rank may run for longer than that.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

/// Time between two rounds.
pub const EVERY: Duration = Duration::from_hours(12);

/// Files and directories that are looked at in one round.
const MAX_ENTRIES: usize = 20_000;

/// Directories below the first one.
const MAX_DEPTH: usize = 6;

/// Programs, below the state directory: they are checked whole when their times have changed, and copied again when they
/// are gone.
const PROGRAMS: &str = "bin";

/// Says of everything in a directory that it was read just now, but for programs. When it was written stays as it was.
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
                Ok(_) if depth == 0 && entry.file_name() == PROGRAMS => {}
                Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => {
                    directories.push((entry.path(), depth + 1));
                }
                Ok(kind) if kind.is_file() => read_now(&entry.path()),
                _ => {}
            }
        }
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
    use std::time::SystemTime;

    use super::*;

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
        keep_young(root.path());
        let recent = |path: &Path| {
            let meta = fs::metadata(path).unwrap();
            let day_ago = SystemTime::now() - Duration::from_hours(24);
            (meta.accessed().unwrap() > day_ago, meta.modified().unwrap() > day_ago)
        };
        assert_eq!((recent(&file), recent(&rank)), ((true, false), (true, false)));
        assert_eq!(recent(&program), (false, false), "it would be checked whole again");
        assert_eq!(recent(outside.path()), (false, false), "a link was followed");
    }
}
