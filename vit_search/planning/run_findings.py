"""Lint findings about how trials are run: stopping, images, warm-up, trials at once, GPUs, this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vit_search.config import gpu_share
from vit_search.config.cost import in_units, memory_of_this_machine
from vit_search.config.search_file import SearchSpec
from vit_search.config.search_file_blocks import Stopping
from vit_search.data.sources import open_source
from vit_search.data.sources.source import in_short
from vit_search.errors import DataError
from vit_search.planning.image_counts import images_of
from vit_search.planning.lint_draws import LintDraw, LintFinding
from vit_search.stats import wilson
from vit_search.stopping import rule_of
from vit_search.text import counted

LEAST_IMAGES = 100
"""Minimum number of validation images; with fewer, chance decides the ranking. 100 give an accuracy of 0.9 an interval of width 0.12."""


def beyond_this_machine(spec: SearchSpec, cpus: int, gpus: int | None) -> Iterator[LintFinding]:
    """What one trial needs and this machine does not have. Only a hint, because the search may run on a cluster.

    Args:
        cpus: of the machine.
        gpus: of the machine; None if they cannot be counted.
    """
    elsewhere, resources = "run it on a cluster that has {}, or", spec.resources
    if resources.cpus != "auto" and resources.cpus > cpus:
        fact = f"a trial takes {resources.cpus:g} CPUs, and this machine has {cpus}"
        yield LintFinding("hint", "resources.cpus", f"{fact}; {elsewhere.format('them')} lower it.")
    least = 1 if resources.gpus == "auto" else math.ceil(resources.gpus)
    if gpus is not None and least > gpus:
        takes = "GPUs" if resources.gpus == "auto" else f"{resources.gpus:g} GPU{'s' if resources.gpus > 1 else ''}"
        fact = f"a trial takes {takes}, and this machine has {gpus or 'none'}"
        mend = "lower it" if gpus else "write 0"
        yield LintFinding("hint", "resources.gpus", f"{fact}; {elsewhere.format('them' if least > 1 else 'one')} {mend}.")


def stopping_rule(spec: SearchSpec) -> Iterator[LintFinding]:
    """A stopping rule that never stops a trial, or has too few trials to compare."""
    stopping, rule = spec.stopping, rule_of(spec, parts=())
    if not rule.stops:
        return
    if spec.epochs == 1:
        if stopping.model_fields_set - {"grace_epochs"}:  # without stopping settings in the file, a warning is of no use
            yield LintFinding("warning", "stopping", "trials of 1 epoch cannot be stopped; train for more epochs, or drop the section.")
        return
    if stopping.grace_epochs >= spec.epochs:
        fact = f"the first look is at epoch {stopping.grace_epochs} of {spec.epochs}, so no trial is ever stopped"
        by_default = "grace_epochs" not in stopping.model_fields_set or spec.epochs < Stopping.model_fields["grace_epochs"].default
        if not by_default:
            yield LintFinding("warning", "stopping.grace_epochs", f"{fact}; lower it.")
        else:  # it may be the default, shortened for short trainings: nothing to lower in the file
            yield LintFinding("hint", "stopping", f"{fact}; write stopping: {{grace_epochs: 1}} to have poor trials stopped.")
    elif len(rule.looks) == 1 and stopping.grace_epochs * stopping.reduction_factor >= spec.epochs:
        fact = f"one rung only, at epoch {stopping.grace_epochs} of {spec.epochs}"
        least = stopping.grace_epochs == 1, stopping.reduction_factor == 2
        mend = {
            (False, False): "lower it or reduction_factor", (True, False): "lower reduction_factor", (False, True): "lower it",
            (True, True): "train for more epochs",
        }[least]  # fmt: skip
        yield LintFinding("hint", "stopping.grace_epochs", f"{fact}; for a second one {mend}.")
    if spec.trials <= rule.startup:
        needs = f"{stopping.kind} needs {rule.startup} trials to hold the next against, and trials is {spec.trials}"
        yield LintFinding("warning", "stopping.kind", f"{needs}; write asha.")
    if stopping.strata > 1 and spec.trials < 2 * stopping.strata * stopping.reduction_factor:
        fact = f"about {counted(round(spec.trials / stopping.strata), 'trial')} in each of {stopping.strata} groups part hardly at all"
        yield LintFinding("hint", "stopping.strata", f"{fact}; ask for fewer groups or more trials.")


def few_images(spec: SearchSpec) -> Iterator[LintFinding]:
    """Too few validation images to distinguish trials."""
    try:
        images = images_of(spec.data_config)
    except DataError:
        return  # the folder is elsewhere, e.g. on the cluster that will run the search
    on_holdout = spec.train_on == "train+val"
    count, split = (images.holdout, "holdout") if on_holdout else (images.val, "validation")
    if count < LEAST_IMAGES:
        low, high = wilson(0.9 * count, count)
        interval = f"a 95 % interval of {low:.2f} to {high:.2f}, {high - low:.2f} wide"
        fact = f"{counted(count, f'{split} image')}: an accuracy of 0.90 on them has {interval}"
        own_split = not on_holdout and not _is_counted(spec) and open_source(spec.data_config).counts["val"]
        key = "data.holdout_fraction" if on_holdout else "data.val_fraction"
        where, mend = ("data.path", "add images to them") if own_split else (key, "raise it, or add images")
        yield LintFinding("warning", where, f"{fact}; {mend}.")


def missing_classes(spec: SearchSpec) -> Iterator[LintFinding]:
    """Classes without images in the data set's own val or test split."""
    if _is_counted(spec):
        return
    try:
        source = open_source(spec.data_config)
    except DataError:
        return  # as in `few_images`
    for split, names in source.missing.items():
        which = "they are" if len(names) > 1 else "it is"
        fact = f"{split} has no image of {in_short(names)}, so nothing tells how well {which} recognised"
        yield LintFinding("warning", "data.path", f"{fact}; add images, or remove {split} to have it split off train.")


def warm_up(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Trials that are stopped while their learning rate still rises."""
    longest = spec.epochs * max(draw.values["warmup_fraction"] for draw in valid)
    if spec.stopping.stops and spec.stopping.grace_epochs < longest and spec.stopping.grace_epochs < spec.epochs:
        fact = f"trials are stopped from epoch {spec.stopping.grace_epochs} on, while the learning rate climbs up to epoch {longest:g}"
        yield LintFinding("warning", "stopping.grace_epochs", f"{fact}; raise it, or lower training.warmup_fraction.")


def trials_at_once(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """More trials at once than there are trials or than memory allows; batches larger than an epoch."""
    if spec.concurrency > spec.trials:
        yield LintFinding("hint", "concurrency", f"{spec.concurrency:,} at once, but only {counted(spec.trials, 'trial')}; lower it.")
    most, have = max(draw.cost.train_bytes for draw in valid if draw.cost is not None), memory_of_this_machine()
    if not spec.resources.on_gpu and most * spec.concurrency > have >= most:
        fact = f"{spec.concurrency:,} of the largest trials take {in_units(most * spec.concurrency)}, and this machine has {in_units(have)}"
        yield LintFinding("hint", "concurrency", f"{fact}; lower it, or run it where there is more.")
    if _is_counted(spec):
        train = images_of(spec.data_config).train
        share = sum(draw.values["batch_size"] > train for draw in valid) / len(valid)
        if share:
            fact = f"in {share:.0%} of the proposals an epoch of {counted(train, 'image')} is less than one batch"
            yield LintFinding("warning", "training.batch_size", f"{fact}; lower it.")


def whole_gpus(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """GPUs that have room for more trials than they get."""
    auto = spec.resources.gpus == "auto"
    if not spec.resources.on_gpu or (not auto and (spec.resources.devices or 0) < 1):
        return
    space, memory = spec.space, spec.resources.gpu_bytes or gpu_share.USUAL_MEMORY
    steps = []
    for draw in valid:
        config = spec.trial_config(dict(draw.params), in_channels=space.in_channels, num_classes=space.num_classes, trial=0)
        steps.append(gpu_share.share_of(gpu_share.Need(gpu_share.training_bytes(config.model, config.training), 0), memory) or 1.0)
    places = int(1 / sorted(steps)[len(steps) // 2])
    fact = f"half of the proposals need at most 1/{places} of the memory of a GPU that has {in_units(memory)}"
    if places >= 4 and not auto:  # a trial that needs half of the memory keeps a GPU busy
        yield LintFinding("hint", "resources.gpus", f"{fact}, but each takes a whole one; write auto, and small trials share it.")
    elif auto and spec.concurrency < places:
        yield LintFinding("hint", "concurrency", f"{spec.concurrency} at once, but {fact}; up to {places} for each GPU find a place.")


def _is_counted(spec: SearchSpec) -> bool:
    """Whether the number of images is known before the data set is on this machine."""
    return spec.data_config.labelled is not None
