"""What the command line itself answers, and which search a command takes where none is named."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from helpers.commands import vit_search
from helpers.synthetic import begin, made
from rich.table import Table
from typer.main import get_command
from typer.testing import CliRunner

from vit_search.cli import terminal
from vit_search.cli.app import app
from vit_search.errors import VitSearchError
from vit_search.ledger.events import Launched
from vit_search.ledger.file import Ledger


def test_the_version_is_printed():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, f"vit_search {version('vit_search')}")


@pytest.mark.parametrize("command", ["run", "resume", "extend", "promote"])
def test_the_niceness_of_trials_is_what_the_command_says(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "15")
    CliRunner().invoke(app, [command, str(tmp_path / "missing"), "--nice", "3"])
    assert os.environ["RAY_worker_niceness"] == "3"  # noqa: SIM112 -- Ray's spelling


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
    assert titles == ["Options:", "Search:", "Results:", "Production:", "Weights:", "Cluster:"]
    for name in listed:
        assert sum(line.startswith(f"  {name} ") for line in shown.splitlines()) == 1, name


NAMES = ("search", "state", "jobs", "took", "by")
ROWS = [["cats-and-dogs-3f2a9c", "[red]failed[/]", "2", "12 min 30 s", "ada"], ["a", "running", "11", "3 s", ""]]


def test_a_table_that_fits_has_a_line_for_each_row():
    assert terminal.table(NAMES, ROWS, width=80, right=["jobs"]) == [
        "[dim]search                state    jobs  took         by[/]",
        "cats-and-dogs-3f2a9c  [red]failed[/]      2  12 min 30 s  ada",
        "a                     running    11  3 s",
    ]


def test_what_does_not_fit_beside_stands_below_and_nothing_is_cut():
    assert terminal.table(NAMES, ROWS, width=40, right=["jobs"]) == [
        "[dim]search                state    jobs[/]",
        "cats-and-dogs-3f2a9c  [red]failed[/]      2",
        "    took 12 min 30 s, by ada",
        "a                     running    11",
        "    took 3 s",
    ]
    narrow = terminal.table(NAMES, ROWS, width=5)
    assert narrow[1:3] == ["cats-and-dogs-3f2a9c", "    state [red]failed[/],"]


@pytest.mark.parametrize("library", ["yaml", "ray"])
def test_ctrl_c_during_the_imports_of_run_is_one_line(tmp_path, library):
    (tmp_path / "t.yaml").write_text("name: t\ndata: {name: digits}\ntrials: 1\nepochs: 1\n")
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    code = "import sys\nfrom vit_search import cli\nsys.path.insert(0, '.')\nsys.argv = ['vit-search', 'run', 't.yaml']\ncli.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was started.\n")
    assert not (tmp_path / "searches").exists()


def test_logs_takes_the_search_that_began_last_where_none_is_named_whatever_times_its_files_have(tmp_path):
    for at, name in ((2.0, "new-1"), (1.0, "old-1")):  # a copy of a project makes its files in any order
        folder, _, _ = begin(tmp_path, name)
        ledger = Ledger(folder / "ledger.jsonl")
        ledger.append(Launched(host=name, pid=1, at=at))
        ledger.close()
    named, newest, other = (
        CliRunner().invoke(app, ["logs", *words, "--output", str(tmp_path)]).output for words in (["new-1"], [], ["old-1/"])
    )
    assert newest == named != other


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "--json", "--csv"], "--json and --csv: give one of them."),
        (["show", "--top", "-1"], "'--top': Input should be"),
        (["ui", "--port", "99999"], "'--port': Input should be"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, said):
    done = CliRunner().invoke(app, words)
    assert said in (str(done.exception) if isinstance(done.exception, VitSearchError) else done.output)


def test_add_takes_a_file_with_any_keys(tmp_path):
    (tmp_path / "x.yaml").write_text("name: digits\noutput: here\n")
    made(tmp_path, "over-1")
    done = CliRunner().invoke(app, ["add", str(tmp_path / "x.yaml"), "over-1", "--output", str(tmp_path)])
    assert isinstance(done.exception, VitSearchError), done.exception
    assert "this search is finished" in str(done.exception)


@pytest.mark.parametrize("name", ["status", "logs", "pause", "continue", "stop", "cancel", "set", "add", "resume"])
def test_a_command_on_a_running_search_takes_the_address_of_its_cluster(name, tmp_path):
    (tmp_path / "x.yaml").write_text("depth: 2\n")
    file = [str(tmp_path / "x.yaml")] if name == "add" else []
    done = CliRunner().invoke(app, [name, *file, "made-1", "--address", "http://", "--insecure"])
    assert isinstance(done.exception, VitSearchError)
    assert str(done.exception) == "--address http://: no URL of a Jobs API; give one such as http://127.0.0.1:8265."


def test_a_table_in_a_pipe_has_one_line_a_row_and_no_blanks_at_its_ends(capsys):
    table = Table("gate", "seen", box=None)
    table.add_row("G1", "word " * 200 + "end")
    table.add_row("G10 of a longer name", "little")
    terminal.console().print(table)
    assert capsys.readouterr().out.splitlines() == [
        " gate                  seen",
        f" G1                    {'word ' * 200}end",
        " G10 of a longer name  little",
    ]


def test_what_lint_prints_into_a_pipe_has_no_blanks_at_the_ends_of_lines(tmp_path):
    (tmp_path / "odd.yaml").write_text(
        "name: odd\ndata: {name: digits}\ntrials: 2\nepochs: 9\nmodel: {patch_size: {choice: [1, 2, 3]}, dim: 16, heads: 2}\n"
    )
    lines = vit_search(tmp_path, "lint", "odd.yaml").stdout.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert [line for line in lines if "3 is in no proposal that can be run" in line]
