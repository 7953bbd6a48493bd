"""Rows F42 to F53 of the fault catalogue that one search file can show: read as written, or refused in one line, and soon."""

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_search.errors import SpecError
from vit_search.spec import search_file, strict_yaml
from vit_search.spec.search_file import ModelSection, SearchSpec, TrainingSection

HEAD = "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 3\n"


def refusal(text, source="t.yaml"):
    with pytest.raises(SpecError) as refused:
        search_file.parse(text, source)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_key_with_one_letter_wrong_is_told_its_nearest_name():
    rng = random.Random(0)
    hits = tried = 0
    for section, model in (("model", ModelSection), ("training", TrainingSection)):
        for key in model.model_fields:
            i = rng.randrange(len(key))
            for typo in (key[:i] + key[i + 1 :], key[:i] + "q" + key[i + 1 :], key[:i] + "q" + key[i:]):
                if typo and typo not in model.model_fields:
                    tried += 1
                    hits += f"did you mean {key}?" in refusal(HEAD + f"{section}: {{{typo}: 1}}\n")
    assert tried > 60
    assert hits / tried >= 0.9


@settings(deadline=None, max_examples=400)
@given(
    key=st.sampled_from([("model", k) for k in ModelSection.model_fields] + [("training", k) for k in TrainingSection.model_fields]),
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**12), 10**12)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text("ab1.-", max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["choice", "int", "float", "step", "log"]), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
def test_any_value_is_taken_or_refused_and_nothing_else_happens(key, value):
    section, name = key
    document = strict_yaml.Document({"name": "t", "data": {"name": "digits"}, "trials": 1, "epochs": 3, section: {name: value}}, {})
    try:
        spec = search_file._validated(document, "t.yaml", "")
    except SpecError as error:
        assert "\n" not in str(error)
    else:
        assert spec.space.feasible_share(20) >= 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model: {dim: 16384, depth: 256, heads: 1}", "model.dim: even the smallest model of this space takes about"),
        ("model: {dim: {int: [8192, 16384], step: 8192}, depth: 256, heads: 1}", "model.dim: even the smallest model"),
        ("training: {batch_size: 10000000}", "training.batch_size: 10000000 will not do: should be less than or equal to 1048576"),
        ("model: {dim: 1000000000}", "model.dim: 1000000000 will not do: should be less than or equal to 16384"),
        ("model: {dropout: 1.0}", "model.dropout: 1.0 will not do: should be less than 1"),
        ("model: {dropout: -0.1}", "model.dropout: -0.1 will not do: should be greater than or equal to 0"),
        ("model: {depth: 0}", "model.depth: 0 will not do: should be greater than or equal to 1"),
        ("model: {dim: 64.0}", "model.dim: 64.0 will not do: should be a valid integer"),
        ("training: {lr: {float: [1e-4, 1e-2], step: 1}}", "training.lr.float: the step 1 is longer than the range"),
        ("model: {depth: {int: [1, 4], step: 2}}", "model.depth.int: steps of 2 from 1 never reach 4; end at 3."),
        ("model: {depth: {int: [3, 3]}}", "model.depth.int: low and high are both 3; write the plain value 3."),
        ("model: {lr: 1e-3}", "model.lr: unknown key; it belongs under training."),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_allocated(line, said):
    assert f"t.yaml:5: {said}" in refusal(HEAD + line + "\n")


@pytest.mark.parametrize("name", ["..", "a/b", "-a", "a b", "é", "a\\n", "x" * 65, "", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(name):
    assert "will not do as a name" in refusal(HEAD.replace("name: t", f'name: "{name}"'))


def test_a_rare_space_is_still_sampled_and_its_share_is_known():
    spec = search_file.parse(HEAD + "model: {dim: {int: [101, 151], step: 2}, heads: {choice: [125, 127, 131]}}\n")
    assert 0 < spec.space.feasible_share() < 0.05


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "[" * 100_000,
        "a: {" * 50_000,
        "a: [" + "1," * 300_000 + "1]",
        "a: " + "9" * 500_000,
        "\t- a",
        "a: 'unfinished",
        "a: b: c",
        "a: !!python/object/apply:os.system ['touch marker']",
        "---\na: 1\n---\nb: 2",
        "? [1]\n: 2",
        "",
        "- 1",
    ],
)
def test_a_hostile_file_is_refused_soon(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(SpecError, match=r"^t\.yaml:\d+: ") as refused:
        strict_yaml.parse(text, "t.yaml")
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 20  # a bound against blow-up, not a speed claim
    assert not Path("marker").exists()


def test_a_huge_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / "t.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(SpecError, match="104,857,600 bytes; a search file has at most 1,048,576"):
        strict_yaml.load(path)


def test_lines_are_known_for_every_key_and_item():
    document = strict_yaml.parse("a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n", "t.yaml")
    assert {path: line for path, line in document.lines.items() if path} == {
        ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4, ("b", 1, "d"): 5,
    }  # fmt: skip
    assert document.line(("b", 1, "nothing")) == 4


@given(st.text(max_size=40))
def test_random_text_is_read_or_refused(text):
    try:
        strict_yaml.parse(text, "t.yaml")
    except SpecError as error:
        assert "\n" not in str(error).replace(repr(text), "")


def test_the_schema_names_every_key():
    schema = search_file.json_schema()
    assert set(schema["properties"]) == set(SearchSpec.model_fields)
    assert set(schema["$defs"]["ModelSection"]["properties"]) == set(ModelSection.model_fields)
