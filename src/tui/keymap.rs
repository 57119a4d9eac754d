//! Which key means which command where: one table, read by the loop, the help and the hint bar.
//!
//! Nothing that harms sits on a plain key without a dialog, and nothing at all that harms on Ctrl.

use super::command::{Command, Danger, Panel};
use super::key::Key;

/// One line of the table.
#[derive(Debug)]
pub struct Binding {
    /// The keys, the one to show first.
    pub keys: &'static [Key],
    /// What they mean.
    pub command: Command,
    /// In which panels; empty: everywhere.
    pub panels: &'static [Panel],
    /// The word in the hint bar; none: only in the help.
    pub hint: Option<&'static str>,
}

const fn bind(
    keys: &'static [Key],
    command: Command,
    panels: &'static [Panel],
    hint: Option<&'static str>,
) -> Binding {
    Binding { keys, command, panels, hint }
}

use Key::{Char, Ctrl};
use Panel::{Events, Fleet, Logs, Rollout, Services};

const ROLLS: &[Panel] = &[Services, Rollout];

/// The table. A panel's own lines come before those for everywhere.
pub const BINDINGS: &[Binding] = &[
    bind(&[Char('d'), Key::Enter], Command::Describe, &[Fleet, Services], Some("describe")),
    // What steers a rollout under way comes first: where none is, the hints leave it out.
    bind(&[Char('p')], Command::PauseResume, ROLLS, Some("pause")),
    bind(&[Char('P')], Command::Promote, ROLLS, Some("promote")),
    bind(&[Char('x')], Command::Abort, ROLLS, Some("abort")),
    bind(&[Char('r')], Command::Retry, ROLLS, Some("retry")),
    bind(&[Char('s')], Command::Skip, ROLLS, Some("skip")),
    bind(&[Char('a')], Command::Apply, ROLLS, Some("apply")),
    bind(&[Char('u')], Command::Undo, ROLLS, Some("undo")),
    bind(&[Char('A')], Command::Replace, ROLLS, None),
    bind(&[Char('X')], Command::CancelQueued, ROLLS, None),
    bind(&[Char('l')], Command::Logs, &[Fleet, Services, Rollout], Some("logs")),
    bind(&[Char('y')], Command::Diff, ROLLS, Some("diff")),
    bind(&[Char('m')], Command::Map, &[Fleet, Services], Some("map")),
    bind(&[Char('S')], Command::Stop, &[Services], None),
    bind(&[Key::Left, Char('h')], Command::Left, &[Rollout], Some("service")),
    bind(&[Key::Right], Command::Right, &[Rollout], None),
    bind(&[Char('s')], Command::Severity, &[Events], Some("severity")),
    bind(&[Char('G'), Key::End], Command::Bottom, &[Events, Logs], Some("live")),
    bind(&[Char('n')], Command::NextRank, &[Logs], Some("next rank")),
    bind(&[Char('N')], Command::PreviousRank, &[Logs], None),
    bind(&[Key::Left, Char('h')], Command::Left, &[Logs, Events], None),
    bind(&[Key::Right, Char('l')], Command::Right, &[Logs, Events], None),
    bind(&[Char('/')], Command::Filter, &[Fleet, Services, Events, Logs], Some("filter")),
    bind(&[Char(':')], Command::Palette, &[], Some("command")),
    bind(&[Char('?')], Command::Help, &[], Some("help")),
    bind(&[Char('j'), Key::Down], Command::Down, &[], None),
    bind(&[Char('k'), Key::Up], Command::Up, &[], None),
    bind(&[Char('g'), Key::Home], Command::Top, &[], None),
    bind(&[Char('G'), Key::End], Command::Bottom, &[], None),
    bind(&[Ctrl('d')], Command::HalfDown, &[], None),
    bind(&[Ctrl('u')], Command::HalfUp, &[], None),
    bind(&[Key::PageDown], Command::PageDown, &[], None),
    bind(&[Key::PageUp], Command::PageUp, &[], None),
    bind(&[Char('1')], Command::Fleet, &[], None),
    bind(&[Char('2')], Command::Services, &[], None),
    bind(&[Char('3')], Command::Rollout, &[], None),
    bind(&[Char('4')], Command::Events, &[], None),
    bind(&[Char('5')], Command::ShowLogs, &[], None),
    bind(&[Key::Tab], Command::NextPanel, &[], Some("panel")),
    bind(&[Key::BackTab], Command::PreviousPanel, &[], None),
    bind(&[Char('+')], Command::Zoom, &[], Some("zoom")),
    bind(&[Char('c')], Command::Copy, &[], None),
    bind(&[Char('Q')], Command::Questions, &[], None),
    bind(&[Char('R')], Command::StartController, &[], None),
    bind(&[Key::Esc], Command::Back, &[], None),
    bind(&[Char('q')], Command::BackOrQuit, &[], Some("quit")),
    bind(&[Ctrl('c')], Command::AskQuit, &[], None),
    bind(&[Ctrl('z')], Command::Suspend, &[], None),
    bind(&[Ctrl('l')], Command::Redraw, &[], None),
];

/// The lines that hold in `panel`, the panel's own first.
pub fn of(panel: Panel, read_only: bool) -> impl Iterator<Item = &'static Binding> {
    BINDINGS
        .iter()
        .filter(move |b| b.panels.is_empty() || b.panels.contains(&panel))
        .filter(move |b| !read_only || b.command.danger() == Danger::None)
}

/// What `key` means in `panel`.
pub fn lookup(panel: Panel, key: Key, read_only: bool) -> Option<Command> {
    of(panel, read_only).find(|b| b.keys.contains(&key)).map(|b| b.command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_dangerous_sits_on_a_control_key() {
        for binding in BINDINGS {
            if binding.command.danger() != Danger::None {
                assert!(!binding.keys.iter().any(|k| matches!(k, Ctrl(_))), "{binding:?}");
            }
        }
    }

    #[test]
    fn no_key_means_two_things_in_one_scope() {
        for (i, one) in BINDINGS.iter().enumerate() {
            for other in BINDINGS.iter().skip(i + 1) {
                let same_scope = one.panels.is_empty() == other.panels.is_empty()
                    && (one.panels.is_empty()
                        || one.panels.iter().any(|p| other.panels.contains(p)));
                let same_key = one.keys.iter().any(|k| other.keys.contains(k));
                assert!(!(same_scope && same_key), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn read_only_takes_the_dangerous_keys_away() {
        assert_eq!(lookup(Services, Char('a'), false), Some(Command::Apply));
        assert_eq!(lookup(Services, Char('a'), true), None);
        assert_eq!(lookup(Services, Char('d'), true), Some(Command::Describe));
    }
}
