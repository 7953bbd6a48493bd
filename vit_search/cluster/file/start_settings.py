"""What a cluster file says about storage, state and environment of its nodes. The renderers need all of it."""

from __future__ import annotations

import re

from vit_search.cluster.file.cluster_file import ClusterFile
from vit_search.cluster.record import STORAGE
from vit_search.errors import ClusterError


def storage_folder(file: ClusterFile) -> str:
    """The folder that all nodes share.

    Raises: ClusterError if the head has none.
    """
    folder = file.environment(head=True).get(STORAGE, "")
    if not folder.startswith("/"):
        raise ClusterError(f"{file.path}: {STORAGE} is not set for the head; run `vit-search cluster check` first.")
    return folder


def state_folder(file: ClusterFile) -> str:
    """The folder of the services on the head.

    Raises: ClusterError if the head starts no services.
    """
    for command in file.commands("head_start_ray_commands"):
        if match := re.search(r"vit-search cluster head .*--state[= ](\S+)", command):
            return match.group(1)
    raise ClusterError(f"{file.path}: the head starts no services; run `vit-search cluster check` first.")


def container_settings(file: ClusterFile, *, head: bool) -> dict[str, str]:
    """The environment variables that the container's options set."""
    pairs = [option.removeprefix("-e ").strip().partition("=") for option in file.run_options(head=head) if option.startswith("-e ")]
    return {name: value for name, _, value in pairs}
