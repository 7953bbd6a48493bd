"""The commands of docs/tutorials/cluster.md, in their order, on a cluster of this machine alone. `pytest -s` prints what they say."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from helpers.clusters import BIN, MARK, marked
from helpers.paths import ROOT
from helpers.servers import until

from vit_search.ledger.file import read_trials

PAGE = (ROOT / "docs/tutorials/cluster.md").read_text()


class Shell:
    """Terminals in one folder, whose processes bear our mark."""

    def __init__(self, folder):
        known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "VIT_SEARCH_"))}
        self._around = known | {"HOME": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}", MARK: str(folder)}
        self.folder, self.names = folder, {}

    def _filled_in(self, lines):
        for placeholder, name in self.names.items():
            lines = re.sub(rf"\b{placeholder}\b", name, lines)
        return lines

    def run(self, lines, check=True):
        lines = self._filled_in(lines)
        done = subprocess.run(["bash", "-euc", lines], cwd=self.folder, env=self._around, capture_output=True, text=True, timeout=1800)
        print(f"{lines.strip()}\n{done.stdout}{done.stderr}")
        assert not check or done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        return done

    def begin(self, lines, log):
        """The same for what goes on until it is ended; its process and what it has printed so far."""
        path = self.folder / log
        with path.open("wb") as file:
            command = ["bash", "-euc", self._filled_in(lines)]
            started = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._around,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
            )
        return started, path.read_text

    def end(self):
        for process in marked(self.folder):
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.mark.slow
def test_the_tutorial_s_commands_run_in_their_order(tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    start, check, submit, watch, logs, again, steer, cancel, resume, keep, kill, results = blocks
    (tmp_path / "small.yaml").write_text(re.search(r"```yaml title=\"small.yaml\"\n(.*?)```", PAGE, re.DOTALL)[1])
    shell, private = Shell(tmp_path), None
    try:
        cluster, said = shell.begin(start, "ray.log")
        until(lambda: "Ray runtime started." in said() or cluster.poll() is not None)
        ready = shell.run(check)
        assert "\nready\n" in ready.stdout
        listening = {p.laddr.ip for one in marked(tmp_path) for p in one.net_connections("tcp") if p.status == psutil.CONN_LISTEN}
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
        (private,) = {word for one in marked(tmp_path) for word in re.findall(r"/tmp/ray-\w{8}(?=/ray)", " ".join(one.cmdline()))}
        assert Path(private).stat().st_mode & 0o777 == 0o700

        shell.names["SEARCH"] = shell.run(submit).stdout.split()[0]
        assert " is finished: " in shell.run(watch).stdout
        assert "epoch 2: train_loss" in shell.run(logs).stdout
        assert {trial.outcome for trial in read_trials(tmp_path / "shared/searches" / shell.names["SEARCH"] / "ledger.jsonl")} <= {
            "completed",
            "stopped",
        }

        first, rest = again.split("\n", 1)
        shell.names["SECOND"] = shell.run(first).stdout.split()[0]
        until(lambda: " is running: " in shell.run(rest).stdout)
        shell.run(steer)
        shell.run(cancel)
        until(lambda: shell.run(resume, check=False).returncode == 0)  # its first job may still be ending
        keeper, kept = shell.begin(keep, "keeper.log")
        until(lambda: " is running: " in shell.run(rest).stdout)
        (job,) = [one for one in marked(tmp_path) if f"vit-search cluster drive {shell.names['SECOND']}" in " ".join(one.cmdline())[-200:]]
        assert kill.startswith("pkill -9 -f") and kill.split('"')[1] == "vit-search cluster drive SECOND"
        job.kill()  # as that line does, but no process of others
        until(lambda: f"submitted again as {shell.names['SECOND']}-3." in kept())
        print(kept())
        keeper.send_signal(signal.SIGINT)
        *lines, pages = results.strip().splitlines()
        shell.run("\n".join(lines))
        served, printed = shell.begin(pages, "ui.log")
        until(lambda: "http://127.0.0.1:5000" in printed() or served.poll() is not None)
        assert "http://127.0.0.1:5000" in printed()
        served.send_signal(signal.SIGINT)

        os.killpg(cluster.pid, signal.SIGINT)  # Ctrl-C in its terminal
        cluster.wait(1800)
        until(lambda: not [one for one in marked(tmp_path) if "ray::" in one.name() or "raylet" in one.name()])
    finally:
        shell.end()
        if private:
            shutil.rmtree(private)
