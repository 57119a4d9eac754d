//! Where an engine is asked, and how: from its own host, with its own key.

use crate::rollout::RankPlan;
use crate::spec::ServiceSpec;
use crate::wire::Request;

/// Where an engine is asked, from its own host.
#[derive(Clone, Debug)]
pub struct EngineAt {
    /// The address on which it listens; none: 127.0.0.1, too.
    listen: Option<String>,
    /// Its port.
    port: u16,
    /// The file of its host with the key that it asks for.
    key_file: Option<String>,
}

impl EngineAt {
    /// The engine of a rank of a release with this spec.
    pub fn of(spec: &ServiceSpec, plan: &RankPlan) -> Self {
        Self { listen: plan.listen.clone(), port: plan.port, key_file: spec.api_key_file.clone() }
    }

    /// Asks for a page.
    pub fn get(&self, path: &str, timeout_ms: u64) -> Request {
        self.request("GET", path, None, timeout_ms)
    }

    /// Has it do something.
    pub fn post(&self, path: &str, body: &str, timeout_ms: u64) -> Request {
        self.request("POST", path, Some(body.to_owned()), timeout_ms)
    }

    fn request(&self, method: &str, path: &str, body: Option<String>, timeout_ms: u64) -> Request {
        Request::Http {
            port: self.port,
            address: self.listen.clone(),
            method: method.to_owned(),
            path: path.to_owned(),
            body,
            timeout_ms,
            key_file: self.key_file.clone(),
        }
    }
}
