"""What the command line itself answers, and which search a command takes where none is named."""

import os
from importlib.metadata import version

import pytest
from synthetic import made
from typer.main import get_command
from typer.testing import CliRunner

from vit_search import terminal
from vit_search.cli import app
from vit_search.errors import VitSearchError


def test_the_version_is_printed():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, f"vit_search {version('vit_search')}")


@pytest.mark.parametrize("words", [[], ["run"], ["cluster"], ["cluster", "check"]], ids=" ".join)
def test_h_is_help(words):
    short, long = (CliRunner().invoke(app, [*words, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.output.startswith("Usage:")
    assert short.output == long.output


@pytest.mark.parametrize("words", [[], ["cluster"]], ids=" ".join)
def test_the_help_fits_80_columns_and_cuts_no_summary(words):
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}).output
    assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in shown.replace("[ARGS]...", "")


def test_the_help_lists_each_command_once_in_its_section():
    shown = CliRunner().invoke(app, ["--help"]).output
    commands = [name for name, command in get_command(app).commands.items() if not command.hidden]
    listed = [name for names in terminal.SECTIONS.values() for name in names.split()]
    assert sorted(listed) == sorted(commands)
    assert "Other:" not in shown
    titles = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options:", "Search:", "Results:", "Production:", "Cluster:"]
    for name in listed:
        assert sum(line.startswith(f"  {name} ") for line in shown.splitlines()) == 1, name


def test_logs_takes_the_newest_search_where_none_is_named(tmp_path):
    for at, name in enumerate(("new-1", "old-1")):  # not by name, nor by the order in which they were made
        made(tmp_path, name, seed=at)
        os.utime(tmp_path / name / "search.json", (2e9 - at, 2e9 - at))
    named, newest, other = (
        CliRunner().invoke(app, ["logs", *words, "--output", str(tmp_path)]).output for words in (["new-1"], [], ["old-1"])
    )
    assert newest == named != other


@pytest.mark.parametrize("name", ["status", "logs", "pause", "continue", "stop", "cancel", "set", "add", "resume"])
def test_a_command_on_a_running_search_takes_the_address_of_its_cluster(name, tmp_path):
    (tmp_path / "x.yaml").write_text("depth: 2\n")
    file = [str(tmp_path / "x.yaml")] if name == "add" else []
    done = CliRunner().invoke(app, [name, *file, "made-1", "--address", "http://", "--insecure"])
    assert isinstance(done.exception, VitSearchError)
    assert str(done.exception) == "--address http://: no URL of a Jobs API; give one such as http://127.0.0.1:8265."
