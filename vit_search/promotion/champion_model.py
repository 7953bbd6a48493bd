"""The champion that a candidate is compared with: its version in MLflow, and its model on this machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from vit_search.errors import PromotionError
from vit_search.registry.promotion_history import CHAMPION
from vit_search.registry.version_files import fetch_version
from vit_search.vit.checkpoint import ServedModel


def champion_of(client: mlflow.MlflowClient, name: str) -> Any:
    """The champion's version, an object of MLflow. None if there is no champion, no such registered model, or no answer from MLflow."""
    try:
        return find_champion(client, name)
    except MlflowException:
        return None


def find_champion(client: mlflow.MlflowClient, name: str) -> Any:
    """The same, but raises MlflowException if MLflow does not answer or does not have the model."""
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return client.get_model_version(name, version) if version is not None else None


@contextlib.contextmanager
def fetched_champion(client: mlflow.MlflowClient, version: Any, *, lenient: bool = False) -> Iterator[tuple[ServedModel, Path] | None]:
    """Download the champion's model and checkpoint. They exist while the context is open. None if there is no champion.

    Args:
        version: of the champion, an object of MLflow; None if there is no champion.
        lenient: whether a champion that cannot be loaded counts as none.
    Raises: PromotionError if the champion cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        champion: tuple[ServedModel, Path] | None = None
        if version is not None:
            try:
                champion = fetch_version(client, version, Path(folder))
            except PromotionError as error:
                if not lenient:
                    raise PromotionError(
                        f"{version.name}: the champion, version {version.version}, cannot be loaded to compare with ({error}); "
                        "mend it, roll back, or promote with --force --reason."
                    ) from None
        yield champion
