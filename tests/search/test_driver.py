"""The driver: a search is a fold over its ledger (law 2), and what it answers to each report."""

import copy

import pytest
from helpers.simulation import GPUS, NODE_LOST, Cluster, MemoryLedger, World, driver_of, result, told

from vit_search import stopping
from vit_search.config import search_file
from vit_search.errors import ClusterError, LostClusterError, SearchError
from vit_search.ledger.events import Broke, Commanded, Ended, Infeasible, Launched, Proposed, Reported
from vit_search.search.components import ImageFacts, components_of
from vit_search.search.driver_runtime import IN_A_ROW
from vit_search.search.messages import Busy, Continue, Epoch, Failed, Finished, Hold, KillWorker, Move, Stop, TrialOrder, Wait, Waiting
from vit_search.search.recovery import START_S
from vit_search.stopping import rungs

FILE = """
name: t
data: {{name: digits}}
trials: 60
epochs: 4
concurrency: 4
seed: 3
sampler: {sampler}
stopping: {stopping}
model: {{patch_size: 2, dim: {{choice: [16, 24, 32]}}, heads: {{choice: [2, 3]}}, depth: {{int: [1, 4]}}}}
training: {{lr: {{float: [1e-4, 1e-2], log: true}}, batch_size: {{choice: [256, 2048, 8192]}}}}
"""
ASHA = "{grace_epochs: 1, reduction_factor: 2, audit_share: 0.1}"
SHARED = "resources: {cpus: auto, gpus: auto, gpu_memory: 16GiB}\n"
COMMANDS = [
    (15, "set", {"trials": 40, "concurrency": 6}),
    (30, "add", {"dim": 32, "heads": 2, "depth": 2}),
    (40, "pause", {}),
    (50, "set", {"patience": 300}),
]
LAUNCHED, FIRST = Launched(host="here", pid=1), [{"depth": 4}]
CASES = {
    **{f"sampler {name}": (FILE.format(sampler=name, stopping=ASHA), {}) for name in ("gp", "tpe", "random", "qmc", "auto")},
    "sampler grid": (FILE.format(sampler="grid", stopping=ASHA).replace("{float: [1e-4, 1e-2], log: true}", "1e-3"), {}),
    "sampler cmaes": (FILE.format(sampler="cmaes", stopping=ASHA), {}),
    **{
        f"stopping {kind}": (FILE.format(sampler="random", stopping=ASHA.replace("{", f"{{kind: {kind}, strata: {strata}, ")), {})
        for kind, strata in (("asha", 2), ("hyperband", 1), ("median", 2), ("none", 1), ("pasha", 2), ("freeze_thaw", 2))
    },
    "freeze_thaw, commands and lost nodes": (
        FILE.format(sampler="gp", stopping=ASHA.replace("{", "{kind: freeze_thaw, ")).replace("epochs: 4", "epochs: 9"),
        {"commands": COMMANDS, "losses": 0.2},
    ),
    "pasha, commands and lost nodes": (
        FILE.format(sampler="random", stopping=ASHA.replace("{", "{kind: pasha, ")).replace("epochs: 4", "epochs: 9"),
        {"commands": COMMANDS, "losses": 0.2},
    ),
    "several objectives": (FILE.format(sampler="tpe", stopping=ASHA) + "objectives: [{metric: params}, {metric: val_loss}]\n", {}),
    "a loss": (FILE.format(sampler="tpe", stopping=ASHA) + "metric: val_loss\n", {}),
    "commands": (FILE.format(sampler="gp", stopping=ASHA), {"commands": COMMANDS}),
    "commands and lost nodes": (FILE.format(sampler="random", stopping=ASHA), {"commands": COMMANDS, "losses": 0.2}),
    "limits": (FILE.format(sampler="random", stopping=ASHA) + "limits: {device_hours: 0.02, patience: 40}\n", {}),
    "lost nodes": (FILE.format(sampler="random", stopping=ASHA), {"losses": 0.2}),
    "shared GPUs": (FILE.format(sampler="random", stopping=ASHA) + SHARED, {"outgrows": 0.5, "losses": 0.1}),
}


def world(spec, book, more, components=None):
    made = {"components": components} if components else {"nodes": GPUS if spec.resources.gpu_memory else None, "first": FIRST}
    return World(driver_of(spec, book, **made), book, **more)


@pytest.mark.parametrize("case", CASES)
def test_a_search_cut_off_after_any_event_goes_on_as_the_one_that_was_not(case, monkeypatch):
    text, more = CASES[case]
    spec = search_file.parse(text)
    parts = rungs.boundaries(spec.space, spec.stopping.strata)
    monkeypatch.setattr(stopping, "boundaries", lambda space, strata: parts)  # always the same, and slow
    whole = told(world(spec, MemoryLedger([LAUNCHED]), more).run())
    assert sum(isinstance(event, Proposed) for event in whole) >= 20
    slow = case in ("sampler cmaes", "shared GPUs")  # to rebuild; then each cut goes on from a copy of what was rebuilt so far
    components = components_of(spec, ImageFacts(1, 10), nodes=GPUS if spec.resources.gpu_memory else None, first=FIRST)
    components.apply(LAUNCHED)

    def next_events(cut, rebuilt_so_far):
        """What the search that was cut off there writes next."""
        book = MemoryLedger([LAUNCHED, *whole[:cut]])
        rebuilt = world(spec, book, more, rebuilt_so_far)
        while len(told(book.events)) == cut and rebuilt.step():
            pass
        return told(book.events)[cut:], rebuilt.driver.ending

    for cut, event in enumerate(whole):
        came, ending = next_events(cut, copy.deepcopy(components) if slow else None)
        assert came == whole[cut : cut + len(came)], cut
        assert came or ending  # a search whose limit was reached does not take up what was running
        if slow:
            components.apply(event)


def test_and_comes_to_the_same_end():
    text, more = CASES["commands and lost nodes"]
    spec = search_file.parse(text)
    whole = told(world(spec, MemoryLedger([LAUNCHED]), more).run())
    assert {type(event) for event in whole} == {Proposed, Infeasible, Reported, Broke, Ended, Commanded}
    for cut in range(0, len(whole), 4):  # the test above has a cut after each event, and looks at what comes next
        book = MemoryLedger([LAUNCHED, *whole[:cut], LAUNCHED])
        assert told(world(spec, book, more).run()) == whole


# What it answers

PLAIN = search_file.parse(FILE.format(sampler="random", stopping="{kind: none}").replace("trials: 60", "trials: 5"))
PROCESS_DIED = "The actor died unexpectedly before finishing this task.\nThe actor is dead because its worker process has died."
OUT_OF_MEMORY = "Task was killed due to the node running low on memory."
STORAGE = "Traceback …\nvit_search.errors.StorageError: /mnt/s: the storage failed on the node n1 (full); make room."


def numbers(driver, count=9):
    """The trials that are ordered now, as far as there are any."""
    ordered = []
    while len(ordered) < count and isinstance(order := driver.propose(), TrialOrder):
        ordered.append(order.trial)
        driver.tick()
    return ordered


def begun(count=2, spec=PLAIN, **more):
    """A driver whose first trials run, and its events."""
    book = MemoryLedger([LAUNCHED])
    driver = driver_of(spec, book, **more)
    for number in numbers(driver, count):
        driver.started(number)
    return driver, book


def over(driver, trial):
    """Let a trial reach its end."""
    for epoch in range(1, 5):
        decision = driver.report(trial, Epoch(result(epoch, 0.5)))
    driver.released(trial)
    return decision


def ended(book):
    return [(event.trial, event.outcome, event.reason) for event in book.events if isinstance(event, Ended)]


def test_an_epoch_that_is_reported_again_changes_nothing():
    driver, book = begun()
    assert driver.report(0, Epoch(result(1, 0.5))) == Continue()
    before = list(book.events)
    assert driver.report(0, Epoch(result(1, 0.5))) == Continue()
    assert book.events == before


def test_a_trial_of_full_length_is_completed_and_stops():
    driver, book = begun()
    assert over(driver, 0) == Stop()
    assert ended(book) == [(0, "completed", "")]
    assert driver.report(0, Epoch(result(4, 0.5))) == Stop()  # as Tune tells it once more


def test_a_failure_ends_a_trial_and_waiting_for_storage_does_not():
    driver, book = begun()
    assert driver.report(0, Waiting("full")) == Continue()
    assert driver.report(0, Failed("diverged", "nan")) == Stop()
    assert ended(book) == [(0, "diverged", "nan")]


def test_a_trial_that_says_that_it_is_busy_does_not_hang_and_nothing_is_recorded():
    now = [0.0]
    driver, book = begun(clock=lambda: now[0])
    before = list(book.events)
    for _ in range(5):
        now[0] += START_S - 1
        assert [driver.report(trial, Busy("computing")) for trial in (0, 1)] == [Continue()] * 2
        assert driver.tick() == []
    assert book.events == before
    now[0] += START_S + 1
    assert driver.tick() == [KillWorker(0), KillWorker(1)]


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_metric_that_is_no_number_ends_a_trial_with_its_name(epoch):
    driver, book = begun()
    for before in range(1, epoch):
        driver.report(0, Epoch(result(before, 0.5)))
    assert driver.report(0, Epoch(result(epoch, float("nan")))) == Stop()
    assert driver.report(1, Epoch(result(1, None))) == Stop()
    assert ended(book) == [(0, "diverged", f"val_accuracy is nan after epoch {epoch}"), (1, "stopped", "epoch 1 has no val_accuracy")]


def test_the_search_is_finished_once_the_last_trial_is_over():
    driver, _ = begun(4)
    assert driver.propose() == Wait()  # four at a time
    driver.command("set", {"trials": 4}, "me")
    for trial in (0, 1, 2):
        over(driver, trial)
        assert driver.propose() == Wait()
    over(driver, 3)
    assert driver.propose() == Finished()
    assert not driver.work_left
    driver.command("set", {"trials": 5}, "me")
    assert numbers(driver) == [4]


def test_in_a_pause_trials_are_held_after_their_epoch_and_none_starts():
    driver, _ = begun()
    assert driver.command("pause", {}, "me") == (True, "pausing: 2 running trials will be held after their current epoch.")
    assert driver.report(0, Epoch(result(1, 0.5))) == Hold()
    assert (driver.propose(), driver.word) == (Wait(), "paused")
    driver.command("continue", {}, "me")
    assert numbers(driver) == [2, 3]
    driver.command("pause", {}, "me")
    assert over(driver, 0) == Stop()  # at its end it is over, and not held


def test_a_trial_that_waits_is_withdrawn_in_a_pause_and_ordered_again_as_it_was():
    driver, _ = begun(0)
    orders = [driver.propose() for _ in range(3)]
    driver.started(0)
    assert not any(driver.must_end(number) for number in range(3))
    driver.command("pause", {}, "me")
    assert [driver.must_end(number) for number in range(3)] == [False, True, True]
    driver.released(1), driver.released(2)
    driver.command("continue", {}, "me")
    driver.tick()
    assert [driver.propose(), driver.propose()] == orders[1:]


def test_a_trial_is_stopped_by_hand_after_its_epoch_and_also_by_the_next_driver():
    driver, book = begun()
    driver.report(0, Epoch(result(1, 0.5)))
    assert driver.command("stop", {"trial": 0}, "me") == (True, "trial 0 will be stopped after its current epoch.")
    again = driver_of(PLAIN, MemoryLedger([*book.events, LAUNCHED]))
    assert (driver.report(0, Epoch(result(2, 0.5))), ended(book)) == (Stop(), [(0, "stopped", "stopped by hand")])
    again.started(again.propose().trial)
    assert again.report(0, Epoch(result(1, 0.5))) == Continue()
    assert again.report(0, Epoch(result(2, 0.5))) == Stop()


def test_after_stop_the_running_trials_go_on_and_those_that_wait_are_left_to_a_resume():
    driver, book = begun(2)
    driver.propose()
    driver.command("stop", {}, "me")
    assert (driver.word, driver.propose()) == ("stopping", Wait())
    assert [driver.must_end(number) for number in range(3)] == [False, False, True]
    driver.released(2)
    over(driver, 0), over(driver, 1)
    assert driver.propose() == Finished()
    assert driver.interrupt(ended=True) is False
    assert ended(book)[-1] == (2, "interrupted", "the search was stopped before it began")
    assert numbers(driver_of(PLAIN, MemoryLedger([*book.events, LAUNCHED]))) == [2, 3, 4]


def test_a_cancelled_search_ends_at_once_and_leaves_its_trials_to_a_resume():
    driver, book = begun(1)
    driver.propose()
    driver.command("cancel", {}, "me")
    assert (driver.word, [driver.must_end(number) for number in (0, 1)]) == ("ending", [True, True])
    driver.released(0), driver.released(1)
    assert driver.interrupt(ended=True)
    assert ended(book) == [(0, "interrupted", "the driver stopped"), (1, "interrupted", "the driver stopped")]


def test_a_limit_stops_all_trials_after_their_epoch():
    spec = search_file.parse(FILE.format(sampler="random", stopping="{kind: none}") + "limits: {target: 0.4}\n")
    driver, book = begun(2, spec)
    over(driver, 0)
    assert driver.report(1, Epoch(result(1, 0.1))) == Stop()
    reason = "limits.target: trial 0 reached 0.4"
    assert (driver.ending, ended(book)[1], driver.propose()) == (reason, (1, "stopped", reason), Wait())


PASHA = search_file.parse(
    FILE.format(sampler="random", stopping="{kind: pasha, grace_epochs: 1, reduction_factor: 2, audit_share: 0}").replace(
        "trials: 60", "trials: 3"
    )
)  # rungs at 1, 2; full length 4


def waiting_at_the_last_rung(spec=PASHA, values=(0.1, 0.3, 0.2)):
    """A driver whose trials all wait, each better the larger its value, and its events."""
    driver, book = begun(3, spec)
    for epoch in (1, 2):
        for trial, value in sorted(enumerate(values), key=lambda pair: pair[1]):  # so that none falls short at the first rung
            decision = driver.report(trial, Epoch(result(epoch, value)))
            assert decision == (Stop() if epoch == 2 else Continue())
            if epoch == 2:
                driver.released(trial)
    assert not ended(book)
    return driver, book


def test_at_the_end_the_best_of_those_that_wait_goes_on_to_full_length_and_then_the_others_end():
    driver, book = waiting_at_the_last_rung()
    assert numbers(driver) == [1]
    driver.started(1)
    assert [driver.report(1, Epoch(result(epoch, 0.3))) for epoch in (1, 2, 3, 4)] == [Continue(), Continue(), Continue(), Stop()]
    driver.released(1)
    assert driver.propose() == Finished()
    assert ended(book) == [(1, "completed", ""), (0, "stopped", ""), (2, "stopped", "")]
    assert not driver.work_left


def test_where_the_best_fails_the_next_goes_on():
    driver, _ = waiting_at_the_last_rung()
    assert numbers(driver) == [1]
    driver.report(1, Failed("failed", "no"))
    driver.released(1)
    assert numbers(driver) == [2]


def test_trials_that_wait_take_no_place_and_wait_on_while_others_run():
    driver, _ = waiting_at_the_last_rung()
    driver.command("set", {"trials": 9, "concurrency": 2}, "me")
    assert numbers(driver) == [3, 4]
    assert driver.propose() == Wait()


def test_a_search_that_starts_no_more_trials_still_trains_the_best_that_waits():
    driver, _ = waiting_at_the_last_rung(PASHA.model_copy(update={"trials": 60}))
    driver.command("stop", {}, "me")
    assert numbers(driver) == [1]
    assert not driver.must_end(1)


def test_a_limit_ends_those_that_wait_and_a_cancelled_search_leaves_them_to_a_resume():
    spec = PASHA.model_copy(update={"trials": 4, "limits": PASHA.limits.model_copy(update={"device_hours": 0.5})})
    driver, book = waiting_at_the_last_rung(spec)
    assert numbers(driver) == [3]
    driver.started(3)
    driver.report(3, Epoch(result(1, 0.5, seconds=3600.0)))
    driver.released(3)
    assert driver.propose() == Finished()
    driver.interrupt(ended=True)
    assert driver.ending.startswith("limits.device_hours")
    assert ended(book) == [(trial, "stopped", driver.ending) for trial in (3, 0, 1, 2)]
    driver, book = waiting_at_the_last_rung()
    driver.cancel()
    driver.interrupt(ended=True)
    assert ended(book) == [(trial, "interrupted", "the driver stopped") for trial in range(3)]
    assert numbers(driver_of(PASHA, MemoryLedger([*book.events, LAUNCHED]))) == [1]


def test_three_trials_that_fail_alike_end_the_search():
    driver, _ = begun(3)
    for trial in range(3):
        driver.report(trial, Failed("failed", f"ValueError: no (see {trial})"))
        driver.released(trial)
    assert driver.propose() == Finished()


def test_few_are_open_beyond_the_places_that_there_are():
    cluster = Cluster(places=0)
    spec = search_file.parse(FILE.format(sampler="random", stopping=ASHA).replace("concurrency: 4", "concurrency: 200"))
    driver = driver_of(spec.model_copy(update={"trials": 200}), cluster=cluster)
    assert numbers(driver, 200) == list(range(4))
    cluster.places = 40
    assert numbers(driver, 200) == list(range(4, 44))
    for number in range(40):
        driver.started(number)
    assert numbers(driver, 200) == list(range(44, 50))
    cluster.places = 20  # a node is gone, and Ray has not ended its trials yet
    assert numbers(driver, 200) == []
    over(driver, 0)
    assert numbers(driver, 200) == []  # 39 run, of 49 that are open


def test_no_more_are_given_in_a_row_than_is_allowed():
    spec = PLAIN.model_copy(update={"concurrency": 50, "trials": 50})
    driver = driver_of(spec)
    assert [isinstance(driver.propose(), TrialOrder) for _ in range(IN_A_ROW + 1)] == [True] * IN_A_ROW + [False]
    driver.tick()
    assert isinstance(driver.propose(), TrialOrder)


@pytest.mark.parametrize(("error", "times"), [(PROCESS_DIED, 4), (OUT_OF_MEMORY, 4), (NODE_LOST, 21)])
def test_a_trials_own_deaths_are_counted_strictly_and_its_nodes_generously_by_all_drivers_together(error, times):
    driver, book = begun(1)
    for count in range(times - 1):
        if count == 2:
            book = MemoryLedger([*book.events, LAUNCHED])
            driver = driver_of(PLAIN, book)
            driver.propose()
        assert isinstance(driver.broke(0, error), Move)
    assert (driver.broke(0, error), [outcome for _, outcome, _ in ended(book)]) == (Stop(), ["failed"])
    assert driver.must_end(0)


def test_each_breakdown_is_in_the_ledger_with_its_reason_and_what_comes_of_it():
    now = [0.0]
    driver, book = begun(1, clock=lambda: now[0])
    now[0] = 1000.0
    assert driver.tick() == [KillWorker(0)]
    for error in (PROCESS_DIED, PROCESS_DIED, OUT_OF_MEMORY, NODE_LOST, PROCESS_DIED):
        driver.broke(0, error)
    assert [(event.reason, event.again, event.cause) for event in book.events if isinstance(event, Broke)] == [
        ("it hung: not heard of for 1000 s", True, "own"),
        ("its worker process died", True, "own"),
        ("its worker process was ended for lack of memory", True, "memory"),
        ("its node was lost", True, "node"),
        ("its worker process died", False, "own"),  # the fourth of its own
    ]
    assert ended(book) == [(0, "failed", "its worker process died (after 3 retries)")]


def test_a_lack_of_memory_halves_once():
    driver, _ = begun(1)
    assert [driver.broke(0, OUT_OF_MEMORY).order.halvings for _ in range(2)] == [1, 1]


@pytest.fixture
def on_node_a(tmp_path, monkeypatch):
    """Trials of the simulation run on node `a`."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        (tmp_path / "trials" / str(number)).mkdir(parents=True)
        (tmp_path / "trials" / str(number) / "owner").write_text("mark a")


@pytest.mark.usefixtures("on_node_a")
def test_who_hung_or_could_not_write_goes_elsewhere_and_who_lost_its_node_anywhere():
    now = [0.0]
    driver, _ = begun(2, clock=lambda: now[0])
    assert driver.broke(0, NODE_LOST).avoid == frozenset()
    now[0] = 1000.0
    assert driver.tick() == [KillWorker(1)]
    assert driver.broke(1, PROCESS_DIED).avoid == {"a"}
    assert driver.broke(0, STORAGE).avoid == {"a"}


@pytest.mark.usefixtures("on_node_a")
def test_who_waits_for_another_node_in_vain_ends_the_search():
    now, cluster = [0.0], Cluster()
    driver, _ = begun(1, clock=lambda: now[0], cluster=cluster)
    driver.broke(0, STORAGE)
    now[0] = 1000.0
    driver.tick()
    assert not driver.trouble  # there is `b`, though it is busy
    del cluster.living["b"]
    now[0] = 800.0
    driver.tick()
    assert not driver.trouble
    now[0] = 1000.0
    driver.tick()
    assert isinstance(driver.trouble, ClusterError)
    assert "trial 0: no node has come for 15 minutes" in str(driver.trouble)


def test_storage_that_fails_everywhere_ends_the_search_and_no_trial_and_counts_no_more_after_a_resume():
    driver, book = begun(1)
    for _ in range(3):
        assert not driver.trouble
        driver.broke(0, STORAGE)
    assert not ended(book)
    assert isinstance(driver.trouble, SearchError) and driver.cancelled
    assert str(driver.trouble) == "trial 0: /mnt/s: the storage failed on the node n1 (full); make room."
    again = driver_of(PLAIN, MemoryLedger([*book.events, LAUNCHED]))
    again.propose()
    assert isinstance(again.broke(0, STORAGE), Move)


@pytest.mark.usefixtures("on_node_a")
def test_a_trial_leaves_a_node_that_is_about_to_be_taken_away_where_another_is_fit_for_it():
    cluster = Cluster(leaving=["a"])
    driver, _ = begun(1, cluster=cluster)
    moved = driver.report(0, Epoch(result(1, 0.5)))
    assert isinstance(moved, Move) and moved.avoid == {"a"}
    cluster.living = {"a": {"CPU": 64}}
    assert driver.report(0, Epoch(result(2, 0.5))) == Continue()


def test_a_lost_head_ends_the_search_with_its_error():
    cluster = Cluster()
    driver, _ = begun(1, cluster=cluster)
    cluster.lost = LostClusterError("the head is gone")
    driver.tick()
    assert driver.trouble is cluster.lost and driver.cancelled
