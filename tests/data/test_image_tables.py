"""Tables of images: what CSV and Parquet files say is read, and what is wrong with their rows is named before an image is decoded."""

import io
import json
import re

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from helpers.paths import ROOT
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from vit_search.cli.app import app
from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare, read_split
from vit_search.data.decode import begins_as_image, read_image
from vit_search.data.sources import open_source
from vit_search.errors import DataError
from vit_search.planning.image_counts import images_of


def png(seed, side=8):
    raw = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(raw, "PNG")
    return raw.getvalue()


def images(folder, count):
    """Files img/0.png to img/(count - 1).png; their names in the table."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / "img" / f"{i}.png").write_bytes(png(i))
    return [f"img/{i}.png" for i in range(count)]


def config(path, **fields):
    return DataConfig(name="table", path=str(path), image_size=8, **fields)


def csv_of(folder, rows, header="image,label", name="t.csv"):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(header + "\n" + "".join(f"{row}\n" for row in rows))
    return path


def cats_and_dogs(folder, count=20):
    """Twenty images, of which every second is a dog."""
    return [f"{name},{('cat', 'dog')[i % 2]}" for i, name in enumerate(images(folder, count))]


def classes_of(source):
    return [source.classes[label] for label in source.labels.tolist()]


def test_a_csv_of_paths_is_read_from_its_own_folder(tmp_path, monkeypatch):
    path = csv_of(tmp_path / "set", cats_and_dogs(tmp_path / "set"))
    monkeypatch.chdir(tmp_path)
    source = open_source(config("set/t.csv"))
    assert (source.classes, source.shape, len(source.labels)) == (("cat", "dog"), (3, 8, 8), 20)
    assert classes_of(source) == ["cat", "dog"] * 10
    assert np.array_equal(source.read(3), read_image(tmp_path / "set" / "img" / "3.png", (8, 8), 3))
    data = prepare(config(path), cache=tmp_path / "cache")
    assert sum(data.counts.values()) == 20
    assert data.summary.startswith("2 classes: cat, dog; 20 images (train ")
    planned = images_of(config(path))
    assert (planned.train, planned.val, planned.holdout) == tuple(data.counts[name] for name in ("train", "val", "holdout"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_quotes_byte_order_marks_and_empty_lines_of_csv_files(tmp_path, separator):
    names = images(tmp_path, 6)
    rows = [f'"{name}"{separator}"a, ""b"""' if i % 2 else f"{name}{separator} c " for i, name in enumerate(names)]
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"image{separator} label\r\n".encode() + "\r\n".join([*rows[:3], "", *rows[3:]]).encode())
    source = open_source(config(path))
    assert source.classes == ('a, "b"', "c")
    assert [source.where(i) for i in (0, 2, 3)] == ["line 2", "line 4", "line 6"]


LABELS = {
    "whole numbers in order of size": ([10, 9, -1] * 3, ("-1", "9", "10")),
    "floats of whole numbers": ([2.0, 1.0] * 3, ("1", "2")),
    "texts": (["b", "a"] * 3, ("a", "b")),
    "booleans": ([True, False] * 3, ("false", "true")),
    "texts of booleans": (["TRUE", "False"] * 3, ("false", "true")),
    "categories": (pd.Categorical(["z", "y"] * 3), ("y", "z")),
    "leading zeros": (["01", "002"] * 3, ("01", "002")),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_type_are_the_same_classes_in_csv_and_parquet(tmp_path, name, kind):
    labels, classes = LABELS[name]
    frame = pd.DataFrame({"image": images(tmp_path, len(labels)), "label": labels})
    path = tmp_path / f"t.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    source = open_source(config(path))
    assert source.classes == classes
    assert classes_of(source) == [str(one).lower() if str(one).lower() in classes else str(one).removesuffix(".0") for one in labels]


def hugging_face(path, labels, names=("cat", "dog"), rows_per_group=100, extra=None, contents=None):
    """A file as `datasets.Dataset.to_parquet` writes it: structs of bytes and path, whole numbers, and the names in the metadata."""
    contents = [png(i) for i in range(len(labels))] if contents is None else contents
    image = pyarrow.array([{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)])
    table = pyarrow.table({"image": image, "label": pyarrow.array(labels, pyarrow.int64()), **(extra or {})})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=rows_per_group)
    return path


def test_a_data_set_of_hugging_face_is_read_as_it_is(tmp_path):
    path = hugging_face(tmp_path / "t.parquet", [1, 0, 1] * 10, ("cat", "dog", "bird"), rows_per_group=7)
    source = open_source(config(path))
    assert source.classes == ("cat", "dog")  # no image is a bird
    assert classes_of(source) == ["dog", "cat", "dog"] * 10
    assert [np.array_equal(source.read(i), read_image(png(i), (8, 8), 3)) for i in (0, 6, 7, 29, 3)] == [True] * 5
    assert source.where(6) == "row 7"


def test_a_column_of_bytes_is_read_too(tmp_path):
    pd.DataFrame({"png": [png(i) for i in range(8)], "y": ["a", "b"] * 4}).to_parquet(tmp_path / "t.parquet")
    source = open_source(config(tmp_path / "t.parquet", image="png", label="y"))
    assert np.array_equal(source.read(5), read_image(png(5), (8, 8), 3))


def test_structs_of_hugging_face_without_bytes_name_files(tmp_path):
    names = images(tmp_path, 6)
    column = pyarrow.array(
        [{"bytes": None, "path": name} for name in names], pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    )
    parquet.write_table(pyarrow.table({"image": column, "label": ["a", "b"] * 3}), tmp_path / "t.parquet")
    source = open_source(config(tmp_path / "t.parquet"))
    assert source.names.tolist() == names


@pytest.mark.parametrize("kind", ["paths", "bytes"])
def test_a_streamed_table_is_the_decoded_table_under_the_same_hash(tmp_path, kind):
    labels = [0, 1] * 10
    if kind == "bytes":
        path = hugging_face(tmp_path / "t.parquet", labels, rows_per_group=3)
    else:
        path = csv_of(tmp_path, [f"{name},{label}" for name, label in zip(images(tmp_path, 20), labels, strict=True)])
    decoded, streamed = (prepare(config(path), cache=tmp_path / f"{limit}", stream_above=limit) for limit in (10**9, 1))
    assert (decoded.reader, streamed.data_hash, streamed.mean) == (None, decoded.data_hash, decoded.mean)
    assert streamed.reader is not None
    for split in ("train", "val", "test"):
        stream = load_split(streamed, split, decoders=0)
        [(pixels, own)] = stream.batches([torch.arange(len(stream))])
        expected = read_split(decoded, split)
        assert np.array_equal(pixels.numpy(), expected[0])
        assert np.array_equal(own.numpy(), expected[1])


def test_a_parquet_file_of_large_row_groups_is_not_streamed(tmp_path, monkeypatch):
    from vit_search.data.sources import table_file

    path = hugging_face(tmp_path / "t.parquet", [0, 1] * 10)
    assert open_source(config(path)).reader is not None
    monkeypatch.setattr(table_file, "STREAMED_BYTES", 1000)
    assert open_source(config(path)).reader is None


def test_a_set_that_cannot_be_streamed_and_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    from vit_search.data import cache
    from vit_search.data.sources import table_file

    path = hugging_face(tmp_path / "t.parquet", [0, 1] * 10)
    monkeypatch.setattr(table_file, "STREAMED_BYTES", 1000)
    monkeypatch.setattr(cache, "memory_of_this_machine", lambda: 2000)
    with pytest.raises(DataError, match=r"its images take .*, and this machine has .*; make data\.image_size smaller, or keep each image"):
        prepare(config(path), cache=tmp_path / "cache")


def test_the_table_of_the_guide_is_read_as_the_guide_says(tmp_path, monkeypatch):
    guide = (ROOT / "docs" / "guides" / "data.md").read_text()
    rows = re.search(r'```text title="scans.csv"\n(.*?)```', guide, re.DOTALL)[1].splitlines()
    section = re.search(r"```yaml\n(data:\n  name: table\n  path: scans\.csv\n.*?)```", guide, re.DOTALL)[1]
    labels, names = ("benign", "malignant"), images(tmp_path, 3 + 60)
    (tmp_path / "img").rename(tmp_path / "scans")
    for name, row in zip(names, rows[1:], strict=False):
        (tmp_path / "scans" / name.removeprefix("img/")).rename(tmp_path / row.split(",")[0])
    more = [f"scans/{i}.png,{labels[i % 2]},q{i // 4},{'test' if i < 24 else ''}" for i in range(3, 63)]
    (tmp_path / "scans.csv").write_text("\n".join([*rows, *more]))
    spec = search_file.parse(f"name: t\ntrials: 1\nepochs: 1\n{section}")
    monkeypatch.chdir(tmp_path)
    data = prepare(spec.data_config, cache=tmp_path / "cache")
    assert data.classes == labels
    assert data.counts["test"] == 22
    assert data.summary.startswith("2 classes: benign, malignant; 63 images of 18 groups (train ")


def test_the_data_hash_of_a_table_is_of_its_images_labels_splits_and_groups_and_not_of_its_format(tmp_path):
    names = images(tmp_path, 6)
    frame = pd.DataFrame({"image": names, "label": ["a", "b"] * 3, "group": range(6), "note": "x"})

    def hash_of(frame, kind="csv"):
        path = tmp_path / f"t.{kind}"
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
        return open_source(config(path)).fingerprint()

    first = hash_of(frame)
    assert hash_of(frame, "parquet") == hash_of(frame.assign(note="y")) == first
    others = [frame.assign(label=["b", "a"] * 3), frame.assign(group=[0, 1, 2, 3, 4, 6]), frame.drop(columns="group")]
    others.append(others[-1].assign(split=["train"] * 3 + [""] * 3))
    hashes = {first, *map(hash_of, others)}
    assert len(hashes) == 5
    (tmp_path / names[0]).write_bytes(png(99))
    assert hash_of(frame) not in hashes


def test_given_splits_are_kept_and_the_rest_is_drawn(tmp_path):
    names = images(tmp_path, 60)
    splits = ["test"] * 6 + ["Validation"] * 8 + [""] * 46
    path = csv_of(
        tmp_path, [f"{name},{'ab'[i % 2]},{split}" for i, (name, split) in enumerate(zip(names, splits, strict=True))], "image,label,split"
    )
    data = prepare(config(path), cache=tmp_path / "cache")
    assert (data.counts["test"], data.counts["val"]) == (6, 8)
    assert data.counts["train"] + data.counts["holdout"] == 46
    assert data.counts["holdout"] == pytest.approx(0.05 * 46, abs=1)
    planned = images_of(config(path))
    assert (planned.train, planned.val, planned.holdout) == (data.counts["train"], 8, data.counts["holdout"])
    rest = {image.tobytes() for image in read_split(data, "train", "holdout")[0]}
    assert rest == {read_image(tmp_path / name, (8, 8), 3).tobytes() for name in names[14:]}


def test_only_a_test_split_is_given_and_the_rest_is_drawn(tmp_path):
    names = images(tmp_path, 40)
    path = csv_of(tmp_path, [f"{name},{'ab'[i % 2]},{'test' if i < 10 else ''}" for i, name in enumerate(names)], "image,label,split")
    data = prepare(config(path), cache=tmp_path / "cache")
    assert data.counts["test"] == 10
    assert data.counts["val"] + data.counts["holdout"] == pytest.approx(0.15 * 30, abs=1)


def test_some_images_that_must_be_trained_on_leave_the_rest_to_be_drawn(tmp_path):
    names = images(tmp_path, 60)
    path = csv_of(tmp_path, [f"{name},{'ab'[i % 2]},{'train' if i < 20 else ''}" for i, name in enumerate(names)], "image,label,split")
    data = prepare(config(path), cache=tmp_path / "cache")
    assert data.counts["test"] == pytest.approx(0.15 * 40, abs=1)
    assert data.counts["val"] == pytest.approx(0.1 * 40, abs=1)
    trained = {image.tobytes() for image in read_split(data, "train")[0]}
    assert {read_image(tmp_path / name, (8, 8), 3).tobytes() for name in names[:20]} <= trained
    planned = images_of(config(path))
    assert planned.train == pytest.approx(data.counts["train"], abs=1)


def test_a_group_with_one_given_split_is_in_it_as_a_whole(tmp_path):
    names = images(tmp_path, 40)
    rows = [f"{name},{'ab'[i % 2]},{'test' if i in (0, 1) else ''},g{i // 4}" for i, name in enumerate(names)]
    data = prepare(config(csv_of(tmp_path, rows, "image,label,split,group")), cache=tmp_path / "cache")
    assert data.counts["test"] == 4


@pytest.mark.parametrize(
    ("content", "name", "is_one"),
    [
        (png(0), "", True),
        (b"II*\0", "", True),
        (b"x" * 99, "a.tga", True),
        (b"x" * 99, "a.png", False),
        (b"", "", False),
        (b"P", "", False),
    ],
)
def test_an_image_is_known_by_its_first_bytes(content, name, is_one):
    assert begins_as_image(content, name) == is_one


TOP = "image,label\n"
ENOUGH = "{10},cat\n{11},cat\n{12},cat\n{13},dog\n{14},dog\n{15},dog\n"
"""More rows, so that no class has too few images."""
WRONG = {
    "a label is missing": (
        "{0},cat\n{1},\n{2},nan\n{3},dog\n",
        "no label in the column 'label': lines 3, 4; give each row one, or remove it.",
    ),
    "many labels are missing": (
        "".join(f"{{{i}}},\n" for i in range(9)),
        "no label in the column 'label': lines 2, 3, 4, 5, 6, … 4 more; give each row one, or remove it.",
    ),
    "a file is missing": (
        "{0},cat\nimg/gone.png,dog\n" + ENOUGH,
        "no such file: SET/img/gone.png (line 3); correct the names; relative ones start",
    ),
    "a folder as an image": ("{0},cat\nimg,dog\n" + ENOUGH, "no such file: SET/img (line 3); correct the names"),
    "names of Windows": ("{0},cat\nimg\\9.png,dog\n" + ENOUGH, "start at the folder of the table, with / for \\."),
    "no image": ("{0},cat\nt.csv,dog\n" + ENOUGH, "not an image: SET/t.csv (line 3); replace such files, or remove their rows."),
    "an image without a name": ("{0},cat\n,dog\n" + ENOUGH, "no image in the column 'image': line 3; give each row one, or remove it."),
    "one image twice": ("{0},cat\n{1},dog\n./{0},cat\n" + ENOUGH, "the same image twice: ./img/0.png (lines 2, 4); keep one row of each."),
    "one image with two labels": (
        "{0},cat\n{1},dog\n{0},dog\n" + ENOUGH,
        "the same image with different labels: img/0.png (lines 2, 4: cat and dog); keep the right row of each.",
    ),
    "few images": (
        "{0},cat\n{1},cat\n{2},cat\n{3},dog\n{4},dog\n",
        "class dog has 2 images (lines 5, 6); each class needs at least 3: add images, or drop the class with data.label_map.",
    ),
    "one class": ("{0},cat\n{1},cat\n{2},cat\n", "1 class only in the column 'label'; a model needs two or more."),
    "no rows": ("\n", "no rows below the header; list one image in each row."),
    "cells that are missing": ("{0},cat\n{1}\n", "line 3 has 1 cells, and the header has 2; mend the line."),
    "cells that are too many": ("{0},cat\n{1},dog,brown\n", "line 3 has 3 cells, and the header has 2; mend the line."),
    "a quote that never ends": ('{0},cat\n"{1},dog\n', "no CSV file (unexpected end of data); save it as CSV in UTF-8, or as Parquet."),
}
WRONG_COLUMNS = {
    "a misspelt split": ("image,label,split", ["train", "tst", "", "tst"], "unknown split 'tst' (lines 3, 5); did you mean test?"),
    "a split of another language": (
        "image,label,split",
        ["train", "kontrolle"],
        "unknown split 'kontrolle' (line 3); give train, val or test, or leave it empty to have the image split by the seed.",
    ),
    "a group is missing": (
        "image,label,group",
        ["p1", "", "p2"],
        "no group in the column 'group': line 3; give each row one, or remove it.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_row_is_one_line(tmp_path, name):
    rows, message = WRONG[name]
    path = tmp_path / "t.csv"
    path.write_text(TOP + rows.format(*images(tmp_path, 16)))
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert message.replace("SET", str(tmp_path)) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", WRONG_COLUMNS)
def test_what_is_wrong_with_a_split_or_a_group_is_one_line(tmp_path, name):
    header, values, message = WRONG_COLUMNS[name]
    values = values + ["train"] * 6  # so that no class has too few images; as a group, it is no mistake either
    names = images(tmp_path, len(values))
    path = csv_of(tmp_path, [f"{name},{'ab'[i % 2]},{value}" for i, (name, value) in enumerate(zip(names, values, strict=True))], header)
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert str(refused.value) == f"{path}: {message}"


def test_groups_in_two_splits_and_classes_that_are_in_test_only_are_named_together(tmp_path):
    rows = [
        f"{name},{label},{split},{group}"
        for name, (label, split, group) in zip(
            images(tmp_path, 12),
            [("a", "train", "p1")] * 4
            + [("b", "train", "p2")] * 4
            + [("a", "test", "p1"), ("b", "val", "p2"), ("c", "test", "p3"), ("c", "test", "p4")],
            strict=True,
        )
    ]
    path = csv_of(tmp_path, rows, "image,label,split,group")
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert str(refused.value).splitlines() == [
        f"{path}: 2 kinds of mistakes:",
        "  2 groups are in more than one split: p1 (line 2 train, line 10 test), p2 (line 6 train, line 11 val); "
        "put all images of a group into one split.",
        "  a class is not in the training images: c (test: lines 12, 13); "
        "move some images to train, or drop the class with data.label_map.",
    ]


def test_groups_in_two_splits_and_small_classes_are_named_with_the_mistakes_of_single_rows(tmp_path):
    splits = ["train"] * 3 + ["trian"] + ["train"] * 4 + ["test", "", "trian"]  # p4 is in one known split and in an unknown one
    groups = ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p1", "p9", "p8"]
    labels = ["a", "b"] * 4 + ["a", "c", "b"]
    rows = [
        f"{name},{label},{split},{group}" for name, label, split, group in zip(images(tmp_path, 11), labels, splits, groups, strict=True)
    ]
    path = csv_of(tmp_path, rows, "image,label,split,group")
    expected = [
        "unknown split 'trian' (lines 5, 12); did you mean train?",
        "a group is in more than one split: p1 (line 2 train, line 10 test); put all images of a group into one split.",
        "class c has 1 image (line 11); each class needs at least 3 without a split or in train: add images, or drop the class with "
        "data.label_map.",
    ]
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert str(refused.value) == "\n  ".join([f"{path}: 3 kinds of mistakes:", *expected])
    with pytest.raises(DataError) as refused:
        open_source(config(path, label_map={"c": None}))
    assert str(refused.value) == "\n  ".join([f"{path}: 2 kinds of mistakes:", *expected[:2]])
    with pytest.raises(DataError) as refused:
        open_source(config(path, label_map={"a": None}))  # with all rows of p1
    assert str(refused.value) == f"{path}: {expected[0]}"


def test_a_row_without_a_label_hides_no_group_in_two_splits(tmp_path):
    rows = [f"{name},{'ab'[i % 2] if i else ''},{'test' if i == 8 else 'train'},p{i % 8}" for i, name in enumerate(images(tmp_path, 9))]
    path = csv_of(tmp_path, rows, "image,label,split,group")
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert str(refused.value).splitlines()[1:] == [
        "  no label in the column 'label': line 2; give each row one, or remove it.",
        "  a group is in more than one split: p0 (line 2 train, line 10 test); put all images of a group into one split.",
    ]


def test_a_class_of_too_few_groups_is_named(tmp_path):
    rows = [f"{name},{'ab'[i % 2]},g{i % 4}" for i, name in enumerate(images(tmp_path, 40))]
    path = csv_of(tmp_path, rows, "image,label,group")
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert str(refused.value) == (
        f"{path}: class a has 2 groups, class b has 2 groups; each class needs at least 3, one each for training, validation and test: "
        "add images of other groups, or drop the class."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "lable"}, "data.label: PATH has no column 'lable'; did you mean label?"),
        ({"image": "photo"}, "data.image: PATH has no column 'photo'; its columns are image, label."),
        ({"group": "patient"}, "data.group: PATH has no column 'patient'; its columns are image, label."),
        ({"label": "image"}, "data.label: the column 'image' is that of data.image, too; name another one."),
    ],
)
def test_a_column_that_is_not_there_is_told_its_nearest_name(tmp_path, fields, message):
    path = csv_of(tmp_path, cats_and_dogs(tmp_path))
    with pytest.raises(DataError) as refused:
        open_source(config(path, **fields))
    assert str(refused.value) == message.replace("PATH", str(path))


def test_a_column_called_group_may_hold_the_labels(tmp_path):
    source = open_source(config(csv_of(tmp_path, cats_and_dogs(tmp_path), "image,group"), label="group"))
    assert (source.classes, source.groups) == (("cat", "dog"), None)


def test_without_a_column_called_image_the_columns_are_listed(tmp_path):
    path = csv_of(tmp_path, ["a.png,cat"], "file,class")
    with pytest.raises(DataError, match=r"has no column 'image'; name the one to use, of its columns file, class\.$"):
        open_source(config(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "cannot be read (No such file or directory); name a CSV or Parquet file."),
        ("t.parquet", b"image,label\n", "no Parquet file by its content; write it again, or name another."),
        ("t.parquet", b"PAR1 and then nothing", "a Parquet file that is damaged or cut off; write or copy it again."),
        ("t.xlsx", b"PK\x03\x04\xff\xfe", "neither a Parquet file nor text in UTF-8; save it as CSV in UTF-8, or as Parquet."),
        ("t.csv", b"", "no header; write the names of the columns into the first line."),
        ("t.csv", b"image,image\n", "the column 'image' is there twice; give each column a name of its own."),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert str(refused.value).startswith(f"{path}: {message}")
    assert "\n" not in str(refused.value)


def test_a_folder_of_parquet_files_has_the_splits_that_their_names_begin_with(tmp_path):
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 10), ("validation-00000-of-00001", 20), ("test", 30)):
        labels = [i % 2 for i in range(first, first + 10)]
        hugging_face(tmp_path / f"{name}.parquet", labels, rows_per_group=4, contents=[png(i) for i in range(first, first + 10)])
    source = open_source(config(tmp_path))
    assert source.splits.tolist() == ["test"] * 10 + ["train"] * 20 + ["val"] * 10  # in the order of the files' names
    assert [np.array_equal(source.read(i), read_image(png(j), (8, 8), 3)) for i, j in ((0, 30), (13, 3), (25, 15), (39, 29))] == [True] * 4
    assert source.where(13) == "row 4 of train-00000-of-00002.parquet"
    data = prepare(config(tmp_path, holdout_fraction=0), cache=tmp_path / "cache")
    assert data.counts == {"train": 20, "val": 10, "holdout": 0, "test": 10}


def test_files_of_a_folder_that_differ_are_refused(tmp_path):
    hugging_face(tmp_path / "a.parquet", [0, 1] * 5)
    pd.DataFrame({"image": [png(0)], "label": [1]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b\.parquet: its column 'image' is missing, or of another type than that of a\.parquet; write both"
    ):
        open_source(config(tmp_path))


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(
        DataError, match=r"a folder without Parquet files; name a CSV or Parquet file, or write data\.name: image_folder\.$"
    ):
        open_source(config(tmp_path))


def test_bytes_that_are_no_image_and_labels_of_minus_one_are_named_by_their_rows(tmp_path):
    contents = [png(i) for i in range(8)]
    contents[2], contents[5] = b"no image", None
    path = hugging_face(tmp_path / "t.parquet", [0, 1, 0, 1, 0, 1, 0, -1], contents=contents, rows_per_group=3)
    with pytest.raises(DataError) as refused:
        open_source(config(path))
    assert str(refused.value).splitlines() == [
        f"{path}: 3 kinds of mistakes:",
        "  the label -1, and the file has names for 0 to 1: row 8; remove rows without a label, or write the file again.",
        "  no image in the column 'image': row 6; remove such rows.",
        "  bytes that are no image in the column 'image': row 3; give the bytes of image files, as PNG or JPEG.",
    ]


def test_bytes_that_are_cut_off_are_named_by_their_row_when_they_are_decoded(tmp_path):
    contents = [png(i, side=40) for i in range(8)]
    contents[3] = contents[3][:200]
    path = hugging_face(tmp_path / "t.parquet", [0, 1] * 4, contents=contents)
    with pytest.raises(DataError, match=rf"^{path}: row 4: image: no image that can be decoded"):
        prepare(config(path), cache=tmp_path / "cache")


def test_a_column_of_numbers_is_no_column_of_images(tmp_path):
    pd.DataFrame({"image": [1, 2], "label": [1, 2]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"the column 'image' holds int64; name one of file names, or of the bytes of image files\.$"):
        open_source(config(tmp_path / "t.parquet"))


@pytest.mark.parametrize("command", ["lint", "plan"])
def test_a_mistake_of_a_row_ends_a_command_with_the_line_of_the_search_file(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    csv_of(tmp_path, [*cats_and_dogs(tmp_path), "img/gone.png,cat"])
    (tmp_path / "t.yaml").write_text("name: t\ntrials: 1\nepochs: 1\ndata:\n  name: table\n  path: t.csv\n  image_size: 8\n")
    done = CliRunner().invoke(app, [command, "t.yaml"])
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith("t.yaml:6: data.path: t.csv: no such file: img/gone.png (line 22); correct the names;")
    (tmp_path / "t.yaml").write_text(
        "name: t\ntrials: 1\nepochs: 1\ndata:\n  name: table\n  path: t.csv\n  image_size: 8\n  label: lable\n"
    )
    done = CliRunner().invoke(app, [command, "t.yaml"])
    assert str(done.exception) == "t.yaml:8: data.label: t.csv has no column 'lable'; did you mean label?"
