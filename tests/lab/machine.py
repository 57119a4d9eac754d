"""What the lab does to the machine under it: commands, packages, processes, network namespaces."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

BRIDGE_NS = "gd-br"
OPERATOR_LINK = "gd-op"
OPERATOR_ADDRESS = "10.77.0.1"
NETWORK = "10.77.0.0/16"
NETNS_DIR = "/run/netns"

# Command that must be there -> Debian package that has it.
PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "pivot_root": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "haproxy": "haproxy",
    "dockerd": "docker.io",
    "iptables": "iptables",
    "tmux": "tmux",
}


class LabError(Exception):
    """Something a person must be told; printed without a traceback."""


def say(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)


def run(*argv, input=None, check=True):
    """Runs a command to its end; its output only matters when it fails."""
    done = subprocess.run(
        argv, input=input, stdin=None if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout.strip()}")
    return done


def which(command):
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(command, path=path)


def install_missing(commands):
    """Installs the Debian packages of the commands that are not there, saying so."""
    missing = sorted({PACKAGES[c] for c in commands if which(c) is None})
    if not missing:
        return
    if which("apt-get") is None:
        raise LabError(f"needs the programs of {', '.join(missing)}, and there is no apt-get here")
    say(f"installing Debian packages: {' '.join(missing)}")
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    # The packages' own services must not start: the lab starts what it needs in its namespaces.
    policy = "/usr/sbin/policy-rc.d"
    ours = not os.path.exists(policy)
    if ours:
        with open(policy, "w", encoding="ascii") as file:
            file.write("#!/bin/sh\nexit 101\n")
        os.chmod(policy, 0o755)
    try:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            for attempt in range(30):
                done = subprocess.run(["apt-get", *lock, *command], env=env, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
                # `update` takes another lock, which has no timeout of its own.
                if done.returncode == 0 or "Could not get lock" not in done.stdout:
                    break
                time.sleep(5)
            if done.returncode != 0 and command[0] == "install":
                raise LabError(f"apt-get install failed:\n{done.stdout[-2000:]}")
    finally:
        if ours:
            os.unlink(policy)
    still = [c for c in commands if which(c) is None]
    if still:
        raise LabError(f"still missing after the installation: {', '.join(still)}")


def need_root():
    if os.geteuid() != 0:
        raise LabError("needs root: network namespaces and mounts are made (try sudo)")


def lock():
    """One lab command that changes something at a time; held until this process ends."""
    handle = os.open("/run", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + 300
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LabError("another lab command has been at work for 5 minutes") from None
            time.sleep(0.1)


def wait_for(what, seconds, predicate):
    """Waits until `predicate` gives something true, and gives it back."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)


# --- processes ------------------------------------------------------------------------------------

def read(path):
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def alive(pid):
    state = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return bool(state) and state[0] not in ("Z", "X")


def pids():
    return [int(p) for p in os.listdir("/proc") if p.isdigit()]


def pid_namespace(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def tree(root):
    """Every living descendant of `root` and everything in its PID namespace, without `root`."""
    children = {}
    for pid in pids():
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(pid)
    found, todo = set(), [root]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    space = pid_namespace(root)
    # Nobody but the host may share its PID namespace; on the machine's own this would be fatal.
    if space is not None and space != pid_namespace(1) and space != pid_namespace(os.getpid()):
        found.update(pid for pid in pids() if pid_namespace(pid) == space)
    found.discard(root)
    return found


def kill(pid, sig=signal.SIGKILL):
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


def kill_and_wait(victims, what):
    for pid in victims:
        kill(pid)
    wait_for(f"the end of {what}", 20, lambda: not any(alive(pid) for pid in victims))


# --- network --------------------------------------------------------------------------------------

def namespaces():
    """The lab's network namespaces that exist, by name."""
    try:
        names = os.listdir(NETNS_DIR)
    except FileNotFoundError:
        return []
    return sorted(n for n in names if n == BRIDGE_NS or (n.startswith("gd-") and n[3:].isdigit()))


def in_ns(name, *argv, **kw):
    return run("nsenter", f"--net={NETNS_DIR}/{name}", "--", *argv, **kw)


def delete_namespace(name):
    """Ends what still runs in a network namespace of the lab and removes it."""
    found = run("ip", "netns", "pids", name, check=False)
    mine = os.getpid()
    victims = [int(p) for p in found.stdout.split() if p.isdigit() and int(p) != mine]
    if found.returncode == 0 and victims:
        kill_and_wait(victims, f"the processes in {name}")
    run("ip", "netns", "delete", name, check=False)
    # A namespace file that a crash left without its mount.
    path = f"{NETNS_DIR}/{name}"
    if os.path.exists(path):
        run("umount", "-l", path, check=False)
        os.unlink(path)


def make_bridge():
    """The bridge in a namespace of its own, and the operator's way to it (10.77.0.1)."""
    routes = run("ip", "-4", "route", "show", "exact", NETWORK).stdout.strip()
    if routes and OPERATOR_LINK not in routes:
        raise LabError(f"{NETWORK} is in use on this machine: {routes}")
    run("ip", "netns", "add", BRIDGE_NS)
    in_ns(BRIDGE_NS, "ip", "link", "set", "lo", "up")
    in_ns(BRIDGE_NS, "ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
    in_ns(BRIDGE_NS, "ip", "link", "set", "br0", "up")
    run("ip", "link", "add", OPERATOR_LINK, "type", "veth", "peer", "name", "op", "netns", BRIDGE_NS)
    in_ns(BRIDGE_NS, "ip", "link", "set", "op", "master", "br0", "up")
    run("ip", "address", "add", f"{OPERATOR_ADDRESS}/16", "dev", OPERATOR_LINK)
    run("ip", "link", "set", OPERATOR_LINK, "up")


def bridge_is_whole():
    return (
        BRIDGE_NS in namespaces()
        and OPERATOR_ADDRESS in run("ip", "-4", "address", "show", "dev", OPERATOR_LINK, check=False).stdout
        and in_ns(BRIDGE_NS, "ip", "link", "show", "dev", "op", "master", "br0", check=False).stdout != ""
    )


def remove_bridge():
    run("ip", "link", "delete", OPERATOR_LINK, check=False)
    if BRIDGE_NS in namespaces():
        delete_namespace(BRIDGE_NS)


def mounts_below(path):
    found = []
    for line in read("/proc/self/mountinfo").splitlines():
        point = line.split()[4].replace("\\040", " ")
        if point == path or point.startswith(path + "/"):
            found.append(point)
    return sorted(found, key=len, reverse=True)


def remove_tree(path):
    """Removes a folder; never through a mount."""
    for point in mounts_below(path):
        run("umount", "-l", point, check=False)
    if mounts_below(path):
        raise LabError(f"{path} has mounts that do not go away; nothing deleted there")
    deadline = time.monotonic() + 10
    while os.path.lexists(path):
        try:
            shutil.rmtree(path)
        except OSError as error:
            # The kernel may still be letting go of a dead host's overlay.
            if time.monotonic() > deadline:
                raise LabError(f"cannot remove {path}: {error}") from error
            time.sleep(0.1)
