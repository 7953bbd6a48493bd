"""Which weights of a model are trained, and how fast each learns: freezing, LoRA, layer-wise learning rates.

LoRA is our own: a layer here is all that it takes, its weights keep their names, and its random numbers come from the trial's seed. The
package `peft` wraps the model and renames its weights, and needs transformers and accelerate.
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

    B starts with zeros, so the layer starts as it was. Source: Hu et al. 2022, https://arxiv.org/abs/2106.09685
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        bound = layer.in_features**-0.5  # as in the authors' code, and in peft
        first = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(first.to(layer.weight))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank).to(layer.weight))
        self.scale = alpha / rank

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return F.linear(tokens, self.weight, self.bias) + self.scale * F.linear(F.linear(tokens, self.lora_a), self.lora_b)

    def merged(self) -> nn.Linear:
        """A plain layer with the sum as its weight."""
        out, into = self.weight.shape
        layer = nn.Linear(into, out, bias=self.bias is not None, device="meta")
        correction = product(self.lora_b.detach(), self.lora_a.detach())
        layer.weight = nn.Parameter(self.weight.detach() + self.scale * correction, requires_grad=False)
        layer.bias = self.bias
        return layer


AT_ONCE = 2**16
"""Values of a product that a CPU's thread computes at once, so that they stay in its cache.

A product of 4096 x 64 and 64 x 1024 took 45 ms of processor time, and 95 ms with the whole matrix at once.
"""


def product(b: Tensor, a: Tensor) -> Tensor:
    """The matrix product B A as a sum of outer products, always in the same order. So every machine gets the same bits, unlike by a matmul.

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
            part += torch.mul(column[:, None], row, out=outer)  # not addcmul, which rounds once where this rounds twice
    return total


def prepare(model: ViT, config: TrainingConfig, seed: int) -> None:
    """Freeze what a config does not train, and add LoRA if it asks for it. With tune: full, nothing changes.

    Args:
        model: with the weights that training starts from.
        seed: of the trial. LoRA's weights come from it alone.
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
    """A copy of a model for a moving average of its weights. What is frozen is not copied: both have the same tensors."""
    frozen: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen).requires_grad_(False)


def merged(model: ViT) -> ViT:
    """The model that is served: with LoRA, a plain ViT with the corrections added to its weights. It shares all other weights."""
    if not has_lora(model):
        return model
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return merge(copy.deepcopy(model, shared))


def merge(model: ViT) -> ViT:
    """Make of a model the plain one that is served, in place: no LoRA, nothing frozen."""
    model.frozen_parts = 0
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, LoraLinear):
                setattr(module, name, layer.merged())
    return model


def has_lora(model: ViT) -> bool:
    """Whether some of its layers are LoRA's."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def beside_served(model: ViT) -> dict[str, Tensor]:
    """Weights by name that LoRA's merged model does not have: what was added, and what it was added to."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    return {f"{name}.{part}": getattr(layer, part).detach() for name, layer in layers.items() for part in ("weight", "lora_a", "lora_b")}


def frozen_blocks(model: ViT) -> dict[str, Tensor]:
    """The weights of the blocks that are not trained, by their names in a plain model.

    They are all copied from pretrained weights, which gives the same bits on every machine. The embedding and the positions may be resized.
    """
    prefix = "encoder.blocks."
    return {name: p.detach() for name, p in model.named_parameters() if name.startswith(prefix) and not p.requires_grad}


def sha256_of(weights: Mapping[str, Tensor]) -> str:
    """A digest of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def lr_factor(name: str, config: TrainingConfig, depth: int) -> float:
    """What the learning rate of a weight is multiplied by.

    The head and the last norm come last. A block is one step of `layer_decay` slower than the next one, and the embedding one step slower
    than the first block. Source: Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254
    """
    if name.startswith("head."):
        return config.head_lr_factor
    if name.startswith("encoder.norm."):
        return 1.0
    block = int(name.split(".")[2]) if name.startswith("encoder.blocks.") else -1
    return config.layer_decay ** (depth - block)
