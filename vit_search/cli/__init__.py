"""The commands. This is the only package that parses arguments, prints or exits. `vit-search` runs `main`."""

from vit_search.cli import cluster, inspect, plan, promote, search, serve, status, weights  # noqa: F401 -- each adds its commands to `app`
from vit_search.cli.app import main

__all__ = ["main"]
