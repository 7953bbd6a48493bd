"""The head's services, for real: PostgreSQL and MLflow under supervisord, with accounts, on this machine alone."""

import base64
import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from helpers.commands import COMMAND, vit_search
from helpers.paths import HELPERS
from helpers.servers import POSTGRES, free_port, until

from vit_search.cluster import spot
from vit_search.cluster.head import supervisor
from vit_search.cluster.head.folders import HeadServices
from vit_search.errors import ClusterError
from vit_search.runtime import ray_token as token

PLANTED = {"AWS_SECRET_ACCESS_KEY": "planted0Key1Of2AWS3", "RAY_AUTH_TOKEN": "planted0Token1Of2Ray3"}

with_postgres = pytest.mark.skipif(POSTGRES is None, reason="no PostgreSQL on this machine")


def run(*arguments, **environment):
    return subprocess.run([COMMAND, "cluster", *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=1800)


def start(head, **environment):
    shared = {"VIT_SEARCH_STORAGE": str(head.state.parent / "shared")}
    return run("head", "--state", str(head.state), "--port", str(head.port), **shared, **environment)


@pytest.fixture(scope="module")
def head():
    """A head's services, started as cluster.yaml starts them; not under pytest's folder, which PostgreSQL's account cannot pass through."""
    with tempfile.TemporaryDirectory(prefix="vit_search-head-") as folder:
        Path(folder).chmod(0o711)
        made = HeadServices(Path(folder) / "state", free_port())
        done = start(made, **PLANTED)
        try:
            assert done.returncode == 0, done.stderr + "\n".join(log.read_text() for log in made.logs.glob("*.log"))
            yield made
        finally:
            supervisor.stop(made.state)


def processes(head):
    """supervisord, and all that it has started."""
    parent = psutil.Process(int((head.state / "supervisor" / "pid").read_text()))
    return [parent, *parent.children(recursive=True)]


def mlflow_group(head):
    return int((head.state / "mlflow.group").read_text())


def postmaster(head):
    return int((head.database / "postmaster.pid").read_text().split()[0])


def ask(head, method, path, *, account=None, body=None, host=None, origin=None):
    """Status and text of an answer."""
    headers = {"Host": host or f"127.0.0.1:{head.port}", "Content-Type": "application/json"}
    headers |= {"Origin": origin} if origin else {}
    if account:
        name, secret = {"admin": ("admin", "mlflow_admin_password"), "searches": ("searches", "mlflow_search_password")}[account]
        headers["Authorization"] = "Basic " + base64.b64encode(f"{name}:{head.secret(secret)}".encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", head.port, timeout=1800)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(5000).decode(errors="replace")
    finally:
        connection.close()


def make(head, account, name):
    status, text = ask(head, "POST", "/api/2.0/mlflow/experiments/create", account=account, body={"name": name})
    assert status == 200, text
    return json.loads(text)["experiment_id"]


@with_postgres
def test_all_answer_and_one_table_says_so(head):
    def well():
        told = run("head", "--state", str(head.state), "--port", str(head.port), "--status")
        rows = re.findall(r"(?m)^ *(postgres|mlflow|keeper) +RUNNING .*?( yes |  /)", told.stdout)
        return told.returncode == 0 and [(name, answers.strip()) for name, answers in rows] == [
            ("postgres", "yes"),
            ("mlflow", "yes"),
            ("keeper", "/"),
        ]

    until(well)  # the keeper, which nobody can ask, counts as running after three seconds


@with_postgres
def test_a_second_start_changes_nothing(head):
    before = {path: path.read_bytes() for path in head.secrets.iterdir()}
    pids = [processes(head)[0].pid, mlflow_group(head), postmaster(head)]
    done = start(head)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in head.secrets.iterdir()} == before
    assert [processes(head)[0].pid, mlflow_group(head), postmaster(head)] == pids


@with_postgres
def test_secrets_are_files_of_their_owner_alone(head):
    assert stat.S_IMODE(head.secrets.stat().st_mode) == 0o700
    names = {"postgres_password", "mlflow_admin_password", "mlflow_search_password", "mlflow_secret_key", "mlflow.env", "mlflow_auth.ini"}
    assert {path.name for path in head.secrets.iterdir()} == names
    for path in head.secrets.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    told = subprocess.run(["sh", "-c", f". {head.secrets}/mlflow.env; env"], capture_output=True, text=True, check=True).stdout
    assert f"MLFLOW_TRACKING_PASSWORD={head.secret('mlflow_search_password')}\n" in told
    for path in [head.logs, *head.logs.iterdir(), head.state / "artifacts"]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@with_postgres
def test_only_loopback_listens_and_postgres_not_even_there(head):
    listening = [
        (process.name(), socket.laddr)
        for process in processes(head)
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    ]
    assert {tuple(address) for _, address in listening} == {("127.0.0.1", head.port)}
    assert not any("postgres" in name for name, _ in listening)
    told = subprocess.run(["ss", "-ltn"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"127\.0\.0\.1:{head.port}\s", told)
    assert not re.search(rf"(0\.0\.0\.0|\*|\[::\]):{head.port}\s", told)


EVENTS = [{"entity": "MODEL_VERSION", "action": "CREATED"}]
PROBES = [  # RELIABILITY.md 2.2: what is asked, and what an unknown, the account of searches, and the admin get
    ("POST", "/api/2.0/mlflow/experiments/create", {"name": "probe"}, {}, (401, 200, 400)),  # 400: the name is taken by then
    ("POST", "/api/2.0/mlflow/registered-models/create", {"name": "probe"}, {}, (401, 200, 400)),
    ("GET", "/api/2.0/mlflow/experiments/search?max_results=5", None, {"host": "evil.example"}, (403, 403, 403)),
    ("GET", "/api/2.0/mlflow/experiments/search?max_results=5", None, {"host": "10.evil.example"}, (403, 403, 403)),
    ("GET", "/api/2.0/mlflow/experiments/search?max_results=5", None, {"host": "192.168.0.1"}, (403, 403, 403)),
    ("POST", "/api/2.0/mlflow/experiments/create", {"name": "probe-2"}, {"origin": "http://evil.example"}, (403, 403, 403)),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts/..%2f..%2fsecrets/mlflow.env", None, {}, (401, (400, 403, 404), 400)),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts/%252e%252e/secrets", None, {}, (401, (400, 403, 404), (400, 404))),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/..%2fx", None, {}, (401, (400, 403), 400)),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts/%2fetc/passwd", None, {}, (401, (400, 403, 404), (400, 404))),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts?path=", None, {}, (401, 403, 200)),
    ("POST", "/api/2.0/mlflow/webhooks", {"name": "w", "url": "http://127.0.0.1/", "events": EVENTS}, {}, (401, (400, 403), 400)),
    ("POST", "/v1/traces", None, {}, (401, (400, 403, 415, 422), (400, 415, 422))),
    ("POST", "/graphql", {"query": "{__typename}"}, {}, (401, (200, 400, 403, 404), (200, 400, 404))),
    ("GET", "/metrics", None, {}, (401, (403, 404), 404)),
    ("POST", "/ajax-api/3.0/jobs/", {}, {}, (401, (400, 403, 404, 422), (400, 404, 422))),
    ("GET", "/api/2.0/mlflow/users/list", None, {}, (401, 200, 200)),  # MLflow 3.17 tells any account who else has one
    ("POST", "/api/2.0/mlflow/users/create", {"username": "x", "password": "long-enough-12"}, {}, (401, 403, 200)),
    ("PATCH", "/api/2.0/mlflow/users/update-admin", {"username": "searches", "is_admin": False}, {}, (401, 403, 200)),
]


@with_postgres
@pytest.mark.parametrize("probe", range(len(PROBES)), ids=lambda i: f"{PROBES[i][1]} {PROBES[i][3]}"[:80])
def test_what_is_asked_of_mlflow_from_outside_is_refused(head, probe):
    method, path, body, how, expected = PROBES[probe]
    for account, wanted in zip((None, "searches", "admin"), expected, strict=True):
        status, text = ask(head, method, path, account=account, body=body, **how)
        assert status in (wanted if isinstance(wanted, tuple) else (wanted,)), (account, status, text[:300])


@with_postgres
@pytest.mark.parametrize("source", ["/etc", "file:///etc", "http://169.254.169.254/latest"])
def test_a_model_cannot_be_registered_from_the_servers_files_or_network(head, source):
    ask(head, "POST", "/api/2.0/mlflow/registered-models/create", account="admin", body={"name": "sources"})
    status, text = ask(head, "POST", "/api/2.0/mlflow/model-versions/create", account="admin", body={"name": "sources", "source": source})
    assert status == 400, text


@with_postgres
def test_the_account_of_searches_sees_what_it_has_made_and_nothing_else(head):
    theirs, ours = make(head, "admin", "the admin's"), make(head, "searches", "the searches'")
    status, text = ask(head, "GET", f"/api/2.0/mlflow/experiments/get?experiment_id={theirs}", account="searches")
    assert status == 403, text
    _, text = ask(head, "GET", "/api/2.0/mlflow/experiments/search?max_results=100", account="searches")
    names = {experiment["name"] for experiment in json.loads(text)["experiments"]}
    assert "the searches'" in names
    assert "the admin's" not in names
    run_ = {"experiment_id": ours, "start_time": 1}
    assert ask(head, "POST", "/api/2.0/mlflow/runs/create", account="searches", body=run_)[0] == 200


@with_postgres
def test_the_account_of_searches_cannot_move_the_champion_of_another_account(head):
    """But it manages a model that it has registered itself: promotions need an account of their own."""

    def move(account, name):
        body = {"name": name, "alias": "champion", "version": "1"}
        return ask(head, "POST", "/api/2.0/mlflow/registered-models/alias", account=account, body=body)

    for name, owner in (("of the admin", "admin"), ("of the searches", "searches")):
        made = ask(head, "POST", "/api/2.0/mlflow/registered-models/create", account=owner, body={"name": name})
        assert made[0] == 200, made
        body = {"name": name, "source": "s3://nowhere/model"}
        made = ask(head, "POST", "/api/2.0/mlflow/model-versions/create", account=owner, body=body)
        assert made[0] == 200, made
    assert move("admin", "of the admin")[0] == 200
    assert move("searches", "of the admin")[0] == 403
    assert move("searches", "of the searches")[0] == 200


OPEN_TO_ALL = {  # what MLflow 3.17 answers without an account; each tells nothing of what is kept
    "/health",  # that it lives
    "/api/3.0/mlflow/server-info",  # its version, and which of its features are on
    "/ajax-api/3.0/mlflow/server-info",
}


@with_postgres
def test_each_route_that_mlflow_has_asks_for_an_account(head, tmp_path):
    listed = subprocess.run(
        [sys.executable, str(HELPERS / "mlflow_routes.py"), str(tmp_path)], capture_output=True, text=True, timeout=1800
    )
    assert listed.returncode == 0, listed.stderr
    routes = [tuple(route) for route in json.loads(listed.stdout)]
    assert len(routes) > 500
    answered = {}
    for method, path in routes:
        if method in ("HEAD", "OPTIONS"):
            continue
        answered[method, path] = ask(head, method, path, body={} if method != "GET" else None)[0]
    let_in = {path for (_, path), status in answered.items() if status not in (401, 403)}
    assert {path for path in let_in if not path.startswith("/static-files/")} == OPEN_TO_ALL  # and the files of its pages
    wrong = {route: status for route, status in answered.items() if status >= 500}
    assert not wrong
    assistant = [route for route in answered if "/assistant" in route[1]]
    assert len(assistant) > 8
    for method, path in assistant:  # it runs commands, with the server's secrets around it, for whoever has an account
        for account in ("searches", "admin"):
            assert ask(head, method, path, account=account, body={} if method != "GET" else None)[0] == 403, path
    print(f"{len(answered)} routes asked, open: {sorted(let_in)}")


@with_postgres
@pytest.mark.slow
def test_what_is_killed_comes_back_with_all_that_it_kept(head):
    kept = make(head, "searches", "kept")
    first = (mlflow_group(head), postmaster(head))
    (server,) = [child.pid for child in psutil.Process(first[0]).children()]
    for victim in first:
        os.kill(victim, signal.SIGKILL)

    def back():
        try:
            return ask(head, "GET", f"/api/2.0/mlflow/experiments/get?experiment_id={kept}", account="searches")[0] == 200
        except OSError:
            return False

    until(lambda: mlflow_group(head) != first[0])
    until(back)
    assert not psutil.pid_exists(server)  # what outlived its parent does not hold the port
    assert postmaster(head) != first[1]

    second = mlflow_group(head)
    (server,) = [child.pid for child in psutil.Process(second).children()]
    os.kill(server, signal.SIGKILL)  # the child that answers, its parent left alone
    until(lambda: mlflow_group(head) != second)
    until(back)


@with_postgres
@pytest.mark.slow
def test_after_the_supervisor_itself_is_killed_a_start_takes_over(head):
    kept = make(head, "searches", "kept too")
    left = processes(head)
    os.kill(left[0].pid, signal.SIGKILL)
    done = start(head)
    assert done.returncode == 0, done.stderr
    until(lambda: ask(head, "GET", f"/api/2.0/mlflow/experiments/get?experiment_id={kept}", account="searches")[0] == 200)
    assert not {process.pid for process in left} & {process.pid for process in processes(head)}
    assert psutil.Process(postmaster(head)).ppid() == psutil.Process(mlflow_group(head)).ppid() == processes(head)[0].pid


@with_postgres
def test_no_secret_stands_in_a_log_or_on_a_command_line(head):
    ask(head, "GET", "/api/2.0/mlflow/experiments/search?max_results=1", account="searches")
    secrets = [(head.secrets / name).read_text() for name in ("postgres_password", "mlflow_admin_password", "mlflow_search_password")]
    secrets += [head.secret("mlflow_secret_key"), *PLANTED.values()]
    secrets += [base64.b64encode(f"admin:{secrets[1]}".encode()).decode()]
    for process in psutil.process_iter(["cmdline"]):
        assert not any(secret in " ".join(process.info["cmdline"] or []) for secret in secrets), process
    looked = [
        path
        for path in head.state.rglob("*")
        if path.is_file() and path.parent not in (head.secrets,) and head.database not in path.parents
    ]
    assert {path.name for path in looked} >= {"mlflow.log", "postgres.log", "supervisord.log", "supervisord.conf"}
    for path in looked:
        text = path.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), path


def test_a_state_folder_that_cannot_serve_is_refused_with_its_mend():
    for folder, mend in (("relative/path", "absolute path"), ("/tmp/a b", "letters, digits"), ("/tmp/" + "a" * 90, "at most 80")):
        done = vit_search(".", "cluster", "head", "--state", folder, code=None)
        assert done.returncode == 2
        assert mend in done.stderr
    with pytest.raises(ClusterError, match="run `vit-search cluster head` first"):
        HeadServices(Path("/nowhere")).secret("mlflow_secret_key")


def test_the_token_is_made_once_and_closed_to_others(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(token.PLACE, raising=False)
    done = vit_search(tmp_path, "cluster", "token")
    path = tmp_path / ".ray" / "auth_token"
    secret = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    assert secret not in done.stdout + done.stderr
    assert vit_search(tmp_path, "cluster", "token", "--show").stdout == secret + "\n"
    assert (stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)
    path.chmod(0o644)
    told = vit_search(tmp_path, "cluster", "token")
    assert "mode 0644 is now 0600" in told.stderr
    assert path.read_text() == secret


def test_the_doctor_fails_on_a_token_that_others_can_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(token.PLACE, raising=False)
    token.ensure()
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    done = vit_search(tmp_path, "doctor", code=None)
    assert done.returncode == 2
    assert "mode 0644 opens a token to others; close it with `vit-search cluster token`" in done.stderr
    token.ensure()
    assert vit_search(tmp_path, "doctor", code=None).returncode == 0


def test_of_ten_that_make_a_token_at_once_all_go_on_with_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(token.PLACE, str(tmp_path / "token"))
    made = []

    def one():
        made.append((token.ensure().made, token.read()))

    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(first for first, _ in made) == [False] * 9 + [True]
    assert len({secret for _, secret in made}) == 1


class Metadata(ThreadingHTTPServer):
    """A stand-in for AWS's metadata service that speaks its second version alone; a token lasts for two questions."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.notice, self.tokens, self.asked = None, {}, []


class _Answers(BaseHTTPRequestHandler):
    def do_PUT(self):
        if self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            return self._say(400, "")
        fresh = f"token-{len(self.server.tokens)}"
        self.server.tokens[fresh] = 2
        return self._say(200, fresh)

    def do_GET(self):
        given = self.headers.get("X-aws-ec2-metadata-token", "")
        self.server.asked.append(self.path)
        if self.server.tokens.get(given, 0) == 0:
            return self._say(401, "")
        self.server.tokens[given] -= 1
        return self._say(200, self.server.notice) if self.server.notice else self._say(404, "")

    def _say(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata():
    server = Metadata()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_spot_notice_is_read_with_a_token_and_a_token_that_has_expired_is_renewed(metadata, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # is not asked
    asked = spot.Metadata(f"http://127.0.0.1:{metadata.server_port}")
    assert [asked.notice() for _ in range(5)] == [None] * 5
    assert len(metadata.tokens) == 3  # for two questions each
    metadata.notice = '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}'
    assert asked.notice() == spot.Notice("terminate", 1795681320.0)
    assert set(metadata.asked) == {"/latest/meta-data/spot/instance-action"}


def test_a_machine_without_a_metadata_service_is_told_of_once(metadata):
    metadata.shutdown()
    metadata.server_close()

    class Enough(Exception):
        pass

    looks = []

    def sleep(_):
        looks.append(time.monotonic())
        if len(looks) == 3:
            raise Enough

    told = []
    with pytest.raises(Enough):
        told.extend(spot.watch(spot.Metadata(f"http://127.0.0.1:{metadata.server_port}"), sleep=sleep))
    watched = spot.watch(spot.Metadata(f"http://127.0.0.1:{metadata.server_port}"), sleep=lambda _: None)
    assert "does not answer" in next(watched)
