"""The Vision Transformers that ours is measured against, each at the same configuration and with its own defaults otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rounds import installed
from torch import Tensor, nn

from vit_search.config.model_config import ModelConfig
from vit_search.vit.model import ViT


def ours(config: ModelConfig) -> nn.Module:
    """The model under test."""
    return ViT(config)


def timm(config: ModelConfig) -> nn.Module:
    """pytorch-image-models, the leanest of the peers; without a class token where ours has none."""
    from timm.models.vision_transformer import VisionTransformer

    cls = config.pool == "cls"
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_channels,
        num_classes=config.num_classes,
        global_pool="token" if cls else "avg",
        class_token=cls,
        fc_norm=False,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_width / config.dim,
    )


def torchvision(config: ModelConfig) -> nn.Module:
    """torchvision's ViT: three channels and a class token, always."""
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=config.image_size[0],
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.heads,
        hidden_dim=config.dim,
        mlp_dim=config.mlp_width,
        num_classes=config.num_classes,
    )


def vit_pytorch(config: ModelConfig) -> nn.Module:
    """lucidrains' ViT, with a class token; its SimpleViT, without one, where ours has none."""
    from vit_pytorch import SimpleViT
    from vit_pytorch import ViT as Theirs

    shape = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_classes": config.num_classes,
        "dim": config.dim,
        "depth": config.depth,
        "heads": config.heads,
        "mlp_dim": config.mlp_width,
        "channels": config.in_channels,
        "dim_head": config.head_width,
    }
    return Theirs(**shape, pool="cls") if config.pool == "cls" else SimpleViT(**shape)


def transformers(config: ModelConfig) -> nn.Module:
    """Hugging Face's ViT with scaled_dot_product_attention; it has a class token, always."""
    from transformers import ViTConfig, ViTForImageClassification

    theirs = ViTForImageClassification(
        ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.in_channels,
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            num_labels=config.num_classes,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
    )

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = theirs

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(pixel_values=images, return_dict=False)[0]

    return Logits()


class TorchEncoder(nn.Module):
    """What a competent user writes around nn.TransformerEncoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cls = config.pool == "cls"
        self.embed = nn.Conv2d(config.in_channels, config.dim, config.patch_size, config.patch_size)
        self.token = nn.Parameter(torch.zeros(1, 1, config.dim)) if self.cls else None
        self.positions = nn.Parameter(torch.randn(1, config.tokens, config.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, config.mlp_width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.depth, norm=nn.LayerNorm(config.dim), enable_nested_tensor=False)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.encoder(tokens + self.positions)
        return self.head(tokens[:, 0] if self.cls else tokens.mean(1))


def contenders(config: ModelConfig) -> dict[str, Callable[[], nn.Module]]:
    """Name to constructor of ours and of every peer that is installed and can be built at this configuration."""
    cls = config.pool == "cls"
    found: dict[str, Callable[[], nn.Module]] = {"vit_search": lambda: ours(config)}
    if installed("timm"):
        found["timm"] = lambda: timm(config)
    if cls and config.in_channels == 3:
        found["torchvision"] = lambda: torchvision(config)
    if installed("vit-pytorch"):
        found["vit-pytorch ViT" if cls else "vit-pytorch SimpleViT"] = lambda: vit_pytorch(config)
    if cls and installed("transformers"):
        found["transformers"] = lambda: transformers(config)
    found["nn.TransformerEncoder"] = lambda: TorchEncoder(config)
    return found
