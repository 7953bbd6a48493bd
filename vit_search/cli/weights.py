"""The commands about pretrained weights: `weights` shows what they are; `convert-weights` turns files of torch.save into .safetensors."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_search.cli.app import Tracking, app, err, out
from vit_search.cli.terminal import escaped
from vit_search.config.backbone import Backbone, read_backbone, used_tensors
from vit_search.data.finite_weights import check_finite

if TYPE_CHECKING:
    from vit_search.data.weight_files import WeightFile


@app.command()
def weights(
    source: Annotated[
        str,
        typer.Argument(
            help="A .safetensors file, a URL, models:/NAME@ALIAS, timm:NAME or hf:ORG/REPO[@REVISION].",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
    download: Annotated[bool, typer.Option("--download", help="Fetch the weights from Hugging Face if they are missing.")] = False,
    tracking_uri: Tracking = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the shape and the source of pretrained weights.

    It reads weights of vit_search, timm, torchvision and transformers, with the config.json beside them. The line Pinned is the source with
    its revision and its sha256: it always means the same weights.
    """
    from vit_search.data.weight_files import local_file
    from vit_search.registry.weight_versions import Versions

    found = local_file(source, download=download, registry=Versions(tracking_uri), key="SOURCE")
    with found.naming_source():
        backbone = read_backbone(found.path)
        check_finite(found.path, used_tensors(found.path))
    backbone = replace(backbone, licence=found.origin.licence or backbone.licence)
    if as_json:
        about = {"source": found.origin.source, "revision": found.origin.revision, "sha256": found.sha256, "pinned": found.pinned}
        sys.stdout.write(json.dumps(about | {"path": str(found.path)} | asdict(backbone), indent=1) + "\n")
        return
    _print_facts(backbone)
    for line in origin_lines(found):
        out.print(escaped(line), soft_wrap=True)


@app.command(name="convert-weights")
def convert_weights(
    source: Annotated[Path, typer.Argument(help="A .pth or .bin file, as torch.save writes it.", metavar="FILE")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.", metavar="OUT")],
) -> None:
    """Convert a .pth or .bin file to a .safetensors file.

    Such a file is a pickle, which can hold programs. It is read in a process of its own, which accepts only tensors and plain values.
    """
    from vit_search.vit.pickled_weights import convert

    with err.status("reading the weights …"):
        backbone = convert(source, target)
    _print_facts(backbone)
    out.print(f"Written: {escaped(str(target))}", soft_wrap=True)


def _print_facts(backbone: Backbone) -> None:
    for line in facts(backbone):
        out.print(escaped(line), soft_wrap=True)


def facts(backbone: Backbone) -> list[str]:
    """A few lines on what a backbone is."""
    b = backbone
    size = "any image size" if b.image_size is None else f"images of {b.image_size[0]}x{b.image_size[1]} pixels"
    parts = [f"{b.registers} registers" if b.registers else "", "LayerScale" if b.layer_scale else "", "qk_norm" if b.qk_norm else ""]
    model = f"dim {b.dim}, depth {b.depth}, heads {b.heads} of {b.dim_head}, mlp_dim {b.mlp_dim}, patch_size {b.patch_size}"
    choices = ", ".join([f"pool {b.pool}", f"positions {b.positions}", f"activation {b.activation}", *filter(None, parts)])
    classes = f"{b.num_classes} classes{'' if b.classes else ' without names'}" if b.num_classes else "no head"
    lines = [f"Layout:  {b.layout}: {model}", f"Model:   {choices}; {classes}", f"Images:  {size}, {b.in_channels} channels"]
    if b.mean and b.std:
        lines[-1] += f", mean {_numbers(b.mean)}, std {_numbers(b.std)}"
    if b.interpolation:
        lines[-1] += f", {b.interpolation}"
    lines += [f"Licence: {b.licence or 'not stated'}"]
    lines += [f"Assumed: {assumption}." for assumption in b.assumed]
    return lines


def origin_lines(found: WeightFile) -> list[str]:
    """A few lines on where weights come from."""
    where = [f"Source:  {found.origin.source}", *([f"Commit:  {found.origin.revision}"] if len(found.origin.revision) == 40 else [])]
    where += [f"Version: {found.origin.revision}"] if found.origin.revision and len(found.origin.revision) != 40 else []
    where += [f"File:    {found.path}"] if str(found.path) != found.origin.source else []
    return [*where, f"SHA-256: {found.sha256}", f"Pinned:  {found.pinned}"]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
