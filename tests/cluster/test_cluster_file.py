"""The cluster's file: what is shipped passes, each rule refuses what it is for, and its twins for other places pass too."""

import re
import subprocess
from importlib import metadata

import pytest
import yaml
from helpers.commands import COMMAND
from helpers.paths import ROOT

from vit_search.cluster.file import lint, local_machines
from vit_search.cluster.file.kubernetes import kuberay
from vit_search.config import strict_yaml
from vit_search.errors import ClusterError, SpecError
from vit_search.runtime import ray_token as token

AWS = (ROOT / "docs/operations/aws.md").read_text()
SHIPPED = (ROOT / "cluster.yaml").read_text()
IMAGE = "registry.example.org/vit-search:1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the file mounts, in a home with a token."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(token.PLACE, raising=False)
    (tmp_path / "home").mkdir()
    token.ensure()
    (tmp_path / ".git").mkdir()
    return tmp_path


def checked(folder, text):
    path = folder / "cluster.yaml"
    path.write_text(text)
    return lint.check(path)


def changed(old, new, times=1):
    assert SHIPPED.count(old) >= times, old
    return SHIPPED.replace(old, new, times)


def test_the_shipped_file_passes_and_names_the_places_to_fill_in(folder):
    report = checked(folder, SHIPPED)
    assert report.findings == []
    assert {re.match(r"[a-z]+", blank.text).group() for blank in report.blanks} == {"ami", "subnet", "sg", "fs", "vol"}


def test_the_shipped_file_is_of_the_locked_ray():
    lock = re.sub(r"\[[a-z,]+\]==", "==", (ROOT / "requirements.lock").read_text())
    assert f"\nray=={metadata.version('ray')} " in lock
    assert f"rayproject/ray:{metadata.version('ray')}-py311-gpu" in SHIPPED


def test_each_knob_says_in_its_line_what_it_does():
    told = set()
    for line in SHIPPED.splitlines():
        code, hash_, _ = line.partition(" #")
        fresh = set(re.findall(r"(?<![\w$'-])([A-Za-z_]+):(?= |$)", code)) - told
        assert not fresh or hash_ or line.lstrip().startswith("#"), line
        told |= fresh


SPOT = next(line for line in SHIPPED.splitlines(keepends=True) if "MarketType: spot" in line)
GROUPS = "      SecurityGroupIds: [sg-00000000000000000]  # yours"
MUTANTS = {
    "R0 unknown key": ("R0", ("upscaling_speed:", "upscaling_sped:")),
    "R0 fractional GPU": ("R0", ("resources: {}                   #", "resources: {GPU: 0.5}           #")),
    "R1 no token mode": ("R1", ("    - -e RAY_AUTH_MODE=token", "    - -e RAY_AUTH=token")),
    "R1 mode off": ("R1", ("RAY_AUTH_MODE=token ", "RAY_AUTH_MODE=disabled ")),
    "R1 no token": ("R1", ('  "~/.ray": "~/.ray" ', '  "~/ray": "~/.ray" ')),
    "R2 dashboard for all": ("R2", ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")),
    "R2 dashboard of Ray's choice": ("R2", ("--dashboard-host=127.0.0.1 ", "")),
    "R2 dashboard on every address": ("R2", ("--dashboard-host=127.0.0.1", "--dashboard-host=::")),
    "R3 latest": ("R3", ("rayproject/ray:2.60.0-py311-gpu", "rayproject/ray:latest-py311-gpu")),
    "R3 no tag": ("R3", ("rayproject/ray:2.60.0-py311-gpu", "registry.example.org:5000/ray")),
    "R3 another Ray": ("R3", ("rayproject/ray:2.60.0-py311-gpu", "rayproject/ray:2.49.0-py311-gpu")),
    "R3 another Python": ("R3", ("rayproject/ray:2.60.0-py311-gpu", "rayproject/ray:2.60.0-py39-gpu")),
    "R4 trials on the head": ("R4", ("resources: {CPU: 0, GPU: 0}", "resources: {CPU: 4, GPU: 0}")),
    "R4 head of all cores": ("R4", ("--num-cpus=0 ", "")),
    "R5 no storage": ("R5", ("    - -e VIT_SEARCH_STORAGE=/mnt/vit_search ", "    - -e OTHER=/mnt/vit_search ")),
    "R5 storage of its own": ("R5", ("VIT_SEARCH_STORAGE=/mnt/vit_search ", "VIT_SEARCH_STORAGE=/tmp/vit_search ")),
    "R5 not in the container": ("R5", ("    - -v /mnt/vit_search:/mnt/vit_search ", "    - -v /mnt/other:/mnt/other ")),
    "R5 not mounted": ("R5", ("    initialization_commands:\n", "    initialization_commands: []\n    worker_setup_commands:\n")),
    "R6 AWS key": (
        "R6",
        ("    - -e RAY_USAGE_STATS_ENABLED=0", "    - -e KEY_ID=AKIAIOSFODNN7EXAMPLE\n    - -e RAY_USAGE_STATS_ENABLED=0"),
    ),
    "R6 token": ("R6", ("ulimit -n 65536; export PATH", "export RAY_AUTH_TOKEN=0123456789abcdef; ulimit -n 65536; export PATH")),
    "R6 password in an address": ("R6", ("http://127.0.0.1:5000", "http://me:s3cret@127.0.0.1:5000")),
    "R6 password as a key": ("R6", ("max_workers: 8  ", "metadata: {mlflow_password: letmein}\nmax_workers: 8  ")),
    "R7 no idle timeout": ("R7", ("idle_timeout_minutes: 10", "# ")),
    "R7 a week": ("R7", ("idle_timeout_minutes: 10", "idle_timeout_minutes: 10080")),
    "R8 unbounded type": (
        "R8",
        ("    min_workers: 0                  # none while no trial waits\n    max_workers: 8\n", "    min_workers: 0\n"),
    ),
    "R8 more than all": ("R8", ("    max_workers: 8\n", "    max_workers: 80\n")),
    "R8 unbounded": ("R8", ("max_workers: 8          ", "# ")),
    "R9 spot head": ("R9", (GROUPS, SPOT + GROUPS)),
    "R9 nothing to fall back on": ("R9", ("    priority: 0\n", "    priority: 20\n")),
    "R10 nothing to mount": ("R10", ('"~/vit_search": "."', '"~/vit_search": "./elsewhere"')),
    "R10 the history too": ("R10", ('rsync_exclude: ["**/.git", ', "rsync_exclude: [")),
    "R11 an open key": ("R11", ("# ssh_private_key: ~/.ssh/vit-search.pem", "  ssh_private_key: ~/open.pem")),
    "R11 no key": ("R11", ("# ssh_private_key: ~/.ssh/vit-search.pem", "  ssh_private_key: ~/none.pem")),
    "R12 Ray's own group": ("R12", (GROUPS, "      # yours")),
    "R12 rules for it": (
        "R12",
        ("  use_internal_ips", "  security_group: {GroupName: a, IpPermissions: [{FromPort: 22}]}\n  use_internal_ips"),
    ),
    "R12 everybody": (
        "R12",
        ("  use_internal_ips", '  security_group: {IpPermissions: [{IpRanges: [{CidrIp: "0.0.0.0/0"}]}]}\n  use_internal_ips'),
    ),
    "R13 IMDSv1": ("R13", ("MetadataOptions: {HttpTokens: required, ", "MetadataOptions: {HttpTokens: optional, ")),
    "R14 small disk": ("R14", ("VolumeSize: 150", "VolumeSize: 30")),
    "R14 in clear": ("R14", ("Encrypted: true", "Encrypted: false")),
    "R15 misspelt key": ("R15", ("      InstanceType: g6.xlarge       #", "      InstanceTyp: g6.xlarge       #")),
    "R15 misspelt type": ("R15", ("g6.xlarge       #", "g6.xlrage       #")),
    "R15 GPUs that are not there": ("R15", ("resources: {}                   #", "resources: {GPU: 4}             #")),
    "R15 an old image": ("R15", ("      ImageId: ami-00000000000000000            # as", "      # as")),
    "R16 no head": ("R16", ("ray start --head ", "ray start ")),
    "R16 no autoscaler": ("R16", (" --autoscaling-config=~/ray_bootstrap_config.yaml", "")),
    "R16 a worker alone": ("R16", ("--address=$RAY_HEAD_IP:6379 ", "")),
    "R16 a head whose sockets are open": ("R16", ("--head --temp-dir=$(mktemp -d /tmp/ray-XXXXXXXX)/ray", "--head")),
    "R16 a worker whose sockets are open": (
        "R16",
        ("6379 --temp-dir=$(mktemp -d /tmp/ray-XXXXXXXX)/ray --object", "6379 --temp-dir=/tmp/ray --object"),
    ),
    "R17 Ray's own name": ("R17", ("cluster_name: vit-search ", "cluster_name: default ")),
    "R18 no lock": ("R18", ("--no-deps --require-hashes -r ~/vit_search/requirements.lock", "--no-deps torch ray")),
    "R18 what comes today": ("R18", ("worker_setup_commands: [] ", "worker_setup_commands: [pip install boto3] ")),
    "R19 telemetry": ("R19", ("    - -e RAY_USAGE_STATS_ENABLED=0 ", "    - -e RAY_USAGE_STATS_ENABLED=1 ")),
    "R19 telemetry of having none": (
        "R19",
        ("RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9 ", "RAY_USAGE_STATS_REPORT_URL=https://usage-stats.ray.io "),
    ),
    "R19 pickles": ("R19", ("TORCH_FORCE_WEIGHTS_ONLY_LOAD=1", "TORCH_FORCE_WEIGHTS_ONLY_LOAD=0")),
    "R20 all rights": ("R20", ("      IamInstanceProfile: {Name: vit-search-head} ", "      # ")),
    "R20 rights of trials": ("R20", (SPOT, SPOT + "      IamInstanceProfile: {Name: vit-search-head}\n")),
    "R21 stopped machines": ("R21", ("cache_stopped_nodes: false", "cache_stopped_nodes: true")),
    "R22 no services": ("R22", ("  - ~/env/bin/vit-search cluster head --state /mnt/vit_search-head\n", "")),
    "R22 a database on shared storage": ("R22", ("--state /mnt/vit_search-head", "--state /mnt/vit_search/head")),
    "R22 a database in the container": ("R22", ("    - -v /mnt/vit_search-head:/mnt/vit_search-head ", "    - -v /mnt/a:/mnt/a ")),
    "R22 drivers without an account": ("R22", (" . /mnt/vit_search-head/secrets/mlflow.env;", "")),
    "R23 no region": ("R23", ("region: us-west-2  ", "region: Oregon  ")),
    "R23 another region's zone": ("R23", ("us-west-2a ", "eu-west-1a ")),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_rule_refuses_what_it_is_for(folder, mutant):
    rule, (old, new) = MUTANTS[mutant]
    (folder / "home" / "open.pem").write_text("")
    (folder / "home" / "open.pem").chmod(0o644)
    found = {finding.rule for finding in checked(folder, changed(old, new)).findings}
    assert found == {rule}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("upscaling_speed:", "upscaling_sped:", "upscaling_sped: unknown key; did you mean upscaling_speed?"),
        ("resources: {}                   #", "resources: {GPU: 0.5}           #", "resources.GPU: 0.5 will not do; give a whole number."),
        ("cache_stopped_nodes: false", "cache_stopped_nodes: nope", "cache_stopped_nodes: 'nope' will not do; give true or false."),
        ("\nmax_workers:", "\nmax_workers: # ", "max_workers: has no value; give a whole number."),
    ],
)
def test_what_ray_refuses_is_said_in_plain_words_at_its_line(folder, old, new, said):
    text = changed(old, new)
    (found,) = [finding for finding in checked(folder, text).findings if finding.rule == "R0"]
    assert found.text.startswith("Ray refuses it: ")
    assert found.text.endswith(said)
    assert found.line == 1 + text[: text.index(new)].count("\n") + new.startswith("\n")


def test_every_rule_has_a_mutant():
    assert {rule for rule, _ in MUTANTS.values()} == {f"R{number}" for number in range(lint.RULES + 1)}  # R0 is Ray's schema


def test_the_guide_and_the_command_count_the_same_rules(folder):
    (told,) = re.findall(r"Ray's schema and (\d+) rules of its own", AWS)
    (folder / "cluster.yaml").write_text(SHIPPED)
    done = subprocess.run([COMMAND, "cluster", "check"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (printed,) = re.findall(r"cluster.yaml: no problem found by Ray's schema and our (\d+) rules$", done.stdout, re.MULTILINE)
    assert int(told) == int(printed) == lint.RULES


def test_a_finding_names_the_line_and_the_command_leaves_with_2(folder):
    (folder / "cluster.yaml").write_text(changed("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"))
    done = subprocess.run([COMMAND, "cluster", "check"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    line = SHIPPED[: SHIPPED.index("ulimit -n 65536; export PATH")].count("\n")  # where the command begins
    assert done.stdout == (
        f"cluster.yaml:{line}: R2: a server for all the world; bind 127.0.0.1 and come through ssh, e.g. `ray dashboard cluster.yaml`.\n"
    )


def test_what_could_be_read_in_two_ways_is_refused(folder):
    with pytest.raises(SpecError, match="the alias"):
        checked(folder, SHIPPED + "metadata: {a: &a 1, b: *a}\n".replace("&a ", ""))
    with pytest.raises(SpecError, match="write true or false"):
        checked(folder, changed("use_internal_ips: true", "use_internal_ips: yes"))


def test_ray_adds_ssh_from_everywhere_to_a_group_that_it_makes():
    """Why R12 asks for a group of one's own, whatever rules stand under provider.security_group."""
    aws = pytest.importorskip("ray.autoscaler._private.aws.config")
    rules = aws._create_default_inbound_rules({"sg-1"}, [{"FromPort": 22, "IpRanges": [{"CidrIp": "198.51.100.0/24"}]}])
    assert {"CidrIp": "0.0.0.0/0"} in [one for rule in rules for one in rule.get("IpRanges", [])]


def test_the_file_for_own_machines_passes_and_says_the_same(folder):
    path = folder / "cluster.yaml"
    path.write_text(SHIPPED)
    text = local_machines.local(path, ["head.example", "10.0.0.2", "10.0.0.3"], user="me", key=None)
    (folder / "local.yaml").write_text(text)
    assert lint.check(folder / "local.yaml").findings == []
    made = strict_yaml.load(folder / "local.yaml").values
    assert made["provider"] == {"type": "local", "head_ip": "head.example", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    assert made["min_workers"] == made["max_workers"] == 2
    aws = strict_yaml.load(path).values
    assert made["setup_commands"] == aws["setup_commands"]
    for told, said in zip(made["head_start_ray_commands"], aws["head_start_ray_commands"], strict=True):
        assert told.endswith(said)
    assert "docker" not in made


@pytest.mark.parametrize(
    ("machines", "mend"),
    [
        (["head"], "give at least one worker"),
        (["head", "w", "w"], "give each once"),
        (["head", "w;rm"], "no host name"),
    ],
)
def test_machines_that_make_no_cluster_are_refused(machines, mend):
    with pytest.raises(ClusterError, match=mend):
        local_machines.local(ROOT / "cluster.yaml", machines, user="me", key=None)


def kubernetes(**options):
    text = kuberay(ROOT / "cluster.yaml", image=IMAGE, namespace="vit-search", storage_class="efs-sc", **options)
    return text, [strict_yaml.parse(part, "manifest").values for part in re.split(r"(?m)^---$", text)]


def test_the_manifests_for_kubernetes_hold_together():
    text, documents = kubernetes()
    kinds = [document["kind"] for document in documents]
    assert kinds.count("PersistentVolumeClaim") == 3
    assert kinds[-1] == "RayCluster"
    assert documents == list(yaml.safe_load_all(text))
    assert all(document["metadata"]["namespace"] == "vit-search" for document in documents[1:])
    spec = documents[-1]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == metadata.version("ray")
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 600
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [(group["groupName"], group["minReplicas"], group["maxReplicas"]) for group in spec["workerGroupSpecs"]] == [
        ("gpu-spot", 0, 8),
        ("gpu-on-demand", 0, 2),
    ]


def test_each_pod_is_closed_and_what_it_names_is_there():
    _, documents = kubernetes()
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    pods = [document["spec"]["template"]["spec"] for document in documents if document["kind"] in ("Deployment", "Job")]
    cluster = documents[-1]["spec"]
    rays = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods += [group["template"]["spec"] for group in rays]
    assert len(pods) == 6
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v} <= claims
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            assert not re.search(r"latest$", container["image"])
            for variable in container["env"]:
                assert ("PASSWORD" in variable["name"] or "TOKEN" in variable["name"]) <= ("valueFrom" in variable), variable
    gpus = [group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for group in rays]
    assert gpus == [None, "1", "1"]


def test_nothing_comes_in_but_what_belongs_together():
    _, documents = kubernetes()
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}
    (mlflow,) = [d for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"] == "mlflow"]
    assert policies["mlflow"]["podSelector"]["matchLabels"].items() <= mlflow["spec"]["template"]["metadata"]["labels"].items()
    head = documents[-1]["spec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policies["ray"]["podSelector"]["matchLabels"].items() <= head.items()
    (command,) = [c["command"][-1] for c in mlflow["spec"]["template"]["spec"]["containers"]]
    assert "--app-name basic-auth" in command
    assert "--allowed-hosts 127.0.0.1:5000,localhost:5000,mlflow:5000" in command


def test_a_search_as_a_ray_job_takes_up_what_it_began():
    _, documents = kubernetes(job=ROOT / "search_spaces/digits.yaml")
    config, job = documents[-2:]
    assert config["data"]["search.yaml"] == (ROOT / "search_spaces/digits.yaml").read_text()
    assert job["metadata"]["name"] == "digits"
    assert job["spec"]["backoffLimit"] == 0
    assert "vit-search resume /mnt/vit_search/searches/digits --address auto" in job["spec"]["entrypoint"]
    assert "--output /mnt/vit_search/searches --as digits" in job["spec"]["entrypoint"]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert [container["name"] for container in head["containers"]] == ["ray-head"]


def test_a_ray_job_of_a_file_with_paths_of_this_machine_is_refused(tmp_path):
    file = tmp_path / "photos.yaml"
    file.write_text("name: photos\ndata: {name: image_folder, path: photos, image_size: 8}\ntrials: 1\nepochs: 1\nmodel: {patch_size: 4}\n")
    with pytest.raises(SpecError, match=r"photos\.yaml: data\.path: 'photos' is a path of this machine"):
        kubernetes(job=file)


@pytest.mark.parametrize(
    ("options", "mend"),
    [({"image": "a b"}, "--image"), ({"namespace": "Vit_search"}, "--namespace"), ({"storage_class": "a;b"}, "--storage")],
)
def test_names_that_kubernetes_would_refuse_are_refused(options, mend):
    with pytest.raises(ClusterError, match=mend):
        kuberay(ROOT / "cluster.yaml", **{"image": IMAGE, "namespace": "a", "storage_class": "b"} | options)
