"""What Tune is told: the driver's orders and decisions in its own terms."""

import dataclasses
from pathlib import Path

import pytest
from helpers.simulation import Cluster, MemoryLedger, driver_of, result
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from vit_search.config import search_file
from vit_search.search.messages import Busy, Epoch, Failed, Outgrown, TrialOrder, Waiting, decode, encode
from vit_search.search.tune import TuneScheduler, TuneSearcher, last_error, request

SPEC = search_file.parse("""
name: t
data: {name: digits}
trials: 4
epochs: 4
concurrency: 3
stopping: {grace_epochs: 1, reduction_factor: 3, audit_share: 0}
sampler: random
model: {dim: 16, heads: 2, depth: {int: [1, 4]}}
""")
ORDER = TrialOrder(trial=3, config={"model": {}}, folder=Path("trials/0003"), gpus=0.5, threads=2, decoders=1, halvings=1)


class Controller:
    """As much of Tune's as the scheduler asks for."""

    def __init__(self, *trials):
        self.trials, self.held, self.stopped = trials, [], []

    def get_live_trials(self):
        return set(self.trials)

    def pause_trial(self, trial, should_checkpoint):
        self.held.append((trial, should_checkpoint))

    def stop_trial(self, trial):
        self.stopped.append(trial)


class TunesTrial:
    """As much of Tune's as the scheduler asks for."""

    def __init__(self, config, error_file=""):
        self.config, self.status, self.error_file, self.placement_group_factory = config, Trial.RUNNING, error_file, None

    def set_config(self, config):
        self.config = config

    def invalidate_json_state(self):
        pass


@pytest.mark.parametrize(
    "report",
    [
        Epoch(dataclasses.replace(result(1, 0.5), scores={"val_macro_f1": 0.4}), {"system/cpu": 1.0}),
        Waiting("full"),
        Busy("computing"),
        Outgrown("no room"),
        Failed("failed", "no"),
    ],
)
def test_a_report_and_an_order_come_back_as_they_were_among_what_tune_adds(report):
    assert decode(encode(3, report) | {"training_iteration": 1, "config/trial": 3}) == report
    assert TrialOrder.decode(ORDER.encode()) == ORDER


def test_tune_is_told_what_the_driver_decides():
    driver = driver_of(SPEC)
    searcher, scheduler = TuneSearcher(driver), TuneScheduler(driver)
    trials = [TunesTrial(searcher.suggest(name)) for name in "abc"]
    assert searcher.suggest("d") is None
    one, two, three = trials
    for trial in (one, two):
        driver.started(trial.config["trial"])
    three.status = Trial.PENDING
    tune = Controller(three, one, two)

    def reports(trial, report):
        return scheduler.on_trial_result(tune, trial, encode(trial.config["trial"], report))

    assert reports(one, Epoch(result(1, 0.9))) == "CONTINUE"
    assert reports(two, Epoch(result(1, 0.1))) == "STOP"
    assert scheduler.choose_trial_to_run(tune) is three
    assert tune.stopped == [two]
    driver.command("pause", {}, "me")
    assert reports(one, Epoch(result(2, 0.9))) == "NOOP"
    assert tune.held == [(one, False)]
    assert scheduler.choose_trial_to_run(tune) is None
    assert three in tune.stopped  # it has not begun
    assert reports(one, Failed("diverged", "nan")) == "STOP"


def test_a_search_that_is_over_is_finished_for_tune():
    driver = driver_of(SPEC)
    driver.command("stop", {}, "me")
    assert TuneSearcher(driver).suggest("a") == "FINISHED"


def test_a_trial_that_broke_down_for_lack_of_memory_starts_again_with_half_the_micro_batch(tmp_path):
    driver = driver_of(SPEC, MemoryLedger(), cluster=Cluster())
    trial = TunesTrial(TuneSearcher(driver).suggest("a"), tmp_path / "error")
    driver.started(0)
    trial.error_file.write_text("Failure # 1 (occurred at noon)\nTask was killed due to the node running low on memory.\n")
    TuneScheduler(driver).on_trial_error(None, trial)
    assert trial.config["halvings"] == 1
    assert trial.placement_group_factory == PlacementGroupFactory([{"CPU": 1.0, "GPU": 0.0}])


def test_what_ray_says_of_the_last_failure_alone_counts(tmp_path):
    trial = TunesTrial({}, tmp_path / "error")
    assert last_error(trial) == ""
    trial.error_file.write_text("Failure # 1 (occurred at noon)\nfirst\nFailure # 2 (occurred at one)\nsecond\n")
    assert last_error(trial).endswith("second") and "first" not in last_error(trial)


def test_a_trial_asks_for_its_devices_on_any_node_but_those_to_avoid():
    assert request(ORDER).required_resources == {"CPU": 1.0, "GPU": 0.5}
    avoiding = request(ORDER, {"b", "a"})
    assert avoiding._kwargs["bundle_label_selector"] == [{"ray.io/node-id": "!in(a, b)"}]
