"""What several tests of real processes share: one search that was run and killed, and its promotion. Each is made once a session."""

import signal
import subprocess

import pytest
from helpers.commands import COMMAND, vit_search_process
from helpers.servers import until
from helpers.walk import FILE, POLICY, killed_and_resumed

from vit_search.config import search_file
from vit_search.data.cache import prepare


@pytest.fixture(scope="session")
def walked(tmp_path_factory):
    """A folder in which `small-1` ran undisturbed and `small-2`, of the same seed, was killed with SIGKILL three times."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "small.yaml").write_text(FILE)
    data = prepare(search_file.parse(FILE).data_config)
    hidden = {path: path.read_bytes() for path in data.folder.glob("test_*.npy")}
    for path, raw in hidden.items():
        path.write_bytes(bytes(len(raw)))  # whoever reads the test split during a search fails
    first = vit_search_process(folder, "run", "small.yaml")
    killed_at = killed_and_resumed(folder, "small-2", kills=3, seed=0)
    resumed = vit_search_process(folder, "resume", "small-2")
    for path, raw in hidden.items():
        path.write_bytes(raw)
    return folder, first, resumed, killed_at


@pytest.fixture(scope="session")
def promoted(walked):
    """`small-1`, promoted: killed with SIGKILL while it trained the finalists, and asked for again."""
    folder, _, _, _ = walked
    (folder / "policy.yaml").write_text(POLICY)
    dry = vit_search_process(folder, "promote", "small-1", "--policy", "policy.yaml", "--dry-run")
    assert not (folder / "searches/small-1/promotions").exists()
    ledger = folder / "searches/small-1/promotions/1/ledger.jsonl"
    command = [COMMAND, "promote", "small-1", "--policy", "policy.yaml"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        until(lambda: driver.poll() is not None or (ledger.exists() and ledger.read_text().count('"reported"') >= 6))
        driver.send_signal(signal.SIGKILL)
    assert ledger.read_text().count('"ended"') < 4
    return folder, dry, vit_search_process(folder, "promote", "small-1", "--policy", "policy.yaml")
