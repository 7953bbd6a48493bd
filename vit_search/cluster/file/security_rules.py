"""The rules about who can reach a cluster and what they can read: tokens, ports, secrets, rights."""

from __future__ import annotations

import ipaddress
import re
import stat
from pathlib import Path

from vit_search.cluster.file.cluster_file import ClusterFile, Problems

TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105 -- a path
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


def token(file: ClusterFile) -> Problems:
    """Every node requires Ray's token, and has it."""
    for head, key in ((True, "head_start_ray_commands"), (False, "worker_start_ray_commands")):
        mode = file.environment(head=head).get("RAY_AUTH_MODE")
        if mode != "token":
            state = "is not set" if mode is None else f"is {mode}"
            yield (
                file.starts(key)[0],
                f"RAY_AUTH_MODE {state}, so whoever reaches the port runs commands; set RAY_AUTH_MODE=token for `ray start`.",
            )
    if "~/.ray" not in file.at("file_mounts", default={}) and TOKEN_FILE not in file.at("file_mounts", default={}):
        yield file.line("file_mounts"), 'nodes get no token; mount it: "~/.ray": "~/.ray", made by `vit-search cluster token`.'


def listening(file: ClusterFile) -> Problems:
    """No server listens on all addresses."""
    for path, text in file.texts():
        if re.search(r"(?<![\d.])0\.0\.0\.0(?![\d./])|--(?:dashboard-host|host)[= ]['\"]?(?:::|\*)", text):
            yield file.line(*path), "a server for all the world; bind 127.0.0.1 and come through ssh, e.g. `ray dashboard cluster.yaml`."
    line, command = file.starts("head_start_ray_commands")
    if command and not re.search(r"--dashboard-host[= ]['\"]?(127\.0\.0\.1|localhost|0\.0\.0\.0|::)", command):
        yield line, "the dashboard, which runs jobs, is not bound to 127.0.0.1; add --dashboard-host=127.0.0.1."


def secrets(file: ClusterFile) -> Problems:
    """The file contains no secret."""
    for path, text in file.texts():
        for pattern, what in SECRETS:
            if pattern.search(text):
                yield file.line(*path), f"{what} in plain text; put it in a file of mode 0600 on the node, and read it there."
                break
    for path in list(file.document.lines):
        name = str(path[-1]) if path else ""
        if re.search(r"(?i)(password|secret|token|api_key)$", name) and isinstance(file.at(*path), str) and "/" not in name:
            yield file.line(*path), f"{name} in plain text; put it in a file of mode 0600 on the node, and read it there."


def mounted_files(file: ClusterFile) -> Problems:
    """The files that are copied to the nodes exist, and contain no git history."""
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


def ssh_key(file: ClusterFile) -> Problems:
    """The ssh key exists, and other accounts cannot read it."""
    key = file.at("auth", "ssh_private_key")
    if isinstance(key, str):
        path = Path(key).expanduser()
        line = file.line("auth", "ssh_private_key")
        if not path.is_file():
            yield line, f"{key} is not there; name your key, or leave the line out."
        elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield line, f"{key} has mode {stat.S_IMODE(path.stat().st_mode):04o}, and ssh refuses it; chmod 600."


def security_groups(file: ClusterFile) -> Problems:
    """The nodes are in your own security groups, which let in few addresses."""
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


def metadata_service(file: ClusterFile) -> Problems:
    """The metadata service of each node answers only IMDSv2."""
    for name in file.types if file.cloud else ():
        if file.at("available_node_types", name, "node_config", "MetadataOptions", "HttpTokens") != "required":
            yield (
                file.line("available_node_types", name, "node_config"),
                f"{name} answers to IMDSv1, through which one tricked request gets the machine's credentials; "
                "add MetadataOptions: {HttpTokens: required}.",
            )


def settings_of_nodes(file: ClusterFile) -> Problems:
    """The nodes send no usage statistics and load no pickles."""
    loads = "loads pickles, which run their writer's code"
    wanted = [
        ("RAY_USAGE_STATS_ENABLED", "0", "reports home"),
        ("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9", "reports home that it does not report"),
        ("MLFLOW_DISABLE_TELEMETRY", "true", "reports home"),
        ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1", loads),
        ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false", loads),
    ]
    for head, key in ((True, "head_start_ray_commands"), (False, "worker_start_ray_commands")):
        variables = file.environment(head=head)
        for name, value, why in wanted:
            if variables.get(name) != value:
                yield file.starts(key)[0], f"a node {why}; set {name}={value} for `ray start`."


def rights(file: ClusterFile) -> Problems:
    """The head has only the AWS rights that it needs, and workers have none."""
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
