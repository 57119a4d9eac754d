"""One test host: its namespaces, its start and end, and the services that run in it."""

import errno
import http.client
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import uuid

import machine
from machine import LabError, in_ns, kill_and_wait, namespaces, run, wait_for

HERE = os.path.dirname(os.path.abspath(__file__))

SSHD_CONFIG = """\
# Written by the lab.
Port 22
ListenAddress {address}
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 200
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
"""

# Servers are added at run time (`add server`), so a backend needs a dynamic algorithm and no
# cookies; settings of `default-server` would not reach such servers. A connection that is refused is tried
# again on another server at once (redispatch 1): a request that was never sent is safe to repeat. Token
# streams live for minutes, hence the long timeouts.
HAPROXY_CONFIG = """\
# Written by the lab.
global
    maxconn 4000
    stats socket /run/haproxy/admin.sock mode 660 level admin
    stats timeout 10m

defaults
    mode http
    timeout connect 3s
    timeout client 10m
    timeout server 10m
    timeout tunnel 1h
    timeout queue 30s
    timeout http-request 30s
    retries 3
    option redispatch 1
    retry-on conn-failure

frontend models
    bind :8080
    default_backend chat
    use_backend %[path,field(3,/)] if {{ path_beg /backend/ }}

{backends}"""

HAPROXY_BACKEND = """\
backend {name}
    balance roundrobin
    http-request replace-path /backend/{name}(/.*) \\1
"""


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a Unix socket, for dockerd's API."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Host:
    """Host `number` of the lab in `lab_dir`."""

    def __init__(self, lab_dir, number):
        self.number = number
        self.name = f"h{number}"
        self.namespace = f"gd-{number}"
        low = 10 + number
        self.address = f"10.77.{low // 256}.{low % 256}"
        self.dir = os.path.join(lab_dir, self.name)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    # --- state ------------------------------------------------------------------------------------

    def init_pid(self):
        """Pid of the host's first process as the machine sees it, or None if the host is down."""
        text = machine.read(self.path("init.pid")).strip()
        if not text.isdigit() or not machine.alive(int(text)):
            return None
        # Pids are used again: it is ours only if it says so itself.
        command = machine.read(f"/proc/{text}/cmdline").split("\0")
        return int(text) if os.path.join(HERE, "host-init") in command and self.dir in command else None

    def up_pid(self):
        pid = self.init_pid()
        if pid is None:
            raise LabError(f"{self.name} is down (`lab start {self.name}` boots it)")
        return pid

    def shaping(self):
        """What is done to the host's traffic: {"rate": …, "loss": …, "delay_ms": …, "cut": […]}."""
        try:
            with open(self.path("net.json"), encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def is_whole(self):
        return (
            self.init_pid() is not None
            and self.namespace in namespaces()
            and in_ns(machine.BRIDGE_NS, "ip", "link", "show", "dev", self.name, check=False).returncode == 0
        )

    # --- start and end ----------------------------------------------------------------------------

    def make_files(self, hosts, public_key):
        """The host's identity: it survives reboots. Returns the known_hosts line."""
        os.makedirs(self.path("etc", "ssh"), exist_ok=True)
        os.makedirs(self.path("disk"), exist_ok=True)
        key = self.path("etc", "ssh", "ssh_host_ed25519_key")
        if not os.path.exists(key + ".pub"):
            if os.path.exists(key):
                os.unlink(key)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", key)
        machine_id = self.path("etc", "machine-id")
        if not os.path.exists(machine_id):
            write(machine_id, uuid.uuid4().hex + "\n")
        write(self.path("etc", "hostname"), self.name + "\n")
        names = "".join(f"{h.address} {h.name}\n" for h in hosts)
        write(self.path("etc", "hosts"), "127.0.0.1 localhost\n::1 localhost\n" + names)
        write(self.path("etc", "ssh", "sshd_config"), SSHD_CONFIG.format(address=self.address))
        write(self.path("authorized_keys"), public_key)
        kind, key_text = machine.read(key + ".pub").split()[:2]
        return f"{self.address} {kind} {key_text}\n{self.name} {kind} {key_text}\n"

    def begin(self):
        """Makes the network and starts the first process; `finish` waits for it."""
        ns, port = self.namespace, self.name
        if ns in namespaces():
            machine.delete_namespace(ns)
        in_ns(machine.BRIDGE_NS, "ip", "link", "delete", port, check=False)
        run("ip", "netns", "add", ns)
        in_ns(ns, "ip", "link", "set", "lo", "up")
        # A fixed hardware address: after a reboot others still know it from before, as with a real one.
        in_ns(machine.BRIDGE_NS, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0",
              "address", f"02:77:00:00:{self.number // 256:02x}:{self.number % 256:02x}",
              "netns", f"{machine.NETNS_DIR}/{ns}")
        in_ns(machine.BRIDGE_NS, "ip", "link", "set", port, "master", "br0", "up")
        in_ns(ns, "ip", "address", "add", f"{self.address}/16", "dev", "eth0")
        in_ns(ns, "ip", "link", "set", "eth0", "up")
        write(self.path("boot_id"), f"{uuid.uuid4()}\n")
        ours, theirs = os.pipe()
        log = open(self.path("init.log"), "ab")  # pylint: disable=consider-using-with
        # Descriptor 3 tells when it is ready; nothing else of ours may stay open in the host.
        command = [
            "nsenter", f"--net={machine.NETNS_DIR}/{ns}", "--",
            "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--",
            "bash", os.path.join(HERE, "host-init"), self.dir, self.name,
        ]
        inner = " ".join(shlex.quote(word) for word in command)
        subprocess.Popen(  # pylint: disable=consider-using-with
            ["bash", "-c", f"exec 3>&{theirs} {theirs}>&-; exec {inner}"] if theirs != 3 else command,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs],
            start_new_session=True, cwd="/", env=host_env(),
        )
        os.close(theirs)
        log.close()
        return ours

    def finish(self, pipe):
        readable, _, _ = select.select([pipe], [], [], 30)
        said = os.read(pipe, 16) if readable else b""
        os.close(pipe)
        if said.strip() != b"ready":
            raise LabError(f"{self.name} did not start:\n{machine.read(self.path('init.log'))[-2000:]}")

    def end(self):
        """Kills everything in the host, as a power failure does. The network namespace stays."""
        pid = self.init_pid()
        if pid is not None:
            victims = machine.tree(pid)
            kill_and_wait([pid, *victims], f"{self.name}'s processes")
        for name in ("init.pid", "init.pid.new"):
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))
        self.remove_cgroups()

    def remove(self):
        """Leaves nothing of the host."""
        self.end()
        if self.namespace in namespaces():
            machine.delete_namespace(self.namespace)
        if machine.BRIDGE_NS in namespaces():
            in_ns(machine.BRIDGE_NS, "ip", "link", "delete", self.name, check=False)
        machine.remove_tree(self.dir)

    def cgroup_parent(self):
        return f"gpudeck-lab-{self.name}"

    def remove_cgroups(self):
        """Control groups of containers outlive a dockerd that was killed."""
        remove_cgroups(self.cgroup_parent())

    def enter(self):
        """The words before a command that run it in the host."""
        return ["nsenter", "--target", str(self.up_pid()), "--mount", "--uts", "--ipc", "--net",
                "--pid", "--"]

    def run(self, script, check=True):
        done = subprocess.run(
            [*self.enter(), "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, cwd="/", env=host_env(),
        )
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {script}: exit {done.returncode}\n{done.stdout.strip()}")
        return done

    def inside(self, path):
        """A path of the host as the machine sees it."""
        return f"/proc/{self.up_pid()}/root{path}"

    def named(self, *names):
        """Machine pids of the host's processes with one of these command names."""
        return [pid for pid in machine.tree(self.up_pid())
                if machine.read(f"/proc/{pid}/comm").strip() in names]

    # --- services ---------------------------------------------------------------------------------

    def sshd_answers(self):
        """Asked from inside: the operator may have no way to the host."""
        words = f"exec 3<>/dev/tcp/{self.address}/22 && read -r -t 2 -n 4 said <&3 && [ \"$said\" = SSH- ]"
        return in_ns(self.namespace, "bash", "-c", words, check=False).returncode == 0

    def start_sshd(self):
        if self.sshd_answers():
            return
        self.run("/usr/sbin/sshd -E /var/log/sshd.log")
        wait_for(f"sshd of {self.name} ({self.run('tail -5 /var/log/sshd.log', check=False).stdout})",
                 20, self.sshd_answers)

    def stop_sshd(self):
        """The server and every session; what sessions left running in the background stays."""
        kill_and_wait(self.named("sshd"), f"sshd of {self.name}")

    def tarpit(self, on):
        """Something that accepts every connection to port 22 and never says a word, instead of sshd."""
        for pid in self.named("tarpit"):
            kill_and_wait([pid], f"the tarpit of {self.name}")
        if not on:
            return
        self.stop_sshd()
        script = ("import socket\n"
                  "open('/proc/self/comm', 'w').write('tarpit')\n"
                  f"s = socket.create_server(('{self.address}', 22))\n"
                  "held = []\n"
                  "while True: held.append(s.accept()[0])\n")
        self.run(f"setsid python3 -c {shlex.quote(script)} >/dev/null 2>&1 </dev/null &")
        wait_for(f"the tarpit of {self.name}", 20, lambda: self.listens(22))

    def listens(self, port):
        lines = machine.read(f"/proc/{self.up_pid()}/net/tcp").splitlines()[1:]
        return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in map(str.split, lines))

    def change_key(self, which):
        """Another host key with the next connection, or the one that clients know."""
        key = "/etc/ssh/ssh_host_ed25519_key"
        if which == "new":
            self.run(f"cp {key} {key}.old && rm {key} && ssh-keygen -q -t ed25519 -N '' -f {key}")
        else:
            self.run(f"mv {key}.old {key}")
        self.stop_sshd()
        self.start_sshd()

    def fill_disk(self, full):
        """A small file system over the agent's folder, full to the last byte."""
        place = "/var/lib/gpudeck"
        if full:
            self.run(f"mount -t tmpfs -o size=64k lab {place}; cat /dev/zero >{place}/full 2>/dev/null; true")
        else:
            self.run(f"umount -l {place}")

    def place_agent(self, shared, digest):
        """A second name for the agent's binary, where an agent that was copied would be; a copy where a disk of its own
        is mounted there."""
        folder = self.path("disk", "var/lib/gpudeck", machine.read(self.path("etc", "machine-id")).strip())
        os.makedirs(os.path.join(folder, "bin"), mode=0o700, exist_ok=True)
        os.chmod(folder, 0o700)
        name = f"gpudeck-{digest[:16]}"
        path = os.path.join(folder, "bin", name)
        if os.path.lexists(path):
            os.unlink(path)
        try:
            os.link(shared, path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copy(shared, path)
        return path, os.path.join(folder, "bin", f".checked-{name}")

    @staticmethod
    def stamp(path):
        return run("stat", "-c", "%s %y %z %i", path).stdout.strip()

    def start_haproxy(self, backends):
        if self.named("haproxy"):
            return
        text = HAPROXY_CONFIG.format(backends="\n".join(HAPROXY_BACKEND.format(name=b) for b in backends))
        write(self.inside("/etc/haproxy/haproxy.cfg"), text)
        self.run("mkdir -p /run/haproxy && haproxy -D -p /run/haproxy.pid -f /etc/haproxy/haproxy.cfg "
                 ">/var/log/haproxy.log 2>&1 || { cat /var/log/haproxy.log; exit 1; }")

    def stop_haproxy(self):
        kill_and_wait(self.named("haproxy"), f"HAProxy of {self.name}")

    def docker(self, method, path, body=None, timeout=300, headers=None):
        api = UnixHttp(self.inside("/run/docker.sock"), timeout)
        try:
            api.request(method, path, body=body, headers=headers or {})
            answer = api.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            api.close()

    def docker_answers(self):
        try:
            return self.docker("GET", "/_ping", timeout=2)[0] == 200
        except OSError:
            return False

    def start_dockerd(self):
        if self.docker_answers():
            return
        # Another containerd and other state than the machine's: /run and /var/lib/docker are the host's own.
        self.run(
            "rm -f /run/docker.pid /run/docker.sock /run/docker/containerd/containerd.pid; "
            "setsid dockerd --data-root /var/lib/docker --exec-root /run/docker --pidfile /run/docker.pid "
            f"--bip 172.30.0.1/24 --cgroup-parent /{self.cgroup_parent()} -H unix:///var/run/docker.sock "
            ">/var/log/dockerd.log 2>&1 </dev/null &"
        )
        try:
            wait_for("dockerd", 60, self.docker_answers)
        except LabError:
            tail = self.run("tail -n 15 /var/log/dockerd.log", check=False).stdout
            raise LabError(f"dockerd of {self.name} does not answer:\n{tail}") from None

    def stop_dockerd(self):
        """As `systemctl stop docker`: containers end with it (live-restore is off)."""
        victims = self.named("dockerd")
        for pid in victims:
            machine.kill(pid, signal.SIGTERM)
        wait_for(f"the end of dockerd of {self.name}", 40,
                 lambda: not any(machine.alive(pid) for pid in victims))

    def import_image(self, name, tar):
        repository, _, tag = name.partition(":")
        size = os.path.getsize(tar)
        with open(tar, "rb") as file:
            status, body = self.docker(
                "POST", f"/images/create?fromSrc=-&repo={repository}&tag={tag or 'latest'}", body=file,
                headers={"Content-Length": str(size), "Content-Type": "application/x-tar"},
            )
        if status != 200 or '"error"' in body:
            raise LabError(f"{self.name}: importing {tar} as {name}: {status} {body.strip()[-500:]}")

    # --- faults -----------------------------------------------------------------------------------

    def set_link(self, state):
        in_ns(machine.BRIDGE_NS, "ip", "link", "set", self.name, state)

    def freeze(self, sig):
        """SIGSTOP or SIGCONT for every process but the first: a host whose kernel still answers."""
        done = set()
        # A process may be born while the others are stopped.
        for _ in range(10):
            fresh = machine.tree(self.up_pid()) - done
            if not fresh:
                return
            for pid in fresh:
                machine.kill(pid, sig)
            done |= fresh

    def shape(self, **change):
        """Changes what is done to the host's traffic; None takes a thing away."""
        wanted = {k: v for k, v in {**self.shaping(), **change}.items() if v}
        self.apply_rate(wanted.get("rate"))
        self.apply_rules(wanted)
        self.apply_delay(bool(wanted.get("delay_ms")))
        # Last: what a refused command asked for is not remembered.
        write(self.path("net.json"), json.dumps(wanted))

    def apply_rate(self, rate):
        for namespace, device in ((self.namespace, "eth0"), (machine.BRIDGE_NS, self.name)):
            in_ns(namespace, "tc", "qdisc", "delete", "dev", device, "root", check=False)
            if rate:
                in_ns(namespace, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
                      "burst", "256kb", "latency", "25ms")

    def apply_rules(self, wanted):
        # Before routing and after it, so that containers' traffic is met as well as the host's own.
        inward, outward = [], []
        if wanted.get("behind"):
            inward.append(f'iifname "eth0" ip saddr {machine.OPERATOR_ADDRESS} drop')
        for port in wanted.get("cut", []):
            inward.append(f'iifname "eth0" tcp dport {port} drop')
            outward.append(f'oifname "eth0" tcp sport {port} drop')
        if wanted.get("loss"):
            share = round(float(wanted["loss"]) * 100)
            match = f"numgen random mod 10000 < {share} " if share < 10000 else ""
            inward.append(f'iifname "eth0" {match}drop')
            outward.append(f'oifname "eth0" {match}drop')
        rules = "table inet lab\ndelete table inet lab\n"
        if inward:
            rules += (
                "table inet lab {\n"
                f" chain inward {{ type filter hook prerouting priority -200;\n{nl(inward)} }}\n"
                f" chain outward {{ type filter hook postrouting priority 200;\n{nl(outward)} }}\n}}\n"
            )
        in_ns(self.namespace, "nft", "-f", "-", input=rules)

    def apply_delay(self, wanted):
        # Through iptables: kernels without nft_queue still have the older NFQUEUE target.
        rule = ["PREROUTING", "-i", "eth0", "-j", "NFQUEUE", "--queue-num", "0"]
        if machine.which("iptables") is None:
            return
        there = in_ns(self.namespace, "iptables", "-w", "-t", "raw", "-C", *rule, check=False).returncode == 0
        if wanted != there:
            in_ns(self.namespace, "iptables", "-w", "-t", "raw", "-I" if wanted else "-D", *rule)


def nl(rules):
    return "".join(rule + "\n" for rule in rules)


def host_env():
    """The environment of what runs in a host: nothing of the caller's."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash",
        "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"),
    }


def remove_cgroups(parent):
    """Removes the control groups below `parent` in every hierarchy; they are empty by then."""
    top = "/sys/fs/cgroup"
    places = [top] + [os.path.join(top, d) for d in (os.listdir(top) if os.path.isdir(top) else [])]
    for place in places:
        base = os.path.join(place, parent)
        if not os.path.isdir(base):
            continue
        for folder, _, _ in os.walk(base, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                pass


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
