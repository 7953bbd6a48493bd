"""What nobody may get out of a search or into it. The defaults S1 to S20 of RELIABILITY.md, and where each is tested:

S1 loopback alone: test_end_to_end, test_serving, test_jobs, test_cluster_services. S2, S3 Ray's token: test_jobs, test_cluster_file. S4
pickles: test_pickles, test_import_rules. S5, S6 checkpoints, models and their sha256: test_training, test_registry, test_serving. S7
folders of others: test_links. S8 YAML: test_bad_input. S9 names: here and test_bad_input. S10 archives: here. S11 images: test_cache,
test_serving, test_model_package. S12 URIs: here, test_tracking_uris. S13 secrets: here, test_recorder, test_jobs. S14 MLflow's server:
test_cluster_services. S15 the endpoint: test_serving, test_host_header. S16 roles, between MLflow's accounts alone: here,
test_cluster_services. S17 the lock: test_readme, test_audit. S18 no telemetry: here. S19 text of others on our pages: test_report. S20
what to trust: docs/operations/security.md, whose table goes beyond these rows and names the test of each; test_audit.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import servers
from helpers.paths import ROOT
from helpers.servers import SECRET
from mlflow import MlflowClient

from vit_search.errors import SearchError, TrackingError
from vit_search.registry.champion import move_champion
from vit_search.registry.promotion_history import verify_history
from vit_search.search import search_folder
from vit_search.tracking import mlflow_client

SMALL = """
name: small
data: {name: digits}
trials: 1
epochs: 1
concurrency: 1
stopping: {kind: none}
model: {patch_size: 4, depth: 1, dim: 16, heads: 2}
"""


@pytest.mark.parametrize(
    "name", ["..", "../out", "a/b", "/etc", "a\0b", "a\nb", "-rf", ".hidden", "", "x" * 65, "a%2e%2e", "\u202eoops", "caf\u00e9", "a "]
)
def test_the_name_of_a_new_folder_cannot_leave_its_place(name, tmp_path):
    with pytest.raises(SearchError, match="no name of a folder"):
        search_folder.named_folder(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_ours_unpacks_an_archive():
    """What is fetched is unpacked by torchvision, which holds it against its checksum before, or by Ray behind its token.

    Images in tar shards are read where they are: nothing is written under a name that a shard gives.
    """
    for path in (ROOT / "vit_search").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                read_in_place = {"tarfile"} if path.name == "webdataset.py" else set()
                assert not names & {"tarfile", "zipfile", "unpack_archive"} - read_in_place, path
            assert not (isinstance(node, ast.Attribute) and node.attr in ("unpack_archive", "extractall", "extract")), path


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///etc", "no tracking URI that MLflow writes to"),
        ("ftp://127.0.0.1/x", "no tracking URI that MLflow writes to"),
        ("databricks", "no tracking URI that MLflow writes to"),
        ("http://me:secret-of-mine@127.0.0.1:9", "carries a password"),
        ("http://127.0.0.1:9/", "does not answer"),
        ("sqlite:////proc/none/mlruns.db", "cannot be written"),
    ],
)
def test_a_tracking_uri_that_leads_elsewhere_is_refused_in_a_line_without_its_secret(uri, said):
    with pytest.raises(TrackingError, match=said) as refused:
        mlflow_client.client_for(uri)
    assert "secret-of-mine" not in str(refused.value) and "\n" not in str(refused.value)


PLANTED = {
    "RAY_AUTH_TOKEN": "planted-ray-0123456789abcdef0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "plantedAwsKey/bPxRfiCYEXAMPLEKEY0123456789",
    "GITHUB_TOKEN": "ghp_plantedPlantedPlantedPlanted012345678",
    "MLFLOW_TRACKING_PASSWORD": "planted-basic-password-0123",
    "VIT_SEARCH_SERVE_TOKEN": "planted-bearer-0123456789",
    "DEPLOY_KEY": "-----BEGIN PRIVATE KEY-----plantedPEM0123456789-----END PRIVATE KEY-----",
}


def command(*words, cwd, env, before=()):
    """vit-search as a person types it."""
    words = [*before, str(Path(sys.executable).with_name("vit-search")), *words]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=1800, check=False)


@pytest.fixture
def short():
    """A short path: Ray's sockets lie in it."""
    place = Path(tempfile.mkdtemp(prefix="vs-", dir="/tmp"))
    yield place
    shutil.rmtree(place, ignore_errors=True)


KEPT = """
import os, shutil, sys
from vit_search import cli
from vit_search.runtime import ray_session
from vit_search.runtime.worker_env import WORKER_ENV

sys.argv = ["vit-search", "run", "small.yaml"]
with ray_session.session(env=WORKER_ENV):
    code = None
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    shutil.copytree(os.environ["RAY_TMPDIR"], "kept", ignore=shutil.ignore_patterns("sockets"))
sys.exit(code)
"""
"""A search like any other, of whose Ray the folder is kept, which else goes with it."""


def test_no_secret_of_the_environment_is_written_anywhere(short):
    (short / "small.yaml").write_text(SMALL)
    (short / "home").mkdir()
    env = os.environ | PLANTED | {"HOME": str(short / "home")}
    done = subprocess.run([sys.executable, "-c", KEPT], cwd=short, env=env, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    for path in (short / "home/.ray", short / "home/.ray/auth_token"):  # which Ray alone would leave open to all
        assert path.stat().st_mode & 0o077 == 0
    texts = {path: path.read_bytes() for path in short.rglob("*") if path.is_file() and not path.is_symlink()}
    assert any("session_" in str(path) for path in texts) and any(
        path.name == "mlruns.db" for path in texts
    )  # Ray's logs, MLflow's records
    for name, secret in PLANTED.items():
        assert [str(path) for path, text in texts.items() if secret.encode() in text] == [], name
        assert secret not in done.stdout + done.stderr


def test_a_search_needs_no_network(short):
    """In a namespace that has a loopback interface and nothing else: no telemetry, no catalogue, no name that must be resolved."""
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        pytest.skip("a network namespace needs root and unshare")
    (short / "small.yaml").write_text(SMALL)
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
    env = os.environ | {"RAY_TMPDIR": str(short)}
    done = command("run", "small.yaml", cwd=short, env=env, before=alone)
    assert done.returncode == 0 and "1 of 1 trial in" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def accounts(tmp_path_factory):
    """MLflow's server with accounts, where an ordinary one has no rights unless it is given some."""
    home = tmp_path_factory.mktemp("accounts")
    (home / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{home / 'auth.db'}\nadmin_username = admin\n"
        f"admin_password = {SECRET}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        with servers.mlflow_server(home, f"sqlite:///{home / 'mlflow.db'}", "--app-name", "basic-auth", **secrets) as uri:
            yield uri


def test_an_account_without_rights_on_a_model_cannot_move_its_champion(accounts, monkeypatch):
    from mlflow.server.auth.client import AuthServiceClient

    client = MlflowClient(accounts)
    client.create_registered_model("prod")
    for _ in range(2):
        client.create_model_version("prod", "s3://nowhere/model", tags={"verdict": "passed"})
    move_champion(client, "prod", "1", action="promote", expected=None, by="admin")
    AuthServiceClient(accounts).create_user("bob", "of-bob-himself-0123")
    for rights in ("NO_PERMISSIONS", "READ"):
        if rights == "READ":
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
            AuthServiceClient(accounts).grant_user_permission("bob", "registered_model", "prod", "READ")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of-bob-himself-0123")
        with pytest.raises(TrackingError, match="prod: MLflow did not do it"):
            move_champion(MlflowClient(accounts), "prod", "2", action="promote", expected="1", by="bob")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert client.get_registered_model("prod").aliases == {"champion": "1"}
    assert verify_history(client, "prod") == []
