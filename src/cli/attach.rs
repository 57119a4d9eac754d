//! Finding the deck and its controller. The one place of the command line that knows how one is
//! started; everything after it is `api`.

use std::path::{Path, PathBuf};

use super::args::{Args, Command, ControllerCommand, Output};
use super::exit::Failure;
use crate::api::{Client, Door, Hint, Intent};
use crate::controller::{self, Deck, Paths};

/// The deck's directory and what its deck.toml says.
pub fn deck(args: &Args) -> Result<(PathBuf, Deck), Failure> {
    let dir = find(args)?.ok_or_else(|| {
        Failure { code: 8, ..Failure::other("there is no deck here") }.with_hint(
            "run `gpudeck init` to make one, or name one with --deck DIR; `gpudeck demo` needs none",
        )
    })?;
    if !dir.join("deck.toml").exists() {
        let missing = Failure::other(format!("there is no deck in {}", dir.display()));
        return Err(Failure { code: 8, ..missing }
            .with_hint(format!("`gpudeck init {}` makes one", dir.display())));
    }
    let spec = controller::read_deck(&dir)
        .map_err(|e| Failure { hint: e.hint(), ..Failure::other(e.to_string()) })?;
    Ok((dir, spec))
}

/// The deck's directory, if there is one.
pub fn find(args: &Args) -> Result<Option<PathBuf>, Failure> {
    if let Some(dir) = &args.deck {
        return std::fs::canonicalize(dir)
            .map(Some)
            .map_err(|e| Failure { code: 8, ..Failure::other(format!("{}: {e}", dir.display())) });
    }
    let here = std::env::current_dir()
        .map_err(|e| Failure::other(format!("the present directory cannot be told: {e}")))?;
    Ok(here.ancestors().find(|dir| dir.join("deck.toml").is_file()).map(Path::to_owned))
}

/// The deck's controller, started if there is none.
pub async fn attach(args: &Args) -> Result<Client, Failure> {
    let (dir, spec) = deck(args)?;
    // Whoever attaches lends its SSH agent meanwhile: the controller may have lost its own.
    let client = controller::attach(&dir, &Paths::of(spec.id)).await?.lending_agent();
    tell_another_build(args, &client).await;
    // A command speaks of the deck as it is now; a controller that nobody watches does not look.
    client.send(Intent::Reload).await?;
    Ok(client)
}

/// Says on standard error when the controller is of another build than this door.
async fn tell_another_build(args: &Args, client: &Client) {
    let upgrade = matches!(&args.command, Some(Command::Controller(ControllerCommand::Upgrade)));
    if upgrade || args.output == Output::Json {
        return;
    }
    if let Ok(version) = client.version().await
        && !controller::handover::is_same_build(version.pid)
    {
        eprintln!(
            "gpudeck: the controller (pid {}, gpudeck {}) is of another build than this gpudeck {}\n  \
             → `gpudeck controller upgrade` hands over between two steps",
            version.pid,
            version.gpudeck,
            env!("CARGO_PKG_VERSION")
        );
    }
}

/// The deck's controller, if one runs.
pub async fn running(args: &Args) -> Result<Client, Failure> {
    let (_, spec) = deck(args)?;
    Ok(Client::connect(&Paths::of(spec.id).socket()).await?)
}
