//! `gpudeck controller install`: a systemd unit that runs the deck's controller from boot on.

use std::path::{Path, PathBuf};

use super::args::{Args, Output};
use super::attach::deck;
use super::exit::{Failure, Success};
use super::table;
use crate::controller::Paths;

/// Writes the unit, or prints it; says what is left to do, lingering included.
pub fn run(args: &Args, print: bool) -> Result<Success, Failure> {
    let (dir, spec) = deck(args)?;
    let program = std::env::current_exe().map_err(|e| {
        Failure::other(format!("this program's path is not known: {e}"))
            .with_hint("call it by its whole path")
    })?;
    let home = std::env::var_os("GPUDECK_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let text = unit(&spec.name, &program, &dir, home.as_deref());
    if print {
        match args.output {
            Output::Json => table::json(&serde_json::json!({ "text": text }))?,
            Output::Text => table::out(text.trim_end())?,
        }
        return Ok(Success::Done);
    }
    let name = unit_name(&Paths::of(spec.id));
    let root = rustix::process::geteuid().is_root();
    let place = if root { PathBuf::from("/etc/systemd/system") } else { user_units() };
    let file = place.join(&name);
    std::fs::create_dir_all(&place).and_then(|()| std::fs::write(&file, &text)).map_err(|e| {
        Failure::other(format!("{}: {e}", file.display()))
            .with_hint("`gpudeck controller install --print` prints it instead")
    })?;
    let scope = if root { "" } else { " --user" };
    let mut next = vec![
        format!("systemctl{scope} daemon-reload"),
        "gpudeck controller stop".to_owned(),
        format!("systemctl{scope} enable --now {name}"),
    ];
    // Without it a user's units end with the last session.
    let lingers =
        root || own_name().is_some_and(|n| Path::new("/var/lib/systemd/linger").join(n).exists());
    if !lingers {
        next.insert(0, "loginctl enable-linger".to_owned());
    }
    match args.output {
        Output::Json => table::json(&serde_json::json!({
            "unit": file, "lingers": lingers, "next": next,
        }))?,
        Output::Text => {
            table::out(&format!("wrote {}", file.display()))?;
            if !lingers {
                table::out("your units end with your last session: lingering is not enabled")?;
            }
            table::out("next:")?;
            for command in next {
                table::out(&format!("  {command}"))?;
            }
        }
    }
    Ok(Success::Done)
}

fn unit_name(paths: &Paths) -> String {
    let id = paths.dir.file_name().unwrap_or_default().to_string_lossy();
    format!("gpudeck-{id}.service")
}

fn user_units() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let config =
        from("XDG_CONFIG_HOME").unwrap_or_else(|| from("HOME").unwrap_or_default().join(".config"));
    config.join("systemd/user")
}

fn own_name() -> Option<String> {
    std::env::var("USER").ok().filter(|u| !u.is_empty() && !u.contains('/'))
}

/// A word of a unit file: `%` means something there.
fn word(text: &str) -> String {
    let escaped =
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('\n', " ");
    format!("\"{escaped}\"")
}

/// An argument of its command line, in which variables are filled in. (In `Environment=`, and in the program's own
/// path, a `$` is a `$`: systemd.exec(5), systemd.service(5).)
fn argument(text: &str) -> String {
    word(text).replace('$', "$$")
}

fn unit(name: &str, program: &Path, deck: &Path, home: Option<&Path>) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let environment = home
        .map(|h| format!("Environment={}\n", word(&format!("GPUDECK_HOME={}", h.display()))))
        .unwrap_or_default();
    format!(
        "[Unit]\n\
         Description=gpudeck controller of the deck {}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         # However often it fails: a lock that is still held, a disk that is full, are over some day.\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         {environment}\
         ExecStart={} controller run --deck {}\n\
         # A controller that was ended on purpose stays ended; what serves goes on serving.\n\
         Restart=on-failure\n\
         RestartSec=5\n\
         # Agents of `transport = \"local\"` hosts and their engines outlive it.\n\
         KillMode=process\n\
         \n\
         [Install]\n\
         WantedBy={}\n",
        name.replace('%', "%%"),
        word(&program.display().to_string()),
        argument(&deck.display().to_string()),
        if rustix::process::geteuid().is_root() { "multi-user.target" } else { "default.target" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_the_unit() {
        let text = unit("a %n", Path::new("/opt/gpu deck"), Path::new("/d/$x\"%"), None);
        assert!(text.contains("deck a %%n\n"), "{text}");
        let line = "ExecStart=\"/opt/gpu deck\" controller run --deck \"/d/$$x\\\"%%\"\n";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("Environment="), "{text}");
        let text = unit("a", Path::new("/g"), Path::new("/d"), Some(Path::new("/s$x")));
        assert!(text.contains("Environment=\"GPUDECK_HOME=/s$x\"\n"), "{text}");
    }
}
