"""Processes that move a champion, all at once, or with something happening to them at a chosen call of MLflow."""

import contextlib
import os
import signal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.errors import TrackingError
from vit_search.registry import lock as locking
from vit_search.registry.champion import move_champion, rollback_champion


class Cut:
    """A client of MLflow to which something happens at its k-th call, from 1; it counts them in `calls`."""

    def __init__(self, client, at=0, how=""):
        self._client, self._at, self._how = client, at, how
        self.tracking_uri, self.calls = client.tracking_uri, []

    def __getattr__(self, name):
        call = getattr(self._client, name)

        def one(*arguments, **named):
            self.calls.append(name)
            k = len(self.calls)
            if self._how == "lost, then away" and k > self._at:
                raise MlflowException("API request failed: nobody answers")
            if k != self._at:
                return call(*arguments, **named)
            if self._how == "killed before":
                os.kill(os.getpid(), signal.SIGKILL)
            if callable(self._how):
                self._how()
            result = call(*arguments, **named)
            if self._how == "killed after":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how in ("lost", "lost, then away"):
                raise MlflowException("API request failed: the answer was lost")
            return result

        return one


def promote(client, version, expected, **options):
    return move_champion(client, "digits", version, action="promote", expected=expected, by="ann", **options)


def back(client, **options):
    return rollback_champion(client, "digits", reason="worse at night", by="ben", **options)


def aliases(client):
    return {alias: str(version) for alias, version in client.get_registered_model("digits").aliases.items()}


def child(uri, what, at, how):
    """What a process does to which something happens."""
    cut = Cut(MlflowClient(uri), at, how)
    with contextlib.suppress(TrackingError):
        promote(cut, "3", "2") if what == "move" else back(cut)


def contestant(uri, worker, rounds, barrier, results):
    client = MlflowClient(uri)
    for number in range(rounds):
        barrier.wait(1800)
        expected = aliases(client).get("champion")
        barrier.wait(1800)
        version = str(1 + worker + (number % 2) * barrier.parties)  # nobody else's, and not the champion's
        try:
            promote(client, version, expected, wait_s=200)
            results.put((number, version, expected, ""))
        except Exception as error:  # the others wait for an answer, whatever it is
            results.put((number, version, expected, str(error)))


def dies_with_the_lock(uri, name="digits"):
    with locking.locked(MlflowClient(uri), name):
        os.kill(os.getpid(), signal.SIGKILL)
