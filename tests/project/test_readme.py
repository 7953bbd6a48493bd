"""What README.md and docs/install.md show is true: the search file is read, the commands, extras and versions exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.pages import blocks, text
from helpers.paths import ROOT

from vit_search.config import search_file
from vit_search.errors import SpecError

README = text("README.md")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_your_own_images_take_ten_lines():
    (shown,) = blocks("README.md", "yaml")
    assert len(shown.splitlines()) == 10
    spec = search_file.parse(shown)
    assert spec.space.feasible_share() > 0.5
    assert set(spec.space.searched) == {"patch_size", "depth", "dim", "lr"}


def test_the_error_of_the_tutorial_is_the_one_that_is_printed():
    page = "docs/tutorials/digits.md"
    typo = (ROOT / "search_spaces/digits.yaml").read_text().replace("  depth:", "  depht:")
    with pytest.raises(SpecError) as refused:
        search_file.parse(typo, "my.yaml")
    assert re.sub(r":\d+:", ":N:", str(refused.value)) in re.sub(r":\d+:", ":N:", text(page))


def test_the_search_file_of_the_tutorial_is_the_one_that_is_shipped():
    (shown,) = blocks("docs/tutorials/digits.md", "yaml")
    assert search_file.parse(shown).model_dump() == search_file.load(ROOT / "search_spaces/digits.yaml").model_dump()


def test_every_command_named_exists_and_every_make_target_is_there():
    said = subprocess.run([str(Path(sys.executable).with_name("vit-search")), "--help"], capture_output=True, text=True, check=True).stdout
    for command in set(re.findall(r"vit-search ([a-z]+)", README)):
        assert f"  {command} " in said, command
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = README + text("docs/install.md") + text("docs/tutorials/digits.md")
    assert set(re.findall(r"\bmake ([a-z]+)(?=[ `\n])", "".join(re.findall(r"`[^`]+`|^make .*$", pages, re.MULTILINE)))) <= targets


def test_every_extra_is_explained_and_every_one_that_is_named_exists():
    extras = set(tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"])
    page = text("docs/install.md")
    assert set(re.findall(r"^\| `([a-z0-9]+)` \|", page, re.MULTILINE)) == extras
    named = re.findall(r"(?:vit_search|\.whl)\[([a-z0-9,]+)\]", README + page)
    assert named and {extra for one in named for extra in one.split(",")} <= extras


def test_the_versions_named_are_those_of_the_lock():
    lock = dict(re.findall(r"^([a-z0-9_.-]+)(?:\[[a-z,]+\])?==(\S+)", text("requirements.lock"), re.MULTILINE))
    page = text("docs/install.md")
    for name, package in {"torch": "torch", "Ray": "ray", "MLflow": "mlflow", "Optuna": "optuna"}.items():
        (version,) = re.findall(rf"^\| {name} \| ([\d.]+) \|$", page, re.MULTILINE)
        assert f"{lock[package]}.".startswith(f"{version}."), name
    wheel = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert f"vit_search-{wheel}-py3-none-any.whl" in page


def test_the_lock_is_hash_pinned_and_names_no_index():
    lock = text("requirements.lock")
    pinned = re.findall(r"^[a-z0-9_.-]+(?:\[[a-z,]+\])?==\S+", lock, re.MULTILINE)
    assert len(pinned) > 100
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock
