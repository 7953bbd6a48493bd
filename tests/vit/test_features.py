"""Frozen parts run once: the same training, the same scores, and nothing that is damaged or half written is ever read."""

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vit_search.config import search_file
from vit_search.data import backbones, feature_cache
from vit_search.data.batches import FeatureSplit, Split, StreamedSplit, load_split
from vit_search.data.cache import prepare
from vit_search.errors import DataError
from vit_search.vit import checkpoint, features, train_once, training
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.model import ViT
from vit_search.vit.pretrained import starting_point

HEAD = "name: digits\ndata: {name: digits, train_limit: 200}\ntrials: 1\nepochs: 3\n"
SPLITS = (("train",), ("val",))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of a small model of the digits, as its seed gives them."""
    text = HEAD + "model: {dim: 32, depth: 3, heads: 4, patch_size: 2, pool: cls, registers: 1, layer_scale: 0.5}\n"
    spec = search_file.parse(text)
    data = prepare(spec.data_config)
    state = training.start(spec.trial_config({}, in_channels=1, num_classes=10, trial=0), Normalisation.of(data.mean, data.std))
    folder = tmp_path_factory.mktemp("backbone") / "model"
    checkpoint.save(folder, state, classes=tuple("abcdefghij"), data_hash="h")  # other classes, so that the head is new
    return folder / "model.safetensors"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def spec_of(weights, way, model="", seed=0):
    model = ", ".join(filter(None, (f"pretrained: {weights}", model)))
    return pinned(f"{HEAD}seed: {seed}\nmodel: {{{model}}}\ntraining: {{precision: float32, lr: 0.01, {way}}}\n")


def pinned(text):
    spec = search_file.parse(text)
    return backbones.pinned(spec, backbones.find_all(spec))


def config_of(spec):
    return spec.trial_config({}, in_channels=1, num_classes=10, trial=0)


def trained(spec, folder):
    """The epochs of a search file of one configuration, and its weights."""
    history = list(train_once.train(spec, config_of(spec), prepare(spec.data_config), folder))
    return history, checkpoint.load_model(folder)


def begun(spec):
    """A training before its first step, and what it reads."""
    config, data = config_of(spec), prepare(spec.data_config)
    start = starting_point(config.model.pretrained, data.classes)
    state = training.start(config, Normalisation.of(data.mean, data.std), pretrained=start)
    images = [load_split(data, *names) for names in SPLITS]
    return state, images, features.in_place_of_images(state, data, SPLITS, images)


def kept(cache):
    return sorted(path for path in (cache / "features").iterdir() if not path.name.startswith("."))


def scores(history):
    return [(one.train_loss, one.train_accuracy, one.val_loss, one.val_accuracy) for one in history]


WAYS = {
    "head": "tune: head",
    "head with an average": "tune: head, ema_decay: 0.9, optimizer: sgd",
    "a block": "tune: last_blocks, tuned_blocks: 1",
    "two blocks": "tune: last_blocks, tuned_blocks: 2, ema_decay: 0.9",
    "in micro-batches": "tune: last_blocks, accumulation: 2",
}


# The law: nothing changes but the time


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_training_on_features_is_the_one_through_the_backbone(weights, cache, tmp_path, way):
    model = "dropout: 0.1, drop_path: 0.2"
    behind, whole = trained(spec_of(weights, f"{way}, feature_views: 0", model), tmp_path / "whole")
    on_features, half = trained(spec_of(weights, way, model), tmp_path / "half")
    assert len(kept(cache)) == 2  # of the training and of the validation images
    assert np.allclose(scores(on_features), scores(behind), rtol=0, atol=1e-5)
    before, after = whole.model.state_dict(), half.model.state_dict()
    # The order in which a matrix product adds up depends on how many images go through it at once.
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-5) for name in before)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("way", [WAYS["head"], WAYS["two blocks"]])
def test_the_validation_of_features_is_that_of_the_whole_model(weights, cache, way, pool):
    state, images, read = begun(spec_of(weights, way, f"pool: {pool}"))
    assert all(isinstance(split, FeatureSplit) for split in read)
    history = list(training.fit(state, *read))
    whole = evaluate(state.outcome, images[1], state.normalisation)
    assert history[-1].val_loss == pytest.approx(whole.loss, abs=1e-6)
    assert history[-1].val_accuracy == whole.accuracy
    assert history[-1].scores == pytest.approx(whole.scores, abs=1e-6)


def test_the_first_half_of_the_model_and_then_the_second_give_its_logits_to_the_bit(weights, cache):
    batch = torch.randn(7, 1, 8, 8)
    for way in (WAYS["head"], WAYS["two blocks"]):
        state, *_ = begun(spec_of(weights, way, "dropout: 0.1"))
        state.model.train()
        torch.manual_seed(1)
        logits = state.model(batch)
        torch.manual_seed(1)
        assert torch.equal(state.model.after_frozen(state.model.frozen_output(batch)), logits)


def test_the_same_file_gives_the_same_bits_whoever_computed_the_features(weights, cache, tmp_path):
    spec = spec_of(weights, WAYS["a block"])
    first, one = trained(spec, tmp_path / "first")
    second, other = trained(spec, tmp_path / "second")
    shutil.rmtree(cache / "features")
    third, _ = trained(spec, tmp_path / "third")
    assert scores(first) == scores(second) == scores(third)
    assert all(torch.equal(tensor, other.model.state_dict()[name]) for name, tensor in one.model.state_dict().items())


def test_a_training_that_was_interrupted_goes_on_to_the_same_bits_without_its_features(weights, cache, tmp_path):
    spec = spec_of(weights, WAYS["a block"] + ", flip: true, feature_views: 2")
    whole, _ = trained(spec, tmp_path / "whole")
    cut = train_once.train(spec, config_of(spec), prepare(spec.data_config), tmp_path / "cut")
    next(cut)
    cut.close()
    shutil.rmtree(cache / "features")
    assert scores(trained(spec, tmp_path / "cut")[0]) == scores(whole)


# Computed once


def test_later_trials_run_no_frozen_part(weights, cache, tmp_path, monkeypatch):
    trained(spec_of(weights, "tune: head"), tmp_path / "first")
    folders = kept(cache)

    def never(*_):
        raise AssertionError("features are there")

    monkeypatch.setattr(ViT, "frozen_output", never)
    monkeypatch.setattr(ViT, "forward", never)
    for i, way in enumerate(("tune: head, batch_size: 16", "tune: head, label_smoothing: 0, optimizer: sgd")):
        trained(spec_of(weights, way, "dropout: 0.5", seed=i + 1), tmp_path / str(i))
    assert kept(cache) == folders


@pytest.mark.parametrize(
    ("way", "model"),
    [
        ("tune: head", "pool: mean"),
        ("tune: head", "patch_size: 4"),
        ("tune: head", "depth: 2"),
        ("tune: head", "mlp_dim: 64"),
        ("tune: last_blocks", ""),
    ],
)
def test_other_frozen_parts_have_other_features(weights, cache, way, model):
    for spec in (spec_of(weights, "tune: head"), spec_of(weights, way, model)):
        for split in begun(spec)[2]:
            list(split.batches([torch.arange(2)]))
    assert len(kept(cache)) == 4


@pytest.mark.parametrize("name", ["encoder.blocks.1.mlp.up.bias", "embed.bias"])
def test_other_weights_of_the_same_shape_have_other_features(weights, cache, tmp_path, name):
    other = tmp_path / "other"
    shutil.copytree(weights.parent, other)
    tensors = load_file(weights)
    tensors[name] += 0.001
    save_file(tensors, other / weights.name)
    for path in (weights, other / weights.name):
        list(begun(spec_of(path, "tune: head"))[2][1].batches([torch.arange(2)]))
    assert len(kept(cache)) == 2


def test_of_two_at_once_one_computes_and_the_other_waits(weights, cache, monkeypatch):
    runs, entered, go = [], threading.Event(), threading.Event()
    real = features.computed

    def slow(source, view):
        runs.append(view)
        entered.set()
        assert go.wait(1800)
        yield from real(source, view)

    monkeypatch.setattr(features, "computed", slow)
    splits = [begun(spec_of(weights, "tune: head"))[2][0] for _ in range(2)]
    got = [None, None]

    def read(i):
        got[i] = next(splits[i].batches([torch.arange(5)]))[0]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    threads[0].start()
    assert entered.wait(1800)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(1800)
    assert runs == [0]
    assert torch.equal(*got)


# Versions of the images


def test_versions_are_augmented_once_and_the_first_is_the_image_itself(weights, cache):
    way = "tune: head, shift: 2, feature_views: 3"
    _, _, (train, _) = begun(spec_of(weights, way))
    everything = [torch.arange(len(train))]
    versions = [next(train.batches(everything, view))[0].clone() for view in range(3)]
    assert not torch.equal(versions[0], versions[1]) and not torch.equal(versions[1], versions[2])
    plain = begun(spec_of(weights, "tune: head"))[2][0]
    assert torch.equal(next(plain.batches(everything))[0], versions[0])
    again = begun(spec_of(weights, way, seed=5))[2][0]  # another trial of the same search
    assert all(torch.equal(next(again.batches(everything, view))[0], versions[view]) for view in range(3))
    assert len(kept(cache)) == 3


def test_an_epoch_computes_its_own_version_alone(weights, cache):
    state, _, read = begun(spec_of(weights, "tune: head, flip: true, feature_views: 2"))
    counts = [len(kept(cache)) for _ in training.fit(state, *read)]
    assert counts == [2, 3, 3]  # the images and those of validation; the mirrored ones; the images again


def test_a_streamed_set_is_decoded_once(weights, cache):
    spec = spec_of(weights, "tune: head, crop_scale: 0.5, feature_views: 2")
    state, images, _ = begun(spec)
    data, reads = prepare(spec.data_config), []
    split: Split = images[0]

    def reader(name, size):
        reads.append(name)
        return split.images[int(name)].numpy()

    names = np.array([str(i) for i in range(20)])
    streamed = StreamedSplit(reader, names, split.labels[:20], (8, 8), workers=0)
    read = features.in_place_of_images(state, dataclasses.replace(data, data_hash="streamed"), SPLITS, [streamed, images[1]])
    versions = [next(read[0].batches([torch.arange(20)], view))[0].clone() for view in (0, 1, 0, 1)]
    assert len(reads) == 40
    assert torch.equal(versions[0], versions[2]) and torch.equal(versions[1], versions[3])
    assert not torch.equal(versions[0], versions[1])
    assert torch.allclose(versions[0], next(begun(spec)[2][0].batches([torch.arange(20)]))[0], atol=1e-6)


# Damage, kills and full disks


def damage(how, folder):
    file = folder / feature_cache.FEATURES
    if how == "cut off":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "changed":
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    elif how == "missing":
        file.unlink()
    elif how == "no JSON":
        (folder / feature_cache.FACTS).write_text("{")
    else:
        (folder / feature_cache.FACTS).write_text('{"facts": {}, "sha256": ""}')


@pytest.mark.parametrize("how", ["cut off", "changed", "missing", "no JSON", "of others"])
def test_damaged_features_are_computed_again_with_one_line(weights, cache, how, caplog):
    def first_batch():
        return next(begun(spec_of(weights, "tune: head"))[2][0].batches([torch.arange(9)]))[0].clone()

    before = first_batch()
    (folder,) = kept(cache)
    damage(how, folder)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(first_batch(), before)
        assert torch.equal(first_batch(), before)
    assert [record.getMessage() for record in caplog.records] == [f"{folder}: these features are damaged; they are computed again."]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vit_search.data import feature_cache

def batches():
    yield np.zeros((3, 4), np.float32)
    os.kill(os.getpid(), signal.SIGKILL)

feature_cache.put(Path(sys.argv[1]), {}, (6, 4), batches())
"""


def test_a_process_that_is_killed_while_it_computes_leaves_nothing_that_is_read(tmp_path):
    folder = feature_cache.folder_of(tmp_path, {})
    folder.parent.mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, folder], check=False, timeout=1800)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith(f".new-{folder.name}-") for path in folder.parent.iterdir()] == [True]
    assert feature_cache.opened(folder, {}, (6, 4)) is None
    feature_cache.put(folder, {}, (6, 4), [np.ones((6, 4), np.float32)])
    assert list(folder.parent.iterdir()) == [folder]
    assert (feature_cache.opened(folder, {}, (6, 4)) == 1).all()


Usage = namedtuple("Usage", "total used free")


def test_without_room_each_epoch_runs_the_whole_model_and_a_line_says_so(weights, cache, tmp_path, monkeypatch, caplog):
    expected, _ = trained(spec_of(weights, "tune: head, feature_views: 0"), tmp_path / "whole")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40, feature_cache.SPARED + 1000))
    with caplog.at_level(logging.WARNING):
        assert scores(trained(spec_of(weights, "tune: head"), tmp_path / "full")[0]) == scores(expected)
    (record,) = caplog.records
    assert "the outputs of the frozen parts take 0 MiB, and 0 MiB can be used. So each epoch runs the whole model" in record.getMessage()
    with pytest.raises(DataError, match=r"can be used; make room, .* or write training\.feature_views: 1\.$"):
        begun(spec_of(weights, "tune: head, flip: true, feature_views: 2"))


def test_what_was_not_used_for_longest_makes_room(cache, monkeypatch):
    folders = [feature_cache.folder_of(cache, {"n": n}) for n in range(4)]
    folders[0].parent.mkdir(parents=True)
    for n, folder in enumerate(folders[:3]):
        feature_cache.put(folder, {"n": n}, (100,), [np.zeros(100, np.float32)])
        os.utime(folder, (n + 1, n + 1))
    assert feature_cache.opened(folders[0], {"n": 0}, (100,)) is not None  # now it is the one that was used last
    size = (folders[0] / feature_cache.FEATURES).stat().st_size
    disk = feature_cache.SPARED + 3 * size  # full

    def usage(_):
        used = sum(path.stat().st_size for path in folders[0].parent.glob(f"*/{feature_cache.FEATURES}"))
        return Usage(disk, used, disk - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert feature_cache.room_problem(cache, {folders[3]: 3 * size + 1}).endswith("can be used")
    assert len(kept(cache)) == 3  # nothing is deleted in vain
    assert feature_cache.room_problem(cache, {folders[3]: size}) == ""
    assert kept(cache) == sorted([folders[0], folders[2]])


def test_features_of_a_cache_that_others_can_change_are_not_read(weights, cache):
    list(begun(spec_of(weights, "tune: head"))[2][0].batches([torch.arange(2)]))
    (cache / "features").chmod(0o777)
    with pytest.raises(DataError, match="cannot be trusted"):
        list(begun(spec_of(weights, "tune: head"))[2][0].batches([torch.arange(2)]))
