"""A search over 5-channel TIFF files of 16 bits by the command line: counted by auto, trained, resumed, and asked for its predictions."""

import io
import json

import numpy as np
import pytest
import tifffile
import yaml
from helpers.commands import vit_search, vit_search_process
from PIL import Image

FILE = """name: deep
data: {name: image_folder, path: plates, image_size: 8, channels: auto, bit_depth: 16, val_fraction: 0.2}  # of the microscope
trials: 2
epochs: 4
stopping: {kind: none}
concurrency: 1
model: {patch_size: 4, dim: 16, depth: 1, heads: 2}
training: {lr: {float: [3e-3, 1e-2], log: true}, batch_size: 8, flip: true, auto_augment: trivial_augment}
"""


def tiff(values):
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig", compression="zlib")
    return file.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Plates of two classes, which differ by 1/200 of the scale in the last channel."""
    home, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(0)
    for i in range(60):
        values = 20_000 + rng.integers(0, 100, (12, 12, 5))
        values[..., 4] += i % 2 * 300
        path = home / "plates" / ("even", "odd")[i % 2] / f"{i:03}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff(values.astype(np.uint16)))
    (home / "deep.yaml").write_text(FILE)
    return home


@pytest.fixture(scope="module")
def searched(home):
    return vit_search_process(home, "run", "deep.yaml", timeout=1800)


def test_lint_and_plan_count_the_channels(home):
    report = json.loads(vit_search(home, "lint", "deep.yaml", "--json").stdout)
    five = json.loads(vit_search(home, "plan", "deep.yaml", "--json").stdout)
    (home / "by_hand.yaml").write_text(FILE.replace("auto, bit", "5, bit"))
    assert json.loads(vit_search(home, "lint", "by_hand.yaml", "--json").stdout) == report
    assert json.loads(vit_search(home, "plan", "by_hand.yaml", "--json").stdout)["params"] == five["params"]
    assert report["spreads"]["params"]["least"] > 5 * 4 * 4 * 16  # of the embedding alone


def test_the_search_keeps_the_number_and_learns_what_8_bits_do_not_show(home, searched):
    assert "2 of 2 trials" in searched.stdout
    kept = (home / "searches/deep-1/search.yaml").read_text()
    assert kept == FILE.replace("channels: auto", "channels: 5")
    facts = json.loads((home / "searches/deep-1/search.json").read_text())
    assert facts["resolved"]["data"]["channels"] == 5 and facts["image_shape"] == [5, 8, 8]
    trials = json.loads(vit_search(home, "show", "deep-1", "--json").stdout)
    assert trials[0]["val_accuracy"] == 1


def test_the_search_goes_on_with_the_same_number(home, searched):
    done = vit_search_process(home, "extend", "deep-1", "--trials", "3", timeout=1800)
    assert "3 of 3 trials" in done.stdout


def test_files_are_classified_by_the_reading_of_the_training(home, searched):
    places = [f"plates/{name}/{number:03}.tif" for name, number in (("even", 0), ("odd", 1), ("odd", 59))]
    np.save(home / "one.npy", tifffile.imread(home / places[1]))
    model = ["--model", "searches/deep-1/trials/0000/checkpoint"]
    done = vit_search(home, "predict", *model, *places, "one.npy", "--json")
    answers = json.loads(done.stdout)
    assert [one["label"] for one in answers] == ["even", "odd", "odd", "odd"]
    assert answers[3]["probability"] == answers[1]["probability"]
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(home / "photo.png")
    refused = vit_search(home, "predict", *model, "photo.png", code=2)
    assert refused.stderr.strip() == (
        "error: photo.png: 3 channels of 8 bits in this PNG file; this model takes 5 channels of 16 bits, as TIFF or NPY."
    )


def test_files_of_16_bits_that_are_read_as_8_are_noted(home):
    for i in range(8):
        path = home / "grey" / ("even", "odd")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 5000 * i, np.uint16)).save(path)
    old = FILE.replace("plates", "grey").replace("channels: auto, bit_depth: 16", "channels: 1")
    (home / "grey.yaml").write_text(old)
    note = "data.bit_depth: all 8 files that were looked at have 16 bits a value, and are read as 8; write bit_depth: 16 to keep them."
    found = json.loads(vit_search(home, "lint", "grey.yaml", "--json").stdout)["findings"]
    assert note in [f"{one['where']}: {one['text']}" for one in found]
    assert note in " ".join(vit_search(home, "plan", "grey.yaml").stderr.split())


BAD = {
    "another number": ({"channels": 4}, r"5 channels in this TIFF file, and 4 are needed (data.channels)"),
    "another depth": (
        {"bit_depth": 8},
        "the files of plates have 5 channels of 16 bits, and data.bit_depth is 8; write 16, or save the files with 8.",
    ),
    "no depth": ({"bit_depth": None}, "have 5 channels of 16 bits; write data.bit_depth: 16 besides, to keep them."),
    "too many": ({"channels": 17}, "data.channels: 17 will not do; give at most 16."),
}


@pytest.mark.parametrize(("change", "problem"), BAD.values(), ids=BAD)
def test_a_file_that_does_not_fit_the_images_ends_with_one_line(change, problem, home):
    document = yaml.safe_load(FILE)
    document["data"].update(change)
    document["data"] = {key: value for key, value in document["data"].items() if value is not None}
    (home / "bad.yaml").write_text(yaml.safe_dump(document))
    done = vit_search_process(home, "run", "bad.yaml", code=2)
    assert problem in done.stderr and "Traceback" not in done.stderr
    assert not list((home / "searches").glob("bad-*"))
