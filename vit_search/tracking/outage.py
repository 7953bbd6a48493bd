"""What happens while MLflow does not answer: the search continues, one line reports it, and each call is repeated until it succeeds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from mlflow.exceptions import MlflowException

from vit_search.tracking.mlflow_client import in_short
from vit_search.tracking.mlflow_errors import is_refused

_log = logging.getLogger(__name__)


class GivenUpError(Exception):
    """MLflow did not answer until the end."""


class PersistentCaller:
    """Repeats calls to MLflow until they succeed. For the recorder's thread."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        """Set when nobody waits for MLflow any more."""
        self.count = 0
        """Number of successful calls. It shows whether there is progress."""
        self.outage_reported = False

    def call(self, step: Callable[..., None], *args: Any) -> None:
        """Repeat a call until MLflow answers. If MLflow refuses it for good, log that and skip it.

        Raises: GivenUpError.
        """
        pause = 1.0
        while True:
            try:
                step(*args)
                self.count += 1
                return
            except Exception as error:
                if is_refused(error):
                    of = f" of trial {args[0]}" if args and isinstance(args[0], int) else ""
                    _log.warning("MLflow refuses a record%s (%s).", of, in_short(error))
                    return
                self.report_outage(error)
                if self.given_up.wait(pause):
                    raise GivenUpError from None
                pause = min(pause * 2, 5)

    def report_outage(self, error: Exception) -> None:
        """Log the outage once, in one line."""
        if not self.outage_reported:
            self.outage_reported = True
            _log.warning("MLflow does not answer (%s); the search goes on and sends it later.", in_short(error))


def call_patiently(step: Callable[[], object], patience_s: float) -> None:
    """Repeat a call for at most `patience_s` seconds. Repeating it must be harmless.

    Raises: the last error when the time is over, or at once if repeating cannot help.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            step()
            return
        except (MlflowException, OSError) as error:
            if time.monotonic() > end or is_refused(error):
                raise
            time.sleep(1)
