"""What `promote` does about the trainings of a plan that are over, without Ray."""

import dataclasses
import shutil

import pytest
from helpers.trained import search_from_weights

from vit_search.errors import SpecError
from vit_search.files import write_whole
from vit_search.ledger import searches
from vit_search.ledger.events import Ended, Proposed
from vit_search.ledger.file import Ledger
from vit_search.promotion import finalists
from vit_search.promotion.retrain import retrain
from vit_search.vit import checkpoint


@pytest.fixture
def search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return search_from_weights(tmp_path, ("head",))


def over(plan):
    """The trainings of a plan, as if all had failed: nothing of them is left to do."""
    folder = plan.search / "promotions" / "1"
    folder.mkdir(parents=True)
    write_whole(folder / finalists.PLANNED, plan.text)
    facts = searches.read(plan.search)[1]
    searches.write(folder, dataclasses.replace(facts, text=plan.spec.text, promotes=plan.search.name))
    ledger = Ledger(folder / "ledger.jsonl")
    for number, (params, _) in enumerate(plan.trainings):
        ledger.append(Proposed(trial=number, params=params))
        ledger.append(Ended(trial=number, outcome="failed", reason="a test"))
    ledger.close()


def test_lost_weights_are_restored_from_their_source_also_where_nothing_is_left_to_train(search, tmp_path):
    plan = finalists.plan(search, top=1, seeds=1)
    over(plan)
    digest = checkpoint.weights_sha256(search / "trials/0000/checkpoint")
    shutil.rmtree(search / "weights")
    assert retrain(plan) is None
    assert [path.name for path in (search / "weights").iterdir() if path.is_dir()] == [plan.spec.pretrained[0].partition("#sha256=")[2]]
    shutil.rmtree(tmp_path / "backbone")
    assert checkpoint.weights_sha256(search / "trials/0000/checkpoint") == digest


def test_weights_that_are_gone_for_good_are_an_error_only_if_something_is_left_to_train(search, tmp_path):
    plan = finalists.plan(search, top=1, seeds=1)
    shutil.rmtree(search / "weights")
    shutil.rmtree(tmp_path / "backbone")
    with pytest.raises(SpecError, match=r"^model\.pretrained: .*backbone: no such file; put the file that the search began with back"):
        retrain(plan)
    assert not (search / "promotions").exists()
    over(plan)
    assert retrain(plan) is None
