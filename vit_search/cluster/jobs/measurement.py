"""Measures the cluster that this process belongs to. Each node writes and reads files, and reports its versions and its clock."""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vit_search.runtime.ray_session import nodes_alive, session, shapes  # isort: skip  (before ray: it makes the settings of Ray)
import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vit_search.cluster import record
from vit_search.cluster.jobs.cluster_facts import Facts, Node, own_versions
from vit_search.config.data_urls import is_remote, local_path
from vit_search.errors import VitSearchError
from vit_search.files import write_whole
from vit_search.text import last_line

ANSWER_WITHIN_S = 120.0
SEEN_WITHIN_S = 5.0
"""Time in which a file from another node must become visible. NFS caches the contents of a folder for some seconds."""


def measure(*, data: str | None = None, weights: Sequence[str] = (), search: str | None = None) -> Facts:
    """Measure the cluster that this process belongs to, from its head.

    Args:
        data: the images that a search file names, as a full path or a URL.
        weights: the files of pretrained weights that it names, as full paths. Only the driver, on the head, reads them.
        search: name of a search whose state is wanted.
    Raises: ClusterError if there is no Ray to join, or the head has no storage.
    """
    storage = record.storage()
    around = record.surroundings(storage)
    cache = Path(around["VIT_SEARCH_CACHE"])
    with session("auto"):
        alive = {node["NodeID"]: node for node in nodes_alive()}
        check = f".check-{uuid.uuid4().hex[:12]}"
        check_folders = [str(folder / check) for folder in ([storage] if cache.is_relative_to(storage) else [storage, cache])]
        try:
            references = _ask(alive, _check_node, lambda node: (check_folders, node, str(storage), str(cache), data or ""))
            uri, mlflow_problem = _mlflow(around.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage / 'mlruns.db'}")  # while the nodes work
            answers = {node: _answer(reference) for node, reference in references.items()}
            there = [node for node, answer in answers.items() if "trouble" not in answer and not answer["storage"] and not answer["cache"]]
            reads = {node: _answer(reference) for node, reference in _ask(there, _read, lambda node: (check_folders, there)).items()}
            clocks = {node: _skew(node) for node, answer in answers.items() if "trouble" not in answer}
        finally:
            for folder in check_folders:
                shutil.rmtree(folder, ignore_errors=True)
        nodes = [_node(facts, answers[node], reads.get(node, {}), clocks.get(node, {}), alive) for node, facts in alive.items()]
        types = [shape for shape in shapes() if shape.count is not None]
    return Facts(
        storage=str(storage),
        cache=str(cache),
        mlflow=uri,
        mlflow_problem=mlflow_problem,
        nodes=sorted(nodes, key=lambda node: (not node.head, node.name)),
        types=types,
        kept_s=_keeper_age_s(storage),
        weights=[_not_there("model.pretrained", path, "weights") for path in weights if not os.access(path, os.R_OK)],
        search=_search(search) if search else None,
    )


def _mlflow(uri: str) -> tuple[str, str]:
    """The tracking URI without a password, and why MLflow cannot be used (empty if it can)."""
    from vit_search.tracking import mlflow_client, uris  # importing MLflow takes seconds; the nodes work meanwhile

    try:
        mlflow_client.client_for(uri)
    except VitSearchError as error:
        return uris.public(uri), str(error)
    return uris.public(uri), ""


def _keeper_age_s(storage: Path) -> float | None:
    try:
        return time.time() - float((storage / record.KEEPER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _search(name: str) -> dict[str, Any] | None:
    folder = record.folder_of(name)
    if not record.submitted(folder):
        return None
    return asdict(record.read(folder)) | {"driven": record.driven(folder), "state": record.state(folder).word}


def _ask(nodes: Mapping[str, Any] | list[str], work: Callable[..., Any], arguments: Callable[[str], tuple[Any, ...]]) -> dict[str, Any]:
    """Run a function on each node. Returns the references to the results."""
    pinned = ray.remote(num_cpus=0, max_retries=0)(work)
    return {
        node: pinned.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments(node))
        for node in nodes
    }


def _answer(reference: Any, within_s: float = ANSWER_WITHIN_S) -> dict[str, Any]:
    """The answer of a node, or its trouble."""
    try:
        answer: dict[str, Any] = ray.get(reference, timeout=within_s)
        return answer
    except ray.exceptions.GetTimeoutError:
        return {"trouble": f"it did not answer within {within_s:g} s; see whether it is overloaded, or take it away."}
    except Exception as error:
        last = last_line(error).strip()
        return {"trouble": f"it cannot run vit_search ({last}); install the head's version of it there."}


def _node(
    facts: Mapping[str, Any], answer: dict[str, Any], read: dict[str, Any], clock: dict[str, float], alive: Mapping[str, Any]
) -> Node:
    has = facts["Resources"]
    trouble = answer.get("trouble") or read.get("trouble", "")
    facts_of_node = {} if trouble else {key: value for key, value in answer.items() if key != "trouble"} | clock
    if not trouble and read.get("unseen"):
        others = ", ".join(_name(alive[node]) for node in read["unseen"])
        facts_of_node["storage"] = (
            f"{read['where']} is not shared: what {others} wrote there is not seen; mount the same storage on every node."
        )
    return Node(
        name=_name(facts),
        address=facts["NodeManagerAddress"],
        head="node:__internal_head__" in has,
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        accelerator=", ".join(key.partition(":")[2] for key in has if key.startswith("accelerator_type:")),
        memory=int(has.get("memory", 0)),
        trouble=trouble,
        **facts_of_node,
    )


def _name(facts: Mapping[str, Any]) -> str:
    return f"{facts['NodeManagerHostname']}/{facts['NodeID'][:6]}"


def _skew(node: str) -> dict[str, float]:
    """Difference of the clocks, from the fastest of five requests, whose uncertainty is smallest. The first request starts a process."""
    best = (0.0, float("inf"))
    for _ in range(5):
        began = time.time()
        there = _answer(_ask([node], _clock, lambda _: ())[node], within_s=20)
        took = time.time() - began
        if "now" in there:
            best = min(best, (there["now"] - began - took / 2, took / 2), key=lambda pair: pair[1])
    return {"skew_s": best[0], "skew_error_s": best[1]} if best[1] < float("inf") else {}


# The functions below run on each node


def _clock() -> dict[str, float]:
    return {"now": time.time()}


def _check_node(folders: list[str], node: str, storage: str, cache: str, data: str) -> dict[str, Any]:
    """What this node reports about itself. Also writes a file into each folder."""
    named = os.environ.get(record.STORAGE)
    wrong = ""
    if named and named != storage:
        wrong = f"{record.STORAGE} is {named} there and {storage} on the head; set it to the same folder on every node."
    for folder in folders:
        wrong = wrong or _write(Path(folder), node)
    return {
        "free_memory": psutil.virtual_memory().available,
        "versions": own_versions(),
        "storage": wrong,
        "cache": _write(Path(cache), f".check-{node}", keep=False),
        "data": _lacking(data) if data else "",
    }


def _lacking(data: str) -> str:
    """Why this node cannot read the images, or empty. Files behind a URL are listed, but not downloaded."""
    if is_remote(data):
        from vit_search.data.remote import list_files

        try:
            list_files(data)
        except VitSearchError as error:
            return f"data.path: {error}"
        return ""
    if os.access(local_path(data), os.R_OK):
        return ""
    return _not_there("data.path", data, "images")


def _not_there(key: str, path: str, what: str) -> str:
    return f"{key} {path} is not there: a file that is submitted names paths of the cluster; put the {what} there."


def _write(folder: Path, name: str, *, keep: bool = True) -> str:
    """Write a file into a folder. Returns why that failed, or empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, name)
        if not keep:
            (folder / name).unlink()
    except OSError as error:
        shown = folder.parent if keep else folder
        return f"{shown} cannot be written by {socket.gethostname()} ({error.strerror}); mend its mount or its mode."
    return ""


def _read(folders: list[str], nodes: list[str]) -> dict[str, Any]:
    """The nodes whose files this node does not see."""
    for folder in folders:
        unseen, end = list(nodes), time.monotonic() + SEEN_WITHIN_S
        while unseen and time.monotonic() < end:
            unseen = [node for node in unseen if not _holds(Path(folder) / node, node)]
            if unseen:
                time.sleep(0.2)
        if unseen:
            return {"unseen": unseen, "where": str(Path(folder).parent)}
    return {"unseen": []}


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False
