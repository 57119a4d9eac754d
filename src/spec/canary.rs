//! Who is sent to the canary whatever the weights: a header or a cookie of the request.

use super::RolloutSpec;
use crate::base::text;

/// A rule on requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryRule {
    /// The request has this header with this value.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// The request has this cookie with this value.
    Cookie {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

impl RolloutSpec {
    /// The rule of `canary_header` or `canary_cookie`. `Err`: what is wrong with it.
    pub fn canary_rule(&self) -> Result<Option<CanaryRule>, String> {
        let pair = |written: &str, separator: char, example: &str| {
            // These words become part of a line of HAProxy's configuration.
            let plain = |word: &str| {
                !word.is_empty()
                    && word.len() <= 100
                    && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            written
                .split_once(separator)
                .map(|(name, value)| (name.trim(), value.trim()))
                .filter(|(name, value)| plain(name) && plain(value))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| {
                    format!(
                        "`{}` is no rule; write for example `{example}` (letters, digits, - _ .)",
                        text::clean(written, 60)
                    )
                })
        };
        match (&self.canary_header, &self.canary_cookie) {
            (None, None) => Ok(None),
            (Some(header), None) => pair(header, ':', "x-canary: 1")
                .map(|(name, value)| Some(CanaryRule::Header { name, value })),
            (None, Some(cookie)) => pair(cookie, '=', "canary=always")
                .map(|(name, value)| Some(CanaryRule::Cookie { name, value })),
            (Some(_), Some(_)) => {
                Err("canary_header and canary_cookie: one of them is enough".to_owned())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn rule(header: Option<&str>, cookie: Option<&str>) -> Result<Option<CanaryRule>, String> {
        let spec = RolloutSpec {
            canary_header: header.map(str::to_owned),
            canary_cookie: cookie.map(str::to_owned),
            ..RolloutSpec::default()
        };
        spec.canary_rule()
    }

    #[test]
    fn reads_headers_and_cookies_and_nothing_that_haproxy_would_take_for_more() {
        let header = CanaryRule::Header { name: "x-canary".into(), value: "1".into() };
        assert_eq!(rule(Some("x-canary: 1"), None), Ok(Some(header)));
        let cookie = CanaryRule::Cookie { name: "canary".into(), value: "always".into() };
        assert_eq!(rule(None, Some("canary=always")), Ok(Some(cookie)));
        assert_eq!(rule(None, None), Ok(None));
        for bad in ["x-canary", "x canary: 1", "x: 1 } { always_true", "x: 1\n  server a b", ": 1"]
        {
            assert!(rule(Some(bad), None).is_err(), "{bad:?}");
        }
        assert!(rule(Some("a: 1"), Some("a=1")).is_err());
    }
}
