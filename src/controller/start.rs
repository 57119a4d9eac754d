//! Starting a controller, in this process or in the background, and attaching to one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::actions::{Actions, Means};
use super::auditor::Auditor;
use super::claims::Claims;
use super::conditions::Conditions;
use super::core::{Core, DeckFiles, Input, Options};
use super::desk::Handle;
use super::measured::Measured;
use super::record::DeckState;
use super::{Paths, observe, planning, throughput};
use crate::api::hub::{Change, Hub};
use crate::api::{CONTROLLER_SILENT, Client, DeckView, Severity, server};
use crate::base::id::BadName;
use crate::base::{Bytes, DeckId, Hint, HostName};
use crate::fleet::{Fleet, FleetOptions};
use crate::journal::audit::Known;
use crate::journal::{Journal, JournalError, RecordKind};
use crate::revision::{DeckRepo, RevisionError};
use crate::spec::{DeckSpec, HostSpec, SpecError, Transport, parse_deck};
use crate::wire::Request;

/// Why a controller could not be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A journal that holds what this version cannot read.
    #[error("the journal holds a record that cannot be read: {0}")]
    Record(String),
    /// The deck's repository.
    #[error(transparent)]
    Revision(#[from] RevisionError),
    /// A file of the controller.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// deck.toml.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// This machine's name cannot be a host's name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The background process did not come up.
    #[error("the controller did not come up: {0}")]
    NotUp(String),
}

impl Hint for ControllerError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Journal(error) => error.hint(),
            Self::Record(_) => {
                Some("use the gpudeck version that wrote it, or move the journal aside".to_owned())
            }
            Self::Revision(error) => error.hint(),
            Self::Spec(error) => error.hint(),
            Self::Name(_) => None,
            Self::File { .. } => Some(
                "set GPUDECK_HOME to a directory that can be written (with a short path)"
                    .to_owned(),
            ),
            Self::NotUp(_) => {
                Some("`gpudeck controller run` shows in the foreground what is wrong".to_owned())
            }
        }
    }
}

/// A controller in this process. Dropping it ends it; what serves goes on serving.
pub struct Running {
    /// Its socket.
    pub socket: PathBuf,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    main: JoinHandle<()>,
}

impl Running {
    /// Waits until it ends by itself.
    pub async fn ended(&mut self) {
        let _ = (&mut self.main).await;
    }

    /// Ends it.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(5), &mut self.main).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
        self.main.abort();
    }
}

/// Opens the journal, takes up what was left, and serves the socket.
pub async fn start_in_process(options: Options, paths: &Paths) -> Result<Running, ControllerError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |error| ControllerError::File { path, error }
    };
    paths.create().map_err(file(&paths.dir))?;
    let (mut journal, records) = Journal::open(&paths.journal())?;
    let mut state = DeckState::default();
    let mut since = super::auditor::Since::default();
    let mut ended = super::unnoted::Ended::default();
    for record in &records {
        let unreadable = |e: JournalError| ControllerError::Record(e.to_string());
        since.replay(&mut state, record).map_err(unreadable)?;
        ended.see(&state, record.kind == RecordKind::Checkpoint);
    }
    state.unnoted = ended.list();
    let known = Known { mark: state.audited.clone(), is_begun: !state.services.is_empty() };
    let audit = Arc::new(Auditor::open(&paths.dir, &known)?);
    audit.make_good(since, state.audited.as_ref());
    // After that: what a checkpoint has is not looked for in the trail any more.
    let renewed = if journal.is_of_older_version() { journal.renew(&state) } else { Ok(()) };
    let repo = options.deck_dir.as_deref().map(DeckRepo::open).transpose()?;
    let files = repo.as_ref().map(planning::read_files).unwrap_or_default();
    let socket = paths.socket();
    let listener = server::bind(&socket).map_err(file(&socket))?;
    let holder = super::identity::holder(paths).map_err(file(&paths.identity()))?;

    let (inputs, received) = mpsc::channel(1024);
    let (fleet_events, of_fleet) = mpsc::channel(1024);
    let fleet = Fleet::new(
        FleetOptions {
            agent_binary: options.agent_binary.clone(),
            agent_memo: Some(paths.agent_memo()),
            interactive: true,
            in_process: options.in_process.clone(),
            // Before anything is said of a host it is to be known whose it is.
            first_question: Some(Request::ShowClaim { deck: options.deck.id }),
            ..FleetOptions::default()
        },
        fleet_events,
    );
    fleet.set_hosts(&options.deck.hosts);
    let published = super::publish::Published::new(paths.dir.clone());
    let begun = super::behind::Begun::of(&state, journal.last_seq());
    let means = Arc::new(Means {
        deck: options.deck.id,
        fleet,
        claims: Claims::new(
            options.deck.id,
            holder,
            Some(paths.dir.join("claims.json")),
            super::owed::Owed::open(&paths.dir.join("owed.json"), state.term),
        )
        .leaving_out(super::left_out::LeftOut::open(&paths.dir.join("left-out.json"), state.term)),
        looks: super::behind::Looks::against(begun),
        saver: super::saved::Saver::default(),
        deck_saver: super::saved_deck::DeckSaver::default(),
        runtimes: super::actions::Runtimes::default(),
        inputs: inputs.clone(),
        published: published.clone(),
        fence: super::fence::Fence::default(),
        attention: super::attention::Attentions::default(),
    });
    let hub = Arc::new(Hub::new(DeckView {
        name: options.deck.name.clone(),
        path: options.deck_dir.as_ref().map(|d| d.display().to_string()),
        simulated: options.deck.simulated,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        trouble: None,
        controller_memory: own_memory(),
        upgrade: state.ledger.maintenance.upgrade.clone().map(Box::new),
        group: state.ledger.group.clone().map(Box::new),
        conditions: Vec::new(),
        gateways: super::gateways::views(&options.deck),
    }));
    let endpoints = options.deck.endpoints.clone();
    let records_since_checkpoint = u64::try_from(records.len()).unwrap_or(u64::MAX);
    let mut core = Core {
        deck: options.deck.clone(),
        repo,
        state,
        journal,
        unwritten: super::happening::Unwritten::default(),
        unnoted: super::unnoted::Unnoted::default(),
        means: Arc::clone(&means),
        actions: Actions::new(Arc::clone(&means)),
        hub: Arc::clone(&hub),
        files: DeckFiles::default(),
        traffic: std::collections::BTreeMap::new(),
        probes: super::probes::Probes::default(),
        trouble: std::collections::BTreeMap::new(),
        home: paths.home(options.deck.id),
        taken: std::collections::BTreeMap::new(),
        gateway_files: std::collections::BTreeMap::new(),
        records_since_checkpoint,
        conditions: Conditions::default(),
        company_shown: (0, 0),
        journal_tried: crate::base::Timestamp(0),
        audit: Arc::clone(&audit),
        idle_since: None,
        files_stamp: Vec::new(),
        sharing: super::sharing::Sharing::default(),
        hearing: super::turns::Turn::default(),
        share_waits: false,
        hear_after: None,
        group_asking: super::turns::Turn::default(),
        group_waits: None,
        group_put_off: None,
        beginnings: super::begin::Beginnings::default(),
        foreign_ports: std::collections::BTreeSet::new(),
        listening_ports: std::collections::BTreeMap::new(),
        strays: super::strays::Strays::default(),
        stray_looks: super::turns::Turns::default(),
        queue_asking: super::turns::Turns::default(),
        runs: super::runs::Runs::new(paths.dir.clone()),
        upgrades: super::upgrade::UpgradeTasks::default(),
        draining: super::turns::Turns::default(),
        measured: Measured::open(&paths.measured()),
        alive: super::absence::Alive::open(&paths.alive()),
        taking_over: None,
        clock_told: super::clock::Told::default(),
        tasks: super::turns::Tasks::default(),
        lost_logins: std::collections::BTreeMap::new(),
        memory: super::calibration::MemoryReader::default(),
        restarting: std::collections::BTreeMap::new(),
        shutdown: false,
        views: super::stale_views::StaleViews::default(),
        ahead: super::world::Ahead::default(),
        options,
    };
    core.take_files(files);
    core.note_earlier(&ended);
    if let Err(error) = &renewed {
        core.journal_answered(Some(error));
    } else if core.audit.found_gap().is_some() {
        // It is written down: from here on the trail is as it is.
        core.checkpoint();
    }
    core.remember_lost_logins();
    let lacks = core.journal.lacks().map(|e| format!("{e} → {}", e.hint().unwrap_or_default()));
    if let Some(words) = lacks {
        core.say(Severity::Warning, None, &words);
    }
    // Known from the first moment, so that nobody takes a fresh controller's deck for empty.
    let hosts: Vec<_> = core.deck.hosts.keys().cloned().collect();
    for host in &hosts {
        core.change_host(host, |_| {});
    }

    let stop = CancellationToken::new();
    let watch_task = tokio::spawn(observe::watch(Arc::clone(&means)));
    let vigil_task = tokio::spawn(super::vigil::watch(Arc::clone(&means)));
    let pulse_task = tokio::spawn(super::pulse::watch(Arc::clone(&means)));
    let reload_task = tokio::spawn(reload_again_and_again(inputs.clone(), Arc::clone(&hub)));
    let throughput_task = tokio::spawn(throughput::watch(Arc::clone(&means)));
    let renew_task = tokio::spawn(super::company::look_after_claims(Arc::clone(&means)));
    let deck_task = tokio::spawn(super::saved_deck::keep(Arc::clone(&means)));
    let state_task = tokio::spawn(super::saved::keep(Arc::clone(&means)));
    let unanswered = Arc::default();
    let drift_task = tokio::spawn(super::drift::watch(Arc::clone(&means)));
    let publish_task = endpoints.and_then(|e| Some((e.listen?, e.zone))).map(|(listen, zone)| {
        tokio::spawn(super::publish::serve(listen, zone, published, Arc::clone(&means) as _))
    });
    let desk = Arc::new(Handle {
        hub,
        inputs,
        means: Arc::clone(&means),
        audit,
        unanswered: Arc::clone(&unanswered),
        lent: Arc::default(),
    });
    let stopped = stop.clone();
    let main = tokio::spawn(async move {
        let ends = || means.claims.end_leases(&means.fleet);
        tokio::select! {
            () = async {
                // The other build has the same claims, and goes on with them at once.
                let is_handed_over = core.run(received, of_fleet).await;
                if !is_handed_over {
                    ends().await;
                }
                super::desk::let_answers_go(&unanswered).await;
            } => {}
            result = server::serve(listener, desk, stopped.clone().cancelled_owned()) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the socket cannot be served");
                }
                ends().await;
            }
        }
    });
    let mut tasks = vec![
        watch_task,
        vigil_task,
        pulse_task,
        reload_task,
        renew_task,
        deck_task,
        state_task,
        drift_task,
        throughput_task,
    ];
    tasks.extend(publish_task);
    Ok(Running { socket, stop, tasks, main })
}

/// Resident memory of this process.
fn own_memory() -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

async fn reload_again_and_again(inputs: mpsc::Sender<Input>, hub: Arc<Hub>) {
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        // Nobody looks, nothing to show: what is asked for is read anew then.
        if hub.readers() == 0 {
            continue;
        }
        let look = Box::new(|core: &mut Core| {
            core.reload();
            core.show_memory();
        });
        if inputs.send(Input::Ask(look)).await.is_err() {
            return;
        }
    }
}

impl Core {
    /// Reads the deck's files again and shows what changed.
    pub(super) fn reload(&mut self) {
        let Some(repo) = &self.repo else { return };
        let stamp = planning::stamp(repo);
        if self.files_stamp == stamp {
            return;
        }
        self.files_stamp = stamp;
        let files = planning::read_files(repo);
        self.share_again();
        if self.files.deck != files.deck
            || self.files.services != files.services
            || self.files.history != files.history
            || self.files.memory != files.memory
        {
            self.take_files(files);
        }
    }

    /// Shows how much memory this process takes.
    fn show_memory(&mut self) {
        let view = self.hub.with(|s| s.deck.clone());
        let controller_memory = own_memory();
        self.hub.publish(Change::Deck(DeckView { controller_memory, ..view }));
    }
}

/// The controller of a deck: the running one, or a new one in the background.
pub async fn attach(deck_dir: &Path, paths: &Paths) -> Result<Client, crate::api::ApiError> {
    match Client::connect(&paths.socket()).await {
        Ok(client) => return Ok(client),
        // Beside one that hangs another one could not be started: the journal is its.
        Err(error) if error.message == CONTROLLER_SILENT => return Err(error),
        Err(error) if error.kind == crate::api::ErrorKind::Unreachable => {}
        Err(error) => return Err(error),
    }
    start_background(deck_dir, paths).await.map_err(|e| crate::api::ApiError {
        kind: crate::api::ErrorKind::Unreachable,
        message: e.to_string(),
        hint: e.hint(),
    })
}

/// Starts a controller in the background and waits until it answers.
pub async fn start_background(deck_dir: &Path, paths: &Paths) -> Result<Client, ControllerError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |error| ControllerError::File { path, error }
    };
    paths.create().map_err(file(&paths.dir))?;
    let binary = std::env::current_exe().map_err(file(Path::new("/proc/self/exe")))?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(paths.log())
        .map_err(file(&paths.log()))?;
    let errors = log.try_clone().map_err(file(&paths.log()))?;
    // It makes a session of its own, so neither a hangup nor Ctrl-C here reaches it.
    let mut child = tokio::process::Command::new(&binary)
        .args(["controller", "run", "--detached", "--deck"])
        .arg(deck_dir)
        .stdin(std::process::Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(file(&binary))?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(client) = Client::connect(&paths.socket()).await {
            return Ok(client);
        }
        if let Ok(Some(status)) = child.try_wait() {
            // Another door may have been faster: then its controller answers.
            if let Ok(client) = Client::connect(&paths.socket()).await {
                return Ok(client);
            }
            return Err(ControllerError::NotUp(format!("{status}: {}", last_line(&paths.log()))));
        }
        if tokio::time::Instant::now() > deadline {
            return Err(ControllerError::NotUp("no answer in 20 s".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
    crate::base::text::clean(line, 300)
}

/// A client of a controller that was just started in this process.
pub async fn connect(socket: &Path) -> Result<Client, crate::api::ApiError> {
    Client::connect(socket).await
}

/// What a deck's deck.toml says.
pub fn read_deck(dir: &Path) -> Result<DeckSpec, ControllerError> {
    let path = dir.join("deck.toml");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| ControllerError::File { path: path.clone(), error })?;
    Ok(parse_deck(&text, &path.display().to_string())?)
}

/// A controller on just this machine, without a deck; its files are in `dir`.
pub async fn start_on_this_machine(dir: &Path) -> Result<Running, ControllerError> {
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name: HostName = match machine.parse() {
        Ok(name) => name,
        Err(_) => "local".parse()?,
    };
    let host = HostSpec { transport: Transport::Local, ..HostSpec::default() };
    let deck = DeckSpec {
        id: DeckId(uuid::Uuid::now_v7()),
        name: format!("{name} (no deck here)"),
        simulated: false,
        hosts: std::collections::BTreeMap::from([(name, host)]),
        gateways: std::collections::BTreeMap::new(),
        git: None,
        endpoints: None,
    };
    let options = Options {
        deck_dir: None,
        deck,
        agent_binary: None,
        leave_when_idle: None,
        in_process: None,
    };
    start_in_process(options, &Paths::in_dir(dir)).await
}
