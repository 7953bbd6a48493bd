"""The rules about machines and what they cost: types, disks, spot instances, limits, zones."""

from __future__ import annotations

import difflib
import re
from typing import Any

from vit_search.cluster.file.aws import INSTANCE, NODE_KEYS, gpus_of
from vit_search.cluster.file.cluster_file import ClusterFile, Problems
from vit_search.text import counted

LEAST_DISK_GB = 100
"""Container image 15 GB, its unpacked layers 20, packages 8, and Ray's logs and spilled objects. All but the image were measured."""


def head_without_trials(file: ClusterFile) -> Problems:
    """The head runs no trials."""
    if file.cloud:
        for name in ("CPU", "GPU"):
            if (count := file.at("available_node_types", file.head, "resources", name)) != 0:
                offer = "does not say" if count is None else f"offers {count}"
                yield (
                    file.line("available_node_types", file.head, "resources"),
                    f"the head {offer} {name}s, so trials land beside MLflow and Ray's control; write resources: {{CPU: 0, GPU: 0}}.",
                )
    line, command = file.starts("head_start_ray_commands")
    for option in ("--num-cpus=0", "--num-gpus=0"):
        if command and option not in command:
            yield line, f"the head's `ray start` offers what the machine has; add {option}."


def idle(file: ClusterFile) -> Problems:
    """A worker without work is released after a few minutes."""
    minutes = file.at("idle_timeout_minutes")
    if file.cloud and (not isinstance(minutes, int | float) or not 3 <= minutes <= 60):
        yield (
            file.line("idle_timeout_minutes"),
            f"idle_timeout_minutes is {minutes if minutes is not None else 'not set'}; a worker without work is paid for, and one that "
            "has just come needs minutes: give 3 to 60.",
        )


def bounded(file: ClusterFile) -> Problems:
    """The number of machines has a limit."""
    if not isinstance(file.at("max_workers"), int):
        yield file.line("max_workers"), "max_workers is not set; give the number of machines that you are ready to pay for."
    if not file.cloud:
        return
    for name, kind in file.workers.items():
        most, of_all = kind.get("max_workers"), file.at("max_workers")
        if not isinstance(most, int):
            yield file.line("available_node_types", name), f"{name} has no max_workers; give one, at most the {of_all} of all together."
        elif isinstance(of_all, int) and most > of_all:
            yield (
                file.line("available_node_types", name, "max_workers"),
                f"{name} may have {counted(most, 'worker')}, all together {of_all}; lower it.",
            )
    if file.at("available_node_types", file.head, "max_workers", default=0) != 0:
        yield file.line("available_node_types", file.head, "max_workers"), "workers of the head's type; leave its max_workers out."


def spot(file: ClusterFile) -> Problems:
    """The head is not a spot instance, and spot workers have a fallback."""
    if _is_spot(file.types.get(file.head, {})):
        yield (
            file.line("available_node_types", file.head, "node_config", "InstanceMarketOptions"),
            "the head is a spot instance, and with it the whole cluster is taken away; leave InstanceMarketOptions out.",
        )
    for name, kind in file.workers.items():
        if not _is_spot(kind):
            continue
        lower = [other for other in file.workers.values() if not _is_spot(other) and other.get("priority", 0) < kind.get("priority", 0)]
        if not lower:
            yield (
                file.line("available_node_types", name),
                f"{name} has nothing to fall back on while AWS has no spot machine; add an on-demand type of lower priority.",
            )


def _is_spot(kind: Any) -> bool:
    try:
        return bool(kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot")
    except (KeyError, TypeError):
        return False


def disk(file: ClusterFile) -> Problems:
    """Each node has an encrypted disk that is large enough."""
    for name in file.types if file.cloud else ():
        disks = file.at("available_node_types", name, "node_config", "BlockDeviceMappings", default=[])
        line = file.line("available_node_types", name, "node_config", "BlockDeviceMappings")
        ebs = [disk.get("Ebs", {}) for disk in disks if isinstance(disk, dict)] if isinstance(disks, list) else []
        if not any(isinstance(size := disk.get("VolumeSize"), int) and size >= LEAST_DISK_GB for disk in ebs if isinstance(disk, dict)):
            yield line, f"{name} has no disk of {LEAST_DISK_GB} GB, which the image, the packages and Ray's logs fill; give VolumeSize."
        if not all(isinstance(disk, dict) and disk.get("Encrypted") is True for disk in ebs):
            yield line, f"{name} has a disk in clear; add Encrypted: true."


def instances(file: ClusterFile) -> Problems:
    """Each node type has a valid AWS instance type, its number of GPUs, and an image."""
    for name, kind in file.types.items() if file.cloud else ():
        config, config_path = kind.get("node_config", {}), ("available_node_types", name, "node_config")
        for key in config if isinstance(config, dict) else ():
            if key not in NODE_KEYS:
                near = difflib.get_close_matches(key, NODE_KEYS, 1)
                yield file.line(*config_path, key), f"{key}: no key of EC2's; " + (f"did you mean {near[0]}?" if near else "remove it.")
        instance = str(file.at(*config_path, "InstanceType", default=""))
        if not INSTANCE.fullmatch(instance):
            yield file.line(*config_path, "InstanceType"), f"{instance or 'nothing'}: no instance type; write one, e.g. g6.xlarge."
            continue
        gpus = file.at("available_node_types", name, "resources", "GPU")
        gpus_there = gpus_of(instance)
        if name != file.head and isinstance(gpus, int) and gpus != gpus_there:
            yield (
                file.line("available_node_types", name, "resources"),
                f"{instance} has {counted(gpus_there, 'GPU')}, not {gpus}; leave it to Ray: {{}}.",
            )
        if not file.at(*config_path, "ImageId"):
            yield file.line(*config_path), f"{name} has no ImageId, and Ray takes one of Ubuntu 18.04; name today's Deep Learning image."


def stopped(file: ClusterFile) -> Problems:
    """Machines that are no longer needed are terminated, not kept in the state "stopped"."""
    if file.cloud and file.at("provider", "cache_stopped_nodes") is not False:
        yield (
            file.line("provider", "cache_stopped_nodes"),
            "stopped machines are kept, their disks paid for, and come back with old packages; set cache_stopped_nodes: false.",
        )


def region(file: ClusterFile) -> Problems:
    """The region and its zones have valid AWS names."""
    region = str(file.at("provider", "region", default=""))
    if not file.cloud:
        return
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", region):
        yield file.line("provider", "region"), f"{region or 'nothing'}: no region of AWS; write one, e.g. us-west-2."
    zones = [zone.strip() for zone in str(file.at("provider", "availability_zone", default="")).split(",")]
    for zone in zones:
        if not re.fullmatch(re.escape(region) + "[a-z]", zone):
            yield file.line("provider", "availability_zone"), f"{zone or 'nothing'}: no zone of {region}; write one, e.g. {region}a."
