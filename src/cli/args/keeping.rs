//! What a deck keeps beside its services: its repository, its journal, its audit trail, its gateways and the background process.

use clap::Subcommand;

use super::Why;
use crate::api::ServiceName;

/// The deck's repository and its remote.
#[derive(Clone, Debug, Subcommand)]
pub enum DeckCommand {
    /// Send the branch, the releases and how they ended; refused if the remote went another way
    Push {
        /// Which remote; default: that of deck.toml, of the branch, or the only one
        remote: Option<String>,
    },
    /// Fetch them, and move forward where nothing of one's own is in the way
    Fetch {
        /// Which remote
        remote: Option<String>,
    },
    /// What is not committed, not sent, or lacking here
    Status {
        /// Which remote
        remote: Option<String>,
    },
}

/// What can be done with the journal.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum JournalCommand {
    /// Check its chain, its checksums and its tail: exit code 0 good, 1 damaged
    Verify,
}

/// What can be done with the audit trail.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum AuditCommand {
    /// Check its chain: exit code 0 good, 1 with the first line that was changed, moved or removed
    Verify,
}

/// Gateways.
#[derive(Debug, Subcommand)]
pub enum GatewayCommand {
    /// Our part of HAProxy's configuration for a service, as it would be written now
    Config {
        /// Which service
        service: ServiceName,
    },
}

/// The background process.
#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Run it in the foreground
    Run {
        /// Started by another gpudeck: make a session of its own
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Whether it runs, and where its files are
    Status,
    /// End it; what serves goes on serving
    Stop,
    /// End it and start this version
    Restart,
    /// Write a systemd unit that runs it from boot on, and check lingering
    Install {
        /// Print the unit instead
        #[arg(long)]
        print: bool,
    },
    /// Hand over to this version between two steps; rollouts go on
    Upgrade,
    /// Take the deck's hosts over from another controller whose lease has ended, and go on from
    /// what it left there
    TakeOver {
        /// Also while its lease runs, and although hosts are not reached; asks for the deck's name
        #[arg(long)]
        force: bool,
        /// The deck's name, instead of typing it at the terminal
        #[arg(long, value_name = "DECK", requires = "force")]
        confirm: Option<String>,
        /// Why
        #[command(flatten)]
        why: Why,
    },
}
