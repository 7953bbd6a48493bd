"""What a program reads of a search: the leaderboard and the epochs as data frames, and the model of a trial."""

import csv
import io

import pytest
from helpers import commands, models
from helpers.synthetic import begin, made

import vit_search
from vit_search.errors import SearchError
from vit_search.ledger import searches
from vit_search.ledger.file import Ledger


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _, _ = made(tmp_path / "searches")
    return folder


def test_the_leaderboard_has_the_rows_and_columns_of_show(folder):
    table = vit_search.read_search().leaderboard()
    rows = list(csv.DictReader(io.StringIO(commands.vit_search(".", "show", "--csv").stdout)))
    assert [table.index.name, *table.columns] == list(rows[0])
    assert [str(number) for number in table["trial"]] == [row["trial"] for row in rows]
    assert table["val_accuracy"].iloc[0] == float(rows[0]["val_accuracy"]) == table["val_accuracy"].max()
    assert table.loc[1, "outcome"] == "completed"


def test_the_epochs_are_a_row_each_with_all_metrics(folder):
    search = vit_search.read_search("made-1")
    table = search.epochs()
    assert len(table) == sum(len(trial.results) for trial in search.trials)
    assert list(table.columns[:2]) == ["trial", "epoch"]
    best = table[table.trial == search.best.number]
    assert list(best.epoch) == [1, 2, 3, 4]
    assert best.val_accuracy.iloc[-1] == search.best.value("val_accuracy")
    assert {"val_loss", "seconds"} <= set(table.columns)


@pytest.mark.parametrize(("mode", "pick"), [("max", max), ("min", min)])
def test_the_best_trial_is_the_best_of_the_full_length_ones_in_either_direction(mode, pick, tmp_path):
    metric = {"max": "val_accuracy", "min": "val_loss"}[mode]
    made(tmp_path, more=f"metric: {metric}\n")
    search = vit_search.read_search(output=tmp_path)
    assert search.best.value(metric) == pick(t.value(metric) for t in search.trials if t.outcome == "completed")


def test_a_search_without_a_trial_has_empty_tables_and_no_model(tmp_path):
    folder, _, _ = begin(tmp_path)
    Ledger(folder / "ledger.jsonl").close()
    search = vit_search.read_search(folder)
    assert search.best is None
    assert len(search.leaderboard()) == len(search.epochs()) == 0
    with pytest.raises(SearchError, match="no trial has a value yet"):
        search.classifier()


def test_the_model_of_a_trial_is_that_of_its_checkpoint(folder):
    search = vit_search.read_search()
    number = search.best.number
    models.untrained(searches.trial_folder(folder, number) / "checkpoint")
    assert search.classifier().classes == search.classifier(number).classes == tuple("0123456789")
    other = next(trial.number for trial in search.trials if trial.number != number)
    with pytest.raises(SearchError, match=rf"trial {other} has no checkpoint any more; those of trials {number} are kept\. Raise keep_ch"):
        search.classifier(other)
    with pytest.raises(SearchError, match="no trial 99; the leaderboard lists"):
        search.classifier(99)


def test_a_search_that_is_not_there_names_the_nearest(folder):
    with pytest.raises(SearchError, match="no search named 'mode-1'; did you mean made-1"):
        vit_search.read_search("mode-1")
