//! A door lends its SSH agent to the controller, for as long as it is attached: the controller outlives
//! the login session that brought the agent, and the keys stay where they are.
//!
//! `GET /v1/agent` lends: its answer goes on, one [`ToLender`] a line, and the agent is lent until the
//! connection ends. `POST /v1/agent` brings what the agent answered. So it works over the one socket
//! there is, wherever the door runs. Only the list of keys and signatures for logins go over it, in
//! both directions checked and bounded ([`message`]).

mod door;
pub mod message;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

pub use door::Lending;

/// A message of the agent's protocol, without its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentMessage(pub Vec<u8>);

impl Serialize for AgentMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for AgentMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > message::MAX_MESSAGE_BYTES / 3 * 4 + 4 {
            return Err(serde::de::Error::custom("the message is too long"));
        }
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// What the controller says to a door that lends its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToLender {
    /// The first line: the agent is lent under this name.
    Lent {
        /// To be said with every answer.
        lease: Uuid,
    },
    /// Ask the agent.
    Ask {
        /// To be said with the answer.
        id: u64,
        /// What.
        message: AgentMessage,
    },
}

/// `POST /v1/agent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentAnswer {
    /// Of which agent.
    pub lease: Uuid,
    /// To which question.
    pub id: u64,
    /// What it said; none: it did not answer.
    pub message: Option<AgentMessage>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_base64_and_bounded() {
        let asked = ToLender::Ask { id: 3, message: AgentMessage(vec![11]) };
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(text, r#"{"ask":{"id":3,"message":"Cw=="}}"#);
        assert_eq!(serde_json::from_str::<ToLender>(&text).unwrap(), asked);
        let whole = AgentMessage(vec![7; message::MAX_MESSAGE_BYTES]);
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<AgentMessage>(&text).unwrap(), whole);
        let long = format!("\"{}\"", "A".repeat(message::MAX_MESSAGE_BYTES * 2));
        assert!(serde_json::from_str::<AgentMessage>(&long).is_err());
    }
}
