//! Programs of engines: whether they are there, and which version they say to be.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::base::text::clean;
use crate::wire::{ProgramFound, ProgramSought};

/// Most programs that are looked for.
const MAX_PROGRAMS: usize = 16;

/// `vllm` loads half of its libraries before it says its version.
const VERSION: Duration = Duration::from_secs(20);

/// Looks for all of them side by side.
pub async fn find_all(programs: Vec<ProgramSought>) -> Vec<ProgramFound> {
    futures::future::join_all(programs.into_iter().take(MAX_PROGRAMS).map(find)).await
}

async fn find(sought: ProgramSought) -> ProgramFound {
    let path = sought.path.or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
    let file = file_of(&sought.program, &path);
    let version = match &file {
        Some(file) if sought.tells_version => version(file, &path).await,
        _ => None,
    };
    ProgramFound {
        program: clean(&sought.program, 200),
        file: file.map(|f| clean(&f.to_string_lossy(), 300)),
        version,
    }
}

/// The file that running `program` would run, as execvp(3) finds it.
fn file_of(program: &str, path: &str) -> Option<PathBuf> {
    let runs = |file: &Path| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|file| runs(file));
    }
    path.split(':').map(|dir| Path::new(dir).join(program)).find(|file| runs(file))
}

/// The first line that tells a number.
async fn version(file: &Path, path: &str) -> Option<String> {
    let mut child = Command::new(file)
        .arg("--version")
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let (stdout, stderr) = (child.stdout.take()?, child.stderr.take()?);
    let (mut said, mut told) = (Vec::new(), Vec::new());
    let (mut said_by, mut told_by) = (stdout.take(64 << 10), stderr.take(64 << 10));
    let ended = async {
        let read =
            futures::future::join(said_by.read_to_end(&mut said), told_by.read_to_end(&mut told));
        let _ = futures::future::join(read, child.wait()).await;
    };
    tokio::time::timeout(VERSION, ended).await.ok()?;
    // llama.cpp tells it on standard error.
    let text = [said, told].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.chars().any(|c| c.is_ascii_digit()))?;
    Some(clean(line.trim(), 120))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finds_what_would_be_run_and_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, mode: u32, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("one", 0o755, "#!/bin/sh\necho warning >&2\necho 'version: 4242 (abc)' >&2\n");
        write("two", 0o644, "no program\n");
        write("hangs", 0o755, "#!/bin/sh\nexec sleep 100\n");
        let sought = |program: &str, tells_version| ProgramSought {
            program: program.to_owned(),
            path: Some(format!("/nowhere:{}:/usr/bin:/bin", dir.path().display())),
            tells_version,
        };
        let absolute = dir.path().join("one").display().to_string();
        let found = find_all(vec![
            sought("one", true),
            sought("two", true),
            sought(&absolute, false),
            sought("three", false),
            sought("hangs", false),
        ])
        .await;
        assert_eq!(found[0].version.as_deref(), Some("version: 4242 (abc)"));
        assert_eq!(found[0].file.as_ref(), Some(&absolute));
        assert_eq!((found[1].file.as_ref(), found[1].version.as_ref()), (None, None));
        assert_eq!((found[2].file.as_ref(), found[2].version.as_ref()), (Some(&absolute), None));
        assert_eq!((found[3].program.as_str(), found[3].file.as_ref()), ("three", None));
        assert!(found[4].file.is_some() && found[4].version.is_none());
    }
}
