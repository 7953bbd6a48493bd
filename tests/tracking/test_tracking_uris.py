"""What a search's folder may name as its MLflow, and what is refused: the folder may come from anybody."""

import contextlib
import dataclasses
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.commands import vit_search
from helpers.synthetic import made

from vit_search.cli.app import app
from vit_search.data.cache import prepare
from vit_search.errors import SearchError, TrackingError
from vit_search.ledger import searches
from vit_search.search import resume as resuming
from vit_search.tracking import mlflow_client, uris
from vit_search.tracking.sync import sync_search

MEND = "if it is meant, name it with --tracking-uri or MLFLOW_TRACKING_URI."


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in uris.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(uris.REDIRECTS, "true")  # what a test sets is taken back
    monkeypatch.delenv(uris.REDIRECTS)


@pytest.fixture(autouse=True)
def gathered_at_once(monkeypatch):
    monkeypatch.setattr("vit_search.tracking.recorder.GATHER_S", 0.0)
    monkeypatch.setattr("vit_search.tracking.summary.write_report", lambda folder: ())  # a report's pictures take seconds


@pytest.fixture
def project(migrated, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(migrated, folder / "mlruns.db")
    return folder


def naming(project, uri, **facts):
    """A search of the project that names this address in its search.json."""
    search, _, known = made(project / "searches")
    searches.write_facts(search, dataclasses.replace(known, tracking_uri=uri, **facts))
    return search


def resolved(search, given=None):
    return uris.resolve_uri(given, search, searches.read_facts(search))


@pytest.fixture
def listener():
    """A server of somebody else: its address, and the header Authorization of each request, None where there is none."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


# Credentials


def promote(search):
    sys.argv = ["vit-search", "promote", str(search), "--dry-run"]
    app(standalone_mode=False)


@pytest.mark.parametrize(
    "act",
    [sync_search, resuming.resume, lambda search: resuming.resume(search, extend={"trials": 9}), promote],
    ids=["sync", "resume", "extend", "promote --dry-run"],
)
def test_no_server_that_a_search_alone_names_is_sent_credentials(act, project, listener, monkeypatch):
    address, seen = listener
    search = naming(project, address)
    spec, facts = searches.read(search)
    searches.write_facts(search, dataclasses.replace(facts, data_hash=prepare(spec.data_config).data_hash))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of another server")
    with pytest.raises(TrackingError) as refused:
        act(search)
    said = "and MLFLOW_TRACKING_USERNAME may be meant for another server, so nothing is sent there"
    assert str(refused.value) == f"{search / 'search.json'}: its records are said to be in {address}, {said}; {MEND}"
    assert seen == []


@pytest.mark.parametrize("name", uris.CREDENTIALS)
def test_each_kind_of_credentials_counts(name, project, monkeypatch):
    search = naming(project, "http://127.0.0.1:9")
    assert resolved(search) == "http://127.0.0.1:9"
    monkeypatch.setenv(name, "true")
    with pytest.raises(TrackingError, match=name):
        resolved(search)


def test_the_credentials_file_of_mlflow_counts_too(project, tmp_path):
    search = naming(project, "http://127.0.0.1:9")
    (tmp_path / "home/.mlflow").mkdir(parents=True)
    (tmp_path / "home/.mlflow/credentials").write_text("[mlflow]\nmlflow_tracking_username = me\n")
    with pytest.raises(TrackingError, match=r"~/\.mlflow/credentials may be meant for another server"):
        resolved(search)


@pytest.mark.parametrize("by", [".netrc", "NETRC"])
@pytest.mark.parametrize("entry", ["machine 127.0.0.1", "default"])
def test_a_password_of_netrc_counts_too_whatever_the_port(entry, by, project, listener, tmp_path, monkeypatch):
    address, seen = listener
    search, path = naming(project, address), tmp_path / "home" / by
    path.parent.mkdir()
    path.write_text(f"{entry} login me password of-another-server\n")
    path.chmod(0o600)
    if by == "NETRC":
        monkeypatch.setenv(by, str(path))
    with pytest.raises(TrackingError, match=f"and {path if by == 'NETRC' else '~/.netrc'} may be meant for another server"):
        sync_search(search)
    assert seen == []
    with pytest.raises(TrackingError, match="does not answer"):  # it is no MLflow
        sync_search(search, address)
    assert seen[-1] == "Basic bWU6b2YtYW5vdGhlci1zZXJ2ZXI="


def test_netrc_of_other_hosts_does_not_count(project, tmp_path):
    search = naming(project, "http://127.0.0.1:9")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.netrc").write_text("machine git.example login me password mine\n")
    assert resolved(search) == "http://127.0.0.1:9"


@pytest.mark.parametrize("by", ["--tracking-uri", "MLFLOW_TRACKING_URI"])
def test_a_server_that_the_user_names_gets_them(by, project, listener, monkeypatch):
    address, seen = listener
    search = naming(project, address)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "mine")
    if by == "MLFLOW_TRACKING_URI":
        monkeypatch.setenv(by, address)
    with pytest.raises(TrackingError, match="does not answer"):  # it is no MLflow
        sync_search(search, address if by == "--tracking-uri" else None)
    assert seen[-1] == "Bearer mine"


def test_a_command_that_names_no_search_is_refused_too_and_does_not_go_on_elsewhere(project, monkeypatch):
    naming(project, "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "mine")
    with pytest.raises(TrackingError, match="nothing is sent there"):
        uris.of_newest(None)


@pytest.mark.parametrize("scheme", ["http", "mlflow-artifacts"])
def test_no_server_that_a_database_names_for_artifacts_is_sent_credentials(scheme, project, listener, monkeypatch):
    address, seen = listener
    search = naming(project, "sqlite:///mlruns.db")
    assert sync_search(search)
    place = f"{scheme}{address.removeprefix('http')}/api/2.0/mlflow-artifacts/artifacts"
    with sqlite3.connect(project / "mlruns.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'made'", (place,))
        database.execute("UPDATE runs SET artifact_uri = ? || '/' || run_uuid", (place,))
    database.close()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of another server")
    with pytest.raises(TrackingError, match=f"mlruns.db: artifacts are said to be in {address}/.*, and MLFLOW_TRACKING_PASSWORD may be"):
        sync_search(search)
    assert seen == []


def test_a_database_may_name_a_bucket_but_no_file_server(project):
    for uri in ("s3://bucket/a", "gs://bucket/a", "file:///a/b", "/a/b", "models:/m-1", "runs:/1/model", "mlflow-artifacts:/1"):
        uris.refuse_artifacts(uri, project / "mlruns.db")
    with pytest.raises(TrackingError, match="sftp://elsewhere/a, and a file may name http, https and sqlite alone"):
        uris.refuse_artifacts("sftp://elsewhere/a", project / "mlruns.db")


# Addresses

INTERNAL = [
    "http://169.254.169.254",
    "http://169.254.169.254/latest/meta-data",
    "http://169.254.1.2:5000",
    "http://2852039166",
    "http://0xa9fea9fe",
    "http://0251.0376.0251.0376",
    "http://169.16689662",
    "http://[fe80::1]:5000",
    "http://[::ffff:169.254.169.254]",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[fd00:ec2::254]",
    "http://metadata.google.internal",
    "https://METADATA.google.internal.",
    "http://100.100.100.200",
]


@pytest.mark.parametrize("uri", INTERNAL)
def test_an_address_of_the_cloud_itself_is_refused_however_it_is_written(uri, project):
    search = naming(project, uri)
    with pytest.raises(TrackingError, match="an address of the machine's own network or of its cloud"):
        resolved(search)
    assert resolved(search, uri) == uri  # as the user says


def test_a_name_that_leads_to_such_an_address_is_refused(project, monkeypatch):
    answers = {"looks.example": "169.254.169.254", "plain.example": "192.0.2.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_: [(2, 1, 6, "", (answers[host], 0))])
    assert resolved(naming(project, "http://plain.example")) == "http://plain.example"
    shutil.rmtree(project / "searches")
    with pytest.raises(TrackingError, match="its cloud"):
        resolved(naming(project, "http://looks.example"))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("postgresql://me@host/db", "http, https and sqlite alone"),
        ("postgresql+psycopg://me@host/db", "http, https and sqlite alone"),
        ("databricks", "http, https and sqlite alone"),
        ("file:///etc", "http, https and sqlite alone"),
        ("ftp://host/x", "http, https and sqlite alone"),
        ("sqlite+pysqlite:////etc/x", "http, https and sqlite alone"),
        ("sqlite:relative.db", "http, https and sqlite alone"),
        ("http://good.example\\@169.254.169.254", "no plain address"),
        ("http://169.254.169.254#@good.example", "no plain address"),
        ("http://me:word@good.example", "no plain address"),
        ("http://good.example/../x?y", "no plain address"),
        ("http://good.exämple", "no plain address"),
        ("http://[", "no plain address"),
        ("http://a\nb", "is no address"),
        ("sqlite:///a\0b", "is no address"),
        (5, "tracking_uri: 5 is not str"),
    ],
)
def test_other_schemes_and_addresses_that_can_be_read_in_two_ways_are_refused(uri, said, project):
    with pytest.raises((TrackingError, SearchError), match=said) as refused:
        resolved(naming(project, uri))
    assert "\n" not in str(refused.value) and ":word" not in str(refused.value)


@pytest.mark.parametrize("from_path", ["/health", "/api"])
def test_a_server_that_a_search_alone_names_leads_nowhere_else(from_path, project, listener):
    target, seen = listener

    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(307 if self.path.startswith(from_path) else 200)
            self.send_header("Location", target + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        search = naming(project, address)
        with pytest.raises(TrackingError, match="does not answer"):
            sync_search(search)
        assert seen == []
        os.environ[uris.REDIRECTS] = "true"  # as the user says
        with contextlib.suppress(TrackingError):  # neither is a whole MLflow
            mlflow_client.client_for(resolved(search))
        assert seen
    finally:
        server.shutdown()
        server.server_close()


# Databases


def test_a_database_elsewhere_is_refused_unless_it_has_the_search_s_records(project, tmp_path, migrated):
    other = tmp_path / "other" / "mlruns.db"
    other.parent.mkdir()
    shutil.copy(migrated, other)
    (project / "mlruns.db").unlink()
    search, before = naming(project, f"sqlite:///{other}"), other.read_bytes()
    with pytest.raises(TrackingError, match=r"which is no mlruns\.db of this project and has no record of this search") as refused:
        sync_search(search)
    assert str(refused.value).endswith(MEND)
    assert other.read_bytes() == before and not (project / "mlruns.db").exists()
    assert sync_search(search, f"sqlite:///{other}")
    assert resolved(search) == f"sqlite:///{other}"  # which has them by now


@pytest.mark.parametrize(
    "path",
    ["{home}/new.db", "{home}/cookies.sqlite", "cookies.sqlite", ".config/cookies.sqlite", "../elsewhere/mlruns.db", "{home}/a/../x"],
)
def test_no_file_above_the_project_or_beside_it_is_opened_or_made(path, project, tmp_path):
    for name in ("cookies.sqlite", ".config/cookies.sqlite", "elsewhere/mlruns.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sqlite3.connect(tmp_path / name).execute("CREATE TABLE cookies (a)").connection.close()
    (project / "mlruns.db").unlink()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    search = naming(project, f"sqlite:///{path.format(home=tmp_path)}")
    with pytest.raises(TrackingError, match=r"which is no mlruns\.db of this project"):
        sync_search(search)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and search not in file.parents}
    assert after == before


@pytest.mark.parametrize("uri", ["sqlite:///mlruns.db", "sqlite:///{project}/mlruns.db", ""])
def test_a_database_that_is_a_link_is_refused_unless_the_user_names_it(uri, project, tmp_path, migrated):
    target = shutil.copy(migrated, tmp_path / "target.db")
    before = Path(target).read_bytes()
    (project / "mlruns.db").unlink()
    (project / "mlruns.db").symlink_to(target)
    search = naming(project, uri.format(project=project))
    with pytest.raises(TrackingError, match="which is a link"):
        sync_search(search)
    assert Path(target).read_bytes() == before
    (tmp_path / "target.db").unlink()  # one that leads nowhere would be made
    with pytest.raises(TrackingError, match="which is a link"):
        sync_search(search)
    assert not (tmp_path / "target.db").exists()
    assert resolved(search, "sqlite:///mlruns.db") == f"sqlite:///{target}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("uri", ["sqlite:///mlruns.db", ""])
def test_a_database_of_another_account_is_refused_unless_the_user_names_it(uri, project):
    os.chown(project / "mlruns.db", 12345, -1)
    search = naming(project, uri)
    with pytest.raises(TrackingError, match=r"mlruns.db belongs to another account \(uid 12345\); if it is meant, name it"):
        resolved(search)
    assert resolved(search, "sqlite:///mlruns.db") == f"sqlite:///{project / 'mlruns.db'}"


def test_what_is_new_is_closed_to_others_and_what_is_there_stays_as_it_is(project):
    (project / "mlruns.db").chmod(0o664)
    search, before = naming(project, ""), os.umask(0)
    try:
        assert sync_search(search)
        assert ((project / "mlruns.db").stat().st_mode & 0o777, (project / "mlartifacts").stat().st_mode & 0o777) == (0o664, 0o700)
        mlflow_client.client_for(f"sqlite:///{project / 'new.db'}")
    finally:
        os.umask(before)
    assert (project / "new.db").stat().st_mode & 0o777 == 0o600


READING = [
    "status", "show", "list --address http://127.0.0.1:9", "logs digits-1", "report", "compare a b", "history pets",
    "history pets --verify", "doctor", "doctor --close", "config pets@champion", "export pets@champion --format pt2",
    "predict --model pets@champion x.png", "rollback pets --reason mistake", "repair pets", "promote --dry-run", "gate digits-1 0",
    "serve pets@champion --port 0",
]  # fmt: skip
"""Commands that make no search, nor anything else where there is none."""


@pytest.mark.parametrize("words", READING)
def test_a_command_that_reads_makes_nothing_in_an_empty_folder(words, tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    done = vit_search(folder, *words.split(), code=None, VIT_SEARCH_CACHE=str(tmp_path / "cache"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert list(folder.iterdir()) == []
    if words.startswith("doctor"):
        assert (done.returncode, done.stdout) == (0, "No search was recorded here: there is no run to look at.\n")
        return
    assert (done.returncode, len(errors)) == (2, 1), done
    if "address" not in words:
        assert any(mend in errors[0] for mend in ("vit-search run FILE", "`vit-search promote` makes one", "x.png")), errors


def test_a_file_without_mlflows_tables_is_no_tracking_database(tmp_path):
    database = tmp_path / "mlruns.db"
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE cookies (text)")
    before = database.read_bytes()
    for needs in ("read", "write"):
        with pytest.raises(TrackingError, match=r"mlruns.db: no tracking database of MLflow's is there; `vit-search run FILE` makes one"):
            mlflow_client.client_for(f"sqlite:///{database}", needs=needs)
    assert database.read_bytes() == before


BOUND = [] if os.getuid() else ["setpriv", "--bounding-set", "-dac_override"]
"""What takes away root's right to write where nobody may."""


@pytest.mark.skipif(bool(BOUND) and shutil.which("setpriv") is None, reason="root writes everywhere, and setpriv is not here")
def test_a_database_that_cannot_be_written_is_read(project):
    client = mlflow_client.client_for(None)
    client.create_registered_model("pets")
    run = client.create_run(client.create_experiment("elsewhere"), start_time=1)
    (project / ".mlruns.db.lock").unlink()
    before = (project / "mlruns.db").read_bytes()
    (project / "mlruns.db").chmod(0o444)
    project.chmod(0o555)

    def typed(words):
        code = "from vit_search import cli; cli.main()"
        done = subprocess.run([*BOUND, sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    try:
        code, out, err = typed("history pets")
        assert (code, err) == (0, "") and "pets: no version has been made the champion yet." in out
        code, out, _ = typed("doctor")
        assert code == 1 and run.info.run_id in out
        code, out, err = typed("config pets@champion")
        assert code == 2 and "pets" in err and "written" not in err
        for words in ("doctor --close", "rollback pets --reason mistake", "repair pets"):
            code, _, err = typed(words)
            expected = f"error: {project / 'mlruns.db'}: the tracking database cannot be written; name another with --tracking-uri.\n"
            assert (code, err) == (2, expected)
        assert [path.name for path in project.iterdir()] == ["mlruns.db"]
        assert (project / "mlruns.db").read_bytes() == before
    finally:
        project.chmod(0o755)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@Host:5000/a", "http://me@host:5000/a"),
        ("postgresql+psycopg://me:secret@/mlflow?host=/run/sockets", "postgresql+psycopg://me@/mlflow?host=/run/sockets"),
        ("http://me:secret@[::1]:5000", "http://me@[::1]:5000"),
        ("http://me:se%40cret@host", "http://me@host"),
        ("sqlite:///mlruns.db", "sqlite:///mlruns.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_a_uri_is_shown_without_its_password(uri, shown):
    assert uris.public(uri) == shown
