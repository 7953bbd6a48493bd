"""Classifies image files with a registered model, or with one that was trained on this machine.

Programs use `load_classifier`: it loads a model once, to classify many times. The command line uses `predict`, whose first answer comes
sooner: importing torch takes as long as importing MLflow, so while MLflow is asked, a second process (this same file) imports torch.
No code of a registered model is run. Only its checkpoint is read, after its files were compared with the registered ones.
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
        model: a reference as in references.py, or another URI of a model in MLflow: `models:/m-…`, `runs:/…`.
        images: of any size. They are resized like the model's training images.
        say: called with a warning if no checksum of the model's files is recorded.
    Raises: PromotionError if the model cannot be loaded; DataError if a file is not an image; TrackingError.
    """
    folder = references.folder_of(model)
    if folder is not None:
        return classify(folder, images, source=model)
    with _classifier() as ask, tempfile.TemporaryDirectory() as folder_name:
        return ask(_fetched(model, Path(folder_name), tracking_uri, say), images, model)


def check_readable(path: Path) -> None:
    """Check that a file can be read.

    Raises: DataError if it is missing, a folder, or closed to this account.
    """
    try:
        path.open("rb").close()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name an image file.") from None


def classify(folder: Path, images: Sequence[Path], *, source: str) -> list[Prediction]:
    """Classify image files with the model of a checkpoint.

    Args:
        source: what the user calls the model, for error messages.
    Raises: CheckpointError; DataError.
    """
    from vit_search.vit.classifier import Classifier

    return Classifier.load(folder, name=source).predict(images)


def load_classifier(
    model: str, *, tracking_uri: str | None = None, device: str = "cpu", say: Callable[[str], None] = lambda text: None
) -> Classifier:
    """Load a model, to classify many times. Arguments and errors are those of `predict`."""
    from vit_search.vit.classifier import Classifier

    folder = references.folder_of(model)
    if folder is not None:
        return Classifier.load(folder, name=model, device=device)
    with tempfile.TemporaryDirectory() as folder_name:
        return Classifier.load(_fetched(model, Path(folder_name), tracking_uri, say), name=model, device=device)


def _fetched(model: str, folder: Path, tracking_uri: str | None, say: Callable[[str], None]) -> Path:
    """Download the checkpoint of a model from MLflow."""
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
    """Start a process that imports torch meanwhile. The function that is yielded sends it one request."""
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
    """What the second process does: read one request from standard input, write the answer or an error text as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches both processes; the first one prints the message

    import torch  # noqa: F401 -- takes long, so it happens before the request comes

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
