"""Report what is wrong with the keys of shards: one line per kind of mistake, with shards and keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vit_search.errors import DataError
from vit_search.text import LISTED, counted, listed

SHOWN = 20
"""Kinds of mistakes that one message lists at most."""

Problem = tuple[str, str, str]
"""Shard, key, and what is wrong. The last begins with one of OF_FILE if the search file may be the one that is wrong."""

OF_FILE = ("data.label: ", "data.weight: ")
"""Keys of a search file that name a key of the .json files."""


def keys_twice(root: Path, keys: Iterable[tuple[str, str]]) -> list[Problem]:
    """Keys that more than one image has.

    Args:
        keys: shard and key of each image, in the order of the shards.
    """
    first: dict[str, str] = {}
    problems: list[Problem] = []
    for shard, key in keys:
        if key not in first:
            first[key] = shard
            continue
        where = "" if first[key] == shard else f", first in {root / first[key]}"
        problems.append((shard, key, f"the key is there twice{where}; give each image its own."))
    return problems


def refuse_keys(title: str, root: Path, problems: Sequence[Problem], *, others: bool) -> None:
    """Raise an error if there are problems: one line per kind, with the first keys, for the first SHOWN kinds.

    Args:
        others: whether some keys have no problem. The search file is then right, and messages do not blame it.
    Raises: DataError.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for shard, key, problem in problems:
        kinds.setdefault(_of_some(problem) if others else problem, []).append((shard, key))
    lines = []
    for problem, found in kinds.items():
        key = next((name for name in OF_FILE if problem.startswith(name)), "")
        lines.append(f"{key}{_places(root, found)}: {problem.removeprefix(key)}")
    if len(lines) == 1:
        raise DataError(lines[0])
    if lines:
        more = f"\n  and {counted(len(lines) - SHOWN, 'more kind')} of mistakes" if len(lines) > SHOWN else ""
        number = len({(shard, key) for shard, key, _ in problems})
        raise DataError(f"{title}: {counted(number, 'key')} cannot be used:\n  " + "\n  ".join(lines[:SHOWN]) + more)


def _of_some(problem: str) -> str:
    """Reword a problem that only some keys have: then the search file is right."""
    if not problem.startswith(OF_FILE):
        return problem
    fact = problem.partition(": ")[2].rpartition("; ")[0]
    return f"{fact}; add it."


def _places(root: Path, found: Sequence[tuple[str, str]]) -> str:
    """Where keys are: `a.tar: 00, 01, … 8 more`; many keys of several shards as `240 keys in 3 shards (a.tar: 00, b.tar: 80, …)`."""
    first: dict[str, str] = {}
    for shard, key in found:
        first.setdefault(shard, key)
    if len(first) > 1 and len(found) > LISTED:
        examples = ", ".join(f"{shard}: {key}" for shard, key in list(first.items())[:LISTED])
        return f"{root}: {counted(len(found), 'key')} in {counted(len(first), 'shard')} ({examples}, …)"
    shard_of_first = found[0][0]
    return f"{root / shard_of_first}: {listed([key if shard == shard_of_first else f'{shard}: {key}' for shard, key in found])}"
