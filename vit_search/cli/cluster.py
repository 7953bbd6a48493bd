"""The commands for a Ray cluster, from a laptop and on its head."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_search.cli import terminal
from vit_search.cli.app import FOUND, Insecure, Url, app, err, out
from vit_search.cli.remote import connect, writing
from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_units
from vit_search.errors import ClusterError
from vit_search.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from vit_search.cluster.head.services import Service
    from vit_search.cluster.jobs.cluster_facts import Facts, Node
    from vit_search.cluster.jobs.preflight import PreflightFinding

cluster = typer.Typer(help="Set up a Ray cluster, and check one.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cluster, name="cluster")


# --- searches on a cluster: submit, check, and what they run on its head -------------------------------------------------


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="A search file. Its paths are those of the cluster.")],
    address: Url,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end of the search, and exit with its exit code.")] = False,
    key: Annotated[str, typer.Option(help="A text, for example a date. The same file with another key is another search.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Start another search, even if this file was submitted before.")] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Download the data set and the pretrained weights to the cluster if missing there.")
    ] = False,
    insecure: Insecure = False,
) -> None:
    """Submit a search to a Ray cluster, which runs it to its end.

    If you submit the same file twice, there is still one search.
    """
    there = connect(address, insecure)
    from vit_search.cluster.jobs import logs
    from vit_search.cluster.jobs.submit import submit as submit_search

    with err.status("measuring the cluster …"):
        handed = submit_search(there, file, key=key, again=again, download=download)
    for warning in handed.warnings:
        err.print(f"[yellow]warning:[/] {escaped(warning)}", soft_wrap=True)
    if handed.new:
        out.print(f"[bold]{escaped(handed.search)}[/] is submitted.", soft_wrap=True)
    else:
        out.print(
            f"[bold]{escaped(handed.search)}[/] was submitted before: {escaped(handed.state)}. --again starts another search.",
            soft_wrap=True,
        )
    where = escaped(f"{handed.search} --address {there.address}")
    if wait:
        try:
            with writing(there.address) as write:
                code = logs.wait(there, handed.search, write=write)
            sys.exit(code)
        except KeyboardInterrupt:
            err.print(f"It goes on without you; to end it:  vit-search cancel {where}", soft_wrap=True)
            raise
    out.print(f"\nNext:  vit-search status {where} --watch", soft_wrap=True)
    out.print(f"       vit-search logs {where} -f", soft_wrap=True)


@app.command(name="check")
def check_there(
    address: Url,
    file: Annotated[Path | None, typer.Argument(help="A search file that you want to run there.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all measurements as JSON.")] = False,
    insecure: Insecure = False,
) -> None:
    """Check a cluster: nodes, versions, storage, MLflow, clocks.

    Exit code 2: something is wrong.
    """
    from vit_search.config import search_file

    spec = search_file.load(file) if file else None
    there = connect(address, insecure)
    from vit_search.cluster.jobs import preflight
    from vit_search.cluster.jobs.head_command import measure_cluster
    from vit_search.cluster.paths import check_paths

    if spec is not None:
        check_paths(spec, str(file))
    with err.status("measuring the cluster …"):
        facts = measure_cluster(there, spec)
    findings = preflight.findings(facts, spec)
    wrong = any(finding.severity == "error" for finding in findings)
    if as_json:
        sys.stdout.write(json.dumps(asdict(facts) | {"findings": [asdict(one) for one in findings], "ready": not wrong}, indent=1) + "\n")
    else:
        print_facts(facts, findings)
    if wrong:
        sys.exit(ClusterError.exit_code)


RIGHT = ("CPUs", "GPUs", "memory", "free", "clock")
"""Columns of numbers: aligned to the right."""


def print_facts(facts: Facts, findings: list[PreflightFinding]) -> None:
    """Print the facts about a cluster: a table of its nodes, then what they share, then what is wrong."""
    from rich.table import Table

    columns = ("node", "address", "CPUs", "GPUs", "memory", "free", "versions", "storage", "cache", "clock")
    for line in terminal.table(columns, [_cells(node, facts.head.versions) for node in facts.nodes], width=out.width, right=RIGHT):
        out.print(line, soft_wrap=True)
    versions = ", ".join(f"{name} {number}" for name, number in facts.head.versions.items())
    lines = [("versions", versions), ("storage", facts.storage), ("cache", facts.cache), ("MLflow", facts.mlflow)]
    for shape in facts.types:
        size = f"{counted(shape.cpus, 'CPU')} and {counted(shape.gpus, 'GPU')}" if shape.cpus < float("inf") else "of unknown size"
        lines.append(("may come", f"up to {shape.count} of {shape.name}, {size} each"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, text in lines:
        grid.add_row(f"[dim]{label}[/]", escaped(text))
    for finding in findings:
        grid.add_row(f"[{'bold red' if finding.severity == 'error' else 'yellow'}]{finding.severity}[/]", escaped(finding.text))
    out.print(grid)
    wrong = sum(finding.severity == "error" for finding in findings)
    out.print("[bold green]ready[/]" if not wrong else f"[bold red]not ready[/]: {wrong} to mend")


def _cells(node: Node, versions: dict[str, str]) -> list[str]:
    """One node's row of the table; a dash for what is unknown."""
    name = f"{node.name}{' (head)' if node.head else ''}"
    gpus = f"{node.gpus:g}{f' {node.accelerator}' if node.accelerator else ''}"
    start = [escaped(name), escaped(node.address), f"{node.cpus:g}", escaped(gpus), in_units(node.memory)]
    if node.trouble:
        return [*start, *["–"] * 5]
    fine = [node.versions == versions, not node.storage, not node.cache]
    clock = f"{node.skew_s:+.3f} s" if abs(node.skew_s) < 100 else f"{node.skew_s:+.0f} s"
    return [*start, in_units(node.free_memory), *("ok" if good else "[red]no[/]" for good in fine), clock]


@cluster.command(hidden=True)
def drive(
    search: Annotated[str, typer.Argument(help="Name of a search in this cluster's storage.")],
    file: Annotated[Path | None, typer.Option(help="Its search file, where it is new.")] = None,
    user: Annotated[str, typer.Option(help="Who submitted it.")] = "",
    key: Annotated[str, typer.Option(help="By which the same file is another search.")] = "",
    pin: Annotated[str | None, typer.Option(help="Version of vit_search where it was submitted.")] = None,
    space: Annotated[str, typer.Option(help="Hash of its search space there.")] = "",
    download: Annotated[
        bool, typer.Option("--download", help="Download the data set and the pretrained weights if they are missing.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Although it was stopped or has ended.")] = False,
) -> None:
    """Run a search on the head. A submitted job calls this."""
    from vit_search.cluster.jobs import driver

    if file is not None:
        driver.begin(search, file, user=user, key=key, pinned=pin or "", space_hash=space, download=download)
    sys.exit(driver.drive(search, _say(err), again=again, pinned=pin if again else None))


@cluster.command(hidden=True)
def preflight(
    data: Annotated[str | None, typer.Option(help="Images that a search file names.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="A file of pretrained weights that it names.")] = None,
    search: Annotated[str | None, typer.Option(help="A search to tell of.")] = None,
) -> None:
    """Measure the cluster that this node is the head of, and print it as JSON."""
    from vit_search.cluster.jobs import measurement

    facts = measurement.measure(data=data, weights=weights or (), search=search)
    sys.stdout.write(json.dumps(asdict(facts)) + "\n")


@cluster.command(hidden=True)
def states(
    stopped: Annotated[str | None, typer.Option(help="A search that is not to be taken up any more, written down first.")] = None,
) -> None:
    """Print the states of the searches in this cluster's storage, as JSON."""
    from vit_search.cluster import record

    if stopped is not None:
        record.change(record.folder_of(stopped), wanted="stopped")
    sys.stdout.write(json.dumps(record.states()) + "\n")


@cluster.command()
def keep(
    address: Annotated[str, typer.Option(help="Jobs API, on this machine.", metavar="URL")] = "http://127.0.0.1:8265",
    every: Annotated[float, typer.Option(help="Seconds between two checks.", min=0.1)] = 10.0,
) -> None:
    """On the head: submit a search again if its job was killed.

    It runs until it is ended.
    """
    from vit_search.cluster.jobs import keeper

    keeper.keep(address, _say(out), every_s=every)


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(escaped(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"), soft_wrap=True)


# --- the cluster itself: cluster check, render, kuberay, token, head, worker, watch-spot ---------------------------------

ClusterFile = Annotated[Path, typer.Argument(help="Ray's cluster file.", metavar="FILE")]
State = Annotated[
    Path | None,
    typer.Option(help="Folder for the data, secrets and logs of the services, on a disk of the head. Default: /mnt/vit_search-head."),
]
Port = Annotated[int, typer.Option(help="MLflow's port, on 127.0.0.1.")]


@cluster.command()
def check(file: ClusterFile = Path("cluster.yaml")) -> None:
    """Check a cluster file against Ray's schema and our rules."""
    from vit_search.cluster.file import lint

    report = lint.check(file)
    for finding in report.findings:
        typer.echo(f"{file}:{finding.line}: {finding.rule}: {finding.text}")
    if report.findings:
        sys.exit(ClusterError.exit_code)
    for finding in report.blanks:
        typer.echo(f"{file}:{finding.line}: fill in: {finding.text}")
    typer.echo(f"{file}: no problem found by Ray's schema and our {lint.RULES} rules")


@cluster.command()
def render(
    local: Annotated[
        str, typer.Option(help="The machines: first the head, then the workers, for example head,w1,w2.", metavar="HEAD,WORKER,…")
    ],
    file: ClusterFile = Path("cluster.yaml"),
    user: Annotated[str, typer.Option(help="Account for ssh on each machine.")] = "ubuntu",
    key: Annotated[str | None, typer.Option(help="Private key for ssh. Default: the one that ssh chooses.")] = None,
) -> None:
    """Print a cluster file for machines of your own.

    It has the same packages, commands and settings, but needs no cloud.
    """
    from vit_search.cluster.file import local_machines

    sys.stdout.write(local_machines.local(file, local.split(","), user=user, key=key))


@cluster.command()
def kuberay(
    image: Annotated[str, typer.Option(help="Container image with this package. The first lines of the output say how to build one.")],
    file: ClusterFile = Path("cluster.yaml"),
    job: Annotated[
        Path | None, typer.Option(help="A search file. The output is then a RayJob that runs it on a cluster of its own.", metavar="FILE")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Kubernetes namespace.")] = "vit-search",
    storage_class: Annotated[str, typer.Option(help="Storage class of a volume that many nodes can write to.")] = "efs-sc",
) -> None:
    """Print manifests for Kubernetes with KubeRay.

    They contain the cluster, MLflow, PostgreSQL, the volumes and the network policy.
    """
    from vit_search.cluster.file import kubernetes

    sys.stdout.write(kubernetes.kuberay(file, image=image, job=job, namespace=namespace, storage_class=storage_class))


@cluster.command()
def token(show: Annotated[bool, typer.Option("--show", help="Print the token itself.")] = False) -> None:
    """Make the token of a cluster, once.

    It also makes sure that no other account can read it.
    """
    from vit_search.runtime import ray_token as tokens

    made = tokens.ensure()
    for line in made.mended:
        typer.echo(line, err=True)
    if show:
        typer.echo(tokens.read())
    else:
        typer.echo(f"{made.path}: {'created' if made.made else 'exists'}; only you can read it")


@cluster.command()
def head(
    state: State = None,
    port: Port = 5000,
    look: Annotated[
        bool, typer.Option("--status", help="Start nothing; print the state of the services. Exit code 1: one of them is not well.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the services.")] = False,
) -> None:
    """On the head: run PostgreSQL, MLflow and the keeper.

    The keeper submits a search again if its job was killed. If one of the three dies, it is started again.
    """
    from vit_search.cluster import record
    from vit_search.cluster.head import services, supervisor
    from vit_search.cluster.head.folders import SEARCHES, HeadServices
    from vit_search.cluster.head.mlflow_server import ADMIN

    this = HeadServices(state or record.HEAD_STATE, port)
    if stop:
        supervisor.stop(this.state)
        return
    states = services.status(this) if look else services.start(this, storage=record.storage())
    _print_services(states)
    if not look:
        typer.echo(f"MLflow: {this.uri}   accounts: {ADMIN} and {SEARCHES}, passwords in {this.secrets}")
    elif not all(service.well for service in states):
        sys.exit(FOUND)


@cluster.command()
def worker(
    state: Annotated[Path | None, typer.Option(help="Folder of the log. Default: ~/.vit_search-worker.")] = None,
) -> None:
    """On a worker: watch for the cloud's spot notice.

    If the watcher dies, it is started again.
    """
    from vit_search.cluster.head import supervisor

    watcher = supervisor.Program("spot", (*supervisor.vit_search_command(), "cluster", "watch-spot"))
    supervisor.supervise(state or Path.home() / ".vit_search-worker", [watcher])


@cluster.command(name="watch-spot")
def watch_spot(
    metadata: Annotated[str, typer.Option(help="The metadata service.", hidden=True)] = "http://169.254.169.254",
    node_id: Annotated[str | None, typer.Option(help="Of the node to drain; this machine's by default.", hidden=True)] = None,
) -> None:
    """Drain this node when AWS is about to take it back.

    It waits for the notice that a spot instance gets two minutes before.
    """
    from vit_search.cluster import spot

    for line in spot.watch(spot.Metadata(metadata), node_id=node_id):
        typer.echo(line)
        sys.stdout.flush()


@cluster.command(hidden=True)
def serve(service: Annotated[str, typer.Argument()], state: State = None, port: Port = 5000) -> None:
    """Become one of the head's services. supervisord calls this."""
    from vit_search.cluster import record
    from vit_search.cluster.head.folders import HeadServices
    from vit_search.cluster.head.mlflow_server import run_mlflow
    from vit_search.cluster.head.postgres import run_postgres

    become = {"postgres": run_postgres, "mlflow": run_mlflow}.get(service)
    if become is None:
        raise ClusterError(f"{service}: no service of the head; say postgres or mlflow.")
    become(HeadServices(state or record.HEAD_STATE, port))


def _print_services(services: list[Service]) -> None:
    from rich.table import Table

    table = Table("service", "state", "since", "answers", "where", "log", box=None, header_style="dim")
    for service in services:
        answers = "" if service.answers is None else "yes" if service.answers else "[red]no[/]"
        style = "green" if service.well else "red"
        cells = (service.detail, service.where, str(service.log))
        table.add_row(escaped(service.name), f"[{style}]{escaped(service.state)}[/]", escaped(cells[0]), answers, *map(escaped, cells[1:]))
    out.print(table, soft_wrap=True)
