"""What an error of MLflow's means: whether sending the same again can help, or a thing is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mlflow.exceptions import MlflowException

REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "BAD_REQUEST"}
"""Error codes of MLflow that sending again does not mend."""


def is_refused(error: Exception) -> bool:
    """Whether MLflow refuses it for good."""
    return isinstance(error, MlflowException) and error.error_code in REFUSALS


@contextlib.contextmanager
def ignore_missing() -> Iterator[None]:
    """For removing what may be gone already: an earlier call removed it, and its answer was lost."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
