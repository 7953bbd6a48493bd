"""Files of .safetensors made of names and shapes, and models of other libraries with weights from which every part matters."""

import json
import struct

import torch
from torch import nn

BYTES = {"F32": 4, "F16": 2, "I64": 8}


def header_of(shapes, dtype="F32", metadata=None):
    """The header of tensors that lie one after the other, and how many bytes they have."""
    header, at = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        size = BYTES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header, at


def write_file(path, shapes, dtype="F32", metadata=None):
    """A file whose tensors are zeros."""
    header, size = header_of(shapes, dtype, metadata)
    return write_header(path, json.dumps(header), size)


def write_header(path, header, size):
    """A file of a header, which is text, and `size` bytes of data."""
    path.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + bytes(size))
    return path


def randomised(model):
    """Weights from which every part of the model matters: norms, biases and scales start as ones and zeros."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def timm_shapes(*, dim=128, depth=2, hidden=256, patch=4, channels=3, tokens=17, classes=7):
    """Of timm's plain Vision Transformer."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, tokens, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, channels, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        shapes |= {f"blocks.{i}.{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"blocks.{i}.attn.qkv.weight": (3 * dim, dim), f"blocks.{i}.attn.qkv.bias": (3 * dim,)}
        shapes |= {f"blocks.{i}.attn.proj.weight": (dim, dim), f"blocks.{i}.attn.proj.bias": (dim,)}
        shapes |= {f"blocks.{i}.mlp.fc1.weight": (hidden, dim), f"blocks.{i}.mlp.fc1.bias": (hidden,)}
        shapes |= {f"blocks.{i}.mlp.fc2.weight": (dim, hidden), f"blocks.{i}.mlp.fc2.bias": (dim,)}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (classes, dim), "head.bias": (classes,)}
