"""Commands to a search, its settings and limits, and what a driver refuses. Searches that run: tests/system/test_running_search.py."""

import os
import signal
import subprocess
import sys

import pytest
from helpers.simulation import MemoryLedger, driver_of, result

from vit_search.config import search_file
from vit_search.errors import SearchError
from vit_search.ledger.events import Ended, Proposed, Reported
from vit_search.ledger.trials import Progress
from vit_search.runtime.signals import interrupting, restored
from vit_search.search import control, execution, resume_checks, search_folder
from vit_search.search.commands import Commands, Settings
from vit_search.search.limits import SearchLimits

FILE = """
name: told
data: {name: digits}
trials: 3
epochs: 500
stopping: {kind: none}
seed: 3
concurrency: 2
model: {patch_size: 2, dim: 32, depth: {int: [1, 2]}, heads: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64}
"""


@pytest.mark.parametrize("text", ["pause", "set trials=40 hours=2.5", "stop trial=3", "add pool=cls dim=64 lr=0.001 qkv_bias=true"])
def test_words_and_commands_are_inverses(text):
    name, arguments = control.parse(text)
    assert control.parse(control.in_words(name, arguments)) == (name, arguments)
    assert control.parse("set trials=40 hours=2.5") == ("set", {"trials": 40, "hours": 2.5})


@pytest.fixture
def driver():
    """A driver whose first trial runs, and its events."""
    book = MemoryLedger()
    made = driver_of(search_file.parse(FILE.replace("trials: 3", "trials: 8")), book)
    made.started(made.propose().trial)
    return made, book


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("puase", "unknown command 'puase'; did you mean pause?"),
        ("pause now", "'pause now': 'now' has no value; after pause write NAME=VALUE, or nothing."),
        ("fly away", "unknown command 'fly'; choose from pause, continue, stop, cancel, set, add."),
        ("set target=7", "target: 7 cannot be reached, since val_accuracy is a fraction in [0, 1]; write 0.07."),
        ("set", "set what? give trials, concurrency, hours, device_hours, target or patience."),
        ("set trails=9", "set: unknown argument 'trails'; did you mean trials?"),
        ("set trials=nine", "trials is 'nine'; give a whole number above 0."),
        ("set trials=2.5", "trials is 2.5; give a whole number above 0."),
        ("set hours=-1", "hours is -1; give a number above 0."),
        ("set hours=nan", "hours is nan; give a number above 0."),
        ("set hours=inf", "hours is inf; give a number above 0."),
        ("set target=high", "target is 'high'; give a number."),
        ("set patience=2.5", "patience is 2.5; give a whole number above 0."),
        ("stop trial=7", "trial 7 is not running; running: 0."),
        ("add lr=1", "add.lr: 1 lies outside 0.001 to 0.01; choose a value inside, or widen the range."),
        ("", "an empty line is no command; write e.g. `set trials=40`."),
        ("add 'a", '"add \'a" is no command (No closing quotation); write e.g. `set trials=40`.'),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_and_changes_nothing(driver, text, answer):
    made, book = driver
    before = list(book.events)
    assert control.obey_text(made, text, by="me") == answer
    assert made.settings == Settings(8, 2)
    assert book.events == before


def test_settings_are_rebuilt_from_the_ledger(driver):
    made, book = driver
    control.obey_text(made, "set trials=40", by="me")
    control.obey_text(made, "set hours=2 concurrency=3", by="me")
    assert Settings.of(search_file.parse(FILE), book.events) == made.settings == Settings(40, 3, 2)


def _fed(limits, outcomes, mode="max", seconds=0.0):
    progress = Progress(4)
    made = SearchLimits(Commands(Settings(50, 1, **limits), "val_accuracy"), progress, metric="val_accuracy", mode=mode, devices=2)
    for number, (value, outcome) in enumerate(outcomes):
        for event in (
            Proposed(trial=number, params={}, at=10.0 * number),
            Reported(trial=number, result=result(1, value, seconds=seconds), at=10.0 * number + 9),
            Ended(trial=number, outcome=outcome, at=10.0 * number + 10),
        ):
            progress.apply(event)
            made.apply(event)
    return made.ending or None


@pytest.mark.parametrize(
    ("asked", "mode", "outcomes", "reached"),
    [
        ({}, "max", [(0.9, "completed")] * 50, None),
        ({"target": 0.8}, "max", [(0.9, "stopped"), (0.7, "completed")], None),
        ({"target": 0.8}, "max", [(0.8, "completed")], "limits.target: trial 0 reached 0.8"),
        ({"target": 0.2}, "min", [(0.8, "completed")], None),
        ({"target": 0.2}, "min", [(0.8, "completed"), (0.1, "completed")], "limits.target: trial 1 reached 0.2"),
        ({"patience": 2}, "max", [(0.5, "completed"), (0.4, "stopped"), (0.6, "stopped"), (0.1, "failed")], None),
        ({"patience": 2}, "max", [(0.5, "completed"), (0.4, "stopped"), (0.1, "failed")], "limits.patience: no improvement in 2 trials"),
        ({"hours": 29 / 3600}, "max", [(0.5, "stopped")] * 2, None),
        ({"hours": 19.5 / 3600}, "max", [(0.5, "stopped")] * 2, "limits.hours: 0.00541667 h are over"),
        ({"device_hours": 20 / 3600}, "max", [(0.5, "stopped")] * 2, "limits.device_hours: 0.00555556 h are spent"),
        ({"device_hours": 21 / 3600}, "max", [(0.5, "stopped")] * 2, None),
    ],
)
def test_limits(asked, mode, outcomes, reached):
    assert _fed(asked, outcomes, mode, seconds=5.0) == reached


@pytest.mark.parametrize(("before", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)], ids=["terminal", "nohup"])
def test_a_lost_terminal_ends_a_search_as_sigterm_does_but_not_under_nohup(driver, before, ends):
    made, _ = driver
    around = signal.signal(signal.SIGHUP, before)
    try:
        with execution.end_on_signals(made):
            os.kill(os.getpid(), signal.SIGHUP)
            assert made.cancelled == ends
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, around)


def test_the_second_sigterm_of_a_job_that_is_stopped_does_not_cut_its_last_records_short(driver):
    made, _ = driver
    with interrupting():
        with restored():
            with execution.end_on_signals(made):
                signal.raise_signal(signal.SIGTERM)
                assert made.cancelled
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_an_account_without_a_name_is_called_by_its_number():
    code = "import os; from vit_search.runtime.user import user_name; os.setuid(12345); print(user_name())"
    if os.getuid() != 0:
        pytest.skip("only root may take another account")
    nameless = {k: v for k, v in os.environ.items() if k not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    done = subprocess.run([sys.executable, "-c", code], env=nameless, capture_output=True, text=True, check=True)
    assert done.stdout == "uid-12345\n"


def test_a_last_newline_is_no_change_of_the_search_file(tmp_path):
    file = tmp_path / "search.yaml"
    for began, now in (("a: 1\n", "a: 1"), ("a: 1", "a: 1\n"), ("a: 1\n", "a: 1\n\n"), ("a: 1\r\n", "a: 1\n")):
        file.write_text(now)
        resume_checks.check_unchanged(file, began)
    file.write_text("a: 1\n")
    with pytest.raises(SearchError, match=r"search\.yaml:2: 'b: 2' has become ''"):
        resume_checks.check_unchanged(file, "a: 1\nb: 2\n")


def test_of_a_refused_search_only_what_a_cluster_had_put_there_stays(tmp_path):
    folder = tmp_path / "told-1"
    (folder / "tune").mkdir(parents=True)
    for name in ("submitted.json", "search.json", "ledger.jsonl"):
        (folder / name).touch()
    search_folder.remove(folder, {folder / "submitted.json"})
    assert [path.name for path in folder.iterdir()] == ["submitted.json"]
    search_folder.remove(folder, ())
    assert not folder.exists()
