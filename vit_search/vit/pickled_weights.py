"""Convert a file of torch.save to a `.safetensors` file. A separate process reads it, and may create only tensors and plain values.

A pickle is a program. With `weights_only=True`, torch runs only the parts that build tensors, lists and mappings. The process is limited
all the same: in memory, to a few times the size of the file, and in processor time. Only that process imports torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_search.config.backbone import Backbone, read_backbone
from vit_search.config.backbone_settings import FILES, LONGEST
from vit_search.config.safetensors_header import PICKLES
from vit_search.errors import CheckpointError
from vit_search.text import file_name, last_line, one_line

WRAPPERS = ("model", "state_dict", "model_state_dict", "teacher", "module")
"""Keys under which training programs store the weights. The first one found is used."""

PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
"""Prefixes that wrappers add to all names: DataParallel, torch.compile, DINO, Lightning."""

WALL_S = 3600
"""Time limit of the process in seconds. It ends waits that take no processor time, for example for a file on a network."""

REFUSED = 2
"""Exit code of the process if its output is one line for the user."""


def convert(source: Path, target: Path) -> Backbone:
    """Write the weights of a `.pth` or `.bin` file as a `.safetensors` file, and return the facts about them.

    The texts of a config.json and a preprocessor_config.json beside `source` go into the metadata of `target`.

    Raises: CheckpointError in one line; nothing is then written.
    """
    here, there = file_name(str(source)), file_name(str(target))
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{there}: give a name that ends with .safetensors.")
    if target.exists():
        raise CheckpointError(f"{there}: a file is there already; give another name.")
    _check_source(source, here)
    fresh = target.with_name(f"{target.name}.{uuid.uuid4().hex}.new")
    try:
        _convert_apart(source, fresh, here)
        backbone = _facts(fresh, here)
        fresh.chmod(0o666 & ~_umask())
        fresh.rename(target)
    except OSError as error:
        raise CheckpointError(f"{there}: cannot be written ({error.strerror or error}); give another name.") from None
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return backbone


def _check_source(source: Path, here: str) -> None:
    try:
        with source.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{here}: cannot be read ({error.strerror or error}); name a file of torch.save.") from None
    if start[6:8] == b"\0\0" and not start.startswith(PICKLES):  # the length of a header
        raise CheckpointError(f"{here}: looks like a .safetensors file, which needs no conversion; try `vit-search weights {here}`.")
    if not start.startswith(PICKLES):
        raise CheckpointError(f"{here}: not a file of torch.save; name a .pth or .bin file with weights.")


def _convert_apart(source: Path, fresh: Path, here: str) -> None:
    """Run `main` in a separate process."""
    command = [sys.executable, "-P", "-m", __name__, str(source.resolve()), str(fresh.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=WALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{here}: not read within {WALL_S // 60} minutes; copy it to this machine.") from None
    if done.returncode == REFUSED and done.stdout:
        raise CheckpointError(f"{here}: {one_line(done.stdout)}")
    if done.returncode < 0:
        raise CheckpointError(f"{here}: takes more memory or time than weights of its size need; use another file.")
    if done.returncode:
        detail = one_line((done.stderr.strip().splitlines() or ["no message"])[-1])
        raise CheckpointError(f"{here}: cannot be converted ({detail}); use another file.")


def _facts(fresh: Path, here: str) -> Backbone:
    try:
        return read_backbone(fresh)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(file_name(str(fresh)), here, 1)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def unwrapped(values: Any) -> dict[str, Any]:
    """The tensors in a result of torch.load, without wrappers and without prefixes that all names share.

    Raises: ValueError if there are none.
    """
    import torch

    for _ in range(3):
        inside = next((values[key] for key in WRAPPERS if isinstance(values, Mapping) and isinstance(values.get(key), Mapping)), None)
        if inside is None:
            break
        values = inside
    if not isinstance(values, Mapping):
        raise ValueError(f"holds a {type(values).__name__}, not a mapping of names to tensors; save the model's state_dict().")
    tensors = {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError("holds no tensors under names; save the model's state_dict().")
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def main(source: Path, fresh: Path) -> None:
    """In the separate process: read, unwrap, write.

    Raises: ValueError whose text is one line for the user.
    """
    import torch
    from safetensors.torch import save_file

    _bound(source.stat().st_size)
    try:
        values = torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError:
        raise ValueError("takes more memory than weights of its size need; use another file.") from None
    except Exception as error:  # the file may come from a stranger and raise anything
        raise ValueError(_reason(error)) from None
    tensors = unwrapped(values)
    strange = next((name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized), None)
    if strange is not None:
        raise ValueError(f"{strange} is sparse or quantised; save the weights as plain tensors.")
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}  # two names may share memory
    save_file(plain, fresh, metadata={"format": "pt"} | _settings_beside(source))


def _settings_beside(source: Path) -> dict[str, str]:
    files = {key: source.with_name(name) for key, name in FILES.items()}
    return {key: path.read_text(encoding="utf-8") for key, path in files.items() if path.is_file() and path.stat().st_size <= LONGEST}


def _reason(error: Exception) -> str:
    """Why torch could not read a file, in one line."""
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign:
        return (
            f"holds {foreign[1]}, which is no tensor, and nothing but tensors and plain values is read; where you trust the file, "
            "load it in Python and save the model's state_dict()."
        )
    return f"cannot be read as weights ({one_line(last_line(error))[:200]}); copy or download it again."


def _bound(size: int) -> None:
    """Limit the memory and the processor time of this process.

    Args:
        size: of the file in bytes. Reading, unwrapping and writing hold its tensors at most three times.
    """
    now = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")) * 1024
    memory = now + 4 * size + 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 120 + size // 10_000_000
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except ValueError as error:
        sys.stdout.write(str(error))
        sys.exit(REFUSED)
    except (MemoryError, RuntimeError) as error:
        sys.stdout.write(f"takes more memory than weights of its size need ({one_line(last_line(error))[:100]}); use another file.")
        sys.exit(REFUSED)
