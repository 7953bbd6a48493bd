"""Near duplicates of real photos: copies that were changed a little are found with their twin, other photos are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from vit_search.data import near_duplicates
from vit_search.data.near_duplicates import find_near_duplicates, similarity, too_small


@pytest.fixture(scope="module")
def tiles():
    """Squares of 96 pixels of two photos, 48 of them: a temple and a flower. Some are plain sky or blurred background."""
    squares = []
    for photo in load_sample_images().images:
        squares += [photo[y : y + 96, x : x + 96] for y in range(0, 427 - 95, 96) for x in range(0, 640 - 95, 96)]
    return [Image.fromarray(square) for square in squares]


def pixels(images, side=64):
    return np.stack([np.asarray(one.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1) for one in images])


def jpeg(image, quality=50):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


CHANGES = {
    "encoded again": jpeg,
    "half as large": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "twice as large": lambda image: image.resize((192, 192), Image.Resampling.BICUBIC),
    "5 % cropped away": lambda image: image.crop((4, 0, 95, 91)),
    "mirrored": ImageOps.mirror,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_with_its_twin(tiles, change):
    found = find_near_duplicates(pixels([CHANGES[change](tile) for tile in tiles]), [pixels(tiles[:20]), pixels(tiles[20:])])
    assert found.judged + found.plain == len(tiles)
    assert found.judged >= 30
    assert len(found.found) >= 0.9 * found.judged
    assert all(one.test == one.other and one.mirrored == (change == "mirrored") for one in found.found)
    order = [one.similarity for one in found.found]
    assert order == sorted(order, reverse=True) and order[-1] >= 0.95


def test_other_squares_of_the_same_photos_are_no_duplicates(tiles):
    found = find_near_duplicates(pixels(tiles[::2]), [pixels(tiles[1::2])])
    assert found.judged > 10
    assert found.found == ()


def test_images_without_detail_are_not_judged():
    rng = np.random.default_rng(0)
    plain = rng.integers(99, 102, (4, 1, 32, 32)).astype(np.uint8)
    found = find_near_duplicates(plain, [plain])
    assert (found.judged, found.plain, found.found) == (0, 4, ())


def test_16_bits_give_what_8_bits_give(tiles):
    test, others = pixels([jpeg(tile) for tile in tiles]), pixels(tiles)
    deep = find_near_duplicates(test.astype(np.uint16) * 257, [others.astype(np.uint16) * 257])
    flat = find_near_duplicates(test, [others])
    assert [(one.test, one.other) for one in deep.found] == [(one.test, one.other) for one in flat.found]


def test_equal_images_explain_each_other_wholly_and_brightness_counts(tiles):
    small = near_duplicates.shrunk(pixels(tiles[20:24]))
    assert similarity(small, small).tolist() == [1, 1, 1, 1]
    assert (similarity(small, small + 40) < 0.95).all()


def test_of_a_large_test_split_a_sample_is_judged(tiles, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_TEST_IMAGES", 10)
    found = find_near_duplicates(pixels(tiles), [pixels(tiles)])
    assert found.judged + found.plain == 10
    assert len(found.found) == found.judged


def test_images_below_32_pixels_are_too_small():
    assert too_small((28, 28)) and too_small((31, 64)) and not too_small((32, 32))
