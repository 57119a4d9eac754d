//! Reads what HAProxy answers on its run-time socket. Its text is hostile until it is parsed:
//! unknown columns are skipped, lines that do not fit are left out, sizes are bounded.

use std::collections::BTreeMap;

use super::{BackendSeen, FOREIGN_NAMED, ServerCounters};
use crate::base::{ReplicaId, text};

/// Most lines of an answer that are looked at.
const MAX_LINES: usize = 16_384;

/// Bits of `srv_admin_state` (HAProxy, `include/haproxy/server-t.h`).
const ADMIN_MAINT: u32 = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;
const ADMIN_DRAIN: u32 = 0x08 | 0x10;

/// One of our servers as the gateway has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerState {
    pub address: String,
    pub port: u16,
    pub weight: u16,
    pub admin: Admin,
}

/// Whether a server takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admin {
    Ready,
    Drain,
    Maint,
}

/// `show servers state BACKEND`: our servers by replica. `Err` is HAProxy's own words.
pub(super) fn servers_state(text: &str) -> Result<BTreeMap<ReplicaId, ServerState>, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    // The dump begins with the version of its format; anything else is a message.
    if first.is_empty() || !first.chars().all(|c| c.is_ascii_digit()) {
        return Err(message_or_silence(text));
    }
    let header = lines.next().and_then(|line| line.strip_prefix('#'));
    let columns = Columns::new(header.ok_or_else(|| message_or_silence(text))?.split_whitespace());
    let server = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let replica: ReplicaId = columns.get(&fields, "srv_name")?.parse().ok()?;
        let admin: u32 = columns.get(&fields, "srv_admin_state")?.parse().ok()?;
        let admin = if admin & ADMIN_MAINT != 0 {
            Admin::Maint
        } else if admin & ADMIN_DRAIN != 0 {
            Admin::Drain
        } else {
            Admin::Ready
        };
        let state = ServerState {
            address: columns.get(&fields, "srv_addr")?.to_owned(),
            port: columns.get(&fields, "srv_port")?.parse().ok()?,
            weight: columns.get(&fields, "srv_uweight")?.parse().ok()?,
            admin,
        };
        Some((replica, state))
    };
    Ok(lines.take(MAX_LINES).filter_map(server).collect())
}

/// `show stat` (CSV): the counters of our servers in `backend`. `Err` is HAProxy's own words.
///
/// On the line of a server in 2.6 `hrsp_5xx` counts the answers the server gave itself, `econ`
/// what never reached it and `eresp` what broke off (before the head: the client got HAProxy's
/// 502; after it: the client got a cut body). The three do not overlap, except that a 5xx whose
/// body breaks is in two of them; so they are added and held at the number of requests.
pub(super) fn counters(
    text: &str,
    backend: &str,
) -> Result<BTreeMap<ReplicaId, ServerCounters>, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let header = lines.next().and_then(|line| line.strip_prefix("# "));
    let columns = Columns::new(header.ok_or_else(|| message_or_silence(text))?.split(','));
    let mut found = false;
    let server = |line: &str| {
        let fields = csv_fields(line);
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        if columns.get(&fields, "pxname")? != backend {
            return None;
        }
        found = true;
        let replica: ReplicaId = columns.get(&fields, "svname")?.parse().ok()?;
        let count = |name| -> u64 {
            columns.get(&fields, name).and_then(|field| field.parse().ok()).unwrap_or(0)
        };
        let in_flight = count("scur");
        let requests = count("stot").saturating_sub(in_flight);
        let errors = count("hrsp_5xx").saturating_add(count("econ")).saturating_add(count("eresp"));
        let counters = ServerCounters {
            in_flight,
            requests,
            errors: errors.min(requests),
            mean_response_ms: count("rtime") as f64,
        };
        Some((replica, counters))
    };
    let servers = lines.take(MAX_LINES).filter_map(server).collect();
    // A backend has a line of its own even when it has no server.
    if found { Ok(servers) } else { Err("No such backend.".to_owned()) }
}

/// `show stat` (CSV): what `backend` is like. `Err` is HAProxy's own words.
pub(super) fn backend(text: &str, backend: &str) -> Result<BackendSeen, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let header = lines.next().and_then(|line| line.strip_prefix("# "));
    let columns = Columns::new(header.ok_or_else(|| message_or_silence(text))?.split(','));
    let (mut seen, mut found) = (BackendSeen::default(), false);
    for line in lines.take(MAX_LINES) {
        let fields = csv_fields(line);
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let Some(name) = columns.get(&fields, "svname") else { continue };
        if columns.get(&fields, "pxname") != Some(backend) || name == "FRONTEND" {
            continue;
        }
        if name == "BACKEND" {
            found = true;
            let word = columns.get(&fields, "algo").filter(|word| !word.is_empty());
            seen.balance = word.map(|word| text::clean(word, 40));
        } else if name.parse::<ReplicaId>().is_err()
            && gets_requests(&columns, &fields)
            && seen.foreign.len() < FOREIGN_NAMED
        {
            seen.foreign.push(text::clean(name, 60));
        }
    }
    if found { Ok(seen) } else { Err("No such backend.".to_owned()) }
}

/// Whether a server's line is of one that requests are sent to. A backup gets them only when all others are away.
fn gets_requests(columns: &Columns, fields: &[&str]) -> bool {
    let status = columns.get(fields, "status").unwrap_or_default();
    let is_up = status.starts_with("UP") || status.starts_with("no check");
    let weighs = columns.get(fields, "weight").is_some_and(|weight| weight != "0");
    is_up && weighs && columns.get(fields, "bck") != Some("1")
}

/// Positions of named columns; more columns than we know, or fewer, are fine.
struct Columns(BTreeMap<String, usize>);

impl Columns {
    fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self(names.take(512).enumerate().map(|(i, name)| (name.to_owned(), i)).collect())
    }

    fn get<'a>(&self, fields: &[&'a str], name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(|i| fields.get(*i)).copied()
    }
}

/// One line of CSV as HAProxy writes it: a field with `"` or `,` is quoted, `"` doubled.
fn csv_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                push(&mut fields, '"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => push(&mut fields, c),
        }
    }
    fields
}

fn push(fields: &mut [String], c: char) {
    if let Some(last) = fields.last_mut() {
        last.push(c);
    }
}

fn message_or_silence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { "it answered nothing".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // As Debian's 2.6.12 wrote it.
    const STATE: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n3 chat 1 r1-0-a1 127.0.0.1 2 0 100 50 0 1 0 0 2 0 0 0 - 19002 - 0 0 - - 0\n3 chat 2 r1-1-a1 ::1 0 8 25 25 0 1 0 0 0 0 0 0 - 19002 - 0 0 - - 0\n3 chat 3 foreign 127.0.0.1 2 0 25 25 0 1 0 0 0 0 0 0 - 19002 - 0 0 - - 0\n3 chat 4 r1-2-a1 - 0 1 1 1 0 1 0 0 0 0 0 0 gpu.invalid 19001 - 0 0 - - 0\n\n";

    #[test]
    fn reads_our_servers_only() {
        let servers = servers_state(STATE).unwrap();
        assert_eq!(servers.len(), 3);
        let first = &servers[&"r1-0-a1".parse().unwrap()];
        assert_eq!((first.address.as_str(), first.port, first.weight), ("127.0.0.1", 19002, 100));
        let modes: Vec<Admin> = servers.values().map(|s| s.admin).collect();
        assert_eq!(modes, [Admin::Ready, Admin::Drain, Admin::Maint]);
    }

    #[test]
    fn a_message_instead_of_a_table_is_an_error() {
        assert_eq!(servers_state("Can't find backend.\n\n"), Err("Can't find backend.".into()));
        assert_eq!(counters("Permission denied\n", "chat"), Err("Permission denied".into()));
        assert!(servers_state("").is_err());
    }

    #[test]
    fn a_backend_without_servers_is_not_a_missing_backend() {
        let text = "# pxname,svname,scur\nchat,BACKEND,0\n";
        assert_eq!(counters(text, "chat"), Ok(BTreeMap::new()));
        assert_eq!(counters(text, "code"), Err("No such backend.".into()));
    }

    #[test]
    fn says_what_a_backend_is_like() {
        let text = "# pxname,svname,status,weight,act,bck,algo,\n\
            chat,FRONTEND,OPEN,,,,,\nchat,r1-0-a1,UP,100,1,0,,\nchat,old-1,UP 1/3,25,1,0,,\n\
            chat,old-2,no check,1,1,0,,\nchat,old-3,DOWN,25,1,0,,\nchat,old-4,MAINT,25,1,0,,\n\
            chat,old-5,UP,0,1,0,,\nchat,spare,UP,25,0,1,,\nchat,BACKEND,UP,100,1,0,leastconn,\n\
            code,other,UP,1,1,0,,\ncode,BACKEND,UP,1,1,0,,\n";
        let chat = backend(text, "chat").unwrap();
        assert_eq!(chat.balance.as_deref(), Some("leastconn"));
        assert_eq!(chat.foreign, ["old-1", "old-2"]);
        let code = backend(text, "code").unwrap();
        assert_eq!((code.balance, code.foreign), (None, vec!["other".to_owned()]));
        assert_eq!(backend(text, "draft"), Err("No such backend.".to_owned()));
        let short = backend("# pxname,svname\nchat,BACKEND\nchat,x\n", "chat");
        assert_eq!(short, Ok(BackendSeen::default()));
    }

    #[test]
    fn counts_by_column_name_wherever_it_stands() {
        let text = "# rtime,svname,new_one,pxname,scur,stot,hrsp_5xx,econ,eresp,note\n\
            12,r1-0-a1,x,chat,2,10,1,2,3,\"a,b\"\n9,r1-0-a1,x,other,2,10,1,2,3,\n\
            1,FRONTEND,,chat,,,,,,\n5,r1-1-a1,,chat,0,3,3,0,3,\n";
        let seen = counters(text, "chat").unwrap();
        let first = &seen[&"r1-0-a1".parse().unwrap()];
        assert_eq!((first.in_flight, first.requests, first.errors), (2, 8, 6));
        assert!((first.mean_response_ms - 12.0).abs() < f64::EPSILON);
        // Three 5xx answers that all broke off are three failures, not six.
        assert_eq!(seen[&"r1-1-a1".parse().unwrap()].errors, 3);
    }

    #[test]
    fn a_quoted_field_keeps_its_commas() {
        assert_eq!(csv_fields(r#"a,"b ""x"", c",d"#), ["a", r#"b "x", c"#, "d"]);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_readers(text in ".{0,400}", tail in "[ -~\n,\"]{0,400}") {
            let _ = servers_state(&text);
            let _ = servers_state(&format!("1\n# srv_name srv_addr\n{tail}"));
            let _ = counters(&text, "chat");
            let _ = backend(&format!("# pxname,svname,algo,status,weight\n{tail}"), "chat");
            let _ = counters(&format!("# pxname,svname\n{tail}"), "chat");
        }
    }
}
