"""What a cluster can do, measured on it: each node writes, reads, tells its versions and its clock; and what is wrong with that."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from vit_search.runtime.ray_session import Shape, nodes_alive, session, shapes  # isort: skip  (before ray, whose settings it makes)
import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vit_search.cluster import record
from vit_search.config.search_file import SearchSpec
from vit_search.errors import ClusterError, VitSearchError
from vit_search.files import write_whole
from vit_search.text import counted

PACKAGES = ("vit_search", "ray", "torch", "mlflow", "optuna")
"""Whose versions decide what a trial computes, or whether nodes understand each other."""

ANSWER_WITHIN_S = 120.0
SEEN_WITHIN_S = 5.0
"""After which a file that another node wrote must be visible; NFS keeps what it knows of a folder for some seconds."""

SKEW_WARNED_S, SKEW_REFUSED_S = 2.0, 300.0
"""MLflow's pages sort by time; beyond five minutes object stores and TLS refuse what is signed."""


KEPT_EVERY_S = 60.0
"""A keeper looks more often than that."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a cluster."""

    name: str
    address: str
    head: bool
    cpus: float
    gpus: float
    accelerator: str
    memory: int
    """Bytes that Ray may hand out."""
    trouble: str = ""
    """Why it told nothing of itself; what follows is then unknown."""
    free_memory: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    """What is wrong with the shared storage as this node sees it."""
    cache: str = ""
    """What is wrong with the data cache."""
    data: str = ""
    """What is wrong with the images that a search file names."""
    skew_s: float = 0.0
    """How far its clock is ahead of the head's."""
    skew_error_s: float = 0.0
    """Half of the time that asking took."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was measured of a cluster."""

    storage: str
    cache: str
    mlflow: str
    """The tracking URI of drivers, without a password."""
    mlflow_problem: str
    nodes: list[Node]
    types: list[Shape]
    """What an autoscaler may add."""
    kept_s: float | None
    """Seconds since the keeper last looked after the searches; None where it never has."""
    search: dict[str, Any] | None = None
    """How a search that is in the storage stands; None where it is not."""

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Facts:
        """The inverse of `dataclasses.asdict`."""
        nodes = [Node(**node) for node in values["nodes"]]
        return Facts(**{**values, "nodes": nodes, "types": [Shape(**shape) for shape in values["types"]]})

    @property
    def head(self) -> Node:
        """The node that drivers run on."""
        return next(node for node in self.nodes if node.head)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a cluster, or odd."""

    severity: Literal["error", "warning"]
    text: str


def own_versions() -> dict[str, str]:
    """Of Python and of what a search is made of, in this process's environment."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def measure(*, data: Path | None = None, search: str | None = None) -> Facts:
    """Measure the cluster that this process is on, from its head.

    Args:
        data: the images that a search file names, as a full path.
        search: name of a search, to say how it stands.
    Raises: ClusterError where no Ray is joined, or the head names no storage.
    """
    place = record.storage()
    around = record.surroundings(place)
    cache = Path(around["VIT_SEARCH_CACHE"])
    with session("auto"):
        alive = {node["NodeID"]: node for node in nodes_alive()}
        check = f".check-{uuid.uuid4().hex[:12]}"
        places = [str(folder / check) for folder in ([place] if cache.is_relative_to(place) else [place, cache])]
        try:
            told = _ask(alive, _tell, lambda node: (places, node, str(place), str(cache), str(data) if data else ""))
            uri, mlflow_problem = _mlflow(around.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place / 'mlruns.db'}")  # while they work
            answers = {node: _answer(reference) for node, reference in told.items()}
            there = [node for node, answer in answers.items() if "trouble" not in answer and not answer["storage"] and not answer["cache"]]
            seen = {node: _answer(reference) for node, reference in _ask(there, _read, lambda node: (places, there)).items()}
            clocks = {node: _skew(node) for node, answer in answers.items() if "trouble" not in answer}
        finally:
            for folder in places:
                shutil.rmtree(folder, ignore_errors=True)
        nodes = [_node(facts, answers[node], seen.get(node, {}), clocks.get(node, {}), alive) for node, facts in alive.items()]
        types = [shape for shape in shapes() if shape.count is not None]
    return Facts(
        storage=str(place),
        cache=str(cache),
        mlflow=uri,
        mlflow_problem=mlflow_problem,
        nodes=sorted(nodes, key=lambda node: (not node.head, node.name)),
        types=types,
        kept_s=_kept(place),
        search=_search(search) if search else None,
    )


def findings(facts: Facts, spec: SearchSpec | None = None, own: Mapping[str, str] | None = None) -> list[Finding]:
    """What is wrong with a cluster, errors first.

    Args:
        spec: a search that is to run there.
        own: versions of the machine that submits; this one's by default.
    """
    found = list(_findings(facts, spec, own_versions() if own is None else own))
    return sorted(found, key=lambda finding: finding.severity != "error")


def _findings(facts: Facts, spec: SearchSpec | None, own: Mapping[str, str]) -> Iterator[Finding]:
    def error(text: str) -> Finding:
        return Finding("error", text)

    head = facts.head
    if not head.trouble and (unlike := _unlike(own, head.versions)):
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
            yield Finding("error" if node.head else "warning", f"{node.name}: {node.data}")
        off = abs(node.skew_s) - node.skew_error_s
        if off > SKEW_WARNED_S:
            way = "ahead of" if node.skew_s > 0 else "behind"
            text = f"{node.name}: its clock is {abs(node.skew_s):.1f} s {way} the head's; start chrony or ntpd there."
            yield Finding("error" if off > SKEW_REFUSED_S else "warning", text)
    if facts.mlflow_problem:
        yield error(f"MLflow, from the head: {facts.mlflow_problem}")
    elif facts.mlflow.startswith("sqlite:"):
        yield Finding(
            "warning", f"MLflow: records go to {facts.mlflow}; set MLFLOW_TRACKING_URI on the head to a server for more than a try."
        )
    if facts.kept_s is None or facts.kept_s > KEPT_EVERY_S:
        ago = "yet" if facts.kept_s is None else f"for {facts.kept_s:,.0f} s"
        text = f"no keeper has looked after the searches {ago}: one that is killed stays so; run `vit-search cluster head` on the head."
        yield Finding("warning", text)
    places = [Shape(node.name, node.cpus, node.gpus) for node in facts.nodes] + facts.types
    if spec is not None:
        if problem := lacks(spec, places):
            yield error(problem)
    elif not any(shape.cpus >= 1 for shape in places):
        yield error("no node has a CPU for trials, and no node type of an autoscaler will; add a worker.")


def lacks(spec: SearchSpec, places: list[Shape]) -> str:
    """Why no node will ever be large enough for one trial; empty where one is, or may be added."""
    cpus, gpus = spec.resources.least
    if any(shape.cpus >= cpus and shape.gpus >= gpus for shape in places):
        return ""
    largest = ", ".join(f"{shape.name} {counted(shape.cpus, 'CPU')} and {counted(shape.gpus, 'GPU')}" for shape in _largest(places))
    return (
        f"resources: a trial asks for {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}, and no node nor node type has as many "
        f"(the largest: {largest or 'there is none'}); lower it, or add such a node."
    )


def _largest(places: list[Shape]) -> list[Shape]:
    """The one with most GPUs, and the one with most CPUs where that is another."""
    found = [max(places, key=key) for key in (lambda s: (s.gpus, s.cpus), lambda s: (s.cpus, s.gpus))] if places else []
    return found[:1] if found[:1] == found[1:] else found


def _unlike(one: Mapping[str, str], other: Mapping[str, str]) -> Callable[[str, str], str] | None:
    """Which versions differ, to be told with the names of the two places; None where none does."""

    def plain(name: str, number: str) -> str:
        return ".".join(number.split(".")[:2]) if name == "python" else number.partition("+")[0]

    names = [name for name in one if plain(name, one[name]) != plain(name, other.get(name, "missing"))]
    if not names:
        return None
    return lambda here, there: ", ".join(f"{name} {one[name]} {here} and {other.get(name, 'missing')} {there}" for name in names)


def _mlflow(uri: str) -> tuple[str, str]:
    """The tracking URI without a password, and why it cannot be used."""
    from vit_search.tracking import store, uris  # MLflow's import takes seconds, in which the nodes work

    try:
        store.client_for(uri)
    except VitSearchError as error:
        return uris.public(uri), str(error)
    return uris.public(uri), ""


def _kept(place: Path) -> float | None:
    try:
        return time.time() - float((place / record.KEEPER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _search(name: str) -> dict[str, Any] | None:
    folder = record.folder_of(name)
    if not record.submitted(folder):
        return None
    return asdict(record.read(folder)) | {"driven": record.driven(folder), "state": record.state(folder).word}


def _ask(nodes: Mapping[str, Any] | list[str], work: Callable[..., Any], arguments: Callable[[str], tuple[Any, ...]]) -> dict[str, Any]:
    """Have each node do something; the references to what it answers."""
    pinned = ray.remote(num_cpus=0, max_retries=0)(work)
    return {
        node: pinned.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments(node))
        for node in nodes
    }


def _answer(reference: Any, within_s: float = ANSWER_WITHIN_S) -> dict[str, Any]:
    """What a node has answered, or its trouble."""
    try:
        answer: dict[str, Any] = ray.get(reference, timeout=within_s)
        return answer
    except ray.exceptions.GetTimeoutError:
        return {"trouble": f"it did not answer within {within_s:g} s; see whether it is overloaded, or take it away."}
    except Exception as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        return {"trouble": f"it cannot run vit_search ({last}); install the head's version of it there."}


def _node(
    facts: Mapping[str, Any], answer: dict[str, Any], seen: dict[str, Any], clock: dict[str, float], alive: Mapping[str, Any]
) -> Node:
    has = facts["Resources"]
    trouble = answer.get("trouble") or seen.get("trouble", "")
    told = {} if trouble else {key: value for key, value in answer.items() if key != "trouble"} | clock
    if not trouble and seen.get("unseen"):
        others = ", ".join(_name(alive[node]) for node in seen["unseen"])
        told["storage"] = f"{seen['where']} is not shared: what {others} wrote there is not seen; mount the same storage on every node."
    return Node(
        name=_name(facts),
        address=facts["NodeManagerAddress"],
        head="node:__internal_head__" in has,
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        accelerator=", ".join(key.partition(":")[2] for key in has if key.startswith("accelerator_type:")),
        memory=int(has.get("memory", 0)),
        trouble=trouble,
        **told,
    )


def _name(facts: Mapping[str, Any]) -> str:
    return f"{facts['NodeManagerHostname']}/{facts['NodeID'][:6]}"


def _skew(node: str) -> dict[str, float]:
    """Of the fastest of some answers: the faster, the less is unknown. The first ones pay for the start of a process."""
    best = (0.0, float("inf"))
    for _ in range(5):
        began = time.time()
        there = _answer(_ask([node], _clock, lambda _: ())[node], within_s=20)
        took = time.time() - began
        if "now" in there:
            best = min(best, (there["now"] - began - took / 2, took / 2), key=lambda pair: pair[1])
    return {"skew_s": best[0], "skew_error_s": best[1]} if best[1] < float("inf") else {}


# On each node


def _clock() -> dict[str, float]:
    return {"now": time.time()}


def _tell(places: list[str], own: str, storage: str, cache: str, data: str) -> dict[str, Any]:
    """What this node says of itself; and a file from it in each place."""
    named = os.environ.get(record.STORAGE)
    wrong = ""
    if named and named != storage:
        wrong = f"{record.STORAGE} is {named} there and {storage} on the head; set it to the same folder on every node."
    for place in places:
        wrong = wrong or _write(Path(place), own)
    lacking = data and not os.access(data, os.R_OK)
    return {
        "free_memory": psutil.virtual_memory().available,
        "versions": own_versions(),
        "storage": wrong,
        "cache": _write(Path(cache), f".check-{own}", keep=False),
        "data": f"data.path {data} is not there: a file that is submitted names paths of the cluster; put the images there."
        if lacking
        else "",
    }


def _write(folder: Path, name: str, *, keep: bool = True) -> str:
    """Put a file into a folder; why that does not work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, name)
        if not keep:
            (folder / name).unlink()
    except OSError as error:
        place = folder.parent if keep else folder
        return f"{place} cannot be written by {socket.gethostname()} ({error.strerror}); mend its mount or its mode."
    return ""


def _read(places: list[str], nodes: list[str]) -> dict[str, Any]:
    """The nodes whose files are not seen from here."""
    for place in places:
        unseen, end = list(nodes), time.monotonic() + SEEN_WITHIN_S
        while unseen and time.monotonic() < end:
            unseen = [node for node in unseen if not _holds(Path(place) / node, node)]
            if unseen:
                time.sleep(0.2)
        if unseen:
            return {"unseen": unseen, "where": str(Path(place).parent)}
    return {"unseen": []}


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def refusal(found: list[Finding]) -> ClusterError | None:
    """The errors among findings as one, or None."""
    errors = [finding.text for finding in found if finding.severity == "error"]
    if not errors:
        return None
    more = f" ({len(errors) - 1} more: `vit-search check --address URL`)" if len(errors) > 1 else ""
    return ClusterError(errors[0] + more)
