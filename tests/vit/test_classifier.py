"""A model that a program classifies with: files, bytes and pixels give one answer, and it is the command line's."""

import json

import numpy as np
import pytest
from helpers import commands, models
from PIL import Image

import vit_search
from vit_search.errors import DataError, PromotionError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkpoint, and three images of different sizes."""
    home = tmp_path_factory.mktemp("home")
    models.untrained(home / "model")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(8, 8), (20, 11), (5, 30)]):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(home / f"{i}.png")
    return home


@pytest.fixture
def paths(home, monkeypatch):
    monkeypatch.chdir(home)
    return [f"{i}.png" for i in range(3)]


def test_predictions_are_those_of_the_command(paths):
    answers = json.loads(commands.vit_search(".", "predict", "--model", "./model", "--json", *paths).stdout)
    assert [vars(one) for one in vit_search.load_classifier("./model").predict(paths)] == answers


def test_files_bytes_and_pixels_give_the_same_bits(paths, home):
    model = vit_search.load_classifier(home / "model")
    from_files = model.probabilities(paths)
    content = [(home / path).read_bytes() for path in paths]
    pixels = [np.asarray(Image.open(path)) for path in paths]
    assert np.array_equal(model.probabilities(content), from_files)
    assert np.array_equal(model.probabilities(pixels), from_files)
    assert np.array_equal(model.probabilities([paths[0], content[1], pixels[2]]), from_files)
    assert [one.image for one in model.predict([paths[0], content[1]])] == ["0.png", "image 1"]


def test_probabilities_are_a_row_for_each_image_and_a_column_for_each_class(paths, home):
    model = vit_search.load_classifier(home / "model")
    rows = model.probabilities(paths)
    assert rows.shape == (3, 10) and rows.dtype == np.float64
    assert rows.sum(1) == pytest.approx(np.ones(3), abs=1e-6)
    first = model.predict(paths)[0]
    assert (first.label, first.probability) == (model.classes[rows[0].argmax()], rows[0].max())
    assert model.config.model.image_size == (8, 8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("0.png", "give a list of one image or more"),
        ([], "give a list of one image or more"),
        (["gone.png"], "gone.png: cannot be read"),
        ([np.zeros((8, 8), np.uint8), np.zeros((8, 8))], "image 1: float64 pixels from 0 to 0; multiply by 255"),
        ([b"no image"], "image 0: no image that can be decoded"),
        ([np.zeros((1, 2, 3, 4), np.uint8)], r"image 0: an array of shape \(1, 2, 3, 4\)"),
    ],
)
def test_what_is_no_image_is_named(images, message, paths, home):
    with pytest.raises(DataError, match=message):
        vit_search.load_classifier(home / "model").predict(images)


def test_a_model_that_is_not_there_is_named(paths):
    with pytest.raises(PromotionError, match="no such folder"):
        vit_search.load_classifier("trained/cats")
