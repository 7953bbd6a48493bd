"""A name that stands in one of two tables alone: one line says which name it is, and which file lacks it."""

import runpy

import pytest
from helpers.paths import ROOT

from vit_search.config import metrics
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.optimizers import OPTIMIZERS
from vit_search.config.samplers import SAMPLERS
from vit_search.config.stopping_rules import STOPPING_RULES
from vit_search.config.tables import check_tables
from vit_search.errors import TableError

PAIRS = [
    (DATA_SETS, "DATA_SETS of vit_search/config/data_sets.py", "SOURCES of vit_search/data/sources/__init__.py"),
    (OPTIMIZERS, "OPTIMIZERS of vit_search/config/optimizers.py", "MAKERS of vit_search/vit/optimizers.py"),
    (STOPPING_RULES, "STOPPING_RULES of vit_search/config/stopping_rules.py", "RULES of vit_search/stopping/__init__.py"),
    (SAMPLERS, "SAMPLERS of vit_search/config/samplers.py", "SAMPLERS of vit_search/search/proposals/samplers.py"),
]


def run(heavy):
    runpy.run_path(str(ROOT / heavy.rpartition(" ")[2]))


def missing(name, here, there):
    return f"^{here}: {name} is missing, which stands in {there}; add a line for it. See docs/extending.md.$"


@pytest.mark.parametrize(("table", "light", "heavy"), PAIRS)
def test_a_name_without_code_and_code_without_a_name_are_refused(table, light, heavy, monkeypatch):
    run(heavy)
    name, facts = next(iter(table.items()))
    monkeypatch.setitem(table, "fresh", facts)
    with pytest.raises(TableError, match=missing("fresh", heavy, light)):
        run(heavy)
    monkeypatch.delitem(table, "fresh")
    monkeypatch.delitem(table, name)
    with pytest.raises(TableError, match=missing(name, light, heavy)):
        run(heavy)


def test_a_metric_without_a_score_and_a_score_without_a_metric_are_refused(monkeypatch):
    light, evaluation = "TABLE of vit_search/config/metrics.py", "SCORES of vit_search/vit/evaluation.py"
    heavy = f"{evaluation} and PROBABILITY_SCORES of vit_search/vit/probability_scores.py"
    run(evaluation)
    ranking = metrics.RANKING
    monkeypatch.setattr(metrics, "RANKING", (*ranking, "val_kappa"))
    with pytest.raises(TableError, match=missing("val_kappa", heavy, light)):
        run(evaluation)
    monkeypatch.setattr(metrics, "RANKING", tuple(name for name in ranking if name != "val_macro_f1"))
    with pytest.raises(TableError, match=missing("val_macro_f1", light, heavy)):
        run(evaluation)


def test_all_names_that_are_missing_stand_in_one_line():
    with pytest.raises(TableError, match=missing("b, c", "there", "here")):
        check_tables("here", "abc", "there", "a")
