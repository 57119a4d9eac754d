//! Everything that can be asked for by key or by name, as plain data.

/// A panel, in the order of the digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Panel {
    /// Hosts and their GPUs.
    Fleet,
    /// Services and their replicas.
    Services,
    /// The rollout of the selected service.
    Rollout,
    /// What happened.
    Events,
    /// What a rank writes.
    Logs,
}

impl Panel {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Fleet, Self::Services, Self::Rollout, Self::Events, Self::Logs];

    /// Its name on the screen.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Fleet => "Fleet",
            Self::Services => "Services",
            Self::Rollout => "Rollout",
            Self::Events => "Events",
            Self::Logs => "Logs",
        }
    }

    /// Its digit.
    pub const fn digit(self) -> char {
        match self {
            Self::Fleet => '1',
            Self::Services => '2',
            Self::Rollout => '3',
            Self::Events => '4',
            Self::Logs => '5',
        }
    }

    /// The panel `by` places on, around the end.
    #[must_use]
    pub fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|p| *p == self).unwrap_or(0);
        Self::ALL.get((at + by) % Self::ALL.len()).copied().unwrap_or(self)
    }
}

/// How much harm a command can do. Read-only mode removes everything but `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Danger {
    /// It only looks.
    None,
    /// It changes the controller's mind, not what serves.
    Changes,
    /// It touches what serves: confirmed by the service's name.
    Serving,
}

macro_rules! commands {
    ($($(#[doc = $doc:literal])* $variant:ident, $name:literal, $danger:ident, $scope:ident;)*) => {
        /// A command.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Command { $($(#[doc = $doc])* $variant,)* }

        impl Command {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in the palette.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it does, for help and palette.
            pub const fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }

            /// How much harm it can do.
            pub const fn danger(self) -> Danger {
                match self { $(Self::$variant => Danger::$danger,)* }
            }

            /// What it is about.
            pub const fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope,)* }
            }
        }
    };
}

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The screen: reached by key only.
    Key,
    /// The whole deck or program.
    Deck,
    /// One service, named after it in the palette.
    Service,
}

commands! {
    /// one row up
    Up, "up", None, Key;
    /// one row down
    Down, "down", None, Key;
    /// to the left
    Left, "left", None, Key;
    /// to the right
    Right, "right", None, Key;
    /// to the first row
    Top, "top", None, Key;
    /// to the last row; in Events and Logs: live again
    Bottom, "bottom", None, Key;
    /// half a page up
    HalfUp, "half-up", None, Key;
    /// half a page down
    HalfDown, "half-down", None, Key;
    /// a page up
    PageUp, "page-up", None, Key;
    /// a page down
    PageDown, "page-down", None, Key;
    /// hosts and GPUs
    Fleet, "fleet", None, Deck;
    /// services and replicas
    Services, "services", None, Deck;
    /// the rollout of the selected service
    Rollout, "rollout", None, Deck;
    /// what happened
    Events, "events", None, Deck;
    /// the log that is followed
    ShowLogs, "show-logs", None, Deck;
    /// the next panel
    NextPanel, "next-panel", None, Key;
    /// the previous panel
    PreviousPanel, "previous-panel", None, Key;
    /// this panel alone, and back
    Zoom, "zoom", None, Key;
    /// only rows that match
    Filter, "filter", None, Key;
    /// any command by its name
    Palette, "palette", None, Key;
    /// the keys of this panel
    Help, "help", None, Deck;
    /// back: out of the detail, the filter, the zoom
    Back, "back", None, Key;
    /// back, or leave at the root
    BackOrQuit, "back-or-quit", None, Key;
    /// leave after asking
    AskQuit, "ask-quit", None, Key;
    /// leave; the controller and what serves go on
    Quit, "quit", None, Deck;
    /// suspend; `fg` brings it back
    Suspend, "suspend", None, Key;
    /// draw everything again
    Redraw, "redraw", None, Deck;
    /// everything about the selected host or service
    Describe, "describe", None, Service;
    /// what would change: the spec's difference
    Diff, "diff", None, Service;
    /// what applying would do, without doing it
    Plan, "plan", None, Service;
    /// follow the log of the selected rank
    Logs, "logs", None, Service;
    /// follow the next rank
    NextRank, "next-rank", None, Key;
    /// follow the previous rank
    PreviousRank, "previous-rank", None, Key;
    /// show only louder events
    Severity, "severity", None, Key;
    /// copy the selected name, address or line
    Copy, "copy", None, Key;
    /// roll out the service's spec
    Apply, "apply", Serving, Service;
    /// roll out an earlier release again
    Undo, "undo", Serving, Service;
    /// hold the rollout, or go on
    PauseResume, "pause-resume", Changes, Key;
    /// hold the rollout
    Pause, "pause", Changes, Service;
    /// go on after a pause
    Resume, "resume", Changes, Service;
    /// pass the gate that holds the rollout
    Promote, "promote", Serving, Service;
    /// skip all remaining steps and gates
    PromoteAll, "promote-all", Serving, Service;
    /// try again what failed, or roll the same revision out again
    Retry, "retry", Serving, Service;
    /// do not wait for the gate that holds the rollout
    Skip, "skip", Serving, Service;
    /// take the rollout back, then roll out the service's spec
    Replace, "replace", Serving, Service;
    /// do not begin the rollout that is queued
    CancelQueued, "cancel-queued", Changes, Service;
    /// take the rollout back
    Abort, "abort", Serving, Service;
    /// drain and stop all replicas
    Stop, "stop", Serving, Service;
    /// where every replica lies, and where it would better
    Map, "map", None, Deck;
    /// answer what waits for a person
    Questions, "questions", Changes, Deck;
    /// read deck.toml and the specs again
    Reload, "reload", Changes, Deck;
    /// start a controller where the deck's is gone
    StartController, "start-controller", Changes, Deck;
    /// end the controller; what serves goes on serving
    Shutdown, "shutdown", Changes, Deck;
}
