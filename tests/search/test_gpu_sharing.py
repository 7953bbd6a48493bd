"""Trials that share a GPU: what each asks for, what is learnt. Where Ray places them: tests/system/test_gpu_placement.py."""

import dataclasses
import json
import math
import random

import pytest

from vit_search.config import gpu_share, search_file
from vit_search.config.trial import EpochResult
from vit_search.errors import OutOfMemoryError, SpecError
from vit_search.ledger.events import OutgrewShare, Proposed, Reported
from vit_search.ledger.trials import Progress
from vit_search.planning import plan, search_lint
from vit_search.planning.speed import stated_speed
from vit_search.runtime import machine
from vit_search.runtime.ray_session import Shape
from vit_search.search.commands import Commands, Settings
from vit_search.search.components import within
from vit_search.search.gpu_sharing import ENOUGH, LEAST, MOST, Devices, GpuSharing, Nodes
from vit_search.search.limits import SearchLimits
from vit_search.vit import evaluation, training

GIB = 2**30
FILE = """
name: packed
data: {name: digits}
trials: 100
epochs: 4
concurrency: 100
resources: {cpus: auto, gpus: auto, gpu_memory: 16GiB}
model: {patch_size: 1, dim: 64, depth: 4, heads: 4}
training: {batch_size: {choice: [256, 2048, 8192, 16384, 40000]}}
"""
SPEC = search_file.parse(FILE)
NODES = Nodes(gpu_memory=16 * GIB, gpus=4, cores_per_gpu=6, cores=12, count=2)


def sharing(spec=SPEC, nodes=NODES, **settings):
    commands = Commands(dataclasses.replace(Settings.of(spec), **settings), spec.metric)
    return GpuSharing(spec, commands, channels=1, classes=10, images=0, nodes=nodes)


def need(batch_size):
    config = SPEC.trial_config({"batch_size": batch_size}, in_channels=1, num_classes=10, trial=0)
    return gpu_share.training_bytes(config.model, config.training)


def proposed(trial, batch_size=256):
    return Proposed(trial=trial, params={"batch_size": batch_size}, at=0)


def reported(trial, peak, gpus, epoch=1):
    result = EpochResult(
        epoch=epoch,
        train_loss=1.0,
        train_accuracy=0.5,
        val_loss=1.0,
        val_accuracy=0.5,
        val_top5_accuracy=0.9,
        lr=1e-3,
        images_per_s=100.0,
        seconds=2.0,
        peak_memory_bytes=int(peak),
    )
    return Reported(trial=trial, result=result, devices=gpus, at=0)


# Shares of predictions


@pytest.mark.parametrize(
    ("training", "share"),  # of 16 GiB: a step has 1248, 3296, 7392 or 15584 MiB beside the context, and 1.25 times the need must fit
    [(0.97, 1 / 8), (0.98, 1 / 4), (2.57, 1 / 4), (2.58, 1 / 2), (5.78, 1), (15.2, 1), (15.3, None)],
)
def test_a_trial_gets_the_smallest_step_that_its_predicted_peak_fits_into(training, share):
    assert gpu_share.share_of(gpu_share.Need(int(training * GIB), 0), 16 * GIB) == share


def test_images_count_where_they_will_lie_on_the_gpu_and_not_where_they_stay_in_main_memory():
    small, large = (gpu_share.Need(int(0.9 * GIB), int(images * GIB)) for images in (0.15, 0.65))
    assert gpu_share.share_of(small, 16 * GIB) == 1 / 4  # with 1/8 they would lie there, and would not fit
    assert gpu_share.share_of(large, 16 * GIB) == 1 / 8  # with 1/8 they take more than half of what there is, and stay away


def test_shares_of_any_mix_fill_a_gpu_and_never_exceed_it():
    rng = random.Random(0)
    for _ in range(200):
        free = 1.0
        while free:
            fits = [step for step in gpu_share.STEPS if step <= free]
            assert fits, f"{free} is a piece that nothing fits into"
            free -= rng.choice(fits)
        assert free == 0
    for gpu in (8, 16, 24, 40, 80, 141):
        for step in gpu_share.STEPS:
            held = gpu_share.allowed(step, gpu * GIB) + gpu_share.CONTEXT
            assert round(1 / step) * held <= gpu * GIB  # what the allocators may hold, and all contexts


def test_what_no_gpu_holds_is_never_proposed_and_the_reason_says_so():
    problem = SPEC.space.problem({"batch_size": 40000})
    assert problem == "training would take about 24.3 GiB of a GPU, and a whole one has 15.2 GiB beside its context."
    assert SPEC.space.problem({"batch_size": 16384}) is None
    unknown = search_file.parse(FILE.replace(", gpu_memory: 16GiB", ""))
    assert unknown.space.problem({"batch_size": 40000}) is None
    known = within(unknown.space, 16 * GIB)  # as the cluster tells
    assert [known.problem({"batch_size": size}) is None for size in (256, 2048, 8192, 16384, 40000)] == [True] * 4 + [False]
    with pytest.raises(SpecError, match=r"none of 2000 random proposals can be run, the first because: training would take"):
        within(unknown.space, GIB // 2)


# Cores and threads


@pytest.mark.parametrize(("gpus", "cores", "threads"), [(1 / 8, 0.75, 1), (1 / 4, 1.5, 1), (1 / 2, 3, 3), (1, 6, 6)])
def test_a_trial_has_as_many_cores_as_its_share_of_a_gpu_and_as_many_threads(gpus, cores, threads):
    shared = sharing()
    shared.apply(proposed(0, {1 / 8: 256, 1 / 4: 2048, 1 / 2: 8192, 1: 16384}[gpus]))
    devices = shared.devices(0)
    assert (devices, devices.threads) == (Devices(cores, gpus), threads)


@pytest.mark.parametrize(
    ("concurrency", "trials", "share"),  # on four GPUs
    [(1, 100, 1), (4, 100, 1), (5, 100, 1 / 2), (9, 100, 1 / 4), (100, 100, 1 / 8), (100, 96, 1 / 4), (100, 48, 1 / 2), (100, 24, 1)],
)
def test_a_trial_has_more_than_it_needs_where_places_would_stay_empty(concurrency, trials, share):
    shared = sharing(concurrency=concurrency, trials=trials)  # Ray fills one of the GPUs before it begins another
    shared.apply(proposed(0))
    assert shared.devices(0).gpus == share


@pytest.mark.parametrize(("concurrency", "cores"), [(1, 12), (2, 12), (3, 6), (8, 3), (24, 1), (100, 1)])
def test_without_gpus_a_node_s_cores_are_shared_among_the_trials_that_run_at_once(concurrency, cores):
    text = FILE.replace(", gpus: auto, gpu_memory: 16GiB", "").replace("concurrency: 100", f"concurrency: {concurrency}")
    shared = sharing(search_file.parse(text))
    shared.apply(proposed(0))
    assert shared.devices(0) == Devices(cores, 0)  # of two nodes with 12 cores


def test_numbers_in_the_file_mean_what_they_say():
    shared = sharing(search_file.parse(FILE.replace("{cpus: auto, gpus: auto, gpu_memory: 16GiB}", "{cpus: 2.5, gpus: 0.3}")), None)
    shared.apply(proposed(0, 8192))
    assert shared.devices(0) == Devices(2.5, 0.3)
    assert (shared.devices(0).threads, shared.decoders(0), shared.halves(0)) == (2, None, True)
    assert shared.reported_devices(0) == 0.0  # the file says it


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("{gpus: autp}", "resources.gpus: 'autp' will not do; did you mean auto?"),
        ("{gpus: auto, gpu_memory: 80 GB}", "resources.gpu_memory: '80 GB' is no size; write e.g. 80GiB."),
        ("{gpus: 1, gpu_memory: 80GiB}", "resources.gpu_memory: it decides nothing unless gpus is auto; drop it, or write gpus: auto."),
        ("{cpus: 0}", "resources.cpus: 0 will not do; give more than 0."),
    ],
)
def test_a_file_is_refused_with_the_mend(told, said):
    with pytest.raises(SpecError) as error:
        search_file.parse(FILE.replace("{cpus: auto, gpus: auto, gpu_memory: 16GiB}", told))
    assert said in str(error.value)


# What is learnt


def test_one_trial_that_takes_more_than_predicted_raises_the_shares_of_those_after_it():
    shared = sharing()
    shared.apply(proposed(0, 2048))
    assert shared.devices(0).gpus == 1 / 4
    shared.apply(reported(0, 2 * need(2048), 1 / 4))
    shared.apply(proposed(1, 2048))
    assert shared.factor == pytest.approx(2, rel=1e-6)
    assert shared.devices(1).gpus == 1 / 2


def test_that_trials_take_less_is_believed_of_enough_of_them_and_never_below_a_floor():
    shared = sharing()
    for trial in range(ENOUGH):
        assert shared.factor == 1
        shared.apply(proposed(trial, 2048))
        shared.apply(reported(trial, need(2048) * (0.8 if trial == 3 else 0.4), 1 / 4))
    assert shared.factor == pytest.approx(0.8, rel=1e-6)  # of ten, the largest
    for trial in range(ENOUGH, 40):
        shared.apply(proposed(trial, 2048))
        shared.apply(reported(trial, need(2048) * 0.1, 1 / 4))
    assert shared.factor == LEAST


def test_nothing_is_learnt_from_the_peaks_of_cuda_graphs_which_leave_out_the_graphs_own_memory():
    shared = sharing(search_file.parse(FILE.replace("training: {", "training: {cuda_graphs: {choice: [true, false]}, ")))
    for trial in range(2 * ENOUGH):
        shared.apply(Proposed(trial=trial, params={"batch_size": 2048, "cuda_graphs": trial % 2 == 0}))
        shared.apply(reported(trial, need(2048) * (0.1 if trial % 2 == 0 else 0.7), 1 / 4))
    assert shared.factor == pytest.approx(0.7, rel=1e-6)


def outgrew(trial, gpus):
    return OutgrewShare(trial=trial, gpus=gpus, memory=int(gpus * 16 * GIB) - gpu_share.CONTEXT, reason="no room", at=0)


def test_a_trial_that_outgrows_its_share_gets_the_next_one_each_time_and_keeps_it():
    shared = sharing()
    shared.apply(proposed(0))
    for share, more in ((1 / 8, 1 / 4), (1 / 4, 1 / 2), (1 / 2, 1)):
        assert (shared.devices(0).gpus, shared.halves(0)) == (share, False)
        assert shared.allowed_bytes(0) == outgrew(0, share).memory
        shared.apply(outgrew(0, share))
        assert shared.devices(0).gpus == more
    assert shared.halves(0)  # the micro-batch, at last
    assert shared.factor == MOST


def test_a_resume_knows_all_that_was_learnt():
    shared, rng, events = sharing(), random.Random(0), []
    for trial in range(30):
        events.append(proposed(trial, rng.choice([256, 2048, 8192])))
        shared.apply(events[-1])
        while rng.random() < 0.2 and shared.devices(trial).gpus < 1:
            events.append(outgrew(trial, shared.devices(trial).gpus))
            shared.apply(events[-1])
        for epoch in range(1, rng.randrange(4) + 1):
            events.append(reported(trial, rng.uniform(0.3, 0.9) * need(2048), shared.reported_devices(trial), epoch))
            shared.apply(events[-1])
    again = sharing()
    for event in events:
        again.apply(event)
    assert again.factor == shared.factor
    devices = [shared.devices(trial) for trial in range(30)]
    assert [again.devices(trial) for trial in range(30)] == devices
    assert len({one.gpus for one in devices}) > 2


def test_device_hours_count_each_trial_s_own_share():
    events = [proposed(0), proposed(1), reported(0, 1, 1 / 8), reported(1, 1, 1), reported(0, 1, 1 / 4, epoch=2)]
    progress = Progress.of(events, 4)
    assert progress.spent.device_seconds(None) == 2 * (1 / 8 + 1 + 1 / 4)
    assert progress.trials[0].device_seconds(None) == 2 * (1 / 8 + 1 / 4)
    assert progress.spent.device_seconds(3) == 3 * 6  # where the file says how many each has
    commands = Commands(dataclasses.replace(Settings.of(SPEC), device_hours=2.75 / 3600), "val_accuracy")
    for devices, ending in ((None, "limits.device_hours: 0.000763889 h are spent"), (0.4, "")):
        progress = Progress(4)
        limits = SearchLimits(commands, progress, metric="val_accuracy", mode="max", devices=devices)
        for event in events:
            progress.apply(event)
            limits.apply(event)
        assert limits.ending == ending


# In the worker


class Card:
    """What a worker asks of torch.cuda."""

    def __init__(self, memory):
        self.memory, self.fraction, self.emptied, self.total_memory = memory, 1.0, 0, memory

    def is_available(self):
        return self.memory > 0

    def empty_cache(self):
        self.emptied += 1

    def get_device_properties(self, device):
        return self

    def set_per_process_memory_fraction(self, fraction):
        self.fraction = fraction


def test_a_worker_holds_its_allocator_to_its_share_and_lets_go_for_the_next_trial():
    card = Card(80 * GIB)
    machine.limit_memory(1 / 8, card)
    assert card.fraction == (10 * GIB - gpu_share.CONTEXT) / (80 * GIB)
    machine.limit_memory(1.0, card)
    assert (card.fraction, card.emptied) == (1.0, 2)
    none = Card(0)
    machine.limit_memory(1 / 8, none)
    machine.limit_memory(0.0, card)  # a trial that asks for no GPU
    assert (none.emptied, card.emptied) == (0, 2)


def test_a_training_that_may_not_halve_its_micro_batch_says_so_at_once(monkeypatch):
    config = SPEC.trial_config({"batch_size": 256}, in_channels=1, num_classes=10, trial=0)
    state = training.start(config, evaluation.Normalisation.of((0.5,), (0.5,)))
    state.halves = False
    images = training.torch.zeros(256, 1, 8, 8)
    targets = training.augment.Targets(training.torch.zeros(256, dtype=training.torch.int64))

    def full(*_):
        raise training.torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "_gradients", full)
    with pytest.raises(OutOfMemoryError, match=r"a training step did not fit into memory: .* predicted for 256 images"):
        training.train_step(state, images, targets, 1e-3, 0)
    assert state.accumulation == 1


# Plan and lint


def test_a_plan_tells_how_many_trials_share_a_gpu():
    found = plan.plan(SPEC, stated_speed(1e12))
    assert [share.gpus for share in found.shares] == [1 / 8, 1 / 4, 1 / 2, 1]
    assert sum(share.trials for share in found.shares) == pytest.approx(1)
    assert found.gpu_bytes == 16 * GIB
    assert found.device_seconds < found.trial_seconds
    assert plan.SearchPlan.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert not plan.plan(search_file.parse(FILE.replace("gpus: auto, gpu_memory: 16GiB", "gpus: 1"))).shares


def test_lint_says_that_whole_gpus_are_wasted_on_small_trials():
    whole = search_file.parse(FILE.replace("gpus: auto, gpu_memory: 16GiB", "gpus: 1"))
    found = [finding for finding in search_lint.lint(whole, 200).findings if finding.where == "resources.gpus"]
    assert [finding.severity for finding in found] == ["hint"]
    assert "at most 1/8 of the memory of a GPU that has 80.0 GiB, but each takes a whole one; write auto" in found[0].text
    few = search_file.parse(FILE.replace("concurrency: 100", "concurrency: 2").replace("16GiB", "80GiB"))
    (found,) = [finding for finding in search_lint.lint(few, 200).findings if finding.where == "concurrency"]
    assert found.text.startswith("2 at once, but half of the proposals") and "up to 8 for each GPU" in found.text
    assert not [f for f in search_lint.lint(SPEC, 200).findings if f.where in ("resources.gpus", "concurrency") and "GPU" in f.text]


def test_places_are_counted_node_by_node_with_those_that_may_come():
    shapes = [Shape("head", 0, 0), Shape("a", 4, 1), Shape("b", 7.5, 2), Shape("more", 4, 1, count=3)]
    assert sharing().slots(shapes) == 0  # nothing was asked for yet
    for cpus, gpus, places in [
        (2, 0, 2 + 3 + 6),
        (2, 0.5, 2 + 3 + 6),
        (1, 0.1, 4 + 7 + 12),
        (1, 1, 1 + 2 + 3),
        (1, 2, 1),
        (0, 0.1, 10 + 20 + 30),
    ]:
        resources = SPEC.resources.model_copy(update={"cpus": cpus, "gpus": gpus, "gpu_memory": None})
        shared = sharing(SPEC.model_copy(update={"resources": resources}))
        shared.apply(proposed(0))
        assert shared.slots(shapes) == places
    assert shared.slots([*shapes, Shape("of any size", math.inf, math.inf, count=2)]) == math.inf
