"""How a search stands, in one word, from its ledger: while a driver has it, after one died, and on a cluster."""

import time

import pytest
from helpers.simulation import MemoryLedger, driver_of, result

from vit_search.cluster import record
from vit_search.config import search_file
from vit_search.ledger import search_state, searches
from vit_search.ledger.events import Commanded, Ended, Launched, Left, Proposed, Reported
from vit_search.ledger.file import Ledger
from vit_search.ledger.search_state import DRIVEN, WORDS, SearchState
from vit_search.search.control import obey_text

FILE = """
name: told
data: {name: digits}
trials: 3
epochs: 3
stopping: {kind: none}
model: {patch_size: 2, dim: 32, depth: {int: [1, 2]}, heads: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}}
"""
START = (Launched(host="here", pid=7), *(Proposed(trial=n, params={"depth": 1, "lr": 0.002}) for n in (0, 1)))
EPOCHS = tuple(Reported(trial=n, result=result(1, 0.5)) for n in (0, 1))
OVER = tuple(Ended(trial=n, outcome="completed") for n in (0, 1))


def command(name, **arguments):
    return Commanded(name=name, arguments=arguments, answer="", by="me")


@pytest.fixture
def folder(tmp_path):
    spec = search_file.parse(FILE)
    made = tmp_path / "told-1"
    made.mkdir()
    facts = searches.SearchFacts(
        search="told-1",
        search_id="1",
        spec_name="told",
        text=FILE,
        resolved=spec.model_dump(mode="json", by_alias=True),
        metric=spec.metric,
        mode=spec.mode,
        data_hash="",
        code_version="",
        environment={},
        tracking_uri="",
    )
    searches.write(made, facts)
    return made


def test_a_search_in_the_working_directory_is_called_by_the_name_of_its_folder(folder, monkeypatch):
    (folder / "trials").mkdir()
    for inside, name in ((folder, "."), (folder / "trials", "..")):
        monkeypatch.chdir(inside)
        assert searches.find(folder.parent, name).name == "told-1"


def told(folder, *events, driven=False):
    """What is read of a ledger of these events, while it is held or after that."""
    ledger = Ledger(folder / "ledger.jsonl")
    for event in events:
        ledger.append(event)
    if not driven:
        ledger.close()
    now = record.snapshot(folder)
    ledger.close()
    return now.state, [trial.outcome for trial in now.trials.values()]


@pytest.mark.parametrize(
    ("events", "word", "outcomes"),
    [
        (START, "running", ["running", "running"]),
        ((*START, *EPOCHS, command("pause")), "paused", ["running", "running"]),  # each in its epoch at hand
        ((*START, command("pause")), "paused", ["waiting", "waiting"]),
        ((*START, command("pause"), EPOCHS[1]), "paused", ["waiting", "held"]),
        ((*START, EPOCHS[0], command("pause"), EPOCHS[1]), "paused", ["running", "held"]),
        ((*START, command("pause"), EPOCHS[1], command("continue")), "running", ["running", "running"]),
        ((*START, command("pause"), Launched(host="here", pid=8)), "running", ["running", "running"]),  # a new driver starts afresh
        ((*START, command("stop")), "stopping", ["running", "running"]),
        ((*START, command("stop", trial=1)), "running", ["running", "running"]),
        ((*START, command("stop"), command("continue")), "running", ["running", "running"]),
        ((*START, command("cancel")), "ending", ["running", "running"]),
        ((*START, *OVER, Left(state="stopped")), "ending", ["completed", "completed"]),
    ],
)
def test_while_a_driver_has_it(folder, events, word, outcomes):
    state, shown = told(folder, *events, driven=True)
    assert (state.word, shown) == (word, outcomes)
    assert state.driven


@pytest.mark.parametrize(
    ("events", "state", "outcomes"),
    [
        (START, SearchState("interrupted", "its driver died"), ["interrupted", "interrupted"]),
        ((*START, command("pause"), *EPOCHS), SearchState("interrupted", "its driver died"), ["interrupted", "interrupted"]),
        ((*START, *OVER, Left(state="stopped")), SearchState("stopped"), ["completed", "completed"]),
        (
            (*START, *OVER, Left(state="finished", reason="limits.hours: 1 h are over")),
            SearchState("finished", "limits.hours: 1 h are over"),
            ["completed", "completed"],
        ),
        (
            (*START, *OVER, Left(state="stopped"), Launched(host="here", pid=8), Proposed(trial=2, params={"depth": 1, "lr": 0.002})),
            SearchState("interrupted", "its driver died"),
            ["completed", "completed", "interrupted"],
        ),
        (
            (*START, *(Ended(trial=n, outcome="interrupted") for n in (0, 1)), Left(state="interrupted"), Launched(host="here", pid=8)),
            SearchState("interrupted", "its driver died"),
            ["interrupted", "interrupted"],
        ),
        ((), SearchState("interrupted"), []),
        ((*START, Left(state="interrupted", reason="make room")), SearchState("interrupted", "make room"), ["interrupted", "interrupted"]),
        # as versions before `left` wrote them
        (
            (*START, OVER[0], Ended(trial=1, outcome="interrupted", reason="the driver stopped")),
            SearchState("interrupted"),
            ["completed", "interrupted"],
        ),
        (
            (*START, Proposed(trial=2, params={"depth": 1, "lr": 0.002}), *OVER, Ended(trial=2, outcome="stopped")),
            SearchState("finished"),
            ["completed", "completed", "stopped"],
        ),
        (
            (*START, Proposed(trial=2, params={"depth": 1, "lr": 0.002}), *(Ended(trial=n, outcome="failed") for n in range(3))),
            SearchState("failed"),
            ["failed"] * 3,
        ),
    ],
)
def test_without_a_driver(folder, events, state, outcomes):
    assert told(folder, *events) == (state, outcomes)
    assert not state.driven
    assert state.resumable == (state.word in ("interrupted", "stopped"))


def test_an_older_version_that_ended_by_a_limit_left_its_summary_alone(folder):
    assert told(folder, *START, *OVER)[0] == SearchState("interrupted")  # killed, for all that is known
    searches.write_hindsight(folder, searches.Hindsight(0, 0, (0.0, 1.0), None))
    assert record.snapshot(folder).state == SearchState("finished")


def test_the_driver_and_its_ledger_say_the_same():
    """Whatever was told in whatever order: what the driver shows on the terminal is what others read."""
    book = MemoryLedger(START)
    driver = driver_of(search_file.parse(FILE), book)
    driver.started(driver.propose().trial)
    seen = []
    for text in ("pause", "continue", "stop", "pause", "continue", "stop trial=0", "pause", "stop", "cancel"):
        obey_text(driver, text, by="me")
        seen.append(driver.word)
        assert search_state.of_events(book.events, [], 3, driven=True).word == driver.word, text
    assert seen == ["paused", "running", "stopping", "paused", "running", "running", "paused", "paused", "ending"]


def test_on_a_cluster_its_record_and_its_jobs_lock_count_too(folder):
    submission = record.Submission(search="told-1", user="me", key="", version="0", space_hash="", download=False, at=time.time())
    record.begin(folder, submission, FILE)
    assert record.state(folder) == SearchState("waiting for a driver")
    with (folder / record.LOCK).open("w") as lock:
        assert record.taken(lock)
        assert record.state(folder) == SearchState("starting")
    record.change(folder, ended=2)
    assert record.state(folder) == SearchState("refused")
    record.change(folder, ended=None, wanted="stopped")
    assert record.state(folder) == SearchState("stopped")

    record.change(folder, wanted="running")
    assert told(folder, *START)[0] == SearchState("waiting for a driver")
    with (folder / record.LOCK).open("w") as lock:
        assert record.taken(lock)
        assert record.state(folder) == SearchState("starting")
        assert told(folder, *OVER, Left(state="finished"))[0] == SearchState("ending")  # its job ends a moment later
    told(folder, *START)
    record.change(folder, wanted="stopped")
    assert record.state(folder) == SearchState("interrupted", "its driver died")
    assert told(folder, Launched(host="here", pid=8), driven=True)[0] == SearchState("ending")  # it is told so by its job's end
    assert told(folder, *OVER, Left(state="stopped"))[0] == SearchState("stopped")
    assert set(DRIVEN) < set(WORDS)
