//! The screen in a real terminal (tmux): the demo's story with the keys of a person, at 200x50 and 80x24,
//! resized, suspended, and left with the terminal as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Gpudeck, Traces, has_program, run};

const SOON: Duration = Duration::from_secs(20);
/// For what a rollout of the demo takes (its own limit is longer).
const ROLLOUT: Duration = Duration::from_secs(90);

/// A shell in a tmux server of its own.
struct Terminal {
    traces: Traces,
    person: Gpudeck,
    server: String,
}

impl Terminal {
    fn open(columns: u16, rows: u16) -> Self {
        let person = Gpudeck::new();
        let traces = Traces::of(&person);
        let server = format!("gpudeck-test-{}-{columns}", std::process::id());
        let terminal = Self { traces, person, server };
        let size = [columns.to_string(), rows.to_string()];
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &size[0],
            "-y",
            &size[1],
            "sh -i",
        ]);
        terminal.tmux(&["set", "-g", "status", "off"]);
        terminal.tmux(&["resize-window", "-x", &size[0], "-y", &size[1]]);
        terminal.line("PS1='ready> '; echo hello from the shell");
        terminal.sees("hello from the shell\nready>");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.server, "-u"]).args(arguments).current_dir(self.person.deck());
        let template = self.person.command(["--version"]);
        command.env_clear();
        for (name, value) in template.get_envs() {
            command.env(name, value.unwrap());
        }
        command.env("TMPDIR", self.person.scratch()).env("TMUX_TMPDIR", self.person.home());
        run(&mut command, SOON).expect_success().stdout
    }

    /// Types a line into the shell.
    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.tmux(&["send-keys", "Enter"]);
    }

    /// Presses keys, in tmux' names for them.
    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen is as wanted.
    #[track_caller]
    fn until(&self, what: &str, deadline: Duration, holds: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let screen = self.screen();
            if holds(&screen) {
                return screen;
            }
            assert!(started.elapsed() < deadline, "no {what} on the screen:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn sees(&self, text: &str) -> String {
        self.until(text, SOON, |screen| screen.contains(text))
    }

    /// Agrees to what the dialog shows, each time it is shown anew since hosts have changed meanwhile, until `done`
    /// is on the screen.
    #[track_caller]
    fn agree(&self, name: &str, done: &str) {
        let started = Instant::now();
        loop {
            self.sees("to confirm");
            self.sees("JOURNEY");
            self.tmux(&["send-keys", "-l", name]);
            // With the first key it is read.
            self.until("what was typed", SOON, |s| !s.contains("this is how it is now"));
            self.press(&["Enter"]);
            self.until("end of the dialog", SOON, |s| {
                !s.contains("to confirm") || s.contains("this is how it is now")
            });
            let screen = self
                .until(done, ROLLOUT, |s| s.contains(done) || s.contains("this is how it is now"));
            if screen.contains(done) {
                return;
            }
            assert!(started.elapsed() < ROLLOUT, "never begun:\n{screen}");
        }
    }

    /// A value of tmux' about the terminal.
    fn value(&self, name: &str) -> String {
        self.tmux(&["display-message", "-p", &format!("#{{{name}}}")]).trim().to_owned()
    }

    /// The demo is on the screen, both services serve.
    fn demo(&self) {
        self.line(&format!("{} demo", env!("CARGO_BIN_EXE_gpudeck")));
        self.sees("SIMULATED");
        assert_eq!(self.value("alternate_on"), "1");
        assert_eq!(self.value("cursor_flag"), "0", "the cursor is hidden");
        self.press(&["2"]);
        self.until("two services", ROLLOUT, |s| s.contains("4/4") && s.contains("2/2"));
    }

    /// After `q`: the shell's screen, its cursor, its line discipline, and nothing of the demo.
    fn left(&self) {
        self.press(&["q"]);
        self.until("prompt", SOON, |s| {
            s.contains("hello from the shell") && s.trim_end().ends_with("ready>")
        });
        assert_eq!(self.value("alternate_on"), "0");
        assert_eq!(self.value("cursor_flag"), "1", "the cursor is shown");
        self.line("stty -a; echo code $?");
        let said = self.sees("code 0");
        for flag in [" echo ", " icanon ", " isig ", " icrnl "] {
            assert!(said.replace(['\n', ';'], " ").contains(flag), "`{flag}` is not in\n{said}");
        }
        // The server ends with its only shell.
        self.line("exit");
        self.traces.expect_none(&self.person);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // What ran in it goes with it, or with the traces.
        let mut kill = Command::new("tmux");
        kill.args(["-L", &self.server, "kill-server"]).env("TMUX_TMPDIR", self.person.home());
        let _ = run(&mut kill, SOON);
    }
}

/// Whether the frames of the panels are whole. A picture of the terminal may be taken between
/// two pieces of one frame, so this is waited for, never asked once.
fn is_whole(screen: &str) -> bool {
    let opened = screen.matches('╭').count();
    opened > 0 && ['╮', '╰', '╯'].iter().all(|corner| screen.matches(*corner).count() == opened)
}

#[test]
fn the_story_at_200x50() {
    if !has_program("tmux") {
        return;
    }
    let terminal = Terminal::open(200, 50);
    terminal.demo();
    let screen = terminal.sees("1 Fleet");
    for panel in ["SIMULATED", "2 Services", "3 Rollout", "4 Events", "gpu-1", "gpu-4"] {
        assert!(screen.contains(panel), "no {panel}:\n{screen}");
    }
    terminal.until("whole frames", SOON, is_whole);

    // Help, palette, filter: each comes and goes.
    terminal.press(&["?"]);
    terminal.sees("Keys in Services");
    terminal.press(&["Escape"]);
    terminal.until("end of the help", SOON, |s| !s.contains("Keys in Services"));
    terminal.press(&[":"]);
    terminal.sees("Command");
    terminal.tmux(&["send-keys", "-l", "events"]);
    terminal.sees(": events");
    terminal.press(&["Escape"]);
    terminal.until("end of the palette", SOON, |s| !s.contains(": events"));
    terminal.press(&["/"]);
    terminal.tmux(&["send-keys", "-l", "code"]);
    terminal.sees("/code");
    terminal.press(&["Escape"]);
    terminal.until("end of the filter", SOON, |s| !s.contains("/code"));

    // The bad revision waits. A wrong name does not begin it, the right one does.
    terminal.press(&["g"]);
    terminal.until("change that waits", SOON, |s| s.contains("wait") && s.contains("press a"));
    terminal.press(&["a"]);
    terminal.sees("to confirm");
    // Only a plan that is there can be confirmed.
    terminal.sees("JOURNEY");
    terminal.tmux(&["send-keys", "-l", "cha"]);
    terminal.press(&["Enter"]);
    terminal.sees("that is not `chat`");
    terminal.tmux(&["send-keys", "-l", "t"]);
    terminal.press(&["Enter"]);
    terminal.until("canary", ROLLOUT, |s| s.contains("r3-0 is ready"));

    // In the middle of it the window changes its size, to and fro.
    for (columns, rows) in [("80", "24"), ("120", "40"), ("200", "50")] {
        terminal.tmux(&["resize-window", "-x", columns, "-y", rows]);
        let width = usize::from(columns.parse::<u16>().unwrap());
        terminal.until("frame of the new size", SOON, |s| {
            s.contains("SIMULATED")
                && s.lines().any(|l| l.starts_with('╭') && l.chars().count() == width)
        });
    }
    terminal.until("whole frames", SOON, is_whole);
    let taken_back =
        terminal.until("failed analysis", ROLLOUT, |s| s.contains("r3 was taken back"));
    assert!(taken_back.contains("error rate"), "{taken_back}");

    // Suspended to the shell, and back.
    terminal.press(&["C-z"]);
    terminal.until("prompt", SOON, |s| s.trim_end().ends_with("ready>") && !s.contains("Services"));
    assert_eq!(terminal.value("alternate_on"), "0");
    terminal.line("echo $((40+2)) in between");
    terminal.sees("42 in between");
    terminal.line("fg");
    terminal.until("whole frames", SOON, |s| s.contains("2 Services") && is_whole(s));

    // The good revision.
    terminal.until("change that waits", SOON, |s| s.contains("press a"));
    terminal.press(&["a"]);
    terminal.agree("chat", "r4 is stable");
    terminal.press(&["u"]);
    terminal.agree("chat", "r5 is stable");

    terminal.left();
}

#[test]
fn every_panel_at_80x24() {
    if !has_program("tmux") {
        return;
    }
    let terminal = Terminal::open(80, 24);
    terminal.demo();
    for (digit, title, content) in [
        ("1", "╭ 1 Fleet", "gpu-1"),
        ("2", "╭ 2 Services", "chat"),
        ("3", "╭ 3 Rollout", "r1"),
        ("4", "╭ 4 Events", "is stable"),
        ("5", "╭ 5 Logs", "chat"),
    ] {
        terminal.press(&[digit]);
        let screen = terminal.until(title, SOON, |s| s.contains(title) && s.contains(content));
        assert!(screen.contains("SIMULATED"), "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        terminal.until("whole frames", SOON, is_whole);
    }
    terminal.press(&["2"]);
    terminal.sees("╭ 2 Services");
    terminal.left();
}

#[test]
fn ctrl_c_at_a_hidden_question_ends_it_and_what_is_typed_is_shown_again() {
    if !has_program("tmux") {
        return;
    }
    let terminal = Terminal::open(100, 30);
    let program = env!("CARGO_BIN_EXE_gpudeck");
    terminal.line(&format!("{program} init"));
    terminal.line(&format!("{program} answer 7"));
    terminal.sees("answer (not shown):");
    terminal.press(&["C-c"]);
    terminal.sees("interrupted");
    terminal.line("stty -a; echo code $?");
    let said = terminal.sees("code 0").replace(['\n', ';'], " ");
    assert!(said.contains(" echo "), "{said}");
    terminal.line(&format!("{program} controller stop; echo stopped $?"));
    terminal.sees("stopped 0");
    terminal.line("exit");
    terminal.traces.expect_none(&terminal.person);
}
