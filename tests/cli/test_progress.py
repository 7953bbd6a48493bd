"""What is printed of a search while it runs."""

import pytest
from helpers.simulation import MemoryLedger, World, driver_of
from helpers.synthetic import begin

from vit_search.cli.progress import Screen
from vit_search.ledger.events import Launched, Left


def lines_of(folder, spec, capsys, *, state="finished"):
    """What a pipe gets of a whole search."""
    ledger = MemoryLedger([Launched(host="here", pid=1)])
    driver = driver_of(spec, ledger)
    screen = Screen("", "")
    ledger.listeners.append(screen.watch(driver, spec, folder))
    World(driver, ledger).run()
    ledger.append(Left(state=state))
    screen.close()
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("state", ["finished", "stopped", "interrupted"])
def test_a_search_says_what_it_still_does_after_its_last_trial(tmp_path, capsys, state):
    folder, spec, _ = begin(tmp_path, trials=2, epochs=2)
    report = "" if state == "interrupted" else "looking at the best model's mistakes for the report, and "
    assert lines_of(folder, spec, capsys, state=state)[-1] == f"{report}sending the last records to MLflow …"


@pytest.mark.parametrize(("more", "of"), [("", ""), ("train_on: train+val\n", " on the holdout")])
def test_a_score_of_the_holdout_says_so(tmp_path, capsys, more, of):
    folder, spec, _ = begin(tmp_path, trials=2, epochs=2, more=more)
    scores = [line for line in lines_of(folder, spec, capsys) if " val_accuracy " in line]
    assert scores
    assert all(line.rpartition("val_accuracy ")[2][6:] == of for line in scores), scores
