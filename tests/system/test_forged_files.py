"""Files that somebody has forged: each command ends with an answer or one line, and nothing of theirs speaks to the terminal."""

import copy
import json
import random
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import synthetic
from helpers.commands import vit_search
from helpers.servers import until
from safetensors.torch import load_file, save_file

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.errors import CheckpointError, SearchError
from vit_search.ledger import searches
from vit_search.ledger.events import (
    Broke,
    ChangedSettings,
    Commanded,
    Ended,
    Infeasible,
    Launched,
    Left,
    OutgrewShare,
    Proposed,
    Reported,
    decode,
    encode,
)
from vit_search.ledger.file import Ledger, read_events
from vit_search.search import commands, control, search_folder
from vit_search.text import code_block, markdown, one_line, plain
from vit_search.vit import checkpoint, evaluation, training
from vit_search.vit.checkpoint_files import describe, sha256_of, signed

EVIL = "\x1b]0;x\x07\x1b[2J\u202e[/][bold red]<script>[a](javascript:x)\r\x9b`|"
VALUES = (
    EVIL,
    "",
    1e308,
    -1e308,
    10**30,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    None,
    True,
    [],
    {},
    [[]],
    {"a": {"b": [1e308]}},
    "\ud800",
)
COMMANDS = (
    ["show", "--top", "0"],
    ["show", "--csv"],
    ["show", "--json"],
    ["status"],
    ["status", "--json"],
    ["logs", "made-1"],
    ["logs", "made-1/0"],
)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """What a command answers in a folder of searches: exit code, and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def answer(*words):
        capfd.readouterr()
        done = vit_search(tmp_path, *words, code=None)
        return done.returncode, done.stdout + done.stderr + "".join(capfd.readouterr())

    return answer


@pytest.fixture
def search(tmp_path):
    """A small search with an event of every kind; its folder, and the events as JSON."""
    folder, spec, _ = synthetic.begin(tmp_path / "searches", trials=3, epochs=2)
    held = Ledger(folder / "ledger.jsonl")
    for event in synthetic.events(spec):
        held.append(event)
    at = held.events[-1].at
    for event in (
        Infeasible(params={"lr": 0.1}, reason="too large", at=at),
        OutgrewShare(trial=0, gpus=0.5, memory=1, reason="memory", at=at),
        Broke(trial=0, reason="killed", again=True, at=at),
        Commanded(name="set", arguments={"trials": 4, "hours": 2.5}, answer="done", by="ann", at=at),
        Commanded(name="add", arguments={"lr": 0.002}, answer="done", by="ann", at=at),
        Left(state="interrupted", reason="cancelled", at=at),
    ):
        held.append(event)
    held.close()
    return folder, [json.loads(line.partition(b" ")[2]) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]


def write(folder, events):
    """A ledger with right checksums."""
    bodies = [json.dumps(event).encode() for event in events]
    text = b"".join(b"%08x %s\n" % (zlib.crc32(body), body) for body in bodies)
    for name in ("ledger.jsonl", "ledger.copy.jsonl"):
        (folder / name).write_bytes(text)


def is_mute(text):
    return not any(mark in text for mark in "\x1b\x07\x9b\r\u202e\u2066\u200f")


def mutations(events):
    """One thing is changed: a field is gone, new, renamed, or has another value; an event is lost, or stands elsewhere."""
    for i, event in enumerate(events):
        for path in paths(event):
            for value in (*VALUES, "delete", "rename"):
                changed = copy.deepcopy(events)
                home = changed[i]
                for step in path[:-1]:
                    home = home[step]
                if value == "delete":
                    del home[path[-1]]
                elif value == "rename":
                    home[EVIL] = home.pop(path[-1])
                else:
                    home[path[-1]] = value
                yield changed
        yield [*events[:i], *events[i + 1 :]]
        yield [*events[:i], event | {"more": EVIL}, *events[i + 1 :]]
        yield [*events[i:], *events[:i]]


def paths(value):
    for key, below in value.items():
        yield (key,)
        if isinstance(below, dict):
            yield from ((key, *rest) for rest in paths(below))


def test_no_forged_ledger_ends_in_a_traceback_or_speaks_to_the_terminal(search, command):
    folder, events = search
    drawn = random.Random(0).sample(list(mutations(events)), 40)
    codes = set()
    for changed in drawn:
        write(folder, changed)
        for words in COMMANDS:
            code, said = command(*words)  # any other exception comes through
            assert code in (0, 2) and is_mute(said), (words, code, said)
            assert code == 0 or (said.startswith("error: ") and said.count("\n") == 1), said
            codes.add(code)
    assert codes == {0, 2}


def test_no_report_of_a_forged_ledger_does_either(search, command):
    folder, events = search
    for changed in random.Random(1).sample(list(mutations(events)), 6):
        write(folder, changed)
        code, said = command("report", "made-1")
        assert code in (0, 2) and is_mute(said), said
        if code == 0:
            assert is_mute((folder / "report.md").read_text()) and is_mute((folder / "report.html").read_text().split("<script>")[0])


DEEP = "[" * 100_000


@pytest.mark.parametrize("images", [*VALUES, {"val": EVIL}, {"val": 1e999}, {"val": 10**30}, {"val": -1}, {"val": [1]}])
def test_a_forged_plan_changes_no_report(images, search, command):
    folder, _ = search
    (folder / "plan.json").write_text(json.dumps({"images": images}))
    code, said = command("report", "made-1")
    assert code == 0 and is_mute(said), said


@pytest.mark.parametrize("name", ["plan.json", "hindsight.json", "search.json", "ledger.jsonl"])
def test_a_file_of_too_many_brackets_is_damaged(name, search, command):
    folder, _ = search
    (folder / name).write_text(DEEP)
    for words in (["show"], ["status"], ["report", "made-1"]):
        code, said = command(*words)
        assert code == 0 or (code == 2 and said.startswith("error: ") and said.count("\n") == 1), said


NOTES = (
    '{"parent": 1, "store": 1, "experiment": 1}',
    '{"parent": "x", "store": null}',
    '{"trial": "x", "run": "y"}',
    '{"trial": 1e999, "run": 1}',
    '{"taken": "x"}',
    '{"taken": -1}',
    '{"run": "y"}',
    '{"more": 1}',
    "{}",
    "[]",
    "1",
    "null",
    '"parent"',
    DEEP,
)


def test_forged_notes_of_what_mlflow_has_are_left_out(search, migrated, tmp_path, command):
    folder, _ = search
    shutil.copy(migrated, tmp_path / "mlruns.db")
    (folder / "recorded.jsonl").write_text("".join(f"{note}\n" for note in NOTES))
    assert command("sync", "made-1")[0] == 0


@pytest.mark.parametrize("metric", ["val_loss", "train_loss"])
def test_losses_of_any_size_are_told(metric, tmp_path, command):
    """Training can give them; a mean or a difference of two may be infinite."""
    folder, spec, _ = synthetic.begin(tmp_path / "searches", trials=6, epochs=4, more=f"metric: {metric}\n")
    held = Ledger(folder / "ledger.jsonl")
    for number, event in enumerate(synthetic.events(spec)):
        huge = (1e308, -1e308, 1.7e308)[number % 3]
        held.append(replace(event, result=replace(event.result, **{metric: huge})) if isinstance(event, Reported) else event)
    held.close()
    for words in (*COMMANDS, ["report", "made-1"]):
        assert command(*words)[0] == 0


@pytest.mark.parametrize("kind", ["ended", "broke", "infeasible", "outgrown", "commanded", "launched", "left"])
def test_texts_of_others_are_shown_as_they_are_written(kind, search, command):
    folder, events = search
    for event in events:
        if event["event"] == kind:
            event |= {key: EVIL for key in ("reason", "answer", "by", "host") if key in event}
    write(folder, events)
    for words in (*COMMANDS, ["report", "made-1"]):
        code, said = command(*words)
        assert code == 0 and is_mute(said)
    assert "\\x9b" in command("logs", "made-1")[1]
    assert "](javascript" not in (folder / "report.md").read_text().replace("\\[a](javascript", "")
    assert is_mute((folder / "report.md").read_text())


def test_a_parameter_named_as_markup_is_refused_in_one_line(search, command):
    folder, events = search
    for name, value in (("[/]", 1), ("dim", "[/]"), ("dim", 16384), ("lr", "\x1b[31m")):
        changed = copy.deepcopy(events)
        next(event for event in changed if event["event"] == "proposed")["params"][name] = value
        write(folder, changed)
        for words in (["show"], ["status"]):
            code, said = command(*words)
            assert code == 2 and said.startswith("error: ") and "trial 0: " in said and "put search.yaml back" in said, said


def test_an_event_of_a_newer_version_is_told(search):
    folder, events = search
    write(folder, [*events, {"event": "merged", "trial": 0}])
    with pytest.raises(SearchError, match=rf"ledger.jsonl:{len(events) + 1}: event 'merged': unknown here; use the version of vit_search"):
        read_events(folder / "ledger.jsonl")
    write(folder, [*events[:-1], events[-1] | {"weight": 1}])
    with pytest.raises(
        SearchError, match=rf"ledger.jsonl:{len(events)}: weight: unknown here; use the version of vit_search that wrote it"
    ):
        Ledger(folder / "ledger.jsonl")


def test_an_event_is_read_as_it_was_written(search):
    folder, _ = search
    before = read_events(folder / "ledger.jsonl")
    assert {type(event) for event in before} == {Launched, Proposed, Infeasible, Reported, OutgrewShare, Broke, Ended, Commanded, Left}
    assert before == [decode(encode(event)) for event in before]
    lost = Reported(trial=0, result=synthetic.result(1, 0.5, train_loss=float("nan"), val_accuracy=float("nan")), at=1.0)
    assert np.isnan(decode(encode(lost)).result.train_loss)


def test_what_the_ledger_lets_set_is_what_the_control_sets():
    assert set(ChangedSettings.__dataclass_fields__) == set(commands.SETTINGS)


@pytest.mark.parametrize("value", ["delete", "more", *VALUES], ids=str)
def test_forged_facts_of_a_search_are_one_line(value, search, command):
    folder, _ = search
    whole = json.loads((folder / "search.json").read_text())
    for name in ("search", "resolved", "environment", "classes", "image_shape", "splits", "mode"):
        facts = whole | {name: value}
        if value == "delete":
            del facts[name]
        if value == "more":
            facts = whole | {EVIL: 1}
        (folder / "search.json").write_text(json.dumps(facts))
        for words in (["show"], ["status"], ["logs", "made-1"]):
            code, said = command(*words)
            assert code in (0, 2) and is_mute(said), (words, said)


@pytest.mark.parametrize("plan", [1, [], {"epochs": {"predicted": "x"}}, {"trials": {}}], ids=str)
def test_a_forged_hindsight_is_none(plan, search, command):
    folder, _ = search
    (folder / "hindsight.json").write_text(json.dumps({"doomed": 1, "wrongly": 0, "interval": [0, 1], "plan": plan}))
    assert searches.read_hindsight(folder) is None
    assert command("status")[0] == 0


def test_plain_text():
    assert plain("a\x1b[31mb\x1b[0m\x1b]0;x\x07\n\tc\u202ed") == "ab\\x1b]0;x\\x07\n\tc\\u202ed"
    assert one_line(" a\n b\r") == "a b\\x0d"
    assert markdown("<b>[x](javascript:y) &lt; a & b") == "\\<b>\\[x](javascript:y) \\&lt; a & b"
    assert code_block("a\n```\nb\n", "yaml") == "````yaml\na\n```\nb\n````"


# Checkpoints


def saved(folder, **model):
    shape = {"image_size": (8, 8), "in_channels": 1, "num_classes": 2, "patch_size": 4, "dim": 16, "heads": 2, "depth": 1}
    config = TrialConfig(data=DataConfig(name="digits"), model=ModelConfig(**shape | model), training=TrainingConfig(epochs=1), seed=1)
    state = training.start(config, evaluation.Normalisation.of((0.4,), (0.2,)))
    checkpoint.save(folder, state, classes=("cat", "dog"), data_hash="h")
    return folder


def forge(folder, change=None, weights=None):
    """A changed document or weights, with right digests."""
    if weights is not None:
        tensors = load_file(folder / "model.safetensors")
        save_file(weights(tensors), folder / "model.safetensors")
    document = json.loads((folder / "config.json").read_text())
    if change is not None:
        change(document)
    document["sha256"]["model.safetensors"] = sha256_of(folder / "model.safetensors")
    (folder / "config.json").write_text(signed(document))


DOCUMENTS = {
    "a huge model": (lambda d: d["config"]["model"].update(dim=16384, heads=1), "does not fit its config.json"),
    "a deep model": (lambda d: d["config"]["model"].update(depth=256), "does not fit its config.json"),
    "a text as a number": (lambda d: d["config"]["model"].update(dim="16"), "config.model.dim: '16' is not a whole number"),
    "a number out of bounds": (lambda d: d["config"]["model"].update(dim=10**9), "dim is 1000000000; give at least 1"),
    "an unknown field": (lambda d: d["config"]["model"].update(width=1), "config.model.width: unknown here"),
    "a field less": (lambda d: d["config"]["model"].pop("num_classes"), "config.model.num_classes: missing"),
    "a number as a class": (lambda d: d.update(classes=["cat", 7]), r"classes.1: 7 is not str"),
    "a class more": (lambda d: d.update(classes=["cat", "dog", "cow"]), "3 class names, and the head has 2"),
    "a class twice": (lambda d: d.update(classes=["cat", "cat"]), "1 class name, and the head has 2"),
    "channels": (lambda d: d["normalisation"].update(mean=[0.1, 0.2]), "normalisation.mean has 2 values for 1 channel;"),
    "a mean that is nan": (lambda d: d["normalisation"].update(mean=[float("nan")]), "normalisation.mean.0: nan is not a number from"),
    "no list": (lambda d: d.update(history=3), "history: 3 is not a list"),
    "a list": (lambda d: d.update(config=[]), "config"),
}
WEIGHTS = {
    "half precision": (lambda t: {name: one.half() for name, one in t.items()}, "F16 of .*, and F32 of .* belongs there"),
    "not finite": (lambda t: t | {"head.bias": torch.tensor([0.0, float("nan")])}, "head.bias holds numbers that are not finite"),
    "another shape": (lambda t: t | {"head.bias": torch.zeros(3)}, r"head.bias: F32 of \[3\], and F32 of \[2\] belongs there"),
    "one less": (lambda t: {name: one for name, one in t.items() if name != "head.bias"}, "head.bias: nothing, and F32"),
    "one more": (lambda t: t | {"extra": torch.zeros(1)}, r"extra: F32 of \[1\], and nothing belongs there"),
}


@pytest.mark.parametrize(("change", "said"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_forged_config_is_refused_before_a_model_is_built(change, said, tmp_path, monkeypatch):
    folder = saved(tmp_path / "c")
    forge(folder, change)
    monkeypatch.delattr(checkpoint, "ViT")  # whoever builds one fails
    with pytest.raises(CheckpointError, match=said) as refused:
        checkpoint.load_model(folder)
    assert str(refused.value).startswith(str(folder)) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("weights", "said"), WEIGHTS.values(), ids=WEIGHTS)
def test_forged_weights_are_refused(weights, said, tmp_path):
    folder = saved(tmp_path / "c")
    forge(folder, weights=weights)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load_model(folder)


def test_a_configuration_is_read_from_json_and_from_another_process(tmp_path):
    config = checkpoint.load_model(saved(tmp_path / "c")).config
    assert TrialConfig.from_dict(config.to_dict()) == TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_sound_checkpoint_is_read_as_before(tmp_path):
    folder = saved(tmp_path / "c", pool="cls", layer_scale=0.1, positions="sincos2d")
    assert checkpoint.load_model(folder).classes == describe(folder).classes == ("cat", "dog")


FORGED_LESSONS = ["[" * 100_000, "{}", "[1]", "[[{}, {}]]", '[[{"dim": []}, {}, "completed"]]', '[[{}, {"one": 1.0}, "completed"]]']


@pytest.mark.parametrize("text", FORGED_LESSONS, ids=lambda text: text[:20])
def test_forged_lessons_of_other_searches_are_one_line(text, tmp_path):
    (tmp_path / "earlier.json").write_text(text)
    with pytest.raises(SearchError, match=r"earlier\.json: .*; restore the file from a copy\.$"):
        search_folder.kept_lessons(tmp_path)


class Silent:
    """A driver that does whatever it is told."""

    def command(self, name, arguments, by):
        return True, "done."


@pytest.mark.parametrize("text", ["[" * 100_000, "1", "{}", '{"name": "set", "arguments": [], "by": "me"}', "\x00"], ids=lambda t: t[:20])
def test_after_a_forged_command_a_search_still_listens(text, tmp_path):
    (tmp_path / "commands").mkdir()
    listening = control.Control(tmp_path, Silent())
    with listening:
        for name, content in (("1", text), ("2", '{"name": "pause", "arguments": {}, "by": "me"}')):
            (tmp_path / "commands" / f"{name}.json").write_text(content)
        until(lambda: (tmp_path / "commands" / "2.answer.json").exists())
    assert json.loads((tmp_path / "commands" / "2.answer.json").read_text()) == {"done": True, "answer": "done."}
    assert json.loads((tmp_path / "commands" / "1.answer.json").read_text())["done"] is False
