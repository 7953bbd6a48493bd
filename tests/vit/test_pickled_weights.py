"""A file of torch.save becomes .safetensors, and nothing in it is run."""

import argparse
import json
import zipfile

import pytest
import torch
from helpers.commands import vit_search
from helpers.weight_files import timm_shapes
from safetensors import safe_open

from vit_search.config.backbone import read_backbone
from vit_search.errors import CheckpointError
from vit_search.vit.pickled_weights import convert, unwrapped

WEIGHTS = {name: torch.full(shape, 0.5) for name, shape in timm_shapes().items()}


class Trap:
    """What a pickle of a stranger may do."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


@pytest.mark.parametrize(
    "wrapped",
    [
        WEIGHTS,
        {"model": WEIGHTS, "epoch": 3},
        {"state_dict": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
        {"teacher": {f"module.backbone.{name}": tensor for name, tensor in WEIGHTS.items()}},
        {"model": {"state_dict": {f"_orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()}}},
    ],
    ids=["plain", "model", "module", "backbone", "twice"],
)
def test_wrappers_and_prefixes_are_taken_off(wrapped):
    assert list(unwrapped(wrapped)) == list(WEIGHTS)


@pytest.mark.parametrize(
    ("values", "message"),
    [([1, 2], "holds a list, not a mapping of names to tensors"), ({"epoch": 3}, "holds no tensors under names")],
)
def test_what_holds_no_weights_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        unwrapped(values)


def test_the_command_writes_the_same_weights_and_says_what_they_are(tmp_path):
    source, target = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save({"model": WEIGHTS}, source)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_224", "model_args": {"num_heads": 4}}))
    done = vit_search(tmp_path, "convert-weights", source, target)
    assert "timm: dim 128, depth 2, heads 4 of 32" in done.stdout
    assert f"Written: {target}" in done.stdout
    (tmp_path / "config.json").unlink()  # its text is in the file
    assert read_backbone(target).heads == 4
    with safe_open(target, framework="pt") as file:
        assert set(file.keys()) == set(WEIGHTS)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in WEIGHTS.items())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["w.pth", "w.safetensors"]


def bad_source(case, path):
    if case == "resnet":
        torch.save({"conv1.weight": torch.zeros(2, 3, 7, 7), "bn1.num_batches_tracked": torch.tensor(3)}, path)
    elif case == "trap":
        torch.save({"model": WEIGHTS, "extra": Trap()}, path)
    elif case == "arguments":
        torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1)}, path)
    elif case == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("photo.txt", "no weights")
    elif case == "cut":
        torch.save(WEIGHTS, path)
        path.write_bytes(path.read_bytes()[:-3000])
    elif case == "text":
        path.write_text("hello world")
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("resnet", r"w\.pth: another kind of network, which has bn1\.num_batches_tracked; use"),
        ("trap", r"w\.pth: holds [\w.]*open, which is no tensor"),
        ("arguments", r"w\.pth: holds argparse\.Namespace, which is no tensor"),
        ("zip", r"w\.pth: cannot be read as weights"),
        ("cut", r"w\.pth: cannot be read as weights"),
        ("text", r"w\.pth: not a file of torch\.save"),
        ("gone", r"w\.pth: cannot be read \(No such file"),
    ],
)
def test_anything_else_is_refused_in_one_line_and_nothing_is_written(case, message, tmp_path):
    source = bad_source(case, tmp_path / "w.pth")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(source, tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert not (tmp_path / "trapped").exists()


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    """One number that claims to be 32 GiB of them."""
    torch.save({"w": torch.zeros(1).expand(2**33)}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match=r"bomb\.pth: takes more memory than weights of its size need"):
        convert(tmp_path / "bomb.pth", tmp_path / "w.safetensors")


def test_names_that_cannot_be_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"give a name that ends with \.safetensors"):
        convert(tmp_path / "w.pth", tmp_path / "w.bin")
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(CheckpointError, match="a file is there already"):
        convert(tmp_path / "w.pth", tmp_path / "there.safetensors")
