"""Where MLflow's artifacts lie when its store is a SQLite file: in `mlartifacts` beside it, and they are found there again after a move.

MLflow writes the full path of each run's artifacts into its database, so a project that is renamed, moved or copied would look for
them in its old place, or create that place again. Whoever opens the database looks first: where the artifacts lie beside it and its paths
name another folder, the paths are changed, all of them in one transaction.
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
"""Tables and columns in which MLflow 3 keeps full paths."""


def artifacts_folder(database: Path, experiment: str) -> Path:
    """Where the artifacts of a new experiment go."""
    return database.resolve().parent / FOLDER / experiment


def make_artifacts_folder(database: Path, experiment: str) -> Path:
    """`artifacts_folder`, below a folder that is closed to other accounts where it is new, as searches are."""
    folder = artifacts_folder(database, experiment)
    with contextlib.suppress(OSError):  # MLflow says what is wrong
        folder.parent.mkdir(mode=0o700, exist_ok=True)
    return folder


def find_again(database: Path) -> Path | None:
    """Have a database name the artifacts beside it, after its project was moved or copied.

    Returns: the folder that it named until now; None where nothing was changed.
    Raises: sqlite3.Error when it cannot be changed.
    """
    home = artifacts_folder(database, "x").parent
    with contextlib.closing(sqlite3.connect(database, timeout=20, isolation_level=None)) as opened:
        for old in _named(opened, home):
            if any((home / rest).exists() for rest in _below(opened, old)):
                _rename(opened, old, f"{home.as_uri()}/")
                return path_of(old)
    return None


def is_mlflows(database: Path) -> bool:
    """Whether a SQLite file has MLflow's tables. Opened to be read alone, so that none are made.

    Raises: sqlite3.Error when it cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", timeout=20, uri=True)) as opened:
        return opened.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'").fetchone() is not None


def addresses(database: Path) -> set[str]:
    """Where artifacts are said to lie that lie in no folder of this machine.

    Raises: sqlite3.Error when it cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", timeout=20, uri=True)) as opened:
        return {
            text
            for table, column in PATHS
            for (text,) in opened.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE '%:%'")  # noqa: S608 -- names of ours
            if not text.startswith("file:")
        }


def missing(database: Path, location: str) -> Path | None:
    """The folder in which an experiment's artifacts are said to lie, where it is not beside the database and not there at all.

    MLflow would create it again.
    """
    folder = path_of(location)
    expected = folder is None or folder.exists() or folder.is_relative_to(database.resolve().parent)
    return None if expected else folder


def path_of(uri: str) -> Path | None:
    """The local path that a URI of MLflow's names; None where it names none."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _named(opened: sqlite3.Connection, home: Path) -> list[str]:
    """The folders `…/mlartifacts/` other than ours in which experiments lie, as the database spells them."""
    marked = opened.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE ?", (f"%/{FOLDER}/%",))
    before = {text[: text.rindex(f"/{FOLDER}/")] + f"/{FOLDER}/" for (text,) in marked}
    return sorted(text for text in before if (folder := path_of(text)) is not None and folder.resolve() != home)


def _below(opened: sqlite3.Connection, old: str) -> Iterator[Path]:
    """Where runs and logged models lie below a folder, relative to it: names that no two stores share."""
    for table in ("runs.artifact_uri", "logged_models.artifact_location"):
        name, _, column = table.partition(".")
        for (uri,) in opened.execute(f"SELECT {column} FROM {name} WHERE substr({column}, 1, ?) = ?", (len(old), old)):  # noqa: S608 -- ours
            yield Path(unquote(uri[len(old) :]))


def _rename(opened: sqlite3.Connection, old: str, new: str) -> None:
    opened.execute("BEGIN IMMEDIATE")
    for table, column in PATHS:
        opened.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608 -- names of ours
            (new, len(old) + 1, len(old), old),
        )
    opened.execute("COMMIT")
