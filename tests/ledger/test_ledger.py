"""The ledger: what survives a crash, a damaged file or a full disk, and what a search has cost."""

import errno
import os
import random
import threading

import pytest
from helpers import synthetic
from helpers.simulation import result

from vit_search.errors import SearchError
from vit_search.ledger.events import Commanded, Ended, Launched, Proposed, Reported
from vit_search.ledger.file import Ledger, is_held, read_events, read_trials
from vit_search.ledger.trials import Progress, best_trial, numbers_to_keep, pareto_front, ranked  # fmt: skip


def copy_of(path):
    return path.with_name("ledger.copy.jsonl")


@pytest.fixture
def path(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(Proposed(trial=0, params={"lr": 0.1}))
    ledger.append(Reported(trial=0, result=result(1, 0.5)))
    ledger.append(Ended(trial=0, outcome="stopped"))
    ledger.close()
    return tmp_path / "ledger.jsonl"


def test_both_files_hold_the_same_lines(path):
    assert path.read_bytes() == copy_of(path).read_bytes()
    assert path.read_bytes().count(b"\n") == 3


def test_a_line_that_a_crash_cut_off_in_both_is_dropped_and_written_again(path):
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        copy_of(path).write_bytes(whole[: -cut - 1])
        ledger = Ledger(path)
        assert Progress.of(ledger.events, 0).trials[0].outcome == "running"
        ledger.append(Ended(trial=0, outcome="stopped", at=ledger.events[0].at))
        ledger.close()
        assert [t.outcome for t in read_trials(path)] == ["stopped"]
        assert path.read_bytes() == copy_of(path).read_bytes()


@pytest.mark.parametrize("which", ["ledger", "copy"])
def test_one_file_damaged_anywhere_is_mended_from_the_other(path, which):
    whole = path.read_bytes()
    hurt = path if which == "ledger" else copy_of(path)
    rng = random.Random(0)
    for place in sorted(rng.sample(range(len(whole)), 40)):
        for damage in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :], b"", b"\n" + whole):
            hurt.write_bytes(damage)
            assert [t.outcome for t in read_trials(path)] == ["stopped"]  # whoever only reads, too
            Ledger(path).close()
            assert path.read_bytes() == copy_of(path).read_bytes() == whole


def test_a_missing_file_is_taken_from_the_other(path):
    whole = path.read_bytes()
    for gone in (path, copy_of(path)):
        gone.unlink()
        Ledger(path).close()
        assert path.read_bytes() == copy_of(path).read_bytes() == whole


def test_damage_before_the_end_of_both_is_refused_with_its_line(path):
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + lines[1].replace(b"0.5", b"0.6") + lines[2]
    path.write_bytes(damaged)
    copy_of(path).write_bytes(damaged)
    with pytest.raises(SearchError, match=r"ledger\.jsonl:2: this line is damaged"):
        Ledger(path)
    assert path.read_bytes() == damaged  # nothing was written over


def test_a_second_driver_is_refused_and_told_who_has_the_search(path):
    ledger = Ledger(path)
    ledger.append(Launched(host="node-7", pid=4242))
    assert is_held(path)
    with pytest.raises(SearchError, match="process 4242 on node-7 is running this search"):
        Ledger(path)
    ledger.close()
    assert not is_held(path)


def test_threads_may_append_at_once(path):
    ledger = Ledger(path)

    def work(first):
        for i in range(first, first + 50):
            ledger.append(Proposed(trial=i, params={}))

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    assert len(read_events(path)) == 203
    assert path.read_bytes() == copy_of(path).read_bytes()


def test_a_full_disk_is_one_line_and_the_ledger_stays_whole(path, monkeypatch):
    ledger = Ledger(path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SearchError, match=r"ledger\.jsonl: cannot be written \(No space left on device\); make room"):
        ledger.append(Proposed(trial=1, params={}))
    monkeypatch.undo()
    ledger.close()
    assert [e.trial for e in read_events(path) if isinstance(e, Proposed)] in ([0], [0, 1])


def test_what_was_spent_is_counted_by_hand(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for event in (
        Launched(host="a", pid=1, at=100.0),
        Proposed(trial=0, params={}, at=101.0),
        Reported(trial=0, result=result(1, 0.5, seconds=2.0), at=104.0),
        Reported(trial=0, result=result(2, 0.5, seconds=4.0), at=108.0),
        Ended(trial=0, outcome="stopped", at=109.0),  # dies here, and is taken up an hour later
        Launched(host="a", pid=2, at=3709.0),
        Proposed(trial=1, params={}, at=3710.0),
        Reported(trial=1, result=result(1, 0.5, seconds=5.0), at=3715.0),
    ):
        ledger.append(event)
    spent = Progress.of(ledger.events, 9).spent
    assert (spent.epochs, spent.trial_seconds, spent.stopped_seconds) == (3, 11.0, 6.0)
    assert spent.saved_seconds == 21.0  # 7 epochs at 3 s
    assert spent.wall_seconds == 9.0 + 6.0
    ledger.close()
    again = Ledger(tmp_path / "ledger.jsonl")
    assert Progress.of(again.events, 9).spent == spent
    again.close()


def test_the_pareto_front_worked_by_hand():
    points = {0: (0.9, 100), 1: (0.8, 50), 2: (0.8, 60), 3: (0.9, 100), 4: (0.5, 10), 5: (0.4, 10)}
    assert pareto_front(points, ["max", "min"]) == {0, 1, 3, 4}  # 2 is larger than 1 and no better; 5 is worse than 4; 0 and 3 are equal
    assert pareto_front({n: (1 - a, b) for n, (a, b) in points.items()}, ["min", "min"]) == {0, 1, 3, 4}
    assert pareto_front({}, ["max"]) == set()


def test_a_command_survives(path):
    ledger = Ledger(path)
    said = Commanded(name="set", arguments={"trials": 9}, answer="trials is now 9.", by="me")
    ledger.append(said)
    ledger.close()
    assert read_events(path)[-1] == said


@pytest.mark.parametrize(("mode", "order"), [("max", [1, 0, 2, 3]), ("min", [0, 1, 2, 3])])
def test_the_leaderboard_puts_full_length_first_then_the_metric(tmp_path, mode, order):
    ledger = Ledger(tmp_path / "l")
    for number, (value, outcome) in enumerate([(0.5, "completed"), (0.6, "completed"), (0.99, "stopped"), (None, "failed")]):
        ledger.append(Proposed(trial=number, params={}))
        if value is not None:
            ledger.append(Reported(trial=number, result=result(1, value)))
        ledger.append(Ended(trial=number, outcome=outcome))
    trials = Progress.of(ledger.events, 0).trials
    assert [t.number for t in ranked(trials.values(), "val_accuracy", mode)] == order
    assert best_trial(trials.values(), "val_accuracy", mode).number == order[0]
    assert numbers_to_keep(trials.values(), "val_accuracy", mode, 2) == {0, 1}
    ledger.close()


def test_only_what_a_stopping_rule_cut_counts_as_saved(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(Launched(host="here", pid=1, at=0.0))
    for number, (outcome, reason) in enumerate(
        [("stopped", ""), ("stopped", "stopped by hand"), ("stopped", "limits.target"), ("interrupted", "the driver stopped")]
    ):
        ledger.append(Proposed(trial=number, params={"dim": 8}, at=0.0))
        ledger.append(Reported(trial=number, result=synthetic.result(1, 0.5), at=0.0))
        ledger.append(Reported(trial=number, result=synthetic.result(2, 0.5), at=0.0))
        ledger.append(Ended(trial=number, outcome=outcome, reason=reason, at=0.0))
    spent = Progress.of(ledger.events, 10).spent
    assert (spent.epochs, spent.saved_epochs, spent.saved_seconds) == (8, 8, 16.0)
    assert spent.saved_share == 0.5
    ledger.close()
