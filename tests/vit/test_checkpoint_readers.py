"""Readers of a checkpoint whose trial goes on and replaces it: all that they get is of one epoch, and they change nothing."""

import dataclasses
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from helpers import models
from safetensors.torch import load_file

from vit_search.errors import CheckpointError, DamagedCheckpointError
from vit_search.vit import checkpoint, checkpoint_files
from vit_search.vit.checkpoint_files import describe
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.pretrained import read_pretrained
from vit_search.vit.training import start

PLAIN = Normalisation.of((0.3,), (0.4,))
CLASSES = tuple("0123456789")


class Trial:
    """A trial that saves checkpoints: in the n-th one, all weights of the head are n."""

    def __init__(self, home, *, whole):
        _, made = models.untrained(home / "made", depth=2)
        digest = checkpoint.weights_sha256(made)
        kept = shutil.copytree(made, home / "weights" / digest)
        config = models.config(epochs=2)
        model = dataclasses.replace(config.model, depth=2, pretrained=f"digits.safetensors#sha256={digest}")
        config = dataclasses.replace(config, model=model, training=dataclasses.replace(config.training, tune="head"))
        self.state = start(config, PLAIN, pretrained=read_pretrained(kept / checkpoint.MODEL, CLASSES))
        self.folder, self.whole, self.saved = home / "trials/0000/checkpoint", whole, 0
        self.save()

    def save(self):
        self.saved += 1
        self.state.model.head.weight.data.fill_(self.saved)
        self.state.model.head.bias.data.fill_(self.saved)
        checkpoint.save(self.folder, self.state, classes=CLASSES, data_hash=str(self.saved), whole=self.whole)


@pytest.fixture(params=[False, True], ids=["blocks left out", "whole"])
def trial(request, tmp_path):
    return Trial(tmp_path, whole=request.param)


def copied(folder):
    """The copy of a model for serving."""
    target = folder.parents[2] / "copy"
    checkpoint.copy_for_serving(folder, target)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def loaded(folder):
    served = checkpoint.load_model(folder)
    weights = {name: tensor.numpy().tobytes() for name, tensor in served.model.state_dict().items()}
    return served.data_hash, weights


READERS = [describe, loaded, copied, checkpoint.weights_sha256, checkpoint.model_bytes]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(trial, read, monkeypatch):
    real, begun = checkpoint_files.sha256_of, []

    def slow(path):  # the trial ends an epoch after the reader has read config.json, and before it reads the weights
        if not begun and path.parent == trial.folder:
            begun.append(path)
            trial.save()
        return real(path)

    monkeypatch.setattr(checkpoint_files, "sha256_of", slow)
    monkeypatch.setattr(checkpoint_files, "PAUSE_S", 0)
    found = read(trial.folder)
    monkeypatch.undo()
    shutil.rmtree(trial.folder.parents[2] / "copy", ignore_errors=True)
    assert found == read(trial.folder)
    assert trial.saved == 1 + len(begun)


def test_a_reader_while_a_trial_saves_epoch_after_epoch_never_sees_two_of_them(trial):
    failures = []

    def save():
        try:
            for _ in range(checkpoint_files.TRIES // 2):  # fewer than the reader's tries, so one of them succeeds however slow it is
                trial.save()
                time.sleep(0.02)
        except Exception as error:  # the reader must not disturb it
            failures.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    seen = []
    while thread.is_alive() or not seen:
        served = checkpoint.load_model(trial.folder)
        seen.append(float(served.data_hash))
        assert set(served.model.head.weight.flatten().tolist()) == {seen[-1]}
    thread.join()
    assert not failures
    assert seen == sorted(seen)


def test_between_two_checkpoints_a_reader_takes_the_older_one_and_leaves_both_names_to_the_trial(trial):
    before = loaded(trial.folder)
    old = trial.folder.with_name("checkpoint.old")
    trial.folder.rename(old)
    assert checkpoint.exists(trial.folder)
    assert loaded(trial.folder) == before
    assert describe(trial.folder).data_hash == "1"
    assert not trial.folder.exists()
    trial.save()  # the trial's own next step begins with the older one
    assert loaded(trial.folder)[0] == "2"
    assert old.exists()


def test_a_reader_inside_of_the_folder_may_name_it_by_a_dot(trial, monkeypatch):
    monkeypatch.chdir(trial.folder)
    assert loaded(Path()) == loaded(trial.folder)


def test_a_checkpoint_that_is_replaced_each_time_is_one_line(trial, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "PAUSE_S", 0)
    monkeypatch.setattr(checkpoint_files, "TRIES", 3)

    def read(current):
        trial.save()
        return current

    with pytest.raises(CheckpointError, match=r"checkpoint: its trial replaces it faster than it can be read; try again when the trial is"):
        checkpoint_files.read_consistently(trial.folder, read)
    assert trial.saved == 4


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_checkpoint_that_is_deleted_while_it_is_read_is_one_line_and_nothing_is_half_written(trial, read, monkeypatch):
    real = checkpoint_files.sha256_of

    def slow(path):
        shutil.rmtree(trial.folder, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(checkpoint_files, "sha256_of", slow)
    monkeypatch.setattr(checkpoint_files, "PAUSE_S", 0)
    if read is checkpoint.model_bytes:
        shutil.rmtree(trial.folder)
    with pytest.raises(DamagedCheckpointError, match=r"(config\.json|model\.safetensors): missing\. Name a checkpoint folder with"):
        read(trial.folder)
    assert not (trial.folder.parents[2] / "copy").exists()


def test_other_errors_of_a_checkpoint_that_stays_are_told_at_once(trial):
    path = trial.folder / (checkpoint.MODEL if trial.whole else checkpoint.TRAINED)
    assert load_file(path)
    path.write_bytes(path.read_bytes()[:-1])
    for read in (describe, loaded):
        with pytest.raises(DamagedCheckpointError, match=rf"{path.name}: its sha256 is not the recorded one"):
            read(trial.folder)
    assert json.loads((trial.folder / "config.json").read_text())["data_hash"] == "1"
