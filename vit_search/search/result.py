"""A search for Python programs: its trials as tables, and the models of its best trials.

`vit_search.run_search` and `vit_search.read_search` return a Search.
"""

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
    """A search as it was when it was read, or when its driver ended."""

    folder: Path
    """For example `searches/digits-1`."""
    spec: SearchSpec
    """Its search file."""
    trials: list[Trial]
    """The leaderboard, best first."""

    @property
    def best(self) -> Trial | None:
        """The best trial; None if no trial has a value yet."""
        return best_trial(self.trials, self.spec.metric, self.spec.mode)

    def leaderboard(self) -> pd.DataFrame:
        """One row for each trial, best first: `trial`, `outcome`, `epochs`, the metric, and the searched parameters. The index is the rank.

        The columns are those of `vit-search show --csv`.
        """
        return trial_tables.leaderboard_frame(self.trials, self.spec)

    def epochs(self) -> pd.DataFrame:
        """One row for each trained epoch: `trial`, `epoch` and all metrics, for example to draw learning curves."""
        return trial_tables.epochs_frame(self.trials)

    def classifier(self, trial: int | None = None, *, device: str = "cpu") -> Classifier:
        """The model of a trial after its last epoch.

        Args:
            trial: the trial's number; by default the best trial.
            device: where the model runs, such as `cuda`.
        Raises: SearchError if the trial does not exist, or its checkpoint was deleted: a search keeps the checkpoints of its best trials
            only (`keep_checkpoints` of them).
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
    """Read a search from its folder, whether it is running or over, in this process or another one.

    Args:
        search: its name or folder; by default the newest search.
        output: the folder of all searches.
    Raises: SearchError if there is no such search (it names the nearest one), or its folder is damaged.
    """
    folder = searches.find(output, None if search is None else str(search))
    now = search_state.read(folder)
    return Search(folder, now.spec, ranked(now.trials.values(), now.spec.metric, now.spec.mode))
