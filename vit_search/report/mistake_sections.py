"""The sections of a report about a model's mistakes: confusion matrix, most confident mistakes, suspected labels, different answers."""

from __future__ import annotations

from collections.abc import Sequence

from vit_search.report.mistakes import CONFUSION, LABEL_ERRORS, Missing, Mistakes, Shown
from vit_search.report.page import ROWS, Block, Table, Text
from vit_search.report.thumbnails import Sheet, Tile
from vit_search.text import counted

MATRIX = 20
"""Maximum number of classes for a matrix on the page. With more, the page shows only the pairs that are confused most."""


def mistake_blocks(found: Mistakes | Missing, best: int | None) -> list[Block]:
    """The mistakes of the search's best model on the validation images.

    Args:
        best: number of the best trial now; None if there is none.
    """
    if isinstance(found, Missing):
        return [Text(found.reason)]
    which = "holdout" if found.split == "holdout" else "validation"
    part = "" if found.images == found.of else f", a random sample of {found.of:,}: the time for this was over"
    later = "" if best in (None, found.trial) else f" Trial {best} is better by now; the next report after the search's end is about it."
    blocks: list[Block] = [
        Text(
            f"The model of trial {found.trial} on {counted(found.images, f'{which} image')}{part}: {counted(found.wrong, 'wrong answer')}. "
            f"It was not trained on these images. Test images are not used here.{later}"
        ),
        *confusion_blocks(found.classes, found.confusion),
        *surest_blocks(found.mistakes, found.wrong),
        *suspect_blocks(found.suspects, found.suspected),
    ]
    return blocks


def confusion_blocks(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[Block]:
    """The matrix, if there are few classes, and the pairs that are confused most."""
    blocks: list[Block] = []
    if len(classes) <= MATRIX:
        rows = [[name, *(f"{count:,}" if count else "·" for count in row)] for name, row in zip(classes, confusion, strict=True)]
        blocks.append(Table(("label", *(f"{name}>" for name in classes)), rows, "Images by their label (row) and the answer (column)."))
    pairs = [(count, sum(row), i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if count and i != j]
    pairs.sort(key=lambda pair: (-pair[0], pair[2], pair[3]))
    if pairs:
        rows = [[f"{classes[i]} taken for {classes[j]}", f"{count:,}", f"{count / of:.1%}"] for count, of, i, j in pairs[:ROWS]]
        more = "" if len(pairs) <= ROWS else f", the first {ROWS} of {len(pairs):,}"
        blocks.append(Table(("pair", "images>", "of its class>"), rows, f"What is confused most{more}. All counts are in {CONFUSION}."))
    return blocks


def surest_blocks(shown: Sequence[Shown], wrong: int) -> list[Block]:
    """The wrong answers with the highest probability."""
    if not shown:
        return [Text("No answer is wrong.")]
    title = (
        f"The {len(shown)} wrong answers of which the model was most sure" if wrong > len(shown) else "All wrong answers, the surest first"
    )
    lines = [[f"label {one.label}", f"answer {one.other}, {one.probability:.0%}", one.image] for one in shown]
    return sheet_blocks(f"{title}.", shown, lines, ("label", "answer", "probability>", "image"), [
        [one.label, one.other, f"{one.probability:.4f}", one.image] for one in shown
    ])  # fmt: skip


def suspect_blocks(shown: Sequence[Shown], suspected: int) -> list[Block]:
    """Labels that may be wrong."""
    if not suspected:
        return [Text("No label is suspected.")]
    text = (
        f"{counted(suspected, 'label')} may be wrong (confident learning, Northcutt et al. 2021): the model gives another class at least "
        "the probability that it gives this class on average. Look at each image before you change its label. "
        f"{LABEL_ERRORS} lists all of them, the most suspicious first."
    )
    title = f"The first {len(shown)} suspected labels." if suspected > len(shown) else "All suspected labels."
    lines = [[f"label {one.label}, {one.probability:.0%}", f"maybe {one.other}", one.image] for one in shown]
    return [Text(text), *sheet_blocks(title, shown, lines, ("label", "suggested", "probability of the label>", "image"), [
        [one.label, one.other, f"{one.probability:.4f}", one.image] for one in shown
    ])]  # fmt: skip


def sheet_blocks(
    caption: str, shown: Sequence[Shown], lines: Sequence[Sequence[str]], head: tuple[str, ...], rows: Sequence[Sequence[str]]
) -> list[Block]:
    """A sheet if each image has a thumbnail, else a table with the same content.

    Args:
        lines: text below each thumbnail. The last line is the image's name.
        head: of the table.
        rows: of the table.
    """
    tiles = []
    for one, words in zip(shown, lines, strict=True):
        picture = one.picture(f"image {words[-1]}: {', '.join(words[:-1])}")
        if picture is None:
            return [Table(head, rows[:ROWS], caption if len(rows) <= ROWS else f"{caption} The first {ROWS} of them.")]
        tiles.append(Tile([picture], words))
    return [Sheet(caption, tiles)]
