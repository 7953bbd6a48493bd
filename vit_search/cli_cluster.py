"""The commands for a Ray cluster, from a laptop and on its head; cli.py joins them to the others."""

from __future__ import annotations

import typer

cluster = typer.Typer(help="Make a Ray cluster, and look one over.", no_args_is_help=True, rich_markup_mode=None)


def join(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.add_typer(cluster, name="cluster")


# --- searches on a cluster: submit, list, logs, check -------------------------------------------------------------------


# --- the cluster itself: cluster check, render, kuberay, token, head, keep ----------------------------------------------
