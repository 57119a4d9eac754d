//! Finding the deck and its controller. The one place of the command line that knows how one is
//! started; everything after it is `api`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::args::{Args, Command, ControllerCommand, Output};
use super::exit::Failure;
use crate::api::server::Version;
use crate::api::{CONTROLLER_SILENT, Client, Door, Intent};
use crate::base::DeckId;
use crate::controller::{self, Deck, Paths};
use crate::tui::StartController;

/// A controller has looked at the deck's files within this time; one that has not hangs.
const LOOKS_WITHIN: Duration = Duration::from_secs(60);

/// More of a deck.toml is not read for its `id`.
const MAX_DECK: u64 = 1 << 20;

/// The deck's directory and what its deck.toml says.
pub fn deck(args: &Args) -> Result<(PathBuf, Deck), Failure> {
    let dir = find(args)?.ok_or_else(|| {
        Failure::other("there is no deck here").code(8).with_hint(without_deck(args))
    })?;
    if !dir.join("deck.toml").exists() {
        let missing = Failure::other(format!("there is no deck in {}", dir.display()));
        return Err(missing
            .code(8)
            .with_hint(format!("`gpudeck init {}` makes one", dir.display())));
    }
    let spec = controller::read_deck(&dir).map_err(|e| Failure::of(&e))?;
    Ok((dir, spec))
}

/// What to do where there is no deck; who wants to see hosts can see this one.
fn without_deck(args: &Args) -> &'static str {
    match args.command {
        Some(
            Command::Hosts { command: None, .. } | Command::Top { .. } | Command::Doctor { .. },
        ) => {
            "plain `gpudeck` shows just this machine; `gpudeck init` makes a deck, --deck DIR names one"
        }
        _ => {
            "run `gpudeck init` to make one, or name one with --deck DIR; `gpudeck demo` needs none"
        }
    }
}

/// A deck as far as it can be read: what a mistake in deck.toml keeps nobody from.
pub struct KnownDeck {
    /// Its directory.
    pub dir: PathBuf,
    /// Its identity.
    pub id: DeckId,
    /// What is wrong with its deck.toml; a controller that runs goes on with the last good one.
    pub mistake: Option<Failure>,
}

/// The deck, also with a mistake in its deck.toml, as long as its `id` can be read.
pub fn known(args: &Args) -> Result<KnownDeck, Failure> {
    match deck(args) {
        Ok((dir, spec)) => Ok(KnownDeck { dir, id: spec.id, mistake: None }),
        Err(mistake) => {
            let dir = find(args)?.filter(|dir| dir.join("deck.toml").is_file());
            let id = dir.as_deref().and_then(id_in);
            match (dir, id) {
                (Some(dir), Some(id)) => Ok(KnownDeck { dir, id, mistake: Some(mistake) }),
                _ => Err(mistake),
            }
        }
    }
}

/// The `id` of a deck.toml that is no deck's otherwise.
fn id_in(dir: &Path) -> Option<DeckId> {
    let file = std::fs::File::open(dir.join("deck.toml")).ok()?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_DECK), &mut text).ok()?;
    // `init` writes it first; in a section it would be something else's.
    let top = text.lines().take_while(|line| !line.trim_start().starts_with('['));
    top.filter_map(|line| line.split_once('=')).find_map(|(key, value)| {
        let value = value.split('#').next().unwrap_or_default().trim();
        (key.trim() == "id").then(|| value.trim_matches(['"', '\'']).parse().ok()).flatten()
    })
}

/// The deck's directory, if there is one.
pub fn find(args: &Args) -> Result<Option<PathBuf>, Failure> {
    if let Some(dir) = &args.deck {
        return std::fs::canonicalize(dir).map(Some).map_err(|e| {
            Failure::other(format!("{}: {e}", dir.display())).code(8).with_hint(
                "name the directory of a deck, or make one there with `gpudeck init DIR`",
            )
        });
    }
    let here = std::env::current_dir().map_err(|e| {
        Failure::other(format!("the present directory cannot be told: {e}"))
            .with_hint("change into a directory that is there")
    })?;
    Ok(here.ancestors().find(|dir| dir.join("deck.toml").is_file()).map(Path::to_owned))
}

/// The deck's controller, started if there is none.
pub async fn attach(args: &Args) -> Result<Client, Failure> {
    let KnownDeck { dir, id, mistake } = known(args)?;
    let paths = Paths::of(id);
    let client = match mistake {
        None => controller::attach(&dir, &paths).await?,
        // A typo must keep nobody from taking a rollout back.
        Some(mistake) => {
            // What begins something new is planned with the deck, and commits it.
            if matches!(args.command, Some(Command::Apply { .. } | Command::Plan { .. })) {
                return Err(mistake);
            }
            let client = match Client::connect(&paths.socket()).await {
                Ok(client) => client,
                Err(error) if error.message == CONTROLLER_SILENT => return Err(error.into()),
                Err(_) => return Err(mistake),
            };
            eprintln!(
                "gpudeck: {}; the controller goes on with the deck as it was",
                mistake.message
            );
            client
        }
    };
    // Whoever attaches lends its SSH agent meanwhile: the controller may have lost its own.
    let client = client.lending_agent();
    tell_another_build(args, &client).await;
    // A command speaks of the deck as it is now; a controller that nobody watches does not look.
    let looked = tokio::time::timeout(LOOKS_WITHIN, client.send(Intent::Reload)).await;
    match looked {
        Ok(looked) => looked?,
        Err(_) => return Err(client.silent().await.into()),
    };
    Ok(client)
}

/// Starts the deck's controller where it is gone while the screen is open; none where the deck cannot be read.
pub fn starter(args: &Args) -> Option<StartController> {
    let KnownDeck { dir, id, mistake: None } = known(args).ok()? else { return None };
    Some(Arc::new(move || {
        let (dir, paths) = (dir.clone(), Paths::of(id));
        Box::pin(async move { controller::attach(&dir, &paths).await.map(drop) })
    }))
}

/// Says on standard error when the controller is of another build than this door. (In JSON `status` and `hosts` say it.)
async fn tell_another_build(args: &Args, client: &Client) {
    let upgrade = matches!(&args.command, Some(Command::Controller(ControllerCommand::Upgrade)));
    if upgrade || args.output == Output::Json {
        return;
    }
    if let Some(version) = is_another_build(client).await {
        eprintln!(
            "gpudeck: the controller (pid {}, gpudeck {}) is of another build than this gpudeck {}\n  \
             → `gpudeck controller upgrade` hands over between two steps",
            version.pid,
            version.gpudeck,
            env!("CARGO_PKG_VERSION")
        );
    }
}

/// What the controller is, if that is another build than this door.
pub async fn is_another_build(client: &Client) -> Option<Version> {
    let version = client.version().await.ok()?;
    (!controller::handover::is_same_build(version.pid)).then_some(version)
}

/// The deck's controller, if one runs.
pub async fn running(args: &Args) -> Result<Option<Client>, Failure> {
    let socket = Paths::of(known(args)?.id).socket();
    // That it may not be asked is no word about whether it is there.
    if let Err(error) = std::os::unix::net::UnixStream::connect(&socket)
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        return Err(Failure::other(format!("{}: {error}", socket.display()))
            .with_hint("it is another user's: log in as who runs the controller"));
    }
    match Client::connect(&socket).await {
        Err(error) if error.message == CONTROLLER_SILENT => Err(error.into()),
        client => Ok(client.ok()),
    }
}
