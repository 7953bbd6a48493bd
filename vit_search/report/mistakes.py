"""What the best model of a search takes its validation images for: the mistakes, and the labels that may be wrong.

`find` asks the model and writes three files into the search's folder: mistakes.json, from which the report's section is made;
confusion.csv; and label_errors.csv. Finding again replaces them. No test image is looked at.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from vit_search.config.search_file import SearchSpec
from vit_search.config.strict_json import Count, Fraction, build, parse
from vit_search.errors import VitSearchError
from vit_search.files import write_whole
from vit_search.ledger import searches
from vit_search.ledger.trials import Trial, best_trial
from vit_search.report.thumbnails import Thumbnail, thumbnail

if TYPE_CHECKING:
    from vit_search.data.batches import Split, StreamedSplit
    from vit_search.data.cache import DataSet
    from vit_search.vit.label_errors import Suspect
    from vit_search.vit.split_probabilities import SplitProbabilities

FILE, CONFUSION, LABEL_ERRORS = "mistakes.json", "confusion.csv", "label_errors.csv"

SHOWN = 25
"""Images of each kind that a page shows, so that 50 thumbnails add at most 850 kB to a search's report."""

SECONDS = 60.0
"""After which the model is asked of no further image: the validation images that it was asked of until then are a random sample."""

STREAMED = 10_000
"""Validation images of a streamed set above which none is looked at: each would be decoded again."""


@dataclass(frozen=True)
class Shown:
    """One image of a list, with its thumbnail."""

    image: str
    """The file's name, or the image's number in the source."""
    label: str
    other: str
    """The model's answer, or the label that is suggested."""
    probability: Fraction
    """Of the answer; of the given label, where the list is of suspected labels."""
    thumbnail: str = ""
    """A `data:` URI; empty where images are not to be shown."""
    coarse: bool = False

    def picture(self, alt: str) -> Thumbnail | None:
        """The thumbnail; None where there is none, or none that a page should hold."""
        if not re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]{1,20000}={0,2}", self.thumbnail):
            return None
        return Thumbnail(self.thumbnail, alt, self.coarse)


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """What the model of one trial takes the images of a split for."""

    trial: Count
    weights_sha256: str
    data_hash: str
    split: str
    """val, or holdout for a search that trains on train+val."""
    images: Count
    """How many the model was asked of."""
    of: Count
    """How many there are in the split."""
    shows_images: bool
    classes: list[str]
    confusion: list[list[Count]]
    """Images by their label (row) and the model's answer (column)."""
    mistakes: list[Shown]
    """The wrong answers of which the model was most sure."""
    suspects: list[Shown]
    """The first of label_errors.csv."""
    suspected: Count
    """How many there are."""
    seconds: Annotated[float, (0, 1e9)]
    """That it took to find them."""

    @property
    def wrong(self) -> int:
        """Wrong answers."""
        return self.images - sum(row[i] for i, row in enumerate(self.confusion))


@dataclass(frozen=True)
class Missing:
    """Why there is nothing to show."""

    reason: str
    """One sentence."""


def read(folder: Path) -> Mistakes | Missing | None:
    """What `find` has written; None where it has not, or the file is damaged."""
    try:
        values = parse((folder / FILE).read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.keys() == {"reason"}:
            return build(Missing, values)
        found = build(Mistakes, values)
        size = len(found.classes)
        return found if len(found.confusion) == size and all(len(row) == size for row in found.confusion) else None
    except (OSError, ValueError, RecursionError):
        return None


def find(
    folder: Path, spec: SearchSpec, trials: Sequence[Trial], data_hash: str, *, data: DataSet | None = None, seconds: float = SECONDS
) -> Mistakes | Missing:
    """Ask the model of the best trial, and write the files; what an earlier call has found of the same model is kept.

    Args:
        folder: of the search. trials: all of them. data_hash: of the search.
        data: as `prepare` gave it; by default it is prepared, which reads every file of the source.
        seconds: as SECONDS.
    Raises: OSError where the folder cannot be written.
    """
    from vit_search.vit import checkpoint_files  # here: a report that only shows what was found needs none of it

    best = best_trial(trials, spec.metric, spec.mode)
    if best is None:
        return _missing(folder, "No trial has a value yet, so there is no model to ask.")
    checkpoint = searches.trial_folder(folder, best.number) / "checkpoint"
    earlier = read(folder)
    usable = isinstance(earlier, Mistakes) and earlier.shows_images == spec.report.images
    if not checkpoint_files.exists(checkpoint):
        if usable and isinstance(earlier, Mistakes) and earlier.trial == best.number:
            return earlier
        return _missing(folder, f"The checkpoint of trial {best.number}, the best one, is gone, so its model cannot be asked.")
    try:
        weights = checkpoint_files.describe(checkpoint).weights_sha256
        if usable and isinstance(earlier, Mistakes) and earlier.weights_sha256 == weights:
            return earlier
        images = _images(spec, data_hash, data)
        if isinstance(images, str):
            return _missing(folder, images)
        found, suspects = _found(images, checkpoint, best.number, weights, spec, seconds)
    except VitSearchError as error:
        return _missing(folder, f"The model of trial {best.number} cannot be asked of its validation images: {error}")
    write_whole(folder / LABEL_ERRORS, label_errors_csv(suspects))
    write_whole(folder / CONFUSION, confusion_csv(found.classes, found.confusion))
    write_whole(folder / FILE, json.dumps(dataclasses.asdict(found)))  # last: with it, the three are there
    return found


def _missing(folder: Path, reason: str) -> Missing:
    """Keep the reason in place of what was found of another model."""
    missing = Missing(reason)
    write_whole(folder / FILE, json.dumps(dataclasses.asdict(missing)))
    for name in (LABEL_ERRORS, CONFUSION):
        (folder / name).unlink(missing_ok=True)
    return missing


@dataclass(frozen=True, eq=False)
class _Images:
    """The images that trials were validated on."""

    split_name: str
    split: Split | StreamedSplit
    names: list[str]
    classes: tuple[str, ...]

    def shown(
        self, answered: SplitProbabilities, rows: Sequence[int], others: Sequence[int], probabilities: Sequence[float], *, pictures: bool
    ) -> list[Shown]:
        """Some rows of what a model answered, with another class each and a probability."""
        from vit_search.vit.split_probabilities import pixels_of

        indices = [int(answered.indices[row]) for row in rows]
        made = [thumbnail(one, "") for one in pixels_of(self.split, indices)] if pictures else [Thumbnail("", "")] * len(indices)
        return [
            Shown(self.names[i], self.classes[answered.labels[row]], self.classes[other], float(probability), one.source, one.coarse)
            for i, row, other, probability, one in zip(indices, rows, others, probabilities, made, strict=True)
        ]


def _images(spec: SearchSpec, data_hash: str, data: DataSet | None) -> _Images | str:
    """The images; or why they are not to be had."""
    from vit_search.data.batches import load_split
    from vit_search.data.cache import prepare
    from vit_search.data.image_names import image_names
    from vit_search.data.split import TRAINED_AND_VALIDATED_ON

    data = prepare(spec.data_config) if data is None else data
    if data.data_hash != data_hash:
        return "The images have changed since the search began, so the model is not asked of them."
    (name,) = TRAINED_AND_VALIDATED_ON[spec.train_on][1]
    if data.reader is not None and data.counts[name] > STREAMED:
        return (
            f"The images are decoded during training, and {name} has {data.counts[name]:,} of them: above {STREAMED:,}, mistakes are not "
            "looked for."
        )
    return _Images(name, load_split(data, name, decoders=0), image_names(spec.data_config, data, name), data.classes)


def _found(
    images: _Images, checkpoint: Path, number: int, weights: str, spec: SearchSpec, seconds: float
) -> tuple[Mistakes, list[dict[str, Any]]]:
    """What a model takes the images for, and the rows of label_errors.csv."""
    from vit_search.vit import checkpoint as checkpoints
    from vit_search.vit import label_errors
    from vit_search.vit.split_probabilities import split_probabilities

    began = time.monotonic()
    served, classes = checkpoints.load_model(checkpoint), images.classes
    answered = split_probabilities(served, images.split, seconds)
    labels, chances = answered.labels, answered.probabilities
    suspects = label_errors.suspects(labels, chances)
    answers, worst = chances.argmax(1), wrong_by_confidence(labels, chances)[:SHOWN].tolist()
    first, pictures = suspects[:SHOWN], spec.report.images
    found = Mistakes(
        trial=number,
        weights_sha256=weights,
        data_hash=served.data_hash,
        split=images.split_name,
        images=len(labels),
        of=len(images.split),
        shows_images=pictures,
        classes=list(classes),
        confusion=confusion_of(labels, answers, len(classes)),
        mistakes=images.shown(answered, worst, answers[worst].tolist(), chances[worst, answers[worst]].tolist(), pictures=pictures),
        suspects=images.shown(
            answered,
            [one.index for one in first],
            [one.suggested for one in first],
            [one.self_confidence for one in first],
            pictures=pictures,
        ),
        suspected=len(suspects),
        seconds=time.monotonic() - began,
    )
    return found, suspect_rows(suspects, [images.names[i] for i in answered.indices], images.split_name, classes, labels)


def wrong_by_confidence(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The rows whose most probable class is not the label, the most probable first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.lexsort((wrong, -probabilities[wrong].max(1)))]


def confusion_of(labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], classes: int) -> list[list[int]]:
    """Images by their label (row) and the answer (column)."""
    counts: list[list[int]] = np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes).tolist()
    return counts


def suspect_rows(
    suspects: Sequence[Suspect], names: Sequence[str], split: str, classes: Sequence[str], labels: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    """The rows of label_errors.csv."""
    return [
        {
            "image": names[one.index],
            "split": split,
            "given_label": classes[labels[one.index]],
            "suggested_label": classes[one.suggested],
            "self_confidence": f"{one.self_confidence:.6f}",
        }
        for one in suspects
    ]


def label_errors_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The text of label_errors.csv, the most suspicious label first."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["image", "split", "given_label", "suggested_label", "self_confidence"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def confusion_csv(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """The text of confusion.csv: a row for each label, a column for each answer."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, confusion, strict=True))
    return file.getvalue()
