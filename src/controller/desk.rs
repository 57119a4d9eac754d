//! The front desk's way to the loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};

use super::actions::{self, Means};
use super::auditor::Auditor;
use super::core::{Core, Input};
use super::lent::LentAgents;
use super::{planning, what_if};
use crate::api::desk::Desk;
use crate::api::hub::Hub;
use crate::api::lend::{AgentAnswer, ToLender};
use crate::api::release::{BlameLine, DriftView, ReleaseDetail};
use crate::api::{
    ApiError, CheckupRequest, DrainPlan, ErrorKind, Intent, IntentReply, Looking, PlanView,
    PreviousLog, PreviousLogRequest, ReleaseView, UpgradePlan, UpgradeQuestion, Who,
};
use crate::base::{Hint, HostName, RankId, ReleaseNumber, ServiceName};
use crate::model::ModelFacts;
use crate::placement::what_if::{WhatIf, WhatIfView};
use crate::revision::DeckRepo;
use crate::rollout::RolloutKind;
use crate::spec::ConcurrencyPolicy;
use crate::weights::{self, LinkFiles, WeightsError};
use crate::wire::{Checkup, LogChunk};

/// A handle on the loop.
#[derive(Clone)]
pub struct Handle {
    /// What doors see.
    pub hub: Arc<Hub>,
    /// The loop's inputs.
    pub inputs: mpsc::Sender<Input>,
    /// For reading from hosts without the loop.
    pub means: Arc<Means>,
    /// The audit trail.
    pub audit: Arc<Auditor>,
    /// Wishes that were not answered yet.
    pub unanswered: Arc<AtomicUsize>,
    /// The SSH agents that doors lend.
    pub lent: Arc<LentAgents>,
}

/// Counts a wish as long as it lives.
struct Unanswered(Arc<AtomicUsize>);

impl Unanswered {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits a moment for the answers that are on their way when the loop has ended.
pub async fn let_answers_go(unanswered: &AtomicUsize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
    while unanswered.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // From the handler to the socket.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn gone() -> ApiError {
    ApiError {
        kind: ErrorKind::Unreachable,
        message: "the controller is ending".to_owned(),
        hint: Some("run the command again: it starts a new one".to_owned()),
    }
}

impl Handle {
    async fn ask<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let input = Input::Ask(Box::new(move |core| {
            let _ = reply.send(look(core));
        }));
        self.inputs.send(input).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// What another controller serves is not seen from here: a plan would count its GPUs as lost, and its
    /// replicas as missing. Hosts that were not asked yet who holds them are asked now.
    async fn not_fenced(&self) -> Result<(), ApiError> {
        self.survey().await?;
        self.ask(|core| core.not_fenced()).await?
    }

    /// Asks the hosts that this controller has never asked who holds them.
    async fn survey(&self) -> Result<(), ApiError> {
        let hosts = self.ask(|core| core.deck.hosts.keys().cloned().collect::<Vec<_>>()).await?;
        self.means.claims.survey_unknown(&self.means.fleet, &hosts).await;
        Ok(())
    }

    async fn is_under_way(&self, service: &ServiceName) -> Result<bool, ApiError> {
        let service = service.clone();
        self.ask(move |core| core.is_under_way(&service)).await
    }

    /// The plan of what comes after the rollout under way.
    async fn plan_after(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        kind: RolloutKind,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<PlanView, ApiError> {
        let name = service.clone();
        let draft = self.ask(move |core| core.draft(service, to)).await?.await?;
        self.not_fenced().await?;
        let planned = self.ask(move |core| core.plan_behind(&draft, kind, policy)).await??;
        planned.ok_or_else(|| super::queued_plan::not_foreseen(&name))
    }

    async fn plan_of(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        kind: RolloutKind,
    ) -> Result<PlanView, ApiError> {
        let draft = self.ask(move |core| core.draft(service, to)).await?.await?;
        self.not_fenced().await?;
        let (reply, answer) = oneshot::channel();
        let input = Input::Plan { draft: Box::new(draft), kind, reply };
        self.inputs.send(input).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Desk for Handle {
    fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    async fn refresh(&self) -> Result<(), ApiError> {
        self.ask(Core::reload).await
    }

    async fn intent(&self, intent: Intent, by: String) -> Result<IntentReply, ApiError> {
        if intent.service().is_some() || intent.maintains() {
            self.survey().await?;
        }
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Intent { intent, by, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    async fn intent_of(&self, intent: Intent, who: Who) -> Result<IntentReply, ApiError> {
        let unanswered = Unanswered::new(&self.unanswered);
        let asked = match self.audit.asked(&intent, &who).await {
            Ok(Some(asked)) => asked,
            Ok(None) => return self.intent(intent, who.user).await,
            Err(error) => {
                // The journal lies on the same disk: the loop says so, and tries until it is well.
                let answer = super::auditor::refusal(&error);
                self.ask(move |core| core.journal_answered(Some(&error))).await?;
                return Err(answer);
            }
        };
        // From here on it is done and its answer written down, also when whoever asked goes away.
        let desk = self.clone();
        let rest = tokio::spawn(async move {
            let _unanswered = unanswered;
            let result = desk.intent(intent, who.user).await;
            desk.audit.answered(asked, &result).await;
            result
        });
        rest.await.map_err(|_| gone())?
    }

    async fn plan(&self, service: ServiceName) -> Result<PlanView, ApiError> {
        self.plan_behind(service, None).await
    }

    async fn plan_behind(
        &self,
        service: ServiceName,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<PlanView, ApiError> {
        if self.is_under_way(&service).await? {
            return self.plan_after(service, None, RolloutKind::Apply, policy).await;
        }
        self.plan_of(service, None, RolloutKind::Apply).await
    }

    async fn inspect(&self, host: HostName, path: String) -> Result<ModelFacts, ApiError> {
        let known = self.ask(|core| core.deck.hosts.keys().cloned().collect::<Vec<_>>()).await?;
        if !known.contains(&host) {
            return Err(ApiError {
                kind: ErrorKind::NotFound,
                message: format!("there is no host `{host}` in the deck"),
                hint: Some("see `gpudeck hosts`".to_owned()),
            });
        }
        let link = actions::link(&self.means, &host).map_err(|e| ApiError {
            kind: ErrorKind::Unreachable,
            message: e.to_string(),
            hint: e.hint().or_else(|| Some(format!("`gpudeck doctor {host}` looks closer"))),
        })?;
        weights::describe(&LinkFiles::new(link), &path).await.map_err(|e| ApiError {
            kind: match &e {
                WeightsError::Link(_) | WeightsError::Timeout { .. } => ErrorKind::Unreachable,
                WeightsError::Model(m) if m.is_missing() => ErrorKind::NotFound,
                _ => ErrorKind::Invalid,
            },
            message: format!("on {host}: {e}"),
            hint: e.hint(),
        })
    }

    async fn plan_undo(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError> {
        let name = service.clone();
        let target = move |core: &mut Core| {
            let to = core.undo_target(&name, to)?;
            Ok::<_, ApiError>((to, core.undo_kind(&name, to), core.is_under_way(&name)))
        };
        let (to, kind, is_under_way) = self.ask(target).await??;
        let mut plan = if is_under_way {
            self.plan_after(service, Some(to), kind, Some(ConcurrencyPolicy::Replace)).await?
        } else {
            self.plan_of(service, Some(to), kind).await?
        };
        if kind == RolloutKind::Apply && plan.steps.len() > 1 {
            plan.warnings.insert(0, super::steer::was_never_stable(to));
        }
        Ok(plan)
    }

    async fn plan_retry(&self, service: ServiceName) -> Result<PlanView, ApiError> {
        let name = service.clone();
        let (to, kind) = self.ask(move |core| core.retry_target(&name)).await??;
        self.plan_of(service, Some(to), kind).await
    }

    async fn plan_together(&self, services: Vec<ServiceName>) -> Result<Vec<PlanView>, ApiError> {
        let drafts = self.ask(move |core| core.together_drafts(&services)).await??.await?;
        self.not_fenced().await?;
        self.ask(move |core| core.plan_together(&drafts)).await?
    }

    async fn what_if(&self, question: WhatIf) -> Result<WhatIfView, ApiError> {
        // The specs as they are now.
        self.refresh().await?;
        let asked = question.clone();
        let drafts = self.ask(move |core| core.what_if_drafts(&asked)).await??.await;
        self.not_fenced().await?;
        let asked = question.clone();
        let (world, left_out, mistaken) = self.ask(move |core| core.live_world(drafts)).await?;
        let view = tokio::task::spawn_blocking(move || what_if::answer(world, &asked))
            .await
            .map_err(|_| gone())??;
        Ok(WhatIfView { left_out, mistaken, ..view })
    }

    async fn plan_drain(&self, host: HostName) -> Result<DrainPlan, ApiError> {
        let wanted = host.clone();
        let drafts = self.ask(move |core| core.drain_drafts(&wanted)).await??.await?;
        self.not_fenced().await?;
        self.ask(move |core| core.drain_plan(&host, &drafts)).await?
    }

    async fn plan_upgrade(&self, question: UpgradeQuestion) -> Result<UpgradePlan, ApiError> {
        let UpgradeQuestion { hosts, max_parallel } = question;
        let read = move |core: &mut Core| {
            let hosts = core.upgradable(&hosts)?;
            let drafts = core.upgrade_drafts(&hosts);
            Ok::<_, ApiError>((hosts, drafts))
        };
        let (hosts, drafts) = self.ask(read).await??;
        let drafts = drafts.await?;
        self.not_fenced().await?;
        self.ask(move |core| core.plan_upgrade(&hosts, &drafts, max_parallel)).await
    }

    async fn diff(
        &self,
        service: ServiceName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<String, ApiError> {
        self.ask(move |core| planning::diff(core, &service, from, to)).await?
    }

    async fn gateway_config(&self, service: ServiceName) -> Result<String, ApiError> {
        let (gateways, servers) = self.ask(move |core| core.gateway_section(&service)).await??;
        Ok(gateways.sections(&servers).await)
    }

    async fn history(&self, service: ServiceName) -> Result<Vec<ReleaseView>, ApiError> {
        let name = service.clone();
        let latest = move |core: &mut Core| match core.files.history.get(&name) {
            Some(history) => {
                let root = core.repo.as_ref().map(|repo| repo.root().to_owned());
                let of = |release: &ReleaseView| ReleaseView {
                    progress: core
                        .state
                        .ledger
                        .chronicle(&name, release.number)
                        .filter(|c| c.has_begun())
                        .map(|c| Box::new(c.clone())),
                    ..release.clone()
                };
                let releases = history.iter().map(of).collect::<Vec<_>>();
                Ok((core.not_here(&name), releases, root))
            }
            None if core.known_services().contains(&name) => {
                Ok((core.not_here(&name), Vec::new(), None))
            }
            None => Err(planning::not_found(&name, core.known_services())),
        };
        let (mut not_here, mut releases, root) = self.ask(latest).await??;
        let with_others = move |releases: Vec<ReleaseView>| {
            not_here.extend(releases);
            not_here.sort_by_key(|release| std::cmp::Reverse(release.number));
            not_here
        };
        let Some(root) = root.filter(|_| releases.len() >= planning::SHOWN_RELEASES) else {
            return Ok(with_others(releases));
        };
        // Thousands of commits are not read on the loop.
        let read = move || DeckRepo::open(&root)?.history(&service, usize::MAX);
        let all = tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| gone())?
            .map_err(|e| super::sharing::api_error(&e))?;
        let oldest = releases.last().map(|r| r.number);
        let older = all.into_iter().filter(|e| oldest.is_none_or(|oldest| e.release < oldest));
        releases.extend(older.map(planning::release_view));
        Ok(with_others(releases))
    }

    async fn release(&self, number: ReleaseNumber) -> Result<ReleaseDetail, ApiError> {
        self.ask(move |core| core.release_detail(number)).await?
    }

    async fn blame(&self, service: ServiceName) -> Result<Vec<BlameLine>, ApiError> {
        self.ask(move |core| core.blame(&service)).await?
    }

    async fn drift(&self, service: Option<ServiceName>) -> Result<DriftView, ApiError> {
        self.survey().await?;
        let name = service.clone();
        let plan = self
            .ask(move |core| match name {
                Some(name) if !core.known_services().contains(&name) => {
                    Err(planning::not_found(&name, core.known_services()))
                }
                _ => Ok(core.drift_plan()),
            })
            .await??;
        super::drift::look(&self.means, plan, service.as_ref()).await
    }

    fn look(&self, looking: Looking) {
        self.means.attention.look(looking);
        self.means.pay_attention();
    }

    fn borrow_agent(&self) -> Result<BoxStream<'static, ToLender>, ApiError> {
        self.lent.borrow(&self.means)
    }

    fn agent_answers(&self, answer: AgentAnswer) -> Result<(), ApiError> {
        self.lent.answered(answer)
    }

    async fn check_up(&self, request: CheckupRequest) -> Result<Checkup, ApiError> {
        super::checkup::look(&self.means, request).await
    }

    async fn previous_log(&self, wanted: PreviousLogRequest) -> Result<PreviousLog, ApiError> {
        let asked = wanted.clone();
        let places = self
            .ask(move |core| {
                core.places_of_logs(&asked)
                    .ok_or_else(|| planning::not_found(&asked.service, core.known_services()))
            })
            .await??;
        super::previous_log::read(&self.means, places, &wanted).await
    }

    async fn log(
        &self,
        rank: RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, ApiError> {
        let wanted = rank.clone();
        let place = self
            .ask(move |core| {
                let state = core.state.services.get(&wanted.service)?;
                let release = state.releases.get(&wanted.replica.release)?;
                let plan = release.replica(wanted.replica.replica)?;
                let plan = plan.ranks.get(usize::try_from(wanted.rank).ok()?)?;
                Some((plan.host.clone(), release.spec.runtime.clone()))
            })
            .await?;
        let Some((host, spec)) = place else {
            return Err(ApiError {
                kind: ErrorKind::NotFound,
                message: format!("{rank} of {} is not known", rank.replica.release),
                hint: Some(format!("`gpudeck status {}` lists its replicas", rank.service)),
            });
        };
        let unreachable = |message: String, hint: Option<String>| ApiError {
            kind: ErrorKind::Unreachable,
            message,
            hint,
        };
        let runtime = actions::reading_runtime(&self.means, &spec, &host)
            .await
            .map_err(|e| unreachable(e.to_string(), e.hint()))?;
        runtime
            .read_log(&rank, offset, length.min(256 << 10))
            .await
            .map_err(|e| unreachable(e.to_string(), e.hint()))
    }
}
