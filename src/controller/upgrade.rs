//! An upgrade of hosts as a rollout of its own, carried out as `rollout::maintenance` decides: cordon, drain, run a
//! command there, wait until the host is back with all of its GPUs, uncordon, next. Every stage is journaled before it
//! begins; the command runs under a supervisor of its own with a name that it has once, so a killed controller finds it again, and a
//! link that breaks (a reboot) does not end it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::actions::{self, Means};
use super::begin::plan_changed;
use super::core::{Core, Input, now};
use super::deck_ledger::DeckEvent;
use super::maintenance::{DrainWish, conflict};
use super::planning::Draft;
use crate::api::{
    ApiError, ErrorKind, HostLinkState, HostView, IntentReply, Severity, Upgrade, UpgradeEntry,
    UpgradeHost, UpgradeSteer,
};
use crate::base::{
    Attempt, Bytes, HostName, RankId, ReleaseId, ReleaseNumber, ReplicaId, Timestamp, text,
};
use crate::rollout::maintenance::{AwaitedByNext, HostSeen, Reach, Seen, UpgradeMove, Watch};
use crate::runtime::Runtime;
use crate::runtime::process::ProcessRuntime;
use crate::wire::{GpuHealth, HostSample, PROTOCOL_VERSION, RankStart, RankStatus, Reply, Request};

/// Log kept of the command.
const LOG_LIMIT: Bytes = Bytes::mib(1);

/// Time from SIGTERM to SIGKILL of a command that takes too long.
const GRACE: Duration = Duration::from_secs(10);

/// Hosts that may be named in one upgrade.
const MAX_HOSTS: usize = 1_000;

/// What is asked for.
pub struct Wish {
    /// See `Intent::UpgradeHosts`.
    pub command: String,
    /// Likewise.
    pub hosts: Vec<HostName>,
    /// Likewise.
    pub max_parallel: u32,
    /// Likewise.
    pub timeout_ms: u64,
    /// Likewise.
    pub return_ms: u64,
    /// Likewise.
    pub agreed: Option<String>,
}

/// What an upgrade needs to know between two ticks; nothing of it must survive.
#[derive(Default)]
pub struct UpgradeTasks {
    running: BTreeMap<HostName, JoinHandle<()>>,
    watch: Watch,
    /// What the next host waits for, as it was told last.
    waits_for: Option<AwaitedByNext>,
}

impl Drop for UpgradeTasks {
    fn drop(&mut self) {
        for task in self.running.values() {
            task.abort();
        }
    }
}

/// How the command ended.
enum Ended {
    Well { said: String },
    Badly { why: String },
}

/// An upgrade that would end at this host does not begin.
pub(super) fn not_emptied(host: &HostName, error: ApiError) -> ApiError {
    let message = error.message;
    let which = if message.contains(host.as_str()) { String::new() } else { format!("{host}: ") };
    ApiError { message: format!("no host is upgraded: {which}{message}"), ..error }
}

fn invalid(message: String, hint: &str) -> ApiError {
    ApiError { kind: ErrorKind::Invalid, message, hint: Some(hint.to_owned()) }
}

impl Core {
    /// Takes a wish to upgrade hosts: whether each of them can be emptied is looked at first, off the loop.
    pub(super) fn ask_upgrade(
        &mut self,
        wish: Wish,
        by: String,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        let work = match self.upgradable_by(&wish) {
            Ok(hosts) => self.upgrade_drafts(&hosts),
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let inputs = self.means.inputs.clone();
        self.tasks.spawn(async move {
            let drafts = work.await;
            let begin = Box::new(move |core: &mut Core| {
                let begun = drafts.and_then(|drafts| core.begin_upgrade(wish, &drafts, by));
                core.answer(reply, begun);
            });
            let _ = inputs.send(Input::Ask(begin)).await;
        });
    }

    fn upgradable_by(&self, wish: &Wish) -> Result<Vec<HostName>, ApiError> {
        if wish.command.trim().is_empty() || wish.command.len() > 64 << 10 {
            return Err(invalid("there is no command to run".to_owned(), "give one with --run"));
        }
        self.upgradable(&wish.hosts)
    }

    /// The hosts that are to be upgraded, if that may begin.
    pub(super) fn upgradable(&self, wanted: &[HostName]) -> Result<Vec<HostName>, ApiError> {
        if let Some(upgrade) = self.state.ledger.maintenance.present_upgrade() {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("{} upgrades hosts since {}", upgrade.by, upgrade.began),
                hint: Some("`gpudeck hosts` shows how far it is".to_owned()),
            });
        }
        let mut hosts: Vec<HostName> = Vec::new();
        let all = self.deck.hosts.keys().cloned();
        let named = if wanted.is_empty() { all.collect() } else { wanted.to_vec() };
        for host in named.into_iter().take(MAX_HOSTS) {
            self.known_host(&host)?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        if hosts.is_empty() {
            return Err(invalid("the deck has no hosts".to_owned(), "name some in deck.toml"));
        }
        Ok(hosts)
    }

    /// `drafts`: what the services on its hosts are placed elsewhere by.
    fn begin_upgrade(
        &mut self,
        wish: Wish,
        drafts: &[Draft],
        by: String,
    ) -> Result<IntentReply, ApiError> {
        // Meanwhile something else may have begun.
        let hosts = self.upgradable_by(&wish)?;
        let plan = self.plan_upgrade(&hosts, drafts, wish.max_parallel);
        if let Some(refusal) = plan.refusal() {
            return Err(refusal.clone());
        }
        if wish.agreed.is_some_and(|agreed| agreed != plan.digest()) {
            return Err(plan_changed());
        }
        for words in self.gateways_on(&hosts) {
            self.say(Severity::Warning, None, &words);
        }
        let entries = hosts.iter().map(|host| UpgradeEntry::waiting(host.clone(), now()));
        let upgrade = Upgrade {
            id: ReleaseId(uuid::Uuid::now_v7()),
            command: wish.command,
            hosts: entries.collect(),
            max_parallel: wish.max_parallel.max(1),
            timeout_ms: wish.timeout_ms,
            return_ms: wish.return_ms,
            by: by.clone(),
            began: now(),
            ended: None,
            paused: None,
            stopped: None,
        };
        self.deck_told(DeckEvent::UpgradeBegun { upgrade })?;
        let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        self.say(Severity::Info, None, &format!("{by} upgrades {}", names.join(", ")));
        for host in &hosts {
            self.publish_maintenance(host);
        }
        Ok(IntentReply::Accepted)
    }

    /// A person holds it, lets it go on, has a host tried again or left out, or stops it.
    pub(super) fn steer_upgrade(
        &mut self,
        what: &UpgradeSteer,
        by: &str,
        reason: Option<String>,
    ) -> Result<IntentReply, ApiError> {
        let reason = reason.filter(|reason| !reason.trim().is_empty());
        if matches!(what, UpgradeSteer::Skip { .. }) && reason.is_none() {
            return Err(ApiError {
                kind: ErrorKind::Invalid,
                message: "a host is only left out for a reason".to_owned(),
                hint: Some("say why with --reason".to_owned()),
            });
        }
        let Some(upgrade) = &self.state.ledger.maintenance.upgrade else {
            return match what {
                UpgradeSteer::Stop => Ok(IntentReply::NothingToDo),
                _ => Err(conflict(
                    "no hosts were upgraded here yet".to_owned(),
                    "`gpudeck hosts upgrade --run COMMAND` begins that",
                )),
            };
        };
        let hosts: Vec<HostName> = upgrade.hosts.iter().map(|entry| entry.host.clone()).collect();
        if !upgrade.takes(what).map_err(|futile| conflict(futile.why, &futile.instead))? {
            return Ok(IntentReply::NothingToDo);
        }
        let cordoned = |host| self.state.ledger.maintenance.host_cordon(host).is_some();
        let stays = match what {
            UpgradeSteer::Skip { host } if cordoned(host) => "; it stays cordoned",
            _ => "",
        };
        let why = reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let words = format!("{by} {}{why}{stays}", what.words());
        let (steer, by) = (what.clone(), by.to_owned());
        self.deck_told(DeckEvent::UpgradeSteered { steer, by, reason })?;
        self.say(Severity::Info, None, &words);
        for host in hosts {
            if what.host() == Some(&host) {
                self.upgrades.watch.went(&host);
            }
            self.publish_maintenance(&host);
        }
        Ok(IntentReply::Accepted)
    }

    /// It could not be emptied: beside other hosts it waits for them.
    fn drain_refused(&mut self, host: &HostName, error: &ApiError) {
        // Somebody uncordoned it: that is written down already.
        if !self.state.ledger.maintenance.awaits_drain(host) {
            return;
        }
        let (why, watch) = (error.message.as_str(), &mut self.upgrades.watch);
        let mut state = self.state.ledger.maintenance.refused(host, why, watch);
        // To try it again as everything is would end the same way.
        if let (UpgradeHost::Failed { why }, Some(hint)) = (&mut state, &error.hint) {
            *why = text::clean(&format!("{why} → {hint}"), 400);
        }
        if state == UpgradeHost::Waiting {
            let words = format!("beside the hosts that are begun {host} is not upgraded: {why}");
            self.say(Severity::Info, None, &words);
        }
        self.went(host, state);
    }

    /// Whether it could be written down.
    fn went(&mut self, host: &HostName, state: UpgradeHost) -> bool {
        let line = match &state {
            UpgradeHost::Failed { why } => {
                let cordoned = self.state.ledger.maintenance.host_cordon(host).is_some();
                let stays = if cordoned { "; it stays cordoned" } else { "" };
                (Severity::Error, format!("the upgrade of {host} failed: {why}{stays}"))
            }
            UpgradeHost::Running { .. } => {
                (Severity::Info, format!("the upgrade's command runs on {host}"))
            }
            UpgradeHost::Returning { said, .. } => {
                (Severity::Info, format!("{host} is waited for after the command ({said})"))
            }
            UpgradeHost::Done => (Severity::Info, format!("{host} is upgraded")),
            state => (Severity::Info, format!("{host}: {}", state.word())),
        };
        // A failure is told of those whose turn had not come, too.
        let is_of_all = matches!(state, UpgradeHost::Failed { .. });
        if let Err(error) = self.deck_happened(DeckEvent::UpgradeWent { host: host.clone(), state })
        {
            // Nothing was applied: the next tick tries again.
            tracing::error!(%error, "the journal cannot be written");
            return false;
        }
        self.say(line.0, None, &line.1);
        self.upgrades.watch.went(host);
        let hosts: Vec<HostName> = self
            .state
            .ledger
            .maintenance
            .upgrade
            .iter()
            .flat_map(|u| u.hosts.iter().map(|h| h.host.clone()))
            .filter(|of| is_of_all || of == host)
            .collect();
        for host in hosts {
            self.publish_maintenance(&host);
        }
        true
    }

    pub(super) fn upgrade_failed(&mut self, host: &HostName, why: &str) {
        self.went(host, UpgradeHost::Failed { why: text::clean(why, 400) });
    }

    /// What is under way on hosts is not ours to go on with: what is known of the upgrade may be another's, or old.
    pub(super) fn end_upgrade_tasks(&mut self) {
        self.upgrades = UpgradeTasks::default();
    }

    /// Brings the upgrade on.
    pub(super) fn tend_upgrade(&mut self) {
        let Some(upgrade) = self.state.ledger.maintenance.present_upgrade() else { return };
        // Each host goes a few steps at most; what could not be written down is tried again at the next tick.
        let most = 4 * upgrade.hosts.len();
        self.upgrades.running.retain(|_, task| !task.is_finished());
        let hosts = self
            .hub
            .with(|s| s.hosts.iter().map(|(name, view)| (name.clone(), host_seen(view))).collect());
        for _ in 0..most {
            let seen = Seen { now: now(), hosts: &hosts, services: &self.state.services };
            let watch = &mut self.upgrades.watch;
            watch.busy = self.upgrades.running.keys().cloned().collect();
            let maintenance = &self.state.ledger.maintenance;
            let waits_for = maintenance.upgrade_waits_for(&seen, watch);
            let next = maintenance.next_of_upgrade(&seen, watch);
            self.tell_of_waiting(waits_for);
            if !next.is_some_and(|next| self.carry_out_for_upgrade(next)) {
                return;
            }
        }
    }

    fn tell_of_waiting(&mut self, waits_for: Option<AwaitedByNext>) {
        if let Some(awaited) = waits_for.as_ref().filter(|_| self.upgrades.waits_for != waits_for) {
            self.say(Severity::Info, None, &awaited.words());
        }
        self.upgrades.waits_for = waits_for;
    }

    /// Whether it is done or has begun, so that more may follow.
    fn carry_out_for_upgrade(&mut self, next: UpgradeMove) -> bool {
        let Some(upgrade) = self.state.ledger.maintenance.present_upgrade().cloned() else {
            return false;
        };
        match next {
            UpgradeMove::Went { host, state } => self.went(&host, state),
            UpgradeMove::Drain { host } => self.drain_for(&upgrade, &host),
            UpgradeMove::Run { host } => self.run_command(&upgrade, &host),
            UpgradeMove::Forget { host } => self.forget_command(&upgrade, &host),
        }
    }

    fn drain_for(&mut self, upgrade: &Upgrade, host: &HostName) -> bool {
        let by = upgrade.by.clone();
        if let Err(error) = self.cordon(host, None, &by, Some("upgrade".to_owned())) {
            self.upgrade_failed(host, &error.message);
            return false;
        }
        let (reply, answer) = oneshot::channel();
        let reason = Some("upgrade".to_owned());
        self.drain(
            DrainWish { host: host.clone(), by, reason, agreed: None, for_upgrade: true },
            reply,
        );
        let (inputs, host_name) = (self.means.inputs.clone(), host.clone());
        let task = tokio::spawn(async move {
            if let Ok(Err(error)) = answer.await {
                let tell = Box::new(move |core: &mut Core| {
                    core.drain_refused(&host_name, &error);
                });
                let _ = inputs.send(Input::Ask(tell)).await;
            }
        });
        self.upgrades.running.insert(host.clone(), task);
        true
    }

    fn run_command(&mut self, upgrade: &Upgrade, host: &HostName) -> bool {
        let Some(entry) = upgrade.hosts.iter().find(|entry| entry.host == *host) else {
            return false;
        };
        let UpgradeHost::Running { gpus, boot, cordoned_before } = entry.state.clone() else {
            return false;
        };
        let Some(rank) = rank_of(self.deck.id, upgrade.id, entry.attempt()) else { return false };
        let start = RankStart {
            rank,
            argv: argv_of(upgrade),
            env: BTreeMap::from([("GPUDECK_HOST".to_owned(), host.to_string())]),
            needs: Vec::new(),
            ports: Vec::new(),
            files: Vec::new(),
            key_file: None,
            log_limit: LOG_LIMIT,
        };
        let means = Arc::clone(&self.means);
        let deadline = entry.since.plus(Duration::from_millis(upgrade.timeout_ms));
        let task_host = host.clone();
        let task = tokio::spawn(async move {
            let ended = run_there(&means, &task_host, &start, boot.as_deref(), deadline).await;
            let tell = Box::new(move |core: &mut Core| match ended {
                Ended::Well { said } => {
                    let state = UpgradeHost::Returning { gpus, said, cordoned_before };
                    core.went(&task_host, state);
                }
                Ended::Badly { why } => core.upgrade_failed(&task_host, &why),
            });
            let _ = means.inputs.send(Input::Ask(tell)).await;
        });
        self.upgrades.running.insert(host.clone(), task);
        true
    }

    /// The deadlines of running commands are other ones now: who waits for one waits anew.
    pub(super) fn wait_anew_for_commands(&mut self) {
        let Some(upgrade) = &self.state.ledger.maintenance.upgrade else { return };
        let runs = |state: &UpgradeHost| matches!(state, UpgradeHost::Running { .. });
        for entry in upgrade.hosts.iter().filter(|entry| runs(&entry.state)) {
            if let Some(waiting) = self.upgrades.running.remove(&entry.host) {
                waiting.abort();
            }
        }
    }

    /// What the command logged is not kept on a host that is done.
    fn forget_command(&mut self, upgrade: &Upgrade, host: &HostName) -> bool {
        let Some(entry) = upgrade.entry(host) else { return false };
        // Those that failed before it was tried again, too.
        let mut attempts = vec![Attempt::FIRST];
        while let Some(last) = attempts.last().copied().filter(|last| *last < entry.attempt()) {
            attempts.push(last.next());
        }
        let rank = |attempt| rank_of(self.deck.id, upgrade.id, attempt);
        let ranks: Vec<RankId> = attempts.into_iter().filter_map(rank).collect();
        let (means, there) = (Arc::clone(&self.means), host.clone());
        let task = tokio::spawn(async move {
            let mut has = true;
            for rank in &ranks {
                has &= forget(&means, &there, rank).await;
            }
            let tell = Box::new(move |core: &mut Core| {
                core.upgrades.watch.told_to_forget(&there, has);
            });
            let _ = means.inputs.send(Input::Ask(tell)).await;
        });
        self.upgrades.running.insert(host.clone(), task);
        true
    }
}

/// Whether nothing of the command is left on a host.
async fn forget(means: &Means, host: &HostName, rank: &RankId) -> bool {
    let Ok(link) = actions::link(means, host) else { return false };
    let Ok(epoch) = means.claims.ensure(link.as_ref()).await else { return false };
    ProcessRuntime::new(link, means.deck, epoch).remove(rank).await.is_ok()
}

/// What the decider is told of a host.
fn host_seen(view: &HostView) -> HostSeen {
    let reach = match &view.link {
        HostLinkState::Connecting { .. } => Reach::Unknown,
        HostLinkState::Up => Reach::Up,
        HostLinkState::Down { cause, .. } => Reach::Down { cause: cause.clone() },
        HostLinkState::Asking { .. } | HostLinkState::Limited { .. } => Reach::Partly,
    };
    HostSeen {
        reach,
        gpus_well: view.sample.as_ref().map(|sample| well(sample)),
        read: view.sampled,
        boot: view.facts.as_ref().map(|facts| facts.boot_id.clone()),
    }
}

/// GPUs that answer, and of which nothing bad is known.
fn well(sample: &HostSample) -> u32 {
    let well = sample.gpus.list().iter().filter(|gpu| gpu.health == GpuHealth::Ok);
    u32::try_from(well.count()).unwrap_or(u32::MAX)
}

/// How the command is started.
pub(super) fn argv_of(upgrade: &Upgrade) -> Vec<String> {
    ["sh", "-c", &upgrade.command].map(str::to_owned).to_vec()
}

/// The name under which the command runs: the same whoever starts it, until a person has the host tried again.
pub(super) fn rank_of(
    deck: crate::base::DeckId,
    upgrade: ReleaseId,
    attempt: Attempt,
) -> Option<RankId> {
    let replica = ReplicaId { release: ReleaseNumber(0), replica: 0, attempt };
    let service = "host-upgrade".parse().ok()?;
    Some(RankId { deck, service, release_id: upgrade, replica, rank: 0 })
}

/// Starts the command (once) and waits for its end, through links that come and go.
async fn run_there(
    means: &Means,
    host: &HostName,
    start: &RankStart,
    boot: Option<&str>,
    deadline: Timestamp,
) -> Ended {
    let mut last = "it is not reached".to_owned();
    loop {
        match look(means, host, start, boot, deadline).await {
            Ok(Some(ended)) => return ended,
            Ok(None) => {}
            Err(error) => last = error,
        }
        // A host that cannot be asked may take a little longer to tell how it ended.
        if now() > deadline.plus(Duration::from_mins(5)) {
            return Ended::Badly { why: format!("how the command ended is not known: {last}") };
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn look(
    means: &Means,
    host: &HostName,
    start: &RankStart,
    boot: Option<&str>,
    deadline: Timestamp,
) -> Result<Option<Ended>, String> {
    let link = actions::link(means, host).map_err(|e| e.to_string())?;
    let of = &start.rank.service;
    means.is_up_to_date(of, link.as_ref()).await.map_err(|e| e.to_string())?;
    let epoch = means.claims.ensure(link.as_ref()).await.map_err(|e| e.to_string())?;
    let runtime = ProcessRuntime::new(Arc::clone(&link), means.deck, epoch);
    let reports = runtime.list().await.map_err(|e| e.to_string())?;
    let own = reports.iter().find(|r| r.rank == start.rank).map(|r| r.status.clone());
    let Some(status) = own else {
        // What was given up may run on: two of them would be in each other's way.
        let attempt = start.rank.replica.attempt;
        let runs = |status: &RankStatus| matches!(status, RankStatus::Running { .. });
        let earlier = reports.iter().find(|r| {
            r.rank.release_id == start.rank.release_id
                && r.rank.replica.attempt < attempt
                && runs(&r.status)
        });
        if let Some(earlier) = earlier {
            runtime.stop(&earlier.rank, GRACE).await.map_err(|e| e.to_string())?;
            return Ok(None);
        }
        if now() > deadline {
            return Ok(Some(Ended::Badly { why: "it was not reached in time".to_owned() }));
        }
        return match runtime.start(start).await {
            Ok(()) => Ok(None),
            Err(error) if error.is_transient() => Err(error.to_string()),
            Err(error) => Ok(Some(Ended::Badly { why: error.to_string() })),
        };
    };
    let ended = match status {
        RankStatus::Running { .. } if now() > deadline => {
            runtime.stop(&start.rank, GRACE).await.map_err(|e| e.to_string())?;
            Ended::Badly { why: "the command took too long (--timeout) and was ended".to_owned() }
        }
        RankStatus::Running { .. } => return Ok(None),
        RankStatus::Exited { code: Some(0), last_lines, .. } => {
            Ended::Well { said: said("exit code 0", &last_lines) }
        }
        RankStatus::Exited { code, signal, last_lines, .. } => {
            let how = match (code, signal) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("killed by signal {signal}"),
                (None, None) => "it ended".to_owned(),
            };
            // A reboot ends the command that asked for it.
            match (signal, rebooting(&start.argv)) {
                (Some(_), true) => Ended::Well { said: how },
                _ => Ended::Badly { why: said(&how, &last_lines) },
            }
        }
        // A restart of the host ends whatever asked for it. Without one somebody ended the supervisor.
        RankStatus::Lost => {
            let hello = Request::Hello { protocol: PROTOCOL_VERSION };
            let now = match link.request(hello).await.map_err(|e| e.to_string())? {
                Reply::Hello { facts, .. } => facts.boot_id,
                other => return Err(text::clean(&format!("unexpected: {other:?}"), 80)),
            };
            match boot {
                Some(before) if before == now => Ended::Badly {
                    why: "its supervisor was ended, and how the command ended is not known"
                        .to_owned(),
                },
                _ => Ended::Well { said: "the host was restarted".to_owned() },
            }
        }
    };
    Ok(Some(ended))
}

/// Whether the command speaks of a restart of the host.
fn rebooting(argv: &[String]) -> bool {
    argv.iter().any(|a| ["reboot", "shutdown", "kexec"].iter().any(|word| a.contains(word)))
}

fn said(how: &str, last_lines: &str) -> String {
    let line = last_lines.trim_end().lines().last().unwrap_or("");
    let line = text::clean(line, 200);
    if line.is_empty() { how.to_owned() } else { format!("{how}: {line}") }
}
