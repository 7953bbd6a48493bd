"""The commands for a Ray cluster, from a laptop and on its head; cli.py joins them to the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vit_search.cluster.services import Service

cluster = typer.Typer(help="Make a Ray cluster, and look one over.", no_args_is_help=True, rich_markup_mode=None)


def join(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.add_typer(cluster, name="cluster")


# --- searches on a cluster: submit, list, logs, check -------------------------------------------------------------------


# --- the cluster itself: cluster check, render, kuberay, token, head, keep ----------------------------------------------

ClusterFile = Annotated[Path, typer.Argument(help="The cluster's file.", metavar="[FILE]")]
State = Annotated[Path, typer.Option(help="Folder of the services' data, secrets and logs, on a disk of the head's own.")]
Port = Annotated[int, typer.Option(help="MLflow's, on 127.0.0.1.")]

FOUND = 2
"""Exit code of a check that found something."""

UNWELL = 1
"""Exit code where a service does not run."""


@cluster.command()
def check(file: ClusterFile = Path("cluster.yaml")) -> None:
    """Hold a cluster's file against Ray's own schema, and against what that lets pass."""
    from vit_search.cluster import lint

    report = lint.check(file)
    for finding in report.findings:
        typer.echo(f"{file}:{finding.line}: {finding.rule}: {finding.text}")
    if report.findings:
        sys.exit(FOUND)
    for finding in report.blanks:
        typer.echo(f"{file}:{finding.line}: fill in: {finding.text}")
    typer.echo(f"{file}: nothing odd, {lint.RULES} rules looked at")


@cluster.command()
def render(
    local: Annotated[str, typer.Option(help="The machines: the head first, then the workers, e.g. head,w1,w2.", metavar="HEAD,WORKER,…")],
    file: ClusterFile = Path("cluster.yaml"),
    user: Annotated[str, typer.Option(help="Account on each of them, reached by ssh.")] = "ubuntu",
    key: Annotated[str | None, typer.Option(help="Its private key on this machine; what ssh takes by default.")] = None,
) -> None:
    """Print the cluster's file for machines of your own: the same packages, commands and settings, without a cloud."""
    from vit_search.cluster import render as rendering

    sys.stdout.write(rendering.local(file, local.split(","), user=user, key=key))


@cluster.command()
def kuberay(
    image: Annotated[str, typer.Option(help="With this package in it; how to build one stands at the top of what is printed.")],
    file: ClusterFile = Path("cluster.yaml"),
    job: Annotated[Path | None, typer.Option(help="A search file: a RayJob that runs it on a cluster of its own.", metavar="FILE")] = None,
    namespace: Annotated[str, typer.Option(help="Kubernetes namespace.")] = "vit-search",
    storage_class: Annotated[str, typer.Option(help="Of a volume that many nodes can write to.")] = "efs-sc",
) -> None:
    """Print manifests for Kubernetes with KubeRay: cluster, MLflow, PostgreSQL, volumes, network policy."""
    from vit_search.cluster import render as rendering

    sys.stdout.write(rendering.kuberay(file, image=image, job=job, namespace=namespace, storage_class=storage_class))


@cluster.command()
def token(show: Annotated[bool, typer.Option("--show", help="Print the token itself.")] = False) -> None:
    """Make the token of a cluster, once, and see that nobody else can read it."""
    from vit_search.cluster import token as tokens

    made = tokens.ensure()
    for line in made.mended:
        typer.echo(line, err=True)
    if show:
        typer.echo(tokens.read())
    else:
        typer.echo(f"{made.path}: {'made' if made.made else 'there'}, and its owner alone can read it")


@cluster.command()
def head(
    state: State = Path("/mnt/vit_search-head"),
    port: Port = 5000,
    look: Annotated[bool, typer.Option("--status", help="Start nothing; say how they stand. Exit code 1 where one is not well.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End them.")] = False,
) -> None:
    """On the head, have PostgreSQL, MLflow and the keeper of searches run, and stay running."""
    from vit_search.cluster import services

    this = services.Head(state, port)
    if stop:
        services.stop(state)
        return
    storage = os.environ.get("VIT_SEARCH_STORAGE")
    found = services.status(this) if look else services.start(this, storage=Path(storage) if storage else None)
    _print_services(found)
    if not look:
        typer.echo(f"MLflow: {this.uri}   accounts: {services.ADMIN} and {services.SEARCHES}, passwords in {this.secrets}")
    elif not all(service.well for service in found):
        sys.exit(UNWELL)


@cluster.command()
def worker(state: State = Path("/tmp/vit_search-worker")) -> None:  # noqa: S108 -- of the node, and lost with it
    """On a worker, have the watcher for the cloud's spot notice run, and stay running."""
    from vit_search.cluster import services

    services.supervise(state, [services.Program("spot", (*services.vit_search(), "cluster", "watch-spot"))])


@cluster.command(name="watch-spot")
def watch_spot(
    metadata: Annotated[str, typer.Option(help="The metadata service.", hidden=True)] = "http://169.254.169.254",
    node_id: Annotated[str | None, typer.Option(help="Of the node to drain; this machine's by default.", hidden=True)] = None,
) -> None:
    """Wait for AWS's two-minute notice on a spot instance, and drain this node when it comes."""
    from vit_search.cluster import spot

    for line in spot.watch(spot.Metadata(metadata), node_id=node_id):
        typer.echo(line)
        sys.stdout.flush()


@cluster.command(hidden=True)
def serve(service: Annotated[str, typer.Argument()], state: State = Path("/mnt/vit_search-head"), port: Port = 5000) -> None:
    """Become one of the head's services; for supervisord."""
    from vit_search.cluster import services
    from vit_search.errors import ClusterError

    become = {"postgres": services.run_postgres, "mlflow": services.run_mlflow}.get(service)
    if become is None:
        raise ClusterError(f"{service}: no service of the head; say postgres or mlflow.")
    become(services.Head(state, port))


def _print_services(found: list[Service]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("service", "state", "since", "answers", "where", "log", box=None, header_style="dim")
    for service in found:
        answers = "" if service.answers is None else "yes" if service.answers else "[red]no[/]"
        style = "green" if service.well else "red"
        table.add_row(service.name, f"[{style}]{service.state}[/]", service.detail, answers, service.where, str(service.log))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
