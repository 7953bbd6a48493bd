"""Classifies MLflow's errors: whether it helps to send the same again, and whether something is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mlflow.exceptions import MlflowException

REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "BAD_REQUEST"}
"""MLflow's error codes for which it does not help to send the same again."""


def is_refused(error: Exception) -> bool:
    """Whether MLflow will never accept this."""
    return isinstance(error, MlflowException) and error.error_code in REFUSALS


@contextlib.contextmanager
def ignore_missing() -> Iterator[None]:
    """Ignore that something to delete is missing. An earlier call may have deleted it, and its reply was lost."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
