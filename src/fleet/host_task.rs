//! The life of one link: connect, install, run the agent, carry messages, and again when lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;

use super::desk::{Desk, HostQuestions};
use super::facts::WatchedFacts;
use super::following::{Attention, AttentionCell};
use super::install::{AgentCommand, InstallError, Source, install, wants_newer_system};
use super::manager::InProcessHosts;
use super::outbox::Outbox;
use super::session::{DialError, Running, Session, SessionError, first_words};
use super::{
    AgentBinary, DialStream, FleetEvent, HostLink, LinkError, LinkState, binary, fallback, quick,
};
use crate::base::{DownCause, Hint, HostName, text};
use crate::spec::{Become, HostSpec, Transport};
use crate::ssh::{
    AsRoot, ConnectOptions, Connection, Endpoint, LocalConnection, NoQuestions, Questions,
    SshError, Target, connect,
};
use crate::wire::{DialAccess, DialTarget, HostFacts, Reply, Request};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// What only a person can mend is tried again this slowly, so that logs do not fill; the longer it
/// stays, the more slowly.
const SLOW_RETRY: Duration = Duration::from_mins(1);
const SLOWEST_RETRY: Duration = Duration::from_mins(5);
/// Where no agent could be it is tried again after so long.
const AGENT_AGAIN: Duration = Duration::from_mins(5);
/// A lost login is not tried again for every agent that is lent, but at most so often: with a key that was not
/// lent before, and with none, as of one command after the other in the same session.
const NEW_LENT_AGAIN: Duration = Duration::from_secs(10);
pub(super) const SAME_LENT_AGAIN: Duration = Duration::from_mins(1);
/// Lent keys that are remembered.
const MAX_LENT_KEYS: usize = 4_096;
/// A link that was up for so long starts again with the shortest wait.
const STEADY: Duration = Duration::from_secs(10);
/// Warnings that are remembered; what comes beyond them is told each time.
const MAX_WARNED: usize = 4_096;

/// What all links of a fleet share.
pub(super) struct Shared {
    pub(super) agent_binary: Option<PathBuf>,
    pub(super) agent_memo: Option<PathBuf>,
    pub(super) interactive: bool,
    pub(super) in_process: Option<Arc<dyn InProcessHosts>>,
    pub(super) facts_every: Duration,
    pub(super) first_question: Option<Request>,
    pub(super) desk: Arc<Desk>,
    /// What all connections share: unlocked keys, agents, jump hosts.
    pub(super) ssh: ConnectOptions,
    /// Hashed once, when the first host needs it.
    pub(super) binary: OnceCell<AgentBinary>,
    /// What was warned of in the SSH configuration: one line of a file may concern every host.
    pub(super) warned: Mutex<BTreeSet<String>>,
}

impl Shared {
    fn binary_path(&self) -> Result<PathBuf, InstallError> {
        match &self.agent_binary {
            Some(path) => Ok(path.clone()),
            None => binary::own_path().map_err(|error| InstallError::Binary {
                path: "of this program".to_owned(),
                why: error.to_string(),
            }),
        }
    }

    async fn binary(&self) -> Result<&AgentBinary, InstallError> {
        let read = || async {
            let path = self.binary_path()?;
            let failed =
                |why: String| InstallError::Binary { path: path.display().to_string(), why };
            let (reading, memo) = (path.clone(), self.agent_memo.clone());
            let read = move || match memo {
                Some(memo) => AgentBinary::read_once(&reading, &memo),
                None => AgentBinary::read(&reading),
            };
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|error| failed(error.to_string()))?
                .map_err(|error| failed(error.to_string()))
        };
        self.binary.get_or_try_init(read).await
    }
}

/// The link to one host, as others hold it. It outlives connections.
pub(super) struct Link {
    host: HostName,
    current: Mutex<Current>,
    /// Told to try again now.
    pub(super) told: Notify,
    lent: Lent,
    /// How closely it is followed.
    pub(super) attention: AttentionCell,
    /// What the SSH configuration asks for in vain, as of the last attempt.
    pub(super) ssh_notes: Mutex<Vec<String>>,
}

/// That agents were lent.
#[derive(Default)]
struct Lent {
    /// With a key that none had since the login was good.
    new: Notify,
    /// With such keys only as were lent before.
    same: Notify,
    seen: Mutex<BTreeSet<Vec<u8>>>,
}

impl Lent {
    fn seen(&self) -> MutexGuard<'_, BTreeSet<Vec<u8>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, keys: &BTreeSet<Vec<u8>>) {
        let mut seen = self.seen();
        if keys.is_subset(&seen) {
            self.same.notify_one();
            return;
        }
        if seen.len() + keys.len() > MAX_LENT_KEYS {
            seen.clear();
        }
        seen.extend(keys.iter().cloned());
        self.new.notify_one();
    }

    /// A try begins: what was lent before is among the agents that it asks.
    fn begin(&self) {
        let _ = (self.new.notified().now_or_never(), self.same.notified().now_or_never());
    }

    /// The login is good: whatever is lent after it was lost may help.
    fn forget(&self) {
        self.seen().clear();
    }

    /// An agent was lent since the last try, which was made for one at `woken`. Not again right after that:
    /// a server counts logins that fail.
    async fn again(&self, woken: Option<tokio::time::Instant>) {
        let rest = async |after: Duration| {
            if let Some(woken) = woken {
                tokio::time::sleep_until(woken + after).await;
            }
        };
        tokio::select! {
            () = self.new.notified() => {}
            () = async {
                self.same.notified().await;
                rest(SAME_LENT_AGAIN).await;
            } => return,
        }
        rest(NEW_LENT_AGAIN).await;
    }
}

enum Current {
    Down { why: String, hint: Option<String> },
    Up(Arc<Session>),
}

impl Link {
    pub(super) fn new(host: HostName) -> Arc<Self> {
        let current = Current::Down { why: "not connected yet".to_owned(), hint: None };
        Arc::new(Self {
            host,
            current: Mutex::new(current),
            told: Notify::new(),
            lent: Lent::default(),
            attention: AttentionCell::new(Attention::default()),
            ssh_notes: Mutex::default(),
        })
    }

    /// Whether one of these keys was not lent since the login was good.
    pub(super) fn is_new(&self, keys: &BTreeSet<Vec<u8>>) -> bool {
        !keys.is_subset(&self.lent.seen())
    }

    /// An agent with these keys was lent: where the login is lost it is tried again.
    pub(super) fn lent(&self, keys: &BTreeSet<Vec<u8>>) {
        self.lent.told(keys);
    }

    /// It is to be followed so closely from now on.
    pub(super) fn follow(&self, attention: Attention) {
        self.attention.send_if_modified(|known| std::mem::replace(known, attention) != attention);
    }

    fn down(&self, why: &str, hint: Option<String>) {
        let new = Current::Down { why: why.to_owned(), hint };
        let old = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, new)
        };
        if let Current::Up(session) = old {
            session.fail_all();
        }
    }

    fn up(&self, session: Arc<Session>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Current::Up(session);
    }

    fn session(&self) -> Result<Arc<Session>, LinkError> {
        match &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            Current::Up(session) => Ok(Arc::clone(session)),
            Current::Down { why, hint } => Err(LinkError::Down {
                host: self.host.clone(),
                why: why.clone(),
                hint: hint.clone(),
            }),
        }
    }

    /// The link was lost under a request: why, as far as is known yet.
    fn lost(&self) -> LinkError {
        self.session().err().unwrap_or_else(|| LinkError::Down {
            host: self.host.clone(),
            why: "the connection was lost".to_owned(),
            hint: None,
        })
    }
}

#[async_trait]
impl HostLink for Link {
    fn host(&self) -> &HostName {
        &self.host
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        match self.session()?.request(request).await? {
            Some(reply) => Ok(reply),
            None => Err(self.lost()),
        }
    }

    async fn first_answer(&self) -> Option<Reply> {
        self.session().ok()?.first_answer().await
    }

    async fn dial(
        &self,
        target: &DialTarget,
        access: DialAccess,
    ) -> Result<Box<dyn DialStream>, LinkError> {
        match self.session()?.dial(target, access).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(DialError::Busy | DialError::Ssh(SshError::Timeout { .. })) => {
                Err(LinkError::Timeout { host: self.host.clone() })
            }
            Err(DialError::Ssh(error)) => Err(LinkError::Down {
                host: self.host.clone(),
                why: error.to_string(),
                hint: error.hint(),
            }),
        }
    }
}

/// Why a link is down, and how soon trying again makes sense.
struct Cause {
    kind: DownCause,
    why: String,
    hint: Option<String>,
    retry: Retry,
}

enum Retry {
    Soon,
    Slowly,
    WhenTold,
}

impl Cause {
    /// It is tried at once whether the agent can be there now.
    fn again(error: &InstallError) -> Self {
        Self {
            kind: DownCause::Agent,
            why: error.to_string(),
            hint: error.hint(),
            retry: Retry::Soon,
        }
    }
}

impl From<SshError> for Cause {
    fn from(error: SshError) -> Self {
        let retry = match &error {
            // A person has said no: asking again every minute would be a nuisance.
            e if e.is_rejected() => Retry::WhenTold,
            e if e.needs_a_person() => Retry::Slowly,
            _ => Retry::Soon,
        };
        Self { kind: error.cause(), why: error.to_string(), hint: error.hint(), retry }
    }
}

impl From<InstallError> for Cause {
    fn from(error: InstallError) -> Self {
        match error {
            InstallError::Ssh(error) => error.into(),
            error => {
                let retry = if error.needs_a_person() { Retry::Slowly } else { Retry::Soon };
                Self { kind: DownCause::Agent, why: error.to_string(), hint: error.hint(), retry }
            }
        }
    }
}

impl From<SessionError> for Cause {
    fn from(error: SessionError) -> Self {
        let (hint, retry) = match &error {
            SessionError::Ssh(error) => return error.clone().into(),
            SessionError::Refused(refusal) => (refusal.hint(), Retry::Slowly),
            SessionError::Quiet(_) => {
                let hint = Some("see whether the machine and its network are up".to_owned());
                let why = error.to_string();
                return Self { kind: DownCause::NoAnswer, why, hint, retry: Retry::Soon };
            }
            SessionError::Ended(_) | SessionError::Silent | SessionError::Nonsense(_) => (
                Some("run `gpudeck agent` on the host by hand to see what is wrong".to_owned()),
                Retry::Soon,
            ),
        };
        Self { kind: DownCause::Agent, why: error.to_string(), hint, retry }
    }
}

/// One connection, as it is and as the agent uses it.
struct Ways {
    /// As who is logged in.
    logged_in: Arc<dyn Connection>,
    /// As whom the host's `become` names.
    acting: Arc<dyn Connection>,
}

/// One host's link task.
pub(super) struct HostTask {
    pub(super) spec: HostSpec,
    pub(super) link: Arc<Link>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
}

impl Drop for HostTask {
    /// However the task ends, nobody waits for it afterwards.
    fn drop(&mut self) {
        self.link.down("the host is not followed any more", None);
        self.outbox.close();
    }
}

impl HostTask {
    /// Keeps the link until it is told to stop.
    pub(super) async fn run(self) {
        // Asked only when it is woken, and not with every message of the host.
        let mut stopped = FuturesUnordered::from_iter([self.stop.cancelled()]);
        tokio::select! {
            biased;
            () = self.keep() => {}
            _ = stopped.next() => {}
        }
    }

    async fn keep(&self) {
        let mut failures: u32 = 0;
        // In a row that only a person can mend.
        let mut waited: u32 = 0;
        let mut woken: Option<tokio::time::Instant> = None;
        loop {
            let (cause, up_for) = match self.once().await {
                Ok(lost) => lost,
                Err(cause) => (cause, Duration::ZERO),
            };
            if up_for >= STEADY {
                failures = 0;
            }
            let wait = match cause.retry {
                Retry::Soon => Some(backoff(failures, rand::random())),
                Retry::Slowly => Some(slowly(waited, rand::random())),
                Retry::WhenTold => None,
            };
            let slow = matches!(cause.retry, Retry::Slowly);
            waited = if slow { waited.saturating_add(1) } else { 0 };
            failures = failures.saturating_add(1);
            tracing::info!(host = %self.link.host, cause = %cause.why, "link down");
            self.link.down(&cause.why, cause.hint.clone());
            self.outbox.link(LinkState::Down {
                kind: cause.kind,
                cause: cause.why,
                hint: cause.hint,
                retry_in: wait,
            });
            let sleep = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.link.told.notified() => (failures, waited) = (0, 0),
                () = self.link.lent.again(woken), if cause.kind == DownCause::LoginLost => {
                    woken = Some(tokio::time::Instant::now());
                }
            }
        }
    }

    /// One connection from its beginning to its end: why it ended, and how long it was up.
    async fn once(&self) -> Result<(Cause, Duration), Cause> {
        let played = self.shared.in_process.as_ref().and_then(|h| h.connect(&self.link.host));
        if let Some(connection) = played {
            let command = AgentCommand {
                binary: "gpudeck".to_owned(),
                state_dir: String::new(),
                env: BTreeMap::new(),
            };
            let ways = Ways { logged_in: Arc::clone(&connection), acting: connection };
            return self.run_agent(ways, command).await;
        }
        // A box of its own: all ways of connecting are many times as large as what is kept for hours.
        let connection = Box::pin(self.connect()).await?;
        let acting: Arc<dyn Connection> = match self.spec.becomes {
            Some(Become::Sudo) => Arc::new(AsRoot(Arc::clone(&connection))),
            None => Arc::clone(&connection),
        };
        let ways = Ways { logged_in: connection, acting };
        self.outbox.phase("looking for the agent");
        if let Some(lost) = self.run_what_is_there(&ways).await? {
            return Ok(lost);
        }
        let progress = |percent: u8| {
            self.outbox.phase(format!("installing the agent {percent}%"));
        };
        let command = match self.install(&*ways.acting, &progress).await {
            Ok(command) => command,
            Err(error) if error.leaves_looking() => {
                return Ok(self.only_look(&ways, &error).await);
            }
            Err(error) => return Err(error.into()),
        };
        self.run_agent(ways, command).await
    }

    /// Runs the agent on a connection until either ends.
    async fn run_agent(
        &self,
        ways: Ways,
        command: AgentCommand,
    ) -> Result<(Cause, Duration), Cause> {
        self.outbox.phase("starting the agent");
        let host = self.link.host.clone();
        let attention = self.link.attention.subscribe();
        let acting = Arc::clone(&ways.acting);
        let question = self.shared.first_question.clone();
        let started = Session::start(host, acting, command, attention, question).await;
        self.go_on(&ways, started).await
    }

    /// With an agent that runs, or without one where it cannot.
    async fn go_on(
        &self,
        ways: &Ways,
        started: Result<(Session, HostFacts, Running), SessionError>,
    ) -> Result<(Cause, Duration), Cause> {
        match started {
            Err(SessionError::Ended(words)) if wants_newer_system(&words) => {
                let error = InstallError::OldSystem { why: words };
                Ok(self.only_look(ways, &error).await)
            }
            started => Ok(self.serve(&*ways.acting, started?).await),
        }
    }

    /// Runs the agent that an earlier connection has left there; none: it is not there.
    async fn run_what_is_there(&self, ways: &Ways) -> Result<Option<(Cause, Duration)>, Cause> {
        if self.spec.transport != Transport::Ssh {
            return Ok(None);
        }
        let binary = self.shared.binary().await?;
        let mut attention = self.link.attention.subscribe();
        let question = self.shared.first_question.clone();
        let first = first_words(&mut attention, question.as_ref())?;
        let first = (first.as_str(), question.is_some());
        let begun = quick::start(&*ways.acting, binary, &self.spec.agent_env, first).await?;
        let Some(begun) = begun else { return Ok(None) };
        self.outbox.phase("starting the agent");
        let host = self.link.host.clone();
        let acting = Arc::clone(&ways.acting);
        let started = Session::shake_hands(host, acting, begun, attention).await;
        self.go_on(ways, started).await.map(Some)
    }

    /// Carries messages until the agent or the connection ends: why it did, and how long it was up.
    async fn serve(
        &self,
        connection: &dyn Connection,
        (session, facts, running): (Session, HostFacts, Running),
    ) -> (Cause, Duration) {
        let host = self.link.host.clone();
        let session = Arc::new(session);
        self.link.up(Arc::clone(&session));
        let watched = WatchedFacts { known: facts.clone(), every: self.shared.facts_every };
        self.outbox.put(FleetEvent::Facts { host, facts: Box::new(facts) });
        self.outbox.link(LinkState::Up);
        let since = Instant::now();
        let why = session.serve(running, watched, &self.outbox).await;
        let cause = Cause::from(why);
        self.link.down(&cause.why, cause.hint.clone());
        connection.close().await;
        (cause, since.elapsed())
    }

    async fn install(
        &self,
        connection: &dyn Connection,
        progress: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<AgentCommand, InstallError> {
        let env = &self.spec.agent_env;
        let installed = match self.spec.transport {
            Transport::Local => {
                let path = self.shared.binary_path()?;
                install(connection, Source::InPlace(&path), env, progress).await
            }
            Transport::Ssh => {
                let binary = self.shared.binary().await?;
                install(connection, Source::Copy(binary), env, progress).await
            }
        };
        installed.map_err(|error| match error {
            // Its own words, or those of a shell that does not find it: nothing of ours has run.
            InstallError::Script { why } if self.spec.becomes.is_some() && why.contains("sudo") => {
                InstallError::NoRoot { why }
            }
            other => other,
        })
    }

    /// No agent can be there: reads the host without one, until the connection is lost or the agent
    /// is worth another try.
    async fn only_look(&self, ways: &Ways, error: &InstallError) -> (Cause, Duration) {
        let connection = &*ways.logged_in;
        let (why, hint) = (error.to_string(), error.hint());
        self.link.down(&why, hint.clone());
        self.outbox.phase("reading the host without an agent");
        let since = Instant::now();
        let limited = || self.outbox.link(LinkState::Limited { why, hint });
        let look = fallback::follow(&self.link.host, connection, &self.outbox, limited);
        let cause = tokio::select! {
            lost = look => Cause::from(lost),
            lost = connection.closed() => Cause::from(lost),
            () = self.can_be_installed(&*ways.acting, error) => Cause::again(error),
            () = self.link.told.notified() => Cause::again(error),
        };
        connection.close().await;
        (cause, since.elapsed())
    }

    /// Returns once the agent can be there after all. Tried on the connection that there is, so that a host without
    /// one is not thrown out and logged in again for it.
    async fn can_be_installed(&self, connection: &dyn Connection, error: &InstallError) {
        if !error.may_pass() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(AGENT_AGAIN).await;
            if self.install(connection, &|_| {}).await.is_ok() {
                return;
            }
        }
    }

    async fn connect(&self) -> Result<Arc<dyn Connection>, Cause> {
        self.outbox.attempt();
        self.outbox.phase("connecting");
        if self.spec.transport == Transport::Local {
            return Ok(Arc::new(LocalConnection::new()));
        }
        self.link.lent.begin();
        let options = &self.shared.ssh;
        let target = Target {
            name: self.link.host.to_string(),
            address: self.spec.address.clone(),
            port: self.spec.port,
            user: self.spec.user.clone(),
            identity_files: self.spec.identity_files.clone(),
            known_hosts: self.spec.known_hosts.clone(),
        };
        // Read again each time, so that a corrected configuration counts at the next try.
        let (endpoint, in_vain) = Endpoint::find(&target, options).await?;
        *self.link.ssh_notes.lock().unwrap_or_else(PoisonError::into_inner) =
            in_vain.clone().all().collect();
        let warnings = {
            let mut warned = self.shared.warned.lock().unwrap_or_else(PoisonError::into_inner);
            untold(&mut warned, in_vain.warnings)
        };
        if !warnings.is_empty() {
            let text = format!("SSH configuration: {}", warnings.join("; "));
            self.outbox.put(FleetEvent::Warning {
                host: self.link.host.clone(),
                text: text::clean(&text, 600),
            });
        }
        let asking = HostQuestions {
            host: self.link.host.clone(),
            desk: Arc::clone(&self.shared.desk),
            outbox: Arc::clone(&self.outbox),
        };
        let questions: &dyn Questions =
            if self.shared.interactive { &asking } else { &NoQuestions };
        let on_phase = |phase| self.outbox.phase(format!("{phase}"));
        let connection = connect(&endpoint, options, questions, &on_phase).await?;
        self.link.lent.forget();
        Ok(Arc::new(connection))
    }
}

/// Those warnings that nobody was told of yet; they are remembered.
fn untold(told: &mut BTreeSet<String>, mut warnings: Vec<String>) -> Vec<String> {
    warnings.retain(|warning| !told.contains(warning));
    let room = MAX_WARNED.saturating_sub(told.len());
    told.extend(warnings.iter().take(room).cloned());
    warnings
}

/// The wait after `failures` failures in a row: doubled each time, with jitter so that a fleet
/// that was lost at once does not come back at once. `random` is from 0 to 1.
fn backoff(failures: u32, random: f64) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2u32.saturating_pow(failures.min(16)));
    doubled.min(LONGEST_RETRY).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

/// The wait after so many waits in a row for a person: a minute and more, never the same for all
/// hosts that one mistake has closed.
fn slowly(times: u32, random: f64) -> Duration {
    let doubled = SLOW_RETRY.saturating_mul(2u32.saturating_pow((times / 5).min(16)));
    doubled.mul_f64(1.0 + random.clamp(0.0, 1.0) / 2.0).min(SLOWEST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_person_grows_longer_and_is_not_the_same_for_all() {
        assert_eq!(slowly(0, 0.0), SLOW_RETRY);
        assert_eq!(slowly(0, 1.0), SLOW_RETRY * 3 / 2);
        assert_eq!(slowly(5, 0.0), SLOW_RETRY * 2);
        assert!(slowly(u32::MAX, 0.0) == SLOWEST_RETRY && slowly(u32::MAX, 1.0) == SLOWEST_RETRY);
    }

    #[tokio::test]
    async fn the_same_agent_that_is_lent_again_is_another_try_once_a_minute() {
        let keys = |names: &[u8]| names.iter().map(|n| vec![*n]).collect::<BTreeSet<_>>();
        let lent = Lent::default();
        let at_once = async |woken| {
            tokio::time::timeout(Duration::from_millis(200), lent.again(woken)).await.is_ok()
        };
        let ago = |s: u64| tokio::time::Instant::now().checked_sub(Duration::from_secs(s));
        assert!(!at_once(None).await, "nothing was lent");
        lent.told(&keys(&[1]));
        assert!(at_once(None).await, "the first");
        lent.told(&keys(&[1]));
        assert!(at_once(None).await, "the first since the login is lost");
        lent.told(&keys(&[1]));
        assert!(!at_once(ago(20)).await, "the same again");
        lent.told(&keys(&[1]));
        assert!(at_once(ago(61)).await);
        lent.told(&keys(&[1, 2]));
        assert!(at_once(ago(20)).await, "one with another key");
        lent.told(&keys(&[3]));
        assert!(!at_once(ago(5)).await, "not right after the last");
        lent.forget();
        lent.told(&keys(&[1]));
        assert!(at_once(ago(20)).await, "let in since");
        // What was lent while the login was good is no reason for another try, and delays none.
        lent.told(&keys(&[1, 2]));
        lent.told(&keys(&[1]));
        lent.begin();
        assert!(!at_once(None).await);
    }

    #[test]
    fn a_warning_is_told_once_and_never_ignored() {
        let mut told = BTreeSet::new();
        let of = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<String>>();
        assert_eq!(untold(&mut told, of(&["a", "b"])), of(&["a", "b"]));
        assert_eq!(untold(&mut told, of(&["b", "c"])), of(&["c"]));
        let many: Vec<String> = (0..MAX_WARNED).map(|n| n.to_string()).collect();
        assert_eq!(untold(&mut told, many.clone()), many);
        assert_eq!(untold(&mut told, of(&["beyond"])), of(&["beyond"]));
        assert_eq!(untold(&mut told, of(&["beyond"])), of(&["beyond"]), "full, so told again");
        assert!(told.len() <= MAX_WARNED);
    }

    #[test]
    fn backoff_doubles_to_its_limit() {
        assert_eq!(backoff(0, 1.0), FIRST_RETRY);
        assert_eq!(backoff(3, 1.0), Duration::from_secs(4));
        assert_eq!(backoff(u32::MAX, 1.0), LONGEST_RETRY);
        assert_eq!(backoff(0, 0.0), FIRST_RETRY / 2);
    }
}
