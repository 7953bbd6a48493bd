"""Whose fault a breakdown is, where a trial goes next, how long it may be silent, and who may write its checkpoint."""

import errno
import functools
import os
from pathlib import Path

import pytest
import torch

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.progress import shown_by, step
from vit_search.errors import SearchError, StorageError
from vit_search.search import execution, recovery, trial
from vit_search.search.messages import TrialOrder
from vit_search.search.recovery import Patience, cause_of, in_words, nodes_to_avoid
from vit_search.vit import checkpoint, evaluation, training

DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc\n"
PROCESS = DIED + "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
NODE = DIED + "The actor died because its node has died. Node Id: 21ab"
STORAGE = "Traceback …\nvit_search.errors.StorageError: /mnt/s: the storage failed on the node n1 (full); make room."
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


def test_there_is_no_elsewhere_where_no_other_node_has_as_much():
    two = {"a": {"CPU": 2}, "b": {"CPU": 2}}
    assert nodes_to_avoid({"CPU": 2}, {"a"}, {"a": {"CPU": 2}, "b": {"CPU": 1}}) == frozenset()
    assert nodes_to_avoid({"CPU": 2}, {""}, two) == frozenset()
    assert nodes_to_avoid({"CPU": 2, "GPU": 0}, {"a", "c"}, two) == {"a", "c"}


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
    state = training.start(config, evaluation.Normalisation.of((0.0,), (1.0,), "cpu"), "cpu")
    return tmp_path / "trials" / "0000", state


class Data:
    """What a checkpoint notes of a data set."""

    classes, data_hash = ("a",), "f00"


def test_a_copy_that_was_replaced_writes_no_more(begun):
    folder, state = begun
    old = trial.claim_folder(folder, "a")
    trial.save_checkpoint(folder / "checkpoint", state, Data, ("train",), old)
    new = trial.claim_folder(folder, "b")
    assert recovery.node_of(folder) == "b"
    before = checkpoint.weights_sha256(folder / "checkpoint")
    with torch.no_grad():
        next(state.model.parameters()).add_(1)
    with pytest.raises(trial.OvertakenError):
        trial.save_checkpoint(folder / "checkpoint", state, Data, ("train",), old)
    assert checkpoint.weights_sha256(folder / "checkpoint") == before
    trial.save_checkpoint(folder / "checkpoint", state, Data, ("train",), new)
    assert checkpoint.weights_sha256(folder / "checkpoint") != before


def test_a_copy_that_is_replaced_while_it_writes_puts_nothing_in_place(begun):
    folder, state = begun
    mark = trial.claim_folder(folder, "a")

    def replaced():
        trial.claim_folder(folder, "b")  # at the last moment
        trial.check_claim(folder, mark)

    with pytest.raises(trial.OvertakenError):
        checkpoint.save(folder / "checkpoint", state, classes=("a",), data_hash="f00", check=replaced)
    assert sorted(path.name for path in folder.iterdir()) == ["owner"]


def test_storage_that_is_gone_is_no_new_beginning(begun):
    folder, state = begun
    trial.save_checkpoint(folder / "checkpoint", state, Data, ("train",), trial.claim_folder(folder, "a"))
    gone = folder.parents[1].rename(folder.parents[1].with_name("elsewhere"))
    with pytest.raises(StorageError, match=r"is not seen on the node .*; have every node mount it at the same place"):
        trial.retry_storage(
            TrialOrder(trial=0, config={}, folder=folder), lambda: trial.load_interrupted(folder / "checkpoint", state.config, "cpu"), ()
        )
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

    full = execution.storage_trouble(Path("s/small-1"), wrapped(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert "s/small-1: cannot be written ([Errno 28] No space left on device); make room" in str(full)
    assert str(execution.storage_trouble(Path("s"), wrapped(SearchError("ours")))) == "ours"
    assert execution.storage_trouble(Path("s"), wrapped(ValueError("a bug"))) is None


def test_a_trial_says_that_it_is_busy_inside_a_long_step(monkeypatch):
    sent, order = [], TrialOrder(trial=0, config={}, folder=Path())
    monkeypatch.setattr(trial, "send", lambda order, report: sent.append(report))
    for every, expected in ((0.0, ["computing: 3 of 9 images", "computing: 9 of 9 images"]), (1e9, [])):
        monkeypatch.setattr(trial, "BUSY_EVERY_S", every)
        with shown_by(functools.partial(trial.report_busy, order)), step("computing", 9, "images") as advance:
            advance(3)
            advance(6)
        assert [report.reason for report in sent] == expected
        sent.clear()
