//! What only a person can answer while a connection is made.

use async_trait::async_trait;
use secrecy::SecretString;

/// A person, or nobody.
#[async_trait]
pub trait Questions: Send + Sync {
    /// Whether anybody can be asked at all. When not, nothing is asked and the error says what a
    /// person would have been asked.
    fn can_ask(&self) -> bool {
        true
    }

    /// Is this the key of that host? `fingerprint` is in OpenSSH's form (`SHA256:…`). None: nobody has said,
    /// which is no "no".
    async fn host_key(&self, host: &str, key_type: &str, fingerprint: &str) -> Option<bool>;

    /// A passphrase; none when the person does not give one.
    async fn secret(&self, prompt: &str) -> Option<SecretString>;

    /// The way goes on when a person has answered what another connection asks.
    fn waits_for(&self, _question: &str) {}
}

/// Nobody is there: no key is trusted, no passphrase given.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoQuestions;

#[async_trait]
impl Questions for NoQuestions {
    fn can_ask(&self) -> bool {
        false
    }

    async fn host_key(&self, _host: &str, _key_type: &str, _fingerprint: &str) -> Option<bool> {
        None
    }

    async fn secret(&self, _prompt: &str) -> Option<SecretString> {
        None
    }
}
