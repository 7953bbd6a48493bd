"""The documentation is true and whole: the site builds strictly and loads nothing from elsewhere, and what its pages show is read."""

import ast
import configparser
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import typer
import yaml
from helpers import documents
from helpers.documents import PAGES, blocks
from helpers.paths import ROOT
from typer.main import get_command

import vit_search.cli
from vit_search import errors
from vit_search.cli import app
from vit_search.cluster.file import lint
from vit_search.config import search_file
from vit_search.config.metrics import TABLE
from vit_search.config.search_file import SearchSpec
from vit_search.errors import VitSearchError
from vit_search.promotion import policy
from vit_search.promotion.policy import Policy

COMMANDS = get_command(app.app)
SMALLEST = """
name: fragment
trials: 20
epochs: 30
model:
  patch_size: {{choice: {patches}}}
  depth: {{int: [2, 6]}}
  dim: {{int: [64, 192], step: 32}}
  heads: {{choice: [2, 4]}}
  dropout: {{float: [0, 0.3]}}
training:
  lr: {{float: [1.0e-4, 1.0e-2], log: true}}
  weight_decay: {{float: [1.0e-3, 0.3], log: true}}
data: {data}
"""
MINIMAL = [
    SMALLEST.format(patches="[2, 4]", data="{name: digits}"),
    SMALLEST.format(patches="[4, 8]", data="{name: cifar10, path: data}"),
    SMALLEST.format(patches="[16, 32]", data="{name: image_folder, path: photos, image_size: 224}"),
]
"""Search files into which a fragment is merged; one of them must take it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "site"
    documents.build(folder)
    return folder


# The site


def test_the_site_has_a_page_for_each_source_and_each_is_in_the_menu(site):
    sources = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert len(list(site.rglob("*.html"))) > len(sources)
    assert "<!-- generated" not in "".join(page.read_text() for page in site.rglob("*.html"))


def test_a_broken_link_a_broken_anchor_and_a_page_that_the_menu_lacks_fail_the_build(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "vit_search").symlink_to(ROOT / "vit_search")
    (tmp_path / "docs/extra.md").write_text("# Extra\n\n[a](nowhere.md), [b](glossary.md#nothing), [c](/absolute.md)\n")
    said = documents.build(tmp_path / "site", config=tmp_path / "mkdocs.yml", code=1)
    for fault in ("'nowhere.md'", "'glossary.md#nothing'", "'/absolute.md'", 'not included in the "nav"'):
        assert fault in said


class Loaded(HTMLParser):
    """What a page has a browser load."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "a":
            return
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action", "poster", "content") and value:
                self.addresses.append(value)
            if name == "style":
                self.addresses += re.findall(r"url\(([^)]*)\)", value or "")


def test_the_site_loads_nothing_from_another_host(site):
    remote = re.compile(r"^\s*[\"']?(https?:)?//")
    for page in site.rglob("*.html"):
        text = page.read_text()
        found = [address for address in Loaded(text).addresses if remote.match(address)]
        assert not found, f"{page.relative_to(site)}: {found}"
        assert "fonts.g" not in text
    for sheet in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(), flags=re.DOTALL)
        found = [address for address in re.findall(r"(?:url\(|@import\s+)([^)\s;]*)", text) if remote.match(address)]
        assert not found, f"{sheet.name}: {found}"


# What is generated


def page(site, name):
    return re.sub(r"<[^>]*>", "", (site / name / "index.html").read_text())


def test_the_reference_of_the_search_file_has_every_key_with_its_meaning(site):
    schema = search_file.json_schema()
    html, text = (site / "reference/search-file/index.html").read_text(), page(site, "reference/search-file")
    sections = {"data": "DataSection", "model": "ModelSection", "training": "TrainingSection"}
    sections |= {name.lower(): name for name in ("Stopping", "Limits", "Resources")} | {"objectives": "Objective"}
    keys = [key for key in schema["properties"] if key not in sections]
    keys += [f"{section}.{key}" for section, name in sections.items() for key in schema["$defs"][name]["properties"]]
    assert len(keys) > 80
    for key in keys:
        assert f'id="{key}"' in html, key
    for part in (
        "whole number 1 to 1,000,000, required",
        "lr — number above 0 and at most 10, default 0.001",
        "one of tiny, small, base, finetune or null",
    ):
        assert part in text


def test_no_meaning_is_missing_in_the_reference(site):
    for name in ("search-file", "policy", "metrics", "commands"):
        html = (site / "reference" / name / "index.html").read_text()
        assert not re.findall(r"<dd>\s*(<p>\s*</p>)?\s*</dd>", html), name
        assert html.count("<dt>") == html.count("<dd>") > 10, name


def test_the_reference_of_the_commands_has_every_command_and_option(site):
    html, text = (site / "reference/commands/index.html").read_text(), page(site, "reference/commands")

    def walk(command, words):
        inner = getattr(command, "commands", {})
        if words:
            assert f'id="{"-".join(words)}"' in html
        for option in command.params if words else ():
            if not getattr(option, "hidden", False):
                argument = option.param_type_name == "argument"
                assert (option.metavar or option.opts[0].upper() if argument else option.opts[0]) in text, (words, option.opts)
        for name, one in inner.items():
            if not one.hidden:
                walk(one, (*words, name))

    walk(COMMANDS, ())


def test_each_metric_says_what_it_is(site):
    text = page(site, "reference/metrics")
    assert all(metric.meaning and metric.name in text for metric in TABLE)


def test_the_exit_codes_are_all_of_them(site):
    codes = {error.exit_code for error in vars(errors).values() if isinstance(error, type) and issubclass(error, VitSearchError)}
    assert codes | {0, app.FOUND, app.NOT_PROMOTED, app.NOT_RECORDED, app.INTERRUPTED} == set(app.EXIT_CODES)
    rows = re.findall(r"<tr>\s*<td>(\d+)</td>", (site / "reference/exit-codes/index.html").read_text())
    assert [int(row) for row in rows] == sorted(app.EXIT_CODES)


def test_the_python_reference_has_every_public_function(site):
    html = (site / "reference/python/index.html").read_text()
    for name in vit_search.__all__:
        assert f'id="vit_search.{name}"' in html, name


# Blocks


def merged(whole, fragment):
    """A search file with a fragment's keys; those of model and training beside the others, a section `data` in place of the other."""
    both = dict(whole)
    for key, value in fragment.items():
        both[key] = {**whole[key], **value} if key in ("model", "training") and isinstance(value, dict) else value
    return both


def check_search_file(text, keys):
    if "name" in keys:
        search_file.parse(text)
        return
    faults = []
    for minimal in MINIMAL:
        try:
            search_file.parse(yaml.safe_dump(merged(yaml.safe_load(minimal), yaml.safe_load(text)), sort_keys=False))
            return
        except VitSearchError as error:
            faults.append(str(error))
    raise AssertionError("no minimal search file takes this fragment:\n" + "\n".join(faults))


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_each_yaml_block_is_a_file_of_ours_or_a_fragment_of_one(block, tmp_path):
    for text in re.split(r"^---$", block.text, flags=re.MULTILINE):
        keys = set(yaml.safe_load(text) or ())
        assert keys, "empty"
        if "apiVersion" in keys:
            continue
        if "cluster_name" in keys:
            (tmp_path / "cluster.yaml").write_text(text)
            assert lint.check(tmp_path / "cluster.yaml").findings == []
        elif keys <= set(Policy.model_fields) and not keys <= set(SearchSpec.model_fields):
            policy.parse(text)
        else:
            assert keys <= set(SearchSpec.model_fields), (
                f"{keys - set(SearchSpec.model_fields)}: keys of no file of ours; see docs/contributing.md"
            )
            check_search_file(text, keys)


def parse(words):
    """Parse a command line as `vit-search` does, without running it."""
    command, name = COMMANDS, "vit-search"
    words = list(words)
    try:
        while hasattr(command, "commands"):
            if words[:1] in (["--help"], ["-h"], ["--version"]) or not words:
                return
            name = words.pop(0)
            assert name in command.commands, f"{name}: no such command"
            command = command.commands[name]
        command.make_context(name, words)
    except typer.Exit:
        return  # --help


@pytest.mark.parametrize("block", blocks("sh", "bash"), ids=str)
def test_each_command_of_a_shell_block_is_one_that_exists(block):
    assert not re.search(r"^(\$|>|\(\.venv\)) ", block.text, re.MULTILINE), "no prompt before a command; output is a text block"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in documents.commands(block.text):
        if program.rpartition("/")[2] == "vit-search":
            parse(words)
        if program == "make":
            assert {word for word in words if re.fullmatch(r"[a-z-]+", word)} <= targets, words


@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_each_systemd_unit_can_be_read_and_starts_a_command_that_exists(block, tmp_path):
    unit = configparser.ConfigParser(interpolation=None, delimiters="=", strict=True)
    unit.optionxform = str
    unit.read_string(block.text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.startswith("/")
    assert program.endswith("/vit-search")
    parse(words)
    if shutil.which("systemd-analyze"):
        file = tmp_path / "tried.service"
        file.write_text(block.text.replace(program, sys.executable))
        said = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False, timeout=1800).stderr
        assert "tried.service" not in said


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_command_named_in_a_sentence_exists(source):
    for words in re.findall(r"`(?:\S*/)?vit-search ((?:cluster )?[a-z][a-z-]*)\b", source.read_text()):
        command = COMMANDS
        for word in words.split():
            command = command.commands[word] if hasattr(command, "commands") else command


# The blocks of extending.md are parts of files; test_extending.py puts them there and runs them.
@pytest.mark.parametrize("block", [block for block in blocks("python") if block.page.name != "extending.md"], ids=str)
def test_each_python_block_is_python_and_imports_what_is_there(block):
    for statement in ast.walk(ast.parse(block.text)):
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("vit_search"):
            module = importlib.import_module(statement.module)
            for name in statement.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{statement.module}.{name.name}"), name.name


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_each_json_block_is_json(block):
    json.loads(block.text)


def test_commands_are_found_behind_whatever_a_shell_allows():
    text = """
vit-search run a.yaml --nice 0   # vit-search nothing
VAR=1 .venv/bin/vit-search show --top 3 > out.txt 2>&1 && make docs
token=$(vit-search cluster token --show)
vit-search serve digits@champion \\
  --port 8000 &
"""
    assert documents.commands(text) == [
        ["vit-search", "run", "a.yaml", "--nice", "0"],
        [".venv/bin/vit-search", "show", "--top", "3"],
        ["make", "docs"],
        ["vit-search", "cluster", "token", "--show"],
        ["vit-search", "serve", "digits@champion", "--port", "8000"],
    ]


@pytest.mark.parametrize("words", [["rum", "a.yaml"], ["run"], ["run", "a.yaml", "--nicer", "1"], ["gate", "SEARCH", "TRIAL"]])
def test_a_wrong_command_line_is_found(words):
    with pytest.raises(Exception, match=r"no such command|Missing|No such option|integer"):
        parse(words)


# Notebooks


def test_a_notebook_is_shown_with_its_stored_outputs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    notebook = importlib.import_module("notebook_pages")
    picture = "<svg xmlns='http://www.w3.org/2000/svg'/>"
    outputs = [
        {"output_type": "stream", "text": ["\x1b[1mbest\x1b[0m 3\n"]},
        {"data": {"text/html": ["<div>\n<style scoped>td {}</style>\n", "<table class='dataframe'>\n</table></div>"], "text/plain": ["t"]}},
        {"data": {"image/svg+xml": [picture], "text/plain": ["<Figure>"]}},
        {"data": {"image/png": "cG5n\n", "text/plain": ["<Figure>"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# A search\n", "\n", "in Python"]},
        {"cell_type": "code", "source": ["1 + 1\n", "2\n"], "outputs": outputs},
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    text, images = notebook.as_markdown(json.dumps({"cells": cells}), "quick")
    assert images == {"quick-1.svg": picture.encode(), "quick-2.png": b"png"}
    assert text.split("\n\n") == [
        "# A search",
        "in Python",
        "```python\n1 + 1\n2\n```",
        "```text\nbest 3\n```",
        "<div>\n<table class='dataframe'>\n</table></div>",
        "![Figure 1 of the notebook](quick-1.svg)",
        "![Figure 2 of the notebook](quick-2.png)\n",
    ]


def test_a_mark_that_no_generator_has_fails_the_build(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    hook = importlib.import_module("hook")
    page = hook.on_page_markdown("a\n\n<!-- generated: exit_codes -->\nFor readers of the file.\n\nb")
    assert "| 130 |" in page
    assert page.endswith("|\n\nb")  # the paragraph below the mark is not on the site
    with pytest.raises(Exception, match="generated: exit_code -->: no generator of that name; choose from changelog, commands"):
        hook.on_page_markdown("<!-- generated: exit_code -->")
