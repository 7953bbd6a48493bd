"""What the command line itself answers, before any command runs."""

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from vit_search.cli import app


def test_the_version_is_printed():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, f"vit_search {version('vit_search')}")


@pytest.mark.parametrize("words", [[], ["run"], ["cluster"], ["cluster", "check"]], ids=" ".join)
def test_h_is_help(words):
    short, long = (CliRunner().invoke(app, [*words, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.output.startswith("Usage:")
    assert short.output == long.output
