"""The rules about how nodes start: the image, the packages, the shared storage, the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from vit_search.cluster.file.cluster_file import ClusterFile, Problems
from vit_search.cluster.record import HEAD_STATE, STORAGE
from vit_search.config.strict_yaml import NodePath

PORT = 6379
PRIVATE = "$(mktemp -d /tmp/ray-XXXXXXXX)/ray"
"""Folder for Ray, inside one of mode 0700, because Ray opens its own folder to all accounts."""


def image(file: ClusterFile) -> Problems:
    """The container image is pinned, and has the Ray version of requirements.lock."""
    paths: list[NodePath] = [("docker", key) for key in ("image", "head_image", "worker_image")]
    paths += [("available_node_types", name, "docker", "worker_image") for name in file.types]
    ours = metadata.version("ray")
    for path in paths:
        image = file.at(*path)
        if not isinstance(image, str):
            continue
        name, _, digest = image.partition("@")
        _, colon, tag = name.rpartition("/")[2].partition(":")
        if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            yield file.line(*path), f"{image}: no digest; write @sha256: and 64 hexadecimal digits."
        elif not digest and (not colon or re.search(r"latest|nightly", tag)):
            yield file.line(*path), f"{image}: another image tomorrow; pin a tag, e.g. rayproject/ray:{ours}-py311-gpu."
        elif name.startswith("rayproject/") and not re.match(rf"{re.escape(ours)}-py3(11|12|13)\b", tag):
            yield file.line(*path), f"{image}: requirements.lock has Ray {ours} for Python 3.11 to 3.13; take its tag, {ours}-py311-gpu."


def shared_storage(file: ClusterFile) -> Problems:
    """All nodes see one shared folder, and check that it is mounted."""
    for head, key in ((True, "head_start_ray_commands"), (False, "worker_start_ray_commands")):
        folder = file.environment(head=head).get(STORAGE, "")
        if not folder.startswith("/") or re.match(r"/(tmp|home|root|var|dev|run)(/|$)", folder):
            yield (
                file.starts(key)[0],
                f"{STORAGE} is {folder or 'not set'}, no folder that all nodes share; mount one, e.g. /mnt/vit_search, and name it there.",
            )
        elif file.at("docker") and not any(_mounts(option, folder) for option in file.run_options(head=head)):
            yield file.line("docker", "run_options"), f"{folder} is not seen in the container; add -v {folder}:{folder}."
        else:
            for path, commands in _initialisations(file, head=head):
                if not any(re.search(rf"mountpoint -q {re.escape(folder)}(?![\w/-])", command) for command in commands):
                    yield (
                        file.line(*path),
                        f"nothing sees that {folder} is mounted, and a node without it writes to its own disk; "
                        f"add `mountpoint -q {folder}`.",
                    )


def _mounts(option: str, where: str) -> bool:
    inside = option.removeprefix("-v ").strip().split(":")
    return option.startswith("-v ") and len(inside) > 1 and (where == inside[1] or where.startswith(inside[1] + "/"))


def _initialisations(file: ClusterFile, *, head: bool) -> Iterator[tuple[NodePath, list[str]]]:
    """The initialization commands of the head, or of each worker type. A type's own commands replace the common ones."""
    if head or not file.cloud:
        yield ("initialization_commands",), file.commands("initialization_commands")
        return
    for name, kind in file.workers.items():
        own_commands = kind.get("initialization_commands")
        path: NodePath = ("available_node_types", name, "initialization_commands")
        yield (path, [str(c) for c in own_commands]) if isinstance(own_commands, list) else (path, file.commands("initialization_commands"))


def start_commands(file: ClusterFile) -> Problems:
    """`ray start` joins head and workers, and keeps its sockets private."""
    line, command = file.starts("head_start_ray_commands")
    for option in ("--head", f"--port={PORT}", "--autoscaling-config=~/ray_bootstrap_config.yaml"):
        if not re.search(rf"(?<!\S){re.escape(option)}(?!\S)", command):
            yield line, f"the head's `ray start` has no {option}; add it."
    line, command = file.starts("worker_start_ray_commands")
    if not re.search(rf"--address=['\"]?\$RAY_HEAD_IP:{PORT}\b", command):
        yield line, f"the workers' `ray start` joins nothing; add --address=$RAY_HEAD_IP:{PORT}."
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        line, command = file.starts(key)
        if command and not re.search(r"--temp-dir[= ]\S*\$\(mktemp -d [^)]*\)/", command):
            yield line, f"Ray opens its sockets to all accounts of the machine; add --temp-dir={PRIVATE}."


def cluster_name(file: ClusterFile) -> Problems:
    """The cluster has a name of its own."""
    name = file.at("cluster_name")
    if not isinstance(name, str) or name == "default" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", name):
        problem = name if name is not None else "not set, so Ray says default"
        yield file.line("cluster_name"), f"cluster_name is {problem}; two clusters of one name end each other's machines: give it its own."


def packages(file: ClusterFile) -> Problems:
    """The nodes install exactly the packages of requirements.lock."""
    line, commands = file.line("setup_commands"), file.commands("setup_commands")
    if not any("--require-hashes" in command and "requirements.lock" in command for command in commands):
        yield (
            line,
            "nodes do not install requirements.lock by its hashes; add pip install --require-hashes -r ~/vit_search/requirements.lock.",
        )
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        for index, command in enumerate(file.commands(key)):
            if re.search(r"pip3? install", command) and "--require-hashes" not in command and "--no-deps" not in command:
                yield file.line(key, index), "a package of whatever version comes today; put it into pyproject.toml, and run `make lock`."


def services(file: ClusterFile) -> Problems:
    """The head starts MLflow and the keeper of searches before Ray."""
    commands = file.commands("head_start_ray_commands")
    line = file.line("head_start_ray_commands")
    head_lines = [index for index, command in enumerate(commands) if "vit-search cluster head" in command]
    start_lines = [index for index, command in enumerate(commands) if re.search(r"\bray start\b", command)]
    if not head_lines:
        yield line, "the head starts no MLflow and no keeper of searches; add `vit-search cluster head` before `ray start`."
        return
    if start_lines and head_lines[0] > start_lines[0]:
        yield line, "Ray starts before MLflow has made its account, and drivers get none; put `vit-search cluster head` first."
    state_option = re.search(r"--state[= ](\S+)", commands[head_lines[0]])
    state = state_option.group(1) if state_option else str(HEAD_STATE)
    shared = file.environment(head=True).get(STORAGE, "")
    line_at = file.line("head_start_ray_commands", head_lines[0])
    if shared and (state == shared or state.startswith(shared.rstrip("/") + "/")):
        yield (
            line_at,
            f"{state} lies on shared storage, where PostgreSQL's data break; give --state a folder on the head's own disk.",
        )
    if file.at("docker") and not any(_mounts(option, state) for option in file.run_options(head=True)):
        yield line_at, f"{state} is the container's, and lost with it; add -v {state}:{state} to head_run_options."
    if start_lines and f"{state}/secrets/mlflow.env" not in commands[start_lines[0]]:
        yield (
            file.line("head_start_ray_commands", start_lines[0]),
            f"drivers get no MLflow account; add `. {state}/secrets/mlflow.env` before it.",
        )
