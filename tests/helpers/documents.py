"""README.md and the pages of docs/: their fenced blocks, the commands in them, and the site that mkdocs builds of them."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from helpers.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
ENDS_A_COMMAND = {"|", "||", "&&", "&", ";", "(", ")", "{", "}"}
BEFORE_A_COMMAND = {"time", "nohup", "exec", "if", "then", "else", "do", "while", "until", "!", "sudo"}
REDIRECTION = re.compile(r"(?<=\s)\d?(>>|>|<)(&\d|[ \t]*[^\s|&;]+)")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    options: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages):
    """All blocks in these languages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match["language"] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(page, line, match["language"], match["options"].strip(), textwrap.dedent(match["text"])))
    return found


def commands(text):
    """The simple commands of shell lines, each as its words: without comments, assignments before them, and redirections."""
    found = []
    for line in REDIRECTION.sub(" ", text.replace("\\\n", " ")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += "@%+,:[]$…"  # words of their own otherwise
        words = list(lexer)
        while words:
            command = list(takewhile(lambda word: word not in ENDS_A_COMMAND, words))
            words = words[len(command) + 1 :]
            while command and (command[0] in BEFORE_A_COMMAND or ASSIGNMENT.match(command[0])):
                command = command[1:]
            if command:
                found.append(command)
    return found


def build(site, *, config=None, code=0):
    """Build the documentation strictly into a folder, and see that mkdocs ends with this exit code.

    Returns: what it said.
    """
    words = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        site,
        "--config-file",
        config or ROOT / "mkdocs.yml",
    ]
    done = subprocess.run(
        list(map(str, words)), env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
