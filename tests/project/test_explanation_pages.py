"""The pages of docs/explanation name files, functions and classes that are there."""

import re
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "vit_search"
PAGES = sorted((ROOT / "docs" / "explanation").glob("*.md"))
PATH = r"`((?:\w+/)+\w+\.(?:py|yaml)|(?:vit_search|tests|search_spaces|data|cli)/(?:\w+/)*)`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_named_is_there(page: Path):
    for name in re.findall(PATH, page.read_text()):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_function_of_a_table_is_in_the_file_beside_it(page: Path):
    for names, file in re.findall(r"^\| [^`].* \| (.+) \| `([\w/]+\.py)` \|$", page.read_text(), re.MULTILINE):
        source = (PACKAGE / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                assert re.search(rf"^ *(?:async )?(?:def|class) {part}\b|^{part} = ", source, re.MULTILINE), f"{file}: {name}"


def test_the_table_of_packages_lists_all_of_them():
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE))
    assert listed == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
