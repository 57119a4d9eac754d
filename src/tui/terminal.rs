//! The terminal: taken, given back (on leaving, on a panic, while suspended), and written to in whole
//! frames.

use std::io::{self, BufWriter, Stdout, Write as _};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute, queue};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;

use super::state::State;
use super::view;

/// Bytes gathered before they go out: a whole frame in one write.
const FRAME_BYTES: usize = 128 * 1024;
/// Longest text for the clipboard: tmux and terminals drop longer ones.
const MAX_COPY: usize = 50_000;

/// Whether the terminal is ours now: what the panic hook and `Drop` have to undo.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl Screen {
    /// Takes the terminal: alternate screen, raw mode, and a panic hook that gives it back.
    pub fn take() -> io::Result<Self> {
        chain_panic_hook();
        enter()?;
        let out = BufWriter::with_capacity(FRAME_BYTES, io::stdout());
        let terminal = Terminal::new(CrosstermBackend::new(out));
        if terminal.is_err() {
            leave();
        }
        Ok(Self { terminal: terminal? })
    }

    /// Columns and rows.
    pub fn size(&self) -> io::Result<(u16, u16)> {
        let size = self.terminal.size()?;
        Ok((size.width, size.height))
    }

    /// Draws the state as one synchronised frame (DEC 2026); returns what was drawn.
    pub fn draw(&mut self, state: &State) -> io::Result<Buffer> {
        // A panic in some task gave the terminal back, and this loop is still alive: its message stays
        // on the ordinary screen.
        if !TAKEN.load(Ordering::SeqCst) {
            enter()?;
            self.terminal.clear()?;
        }
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        let frame = self.terminal.draw(|frame| view::view(state, frame))?.buffer.clone();
        queue!(self.terminal.backend_mut(), EndSynchronizedUpdate)?;
        io::Write::flush(self.terminal.backend_mut())?;
        Ok(frame)
    }

    /// Forgets what is on the terminal, so that the next frame is drawn in full.
    pub fn clear(&mut self) -> io::Result<()> {
        self.terminal.clear()
    }

    /// Puts a text into the clipboard of the person's terminal (OSC 52), through tmux, too.
    pub fn copy(&mut self, text: &str) -> io::Result<()> {
        use base64::Engine as _;
        let end = text.floor_char_boundary(MAX_COPY);
        let data = base64::engine::general_purpose::STANDARD.encode(text.get(..end).unwrap_or(""));
        let sequence = format!("\x1b]52;c;{data}\x07");
        let out = self.terminal.backend_mut();
        write!(out, "{sequence}")?;
        if std::env::var_os("TMUX").is_some() {
            // tmux takes OSC 52 itself or, where `allow-passthrough` is on, hands this one on.
            write!(out, "\x1bPtmux;{}\x1b\\", sequence.replace('\x1b', "\x1b\x1b"))?;
        }
        io::Write::flush(out)
    }

    /// Gives the terminal back for as long as `wait` takes, then takes it again.
    pub async fn step_aside(&mut self, wait: impl Future<Output = ()>) -> io::Result<()> {
        leave();
        wait.await;
        enter()?;
        self.terminal.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste, cursor::Hide)
}

/// Gives the terminal back. May be called at any time and twice.
fn leave() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // There is nobody left to tell when the terminal itself is gone.
        let _ = execute!(
            io::stdout(),
            EndSynchronizedUpdate,
            DisableBracketedPaste,
            LeaveAlternateScreen,
            cursor::Show
        );
        let _ = disable_raw_mode();
    }
}

fn chain_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            leave();
            previous(info);
        }));
    });
}
