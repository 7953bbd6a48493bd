"""cluster.yaml's own commands, run as they stand on three hosts of this machine: a head, a worker with the token, and a stranger.

What only AWS and Docker have is stood in for, and nothing else: `sudo` runs its command; `mount -t nfs4` mounts a folder that all hosts
see, and the volume's mount a tmpfs; `aws`, `curl` to the metadata service, `blkid` and `apt-get` say yes; `sleep` does not wait;
`pip install -r` holds the lock against what is installed, hashes and all, instead of fetching gigabytes, and the package itself is
built and installed into a folder. The container's `-e` options are the environment, `file_mounts` are copied, and the account is root.
"""

import json
import re
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers.hosts import POSSIBLE, network
from helpers.paths import ROOT
from helpers.servers import POSTGRES

from vit_search.config import strict_yaml

FILE = strict_yaml.load(ROOT / "cluster.yaml").values
BIN = Path(sys.executable).parent
SHIMS = {
    "sudo": 'exec "$@"',
    "aws": 'echo "$@" >> /tmp/aws',
    "curl": "echo i-0123456789abcdef0",
    "sleep": "true",
    "blkid": "true",
    "apt-get": "true",
    "mount": """case "$*" in *nfs4*) exec /bin/mount --bind /mnt/.shared "${@: -1}";; *) exec /bin/mount -t tmpfs none "${@: -1}";; esac""",
    "python": f"""\
case "$*" in
  *--require-hashes*) exec {BIN}/uv pip install --dry-run --offline --python {sys.executable} --no-deps --require-hashes -r "${{@: -1}}" ;;
  *"pip install"*) exec {sys.executable} "${{@:1:$#-1}}" --target /tmp/built "${{@: -1}}" ;;
  *) exec {sys.executable} "$@" ;;
esac""",
}
METADATA = """
import http.server, pathlib
class Answers(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        self.say(200, "a-token")
    def do_GET(self):
        notice = pathlib.Path("/tmp/notice")
        if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
            self.say(401, "")
        else:
            self.say(200, notice.read_text()) if notice.exists() else self.say(404, "")
    def say(self, status, text):
        self.send_response(status); self.end_headers(); self.wfile.write(text.encode())
http.server.ThreadingHTTPServer(("169.254.169.254", 80), Answers).serve_forever()
"""
NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False)
print("NODES", json.dumps([[n["NodeManagerAddress"], n["Alive"], n["Resources"].get("CPU", 0)] for n in ray.nodes()]))
"""
TASK = """
import json, os, ray, socket
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_cpus=1)
def look():
    open(os.environ["VIT_SEARCH_STORAGE"] + "/searches/seen", "w").write(ray.util.get_node_ip_address())
    return ray.util.get_node_ip_address(), sorted(n for n in os.environ if "PASSWORD" in n), os.environ["VIT_SEARCH_CACHE"]
print("TASK", json.dumps(ray.get(look.remote())))
print("DRIVER", os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_USERNAME"], len(os.environ["MLFLOW_TRACKING_PASSWORD"]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="no root, or no namespaces on this machine"),
    pytest.mark.skipif(POSTGRES is None, reason="no PostgreSQL on this machine"),
]


def environment(*, head):
    """What the container's options and Ray's launcher give a command."""
    options = FILE["docker"]["run_options"] + (FILE["docker"]["head_run_options"] if head else [])
    told = dict(option.removeprefix("-e ").split("=", 1) for option in options if option.startswith("-e "))
    return told | {
        "HOME": "/home/ray",
        "PATH": "/home/ray/shims:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "RAY_HEAD_IP": "10.77.0.1",
        "PYTHONPATH": str(ROOT),
        "RAY_agent_register_timeout_ms": "300000",  # a busy machine of two cores, see ray_session.py
        "RAY_raylet_start_wait_time_s": "300",
    }


def prepared(host, token):
    """A host's home as `ray up` leaves it: files mounted, and the stand-ins on its path."""
    host.run("mkdir -p /home/ray/shims /home/ray/env/bin /home/ray/.ray")
    for name, body in SHIMS.items():
        place = "/home/ray/env/bin/python" if name == "python" else f"/home/ray/shims/{name}"
        host.run(f"cat > {place} <<'END'\n#!/bin/bash\n{body}\nEND\nchmod 755 {place}")
    for name in ("ray", "vit-search"):
        host.run(f"ln -s {BIN / name} /home/ray/env/bin/{name}")
    host.run(f"ln -s {ROOT} /home/ray/vit_search")
    host.run("test ! -d /etc/postgresql-common || mount -t tmpfs none /etc/postgresql-common")
    host.run(f"printf %s {token} > /home/ray/.ray/auth_token; chmod 644 /home/ray/.ray/auth_token; chmod 755 /home/ray/.ray")
    config = {"cluster_name": "t", "provider": {"type": "local", "head_ip": host.address, "worker_ips": []}, "max_workers": 0}
    host.run(f"cat > /home/ray/ray_bootstrap_config.yaml <<'END'\n{json.dumps(config)}\nEND")


def told(host, keys, *, head):
    """The file's commands, each in a shell of its own, as Ray's launcher runs them."""
    for key in keys:
        for command in FILE[key] if isinstance(key, str) else key:
            if re.search(r"\bray start\b", command):
                started(host, command, head=head)
            else:
                host.run(command, timeout=1800, **environment(head=head))


def started(host, command, *, head):
    """Ray, whose start on a busy machine of two cores may need a second try."""
    for _ in range(3):
        done = host.run(command, check=False, timeout=1800, **environment(head=head))
        if done.returncode == 0:
            return
        host.run("~/env/bin/ray stop --force", check=False, **environment(head=head))
        time.sleep(5)
    raise AssertionError(done.stdout[-2000:] + done.stderr[-3000:])


def python(host, code, *, head, **more):
    script = textwrap.dedent(code)
    host.run(f"cat > /tmp/script.py <<'END'\n{script}\nEND")
    sourced = ". /mnt/vit_search-head/secrets/mlflow.env; " if head else ""
    return host.run(f"{sourced}{sys.executable} /tmp/script.py", **environment(head=head) | more).stdout


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Head, worker and stranger; on the first two everything was run that the file tells."""
    shared = tmp_path_factory.mktemp("shared")
    token = "a1" * 32
    with network(3, shared) as (head, worker, stranger):
        for host in (head, worker, stranger):
            prepared(host, token if host is not stranger else "b2" * 32)
        worker.run("ip addr add 169.254.169.254/32 dev lo")
        worker.run(f"cat > /tmp/metadata.py <<'END'\n{METADATA}\nEND\nsetsid {sys.executable} /tmp/metadata.py > /tmp/metadata.log 2>&1 &")
        told(head, ["initialization_commands", "setup_commands", "head_setup_commands", "head_start_ray_commands"], head=True)
        spot = FILE["available_node_types"]["gpu_spot"]["initialization_commands"]
        told(worker, [spot, "setup_commands", "worker_setup_commands", "worker_start_ray_commands"], head=False)
        yield head, worker, stranger


def test_disks_are_mounted_and_the_package_is_installed(hosts):
    head, worker, _ = hosts
    assert "attach-volume --region us-west-2 --volume-id vol-" in head.run("cat /tmp/aws").stdout
    head.run("mountpoint -q /mnt/vit_search && mountpoint -q /mnt/vit_search-head")
    worker.run("mountpoint -q /mnt/vit_search && ! test -e /mnt/vit_search-head")
    for host in (head, worker):
        host.run("test -f /tmp/built/vit_search/cluster/file/lint.py")


def test_the_worker_has_joined_and_the_head_takes_no_trials(hosts):
    head, worker, _ = hosts
    nodes = json.loads(re.search(r"NODES (.*)", python(head, NODES, head=True)).group(1))
    alive = {address: cpus for address, alive, cpus in nodes if alive}
    assert set(alive) == {head.address, worker.address}
    assert alive[head.address] == 0
    assert alive[worker.address] > 0


def test_a_task_runs_on_the_worker_sees_the_shared_folder_and_no_password(hosts):
    head, worker, _ = hosts
    said = python(head, TASK, head=True)
    assert json.loads(re.search(r"TASK (.*)", said).group(1)) == [worker.address, [], "/mnt/vit_search/cache"]
    assert re.search(r"DRIVER http://127.0.0.1:5000 searches 43", said)
    assert head.run("cat /mnt/vit_search/searches/seen").stdout == worker.address
    assert worker.run("stat -c %a /home/ray/.ray /home/ray/.ray/auth_token").stdout.split() == ["700", "600"]


def test_no_other_account_enters_the_folder_of_rays_sockets(hosts):
    for host in hosts[:2]:
        assert set(host.run("stat -c '%a %u' /tmp/ray-*").stdout.splitlines()) == {"700 0"}
        host.run("ls /tmp/ray-*/ray/session_2*/sockets/plasma_store && ! test -e /tmp/ray/session_latest")


def test_the_driver_of_a_job_has_the_account_of_searches_and_without_the_token_there_is_no_job(hosts):
    head, _, _ = hosts
    body = json.dumps({"entrypoint": "env > /mnt/vit_search/job; touch /mnt/vit_search/done"})
    ask = f"/usr/bin/curl -s -o /dev/null -w %{{http_code}} -X POST -H 'Content-Type: application/json' -d '{body}' http://127.0.0.1:8265/api/jobs/"
    assert head.run(ask).stdout == "401"
    assert head.run(f"{ask} -H 'Authorization: Bearer {'b2' * 32}'").stdout == "403"
    assert not head.run("ls /mnt/vit_search/done", check=False).stdout
    assert head.run(f"{ask} -H 'Authorization: Bearer {'a1' * 32}'").stdout == "200"
    head.run("for i in $(seq 120); do test -e /mnt/vit_search/done && break; sleep 1; done; test -e /mnt/vit_search/done")
    job = head.run("cat /mnt/vit_search/job").stdout
    assert "MLFLOW_TRACKING_USERNAME=searches\n" in job
    assert re.search(r"(?m)^PATH=/home/ray/env/bin:", job)


SEARCH = """
name: little
data: {name: digits}
trials: 2
epochs: 2
stopping: {kind: none}
model: {depth: 1, dim: 16, heads: 2, patch_size: 4}
training: {lr: {float: [1e-3, 1e-2]}}
"""


def test_a_search_that_is_handed_over_trains_on_the_worker_and_is_recorded_in_mlflow(hosts):
    head, worker, _ = hosts
    head.run(f"cat > /tmp/little.yaml <<'END'\n{SEARCH}\nEND")
    told = head.run("~/env/bin/vit-search check --address http://127.0.0.1:8265", check=False, **environment(head=True))
    assert told.returncode == 0, told.stdout + told.stderr
    command = "~/env/bin/vit-search submit /tmp/little.yaml --address http://127.0.0.1:8265 --wait"
    said = head.run(command, timeout=1800, **environment(head=True)).stdout
    assert "2 of 2 trials" in said, said
    ask = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=10"
    recorded = head.run(f". /mnt/vit_search-head/secrets/mlflow.env; /usr/bin/curl -s -u searches:$MLFLOW_TRACKING_PASSWORD {ask}").stdout
    assert "little" in recorded, recorded
    (ledger,) = worker.run("ls /mnt/vit_search/searches/*/ledger.jsonl").stdout.split()
    secret = head.run("cat /mnt/vit_search-head/secrets/mlflow_search_password").stdout
    grep = f"grep -rlF -e {'a1' * 32} -e {secret} /tmp/ray-*/ray/session_latest/ /mnt/vit_search/searches /mnt/vit_search-head/logs"
    assert head.run(grep, check=False).stdout == "", ledger
    assert worker.run(grep.replace("/mnt/vit_search-head/logs", "/home/ray/.vit_search-worker"), check=False).stdout == ""


def test_the_head_looks_up_no_name_outside(hosts):
    """By now it has run Ray, MLflow and a search: with the settings of the file, none of them reports home, or tries to."""
    sent = int(hosts[0].run("grep ^Udp: /proc/net/snmp | tail -1").stdout.split()[4])
    assert sent == 0


def test_a_stranger_reaches_neither_dashboard_nor_mlflow_and_joins_nothing(hosts):
    head, _, stranger = hosts
    for port in (8265, 5000):
        assert stranger.run(f"/usr/bin/curl -s -m 5 http://{head.address}:{port}/", check=False).returncode == 7  # refused
    (join,) = [command for command in FILE["worker_start_ray_commands"] if "ray start" in command]
    for token in ("b2" * 32, ""):
        stranger.run(f"printf %s '{token}' > /home/ray/.ray/auth_token")
        refused = stranger.run(join, check=False, timeout=1800, **environment(head=False))
        assert refused.returncode != 0, refused.stdout
        assert re.search(r"(?i)authenti|token", refused.stdout + refused.stderr), refused.stderr[-2000:]
    nodes = json.loads(re.search(r"NODES (.*)", python(head, NODES, head=True)).group(1))
    assert stranger.address not in {address for address, _, _ in nodes}


def test_only_rays_own_ports_listen_beyond_loopback_on_the_head(hosts):
    head, _, _ = hosts
    listening = head.run("ss -ltnp").stdout
    for line in listening.splitlines()[1:]:
        address, _, port = line.split()[3].rpartition(":")
        if address not in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
            assert port not in ("8265", "5000", "5432"), line
            assert re.search(r"gcs_server|raylet|ray::|dashboard|agent|python", line), line
    assert re.search(r"127\.0\.0\.1:8265\s", listening)
    assert re.search(r"127\.0\.0\.1:5000\s", listening)


def test_at_a_spot_notice_the_worker_drains_itself(hosts):
    head, worker, _ = hosts
    log = "/home/ray/.vit_search-worker/logs/spot.log"
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
    worker.run(f"echo '{json.dumps({'action': 'terminate', 'time': at})}' > /tmp/notice")
    worker.run(f"for i in $(seq 500); do grep -q drained {log} && break; sleep 1; done; cat {log}; grep -q drained {log}")
    said = worker.run(f"cat {log}").stdout
    assert re.search(r"AWS will terminate this instance in \d+ s; draining the node\.\ndrained\.", said), said

    def gone():
        nodes = json.loads(re.search(r"NODES (.*)", python(head, NODES, head=True)).group(1))
        return not any(alive for address, alive, _ in nodes if address == worker.address)

    end = time.monotonic() + 600
    while not gone():
        assert time.monotonic() < end, "the drained node still takes work"
        time.sleep(3)
