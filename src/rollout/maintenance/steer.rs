//! What people ask for in the middle of an upgrade of hosts: hold it, let it go on, try a host again, leave one out, stop.

use serde::{Deserialize, Serialize};

use super::upgrade::{Upgrade, UpgradeEntry, UpgradeHost};
use crate::base::{HostName, Timestamp, text};
use crate::rollout::Futile;
use crate::rollout::group::Steered;

/// Longest reason that is kept, in characters.
const MAX_WHY: usize = 400;

/// What a person wants of an upgrade of hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum UpgradeSteer {
    /// Begin no further host for the time being; those that are begun are finished.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Try again a host that failed: it is drained and its command runs once more.
    Retry {
        /// Which.
        host: HostName,
    },
    /// Leave a host out whose turn has not come, or that failed.
    Skip {
        /// Which.
        host: HostName,
    },
    /// Begin no further host at all; those that are begun are finished.
    Stop,
}

impl UpgradeSteer {
    /// What a person does who asks for it.
    pub fn words(&self) -> String {
        match self {
            Self::Pause => "pauses the upgrade of hosts".to_owned(),
            Self::Resume => "resumes the upgrade of hosts".to_owned(),
            Self::Retry { host } => format!("has the upgrade of {host} tried again"),
            Self::Skip { host } => format!("leaves {host} out of the upgrade of hosts"),
            Self::Stop => "stops the upgrade of hosts".to_owned(),
        }
    }

    /// The host that it is about.
    pub const fn host(&self) -> Option<&HostName> {
        match self {
            Self::Retry { host } | Self::Skip { host } => Some(host),
            Self::Pause | Self::Resume | Self::Stop => None,
        }
    }
}

fn because(how: &str, by: &str, reason: Option<&str>) -> String {
    let reason = reason.map(|r| format!(": {r}")).unwrap_or_default();
    text::clean(&format!("{how} by {by}{reason}"), MAX_WHY)
}

/// Who stopped it and why, in words.
pub(super) fn stopped_words(stopped: &Steered) -> String {
    because("stopped", &stopped.by, stopped.reason.as_deref())
}

impl Upgrade {
    /// Whether this changes anything.
    ///
    /// # Errors
    /// It is not to be asked for now.
    pub fn takes(&self, what: &UpgradeSteer) -> Result<bool, Futile> {
        let futile = |why: String, instead: &str| Futile { why, instead: instead.to_owned() };
        let waits = self.hosts.iter().any(|entry| entry.state == UpgradeHost::Waiting);
        let shown = "`gpudeck hosts upgrade` shows how far each is";
        if let Some(host) = what.host() {
            let entry = self.entry(host).ok_or_else(|| {
                futile(format!("{host} is none of the hosts that are upgraded"), shown)
            })?;
            let word = entry.state.word();
            return match (what, &entry.state) {
                (_, UpgradeHost::Failed { .. })
                | (UpgradeSteer::Skip { .. }, UpgradeHost::Waiting) => Ok(true),
                (UpgradeSteer::Skip { .. }, UpgradeHost::Skipped { behind: None, .. }) => Ok(false),
                (UpgradeSteer::Skip { .. }, UpgradeHost::Skipped { .. }) => Ok(true),
                (UpgradeSteer::Skip { .. }, _) => Err(futile(
                    format!("{host} is {word}: what is begun is finished"),
                    "while it drains, `gpudeck uncordon` is the way out",
                )),
                _ => Err(futile(
                    format!(
                        "{host} did not fail, it is {word}: only one that failed is tried again"
                    ),
                    shown,
                )),
            };
        }
        if self.ended.is_some() {
            if *what == UpgradeSteer::Stop {
                return Ok(false);
            }
            return Err(futile(
                "no upgrade of hosts is under way".to_owned(),
                "`gpudeck hosts upgrade` shows the last one, `--run COMMAND` begins one",
            ));
        }
        match what {
            UpgradeSteer::Pause if !waits => Err(futile(
                "every host of the upgrade is begun already".to_owned(),
                "what is begun is finished; `gpudeck hosts upgrade` shows how far each is",
            )),
            UpgradeSteer::Pause => Ok(self.paused.is_none()),
            UpgradeSteer::Resume if self.paused.is_none() => Err(futile(
                "the upgrade of hosts is not paused".to_owned(),
                "`gpudeck hosts upgrade` shows what it waits for",
            )),
            UpgradeSteer::Stop => Ok(self.hosts.iter().any(UpgradeEntry::is_ahead)),
            _ => Ok(true),
        }
    }

    /// A person held it, let it go on, had a host tried again or left out, or stopped it.
    pub fn steered(&mut self, what: &UpgradeSteer, by: &str, reason: Option<&str>, at: Timestamp) {
        if !matches!(self.takes(what), Ok(true)) {
            return;
        }
        let reason = reason.map(str::trim).filter(|r| !r.is_empty());
        let steered = || Steered {
            by: by.to_owned(),
            since: at,
            reason: reason.map(|r| text::clean(r, MAX_WHY)),
        };
        match what {
            UpgradeSteer::Pause => self.paused = Some(steered()),
            UpgradeSteer::Resume => self.paused = None,
            UpgradeSteer::Retry { host } => {
                for entry in self.hosts.iter_mut().filter(|entry| entry.host == *host) {
                    entry.retries = entry.retries.saturating_add(1);
                    entry.state = UpgradeHost::Waiting;
                    entry.since = at;
                }
                self.row_goes_on(at);
            }
            UpgradeSteer::Skip { host } => {
                let why = because("skipped", by, reason);
                for entry in self.hosts.iter_mut().filter(|entry| entry.host == *host) {
                    entry.leave_out(&why, at);
                }
                self.row_goes_on(at);
            }
            UpgradeSteer::Stop => {
                self.stopped = Some(steered());
                let why = because("stopped", by, reason);
                for entry in self.hosts.iter_mut().filter(|entry| entry.is_ahead()) {
                    entry.leave_out(&why, at);
                }
            }
        }
        self.settle(at);
    }

    /// When no host is left that failed, those that were left out because of one have their turn.
    fn row_goes_on(&mut self, at: Timestamp) {
        if self.failures().next().is_some() {
            return;
        }
        for entry in &mut self.hosts {
            if matches!(entry.state, UpgradeHost::Skipped { behind: Some(_), .. }) {
                entry.state = UpgradeHost::Waiting;
                entry.since = at;
            }
        }
    }
}

impl UpgradeEntry {
    /// Its turn has not come, and may come.
    const fn is_ahead(&self) -> bool {
        matches!(self.state, UpgradeHost::Waiting | UpgradeHost::Skipped { behind: Some(_), .. })
    }

    fn leave_out(&mut self, why: &str, at: Timestamp) {
        self.state = UpgradeHost::Skipped { behind: None, why: Some(why.to_owned()) };
        self.since = at;
    }
}
