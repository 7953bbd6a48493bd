"""label_map merges, renames and drops the classes of any source."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vit_search.cli.app import app
from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.cache import prepare, read_split
from vit_search.data.sources import open_source
from vit_search.errors import DataError, SpecError
from vit_search.planning.fixed_file import fixed_file
from vit_search.planning.image_counts import images_of


def folder(root, counts):
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            path = root / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), (i, number, len(name)), np.uint8)).save(path)  # no two alike
    return root


def config(root, label_map, **fields):
    return DataConfig(name="image_folder", path=str(root), image_size=8, label_map=label_map, **fields)


def test_classes_are_merged_renamed_and_dropped(tmp_path):
    root = folder(tmp_path / "p", {"cat": 6, "dog": 5, "kitten": 4, "unsure": 3, "wolf": 3})
    source = open_source(config(root, {"kitten": "cat", "dog": "canine", "wolf": "canine", "unsure": None}))
    assert source.classes == ("cat", "canine")
    assert np.bincount(source.labels).tolist() == [10, 8]
    assert source.summary() == "2 classes: cat, canine; 18 images; 3 dropped by label_map"
    assert [source.where(i) for i in (0, 11)] == ["cat/0.png", "kitten/0.png"]
    assert source.read(12)[0, 0, 0] == 1  # kitten/1.png
    data = prepare(config(root, {"kitten": "cat", "unsure": None}), cache=tmp_path / "cache")
    assert (data.classes, sum(data.counts.values())) == (("cat", "dog", "wolf"), 18)


def test_a_new_name_is_not_looked_up_again(tmp_path):
    root = folder(tmp_path, {"a": 3, "b": 4, "c": 5})
    source = open_source(config(root, {"a": "b", "b": "c"}))
    assert (source.classes, np.bincount(source.labels).tolist()) == (("b", "c"), [3, 9])


def test_a_class_of_few_images_may_be_merged_or_dropped_and_so_may_one_that_only_val_has(tmp_path):
    root = folder(tmp_path, {"train/cat": 3, "train/dog": 3, "train/puppy": 1, "val/cat": 1, "val/kitten": 2, "val/bird": 1})
    source = open_source(config(root, {"puppy": "dog", "kitten": "cat", "bird": None}))
    assert (source.classes, np.bincount(source.labels).tolist()) == (("cat", "dog"), [6, 4])
    with pytest.raises(DataError) as refused:
        open_source(config(root, {"puppy": "dog"}))
    assert str(refused.value) == (
        f"{root}: 2 classes are not in the training images: bird (val: val/bird/0.png), kitten (val: val/kitten/0.png, val/kitten/1.png); "
        "move some images to train, or drop the class with data.label_map."
    )


def test_the_digits_become_even_and_odd(tmp_path):
    numbers = {str(i): ("even", "odd")[i % 2] for i in range(10)}
    data = prepare(DataConfig(name="digits", label_map=numbers), cache=tmp_path)
    assert (data.classes, sum(data.counts.values())) == (("even", "odd"), 1797)
    plain = prepare(DataConfig(name="digits"), cache=tmp_path)
    assert data.data_hash != plain.data_hash
    assert prepare(DataConfig(name="digits", label_map={str(i): None for i in range(8)}), cache=tmp_path).classes == ("8", "9")
    planned = images_of(DataConfig(name="digits", label_map={str(i): None for i in range(8)}))
    assert planned.train == pytest.approx(0.7 * 354, abs=2)


def test_a_streamed_set_with_a_label_map_is_the_decoded_one(tmp_path):
    root = folder(tmp_path / "p", {"cat": 6, "dog": 5, "kitten": 4, "unsure": 3})
    fields = config(root, {"kitten": "cat", "unsure": None})
    decoded, streamed = (prepare(fields, cache=tmp_path / f"{limit}", stream_above=limit) for limit in (10**9, 1))
    assert decoded.data_hash == streamed.data_hash
    for split in ("train", "val", "test"):
        names, labels = read_split(streamed, split)
        pixels, others = read_split(decoded, split)
        assert np.array_equal(labels, others)
        assert [streamed.reader(str(name), (8, 8)).tolist() for name in names] == pixels.tolist()


HEAD = "name: t\ntrials: 1\nepochs: 1\ndata:\n  name: digits\n"


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ("{cats: dog}", "data.label_map: digits has no class 'cats'; its classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9."),
        ('{"1": "0", "2": "0", "3": "0", "4": "0", "5": "0", "6": "0", "7": "0", "8": "0", "9": "0"}', "it leaves one class, 0; leave at"),
    ],
)
def test_a_map_that_does_not_fit_the_classes_is_refused_at_its_line(tmp_path, monkeypatch, label_map, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(f"{HEAD}  label_map: {label_map}\n")
    done = CliRunner().invoke(app, ["lint", "t.yaml"])
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith("t.yaml:6: data.label_map: ")
    assert message in str(done.exception)


def test_the_nearest_class_is_told(tmp_path):
    with pytest.raises(DataError, match=r"has no class 'kiten'; did you mean kitten\?$"):
        open_source(config(folder(tmp_path, {"kitten": 3, "dog": 3}), {"kiten": "dog"}))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("label_map: [cat, dog]", "t.yaml:6: data.label_map: ['cat', 'dog'] will not do; write `key: value` lines under it."),
        ("label_map: {}", "t.yaml:6: data.label_map: it is empty; list classes, as {kitten: cat}, or drop the key."),
        ("label_map: {3: three}", "t.yaml:6: data.label_map: the key 3 is no text; quote it."),
        ('label_map: {"3": 8}', "t.yaml:6: data.label_map.3: 8 will not do; give a text."),
        (
            'label_map: {"3": " "}',
            "t.yaml:6: data.label_map.3: ' ' is no name of a class; give a printable text, or null to drop the class.",
        ),
        ("image: digit", "t.yaml:6: data.image: digits does not take it, only table; drop the key."),
        ("group: patient", "t.yaml:6: data.group: digits does not take it, only image_folder and table; drop the key."),
        ("group: ''", "t.yaml:6: data.group: digits does not take it, only image_folder and table; drop the key."),
        ("labels: x", "t.yaml:6: data.labels: unknown key; did you mean label?"),
    ],
)
def test_what_the_search_file_cannot_say(key, message):
    with pytest.raises(SpecError) as refused:
        search_file.parse(f"{HEAD}  {key}\n", "t.yaml")
    assert str(refused.value) == message


def test_an_empty_column_is_refused():
    text = "name: t\ntrials: 1\nepochs: 1\ndata: {name: table, path: a.csv, image_size: 8, label: ''}\n"
    with pytest.raises(SpecError, match=r"data\.label: an empty text; give a name, or drop the key\.$"):
        search_file.parse(text)


def test_a_trial_with_a_label_map_is_stored_and_written_out_as_a_search_file():
    spec = search_file.parse(f'{HEAD}  label_map: {{"1": "0", "2": null}}\n')
    trial = spec.trial_config({}, in_channels=1, num_classes=8, trial=0)
    assert TrialConfig.from_dict(trial.to_dict()) == trial
    written = fixed_file(trial, name="t", about=(), rest={})
    assert written.same
    assert 'label_map: {"1": "0", "2": null}' in written.text or "label_map: {'1': '0', '2': null}" in written.text
