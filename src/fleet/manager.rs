//! All links of a deck.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::facts;
use super::host_task::{HostTask, Link, SAME_LENT_AGAIN, Shared};
use super::outbox::Outbox;
use super::{Attention, FleetEvent, HostLink};
use crate::base::HostName;
use crate::spec::HostSpec;
use crate::ssh::agents::{Lease, LentAgent};
use crate::ssh::{ConnectOptions, Connection};
use crate::wire::Request;

/// How a fleet is reached.
#[derive(Clone, Debug, Default)]
pub struct FleetOptions {
    /// The agent's binary; default: this program.
    pub agent_binary: Option<PathBuf>,
    /// Where the hash of that binary is remembered; none: it is hashed each time.
    pub agent_memo: Option<PathBuf>,
    /// The SSH configuration; default: `~/.ssh/config`.
    pub ssh_config: Option<PathBuf>,
    /// A person may be asked about host keys and passphrases.
    pub interactive: bool,
    /// Hosts that are played in this process; the others are reached as their specs say.
    pub in_process: Option<Arc<dyn InProcessHosts>>,
    /// How often hosts are asked again what they are; none: every minute.
    pub facts_every: Option<Duration>,
    /// What every host is asked as soon as it is connected, whoever wants to know it then: in the same round trip as its
    /// first sample.
    pub first_question: Option<Request>,
}

/// Simulated hosts in this very process: an agent that is a task, without SSH or installation.
pub trait InProcessHosts: std::fmt::Debug + Send + Sync {
    /// A new connection to a host; none: the host is not one of these.
    fn connect(&self, host: &HostName) -> Option<Arc<dyn Connection>>;
}

/// The links of a deck: one task per host, none waits for another.
///
/// Dropping it aborts all links at once; [`Fleet::shutdown`] closes them in good order.
pub struct Fleet {
    shared: Arc<Shared>,
    events: mpsc::Sender<FleetEvent>,
    hosts: Mutex<Hosts>,
}

#[derive(Default)]
struct Hosts {
    entries: BTreeMap<HostName, Entry>,
    /// The hosts that get more attention than the least.
    attended: BTreeMap<HostName, Attention>,
    /// When bastions were tried again for an agent that was lent.
    lent_at: Option<Instant>,
    /// Tasks of hosts that are gone, on their way to their end.
    leaving: Vec<JoinHandle<()>>,
}

struct Entry {
    spec: HostSpec,
    link: Arc<Link>,
    outbox: Arc<Outbox>,
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Fleet {
    /// A fleet without hosts. What happens is told on `events`, whose reader should not be slow
    /// but may be: states are newest-wins.
    pub fn new(options: FleetOptions, events: mpsc::Sender<FleetEvent>) -> Self {
        let shared = Shared {
            agent_binary: options.agent_binary,
            agent_memo: options.agent_memo,
            interactive: options.interactive,
            in_process: options.in_process,
            facts_every: options.facts_every.unwrap_or(facts::ASK_AGAIN),
            first_question: options.first_question,
            desk: Arc::new(Desk::default()),
            ssh: ConnectOptions::from_env(options.ssh_config.as_deref()),
            binary: OnceCell::new(),
            warned: Mutex::default(),
        };
        Self { shared: Arc::new(shared), events, hosts: Mutex::default() }
    }

    /// Follows these hosts from now on: new ones are connected to, changed ones anew, others let
    /// go. To be called within a tokio runtime.
    pub fn set_hosts(&self, wanted: &BTreeMap<HostName, HostSpec>) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = &mut *hosts;
        hosts.leaving.retain(|task| !task.is_finished());
        let gone: Vec<HostName> = hosts
            .entries
            .iter()
            .filter(|(name, entry)| wanted.get(*name) != Some(&entry.spec))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(entry) = hosts.entries.remove(&name) {
                entry.outbox.retire();
                entry.stop.cancel();
                hosts.leaving.extend(entry.tasks);
            }
        }
        for (name, spec) in wanted {
            if !hosts.entries.contains_key(name) {
                let entry = self.start(name, spec);
                entry.link.follow(hosts.attended.get(name).copied().unwrap_or_default());
                hosts.entries.insert(name.clone(), entry);
            }
        }
    }

    fn start(&self, name: &HostName, spec: &HostSpec) -> Entry {
        let link = Link::new(name.clone());
        let outbox = Outbox::new(name.clone(), self.events.clone());
        let stop = CancellationToken::new();
        let task = HostTask {
            spec: spec.clone(),
            link: Arc::clone(&link),
            outbox: Arc::clone(&outbox),
            shared: Arc::clone(&self.shared),
            stop: stop.clone(),
        };
        let forward = Arc::clone(&outbox).forward();
        let tasks = [tokio::spawn(task.run()), tokio::spawn(forward)];
        Entry { spec: spec.clone(), link, outbox, stop, tasks }
    }

    /// The link to a host. It stays good over reconnects; while the host is not reached, requests
    /// fail at once with [`super::LinkError::Down`].
    pub fn link(&self, host: &HostName) -> Option<Arc<dyn HostLink>> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.entries.get(host).map(|entry| Arc::clone(&entry.link) as Arc<dyn HostLink>)
    }

    /// What the SSH configuration asks for in vain on the way to a host.
    pub fn ssh_notes(&self, host: &HostName) -> Vec<String> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = hosts.entries.get(host) else { return Vec::new() };
        entry.link.ssh_notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tries a host that is down again now; passphrases that were not given are asked for again.
    pub fn reconnect(&self, host: &HostName) -> bool {
        self.shared.ssh.key_ring.ask_again();
        self.shared.ssh.jumps.ask_again();
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = hosts.entries.get(host);
        if let Some(entry) = entry {
            entry.link.told.notify_one();
        }
        entry.is_some()
    }

    /// Lends an SSH agent to all connections, until the lease is dropped.
    pub fn lend(&self, agent: Arc<dyn LentAgent>) -> Lease {
        self.shared.ssh.agents.lend(agent)
    }

    /// What its connections share: the configuration, unlocked keys, lent agents, places to jump over.
    pub fn ssh_options(&self) -> ConnectOptions {
        self.shared.ssh.clone()
    }

    /// Tries the hosts again whose login is lost, soon or in their time: an agent with these public keys was
    /// lent.
    pub fn try_lost_logins(&self, keys: &BTreeSet<Vec<u8>>) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // Bastions as hosts, and before them.
        let is_new = hosts.entries.values().any(|entry| entry.link.is_new(keys));
        if is_new || hosts.lent_at.is_none_or(|at| at.elapsed() >= SAME_LENT_AGAIN) {
            hosts.lent_at = Some(Instant::now());
            self.shared.ssh.jumps.ask_again();
        }
        for entry in hosts.entries.values() {
            entry.link.lent(keys);
        }
    }

    /// How closely hosts are to be followed from now on; those that are not named get the least.
    pub fn follow(&self, attention: BTreeMap<HostName, Attention>) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut hosts.attended, attention);
        // Only those: of a large fleet nearly all get the least, before and after.
        for name in before.keys().chain(hosts.attended.keys()) {
            if let Some(entry) = hosts.entries.get(name) {
                entry.link.follow(hosts.attended.get(name).copied().unwrap_or_default());
            }
        }
    }

    /// Answers a question; false when it is not asked (any more). A host key is accepted with
    /// `yes`.
    pub fn answer(&self, question: u64, answer: SecretString) -> bool {
        self.shared.desk.answer(question, answer)
    }

    /// Closes all links, within two seconds.
    pub async fn shutdown(self) {
        self.set_hosts(&BTreeMap::new());
        let leaving = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut hosts.leaving)
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        for mut task in leaving {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let hosts = self.hosts.get_mut().unwrap_or_else(PoisonError::into_inner);
        let entries = std::mem::take(&mut hosts.entries).into_values();
        for task in entries.flat_map(|entry| entry.tasks).chain(std::mem::take(&mut hosts.leaving))
        {
            task.abort();
        }
    }
}
