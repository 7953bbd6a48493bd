"""A cluster's file held against Ray's own schema, and against what that lets pass: open doors, unbounded bills, lost data.

Each rule has a number, and yields what it found with the line of it. Ray 2.60's schema takes a misspelt instance type, a dashboard
for all the world and a cluster without a token alike.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import ipaddress
import logging
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_search.cluster.record import HEAD_STATE, STORAGE
from vit_search.config import strict_yaml
from vit_search.config.strict_yaml import Document, NodePath
from vit_search.config.validation_messages import spelt
from vit_search.errors import ClusterError
from vit_search.text import counted, nearest

TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105 -- a path
PORT = 6379
PRIVATE = "$(mktemp -d /tmp/ray-XXXXXXXX)/ray"
"""A folder for Ray, which opens its own to all accounts, in one of mode 0700."""

LEAST_DISK_GB = 100
"""Container image 15 GB, its layers unpacked 20, packages 8, Ray's logs and spilled objects; found on this machine but for the image."""

INSTANCE = re.compile(r"[a-z][a-z0-9-]*[0-9][a-z0-9-]*\.(nano|micro|small|medium|large|xlarge|[0-9]{1,3}xlarge|metal(-[0-9a-z]+)?)")
GPUS = {  # of the families that trials run on; each size that is not named has one
    "g4dn": {"12xlarge": 4, "metal": 8},
    "g5": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6e": {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "p3": {"8xlarge": 4, "16xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
    "p6-b200": {"48xlarge": 8},
}
NODE_KEYS = (  # of EC2's RunInstances, and Ray's own SubnetIds
    "AdditionalInfo",
    "BlockDeviceMappings",
    "CapacityReservationSpecification",
    "CpuOptions",
    "CreditSpecification",
    "DisableApiStop",
    "DisableApiTermination",
    "EbsOptimized",
    "EnclaveOptions",
    "HibernationOptions",
    "IamInstanceProfile",
    "ImageId",
    "InstanceInitiatedShutdownBehavior",
    "InstanceMarketOptions",
    "InstanceType",
    "Ipv6AddressCount",
    "KeyName",
    "LaunchTemplate",
    "LicenseSpecifications",
    "MaintenanceOptions",
    "MetadataOptions",
    "Monitoring",
    "NetworkInterfaces",
    "Placement",
    "PrivateDnsNameOptions",
    "SecurityGroupIds",
    "SubnetId",
    "SubnetIds",
    "TagSpecifications",
    "UserData",
)
SECRETS = (
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), "an AWS key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"), "a private key"),
    (re.compile(r"\b(gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}"), "a GitHub token"),
    (re.compile(r"://[^/\s:@$]+:[^/\s@$]+@"), "a password in an address"),
    (re.compile(r"(?i)\bauthorization:\s*(basic|bearer)\s+[A-Za-z0-9+/=_.-]{8,}"), "a login"),
    (
        re.compile(r"(?i)\b[A-Z0-9_]*(PASSWORD|SECRET|SECRET_ACCESS_KEY|TOKEN|API_KEY)\s*[=:]\s*['\"]?(?![$%'\"]|/|~)[^\s'\";]{4,}"),
        "a secret",
    ),
)
BLANK = re.compile(r"\b(?:ami|subnet|sg|vol|fs)-0{8,17}\b|\b203\.0\.113\.\d+\b")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    line: int
    rule: str
    text: str
    """What was seen, and the mend."""


@dataclass(frozen=True)
class Report:
    """What a check found."""

    findings: list[Finding]
    blanks: list[Finding]
    """Places that still hold the shipped file's placeholders."""


@dataclass(frozen=True)
class File:
    """A cluster's file, as the rules look at it."""

    path: Path
    document: Document

    def at(self, *path: str | int, default: Any = None) -> Any:
        """A value by its path; the default where there is none, or where something on the way is of another shape."""
        found = self.document.values
        for key in path:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return default
        return default if found is None else found

    def line(self, *path: str | int) -> int:
        """Where a path stands, or what is nearest above it."""
        return self.document.line(path)

    @cached_property
    def cloud(self) -> bool:
        """Whether nodes are hired; only then do they have types, disks and groups."""
        return bool(self.at("provider", "type") == "aws")

    @cached_property
    def head(self) -> str:
        """The head's node type."""
        return str(self.at("head_node_type", default=""))

    @cached_property
    def types(self) -> dict[str, Any]:
        """All node types."""
        found = self.at("available_node_types", default={})
        return {name: kind for name, kind in found.items() if isinstance(kind, dict)} if isinstance(found, dict) else {}

    @cached_property
    def workers(self) -> dict[str, Any]:
        """Those of workers."""
        return {name: kind for name, kind in self.types.items() if name != self.head}

    def texts(self) -> Iterator[tuple[NodePath, str]]:
        """Every text in the file, with its path."""
        todo: list[tuple[NodePath, Any]] = [((), self.document.values)]
        while todo:
            path, value = todo.pop()
            if isinstance(value, str):
                yield path, value
            elif isinstance(value, dict):
                todo += [((*path, key), item) for key, item in value.items()]
            elif isinstance(value, list):
                todo += [((*path, index), item) for index, item in enumerate(value)]

    def commands(self, key: str) -> list[str]:
        """A list of commands."""
        found = self.at(key, default=[])
        return [str(command) for command in found] if isinstance(found, list) else []

    def starts(self, key: str) -> tuple[int, str]:
        """The `ray start` among commands, with its line; empty where there is none."""
        for index, command in enumerate(self.commands(key)):
            if re.search(r"\bray start\b", command):
                return self.line(key, index), command
        return self.line(key), ""

    def environment(self, *, head: bool) -> dict[str, str]:
        """What a node's `ray start` gets: from the container, and from what its command exports."""
        found = {}
        for option in self.run_options(head=head):
            name, equals, value = option.removeprefix("-e ").strip().strip("\"'").partition("=")
            if option.startswith("-e ") and equals:
                found[name] = value
        _, command = self.starts("head_start_ray_commands" if head else "worker_start_ray_commands")
        return found | {
            name: value.strip("\"'") for name, value in re.findall(r"\b([A-Z][A-Za-z0-9_]*)=('[^']*'|\"[^\"]*\"|[^\s;]*)", command)
        }

    def run_options(self, *, head: bool) -> list[str]:
        """Options of a node's container."""
        keys = ("run_options", "head_run_options" if head else "worker_run_options")
        return [str(option) for key in keys for option in self.at("docker", key, default=[])]


def check(path: Path) -> Report:
    """Hold a file against everything.

    Raises: SpecError where it is no YAML that can be read in one way alone.
    """
    file = File(path, strict_yaml.load(path))
    findings = list(_schema(file))
    for number, rule in enumerate(_ALL, 1):
        findings += [Finding(line, f"R{number}", text) for line, text in rule(file)]
    blanks = {
        Finding(file.line(*at), "", f"{blank.group()} is a placeholder") for at, text in file.texts() for blank in BLANK.finditer(text)
    }
    return Report(sorted(set(findings), key=lambda f: (f.line, f.rule)), sorted(blanks, key=lambda f: (f.line, f.text)))


def ray_refuses(config: dict[str, Any]) -> tuple[NodePath, str] | None:
    """Where Ray's own check stops, and what it says; None where it lets the file pass. The one place that knows Ray's private check.

    Raises: ClusterError where this Ray has no such check.
    """
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError:
        raise ClusterError(
            f"Ray {metadata.version('ray')} has moved its check of cluster files; install the Ray of requirements.lock."
        ) from None
    said = io.StringIO()
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # whatever it raises is what it has against the file
        return _in_words(error, said.getvalue())
    return None


_KINDS = {
    "integer": "give a whole number.",
    "number": "give a number.",
    "string": "give a text.",
    "boolean": "give true or false.",
    "array": "give a list.",
    "object": "write `key: value` lines under it.",
}


def _in_words(error: Exception, said: str) -> tuple[NodePath, str]:
    """Where and what Ray has refused, with the mend; `error` may be one of jsonschema, whose words are for programmers."""
    where: NodePath = tuple(getattr(error, "absolute_path", ()))
    rule, limit, seen = (getattr(error, name, None) for name in ("validator", "validator_value", "instance"))
    key, value = ".".join(map(str, where)) or "the file", "has no value" if seen is None else f"{spelt(seen)} will not do"
    if rule == "type" and limit in _KINDS:
        return where, f"{key}: {value}; {_KINDS[str(limit)]}"
    if rule in ("minimum", "maximum") and isinstance(limit, (int, float)):
        return where, f"{key}: {value}; give {'at least' if rule == 'minimum' else 'at most'} {limit:g}."
    if rule == "enum" and isinstance(limit, list):
        return where, f"{key}: {value}; choose from {', '.join(map(str, limit))}."
    if rule == "additionalProperties" and isinstance(seen, dict):
        known = list(getattr(error, "schema", {}).get("properties", {}))
        unknown = next(name for name in seen if name not in known)
        return (*where, unknown), f"{'.'.join(map(str, (*where, unknown)))}: unknown key; {nearest(str(unknown), known)}"
    if isinstance(error, KeyError):
        return where, f"the key {error.args[0]} is missing; add it."
    text = str(getattr(error, "message", "") or error) or said
    text = " ".join(text.split())[:300].rstrip(".") or type(error).__name__
    if isinstance(error, (TypeError, AttributeError)):  # Ray takes a text for a list, or a list for a mapping
        text = f"a value has another form than it expects ({text})"
    return where, f"{text}; mend it as docs.ray.io's cluster YAML reference says."


# --- the rules ----------------------------------------------------------------------------------------------------------

Found = Iterator[tuple[int, str]]


def _schema(file: File) -> Iterator[Finding]:
    if refused := ray_refuses(file.document.values):
        where, text = refused
        yield Finding(file.line(*where), "R0", f"Ray refuses it: {text}")


def _token(file: File) -> Found:
    for head, key in ((True, "head_start_ray_commands"), (False, "worker_start_ray_commands")):
        mode = file.environment(head=head).get("RAY_AUTH_MODE")
        if mode != "token":
            seen = "is not set" if mode is None else f"is {mode}"
            yield (
                file.starts(key)[0],
                f"RAY_AUTH_MODE {seen}, so whoever reaches the port runs commands; set RAY_AUTH_MODE=token for `ray start`.",
            )
    if "~/.ray" not in file.at("file_mounts", default={}) and TOKEN_FILE not in file.at("file_mounts", default={}):
        yield file.line("file_mounts"), 'nodes get no token; mount it: "~/.ray": "~/.ray", made by `vit-search cluster token`.'


def _listening(file: File) -> Found:
    for path, text in file.texts():
        if re.search(r"(?<![\d.])0\.0\.0\.0(?![\d./])|--(?:dashboard-host|host)[= ]['\"]?(?:::|\*)", text):
            yield file.line(*path), "a server for all the world; bind 127.0.0.1 and come through ssh, e.g. `ray dashboard cluster.yaml`."
    line, command = file.starts("head_start_ray_commands")
    if command and not re.search(r"--dashboard-host[= ]['\"]?(127\.0\.0\.1|localhost|0\.0\.0\.0|::)", command):
        yield line, "the dashboard, which runs jobs, is not bound to 127.0.0.1; add --dashboard-host=127.0.0.1."


def _image(file: File) -> Found:
    places: list[NodePath] = [("docker", key) for key in ("image", "head_image", "worker_image")]
    places += [("available_node_types", name, "docker", "worker_image") for name in file.types]
    ours = metadata.version("ray")
    for place in places:
        image = file.at(*place)
        if not isinstance(image, str):
            continue
        name, _, digest = image.partition("@")
        _, colon, tag = name.rpartition("/")[2].partition(":")
        if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            yield file.line(*place), f"{image}: no digest; write @sha256: and 64 hexadecimal digits."
        elif not digest and (not colon or re.search(r"latest|nightly", tag)):
            yield file.line(*place), f"{image}: another image tomorrow; pin a tag, e.g. rayproject/ray:{ours}-py311-gpu."
        elif name.startswith("rayproject/") and not re.match(rf"{re.escape(ours)}-py3(11|12|13)\b", tag):
            yield file.line(*place), f"{image}: requirements.lock has Ray {ours} for Python 3.11 to 3.13; take its tag, {ours}-py311-gpu."


def _head_without_trials(file: File) -> Found:
    if file.cloud:
        for name in ("CPU", "GPU"):
            if (found := file.at("available_node_types", file.head, "resources", name)) != 0:
                seen = "does not say" if found is None else f"offers {found}"
                yield (
                    file.line("available_node_types", file.head, "resources"),
                    f"the head {seen} {name}s, so trials land beside MLflow and Ray's control; write resources: {{CPU: 0, GPU: 0}}.",
                )
    line, command = file.starts("head_start_ray_commands")
    for option in ("--num-cpus=0", "--num-gpus=0"):
        if command and option not in command:
            yield line, f"the head's `ray start` offers what the machine has; add {option}."


def _shared_storage(file: File) -> Found:
    for head, key in ((True, "head_start_ray_commands"), (False, "worker_start_ray_commands")):
        where = file.environment(head=head).get(STORAGE, "")
        if not where.startswith("/") or re.match(r"/(tmp|home|root|var|dev|run)(/|$)", where):
            yield (
                file.starts(key)[0],
                f"{STORAGE} is {where or 'not set'}, no folder that all nodes share; mount one, e.g. /mnt/vit_search, and name it there.",
            )
        elif file.at("docker") and not any(_mounts(option, where) for option in file.run_options(head=head)):
            yield file.line("docker", "run_options"), f"{where} is not seen in the container; add -v {where}:{where}."
        else:
            for place, commands in _initialisations(file, head=head):
                if not any(re.search(rf"mountpoint -q {re.escape(where)}(?![\w/-])", command) for command in commands):
                    yield (
                        file.line(*place),
                        f"nothing sees that {where} is mounted, and a node without it writes to its own disk; add `mountpoint -q {where}`.",
                    )


def _mounts(option: str, where: str) -> bool:
    inside = option.removeprefix("-v ").strip().split(":")
    return option.startswith("-v ") and len(inside) > 1 and (where == inside[1] or where.startswith(inside[1] + "/"))


def _initialisations(file: File, *, head: bool) -> Iterator[tuple[NodePath, list[str]]]:
    """What prepares the head, or each type of workers: its own commands take the place of those for all."""
    if head or not file.cloud:
        yield ("initialization_commands",), file.commands("initialization_commands")
        return
    for name, kind in file.workers.items():
        own = kind.get("initialization_commands")
        place: NodePath = ("available_node_types", name, "initialization_commands")
        yield (place, [str(c) for c in own]) if isinstance(own, list) else (place, file.commands("initialization_commands"))


def _secrets(file: File) -> Found:
    for path, text in file.texts():
        for pattern, what in SECRETS:
            if pattern.search(text):
                yield file.line(*path), f"{what} in plain text; put it in a file of mode 0600 on the node, and read it there."
                break
    for path in list(file.document.lines):
        name = str(path[-1]) if path else ""
        if re.search(r"(?i)(password|secret|token|api_key)$", name) and isinstance(file.at(*path), str) and "/" not in name:
            yield file.line(*path), f"{name} in plain text; put it in a file of mode 0600 on the node, and read it there."


def _idle(file: File) -> Found:
    minutes = file.at("idle_timeout_minutes")
    if file.cloud and (not isinstance(minutes, int | float) or not 3 <= minutes <= 60):
        yield (
            file.line("idle_timeout_minutes"),
            f"idle_timeout_minutes is {minutes if minutes is not None else 'not set'}; a worker without work is paid for, and one that "
            "has just come needs minutes: give 3 to 60.",
        )


def _bounded(file: File) -> Found:
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


def _spot(file: File) -> Found:
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


def _mounted_files(file: File) -> Found:
    excluded = [str(pattern) for pattern in file.at("rsync_exclude", default=[])]
    mounts = file.at("file_mounts", default={})
    for remote, local in mounts.items() if isinstance(mounts, dict) else ():
        source = file.path.parent / Path(str(local)).expanduser()
        line = file.line("file_mounts", remote)
        if not source.exists():
            mend = "make it with `vit-search cluster token`" if ".ray" in str(local) else "run `ray up` where it is"
            yield line, f"{local} is not there; {mend}."
        elif source.name == ".git" or ((source / ".git").exists() and not any(".git" in pattern for pattern in excluded)):
            yield line, f"{local} takes .git along, with all that was ever committed; add **/.git to rsync_exclude."


def _ssh_key(file: File) -> Found:
    key = file.at("auth", "ssh_private_key")
    if isinstance(key, str):
        path = Path(key).expanduser()
        line = file.line("auth", "ssh_private_key")
        if not path.is_file():
            yield line, f"{key} is not there; name your key, or leave the line out."
        elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield line, f"{key} has mode {stat.S_IMODE(path.stat().st_mode):04o}, and ssh refuses it; chmod 600."


def _groups(file: File) -> Found:
    if not file.cloud:
        return
    for name in file.types:
        if not file.at("available_node_types", name, "node_config", "SecurityGroupIds"):
            yield (
                file.line("available_node_types", name, "node_config"),
                f"{name} has no SecurityGroupIds, and the group that Ray makes lets ssh in from 0.0.0.0/0; make one, and name it.",
            )
    if file.at("provider", "security_group"):
        yield (
            file.line("provider", "security_group"),
            "Ray adds ssh from 0.0.0.0/0 to a group that it makes, whatever stands here; make one, and name it in SecurityGroupIds.",
        )
    for path, text in file.texts():
        if re.search(r"(?<![\d.])0\.0\.0\.0/0|(?<![\w:])::/0", text) or (path and path[-1] == "CidrIp" and not _narrow(text)):
            yield file.line(*path), f"{text} is everybody; name the network that you come from, e.g. 198.51.100.0/24."


def _narrow(cidr: str) -> bool:
    try:
        return ipaddress.ip_network(cidr, strict=False).prefixlen >= 8
    except ValueError:
        return False


def _metadata(file: File) -> Found:
    for name in file.types if file.cloud else ():
        if file.at("available_node_types", name, "node_config", "MetadataOptions", "HttpTokens") != "required":
            yield (
                file.line("available_node_types", name, "node_config"),
                f"{name} answers to IMDSv1, through which one tricked request gets the machine's credentials; "
                "add MetadataOptions: {HttpTokens: required}.",
            )


def _disk(file: File) -> Found:
    for name in file.types if file.cloud else ():
        disks = file.at("available_node_types", name, "node_config", "BlockDeviceMappings", default=[])
        line = file.line("available_node_types", name, "node_config", "BlockDeviceMappings")
        ebs = [disk.get("Ebs", {}) for disk in disks if isinstance(disk, dict)] if isinstance(disks, list) else []
        if not any(isinstance(size := disk.get("VolumeSize"), int) and size >= LEAST_DISK_GB for disk in ebs if isinstance(disk, dict)):
            yield line, f"{name} has no disk of {LEAST_DISK_GB} GB, which the image, the packages and Ray's logs fill; give VolumeSize."
        if not all(isinstance(disk, dict) and disk.get("Encrypted") is True for disk in ebs):
            yield line, f"{name} has a disk in clear; add Encrypted: true."


def _instances(file: File) -> Found:
    for name, kind in file.types.items() if file.cloud else ():
        config, place = kind.get("node_config", {}), ("available_node_types", name, "node_config")
        for key in config if isinstance(config, dict) else ():
            if key not in NODE_KEYS:
                near = difflib.get_close_matches(key, NODE_KEYS, 1)
                yield file.line(*place, key), f"{key}: no key of EC2's; " + (f"did you mean {near[0]}?" if near else "remove it.")
        instance = str(file.at(*place, "InstanceType", default=""))
        if not INSTANCE.fullmatch(instance):
            yield file.line(*place, "InstanceType"), f"{instance or 'nothing'}: no instance type; write one, e.g. g6.xlarge."
            continue
        asked = file.at("available_node_types", name, "resources", "GPU")
        there = gpus_of(instance)
        if name != file.head and isinstance(asked, int) and asked != there:
            yield (
                file.line("available_node_types", name, "resources"),
                f"{instance} has {counted(there, 'GPU')}, not {asked}; leave it to Ray: {{}}.",
            )
        if not file.at(*place, "ImageId"):
            yield file.line(*place), f"{name} has no ImageId, and Ray takes one of Ubuntu 18.04; name today's Deep Learning image."


def gpus_of(instance: str) -> int:
    """GPUs of an AWS instance type."""
    family, _, size = instance.partition(".")
    return GPUS[family].get(size, 1) if family in GPUS else 0


def _starts(file: File) -> Found:
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


def _name(file: File) -> Found:
    name = file.at("cluster_name")
    if not isinstance(name, str) or name == "default" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", name):
        seen = name if name is not None else "not set, so Ray says default"
        yield file.line("cluster_name"), f"cluster_name is {seen}; two clusters of one name end each other's machines: give it its own."


def _packages(file: File) -> Found:
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


def _quiet(file: File) -> Found:
    loads = "loads pickles, which run their writer's code"
    wanted = [
        ("RAY_USAGE_STATS_ENABLED", "0", "reports home"),
        ("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9", "reports home that it does not report"),
        ("MLFLOW_DISABLE_TELEMETRY", "true", "reports home"),
        ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1", loads),
        ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false", loads),
    ]
    for head, key in ((True, "head_start_ray_commands"), (False, "worker_start_ray_commands")):
        found = file.environment(head=head)
        for name, value, why in wanted:
            if found.get(name) != value:
                yield file.starts(key)[0], f"a node {why}; set {name}={value} for `ray start`."


def _rights(file: File) -> Found:
    if file.cloud and not file.at("available_node_types", file.head, "node_config", "IamInstanceProfile"):
        yield (
            file.line("available_node_types", file.head, "node_config"),
            "the head has no IamInstanceProfile, and Ray gives it all of EC2 and S3; make one that may do what it needs, and name it.",
        )
    for name in file.workers if file.cloud else ():
        if file.at("available_node_types", name, "node_config", "IamInstanceProfile"):
            yield (
                file.line("available_node_types", name, "node_config", "IamInstanceProfile"),
                f"{name} has rights in AWS, which every trial may use; workers need none: remove it.",
            )


def _stopped(file: File) -> Found:
    if file.cloud and file.at("provider", "cache_stopped_nodes") is not False:
        yield (
            file.line("provider", "cache_stopped_nodes"),
            "stopped machines are kept, their disks paid for, and come back with old packages; set cache_stopped_nodes: false.",
        )


def _services(file: File) -> Found:
    commands = file.commands("head_start_ray_commands")
    line = file.line("head_start_ray_commands")
    order = [index for index, command in enumerate(commands) if "vit-search cluster head" in command]
    begins = [index for index, command in enumerate(commands) if re.search(r"\bray start\b", command)]
    if not order:
        yield line, "the head starts no MLflow and no keeper of searches; add `vit-search cluster head` before `ray start`."
        return
    if begins and order[0] > begins[0]:
        yield line, "Ray starts before MLflow has made its account, and drivers get none; put `vit-search cluster head` first."
    given = re.search(r"--state[= ](\S+)", commands[order[0]])
    state = given.group(1) if given else str(HEAD_STATE)
    shared = file.environment(head=True).get(STORAGE, "")
    at = file.line("head_start_ray_commands", order[0])
    if shared and (state == shared or state.startswith(shared.rstrip("/") + "/")):
        yield at, f"{state} lies on shared storage, where PostgreSQL's data break; give --state a folder on the head's own disk."
    if file.at("docker") and not any(_mounts(option, state) for option in file.run_options(head=True)):
        yield at, f"{state} is the container's, and lost with it; add -v {state}:{state} to head_run_options."
    if begins and f"{state}/secrets/mlflow.env" not in commands[begins[0]]:
        yield (
            file.line("head_start_ray_commands", begins[0]),
            f"drivers get no MLflow account; add `. {state}/secrets/mlflow.env` before it.",
        )


def _place(file: File) -> Found:
    region = str(file.at("provider", "region", default=""))
    if not file.cloud:
        return
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", region):
        yield file.line("provider", "region"), f"{region or 'nothing'}: no region of AWS; write one, e.g. us-west-2."
    zones = [zone.strip() for zone in str(file.at("provider", "availability_zone", default="")).split(",")]
    for zone in zones:
        if not re.fullmatch(re.escape(region) + "[a-z]", zone):
            yield file.line("provider", "availability_zone"), f"{zone or 'nothing'}: no zone of {region}; write one, e.g. {region}a."


_ALL: tuple[Callable[[File], Found], ...] = (
    _token,  # R1
    _listening,
    _image,
    _head_without_trials,
    _shared_storage,  # R5
    _secrets,
    _idle,
    _bounded,
    _spot,
    _mounted_files,  # R10
    _ssh_key,
    _groups,
    _metadata,
    _disk,
    _instances,  # R15
    _starts,
    _name,
    _packages,
    _quiet,
    _rights,  # R20
    _stopped,
    _services,
    _place,
)
RULES = len(_ALL)
"""Our own: R1 to this one. R0 is Ray's schema."""
