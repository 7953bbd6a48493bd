"""What the headers of image files say before a search: how many channels `auto` stands for, files that do not fit, and what is not read."""

from __future__ import annotations

from collections.abc import Iterator

from vit_search.config.data_sets import DATA_SETS
from vit_search.config.data_urls import has_files, is_remote, local_path
from vit_search.config.search_file import SearchSpec
from vit_search.data.auto_channels import with_counted_channels
from vit_search.data.copies import CHEAP_BYTES, contradictions_note, copies_note, find_copies
from vit_search.data.header_looks import checked, faults, notes
from vit_search.data.sources import open_source
from vit_search.errors import DataError
from vit_search.planning.lint_draws import LintFinding


def counted(spec: SearchSpec) -> SearchSpec:
    """The spec with a number in the place of `data.channels: auto`, where the images are on this machine.

    Raises: DataError where the files do not say one.
    """
    if spec.data.channels != "auto" or not _is_here(spec):
        return spec
    return spec.with_channels(with_counted_channels(spec.data_config).channel_count)


def unknown_channels(spec: SearchSpec) -> str:
    """What a plan assumes where the images of `data.channels: auto` are elsewhere; empty where the number is known."""
    if spec.data.channels != "auto":
        return ""
    return f"data.channels: auto: counted when the search starts; {spec.data_config.channel_count} are assumed here."


def of_files(spec: SearchSpec) -> Iterator[LintFinding]:
    """Files that cannot be read as the search file says, and what of the others is not read."""
    config = spec.data_config
    if config.channels == "auto" or "bit_depth" not in DATA_SETS[config.name].keys or not _is_here(spec):
        return
    try:
        source = open_source(config)
    except DataError:
        return  # said elsewhere
    found = checked(source, config)
    for line in faults(source, found):
        yield LintFinding("error", "data.path", f"{source.title}: {line}")
    for line in notes(source, config, found):
        yield LintFinding("hint", "data.path", f"{source.title}: {line}.")
    deep = sum(one.header is not None and one.header.kind == "uint16" for one in found)
    if deep and not config.exact:
        number = f"all {deep:,}" if deep == len(found) else f"{deep:,} of {len(found):,}"
        fact = f"{number} files that were looked at have 16 bits a value, and are read as 8"
        yield LintFinding("hint", "data.bit_depth", f"{fact}; write bit_depth: 16 to keep them.")


def of_copies(spec: SearchSpec) -> Iterator[LintFinding]:
    """Images that are there more than once, as far as few bytes have to be read for it."""
    config = spec.data_config
    if "bit_depth" not in DATA_SETS[config.name].keys or not _is_here(spec):  # a set of image files
        return
    try:
        source = open_source(config)
        copies = find_copies(source, most_bytes=CHEAP_BYTES)
    except DataError:
        return  # said elsewhere
    contradictions = contradictions_note(source, copies)
    if contradictions:
        yield LintFinding("warning", "data.path", f"{source.title}: {contradictions}; keep the right one of each.")
    note = copies_note(source, copies)
    if note:
        mend = "remove it: in two splits, it makes results look too good"
        yield LintFinding("hint", "data.path", f"{source.title}: {note}; {mend}.")


def _is_here(spec: SearchSpec) -> bool:
    return not is_remote(spec.data.path) and has_files(local_path(spec.data.path or ""))
