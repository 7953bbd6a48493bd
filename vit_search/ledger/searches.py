"""Search folders: what stays true of a search, how it is written, and how it is found again."""

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
"""Objectives that follow from the configuration alone, and the fields of Cost that hold them."""


@dataclass(frozen=True)
class SearchFacts:
    """What stays true of a search from its first moment on."""

    search: str
    """Folder name; unique in its output folder."""
    search_id: str
    """Random; by it MLflow's runs are found again, wherever the folder has moved. A copy that goes on beside its original gets another."""
    spec_name: str
    text: str
    """The search file as written."""
    resolved: dict[str, Any]
    """The same with every default filled in."""
    metric: str
    mode: str
    data_hash: str
    code_version: str
    environment: dict[str, str]
    tracking_uri: str
    """Without a password; the path of a SQLite file in the search's project is relative to the project."""
    space_hash: str = ""
    """As Space.space_hash; empty in searches of versions before 0.2."""
    git_commit: str = ""
    """Of the checkout that the search was launched in; empty outside of one."""
    packages: str = ""
    """All installed distributions, in the form of requirements.txt."""
    images: str = ""
    """Classes, images and skipped files in one line; empty in searches of versions before 0.2."""
    promotes: str = ""
    """The search whose best trials are trained again here, for promotion; empty in a search."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Images in each split; this and the next two are empty in searches of earlier versions."""
    image_shape: Sequence[int] = ()
    """Channels, height, width."""
    classes: int = 0
    pretrained: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Weights that models start from, by `model.pretrained`: their source, revision, sha256 and licence."""


@dataclass(frozen=True)
class Hindsight:
    """What only the end of a search tells; written to hindsight.json there, and again when it is extended."""

    doomed: Count
    """Audited trials that completed and would have been stopped."""
    wrongly: Count
    """Those of them that were better than the median of what was let through."""
    interval: tuple[Fraction, Fraction]
    """Of wrongly / doomed, 95 %; 0 to 1 where there are none."""
    plan: dict[str, Any] | None
    """What the plan of the start foretold beside what came, as planning/plan.py's `compare` gives it."""


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
    """Keep it with the search."""
    write_whole(folder / "hindsight.json", json.dumps(asdict(hindsight), indent=1))


def read_hindsight(folder: Path) -> Hindsight | None:
    """What `write_hindsight` kept; None where the search has not come to an end, or the file is damaged: it decides nothing."""
    try:
        hindsight = build(Hindsight, parse((folder / "hindsight.json").read_text(encoding="utf-8")))
        if hindsight.plan is not None:
            build(_Compared, hindsight.plan)
        return hindsight
    except (OSError, ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class _Pair:
    """What was foretold beside what came; planning/plan.py's `compare`."""

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
    """Write a new search's file and facts; search.json comes last, and makes the folder a search."""
    write_whole(folder / "search.yaml", facts.text)
    write_facts(folder, facts)


def write_facts(folder: Path, facts: SearchFacts) -> None:
    """Write search.json alone, whole or not at all."""
    write_whole(folder / "search.json", json.dumps(asdict(facts), indent=1))


def read(folder: Path) -> tuple[SearchSpec, SearchFacts]:
    """A search's file and facts.

    Raises: SearchError when the folder does not hold them.
    """
    facts = read_facts(folder)
    from vit_search.config import search_file  # here: most commands need the facts alone

    return search_file.load(folder / "search.yaml"), facts


def read_facts(folder: Path) -> SearchFacts:
    """A search's facts alone; otherwise as `read`."""
    try:
        return build(SearchFacts, parse((folder / "search.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise SearchError(f"{folder}: not the folder of a search ({error}).") from None
    except (ValueError, RecursionError) as error:
        raise SearchError(f"{folder / 'search.json'}: not the facts of a search ({error}); restore the file from a copy.") from None


def trial_folder(search: Path, number: int) -> Path:
    """Where a trial leaves its checkpoint."""
    return search / "trials" / f"{number:04d}"


def check_trials(folder: Path, spec: SearchSpec, trials: Iterable[Trial]) -> None:
    """Refuse trials whose parameters the search file does not know.

    Raises: SearchError.
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
    """Refuse to write into a search's folder that other accounts can change, or in which a link would lead the writing elsewhere.

    Its own entries and those of its folders are looked at; what lies deeper is renamed or opened in ways that follow no link.
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
    """A trial's first metric and its further objectives; None where one is missing."""
    values = [trial.value(spec.metric)]
    for goal in spec.objectives:
        if goal.metric in COST_FIELDS:
            values.append(float(getattr(spec.space.cost(trial.params), COST_FIELDS[goal.metric])))
        else:
            values.append(trial.value(goal.metric))
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else None


def pareto(spec: SearchSpec, trials: Iterable[Trial]) -> set[int]:
    """Numbers of the full-length trials on the Pareto front; empty where a search has one metric alone."""
    if not spec.objectives:
        return set()
    points = {t.number: values for t in trials if t.outcome == "completed" and (values := objective_values(spec, t)) is not None}
    return pareto_front(points, [spec.mode, *(goal.mode for goal in spec.objectives)])


def _began(folder: Path) -> float:
    """When a search began, in seconds, by its ledger: a copy of its folder may have other times."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), (folder / "ledger.jsonl").open("rb") as file:
        at = float(parse(file.readline(4096).partition(b" ")[2])["at"])
        if math.isfinite(at):
            return at
    return (folder / "search.json").stat().st_mtime


def find(output: Path, name: str | None) -> Path:
    """A search's folder by its name or path; without a name, the newest under `output`.

    Raises: SearchError that names the nearest or says how to make one.
    """
    if name is not None and (Path(name) / "search.json").is_file():
        return Path(name)
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
