"""Finds MLflow's artifacts again after a project with a SQLite store was moved. They are in `mlartifacts` beside the database.

MLflow writes the full path of each run's artifacts into its database. After a project was renamed, moved or copied, MLflow would look in
the old place, or even make it again. So this is checked when the database is opened: if the artifacts are beside it, but its paths name
another folder, all paths are changed in one transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = "mlartifacts"
PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow 3 stores full paths."""


def artifacts_folder(database: Path, experiment: str) -> Path:
    """Folder for the artifacts of a new experiment."""
    return database.resolve().parent / FOLDER / experiment


def make_artifacts_folder(database: Path, experiment: str) -> Path:
    """Make the parent of `artifacts_folder`, closed to other accounts like searches. Returns `artifacts_folder`."""
    folder = artifacts_folder(database, experiment)
    with contextlib.suppress(OSError):  # MLflow reports the problem
        folder.parent.mkdir(mode=0o700, exist_ok=True)
    return folder


def find_again(database: Path) -> Path | None:
    """Change the paths in a database to the artifacts beside it, after its project was moved or copied.

    Returns: the folder that the database named before; None if nothing was changed.
    Raises: sqlite3.Error if the database cannot be changed.
    """
    home = artifacts_folder(database, "x").parent
    with contextlib.closing(sqlite3.connect(database, timeout=20, isolation_level=None)) as opened:
        for old in _named(opened, home):
            if any((home / rest).exists() for rest in _below(opened, old)):
                _rename(opened, old, f"{home.as_uri()}/")
                return path_of(old)
    return None


def is_mlflows(database: Path) -> bool:
    """Whether a SQLite file has MLflow's tables. It is opened read-only, so that no tables are made.

    Raises: sqlite3.Error if it cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", timeout=20, uri=True)) as opened:
        return opened.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'").fetchone() is not None


def addresses(database: Path) -> set[str]:
    """The artifact locations in the database that are not folders of this machine.

    Raises: sqlite3.Error if it cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", timeout=20, uri=True)) as opened:
        return {
            text
            for table, column in PATHS
            for (text,) in opened.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE '%:%'")  # noqa: S608 -- our own names
            if not text.startswith("file:")
        }


def missing(database: Path, location: str) -> Path | None:
    """The artifact folder of an experiment if it does not exist and is not beside the database; else None. MLflow would make it again."""
    folder = path_of(location)
    expected = folder is None or folder.exists() or folder.is_relative_to(database.resolve().parent)
    return None if expected else folder


def path_of(uri: str) -> Path | None:
    """The local path in one of MLflow's URIs; None if it is not local."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _named(opened: sqlite3.Connection, home: Path) -> list[str]:
    """The other folders `…/mlartifacts/` that the database names for experiments, as they are written there."""
    marked = opened.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE ?", (f"%/{FOLDER}/%",))
    before = {text[: text.rindex(f"/{FOLDER}/")] + f"/{FOLDER}/" for (text,) in marked}
    return sorted(text for text in before if (folder := path_of(text)) is not None and folder.resolve() != home)


def _below(opened: sqlite3.Connection, old: str) -> Iterator[Path]:
    """Paths of runs and logged models relative to a folder. They contain ids, so no two stores share them."""
    for table in ("runs.artifact_uri", "logged_models.artifact_location"):
        name, _, column = table.partition(".")
        for (uri,) in opened.execute(f"SELECT {column} FROM {name} WHERE substr({column}, 1, ?) = ?", (len(old), old)):  # noqa: S608 -- our own names
            yield Path(unquote(uri[len(old) :]))


def _rename(opened: sqlite3.Connection, old: str, new: str) -> None:
    opened.execute("BEGIN IMMEDIATE")
    for table, column in PATHS:
        opened.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608 -- our own names
            (new, len(old) + 1, len(old), old),
        )
    opened.execute("COMMIT")
