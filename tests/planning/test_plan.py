"""What is told before anything is trained: oddities of a search file (lint), and what a search will cost (plan)."""

import base64
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from helpers.commands import vit_search
from helpers.rules import Ruled

from vit_search.config import search_file
from vit_search.config.cost import cost_of, gpus_of_this_machine, in_rounded_time
from vit_search.config.data_config import DataConfig
from vit_search.config.optimizers import OPTIMIZERS
from vit_search.config.training_config import TrainingConfig
from vit_search.errors import DataError, SpecError
from vit_search.planning import plan as planning
from vit_search.planning import search_lint
from vit_search.planning import speed as speeds
from vit_search.planning.image_counts import Images, images_of
from vit_search.planning.lint_draws import HEADS, MEMORY, PATCH
from vit_search.planning.plan import compare
from vit_search.planning.run_findings import beyond_this_machine
from vit_search.planning.simulation import NOISE
from vit_search.planning.speed import Speed, epoch_seconds, evaluation_seconds, stated_speed, train_seconds
from vit_search.vit import calibrate

HEAD = "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 27\n"
SEARCHED = "model: {patch_size: 4, depth: {int: [1, 4]}}\ntraining: {warmup_fraction: 0, lr: {float: [1e-4, 1e-2], log: true}}\n"
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")
"""A PNG file of one grey pixel."""


def spec(text, head=HEAD):
    return search_file.parse(head + text)


def findings(text, head=HEAD):
    return [(f.severity, f.where, f.text) for f in search_lint.lint(spec(text, head)).findings]


def test_a_file_without_the_section_stopping_is_told_what_to_write():
    found = findings(SEARCHED, HEAD.replace("epochs: 27", "epochs: 2"))
    mend = "write stopping: {grace_epochs: 1} to have poor trials stopped."
    assert ("hint", "stopping", f"the first look is at epoch 2 of 2, so no trial is ever stopped; {mend}") in found


def test_a_sound_file_has_no_findings():
    report = search_lint.lint(spec(SEARCHED))
    assert (report.findings, report.valid_share, report.invalid) == ((), 1.0, {})
    assert report.combinations is None  # lr is any number of a range
    params = report.spreads["params"]
    assert params.least < params.median < params.most


@pytest.mark.parametrize(
    ("text", "severity", "where", "said"),
    [
        ("model: {patch_size: {choice: [2, 3]}}", "warning", "model.patch_size", "3 is in no proposal that can be run"),
        ("model: {dim: {choice: [64, 63]}, heads: 4}", "warning", "model.dim", "63 is in no proposal that can be run"),
        ("model: {depth: {choice: [3]}}", "hint", "model.depth", "one value only; write the plain value 3."),
        ("model: {mlp_dim: 64, mlp_ratio: {choice: [1, 2]}}", "warning", "model.mlp_ratio", "mlp_dim stands in its place"),
        (
            "model: {dropout: {float: [0, 0.5]}, embedding_dropout: 0, attention_dropout: 0, projection_dropout: 0, mlp_dropout: 0}",
            "warning",
            "model.dropout",
            "the four parts each say otherwise",
        ),
        ("model: {depth: 1, drop_path: {float: [0, 0.2]}}", "warning", "model.drop_path", "it is 0 in the first block"),
        ("model: {positions: sincos2d, pos_init_std: {float: [0.1, 0.3]}}", "warning", "model.pos_init_std", "neither positions nor"),
        ("model: {rope_base: 10}", "warning", "model.rope_base", "since positions are not rope; drop it, or write positions: rope."),
        (
            "model: {dim: 64, positions: {choice: [rope, learned]}, rope_base: {float: [10, 1000], log: true}}",
            "hint",
            "model.rope_base",
            "since positions are not rope; add when: \"positions == 'rope'\".",
        ),
        (
            "model: {dim: {choice: [48, 60]}, heads: {choice: [4, 6]}, positions: rope}",
            "warning",
            "model.dim",
            "60 is in no proposal that can be run (the width of a head does not suit positions or qk_norm); leave it out.",
        ),
        (
            "training: {auto_augment: {choice: [none, rand_augment]}, rand_augment_ops: {int: [1, 3]}}",
            "hint",
            "training.rand_augment_ops",
            "add when: \"auto_augment == 'rand_augment'\".",
        ),
        (
            "training: {momentum: {float: [0, 0.9]}}",
            "warning",
            "training.momentum",
            "it makes no difference, since adamw does not use it; write a plain value.",
        ),
        (
            "training: {optimizer: sgd, beta2: {float: [0.9, 0.999]}}",
            "warning",
            "training.beta2",
            "it makes no difference, since sgd does not use it; write a plain value.",
        ),
        (
            "training: {optimizer: {choice: [adamw, muon]}, momentum: {float: [0, 0.9]}}",
            "hint",
            "training.momentum",
            "since adamw does not use it; add when: \"optimizer != 'adamw'\".",
        ),
        (
            "training: {tuned_blocks: 2}",
            "warning",
            "training.tuned_blocks",
            "it makes no difference, since tune is not last_blocks; drop it, or write tune: last_blocks.",
        ),
        (
            "training: {tune: {choice: [lora, full]}, lora_rank: {choice: [4, 8]}}",
            "hint",
            "training.lora_rank",
            "since tune is not lora; add when: \"tune == 'lora'\".",
        ),
        (
            "training: {tune: head, layer_decay: {float: [0.6, 1]}}",
            "warning",
            "training.layer_decay",
            "it makes no difference, since the head alone is trained; write a plain value.",
        ),
        (
            "model: {dropout: {float: [0, 0.5]}}\ntraining: {tune: {choice: [head, full]}}",
            "hint",
            "model.dropout",
            "it makes no difference, since the head alone is trained; add when: \"tune != 'head'\".",
        ),
        (
            "model: {depth: 3}\ntraining: {tune: last_blocks, tuned_blocks: {choice: [2, 4]}}",
            "warning",
            "training.tuned_blocks",
            "4 is in no proposal that can be run (tuned_blocks or lora_rank is too large for the model); leave it out.",
        ),
        (
            "training: {focal_gamma: {float: [1, 3]}}",
            "warning",
            "training.focal_gamma",
            "it makes no difference, since the loss is not focal; drop it, or write loss: focal.",
        ),
        (
            "training: {logit_tau: 1.5}",
            "warning",
            "training.logit_tau",
            "it makes no difference, since the loss is not logit_adjusted; drop it, or write loss: logit_adjusted.",
        ),
        (
            "training: {loss: logit_adjusted, focal_gamma: 2.0}",
            "warning",
            "training.focal_gamma",
            "it makes no difference, since the loss is not focal; drop it, or write loss: focal.",
        ),
        (
            "training: {rand_augment_ops: 3}",
            "warning",
            "training.rand_augment_ops",
            "it makes no difference, since there is no rand_augment; drop it, or write auto_augment: rand_augment.",
        ),
        (
            "training: {loss: {choice: [focal, logit_adjusted]}, logit_tau: {float: [0.5, 2]}}",
            "hint",
            "training.logit_tau",
            "since the loss is not logit_adjusted; add when: \"loss == 'logit_adjusted'\".",
        ),
        (
            "training: {class_weights: balanced, sampling: balanced}",
            "hint",
            "training.sampling",
            "in all proposals rare classes are favoured more than once, as by class_weights: balanced and sampling: balanced; choose one.",
        ),
        (
            "training: {class_weights: {choice: [none, balanced]}, loss: {choice: [focal, logit_adjusted]}}",
            "hint",
            "training.loss",
            "rare classes are favoured more than once, as by class_weights: balanced and loss: logit_adjusted; choose one, or add a when.",
        ),
        (
            "metric: train_loss\ntraining: {loss: {choice: [cross_entropy, focal]}}",
            "warning",
            "training.loss",
            "so trials cannot be compared; write metric: val_loss.",
        ),
        ("training: {compile: {choice: [true, false]}}", "warning", "training.compile", "without a GPU"),
        ("model: {dim: {choice: [32, 64], when: depth > 9}}", "warning", "model.dim.when", "depth > 9 never holds"),
        ("model: {dim: {choice: [32, 64], when: depth > 1}}", "hint", "model.dim.when", "depth > 1 always holds; drop it."),
        ("model: {depth: {int: [1, 3]}}\nconstraints: [depth < 9]", "hint", "constraints.0", "depth < 9 never binds"),
        (
            "model: {depth: {int: [1, 3]}}\nconstraints: [depth < 3, depth < 2]",
            "hint",
            "constraints.0",
            "depth < 3 excludes nothing that something else does not exclude, too; drop it.",
        ),
        ("model: {depth: {int: [1, 4]}}\nconstraints: [depth > 9]", "error", "constraints", "none of 2,000 random proposals can be run"),
        ("model: {depth: {int: [1, 200]}}\nconstraints: [depth < 3]", "warning", "constraints", "random proposals can be run; 99% cannot"),
        ("model: {depth: {int: [1, 4]}}", "warning", "trials", "9 trials, but only 4 different proposals can be run: the rest repeat"),
        ("sampler: grid\nmodel: {depth: {int: [1, 4]}}", "warning", "trials", "the grid ends there"),
        ("trials: 1\nconcurrency: 2", "hint", "concurrency", "2 at once, but only 1 trial; lower it."),
        ("sampler: grid\nmodel: {depth: {int: [1, 18]}}", "hint", "trials", "50% of the grid's 18 combinations are tried by 9 trials"),
        ("stopping: {grace_epochs: 27}", "warning", "stopping.grace_epochs", "the first look is at epoch 27 of 27, so no trial is ever"),
        ("stopping: {grace_epochs: 9}", "hint", "stopping.grace_epochs", "one rung only, at epoch 9 of 27"),
        ("stopping: {kind: median}\ntrials: 5", "warning", "stopping.kind", "median needs 5 trials"),
        ("stopping: {strata: 3}", "hint", "stopping.strata", "about 3 trials in each of 3 groups"),
        ("training: {warmup_fraction: 0.5}", "warning", "stopping.grace_epochs", "the learning rate climbs up to epoch 13.5"),
        ("training: {lr: {float: [1e-4, 1e-2]}}", "hint", "training.lr", "0.0001 to 0.01 spans 2.0 decades, and 9% of it lies below 0.001"),
        (
            "training: {lr: {float: [1e-3, 1e-2]}}",
            "hint",
            "training.lr",
            "0.001 to 0.01 spans 1.0 decades, and 24% of it lies below 0.0032",
        ),
        ("training: {weight_decay: {float: [1e-3, 1]}}", "hint", "training.weight_decay", "3% of it lies below 0.032; add log: true."),
        ("training: {batch_size: 2000}", "warning", "training.batch_size", "an epoch of 1,258 images is less than one batch"),
        ("concurrency: 12", "hint", "concurrency", "12 at once, but only 9 trials"),
    ],
)
def test_each_planted_fault_is_found(text, severity, where, said):
    head = HEAD.replace("trials: 9\n", "") if "trials:" in text else HEAD
    found = findings(text, head)
    assert any(s == severity and w == where and said in t for s, w, t in found), found


@pytest.mark.parametrize("training", ["loss: focal, focal_gamma: 1.5", "loss: {choice: [focal, cross_entropy]}, focal_gamma: 1.5"])
def test_a_plain_value_that_some_proposals_use_is_not_told(training):
    assert findings(SEARCHED.replace("training: {", f"training: {{{training}, ")) == []


def test_a_search_of_one_epoch_is_told_of_its_stopping_only_if_it_asks_for_it():
    head = HEAD.replace("epochs: 27", "epochs: 1")
    assert findings(SEARCHED, head) == []
    assert findings("stopping: {kind: none}\n" + SEARCHED, head) == []
    assert findings("stopping: {kind: median}\n" + SEARCHED, head) == [
        ("warning", "stopping", "trials of 1 epoch cannot be stopped; train for more epochs, or drop the section.")
    ]


def test_a_parameter_that_every_optimizer_of_the_search_uses_is_not_told():
    text = "training: {optimizer: {choice: [sgd, muon]}, momentum: {float: [0, 0.9]}}"
    assert not [where for _, where, _ in findings(text) if where == "training.momentum"]


def test_lint_knows_what_a_new_optimizer_uses(monkeypatch):
    """A new one stands where adamw does: its name is read when the package is imported."""
    monkeypatch.setitem(OPTIMIZERS, "adamw", dataclasses.replace(OPTIMIZERS["adamw"], uses=("clip_norm", "momentum")))
    said = {where: text for _, where, text in findings("training: {momentum: {float: [0, 0.9]}, beta2: {float: [0.9, 0.999]}}")}
    assert "training.momentum" not in said
    assert said["training.beta2"] == "it makes no difference, since adamw does not use it; write a plain value."


def test_what_an_optimizer_uses_is_a_field_of_the_training():
    fields = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert {name for optimizer in OPTIMIZERS.values() for name in optimizer.uses} <= fields


def photos(folder, counts):
    """An image folder with splits of its own."""
    for split, images in counts.items():
        for i in range(images):
            path = folder / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PIXEL + str(path).encode())  # no two alike
    return f"name: t\ndata: {{name: image_folder, path: {folder}, image_size: 8}}\ntrials: 9\nepochs: 27\n"


def test_few_validation_images_of_a_class_are_told_where_each_class_counts_the_same(tmp_path):
    head = photos(tmp_path, {"train": 60, "val": 15})  # 8 cats and 7 dogs
    text = (
        "fewer than 10 validation images of 2 classes (dog 7, cat 8): one answer moves the recall of dog by 0.14, and METRIC counts each "
    )
    for metric in ("val_macro_f1", "val_balanced_accuracy", "val_worst_class_recall"):
        told = text.replace("METRIC", metric) + "class the same; add images of them."
        assert ("warning", "data.path", told) in findings(SEARCHED, f"{head}metric: {metric}\n")
    assert not any("fewer than 10" in text for _, _, text in findings(SEARCHED, head))


@pytest.mark.parametrize(
    ("count", "interval"), [(7, "0.53 to 0.99, 0.46 wide"), (30, "0.74 to 0.97, 0.22 wide"), (99, "0.83 to 0.94, 0.12 wide"), (100, "")]
)
def test_few_validation_images_are_told_with_the_interval_that_follows(tmp_path, count, interval):
    found = findings(SEARCHED, photos(tmp_path, {"train": 200, "val": count}))
    seen = f"{count} validation images: an accuracy of 0.90 on them has a 95 % interval of {interval}; add images to them."
    assert found == ([("warning", "data.path", seen)] if interval else [])


def test_few_validation_images_of_a_split_that_is_drawn_are_told_with_the_fraction_to_raise(tmp_path):
    assert images_of(spec(SEARCHED, photos(tmp_path, {"": 70})).data_config).val == 7
    ((severity, where, text),) = findings(SEARCHED, photos(tmp_path, {"": 70}))
    assert (severity, where) == ("warning", "data.val_fraction")
    assert text.startswith("7 validation images: ")
    assert text.endswith("0.46 wide; raise it, or add images.")


def uneven(folder, cats, dogs):
    """An image folder without splits."""
    for name, images in (("cat", cats), ("dog", dogs)):
        (folder / name).mkdir()
        for i in range(images):
            (folder / name / f"{i}.png").write_bytes(PIXEL + f"{name}{i}".encode())  # no two alike
    fractions = "val_fraction: 0.2, holdout_fraction: 0, test_fraction: 0.2"
    return f"name: t\ndata: {{name: image_folder, path: {folder}, image_size: 8, {fractions}}}\ntrials: 9\nepochs: 27\n"


def test_classes_of_very_different_size_are_told_with_what_would_help(tmp_path):
    head = uneven(tmp_path, 1010, 100)  # of which 606 and 60 are trained on
    ((severity, where, text),) = findings(SEARCHED, head)
    assert (severity, where) == ("hint", "data.path")
    assert text == (
        "606 training images of cat and 60 of dog: classes of very different size; try metric: val_macro_f1 or val_balanced_accuracy, in "
        "which each class counts the same; and training.loss: logit_adjusted, or training.class_weights: balanced, which train for it."
    )
    searched = SEARCHED.replace("training: {", "training: {loss: {choice: [cross_entropy, logit_adjusted]}, ")
    ((*_, text),) = findings(searched, head)
    assert text.endswith("try metric: val_macro_f1 or val_balanced_accuracy, in which each class counts the same.")
    ((*_, text),) = findings("metric: val_macro_f1\n" + SEARCHED, head)
    assert text.endswith("try training.loss: logit_adjusted, or training.class_weights: balanced, which train for it.")
    assert findings("metric: val_macro_f1\n" + searched, head) == []


def test_classes_of_one_to_ten_are_not_told(tmp_path):
    assert findings(SEARCHED, uneven(tmp_path, 1000, 100)) == []  # 600 and 60


def test_a_search_that_trains_on_its_validation_images_is_told_of_its_holdout():
    found = [text for _, where, text in findings("train_on: train+val\n" + SEARCHED) if where == "data.holdout_fraction"]
    assert len(found) == 1
    assert found[0].startswith("90 holdout images: ")


def test_images_that_are_not_here_are_not_counted(tmp_path):
    head = f"name: t\ndata: {{name: image_folder, path: {tmp_path / 'none'}, image_size: 8}}\ntrials: 9\nepochs: 27\n"
    assert findings(SEARCHED, head) == []


def test_what_makes_proposals_invalid_is_counted_as_the_search_would_say_it():
    made = spec("model: {patch_size: {choice: [2, 3]}, dim: {choice: [64, 60]}, heads: 8, depth: {int: [1, 4]}}\nconstraints: [depth < 4]")
    report = search_lint.lint(made)
    assert report.valid_share == made.space.feasible_share()  # the same draws
    shares = {kind: count / report.draws for kind, count in report.invalid.items()}
    expected = {PATCH: 1 / 2, HEADS: 1 / 4, "depth < 4": 1 / 16}  # each of what the ones before leave
    assert shares == {kind: pytest.approx(share, abs=0.03) for kind, share in expected.items()}
    (bound,) = report.limits
    assert (bound.limit, bound.alone) == ("depth < 4", pytest.approx(1 / 4, abs=0.04))
    assert (report.combinations, report.valid_combinations) == (16, 3)


def test_memory_that_binds_is_told(monkeypatch):
    made = spec("model: {dim: {choice: [64, 4096]}, heads: 4, depth: 4, patch_size: 1}")
    big = made.space.cost({"dim": 4096}).train_bytes
    monkeypatch.setattr(search_file, "memory_of_this_machine", lambda: big - 1)
    report = search_lint.lint(made)
    assert report.invalid == {MEMORY: pytest.approx(1000, abs=100)}
    assert report.limits[0].limit == MEMORY
    assert ("warning", "model.dim", f"4096 is in no proposal that can be run ({MEMORY}); leave it out.") in [
        (f.severity, f.where, f.text) for f in report.findings
    ]


def test_repeats_of_a_small_space_are_expected_by_the_birthday_rule():
    report = search_lint.lint(spec("model: {depth: {int: [1, 10]}}"))
    assert report.duplicates == pytest.approx(9 - 10 * (1 - 0.9**9))


def test_without_stopping_the_plan_is_worked_by_hand():
    text = "stopping: {kind: none}\nconcurrency: 2\nresources: {cpus: 3}\nmodel: {depth: 2, patch_size: 4}\n"
    made = spec(text, "name: t\ndata: {name: digits}\ntrials: 5\nepochs: 4\n")
    plan = planning.plan(made, stated_speed(1e9))
    cost = made.space.cost({})
    images = 1258 + 179 / 3  # an evaluated image is a third of a trained one
    epoch = images * cost.train_flops / 1e9
    assert plan.images == Images(train=1258, val=179, holdout=90)
    assert [(r.epoch, r.trials) for r in plan.rungs] == [(4, 5)]
    assert (plan.trained_epochs, plan.saved_share) == (20, 0)
    assert plan.flops == pytest.approx(20 * (1258 * cost.train_flops + 179 * cost.forward_flops))
    assert plan.trial_seconds == pytest.approx(20 * epoch)
    assert plan.device_seconds == pytest.approx(60 * epoch)  # three cores a trial
    assert plan.wall_seconds == pytest.approx(12 * epoch)  # two, two and one
    assert planning.plan(made, stated_speed(1e9), concurrency=5).wall_seconds == pytest.approx(4 * epoch)
    assert plan.train_bytes == (cost.train_bytes, cost.train_bytes)
    assert plan.disk_bytes == (3 + 2) * cost.params * 4 * 3 * 2
    pasha = made.stopping.model_copy(update={"kind": "pasha", "grace_epochs": 1})
    waiting = planning.plan(made.model_copy(update={"stopping": pasha, "concurrency": 1}))
    assert waiting.disk_bytes == 5 * cost.params * 4 * 3 * 2  # with pasha, all five may wait, each with its checkpoint


def test_without_a_speed_there_are_no_seconds():
    plan = planning.plan(spec(SEARCHED))
    assert (plan.trial_seconds, plan.device_seconds, plan.wall_seconds, plan.epoch_seconds) == (None,) * 4
    assert plan.flops > 0 and plan.trained_epochs > 0
    assert json.loads(json.dumps(plan.to_dict()))["speed"] is None


def test_a_grid_ends_when_it_is_through():
    assert planning.plan(spec("sampler: grid\nmodel: {depth: {int: [1, 4]}}")).trials == 4


def test_a_limit_of_time_that_comes_first_is_named():
    made = spec(SEARCHED + "limits: {hours: 0.5}\n")
    hours = (planning.plan(made, stated_speed(1e6)).wall_seconds or 0) / 3600
    assert planning.plan(made, stated_speed(1e6)).limit == f"limits.hours: 0.5 h are over after about {0.5 / hours:.0%} of the search"
    assert planning.plan(made, stated_speed(1e15)).limit is None


@pytest.mark.parametrize("audit_share", [0, 0.2])
def test_as_many_trials_reach_each_rung_as_by_the_searchs_own_rungs(audit_share):
    trials, epochs = 40, 27
    made = spec(f"sampler: random\nstopping: {{audit_share: {audit_share}}}\n" + SEARCHED, HEAD.replace("trials: 9", f"trials: {trials}"))
    rng, reached = random.Random(3), Counter()
    for search in range(600):  # one trial at a time, of exchangeable worth
        rungs = Ruled(epochs=epochs, grace_epochs=3, audit_share=audit_share, seed=search)
        for trial in range(trials):
            worth = rng.gauss(0, 1)
            for epoch in (3, 9, 27):
                reached[epoch] += 1
                if epoch < epochs and rungs.stops(trial, epoch, worth + rng.gauss(0, NOISE)):
                    break
    plan = planning.plan(made)
    assert {rung.epoch: rung.trials for rung in plan.rungs} == {epoch: pytest.approx(n / 600, rel=0.08) for epoch, n in reached.items()}
    assert plan.trained_epochs == pytest.approx(sum((e - b) * reached[e] / 600 for b, e in ((0, 3), (3, 9), (9, 27))), rel=0.05)


def test_a_very_long_search_is_foretold_by_a_part_of_it():
    long = planning.plan(spec(SEARCHED + "sampler: random\n", HEAD.replace("trials: 9", "trials: 200000")), stated_speed(1e9))
    short = planning.plan(spec(SEARCHED + "sampler: random\n", HEAD.replace("trials: 9", "trials: 2000")), stated_speed(1e9))
    assert long.rungs[0].trials == 200_000
    for name in ("trained_epochs", "flops", "trial_seconds", "wall_seconds"):
        assert getattr(long, name) == pytest.approx(100 * getattr(short, name), rel=0.1)


def test_what_came_is_set_beside_what_was_foretold():
    plan = planning.plan(spec("stopping: {kind: none}\nmodel: {depth: 2}\n"), stated_speed(1e9))
    beside = compare(plan, {27: 6, 10: 3}, device_seconds=2 * plan.device_seconds, wall_seconds=plan.wall_seconds)
    assert beside["trials_at"] == {"27": {"predicted": 9, "actual": 6, "ratio": pytest.approx(2 / 3)}}
    assert beside["epochs"] == {"predicted": 9 * 27, "actual": 6 * 27 + 30, "ratio": pytest.approx(192 / 243)}
    assert beside["device_seconds"]["ratio"] == pytest.approx(2)
    assert beside["wall_seconds"]["ratio"] == 1
    assert planning.SearchPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert beside["trials"] == {"predicted": 9, "actual": 9, "ratio": 1}
    untimed = compare(planning.plan(spec("model: {depth: 2}\n")), {27: 9}, device_seconds=1.0, wall_seconds=1.0)
    assert json.loads(json.dumps(untimed))["wall_seconds"] == {"predicted": None, "actual": 1.0, "ratio": None}


def test_images_are_counted_before_they_are_read():
    assert images_of(DataConfig(name="mnist", val_fraction=0.1)) == Images(
        train=51_000, val=6_000, holdout=3_000
    )  # it has a test split of its own
    assert images_of(DataConfig(name="cifar10", train_limit=500)) == Images(train=500, val=5_000, holdout=2_500)
    assert images_of(DataConfig(name="digits", val_fraction=0.2, test_fraction=0.5)) == Images(train=1797 - 449 - 899, val=359, holdout=90)


def test_images_of_digits_are_those_of_the_prepared_set():
    from vit_search.data.cache import prepare

    for config in (
        DataConfig(name="digits"),
        DataConfig(name="digits", val_fraction=0.3, holdout_fraction=0.12, test_fraction=0.11, split_seed=3),
    ):
        counts = prepare(config).counts
        assert images_of(config) == Images(train=counts["train"], val=counts["val"], holdout=counts["holdout"])


def test_images_of_a_folder_are_counted_by_their_endings(tmp_path):
    for name in (
        "cat/1.png",
        "cat/deep/2.JPG",
        "cat/7.bmp",
        "dog/3.webp",
        "dog/4.png",
        "dog/8.gif",
        "dog/notes.txt",
        "5.png",
        "dog/.6.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    config = DataConfig(name="image_folder", path=str(tmp_path), image_size=8, val_fraction=0.25, holdout_fraction=0, test_fraction=0.25)
    assert images_of(config) == Images(train=3, val=1, holdout=0)  # of 6 images, 2 are for test
    with pytest.raises(DataError, match=r"missing; data\.path names a folder of class folders"):
        images_of(DataConfig(name="image_folder", path=str(tmp_path / "none"), image_size=8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders; put the images into at least two folders"):
        images_of(DataConfig(name="image_folder", path=str(tmp_path / "empty"), image_size=8))


def test_seconds_are_the_sum_of_what_the_parts_cost():
    config = spec("model: {patch_size: 4, depth: 3, dim: 32, heads: 2}\ntraining: {batch_size: 50}").trial_config(
        {}, in_channels=1, num_classes=10, trial=0
    )
    cost = cost_of(config.model, 50)
    assert train_seconds(Speed(gflop_s=1.0), config, 1000) == pytest.approx(1000 * cost.train_flops / 1e9)
    assert train_seconds(Speed(gflop_s=0, step_s=1), config, 1001) == 21  # the last step is not full
    assert train_seconds(Speed(gflop_s=0, block_s=1), config, 1000) == 60
    assert train_seconds(Speed(gflop_s=0, image_s=1), config, 1000) == pytest.approx(1000)
    assert train_seconds(Speed(gflop_s=0, policy_s=1), config, 1000) == 0
    assert train_seconds(Speed(gflop_s=0, mscore_s=1), config, 1000) == pytest.approx(1000 * 3 * 2 * 4**2 / 1e6)
    saved = Speed(gflop_s=0, save_s=1, mparam_save_s=1)
    assert epoch_seconds(saved, config, Images(10, 10)) == pytest.approx(1 + cost.params / 1e6)


def test_a_checkpoint_without_frozen_blocks_takes_less_time_and_disk():
    text = "model: {pretrained: w.safetensors, patch_size: 4, depth: 3, dim: 32, heads: 2}\ntraining: {tune: TUNE}"
    whole, head = (spec(text.replace("TUNE", way)) for way in ("full", "head"))
    block = 4 * 32**2 + 4 * 32 + 8 * 32**2 + 5 * 32 + 4 * 32  # qkv and projection; MLP; two norms
    config = head.trial_config({}, in_channels=1, num_classes=10, trial=0)
    held = cost_of(config.model, 1).params - 3 * block
    assert epoch_seconds(Speed(gflop_s=0, save_s=1, mparam_save_s=1), config, Images(10, 10)) == pytest.approx(1 + held / 1e6)
    disk = [planning.plan(one).disk_bytes for one in (whole, head)]
    assert disk[0] / disk[1] == pytest.approx(cost_of(config.model, 1).params / held)


@pytest.mark.parametrize(("tune", "blocks"), [("full", 3), ("lora", 3), ("last_blocks", 1 + 2 / 3), ("head", 1)])
def test_a_block_that_is_not_trained_takes_a_third_of_its_seconds(tune, blocks):
    text = "model: {patch_size: 4, depth: 3, dim: 32, heads: 2}\ntraining: {batch_size: 50, tune: TUNE}"
    config, full = (spec(text.replace("TUNE", way)).trial_config({}, in_channels=1, num_classes=10, trial=0) for way in (tune, "full"))
    assert train_seconds(Speed(gflop_s=0, block_s=1), config, 1000) == pytest.approx(20 * blocks)
    assert train_seconds(Speed(gflop_s=0, mscore_s=1), config, 1000) == pytest.approx(1000 * blocks * 2 * 4**2 / 1e6)
    speed = Speed(gflop_s=1, block_s=1)
    assert evaluation_seconds(speed, config, 100) == evaluation_seconds(speed, full, 100)  # the served model is the same


def test_a_speed_is_kept_and_damage_is_told(tmp_path):
    path = tmp_path / "cache" / "speed.json"
    assert speeds.load_speed(path) is None
    speed = Speed(gflop_s=0.02, step_s=1e-3, device="box", measured="2026-11-24", name="t", processes=2, room=2)
    speeds.save_speed(speed, path)
    assert speeds.load_speed(path) == speed
    for damaged in ("", "{}", "[1]", json.dumps({"gflop_s": "x"}), json.dumps({"gflop_s": -1}), json.dumps({"gflop_s": 1, "new": 1})):
        path.write_text(damaged)
        with pytest.raises(SpecError, match="measure again: vit-search plan --calibrate") as refused:
            speeds.load_speed(path)
        assert "\n" not in str(refused.value)


def test_a_fit_finds_the_prices_that_times_were_made_of():
    rows = [{"a": float(i), "b": 1.0, "c": float(i * i % 7)} for i in range(1, 9)]
    assert calibrate.least(rows, [2 * r["a"] + 3 for r in rows]) == {"a": pytest.approx(2), "b": pytest.approx(3), "c": pytest.approx(0)}
    assert calibrate.least(rows, [2 * r["a"] + 3 for r in rows], {"a": 2.5})["a"] >= 2.5
    assert min(calibrate.least(rows, [5 - 0.1 * r["a"] for r in rows]).values()) >= 0


def calibrated():
    """The proposals that a calibration trains for a small space."""
    made = spec("model: {patch_size: {choice: [2, 4]}, depth: {int: [1, 4]}, dim: {choice: [32, 64]}, heads: 4}")
    return [calibrate.bounded(config, 1e9) for config in calibrate.proposals(made)]


def test_a_calibration_finds_the_prices_behind_its_times():
    configs = calibrated()
    true = Speed(gflop_s=0.02, step_s=2e-3, block_s=4e-4, image_s=1e-5)
    steps = [train_seconds(true, config, config.training.batch_size) for config in configs]
    times = [calibrate.Measured(step=step, evaluation=0.1, save=0.01, start=2.0, gflop=0.02) for step in steps]
    speed = calibrate.fitted(configs, times)
    foretold = [train_seconds(speed, config, config.training.batch_size) for config in configs]
    assert foretold == pytest.approx(steps, rel=1e-3)
    assert (speed.gflop_s, speed.start_s) == (pytest.approx(0.02, rel=1e-3), 2.0)


def test_a_calibration_measures_every_proposal():
    """How long each takes, a busy machine decides; so no time is compared with another."""
    before = torch.get_num_threads()
    try:
        times = calibrate.measure(calibrated(), "cpu", 1, 0.1)
    finally:
        torch.set_num_threads(before)
    assert len(times) == calibrate.MODELS
    assert all(seconds > 0 for m in times for seconds in dataclasses.astuple(m))


def test_calibration_has_the_environment_of_a_trial():
    from vit_search.runtime.worker_env import WORKER_ENV

    assert calibrate.WORKER_ENV is WORKER_ENV


def typed(*words):
    """What the command line prints: (exit code, stdout, stderr)."""
    done = vit_search(".", *words, code=None)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "t.yaml"
    path.write_text(HEAD + SEARCHED)
    return path


def test_lint_prints_what_it_found(file):
    code, out, _ = typed("lint", file)
    assert (code, "nothing odd" in out) == (0, True)
    file.write_text(HEAD + "model: {depth: {choice: [3]}}\n")
    code, out, _ = typed("lint", file)
    assert code == 0 and f"\nhint: {file}:5: model.depth: one value only; write the plain value 3.\n" in out
    code, out, _ = typed("lint", file, "--json")
    assert json.loads(out)["findings"][-1]["where"] == "model.depth"
    file.write_text(HEAD + "model: {depth: {int: [1, 4]}}\nconstraints: [depth > 9]\n")
    code, out, _ = typed("lint", file)
    assert code == 2 and f"\nerror: {file}:6: constraints: none of 2,000 random proposals can be run" in out


def test_lint_names_searches_to_learn_from_that_are_missing(file, tmp_path, monkeypatch):
    (tmp_path / "here" / "digits-1").mkdir(parents=True)
    (tmp_path / "here" / "digits-1" / "search.json").write_text("{}")
    elsewhere = tmp_path / "wide-1"
    elsewhere.mkdir()
    (elsewhere / "search.json").write_text("{}")
    file.write_text(HEAD + SEARCHED + f"learn_from: [digits-1, digts-1, {elsewhere}]\n")
    code, out, err = typed("lint", file, "--output", tmp_path / "here", "--json")
    assert (code, err) == (0, "")
    (missing,) = json.loads(out)["findings"]
    assert (missing["severity"], missing["where"]) == ("warning", "learn_from.1")
    assert missing["text"] == (
        f"digts-1: {tmp_path / 'here'}: no search named 'digts-1'; did you mean digits-1? `run` needs it where the search will run."
    )
    monkeypatch.chdir(tmp_path)
    code, out, _ = typed("lint", file, "--json")  # ./searches, which is not there
    assert [finding["where"] for finding in json.loads(out)["findings"]] == ["learn_from.0", "learn_from.1"]


@pytest.mark.parametrize(
    ("asked", "cpus", "gpus", "expected"),
    [
        ("{cpus: 2, gpus: 1}", 2, 1, []),
        ("{cpus: auto, gpus: auto}", 1, 1, []),
        ("{cpus: 1, gpus: 0}", 1, 0, []),
        ("{cpus: 1, gpus: 0.5}", 1, 1, []),
        (
            "{cpus: 3}",
            2,
            0,
            [("resources.cpus", "a trial takes 3 CPUs, and this machine has 2; run it on a cluster that has them, or lower it.")],
        ),
        (
            "{gpus: 0.5}",
            2,
            0,
            [("resources.gpus", "a trial takes 0.5 GPU, and this machine has none; run it on a cluster that has one, or write 0.")],
        ),
        (
            "{gpus: auto}",
            2,
            0,
            [("resources.gpus", "a trial takes GPUs, and this machine has none; run it on a cluster that has one, or write 0.")],
        ),
        (
            "{gpus: 4}",
            2,
            1,
            [("resources.gpus", "a trial takes 4 GPUs, and this machine has 1; run it on a cluster that has them, or lower it.")],
        ),
        ("{gpus: 4}", 2, None, []),  # cannot be counted here
    ],
)
def test_lint_hints_at_what_this_machine_lacks(asked, cpus, gpus, expected):
    found = list(beyond_this_machine(spec(f"resources: {asked}\n"), cpus, gpus))
    assert [(finding.severity, finding.where, finding.text) for finding in found] == [("hint", *one) for one in expected]


def test_lint_looks_at_this_machine(file):
    file.write_text(HEAD + SEARCHED + "resources: {cpus: 1024}\n")
    code, out, _ = typed("lint", file, "--json")
    assert code == 0
    assert f"a trial takes 1024 CPUs, and this machine has {os.cpu_count()};" in json.loads(out)["findings"][-1]["text"]


@pytest.mark.parametrize(
    ("files", "shown", "expected"),
    [
        ([], None, 0),
        (["nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1", "nvidia10"], None, 3),
        (["nvidia0", "nvidia1"], "1", 1),
        (["nvidia0", "nvidia1"], "", 0),
        (["kfd"], None, None),  # an AMD GPU has no file of its own
        (["kfd", "nvidia0"], None, 1),
    ],
)
def test_gpus_are_counted_by_their_device_files(files, shown, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    for name in files:
        (tmp_path / name).touch()
    assert gpus_of_this_machine(tmp_path) == expected


def test_plan_prints_what_it_costs(file):
    code, out, _ = typed("plan", file)
    assert code == 0 and "time    unknown: add --calibrate" in out and "less than without stopping" in out
    code, out, _ = typed("plan", file, "--flops-per-s", "5e10", "--concurrency", "3")
    assert code == 0 and "3 at once" in out and "50 G floating-point operations a second, as stated" in out
    code, out, _ = typed("plan", file, "--json", "--flops-per-s", "5e10")
    assert json.loads(out)["wall_seconds"] > 0


def test_a_measured_speed_is_used_until_the_next_one(file, tmp_path):
    kept = tmp_path / "cache" / "speed-cpu.json"
    speeds.save_speed(Speed(gflop_s=0.02, device="box", measured="2026-11-24", name="other", processes=1, room=2), kept)
    code, out, _ = typed("plan", file)
    said = f"box, measured 2026-11-24 with 1 at once for other: the times may be wrong by a factor of {speeds.BORROWED:g}"
    assert code == 0 and f"{said}; --calibrate measures again" in out
    code, out, _ = typed("plan", file, "--concurrency", "4")
    assert "not 4" in out and "it has room for 2 at once" in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2776 * 3600 + 23 * 60, "2,800 h"),
        (35.6 * 3600, "36 h"),
        (10000, "2.8 h"),
        (258, "4.3 min"),
        (3599, "1 h"),
        (9.96, "10 s"),
        (43.2, "43 s"),
        (0.517, "0.52 s"),
        (0, "0 s"),
    ],
)
def test_an_estimated_time_has_two_digits(seconds, text):
    assert in_rounded_time(seconds) == text


def test_a_plan_prints_no_more_digits_than_are_known(file):
    file.write_text(HEAD.replace("trials: 9", "trials: 1234") + SEARCHED)
    code, out, _ = typed("plan", file, "--flops-per-s", "1e6")
    made = planning.plan(search_file.load(file), stated_speed(1e6))
    assert code == 0 and 1000 < made.wall_seconds / 3600 < 100_000
    assert f"about {float(f'{made.wall_seconds / 3600:.2g}'):,.0f} h (" in out
    assert f"about {float(f'{made.trained_epochs:.2g}'):,.0f} (" in out
    assert not re.search(r" h \d+ min", out)


def test_what_is_not_left_to_chance_is_not_rounded(file):
    file.write_text(HEAD + "stopping: {kind: none}\n" + SEARCHED)
    assert "epochs  243, 0% less than without stopping" in typed("plan", file)[1]  # 9 trials of 27 epochs


def test_a_calibration_belongs_to_one_space(file):
    made = search_file.load(file)
    own = Speed(gflop_s=0.02, measured="2026-11-24", name=made.name, key=speeds.speed_key(made))
    assert planning.plan(made, own).borrowed == ""
    file.write_text(file.read_text().replace("[1, 4]", "[1, 9]"))
    wider = search_file.load(file)
    assert planning.plan(wider, own).borrowed == f"an earlier {made.name}"
    assert planning.plan(made, dataclasses.replace(own, name="other")).borrowed == "other"
    assert planning.plan(made, dataclasses.replace(own, key="")).borrowed == ""  # of a version that kept the name alone
    assert planning.plan(made, stated_speed(1e9)).borrowed == ""
    told = compare(planning.plan(wider, own), {27: 9}, device_seconds=1.0, wall_seconds=1.0)
    assert told["speed"]["borrowed"] == f"an earlier {made.name}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "none.yaml"], "none.yaml: cannot be read"),
        (["lint", "none.yaml"], "none.yaml: cannot be read"),
        (["plan", "FILE", "--concurrency", "0"], "--concurrency is 0; give 1 to 10,000 trials at once."),
        (["plan", "FILE", "--flops-per-s", "-1"], "--flops-per-s is -1; give what a training step sustains, e.g. 5e10."),
        (["plan", "FILE", "--flops-per-s", "nan"], "--flops-per-s is nan;"),
        (["plan", "FILE", "--flops-per-s", "1e9", "--calibrate"], "a speed is measured or stated; drop one of the two."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said, file):
    code, out, err = typed(*(file if word == "FILE" else word for word in words))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize("command", ["lint", "plan", "train"])
def test_weights_of_a_class_that_does_not_exist_are_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "t.yaml"
    path.write_text(HEAD + 'model: {patch_size: 4}\ntraining:\n  class_weights: {"3": 2, "33": 2}\n')
    code, _, err = typed(command, path)
    assert code == 2
    assert err == f"error: {path}:7: training.class_weights: the data has no class 33; did you mean 3?\n"


@pytest.mark.parametrize("words", [["lint"], ["plan", "--flops-per-s", "1e10"], ["plan"]])
def test_neither_torch_nor_ray_is_needed(words, file):
    file.write_text(file.read_text() + "learn_from: [digits-1]\nresources: {gpus: 64}\n")
    code = f"import sys; from vit_search import cli; sys.argv = ['vit-search', {words[0]!r}, {str(file)!r}, *{words[1:]!r}]\n"
    code += "try:\n    cli.main()\nfinally:\n    print(' '.join(sys.modules))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.splitlines()[-1].split()) & {"torch", "ray", "optuna", "mlflow"}


def test_nothing_that_can_be_run_is_told_by_plan_too():
    with pytest.raises(SpecError, match=r"none of 50,000 random proposals can be run; see why: vit-search lint\."):
        planning.plan(spec("model: {depth: {int: [1, 4]}}\nconstraints: [depth > 9]\n"))
