//! Our part of a HAProxy's configuration: checked by HAProxy itself, then put in place whole.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::error::{blocking, failed, io_refusal};
use crate::base::text::clean;
use crate::wire::{GatewayConfig, RELOAD_FAILED, RELOAD_NEEDED, Refusal};

/// Longest configuration.
const MAX_TEXT: usize = 1 << 20;

/// Time for a check, and for a reload.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What of a program's words is kept.
const MAX_WORDS: u64 = 64 << 10;

/// Files of others that are checked together with ours.
const MAX_FILES: usize = 1_000;

/// Writes the file if it differs, and reloads HAProxy if more than its servers did (those are
/// changed at run time), if the last reload failed, or if it is asked for. Answers `unchanged`, `written`, `reloaded`,
/// [`RELOAD_NEEDED`] if no command for that is known, or [`RELOAD_FAILED`] and why.
///
/// # Errors
/// The directory or the check refuses it; the old file stays.
pub async fn write(config: GatewayConfig) -> Result<String, Refusal> {
    let directory = PathBuf::from(&config.directory);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !directory.is_absolute() {
        return Err(failed("the directory must be absolute"));
    }
    let good_name = Path::new(&config.name).extension().is_some_and(|e| e == "cfg")
        && !config.name.starts_with('.')
        && config.name.chars().all(plain);
    if !good_name || config.text.len() > MAX_TEXT {
        return Err(failed("not a configuration file"));
    }
    let path = directory.join(&config.name);
    let old = {
        let path = path.clone();
        blocking(move || match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_refusal(&e, "read", &path)),
        })
        .await?
    };
    let changed = old.as_deref() != Some(config.text.as_str());
    let structure = |text: &str| -> Vec<String> {
        let kept =
            |line: &&str| !line.trim_start().starts_with("server ") && !line.starts_with('#');
        text.lines().filter(kept).map(str::to_owned).collect()
    };
    let deeper = old.as_deref().map(structure) != Some(structure(&config.text));
    let (due, reload) = (directory.join(format!(".{}.reload-due", config.name)), &config.reload);
    // What is written counts only when HAProxy has read it: that outlives the agent, and a reload that fails.
    let was_due = due.exists();
    if changed && deeper && !reload.is_empty() && !was_due {
        let due = due.clone();
        blocking(move || std::fs::write(&due, "").map_err(|e| io_refusal(&e, "write", &due)))
            .await?;
    }
    if changed && let Err(refusal) = put(&config, &directory, &path).await {
        if !was_due {
            let _ = std::fs::remove_file(&due);
        }
        return Err(refusal);
    }
    if !(changed && deeper || config.reload_now || was_due) {
        return Ok(if changed { "written" } else { "unchanged" }.to_owned());
    }
    if reload.is_empty() {
        // Whoever took the command out of deck.toml reloads it himself.
        let _ = std::fs::remove_file(&due);
        return Ok(RELOAD_NEEDED.to_owned());
    }
    match run(reload).await {
        Ok(()) => {
            let _ = std::fs::remove_file(&due);
            Ok("reloaded".to_owned())
        }
        Err(said) => Ok(format!("{RELOAD_FAILED}`{}`: {said}", reload.join(" "))),
    }
}

/// Beside it, checked, renamed over it.
async fn put(config: &GatewayConfig, directory: &Path, path: &Path) -> Result<(), Refusal> {
    let beside = directory.join(format!(".{}.gpudeck-new", config.name));
    let (text, target) = (config.text.clone(), beside.clone());
    let others = {
        let (directory, own) = (directory.to_owned(), path.to_owned());
        blocking(move || {
            let mut file =
                std::fs::File::create(&target).map_err(|e| io_refusal(&e, "write", &target))?;
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(|e| io_refusal(&e, "write", &target))?;
            let listing =
                std::fs::read_dir(&directory).map_err(|e| io_refusal(&e, "list", &directory))?;
            let mut others: Vec<PathBuf> = listing
                .flatten()
                .map(|entry| entry.path())
                .filter(|p| *p != own && p.extension().is_some_and(|e| e == "cfg"))
                .take(MAX_FILES)
                .collect();
            others.sort();
            Ok(others)
        })
        .await?
    };
    if !config.check.is_empty() {
        let mut argv = config.check.clone();
        for file in others.iter().chain([&beside]) {
            argv.push("-f".to_owned());
            argv.push(file.to_string_lossy().into_owned());
        }
        if let Err(said) = run(&argv).await {
            let _ = std::fs::remove_file(&beside);
            return Err(failed(format!("the check refuses {}: {said}", path.display())));
        }
    }
    let (from, to, directory) = (beside, path.to_owned(), directory.to_owned());
    blocking(move || {
        std::fs::rename(&from, &to).map_err(|e| io_refusal(&e, "write", &to))?;
        std::fs::File::open(&directory)
            .and_then(|d| d.sync_all())
            .map_err(|e| io_refusal(&e, "write", &directory))
    })
    .await
}

/// Runs a program; `Err` is how it failed, with its last words.
async fn run(argv: &[String]) -> Result<(), String> {
    let Some((program, args)) = argv.split_first() else { return Ok(()) };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(args)
        // HAProxy lies where only root's PATH looks.
        .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("`{program}` cannot be run: {e}"))?;
    let stderr = child.stderr.take();
    let ended = async {
        let mut words = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(MAX_WORDS).read_to_end(&mut words).await;
        }
        (child.wait().await, words)
    };
    let Ok((status, words)) = tokio::time::timeout(TIMEOUT, ended).await else {
        return Err(format!("`{program}` does not end"));
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let words = String::from_utf8_lossy(&words);
            let telling = |l: &&str| l.contains("[ALERT]") || l.contains("rror");
            let lines: Vec<&str> = words.lines().filter(telling).take(3).collect();
            let said = if lines.is_empty() {
                words.lines().next_back().unwrap_or_default().to_owned()
            } else {
                lines.join(" ")
            };
            Err(format!("{status}: {}", clean(&said, 400)))
        }
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn config(directory: &Path, text: &str) -> GatewayConfig {
        GatewayConfig {
            directory: directory.to_str().unwrap().to_owned(),
            name: "chat.cfg".to_owned(),
            text: text.to_owned(),
            check: Vec::new(),
            reload: Vec::new(),
            reload_now: false,
        }
    }

    #[tokio::test]
    async fn reloads_only_when_more_than_servers_changed() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("reloaded");
        let with = |text: &str| GatewayConfig {
            reload: vec!["touch".to_owned(), marker.to_str().unwrap().to_owned()],
            ..config(dir.path(), text)
        };
        let first = "backend chat\n  server a 1.1.1.1:1 weight 1\n";
        assert_eq!(write(config(dir.path(), first)).await.unwrap(), RELOAD_NEEDED);
        let other = "backend chat\n  server b 1.1.1.1:1 weight 9\n";
        assert_eq!(write(with(other)).await.unwrap(), "written");
        assert_eq!(write(with(other)).await.unwrap(), "unchanged");
        assert!(!marker.exists());
        let deeper = "backend chat\n  balance roundrobin\n";
        assert_eq!(write(with(deeper)).await.unwrap(), "reloaded");
        assert!(marker.exists());
        let again = GatewayConfig { reload_now: true, ..with(deeper) };
        assert_eq!(write(again).await.unwrap(), "reloaded");
    }

    #[tokio::test]
    async fn a_reload_that_failed_is_tried_again_until_it_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let works = dir.path().join("works");
        let with = |text: &str| GatewayConfig {
            reload: vec!["test".to_owned(), "-e".to_owned(), works.to_str().unwrap().to_owned()],
            ..config(dir.path(), text)
        };
        let text = "backend chat\n  balance roundrobin\n";
        for _ in 0..2 {
            let said = write(with(text)).await.unwrap();
            assert!(said.starts_with(RELOAD_FAILED) && said.contains("test -e"), "{said}");
        }
        // Servers alone are no reason for a reload, but one is due.
        let servers = format!("{text}  server a 1.1.1.1:1 weight 1\n");
        assert!(write(with(&servers)).await.unwrap().starts_with(RELOAD_FAILED));
        std::fs::write(&works, "").unwrap();
        assert_eq!(write(with(&servers)).await.unwrap(), "reloaded");
        assert_eq!(write(with(&servers)).await.unwrap(), "unchanged");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[tokio::test]
    async fn what_the_check_refuses_is_not_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let good = "backend chat\n";
        write(config(dir.path(), good)).await.unwrap();
        let script = "echo '[ALERT] bad' >&2; exit 1".to_owned();
        let bad = GatewayConfig {
            check: vec!["sh".to_owned(), "-c".to_owned(), script],
            ..config(dir.path(), "nonsense\n")
        };
        let refusal = write(bad).await.unwrap_err().to_string();
        assert!(refusal.contains("[ALERT] bad"), "{refusal}");
        let there: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(there.len(), 1, "nothing is left beside it");
        assert_eq!(std::fs::read_to_string(dir.path().join("chat.cfg")).unwrap(), good);
        let outside = GatewayConfig { name: "../x.cfg".to_owned(), ..config(dir.path(), good) };
        assert!(write(outside).await.is_err());
        let nowhere = config(Path::new("/nonexistent/dir"), good);
        assert!(matches!(write(nowhere).await, Err(Refusal::NoFile { .. })));
    }
}
