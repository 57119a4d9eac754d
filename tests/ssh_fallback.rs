//! A host on which the agent cannot be, over a real sshd: it is looked at through `nvidia-smi` (a
//! script here) and `/proc`, and the agent comes back when it can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpudeck::base::{Bytes, HostName};
use gpudeck::fleet::{Fleet, FleetEvent, FleetOptions, LinkError, LinkState};
use gpudeck::spec::HostSpec;
use gpudeck::wire::{GpuHealth, Gpus, HostSample, Request};
use tokio::sync::mpsc;

mod ssh_support;
use ssh_support::{Sshd, lab};

const PATIENCE: Duration = Duration::from_secs(60);

/// An `nvidia-smi` that answers from files beside it; `hostile` names and a lost GPU among them.
fn nvidia_smi(dir: &Path) -> PathBuf {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let script = r#"#!/bin/sh
here=${0%/*}
case $1 in
--query-gpu=driver_version) echo 535.183.01 ;;
--query-gpu=*compute_mode*) echo "Field \"compute_mode\" is not a valid field to query."; exit 2 ;;
--query-gpu=*) cat "$here/gpus" ;;
--query-compute-apps=*) cat "$here/apps" ;;
esac
"#;
    let path = bin.join("nvidia-smi");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(
        bin.join("gpus"),
        "Unable to determine the device handle for GPU 0000:9A:00.0: GPU is lost.  Reboot the system\n\
         0, GPU-a, NVIDIA A100\x1b[31m-SXM4, 00000000:18:00.0, 81920, 80896, 37, 45, 112.50, 400.00\n\
         1, GPU-b, NVIDIA A100-SXM4, 00000000:3B:00.0, 81920, [N/A], [N/A], [N/A], [N/A], 400.00\n\
         3, [GPU is lost], [GPU is lost], 00000000:5E:00.0, [GPU is lost], [GPU is lost], [GPU is lost], [GPU is lost], [GPU is lost], [GPU is lost]\n\
         4, GPU-e, NVIDIA A100-SXM4, 00000000:86:00.0, 81920, [GPU requires reset], [GPU requires reset], 41, 60.00, 400.00\n",
    )
    .unwrap();
    fs::write(bin.join("apps"), "GPU-a, 4711, 900, /opt/py\x1b[2Jthon\n").unwrap();
    bin
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_for_an_agent_is_looked_at() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let bin = nvidia_smi(server.dir.path());
    // The state directory cannot be made: something else is there.
    let state = server.path("state");
    fs::write(&state, "in the way").unwrap();
    // What sshd sets for its sessions, so that `nvidia-smi` is found.
    let config = server.path("sshd_config");
    let text = fs::read_to_string(&config).unwrap();
    let path = format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", bin.display());
    let home = format!("SetEnv HOME={}", server.dir.path().display());
    assert!(text.contains(&home), "{text}");
    fs::write(&config, text.replace(&home, &format!("{home} PATH={path}"))).unwrap();
    let mut server = server;
    server.kill();
    server.up();

    let env = BTreeMap::from([("GPUDECK_STATE_DIR".to_owned(), state.display().to_string())]);
    let spec = HostSpec {
        address: Some("127.0.0.1".to_owned()),
        port: Some(server.port),
        user: Some("root".to_owned()),
        identity_files: vec![server.user_key().display().to_string()],
        known_hosts: Some(server.known_hosts("ed25519").display().to_string()),
        agent_env: env,
        ..HostSpec::default()
    };
    let host: HostName = "box".parse().unwrap();
    let (sender, mut events) = mpsc::channel(64);
    let options = FleetOptions {
        agent_binary: Some(PathBuf::from(env!("CARGO_BIN_EXE_gpudeck"))),
        ssh_config: Some(PathBuf::from("/dev/null")),
        interactive: false,
        ..FleetOptions::default()
    };
    let fleet = Fleet::new(options, sender);
    fleet.set_hosts(&BTreeMap::from([(host.clone(), spec)]));

    let (mut limited, mut sample, mut facts) = (None, None::<std::sync::Arc<HostSample>>, None);
    let looked = async {
        while limited.is_none() || sample.is_none() || facts.is_none() {
            match events.recv().await.unwrap() {
                FleetEvent::Link { state: LinkState::Limited { why, hint }, .. } => {
                    limited = Some((why, hint));
                }
                FleetEvent::Sample { sample: s, .. } => sample = Some(s),
                FleetEvent::Facts { facts: f, .. } => facts = Some(f),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.expect("the host was not looked at");
    let (why, hint) = limited.unwrap();
    assert!(why.contains("cannot be written") && hint.is_some(), "{why}");
    let facts = facts.unwrap();
    assert_eq!(facts.driver_version.as_deref(), Some("535.183.01"));
    assert_eq!((facts.user.as_str(), facts.agent_version.as_str()), ("root", "none"));
    assert!(facts.cpus > 0 && facts.memory > Bytes::ZERO && !facts.kernel.is_empty());

    let sample = sample.unwrap();
    assert!(sample.memory.is_some() && sample.load_1m.is_some() && sample.uptime_s.is_some());
    let Gpus::Some(gpus) = &sample.gpus else { panic!("{:?}", sample.gpus) };
    assert_eq!(gpus.len(), 5, "{gpus:?}");
    assert_eq!(gpus[0].name, "NVIDIA A100-SXM4", "cleaned");
    assert_eq!((gpus[0].utilisation_percent, gpus[0].power_mw), (Some(37), Some(112_500)));
    assert_eq!((gpus[0].listed()[0].pid, gpus[0].listed()[0].name.as_str()), (4711, "python"));
    assert!(gpus[1].memory.is_none() && gpus[1].power_mw.is_none(), "absent, not zero");
    assert!(gpus[2..].iter().all(|gpu| gpu.health == GpuHealth::Lost), "{gpus:?}");
    assert_eq!((gpus[3].uuid.as_str(), gpus[4].uuid.as_str()), ("PCI-00000000:5E:00.0", "GPU-e"));

    // Nothing can be asked of it, and nothing was written there.
    let link = fleet.link(&host).unwrap();
    let refused = link.request(Request::Ranks { deck: None }).await;
    assert!(matches!(refused, Err(LinkError::Down { .. })), "{refused:?}");
    assert_eq!(fs::read_to_string(&state).unwrap(), "in the way");

    // Room was made: the agent is put there when the link is told to try again.
    fs::remove_file(&state).unwrap();
    fleet.reconnect(&host);
    let up = async {
        loop {
            if let FleetEvent::Link { state: LinkState::Up, .. } = events.recv().await.unwrap() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, up).await.expect("the agent did not come");
    fleet.shutdown().await;
}
