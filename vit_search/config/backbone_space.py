"""Check that the models of a search space can start from the pretrained weights that they name. A sample of the space is checked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from vit_search.config.backbone import Backbone
from vit_search.config.backbone_fit import Misfit, misfits
from vit_search.config.distributions import Value
from vit_search.config.space import Space, path_of
from vit_search.config.weight_sources import parse
from vit_search.errors import SpecError

DECIDING = (
    *("pretrained", "dim", "depth", "heads", "dim_head", "mlp_dim", "mlp_ratio", "registers"),
    *("activation", "norm", "qk_norm", "norm_eps", "qkv_bias", "positions", "rope_base"),
)
"""Fields of ModelConfig that decide whether a model can start from a backbone."""

DRAWS = 500
"""Random proposals to check."""

DRAWS_OF_A_VALUE = 20
"""Random proposals to check with each value of a deciding parameter."""

MOST_VALUES = 100
"""Values of one parameter to check, at most."""


def check_space(space: Space, backbones: Mapping[str, Backbone]) -> None:
    """Reject a space if a proposal in it can be run, but does not fit the backbone that it starts from.

    Args:
        backbones: by the value of `pretrained`. Proposals with another value are not checked.
    Raises: SpecError that names each key by its path, with the largest value that was found, and says what is possible.
    """
    worst: dict[str, Misfit] = {}
    for params in _proposals(space):
        values = space.complete(params)
        backbone = backbones.get(values["pretrained"])
        if backbone is None or space.problem_so_far(values) is not None:
            continue
        name = "the pretrained weights" if len(backbones) == 1 else f"the pretrained weights {parse(values['pretrained']).unpinned}"
        for found in misfits(backbone, space.model(params), name):
            path = path_of(_written(found.key, values))
            if path not in worst or found.value > worst[path].value:
                worst[path] = found
    if worst:
        raise SpecError(" ".join(f"{path}: {found.text}" for path, found in worst.items()))


def _written(key: str, values: Mapping[str, object]) -> str:
    """The key that the user wrote for a field. A width may follow from another key."""
    if values[key] is None:
        return {"dim_head": "heads", "mlp_dim": "mlp_ratio"}.get(key, key)
    return key


def _proposals(space: Space) -> Iterator[dict[str, Value]]:
    """Random proposals: some with each value, or each end of a range, of a deciding parameter, then some of the whole space."""
    rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
    for name in DECIDING:
        if name in space.searched:
            for value in space.searched[name].ends()[:MOST_VALUES]:
                for _ in range(DRAWS_OF_A_VALUE):
                    yield space.draw(rng, {name: value})
    for _ in range(DRAWS if space.searched else 1):
        yield space.draw(rng)
