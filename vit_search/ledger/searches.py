"""The files of a search's folder: write, read and find them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vit_search.config.strict_json import Count, Fraction, build, parse
from vit_search.errors import SearchError, SpecError
from vit_search.files import open_to_others, write_whole
from vit_search.ledger.trials import Trial, pareto_front
from vit_search.text import nearest

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec

COST_FIELDS = {"params": "params", "flops": "forward_flops", "train_flops": "train_flops"}
"""Objectives that follow from the configuration alone, with the field of Cost that holds each."""


@dataclass(frozen=True)
class SearchFacts:
    """The facts of a search that never change. They are in `search.json`."""

    search: str
    """Folder name; unique in its output folder."""
    search_id: str
    """Random. MLflow's runs are found by it, even if the folder was moved. A copy that continues beside the original gets a new one."""
    spec_name: str
    text: str
    """The search file as written."""
    resolved: dict[str, Any]
    """The search file with every default filled in."""
    metric: str
    mode: str
    data_hash: str
    code_version: str
    environment: dict[str, str]
    tracking_uri: str
    """Without a password. The path of a SQLite file in the search's project is relative to the project."""
    space_hash: str = ""
    """See Space.space_hash. Empty in searches of versions before 0.2."""
    git_commit: str = ""
    """Of the checkout in which the search was launched; empty outside of one."""
    packages: str = ""
    """All installed packages, in the format of requirements.txt."""
    images: str = ""
    """Classes, images and skipped files in one line. Empty in searches of versions before 0.2."""
    promotes: str = ""
    """For the training runs of a promotion: the search that is promoted. Empty in a normal search."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Number of images in each split. This field and the next two are empty in searches of earlier versions."""
    image_shape: Sequence[int] = ()
    """Channels, height, width."""
    classes: int = 0
    pretrained: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Weights that models start from, by `model.pretrained`: their source, revision, sha256 and licence."""


@dataclass(frozen=True)
class Hindsight:
    """What is known only at the end of a search, in `hindsight.json`. It is written again after an extension."""

    doomed: Count
    """Completed audits (trials that are never stopped) that the rule would have stopped."""
    wrongly: Count
    """Those of them that were better than the median of the trials that the rule let through."""
    interval: tuple[Fraction, Fraction]
    """95 % interval of wrongly / doomed; 0 to 1 if there are none."""
    plan: dict[str, Any] | None
    """The plan and what happened, side by side: the result of `compare` in planning/plan.py."""


def tags_of_weights(facts: SearchFacts, sources: Iterable[str]) -> dict[str, str]:
    """Tags that say where pretrained weights come from; none for a random start.

    Args:
        sources: values of `model.pretrained`. Facts of several are listed, each once.
    """
    records = [record for source in sources if (record := facts.pretrained.get(source)) is not None]
    tags: dict[str, str] = {}
    for key in ("source", "revision", "sha256", "licence"):
        values = dict.fromkeys(record[key] for record in records if record.get(key))
        tags |= {f"pretrained_{key}": ", ".join(values)[:5000]} if values else {}
    return tags


def write_hindsight(folder: Path, hindsight: Hindsight) -> None:
    """Write hindsight.json."""
    write_whole(folder / "hindsight.json", json.dumps(asdict(hindsight), indent=1))


def read_hindsight(folder: Path) -> Hindsight | None:
    """Read hindsight.json. None if the search has not ended, or the file is damaged: nothing depends on it."""
    try:
        hindsight = build(Hindsight, parse((folder / "hindsight.json").read_text(encoding="utf-8")))
        if hindsight.plan is not None:
            build(_Compared, hindsight.plan)
        return hindsight
    except (OSError, ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class _Pair:
    """A figure of the plan and the real one; see `compare` in planning/plan.py."""

    predicted: Annotated[float, (0, 1e18)] | None
    actual: Annotated[float, (0, 1e18)]
    ratio: Annotated[float, (0, 1e18)] | None


@dataclass(frozen=True)
class _Speed:
    device: str
    measured: str
    borrowed: str = ""


@dataclass(frozen=True)
class _Compared:
    trials: _Pair
    trials_at: dict[str, _Pair]
    epochs: _Pair
    device_seconds: _Pair
    wall_seconds: _Pair
    speed: _Speed | None = None


def write(folder: Path, facts: SearchFacts) -> None:
    """Write the search file and the facts of a new search. search.json comes last, because it makes the folder a search."""
    write_whole(folder / "search.yaml", facts.text)
    write_facts(folder, facts)


def write_facts(folder: Path, facts: SearchFacts) -> None:
    """Write search.json alone, atomically."""
    write_whole(folder / "search.json", json.dumps(asdict(facts), indent=1))


def read(folder: Path) -> tuple[SearchSpec, SearchFacts]:
    """Read the search file and the facts of a search.

    Raises: SearchError if the folder does not hold them.
    """
    facts = read_facts(folder)
    from vit_search.config import search_file  # imported here because most commands need the facts alone

    return search_file.load(folder / "search.yaml"), facts


def read_facts(folder: Path) -> SearchFacts:
    """Read the facts of a search alone; see `read` for errors."""
    try:
        return build(SearchFacts, parse((folder / "search.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise SearchError(f"{folder}: not the folder of a search ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise SearchError(f"{folder / 'search.json'}: not the facts of a search ({error}); restore the file from a copy.") from None


def trial_folder(search: Path, number: int) -> Path:
    """The folder of a trial. Its checkpoint is in it."""
    return search / "trials" / f"{number:04d}"


def check_trials(folder: Path, spec: SearchSpec, trials: Iterable[Trial]) -> None:
    """Check that the trials' parameters fit the search file.

    Raises: SearchError for one that does not.
    """
    for trial in trials:
        try:
            misfit = spec.space.misfit(trial.params)
            if not misfit:
                spec.space.cost(trial.params)
        except SpecError as error:
            misfit = str(error)
        if misfit:
            raise SearchError(
                f"{folder / 'ledger.jsonl'}: trial {trial.number}: {misfit.rstrip('.')}; "
                "put search.yaml back as it was when the search began, or restore the ledger from a copy."
            )


def check_own(folder: Path) -> None:
    """Check that only this account can change a search's folder, and that no link in it would lead writing elsewhere.

    It checks the folder's entries and theirs. Deeper files are renamed or opened in ways that follow no link.
    Raises: SearchError.
    """
    mend = "make it yours alone with chown and chmod go-w, or go on in a copy of it"
    try:
        if problem := open_to_others(folder):
            raise SearchError(f"{folder}: {problem}; {mend}.")
        closed = not folder.stat().st_mode & 0o011
        for path in folder.iterdir():
            inside = [path, *path.iterdir()] if path.is_dir() and not path.is_symlink() else [path]
            if link := next((one for one in inside if one.is_symlink()), None):
                raise SearchError(f"{link}: a link, which is not followed for writing; remove it, or put what it names there.")
            if not closed and path.is_dir() and (problem := open_to_others(path)):
                raise SearchError(f"{folder}: {problem}; {mend}.")
    except FileNotFoundError as error:
        if not folder.exists():
            raise SearchError(f"{folder}: not the folder of a search ({error}).") from None
    except OSError as error:
        raise SearchError(f"{folder}: cannot be looked at ({error.strerror}).") from None


def objective_values(spec: SearchSpec, trial: Trial) -> list[float] | None:
    """A trial's first metric and its other objectives; None if one is missing."""
    values = [trial.value(spec.metric)]
    for goal in spec.objectives:
        if goal.metric in COST_FIELDS:
            values.append(float(getattr(spec.space.cost(trial.params), COST_FIELDS[goal.metric])))
        else:
            values.append(trial.value(goal.metric))
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else None


def pareto(spec: SearchSpec, trials: Iterable[Trial]) -> set[int]:
    """Numbers of the full-length trials on the Pareto front. Empty if the search has only one metric."""
    if not spec.objectives:
        return set()
    points = {t.number: values for t in trials if t.outcome == "completed" and (values := objective_values(spec, t)) is not None}
    return pareto_front(points, [spec.mode, *(goal.mode for goal in spec.objectives)])


def _began(folder: Path) -> float:
    """When a search began, in seconds. From its ledger, because the files of a copied folder may have other times."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), (folder / "ledger.jsonl").open("rb") as file:
        at = float(parse(file.readline(4096).partition(b" ")[2])["at"])
        if math.isfinite(at):
            return at
    return (folder / "search.json").stat().st_mtime


def find(output: Path, name: str | None) -> Path:
    """Find a search's folder by its name or path. Without a name: the newest search under `output`.

    Raises: SearchError that names the nearest search, or says how to start one.
    """
    if name is not None and (Path(name) / "search.json").is_file():
        return Path(name) if Path(name).name not in ("", "..") else Path(name).resolve()  # a search is called by its folder's name
    name = name and name.rstrip("/")
    folders = sorted((p.parent for p in output.glob("*/search.json")), key=_began)
    if not folders:
        raise SearchError(f"{output}: no search here; start one with `vit-search run FILE`.")
    if name is None:
        return folders[-1]
    names = [p.name for p in folders]
    if name in names:
        return output / name
    raise SearchError(f"{output}: no search named {name!r}; {nearest(name, names)}")
