"""The examples of docs/extending.md, put where the page says in a copy of the package, are used by a search."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from helpers.commands import COMMAND
from helpers.paths import ROOT

from vit_search.config.data_sets import DATA_SETS

PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
PLACE = re.compile(r"^# (vit_search/\S+\.py): (a new file|among the imports|above (\w+)|in (\w+))\n", re.MULTILINE)
HEAD = """
import numpy as np, torch
from helpers.simulation import MemoryLedger, World, driver_of
from vit_search.config import search_file
from vit_search.ledger.events import Proposed

FILE = '''
name: t
data: {name: digits}
trials: 30
epochs: 9
concurrency: 3
stopping: {grace_epochs: 1, reduction_factor: 3, audit_share: 0}
sampler: random
model: {dim: {choice: [16, 24]}, heads: 2, depth: {int: [1, 4]}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
'''


def searched(text, commands=()):
    book, spec = MemoryLedger(), search_file.parse(text)
    world = World(driver_of(spec, book, first=spec.start_with), book, list(commands))
    return world, world.run()
"""


def put(code, folder):
    """Put the parts of an example where their comments say."""
    parts = PLACE.split(code)
    assert not parts[0].strip(), "the first line says where"
    for path, how, above, table, part in zip(*(parts[i::5] for i in range(1, 6)), strict=True):
        file = folder / path
        if how == "a new file":
            assert not file.exists()
            file.write_text(part)
            continue
        text = file.read_text()
        if how == "among the imports":
            place = r"^from __future__ import annotations\n"
        elif above:
            place = rf"^(?={above}\b)"
        else:
            place, part = rf"^{table}\b.*= [({{]", "\n" + part
        text, count = re.subn(place, lambda found, part=part: found[0] + part, text, flags=re.MULTILINE)
        assert count == 1, f"{path}: {how}"
        file.write_text(text)


@pytest.fixture
def copy(request, tmp_path):
    """A folder with a copy of the package, to which the example under a title of the page is added."""
    shutil.copytree(ROOT / "vit_search", tmp_path / "vit_search", ignore=shutil.ignore_patterns("__pycache__"))
    put(EXAMPLES[request.param], tmp_path)
    return tmp_path


def run(folder, *words, code=0):
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def python(folder, script):
    """Run a script with the copy."""
    own = f"import vit_search\nassert vit_search.__file__ == {str(folder / 'vit_search' / '__init__.py')!r}\n"
    run(folder, sys.executable, "-c", HEAD + own + textwrap.dedent(script))


@pytest.mark.parametrize("copy", ["A metric"], indirect=True)
def test_a_metric(copy):
    python(
        copy,
        """
        from vit_search.vit.evaluation import SCORES
        confusion = torch.tensor([[8.0, 2.0], [3.0, 1.0]], dtype=torch.float64)  # 9 of 14 right; 122 of 196 by chance
        assert abs(SCORES["val_kappa"](confusion) - 4 / 74) < 1e-12
        text = FILE + "metric: val_kappa\\n"
        assert search_file.parse(text).mode == "max"
        world = World(driver_of(search_file.parse(text), book := MemoryLedger()), book, score="val_kappa")
        world.run()
        assert {len(trial.results) for trial in world.driver.trials.values()} == {1, 3, 9}
        """,
    )


SOURCE = """
name: t
data: {name: numpy, path: pets.npz, image_size: 8, channels: 1, holdout_fraction: 0}
trials: 9
epochs: 9
model: {dim: 16, heads: 2, depth: {int: [1, 4]}}
"""


@pytest.mark.parametrize("copy", ["A data source"], indirect=True)
def test_a_data_source(copy):
    (copy / "pets.yaml").write_text(SOURCE)
    python(
        copy,
        """
        from pathlib import Path
        from vit_search.data.cache import prepare, read_split
        from vit_search.errors import DataError
        from vit_search.planning.image_counts import Images, images_of

        levels = np.repeat(np.arange(100, 140, dtype=np.uint8), 4 * 4).reshape(40, 4, 4, 1)
        np.savez("pets.npz", images=levels, labels=["cat", "dog"] * 20)
        config = search_file.load(Path("pets.yaml")).data_config
        data = prepare(config, cache=Path("cache"))
        assert (data.classes, data.image_size, data.channels) == (("cat", "dog"), (8, 8), 1)
        assert data.counts == {"train": 30, "val": 4, "holdout": 0, "test": 6}
        assert images_of(config) == Images(train=30, val=4)
        assert data.summary == "2 classes: cat, dog; 40 images (train 30, val 4, test 6)"
        images, labels = read_split(data, "train", "val", "test")
        assert sorted(images[:, 0, 0, 0]) == list(range(100, 140))
        assert (images[:, 0, 7, 7] % 2 == labels).all()  # the dogs' levels are odd

        def refusal(**arrays):
            np.savez("pets.npz", **arrays)
            try:
                prepare(config, cache=Path("cache"))
            except DataError as error:
                return str(error)

        assert refusal(images=levels[..., 0] / 255, labels=["cat", "dog"] * 20).startswith("pets.npz: image 0: float64 pixels from 0.39")
        assert refusal(images=levels, labels=["cat"]) == "pets.npz: 40 images, but 1 labels; give one for each image."
        assert "write it with numpy.savez" in refusal(images=levels)
        assert refusal(images=levels[..., 0] + 1, labels=["cat", "dog"] * 20) is None
        assert prepare(config, cache=Path("cache")).data_hash != data.data_hash
        """,
    )
    assert "4 validation images" in run(copy, COMMAND, "lint", "pets.yaml")
    (copy / "pets.npz").unlink()
    assert "pets.yaml:3: data.path: pets.npz: cannot be read" in run(copy, COMMAND, "plan", "pets.yaml", code=2)


def test_every_data_set_has_a_path_or_a_loader_and_all_of_its_facts_or_none():
    assert all(facts.path or facts.loader for facts in DATA_SETS.values())
    for facts in DATA_SETS.values():
        known = (facts.image_size, facts.channels, facts.classes, facts.labelled)
        assert known.count(None) in (0, 4)


@pytest.mark.parametrize("copy", ["An optimizer"], indirect=True)
def test_an_optimizer(copy):
    text = "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 9\ntraining: {optimizer: rmsprop, momentum: {float: [0, 0.9]}}\n"
    (copy / "t.yaml").write_text(text)
    assert "training.momentum: it makes no difference, since rmsprop does not use it" in run(copy, COMMAND, "lint", "t.yaml")
    python(
        copy,
        """
        from vit_search.config.cost import cost_of
        from vit_search.vit.model import ViT
        from vit_search.vit.optimizers import make_optimizer, state_of

        spec = search_file.parse(FILE.replace("{lr:", "{optimizer: {choice: [rmsprop, adamw]}, lr:") + "start_with: [{dim: 16}]")
        chosen = {"dim": 16, "depth": 1, "lr": 1e-3, "optimizer": "rmsprop"}
        config = spec.trial_config(chosen, in_channels=1, num_classes=10, trial=0)
        model = ViT(config.model)
        optimizer = make_optimizer(model, config.training)
        model(torch.zeros(2, 1, 8, 8)).sum().backward()
        optimizer.step()
        kept = [value for p in model.parameters() for name, value in state_of(optimizer, p).items() if name != "step"]
        assert sum(value.nbytes for value in kept) == cost_of(config.model, 1, "rmsprop").optimizer_bytes
        """,
    )
    law = str(ROOT / "tests" / "vit" / "test_optimizers.py")  # that a filled state changes no weight
    assert "2 passed" in run(copy, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", law, "-k", "rmsprop")


@pytest.mark.parametrize("copy", ["A stopping rule"], indirect=True)
def test_a_stopping_rule(copy):
    python(
        copy,
        """
        from vit_search.stopping import RULES
        from vit_search.stopping.rule import StoppingOptions

        for metric in ("val_accuracy", "val_loss"):
            world, _ = searched(FILE.replace("{grace", "{kind: below_mean, grace") + f"metric: {metric}\\n")
            lengths = [len(trial.results) for trial in world.driver.trials.values()]
            assert len(lengths) == 30 and set(lengths) == {1, 3, 9} and lengths.count(1) < 25, metric

        options = StoppingOptions(metric="val_loss", mode="min", epochs=9, grace_epochs=1)
        rule = RULES["below_mean"](options)
        for trial, score, group in ((0, -1.0, 0), (1, -3.0, 0), (2, -9.0, 1), (3, -1.5, 0), (4, -10.0, 1)):
            rule.record(trial, 1, score, group)
        assert rule.ending == {1, 4}  # the means are -2, -1.83 and, of the large ones, -9.5
        """,
    )


@pytest.mark.parametrize("copy", ["A sampler"], indirect=True)
def test_a_sampler(copy):
    python(
        copy,
        """
        points = [{"dim": 24, "lr": 0.01}, {"dim": 16}, {"depth": 3}, {"depth": 1}, {"lr": 0.001}, {"lr": 0.002, "dim": 16, "depth": 4}]
        text = FILE.replace("sampler: random", "sampler: mutate") + f"start_with: {points}\\n"  # the last three come when trials are known
        _, events = searched(text, [(40, "add", {"depth": 2, "lr": 0.0025})])
        proposed = [event.params for event in events if isinstance(event, Proposed)]
        assert len(proposed) == 30 and len({tuple(sorted(params.items())) for params in proposed}) == 30
        assert all(point.items() <= params.items() for point, params in zip(points, proposed))
        assert sum((params["depth"], params["lr"]) == (2, 0.0025) for params in proposed) == 1
        alike = [max(sum(old[name] == new[name] for name in new) for old in proposed[:i]) for i, new in enumerate(proposed) if i > 12]
        assert sum(count == 2 for count in alike) > 10  # two of three parameters are an earlier trial's

        fixed = "name: t\\ndata: {name: digits}\\ntrials: 3\\nepochs: 2\\nconcurrency: 1\\nsampler: mutate\\nmodel: {dim: 16}\\n"
        assert len(searched(fixed)[0].driver.trials) == 3  # nothing is searched
        """,
    )


def test_every_section_of_the_page_is_tried():
    assert list(EXAMPLES) == ["A metric", "A data source", "An optimizer", "A stopping rule", "A sampler", "A field of the search file"]
