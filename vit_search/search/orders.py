"""Makes a TrialOrder from the parameters of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_search.config.distributions import Value
from vit_search.config.search_file import SearchSpec
from vit_search.data.cache import DataSet
from vit_search.ledger.searches import trial_folder
from vit_search.search.components import Components
from vit_search.search.messages import TrialOrder


@dataclass(frozen=True)
class Orders:
    """Makes the orders of one search."""

    spec: SearchSpec
    folder: Path
    data: DataSet
    seeds: Sequence[int] = ()
    """For a promotion: the `seed` of each trial. Each is trained like the first trial of a search with that seed."""
    weights: Path | None = None
    """Folder of the pretrained weights, if the search has some."""

    def __call__(self, trial: int, params: Mapping[str, Value], components: Components) -> TrialOrder:
        """The order of a trial, for the current state of the search."""
        spec, number = (self.spec.model_copy(update={"seed": self.seeds[trial]}), 0) if self.seeds else (self.spec, trial)
        config = spec.trial_config(dict(params), in_channels=self.data.channels, num_classes=len(self.data.classes), trial=number)
        sharing = components.sharing
        devices = sharing.devices(trial)
        return TrialOrder(
            trial=trial,
            config=config.to_dict(),
            folder=trial_folder(self.folder.resolve(), trial),
            data=self.data,
            weights=self.weights,
            train_on=spec.train_on,
            cpus=devices.cpus,
            gpus=devices.gpus,
            threads=devices.threads,
            decoders=sharing.decoders(trial),
            halves=sharing.halves(trial),
            halvings=components.recovery.halvings(trial),
            usage=spec.system_metrics,
            latency=any(objective.metric == "latency_ms" for objective in spec.objectives),
        )
