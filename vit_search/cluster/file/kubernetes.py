"""Writes manifests for Kubernetes, with the names, sizes and commands of a cluster file."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_search.cluster.file.aws import gpus_of
from vit_search.cluster.file.cluster_file import ClusterFile
from vit_search.cluster.file.start_settings import container_settings, storage_folder
from vit_search.cluster.file.yaml_text import yaml_text
from vit_search.cluster.head.folders import SEARCHES
from vit_search.cluster.head.mlflow_server import ADMIN, mlflow_accounts, mlflow_command
from vit_search.cluster.paths import check_paths
from vit_search.config import search_file, strict_yaml
from vit_search.errors import ClusterError
from vit_search.tracking import server_app

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")
IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._:/@-]*")
ACCOUNT_ID = 1000
"""Id of the account `ray` in rayproject's images. MLflow's container uses it, too."""

POSTGRES_IMAGE = "postgres:17.6"
POSTGRES_ID = 999
RAYISH = {"app": "vit-search-ray"}
"""Label of all Ray pods, whatever name KubeRay gives the cluster."""

GRACE_S = 120
"""Seconds between the notice and the end of a pod. That is enough for a checkpoint, and AWS gives as much."""

CONTROL = {"cpu": "2", "memory": "8Gi"}
WORKER = {"cpu": "4", "memory": "14Gi"}


def kuberay(file: Path, *, image: str, namespace: str, storage_class: str, job: Path | None = None) -> str:
    """Manifests for Kubernetes with KubeRay 1.5.1 or newer.

    Without `job`, they make a RayCluster. With it, a RayJob that has its own cluster for this one search file.

    Raises: SpecError, ClusterError.
    """
    for option, value, pattern in (("--image", image, IMAGE), ("--namespace", namespace, NAME), ("--storage-class", storage_class, NAME)):
        if not pattern.fullmatch(value):
            raise ClusterError(f"{option}: {value!r} is no such name for Kubernetes; use letters, digits and dashes.")
    source = ClusterFile(file, strict_yaml.load(file))
    name = _name(str(source.at("cluster_name", default="vit-search")), f"{file}:{source.line('cluster_name')}: cluster_name")
    if job is None:
        rayish = [_kind("ray.io/v1", "RayCluster", name, spec=_ray_cluster(source, image, keeper=_keeper(name)))]
    else:
        rayish = _ray_job(job, _ray_cluster(source, image, keeper=None), image, storage_folder(source))
    documents = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "baseline"}},
        },
        *(_in(namespace, document) for document in [*_network(), *_volumes(storage_class), *_postgres(), *_mlflow(image), *rayish]),
    ]
    return yaml_text(_about(name, image, namespace), documents)


def _name(name: str, where: str) -> str:
    if not NAME.fullmatch(name):
        raise ClusterError(f"{where} {name!r} is no name for Kubernetes; use small letters, digits and dashes.")
    return name


def _about(cluster: str, image: str, namespace: str) -> list[str]:
    names = "postgres_password mlflow_admin_password mlflow_search_password mlflow_secret_key"
    secrets = [f"    --from-file={name}=<(openssl rand -hex 32 | tr -d '\\n')" for name in names.split()]
    return [
        "Written by `vit-search cluster kuberay`, for `kubectl apply -f -`. Its fields are the reference's; no Kubernetes has tried it.",
        f"{image} is the image of cluster.yaml with this package: COPY . /src, then, as the account ray,",
        "  RUN pip install --no-deps --require-hashes -r /src/requirements.lock && pip install --no-deps --no-build-isolation /src",
        "Its secrets, once, and before the rest (in bash; none of them stands in this file or on a command line):",
        f"  kubectl create namespace {namespace}; kubectl -n {namespace} create secret generic vit-search-secrets \\",
        *[f"{line} \\" for line in secrets[:-1]],
        secrets[-1],
        f"KubeRay makes Ray's token: kubectl -n {namespace} get secret {cluster} -o jsonpath='{{.data.auth_token}}' | base64 -d",
        f"Reach Ray and MLflow by kubectl -n {namespace} port-forward svc/{cluster}-head-svc 8265, and svc/mlflow 5000.",
    ]


def _kind(version: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **rest}


def _in(namespace: str, document: dict[str, Any]) -> dict[str, Any]:
    return document | {"metadata": {**document["metadata"], "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "vit-search"}}}


def _secret(variable: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": "vit-search-secrets", "key": key}}}


def _plain(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _closed(*, readonly: bool = True) -> dict[str, Any]:
    """Security settings of a container: what it may not do."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": readonly, "capabilities": {"drop": ["ALL"]}}


def _pod(account: int, containers: list[dict[str, Any]], volumes: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A pod that runs as an ordinary account, without credentials for Kubernetes."""
    security = {"runAsNonRoot": True, "runAsUser": account, "fsGroup": account, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "automountServiceAccountToken": False,
        "securityContext": security,
        "containers": containers,
        "volumes": [{"name": name, **kind} for name, kind in volumes.items()],
        **rest,
    }


def _claim(name: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name}}


def _keeper(cluster: str) -> list[dict[str, Any]]:
    """Further environment variables of the keeper. KubeRay gives the token only to Ray's own containers."""
    token = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": cluster, "key": "auth_token"}}}
    return [*_plain({"RAY_AUTH_MODE": "token"}), token]


def _ray_cluster(file: ClusterFile, image: str, *, keeper: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The spec of a cluster. With `keeper` (its environment), a keeper of searches runs beside the head."""
    storage = storage_folder(file)
    inside = {"shared": storage, "tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108 -- volumes of the pod
    volumes = {"shared": _claim("vit-search-shared"), "tmp": {"emptyDir": {}}, "shm": {"emptyDir": {"medium": "Memory"}}}
    mounts = [{"name": volume, "mountPath": path} for volume, path in inside.items()]

    def container(role: str, size: dict[str, str], environment: list[dict[str, Any]]) -> dict[str, Any]:
        resources = {"requests": size, "limits": size}
        return {
            "name": role,
            "image": image,
            "resources": resources,
            "env": environment,
            "volumeMounts": mounts,
            "securityContext": _closed(),
        }

    settings = {
        key: value for key, value in container_settings(file, head=True).items() if key not in ("RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")
    }
    plain = _plain(settings | {"HOME": "/tmp"})  # noqa: S108 -- RAY_AUTH_MODE and the token come from authOptions
    account = _plain({"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_TRACKING_USERNAME": SEARCHES})
    account.append(_secret("MLFLOW_TRACKING_PASSWORD", "mlflow_search_password"))
    containers = [container("ray-head", CONTROL, plain + account)]
    if keeper is not None:
        kept = container("keeper", {"cpu": "250m", "memory": "1Gi"}, plain + account + keeper)
        containers.append(kept | {"command": ["/bin/bash", "-c", "while true; do vit-search cluster keep; sleep 10; done"]})
    head = _pod(ACCOUNT_ID, containers, volumes, terminationGracePeriodSeconds=GRACE_S)
    head.pop("automountServiceAccountToken")  # the autoscaler beside the head talks to Kubernetes

    def worker_pod(size: dict[str, str]) -> dict[str, Any]:
        return _pod(ACCOUNT_ID, [container("ray-worker", size, plain)], volumes, terminationGracePeriodSeconds=GRACE_S)

    return {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": int(file.at("idle_timeout_minutes", default=10) * 60),
            "securityContext": _closed(readonly=False),
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 -- inside the pod
            "template": {"metadata": {"labels": RAYISH}, "spec": head},
        },
        "workerGroupSpecs": [_worker_group(name, kind, worker_pod) for name, kind in file.workers.items()],
    }


def _worker_group(name: str, kind: dict[str, Any], pod_of: Callable[[dict[str, str]], dict[str, Any]]) -> dict[str, Any]:
    """The workers of one node type. `pod_of` makes their pod, given its resources."""
    node = kind.get("node_config") or {}
    gpus = gpus_of(str(node.get("InstanceType", "")))
    tainted = ["nvidia.com/gpu", *(["spot"] if "InstanceMarketOptions" in node else [])]
    pod = pod_of(WORKER | ({"nvidia.com/gpu": str(gpus)} if gpus else {}))
    pod["tolerations"] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tainted]
    return {
        "groupName": name.replace("_", "-"),
        "replicas": kind.get("min_workers", 0),
        "minReplicas": kind.get("min_workers", 0),
        "maxReplicas": kind.get("max_workers", 1),
        "rayStartParams": {},
        "template": {"metadata": {"labels": RAYISH}, "spec": pod},
    }


def _ray_job(job: Path, cluster: dict[str, Any], image: str, storage: str) -> list[dict[str, Any]]:
    """A search file, and a cluster that lives as long as its search. If you apply it again after an end, the search continues."""
    spec = search_file.load(job)
    check_paths(spec, str(job))
    name = _name(spec.name.lower().replace("_", "-").replace(".", "-"), f"{job}: name")
    head = cluster["headGroupSpec"]["template"]["spec"]
    head["volumes"].append({"name": "search", "configMap": {"name": f"{name}-search"}})
    for container in head["containers"]:
        container["volumeMounts"] = [*container["volumeMounts"], {"name": "search", "mountPath": "/etc/vit_search", "readOnly": True}]
    folder = f"{storage}/searches/{name}"
    first = f"vit-search run /etc/vit_search/search.yaml --address auto --output {storage}/searches --as {name}"
    submitter = {"name": "ray-job-submitter", "image": image, "securityContext": _closed(readonly=False)}
    body: dict[str, Any] = {
        "entrypoint": f"bash -c 'if test -f {folder}/ledger.jsonl; then vit-search resume {folder} --address auto; else {first}; fi'",
        "rayClusterSpec": cluster,
        "submitterPodTemplate": {
            "metadata": {"labels": RAYISH},
            "spec": _pod(ACCOUNT_ID, [submitter], {}, restartPolicy="Never"),
        },
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 0,
    }
    if spec.limits.hours is not None:
        body["activeDeadlineSeconds"] = int(spec.limits.hours * 3600) + 3600  # for the start of nodes and the last epoch
    return [
        _kind("v1", "ConfigMap", f"{name}-search", data={"search.yaml": strict_yaml.read_text(job)}),
        _kind("ray.io/v1", "RayJob", name, spec=body),
    ]


def _network() -> list[dict[str, Any]]:
    """Network policies: only traffic between parts that belong together. kubectl's port-forward still works, since it uses the node."""
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}}}

    def policy(title: str, selector: dict[str, str], rules: list[dict[str, Any]]) -> dict[str, Any]:
        labels = {"matchLabels": selector} if selector else {}
        spec = {"podSelector": labels, "policyTypes": ["Ingress"], "ingress": rules}
        return _kind("networking.k8s.io/v1", "NetworkPolicy", title, spec=spec)

    def from_(selector: dict[str, str], port: int) -> dict[str, Any]:
        return {"from": [{"podSelector": {"matchLabels": selector}}], "ports": [{"port": port, "protocol": "TCP"}]}

    among = {"from": [{"podSelector": {"matchLabels": RAYISH}}]}
    account = from_({"app": "mlflow-account"}, 5000)
    return [
        policy("deny-all", {}, []),
        policy("ray", RAYISH, [among, {"from": [operator], "ports": [{"port": 8265, "protocol": "TCP"}]}]),
        policy("mlflow", {"app": "mlflow"}, [from_(RAYISH, 5000), account]),
        policy("postgres", {"app": "postgres"}, [from_({"app": "mlflow"}, 5432)]),
    ]


def _volumes(storage_class: str) -> list[dict[str, Any]]:
    def claim(name: str, mode: str, size: str, kind: dict[str, str]) -> dict[str, Any]:
        spec = {"accessModes": [mode], "resources": {"requests": {"storage": size}}, **kind}
        return _kind("v1", "PersistentVolumeClaim", name, spec=spec)

    return [
        claim("vit-search-shared", "ReadWriteMany", "200Gi", {"storageClassName": storage_class}),
        claim("vit-search-postgres", "ReadWriteOnce", "50Gi", {}),
        claim("vit-search-artifacts", "ReadWriteOnce", "200Gi", {}),
    ]


def _service(name: str, port: int) -> dict[str, Any]:
    return _kind("v1", "Service", name, spec={"selector": {"app": name}, "ports": [{"port": port}]})


def _deployment(name: str, pod: dict[str, Any]) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels}, "template": template}
    return _kind("apps/v1", "Deployment", name, spec=spec)


def _postgres() -> list[dict[str, Any]]:
    create = "CREATE DATABASE mlflow_auth OWNER mlflow;\n"
    container = {
        "name": "postgres",
        "image": POSTGRES_IMAGE,
        "env": [
            *_plain({"POSTGRES_USER": "mlflow", "POSTGRES_DB": "mlflow", "PGDATA": "/var/lib/postgresql/data/pgdata"}),
            _secret("POSTGRES_PASSWORD", "postgres_password"),
        ],
        "ports": [{"containerPort": 5432}],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "readinessProbe": {"exec": {"command": ["pg_isready", "-q", "-U", "mlflow"]}},
        "livenessProbe": {"exec": {"command": ["pg_isready", "-q", "-U", "mlflow"]}, "initialDelaySeconds": 60, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "data", "mountPath": "/var/lib/postgresql/data"},
            {"name": "run", "mountPath": "/var/run/postgresql"},
            {"name": "first", "mountPath": "/docker-entrypoint-initdb.d", "readOnly": True},
        ],
        "securityContext": _closed(),
    }
    volumes = {"data": _claim("vit-search-postgres"), "run": {"emptyDir": {}}, "first": {"configMap": {"name": "postgres-first"}}}
    pod = _pod(POSTGRES_ID, [container], volumes)
    first = _kind("v1", "ConfigMap", "postgres-first", data={"mlflow_auth.sql": create})
    return [first, _deployment("postgres", pod), _service("postgres", 5432)]


def _mlflow(image: str) -> list[dict[str, Any]]:
    settings = mlflow_accounts("postgresql+psycopg://mlflow:${POSTGRES_PASSWORD}@postgres:5432/mlflow_auth")
    server = " ".join(["python", *mlflow_command(5000, "/artifacts", host="0.0.0.0", names=("mlflow",))[1:]])  # noqa: S104 -- inside the pod
    lines = ["umask 077", f"printf '%s\\n' {' '.join(_quoted(line) for line in settings)} > /tmp/mlflow_auth.ini"]
    lines += ['export MLFLOW_BACKEND_STORE_URI="postgresql+psycopg://mlflow:${POSTGRES_PASSWORD}@postgres:5432/mlflow"', f"exec {server}"]
    off = {"MLFLOW_AUTH_CONFIG_PATH": "/tmp/mlflow_auth.ini", "HOME": "/tmp"}  # noqa: S108
    off |= server_app.SETTINGS | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    secret = [_secret("POSTGRES_PASSWORD", "postgres_password"), _secret("MLFLOW_AUTH_ADMIN_PASSWORD", "mlflow_admin_password")]
    secret.append(_secret("MLFLOW_FLASK_SERVER_SECRET_KEY", "mlflow_secret_key"))
    container = {
        "name": "mlflow",
        "image": image,
        "command": ["/bin/bash", "-c", "\n".join(lines)],
        "env": [*_plain(off), *secret],
        "ports": [{"containerPort": 5000}],
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": 5000}, "initialDelaySeconds": 10},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 5000}, "initialDelaySeconds": 120, "failureThreshold": 6},
        "volumeMounts": [{"name": "artifacts", "mountPath": "/artifacts"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        "securityContext": _closed(),
    }
    pod = _pod(ACCOUNT_ID, [container], {"artifacts": _claim("vit-search-artifacts"), "tmp": {"emptyDir": {}}})
    account = {
        "name": "account",
        "image": image,
        "command": ["python", "-P", "-c", _OPEN_ACCOUNT],
        "env": [_secret("ADMIN", "mlflow_admin_password"), _secret("PASSWORD", "mlflow_search_password")],
        "securityContext": _closed(),
    }
    job = _kind(
        "batch/v1",
        "Job",
        "mlflow-account",
        spec={
            "backoffLimit": 20,
            "template": {
                "metadata": {"labels": {"app": "mlflow-account"}},
                "spec": _pod(ACCOUNT_ID, [account], {}, restartPolicy="OnFailure"),
            },
        },
    )
    return [_deployment("mlflow", pod), _service("mlflow", 5000), job]


_OPEN_ACCOUNT = f"""\
import base64, json, os, urllib.error, urllib.request
login = base64.b64encode(("{ADMIN}:" + os.environ["ADMIN"]).encode()).decode()
body = json.dumps({{"username": "{SEARCHES}", "password": os.environ["PASSWORD"]}}).encode()
headers = {{"Content-Type": "application/json", "Authorization": "Basic " + login}}
try:
    urllib.request.urlopen(urllib.request.Request("http://mlflow:5000/api/2.0/mlflow/users/create", body, headers), timeout=60)
except urllib.error.HTTPError as error:
    if "RESOURCE_ALREADY_EXISTS" not in error.read().decode():
        raise
"""


def _quoted(line: str) -> str:
    return f'"{line}"'
