"""The command line. Only this package parses arguments, prints or exits. The program `vit-search` calls `main`."""

from vit_search.cli import cluster, inspect, plan, promote, search, serve, status, weights  # noqa: F401 -- each adds its commands to `app`
from vit_search.cli.app import main

__all__ = ["main"]
