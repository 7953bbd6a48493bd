"""The commands about pretrained weights: what a file is, and files of torch.save as .safetensors."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vit_search.cli.app import app, err, out
from vit_search.cli.terminal import escaped
from vit_search.config.backbone import Backbone, read_backbone


@app.command()
def weights(
    file: Annotated[Path, typer.Argument(help="A .safetensors file.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a file of pretrained weights holds.

    It reads files of vit_search, timm, torchvision and transformers, with the config.json beside them.
    """
    backbone = read_backbone(file)
    if as_json:
        sys.stdout.write(json.dumps(asdict(backbone), indent=1) + "\n")
    else:
        _print_facts(backbone)


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
    """What a backbone is, in a few lines."""
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
    lines += [f"Licence: {b.licence}"] if b.licence else []
    lines += [f"Assumed: {assumption}." for assumption in b.assumed]
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
