//! Plain `gpudeck`: the full screen, on the deck's controller or on just this machine.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;

use super::args::Args;
use super::attach;
use super::exit::{Failure, Success};
use crate::api::{Client, Door, Hint};
use crate::base::DeckId;
use crate::controller::{self, Options, Paths, start_in_process};
use crate::spec::{DeckSpec, HostSpec, Transport};

/// Opens the screen.
pub async fn open(args: &Args) -> Result<Success, Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::other("the screen needs a terminal")
            .with_hint("`gpudeck status`, `gpudeck hosts` and `gpudeck events` need none"));
    }
    if attach::find(args)?.is_some() {
        let client = attach::attach(args).await?;
        return show(client).await;
    }
    this_machine().await
}

/// The screen on any controller.
pub async fn show(client: Client) -> Result<Success, Failure> {
    let door: Arc<dyn Door> = Arc::new(client);
    crate::tui::run(door, crate::tui::TuiOptions::from_env(false))
        .await
        .map_err(|e| Failure { hint: e.hint(), ..Failure::other(e.to_string()) })?;
    Ok(Success::Done)
}

/// Just this machine, without a deck: the same agent, no SSH, nothing kept afterwards.
async fn this_machine() -> Result<Success, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::other(e.to_string());
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = machine.parse().or_else(|_| "local".parse()).map_err(|e| failed(&e))?;
    let host = HostSpec { transport: Transport::Local, ..HostSpec::default() };
    let deck = DeckSpec {
        id: DeckId(uuid::Uuid::now_v7()),
        name: format!("{machine} (no deck here)"),
        simulated: false,
        hosts: BTreeMap::from([(name, host)]),
        gateways: BTreeMap::new(),
    };
    let dir = tempfile::tempdir().map_err(|e| failed(&e))?;
    let options = Options { deck_dir: None, deck, agent_binary: None, leave_when_idle: None };
    let running = start_in_process(options, &Paths::in_dir(dir.path()))
        .await
        .map_err(|e| Failure { hint: e.hint(), ..Failure::other(e.to_string()) })?;
    let client = controller_client(&running.socket).await?;
    let shown = show(client).await;
    running.stop().await;
    shown
}

async fn controller_client(socket: &std::path::Path) -> Result<Client, Failure> {
    Ok(controller::connect(socket).await?)
}
