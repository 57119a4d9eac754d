//! The map: hosts × GPUs with the replica on each, as it is and as it would be. A replica can be picked up and put
//! elsewhere; what speaks against that is shown, and the move is asked for like everything else.
//!
//! ```text
//! HOST          NOW                      THEN
//! node1         a0 a0 a0 a0  b0 b0 ·  ·  a0 a0 a0 a0  b0 b0 ·  ·
//! node2         a1 a1 a1 a1  #  #  x  ·  a1 a1 a1 a1  #  #  x  ·
//! ```

use std::collections::{BTreeMap, BTreeSet};

use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::plan::wrapped;
use crate::api::{
    ApiError, Hint as _, HostName, Rank, ReplicaTo, ServiceName, WhatIf, WhatIfView, WorldHost,
};
use crate::tui::draw::{Pen, window};
use crate::tui::key::Key;
use crate::tui::panels::fleet_cells;
use crate::tui::state::State;

/// Rows at the bottom for what is under the cursor and what speaks against a move.
const FOOT: u16 = 7;

/// The dialog.
#[derive(Clone, Debug)]
pub struct Map {
    /// What is asked.
    pub question: WhatIf,
    /// The request that brings the answer.
    pub ticket: Option<u64>,
    /// The newest answer.
    pub view: Option<Box<WhatIfView>>,
    /// Why there is none.
    pub trouble: Option<ApiError>,
    /// The row of the cursor.
    pub host: usize,
    /// Its place in the row.
    pub gpu: usize,
    /// The replica that was picked up.
    pub held: Option<Held>,
    /// Nothing may be moved.
    pub read_only: bool,
    /// Why the last key did nothing.
    pub said: Option<&'static str>,
    /// The keys are shown over it.
    pub help: bool,
}

/// The map's own keys, as its help shows them; the last ones move.
const KEYS: [(&str, &str); 9] = [
    ("Enter m", "picks a replica up, checks where it would go, moves it"),
    ("Space", "marks single GPUs for the replica that was picked up"),
    ("f", "what frees a place for the largest gang"),
    ("w", "as if the cursor's host were lost, or there again"),
    ("r", "asks again, with the hosts as they are now"),
    ("Esc", "drops the replica, then the question, then closes the map"),
    ("h j k l ←↓↑→", "move the cursor"),
    ("g G Home End", "the first and the last host"),
    ("PgUp PgDn ^u ^d", "a page of hosts"),
];

/// A replica that is being moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its service.
    pub service: ServiceName,
    /// Its number.
    pub replica: u32,
    /// GPUs that it needs.
    pub gpus: usize,
    /// Indices that were marked one by one, and the row they are in.
    pub marked: BTreeSet<u32>,
    /// The row of the marks.
    pub row: usize,
}

/// What a key did.
#[derive(Debug, PartialEq)]
pub enum MapKey {
    /// Nothing to do outside.
    Stay,
    /// The dialog closes.
    Close,
    /// The question has changed.
    Ask,
    /// The replica shall go there: the person confirms it next.
    Move(ReplicaTo),
}

/// Who is on a GPU: the service's place in the world, and the replica's number.
type Lies = BTreeMap<(String, u32), (usize, u32)>;

impl Map {
    /// A map that waits for its first answer.
    pub fn new(ticket: u64, read_only: bool) -> Self {
        Self {
            question: WhatIf::default(),
            ticket: Some(ticket),
            view: None,
            trouble: None,
            host: 0,
            gpu: 0,
            held: None,
            read_only,
            said: None,
            help: false,
        }
    }

    /// The answer to the newest question.
    pub fn answered(&mut self, result: Result<Box<WhatIfView>, ApiError>) {
        self.ticket = None;
        match result {
            Ok(view) => {
                self.view = Some(view);
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(error),
        }
        self.step(0, 0);
    }

    fn hosts(&self) -> &[WorldHost] {
        self.view.as_ref().map_or(&[], |v| &v.world.hosts)
    }

    fn step(&mut self, rows: isize, columns: isize) {
        let last = self.hosts().len().saturating_sub(1);
        self.host = self.host.saturating_add_signed(rows).min(last);
        let gpus = self.hosts().get(self.host).map_or(0, |h| h.gpus.len());
        self.gpu = self.gpu.saturating_add_signed(columns).min(gpus.saturating_sub(1));
    }

    /// Where the replica that was picked up would go.
    fn target(&self) -> Option<ReplicaTo> {
        let held = self.held.as_ref()?;
        let host = self.hosts().get(self.host)?;
        let gpus = if held.marked.is_empty() || held.row != self.host {
            // As many as it needs from the cursor on.
            let from = self.gpu.min(host.gpus.len().saturating_sub(held.gpus));
            host.gpus.iter().skip(from).take(held.gpus).map(|g| g.index).collect()
        } else {
            held.marked.iter().copied().collect()
        };
        Some(ReplicaTo {
            service: held.service.clone(),
            replica: held.replica,
            host: host.name.parse::<HostName>().ok()?,
            gpus,
        })
    }

    /// Handles a key.
    pub fn key(&mut self, key: Key, page: usize) -> MapKey {
        let page = isize::try_from(page).unwrap_or(1);
        self.said = None;
        if std::mem::take(&mut self.help) {
            return MapKey::Stay;
        }
        match key {
            Key::Char('?') => self.help = true,
            Key::Up | Key::Char('k') => self.step(-1, 0),
            Key::Down | Key::Char('j') => self.step(1, 0),
            Key::Left | Key::Char('h') => self.step(0, -1),
            Key::Right | Key::Char('l') => self.step(0, 1),
            Key::PageUp | Key::Ctrl('u') => self.step(-page, 0),
            Key::PageDown | Key::Ctrl('d') => self.step(page, 0),
            Key::Home | Key::Char('g') => self.step(isize::MIN / 2, 0),
            Key::End | Key::Char('G') => self.step(isize::MAX / 2, 0),
            Key::Char(' ') => self.mark(),
            Key::Enter | Key::Char('m') => return self.enter(),
            Key::Char('f') => {
                self.question.defrag = match self.question.defrag {
                    None => Some(0),
                    Some(_) => None,
                };
                return self.asks_anew();
            }
            Key::Char('w') => {
                let host = self.hosts().get(self.host).and_then(|h| h.name.parse().ok());
                let Some(host) = host else { return MapKey::Stay };
                let lost = &mut self.question.without;
                match lost.iter().position(|h| *h == host) {
                    Some(at) => drop(lost.remove(at)),
                    None => lost.push(host),
                }
                return self.asks_anew();
            }
            Key::Char('r') => return self.asks_anew(),
            Key::Esc if self.held.is_some() || self.question != WhatIf::default() => {
                self.question = WhatIf::default();
                return self.asks_anew();
            }
            Key::Esc | Key::Char('q') | Key::Ctrl('c') => return MapKey::Close,
            _ => {}
        }
        MapKey::Stay
    }

    fn asks_anew(&mut self) -> MapKey {
        self.held = None;
        self.question.to = None;
        MapKey::Ask
    }

    /// Marks a GPU for the replica that was picked up, or takes the mark away.
    fn mark(&mut self) {
        let row = self.host;
        let index = self.hosts().get(row).and_then(|h| h.gpus.get(self.gpu)).map(|g| g.index);
        let (Some(held), Some(index)) = (&mut self.held, index) else { return };
        if held.row != row {
            held.marked.clear();
            held.row = row;
        }
        if !held.marked.remove(&index) {
            held.marked.insert(index);
        }
    }

    /// Picks up what lies under the cursor; puts it down; and, when it may lie there, asks for the move.
    fn enter(&mut self) -> MapKey {
        if self.read_only {
            self.said = Some("you only look: nothing can be moved from here");
            return MapKey::Stay;
        }
        if self.held.is_none() {
            self.pick_up();
            return MapKey::Stay;
        }
        let Some(target) = self.target() else { return MapKey::Stay };
        let checked = self.question.to.as_ref() == Some(&target) && self.ticket.is_none();
        let check = self.view.as_ref().and_then(|v| v.check.as_ref()).filter(|_| checked);
        match check {
            Some(check) if check.violated.is_none() => MapKey::Move(target),
            Some(_) => MapKey::Stay,
            None => {
                self.question = WhatIf { to: Some(target), ..WhatIf::default() };
                MapKey::Ask
            }
        }
    }

    fn pick_up(&mut self) {
        let Some(view) = &self.view else { return };
        let Some(host) = view.world.hosts.get(self.host) else { return };
        let Some(gpu) = host.gpus.get(self.gpu) else { return };
        let on = |r: &Rank| r.host == host.name && r.gpus.contains(&gpu.index);
        let found = view.world.placements.iter().find(|p| !p.outgoing && p.ranks.iter().any(on));
        self.held = found.and_then(|p| {
            Some(Held {
                service: p.service.parse().ok()?,
                replica: p.replica,
                gpus: p.ranks.iter().map(|r| r.gpus.len()).sum(),
                marked: BTreeSet::new(),
                row: self.host,
            })
        });
        if self.held.is_none() {
            self.said = Some("no replica lies on this GPU: there is nothing to pick up");
        }
    }

    /// The keys, and what Esc does now.
    pub fn hint(&self) -> &'static str {
        match (self.read_only, self.held.is_some(), self.question == WhatIf::default()) {
            (_, true, _) => "Enter checks, then moves · Space marks GPUs · Esc drops it · ? keys",
            (true, _, true) => "f a hole · w without the host · r again · Esc closes · ? keys",
            (true, _, false) => {
                "f a hole · w without the host · r again · Esc back to now · ? keys"
            }
            (false, _, true) => {
                "Enter picks up · f a hole · w without the host · Esc closes · ? keys"
            }
            (false, _, false) => {
                "Enter picks up · f a hole · w without the host · Esc back to what is · ? keys"
            }
        }
    }

    /// What is said before the move is asked for.
    pub fn words(&self, to: &ReplicaTo) -> Vec<String> {
        let check = self.view.as_ref().and_then(|v| v.check.clone()).unwrap_or_default();
        let mut words = vec![
            format!("A successor of {}/{} starts on {}.", to.service, to.replica, to.host),
            "When it has generated a token it takes over, and the replica is drained.".to_owned(),
        ];
        words.extend(check.worse.iter().map(|w| format!("▲ worse: {w}")));
        words.extend(check.better.iter().map(|w| format!("● better: {w}")));
        words
    }

    pub(super) fn draw(&self, pen: &mut Pen<'_>, state: &State, body: Rect) {
        pen.clear(body);
        let title = Line::from(vec![
            Span::styled("Map ", pen.theme.accent),
            Span::styled(self.title(), pen.theme.strong),
        ]);
        let inside = pen.frame(body, true, &title);
        let inside = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
        let Some(view) = &self.view else {
            let wait = if self.ticket.is_some() { "one moment …" } else { "" };
            pen.put(inside.x, inside.y, inside.right(), wait, pen.theme.dim);
            self.draw_trouble(pen, inside);
            return;
        };
        let rows = Rect { height: inside.height.saturating_sub(FOOT), ..inside };
        self.draw_rows(pen, state, view, rows);
        let foot = Rect { y: rows.bottom(), height: inside.bottom() - rows.bottom(), ..inside };
        self.draw_foot(pen, state, view, foot);
        if self.help {
            draw_help(pen, body);
        }
    }

    /// Who would be where. A replica that was picked up lies where the cursor would put it.
    fn lies_then(&self, view: &WhatIfView) -> Lies {
        let mut lies = lies_then(view);
        if let (Some(held), Some(target)) = (&self.held, self.target()) {
            let services = &view.world.services;
            let s = services.iter().position(|s| s.name == held.service.as_str()).unwrap_or(0);
            lies.retain(|_, lies| *lies != (s, held.replica));
            let host = target.host.to_string();
            lies.extend(target.gpus.iter().map(|gpu| ((host.clone(), *gpu), (s, held.replica))));
        }
        lies
    }

    fn title(&self) -> String {
        let mut parts = Vec::new();
        if let Some(held) = &self.held {
            parts.push(format!("moving {}/{}", held.service, held.replica));
        }
        if self.question.defrag.is_some() {
            parts.push("a hole for the largest gang".to_owned());
        }
        if !self.question.without.is_empty() {
            let lost: Vec<&str> = self.question.without.iter().map(HostName::as_str).collect();
            parts.push(format!("without {}", lost.join(", ")));
        }
        if self.ticket.is_some() {
            parts.push("thinking …".to_owned());
        }
        if parts.is_empty() { "now and as well as can be".to_owned() } else { parts.join(" · ") }
    }

    fn draw_rows(&self, pen: &mut Pen<'_>, state: &State, view: &WhatIfView, area: Rect) {
        let world = &view.world;
        let longest = world.hosts.iter().map(|h| h.name.len()).max().unwrap_or(4);
        let name = u16::try_from(longest).unwrap_or(24).clamp(6, 24) + 2;
        let widest = world.hosts.iter().map(cells).max().unwrap_or(0);
        // Letter and number, or the letter alone where two maps would not fit beside each other.
        let room = area.width.saturating_sub(name) / 2;
        let before = lies_now(view);
        let after = self.lies_then(view);
        let digits = |n: &u32| n.to_string().len();
        let number = before.values().chain(after.values()).map(|(_, n)| digits(n)).max();
        let wide = u16::try_from(number.unwrap_or(1)).unwrap_or(1).saturating_add(2);
        let each = if widest.saturating_mul(wide) <= room { wide } else { 1 };
        let map = widest.saturating_mul(each).saturating_add(1).min(room);
        let (now, then) = (area.x + name, area.x + name + map + 2);
        pen.put(area.x, area.y, area.right(), "HOST", pen.theme.header);
        pen.put(now, area.y, then, "NOW", pen.theme.header);
        pen.put(then, area.y, area.right(), "THEN", pen.theme.header);
        let target = self.target();
        let height = usize::from(area.height.saturating_sub(1));
        let from = window(world.hosts.len(), self.host, height);
        for (y, (row, host)) in
            (area.y + 1..area.bottom()).zip(world.hosts.iter().enumerate().skip(from))
        {
            let style = if row == self.host { pen.theme.strong } else { pen.theme.text };
            pen.put_cut(area.x, y, now - 1, &host.name, style);
            for (x, lies, cursor) in [(now, &before, true), (then, &after, false)] {
                let right = if cursor { then - 1 } else { area.right() };
                // As it is now a host is there although it is supposed to be lost.
                let supposed = self.question.without.iter().any(|h| h.as_str() == host.name);
                let up = host.up || (cursor && supposed);
                let draw = Cells { host, up, lies, each, view, state };
                let marks = |index: u32| -> Mark {
                    let here = row == self.host;
                    let gpu = host.gpus.get(self.gpu).filter(|_| here).map(|g| g.index);
                    let aims = target
                        .as_ref()
                        .is_some_and(|t| t.host.as_str() == host.name && t.gpus.contains(&index));
                    match (cursor, gpu == Some(index)) {
                        (true, true) => Mark::Cursor,
                        (true, false) if aims => Mark::Target,
                        _ => Mark::None,
                    }
                };
                let changed = |index: u32| {
                    let key = (host.name.clone(), index);
                    !cursor && before.get(&key) != after.get(&key)
                };
                draw.draw(pen, x, y, right, &marks, &changed);
            }
        }
    }

    fn draw_foot(&self, pen: &mut Pen<'_>, state: &State, view: &WhatIfView, area: Rect) {
        let width = usize::from(area.width);
        let mut lines: Vec<Line<'static>> = legend(pen, state, view, width);
        lines.extend(wrapped(&self.under_cursor(view), width, pen.theme.text));
        lines.extend(self.said.map(|said| Line::styled(said, pen.theme.warn)));
        if let Some(held) = &self.held {
            let aims = self.target();
            let to = aims
                .as_ref()
                .map_or_else(String::new, |t| format!("{} [{}]", t.host, list(&t.gpus)));
            let checked = aims.is_some() && self.question.to == aims && self.ticket.is_none();
            let check = view.check.as_ref().filter(|_| checked);
            let gpus = if held.gpus == 1 { "GPU" } else { "GPUs" };
            lines.push(Line::from(vec![
                Span::styled(format!("{}/{}", held.service, held.replica), pen.theme.strong),
                Span::raw(format!(" needs {} {gpus} → {to}", held.gpus)),
            ]));
            let next = match check {
                None => "Enter checks the rules · Space marks single GPUs · Esc drops it",
                Some(c) if c.violated.is_none() => "Enter moves it · Esc drops it",
                Some(_) => "choose another place · Esc drops it",
            };
            lines.push(Line::styled(next, pen.theme.dim));
            if let Some(check) = check {
                if let Some(why) = &check.violated {
                    lines.extend(wrapped(&format!("✖ rule violated: {why}"), width, pen.theme.bad));
                }
                let worse = check.worse.iter().map(|w| format!("▲ worse: {w}"));
                lines.extend(worse.flat_map(|w| wrapped(&w, width, pen.theme.warn)));
                let better = check.better.iter().map(|w| format!("● better: {w}"));
                lines.extend(better.flat_map(|w| wrapped(&w, width, pen.theme.good)));
                if check == &crate::api::PlaceCheck::default() {
                    lines.push(Line::styled("● as good as where it is", pen.theme.good));
                }
            }
        } else {
            lines.extend(summary(pen, view));
            let unplaced = view.answer.services.iter().filter_map(|s| {
                let why = s.unplaced.as_ref()?;
                Some(format!("✖ {}: {} of {} placed: {why}", s.name, s.placed, s.wanted))
            });
            lines.extend(unplaced.flat_map(|text| wrapped(&text, width, pen.theme.bad)));
            let left_out = view.left_out.iter().map(|(s, why)| format!("▲ without {s}: {why}"));
            lines.extend(left_out.flat_map(|text| wrapped(&text, width, pen.theme.dim)));
        }
        if let Some(error) = &self.trouble {
            lines.extend(wrapped(&format!("✖ {}", error.message), width, pen.theme.bad));
        }
        let room = usize::from(area.height);
        lines.truncate(room);
        pen.lines(area, &lines, 0);
    }

    fn draw_trouble(&self, pen: &mut Pen<'_>, inside: Rect) {
        let Some(error) = &self.trouble else { return };
        let width = usize::from(inside.width);
        let mut lines = wrapped(&format!("✖ {}", error.message), width, pen.theme.bad);
        if let Some(hint) = error.hint() {
            lines.extend(wrapped(&format!("→ {hint}"), width, pen.theme.accent));
        }
        pen.lines(inside, &lines, 0);
    }

    fn under_cursor(&self, view: &WhatIfView) -> String {
        let Some(host) = view.world.hosts.get(self.host) else { return String::new() };
        let Some(gpu) = host.gpus.get(self.gpu) else {
            return format!("{}: no GPU", host.name);
        };
        let free = gpu.memory_free.map_or_else(String::new, |f| format!(", {f} free"));
        let key = (host.name.clone(), gpu.index);
        let who = match lies_now(view).get(&key) {
            Some((s, replica)) => {
                let name = view.world.services.get(*s).map_or("", |s| s.name.as_str());
                format!(", {name}/{replica}")
            }
            None => reserved(view, host, gpu.index)
                .map_or_else(String::new, |by| format!(", held by {by}")),
        };
        let sick = if gpu.health == "ok" { String::new() } else { format!(", {}", gpu.health) };
        format!(
            "{} GPU {}: {} {}{free}{who}{sick}",
            host.name, gpu.index, gpu.model, gpu.memory_total
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    None,
    Cursor,
    Target,
}

/// The cells of one host.
struct Cells<'a> {
    host: &'a WorldHost,
    up: bool,
    lies: &'a Lies,
    each: u16,
    view: &'a WhatIfView,
    state: &'a State,
}

impl Cells<'_> {
    fn draw(
        &self,
        pen: &mut Pen<'_>,
        x: u16,
        y: u16,
        right: u16,
        marks: &dyn Fn(u32) -> Mark,
        changed: &dyn Fn(u32) -> bool,
    ) {
        let mut at = x;
        let mut island = self.host.gpus.first().and_then(|g| g.island);
        for gpu in &self.host.gpus {
            if gpu.island != island {
                island = gpu.island;
                at += 1;
            }
            let (text, mut style) = self.cell(pen, gpu.index);
            let text = if self.each == 1 { text.chars().take(1).collect() } else { text };
            style = match marks(gpu.index) {
                Mark::None if changed(gpu.index) => style.add_modifier(Modifier::UNDERLINED),
                Mark::None => style,
                Mark::Cursor => style.add_modifier(Modifier::REVERSED),
                Mark::Target => style.add_modifier(Modifier::REVERSED | Modifier::DIM),
            };
            pen.put(at, y, right, &text, style);
            at = at.saturating_add(self.each);
        }
    }

    /// `a0` for a replica, `·` free, `x` not healthy, `#` held by something else, `-` not to be used.
    fn cell(&self, pen: &Pen<'_>, index: u32) -> (String, Style) {
        let theme = pen.theme;
        let wide = |text: &str| format!("{text:<2}");
        if let Some((s, replica)) = self.lies.get(&(self.host.name.clone(), index)) {
            let style = service_style(self.state, self.view, theme, *s);
            let letter = letter(self.state, self.view, *s);
            return (wide(&format!("{letter}{replica}")), style);
        }
        let sick = |g: &&crate::api::WorldGpu| g.index == index && g.health != "ok";
        if self.host.gpus.iter().any(|g| sick(&g)) {
            return (wide("x"), theme.bad);
        }
        if reserved(self.view, self.host, index).is_some() {
            return (wide("#"), theme.warn);
        }
        if !self.up || self.host.cordoned || self.host.draining {
            return (wide("-"), theme.dim);
        }
        (wide("·"), theme.dim)
    }
}

/// Columns of a host's row, one a GPU and one between islands.
fn cells(host: &WorldHost) -> u16 {
    u16::try_from(host.gpus.len()).unwrap_or(64)
}

/// The place of a service among those of the deck, as the other panels count them.
fn place(state: &State, view: &WhatIfView, service: usize) -> usize {
    let name = view.world.services.get(service).and_then(|s| s.name.parse::<ServiceName>().ok());
    name.map_or(service, |n| state.service_index(&n))
}

/// The letter that the service has in the fleet too.
fn letter(state: &State, view: &WhatIfView, service: usize) -> char {
    fleet_cells::letter(place(state, view, service))
}

/// The colour that the service has in the other panels too.
fn service_style(
    state: &State,
    view: &WhatIfView,
    theme: &crate::tui::theme::Theme,
    service: usize,
) -> Style {
    let at = place(state, view, service);
    theme.services.get(at % theme.services.len()).copied().unwrap_or(theme.text)
}

fn reserved<'a>(view: &'a WhatIfView, host: &WorldHost, index: u32) -> Option<&'a str> {
    let of =
        view.world.reservations.iter().find(|r| {
            r.host == host.name && r.gpus.as_ref().is_none_or(|gpus| gpus.contains(&index))
        });
    of.map(|r| r.by.as_str())
}

fn lies_now(view: &WhatIfView) -> Lies {
    let mut lies = Lies::new();
    for running in &view.world.placements {
        let s = view.world.services.iter().position(|s| s.name == running.service);
        for rank in &running.ranks {
            for gpu in &rank.gpus {
                lies.insert((rank.host.clone(), *gpu), (s.unwrap_or(0), running.replica));
            }
        }
    }
    lies
}

fn lies_then(view: &WhatIfView) -> Lies {
    let mut lies = Lies::new();
    for (s, service) in view.answer.services.iter().enumerate() {
        for replica in &service.replicas {
            for rank in &replica.ranks {
                for gpu in &rank.gpus {
                    lies.insert((rank.host.clone(), *gpu), (s, replica.replica));
                }
            }
        }
    }
    lies
}

fn draw_help(pen: &mut Pen<'_>, body: Rect) {
    let line = |(keys, what): &(&'static str, &'static str)| {
        Line::from(vec![Span::styled(format!("{keys:<16}"), pen.theme.strong), Span::raw(*what)])
    };
    let lines: Vec<Line<'static>> = KEYS.iter().map(line).collect();
    let widest = lines.iter().map(Line::width).max().unwrap_or(0);
    let width = u16::try_from(widest).unwrap_or(u16::MAX).saturating_add(4);
    let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let area = super::centre(body, width, rows);
    pen.clear(area);
    let inside = pen.frame(area, true, &Line::styled("Keys in the map", pen.theme.strong));
    let text = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    pen.lines(text, &lines, 0);
    let foot = " any key goes back ";
    pen.put_right(area.x, area.bottom().saturating_sub(1), area.right() - 1, foot, pen.theme.dim);
}

/// GPUs as people write them.
fn list(gpus: &[u32]) -> String {
    gpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// What the letters and signs mean, on as many lines as it takes.
fn legend(pen: &Pen<'_>, state: &State, view: &WhatIfView, width: usize) -> Vec<Line<'static>> {
    let theme = pen.theme;
    let mut items: Vec<(String, Style, String)> = Vec::new();
    for (s, service) in view.world.services.iter().enumerate() {
        let style = service_style(state, view, theme, s);
        items.push((letter(state, view, s).to_string(), style, service.name.clone()));
    }
    for (sign, style, what) in [
        ("·", theme.dim, "free"),
        ("x", theme.bad, "sick"),
        ("#", theme.warn, "held"),
        ("-", theme.dim, "not used"),
        ("__", theme.text.add_modifier(Modifier::UNDERLINED), "changes"),
        ("  ", theme.text.add_modifier(Modifier::REVERSED | Modifier::DIM), "target"),
    ] {
        items.push((sign.to_owned(), style, what.to_owned()));
    }
    let mut lines = Vec::new();
    let (mut spans, mut used) = (Vec::new(), 0);
    for (sign, style, what) in items {
        let long = sign.chars().count() + what.chars().count() + 3;
        if used > 0 && used + long > width {
            lines.push(Line::from(std::mem::take(&mut spans)));
            used = 0;
        }
        used += long;
        spans.push(Span::styled(sign, style));
        spans.push(Span::styled(format!(" {what}  "), theme.dim));
    }
    lines.push(Line::from(spans));
    lines
}

fn summary(pen: &Pen<'_>, view: &WhatIfView) -> Vec<Line<'static>> {
    let answer = &view.answer;
    let copied: u64 = answer.copies.iter().map(|c| c.bytes.0).sum();
    let stops = answer.moves.iter().filter(|m| m.to.is_empty() && m.serving).count();
    let moves = answer.moves.iter().filter(|m| !m.to.is_empty()).count();
    let replicas = answer.services.iter().flat_map(|s| &s.replicas);
    let starts = replicas.filter(|r| r.state == "starts").count();
    let mut spans = vec![Span::styled(
        format!("{} of {} placed", answer.placed, answer.wanted),
        pen.theme.strong,
    )];
    match moves {
        0 if stops == 0 => spans.push(Span::raw(", nothing moves")),
        0 => {}
        1 => spans.push(Span::raw(", 1 moves")),
        n => spans.push(Span::raw(format!(", {n} move"))),
    }
    if stops > 0 {
        let word = if stops == 1 { "STOPS" } else { "STOP" };
        spans.push(Span::raw(", "));
        spans.push(Span::styled(format!("{stops} {word}"), pen.theme.bad));
    }
    if starts > 0 {
        let word = if starts == 1 { "starts" } else { "start" };
        spans.push(Span::raw(format!(", {starts} {word}")));
    }
    if copied > 0 {
        spans.push(Span::raw(format!(", {} to copy", crate::api::Bytes(copied))));
    }
    let gang = format!(
        "largest gang that still fits: {} GPUs now, {} then",
        view.largest_gang_before, answer.largest_gang
    );
    let mut lines = vec![Line::from(spans)];
    if let Some(hole) = &view.hole {
        lines.push(match &hole.at {
            Some(at) => Line::styled(
                format!("a hole of {} GPUs: {} [{}]", hole.gpus, at.host, list(&at.gpus)),
                pen.theme.good,
            ),
            None => {
                Line::styled(format!("no moves free {} GPUs together", hole.gpus), pen.theme.bad)
            }
        });
    }
    lines.push(Line::styled(gang, pen.theme.dim));
    lines
}
