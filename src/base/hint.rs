//! What to do next, said beside every error.

/// An error that can tell the person what to do about it.
pub trait Hint {
    /// The next step, as one imperative sentence; `None` where there is nothing useful to say.
    fn hint(&self) -> Option<String>;
}
