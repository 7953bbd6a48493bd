"""The page of a promotion that shows which test images the candidate got wrong. It is in the promotion's folder and in MLflow.

It uses the answers of a counted reading. No model runs here; only the images that are shown are decoded.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vit_search.config.search_file import SearchSpec
from vit_search.data.batches import load_split
from vit_search.data.cache import DataSet
from vit_search.data.image_names import image_names
from vit_search.files import write_whole
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.readings import Reading
from vit_search.report import mistakes, page
from vit_search.report.mistake_sections import confusion_blocks, sheet_blocks, surest_blocks, suspect_blocks
from vit_search.report.mistakes import SHOWN, Shown
from vit_search.report.page import Block, Page, Section, Table, Text
from vit_search.report.thumbnails import Thumbnail, thumbnail
from vit_search.text import counted
from vit_search.vit import label_errors
from vit_search.vit.split_probabilities import pixels_of

_log = logging.getLogger(__name__)

PAGE, DISAGREEMENTS = "mistakes.html", "disagreements.csv"

KINDS = ("the candidate is wrong, the champion right", "both are wrong", "the candidate is right, the champion wrong")
"""Kinds of images on which the two disagree, the worst first."""


@dataclass(frozen=True)
class Disagreement:
    """An image on which candidate and champion disagree."""

    index: int
    """Index of the image in the test split."""
    kind: int
    """Index into KINDS."""


def write(folder: Path, spec: SearchSpec, data: DataSet, reading: Reading, title: str) -> tuple[Path, ...]:
    """Write the page and its tables into a promotion's folder. Files of an earlier call are replaced.

    Args:
        data: from `prepare` for this search. title: of the page.
    Returns: the page, then the tables. Empty if they cannot be made, because a picture must not stop a promotion.
    """
    try:
        return _write(folder, spec, data, reading, title)
    except Exception as error:
        _log.warning("the page of the mistakes could not be made (%s: %s).", type(error).__name__, error)
        return ()


def _write(folder: Path, spec: SearchSpec, data: DataSet, reading: Reading, title: str) -> tuple[Path, ...]:
    answers, champion = reading.answers, reading.champion
    names = image_names(spec.data_config, data, "test")
    shelf = _Shelf(data, names, shows_images=spec.report.images)
    confusion = answers.confusion.tolist()
    own = np.exp(-answers.label_nll)
    suspects = label_errors.suspects_by_answers(answers.labels, own, answers.predictions, answers.confidence, len(answers.classes))
    files = {
        mistakes.LABEL_ERRORS: mistakes.label_errors_csv(mistakes.suspect_rows(suspects, names, "test", answers.classes, answers.labels)),
        mistakes.CONFUSION: mistakes.confusion_csv(answers.classes, confusion),
    }
    wrong = np.flatnonzero(~answers.correct)
    surest = wrong[np.lexsort((wrong, -answers.confidence[wrong]))][:SHOWN]
    first = suspects[:SHOWN]
    sections = [
        Section("confusion", "Confusion matrix", confusion_blocks(answers.classes, confusion)),
        Section(
            "mistakes",
            "Surest mistakes",
            surest_blocks(shelf.shown(answers, surest, answers.predictions[surest], answers.confidence[surest]), len(wrong)),
        ),
        Section(
            "labels",
            "Suspected labels",
            suspect_blocks(
                shelf.shown(
                    answers, [one.index for one in first], [one.suggested for one in first], [one.self_confidence for one in first]
                ),
                len(suspects),
            ),
        ),
    ]
    if champion is not None:
        differ = disagreements(answers, champion)
        files[DISAGREEMENTS] = disagreements_csv(differ, names, answers, champion)
        sections.insert(0, Section("disagreements", "Candidate and champion disagree", _differ_blocks(shelf, differ, answers, champion)))
    lead = (
        f"The candidate's answers on {counted(answers.images, 'test image')}, from reading {reading.number} of this test split. If you "
        "change a model until these images come out right, you tune it on the test, and the test proves nothing more: judge each change by "
        "the validation images."
    )
    figures = [("accuracy", f"{answers.accuracy:.4f}"), ("wrong answers", f"{len(wrong):,}"), ("suspected labels", f"{len(suspects):,}")]
    files = {PAGE: page.render(Page(title, lead, figures, sections)), **files}
    for name, text in files.items():
        write_whole(folder / name, text)
    if champion is None:  # the file of an earlier promotion, which had a champion
        (folder / DISAGREEMENTS).unlink(missing_ok=True)
    return tuple(folder / name for name in files)


def disagreements(candidate: SplitAnswers, champion: SplitAnswers) -> list[Disagreement]:
    """The images on which two models disagree, the worst first.

    Sorted by KINDS, then by the candidate's confidence: surest mistakes first, surest right answers last.
    """
    differ = np.flatnonzero(candidate.predictions != champion.predictions)
    kinds = np.where(candidate.correct, 2, np.where(champion.correct, 0, 1))[differ]
    sure = candidate.confidence[differ]
    order = np.lexsort((differ, np.where(kinds == 2, sure, -sure), kinds))
    return [Disagreement(int(differ[i]), int(kinds[i])) for i in order]


def disagreements_csv(differ: Sequence[Disagreement], names: Sequence[str], candidate: SplitAnswers, champion: SplitAnswers) -> str:
    """All disagreements as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "label", "candidate", "candidate_confidence", "champion", "champion_confidence"])
    for one in differ:
        row: list[str] = [names[one.index], candidate.classes[candidate.labels[one.index]]]
        for model in (candidate, champion):
            row += [model.classes[model.predictions[one.index]], f"{model.confidence[one.index]:.6f}"]
        writer.writerow(row)
    return file.getvalue()


def _differ_blocks(shelf: _Shelf, differ: Sequence[Disagreement], candidate: SplitAnswers, champion: SplitAnswers) -> list[Block]:
    if not differ:
        return [Text("Both give the same answer for each test image.")]
    counts = [sum(one.kind == kind for one in differ) for kind in range(len(KINDS))]
    table = Table(("", "images>"), [[words, f"{count:,}"] for words, count in zip(KINDS, counts, strict=True)])
    first = [one.index for one in differ[:SHOWN]]
    shown = shelf.shown(candidate, first, candidate.predictions[first], candidate.confidence[first])
    rivals = [f"{champion.classes[champion.predictions[i]]}, {champion.confidence[i]:.0%}" for i in first]
    title = f"The first {len(first)} of {len(differ):,}, the worst first" if len(differ) > len(first) else "All of them, the worst first"
    lines = [
        [f"label {one.label}", f"candidate {one.other}, {one.probability:.0%}", f"champion {rival}", one.image]
        for one, rival in zip(shown, rivals, strict=True)
    ]
    rows = [[one.label, f"{one.other}, {one.probability:.0%}", rival, one.image] for one, rival in zip(shown, rivals, strict=True)]
    caption = f"{title}. {DISAGREEMENTS} lists all."
    return [table, *sheet_blocks(caption, shown, lines, ("label", "candidate", "champion", "image"), rows)]


@dataclass(frozen=True)
class _Shelf:
    """The test images. Only those that are shown are decoded."""

    data: DataSet
    names: Sequence[str]
    shows_images: bool

    def shown(
        self,
        answers: SplitAnswers,
        indices: Sequence[int] | npt.NDArray[np.int64],
        others: Sequence[int] | npt.NDArray[np.int64],
        probabilities: Sequence[float] | npt.NDArray[np.float64],
    ) -> list[Shown]:
        """Images with their labels, another class each, and its probability."""
        chosen = [int(i) for i in indices]
        if self.shows_images and chosen:
            pictures = [thumbnail(one, "") for one in pixels_of(load_split(self.data, "test", decoders=0), chosen)]
        else:
            pictures = [Thumbnail("", "")] * len(chosen)
        return [
            Shown(self.names[i], answers.classes[answers.labels[i]], answers.classes[other], float(probability), one.source, one.coarse)
            for i, other, probability, one in zip(chosen, others, probabilities, pictures, strict=True)
        ]
