"""The commands a person types; the only place that prints, parses arguments, or exits. `vit-search` runs `main`."""

from vit_search.cli.app import main

__all__ = ["main"]
