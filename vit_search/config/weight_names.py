"""How other libraries name the weights of a Vision Transformer, and our name for each. Only names and shapes are used, no tensors.

    ours                                    timm, DINOv2's own files      torchvision                 transformers
    embed.weight (dim, channels*p*p)        patch_embed.proj.weight       conv_proj.weight            embeddings.patch_embeddings.projection
    cls_token                               cls_token                     class_token                 embeddings.cls_token
    registers                               reg_token, register_tokens                                embeddings.register_tokens
    positions                               pos_embed                     encoder.pos_embedding       embeddings.position_embeddings
    encoder.blocks.N.norm1                  blocks.N.norm1                ….encoder_layer_N.ln_1      ….layernorm_before, norm1
    encoder.blocks.N.attention.qkv          blocks.N.attn.qkv             ….self_attention.in_proj_   query, key, value: concatenated
    encoder.blocks.N.attention.projection   blocks.N.attn.proj            ….self_attention.out_proj   ….attention.output.dense, o_proj
    encoder.blocks.N.attention.query_norm   blocks.N.attn.q_norm
    encoder.blocks.N.scale1.factor          blocks.N.ls1.gamma, gamma_1                               ….layer_scale1.lambda1
    encoder.blocks.N.norm2                  blocks.N.norm2                ….ln_2                      ….layernorm_after, norm2
    encoder.blocks.N.mlp.gate               ….fc1_g, first half of w12                                gate_proj, first half of weights_in
    encoder.blocks.N.mlp.up                 ….fc1, fc1_x, 2nd half of w12 ….mlp.0                     intermediate.dense, fc1, up_proj
    encoder.blocks.N.mlp.down               ….fc2, w3                     ….mlp.3                     output.dense, fc2, down_proj
    encoder.norm                            norm                          encoder.ln                  layernorm, norm
    head                                    head                          heads.head                  classifier

A convolution over patches, (dim, channels, p, p), is flattened. transformers renamed its modules in version 5, but its files kept the
names. Both are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

Names = tuple[tuple[str, str], ...]
"""(their name, ours). Theirs is a regular expression for the start of a name. Ours is empty for a weight that a classifier does not
need."""

OURS: Names = ((r"(embed\.|cls_token$|registers$|positions$|encoder\.|head\.)", r"\1"),)

TIMM: Names = (
    (r"patch_embed\.proj\.", "embed."),
    (r"pos_embed$", "positions"),
    (r"(?:reg_token|register_tokens)$", "registers"),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.blocks.\1.attention.qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.blocks.\1.attention.projection."),
    (r"blocks\.(\d+)\.attn\.q_norm\.", r"encoder.blocks.\1.attention.query_norm."),
    (r"blocks\.(\d+)\.attn\.k_norm\.", r"encoder.blocks.\1.attention.key_norm."),
    (r"blocks\.(\d+)\.mlp\.fc1_g\.", r"encoder.blocks.\1.mlp.gate."),
    (r"blocks\.(\d+)\.mlp\.fc1_x\.", r"encoder.blocks.\1.mlp.up."),
    (r"blocks\.(\d+)\.mlp\.w12\.", r"encoder.blocks.\1.mlp.gate_and_up."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"encoder.blocks.\1.mlp.up."),
    (r"blocks\.(\d+)\.mlp\.(?:fc2|w3)\.", r"encoder.blocks.\1.mlp.down."),
    (r"blocks\.(\d+)\.(?:ls([12])\.gamma|gamma_([12]))$", r"encoder.blocks.\1.scale\2\3.factor"),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.blocks.\1.norm\2."),
    (r"norm\.", "encoder.norm."),
    (r"(cls_token$|head\.)", r"\1"),
    (r"mask_token$", ""),
)

TORCHVISION: Names = (
    (r"conv_proj\.", "embed."),
    (r"class_token$", "cls_token"),
    (r"encoder\.pos_embedding$", "positions"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"encoder.blocks.\1.norm\2."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"encoder.blocks.\1.attention.qkv."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"encoder.blocks.\1.attention.projection."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"encoder.blocks.\1.mlp.up."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"encoder.blocks.\1.mlp.down."),
    (r"encoder\.ln\.", "encoder.norm."),
    (r"heads\.head\.", "head."),
)

_WITHIN = r"(?:vit\.|deit\.|dinov2\.|dinov2_with_registers\.|dinov3_vit\.)?"
"""Prefix in transformers' files if the model is a part of another one, for example of a classifier."""
_LAYER = _WITHIN + r"(?:encoder\.layer|layers|model\.layer|layer)\.(\d+)\."

TRANSFORMERS: Names = (
    (_WITHIN + r"embeddings\.patch_embeddings\.(?:projection\.)?(?=weight$|bias$)", "embed."),
    (_WITHIN + r"embeddings\.cls_token$", "cls_token"),
    (_WITHIN + r"embeddings\.register_tokens$", "registers"),
    (_WITHIN + r"embeddings\.position_embeddings$", "positions"),
    (_WITHIN + r"embeddings\.mask_token$", ""),
    (_LAYER + r"attention\.(?:attention\.(query|key|value)|(q|k|v)_proj)\.", r"encoder.blocks.\1.attention.\2\3."),
    (_LAYER + r"attention\.(?:output\.dense|o_proj)\.", r"encoder.blocks.\1.attention.projection."),
    (_LAYER + r"(?:layernorm_before|norm1)\.", r"encoder.blocks.\1.norm1."),
    (_LAYER + r"(?:layernorm_after|norm2)\.", r"encoder.blocks.\1.norm2."),
    (_LAYER + r"layer_scale([12])\.lambda1$", r"encoder.blocks.\1.scale\2.factor"),
    (_LAYER + r"mlp\.weights_in\.", r"encoder.blocks.\1.mlp.gate_and_up."),
    (_LAYER + r"mlp\.gate_proj\.", r"encoder.blocks.\1.mlp.gate."),
    (_LAYER + r"(?:intermediate\.dense|mlp\.fc1|mlp\.up_proj)\.", r"encoder.blocks.\1.mlp.up."),
    (_LAYER + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\.", r"encoder.blocks.\1.mlp.down."),
    (_WITHIN + r"(?:layernorm|norm)\.", "encoder.norm."),
    (_WITHIN + r"pooler\.", ""),
    (r"classifier\.", "head."),
)

LAYOUTS: dict[str, tuple[str, Names]] = {
    "vit_search": (r"embed\.weight$", OURS),
    "timm": (r"patch_embed\.proj\.weight$", TIMM),
    "torchvision": (r"conv_proj\.weight$", TORCHVISION),
    "transformers": (_WITHIN + r"embeddings\.patch_embeddings\.(?:projection\.)?weight$", TRANSFORMERS),
}
"""For each layout: the pattern of the weight that identifies it, and its names."""

SUPPORTED = "use a plain Vision Transformer of timm, torchvision, transformers (ViT, DINOv2, DINOv3) or vit_search"


@dataclass(frozen=True)
class Source:
    """A tensor of the file, or half of it, that becomes one of our weights or a part of one."""

    name: str
    half: int | None = None
    """0 or 1 if only this half of the first axis is used."""
    zeros: bool = False
    """Whether zeros of its shape are used: the layer has no bias, so the file leaves it out."""


@dataclass(frozen=True)
class Assembly:
    """Which tensors of a file become which of our weights."""

    layout: str
    sources: dict[str, tuple[Source, ...]]
    """By our name: the sources that are concatenated along the first axis."""
    left_out: tuple[str, ...]
    """Tensors of the file that a classifier does not need."""


def assemble(shapes: Mapping[str, tuple[int, ...]]) -> Assembly:
    """Find the layout of a file, and what each of its tensors becomes.

    Args:
        shapes: of the file's tensors, by their names in the file.
    Raises: ValueError that names the first tensor without a counterpart.
    """
    layout = layout_of(shapes)
    found: dict[str, str] = {}
    left_out = []
    for theirs in shapes:
        ours = our_name(theirs, LAYOUTS[layout][1])
        if ours is None:
            raise ValueError(f"{theirs}: a part that our ViT does not have; {SUPPORTED}.")
        if not ours:
            left_out.append(theirs)
        elif ours in found:
            raise ValueError(f"{theirs} and {found[ours]}: both would be {ours}; {SUPPORTED}.")
        else:
            found[ours] = theirs
    return Assembly(layout, _joined(found, shapes), tuple(left_out))


def layout_of(names: Collection[str]) -> str:
    """Find the layout of a file, a key of LAYOUTS.

    Raises: ValueError that names a tensor which no layout has.
    """
    for layout, (mark, _) in LAYOUTS.items():
        if any(re.match(mark, name) for name in names):
            return layout
    strange = next((name for name in names if all(our_name(name, table) is None for _, table in LAYOUTS.values())), None)
    first = strange or next(iter(names), None)
    raise ValueError(f"another kind of network, which has {first}; {SUPPORTED}." if first else f"no weights; {SUPPORTED}.")


def our_name(theirs: str, table: Names) -> str | None:
    """Our name for a tensor: empty if a classifier does not need it, None if it has no counterpart."""
    for pattern, ours in table:
        if re.match(pattern, theirs):
            return re.sub(pattern, ours, theirs, count=1) if ours else ""
    return None


PARTS = {"query": ("query", "q"), "key": ("key", "k"), "value": ("value", "v")}
"""The three parts of `qkv`, with their names in transformers' files."""


def _joined(found: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Source, ...]]:
    """Sources of our weights: queries, keys and values are concatenated; a matrix of gate and up is split."""
    sources: dict[str, tuple[Source, ...]] = {}
    for ours, theirs in found.items():
        split = re.match(r"(.+\.attention\.)(?:query|key|value|q|k|v)\.(weight|bias)$", ours)
        if split:
            stem, kind = split[1], split[2]
            sources[f"{stem}qkv.{kind}"] = tuple(_part(found, stem, kind, part, theirs) for part in PARTS.values())
        elif ".mlp.gate_and_up." in ours or _is_packed(ours, found, shapes):
            stem, _, kind = ours.partition(".mlp.")[0], None, ours.rpartition(".")[2]
            sources[f"{stem}.mlp.gate.{kind}"], sources[f"{stem}.mlp.up.{kind}"] = (Source(theirs, 0),), (Source(theirs, 1),)
        else:
            sources[ours] = (Source(theirs),)
    return sources


def _part(found: Mapping[str, str], stem: str, kind: str, spellings: tuple[str, ...], like: str) -> Source:
    name = next((f"{stem}{spelling}.{kind}" for spelling in spellings if f"{stem}{spelling}.{kind}" in found), None)
    if name is not None:
        return Source(found[name])
    if kind == "weight":
        raise ValueError(f"{stem}{spellings[0]}.{kind}: missing beside {like}; copy or download the file again.")
    return Source(like, zeros=True)


def _is_packed(ours: str, found: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether fc1 holds gate and up. It then has twice as many outputs as fc2 has inputs."""
    stem, _, last = ours.partition(".mlp.up.")
    down = found.get(f"{stem}.mlp.down.weight")
    return bool(last) and down is not None and bool(shapes[down]) and shapes[found[ours]][:1] == (2 * shapes[down][-1],)


def assembled_shapes(assembly: Assembly, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of our weights, from the file's. A convolution over patches keeps its four axes."""
    made = {}
    for ours, sources in assembly.sources.items():
        parts = [shapes[source.name] for source in sources]
        rows = sum(part[0] if source.half is None else part[0] // 2 for part, source in zip(parts, sources, strict=True) if part)
        made[ours] = (rows, *parts[0][1:]) if parts[0] else ()
    return made
