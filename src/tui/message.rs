//! What reaches the screen's state, and what it wants done: plain data, both of them.

use std::time::Duration;

use super::key::Key;
use crate::api::{
    ApiError, Delta, Intent, IntentReply, LogChunk, PlanView, RankId, ReleaseNumber, ServiceName,
    Timestamp, WhatIf, WhatIfView,
};

/// Something happened.
#[derive(Clone, Debug)]
pub enum Message {
    /// A key was pressed.
    Key(Key),
    /// A text was pasted.
    Paste(String),
    /// The terminal has this size now.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// It is this late.
    Tick(Timestamp),
    /// The controller told a change.
    Delta(Box<Delta>),
    /// The controller is not reached.
    Lost {
        /// Why, for people.
        why: String,
        /// What to do.
        hint: Option<String>,
        /// It is tried again after this time.
        retry_after: Duration,
    },
    /// The answer to `Effect::Send`.
    Replied {
        /// What was asked, in words.
        what: String,
        /// The same, where it may be asked once more.
        again: Option<Box<Wish>>,
        /// What came of it.
        result: Result<Box<IntentReply>, ApiError>,
    },
    /// The answer to `Effect::Plan`.
    Planned {
        /// The request it answers; an older one is dropped.
        ticket: u64,
        /// The plan.
        result: Result<Box<PlanView>, ApiError>,
    },
    /// The answer to `Effect::WhatIf`.
    WhatIf {
        /// The request it answers.
        ticket: u64,
        /// Where everything would be.
        result: Result<Box<WhatIfView>, ApiError>,
    },
    /// The answer to `Effect::Diff`.
    Diffed {
        /// The request it answers.
        ticket: u64,
        /// The difference.
        result: Result<String, ApiError>,
    },
    /// The answer to `Effect::Log`.
    Logged {
        /// The request it answers.
        ticket: u64,
        /// The piece.
        result: Result<LogChunk, ApiError>,
    },
    /// The answer to `Effect::StartController`.
    Started(Result<(), ApiError>),
    /// The picture was written, or not.
    Pictured(Result<String, String>),
    /// We were suspended and are back.
    Resumed,
}

/// Something is to be done by the loop.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask the controller for something.
    Send {
        /// What.
        intent: Wish,
        /// In words, for the answer.
        what: String,
    },
    /// Start a controller.
    StartController,
    /// Fetch a plan.
    Plan {
        /// To be returned with the answer.
        ticket: u64,
        /// Of which service.
        service: ServiceName,
        /// Of what.
        of: PlanOf,
    },
    /// Ask where everything would be.
    WhatIf {
        /// To be returned with the answer.
        ticket: u64,
        /// If what.
        question: Box<WhatIf>,
    },
    /// Fetch the difference of two releases.
    Diff {
        /// To be returned with the answer.
        ticket: u64,
        /// Of which service.
        service: ServiceName,
        /// The older one.
        from: ReleaseNumber,
        /// The newer one.
        to: ReleaseNumber,
    },
    /// Fetch a piece of a log.
    Log {
        /// To be returned with the answer.
        ticket: u64,
        /// Whose.
        rank: Box<RankId>,
        /// From there; none: its end.
        offset: Option<u64>,
        /// At most so many bytes.
        length: u32,
        /// Not at once, but after this time.
        after: Duration,
    },
    /// The changes have a gap: begin the stream again.
    Resync,
    /// Put a text into the clipboard of the person's terminal.
    Copy(String),
    /// Write what is on the screen to a file, as SVG.
    Picture(String),
    /// Clear the screen and draw all of it.
    Redraw,
    /// Stop this process until the shell continues it.
    Suspend,
    /// Leave.
    Quit,
}

/// Of what a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanOf {
    /// Rolling out the spec.
    Apply,
    /// The same after the rollout under way, or in place of it.
    Behind {
        /// That one is taken back.
        replace: bool,
    },
    /// Going back to this release; none: the one before.
    Undo(Option<ReleaseNumber>),
    /// Rolling out again what was taken back.
    Retry,
}

/// An intent whose text a log may show: an answer is left out.
#[derive(Clone, PartialEq)]
pub struct Wish(pub Intent);

impl std::fmt::Debug for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Intent::Answer { question, .. } => write!(f, "Answer {{ question: {question}, .. }}"),
            other => other.fmt(f),
        }
    }
}
