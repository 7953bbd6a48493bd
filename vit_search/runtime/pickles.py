"""No model file is unpickled: the switches by which torch and MLflow refuse it, in this process and in those that it starts.

Importing vit_search throws them, whatever the shell says, since a `.pt`, a `.pt2` or a model in MLflow may be another's, and a
pickle runs what its writer pleases. `VIT_SEARCH_ALLOW_PICKLE=1`, set before the import, leaves them as they are: for a program
that loads pickles of its own beside vit_search.

Two kinds of pickles are loaded: CIFAR's files, after torchvision has compared their MD5, and what Ray's own processes send each other.
"""

from __future__ import annotations

import os

REFUSED = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}

ALLOW = "VIT_SEARCH_ALLOW_PICKLE"


def no_pickles() -> dict[str, str]:
    """What to add to a process's environment; nothing where the user allows pickles."""
    return {} if os.environ.get(ALLOW) == "1" else dict(REFUSED)


def refuse_pickles() -> None:
    """Have this process, and those that it starts from now on, load none; torch and MLflow ask whenever they load."""
    switches = no_pickles()
    os.environ.update(switches)
    if switches:
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # beside the other torch would load nothing at all
