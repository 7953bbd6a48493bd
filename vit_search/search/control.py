"""What a person may say to a search while it runs, and how it gets there: a file in the search's folder, answered by another.

`ask` is the person's end and needs neither Ray nor MLflow; `Control` is the driver's. A command travels as
`commands/ID.json`, its answer as `commands/ID.answer.json`, each written whole or not at all. The same words as a tag
`command` on the parent run reach the driver through MLflow (tracking/recorder.py).
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vit_search.errors import SearchError, SpecError, VitSearchError
from vit_search.spec.files import make_folder, write_whole
from vit_search.spec.search_file import SearchSpec, check_target, nearest
from vit_search.spec.space import Value
from vit_search.spec.user import user_name
from vit_search.tracking import search_state, searches
from vit_search.tracking.ledger import Commanded, Event, Ledger, changed, held

_log = logging.getLogger(__name__)

COMMANDS = {
    "pause": "hold all trials after their epoch and free their devices",
    "continue": "go on after a pause",
    "stop": "start no more trials and let the running ones end; with trial=N, stop that trial after its epoch",
    "cancel": "end now; `vit-search resume` goes on",
    "set": "trials=N, concurrency=N, hours=H, device_hours=H, target=VALUE or patience=N",
    "add": "propose a trial with these parameters next",
}
"""Every command, and what it does."""

LOOK_EVERY_S = 0.5
ANSWER_WITHIN_S = 10.0


@dataclass(frozen=True)
class Settings:
    """What a command may change of what the search file says."""

    trials: int
    concurrency: int
    hours: float | None
    device_hours: float | None
    target: float | None
    patience: int | None

    @staticmethod
    def of(spec: SearchSpec, events: Iterable[Event] = ()) -> Settings:
        """Those of a search file, and what the commands of a ledger have made of them."""
        return replace(Settings(spec.trials, spec.concurrency, **spec.limits.model_dump()), **changed(events))


SETTINGS = tuple(f.name for f in fields(Settings))


def ask(folder: Path, name: str, arguments: Mapping[str, Any], wait_s: float = ANSWER_WITHIN_S) -> str:
    """Give a running search a command and wait for its answer.

    Raises: SearchError when no driver runs the search, others can change its folder, it refuses, or it does not answer in time; the
        command is then withdrawn.
    """
    if not held(folder / "ledger.jsonl"):
        if search_state.read(folder).state.word == "finished":
            raise SearchError(f"{folder}: this search is finished; `vit-search extend {folder.name} --trials N` goes on beyond its limits.")
        raise SearchError(f"{folder}: no driver runs this search now; `vit-search resume {folder.name}` goes on with it.")
    searches.check_own(folder)
    place = folder / "commands"
    make_folder(place)
    key = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
    asked, answered = place / f"{key}.json", place / f"{key}.answer.json"
    write_whole(asked, json.dumps({"name": name, "arguments": dict(arguments), "by": user_name()}))
    end = time.monotonic() + wait_s
    while not answered.exists():
        if time.monotonic() > end:
            asked.unlink(missing_ok=True)
            raise SearchError(
                f"{folder}: the search did not answer within {wait_s:g} s; see whether its driver still runs, then ask again."
            )
        time.sleep(0.05)
    answer = json.loads(answered.read_text())
    answered.unlink()
    if not answer["done"]:
        raise SearchError(f"{folder.name}: {answer['answer']}")
    return str(answer["answer"])


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """A command as one line of words: `pause`, `set trials=40 hours=2`, `stop trial=3`, `add dim=64 lr=1e-3`.

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


class Control:
    """The driver's end: obeys commands, and holds what the searcher and the scheduler look at.

    Args:
        folder: of the search.
        ledger: where commands and answers are kept.
        settings: as they stand.
        changed: called after each command that was obeyed, and when the search is cancelled.
        add: queues a hand-made trial; raises SpecError for one that cannot be run.
        begun: whether an open trial has found a place; the others wait for one.
        metric: that trials are ranked by, of which a target is a value.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        settings: Settings,
        changed: Callable[[], None],
        add: Callable[[dict[str, Value]], None],
        begun: Callable[[int], bool] = lambda trial: True,
        metric: str = "",
    ) -> None:
        self.settings = settings
        self.paused = False
        self.draining = False
        """Start no more trials."""
        self.cancelled = threading.Event()
        self.trouble: VitSearchError | None = None
        """What ended the search against everybody's will."""
        self.ending = ""
        """Why every running trial is to be stopped after its epoch; empty while none is."""
        self._stopping: dict[int, str] = {}
        self._folder, self._ledger, self._changed, self._add = folder / "commands", ledger, changed, add
        self._begun, self._metric = begun, metric
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="control", daemon=True)

    def __enter__(self) -> Control:
        """Begin to listen. Commands that a dead driver left unanswered are dropped: who asked has been told so."""
        if self._folder.exists():
            for stale in self._folder.iterdir():
                stale.unlink()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        self._over.set()
        self._thread.join()

    @property
    def state(self) -> str:
        """The search's, in a word."""
        ending = self.cancelled.is_set() or bool(self.ending)
        return search_state.of_driver(paused=self.paused, stopping=self.draining, ending=ending)

    def cancel(self) -> None:
        """End the search now, in a way that `resume` can go on from."""
        self.cancelled.set()
        self._changed()

    def fail(self, error: VitSearchError) -> None:
        """The same because of an error, which `drive` raises when the trials are ended."""
        self.trouble = self.trouble or error
        self.cancel()

    def stop_reason(self, trial: int) -> str:
        """Why a trial is to be stopped after its epoch, by a person or a limit; empty while it is not."""
        return self._stopping.get(trial) or self.ending

    def obey(self, name: str, arguments: dict[str, Any], by: str) -> tuple[bool, str]:
        """Do as told.

        Returns: whether it was done, and the answer in words.
        """
        try:
            answer = self._obey(name, arguments)
        except VitSearchError as error:
            return False, str(error)
        self._changed()
        self._ledger.append(Commanded(name=name, arguments=arguments, answer=answer, by=by))
        return True, answer

    def obey_text(self, text: str, by: str) -> str:
        """A command in words, as MLflow's tag brings it."""
        try:
            name, arguments = parse(text)
        except SpecError as error:
            return str(error)
        return self.obey(name, arguments, by)[1]

    def _obey(self, name: str, arguments: dict[str, Any]) -> str:
        running = [trial.number for trial in list(self._ledger.trials.values()) if trial.outcome == "running" and self._begun(trial.number)]
        if name == "pause":
            _no_more(name, arguments, ())
            self.paused = True
            return f"pausing: {_count(len(running), 'running trial')} will be held after the epoch at hand."
        if name == "continue":
            _no_more(name, arguments, ())
            was, self.paused, self.draining = self.paused or self.draining, False, False
            return "going on." if was else "it was neither paused nor stopping; nothing changed."
        if name == "cancel":
            _no_more(name, arguments, ())
            self.cancelled.set()
            return "ending now; `vit-search resume` goes on from the last checkpoints."
        if name == "stop":
            return self._stop(arguments, running)
        if name == "set":
            return self._set(arguments)
        if name == "add":
            self._add(arguments)
            return "it will be the next trial to be proposed."
        raise SpecError(f"unknown command {name!r}; {nearest(name, list(COMMANDS))}")

    def _stop(self, arguments: dict[str, Any], running: list[int]) -> str:
        _no_more("stop", arguments, ("trial",))
        if "trial" not in arguments:
            self.draining = True
            return f"no more trials will start; {_count(len(running), 'running trial')} will go on to the end."
        trial = arguments["trial"]
        if trial not in running:
            numbers = ", ".join(map(str, sorted(running))) or "none"
            raise SpecError(f"trial {trial} is not running; running: {numbers}.")
        self._stopping[trial] = "stopped by hand"
        return f"trial {trial} will be stopped after the epoch at hand."

    def _set(self, arguments: dict[str, Any]) -> str:
        _no_more("set", arguments, SETTINGS)
        check_settings(arguments, known=len(self._ledger.trials), metric=self._metric)
        self.settings = replace(self.settings, **arguments)
        return ", ".join(f"{key} is now {value:g}" for key, value in arguments.items()) + "."

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            if not self._folder.exists():
                continue
            for path in sorted(self._folder.glob("*.json")):
                if not path.name.endswith(".answer.json"):
                    self._answer(path)

    def _answer(self, path: Path) -> None:
        try:
            asked = json.loads(path.read_text())
            done, answer = self.obey(asked["name"], asked["arguments"], asked["by"])
        except FileNotFoundError:
            return  # withdrawn
        except (ValueError, KeyError, TypeError) as error:
            done, answer = False, f"{path.name}: no command ({error})."
        path.unlink(missing_ok=True)
        write_whole(path.with_suffix(".answer.json"), json.dumps({"done": done, "answer": answer}))


def check_settings(arguments: Mapping[str, Any], known: int, metric: str) -> None:
    """Refuse settings that mean nothing; `known` trials exist already, which are ranked by `metric`.

    Raises: SpecError.
    """
    if not arguments:
        raise SpecError(f"set what? give {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]}.")
    for key, value in arguments.items():
        whole = key in ("trials", "concurrency", "patience")
        least = -math.inf if key == "target" else 0
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not least < value < math.inf:
            raise SpecError(f"{key} is {value!r}; give {'a whole number' if whole else 'a number'}{'' if least else ' above 0'}.")
    if "target" in arguments:
        check_target(arguments["target"], metric, "target")
    if arguments.get("trials", known) < known:
        raise SpecError(f"trials={arguments['trials']} is less than the {known} that have started; use `stop` to start no more.")


def _no_more(name: str, arguments: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in arguments:
        if key not in known:
            raise SpecError(f"{name}: unknown argument {key!r}; {nearest(key, known) if known else 'it takes none.'}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _number(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "null": None}.get(text, text)
