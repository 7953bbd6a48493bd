"""A search from pretrained weights, against what you would write with timm and Optuna alone: the same weights, images and device seconds.

    python tests/benchmarks/timm_alone.py --keep FOLDER            # the table
    python tests/benchmarks/timm_alone.py --keep FOLDER --quick    # shows in a minute that all of it runs; its figures mean nothing

Goals: for 200, 1,000 and 5,000 images, `vit_search` is at least as accurate on the test images as `timm alone`, and it reaches the best
validation accuracy of `random start` in at most a third of the device seconds.

The methods. All of them have the backbones, images, seeds and lengths of training of fashion_halves.py, and the ranges of the recipe
search_spaces/finetune_photos.yaml. Only the range of the learning rate is another one: see LR.

    timm alone     create_model with the backbone's weights and full fine-tuning: timm's AdamW with layer decay, cosine schedule and Mixup.
                   Optuna's TPE sampler and median pruner, which prunes no trial before the recipe's grace_epochs.
    vit_search     the recipe, by the shipped driver, sampler and stopping rule. It searches over the ways of tuning, too. For heads, the
                   rest of the model runs once for each image in a search, which counts.
    random start   the same without pretrained weights, and so with full training alone.

timm's model gets the backbone's weights under timm's names. Before anything is searched, its logits are compared with ours in float64. It
reads and augments images with our code, and computes in our number format, so that a slow way of reading counts against nobody.

Device seconds are those that trials train and validate (processor time on a CPU, wall time on a GPU), counted by one class for all
methods. Proposals, the start of processes and the test do not count: each search runs one trial after the other in this process, without
Ray. `with proposals` is the time of the whole search but the test. A search ends when its seconds are spent, and a trial that is running
then is lost. The 500 validation images decide what is pruned, stopped and chosen. The best trial of full length on them is the result, and
only its model sees the 5,000 test images, once.

`to timm` is the difference of the test accuracies of one seed. `time to timm` is the share of the seconds after which a trial of full
length was as good on the validation images as the best one of timm alone with this seed. `time to random start` is the same for that
method.

The script first prints how long it will take. Each search is printed when it ends, and kept in FOLDER. The same command goes on after the
last finished search, and prints the table at the end. To use two cores, start it twice, with `--part 1/2` and `--part 2/2`; then once more
without, for the table. With the same FOLDER, transfer.py takes the same backbones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from fashion_halves import (
    BACKBONE,
    DECIDING,
    LEARNED,
    RECIPE,
    Halves,
    add_line,
    add_options,
    epochs_for,
    few,
    interval,
    kept_lines,
    mean_and_std,
    new_owner,
)
from optuna.trial import TrialState
from race import Race
from rounds import clock_of, surroundings, table
from timm_tuning import TAKES, difference_of_logits, normalisation_of_backbone, tuned, write_for_timm

from vit_search.config import search_file
from vit_search.config.search_file import TRIALS_APART, SearchSpec
from vit_search.config.trial import EpochResult, TrialConfig
from vit_search.data import backbones
from vit_search.data.batches import Split
from vit_search.search.components import Components, ImageFacts, components_of
from vit_search.search.driver import Driver
from vit_search.search.messages import Continue, Epoch, Failed, TrialOrder
from vit_search.search.proposals.proposals import cheap_first
from vit_search.search.recovery import Patience
from vit_search.stopping import train_flops_of
from vit_search.vit import pretrained, training
from vit_search.vit.evaluation import Normalisation, evaluate

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the tests
from helpers.simulation import Cluster, MemoryLedger

SECONDS = {200: 120, 1000: 200, 5000: 400}
"""Of one search, by the number of images: those of 8 to 10 full trainings, on a core that trains BACKBONE on 780 images a second. Other
numbers of images have those of the next smaller one; below 200, those of 200."""

OURS = Path(__file__).parents[2] / "search_spaces" / "finetune_photos.yaml"
"""The recipe that we compare. Its ranges are those of all methods."""

LR = {"float": [1e-4, 1e-2], "log": True}
"""In the place of the recipe's: a backbone of half a million weights learns at higher rates than one of twenty million."""

TUNING = ("tune", "tuned_blocks", "lora_rank", "lora_alpha", "lora_layers", "head_lr_factor", "feature_views")
"""Keys of the recipe that timm has nothing like, or that mean nothing for a random start."""

MODEL = {name: getattr(BACKBONE, name) for name in ("patch_size", "dim", "depth", "heads", "mlp_ratio")}


@dataclass(frozen=True)
class Setting:
    """What the methods of one comparison share."""

    halves: Halves
    seed: int
    epochs: int
    train: Split
    val: Split
    weights: Path
    """The backbone in our layout. Beside it lies the file for timm."""

    @property
    def device(self) -> torch.device:
        """Where all methods train."""
        return self.halves.device


def recipe(setting: Setting, *, pretrained_start: bool) -> SearchSpec:
    """Our search file, for FashionMNIST's size and this backbone."""
    values = yaml.safe_load(OURS.read_text())
    model, training = values["model"] | {"pretrained": str(setting.weights.resolve())}, values["training"] | {"lr": LR}
    if not pretrained_start:
        model = MODEL | {"drop_path": always(model["drop_path"])}
        training = {name: always(value) for name, value in training.items() if name not in (*TUNING, "layer_decay")}
    values |= {"name": "timm_alone", "data": {"name": "fashion_mnist"}, "trials": 100_000, "epochs": setting.epochs, "seed": setting.seed}
    values |= {"concurrency": 1, "resources": {"cpus": 1, "gpus": 0}, "model": model, "training": training}
    spec = search_file.parse(yaml.safe_dump(values, sort_keys=False))
    return backbones.pinned(spec, backbones.find_all(spec))


def always(value: Any) -> Any:
    """A value of a search file without the condition under which it is searched."""
    return {key: part for key, part in value.items() if key not in ("when", "else")} if isinstance(value, dict) else value


def vit_search(setting: Setting, race: Race, *, pretrained_start: bool = True) -> None:
    """The shipped driver, whose trials are trained here, one after the other, as a worker does it."""
    spec = recipe(setting, pretrained_start=pretrained_start)
    trainings: dict[int, training.Training] = {}
    owner = new_owner()
    plain = Normalisation.of(*mean_and_std(setting.train), setting.device)  # pretrained weights bring their own

    def order(trial: int, params: Mapping[str, Any], components: Components) -> TrialOrder:
        config = spec.trial_config(dict(params), in_channels=BACKBONE.in_channels, num_classes=len(LEARNED), trial=trial)
        return TrialOrder(trial=trial, config=config.to_dict(), folder=Path(str(trial)))

    def epochs(ordered: TrialOrder) -> Iterator[EpochResult]:
        if ordered.trial not in trainings:
            given = pretrained.read_pretrained(setting.weights, setting.train.classes) if pretrained_start else None
            trainings[ordered.trial] = training.start(TrialConfig.from_dict(ordered.config), plain, setting.device, given)
        state = trainings[ordered.trial]
        yield from training.fit(state, *setting.halves.inputs(state, setting.train, setting.val, owner))

    driver = Driver(
        MemoryLedger(),
        components_of(
            spec, ImageFacts(BACKBONE.in_channels, len(LEARNED)), first=[*spec.start_with, *cheap_first(spec.space, spec.start_with)]
        ),
        order,
        cluster=Cluster(places=1),
        patience=Patience(math.inf, 2),
        train_flops=train_flops_of(spec),
    )
    while not race.over:
        driver.tick()
        ordered = driver.propose()
        assert isinstance(ordered, TrialOrder), f"{ordered}: a search with so many trials always has one to train"
        driver.started(ordered.trial)
        number = ordered.trial
        race.trials = len(driver.trials)
        try:
            for result in race.timed(epochs(ordered)):
                goes_on = driver.report(number, Epoch(result)) == Continue()
                if result.epoch == spec.epochs:
                    state = trainings[number]
                    race.finish(result.val_accuracy, state.outcome, state.normalisation, driver.trials[number].params)
                if not goes_on:
                    break
        except training.DivergedError as error:
            driver.report(number, Failed("diverged", str(error)))
        driver.released(number)
        if driver.trials[number].over:
            del trainings[number]


def random_start(setting: Setting, race: Race) -> None:
    """Ours without pretrained weights."""
    vit_search(setting, race, pretrained_start=False)


def timm_alone(setting: Setting, race: Race) -> None:
    """What you write with timm and Optuna: one study, whose trials are trained here, one after the other."""
    spec = recipe(setting, pretrained_start=True)
    parameters, searched = spec.space.parameters, spec.space.searched
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=setting.seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=spec.stopping.grace_epochs - 1),
    )
    plain = normalisation_of_backbone(setting.weights, setting.device)
    while not race.over:
        trial = study.ask()
        race.trials += 1
        params = {name: searched[name].ask(trial, name) if name in searched else parameters[name] for name in TAKES}
        seed = setting.seed * TRIALS_APART + trial.number  # as a trial of ours
        epochs = tuned(params, setting.weights, setting.train, setting.val, setting.epochs, plain, seed)
        accuracy, state = None, TrialState.FAIL  # unless it comes further
        for epoch, (accuracy, model) in enumerate(race.timed(epochs), start=1):
            trial.report(accuracy, epoch - 1)
            if epoch == setting.epochs:
                state = TrialState.COMPLETE
                race.finish(accuracy, model, plain, params)
            elif trial.should_prune():
                state = TrialState.PRUNED
                break
        if not race.over:
            study.tell(trial, accuracy if state == TrialState.COMPLETE else None, state)


def checked_backbone(halves: Halves, seed: int) -> Path:
    """The backbone of a seed, with its file for timm.

    Raises: SystemExit if timm's model does not give our logits, but for rounding.
    """
    weights = halves.backbone(seed)
    write_for_timm(weights)
    images = torch.randn(64, BACKBONE.in_channels, *BACKBONE.image_size, generator=torch.Generator().manual_seed(0))
    difference = difference_of_logits(weights, images)
    if not difference < 1e-10:
        raise SystemExit(f"{weights}: logits of timm's model differ from ours by {difference:.1e}; the comparison would not be fair.")
    print(f"{weights.parent.name}: logits of timm's model and of ours differ by at most {difference:.1e} in float64", flush=True)
    return weights


METHODS: dict[str, Callable[[Setting, Race], None]] = {"timm alone": timm_alone, "vit_search": vit_search, "random start": random_start}


@dataclass(frozen=True)
class Task:
    """One search."""

    images: int
    seed: int
    method: str
    seconds: float
    epochs: int


@dataclass(frozen=True)
class Outcome:
    """What a search has given."""

    task: Task
    test: float
    """Accuracy of its best model on the test images; nan if no trial reached full length."""
    climbs: tuple[tuple[float, float], ...]
    """See Race."""
    trials: int
    full: int
    """Trials of full length."""
    params: dict[str, Any]
    """Of the best trial."""
    total: float
    """Device seconds of the whole search, with its proposals."""

    @property
    def validation(self) -> float:
        """Best validation accuracy of a trial of full length."""
        return self.climbs[-1][1] if self.climbs else math.nan


def run(halves: Halves, task: Task) -> Outcome:
    """One search, and the test of its best model."""
    rest, val, test = halves.splits
    weights = checked_backbone(halves, task.seed)
    setting = Setting(halves, task.seed, task.epochs, few(rest, task.images, task.seed), val, weights)
    race, clock = Race(task.seconds, halves.device), clock_of(halves.device)
    began = clock()
    METHODS[task.method](setting, race)
    total = clock() - began
    accuracy, params = math.nan, {}
    if race.best is not None:
        model, plain, params = race.best
        accuracy = evaluate(model, test, plain).accuracy
    return Outcome(task, accuracy, tuple(race.climbs), race.trials, race.full, params, total)


def time_to(one: Outcome, other: Outcome) -> float | None:
    """Share of the seconds after which a search was as good on the validation images as another at its end; None: never."""
    return next((seconds / one.task.seconds for seconds, accuracy in one.climbs if accuracy >= other.validation), None)


HEAD = ["images", "method", "device s", "with proposals", "trials (full)", "validation", "test", "test, range", "to timm", "time to timm"]
HEAD += ["time to random start"]


def rows(outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    """The table."""
    grouped: dict[tuple[int, str], dict[int, Outcome]] = {}
    for one in outcomes:
        grouped.setdefault((one.task.images, one.task.method), {})[one.task.seed] = one
    for (images, method), by_seed in grouped.items():
        tests = [one.test for one in by_seed.values()]
        timm = pairs_with(by_seed, grouped.get((images, "timm alone"), {})) if method != "timm alone" else []
        random = pairs_with(by_seed, grouped.get((images, "random start"), {})) if method != "random start" else []
        yield [
            f"{images:,}",
            method,
            f"{statistics.median(one.task.seconds for one in by_seed.values()):g}",
            f"{statistics.median(one.total for one in by_seed.values()):.0f}",
            f"{statistics.median(one.trials for one in by_seed.values()):g} ({statistics.median(one.full for one in by_seed.values()):g})",
            f"{statistics.mean(one.validation for one in by_seed.values()):.1%}",
            f"{statistics.mean(tests):.1%}",
            f"{min(tests):.1%} to {max(tests):.1%}",
            interval([one.test - other.test for one, other in timm]) if timm else "",
            reached(timm),
            reached(random),
        ]


def pairs_with(by_seed: Mapping[int, Outcome], others: Mapping[int, Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Searches of two methods with the same seed."""
    return [(one, others[seed]) for seed, one in by_seed.items() if seed in others]


def reached(pairs: Sequence[tuple[Outcome, Outcome]]) -> str:
    """The median of `time_to`, and in how many pairs it is known."""
    times = [share for share in (time_to(*pair) for pair in pairs) if share is not None]
    if not pairs:
        return ""
    return f"{statistics.median(times):.2f} ({len(times)} of {len(pairs)})" if times else f"never (0 of {len(pairs)})"


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """All searches that the command line asks for; the small ones and the first seed come first."""
    tasks = []
    for i, images in enumerate(options.images):
        usual = SECONDS[max((count for count in SECONDS if count <= images), default=min(SECONDS))]
        seconds = options.seconds[min(i, len(options.seconds) - 1)] if options.seconds else usual
        epochs = options.epochs or epochs_for(images)
        tasks += [Task(images, seed, method, seconds, epochs) for seed in range(options.seeds) for method in options.methods]
    return tasks


def key_of(task: Task, options: argparse.Namespace) -> str:
    """Names a search by all that its outcome follows from, but the code."""
    recipe = repr((BACKBONE, RECIPE, OURS.read_text(), LR))
    chosen = [str(getattr(options, name)) for name in DECIDING]
    return json.dumps([*asdict(task).values(), *chosen, hashlib.sha256(recipe.encode()).hexdigest()[:8]])


def outcome_of(line: dict[str, Any]) -> Outcome:
    """A search that was kept."""
    climbs = tuple((seconds, accuracy) for seconds, accuracy in line["climbs"])
    return Outcome(Task(**line["task"]), line["test"], climbs, line["trials"], line["full"], line["params"], line["total"])


def main() -> None:
    """Search what is not there yet, and print the table."""
    options = parse()
    torch.set_num_threads(1)
    if options.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as our training does
    options.keep.mkdir(parents=True, exist_ok=True)
    print(surroundings(options.device, "timm", "optuna"), f"options {vars(options)}", flush=True)
    file, halves = options.keep / "timm_alone.jsonl", Halves(options)
    keys = {key_of(task, options): task for task in tasks_of(options)}
    number, parts = options.part
    done = kept_lines(file)
    todo = {key: task for key, task in list(keys.items())[number - 1 :: parts] if key not in done}
    if todo:
        minutes = sum(task.seconds for task in todo.values()) / 60
        print(f"estimated: {minutes:.1f} core minutes for {len(todo)} searches of {len(keys)}, and before them ", end="")
        print(f"{halves.pretraining_seconds() / 60:.1f} for backbones, which the parts share", flush=True)
        halves.share_pretraining()
    for key, task in todo.items():
        one = run(halves, task)
        add_line(file, key, asdict(one))
        what = f"{task.images:,} images, {task.method}, seed {task.seed}: {one.trials} trials, {one.full} of full length"
        print(f"{what}; the best: {one.validation:.2%} validation, {one.test:.2%} test, {one.params}", flush=True)
    lines = kept_lines(file)
    outcomes = [outcome_of(lines[key]) for key in keys if key in lines]
    missing = len(keys) - len(outcomes)
    print(f"\n{missing} searches are missing" if missing else "", flush=True)
    print(table(HEAD, list(rows(outcomes))))


QUICK: dict[str, Any] = {
    "images": [200],
    "seconds": [12],
    "epochs": 4,
    "seeds": 1,
    "pretrain_images": 2000,
    "pretrain_epochs": 2,
    "val_images": 100,
    "test_images": 500,
}


def parse() -> argparse.Namespace:
    """The options of the command line."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(ask)
    ask.add_argument("--seconds", nargs="+", type=float, help="device seconds of one search, by --images; default: see SECONDS")
    ask.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    ask.add_argument("--quick", action="store_true", help="few images and seconds; other options still count")
    if ask.parse_args().quick:
        ask.set_defaults(**QUICK)
    options = ask.parse_args()
    options.images = options.images or [200, 1000, 5000]
    return options


if __name__ == "__main__":
    main()
