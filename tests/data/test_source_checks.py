"""A source that answers other than it promises is refused in one line, which names it, the image and the mend; nothing is cached."""

import numpy as np
import pytest
import torch

from vit_search.config.data_config import DataConfig
from vit_search.config.data_sets import DATA_SETS, DataSetFacts
from vit_search.data.batches import StreamedSplit
from vit_search.data.cache import prepare, read_split
from vit_search.data.decode import fit_pixels
from vit_search.data.sources import SOURCES
from vit_search.data.sources.source import Source
from vit_search.errors import DataError

LABELS = np.array([0, 1] * 20)
IMAGES = np.arange(40 * 2 * 3, dtype=np.uint8).reshape(40, 1, 2, 3)
CONFIG = DataConfig(name="given", path="given", holdout_fraction=0)
INDICES = "give an int64 array (images,) of indices into classes, from 0 to 1."


class Given(Source):
    title, shape, classes = "given", (1, 2, 3), ("cat", "dog")

    def __init__(self, labels=LABELS, images=IMAGES, **others):
        self.labels, self.images = labels, images
        for name, value in others.items():
            setattr(self, name, value)

    @property
    def names(self):
        return self.given_names

    def fingerprint(self):
        return b"given"

    def read(self, index):
        return self.images[index]


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    def prepared(**source):
        monkeypatch.setitem(SOURCES, "given", lambda config, downloads, download: Given(**source))
        return prepare(CONFIG, cache=tmp_path / "cache")

    monkeypatch.setitem(DATA_SETS, "given", DataSetFacts(path="the file"))
    yield prepared
    assert not list((tmp_path / "cache").glob("*/data.json")) or prepared().counts["train"] == 30


def with_value(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


def test_a_sound_source_is_cached_as_it_is(prepared):
    images, labels = read_split(prepared(), "train", "val", "test")
    assert sorted(images[:, 0, 0, 0].tolist()) == sorted(IMAGES[:, 0, 0, 0].tolist())
    assert labels.dtype == np.int64 and labels.sum() == 20


WRONG = {
    "a list of labels": ({"labels": [0, 1] * 20}, f"given: labels are a list; {INDICES}"),
    "labels of two axes": ({"labels": LABELS[:, None]}, f"given: labels are int64 (40, 1); {INDICES}"),
    "no label": ({"labels": LABELS[:0]}, f"given: labels are empty; {INDICES}"),
    "a label too large": ({"labels": with_value(LABELS, 7, 2)}, f"given: labels are int64, and that of image 7 is 2; {INDICES}"),
    "a label below 0": ({"labels": with_value(LABELS, 39, -1)}, f"given: labels are int64, and that of image 39 is -1; {INDICES}"),
    "a missing label": (
        {"labels": with_value(LABELS.astype(float), 3, np.nan)},
        f"given: labels are float64, and that of image 3 is nan; {INDICES}",
    ),
    "labels as floats": ({"labels": LABELS.astype(float)}, f"given: labels are float64, and that of image 0 is 0.0; {INDICES}"),
    "labels as text": ({"labels": np.array(["cat", "dog"] * 20)}, f"given: labels are <U3, and that of image 0 is cat; {INDICES}"),
    "more labels than images": (
        {"images": IMAGES[:30]},
        "given: image 30: labels has it, and read finds no such image (index 30 is out of bounds for axis 0 with size 30); "
        "give as many labels as images.",
    ),
    "a class twice": (
        {"classes": ("cat", "cat")},
        "given: classes are ['cat', 'cat']; give a tuple of different texts, as str(name) makes them.",
    ),
    "classes that are numbers": (
        {"classes": (0, 1)},
        "given: classes are [0, 1]; give a tuple of different texts, as str(name) makes them.",
    ),
    "fewer splits than images": (
        {"splits": np.array(["train"] * 39)},
        "given: splits are <U5 (39,), and labels are int64 (40,); give one for each image.",
    ),
    "an unknown split": (
        {"splits": np.array(["train"] * 39 + ["valid"])},
        "given: the split of image 39 is 'valid'; give train, val, test, or an empty text.",
    ),
    "fewer groups than images": (
        {"groups": LABELS[:39]},
        "given: groups are int64 (39,), and labels are int64 (40,); give one for each image.",
    ),
    "groups as text": (
        {"groups": np.array(["p1", "p2"] * 20)},
        "given: groups are <U2 (40,); give an int64 array (images,), the same number for one group.",
    ),
    "groups of one class each": (
        {"groups": LABELS},
        "given: class cat has 1 group, class dog has 1 group; each class needs at least 3, one each for training, validation and test: "
        "add images of other groups, or drop the class.",
    ),
    "a group in two splits": (
        {"groups": np.arange(40) // 2, "splits": np.array(["train"] * 39 + ["test"])},
        "given: a group is in more than one split: 19 (image 38 train, image 39 test); put all images of a group into one split.",
    ),
    "fewer names than images": (
        {"reader": object(), "given_names": np.array(["a"] * 39)},
        "given: names are <U1 (39,), and labels are int64 (40,); give one for each image.",
    ),
    "pixels from 0 to 1": (
        {"images": IMAGES / 255},
        "given: image 0: float64 pixels from 0 to 0.0196078; multiply by 255 and round, then give uint8.",
    ),
    "pixels that are floats": (
        {"images": IMAGES.astype(np.float32)[::-1]},
        "given: image 0: float32 pixels from 234 to 239; give uint8, from 0 to 255.",
    ),
    "16 bits": ({"images": IMAGES.astype(np.uint16) * 257}, "given: image 0: uint16 pixels from 0 to 1285; give uint8, from 0 to 255."),
    "a pixel that is no number": (
        {"images": with_value(IMAGES / 255, 0, np.nan)},
        "given: image 0: float64 pixels with NaN; give uint8, from 0 to 255.",
    ),
    "channels last": (
        {"images": IMAGES.transpose(0, 2, 3, 1)},
        "given: image 0: an array of shape (2, 3, 1); give (channels, height, width), here (1, 2, 3), as fit_pixels makes it.",
    ),
    "no channel": (
        {"images": IMAGES[:, 0]},
        "given: image 0: an array of shape (2, 3); give (channels, height, width), here (1, 2, 3), as fit_pixels makes it.",
    ),
    "a tensor": ({"images": torch.zeros(40, 1, 2, 3)}, "given: image 0: a Tensor; give a NumPy array of uint8."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_source_must_not_answer(name, prepared):
    source, message = WRONG[name]
    with pytest.raises(DataError) as refused:
        prepared(**source)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("ask", "missing"), [(lambda source: source.names, "names"), (lambda source: source.content_hash(3), "content_hash")]
)
def test_a_source_that_cannot_be_streamed_says_what_it_lacks(ask, missing):
    class Plain(Given):
        names = Source.names

    with pytest.raises(DataError, match=rf"^given: .* {missing}, so it cannot be streamed; write Source\.{missing} for it\.$"):
        ask(Plain())


def test_the_index_of_the_image_at_fault_is_told(prepared):
    images = list(IMAGES)
    images[5] = images[5] / 255
    with pytest.raises(DataError, match=r"^given: image 5: float64 pixels from 0\.\d+ to 0\.\d+; multiply by 255 and round"):
        prepared(images=images)


@pytest.mark.parametrize(
    ("pixels", "grey"), [(np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]), (np.array([[[5], [6]]]), [[5, 6]]), (np.full((1, 1, 3), 7), [[7]])]
)
def test_fit_pixels_takes_grey_with_and_without_an_axis_of_its_own_and_rgb(pixels, grey):
    assert fit_pixels(pixels.astype(np.uint8), None, 1).tolist() == [grey]
    assert fit_pixels(pixels.astype(np.uint8), None, 3).tolist() == [grey] * 3


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4, 1)), "float64 pixels from 0 to 0; multiply by 255 and round, then give uint8."),
        (np.zeros((4, 4, 2), np.uint8), r"an array of shape \(4, 4, 2\); give \(height, width\), \(height, width, 1\) or"),
        (np.zeros(4, np.uint8), r"an array of shape \(4,\); give \(height, width\)"),
        (np.zeros((0, 4), np.uint8), r"an array of shape \(0, 4\); give \(height, width\)"),
        ([[1, 2]], "a list; give a NumPy array of uint8."),
    ],
)
def test_fit_pixels_refuses_the_rest(pixels, message, prepared):
    with pytest.raises(DataError, match=f"^{message}"):
        fit_pixels(pixels, (2, 3), 1)

    class Fitting(list):
        def __getitem__(self, index):
            return fit_pixels(pixels, (2, 3), 1)

    with pytest.raises(DataError, match=f"^given: image 0: {message}"):
        prepared(images=Fitting())


def read_floats(name, size):
    return np.zeros((1, *(size or (4, 4))))


def read_other_size(name, size):
    return np.zeros((1, 9, 9), np.uint8)


@pytest.mark.parametrize(
    ("reader", "crop_scale", "message"),
    [
        (read_floats, 1, "image a: float64 pixels from 0 to 0; multiply by 255"),
        (read_floats, 0.5, "image a: float64 pixels from 0 to 0; multiply by 255"),
        (read_other_size, 1, r"image a: an array of shape \(1, 9, 9\); give \(channels, height, width\), here \(any, 2, 3\)"),
    ],
)
def test_a_reader_of_a_streamed_set_is_held_against_the_same(reader, crop_scale, message):
    split = StreamedSplit(reader, np.array(["a"]), torch.tensor([0]), (2, 3), workers=0)
    with pytest.raises(DataError, match=message):
        list(split.batches([torch.tensor([0])], seed=1, crop_scale=crop_scale))
