//! Conditions on one number: `result < 0.05 && result >= 0`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::text;

/// Longest condition, in bytes.
const MAX_LEN: usize = 500;

/// Comparisons joined by `&&` and `||` (`&&` binds more tightly).
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    any: Vec<Vec<Comparison>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Comparison {
    operator: Operator,
    limit: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

/// Two characters before one, so that `<=` is not read as `<`.
const OPERATORS: [(&str, Operator, Operator); 6] = [
    ("<=", Operator::LessOrEqual, Operator::GreaterOrEqual),
    (">=", Operator::GreaterOrEqual, Operator::LessOrEqual),
    ("==", Operator::Equal, Operator::Equal),
    ("!=", Operator::NotEqual, Operator::NotEqual),
    ("<", Operator::Less, Operator::Greater),
    (">", Operator::Greater, Operator::Less),
];

impl Condition {
    /// Reads `result < 0.05`; `result[0]`, as Argo writes it, means the same.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |part: &str| {
            format!(
                "`{}` is not a comparison; write for example `result < 0.05`",
                text::clean(part.trim(), 60)
            )
        };
        if text.len() > MAX_LEN {
            return Err(format!("the condition is longer than {MAX_LEN} bytes"));
        }
        let comparison = |part: &str| -> Result<Comparison, String> {
            let (left, right, straight, turned) = OPERATORS
                .iter()
                .find_map(|(sign, straight, turned)| {
                    let (left, right) = part.split_once(sign)?;
                    Some((left.trim(), right.trim(), *straight, *turned))
                })
                .ok_or_else(|| wrong(part))?;
            let is_result = |side: &str| matches!(side, "result" | "result[0]");
            let (number, operator) = match (is_result(left), is_result(right)) {
                (true, false) => (right, straight),
                (false, true) => (left, turned),
                _ => return Err(wrong(part)),
            };
            let limit: f64 = number.parse().map_err(|_| wrong(part))?;
            if limit.is_nan() {
                return Err(wrong(part));
            }
            Ok(Comparison { operator, limit })
        };
        let any = text
            .split("||")
            .map(|all| all.split("&&").map(comparison).collect::<Result<Vec<_>, _>>())
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { text: text.trim().to_owned(), any })
    }

    /// Whether it holds of this number.
    pub fn holds(&self, result: f64) -> bool {
        self.any.iter().any(|all| all.iter().all(|c| c.holds(result)))
    }
}

impl Comparison {
    #[allow(clippy::float_cmp)] // the user wrote `==`
    fn holds(&self, result: f64) -> bool {
        match self.operator {
            Operator::Less => result < self.limit,
            Operator::LessOrEqual => result <= self.limit,
            Operator::Greater => result > self.limit,
            Operator::GreaterOrEqual => result >= self.limit,
            Operator::Equal => result == self.limit,
            Operator::NotEqual => result != self.limit,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn holds(condition: &str, result: f64) -> bool {
        Condition::parse(condition).unwrap().holds(result)
    }

    #[test]
    fn compares_from_both_sides() {
        assert!(holds("result < 0.05", 0.04) && !holds("result < 0.05", 0.05));
        assert!(holds("0.05 >= result[0]", 0.05) && !holds("0.05 > result", 0.05));
        assert!(holds("result == 1e3", 1000.0) && holds("result != -1", 0.0));
    }

    #[test]
    fn and_binds_more_tightly_than_or() {
        let text = "result < 0 || result > 1 && result < 2";
        for (result, expected) in [(-1.0, true), (0.5, false), (1.5, true), (3.0, false)] {
            assert_eq!(holds(text, result), expected, "{result}");
        }
    }

    #[test]
    fn not_a_number_holds_nothing() {
        assert!(!holds("result < 1 || result >= 1", f64::NAN));
    }

    #[test]
    fn refuses_what_is_none() {
        for bad in
            ["", "result", "result <", "< 3", "result < result", "1 < 2", "result < NaN", "a < 1"]
        {
            assert!(Condition::parse(bad).is_err(), "{bad:?}");
        }
    }
}
