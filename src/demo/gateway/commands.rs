//! HAProxy's run-time commands, as far as gpudeck uses them, with the words of Debian's 2.6.12.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::state::{Backends, MAX_SERVERS, Mode, Server};

/// HAProxy reads a command line into one buffer (`tune.bufsize`).
const MAX_LINE_BYTES: u64 = 16 << 10;

const STATE_COLUMNS: &str = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port";

const STAT_COLUMNS: &str = "pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rate,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,hanafail,req_rate,req_rate_max,req_tot,cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,comp_rsp,lastsess,last_chk,last_agt,qtime,ctime,rtime,ttime,agent_status,agent_code,agent_duration,check_desc,agent_desc,check_rise,check_fall,check_health,agent_rise,agent_fall,agent_health,addr,cookie,mode,algo,";

/// Serves the run-time socket until it is dropped: one line a connection, commands parted by `;`.
pub(super) async fn serve(listener: UnixListener, backends: Arc<Backends>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= 64 {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let backends = Arc::clone(&backends);
        connections.spawn(async move {
            // HAProxy's `stats timeout` is 10 s.
            let _ = tokio::time::timeout(Duration::from_secs(10), answer(stream, &backends)).await;
        });
    }
}

async fn answer(stream: UnixStream, backends: &Backends) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE_BYTES)).read_line(&mut line).await?;
    let mut output = String::new();
    for command in line.trim().split(';').map(str::trim).filter(|c| !c.is_empty()) {
        output.push_str(&run(backends, command));
        output.push('\n');
    }
    write.write_all(output.as_bytes()).await?;
    write.shutdown().await
}

/// One command's output.
pub(super) fn run(backends: &Backends, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let result = match words.as_slice() {
        ["show", "servers", "state", backend] => show_state(backends, Some(backend)),
        ["show", "servers", "state"] => show_state(backends, None),
        ["show", "stat"] => show_stat(backends, None, 7),
        ["show", "stat", proxy, kind, _] => {
            show_stat(backends, Some(*proxy).filter(|p| *p != "-1"), kind.parse().unwrap_or(7))
        }
        ["show", "info"] => Ok(format!(
            "Name: HAProxy (SIMULATED by gpudeck)\nVersion: 2.6.12-sim\nPid: {}\n",
            std::process::id()
        )),
        ["add", "server", path, address, options @ ..] => add(backends, path, address, options),
        ["del", "server", path] => delete(backends, path),
        ["enable", "server", path] => change(backends, path, |s| {
            s.mode = Mode::Ready;
            Ok(String::new())
        }),
        ["disable", "server", path] => change(backends, path, |s| {
            s.mode = Mode::Maint;
            Ok(String::new())
        }),
        ["set", "server", path, rest @ ..] => change(backends, path, |s| set(s, rest)),
        _ => Err("Unknown command. Please enter one of the following commands only:\n  SIMULATED: show servers state, show stat, show info, add server, del server, enable server, disable server, set server\n".to_owned()),
    };
    result.unwrap_or_else(|said| said)
}

type Output = Result<String, String>;

fn line(text: &str) -> String {
    format!("{text}\n")
}

fn add(backends: &Backends, path: &str, address: &str, options: &[&str]) -> Output {
    let (backend, name) = path.split_once('/').ok_or_else(|| line("Require 'backend/server'."))?;
    let mut all = backends.lock();
    let servers = all.get_mut(backend).ok_or("No such backend.")?;
    if servers.contains_key(name) {
        return Err(line("Already exists a server with the same name in backend."));
    }
    if servers.len() >= MAX_SERVERS {
        return Err(line("Cannot allocate a new server."));
    }
    let address = parse_address(address)
        .ok_or_else(|| line(&format!("'server {name}' : invalid address: '{address}'.")))?;
    let mut weight = 1;
    let mut mode = Mode::Maint;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "weight" => weight = options.next().map_or(Err(bad_weight()), |w| parse_weight(w))?,
            "enabled" => mode = Mode::Ready,
            "disabled" | "check" => {}
            other => return Err(line(&format!("'server {name}' : unknown keyword '{other}'."))),
        }
    }
    let mut server = Server::new(servers, address, weight);
    server.mode = mode;
    servers.insert(name.to_owned(), server);
    Ok(line("New server registered."))
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':')?;
    Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))
}

fn bad_weight() -> String {
    line("Absolute weight can only be between 0 and 256 inclusive.")
}

fn parse_weight(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|weight| *weight <= 256).ok_or_else(bad_weight)
}

fn delete(backends: &Backends, path: &str) -> Output {
    let (backend, name) = path.split_once('/').ok_or("Require 'backend/server'.")?;
    let mut all = backends.lock();
    let servers = all.get_mut(backend).ok_or("No such backend.")?;
    let server = servers.get(name).ok_or("No such server.")?;
    if !server.dynamic {
        return Err("This server cannot be removed at runtime due to other configuration elements pointing to it.".to_owned());
    }
    if server.mode != Mode::Maint {
        return Err("Only servers in maintenance mode can be deleted.".to_owned());
    }
    if server.counters.scur > 0 {
        return Err("Server still has connections attached to it, cannot remove it.".to_owned());
    }
    servers.remove(name);
    Ok("Server deleted.".to_owned())
}

fn change(backends: &Backends, path: &str, change: impl FnOnce(&mut Server) -> Output) -> Output {
    let (backend, name) = path.split_once('/').ok_or_else(|| line("Require 'backend/server'."))?;
    let mut all = backends.lock();
    let servers = all.get_mut(backend).ok_or_else(|| line("No such backend."))?;
    change(servers.get_mut(name).ok_or_else(|| line("No such server."))?)
}

fn set(server: &mut Server, words: &[&str]) -> Output {
    match words {
        ["weight", weight] => {
            server.weight = match weight.strip_suffix('%') {
                Some(percent) => {
                    let percent: u32 = percent.parse().map_err(|_| bad_weight())?;
                    let weight = u32::from(server.initial_weight) * percent.min(256) / 100;
                    u16::try_from(weight).unwrap_or(256).min(256)
                }
                None => parse_weight(weight)?,
            };
            Ok(String::new())
        }
        ["state", state] => {
            server.mode = match *state {
                "ready" => Mode::Ready,
                "drain" => Mode::Drain,
                "maint" => Mode::Maint,
                _ => {
                    return Err(line(
                        "'set server <srv> state' expects 'ready', 'drain' and 'maint'.",
                    ));
                }
            };
            Ok(String::new())
        }
        ["addr", address, rest @ ..] => {
            let address: IpAddr = address.parse().map_err(|_| line("Invalid addr format."))?;
            let port = match rest {
                ["port", port] => {
                    port.parse().map_err(|_| line("provided port is not an integer"))?
                }
                _ => server.address.port(),
            };
            let old = std::mem::replace(&mut server.address, SocketAddr::new(address, port));
            let said = |what: &str, from: String, to: String| {
                if from == to {
                    format!("no need to change the {what}")
                } else {
                    format!("{what} changed from '{from}' to '{to}'")
                }
            };
            let ip = said("addr", old.ip().to_string(), address.to_string());
            let port = said("port", old.port().to_string(), port.to_string());
            Ok(line(&format!("{ip}, {port} by 'stats socket command'")))
        }
        _ => Err(line("'set server <srv>' only supports 'addr', 'state' and 'weight'.")),
    }
}

fn show_state(backends: &Backends, only: Option<&str>) -> Output {
    let all = backends.lock();
    if only.is_some_and(|name| !all.contains_key(name)) {
        return Err(line("Can't find backend."));
    }
    let mut out = format!("1\n{STATE_COLUMNS}\n");
    for (number, (backend, servers)) in (2..).zip(all.iter()) {
        if only.is_some_and(|name| name != backend) {
            continue;
        }
        for (name, server) in servers {
            let (op, admin) = match server.mode {
                Mode::Ready => (2, 0),
                Mode::Drain => (2, 8),
                Mode::Maint => (0, 1),
            };
            let Server { id, address, weight, initial_weight, .. } = server;
            let _ = writeln!(
                out,
                "{number} {backend} {id} {name} {} {op} {admin} {weight} {initial_weight} 0 1 0 0 0 0 0 0 - {} - 0 0 - - 0",
                address.ip(),
                address.port()
            );
        }
    }
    Ok(out)
}

/// `kind` is HAProxy's mask: 2 for backends, 4 for servers.
fn show_stat(backends: &Backends, only: Option<&str>, kind: u32) -> Output {
    let all = backends.lock();
    if only.is_some_and(|name| !all.contains_key(name)) {
        return Err(line("No such proxy."));
    }
    let mut out = format!("# {STAT_COLUMNS}\n");
    for (number, (backend, servers)) in (2..).zip(all.iter()) {
        if only.is_some_and(|name| name != backend) {
            continue;
        }
        for (name, server) in servers.iter().filter(|_| kind & 4 != 0) {
            out.push_str(&stat_line(backend, number, name, server));
        }
        if kind & 2 != 0 {
            let weight: u32 = servers
                .values()
                .filter(|s| s.mode == Mode::Ready)
                .map(|s| u32::from(s.weight))
                .sum();
            out.push_str(&csv(&BTreeMap::from([
                ("pxname", backend.clone()),
                ("svname", "BACKEND".to_owned()),
                ("status", if weight > 0 { "UP" } else { "DOWN" }.to_owned()),
                ("weight", weight.to_string()),
                ("iid", number.to_string()),
                ("type", "1".to_owned()),
                ("algo", "roundrobin".to_owned()),
            ])));
        }
    }
    Ok(out)
}

fn stat_line(backend: &str, number: u32, name: &str, server: &Server) -> String {
    let counters = &server.counters;
    let status = match server.mode {
        Mode::Ready => "no check",
        Mode::Drain => "DRAIN",
        Mode::Maint => "MAINT",
    };
    let [r1, r2, r3, r4, r5] = counters.responses;
    let numbers = [
        ("scur", counters.scur),
        ("stot", counters.stot),
        ("econ", counters.econ),
        ("eresp", counters.eresp),
        ("weight", u64::from(server.weight)),
        ("iid", u64::from(number)),
        ("sid", u64::from(server.id)),
        ("lbtot", counters.stot),
        ("type", 2),
        ("hrsp_1xx", r1),
        ("hrsp_2xx", r2),
        ("hrsp_3xx", r3),
        ("hrsp_4xx", r4),
        ("hrsp_5xx", r5),
        ("hrsp_other", 0),
        ("req_tot", counters.req_tot),
        ("cli_abrt", counters.cli_abrt),
        ("srv_abrt", counters.srv_abrt),
        ("rtime", counters.rtime_ms()),
        ("ttime", counters.ttime_ms()),
    ];
    let mut fields: BTreeMap<&str, String> =
        numbers.iter().map(|(name, value)| (*name, value.to_string())).collect();
    fields.insert("pxname", backend.to_owned());
    fields.insert("svname", name.to_owned());
    fields.insert("status", status.to_owned());
    fields.insert("addr", server.address.to_string());
    fields.insert("mode", "http".to_owned());
    csv(&fields)
}

fn csv(fields: &BTreeMap<&str, String>) -> String {
    let columns = STAT_COLUMNS.trim_end_matches(',').split(',');
    let mut out = String::new();
    for column in columns {
        out.push_str(fields.get(column).map_or("", String::as_str));
        out.push(',');
    }
    out.push('\n');
    out
}
