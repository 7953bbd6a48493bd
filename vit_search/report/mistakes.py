"""Finds the mistakes of a search's best model on its validation images, and labels that may be wrong.

`find` runs the model and writes three files into the search's folder: mistakes.json (for the report), confusion.csv and
label_errors.csv. A later call replaces them. Test images are never used.
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
from vit_search.errors import LostWeightsError, VitSearchError
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
"""Images of each kind on a page. So 50 thumbnails add at most 850 kB to a report."""

SECONDS = 60.0
"""Time limit for running the model, in seconds. The validation images until then are a random sample."""

STREAMED = 10_000
"""Maximum number of validation images of a streamed data set. More would take too long: each image would be decoded again."""


@dataclass(frozen=True)
class Shown:
    """One image of a list, with its thumbnail."""

    image: str
    """File name, or number of the image in the source."""
    label: str
    other: str
    """The model's answer, or the suggested label."""
    probability: Fraction
    """Probability of the answer; in the list of suspected labels, of the given label."""
    thumbnail: str = ""
    """A `data:` URI; empty if images must not be shown."""
    coarse: bool = False

    def picture(self, alt: str) -> Thumbnail | None:
        """The thumbnail; None if there is none, or if it is not safe for a page."""
        if not re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]{1,20000}={0,2}", self.thumbnail):
            return None
        return Thumbnail(self.thumbnail, alt, self.coarse)


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The answers of one trial's model to the images of a split."""

    trial: Count
    weights_sha256: str
    """Of model.safetensors; if its checkpoint leaves blocks out, what stands for it: see `checkpoint_files.Described.fingerprint`."""
    data_hash: str
    split: str
    """"val"; "holdout" for a search that trains on train+val."""
    images: Count
    """Number of images that the model classified."""
    of: Count
    """Number of images in the split."""
    shows_images: bool
    classes: list[str]
    confusion: list[list[Count]]
    """Number of images by label (row) and the model's answer (column)."""
    mistakes: list[Shown]
    """The wrong answers with the highest probability."""
    suspects: list[Shown]
    """The first rows of label_errors.csv."""
    suspected: Count
    """Number of suspected labels."""
    seconds: Annotated[float, (0, 1e9)]
    """Time that it took."""

    @property
    def wrong(self) -> int:
        """Number of wrong answers."""
        return self.images - sum(row[i] for i, row in enumerate(self.confusion))


@dataclass(frozen=True)
class Missing:
    """There is nothing to show."""

    reason: str
    """Why, in one sentence."""


def read(folder: Path) -> Mistakes | Missing | None:
    """Read what `find` has written; None if there is nothing, or the file is damaged."""
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
    """Run the best trial's model on the validation images, and write the files. Results of an earlier call for the same model are kept.

    Args:
        folder: of the search.
        trials: all trials.
        data_hash: of the search.
        data: as from `prepare`. By default it is prepared here, which reads each file of the source.
        seconds: time limit, see SECONDS.
    Raises: OSError if the folder cannot be written.
    """
    from vit_search.vit import checkpoint_files  # here, because a report that shows earlier results does not need it

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
        fingerprint = checkpoint_files.describe(checkpoint).fingerprint  # the model itself is not put together to see whether it is known
        if usable and isinstance(earlier, Mistakes) and earlier.weights_sha256 == fingerprint:
            return earlier
        images = _images(spec, data_hash, data)
        if isinstance(images, str):
            return _missing(folder, images)
        found, suspects = _found(images, checkpoint, best.number, spec, seconds)
    except VitSearchError as error:
        if isinstance(error, LostWeightsError) and usable and isinstance(earlier, Mistakes) and earlier.trial == best.number:
            return earlier
        return _missing(folder, f"The model of trial {best.number} cannot be asked of its validation images: {error}")
    write_whole(folder / LABEL_ERRORS, label_errors_csv(suspects))
    write_whole(folder / CONFUSION, confusion_csv(found.classes, found.confusion))
    write_whole(folder / FILE, json.dumps(dataclasses.asdict(found)))  # last: if it exists, all three exist
    return found


def _missing(folder: Path, reason: str) -> Missing:
    """Replace the results of another model by the reason why there are none."""
    missing = Missing(reason)
    write_whole(folder / FILE, json.dumps(dataclasses.asdict(missing)))
    for name in (LABEL_ERRORS, CONFUSION):
        (folder / name).unlink(missing_ok=True)
    return missing


@dataclass(frozen=True, eq=False)
class _Images:
    """The images on which trials were validated."""

    split_name: str
    split: Split | StreamedSplit
    names: list[str]
    classes: tuple[str, ...]

    def shown(
        self, answered: SplitProbabilities, rows: Sequence[int], others: Sequence[int], probabilities: Sequence[float], *, pictures: bool
    ) -> list[Shown]:
        """List entries for some rows of a model's answers, each with another class and a probability."""
        from vit_search.vit.split_probabilities import pixels_of

        indices = [int(answered.indices[row]) for row in rows]
        made = [thumbnail(one, "") for one in pixels_of(self.split, indices)] if pictures else [Thumbnail("", "")] * len(indices)
        return [
            Shown(self.names[i], self.classes[answered.labels[row]], self.classes[other], float(probability), one.source, one.coarse)
            for i, row, other, probability, one in zip(indices, rows, others, probabilities, made, strict=True)
        ]


def _images(spec: SearchSpec, data_hash: str, data: DataSet | None) -> _Images | str:
    """The images, or why they are not available."""
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


def _found(images: _Images, checkpoint: Path, number: int, spec: SearchSpec, seconds: float) -> tuple[Mistakes, list[dict[str, Any]]]:
    """The mistakes of a model, and the rows of label_errors.csv."""
    from vit_search.vit import checkpoint as checkpoints
    from vit_search.vit import label_errors
    from vit_search.vit.checkpoint_files import describe
    from vit_search.vit.split_probabilities import split_probabilities

    began = time.monotonic()
    served, described = checkpoints.read_consistently(checkpoint, lambda now: (checkpoints.load_model(now), describe(now)))
    classes = images.classes
    answered = split_probabilities(served, images.split, seconds)
    labels, chances = answered.labels, answered.probabilities
    suspects = label_errors.suspects(labels, chances)
    answers, worst = chances.argmax(1), wrong_by_confidence(labels, chances)[:SHOWN].tolist()
    first, pictures = suspects[:SHOWN], spec.report.images
    found = Mistakes(
        trial=number,
        weights_sha256=described.fingerprint,
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
    """Rows whose most probable class is not the label, most probable first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.lexsort((wrong, -probabilities[wrong].max(1)))]


def confusion_of(labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], classes: int) -> list[list[int]]:
    """Number of images by label (row) and answer (column)."""
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
    """The text of label_errors.csv, most suspicious label first."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["image", "split", "given_label", "suggested_label", "self_confidence"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def confusion_csv(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """The text of confusion.csv: one row for each label, one column for each answer."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, confusion, strict=True))
    return file.getvalue()
