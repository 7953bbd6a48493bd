"""Make the optimizer of a training. To add one, add a function here, and a line in MAKERS and in config/optimizers.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit_search.config.optimizers import OPTIMIZERS
from vit_search.config.tables import check_tables
from vit_search.config.training_config import TrainingConfig
from vit_search.errors import SpecError
from vit_search.vit.model import ViT, decayed
from vit_search.vit.tuning import lr_factor

Group = dict[str, Any]


def make_optimizer(model: ViT, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer that a config asks for, for the weights that need a gradient.

    Only matrices have weight decay, see `decayed`. A group has weights with the same decay and the same `lr_factor`. Training multiplies
    the learning rate of each step by this factor.
    """
    names, depth = {id(p): name for name, p in model.named_parameters()}, model.config.depth
    groups: list[Group] = []
    for weights, decay in zip(decayed(model), (config.weight_decay, 0.0), strict=True):
        by_factor: dict[float, list[nn.Parameter]] = {}
        for weight in weights:
            if weight.requires_grad:
                by_factor.setdefault(lr_factor(names[id(weight)], config, depth), []).append(weight)
        groups += [{"params": part, "weight_decay": decay, "lr_factor": factor} for factor, part in by_factor.items()]
    return MAKERS[config.optimizer](model, groups, config)


def adamw(model: ViT, groups: list[Group], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def sgd(model: ViT, groups: list[Group], config: TrainingConfig) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov's momentum."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def muon(model: ViT, groups: list[Group], config: TrainingConfig) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for the matrices of the blocks, AdamW for all other weights.

    Its steps are scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so that `lr` and `weight_decay` mean
    the same for both. If no matrix of a block is trained, it is AdamW.
    """
    hidden = {id(p) for name, p in model.named_parameters() if name.startswith("encoder.blocks.") and p.ndim == 2}
    inside, outside = _part(groups, lambda p: id(p) in hidden), _part(groups, lambda p: id(p) not in hidden)
    if not inside:  # with tune: head
        return adamw(model, outside, config)
    return Together(
        torch.optim.Muon(inside, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"),
        adamw(model, outside, config),
    )


def _part(groups: list[Group], belongs: Callable[[nn.Parameter], bool]) -> list[Group]:
    """The same groups with the weights that `belongs` accepts, without empty groups."""
    parts = [group | {"params": [p for p in group["params"] if belongs(p)]} for group in groups]
    return [part for part in parts if part["params"]]


MAKERS: dict[str, Callable[[ViT, list[Group], TrainingConfig], torch.optim.Optimizer]] = {"adamw": adamw, "sgd": sgd, "muon": muon}
"""Functions by `training.optimizer` of a search file."""

check_tables("OPTIMIZERS of vit_search/config/optimizers.py", OPTIMIZERS, "MAKERS of vit_search/vit/optimizers.py", MAKERS)


class Together(torch.optim.Optimizer):
    """Several optimizers that act as one. Each has its own weights."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in parts for group in part.param_groups]  # the parts' own groups, so that a new lr reaches them

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step with each of them."""
        for part in self.parts:
            part.step()


def state_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """The state that an optimizer keeps for a weight, which may be changed. Empty before the weight's first step."""
    state: dict[str, Tensor] = _owner(optimizer, weight).state[weight]
    return state


def fill_state(optimizer: torch.optim.Optimizer, weight: Tensor) -> None:
    """Make an optimizer's state for a weight before its first step, if it is not there.

    Raises: SpecError if the optimizer is not in FIRST_STATES.
    """
    state = state_of(optimizer, weight)
    if state:
        return
    owner = _owner(optimizer, weight)
    if type(owner) not in FIRST_STATES:
        raise SpecError(
            f"training.cuda_graphs: it needs what {type(owner).__name__} keeps before its first step; "
            f"add {type(owner).__name__} to FIRST_STATES of vit_search/vit/optimizers.py, or write cuda_graphs: false."
        )
    state |= FIRST_STATES[type(owner)](owner, weight)


def _of_adamw(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), device=weight.device)
    return {"step": step, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}


def _of_sgd(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(weight)} if optimizer.defaults["momentum"] else {}


def _of_muon(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(weight)}  # also if the momentum is 0


FIRST_STATES: dict[type[torch.optim.Optimizer], Callable[[torch.optim.Optimizer, Tensor], dict[str, Tensor]]] = {
    torch.optim.AdamW: _of_adamw,
    torch.optim.SGD: _of_sgd,
    torch.optim.Muon: _of_muon,
}
"""The state of a weight before its first step, by the optimizer's class. Only `training.cuda_graphs` needs it.

The tensors have the names, shapes, types and devices of those that the optimizer makes at its first step. Their values must not change
the training: as a rule, they are zeros."""


def _owner(optimizer: torch.optim.Optimizer, weight: Tensor) -> torch.optim.Optimizer:
    parts = optimizer.parts if isinstance(optimizer, Together) else (optimizer,)
    return next(part for part in parts if any(weight is held for group in part.param_groups for held in group["params"]))
