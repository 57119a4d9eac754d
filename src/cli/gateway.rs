//! `gpudeck gateway config`.

use super::args::{Args, GatewayCommand, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::table;

/// Shows our part of the configuration of a service's gateways.
pub async fn run(args: &Args, command: &GatewayCommand) -> Result<Success, Failure> {
    let GatewayCommand::Config { service } = command;
    let text = attach(args).await?.gateway_config(service).await?;
    match args.output {
        Output::Json => table::json(&text)?,
        Output::Text => table::out(text.trim_end())?,
    }
    Ok(Success::Done)
}
