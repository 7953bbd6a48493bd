"""Registered versions as pretrained weights: `models:/digits@champion` in a search file, so that a new search starts from the champion."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from vit_search.config.weight_sources import WeightSource
from vit_search.data.weight_files import WEIGHTS, Version
from vit_search.errors import PromotionError
from vit_search.registry import references

BESIDE = "config.json"
LICENCE = ("licence", "license")
"""Tags of a version, or of its model, that state the licence."""


class Versions:
    """MLflow's registry, for `local_file`. MLflow is imported when it is first asked."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        self._uri = tracking_uri
        self._client: Any = None

    def look_up(self, source: WeightSource) -> Version:
        """The version that a source means now.

        Raises: PromotionError that names the nearest known model, alias or version.
        """
        from vit_search.registry.promotion_history import as_tracking_error
        from vit_search.tracking import model_files

        found = references.find_version(self._connected(), source.unpinned)
        whose = f"{found.name}: version {found.version}"
        if model_files.RECORD in found.tags:
            recorded = model_files.read(found.tags[model_files.RECORD], whose)
            sha256 = recorded[f"{model_files.CHECKPOINT}/{WEIGHTS}"]
        else:
            sha256 = found.tags.get(model_files.WEIGHTS, "")
        if not sha256:
            raise PromotionError(f"{whose}: no sha256 was recorded, so nothing vouches for its weights; `vit-search promote` records it.")
        with as_tracking_error(found.name):
            model = self._connected().get_registered_model(found.name)
        licence = next((tags[key] for tags in (found.tags, model.tags) for key in LICENCE if tags.get(key)), None)
        return Version(found.name, str(found.version), sha256, licence)

    def fetch(self, version: Version, folder: Path) -> None:
        """Put model.safetensors and config.json of a version into a folder, checked against their recorded sha256.

        Raises: PromotionError.
        """
        from vit_search.registry.version_files import fetch_files

        found = references.find_version(self._connected(), f"{version.name}/{version.number}")
        with tempfile.TemporaryDirectory() as temporary:
            home = fetch_files(self._connected(), found, Path(temporary))
            for name in (WEIGHTS, BESIDE):
                shutil.copyfile(home / name, folder / name)

    def _connected(self) -> Any:
        if self._client is None:
            from vit_search.tracking.mlflow_client import client_for
            from vit_search.tracking.uris import of_newest

            self._client = client_for(of_newest(self._uri), needs="read")
        return self._client
