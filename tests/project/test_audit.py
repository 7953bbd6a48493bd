"""What `make audit` makes of the lock and of pip-audit's answers; and what docs/operations/security.md names is there. No network."""

import json
import re

import audit
import pytest
from helpers.paths import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
SECURITY = (ROOT / "docs/operations/security.md").read_text()


def test_the_sbom_lists_exactly_the_packages_and_hashes_of_the_lock():
    components = json.loads(audit.sbom(LOCK))["components"]
    lines = re.findall(r"^(\S+)==(\S+)(?: ; (.*?))? \\$", LOCK, re.MULTILINE)
    wanted = sorted((name, version, f"pkg:pypi/{name}@{version}") for name, version, _ in lines)
    assert sorted((part["name"], part["version"], part["purl"]) for part in components) == wanted
    assert len({part["bom-ref"] for part in components}) == len(lines) > 100
    for part, block in zip(components, re.split(r"\n(?=\S)", LOCK.strip()), strict=True):
        (files,) = part["externalReferences"]
        assert [digest["content"] for digest in files["hashes"]] == re.findall("sha256:([0-9a-f]{64})", block)
        assert part["name"] == block.partition("==")[0]


def test_the_same_lock_gives_the_same_sbom_and_it_names_no_index():
    made = audit.sbom(LOCK)
    assert made == audit.sbom(LOCK)
    assert "://" not in made
    assert json.loads(made)["serialNumber"] != json.loads(audit.sbom(LOCK.partition("\nuv==")[0]))["serialNumber"]


def test_a_pin_without_an_exact_version_or_a_hash_is_refused():
    for lock in ("torch>=2.15 \\\n    --hash=sha256:" + "a" * 64, "torch==2.15.0\n"):
        with pytest.raises(audit.AuditError, match=r"torch.*no exact version with hashes; run `make lock`"):
            audit.read_pins(lock)


PINS = [audit.Pin("numpy", "2.4.6", "", ("a",)), audit.Pin("numpy", "2.5.5", "", ("b",)), audit.Pin("pywin32", "312", "", ("c",))]
FOUND = {"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": ["2.5.6"], "description": "Reads too far.\nMore."}


def answers(**vulns):
    """As pip-audit gives them; vulns: of numpy 2.5.5."""
    return [
        {"name": "numpy", "version": "2.4.6", "vulns": []},
        {"name": "numpy", "version": "2.5.5", "vulns": [FOUND]},
        {"name": "pywin32", "version": "312", "vulns": []},
    ]


@pytest.mark.parametrize(
    ("accepted", "lines"),
    [
        ({}, ["numpy 2.5.5: GHSA-1, CVE-1: Reads too far. (fixed in 2.5.6)"]),
        ({"CVE-1": "numpy"}, []),  # by whichever of its names
        ({"GHSA-1": "scipy"}, ["numpy 2.5.5: GHSA-1, CVE-1: Reads too far. (fixed in 2.5.6)", "GHSA-1: the lock is free of it"]),
        ({"GHSA-1": "numpy", "CVE-2": "numpy"}, ["docs/operations/security.md: CVE-2: the lock is free of it; remove its row."]),
    ],
)
def test_an_advisory_is_told_unless_it_is_accepted_and_an_accepted_one_must_be_there(accepted, lines):
    told = audit.judge(PINS, answers(), accepted)
    assert len(told) == len(lines)
    for line, wanted in zip(told, lines, strict=True):
        assert wanted in line


@pytest.mark.parametrize("last", [{"name": "pywin32", "skip_reason": "not found on the index"}, None])
def test_a_pin_that_was_not_looked_up_is_no_sound_one(last):
    given = answers()[:2] + ([last] if last else [])
    with pytest.raises(audit.AuditError, match=r"1 of 3 pins were not looked up.* reason: (not found on the index|no answer)"):
        audit.judge(PINS, given, {})


def test_the_accepted_advisories_are_a_table_with_a_reason_each():
    assert audit.accepted_advisories("| CVE-1 | numpy | we read no such file |\n| a | b | c |") == {"CVE-1": "numpy"}
    with pytest.raises(audit.AuditError, match="CVE-1: give advisory, package, and why"):
        audit.accepted_advisories("| CVE-1 | numpy | |")
    names = {pin.name for pin in audit.read_pins(LOCK)}
    assert set(audit.accepted_advisories(SECURITY).values()) <= names


def test_each_test_file_and_link_that_the_security_page_names_exists():
    files = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for file, name in re.findall(r"`(test_\w+)(?:\.py)?(?:::(test_\w+))?`", SECURITY):
        assert file in files
        assert not name or any(f"def {name}(" in text for text in files.values()), name
    for link in re.findall(r"\]\(([^)#:]+)", SECURITY):
        assert (ROOT / "docs/operations" / link).exists(), link
