"""A search as a program sees it: its trials as tables, and the models that its best trials have left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vit_search.config.search_file import SearchSpec
from vit_search.errors import SearchError
from vit_search.ledger import search_state, searches, trial_tables
from vit_search.ledger.trials import Trial, best_trial, ranked
from vit_search.vit import checkpoint_files

if TYPE_CHECKING:
    import pandas as pd

    from vit_search.vit.classifier import Classifier


@dataclass(frozen=True)
class Search:
    """A search as it stood when it was read, or when its driver stopped."""

    folder: Path
    """Such as `searches/digits-1`."""
    spec: SearchSpec
    """Its search file."""
    trials: list[Trial]
    """The leaderboard, best first."""

    @property
    def best(self) -> Trial | None:
        """The winner, or None while no trial has a value."""
        return best_trial(self.trials, self.spec.metric, self.spec.mode)

    def leaderboard(self) -> pd.DataFrame:
        """One row for each trial, best first: `trial`, `outcome`, `epochs`, the metric, and the searched parameters. The index is the rank.

        The columns are those of `vit-search show --csv`.
        """
        return trial_tables.leaderboard_frame(self.trials, self.spec)

    def epochs(self) -> pd.DataFrame:
        """One row for each epoch that was trained: `trial`, `epoch` and all metrics, to draw learning curves from."""
        return trial_tables.epochs_frame(self.trials)

    def classifier(self, trial: int | None = None, *, device: str = "cpu") -> Classifier:
        """The model of a trial, as it was after the trial's last epoch.

        Args:
            trial: its number; by default the best trial's.
            device: where it classifies, such as `cuda`.
        Raises: SearchError where there is no such trial, or its checkpoint is gone: a search keeps those of its best trials
            (`keep_checkpoints` of them).
        """
        if trial is None:
            if self.best is None:
                raise SearchError(f"{self.folder}: no trial has a value yet, so there is no best one.")
            trial = self.best.number
        if trial not in {one.number for one in self.trials}:
            raise SearchError(f"{self.folder}: no trial {trial}; the leaderboard lists those that there are.")
        folder = searches.trial_folder(self.folder, trial) / "checkpoint"
        if not checkpoint_files.exists(folder):
            there = ", ".join(str(one.number) for one in self.trials if self._has_model(one))
            raise SearchError(
                f"{self.folder}: trial {trial} has no checkpoint any more; those of trials {there or '(none)'} are kept. "
                "Raise keep_checkpoints in the search file to keep more."
            )
        from vit_search.vit.classifier import Classifier

        return Classifier.load(folder, name=f"{self.folder.name}, trial {trial}", device=device)

    def _has_model(self, trial: Trial) -> bool:
        return checkpoint_files.exists(searches.trial_folder(self.folder, trial.number) / "checkpoint")


def read_search(search: str | Path | None = None, output: Path = Path("searches")) -> Search:
    """A search from its folder, running or over, in this process or another one.

    Args:
        search: its name or folder; the newest by default. output: the folder of all searches.
    Raises: SearchError that names the nearest search, or says what is wrong with the folder.
    """
    folder = searches.find(output, None if search is None else str(search))
    now = search_state.read(folder)
    return Search(folder, now.spec, ranked(now.trials.values(), now.spec.metric, now.spec.mode))
