"""Writes a cluster file for your own machines, with the names, sizes and commands of another cluster file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vit_search.cluster.file.cluster_file import ClusterFile
from vit_search.cluster.file.start_settings import container_settings, state_folder, storage_folder
from vit_search.cluster.file.yaml_text import yaml_text
from vit_search.config import strict_yaml
from vit_search.errors import ClusterError

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")
ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def local(file: Path, machines: list[str], *, user: str, key: str | None) -> str:
    """The cluster file for machines that exist: `provider: local`.

    There is no Docker: what its options would set is exported before `ray start`. The administrator mounts the shared folder and the head's
    disk.

    Raises: SpecError, ClusterError.
    """
    for machine in machines:
        if not HOST.fullmatch(machine):
            raise ClusterError(f"--local: {machine!r} is no host name or address; give HEAD,WORKER,… without spaces.")
    if len(machines) < 2:
        raise ClusterError("--local names the head alone; give at least one worker, on which trials run: HEAD,WORKER,….")
    if len(set(machines)) < len(machines):
        raise ClusterError("--local names a machine twice; give each once.")
    if not ACCOUNT.fullmatch(user):
        raise ClusterError(f"--user: {user!r} is no account; give its name.")
    source = ClusterFile(file, strict_yaml.load(file))
    storage, state = storage_folder(source), state_folder(source)
    workers = machines[1:]
    made: dict[str, Any] = {
        "cluster_name": source.at("cluster_name", default="vit-search"),
        "max_workers": len(workers),
        "min_workers": len(workers),
        "idle_timeout_minutes": source.at("idle_timeout_minutes", default=10),
        "provider": {"type": "local", "head_ip": machines[0], "worker_ips": workers},
        "auth": {"ssh_user": user} | ({"ssh_private_key": key} if key else {}),
        "file_mounts": source.at("file_mounts", default={}),
        "rsync_exclude": source.at("rsync_exclude", default=[]),
        "initialization_commands": [f"mountpoint -q {storage}"],
        "setup_commands": source.commands("setup_commands"),
        "head_setup_commands": [*source.commands("head_setup_commands"), f"test -w {state}"],
        "worker_setup_commands": source.commands("worker_setup_commands"),
        "head_start_ray_commands": _commands(source, "head_start_ray_commands", head=True),
        "worker_start_ray_commands": [c for c in _commands(source, "worker_start_ray_commands", head=False) if "cluster worker" not in c],
    }
    about = [
        f"{file.name} for machines of one's own, by `vit-search cluster render`: change that file, and render again.",
        f"Each machine has Python 3.11 with venv, and {storage} mounted, writable for {user}; the head has {state} on a disk of its own.",
        f"{user} may use sudo on the head, once, for PostgreSQL. min_workers = max_workers: nobody hires or gives back a machine here.",
        "Close the machines' network to others: Ray's ports listen on all of their addresses, and only the token guards them.",
    ]
    return yaml_text(about, [made])


def _commands(file: ClusterFile, key: str, *, head: bool) -> list[str]:
    """The start commands. Before those that need it, export what Docker would have set."""
    exported = "export " + " ".join(f"{name}={value}" for name, value in container_settings(file, head=head).items()) + "; "
    return [command if command.endswith("ray stop") else exported + command for command in file.commands(key)]
