"""How a person names a model. Every command that takes a model reads its name here.

| Text | Model |
|---|---|
| digits@champion, models:/digits@champion | the version of an alias |
| digits/3, models:/digits/3 | a version |
| trained/digits | a folder that `vit-search train` has written |

This module imports neither torch nor MLflow, because a folder needs no registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_search.errors import PromotionError
from vit_search.text import nearest
from vit_search.vit.checkpoint_files import CONFIG

GONE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}
"""MLflow's error codes for an alias, version or model that does not exist. Any other error means that the registry cannot be reached."""

FORMS = "write it like digits@champion, digits/3 or trained/digits"


@dataclass(frozen=True)
class Reference:
    """A registered model by alias or by version."""

    name: str
    alias: str = ""
    version: str = ""

    def __str__(self) -> str:
        """The reference as a person writes it."""
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version}"


def parse(text: str) -> Reference:
    """Read `NAME@ALIAS` or `NAME/3`, with or without `models:/` before it.

    Raises: PromotionError for any other text.
    """
    match = re.fullmatch(r"(?:models:/)?([^/:@]+)(?:@([A-Za-z0-9_.-]+)|/([0-9]+))", text)
    if not match:
        raise PromotionError(f"{text}: names no model; {FORMS}.")
    return Reference(match[1], match[2] or "", match[3] or "")


def name_of(text: str) -> str:
    """The name of a registered model, for commands about all its versions.

    Raises: PromotionError for any other text, such as the folder of a trained model.
    """
    match = re.fullmatch(r"(?:models:/)?([^/:@]+)(?:@[A-Za-z0-9_.-]+|/[0-9]+)?/?", text)
    if not match:
        raise PromotionError(f"{text or repr(text)}: not the name of a registered model; give it without a folder, like digits.")
    return match[1]


def folder_of(text: str) -> Path | None:
    """The folder of a model that was trained here; None if the text names a registered model.

    `digits@champion` and `digits/3` always mean the registry. For a folder of that name, write `./digits/3`.

    Raises: PromotionError for a folder without a model.
    """
    if not text.strip():
        raise PromotionError(f"no model is named; {FORMS}.")
    if re.fullmatch(r"[a-z]+:/.*|[^/:]+(@[A-Za-z0-9_.-]+|/[0-9]+)", text):
        return None
    folder = Path(text).expanduser()
    if (folder / CONFIG).is_file() or (folder.with_name(folder.name + ".old") / CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise PromotionError(f"{text}: a folder without a model; `vit-search train FILE` makes one.")
    if "/" in text.rstrip("/"):
        if not folder.parent.is_dir() and text.count("/") == 1:
            raise PromotionError(f"{text}: no such folder, and no version: that is a number, as in digits/3. An alias stands behind @.")
        folders = sorted(str(path.parent) for path in folder.parent.glob(f"*/{CONFIG}"))
        mend = nearest(str(folder), folders) if folders else "`vit-search train FILE` makes one."
        raise PromotionError(f"{text}: no such folder; {mend}")
    return None


def check_known(uri: str, text: str) -> None:
    """Reject a model that a SQLite registry does not have. If this is unclear, do nothing.

    It does not import MLflow, because that takes seconds.

    Args:
        uri: of the registry. text: a name, or a name with an alias or a version.
    Raises: PromotionError that names the nearest known model.
    """
    try:
        name = parse(text).name
    except PromotionError:
        if not re.fullmatch(r"[^/:@]+", text):
            return
        name = text
    from vit_search.tracking.uris import names_in

    names = names_in(uri)
    if names is None or any(one == name or one.startswith(f"{name} (") for one in names):  # the latter is its lock, for `repair`
        return
    models = sorted(one for one in names if re.fullmatch(r"[A-Za-z0-9._-]+", one))  # most of the others are locks
    mend = nearest(name, models) if models else "none is registered yet: `vit-search promote` makes one."
    raise PromotionError(f"{text}: no registered model {'of this name' if name == text else f'named {name}'}; {mend}")


def find_version(client: Any, text: str) -> Any:
    """Find a version in the registry, an object of MLflow.

    Raises: PromotionError that names the nearest known model, alias or version.
    """
    from mlflow.exceptions import MlflowException

    from vit_search.tracking.mlflow_client import in_short

    try:
        reference = parse(text)
    except PromotionError:
        if re.fullmatch(r"[^/:@]+", text):
            raise PromotionError(f"{text}: names no version; {_forms_of(client, text)}") from None
        raise
    try:
        if reference.alias:
            return client.get_model_version_by_alias(reference.name, reference.alias)
        return client.get_model_version(reference.name, reference.version)
    except MlflowException as error:
        if error.error_code not in GONE:
            raise PromotionError(f"{text}: the registry does not tell ({in_short(error)}); try again.") from None
        raise PromotionError(f"{text}: {missing(client, reference)}") from None


def missing(client: Any, reference: Reference) -> str:
    """Why the registry has no such version, and the nearest one that it has."""
    name, models = reference.name, _models(client)
    model = models.get(name)
    if model is None:
        mend = nearest(name, sorted(models)) if models else "none is registered yet: `vit-search promote` makes one."
        return f"no registered model named {name}; {mend}"
    if reference.alias:
        aliases = sorted(model.aliases)
        mend = nearest(reference.alias, aliases) if aliases else f"name a version, like {name}/1."
        return f"{name} has no alias {reference.alias}; {mend}"
    versions = sorted((str(one.version) for one in client.search_model_versions(f"name = '{name}'")), key=int)
    return f"{name} has no version {reference.version}; there are {', '.join(versions[-20:]) or 'none'}."


def _forms_of(client: Any, name: str) -> str:
    """How to name a version of a model, for a person who gave only the model's name."""
    models = _models(client)
    if name not in models:
        return nearest(name, sorted(models)) if models else f"{FORMS}."
    return f"write {name}@{next(iter(sorted(models[name].aliases)), 'champion')}, or {name}/1 for one version."


def _models(client: Any) -> dict[str, Any]:
    from vit_search.registry.lock import is_lock

    return {model.name: model for model in client.search_registered_models(max_results=1000) if not is_lock(model.name)}
