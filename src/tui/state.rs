//! What the screen knows: the newest snapshot, where the person is in it, and what is being typed.
//!
//! No terminal, no network and no clock: time arrives in messages.

use std::fmt::Write as _;

use std::collections::BTreeSet;
use std::time::Duration;

use super::command::Panel;
use super::dialogs::{Ask, Confirm, Map, Palette, QuestionDialog, TextView};
use super::field::Field;
use super::filter::Filter;
use super::letters::Letters;
use super::logs::Follow;
use super::sums::KnownSums;
use super::theme::{Depth, Theme};
use crate::api::{
    HostLinkState, HostName, HostView, Looking, RankId, ReleaseNumber, ReplicaId, ServiceName,
    ServiceView, Severity, Snapshot, Timestamp,
};

/// How the screen looks, and what may be done on it.
#[derive(Clone, Debug)]
pub struct Look {
    /// Colours.
    pub depth: Depth,
    /// Only characters that every terminal has.
    pub ascii: bool,
    /// Nothing that changes anything can be asked for.
    pub read_only: bool,
    /// For the clock.
    pub zone: jiff::tz::TimeZone,
    /// A controller can be started from here where the deck's is gone.
    pub can_start: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            depth: Depth::True,
            ascii: false,
            read_only: false,
            zone: jiff::tz::TimeZone::UTC,
            can_start: false,
        }
    }
}

/// The whole state of the screen.
#[derive(Clone, Debug)]
pub struct State {
    /// The newest snapshot; it stays when the controller is lost.
    pub snapshot: Option<Snapshot>,
    /// How it is with the controller.
    pub controller: Controller,
    /// One is being started.
    pub starting: bool,
    /// The time.
    pub now: Timestamp,
    /// Columns and rows.
    pub size: (u16, u16),
    /// How it looks.
    pub look: Look,
    /// Its colours.
    pub theme: Theme,
    /// The panel with the keys.
    pub panel: Panel,
    /// That panel alone.
    pub zoom: bool,
    /// What is described instead of the panel.
    pub detail: Option<Detail>,
    /// Where the keys go.
    pub mode: Mode,
    /// The selected host.
    pub host: Selected<HostName>,
    /// The selected row of the services.
    pub service: Selected<ServiceRow>,
    /// The selected release of the rollout panel.
    pub release: Selected<ReleaseNumber>,
    /// Rows scrolled up from the newest event.
    pub events_back: usize,
    /// Columns the events are scrolled to the right.
    pub events_left: usize,
    /// The quietest events that are shown.
    pub severity: Severity,
    /// The filter of each panel, in the order of the panels.
    pub filters: [Option<Filter>; 5],
    /// The log that is followed.
    pub follow: Option<Follow>,
    /// Something was said to the person, at that time.
    pub notice: Option<(Timestamp, Notice)>,
    /// Questions that the person left for later.
    pub later: BTreeSet<u64>,
    /// The number of the newest request.
    pub ticket: u64,
    /// What is on the screen is not what would be drawn.
    pub dirty: bool,
    /// Newer numbers are there than are drawn: the next frame need not hurry.
    pub fresh: bool,
    /// What the GPUs of each host come to.
    pub sums: KnownSums,
    /// Which letter is which service.
    pub letters: Letters,
}

/// How it is with the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Controller {
    /// No snapshot yet.
    Connecting,
    /// Changes arrive.
    Live,
    /// A gap was found: waiting for a fresh snapshot.
    Resync,
    /// It is not reached.
    Lost {
        /// Since when.
        since: Timestamp,
        /// Why.
        why: String,
        /// What to do.
        hint: Option<String>,
        /// Tried again then.
        retry_at: Timestamp,
    },
}

/// What is described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Of what.
    pub of: DetailOf,
    /// Rows scrolled down.
    pub scroll: usize,
}

/// Of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetailOf {
    /// A host.
    Host(HostName),
    /// A service.
    Service(ServiceName),
}

/// Where the keys go: exactly one place.
#[derive(Clone, Debug)]
pub enum Mode {
    /// To the panels.
    Browse,
    /// To the filter of the panel.
    Filter {
        /// What is typed.
        field: Field,
        /// The filter before, for Esc.
        before: Option<Filter>,
    },
    /// To the palette.
    Palette(Palette),
    /// To the help.
    Help {
        /// Rows scrolled down.
        scroll: usize,
    },
    /// To the dialog that asks for the service's name.
    Confirm(Box<Confirm>),
    /// To a yes-or-no dialog.
    Ask(Ask),
    /// To a question of the controller.
    Question(QuestionDialog),
    /// To a text to read.
    Text(TextView),
    /// To the map.
    Map(Box<Map>),
}

/// A selection that survives a refresh: the id, and the row it had, for when the id is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected<T> {
    /// What is selected.
    pub id: Option<T>,
    /// Its row when it was last seen.
    pub row: usize,
}

impl<T> Default for Selected<T> {
    fn default() -> Self {
        Self { id: None, row: 0 }
    }
}

impl<T: PartialEq + Clone> Selected<T> {
    /// The row of the selection in `rows`; the nearest one when it is gone.
    pub fn row_in(&self, rows: &[T]) -> usize {
        self.row_among(rows.iter())
    }

    /// The same, of rows that are parts of something.
    pub fn row_among<'a>(&self, mut rows: impl ExactSizeIterator<Item = &'a T>) -> usize
    where
        T: 'a,
    {
        let last = rows.len().saturating_sub(1);
        let found = self.id.as_ref().and_then(|id| rows.position(|r| r == id));
        found.unwrap_or(self.row.min(last))
    }

    /// Selects the row `by` away, staying within `rows`.
    pub fn step(&mut self, rows: &[T], by: isize) {
        let last = rows.len().saturating_sub(1);
        self.row = self.row_in(rows).saturating_add_signed(by).min(last);
        self.id = rows.get(self.row).cloned();
    }

    /// Holds on to what is selected after `rows` have changed.
    pub fn settle(&mut self, rows: &[T]) {
        self.step(rows, 0);
    }
}

/// A row of the services panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRow {
    /// A service.
    Service(ServiceName),
    /// A replica of it.
    Replica(ServiceName, ReplicaId),
}

impl ServiceRow {
    /// The service.
    pub const fn service(&self) -> &ServiceName {
        match self {
            Self::Service(name) | Self::Replica(name, _) => name,
        }
    }
}

/// Something said to the person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How loud.
    pub severity: Severity,
    /// What.
    pub text: String,
}

/// How long a notice stays.
pub const NOTICE_TIME: Duration = Duration::from_secs(8);
/// More rows than any screen shows of the fleet.
const ROWS: usize = 120;
/// Age from which a sample is shown with its age.
pub const STALE: Duration = Duration::from_secs(3);

impl State {
    /// The state before anything is known.
    pub fn new(look: Look, size: (u16, u16), now: Timestamp) -> Self {
        Self {
            snapshot: None,
            controller: Controller::Connecting,
            now,
            size,
            theme: Theme::new(look.depth),
            look,
            panel: Panel::Fleet,
            zoom: false,
            detail: None,
            mode: Mode::Browse,
            host: Selected::default(),
            service: Selected::default(),
            release: Selected::default(),
            events_back: 0,
            events_left: 0,
            severity: Severity::Info,
            filters: [const { None }; 5],
            follow: None,
            notice: None,
            later: BTreeSet::new(),
            ticket: 0,
            starting: false,
            dirty: true,
            fresh: false,
            sums: KnownSums::default(),
            letters: Letters::default(),
        }
    }

    /// The filter of a panel.
    pub fn filter(&self, panel: Panel) -> Option<&Filter> {
        self.filters.get(panel as usize).and_then(Option::as_ref)
    }

    /// Sets the filter of the panel with the keys.
    pub fn set_filter(&mut self, filter: Option<Filter>) {
        if let Some(slot) = self.filters.get_mut(self.panel as usize) {
            *slot = filter;
        }
    }

    /// A number for a new request.
    pub fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// Says something in the bottom line.
    pub fn say(&mut self, severity: Severity, text: impl Into<String>) {
        self.notice = Some((self.now, Notice { severity, text: text.into() }));
    }

    /// What was said, for as long as it stays: whatever draws the screen, it is gone in time.
    pub fn standing_notice(&self) -> Option<&Notice> {
        let (at, notice) = self.notice.as_ref()?;
        (self.now.since(*at) <= NOTICE_TIME).then_some(notice)
    }

    /// The hosts that pass the filter.
    pub fn hosts(&self) -> Vec<&HostView> {
        let filter = self.filter(Panel::Fleet);
        let hosts = self.snapshot.iter().flat_map(|s| s.hosts.values());
        hosts.filter(|h| filter.is_none_or(|f| f.matches(&host_text(h)))).collect()
    }

    /// The services that pass the filter.
    pub fn services(&self) -> Vec<&ServiceView> {
        let filter = self.filter(Panel::Services);
        let services = self.snapshot.iter().flat_map(|s| s.services.values());
        services.filter(|s| filter.is_none_or(|f| f.matches(&service_text(s)))).collect()
    }

    /// The rows of the services panel.
    pub fn service_rows(&self) -> Vec<ServiceRow> {
        let mut rows = Vec::new();
        for service in self.services() {
            rows.push(ServiceRow::Service(service.name.clone()));
            for replica in &service.replicas {
                rows.push(ServiceRow::Replica(service.name.clone(), replica.id));
            }
        }
        rows
    }

    /// What is looked at: the host whose details are open, and those around the selected one.
    pub fn looking(&self) -> Looking {
        let hosts = self.hosts();
        let selected = self.host.row_among(hosts.iter().map(|h| &h.name));
        let from = super::draw::window(hosts.len(), selected, ROWS);
        let seen = hosts.iter().skip(from).take(ROWS).map(|h| h.name.clone()).collect();
        let detail = match &self.detail {
            Some(Detail { of: DetailOf::Host(name), .. }) => Some(name.clone()),
            _ => None,
        };
        Looking { hosts: seen, detail, door: None }
    }

    /// The selected host.
    pub fn selected_host(&self) -> Option<&HostView> {
        let hosts = self.hosts();
        hosts.get(self.host.row_among(hosts.iter().map(|h| &h.name))).copied()
    }

    /// The selected row of the services panel.
    pub fn selected_row(&self) -> Option<ServiceRow> {
        let rows = self.service_rows();
        rows.get(self.service.row_in(&rows)).cloned()
    }

    /// The service that commands are about.
    pub fn selected_service(&self) -> Option<&ServiceView> {
        let row = match &self.detail {
            Some(Detail { of: DetailOf::Service(name), .. }) => name.clone(),
            _ => self.selected_row()?.service().clone(),
        };
        self.service_named(&row)
    }

    /// A service by its name.
    pub fn service_named(&self, name: &ServiceName) -> Option<&ServiceView> {
        self.snapshot.as_ref().and_then(|s| s.services.get(name))
    }

    /// The place of a service among their letters and colours.
    pub fn service_index(&self, name: &ServiceName) -> usize {
        if let Some(place) = self.letters.place(name) {
            return place;
        }
        let services = self.snapshot.iter().flat_map(|s| s.services.keys());
        services.take_while(|n| *n != name).count()
    }

    /// The release selected in the rollout panel.
    pub fn selected_release(&self) -> Option<ReleaseNumber> {
        let service = self.selected_service()?;
        let rows: Vec<ReleaseNumber> = service.history.iter().map(|r| r.number).collect();
        rows.get(self.release.row_in(&rows)).copied()
    }

    /// The ranks whose log can be followed beside `rank`: those of its service.
    pub fn ranks_beside(&self, rank: &RankId) -> Vec<RankId> {
        let service = self.service_named(&rank.service);
        let replicas = service.iter().flat_map(|s| &s.replicas);
        replicas.flat_map(|r| &r.ranks).map(|r| r.rank.clone()).collect()
    }

    /// Questions that wait.
    pub fn questions(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |s| s.questions.len())
    }

    /// The time of day, in the person's zone.
    pub fn clock(&self, at: Timestamp) -> String {
        i64::try_from(at.0)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
            .map_or_else(
                || "–".to_owned(),
                |t| t.to_zoned(self.look.zone.clone()).strftime("%H:%M:%S").to_string(),
            )
    }

    /// How long until the screen changes by the passing of time alone.
    pub fn next_tick(&self) -> Duration {
        let second = Duration::from_secs(1);
        let Some(snapshot) = &self.snapshot else { return second };
        let counts = self.controller != Controller::Live
            || self.notice.is_some()
            || snapshot.hosts.values().any(|h| {
                !matches!(h.link, HostLinkState::Up | HostLinkState::Limited { .. })
                    || h.sampled.is_some_and(|s| self.now.since(s) > STALE)
            })
            || snapshot.services.values().any(|s| {
                s.rollout.as_ref().is_some_and(|r| r.outcome.is_none())
                    || s.replicas.iter().any(|r| self.now.since(r.since) < Duration::from_mins(1))
            });
        if counts {
            return second;
        }
        // Whatever else shows a time shows minutes; and a sample may grow old.
        let to_minute = Duration::from_millis(60_000 - self.now.0 % 60_000);
        let to_stale = snapshot
            .hosts
            .values()
            .filter_map(|h| h.sampled)
            .map(|s| (STALE + second).saturating_sub(self.now.since(s)))
            .min();
        to_stale.map_or(to_minute, |t| t.min(to_minute)).max(second)
    }
}

/// What the filter of the fleet looks at.
fn host_text(host: &HostView) -> String {
    let mut text = host.name.to_string();
    for (key, value) in &host.labels {
        let _ = write!(text, " {key}={value}");
    }
    for gpu in host.sample.iter().flat_map(|s| s.gpus.list()) {
        text.push(' ');
        text.push_str(&gpu.name);
    }
    for rank in &host.ranks {
        text.push(' ');
        text.push_str(rank.rank.service.as_str());
    }
    text.push_str(match host.link {
        HostLinkState::Up => " up",
        HostLinkState::Limited { .. } => " limited",
        HostLinkState::Down { .. } => " down",
        HostLinkState::Connecting { .. } => " connecting",
        HostLinkState::Asking { .. } => " asking",
    });
    text
}

/// What the filter of the services looks at.
fn service_text(service: &ServiceView) -> String {
    let condition = service.condition.word();
    format!("{} {condition} {} {}", service.name, service.engine, service.model)
}
