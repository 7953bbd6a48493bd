"""The note with which `run` begins if few photos of one's own start from random weights. No trial is run."""

import numpy as np
import pytest
from helpers.commands import vit_search
from helpers.simulation import driver_of
from helpers.synthetic import begin
from PIL import Image

from vit_search.data.cache import prepare
from vit_search.errors import SearchError
from vit_search.search import launch

FOLDER = "name: pets\ndata: {name: image_folder, path: photos, image_size: 16}\ntrials: 2\nepochs: 2\n"


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """What `run` prints of a search file until the first trial would start."""
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    folder, other, _ = begin(tmp_path / "searches", trials=2, epochs=2)

    def run(spec, *, known, watch, **_):
        known(None)
        known(prepare(spec.data_config))
        watch(driver_of(other), other, folder)
        raise SearchError("enough.")

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))

    def lines(text):
        (tmp_path / "s.yaml").write_text(text)
        return vit_search(tmp_path, "run", "s.yaml", code=2).stderr.splitlines()

    return lines


def test_few_photos_that_start_at_random_get_one_note(begun):
    fact = "not given, and 24 images are few for a model that starts from random weights"
    mend = 'name pretrained weights, see docs/guides/pretrained.md, or write pretrained: "" if you want none.'
    lines = begun(FOLDER + "training: {lr: 0.001}\nmodel: {patch_size: 4}\n")
    assert lines[0] == "s.yaml: 2 trials, at most 2 epochs each"
    assert lines[1].startswith("2 classes: cat, dog; 24 images")
    assert lines[2] == f"note: s.yaml:6: model.pretrained: {fact}; {mend}"
    assert sum("pretrained" in line for line in lines) == 1


@pytest.mark.parametrize(
    "text",
    [
        FOLDER + "model: {patch_size: 4, pretrained: ''}\n",  # so the user has decided
        FOLDER.replace("image_size: 16", "image_size: 16, train_limit: 8") + "model: {patch_size: 4}\n",  # a trial run on some of them
        "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 2\nmodel: {patch_size: 4}\n",  # no photos of one's own
    ],
)
def test_other_searches_get_none(begun, text):
    assert not [line for line in begun(text) if "pretrained" in line]
