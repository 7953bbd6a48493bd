"""Decides which weights of a model are trained, and how fast each learns: freezing, LoRA, layer-wise learning rates.

LoRA is implemented here, because one layer class is enough. Weights keep their names, and random numbers come from the trial's seed. The
package `peft` wraps the model, renames its weights, and needs transformers and accelerate.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_search.config.training_config import TrainingConfig
from vit_search.seeds import derive_seed
from vit_search.vit.model import Encoder, ViT


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained correction of low rank: W x + (alpha / rank) B A x.

    B starts with zeros, so the layer's output is unchanged at first. Source: Hu et al. 2022, https://arxiv.org/abs/2106.09685
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        bound = layer.in_features**-0.5  # as in the authors' code and in peft
        first = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(first.to(layer.weight))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank).to(layer.weight))
        self.scale = alpha / rank

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return F.linear(tokens, self.weight, self.bias) + self.scale * F.linear(F.linear(tokens, self.lora_a), self.lora_b)

    def merged(self) -> nn.Linear:
        """A plain linear layer with the correction added to its weight."""
        out, into = self.weight.shape
        layer = nn.Linear(into, out, bias=self.bias is not None, device="meta")
        correction = product(self.lora_b.detach(), self.lora_a.detach())
        layer.weight = nn.Parameter(self.weight.detach() + self.scale * correction, requires_grad=False)
        layer.bias = self.bias
        return layer


AT_ONCE = 2**16
"""Number of values of a product that a CPU thread computes at once, so that they stay in its cache.

Measured for 4096 x 64 times 64 x 1024: 45 ms of processor time, instead of 95 ms with the whole matrix at once.
"""


def product(b: Tensor, a: Tensor) -> Tensor:
    """The matrix product B A as a sum of outer products in a fixed order. Unlike matmul, it gives the same bits on every machine.

    Args:
        b: (out, rank). a: (rank, in).
    Returns: (out, in).
    """
    total = b.new_zeros(len(b), a.shape[1])
    rows = len(b) if b.is_cuda else max(1, AT_ONCE * torch.get_num_threads() // a.shape[1])
    term = torch.empty_like(total[:rows])
    for part, columns in zip(total.split(rows), b.split(rows), strict=True):
        outer = term[: len(part)]
        for column, row in zip(columns.T, a, strict=True):
            part += torch.mul(column[:, None], row, out=outer)  # not addcmul: it rounds once instead of twice
    return total


def prepare(model: ViT, config: TrainingConfig, seed: int) -> None:
    """Freeze the weights that a config does not train, and add its LoRA layers. With tune: full, nothing changes.

    Args:
        model: with its initial weights. It is changed in place.
        seed: of the trial. It decides LoRA's random weights.
    """
    tuning = config.tuning
    if tuning.tune == "full":
        return
    assert isinstance(model.encoder, Encoder), "only the standard encoder is tuned in parts"
    depth = len(model.encoder.blocks)
    model.frozen_parts = tuning.frozen_parts(depth)
    model.requires_grad_(False)
    if model.head is not None:
        model.head.requires_grad_(True)
    if tuning.tune == "last_blocks":
        model.encoder.norm.requires_grad_(True)
        model.encoder.blocks[depth - tuning.tuned_blocks :].requires_grad_(True)
    if tuning.tune == "lora":
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora"))
        for module in list(model.encoder.blocks.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Linear) and tuning.adapts(name):
                    setattr(module, name, LoraLinear(layer, config.lora_rank, config.lora_alpha, generator))
    model.train(model.training)


def averaged(model: ViT) -> ViT:
    """Copy a model for a moving average of its weights. Frozen weights are shared, not copied."""
    frozen: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen).requires_grad_(False)


def merged(model: ViT) -> ViT:
    """The model that is served. With LoRA, it is a plain ViT with the corrections added to its weights; all other weights are shared."""
    if not has_lora(model):
        return model
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return merge(copy.deepcopy(model, shared))


def merge(model: ViT) -> ViT:
    """Turn a model into the plain one that is served, in place: add LoRA's corrections to its weights, and treat no part as frozen."""
    model.frozen_parts = 0
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, LoraLinear):
                setattr(module, name, layer.merged())
    return model


def has_lora(model: ViT) -> bool:
    """Whether a model has LoRA layers."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def beside_served(model: ViT) -> dict[str, Tensor]:
    """The weights of LoRA layers that the merged model does not have, by name: the corrections, and what they are added to."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    return {f"{name}.{part}": getattr(layer, part).detach() for name, layer in layers.items() for part in ("weight", "lora_a", "lora_b")}


def frozen_blocks(model: ViT) -> dict[str, Tensor]:
    """The weights of the blocks that are not trained, by their names in a plain model.

    They are copies of pretrained weights, so they have the same bits on every machine. The embedding and the positions are not among them:
    they may be resized.
    """
    prefix = "encoder.blocks."
    return {name: p.detach() for name, p in model.named_parameters() if name.startswith(prefix) and not p.requires_grad}


def sha256_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of weights, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def lr_factor(name: str, config: TrainingConfig, depth: int) -> float:
    """The factor by which the learning rate of a weight is multiplied.

    The head has `head_lr_factor`, the last norm 1, and the last block `layer_decay`. Each earlier block has `layer_decay` times the factor
    of the next block, and the embedding `layer_decay` times that of the first block. Source: Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254
    """
    if name.startswith("head."):
        return config.head_lr_factor
    if name.startswith("encoder.norm."):
        return 1.0
    block = int(name.split(".")[2]) if name.startswith("encoder.blocks.") else -1
    return config.layer_decay ** (depth - block)
