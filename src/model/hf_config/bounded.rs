//! JSON that is held in memory only as far as a budget reaches: a short text can stand for a lot of it.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Bytes that what is read may take: about half as much again as the largest file known, whose 23,000 layers
/// each have a method of their own (`MiniMax` M3 as NVIDIA quantised it).
const BUDGET: usize = 34 << 20;

/// About what a map takes with its first entry (a node of a B-tree: 11 keys and values), each of the others
/// where nodes are half full, and a value in a list that grows.
const MAP: usize = 640;
const ENTRY: usize = 116;
const ITEM: usize = 64;
/// What an allocation takes beside its bytes.
const TEXT: usize = 16;

/// Reads one JSON value, and nothing after it.
pub(super) fn read(json: &[u8]) -> Result<Value, serde_json::Error> {
    let left = Cell::new(BUDGET);
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = Bounded(&left).deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Cell<usize>);

impl Bounded<'_> {
    fn spend<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.ok_or_else(|| E::custom("it holds too much to be a configuration"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.spend(value.len() + TEXT)?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            self.spend(ITEM)?;
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let more = if map.is_empty() { MAP } else { ENTRY };
            self.spend(more + key.len() + TEXT)?;
            map.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::read;

    #[test]
    fn what_is_read_is_what_is_written() {
        let text = br#"{"a":[1,-2,2.5,"x\n",null,true,{}],"b":{"c":{"d":[]}},"b":3}"#;
        let usual: serde_json::Value = serde_json::from_slice(text).unwrap();
        assert_eq!(read(text).unwrap(), usual);
        for broken in [&b"{} {}"[..], b"{", b"", b"nul"] {
            assert!(read(broken).is_err());
        }
        assert!(read(b"{").unwrap_err().is_eof());
    }

    /// Four bytes in the text, 640 in memory.
    #[test]
    fn a_short_text_may_stand_for_a_lot() {
        let maps = |n: usize| format!("[{}{{}}]", r#"{"":0},"#.repeat(n));
        assert!(read(maps(30_000).as_bytes()).is_ok());
        let error = read(maps(60_000).as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("it holds too much"), "{error}");
        let numbers = format!("[{}0]", "0,".repeat(1 << 20));
        assert!(read(numbers.as_bytes()).is_err());
    }
}
