"""`make audit`: an SBOM of requirements.lock, then the known vulnerabilities of what it pins. The test suite does not run it.

The SBOM (CycloneDX) is made of the lock alone. Advisories are looked up by pip-audit, which uv runs apart from the project's environment.
pip-audit skips pins of other platforms, refuses two versions of one package, and passes what it could not look up. So it gets bare pins,
one version of each package at a time, and every pin must have an answer. Exit code 1: a vulnerability; 2: the audit could not be made.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
SECURITY = ROOT / "docs" / "operations" / "security.md"
SBOM = ROOT / "sbom.cdx.json"
PIP_AUDIT = "pip-audit==2.10.1"
ADVISORY = re.compile(r"(CVE|GHSA|PYSEC)-")


class AuditError(Exception):
    """Why the audit could not be made, in one line."""


@dataclass(frozen=True)
class Pin:
    """One version of a package that the lock allows; hashes: sha256 of each of its files; marker: where it is installed."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def purl(self):
        return f"pkg:pypi/{self.name}@{self.version}"


def read_pins(lock):
    """The pins in the text of a lock."""
    pins = []
    for block in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]:
        requirement = Requirement(block.partition("\n")[0].removesuffix("\\").strip())
        (exactly,) = requirement.specifier
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
        if exactly.operator != "==" or not hashes:
            raise AuditError(f"{LOCK.name}: {requirement}: no exact version with hashes; run `make lock`.")
        pins.append(Pin(canonicalize_name(requirement.name), exactly.version, str(requirement.marker or ""), hashes))
    return pins


def sbom(lock):
    """The lock's text as a CycloneDX document, without a time or an index, so that the same lock gives the same bytes."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, lock)}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "vit_search", "name": "vit_search", "version": version}},
        "components": [_component(pin) for pin in read_pins(lock)],
    }
    return json.dumps(document, indent=1) + "\n"


def _component(pin):
    files = {
        "type": "distribution",
        "url": pin.purl,
        "comment": "One hash for each file of this release. Nothing else is installed.",
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in pin.hashes],
    }
    component = {"type": "library", "bom-ref": pin.purl, "name": pin.name, "version": pin.version, "purl": pin.purl}
    where = {"properties": [{"name": "vit_search:marker", "value": pin.marker}]} if pin.marker else {}
    return component | {"externalReferences": [files]} | where


def accepted_advisories(text):
    """Package by advisory, from the table of accepted advisories in docs/operations/security.md."""
    accepted = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if ADVISORY.match(cells[0]):
            if len(cells) != 3 or not all(cells):
                raise AuditError(f"docs/operations/security.md: {cells[0]}: give advisory, package, and why it does not apply.")
            accepted[cells[0]] = cells[1]
    return accepted


def look_up(pins):
    """What pip-audit says of each pin: {name, version, vulns: [{id, aliases, fix_versions, description}]}."""
    versions = defaultdict(list)
    for pin in pins:
        versions[pin.name].append(pin.version)
    answers = []
    for turn in range(max(map(len, versions.values()))):
        answers += _pip_audit([f"{name}=={given[turn]}" for name, given in versions.items() if turn < len(given)])
    return answers


def _pip_audit(lines):
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "tool", "run", "--python", sys.executable, "--from", PIP_AUDIT, "pip-audit", "--no-deps", "--disable-pip"]
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "pinned.txt"
        pinned.write_text("\n".join(lines) + "\n")
        command += ["--progress-spinner", "off", "--format", "json", "--aliases", "on", "--desc", "on", "--requirement", pinned]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise AuditError(f"pip-audit gave no answer ({said}); see that this machine reaches the package index.") from None


def judge(pins, answers, accepted):
    """A line for each advisory that is not accepted, and for each accepted one that is not there any more."""
    answered = {(canonicalize_name(a["name"]), Version(a["version"])) for a in answers if "vulns" in a}
    missing = [pin for pin in pins if (pin.name, Version(pin.version)) not in answered]
    if missing:
        why = next((answer["skip_reason"] for answer in answers if "skip_reason" in answer), "no answer")
        raise AuditError(f"{len(missing)} of {len(pins)} pins were not looked up, so nothing is known of them. The first reason: {why}")
    problems, used = [], set()
    for answer in answers:
        for found in answer["vulns"]:
            names = [found["id"], *found["aliases"]]
            covering = {name for name in names if accepted.get(name) == canonicalize_name(answer["name"])}
            used |= covering
            if not covering:
                mend = f"fixed in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "no fixed version"
                first = (found["description"].strip().splitlines() or [""])[0]
                problems.append(f"{answer['name']} {answer['version']}: {', '.join(names)}: {first} ({mend})")
    unneeded = [name for name in accepted if name not in used]
    return problems + [f"docs/operations/security.md: {name}: the lock is free of it; remove its row." for name in unneeded]


def main():
    try:
        lock = LOCK.read_text()
        pins = read_pins(lock)
        SBOM.write_text(sbom(lock))
        print(f"{SBOM.name}: {len(pins)} packages of {LOCK.name}")
        accepted = accepted_advisories(SECURITY.read_text())
        problems = judge(pins, look_up(pins), accepted)
    except AuditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    print(f"{len(pins)} pins looked up, {len(problems)} to fix, {len(accepted)} advisories accepted in docs/operations/security.md")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
