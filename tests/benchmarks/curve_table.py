"""Tables of recorded trainings: one line for each, with its configuration and what it reached after each epoch.

A table is a search file NAME.yaml and its trainings in NAME.csv, side by side. Training i is trial i of that search file, whose sampler is
`qmc`: the i-th point of a scrambled Sobol sequence, with floats rounded to four digits. So a table can be continued at any time.

The first line of the CSV file is a comment: `#` and a JSON object. The columns are `index`, the searched parameters, and for each epoch
`right_N` (validation images that are right), `loss_N` (validation loss in 1/1000 nats) and `cs_N` (processor time of the epoch in 1/100 s,
with validation). Cells are empty after the epoch in which a training diverged. Pandas reads it: `pandas.read_csv(path, comment="#")`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc, spearmanr

from vit_search.config import search_file
from vit_search.config.search_file import SearchSpec
from vit_search.config.value_sources import AtQuantiles
from vit_search.errors import VitSearchError
from vit_search.files import write_whole

FOLDER = Path(__file__).parent / "vit_tables"
"""The tables of this repository."""

COLUMNS = ("right", "loss", "cs")
"""What is recorded after each epoch."""

Array = npt.NDArray[np.float64]


class BrokenTableError(VitSearchError):
    """A table is damaged, or does not belong to its search file."""


@dataclass(frozen=True)
class Head:
    """What the trainings of a table have in common."""

    recipe: str
    """Hash of all that the trainings follow from, but the code."""
    epochs: int
    train_images: int
    val_images: int
    classes: int


@dataclass(frozen=True)
class Recorded:
    """One training. The lists have a value for each epoch; they are shorter if it diverged."""

    params: dict[str, Any]
    right: list[int]
    """Validation images that are right."""
    loss: list[int]
    """Validation loss in 1/1000 nats."""
    cs: list[int]
    """Processor time in 1/100 s, with validation."""


@dataclass(frozen=True)
class Table:
    """Recorded trainings of one search file, by index."""

    head: Head
    rows: dict[int, Recorded] = field(default_factory=dict)

    def accuracy(self) -> Array:
        """(trainings, epochs), shares in [0, 1]. After a training has diverged: that of guessing."""
        return self._filled("right", self.head.val_images / self.head.classes) / self.head.val_images

    def loss(self) -> Array:
        """(trainings, epochs), nats. After a training has diverged: that of guessing."""
        return self._filled("loss", 1000 * float(np.log(self.head.classes))) / 1000

    def seconds(self) -> Array:
        """(trainings,), processor seconds of each."""
        return np.array([sum(row.cs) / 100 for row in self.rows.values()])

    def params(self) -> list[dict[str, Any]]:
        """Configurations, in the order of the rows of the arrays."""
        return [row.params for row in self.rows.values()]

    def _filled(self, column: str, otherwise: float) -> Array:
        lists = [getattr(row, column) for row in self.rows.values()]
        return np.array([values + [otherwise] * (self.head.epochs - len(values)) for values in lists], float).reshape(-1, self.head.epochs)


def load_spec(name: str, folder: Path = FOLDER) -> SearchSpec:
    """The search file of a table."""
    return search_file.load(folder / f"{name}.yaml")


def drawn(spec: SearchSpec, count: int) -> dict[int, dict[str, Any]]:
    """The first `count` configurations by index. Those that cannot be built are left out."""
    space = spec.space
    engine = qmc.Sobol(len(space.searched), scramble=True, rng=spec.seed)
    points = engine.random_base2(max(0, count - 1).bit_length())[:count]
    found = {}
    for i, point in enumerate(points.tolist()):
        params = space.suggest(AtQuantiles(dict(zip(space.searched, point, strict=True))))
        rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in params.items()}
        if space.problem(rounded) is None:
            found[i] = rounded
    return found


def write(path: Path, table: Table) -> None:
    """Write a table: the old file or the new one is there at any moment, and nothing between."""
    epochs, names = range(1, table.head.epochs + 1), list(next(iter(table.rows.values())).params) if table.rows else []
    text = io.StringIO()
    text.write(f"# {json.dumps(asdict(table.head))}\n")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["index", *names, *(f"{column}_{epoch}" for column in COLUMNS for epoch in epochs)])
    for index, row in sorted(table.rows.items()):
        cells = [value if isinstance(value, str) else json.dumps(value) for value in row.params.values()]
        for column in COLUMNS:
            values = getattr(row, column)
            cells += [*values, *[""] * (table.head.epochs - len(values))]
        lines.writerow([index, *cells])
    write_whole(path, text.getvalue())


def read(path: Path) -> Table:
    """Read a table.

    Raises: BrokenTableError if the file is not one, with the line.
    """
    try:
        first, *lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise BrokenTableError(f"{path}: cannot be read ({error}); restore it from the repository.") from None
    try:
        head = Head(**json.loads(first.removeprefix("#")))
        names, *rows = list(csv.reader(lines))
        if not first.startswith("#") or names[0] != "index":
            raise ValueError("its first two lines are not those of a table")
    except (ValueError, TypeError, KeyError) as error:
        raise BrokenTableError(f"{path}: no table of trainings ({error}); restore it from the repository.") from None
    found = {}
    for number, cells in enumerate(rows, start=3):
        try:
            index, row = _row(head, names, cells)
        except ValueError as error:
            raise BrokenTableError(f"{path}:{number}: {error}; restore the file from the repository.") from None
        found[index] = row
    return Table(head, found)


def _row(head: Head, names: list[str], cells: list[str]) -> tuple[int, Recorded]:
    """Raises: ValueError for a line that is too short, or a cell that is no number."""
    count = len(names) - len(COLUMNS) * head.epochs
    if len(cells) != len(names) or count < 1:
        raise ValueError(f"{len(cells)} cells instead of {len(names)}")
    params = {name: _value(cell) for name, cell in zip(names[1:count], cells[1:count], strict=True)}
    parts = [cells[count + i * head.epochs :][: head.epochs] for i in range(len(COLUMNS))]
    return int(cells[0]), Recorded(params, *([int(cell) for cell in part if cell] for part in parts))


def _value(cell: str) -> Any:
    """A parameter: JSON, or a text without quotes."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def rungs(epochs: int, reduction: int = 3) -> list[int]:
    """1, 3, 9, ... up to a full training."""
    levels = [1]
    while levels[-1] * reduction < epochs:
        levels.append(levels[-1] * reduction)
    return [*levels, epochs]


def agreement(values: Array, share: float = 1.0) -> Iterator[tuple[int, float, float, float]]:
    """How well each rung foretells the end, among the best `share` of the trainings.

    Args:
        values: (trainings, epochs); more is better.
    Yields: the rung; Spearman's rank correlation with the last epoch; the share of pairs of trainings that change places; and the share
        of the final best tenth that is among the best third at the rung, so that ASHA with a reduction of 3 would keep it.
    """
    best_first = np.argsort(-values[:, -1], kind="stable")
    values = values[best_first[: max(2, round(share * len(values)))]]
    last, tenth = values[:, -1], max(1, len(values) // 10)
    for rung in rungs(values.shape[1])[:-1]:
        now = values[:, rung - 1]
        signs = np.sign(now[:, None] - now) * np.sign(last[:, None] - last)
        kept = now[:tenth] >= np.sort(now)[-max(1, len(now) // 3)]
        yield rung, float(spearmanr(now, last).statistic), float((signs < 0).sum() / max(1, (signs != 0).sum())), float(kept.mean())


def check_rows(path: Path, table: Table, configurations: Mapping[int, Mapping[str, Any]]) -> None:
    """Check that each training is the one that the search file draws.

    Raises: BrokenTableError that names the first other one.
    """
    for index, row in table.rows.items():
        if index in configurations and row.params != configurations[index]:
            mend = "the search file, or the numbers that scipy draws, have changed; start a table of another name"
            raise BrokenTableError(f"{path}: training {index} has other parameters than its search file draws: {mend}.")
