"""Settings that make torch and MLflow refuse pickles, in this process and in those that it starts.

Importing vit_search applies them, whatever the shell's environment says. A `.pt`, a `.pt2` or a model in MLflow may come from somebody
else, and loading a pickle runs its writer's code. If your program loads its own pickles, set `VIT_SEARCH_ALLOW_PICKLE=1` before the
import.

Two kinds of pickles are still loaded: CIFAR's files, after torchvision has checked their MD5, and messages between Ray's processes.
"""

from __future__ import annotations

import os

REFUSED = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}

ALLOW = "VIT_SEARCH_ALLOW_PICKLE"


def no_pickles() -> dict[str, str]:
    """The variables to add to a process's environment; none if the user allows pickles."""
    return {} if os.environ.get(ALLOW) == "1" else dict(REFUSED)


def refuse_pickles() -> None:
    """Make this process, and those that it starts from now on, refuse pickles. torch and MLflow read the settings at each load."""
    switches = no_pickles()
    os.environ.update(switches)
    if switches:
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # with both variables set, torch would load nothing at all
