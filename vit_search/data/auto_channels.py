"""`data.channels: auto`: count the channels of a data set from the headers of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vit_search.config.data_config import DataConfig
from vit_search.data.exact_images import check_pages
from vit_search.data.header_looks import Look, faults, looks, names
from vit_search.data.image_headers import EIGHT_BITS, MOST_CHANNELS, Header, header_of
from vit_search.data.mistakes import refuse
from vit_search.data.sources import open_source
from vit_search.data.sources.source import Source
from vit_search.errors import DataError
from vit_search.text import counted


def with_counted_channels(config: DataConfig) -> DataConfig:
    """Replace `channels: auto` by the number of channels that the headers of all files give.

    Args:
        config: its files must be on this machine.
    Raises: DataError if the files differ, or if the config needs another key too.
    """
    if config.channels != "auto":
        return config
    source = open_source(config)
    header = _shared_header(source, config)
    found = f"data.channels: auto: the files of {source.title} have {header.words}"
    if not 1 <= header.channels <= MOST_CHANNELS:
        raise DataError(f"{found}; images have 1 to {MOST_CHANNELS} channels.")
    if header.kind not in ("uint8", "uint16"):
        raise DataError(f"{found}; scale them to whole numbers, and save them as uint8 or uint16.")
    counted_config = replace(config, channels=header.channels)
    if config.bit_depth is None:
        convert = f", or data.channels: {header.channels} to have them read as 8 bits" if header.channels in (1, 3) else ""
        if header.kind == "uint16":
            raise DataError(f"{found}; write data.bit_depth: 16 besides, to keep them{convert if header.format != 'NPY' else ''}.")
        if header.format == "NPY" and not counted_config.exact:
            raise DataError(f"{found}; write data.bit_depth: 8 besides, since NPY files are read with it alone.")
    elif f"uint{config.bits}" != header.kind:
        mend = "give PNG, TIFF or NPY files of 16 bits" if header.format in EIGHT_BITS else f"save the files with {config.bits}"
        raise DataError(f"{found}, and data.bit_depth is {config.bits}; write {24 - config.bits}, or {mend}.")
    return counted_config


def channels_in_words(config: DataConfig) -> str:
    """How images are read once their channels are counted: `5 channels of 16 bits`."""
    return f"{counted(config.channel_count, 'channel')} of {config.bits} bits"


def _shared_header(source: Source, config: DataConfig) -> Header:
    """The header that all files share: same number of channels, same type of values.

    An NPY file's header is preferred, because NPY files also need `data.bit_depth`.
    Raises: DataError if files differ or are damaged. It says how many files are of each kind, and names some.
    """
    found = looks(source, range(len(source.labels)), _header)
    if not found:
        raise DataError(f"data.channels: auto is for images in files, and {source.title} has none; write a number.")
    kinds: dict[tuple[int, str], list[Look]] = {}
    for one in found:
        if one.header is not None:
            kinds.setdefault((one.header.channels, one.header.kind), []).append(one)
    damaged = faults(source, found)
    differ = _difference(source, config, sorted(kinds.values(), key=lambda some: -len(some))) if len(kinds) > 1 else ""
    if differ and not damaged:
        raise DataError(f"data.channels: auto: the files of {source.title} differ: {differ}")
    refuse(source.title, [*damaged, *([f"data.channels: auto: the files differ: {differ}"] if differ else [])])
    of_one_kind = [one.header for one in found if one.header is not None]
    return next((header for header in of_one_kind if header.format == "NPY"), of_one_kind[0])


def _header(file: Path | bytes) -> Header:
    header = header_of(file)
    if header.format == "TIFF":
        check_pages(header)
    return header


def _difference(source: Source, config: DataConfig, kinds: Sequence[Sequence[Look]]) -> str:
    """How many files are of each kind, the most frequent first, and what to do.

    Args:
        kinds: looks that have a header, grouped by kind.
    """
    shown = []
    for some in kinds:
        assert some[0].header is not None, "looks without one are of no kind"
        has = "has" if len(some) == 1 else "have"
        shown.append(f"{len(some):,} {has} {some[0].header.words} ({names(source, [one.index for one in some])})")
    convertible = all(
        one.header is not None and (one.header.channels in (1, 3) if one.header.format == "TIFF" else one.header.format != "NPY")
        for some in kinds
        for one in some
    )
    others = counted(sum(map(len, kinds[1:])), "other file")
    mend = f"convert or remove the {others}: no file is converted with data.bit_depth, or with more than 3 channels"
    if convertible:
        drop = "drop data.bit_depth and write" if config.bit_depth is not None else "write"
        mend = f"{drop} data.channels: 3 to have all converted to RGB of 8 bits, or 1 for grey; or convert or remove the {others}"
    return f"{', '.join(shown)}; {mend}."
