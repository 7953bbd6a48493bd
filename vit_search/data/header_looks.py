"""Headers of many files of a data set, looked at before any is decoded: what is wrong with them, and how many are of which kind.

`data.channels: auto` looks at all of them, `lint` and `plan` at some. Nothing is decoded.
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
"""Files of each ending that are looked at, evenly spread over the set: most sets have one depth, and a header takes about 0.1 ms."""

EXAMPLES = 2
"""Files of each kind that a message names."""


@dataclass(frozen=True)
class Look:
    """What the header of one image says."""

    index: int
    header: Header | None
    """None where it cannot be read, or says less than is asked."""
    fault: str = ""
    """What is wrong with the file, and how to fix it, without its name."""


def looks(source: Source, indices: Sequence[int], read: Callable[[Path | bytes], Header | None]) -> list[Look]:
    """What `read` makes of the files of some images of a source, in all processes. Images that are not in files are left out."""

    def look(chunk: range) -> list[Look]:
        return [one for i in chunk if (one := _look(source, indices[i], read)) is not None]

    found: list[Look] = []
    with step("looking at", len(indices), "files") as advance:
        for part in in_chunks(len(indices), look):
            found += part
            advance(len(part))
    return found


def checked(source: Source, config: DataConfig) -> list[Look]:
    """Some files of a source, held against how the config reads them: LOOKED_AT of each ending."""
    return looks(source, sample(source), partial(check_file, channels=config.channel_count, bit_depth=config.bit_depth))


def sample(source: Source) -> list[int]:
    """Images whose files are looked at: at most LOOKED_AT of each ending, evenly spread."""
    by_ending: dict[str, list[int]] = {}
    of_paths = isinstance(source.file(0), Path)  # where the files are packed, to ask for each is to read it
    for index in range(len(source.labels)):
        file = source.file(index) if of_paths else None
        by_ending.setdefault(file.suffix.lower() if isinstance(file, Path) else "", []).append(index)
    chosen: list[int] = []
    for indices in by_ending.values():
        spread = np.linspace(0, len(indices) - 1, min(LOOKED_AT, len(indices))).round().astype(int)
        chosen += [indices[i] for i in np.unique(spread)]
    return sorted(chosen)


def faults(source: Source, found: Sequence[Look]) -> list[str]:
    """What is wrong with files, one line for each kind, which counts and names them."""
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
    """What of the files is not read: pages and frames after the first, and channels beside red, green and blue."""
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
    """Where some images are, the first few of many: `cat/1.png, cat/7.png, … 12 more`."""
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
    except Exception as error:  # a decoder raises what damaged bytes lead it to
        return Look(index, None, str(undecodable(error)))
