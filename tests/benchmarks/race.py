"""A search against the clock: every method of a comparison gets the same device seconds, counted by one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rounds import clock_of
from torch import nn

from vit_search.vit.evaluation import Normalisation


class Race:
    """One search against the clock: it counts device seconds, and keeps the best model of full length.

    Args:
        seconds: that the search has.
    """

    def __init__(self, seconds: float, device: torch.device) -> None:
        self.seconds, self.spent, self._clock = seconds, 0.0, clock_of(device)
        self.trials = self.full = 0
        self.climbs: list[tuple[float, float]] = []
        """Device seconds so far, and validation accuracy, of each trial of full length that was better than those before it."""
        self.best: tuple[nn.Module, Normalisation, dict[str, Any]] | None = None
        """The model, how its images are normalised, and the parameters."""

    @property
    def over(self) -> bool:
        """Whether the seconds are spent."""
        return self.spent >= self.seconds

    def timed(self, epochs: Iterator[Any]) -> Iterator[Any]:
        """The epochs of a trial, as long as there is time. What happens between them does not count."""
        while not self.over:
            began = self._clock()
            try:
                epoch = next(epochs, None)
            finally:
                self.spent += self._clock() - began
            if epoch is None or self.over:
                return
            yield epoch

    def finish(self, accuracy: float, model: nn.Module, plain: Normalisation, params: Mapping[str, Any]) -> None:
        """A trial has reached full length."""
        self.full += 1
        if not self.climbs or accuracy > self.climbs[-1][1]:
            self.climbs.append((self.spent, accuracy))
            self.best = model, plain, dict(params)
