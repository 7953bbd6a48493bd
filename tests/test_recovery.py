"""Whose fault a breakdown is, where a trial goes next, how long it may be silent, and who may write its checkpoint."""

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from ray.tune import PlacementGroupFactory

from vit_search.errors import SearchError, StorageError
from vit_search.search import launch, recovery, trial
from vit_search.search.recovery import Patience, Recovery, cause_of, elsewhere, in_words
from vit_search.spec.config import DataConfig, ModelConfig, TrainingConfig, TrialConfig
from vit_search.tracking.ledger import Broke, Ledger, Proposed, read_events
from vit_search.vit import checkpoint, training

DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc\n"
PROCESS = DIED + "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
NODE = DIED + "The actor died because its node has died. Node Id: 21ab"
STORAGE = "Traceback …\nvit_search.errors.StorageError: /mnt/s: the storage failed on the node n1 (full); make room."
NODES = {"a": {"CPU": 1}, "b": {"CPU": 1}}
MEMORY = "Task was killed due to the node running low on memory."


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (PROCESS, "own", "its worker process died"),
        ("", "own", "its worker process died"),
        ("ModuleNotFoundError: No module named 'x'", "own", "ModuleNotFoundError: No module named 'x'"),
        (NODE, "node", "its node was lost"),
        (MEMORY, "memory", "its worker process was ended for lack of memory"),
        (STORAGE, "storage", "/mnt/s: the storage failed on the node n1 (full); make room."),
    ],
)
def test_ray_says_who_is_to_blame(error, cause, words):
    assert (cause_of(error), in_words(error)) == (cause, words)


class TunesTrial:
    """What Tune tells of a trial."""

    def __init__(self, folder):
        self.config = {"trial": 0, "folder": str(folder), "halvings": 0}
        self.error_file = str(folder / "error_of_ray.txt")
        self.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])

    def breaks(self, recovery, error):
        with Path(self.error_file).open("a") as file:
            file.write(f"Failure # 1 (occurred at noon)\n{error}\n")
        recovery.broke(self)


@pytest.fixture
def told(tmp_path):
    """A trial on node `a` of a cluster that has `b` besides, and what its recovery has said."""
    (tmp_path / "owner").write_text("mark a")
    given_up, ended = [], []
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(Proposed(trial=0, params={}))
    recovery = Recovery(lambda number, reason: given_up.append((number, reason)), ended.append, ledger.append, lambda: NODES)
    return TunesTrial(tmp_path), recovery, given_up, ended


@pytest.mark.parametrize(("error", "times"), [(PROCESS, 4), (MEMORY, 4), (NODE, 21)])
def test_a_trials_own_deaths_are_counted_strictly_and_its_nodes_generously(told, error, times):
    broken, recovery, given_up, _ = told
    for _ in range(times - 1):
        broken.breaks(recovery, error)
    assert not given_up
    broken.breaks(recovery, error)
    assert [number for number, _ in given_up] == [0]


def test_each_breakdown_is_in_the_ledger_with_its_reason_and_what_comes_of_it(told, tmp_path):
    broken, recovery, _, _ = told
    recovery.hung(0, 61)
    for error in (PROCESS, PROCESS, MEMORY, NODE, PROCESS, NODE):
        broken.breaks(recovery, error)
    events = [event for event in read_events(tmp_path / "ledger.jsonl") if isinstance(event, Broke)]
    assert [(event.trial, event.reason, event.again) for event in events] == [
        (0, "it hung: not heard of for 61 s", True),
        (0, "its worker process died", True),
        (0, "its worker process was ended for lack of memory", True),
        (0, "its node was lost", True),
        (0, "its worker process died", False),  # the fourth of its own
        (0, "its node was lost", False),
    ]


def test_a_lack_of_memory_halves_once(told):
    broken, recovery, _, _ = told
    broken.breaks(recovery, MEMORY)
    broken.breaks(recovery, MEMORY)
    assert broken.config["halvings"] == 1


def test_who_hung_or_could_not_write_goes_elsewhere_and_who_lost_its_node_anywhere(told):
    broken, recovery, _, _ = told
    broken.breaks(recovery, NODE)
    assert broken.placement_group_factory == PlacementGroupFactory([{"CPU": 1}])
    recovery.hung(0, 60)
    broken.breaks(recovery, PROCESS)
    assert broken.placement_group_factory == elsewhere(PlacementGroupFactory([{"CPU": 1}]), {"a"}, NODES)


def test_who_waits_for_another_node_in_vain_ends_the_search(told):
    broken, recovery, _, ended = told
    recovery.hung(0, 60)
    broken.breaks(recovery, PROCESS)
    recovery.look(time.monotonic() + 1000)
    assert not ended  # there is `b`, though it is busy
    recovery._living = lambda: {"a": {"CPU": 1}}
    recovery.look(time.monotonic() + 800)
    assert not ended
    recovery.look(time.monotonic() + 1000)
    assert "trial 0: no node has come for 15 minutes" in str(ended[0])
    ended.clear()
    recovery.started(0)
    recovery.look(time.monotonic() + 1000)
    assert not ended


def test_storage_that_fails_everywhere_ends_the_search_and_no_trial(told):
    broken, recovery, given_up, ended = told
    for _ in range(3):
        assert not ended
        broken.breaks(recovery, STORAGE)
    assert not given_up
    assert [type(error) for error in ended] == [SearchError]
    assert str(ended[0]) == "trial 0: /mnt/s: the storage failed on the node n1 (full); make room."


def test_there_is_no_elsewhere_where_no_other_node_has_as_much():
    asked = PlacementGroupFactory([{"CPU": 2}])
    assert elsewhere(asked, {"a"}, {"a": {"CPU": 2}, "b": {"CPU": 1}}) is None
    assert elsewhere(asked, {""}, {"a": {"CPU": 2}, "b": {"CPU": 2}}) is None
    assert elsewhere(asked, {"a", "c"}, {"a": {"CPU": 2}, "b": {"CPU": 2}}).to_placement_group  # "!in(a, c)"


def test_silence_is_measured_by_a_trials_own_epochs_and_before_the_first_by_the_others():
    patience = Patience(most_s=1800, epochs=20)
    patience.start(0, flops=100, now=0)
    assert patience.limit(0) == 600  # nothing is known
    patience.hear(0, now=50, seconds=40)
    assert patience.limit(0) == 800  # 20 of its epochs
    patience.start(1, flops=400, now=50)
    assert patience.limit(1) == 1800  # four times the work: 20 epochs of 160 s, but at most stall_minutes
    patience.hear(1, now=60, seconds=1)
    assert patience.limit(1) == 60
    assert patience.silent(now=110) == {}
    assert patience.silent(now=121) == {1: 61}
    patience.forget(1)
    assert patience.silent(now=121) == {}


def test_epochs_told_again_after_a_retry_do_not_make_a_trial_look_fast():
    patience = Patience(most_s=1800, epochs=20)
    patience.start(0, flops=1, now=0)
    for now in (10, 10.1, 10.2):
        patience.hear(0, now=now, seconds=30)
    assert patience.limit(0) == 600


def test_waiting_for_storage_is_a_sign_of_life():
    patience = Patience(most_s=1800, epochs=20)
    patience.start(0, flops=1, now=0)
    patience.hear(0, now=5, seconds=1)
    patience.hear(0, now=60, seconds=None)
    assert patience.silent(now=119) == {}


@pytest.fixture
def begun(tmp_path):
    """The folder of a trial in a search, and a training of one step."""
    (tmp_path / "search.json").touch()
    model = ModelConfig(patch_size=4, dim=8, depth=1, heads=1, image_size=(8, 8), in_channels=1, num_classes=10)
    config = TrialConfig(data=DataConfig(name="digits"), model=model, training=TrainingConfig(epochs=1), seed=0)
    state = training.start(config, training.Normalisation.of((0.0,), (1.0,), "cpu"), "cpu")
    return tmp_path / "trials" / "0000", state


class Data:
    """What a checkpoint notes of a data set."""

    classes, data_hash = ("a",), "f00"


def test_a_copy_that_was_replaced_writes_no_more(begun):
    folder, state = begun
    old = trial._own(folder, "a")
    trial._save(folder / "checkpoint", state, Data, ("train",), old)
    new = trial._own(folder, "b")
    assert recovery.node_of(folder) == "b"
    before = checkpoint.weights_sha256(folder / "checkpoint")
    with torch.no_grad():
        next(state.model.parameters()).add_(1)
    with pytest.raises(trial.OvertakenError):
        trial._save(folder / "checkpoint", state, Data, ("train",), old)
    assert checkpoint.weights_sha256(folder / "checkpoint") == before
    trial._save(folder / "checkpoint", state, Data, ("train",), new)
    assert checkpoint.weights_sha256(folder / "checkpoint") != before


def test_a_copy_that_is_replaced_while_it_writes_puts_nothing_in_place(begun):
    folder, state = begun
    mark = trial._own(folder, "a")

    def replaced():
        trial._own(folder, "b")  # at the last moment
        trial._still_ours(folder, mark)

    with pytest.raises(trial.OvertakenError):
        checkpoint.save(folder / "checkpoint", state, classes=("a",), data_hash="f00", check=replaced)
    assert sorted(path.name for path in folder.iterdir()) == ["owner"]


def test_storage_that_is_gone_is_no_new_beginning(begun):
    folder, state = begun
    trial._save(folder / "checkpoint", state, Data, ("train",), trial._own(folder, "a"))
    gone = folder.parents[1].rename(folder.parents[1].with_name("elsewhere"))
    with pytest.raises(StorageError, match=r"is not seen on the node .*; have every node mount it at the same place"):
        trial._patiently({"trial": 0, "folder": str(folder)}, lambda: trial._where_it_stood(folder / "checkpoint", state.config, "cpu"), ())
    assert (gone / "trials/0000/checkpoint").exists()


def test_the_drivers_own_storage_is_named_however_deep_tune_has_wrapped_it():
    def wrapped(error):
        try:
            try:
                raise error
            except Exception:
                raise RuntimeError("Traceback …")  # noqa: B904 -- as Tune does
        except RuntimeError as outer:
            return outer

    full = launch._storage_trouble(Path("s/small-1"), wrapped(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert "s/small-1: cannot be written ([Errno 28] No space left on device); make room" in str(full)
    assert str(launch._storage_trouble(Path("s"), wrapped(SearchError("ours")))) == "ours"
    assert launch._storage_trouble(Path("s"), wrapped(ValueError("a bug"))) is None
