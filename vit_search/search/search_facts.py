"""Collects the facts about a search that never change: its file, data, code, packages and machine."""

from __future__ import annotations

import os
import platform
import subprocess
import uuid
from collections.abc import Mapping
from importlib.metadata import distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from vit_search.config.search_file import SearchSpec
from vit_search.data.cache import DataSet
from vit_search.ledger.searches import SearchFacts
from vit_search.tracking.uris import to_keep

if TYPE_CHECKING:
    from vit_search.tracking.recorder import Recorder


def facts_of(
    spec: SearchSpec,
    folder: Path,
    data: DataSet,
    recorder: Recorder,
    *,
    weights: Mapping[str, Mapping[str, str]] | None = None,
    name: str = "",
    promotes: str = "",
) -> SearchFacts:
    """The facts of a search that begins now in this process.

    Args:
        weights: as `SearchFacts.pretrained`.
        name: of the search; by default the name of its folder.
        promotes: the search that is promoted, if this is a promotion's training.
    """
    return SearchFacts(
        search=name or folder.name,
        search_id=uuid.uuid4().hex,
        spec_name=spec.name,
        text=spec.text,
        resolved=spec.model_dump(mode="json", by_alias=True),
        metric=spec.metric,
        mode=spec.mode,
        data_hash=data.data_hash,
        images=data.summary,
        code_version=_code_version(),
        environment=_environment(),
        tracking_uri=to_keep(recorder.public_uri, folder),
        space_hash=spec.space.space_hash,
        git_commit=_git(Path.cwd(), "rev-parse", "HEAD"),
        packages=_packages(),
        promotes=promotes,
        splits=dict(data.counts),
        image_shape=(data.channels, *data.image_size),
        classes=len(data.classes),
        pretrained=weights or {},
    )


def _environment() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy")}
    return {"python": platform.python_version(), "machine": platform.machine(), "cpus": str(os.cpu_count())} | packages


def _packages() -> str:
    """All installed packages with their versions, one per line."""
    packages = {(dist.name.lower().replace("_", "-"), dist.version) for dist in distributions() if dist.name}
    return "".join(f"{name}=={number}\n" for name, number in sorted(packages))


CODE = ("vit_search", "pyproject.toml", "requirements.lock")
"""The parts of a checkout that affect a search."""


def _code_version() -> str:
    """The package's version, and the git commit if it runs from a checkout."""
    root = Path(__file__).parents[2]
    release = f"vit_search {version('vit_search')}"
    commit = _git(root, "describe", "--always") if (root / ".git").exists() else ""
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *CODE) if commit else ""
    return f"{release}, git {commit}{'-dirty' if changed else ''}" if commit else release


def _git(folder: Path, *words: str) -> str:
    """The output of a git command in a folder; empty if git fails or is not installed."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
