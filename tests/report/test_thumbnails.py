"""Thumbnails: what a page shows of an image, how large it may be, and a sheet of them on a page of its own."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vit_search.report import page
from vit_search.report.page import Page, Section, Text
from vit_search.report.thumbnails import SIDE, Sheet, Thumbnail, Tile, thumbnail


def decoded(thumb: Thumbnail) -> Image.Image:
    head, _, body = thumb.source.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_a_small_image_keeps_each_of_its_pixels():
    pixels = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
    thumb = thumbnail(pixels, "a")
    assert np.asarray(decoded(thumb)).tolist() == np.moveaxis(pixels, 0, -1).tolist()
    assert thumb.coarse


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB"), (16, "RGB")])
def test_images_of_any_number_of_channels_are_shown(channels, mode):
    image = decoded(thumbnail(np.full((channels, 5, 5), 7, np.uint8), "a"))
    assert image.mode == mode
    assert set(np.asarray(image).ravel().tolist()) == {7}


def test_16_bits_are_shown_with_8():
    assert np.asarray(decoded(thumbnail(np.full((1, 2, 2), 0x1234, np.uint16), "a"))).tolist() == [[0x12, 0x12], [0x12, 0x12]]


@pytest.mark.parametrize("shape", [(3, 300, 200), (3, 64, 64), (1, 1, 5000)])
def test_a_thumbnail_adds_at_most_17_kb_even_of_noise(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    thumb = thumbnail(noise, "a")
    assert max(decoded(thumb).size) <= SIDE
    assert len(thumb.source) <= 17_000
    assert not thumb.coarse


def test_a_page_with_a_sheet_alone_has_no_script_and_escapes_its_words():
    tile = Tile([thumbnail(np.zeros((1, 8, 8), np.uint8), "a <b>\u202e")], ["<script>alert(1)</script>"])
    content = Page("t", "l", [], [Section("s", "S", [Text("x"), Sheet("Two & more.", [tile])])])
    html = page.render(content)
    assert "<script" not in html
    assert '<img src="data:image/png;base64,' in html
    assert 'alt="a &lt;b&gt;\\u202e"' in html
    assert "&lt;script&gt;" in html
    assert not re.search(r'src="(?!data:)', html)
    assert "On the page: Two & more." in page.markdown(content)
