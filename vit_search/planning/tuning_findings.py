"""Lint findings about pretrained weights and about which weights are trained: a random start, frozen parts, two learning rates for one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from vit_search.config.backbone import Backbone
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.search_file import SearchSpec
from vit_search.config.weight_sources import parse
from vit_search.data.sources import open_source
from vit_search.errors import DataError
from vit_search.planning.lint_draws import LintDraw, LintFinding
from vit_search.text import counted, in_words

FEW_IMAGES = 20_000
"""Fewer images than this are few for a ViT that starts from random weights."""

COLOURS = 3
"""Images with more channels are no photos, and public weights were not trained on such images."""


def random_start(spec: SearchSpec, images: int, channels: int) -> LintFinding | None:
    """The hint that few images of the user's own call for pretrained weights. None for other searches, and if the file decides it.

    Args:
        spec: its data set is one of the user's own, or one of known size, which gets no hint.
        images: in all splits.
    """
    known = DATA_SETS[spec.data.name].labelled is not None
    if known or "pretrained" in spec.model.model_fields_set or images >= FEW_IMAGES or channels > COLOURS:
        return None
    fact = f"not given, and {counted(images, 'image')} are few for a model that starts from random weights"
    mend = 'name pretrained weights, see docs/guides/pretrained.md, or write pretrained: "" if you want none'
    return LintFinding("hint", "model.pretrained", f"{fact}; {mend}.")


def few_images_at_random(spec: SearchSpec) -> Iterator[LintFinding]:
    """The same hint, for images that are on this machine."""
    if DATA_SETS[spec.data.name].labelled is not None:
        return
    try:
        images = len(open_source(spec.data_config).labels)
    except DataError:
        return  # they are elsewhere, e.g. on the cluster that will run the search
    hint = random_start(spec, images, spec.data_config.channel_count)
    if hint is not None:
        yield hint


def learned_from_validation(backbones: Mapping[str, Backbone], data_hash: str, validated_on: Collection[str]) -> Iterator[LintFinding]:
    """Weights that were trained on the very images that the search validates on, as those of a champion are.

    Args:
        backbones: by source. data_hash: of the search's images. validated_on: their splits.
    """
    for source, backbone in backbones.items():
        if backbone.data_hash == data_hash and set(backbone.trained_on) & set(validated_on):
            fact = f"{parse(source).unpinned} was trained on the images that this search validates on, so its scores will be too high"
            yield LintFinding(
                "warning", "model.pretrained", f"{fact}; start from weights of other images, or believe only the test of promote."
            )


def frozen_at_random(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """Parts that are not trained and start from random weights."""
    frozen = [draw for draw in valid if draw.values["tune"] != "full" and not draw.values["pretrained"]]
    if not frozen:
        return
    ways = sorted({str(draw.values["tune"]) for draw in frozen})
    fact = f"{in_words(ways)} {'leaves' if len(ways) == 1 else 'leave'} weights as they are, and these start at random"
    mend = "name pretrained weights in model.pretrained, or write tune: full"
    if spec.pretrained:
        fact = f"in {len(frozen) / len(valid):.0%} of the proposals, {fact}"
        mend = "add when: \"pretrained != ''\"" if "tune" in spec.space.searched else 'take "" out of model.pretrained'
    yield LintFinding("warning", "training.tune", f"{fact}; {mend}.")


def doubled_learning_rate(spec: SearchSpec, valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """A factor of the head's learning rate where nothing else has one."""
    name = "head_lr_factor"
    active = [draw for draw in valid if draw.values[name] != 1]
    of_head = [draw for draw in active if draw.values["tune"] == "head"]
    if of_head and len(of_head) == len(active):
        fact = "the head alone is trained, so this factor and lr are one number"
        yield LintFinding("warning", f"training.{name}", f"{fact}; drop it, and search lr.")
    elif of_head and name in spec.space.searched:
        fact = f"in {len(of_head) / len(active):.0%} of the proposals the head alone is trained, so this factor and lr are one number"
        yield LintFinding("hint", f"training.{name}", f"{fact}; add when: \"tune != 'head'\".")


def layer_scale_of_weights(valid: Sequence[LintDraw]) -> Iterator[LintFinding]:
    """A start value of LayerScale that no model takes, because the pretrained weights decide it."""
    given = [draw for draw in valid if draw.values["layer_scale"] not in (None, 1)]
    if given and all(draw.values["pretrained"] for draw in given):
        fact = "models from pretrained weights have the weights' LayerScale, or 1 if these have none, so another number has no effect"
        yield LintFinding("warning", "model.layer_scale", f"{fact}; write 1, or null for none.")


def wide_parts(spec: SearchSpec, pinned: SearchSpec, backbones: Sequence[Backbone]) -> Iterator[LintFinding]:
    """Models narrower than the backbone whose heads or MLP stay as wide as its own, because the file leaves them out.

    Args:
        spec: as the user wrote it. pinned: with the backbone's values. backbones: that its models start from.
    """
    left, least = spec.left_to_backbone, min(pinned.space.possible_values("dim"))
    backbone = next((one for one in backbones if one.dim > least), None)
    if backbone is None:
        return
    wide, mends = [], []
    if "mlp_dim" in left:
        wide.append(f"an MLP of {backbone.mlp_dim}")
        mends.append(f"mlp_ratio: {backbone.mlp_dim / backbone.dim:g}")
    if {"heads", "dim_head"} <= set(left):
        wide.append(f"{counted(backbone.heads, 'head')} of {backbone.dim_head}")
        mends.append("heads")
    if wide:
        fact = f"models of dim {least} have {' and '.join(wide)}, as the backbone, because the file does not say otherwise"
        yield LintFinding("hint", "model.dim", f"{fact}; for narrower ones, write {' and '.join(mends)}.")
