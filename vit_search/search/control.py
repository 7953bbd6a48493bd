"""Commands to a running search, as files in the search's folder.

`ask` writes a command to `commands/ID.json`. `Control`, a thread of the driver, carries it out and writes `commands/ID.answer.json`. Both
files are written atomically. `ask` needs neither Ray nor MLflow.

A tag `command` on the search's MLflow run does the same: tracking/recorder.py passes its text to `obey_text`.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vit_search.config.distributions import Value
from vit_search.config.strict_json import build
from vit_search.config.strict_json import parse as parse_json
from vit_search.errors import SearchError, SpecError
from vit_search.files import make_folder, write_whole
from vit_search.ledger import search_state, searches
from vit_search.ledger.file import is_held
from vit_search.runtime.user import user_name
from vit_search.search.commands import COMMANDS
from vit_search.text import nearest

LOOK_EVERY_S = 0.5
ANSWER_WITHIN_S = 10.0


def ask(folder: Path, name: str, arguments: Mapping[str, Any], wait_s: float = ANSWER_WITHIN_S) -> str:
    """Give a command to a running search and wait for the answer.

    Raises: SearchError if no driver runs the search, other accounts can change its folder, the driver rejects the command, or no answer
        comes in time. In the last case the command is withdrawn.
    """
    if not is_held(folder / "ledger.jsonl"):
        if search_state.read(folder).state.word == "finished":
            raise SearchError(f"{folder}: this search is finished; `vit-search extend {folder.name} --trials N` goes on beyond its limits.")
        raise SearchError(f"{folder}: no driver runs this search now; `vit-search resume {folder.name}` goes on with it.")
    searches.check_own(folder)
    commands = folder / "commands"
    make_folder(commands)
    key = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
    question, reply = commands / f"{key}.json", commands / f"{key}.answer.json"
    write_whole(question, json.dumps({"name": name, "arguments": dict(arguments), "by": user_name()}))
    end = time.monotonic() + wait_s
    while not reply.exists():
        if time.monotonic() > end:
            question.unlink(missing_ok=True)
            raise SearchError(
                f"{folder}: the search did not answer within {wait_s:g} s; see whether its driver still runs, then ask again."
            )
        time.sleep(0.05)
    answer = parse_json(reply.read_bytes())
    reply.unlink()
    if not answer["done"]:
        raise SearchError(f"{folder.name}: {answer['answer']}")
    return str(answer["answer"])


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Parse a command in one line: `pause`, `set trials=40 hours=2`, `stop trial=3`, `add dim=64 lr=1e-3`.

    Raises: SpecError for unknown words.
    """
    try:
        name, *words = shlex.split(text) or [""]
    except ValueError as error:
        raise SpecError(f"{text!r} is no command ({error}); write e.g. `set trials=40`.") from None
    if not name:
        raise SpecError("an empty line is no command; write e.g. `set trials=40`.")
    if name not in COMMANDS:
        raise SpecError(f"unknown command {name!r}; {nearest(name, list(COMMANDS))}")
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise SpecError(f"{text!r}: {word!r} has no value; after {name} write NAME=VALUE, or nothing.")
        arguments[key] = _number(value)
    return name, arguments


def in_words(name: str, arguments: Mapping[str, Any]) -> str:
    """The inverse of `parse`."""
    return " ".join(
        [name, *(f"{key}={shlex.quote(value if isinstance(value, str) else json.dumps(value))}" for key, value in arguments.items())]
    )


@dataclass(frozen=True)
class _Question:
    name: str
    arguments: dict[str, Value]
    by: str


class Obedient(Protocol):
    """What carries out commands: the driver."""

    def command(self, name: str, arguments: dict[str, Any], by: str) -> tuple[bool, str]:
        """Carry out a command. Returns: whether it was carried out, and the answer in words."""
        ...


def obey_text(driver: Obedient, text: str, by: str) -> str:
    """Carry out a command in one line, as MLflow's tag has it. Returns: the driver's answer."""
    try:
        name, arguments = parse(text)
    except SpecError as error:
        return str(error)
    return driver.command(name, arguments, by)[1]


class Control:
    """A context in which a thread reads the commands in a search's folder and answers them.

    Args:
        folder: of the search.
        driver: carries out the commands.
    """

    def __init__(self, folder: Path, driver: Obedient) -> None:
        self._folder, self._driver = folder / "commands", driver
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="control", daemon=True)

    def __enter__(self) -> Control:
        """Start to listen. Delete commands that a dead driver did not answer: `ask` has reported an error for them already."""
        if self._folder.exists():
            for stale in self._folder.iterdir():
                stale.unlink()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            if not self._folder.exists():
                continue
            for path in sorted(self._folder.glob("*.json")):
                if not path.name.endswith(".answer.json"):
                    self._answer(path)

    def _answer(self, path: Path) -> None:
        try:
            question = build(_Question, parse_json(path.read_bytes()))
            done, answer = self._driver.command(question.name, question.arguments, question.by)
        except FileNotFoundError:
            return  # withdrawn by `ask`
        except ValueError as error:
            done, answer = False, f"{path.name}: no command ({error})."
        path.unlink(missing_ok=True)
        write_whole(path.with_suffix(".answer.json"), json.dumps({"done": done, "answer": answer}))


def _number(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "null": None}.get(text, text)
