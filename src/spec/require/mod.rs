//! The requirement language: what a host and a GPU must be for a service.
//!
//! ```text
//! gpu.memory >= 80GiB && (host.zone == 'a' || host.rack in ['r1', 'r2']) && !host.cordoned
//! ```
//!
//! [`Requirement::parse`] reads and type-checks it, [`Requirement::holds`] answers for one GPU of one
//! host, [`Requirement::why_not`] names the part that fails. Grammar and facts: `docs/placement.md`.

mod eval;
mod lex;
mod parse;

use std::collections::BTreeSet;
use std::fmt;

use crate::base::{Hint, text};

/// Longest requirement that is read, in bytes.
pub const MAX_LENGTH: usize = 4096;
/// Deepest nesting of parentheses and `!`.
const MAX_DEPTH: usize = 64;

/// A requirement that was read and whose types fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    text: String,
    root: Node,
}

/// What a requirement may ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// `gpu.memory`: all memory of the GPU, a size.
    GpuMemory,
    /// `gpu.free`: memory that is free on it, a size.
    GpuFree,
    /// `gpu.model`: product name, text.
    GpuModel,
    /// `gpu.index`: in the driver's order, a number.
    GpuIndex,
    /// `gpu.numa`: its NUMA node, a number.
    GpuNuma,
    /// `gpu.island`: its `NVLink` island on the host, a number.
    GpuIsland,
    /// `gpu.pcie_switch`: the `PCIe` switch that it is on, a number.
    GpuPcieSwitch,
    /// `gpu.mig`: it is a MIG instance, true or false.
    GpuMig,
    /// `gpu.profile`: the MIG profile, text.
    GpuProfile,
    /// `host.name`, text.
    HostName,
    /// `host.rack`, text; without one of its own, the label `rack`.
    HostRack,
    /// `host.zone`, text; without one of its own, the label `zone`.
    HostZone,
    /// `host.cpus`: logical processors, a number.
    HostCpus,
    /// `host.memory`: main memory that is free, a size.
    HostMemory,
    /// `host.gpus`: how many GPUs it has, a number.
    HostGpus,
    /// `host.nic`: its fastest network interface in Gbit/s, a number.
    HostNic,
    /// `host.KEY`, every other key: a label, text.
    Label(String),
}

/// The facts that have a name of their own.
pub const FACTS: &[(&str, Fact)] = &[
    ("gpu.memory", Fact::GpuMemory),
    ("gpu.free", Fact::GpuFree),
    ("gpu.model", Fact::GpuModel),
    ("gpu.index", Fact::GpuIndex),
    ("gpu.numa", Fact::GpuNuma),
    ("gpu.island", Fact::GpuIsland),
    ("gpu.pcie_switch", Fact::GpuPcieSwitch),
    ("gpu.mig", Fact::GpuMig),
    ("gpu.profile", Fact::GpuProfile),
    ("host.name", Fact::HostName),
    ("host.rack", Fact::HostRack),
    ("host.zone", Fact::HostZone),
    ("host.cpus", Fact::HostCpus),
    ("host.memory", Fact::HostMemory),
    ("host.gpus", Fact::HostGpus),
    ("host.nic", Fact::HostNic),
];

/// The kind of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Bytes.
    Size,
    /// A number.
    Number,
    /// Text.
    Text,
    /// True or false.
    Bool,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "a size",
            Self::Number => "a number",
            Self::Text => "text",
            Self::Bool => "true or false",
        })
    }
}

/// A value of a fact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Bytes.
    Size(u64),
    /// A number.
    Number(f64),
    /// Text.
    Text(&'a str),
    /// True or false.
    Bool(bool),
}

impl Fact {
    /// Its type.
    pub fn kind(&self) -> Type {
        match self {
            Self::GpuMemory | Self::GpuFree | Self::HostMemory => Type::Size,
            Self::GpuIndex
            | Self::GpuNuma
            | Self::GpuIsland
            | Self::GpuPcieSwitch
            | Self::HostCpus
            | Self::HostGpus
            | Self::HostNic => Type::Number,
            Self::GpuMig => Type::Bool,
            Self::GpuModel
            | Self::GpuProfile
            | Self::HostName
            | Self::HostRack
            | Self::HostZone
            | Self::Label(_) => Type::Text,
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(f, "host.{key}"),
            fact => f.write_str(
                FACTS.iter().find(|(_, known)| known == fact).map_or("?", |(name, _)| name),
            ),
        }
    }
}

/// A mistake in a requirement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct RequireError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

impl Hint for RequireError {
    fn hint(&self) -> Option<String> {
        self.suggestion.clone()
    }
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Size(u64),
    Number(f64),
    Text(String),
    Bool(bool),
}

impl Literal {
    const fn kind(&self) -> Type {
        match self {
            Self::Size(_) => Type::Size,
            Self::Number(_) => Type::Number,
            Self::Text(_) => Type::Text,
            Self::Bool(_) => Type::Bool,
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            Self::Size(n) => Value::Size(*n),
            Self::Number(n) => Value::Number(*n),
            Self::Text(t) => Value::Text(t),
            Self::Bool(b) => Value::Bool(*b),
        }
    }
}

/// A part of a requirement, with the bytes of the text it was written as.
#[derive(Clone, Debug, PartialEq)]
struct Node {
    from: usize,
    to: usize,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Compare {
        left: Operand,
        how: Comparison,
        right: Operand,
    },
    In {
        fact: Fact,
        list: Vec<Literal>,
    },
    /// A fact or a constant that is true or false by itself.
    Is(Operand),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Fact(Fact),
    Literal(Literal),
}

impl Operand {
    fn kind(&self) -> Type {
        match self {
            Self::Fact(fact) => fact.kind(),
            Self::Literal(literal) => literal.kind(),
        }
    }
}

impl Requirement {
    /// Reads a requirement. Every `host.KEY` that is no fact is taken for a label;
    /// [`Requirement::check_labels`] tells whether any host has it.
    pub fn parse(text: &str) -> Result<Self, RequireError> {
        parse::parse(text)
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The labels that it asks for, with their columns.
    pub fn labels(&self) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        eval::facts(&self.root, &mut |fact| {
            if let Fact::Label(key) = fact {
                found.insert(key.as_str());
            }
        });
        found
    }

    /// Whether it asks for this fact.
    pub fn mentions(&self, wanted: &Fact) -> bool {
        let mut found = false;
        eval::facts(&self.root, &mut |fact| found |= fact == wanted);
        found
    }

    /// An error for the first label that no host has.
    pub fn check_labels<'a>(
        &self,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), RequireError> {
        let known: BTreeSet<&str> = known.into_iter().collect();
        let Some(wrong) = self.labels().into_iter().find(|key| !known.contains(key)) else {
            return Ok(());
        };
        let name = format!("host.{wrong}");
        let at = self.text.find(&name).unwrap_or(0);
        let named: Vec<String> = known.iter().map(|key| format!("host.{key}")).collect();
        let all = named.iter().map(String::as_str).chain(FACTS.iter().map(|(name, _)| *name));
        Err(RequireError {
            column: column(&self.text, at),
            message: format!("`{name}` is no fact, and no host has the label `{wrong}`"),
            suggestion: Some(text::nearest(&name, all).map_or_else(
                || format!("give a host the label `{wrong}`, or ask for one of its facts"),
                |near| format!("did you mean `{near}`?"),
            )),
        })
    }

    /// Whether it holds, given the facts. A fact that is not known equals nothing and is neither
    /// more nor less than anything; `!=` holds for it.
    pub fn holds<'a>(&self, facts: &dyn Fn(&Fact) -> Option<Value<'a>>) -> bool {
        eval::holds(&self.root, facts)
    }

    /// The part that fails, with what the fact really is; none if it holds.
    pub fn why_not<'a>(&self, facts: &dyn Fn(&Fact) -> Option<Value<'a>>) -> Option<String> {
        (!self.holds(facts)).then(|| eval::why(&self.text, &self.root, facts))
    }
}

fn column(text: &str, at: usize) -> usize {
    text.get(..at).map_or(0, |before| before.chars().count()) + 1
}

#[cfg(test)]
mod tests;
