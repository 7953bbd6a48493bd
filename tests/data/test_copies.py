"""The same bytes twice, with different labels or with the same label: both are told."""

import io
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare
from vit_search.planning.file_findings import of_copies

SEEDS = [*range(19), 3]
"""Image 19 is image 3."""

LABELS = ["cat", "dog"] * 9 + ["cat", "cat"]
"""Image 3 is a dog, and image 19 a cat."""


def png(seed):
    raw = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(raw, "PNG")
    return raw.getvalue()


def image_folder(root, seeds, labels):
    for i, (seed, label) in enumerate(zip(seeds, labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{i:02}.png").write_bytes(png(seed))
    return root


def csv_table(root, seeds, labels):
    root.mkdir()
    for i, seed in enumerate(seeds):
        (root / f"{i}.png").write_bytes(png(seed))
    pd.DataFrame({"image": [f"{i}.png" for i in range(len(seeds))], "label": labels}).to_csv(root / "t.csv", index=False)
    return root / "t.csv"


def parquet_table(root, seeds, labels):
    root.mkdir()
    pd.DataFrame({"image": [png(seed) for seed in seeds], "label": labels}).to_parquet(root / "t.parquet", row_group_size=7)
    return root / "t.parquet"


def shards(root, seeds, labels):
    root.mkdir()
    for first in (0, 10):
        with tarfile.open(root / f"{first}.tar", "w") as tar:
            for i in range(first, first + 10):
                for ending, content in (("png", png(seeds[i])), ("cls", labels[i].encode())):
                    member = tarfile.TarInfo(f"{i:02}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root


KINDS = {
    "image_folder": (image_folder, "cat/19.png, dog/03.png (cat and dog)", "dog/03.png, dog/19.png"),
    "table": (csv_table, "lines 5, 21 (dog and cat)", "lines 5, 21"),
    "table of bytes": (parquet_table, "rows 4, 20 (dog and cat)", "rows 4, 20"),
    "webdataset": (shards, "0.tar: 03, 10.tar: 19 (dog and cat)", "0.tar: 03, 10.tar: 19"),
}


def findings(name, path):
    data = f"data: {{name: {name}, path: {path}, image_size: 8}}"
    text = f"name: x\n{data}\ntrials: 2\nepochs: 2\nmodel: {{patch_size: 4}}\ntraining: {{lr: {{float: [1e-3, 1e-2]}}}}\n"
    found = list(of_copies(search_file.parse(text)))
    assert all(one.text.startswith(f"{path}: ") for one in found)
    return [(one.severity, one.text.removeprefix(f"{path}: ")) for one in found]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_image_with_different_labels_is_told(tmp_path, kind):
    make, pair, _ = KINDS[kind]
    path, name = make(tmp_path / "data", SEEDS, LABELS), kind.partition(" ")[0]
    message = f"the same image with different labels: {pair}"
    for stream_above in (None, 0):
        config = DataConfig(name=name, path=str(path), image_size=8)
        assert prepare(config, cache=tmp_path / f"{stream_above}", stream_above=stream_above).summary.endswith(f"; {message}")
    assert findings(name, path) == [("warning", f"{message}; keep the right one of each.")]


def test_an_image_that_is_in_two_classes_many_times_is_told_once(tmp_path):
    path = image_folder(tmp_path / "data", [*range(10), 3, 3, 3], [*["cat"] * 10, *["dog"] * 3])
    assert findings("image_folder", path) == [
        ("warning", "the same image with different labels: cat/03.png, dog/10.png (cat and dog); keep the right one of each.")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_image_twice_with_one_label_is_a_hint_of_lint(tmp_path, kind):
    make, _, pair = KINDS[kind]
    path, name = make(tmp_path / "data", SEEDS, [*LABELS[:19], "dog"]), kind.partition(" ")[0]
    fact = f"1 image is a copy of another one with the same label ({pair})"
    assert findings(name, path) == [("hint", f"{fact}; remove it: in two splits, it makes results look too good.")]
    assert prepare(DataConfig(name=name, path=str(path), image_size=8), cache=tmp_path / "cache").counts["train"] > 10


def test_copies_in_two_splits_are_a_remark_of_the_data(tmp_path):
    root = tmp_path / "data"
    image_folder(root / "train", range(12), ["cat", "dog"] * 6)
    image_folder(root / "val", [20, 21, 22, 3], ["cat", "dog"] * 2)
    data = prepare(DataConfig(name="image_folder", path=str(root), image_size=8), cache=tmp_path / "cache")
    assert data.summary.endswith("; 1 image in two splits (train/dog/03.png, val/dog/03.png)")


def test_classes_that_a_map_merges_do_not_contradict_each_other(tmp_path):
    path = image_folder(tmp_path / "data", [*SEEDS, *range(30, 34)], [*LABELS, *["bird"] * 4])
    config = DataConfig(name="image_folder", path=str(path), image_size=8, label_map={"cat": "pet", "dog": "pet"})
    assert sum(prepare(config, cache=tmp_path / "cache").counts.values()) == 24
