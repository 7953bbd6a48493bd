"""Record real ViT trainings at full length, as tasks on which searches can be compared without training anything.

    python tests/benchmarks/vit_table.py --keep FOLDER                  # 400 trainings on each of the two data sets
    python tests/benchmarks/vit_table.py --keep FOLDER --part 1/2       # every second one: start 1/2 and 2/2 for two cores
    python tests/benchmarks/vit_table.py --keep FOLDER --limit 60       # end after the training that runs after 60 minutes

tests/benchmarks/vit_tables/ holds a search file for each data set, and the trainings so far. Training i is trial i of that search file; its
sampler `qmc` covers the space evenly, so any number of trainings is a fair sample. After each epoch the script notes the validation images
that are right, the validation loss, and the processor time. Nothing is stopped.

The script first prints how long it will take. Each training is kept in FOLDER when it ends, and the tables are written at the end, also
after `--limit`. If the script is killed, the same command goes on; `--trainings 0` only writes what is kept into the tables. Trainings
that a table already has are not repeated, so with a higher `--trainings` the tables grow.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from curve_table import COLUMNS, FOLDER, BrokenTableError, Head, Recorded, Table, agreement, check_rows, drawn, load_spec, read, write
from fashion import BESIDE, fashion_mnist
from fashion_halves import add_line, kept_lines
from rounds import cpu_seconds, surroundings, table

from vit_search.config.search_file import SearchSpec
from vit_search.data.batches import Split, load_split
from vit_search.data.cache import DataSet, prepare
from vit_search.errors import VitSearchError
from vit_search.files import locked
from vit_search.text import counted
from vit_search.vit.augment import Targets
from vit_search.vit.evaluation import EVALUATED_AT_ONCE, Normalisation, evaluate
from vit_search.vit.training import DivergedError, fit, start, train_step

TIMED = 24
"""Trainings whose first steps are timed for the estimate."""


@dataclass(frozen=True)
class Task:
    """A data set to train on.

    Args:
        name: of the search file and of the table.
        tables: their folder.
        keep: folder for finished trainings and decoded images.
        images: folder of FashionMNIST.
    """

    name: str
    tables: Path
    keep: Path
    images: Path

    @property
    def path(self) -> Path:
        """Where the table is."""
        return self.tables / f"{self.name}.csv"

    @cached_property
    def spec(self) -> SearchSpec:
        return load_spec(self.name, self.tables)

    @cached_property
    def data(self) -> DataSet:
        config = self.spec.data_config
        where = replace(config, path=str(fashion_mnist(self.images))) if config.name == "fashion_mnist" else config
        return prepare(where, cache=self.keep / "cache")

    @cached_property
    def splits(self) -> tuple[Split, Split]:
        """Training and validation images."""
        train, val = load_split(self.data, "train"), load_split(self.data, "val")
        assert isinstance(train, Split) and isinstance(val, Split), "both sets are small"
        return train, val

    @cached_property
    def normalisation(self) -> Normalisation:
        return Normalisation.of(self.data.mean, self.data.std)

    @cached_property
    def head(self) -> Head:
        """What all trainings have in common."""
        counts, spec = self.data.counts, self.spec
        causes = repr((spec.space.space_hash, self.data.data_hash, spec.epochs, spec.seed))
        recipe = hashlib.sha256(causes.encode()).hexdigest()[:12]
        return Head(recipe, spec.epochs, counts["train"], counts["val"], len(self.data.classes))

    def train(self, index: int, params: dict[str, Any]) -> Recorded:
        """One training at full length."""
        config = self.spec.trial_config(params, in_channels=self.data.channels, num_classes=self.head.classes, trial=index)
        recorded, began = Recorded(params, [], [], []), cpu_seconds()
        state = start(config, self.normalisation)
        try:
            for result in fit(state, *self.splits):
                now = cpu_seconds()
                recorded.right.append(round(result.val_accuracy * self.head.val_images))
                recorded.loss.append(round(1000 * result.val_loss))
                recorded.cs.append(round(100 * (now - began)))
                began = now
        except DivergedError as error:
            print(f"{self.name} {index}: {error}", flush=True)
        return recorded

    def estimated_seconds(self, index: int, params: dict[str, Any]) -> float:
        """Processor seconds of one training, from two steps and the evaluation of one batch."""
        config = self.spec.trial_config(params, in_channels=self.data.channels, num_classes=self.head.classes, trial=index)
        train, val = self.splits
        state, size = start(config, self.normalisation), config.training.batch_size
        images = torch.zeros(size, config.model.in_channels, *config.model.image_size)
        targets = Targets(torch.zeros(size, dtype=torch.int64))
        few = Split(val.images[:EVALUATED_AT_ONCE], val.labels[:EVALUATED_AT_ONCE], val.classes)
        seconds = [0.0, 0.0]
        for _ in range(2):  # the second time counts: the first one finds its kernels
            state.model.train()
            moments = [cpu_seconds()]
            train_step(state, images, targets, 1e-4, 0)
            moments.append(cpu_seconds())
            evaluate(state.model, few, self.normalisation)
            moments.append(cpu_seconds())
            seconds = [moments[1] - moments[0], moments[2] - moments[1]]
        return self.spec.epochs * (-(-len(train) // size) * seconds[0] + len(val) / len(few) * seconds[1])

    def known(self, kept: Mapping[str, Mapping[str, Any]]) -> Table:
        """The table with what was kept since it was written.

        Raises: BrokenTableError if the table was made by another recipe.
        """
        found = read(self.path) if self.path.exists() else Table(self.head)
        if found.head != self.head:
            mend = "start a table of another name, or restore the search file"
            raise BrokenTableError(f"{self.path}: made of {asdict(found.head)}, and the search file asks for {asdict(self.head)}; {mend}.")
        rows = dict(found.rows)
        for line in kept.values():
            if line["task"] == self.name and line["recipe"] == self.head.recipe:
                rows.setdefault(line["index"], Recorded(line["params"], *(line[column] for column in COLUMNS)))
        merged = Table(self.head, dict(sorted(rows.items())))
        check_rows(self.path, merged, drawn(self.spec, max(rows, default=0) + 1))
        return merged


def key_of(task: Task, index: int) -> str:
    """Names a training by all that it follows from, but the code."""
    return f"{task.name} {index} {task.head.recipe}"


def to_train(tasks: Sequence[Task], options: argparse.Namespace, kept: Mapping[str, Any]) -> list[tuple[Task, int, dict[str, Any]]]:
    """What this process has to train, the data sets in turns."""
    done = {task.name: task.known(kept).rows for task in tasks}
    wanted = {task.name: drawn(task.spec, options.trainings) if options.trainings else {} for task in tasks}
    number, parts = options.part
    mine = range(number - 1, options.trainings, parts)
    every = [(task, index, wanted[task.name][index]) for index in mine for task in tasks if index in wanted[task.name]]
    return [(task, index, params) for task, index, params in every if index not in done[task.name]]


def write_tables(tasks: Sequence[Task], file: Path) -> Iterator[str]:
    """Put what was kept into the tables. Yields what each has now."""
    for task in tasks:
        with locked(file.with_suffix(".lock")):
            found = task.known(kept_lines(file))
            write(task.path, found)
        if found.rows:
            yield described(task, found)


def described(task: Task, found: Table) -> str:
    """Cost of a table, its values, and how its rungs agree with the end."""
    head, seconds, last = found.head, found.seconds(), 100 * found.accuracy()[:, -1]
    short = sum(len(row.right) < head.epochs for row in found.rows.values())
    lines = [
        f"\n{task.name}: {counted(len(found.rows), 'training')} of {head.epochs} epochs on {head.train_images:,} images, "
        f"{head.val_images:,} for validation; {short} diverged; {seconds.sum() / 3600:.2f} core hours, {seconds.mean():.1f} s each "
        f"({seconds.min():.1f} to {seconds.max():.1f}); {task.path.stat().st_size / 1000:.0f} kB",
        f"accuracy at the end: best {last.max():.1f} %, median {sorted(last)[len(last) // 2]:.1f} %, worst {last.min():.1f} %\n",
    ]
    rows = []
    for metric, values in (("accuracy", found.accuracy()), ("loss", -found.loss())):
        for name, share in (("all", 1.0), ("best third", 1 / 3)):
            for rung, correlation, swapped, kept in agreement(values, share):
                rows.append([metric, name, str(rung), f"{correlation:.2f}", f"{swapped:.0%}", f"{kept:.0%}"])
    lines.append(
        table(["metric", "trainings", "rung", "rank correlation with the end", "pairs that change places", "best tenth kept"], rows)
    )
    return "\n".join(lines)


def main() -> None:
    """Train what is not there yet, and write the tables."""
    options = parse()
    began = time.monotonic()
    torch.set_num_threads(1)
    options.keep.mkdir(parents=True, exist_ok=True)
    file = options.keep / "vit_table.jsonl"
    tasks = [Task(name, options.tables, options.keep, options.data) for name in options.tasks]
    print(surroundings(torch.device("cpu")), flush=True)
    work = to_train(tasks, options, kept_lines(file))
    if work:
        timed = work[:: len(work) // TIMED | 1]  # an odd step meets both data sets, which take turns
        mean = sum(task.estimated_seconds(index, params) for task, index, params in timed) / len(timed)
        print(f"estimated: {len(work) * mean / 3600:.2f} core hours for {counted(len(work), 'training')} ({mean:.0f} s each)", flush=True)
    for task, index, params in work:
        if time.monotonic() - began > 60 * options.limit:
            print(f"the limit of {options.limit:g} minutes is over; the same command goes on", flush=True)
            break
        recorded = task.train(index, params)
        kept = {"task": task.name, "index": index, "recipe": task.head.recipe, **asdict(recorded)}
        add_line(file, key_of(task, index), kept)
        accuracy = recorded.right[-1] / task.head.val_images if recorded.right else 0
        print(f"{task.name} {index}: {accuracy:.1%}, {sum(recorded.cs) / 100:.1f} s", flush=True)
    for text in write_tables(tasks, file):
        print(text, flush=True)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--keep", required=True, type=Path, help="folder for finished trainings; go on with the same one")
    ask.add_argument("--tables", default=FOLDER, type=Path, help="folder of the search files and tables")
    ask.add_argument("--tasks", nargs="+", default=["fashion_mnist", "digits"], help="names of search files in this folder")
    ask.add_argument("--trainings", default=400, type=int, help="on each data set, with those that the table has")
    ask.add_argument("--part", default=(1, 1), type=lambda text: tuple(map(int, text.split("/"))), help="1/2: every second training")
    ask.add_argument("--limit", default=1e9, type=float, metavar="MINUTES", help="begin no training after so long")
    ask.add_argument("--data", default=BESIDE, type=Path, help="folder of FashionMNIST")
    return ask.parse_args()


if __name__ == "__main__":
    try:
        main()
    except VitSearchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
