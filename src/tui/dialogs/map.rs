//! The map: hosts × GPUs with the replica on each, as it is and as it would be. A replica can be picked up and put
//! elsewhere; what speaks against that is shown, and the move is asked for like everything else.
//!
//! ```text
//! HOST          NOW                      THEN
//! node1         a0 a0 a0 a0  b0 b0 ·  ·  a0 a0 a0 a0  b0 b0 ·  ·
//! node2         a1 a1 a1 a1  #  #  x  ·  a1 a1 a1 a1  #  #  x  ·
//! ```

mod cells;
mod foot;
mod legend;
mod lies;
mod rows;

use std::collections::BTreeSet;

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use crate::api::{ApiError, HostName, Rank, ReplicaTo, ServiceName, WhatIf, WhatIfView, WorldHost};
use crate::tui::draw::Pen;
use crate::tui::key::Key;
use crate::tui::state::State;
use legend::draw_help;

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
        // How to get out and what else there is come first: a small screen cuts off the end.
        match (self.read_only, self.held.is_some(), self.question == WhatIf::default()) {
            (_, true, _) => "Enter checks, then moves · Esc drops it · ? keys · Space marks GPUs",
            (true, _, true) => "Esc closes · ? keys · f a hole · w without the host · r again",
            (true, _, false) => {
                "Esc back to what is · ? keys · f a hole · w without the host · r again"
            }
            (false, _, true) => {
                "Enter picks up · Esc closes · ? keys · f a hole · w without the host"
            }
            (false, _, false) => {
                "Enter picks up · Esc back to what is · ? keys · f a hole · w without the host"
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
}

impl Map {
    pub(in crate::tui::dialogs) fn draw(&self, pen: &mut Pen<'_>, state: &State, body: Rect) {
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
}
