"""What stays true of a search from its first moment on, as this process and its data tell."""

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
    """What is true of a search that begins now, in this process; named after its folder unless it has a name.

    Args:
        weights: as `SearchFacts.pretrained`.
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
    """All installed distributions and their versions, a line each."""
    packages = {(dist.name.lower().replace("_", "-"), dist.version) for dist in distributions() if dist.name}
    return "".join(f"{name}=={number}\n" for name, number in sorted(packages))


CODE = ("vit_search", "pyproject.toml", "requirements.lock")
"""What decides in a checkout how a search runs."""


def _code_version() -> str:
    """Package version, and the git commit where the package runs from a checkout."""
    root = Path(__file__).parents[2]
    release = f"vit_search {version('vit_search')}"
    commit = _git(root, "describe", "--always") if (root / ".git").exists() else ""
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *CODE) if commit else ""
    return f"{release}, git {commit}{'-dirty' if changed else ''}" if commit else release


def _git(folder: Path, *words: str) -> str:
    """What git says of a folder; empty where it is no checkout, or git is not there."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
