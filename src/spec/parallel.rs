//! How one replica is divided over devices.

use std::fmt;
use std::num::NonZeroU32;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Shapes that a service may list.
pub const MOST_SHAPES: usize = 16;

/// The highest degree of a shape.
pub const MOST_DEGREE: u32 = 1024;
/// The most devices of one replica.
pub const MOST_DEVICES: u64 = 4096;

/// How one replica is divided over devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Parallel {
    /// The smallest shape that fits.
    #[default]
    Auto,
    /// Just this.
    Shape(ParallelShape),
    /// One of these, in order of preference.
    OneOf(Vec<ParallelShape>),
}

impl Parallel {
    /// The shapes that are allowed, in order of preference; none: whatever fits.
    pub fn shapes(&self) -> &[ParallelShape] {
        match self {
            Self::Auto => &[],
            Self::Shape(shape) => std::slice::from_ref(shape),
            Self::OneOf(shapes) => shapes,
        }
    }

    /// What is wrong with a shape that no deck could ever place, and what to write.
    pub(super) fn complaint(&self) -> Option<(&'static str, String, String)> {
        self.shapes().iter().find_map(ParallelShape::complaint)
    }
}

/// A shape of a replica; the number of devices is the product. Its devices are in groups of `tensor`, one after another:
/// those of the first copy's stages, then those of the next copy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParallelShape {
    /// Tensor parallelism.
    #[serde(default = "one")]
    pub tensor: NonZeroU32,
    /// Pipeline parallelism.
    #[serde(default = "one")]
    pub pipeline: NonZeroU32,
    /// Data parallelism.
    #[serde(default = "one")]
    pub data: NonZeroU32,
}

const fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl ParallelShape {
    /// Tensor parallelism alone; over one device for a number that is none.
    pub fn of_tensor(tensor: u32) -> Self {
        Self { tensor: NonZeroU32::new(tensor).unwrap_or(one()), pipeline: one(), data: one() }
    }

    /// Devices of one replica.
    pub fn devices(&self) -> u64 {
        let of = |n: NonZeroU32| u64::from(n.get());
        of(self.tensor).saturating_mul(of(self.pipeline)).saturating_mul(of(self.data))
    }

    fn complaint(&self) -> Option<(&'static str, String, String)> {
        let degrees = [("tensor", self.tensor), ("pipeline", self.pipeline), ("data", self.data)];
        if let Some((name, degree)) = degrees.into_iter().find(|(_, n)| n.get() > MOST_DEGREE) {
            let hint = format!("{name} goes from 1 to {MOST_DEGREE}; more copies are `replicas`");
            return Some(("parallel", format!("{name} = {degree} is too much"), hint));
        }
        let devices = self.devices();
        (devices > MOST_DEVICES).then(|| {
            let what = format!("the shape {self} has {devices} GPUs");
            let hint = format!(
                "tensor × pipeline × data is {MOST_DEVICES} at most; more copies are `replicas`"
            );
            ("parallel", what, hint)
        })
    }

    /// Groups of `tensor` devices.
    pub fn groups(&self) -> u64 {
        u64::from(self.pipeline.get()).saturating_mul(self.data.get().into())
    }
}

/// As people write it: `tp2 pp2`.
impl fmt::Display for ParallelShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tp{}", self.tensor)?;
        for (word, degree) in [("pp", self.pipeline), ("dp", self.data)] {
            if degree.get() > 1 {
                write!(f, " {word}{degree}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Parallel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Shape(shape) => shape.serialize(serializer),
            Self::OneOf(shapes) => shapes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Parallel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyForm)
    }
}

/// A word, a table or a list.
struct AnyForm;

impl<'de> Visitor<'de> for AnyForm {
    type Value = Parallel;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\", a table such as { tensor = 8 }, or a list of such tables")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Parallel, E> {
        match word {
            "auto" => Ok(Parallel::Auto),
            _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Parallel, A::Error> {
        ParallelShape::deserialize(MapAccessDeserializer::new(table)).map(Parallel::Shape)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parallel, A::Error> {
        let mut shapes: Vec<ParallelShape> = Vec::new();
        while let Some(Table(shape)) = list.next_element()? {
            if shapes.contains(&shape) {
                return Err(de::Error::custom(format!("the shape {shape} is listed twice")));
            }
            if shapes.len() >= MOST_SHAPES {
                let most = format!("more than {MOST_SHAPES} shapes are listed");
                return Err(de::Error::custom(most));
            }
            shapes.push(shape);
        }
        if shapes.is_empty() {
            let hint = "the list of shapes is empty: write \"auto\" for whatever fits";
            return Err(de::Error::custom(hint));
        }
        Ok(Parallel::OneOf(shapes))
    }
}

/// A shape that is written as a table: its degrees have no order.
struct Table(ParallelShape);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyTable;

        impl<'de> Visitor<'de> for OnlyTable {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table such as { tensor = 8 }")
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Table, A::Error> {
                ParallelShape::deserialize(MapAccessDeserializer::new(table)).map(Table)
            }
        }

        deserializer.deserialize_map(OnlyTable)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::spec::{Parallel, ParallelShape, parse_service};

    fn parsed(parallel: &str) -> Result<Parallel, String> {
        let text = format!("model = \"/m\"\nengine = \"vllm\"\nparallel = {parallel}\n");
        let spec = parse_service(&text, "chat").map_err(|e| format!("{:?}: {e}", e.line))?;
        let again = parse_service(&toml::to_string(&spec).unwrap(), "again").unwrap();
        assert_eq!(spec, again, "it is written as it was read");
        let json = serde_json::to_string(&spec.parallel).unwrap();
        assert_eq!(serde_json::from_str::<Parallel>(&json).unwrap(), spec.parallel);
        Ok(spec.parallel)
    }

    #[test]
    fn a_word_a_table_or_a_list_in_order() {
        assert_eq!(parsed("\"auto\"").unwrap(), Parallel::Auto);
        assert_eq!(parsed("\"auto\"").unwrap().shapes(), []);
        let four = ParallelShape::of_tensor(4);
        assert_eq!(parsed("{ tensor = 4 }").unwrap(), Parallel::Shape(four));
        let list = parsed("[{ tensor = 4 }, { tensor = 2, pipeline = 2 }, { data = 2 }]").unwrap();
        let words: Vec<String> = list.shapes().iter().map(ToString::to_string).collect();
        assert_eq!(words, ["tp4", "tp2 pp2", "tp1 dp2"]);
        assert_eq!(list.shapes().iter().map(ParallelShape::devices).sum::<u64>(), 10);
        // A list of one is what it was written as.
        assert_eq!(parsed("[{ tensor = 4 }]").unwrap(), Parallel::OneOf(vec![four]));
        // As every version before wrote it.
        let json = serde_json::to_string(&Parallel::Shape(four)).unwrap();
        assert_eq!(json, r#"{"tensor":4,"pipeline":1,"data":1}"#);
    }

    #[test]
    fn what_is_no_shape_is_told_with_its_line() {
        for (wrong, word) in [
            ("\"all\"", "a list of such tables"),
            ("4", "a list of such tables"),
            ("[]", "is empty"),
            ("[4]", "a table such as"),
            ("[[4]]", "a table such as"),
            ("[{ tensor = 0 }]", "0 is too few"),
            ("[{ tensr = 2 }]", "`tensr`"),
            ("{ tensr = 2 }", "`tensr`"),
            ("[{ tensor = 2 }, { tensor = 2, data = 1 }]", "tp2 is listed twice"),
        ] {
            let error = parsed(wrong).unwrap_err();
            assert!(error.starts_with("Some(3)") && error.contains(word), "{wrong}: {error}");
        }
        // As large as can be, and larger: one such service would be in the way of questions about the whole deck.
        for good in
            ["{ tensor = 1024 }", "[{ tensor = 4 }, { tensor = 64, pipeline = 8, data = 8 }]"]
        {
            parsed(good).unwrap();
        }
        for (wrong, what) in [
            ("{ tensor = 1025 }", "tensor = 1025"),
            ("{ tensor = 2, data = 4294967295 }", "data = 4294967295"),
            ("[{ tensor = 4 }, { pipeline = 2000 }]", "pipeline = 2000"),
            ("[{ tensor = 64, pipeline = 65 }]", "tp64 pp65 has 4160 GPUs"),
            ("{ tensor = 1024, pipeline = 1024, data = 1024 }", "1073741824 GPUs"),
        ] {
            let text = format!("model = \"/m\"\nengine = \"vllm\"\nparallel = {wrong}\n");
            let error = parse_service(&text, "chat").unwrap_err();
            assert_eq!(error.line, Some(3), "{wrong}: {error}");
            assert!(error.message.contains(what), "{wrong}: {error}");
            assert!(error.suggestion.is_some_and(|hint| hint.contains("`replicas`")), "{wrong}");
        }
        // The word may stand in an argument before it.
        let args = "args = [\"--enable-expert-parallel\"]";
        let text =
            format!("model = \"/m\"\nengine = \"vllm\"\n{args}\nparallel = {{ data = 2000 }}\n");
        assert_eq!(parse_service(&text, "chat").unwrap_err().line, Some(4));
        let many: Vec<String> = (1..=17).map(|n| format!("{{ tensor = {n} }}")).collect();
        assert!(
            parsed(&format!("[{}]", many.join(", "))).unwrap_err().contains("more than 16 shapes")
        );
    }
}
