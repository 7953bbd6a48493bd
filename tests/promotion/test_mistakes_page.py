"""The page of a candidate's mistakes on the test images: made of the answers of a reading, with and without a champion."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from vit_search.config import search_file
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare
from vit_search.promotion import mistakes
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.readings import Reading

SPEC = search_file.parse("name: d\ndata: {name: digits}\ntrials: 1\nepochs: 1\n")


def answers(labels, wrong):
    """Right with 0.9 on all images but `wrong`: by image the answer, and its probability."""
    predictions, confidence, own = labels.copy(), np.full(len(labels), 0.9), np.full(len(labels), 0.9)
    for i, (answer, sure) in wrong.items():
        predictions[i], confidence[i], own[i] = answer, sure, (1 - sure) / 2
    return SplitAnswers(tuple("0123456789"), labels, predictions, -np.log(own), confidence, 0.1, 0.1, {})


@pytest.fixture(scope="module")
def data():
    return prepare(SPEC.data_config)


@pytest.fixture
def reading(data):
    labels = load_split(data, "test").labels.numpy()
    other = (labels + 1) % 10
    candidate = answers(labels, {0: (other[0], 0.95), 1: (other[1], 0.5), 2: (other[2], 0.99), 3: (other[3], 0.6)})
    champion = answers(labels, {0: (other[0], 0.8), 2: ((labels[2] + 2) % 10, 0.7), 4: (other[4], 0.9), 5: (other[5], 0.9)})
    candidate.confidence[5] = 0.4
    return Reading(3, "p", candidate, champion, 0.1, 0.5)


def rows(path):
    return list(csv.DictReader(path.open()))


def test_disagreements_come_with_the_candidates_surest_new_mistakes_first(reading):
    # 0: the same wrong answer, no disagreement; 1 and 3: new mistakes, 3 the surer; 2: both wrong; 5 and 4: mended, 5 the less sure
    differ = mistakes.disagreements(reading.answers, reading.champion)
    assert [(one.index, one.kind) for one in differ] == [(3, 0), (1, 0), (2, 1), (5, 2), (4, 2)]


def test_the_page_and_its_tables_by_hand(tmp_path, data, reading):
    files = mistakes.write(tmp_path, SPEC, data, reading, "d-1-promotion-1: mistakes")
    assert [path.name for path in files] == ["mistakes.html", "label_errors.csv", "confusion.csv", "disagreements.csv"]
    text = files[0].read_text()
    assert text.count('<img src="data:image/png;base64,') == 4 + 2 + 5  # mistakes, suspected labels, disagreements
    assert "reading 3 of this test split" in text
    assert "<script" not in text
    # a class's threshold is near 0.9, the mean of what its images have: answers of 0.95 and 0.99 reach it
    assert [row["self_confidence"] for row in rows(files[1])] == ["0.005000", "0.025000"]
    assert {row["split"] for row in rows(files[1])} == {"test"}
    assert sum(int(row[name]) for row in rows(files[2]) for name in "0123456789" if name != row["label"]) == 4
    first = rows(files[3])[0]
    assert (first["candidate_confidence"], first["champion_confidence"]) == ("0.600000", "0.900000")
    assert first["label"] == first["champion"] != first["candidate"]


def test_without_a_champion_nothing_is_compared_and_an_older_comparison_goes(tmp_path, data, reading):
    mistakes.write(tmp_path, SPEC, data, reading, "t")
    files = mistakes.write(tmp_path, SPEC, data, replace(reading, champion=None), "t")
    assert len(files) == 3
    assert "champion" not in files[0].read_text()
    assert not (tmp_path / "disagreements.csv").exists()


def test_without_images_the_page_has_tables(tmp_path, data, reading):
    spec = search_file.parse(SPEC.text + "report: {images: false}\n")
    files = mistakes.write(tmp_path, spec, data, reading, "t")
    assert "<img" not in files[0].read_text()
    assert len(rows(files[3])) == 5
    assert rows(files[3])[0]["image"] in files[0].read_text()


def test_a_page_that_cannot_be_made_costs_nothing_but_a_warning(tmp_path, data, reading, caplog):
    assert mistakes.write(tmp_path / "gone", SPEC, data, reading, "t") == ()
    assert "the page of the mistakes could not be made" in caplog.text
