"""The best model's mistakes: a trained search whose folder has wrong labels, what its report shows of them, and what it never shows."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.commands import vit_search
from helpers.trained import image_folder, search_from_weights, trained_search
from sklearn.datasets import load_digits

from vit_search.config import search_file
from vit_search.errors import SpecError
from vit_search.ledger import searches
from vit_search.ledger.events import Proposed
from vit_search.ledger.file import Ledger
from vit_search.report import mistakes, report
from vit_search.report.mistake_sections import confusion_blocks, mistake_blocks
from vit_search.report.mistakes import Missing
from vit_search.report.page import Table, Text

FILE = """
name: noisy
data: {name: image_folder, path: %s, image_size: 8, channels: 1, val_fraction: 0.3}
trials: 1
epochs: 20
model: {patch_size: 2, dim: 32, depth: 2, heads: 4}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64, shift: 1}
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A search over digits of which every twentieth stands in a wrong folder, and these files' right labels."""
    home = tmp_path_factory.mktemp("noisy")
    digits, rng = load_digits(), np.random.default_rng(0)
    wrong = rng.choice(len(digits.target), round(0.05 * len(digits.target)), replace=False)
    labels = digits.target.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    names = image_folder(home / "photos", np.round(digits.images * (255 / 16)).astype(np.uint8), labels)
    folder = trained_search(home / "searches", FILE % (home / "photos"), {"lr": 6e-3})
    return folder, {names[i]: str(digits.target[i]) for i in wrong}


@pytest.fixture
def copied(noisy, tmp_path):
    """A copy of the search before its report, to be changed."""
    folder = shutil.copytree(noisy[0], tmp_path / "searches" / "noisy-1")
    for name in (mistakes.FILE, *report.TABLES):
        (folder / name).unlink(missing_ok=True)
    return folder


def rows(folder):
    return list(csv.DictReader((folder / "label_errors.csv").open()))


def test_the_list_holds_most_wrong_labels_of_the_validation_images_and_few_others(noisy):
    folder, truth = noisy
    report.write(folder, look=True)
    found, listed = mistakes.read(folder), rows(folder)
    assert found.images == found.of == sum(map(sum, found.confusion))
    planted = {row["image"] for row in listed} & truth.keys()
    among = round(0.05 * found.images)  # of the planted ones about so many lie in the validation split
    assert len(planted) > 0.6 * among
    assert len(planted) > 0.6 * len(listed) > 10
    assert sum(truth[row["image"]] == row["suggested_label"] for row in listed if row["image"] in planted) > 0.9 * len(planted)
    assert {row["split"] for row in listed} == {"val"}
    assert all(row["image"].startswith(f"{row['given_label']}/") for row in listed)
    confidence = [float(row["self_confidence"]) for row in listed]
    assert confidence == sorted(confidence)


def test_the_model_answers_as_it_was_validated(noisy):
    folder, _ = noisy
    report.write(folder, look=True)
    found = mistakes.read(folder)
    (trial,) = report.digest(folder).standing
    assert 1 - found.wrong / found.images == pytest.approx(trial.value("val_accuracy"), abs=1e-6)


def test_the_page_shows_mistakes_and_suspects_as_pictures_with_words(noisy):
    folder, _ = noisy
    html, twin, *tables = report.write(folder, look=True)
    assert [path.name for path in tables] == ["label_errors.csv", "confusion.csv"]
    text, found = html.read_text(), mistakes.read(folder)
    assert text.count('<img src="data:image/png;base64,') == len(found.mistakes) + len(found.suspects)
    assert len(found.mistakes) == min(25, found.wrong)
    sure = [one.probability for one in found.mistakes]
    assert sure == sorted(sure, reverse=True)
    first = found.mistakes[0]
    assert f'alt="image {first.image}: label {first.label}, answer {first.other}, {first.probability:.0%}"' in text
    assert "label_errors.csv lists all of them" in twin.read_text()
    assert "data:image" not in twin.read_text()


def test_a_second_report_does_not_ask_the_model_again_and_writes_the_same(copied, monkeypatch):
    report.write(copied, look=True)
    before = [(copied / name).read_bytes() for name in (mistakes.FILE, *report.TABLES)]
    with monkeypatch.context() as patch:
        patch.setattr("vit_search.vit.split_probabilities.split_probabilities", None)
        report.write(copied, look=True)
    assert [(copied / name).read_bytes() for name in (mistakes.FILE, *report.TABLES)] == before


@pytest.fixture
def fine(tmp_path, monkeypatch):
    """A search of one trial whose checkpoint leaves out the blocks of its pretrained weights, and its report."""
    monkeypatch.chdir(tmp_path)
    folder = search_from_weights(tmp_path, ("head",))
    report.write(folder, look=True)
    assert mistakes.read(folder).images > 0
    return folder


def everything(folder):
    return [(folder / name).read_bytes() for name in (mistakes.FILE, *report.TABLES)]


def test_a_second_report_does_not_put_a_model_together_whose_checkpoint_leaves_blocks_out(fine, monkeypatch):
    before = everything(fine)
    monkeypatch.setattr("vit_search.vit.checkpoint.load_model", None)
    report.write(fine, look=True)
    assert everything(fine) == before


@pytest.mark.parametrize("change", [{}, {"weights_sha256": "of an earlier epoch"}], ids=["same model", "earlier epoch"])
def test_what_was_found_stays_if_the_pretrained_weights_are_lost(fine, tmp_path, change):
    path = fine / mistakes.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = everything(fine)
    shutil.rmtree(fine / "weights")
    shutil.rmtree(tmp_path / "backbone")
    report.write(fine, look=True)
    assert everything(fine) == before


def test_another_best_model_replaces_what_was_found(copied):
    report.write(copied, look=True)
    old = json.loads((copied / mistakes.FILE).read_text())
    (copied / mistakes.FILE).write_text(json.dumps(old | {"weights_sha256": "another", "trial": 7}))
    (copied / "label_errors.csv").write_text("old")
    report.write(copied, look=True)
    assert mistakes.read(copied).trial == 0
    assert rows(copied)


def test_without_images_there_are_no_thumbnails_and_the_tables_stay(copied):
    report.write(copied, look=True)
    path = copied / "search.yaml"
    path.write_text(path.read_text() + "report: {images: false}\n")
    html, twin, *tables = report.write(copied, look=True)
    assert len(tables) == 2
    assert "<img" not in html.read_text().partition("<script")[0]
    assert "data:image" not in (copied / mistakes.FILE).read_text()
    assert mistakes.read(copied).suspects[0].image in html.read_text()  # in a table
    assert "| label | answer | probability | image |" in twin.read_text()


def test_a_report_that_must_not_look_shows_what_was_found_and_nothing_that_was_not(copied):
    assert "This section is made when the search has ended" in report.write(copied)[1].read_text()
    assert not (copied / mistakes.FILE).exists()
    report.write(copied, look=True)
    assert "wrong answers" in report.write(copied)[1].read_text()


def test_while_a_driver_is_at_work_no_model_is_asked(copied):
    ledger = Ledger(copied / "ledger.jsonl")
    ledger.append(Proposed(trial=1, params={"lr": 1e-3}))
    report.write(copied, look=True)
    ledger.close()
    assert not (copied / mistakes.FILE).exists()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: shutil.rmtree(folder / "trials"), "The checkpoint of trial 0, the best one, is gone"),
        (lambda folder: (folder / "trials/0000/checkpoint/model.safetensors").write_bytes(b""), "cannot be asked of its"),
        (
            lambda folder: searches.write_facts(folder, replace(searches.read_facts(folder), data_hash="0" * 64)),
            "The images have changed since the search began",
        ),
        (
            lambda folder: (folder / "search.yaml").write_text((folder / "search.yaml").read_text().replace("photos,", "gone,")),
            "missing; data.path names a folder",
        ),
        (
            lambda folder: searches.write_facts(folder, replace(searches.read_facts(folder), promotes="x-1")),
            "the trainings of a promotion",
        ),
    ],
    ids=["no checkpoint", "damaged checkpoint", "other images", "no images", "a promotion"],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_said_in_one_line(copied, damage, line):
    damage(copied)
    text = report.write(copied, look=True)[1].read_text()
    assert line in text.partition("## Mistakes and suspected labels")[2].partition("\n## ")[0].strip().splitlines()[0]
    assert not (copied / "label_errors.csv").exists()


def test_a_forged_thumbnail_is_not_put_into_the_page(copied):
    report.write(copied, look=True)
    values = json.loads((copied / mistakes.FILE).read_text())
    values["mistakes"][0]["thumbnail"] = "https://evil.example/x.png"
    (copied / mistakes.FILE).write_text(json.dumps(values))
    assert "evil.example" not in report.write(copied)[0].read_text()


def test_when_the_time_is_over_a_random_sample_was_looked_at(copied):
    d = report.digest(copied)
    found = mistakes.find(copied, d.spec, d.standing, d.data_hash, seconds=0)
    assert found.images == 128 < found.of
    assert "a random sample of" in mistake_blocks(found, 0)[0].text


def test_the_command_says_where_the_tables_lie(copied):
    shown = vit_search(copied.parent.parent, "report").stdout
    assert "Suspected labels:  searches/noisy-1/label_errors.csv" in shown
    assert "Confusion matrix:  searches/noisy-1/confusion.csv" in shown


def test_of_many_classes_the_page_has_the_pairs_alone():
    confusion = [[3 if i == j else 0 for j in range(30)] for i in range(30)]
    confusion[2][5] = 2
    (table,) = confusion_blocks([f"c{i}" for i in range(30)], confusion)
    assert table.rows == [["c2 taken for c5", "2", "40.0%"]]


def test_a_missing_section_is_one_sentence():
    assert mistake_blocks(Missing("No."), None) == [Text("No.")]
    assert isinstance(confusion_blocks(["a", "b"], [[1, 1], [0, 2]])[0], Table)


def test_the_key_is_checked_and_changes_nothing_where_it_is_left_out():
    text = "name: t\ndata: {name: digits}\ntrials: 1\nepochs: 1\n"
    assert search_file.parse(text).report.images
    assert search_file.parse(text).model_dump(exclude_unset=True).keys() == {"name", "data", "trials", "epochs", "mode", "stopping"}
    assert not search_file.parse(text + "report: {images: false}\n").report.images
    with pytest.raises(SpecError, match=r"report\.images"):
        search_file.parse(text + "report: {images: 1}\n")
