"""Trainings that share frozen blocks: the same bits as alone, nothing read twice, and memory back where the next training is another."""

import dataclasses

import pytest
import torch
from helpers import models

from vit_search.config import search_file
from vit_search.config.backbone import read_backbone
from vit_search.config.model_config import ModelConfig
from vit_search.data import backbones
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare
from vit_search.vit import checkpoint, features, training, tuning
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.model import ViT, without_weights
from vit_search.vit.pretrained import Pretrained, load
from vit_search.vit.shared_blocks import SharedBlocks

SPLITS = (("train",), ("val",))
SHAPE = {"dim": 16, "depth": 3, "heads": 2, "patch_size": 4}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a small model with random weights."""
    _, folder = models.untrained(tmp_path_factory.mktemp("backbone") / "model", **SHAPE)
    return folder / checkpoint.MODEL


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))


def config_of(weights, way="tune: head", model="", seed=0):
    model = ", ".join(filter(None, (f"pretrained: {weights}", model)))
    spec = search_file.parse(
        "name: digits\ndata: {name: digits, train_limit: 100}\ntrials: 1\nepochs: 2\n"
        f"model: {{{model}}}\ntraining: {{precision: float32, batch_size: 16, {way}}}\n"
    )
    spec = backbones.pinned(spec, backbones.find_all(spec))
    return dataclasses.replace(spec.trial_config({}, in_channels=1, num_classes=10, trial=0), seed=seed)


class Worker:
    """A process that trains one configuration after another, and what it has read."""

    def __init__(self, weights, shared=None):
        self.weights, self.shared, self.reads = weights, shared, 0

    def start(self, config):
        data = prepare(config.data)
        if self.shared is not None:
            self.shared.make_room(config)
        pretrained = Pretrained(read_backbone(self.weights), self.read, data.classes, self.shared)
        return training.start(config, Normalisation.of(data.mean, data.std), pretrained=pretrained)

    def read(self):
        self.reads += 1
        return load(self.weights)[1]

    def train(self, config):
        state, data = self.start(config), prepare(config.data)
        parts = features.in_place_of_images(state, data, SPLITS, [load_split(data, *names) for names in SPLITS])
        list(training.fit(state, *parts))
        return state


def bits(state):
    return {name: tensor.numpy().tobytes() for name, tensor in state.outcome.state_dict().items()}


def first_block(state):
    return state.model.encoder.blocks[0].mlp.up.weight


HEADS = ["tune: head, lr: 0.01", "tune: head, lr: 0.1, optimizer: sgd, ema_decay: 0.5", "tune: head, label_smoothing: 0, clip_norm: null"]


def test_heads_one_after_another_have_the_bits_that_each_has_alone_and_the_weights_are_read_once(weights):
    configs = [config_of(weights, way, f"dropout: 0.{i}", seed=i) for i, way in enumerate(HEADS)]
    worker = Worker(weights, SharedBlocks())
    together = [worker.train(config) for config in configs]
    assert worker.reads == 1
    assert [bits(state) for state in together] == [bits(Worker(weights).train(config)) for config in configs]
    assert len({first_block(state).data_ptr() for state in together}) == 1
    assert len({state.model.embed.weight.data_ptr() for state in together}) == 3  # a resume writes into it
    assert len({state.left_out for state in together}) == 1
    assert together[0].left_out.blocks == tuning.sha256_of(tuning.frozen_blocks(together[0].model))


def test_a_training_that_goes_on_from_its_checkpoint_changes_nothing_for_the_next(weights, tmp_path):
    config = config_of(weights)
    worker = Worker(weights, SharedBlocks())
    state = worker.train(config)
    before = bits(worker.start(config))
    with torch.no_grad():
        state.model.embed.weight.add_(1)  # as if a machine that rounds in another way had saved it
    checkpoint.save(tmp_path / "c", state, classes=prepare(config.data).classes, data_hash="h")
    pretrained = Pretrained(read_backbone(weights), worker.read, prepare(config.data).classes, worker.shared)
    resumed = checkpoint.load_training(tmp_path / "c", config, pretrained=pretrained)
    assert bits(resumed) == bits(state)
    assert bits(worker.start(config)) == before
    assert worker.reads == 1


@pytest.mark.parametrize(
    ("way", "model"),
    [
        ("tune: head", "depth: 2"),
        ("tune: head", "patch_size: 2"),
        ("tune: last_blocks", ""),
        ("tune: last_blocks, tuned_blocks: 2", ""),
        ("tune: head, feature_views: 0", ""),
        ("tune: head, mixup: 0.2", ""),
        ("tune: lora", ""),
        ("tune: full", ""),
    ],
)
def test_a_training_with_other_frozen_blocks_makes_its_own_and_those_before_are_given_back(weights, way, model):
    worker = Worker(weights, SharedBlocks())
    worker.start(config_of(weights))
    other = config_of(weights, way, model)
    state = worker.start(other)
    assert worker.reads == 2
    assert bits(state) == bits(Worker(weights).start(other))
    worker.start(config_of(weights))
    assert worker.reads == 3  # so they were not kept beside the others


def test_other_weights_at_the_same_place_are_read(weights, tmp_path):
    place = tmp_path / "there" / checkpoint.MODEL
    place.parent.mkdir()
    worker = Worker(place, SharedBlocks())
    starts = []
    for seed in (1, 2):
        _, folder = models.untrained(tmp_path / str(seed), seed=seed, **SHAPE)
        for name in (checkpoint.MODEL, checkpoint.CONFIG):
            (place.parent / name).write_bytes((folder / name).read_bytes())
        starts.append(worker.start(config_of(place)))
    assert worker.reads == 2
    assert bits(starts[0]) != bits(starts[1]) == bits(Worker(place).start(config_of(place)))


def test_frozen_blocks_that_are_trained_by_nobody_stay_as_they_are(weights):
    worker = Worker(weights, SharedBlocks())
    config = config_of(weights, "tune: last_blocks, tuned_blocks: 1, lr: 0.1")
    before = bits(worker.start(config))
    worker.train(config)
    assert bits(worker.start(config)) == before
    assert worker.reads == 1


@pytest.mark.parametrize("way", ["tune: full", "tune: head"])
def test_a_model_from_a_backbone_with_a_class_token_owns_its_memory_also_where_it_leaves_that_token_out(tmp_path, way):
    _, folder = models.untrained(tmp_path / "model", pool="cls", registers=2, **SHAPE)
    for pool in ("cls", "mean"):
        model = Worker(folder / checkpoint.MODEL).start(config_of(folder / checkpoint.MODEL, way, f"pool: {pool}")).model
        for name, tensor in model.state_dict().items():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
            assert tensor.stride() == torch.empty(tensor.shape).stride(), name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"positions": "rope", "dim": 32, "registers": 2, "pool": "cls"},
        {"positions": "sincos2d", "norm": "post"},
        {"activation": "swiglu", "qk_norm": True, "layer_scale": 0.1, "qkv_bias": False, "init": "trunc_normal_02"},
    ],
    ids=str,
)
def test_a_model_without_weights_takes_those_of_another_and_draws_no_random_number(fields):
    config = ModelConfig(**({"image_size": (8, 8), "in_channels": 1, "num_classes": 10, "dim": 16, "heads": 2, "depth": 2} | fields))
    whole, images = ViT(config), torch.randn(3, 1, 8, 8)
    before = torch.get_rng_state()
    model = without_weights(config)
    assert torch.equal(torch.get_rng_state(), before)
    model.load_state_dict(whole.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(images), whole(images))
