"""`data.channels: auto`: the number of channels that all files of a data set have, from their headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vit_search.config.data_config import DataConfig
from vit_search.data.image_headers import MOST_CHANNELS, Header, header_of
from vit_search.data.parallel import in_chunks
from vit_search.data.progress import step
from vit_search.data.sources import open_source
from vit_search.data.sources.source import Source
from vit_search.errors import DataError

EXAMPLES = 2
"""Files of each kind that a message names."""


def with_counted_channels(config: DataConfig) -> DataConfig:
    """The config with a number in the place of `auto`. It looks at the header of every file.

    Args:
        config: whose files are on this machine.
    Raises: DataError where the files differ, or need another key besides.
    """
    if config.channels != "auto":
        return config
    source = open_source(config)
    header = _shared_header(source)
    found = f"data.channels: auto: the files of {source.title} have {header.words}"
    if not 1 <= header.channels <= MOST_CHANNELS:
        raise DataError(f"{found}; images have 1 to {MOST_CHANNELS} channels.")
    if header.kind not in ("uint8", "uint16"):
        raise DataError(f"{found}; scale them to whole numbers, and save them as uint8 or uint16.")
    counted = replace(config, channels=header.channels)
    if config.bit_depth is None:
        convert = f", or data.channels: {header.channels} to have them read as 8 bits" if header.channels in (1, 3) else ""
        if header.kind == "uint16":
            raise DataError(f"{found}; write data.bit_depth: 16 besides, to keep them{convert if header.format != 'NPY' else ''}.")
        if header.format == "NPY" and not counted.exact:
            raise DataError(f"{found}; write data.bit_depth: 8 besides, since NPY files are read with it alone.")
    elif f"uint{config.bits}" != header.kind:
        raise DataError(f"{found}, and data.bit_depth is {config.bits}; write {24 - config.bits}, or save the files with {config.bits}.")
    return counted


def headers(source: Source, indices: Sequence[int]) -> list[Header | str]:
    """The headers of some images of a source; for one that cannot be read, what is wrong with it.

    Images that are not in files are left out.
    """

    def look(chunk: range) -> list[Header | str]:
        return [one for i in chunk if (one := _header(source, indices[i])) is not None]

    found: list[Header | str] = []
    with step("looking at", len(indices), "files") as advance:
        for part in in_chunks(len(indices), look):
            found += part
            advance(len(part))
    return found


def _header(source: Source, index: int) -> Header | str | None:
    file = source.file(index)
    if file is None:
        return None
    name = str(file) if isinstance(file, Path) else f"{source.title}: {source.where(index)}"
    try:
        return header_of(file)
    except DataError as error:
        return f"{name}: {error}"
    except Exception as error:  # a decoder raises what damaged bytes lead it to
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return f"{name}: no image that can be read ({why}); replace or remove it."


def _shared_header(source: Source) -> Header:
    """The header of the first file, if all files agree with it in channels and type; where one is an NPY file, its header.

    Raises: DataError that says how many files are of which kind, and names some.
    """
    kinds: dict[tuple[int, str], list[int]] = {}
    first: dict[tuple[int, str], Header] = {}
    for index, header in enumerate(headers(source, range(len(source.labels)))):
        if isinstance(header, str):
            raise DataError(header)
        kind = header.channels, header.kind
        kinds.setdefault(kind, []).append(index)
        if kind not in first or header.format == "NPY":
            first[kind] = header
    if not kinds:
        raise DataError(f"data.channels: auto is for images in files, and {source.title} has none; write a number.")
    if len(kinds) > 1:
        shown = [
            f"{len(indices):,} {'has' if len(indices) == 1 else 'have'} {first[kind].words} ({_names(source, indices)})"
            for kind, indices in sorted(kinds.items(), key=lambda item: -len(item[1]))
        ]
        mend = "give a number, or images that are all alike"
        raise DataError(f"data.channels: auto: the files of {source.title} differ: {', '.join(shown)}; {mend}.")
    return next(iter(first.values()))


def _names(source: Source, indices: Sequence[int]) -> str:
    more = f", … {len(indices) - EXAMPLES:,} more" if len(indices) > EXAMPLES else ""
    return ", ".join(source.where(index) for index in indices[:EXAMPLES]) + more
