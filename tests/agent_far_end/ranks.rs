//! Ranks under their supervisors: started once, stopped whole, outliving those who started them.

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use gpudeck::base::Bytes;
use gpudeck::wire::{
    ArgumentsSeen, Gpus, GpusSeen, RankSeen, RankStart, RankStatus, RankWanted, Refusal, Reply,
    Request, ToAgent, VariableSeen, Verb,
};
use rustix::process::Signal;

use super::harness::{Agent, DECK, LONG, State, is_alive, kill, rank, script, until};

#[test]
fn a_rank_is_started_once_and_stopped_whole() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let marks = state.path().join("marks");
    // Three processes, one of which has left the session.
    let mut start = script(
        0,
        "echo started $SECRET >> $MARKS; setsid sleep 1000 & sleep 1000 & echo \"$!\" >> $PIDS; wait",
    );
    let pids = state.path().join("pids");
    start.env.insert("MARKS".to_owned(), marks.to_str().unwrap().to_owned());
    start.env.insert("PIDS".to_owned(), pids.to_str().unwrap().to_owned());
    start.env.insert("SECRET".to_owned(), "hf_secret_token".to_owned());
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    let pid = agent.pid(&rank(0));
    until("the engine's children", || pids.exists());
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    assert_eq!(agent.pid(&rank(0)), pid);

    // The environment may hold secrets and is written nowhere of ours.
    for file in std::fs::read_dir(state.rank_dir(&rank(0))).unwrap().flatten() {
        let content = std::fs::read_to_string(file.path()).unwrap();
        assert!(!content.contains("hf_secret"), "{:?}", file.path());
    }

    let running = agent.act(epoch, Verb::RemoveRank { rank: rank(0) });
    assert!(matches!(running, Err(Refusal::Failed { .. })), "{running:?}");
    assert_eq!(agent.stop_rank(epoch, &rank(0), 5000), Ok(Reply::Done));
    assert!(!is_alive(pid));
    let child = std::fs::read_to_string(&pids).unwrap().trim().parse().unwrap();
    assert!(!is_alive(child), "a child of the engine was left");
    let leftover = std::fs::read_dir("/proc").unwrap().flatten().any(|p| {
        let environ = std::fs::read(p.path().join("environ")).unwrap_or_default();
        let wanted = pids.to_str().unwrap().as_bytes();
        environ.windows(wanted.len()).any(|w| w == wanted)
            && is_alive(p.file_name().to_str().unwrap().parse().unwrap_or(0))
    });
    assert!(!leftover, "a process that left the session was left");
    let status = agent.status(&rank(0));
    assert!(matches!(status, Some(RankStatus::Exited { signal: Some(15), .. })), "{status:?}");

    // It ended; the same attempt is still never started again.
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    assert!(matches!(agent.status(&rank(0)), Some(RankStatus::Exited { .. })));
    assert_eq!(std::fs::read_to_string(&marks).unwrap().lines().count(), 1);
    assert_eq!(agent.stop_rank(epoch, &rank(0), 0), Ok(Reply::Done), "stopping again");
    assert_eq!(agent.act(epoch, Verb::RemoveRank { rank: rank(0) }), Ok(Reply::Done));
    assert_eq!(agent.status(&rank(0)), None);
    assert_eq!(agent.act(epoch, Verb::RemoveRank { rank: rank(0) }), Ok(Reply::Done));
    assert_eq!(agent.stop_rank(epoch, &rank(9), 0), Ok(Reply::Done), "never was");
}

/// Somebody has cleaned up, or the file was too old for `/var/tmp`.
#[test]
fn an_agent_whose_file_is_gone_starts_what_it_starts_all_the_same() {
    let state = State::new();
    let program = state.path().join("gpudeck-1");
    std::fs::copy(env!("CARGO_BIN_EXE_gpudeck"), &program).unwrap();
    let library = ("GPUDECK_NVML", "/nonexistent/libnvidia-ml.so.1".as_ref());
    let mut agent = Agent::start_program(&program, state.path(), &[library]);
    let epoch = agent.claim(None, "test", false).unwrap();
    std::fs::remove_file(&program).unwrap();

    // The process that asks the driver was not started before.
    agent.subscribe(1_000);
    let (gpus, trouble) =
        agent.wait(LONG, |a| a.samples.last().map(|s| (s.gpus.clone(), s.gpu_trouble.clone())));
    assert!(matches!(gpus, Gpus::None { .. }) && trouble.is_none(), "{gpus:?}: {trouble:?}");
    let start = script(0, "sleep 1000");
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    assert!(is_alive(agent.pid(&rank(0))));
    assert_eq!(agent.stop_rank(epoch, &rank(0), 5_000), Ok(Reply::Done));
}

/// What a process has is compared where it runs: told are names that were asked about, and no values.
#[test]
fn a_process_is_compared_with_how_it_was_to_be_started() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let mut start = script(0, "sleep 1000 & wait");
    start.env.insert("TOKEN".to_owned(), "hf_secret".to_owned());
    start.env.insert("CUDA_VISIBLE_DEVICES".to_owned(), "GPU-1".to_owned());
    let compare = |agent: &mut Agent, start: &RankStart| {
        let (rank, argv, env) = (start.rank.clone(), start.argv.clone(), start.env.clone());
        agent.ask(Request::CompareRank(Box::new(RankWanted { rank, argv, env })))
    };
    assert_eq!(compare(&mut agent, &start), Ok(Reply::Compared(None)), "nothing runs yet");
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    let same =
        || RankSeen { arguments: Some(ArgumentsSeen::default()), variables: Some(Vec::new()) };
    assert_eq!(compare(&mut agent, &start), Ok(Reply::Compared(Some(same()))));

    let mut other = start.clone();
    other.argv.push("--fast".to_owned());
    other.env.insert("TOKEN".to_owned(), "hf_guess".to_owned());
    other.env.insert("CUDA_VISIBLE_DEVICES".to_owned(), "GPU-2".to_owned());
    let gpus = |name: &str| vec![name.to_owned()];
    let variable = |name: &str, gpus| VariableSeen { name: name.to_owned(), is_set: true, gpus };
    let seen = RankSeen {
        arguments: Some(ArgumentsSeen { missing: vec![3], ..ArgumentsSeen::default() }),
        variables: Some(vec![
            variable(
                "CUDA_VISIBLE_DEVICES",
                Some(GpusSeen { seen: Some(gpus("GPU-1")), wanted: gpus("GPU-2") }),
            ),
            variable("TOKEN", None),
        ]),
    };
    assert_eq!(compare(&mut agent, &other), Ok(Reply::Compared(Some(seen))));
    assert_eq!(agent.stop_rank(epoch, &rank(0), 0), Ok(Reply::Done));
    assert_eq!(compare(&mut agent, &start), Ok(Reply::Compared(None)), "it has ended");
}

/// vLLM and SGLang let requests finish after a SIGTERM, with their workers; workers that get it, too, end at once.
#[test]
fn an_engine_is_asked_to_end_and_not_its_workers() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let worker = "sh -c 'trap \"echo worker told; exit 1\" TERM; while :; do sleep 0.1; done'";
    let text = format!(
        "{worker} & w=$!; trap 'sleep 1; kill -0 $w && echo drained; kill -9 $w; exit 0' TERM; \
         echo ready; wait"
    );
    assert_eq!(agent.start_rank(epoch, &script(0, &text)), Ok(Reply::Done));
    until("the trap", || agent.log(&rank(0), None, 100).text.contains("ready"));
    assert_eq!(agent.stop_rank(epoch, &rank(0), 20_000), Ok(Reply::Done));
    let log = agent.log(&rank(0), None, 1000).text;
    assert!(log.contains("drained") && !log.contains("worker told"), "{log}");

    // A script that keeps the signal to itself while its engine runs: that is asked before it is killed.
    let text = format!("trap 'echo late' TERM; echo ready; {worker}; echo after");
    assert_eq!(agent.start_rank(epoch, &script(1, &text)), Ok(Reply::Done));
    until("the trap", || agent.log(&rank(1), None, 100).text.contains("ready"));
    let began = Instant::now();
    assert_eq!(agent.stop_rank(epoch, &rank(1), 8_000), Ok(Reply::Done));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let log = agent.log(&rank(1), None, 1000).text;
    assert!(log.contains("worker told") && log.contains("after"), "{log}");
}

#[test]
fn what_was_begun_is_finished_when_nobody_reads_any_more() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    agent.stop_reading();
    let verb = Verb::StartRank(Box::new(script(0, "sleep 1000")));
    let start = ToAgent { id: 100, request: Request::Act { deck: DECK, epoch, verb } };
    // Their answers are written at once, and the second one finds the pipe closed.
    let clocks = (101..130).map(|id| ToAgent { id, request: Request::Clock });
    let lines = std::iter::once(start).chain(clocks).map(|m| serde_json::to_string(&m).unwrap());
    agent.send_line(&lines.collect::<Vec<_>>().join("\n"));
    until("the agent's end", || agent.child.try_wait().unwrap().is_some());
    let mut next = Agent::start(state.path());
    let status = next.status(&rank(0));
    assert!(matches!(status, Some(RankStatus::Running { .. })), "{status:?}");
    let epoch = next.claim(None, "test", false).unwrap();
    assert_eq!(next.stop_rank(epoch, &rank(0), 0), Ok(Reply::Done));
}

#[test]
fn a_start_that_its_stop_has_overtaken_starts_nothing() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    assert_eq!(agent.stop_rank(epoch, &rank(0), 0), Ok(Reply::Done));
    assert_eq!(agent.act(epoch, Verb::RemoveRank { rank: rank(0) }), Ok(Reply::Done));
    let late = script(0, "sleep 1000");
    for _ in 0..2 {
        let refused = agent.start_rank(epoch, &late);
        assert!(
            matches!(&refused, Err(Refusal::Failed { message }) if message.contains("was stopped")),
            "{refused:?}"
        );
    }
    assert_eq!(agent.status(&rank(0)), None);
    // Other ranks are started as ever.
    assert_eq!(agent.start_rank(epoch, &script(1, "sleep 1000")), Ok(Reply::Done));
    assert_eq!(agent.stop_rank(epoch, &rank(1), 0), Ok(Reply::Done));
}

#[test]
fn missing_files_are_refused_without_the_hosts_lock() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let mut start = script(0, "sleep 1000");
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    start.files = vec!["/nonexistent/weights.gguf".to_owned()];
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done), "it was started before");
    let lock = std::fs::File::options().write(true).open(state.path().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut other = script(1, "sleep 1000");
    other.files.clone_from(&start.files);
    let refused = agent.start_rank(epoch, &other);
    let path = "/nonexistent/weights.gguf".to_owned();
    assert_eq!(refused, Err(Refusal::NoFile { path }), "it was looked for under the lock");
    drop(lock);
    assert_eq!(agent.stop_rank(epoch, &rank(0), 0), Ok(Reply::Done));
}

#[test]
fn what_resists_is_killed_after_the_grace() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let start = script(0, "trap '' TERM; echo ready; while :; do sleep 1; done");
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    until("the trap", || agent.log(&rank(0), None, 100).text.contains("ready"));
    let began = Instant::now();
    assert_eq!(agent.stop_rank(epoch, &rank(0), 700), Ok(Reply::Done));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(5), "{took:?}");
    let status = agent.status(&rank(0));
    assert!(matches!(status, Some(RankStatus::Exited { signal: Some(9), .. })), "{status:?}");
}

#[test]
fn an_exit_is_told_within_a_second_with_its_last_lines() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    agent.subscribe(60_000);
    let go = state.path().join("go");
    let text = "echo loading; while ! [ -e $GO ]; do sleep 0.02; done; \
                printf 'CUDA out of memory \\033[31m\\n' >&2; exit 3";
    let mut start = script(0, text);
    start.env.insert("GO".to_owned(), go.to_str().unwrap().to_owned());
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    agent.wait(LONG, |a| {
        let reports = a.ranks.last()?;
        matches!(reports.first()?.status, RankStatus::Running { .. }).then_some(())
    });
    std::fs::write(&go, b"").unwrap();
    let began = Instant::now();
    let status = agent.wait(LONG, |a| {
        let status = &a.ranks.last()?.first()?.status;
        matches!(status, RankStatus::Exited { .. }).then(|| status.clone())
    });
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let RankStatus::Exited { code, signal, last_lines, .. } = status else { unreachable!() };
    assert_eq!((code, signal), (Some(3), None));
    assert_eq!(last_lines, "loading\nCUDA out of memory ");
}

#[test]
fn a_supervisor_outlives_its_agent() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    assert_eq!(agent.start_rank(epoch, &script(0, "exec sleep 1000")), Ok(Reply::Done));
    let pid = agent.pid(&rank(0));
    let supervisor = state.supervisor(&rank(0));
    drop(agent); // SIGKILL

    let mut agent = Agent::start(state.path());
    assert_eq!(agent.pid(&rank(0)), pid);
    assert!(is_alive(supervisor));
    assert_eq!(agent.start_rank(epoch, &script(0, "exec sleep 1000")), Ok(Reply::Done));
    assert_eq!(agent.pid(&rank(0)), pid);
    // The engine ends on its own: the supervisor sees how, though its agent is long gone.
    kill(pid, Signal::KILL);
    until("the exit is seen", || {
        matches!(agent.status(&rank(0)), Some(RankStatus::Exited { signal: Some(9), .. }))
    });
    until("the supervisor leaves", || !is_alive(supervisor));
}

#[test]
fn an_engine_whose_supervisor_was_killed_is_adopted() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    // It goes on logging: a dead supervisor must not block it or break its pipe.
    let text = "while :; do echo tick; sleep 0.05; done";
    for number in [0, 1] {
        assert_eq!(agent.start_rank(epoch, &script(number, text)), Ok(Reply::Done));
        kill(state.supervisor(&rank(number)), Signal::KILL);
        until("the supervisor ends", || !is_alive(state.supervisor(&rank(number))));
    }
    drop(agent);

    let mut agent = Agent::start(state.path());
    let pid = agent.pid(&rank(0));
    let end = agent.log(&rank(0), None, 100).next_offset;
    until("it logs on", || agent.log(&rank(0), None, 100).next_offset > end + 20);
    assert_eq!(agent.start_rank(epoch, &script(0, text)), Ok(Reply::Done));
    assert_eq!(agent.pid(&rank(0)), pid, "no second one");
    assert_eq!(agent.stop_rank(epoch, &rank(0), 5000), Ok(Reply::Done));
    assert!(!is_alive(pid));
    assert_eq!(agent.status(&rank(0)), Some(RankStatus::Lost), "nobody saw how it ended");
    assert_eq!(agent.act(epoch, Verb::RemoveRank { rank: rank(0) }), Ok(Reply::Done));
    // One that ends unseen is lost as well.
    kill(agent.pid(&rank(1)), Signal::KILL);
    until("it is lost", || agent.status(&rank(1)) == Some(RankStatus::Lost));
}

#[test]
fn workers_do_not_survive_their_engine() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let start = script(0, "sleep 1000 & echo $!; exit 1");
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    until("the engine exits", || matches!(agent.status(&rank(0)), Some(RankStatus::Exited { .. })));
    let worker = agent.log(&rank(0), Some(0), 100).text.trim().parse().unwrap();
    until("the worker is ended", || !is_alive(worker));
}

#[test]
fn what_cannot_work_is_refused_and_leaves_nothing() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let good = script(0, "exec sleep 1000");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut start = good.clone();
    start.ports = vec![port];
    let refused = agent.start_rank(epoch, &start);
    let Err(Refusal::PortInUse { port: named, holder: Some(holder) }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(named, port);
    assert!(holder.starts_with(&format!("pid {} ", std::process::id())), "{holder}");

    let mut start = good.clone();
    start.files = vec!["/nonexistent/model.gguf".to_owned()];
    let path = "/nonexistent/model.gguf".to_owned();
    assert_eq!(agent.start_rank(epoch, &start), Err(Refusal::NoFile { path }));

    let mut start = good.clone();
    start.argv = vec!["/nonexistent/llama-server".to_owned()];
    let path = "/nonexistent/llama-server".to_owned();
    assert_eq!(agent.start_rank(epoch, &start), Err(Refusal::NoFile { path }));

    let left: Vec<_> = std::fs::read_dir(state.path().join("ranks")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    drop(listener);
    let mut start = good;
    start.ports = vec![port];
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
}

#[test]
fn the_agents_own_binary_can_be_the_engine() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    let mut start = script(0, "");
    start.argv = ["{gpudeck}", "agent", "--version"].map(str::to_owned).to_vec();
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    until("it exits", || {
        matches!(agent.status(&rank(0)), Some(RankStatus::Exited { code: Some(0), .. }))
    });
    let text = agent.log(&rank(0), Some(0), 100).text;
    assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
}

#[test]
fn a_log_stays_bounded_while_its_offsets_count_on() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "test", false).unwrap();
    // 6 MB at once, of which 256 KiB are to be kept.
    let text = "i=0; while [ $i -lt 60 ]; do head -c 99999 /dev/zero | tr '\\0' x; echo; \
                i=$((i+1)); done; echo the end; exec sleep 1000";
    let mut start = script(0, text);
    start.log_limit = Bytes(256 << 10);
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    until("all is logged", || agent.log(&rank(0), None, 100).text.ends_with("the end\n"));
    let all = 60 * 100_000 + 8;
    assert_eq!(agent.log(&rank(0), None, 100).next_offset, all);
    let file = state.rank_dir(&rank(0)).join("log");
    until("old blocks are given back", || {
        std::fs::metadata(&file).unwrap().blocks() * 512 < 400 << 10
    });
    let old = agent.log(&rank(0), Some(0), 1000);
    assert!(old.offset > all - (400 << 10), "{}", old.offset);
    assert!(!old.text.contains('\0'), "a hole was read");
    let on = agent.log(&rank(0), Some(old.next_offset), 1000);
    assert_eq!(on.offset, old.next_offset);
}
