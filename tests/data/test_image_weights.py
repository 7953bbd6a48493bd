"""Weights of images: read from a table or from shards, kept beside the labels, and checked before an image is decoded."""

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vit_search.cli.app import app
from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.data.batches import StreamedSplit, load_split, training_weights
from vit_search.data.cache import prepare, read_split, read_weights
from vit_search.data.epoch_order import epoch_order
from vit_search.data.sources import open_source
from vit_search.data.sources.shard_labels import document_of, label_in, of_cls, weight_in
from vit_search.errors import DataError, SpecError
from vit_search.planning import search_lint
from vit_search.planning.image_counts import images_of


def png(seed):
    raw = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(raw, "PNG")
    return raw.getvalue()


def frame(folder, count=40, **columns):
    """A table of so many images, every second a dog; its other columns by name."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))
    return pd.DataFrame({"image": [f"{i}.png" for i in range(count)], "label": ["cat", "dog"] * (count // 2), **columns})


def written(folder, table, kind="csv"):
    path = folder / f"t.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    return path


def config(path, weight="w", **fields):
    return DataConfig(name="table", path=str(path), image_size=8, weight=weight, **fields)


def refusal(path, **fields):
    with pytest.raises(DataError) as refused:
        images_of(config(path, **fields))
    return str(refused.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_weights_are_read_and_kept_beside_the_labels(tmp_path, kind):
    weights = np.arange(40) / 8  # exact in a text, too
    path = written(tmp_path, frame(tmp_path, w=weights), kind)
    source = open_source(config(path))
    assert source.weights.tolist() == weights.tolist()
    assert source.summary() == "2 classes: cat, dog; 40 images; weights 0 to 4.875, mean 2.438, 1 image of weight 0"
    data = prepare(config(path), cache=tmp_path / "cache")
    images = {source.read(i).tobytes(): weights[i] for i in range(40)}
    for split in ("train", "val"):
        assert [images[image.tobytes()] for image in read_split(data, split)[0]] == read_weights(data, split).tolist()
    assert read_weights(data, "train", "val").tolist() == [*read_weights(data, "train"), *read_weights(data, "val")]
    assert read_weights(data, "test") is None  # tests know no weights
    loaded = load_split(data, "train")
    raw = read_weights(data, "train")
    assert loaded.weights.tolist() == pytest.approx((raw / raw[raw > 0].mean()).tolist())


def test_a_column_called_weight_is_used_only_if_the_search_file_names_it(tmp_path):
    path = written(tmp_path, frame(tmp_path, weight=[70.5, 80.0] * 20))
    plain = config(path, weight=None)
    assert open_source(plain).weights is None
    data = prepare(plain, cache=tmp_path / "cache")
    assert not list(data.folder.glob("*weights*"))
    assert load_split(data, "train").weights is None
    assert prepare(config(path, weight="weight"), cache=tmp_path / "cache").data_hash != data.data_hash


def test_a_changed_weight_is_other_data_and_the_format_is_not(tmp_path):
    table = frame(tmp_path, w=[1.0, 2.0] * 20)
    hashes = [open_source(config(written(tmp_path, table, kind))).fingerprint() for kind in ("csv", "parquet")]
    assert hashes[0] == hashes[1]
    assert open_source(config(written(tmp_path, table.assign(w=[1, 2] * 20)))).fingerprint() == hashes[0]
    assert open_source(config(written(tmp_path, table.assign(w=[1.0, 2.0] * 19 + [1.0, 2.5])))).fingerprint() != hashes[0]
    assert open_source(config(written(tmp_path, table), weight=None)).fingerprint() != hashes[0]


def test_a_streamed_table_has_the_same_weights(tmp_path):
    path = written(tmp_path, frame(tmp_path, w=np.arange(40)))
    held, streamed = (prepare(config(path), cache=tmp_path / f"c{above}", stream_above=above) for above in (10**9, 0))
    assert held.data_hash == streamed.data_hash
    first, second = (load_split(data, "train", "val", decoders=0) for data in (held, streamed))
    assert isinstance(second, StreamedSplit)
    assert torch.equal(first.weights, second.weights)


def test_weights_follow_their_images_through_a_label_map(tmp_path):
    path = written(tmp_path, frame(tmp_path, label=["cat", "dog", "bird", "dog"] * 10, w=np.arange(40)))
    source = open_source(config(path, label_map={"bird": None}))
    assert source.weights.tolist() == [i for i in range(40) if i % 4 != 2]


def test_weights_have_the_mean_1_over_the_images_that_are_trained_on():
    assert training_weights(np.array([0.0, 1.0, 3.0])).tolist() == [0.0, 0.5, 1.5]
    assert training_weights(np.array([1e308, 1.5e308, 0.0])).tolist() == pytest.approx([0.8, 1.2, 0])
    assert training_weights(np.array([0.1] * 7)) is None
    assert training_weights(np.array([5.0, 0.0, 5.0])).tolist() == [1, 0, 1]


def test_an_epoch_shows_no_image_of_weight_0():
    labels, weights = torch.tensor([0, 1] * 10), torch.tensor([0.0, 1.0, 2.0, 1.0] * 5)
    for balanced in (False, True):
        order = epoch_order(labels, weights, torch.Generator().manual_seed(1), balanced=balanced)
        assert len(order) == 15
        assert not (order % 4 == 0).any()
        assert (len(order.unique()) == 15) is not balanced
    assert torch.bincount(labels[order]).tolist() in ([7, 8], [8, 7])


def test_a_plan_counts_the_images_that_are_trained_on(tmp_path):
    path = written(tmp_path, frame(tmp_path, split=["train"] * 28 + ["val"] * 6 + ["test"] * 6, w=[0, 0, 1, 2] * 10))
    planned = images_of(config(path, holdout_fraction=0))
    assert (planned.train, planned.val) == (14, 6)


BAD = {
    "a text": ({3: "heavy"}, "wrong weight in the column 'w': 'heavy' (line 5); give finite numbers of at least 0."),
    "below 0": ({3: "-1", 8: "-1", 9: "-0.5"}, "wrong weight in the column 'w': '-1' (lines 5, 10), '-0.5' (line 11); give finite numbers"),
    "infinite": ({0: "inf"}, "wrong weight in the column 'w': 'inf' (line 2); give finite numbers of at least 0."),
    "a group of digits": ({0: "1_000"}, "wrong weight in the column 'w': '1_000' (line 2); give finite numbers of at least 0."),
    "missing": ({6: "", 7: " "}, "no weight in the column 'w': lines 8, 9; give each row one, or remove it."),
    "no number": (
        {6: "NaN", 7: "null"},
        "wrong weight in the column 'w': 'NaN' (line 8), 'null' (line 9); give finite numbers of at least 0.",
    ),
    "true": ({6: "True"}, "wrong weight in the column 'w': 'True' (line 8); give finite numbers of at least 0."),
    "5,000 digits": ({6: "9" * 5_000}, f"wrong weight in the column 'w': '{'9' * 40}…' (5,000 characters) (line 8); give finite numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_weight_is_one_line_with_its_rows(tmp_path, name):
    values, message = BAD[name]
    path = written(tmp_path, frame(tmp_path, w=[values.get(i, "1") for i in range(40)]))
    assert refusal(path).startswith(message)


def test_mistakes_in_weights_are_told_with_all_others(tmp_path):
    table = frame(tmp_path, w=["1"] * 38 + ["", "x"]).assign(label=["", "dog"] + ["cat", "dog"] * 19)
    assert refusal(written(tmp_path, table)).splitlines() == [
        "3 kinds of mistakes:",
        "  no label in the column 'label': line 2; give each row one, or remove it.",
        "  no weight in the column 'w': line 40; give each row one, or remove it.",
        "  wrong weight in the column 'w': 'x' (line 41); give finite numbers of at least 0.",
    ]


def test_true_and_false_are_no_weights(tmp_path):
    path = written(tmp_path, frame(tmp_path, w=[True, False] * 20), "parquet")
    assert refusal(path).startswith("wrong weight in the column 'w': 'true' (rows 1, 3, 5, 7, 9, … 15 more), 'false' (rows 2, ")


def test_a_class_or_a_data_set_without_a_weight_above_0_is_refused_with_its_rows(tmp_path):
    splits = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    path = written(tmp_path, frame(tmp_path, split=splits, w=[0] * 20 + [1] * 20))
    assert (
        refusal(path, holdout_fraction=0)
        == "all training images have the weight 0 (lines 2, 3, 4, 5, 6, … 15 more); give those to train on a larger one."
    )
    path = written(tmp_path, frame(tmp_path, split=splits, w=[0, 1] * 20))
    message = (
        "all training images of cat have the weight 0 (lines 2, 4, 6, 8, 10, … 5 more); give those to train on a larger one, or drop the "
        "class with data.label_map."
    )
    assert refusal(path, holdout_fraction=0) == message
    with pytest.raises(DataError, match="all training images of cat have the weight 0"):
        prepare(config(path, holdout_fraction=0), cache=tmp_path / "cache")
    (tmp_path / "s.yaml").write_text(
        f"name: t\ndata: {{name: table, path: {path}, image_size: 8, weight: w, holdout_fraction: 0}}\ntrials: 3\nepochs: 3\n"
    )
    for command in ("lint", "plan"):
        result = CliRunner().invoke(app, [command, str(tmp_path / "s.yaml")])
        assert str(result.exception) == f"{tmp_path / 's.yaml'}:2: data.path: {path}: {message}"


def test_a_column_of_weights_that_is_not_there_is_told_its_nearest_name(tmp_path):
    path = written(tmp_path, frame(tmp_path, weights=1))
    with pytest.raises(DataError, match=r"data\.weight: .* has no column 'weight'; did you mean weights\?"):
        open_source(config(path, weight="weight"))
    with pytest.raises(DataError, match=r"data\.weight: the column 'label' is that of data\.label, too"):
        open_source(config(path, weight="label"))
    with pytest.raises(SpecError, match=r"data\.weight: image_folder does not take it, only table and webdataset; drop the key"):
        search_file.parse("name: t\ndata: {name: image_folder, path: x, image_size: 8, weight: w}\ntrials: 3\nepochs: 3\n")


def test_lint_hints_at_weights_of_which_a_few_outweigh_all_others(tmp_path):
    def hints(weights):
        path = written(tmp_path, frame(tmp_path, 100, split=["train"] * 80 + ["val"] * 10 + ["test"] * 10, w=weights))
        text = f"name: t\ndata: {{name: table, path: {path}, image_size: 8, weight: w}}\ntrials: 9\nepochs: 27\n"
        findings = search_lint.lint(search_file.parse(text)).findings
        return [finding.text for finding in findings if finding.where == "data.weight"]

    # 4 of 80 are held out; (2 * 1000 + 74)^2 / (2 * 1000^2 + 74) = 2.15
    assert hints([1000, 1000] + [1] * 98) == ["the weights are so uneven that 76 training images count as 2; look at the largest ones."]
    assert hints([10, 10] + [1] * 98) == []


def shards(folder, weight):
    """A shard of 20 keys with JSON labels; `weight(i)` gives what else the JSON of a key has, or None for a .cls beside no JSON."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i in range(20):
            extra = weight(i)
            files = {f"{i:02}.png": png(i), f"{i:02}.cls": str(i % 2).encode()}
            files |= {} if extra is None else {f"{i:02}.json": json.dumps(extra).encode()}
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return DataConfig(name="webdataset", path=str(folder), image_size=8, weight="w")


def test_the_weights_of_shards_are_in_their_json_files(tmp_path):
    source = open_source(shards(tmp_path, lambda i: {"w": i / 4}))
    assert source.weights.tolist() == [i / 4 for i in range(20)]
    assert source.classes == ("0", "1")  # of the .cls files, which come first
    assert "weights 0 to 4.75, mean 2.375, 1 image of weight 0" in source.summary()
    data = prepare(shards(tmp_path, lambda i: {"w": i / 4}), cache=tmp_path / "cache")
    assert len(read_weights(data, "train")) == data.counts["train"]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda i: {"w": -1 if i == 3 else 1}, "03: 'w' in its .json is -1; give a finite number of at least 0."),
        (lambda i: {"w": True if i == 3 else 1}, "03: 'w' in its .json is true; give a finite number of at least 0."),
        (lambda i: {"w": float("nan") if i == 3 else 1}, "03: 'w' in its .json is NaN; give a finite number of at least 0."),
        (lambda i: {"w": float("-inf") if i == 3 else 1}, "03: 'w' in its .json is -Infinity; give a finite number of at least 0."),
        (lambda i: {"w": "heavy" if i == 3 else 1}, "03: 'w' in its .json is \"heavy\"; give a finite number of at least 0."),
        (lambda i: {"w": [1] if i == 3 else 1}, "03: 'w' in its .json is [1]; give a finite number of at least 0."),
        (lambda i: {"w": None if i == 3 else 1}, "03: 'w' in its .json is null; give the weight."),
        (lambda i: {"w": 10**4_000 if i == 3 else 1}, f"03: 'w' in its .json is 1{'0' * 79}…; give a finite number of at least 0."),
        (lambda i: None if i > 17 else {"w": 1}, "18, 19: no KEY.json with its weight; add one with 'w'."),
    ],
)
def test_what_is_wrong_with_the_weights_of_shards_is_one_line(tmp_path, weight, message):
    with pytest.raises(DataError) as refused:
        open_source(shards(tmp_path, weight))
    assert str(refused.value) == f"{tmp_path / 'a.tar'}: {message}"


def test_a_wrong_name_of_the_weights_of_shards_is_a_mistake_of_its_own_line(tmp_path):
    with pytest.raises(DataError) as refused:
        open_source(shards(tmp_path, lambda i: {"W": 1}))
    places = f"{tmp_path / 'a.tar'}: 00, 01, 02, 03, 04, … 15 more"
    assert str(refused.value) == f"data.weight: {places}: its .json has no 'w'; did you mean 'W'?"


def test_a_weight_in_json_may_be_a_text_that_holds_a_number(tmp_path):
    source = open_source(shards(tmp_path, lambda i: {"w": "0.5" if i % 2 else 2}))
    assert source.weights.tolist() == [2, 0.5] * 10


@pytest.mark.parametrize(("number", "shown"), [("9" * 5_000, "a number of 5,000 characters"), ("1e999", "1e999"), ("-1e999", "-1e999")])
def test_a_number_that_python_does_not_read_is_no_damage_of_the_json(tmp_path, number, shown):
    content = f'{{"label": "cat", "id": {number}, "w": 1}}'.encode()
    assert (label_in(document_of(content), "label"), weight_in(document_of(content), "w")) == ("cat", 1)
    with pytest.raises(ValueError, match="'id' in its") as refused:
        weight_in(document_of(content), "id")
    assert str(refused.value) == f"'id' in its .json is {shown}; give a finite number of at least 0."
    with pytest.raises(ValueError, match=f"'id' in its .json is {shown}; give a whole number or a name"):
        label_in(document_of(content), "id")
    assert of_cls(b"9" * 5_000) == "9" * 5_000 and of_cls(b"--5") == "--5" and of_cls(b"-5") == -5


def test_shards_are_read_as_before_without_a_key_of_weights(tmp_path):
    config = shards(tmp_path, lambda i: {"w": "x"})
    source = open_source(DataConfig(name="webdataset", path=config.path, image_size=8))
    assert source.weights is None
