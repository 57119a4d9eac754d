//! Ranks as plain processes, each under the agent's own supervisor: every call is one request to
//! the agent. What starts, stops and watches the process lives in `agent`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Difference, RunningRank, Runtime, RuntimeError, difference};
use crate::base::{DeckId, EpochCell, RankId, text};
use crate::fleet::{HostLink, LinkError};
use crate::wire::{LogChunk, RankReport, RankStart, RankStatus, RankWanted, Reply, Request, Verb};

/// Most log bytes the agent gives in one answer.
const MAX_LOG_BYTES: u32 = 256 << 10;

/// The `process` runtime of one host.
pub struct ProcessRuntime {
    link: Arc<dyn HostLink>,
    deck: DeckId,
    epoch: EpochCell,
}

impl ProcessRuntime {
    /// A runtime that acts through `link` for `deck`, under whatever epoch the cell holds then.
    pub fn new(link: Arc<dyn HostLink>, deck: DeckId, epoch: EpochCell) -> Self {
        Self { link, deck, epoch }
    }

    async fn act(&self, verb: Verb) -> Result<(), RuntimeError> {
        let request = Request::Act { deck: self.deck, epoch: self.epoch.get(), verb };
        match self.link.request(request).await? {
            Reply::Done => Ok(()),
            other => Err(self.misfit(&other)),
        }
    }

    fn misfit(&self, reply: &Reply) -> RuntimeError {
        let what = text::clean(&format!("{reply:?}"), 120);
        LinkError::Unexpected { host: self.link.host().clone(), what }.into()
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    async fn start(&self, start: &RankStart) -> Result<(), RuntimeError> {
        self.act(Verb::StartRank(Box::new(start.clone()))).await
    }

    async fn stop(&self, rank: &RankId, grace: Duration) -> Result<(), RuntimeError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.act(Verb::StopRank { rank: rank.clone(), grace_ms }).await
    }

    async fn remove(&self, rank: &RankId) -> Result<(), RuntimeError> {
        self.act(Verb::RemoveRank { rank: rank.clone() }).await
    }

    async fn list(&self) -> Result<Vec<RankReport>, RuntimeError> {
        match self.link.request(Request::Ranks { deck: Some(self.deck) }).await? {
            Reply::Ranks(mut reports) => {
                reports.retain(|report| report.rank.deck == self.deck);
                Ok(reports)
            }
            other => Err(self.misfit(&other)),
        }
    }

    async fn running(&self) -> Result<Vec<RunningRank>, RuntimeError> {
        let reports = self.list().await?;
        let request = Request::RankCommands { deck: self.deck };
        let commands = match self.link.request(request).await? {
            Reply::Commands(commands) => commands,
            other => return Err(self.misfit(&other)),
        };
        Ok(reports
            .into_iter()
            .filter(|r| matches!(r.status, RankStatus::Running { .. }))
            .map(|r| {
                let argv = commands.iter().find(|(rank, _)| *rank == r.rank);
                let argv = argv.map(|(_, a)| a.clone());
                RunningRank { argv, rank: r.rank, image: None, setup: None, told: None }
            })
            .collect())
    }

    async fn differences(
        &self,
        wanted: &RankStart,
    ) -> Result<Option<Vec<Difference>>, RuntimeError> {
        let (rank, argv, env) = (wanted.rank.clone(), wanted.argv.clone(), wanted.env.clone());
        let wanted = RankWanted { rank, argv, env };
        match self.link.request(Request::CompareRank(Box::new(wanted.clone()))).await {
            Ok(Reply::Compared(seen)) => {
                Ok(seen.map(|seen| difference::of_process(&wanted, &seen)))
            }
            // An agent from before that was asked.
            Err(LinkError::Refused { .. }) => Ok(None),
            Ok(other) => Err(self.misfit(&other)),
            Err(error) => Err(error.into()),
        }
    }

    async fn read_log(
        &self,
        rank: &RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, RuntimeError> {
        let length = length.min(MAX_LOG_BYTES);
        match self.link.request(Request::ReadLog { rank: rank.clone(), offset, length }).await? {
            Reply::Log(chunk) => Ok(chunk),
            other => Err(self.misfit(&other)),
        }
    }
}
