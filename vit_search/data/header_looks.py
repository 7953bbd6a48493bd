"""Read the headers of many files before any image is decoded: what is wrong with them, and how many are of each kind.

`data.channels: auto` reads all headers. `lint`, `plan` and the start of a search read a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vit_search.config.data_config import DataConfig
from vit_search.data.decode import check_file, undecodable
from vit_search.data.image_headers import Header
from vit_search.data.parallel import in_chunks
from vit_search.data.progress import step
from vit_search.data.sources.source import Source
from vit_search.errors import DataError
from vit_search.text import counted

LOOKED_AT = 200
"""Files of each ending in the sample, evenly spread over the set. Most sets have one depth only, and a header takes about 0.1 ms."""

EXAMPLES = 2
"""Files of each kind that a message names."""


@dataclass(frozen=True)
class Look:
    """What the header of one image says."""

    index: int
    header: Header | None
    """None if it cannot be read, or lacks something that is needed."""
    fault: str = ""
    """What is wrong with the file, and how to fix it; without its name."""


def looks(source: Source, indices: Sequence[int], read: Callable[[Path | bytes], Header | None]) -> list[Look]:
    """Call `read` for the files of some images of a source, on all cores. Images that are not files are left out."""

    def look(chunk: range) -> list[Look]:
        return [one for i in chunk if (one := _look(source, indices[i], read)) is not None]

    found: list[Look] = []
    with step("looking at", len(indices), "files") as advance:
        for part in in_chunks(len(indices), look):
            found += part
            advance(len(part))
    return found


def checked(source: Source, config: DataConfig) -> list[Look]:
    """Check a sample of a source's files against the config; see `sample`."""
    return looks(source, sample(source), partial(check_file, channels=config.channel_count, bit_depth=config.bit_depth))


def sample(source: Source) -> list[int]:
    """The images whose files are checked: at most LOOKED_AT of each ending, evenly spread."""
    by_ending: dict[str, list[int]] = {}
    of_paths = isinstance(source.file(0), Path)  # if files are packed, asking for one reads it
    for index in range(len(source.labels)):
        file = source.file(index) if of_paths else None
        by_ending.setdefault(file.suffix.lower() if isinstance(file, Path) else "", []).append(index)
    chosen: list[int] = []
    for indices in by_ending.values():
        spread = np.linspace(0, len(indices) - 1, min(LOOKED_AT, len(indices))).round().astype(int)
        chosen += [indices[i] for i in np.unique(spread)]
    return sorted(chosen)


def faults(source: Source, found: Sequence[Look]) -> list[str]:
    """What is wrong with files: a line for each kind of fault, with their number and some names."""
    kinds: dict[str, list[int]] = {}
    for one in found:
        if one.fault:
            kinds.setdefault(one.fault, []).append(one.index)
    lines = []
    for fault, indices in kinds.items():
        number = "" if len(indices) == 1 else f"{len(indices):,} files, "
        lines.append(f"{number}{names(source, indices)}: {fault}")
    return lines


def notes(source: Source, config: DataConfig, found: Sequence[Look]) -> list[str]:
    """What is not read: pages and frames after the first, and channels other than red, green and blue."""
    whole = "" if len(found) == len(source.labels) else "at least "
    headers = [(one.index, one.header) for one in found if one.header is not None]
    several = [index for index, header in headers if header.pages > 1 and not header.stacked]
    lines = []
    if several:
        many = f"of {whole}{counted(len(several), 'file')} with several pages or frames"
        lines.append(f"{many}, only the first is read ({names(source, several)})")
    more = (
        [] if config.exact else [(index, header.channels) for index, header in headers if header.format == "TIFF" and header.channels > 4]
    )
    if more:
        many = f"of {whole}{counted(len(more), 'TIFF file')} with more than 4 channels"
        examples = names(source, [index for index, _ in more])
        lines.append(f"{many}, only red, green and blue are read ({examples}); write data.channels: {more[0][1]} for all")
    return lines


def names(source: Source, indices: Sequence[int]) -> str:
    """Where the first few of some images are: `cat/1.png, cat/7.png, … 12 more`."""
    more = f", … {len(indices) - EXAMPLES:,} more" if len(indices) > EXAMPLES else ""
    return ", ".join(source.where(index) for index in indices[:EXAMPLES]) + more


def _look(source: Source, index: int, read: Callable[[Path | bytes], Header | None]) -> Look | None:
    file = source.file(index)
    if file is None:
        return None
    try:
        return Look(index, read(file))
    except DataError as error:
        return Look(index, None, str(error))
    except Exception as error:  # damaged bytes can make a decoder raise anything
        return Look(index, None, str(undecodable(error)))
