//! Plain `gpudeck`: the full screen, on the deck's controller or on just this machine.

use std::io::IsTerminal;
use std::sync::Arc;

use super::args::Args;
use super::attach;
use super::exit::{Failure, Success};
use crate::api::{Client, Door};
use crate::controller;
use crate::tui::StartController;

/// Opens the screen.
pub async fn open(args: &Args) -> Result<Success, Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let hint = if attach::find(args)?.is_some() {
            "`gpudeck status`, `gpudeck hosts` and `gpudeck events` need none"
        } else {
            "there is no deck here: `gpudeck init` makes one, `gpudeck demo --script` needs neither"
        };
        return Err(Failure::other("the screen needs a terminal").with_hint(hint));
    }
    if attach::find(args)?.is_some() {
        let client = attach::attach(args).await?;
        return show(client, attach::starter(args)).await;
    }
    this_machine().await
}

/// The screen on any controller.
pub async fn show(client: Client, start: Option<StartController>) -> Result<Success, Failure> {
    let door: Arc<dyn Door> = Arc::new(client);
    crate::tui::run(door, crate::tui::TuiOptions::from_env(false), start)
        .await
        .map_err(|e| Failure::of(&e))?;
    Ok(Success::Done)
}

/// Just this machine, without a deck: the same agent, no SSH, nothing kept afterwards.
async fn this_machine() -> Result<Success, Failure> {
    let dir = tempfile::tempdir().map_err(|e| {
        Failure::other(e.to_string()).with_hint("set TMPDIR to a directory that you may write")
    })?;
    let running =
        controller::start_on_this_machine(dir.path()).await.map_err(|e| Failure::of(&e))?;
    let shown = match controller::connect(&running.socket).await {
        Ok(client) => show(client, None).await,
        Err(error) => Err(error.into()),
    };
    running.stop().await;
    shown
}
