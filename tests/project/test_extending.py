"""The examples of docs/extending.md run, and what they add is used by a search."""

import re

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.simulation import MemoryLedger, World, driver_of

from vit_search.config import data_sets, metrics, optimizers, search_file, trial, value_sources
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.metrics import METRICS
from vit_search.config.optimizers import OPTIMIZERS
from vit_search.data import cache, decode, file_hashes, sources
from vit_search.data.cache import prepare, read_split
from vit_search.data.sources import SOURCES, source
from vit_search.errors import DataError
from vit_search.ledger.events import Proposed
from vit_search.planning import search_lint
from vit_search.planning.image_counts import Images, images_of
from vit_search.search.proposals import samplers
from vit_search.search.proposals.samplers import SAMPLERS
from vit_search.stopping import RULES, rule
from vit_search.vit import evaluation
from vit_search.vit import optimizers as makers
from vit_search.vit.evaluation import SCORES
from vit_search.vit.model import ViT
from vit_search.vit.optimizers import MAKERS

PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLES = re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
FILE = """
name: t
data: {name: digits}
trials: 30
epochs: 9
concurrency: 3
stopping: {grace_epochs: 1, reduction_factor: 3, audit_share: 0}
sampler: random
model: {dim: {choice: [16, 24]}, heads: 2, depth: {int: [1, 4]}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
"""


@pytest.fixture
def added(request):
    """What the example under a title of the page defines; what it registers is taken away again."""
    tables = (SCORES, METRICS, SOURCES, DATA_SETS, MAKERS, OPTIMIZERS, RULES, SAMPLERS)
    before = [dict(table) for table in tables]
    (code,) = [code for title, code in EXAMPLES if title == request.param]
    names = {"RULES": RULES}
    for module in (
        value_sources,
        metrics,
        data_sets,
        cache,
        decode,
        file_hashes,
        source,
        sources,
        optimizers,
        trial,
        samplers,
        rule,
        evaluation,
        makers,
    ):
        names |= vars(module)
    exec(compile(code, "docs/extending.md", "exec"), names)
    yield names
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def world(spec, **more):
    book = MemoryLedger()
    return World(driver_of(spec, book, **more), book)


@pytest.mark.parametrize("added", ["A metric"], indirect=True)
def test_a_metric(added):
    confusion = torch.tensor([[8.0, 2.0], [3.0, 1.0]])
    assert SCORES["val_worst_recall"](confusion) == 0.25
    assert METRICS["val_worst_recall"].mode == "max"


NUMPY = """
name: t
data: {name: numpy, path: %s, image_size: 8, channels: 1, holdout_fraction: 0}
trials: 9
epochs: 9
model: {dim: 16, heads: 2, depth: {int: [1, 4]}}
"""


@pytest.mark.parametrize("added", ["A data source"], indirect=True)
def test_a_data_source(added, tmp_path):
    levels = np.repeat(np.arange(100, 140, dtype=np.uint8), 4 * 4).reshape(40, 4, 4, 1)
    np.savez(tmp_path / "pets.npz", images=levels, labels=["cat", "dog"] * 20)
    spec = search_file.parse(NUMPY % (tmp_path / "pets.npz"))
    data = prepare(spec.data_config, cache=tmp_path / "cache")
    assert (data.classes, data.image_size, data.channels) == (("cat", "dog"), (8, 8), 1)
    assert data.counts == {"train": 30, "val": 4, "holdout": 0, "test": 6}
    assert images_of(spec.data_config) == Images(train=30, val=4)
    assert data.summary == "2 classes: cat, dog; 40 images (train 30, val 4, test 6)"
    assert any("4 validation images" in warning.text for warning in search_lint.lint(spec, 50).findings)
    images, labels = read_split(data, "train", "val", "test")
    assert sorted(images[:, 0, 0, 0]) == list(range(100, 140))
    assert (images[:, 0, 7, 7] % 2 == labels).all()  # the dogs' levels are odd
    np.savez(tmp_path / "pets.npz", images=levels + 1, labels=["cat", "dog"] * 20)
    assert prepare(spec.data_config, cache=tmp_path / "cache").data_hash != data.data_hash
    (tmp_path / "pets.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"pets.npz: cannot be read .*; write it with numpy.savez"):
        prepare(spec.data_config, cache=tmp_path / "cache")


def test_every_data_set_that_a_search_file_may_name_has_a_source():
    assert list(DATA_SETS) == list(SOURCES)
    assert all(facts.path or facts.loader for facts in DATA_SETS.values())
    for facts in DATA_SETS.values():
        known = (facts.image_size, facts.channels, facts.classes, facts.labelled)
        assert known.count(None) in (0, 4)


@pytest.mark.parametrize("added", ["An optimizer"], indirect=True)
def test_an_optimizer(added):
    spec = search_file.parse(FILE)
    config = spec.trial_config({"dim": 16, "depth": 1, "lr": 1e-3}, in_channels=1, num_classes=10, trial=0)
    model = ViT(config.model)
    optimizer = MAKERS["rmsprop"](model, [{"params": list(model.parameters()), "weight_decay": 0.0}], config.training)
    model(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    kept = sum(state["square_avg"].numel() for state in optimizer.state.values())
    assert kept == OPTIMIZERS["rmsprop"].others * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("added", ["A stopping rule"], indirect=True)
def test_a_stopping_rule(added, monkeypatch):
    spec = search_file.parse(FILE)
    monkeypatch.setitem(RULES, "asha", RULES["below_half"])
    going = world(spec)
    going.run()
    lengths = {len(trial.results) for trial in going.driver.trials.values()}
    assert lengths >= {1, 9} and len(going.driver.trials) == 30


@pytest.mark.parametrize("added", ["A sampler"], indirect=True)
def test_a_sampler(added):
    spec = search_file.parse(FILE).model_copy(update={"sampler": "mutate"})
    going = world(spec)
    events = going.run()
    proposed = [event.params for event in events if isinstance(event, Proposed)]
    assert len(proposed) == 30
    alike = [max(sum(old[name] == new[name] for name in new) for old in proposed[:i]) for i, new in enumerate(proposed) if i > 12]
    assert sum(count == 2 for count in alike) > 10  # two of three parameters are an earlier trial's


def test_every_section_of_the_page_is_tried():
    assert [title for title, _ in EXAMPLES] == [
        "A metric",
        "A data source",
        "An optimizer",
        "A stopping rule",
        "A sampler",
        "A field of the search file",
    ]
