"""Hosts out of nothing: each a network, process and mount namespace on this machine, joined by a switch; needs root.

A host has its own addresses, /tmp, /mnt, /home and process ids, and dies with the context; `shared` is one folder that all see.
"""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

TOOLS = all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip"))
POSSIBLE = (
    os.getuid() == 0
    and TOOLS
    and subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0
)
NETWORK = "10.77.0"


class Host:
    """A machine, as far as its processes can tell."""

    def __init__(self, number):
        self.address = f"{NETWORK}.{number}"
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        self._process = subprocess.Popen([*command, "sleep", "infinity"], start_new_session=True)
        end = time.monotonic() + 600
        while not (found := self._children()):
            assert time.monotonic() < end, "no namespace"
            time.sleep(0.05)
        self.pid = found[0]

    def _children(self):
        place = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in place.read_text().split()]

    def run(self, command, *, check=True, timeout=1800, **environment):
        """A shell's command on this host, with an environment of its own."""
        inside = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--wdns=/", "bash", "-c", command]
        done = subprocess.run(inside, capture_output=True, text=True, env=environment or None, timeout=timeout)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def end(self):
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def network(count, shared):
    """Hosts 1 to count; the first holds the switch. Each has a default route, as a machine in a cloud has, that leads nowhere."""
    hosts = []
    try:
        for number in range(1, count + 1):
            hosts.append(Host(number))
        first = hosts[0]
        first.run(f"ip link set lo up; ip link add sw type bridge; ip addr add {first.address}/24 dev sw; ip link set sw up")
        first.run(f"ip route add default via {NETWORK}.254")
        for number, host in enumerate(hosts[1:], 2):
            ours, theirs = f"vs{os.getpid() % 10000}a{number}", f"vs{os.getpid() % 10000}b{number}"
            subprocess.run(["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs], check=True)
            subprocess.run(["ip", "link", "set", ours, "netns", str(first.pid)], check=True)
            subprocess.run(["ip", "link", "set", theirs, "netns", str(host.pid)], check=True)
            first.run(f"ip link set {ours} master sw; ip link set {ours} up")
            host.run(f"ip link set lo up; ip addr add {host.address}/24 dev {theirs}; ip link set {theirs} up")
            host.run(f"ip route add default via {NETWORK}.254")
        for host in hosts:
            host.run(
                f"mount -t tmpfs none /home && mkdir /home/ray && mount -t tmpfs none /mnt && mkdir /mnt/.shared "
                f"&& mount --bind {shared} /mnt/.shared && mount -t tmpfs -o mode=1777 none /tmp && mount -t tmpfs -o size=2g none /dev/shm"
            )
        yield hosts
    finally:
        for host in hosts:
            host.end()
