"""Every figure of docs/results says when, where and by which script it was measured."""

import re
import subprocess
from pathlib import Path

import pytest
from helpers.paths import ROOT

RESULTS = ROOT / "docs" / "results"
PAGES = sorted(path for path in RESULTS.glob("*.md") if path.name != "index.md")
INDEX = (RESULTS / "index.md").read_text()


def sections(page: Path) -> list[tuple[str, str]]:
    """The parts of a page below a heading of the second level that hold a table of figures."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    named = zip(parts[1::2], parts[2::2], strict=True)
    return [(heading, text) for heading, text in named if re.search(r"^\|.*[0-9]", text, re.MULTILINE) and heading != "How it is measured"]


SECTIONS = [(page, heading, text) for page in PAGES for heading, text in sections(page) if page.name != "reliability.md"]


@pytest.mark.parametrize(("page", "heading", "text"), SECTIONS, ids=[f"{page.stem}: {heading}" for page, heading, _ in SECTIONS])
def test_each_section_names_its_date_its_machine_and_a_script(page, heading, text):
    (measured,) = re.findall(r"^\*\*Measured\*\*.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert re.search(r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}\b", measured)
    (machine,) = set(re.findall(r"\(index\.md#([a-z0-9-]+)\)", measured))
    headings = [line.removeprefix("### ").lower().replace(" ", "-") for line in INDEX.splitlines() if line.startswith("### ")]
    assert machine in headings
    deleted = re.search(r"`([a-z_]+\.py)\b[^`]*`\s\(deleted in commit ([0-9a-f]{7}); last in commit ([0-9a-f]{7})\)", measured)
    scripts = re.findall(r"\btests/[\w/]+\.py", measured)
    assert scripts or deleted
    assert all((ROOT / script).is_file() for script in scripts)
    if deleted:
        assert not (ROOT / "tests" / "benchmarks" / deleted[1]).exists()


def test_the_deleted_script_is_in_the_commit_that_the_page_names():
    page = (RESULTS / "gpu.md").read_text()
    script, commit = re.findall(r"`([a-z_]+\.py)\b[^`]*`\s\(deleted in commit [0-9a-f]{7}; last in commit ([0-9a-f]{7})\)", page)[0]
    found = subprocess.run(["git", "cat-file", "-e", f"{commit}:tests/benchmarks/{script}"], cwd=ROOT, check=False, capture_output=True)
    if b"not a valid object name" in found.stderr.lower():
        pytest.skip("a shallow clone, which lacks the commit")
    assert found.returncode == 0, found.stderr


def test_every_fault_names_a_test_that_is_there():
    page = (RESULTS / "reliability.md").read_text()
    rows = re.findall(r"^\| .* \| (.*pytest .*|`-k .*) \|$", page, re.MULTILINE)
    assert len(rows) > 35
    for row in rows:
        for command in re.findall(r"`(?:pytest |-k )[^`]*`", row):
            files = re.findall(r"tests/[\w/]+\.py", command) or ["tests/system/test_survival.py"]
            names = re.findall(r"^def (test_\w+)", "\n".join((ROOT / file).read_text() for file in files), re.MULTILINE)
            words = re.findall(r"-k '?([\w ]+?)'?`", command)
            for word in words[0].split(" or ") if words else []:
                assert any(word in name for name in names), f"{command}: no test has {word} in its name"


def test_the_summary_links_every_page():
    assert {page.name for page in PAGES} <= set(re.findall(r"\]\(([a-z-]+\.md)", INDEX))
