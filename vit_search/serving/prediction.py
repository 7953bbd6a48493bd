"""Classifies image files with a registered model, or with one that was trained here.

`load_classifier` is for programs: it loads a model once, to classify many times. `predict` is for the command line, and quicker to its
first answer. Torch takes as long to import as MLflow, so where a registry must be asked, a second process imports torch and decodes the
images meanwhile; it is this very file. No code of a registered model is run. Its checkpoint alone is read, once its files are those
that were registered.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_search.errors import DataError, PromotionError
from vit_search.registry import references
from vit_search.vit.predictions import Prediction

if TYPE_CHECKING:
    from vit_search.vit.classifier import Classifier


def predict(
    model: str, images: Sequence[Path], *, tracking_uri: str | None = None, say: Callable[[str], None] = lambda text: None
) -> list[Prediction]:
    """Classify image files.

    Args:
        model: as references.py reads it, or another URI under which MLflow has the model: `models:/m-…`, `runs:/…`.
        images: of any size; they are resized as the model's training images were.
        say: told where no record vouches for the model's files.
    Raises: PromotionError when the model cannot be loaded; DataError for a file that is no image; TrackingError.
    """
    folder = references.folder_of(model)
    if folder is not None:
        return classify(folder, images, source=model)
    with _classifier() as ask, tempfile.TemporaryDirectory() as folder_name:
        return ask(_fetched(model, Path(folder_name), tracking_uri, say), images, model)


def check_readable(path: Path) -> None:
    """Raises: DataError for a file that is missing, a folder, or closed to this account."""
    try:
        path.open("rb").close()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name an image file.") from None


def classify(folder: Path, images: Sequence[Path], *, source: str) -> list[Prediction]:
    """What the model of a checkpoint sees in image files.

    Args:
        source: what the user calls the model, for the message.
    Raises: CheckpointError; DataError.
    """
    from vit_search.vit.classifier import Classifier

    return Classifier.load(folder, name=source).predict(images)


def load_classifier(
    model: str, *, tracking_uri: str | None = None, device: str = "cpu", say: Callable[[str], None] = lambda text: None
) -> Classifier:
    """The model itself, to classify many times; arguments and errors as of `predict`."""
    from vit_search.vit.classifier import Classifier

    folder = references.folder_of(model)
    if folder is not None:
        return Classifier.load(folder, name=model, device=device)
    with tempfile.TemporaryDirectory() as folder_name:
        return Classifier.load(_fetched(model, Path(folder_name), tracking_uri, say), name=model, device=device)


def _fetched(model: str, folder: Path, tracking_uri: str | None, say: Callable[[str], None]) -> Path:
    """The checkpoint of a model that MLflow has."""
    from vit_search.registry.version_files import fetch_files, fetch_logged
    from vit_search.tracking.mlflow_client import client_for
    from vit_search.tracking.model_files import ALL
    from vit_search.tracking.uris import of_newest

    client = client_for(of_newest(tracking_uri), needs="read")
    if not model.startswith(("models:/m-", "runs:/")):
        return fetch_files(client, references.find_version(client, model), folder)
    checkpoint, covered = fetch_logged(client, model, folder)
    if covered != ALL:
        say(f"{model}: no sha256 of its files is recorded; whoever may write to MLflow's artifacts could have changed them.")
    return checkpoint


@contextlib.contextmanager
def _classifier() -> Iterator[Callable[[Path, Sequence[Path], str], list[Prediction]]]:
    """A process that has torch ready when it is asked, once."""
    command = [sys.executable, "-P", "-m", "vit_search.serving.prediction"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:

        def ask(folder: Path, images: Sequence[Path], model: str) -> list[Prediction]:
            answer, _ = process.communicate(json.dumps([str(folder), list(map(str, images)), model]))
            if process.returncode:
                raise PromotionError(f"{model}: the process that classifies ended with {process.returncode}; try fewer images at once.")
            rows = json.loads(answer)
            if isinstance(rows, str):
                raise DataError(rows)
            return [Prediction(*row) for row in rows]

        try:
            yield ask
        finally:
            if process.poll() is None:
                process.kill()


def _answer() -> None:
    """What the second process does: one question from its standard input, the answer or an error's text as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches both processes, and the first one speaks

    import torch  # noqa: F401 -- the long wait, before the question comes

    from vit_search.errors import VitSearchError

    question = sys.stdin.read()
    if not question:  # the first process has ended with an error
        return
    folder, images, model = json.loads(question)
    try:
        answer: object = [
            [prediction.image, prediction.label, prediction.probability]
            for prediction in classify(Path(folder), [Path(image) for image in images], source=model)
        ]
    except VitSearchError as error:
        answer = str(error).replace(f"{folder}/", f"{model}: ")
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _answer()
