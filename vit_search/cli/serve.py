"""The commands that use a registered model: predict, serve."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vit_search.cli.app import Tracking, app, err, out, print_note, registry_uri_unless_folder
from vit_search.cli.terminal import escaped


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[str, typer.Option(help="NAME@champion, NAME/3, or a folder that `vit-search train` made.")],
    tracking_uri: Tracking = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify image files with a registered model."""
    from rich.table import Table

    from vit_search.serving import prediction

    for image in images:
        prediction.check_readable(image)  # before the slow imports of torch and MLflow
    predictions = prediction.predict(model, images, tracking_uri=registry_uri_unless_folder(model, tracking_uri), say=print_note)
    if as_json:
        sys.stdout.write(json.dumps([vars(p) for p in predictions], indent=1) + "\n")
        return
    table = Table("image", "label", "probability", box=None, header_style="dim")
    for p in predictions:
        table.add_row(escaped(p.image), f"[bold]{escaped(p.label)}[/]", f"{p.probability:.3f}")
    out.print(table)


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="NAME@champion (an alias, which the server follows), NAME/3, or a folder that `vit-search train` made.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on. An address that others can reach needs VIT_SEARCH_SERVE_TOKEN.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further host name that requests may use for the server. Repeat it for more names."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=256, help="Number of processes that classify. They share the port.")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="Classify on GPUs.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Largest number of images that are classified at once.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Number of requests that a replica holds. Further requests get status 503.")] = 256,
    max_mib: Annotated[float, typer.Option(min=0.001, max=1024, help="Largest request, in MiB.")] = 16,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Longest time from a request's headers to its answer, in seconds.")
    ] = 10,
    poll: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks at the registry for a new version.")] = 2,
    tracking_uri: Tracking = None,
) -> None:
    """Serve a registered model over HTTP, and follow its alias.

    When the alias moves to another version, the server loads that version and answers with it.
    """
    from vit_search.registry import references

    if references.folder_of(model) is None:
        references.parse(model)
    tracking_uri = registry_uri_unless_folder(model, tracking_uri)
    from vit_search.serving import server
    from vit_search.serving.limits import ReplicaLimits
    from vit_search.serving.settings import ServingSettings

    limits = ReplicaLimits(batch=batch, queue=queue, body_bytes=int(max_mib * 2**20), timeout_s=timeout)
    names = tuple(allow_host or ())
    settings = ServingSettings(host=host, port=port, allow_hosts=names, replicas=replicas, gpus=gpus, limits=limits, poll_s=poll)
    server.serve(model, settings, tracking_uri=tracking_uri, say=lambda line: err.print(escaped(line), soft_wrap=True))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # everything has ended; Python would need seconds to free the objects of torch, Ray and MLflow
