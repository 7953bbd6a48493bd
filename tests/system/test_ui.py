"""`vit-search ui`, as a process of its own."""

import os
import shutil
import signal
import subprocess
import urllib.request

from helpers.commands import COMMAND, vit_search
from helpers.servers import free_port, until


def test_ctrl_c_ends_the_pages_without_a_traceback(migrated, tmp_path):
    shutil.copy(migrated, tmp_path / "mlruns.db")
    port = free_port()

    def answers():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return True
        except OSError:
            return False

    with subprocess.Popen(
        [COMMAND, "ui", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            until(answers)
            os.killpg(server.pid, signal.SIGINT)  # a terminal sends it to all processes in the foreground
            said, _ = server.communicate(timeout=1800)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
    assert said.startswith("MLflow: http://127.0.0.1:")
    assert "Traceback" not in said and "Error" not in said, said


def test_a_named_database_that_is_missing_is_an_error_and_is_not_made(tmp_path):
    done = vit_search(tmp_path, "ui", "--tracking-uri", "sqlite:///nope.db", code=2)
    assert done.stderr == (
        f"error: {tmp_path / 'nope.db'}: no tracking database of MLflow's is there; `vit-search run FILE` makes one, or name another "
        "with --tracking-uri.\n"
    )
    assert not list(tmp_path.iterdir())
