"""With their weights, our ViT gives the features of DINOv2, DINOv2 with registers and DINOv3, as transformers and timm have them."""

import re

import pytest
import timm
import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from vit_search.config.model_config import ModelConfig
from vit_search.vit.model import ViT, resized
from vit_search.vit.rope import rope_angles

SHAPE = {"in_channels": 3, "num_classes": 0, "patch_size": 4, "dim": 48, "depth": 2, "heads": 3, "pool": "cls", "layer_scale": 1.0}
THEIRS = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4, "num_channels": 3}
OF_DINOV3 = {"positions": "rope", "norm_eps": 1e-5, "registers": 4}
EXACT = 1e-8
WIDE, SQUARE = (8, 16), (16, 16)

NAMES = (  # theirs, ours: of transformers, then of timm
    (r"embeddings\.patch_embeddings\.(projection\.)?", "embed."),
    (r"embeddings\.position_embeddings$", "positions"),
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.register_tokens$", "registers"),
    (r"(encoder|model)\.layer\.(\d+)\.", r"encoder.blocks.\2."),
    (r"(layernorm|norm)\.", "encoder.norm."),
    (r"patch_embed\.proj\.", "embed."),
    (r"pos_embed$", "positions"),
    (r"reg_token$", "registers"),
    (r"blocks\.", "encoder.blocks."),
)
PARTS = (
    (r"attn\.q_norm", "attention.query_norm"),
    (r"attn\.k_norm", "attention.key_norm"),
    (r"\b(attn\.proj|attention\.o_proj)\b", "attention.projection"),
    (r"\battn\.qkv", "attention.qkv"),
    (r"\blayer_scale([12])\.lambda1|\bls([12])\.gamma|\bgamma_([12])", lambda m: f"scale{''.join(filter(None, m.groups()))}.factor"),
    (r"mlp\.(fc1_g|gate_proj)", "mlp.gate"),
    (r"mlp\.(fc1_x|fc1|up_proj)", "mlp.up"),
    (r"mlp\.(fc2|down_proj)", "mlp.down"),
)


def randomised(model):
    """Weights from which every part of the model matters: norms, biases and scales start as ones and zeros."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def loaded(peer, size, **fields):
    """Our model with a peer's weights: separate projections are joined, and a bias that the peer does not have is 0."""
    config = ModelConfig(image_size=size, **SHAPE | fields)
    model, weights = ViT(config).double().eval(), {}
    for name, weight in peer.state_dict().items():
        for pattern, ours in NAMES:
            if re.match(pattern, name):
                name = re.sub(pattern, ours, name, count=1)
                break
        for pattern, ours in PARTS:
            name = re.sub(pattern, ours, name)
        weights[name] = weight.flatten(1) if name == "embed.weight" else weight
    for i in range(config.depth):
        of, joined = f"encoder.blocks.{i}.attention", [f"{letter}_proj" for letter in "qkv"]
        if f"{of}.q_proj.weight" in weights:
            weights[f"{of}.qkv.weight"] = torch.cat([weights.pop(f"{of}.{part}.weight") for part in joined])
            nothing = torch.zeros(config.dim, dtype=torch.float64)
            weights[f"{of}.qkv.bias"] = torch.cat([weights.pop(f"{of}.{part}.bias", nothing) for part in joined])
    if config.positions == "learned" and weights["positions"].shape[1] < config.placed:  # timm has none of the class token's
        weights["positions"] = nn.functional.pad(weights["positions"], (0, 0, 1, 0))
    weights.pop("embeddings.mask_token", None)
    model.load_state_dict(weights)
    return model


def images(size):
    return torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(ours, theirs, size):
    expected = theirs(images(size))
    expected = expected if isinstance(expected, torch.Tensor) else expected.last_hidden_state
    assert expected.std() > 0.1  # not all alike
    return float((ours(images(size)) - expected).abs().max())


@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
def test_our_features_are_those_of_dinov2_in_transformers(registers, gated):
    fields = THEIRS | {"image_size": 16, "mlp_ratio": 2, "use_swiglu_ffn": gated, "attn_implementation": "sdpa"}
    peer = (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=registers, **fields))
        if registers
        else Dinov2Model(Dinov2Config(**fields))
    )
    activation = {"activation": "swiglu", "mlp_dim": 64} if gated else {"mlp_dim": 96}  # 64: two thirds of 96
    model = loaded(randomised(peer), SQUARE, registers=registers, **activation)
    assert difference(model, peer, SQUARE) <= EXACT
    if registers:  # both interpolate the positions; of the models without registers, transformers does it without antialiasing
        assert difference(resized(model, WIDE), peer, WIDE) <= EXACT


@pytest.mark.parametrize("size", [SQUARE, WIDE, (24, 20)], ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_our_features_are_those_of_dinov3_in_transformers(gated, size):
    fields = {"intermediate_size": 80, "use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu", "num_register_tokens": 4}
    peer = randomised(DINOv3ViTModel(DINOv3ViTConfig(image_size=16, **THEIRS, **fields)))
    model = loaded(peer, SQUARE, mlp_dim=80, activation="swiglu" if gated else "gelu", **OF_DINOV3)
    assert difference(resized(model, size), peer, size) <= EXACT


def timms(name, size, **fields):
    sizes = {"img_size": size, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0, "global_pool": ""}
    return randomised(timm.create_model(name, **sizes | fields))


@pytest.mark.parametrize(("name", "registers"), [("vit_small_patch14_dinov2", 0), ("vit_small_patch14_reg4_dinov2", 4)])
def test_our_features_are_those_of_dinov2_in_timm(name, registers):
    peer = timms(name, WIDE)
    assert difference(loaded(peer, WIDE, registers=registers), peer.forward_features, WIDE) <= EXACT


@pytest.mark.parametrize(
    ("name", "fields"), [("vit_small_patch16_dinov3", {}), ("vit_small_plus_patch16_dinov3", {"activation": "swiglu"})]
)
def test_our_features_are_those_of_dinov3_in_timm(name, fields, monkeypatch):
    peer = timms(name, WIDE)
    model = loaded(peer, WIDE, qkv_bias=False, **OF_DINOV3, **fields)
    assert difference(model, peer.forward_features, WIDE) <= 1e-5  # timm rounds its angles to float32 at other places
    angles = rope_angles(*model.config.grid, model.config.head_width, base=100).tile(2)
    table = torch.cat([angles.sin(), angles.cos()], dim=-1)
    monkeypatch.setattr(peer.rope, "get_embed", lambda *_, **__: table)
    assert difference(model, peer.forward_features, WIDE) <= EXACT


def test_our_query_and_key_norms_are_timms():
    peer = timms("vit_small_patch16_224", WIDE, qk_norm=True, init_values=1.0)
    assert difference(loaded(peer, WIDE, qk_norm=True), peer.forward_features, WIDE) <= EXACT
