//! What a model is, from the headers of its files: never from its weights.
//!
//! Everything here is pure: bytes come in, facts go out. [`inspect`] says which bytes it wants
//! next; whoever drives it (`weights`) reads them, over SSH or from a local disk.

pub mod arch;
pub mod cache;
pub mod calibration;
pub mod error;
pub mod estimate;
pub mod facts;
pub mod ggml;
pub mod gguf;
mod gguf_facts;
mod graphs;
pub mod hf_config;
pub mod inspect;
pub mod memory;
pub mod observation;
pub mod quant;
pub mod readers;
pub mod safetensors;
mod shapes;
pub mod tensors;
pub mod towers;

pub use calibration::Correction;
pub use error::{HeaderError, ModelError};
pub use estimate::{Bar, Prediction, RankMemory, Rules, Setup, predict};
pub use facts::{ModelFacts, ModelFormat};
pub use inspect::{Found, Inspection, Need};
pub use memory::{MemoryEstimate, Overheads, WeightSplit, per_device};
pub use observation::{Loaded, Observation};

/// How far a header could be read from the beginning of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress<T> {
    /// All of it.
    Parsed(Box<T>),
    /// The file's first so many bytes are needed (more than were given, not more than the file has).
    NeedMore {
        /// Length of the beginning that is needed, at least.
        at_least: u64,
    },
}
