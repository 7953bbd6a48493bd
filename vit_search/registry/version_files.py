"""The files of a model in MLflow: download them, check them against their recorded sha256, and load the model."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.errors import CheckpointError, PromotionError
from vit_search.registry import references
from vit_search.registry.lock import insist
from vit_search.registry.promotion_history import as_tracking_error
from vit_search.tracking import model_files
from vit_search.tracking.mlflow_client import in_short
from vit_search.tracking.model_files import CHECKPOINT

if TYPE_CHECKING:
    from vit_search.vit.checkpoint import ServedModel


def fetch_files(client: MlflowClient, version: Any, folder: Path) -> Path:
    """Download the checkpoint of a registered version into a folder: only the weights and config.json.

    Args:
        version: MLflow's object. Its tags record the files.
    Raises: PromotionError if the files are missing, damaged, or not those that were registered.
    """
    uri = f"models:/{version.name}/{version.version}/{CHECKPOINT}"
    with _load_errors(version, folder):
        home = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=client.tracking_uri))
        model_files.check(home, version.tags or {}, _name_of(version))
        return home


def fetch_logged(client: MlflowClient, uri: str, folder: Path) -> tuple[Path, str]:
    """Download the checkpoint of a model that is not registered into a folder.

    Args:
        uri: `models:/m-…`, or `runs:/RUN/NAME`. The record of the latter is that of the logged model with this run and name.
    Returns: the folder, and which of its files were recorded; see model_files.check.
    Raises: PromotionError.
    """
    uri = uri.rstrip("/")
    try:
        logged = _logged_model(client, uri)
        source = f"{logged.artifact_location if logged else uri}/{CHECKPOINT}"
        home = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=client.tracking_uri))
        return home, model_files.check(home, logged.tags if logged else {}, uri)
    except (MlflowException, OSError) as error:
        raise PromotionError(f"{uri}: no model of vit_search can be loaded from there ({in_short(error)}); {references.FORMS}.") from None


def _logged_model(client: MlflowClient, uri: str) -> Any:
    """The logged model from MLflow; None if MLflow has only files of the run."""
    if uri.startswith("models:/"):
        return client.get_logged_model(uri.removeprefix("models:/"))
    run, _, name = uri.removeprefix("runs:/").partition("/")
    if not re.fullmatch("[0-9a-f]{32}", run):
        return None
    logged = client.search_logged_models([client.get_run(run).info.experiment_id], filter_string=f"source_run_id = '{run}'")
    return next((model for model in logged if model.name == name), None)


def fetch_version(client: MlflowClient, version: Any, folder: Path) -> tuple[ServedModel, Path]:
    """The model of a registered version, and its checkpoint; see `fetch_files`."""
    from vit_search.vit import checkpoint

    home = fetch_files(client, version, folder)
    with _load_errors(version, folder):
        return checkpoint.load_model(home), home


@contextlib.contextmanager
def _load_errors(version: Any, folder: Path) -> Iterator[None]:
    """Turn errors about a version's files into one line, without the name of the temporary folder."""
    try:
        yield
    except (MlflowException, OSError, CheckpointError) as error:
        reason = in_short(error).replace(f"{folder}/", "")
        if "downloading one or more artifacts" in reason:  # MLflow's heading over a list of files
            reason = f"of its files, {CHECKPOINT} cannot be had; a model that `vit-search promote` has registered holds it"
        elif "No such artifact" in reason:  # MLflow knows the version, but does not find its files
            reason = "its files are not where MLflow has put them; a database in the project needs its folder mlartifacts beside it"
        raise PromotionError(f"{_name_of(version)} cannot be loaded ({reason})") from None


def load_version(client: MlflowClient, version: Any) -> ServedModel:
    """The model of a registered version. Errors: see `fetch_files`."""
    with tempfile.TemporaryDirectory() as folder:
        return fetch_version(client, version, Path(folder))[0]


def load_problem(client: MlflowClient, version: Any) -> str:
    """Why a registered version cannot be loaded; empty if it can. `rollback` calls it."""
    try:
        load_version(client, version)
    except PromotionError as error:
        return str(error)
    return ""


def verify_files(client: MlflowClient, name: str, say: Callable[[str], None] = lambda text: None) -> tuple[list[str], list[str]]:
    """Download all files of all versions of a model, and check them against the sha256 that was recorded at registration.

    Args:
        say: called with a few words before each step.
    Returns: what is wrong, and what no record covers.
    """
    problems: list[str] = []
    covered: dict[str, list[str]] = {}
    with as_tracking_error(name):
        versions = sorted(insist(client.search_model_versions, f"name = '{name}'"), key=lambda one: int(one.version))
    for version in versions:
        say(f"verifying the files of version {version.version}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                coverage, code = _verify_version(client, version, Path(folder))
            except PromotionError as error:
                problems.append(str(error).removeprefix(f"{name}: "))
                continue
        covered.setdefault(coverage, []).append(str(version.version))
        if code:
            covered.setdefault(model_files.CACHE, []).append(str(version.version))
    notes = {
        model_files.WEIGHTS_ALONE: "only the weights are covered, since an earlier vit_search has registered it; promote it again",
        model_files.NOTHING: "no sha256 was recorded, so nothing vouches for its files; `vit-search promote` records them",
        model_files.CACHE: "holds compiled Python (__pycache__), which nothing covers; delete it before `mlflow models serve`",
    }
    return problems, [f"version {', '.join(covered[key])}: {text}" for key, text in notes.items() if key in covered]


def _verify_version(client: MlflowClient, version: Any, folder: Path) -> tuple[str, int]:
    """Which of a version's files are recorded, and how many files of compiled Python it has."""
    uri = f"models:/{version.name}/{version.version}"
    with _load_errors(version, folder):
        home = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=client.tracking_uri))
        return model_files.check(home, version.tags or {}, _name_of(version), inside=""), model_files.compiled(home)


def _name_of(version: Any) -> str:
    return f"{version.name}: version {version.version}"
