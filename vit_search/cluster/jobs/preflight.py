"""Judges the facts that were measured about a cluster: what is wrong, and whether a search can run there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vit_search.cluster.jobs.cluster_facts import Facts, own_versions
from vit_search.config.search_file import SearchSpec
from vit_search.errors import ClusterError
from vit_search.runtime.ray_session import Shape
from vit_search.text import counted

SKEW_WARNED_S, SKEW_REFUSED_S = 2.0, 300.0
"""Limits for clock differences. MLflow's pages sort by time. Beyond five minutes, object stores and TLS refuse signed requests."""

KEPT_EVERY_S = 60.0
"""Maximum age of the keeper's last check. A keeper checks more often."""


@dataclass(frozen=True)
class PreflightFinding:
    """One error or warning about a cluster."""

    severity: Literal["error", "warning"]
    text: str


def findings(facts: Facts, spec: SearchSpec | None = None, versions: Mapping[str, str] | None = None) -> list[PreflightFinding]:
    """What is wrong with a cluster, errors first.

    Args:
        spec: a search that should run there.
        versions: of the machine that submits; this one's by default.
    """
    findings_of_all = list(_findings(facts, spec, own_versions() if versions is None else versions))
    return sorted(findings_of_all, key=lambda finding: finding.severity != "error")


def _findings(facts: Facts, spec: SearchSpec | None, versions: Mapping[str, str]) -> Iterator[PreflightFinding]:
    def error(text: str) -> PreflightFinding:
        return PreflightFinding("error", text)

    head = facts.head
    if not head.trouble and (unlike := _unlike(versions, head.versions)):
        yield error(f"versions differ: {unlike('here', 'on the cluster')}; install the same ones on both, e.g. from requirements.lock.")
    for node in facts.nodes:
        if node.trouble:
            yield error(f"{node.name}: {node.trouble}")
            continue
        if not head.trouble and (unlike := _unlike(head.versions, node.versions)):
            yield error(f"{node.name}: versions differ: {unlike('on the head', 'there')}; install the head's on every node.")
        for what in (node.storage, node.cache):
            if what:
                yield error(f"{node.name}: {what}")
        if node.data:
            yield PreflightFinding("error" if node.head else "warning", f"{node.name}: {node.data}")
        off = abs(node.skew_s) - node.skew_error_s
        if off > SKEW_WARNED_S:
            way = "ahead of" if node.skew_s > 0 else "behind"
            text = f"{node.name}: its clock is {abs(node.skew_s):.1f} s {way} the head's; start chrony or ntpd there."
            yield PreflightFinding("error" if off > SKEW_REFUSED_S else "warning", text)
    for what in facts.weights:
        yield error(f"{head.name}: {what}")
    if facts.mlflow_problem:
        yield error(f"MLflow, from the head: {facts.mlflow_problem}")
    elif facts.mlflow.startswith("sqlite:"):
        yield PreflightFinding(
            "warning",
            f"MLflow: records go to {facts.mlflow}; good enough for a test. For real use, set MLFLOW_TRACKING_URI on the head.",
        )
    if facts.kept_s is None or facts.kept_s > KEPT_EVERY_S:
        seen = "no keeper runs" if facts.kept_s is None else f"the keeper has been silent for {facts.kept_s:,.0f} s"
        mend = "on the head, run `vit-search cluster head`, or `vit-search cluster keep` for the keeper alone"
        text = f"{seen}, so nobody restarts a search whose job is killed; {mend}."
        yield PreflightFinding("warning", text)
    shapes = [Shape(node.name, node.cpus, node.gpus) for node in facts.nodes] + facts.types
    if spec is not None:
        if problem := lacks(spec, shapes):
            yield error(problem)
    elif not any(shape.cpus >= 1 for shape in shapes):
        yield error("no node has a CPU for trials, and no node type of an autoscaler will; add a worker.")


def lacks(spec: SearchSpec, shapes: list[Shape]) -> str:
    """Why no node can ever be large enough for one trial; empty if a node is, or if one may be added."""
    cpus, gpus = spec.resources.least
    if any(shape.cpus >= cpus and shape.gpus >= gpus for shape in shapes):
        return ""
    largest = ", ".join(f"{shape.name} {counted(shape.cpus, 'CPU')} and {counted(shape.gpus, 'GPU')}" for shape in _largest(shapes))
    return (
        f"resources: a trial asks for {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}, and no node or node type has that many "
        f"(the largest: {largest or 'there is none'}); ask for less, or add a larger node."
    )


def _largest(shapes: list[Shape]) -> list[Shape]:
    """The node with the most GPUs, and the node with the most CPUs if that is another."""
    largest = [max(shapes, key=key) for key in (lambda s: (s.gpus, s.cpus), lambda s: (s.cpus, s.gpus))] if shapes else []
    return largest[:1] if largest[:1] == largest[1:] else largest


def _unlike(one: Mapping[str, str], other: Mapping[str, str]) -> Callable[[str, str], str] | None:
    """A function that lists the different versions, given names for the two places; None if all agree."""

    def plain(name: str, number: str) -> str:
        return ".".join(number.split(".")[:2]) if name == "python" else number.partition("+")[0]

    names = [name for name in one if plain(name, one[name]) != plain(name, other.get(name, "missing"))]
    if not names:
        return None
    return lambda here, there: ", ".join(f"{name} {one[name]} {here} and {other.get(name, 'missing')} {there}" for name in names)


def refusal(findings: list[PreflightFinding]) -> ClusterError | None:
    """The errors among findings as one ClusterError, or None."""
    errors = [finding.text for finding in findings if finding.severity == "error"]
    if not errors:
        return None
    more = f" ({len(errors) - 1} more: `vit-search check --address URL`)" if len(errors) > 1 else ""
    return ClusterError(errors[0] + more)
