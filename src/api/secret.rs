//! What a person types and nobody is to read: a passphrase, a password, a code.

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A text that is never shown and that is wiped from memory when it goes. It is written and read
/// as a plain string: on the socket between a door and the controller, and nowhere else.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// For those who log in with it.
    pub fn into_answer(self) -> SecretString {
        // Copied, so that what is wiped is all there was: a string that shrinks leaves its old place.
        SecretString::from(self.0.as_str())
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::api::Intent;

    #[test]
    fn an_answer_is_not_shown_and_comes_through_as_it_was() {
        let intent = Intent::Answer { question: 4, answer: "hunter2".into() };
        assert!(!format!("{intent:?}").contains("hunter2"));
        let text = serde_json::to_string(&intent).unwrap();
        assert_eq!(text, r#"{"intent":"answer","question":4,"answer":"hunter2"}"#);
        assert_eq!(serde_json::from_str::<Intent>(&text).unwrap(), intent);
        assert_eq!(Secret::from("hunter2").into_answer().expose_secret(), "hunter2");
    }
}
