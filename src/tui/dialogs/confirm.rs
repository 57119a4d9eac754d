//! The dialog before anything that touches what serves: it begins on Cancel, names what was selected
//! when the key was pressed, shows the plan, and wants the service's name typed.

use ratatui::layout::{Position, Rect};
use ratatui::text::{Line, Span};

use super::{centre, draw_buttons, draw_field, plan};
use crate::api::{
    ApiError, ConcurrencyPolicy, Hint as _, Intent, PlanView, ReleaseNumber, ReplicaTo,
    SeenRollout, ServiceName,
};
use crate::tui::draw::Pen;
use crate::tui::field::Field;
use crate::tui::key::Key;
use crate::tui::theme::Theme;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Roll out the spec.
    Apply,
    /// Roll out the spec when the rollout under way has ended.
    Queue {
        /// Which is taken back for it.
        replace: bool,
    },
    /// Roll out an earlier release again.
    Undo {
        /// Which; none: the one before.
        to: Option<ReleaseNumber>,
    },
    /// Pass the gate, or everything that is left.
    Promote {
        /// Everything.
        all: bool,
        /// The step that was seen.
        step: Option<usize>,
    },
    /// Try again what failed.
    Retry,
    /// Do not wait for the gate.
    Skip,
    /// Do not begin what is queued.
    CancelQueued,
    /// Take the rollout back.
    Abort,
    /// Stop all replicas.
    Stop,
    /// Move one replica.
    Move,
}

impl Deed {
    /// The word on the button.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Undo { .. } => "Undo",
            Self::Promote { all: false, .. } => "Promote",
            Self::Promote { all: true, .. } => "Promote all",
            Self::Queue { replace: false } => "Queue",
            Self::Queue { replace: true } => "Replace",
            Self::Retry => "Retry",
            Self::Skip => "Skip",
            Self::CancelQueued => "Withdraw",
            Self::Abort => "Abort",
            Self::Stop => "Stop",
            Self::Move => "Move",
        }
    }

    /// The word on the button that does nothing.
    const fn way_back(self) -> &'static str {
        match self {
            Self::CancelQueued => "Back",
            _ => "Cancel",
        }
    }
}

/// The plan that the dialog shows.
#[derive(Clone, Debug)]
pub enum PlanState {
    /// There is none for this deed; this is said instead.
    Words(Vec<String>),
    /// Asked for, with this ticket.
    Waiting(u64),
    /// Here.
    Ready(Box<PlanView>),
    /// It cannot be made.
    Failed(ApiError),
}

/// The dialog.
#[derive(Clone, Debug)]
pub struct Confirm {
    /// What is to be done.
    pub deed: Deed,
    /// To which service.
    pub service: ServiceName,
    /// The exact target, in words, as it was when the key was pressed.
    pub target: String,
    /// Where a replica that is moved goes.
    pub to: Option<Box<ReplicaTo>>,
    /// The map it was asked from: Cancel leads back to it.
    pub behind: Option<Box<super::Map>>,
    /// The rollout under way that it is about, which nothing else is to be done to.
    pub seen: Option<SeenRollout>,
    /// What it would do.
    pub plan: PlanState,
    /// The name as typed.
    pub name: Field,
    /// Why, for the history.
    pub reason: Field,
    /// The keys go to the reason.
    pub on_reason: bool,
    /// Rows of the plan scrolled down.
    pub scroll: usize,
    /// Why Enter did nothing.
    pub said: Option<String>,
}

/// What a key did.
#[derive(Debug)]
pub enum ConfirmKey {
    /// The dialog stays.
    Stay,
    /// Nothing is done.
    Cancel,
    /// This is asked for.
    Do(Intent),
}

impl Confirm {
    /// A dialog with nothing typed yet.
    pub fn new(deed: Deed, service: ServiceName, target: String, plan: PlanState) -> Self {
        Self {
            deed,
            service,
            target,
            to: None,
            behind: None,
            seen: None,
            plan,
            name: Field::default(),
            reason: Field::default(),
            on_reason: false,
            scroll: 0,
            said: None,
        }
    }

    /// What has to be typed: the service's name, and `outage` after it where there will be one.
    pub fn wanted(&self) -> String {
        if self.outage() { format!("{} outage", self.service) } else { self.service.to_string() }
    }

    fn outage(&self) -> bool {
        matches!(&self.plan, PlanState::Ready(plan) if plan.forecast.outage)
    }

    fn nothing_to_do(&self) -> bool {
        matches!(&self.plan, PlanState::Ready(plan) if plan.nothing_to_do)
    }

    fn matches(&self) -> bool {
        self.name.text().trim() == self.wanted()
    }

    /// Whether Enter would do it now.
    pub fn armed(&self) -> bool {
        let seen = matches!(self.plan, PlanState::Words(_) | PlanState::Ready(_));
        seen && !self.nothing_to_do() && self.matches() && !self.lacks_reason()
    }

    /// The plan that the person has before them. What comes after a rollout under way is planned again then.
    fn agreed(&self) -> Option<String> {
        match &self.plan {
            PlanState::Ready(plan) if plan.behind.is_none() => Some(plan.digest()),
            _ => None,
        }
    }

    /// The wish that the dialog is about; none: it lacks its target.
    pub fn intent(&self) -> Option<Intent> {
        let service = self.service.clone();
        let reason = Some(self.reason.text().trim().to_owned()).filter(|r| !r.is_empty());
        Some(match self.deed {
            Deed::Apply => Intent::Apply {
                service,
                reason,
                accept_outage: self.outage(),
                concurrency: None,
                agreed: self.agreed(),
            },
            Deed::Queue { replace } => Intent::Apply {
                service,
                reason,
                accept_outage: self.outage(),
                concurrency: Some(if replace {
                    ConcurrencyPolicy::Replace
                } else {
                    ConcurrencyPolicy::Queue
                }),
                agreed: None,
            },
            Deed::Undo { to } => Intent::Undo {
                service,
                to,
                reason,
                accept_outage: self.outage(),
                agreed: self.agreed(),
                seen: self.seen,
            },
            Deed::Retry => Intent::Retry {
                service,
                accept_outage: self.outage(),
                reason,
                agreed: self.agreed(),
                seen: self.seen,
            },
            Deed::Skip => {
                Intent::Skip { service, reason: reason.unwrap_or_default(), seen: self.seen }
            }
            Deed::CancelQueued => Intent::CancelQueued { service, reason },
            Deed::Promote { all, step } => Intent::Promote { service, all, step, reason },
            Deed::Abort => Intent::Abort { service, reason, seen: self.seen },
            Deed::Stop => Intent::Stop { service, reason },
            Deed::Move => {
                let ReplicaTo { replica, host, gpus, .. } = self.to.as_deref().cloned()?;
                Intent::Move { service, replica, host, gpus, reason }
            }
        })
    }

    /// A gate is skipped only with a reason.
    fn lacks_reason(&self) -> bool {
        self.deed == Deed::Skip && self.reason.text().trim().is_empty()
    }

    /// Handles a key; `most` rows of the plan can be scrolled away.
    pub fn key(&mut self, key: Key, page: usize, most: usize) -> ConfirmKey {
        self.said = None;
        let at = self.scroll.min(most);
        match key {
            Key::Esc | Key::Ctrl('c') => return ConfirmKey::Cancel,
            Key::Up => self.scroll = at.saturating_sub(1),
            Key::Down => self.scroll = (at + 1).min(most),
            Key::PageUp => self.scroll = at.saturating_sub(page),
            Key::PageDown => self.scroll = (at + page).min(most),
            Key::Tab | Key::BackTab => self.on_reason = !self.on_reason,
            Key::Enter => return self.enter(),
            other => {
                let field = if self.on_reason { &mut self.reason } else { &mut self.name };
                field.key(other);
            }
        }
        ConfirmKey::Stay
    }

    fn enter(&mut self) -> ConfirmKey {
        if self.armed() {
            return self.intent().map_or(ConfirmKey::Cancel, ConfirmKey::Do);
        }
        // Nothing typed: Cancel is what is chosen. Nothing can be done: there is only Close.
        if self.name.text().is_empty()
            || self.nothing_to_do()
            || matches!(self.plan, PlanState::Failed(_))
        {
            return ConfirmKey::Cancel;
        }
        self.said = Some(if matches!(self.plan, PlanState::Waiting(_)) {
            "the plan is not here yet".to_owned()
        } else if self.matches() && self.lacks_reason() {
            self.on_reason = true;
            "a reason is needed: it stays in the history and the audit trail".to_owned()
        } else {
            format!("that is not `{}`", self.wanted())
        });
        ConfirmKey::Stay
    }

    fn body(&self, theme: &Theme, width: usize) -> Vec<Line<'static>> {
        match &self.plan {
            PlanState::Words(words) => {
                words.iter().flat_map(|w| plan::wrapped(w, width, theme.text)).collect()
            }
            PlanState::Waiting(_) => vec![Line::styled("planning …", theme.dim)],
            PlanState::Ready(plan) => plan::lines(plan, theme, width),
            PlanState::Failed(error) => {
                let mut lines = plan::wrapped(&format!("✖ {}", error.message), width, theme.bad);
                if let Some(hint) = error.hint() {
                    lines.extend(plan::wrapped(&format!("→ {hint}"), width, theme.accent));
                }
                lines
            }
        }
    }

    /// Whether something can be done, and its name is asked for.
    pub fn asks(&self) -> bool {
        !self.nothing_to_do() && !matches!(self.plan, PlanState::Failed(_))
    }

    /// Rows below the text: what is typed, and the buttons.
    fn below(&self) -> u16 {
        if self.asks() { 4 } else { 2 }
    }

    /// Where the dialog lies in `body`, and its text.
    fn laid_out(&self, theme: &Theme, body: Rect) -> (Rect, Vec<Line<'static>>) {
        let width = body.width.saturating_sub(4).clamp(body.width.min(40), 104);
        // The dialog may take more than it asks for, where only slivers would be left beside it.
        let inside = centre(body, width, 1).width.saturating_sub(4);
        let lines = self.body(theme, usize::from(inside));
        let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        (centre(body, width, rows.saturating_add(self.below() + 3)), lines)
    }

    /// How many rows of its text can be scrolled away.
    pub fn most_scrolled(&self, theme: &Theme, body: Rect) -> usize {
        let (area, lines) = self.laid_out(theme, body);
        lines.len().saturating_sub(usize::from(area.height.saturating_sub(self.below() + 2)))
    }

    pub(super) fn draw(&self, pen: &mut Pen<'_>, body: Rect) -> Option<Position> {
        let (asks, below) = (self.asks(), self.below());
        let (area, lines) = self.laid_out(pen.theme, body);
        pen.clear(area);
        let title = Line::from(vec![
            Span::styled(format!("{} ", self.deed.verb()), pen.theme.accent),
            Span::styled(self.target.clone(), pen.theme.strong),
        ]);
        let inside = pen.frame(area, true, &title);
        let left = inside.x + 1;
        let right = inside.right().saturating_sub(1);
        let text = Rect {
            x: left,
            width: right.saturating_sub(left),
            height: inside.height.saturating_sub(below),
            ..inside
        };
        let most = pen.lines(text, &lines, self.scroll);
        if most > 0 {
            let at = self.scroll.min(most);
            let more = format!(" ↑↓ {} of {} ", at + usize::from(text.height), lines.len());
            pen.put_right(left, area.bottom() - 1, right, &more, pen.theme.dim);
        }
        let mut y = inside.bottom().saturating_sub(below - 1);
        let mut cursor = None;
        let chosen = usize::from(self.armed());
        if asks {
            let label = format!("Type {} to confirm: ", self.wanted());
            cursor = draw_field(pen, (left, y), right, &label, &self.name, !self.on_reason);
            y += 1;
            let needed = self.deed == Deed::Skip;
            let label = if needed { "Reason (Tab), needed: " } else { "Reason (Tab): " };
            let at = draw_field(pen, (left, y), right, label, &self.reason, self.on_reason);
            cursor = cursor.or(at);
            y += 1;
            if let Some(said) = &self.said {
                pen.put(left, y, right, said, pen.theme.warn);
            }
            draw_buttons(pen, y, inside, &[self.deed.way_back(), self.deed.verb()], chosen);
        } else {
            draw_buttons(pen, inside.bottom().saturating_sub(1), inside, &["Close"], 0);
        }
        cursor
    }
}
