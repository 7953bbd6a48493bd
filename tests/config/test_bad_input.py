"""Rows F42 to F53 of the fault catalogue that one search file can show: read as written, or refused in one line, and soon."""

import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_search.config import search_file, strict_yaml
from vit_search.config.search_file import SearchSpec
from vit_search.config.search_file_blocks import Limits, Objective, Resources, Stopping
from vit_search.config.sections import ModelSection, TrainingSection
from vit_search.errors import SpecError

HEAD = "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 3\n"


def refusal(text, source="t.yaml"):
    with pytest.raises(SpecError) as refused:
        search_file.parse(text, source)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_key_with_one_letter_wrong_is_told_its_nearest_name():
    rng = random.Random(0)
    hits = tried = 0
    for section, model in (("model", ModelSection), ("training", TrainingSection), ("stopping", Stopping), ("limits", Limits)):
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
        spec = search_file.validated(document, "t.yaml", "")
    except SpecError as error:
        assert "\n" not in str(error)
    else:
        assert spec.space.feasible_share(20) >= 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model: {dim: 16384, depth: 256, heads: 1}", "model.dim: even the smallest model of this space takes about"),
        ("model: {dim: {int: [8192, 16384], step: 8192}, depth: 256, heads: 1}", "model.dim: even the smallest model"),
        ("training: {batch_size: 10000000}", "training.batch_size: 10000000 will not do; give at most 1048576."),
        ("model: {dim: 1000000000}", "model.dim: 1000000000 will not do; give at most 16384."),
        ("model: {dropout: 1.0}", "model.dropout: 1.0 will not do; give less than 1."),
        ("model: {dropout: -0.1}", "model.dropout: -0.1 will not do; give at least 0."),
        ("model: {depth: 0}", "model.depth: 0 will not do; give at least 1."),
        ("model: {dim: 64.0}", "model.dim: 64.0 will not do; write a whole number, as 64, "),
        ("training: {lr: {float: [1e-4, 1e-2], step: 1}}", "training.lr.float: the step 1 is longer than the range"),
        ("model: {depth: {int: [1, 4], step: 2}}", "model.depth.int: steps of 2 from 1 never reach 4; end at 3."),
        ("training: {tune: last_blocks, tuned_blocks: 4}", "training.tuned_blocks: 4 is more than depth=3; choose at most 3"),
        ("training: {tune: lora, lora_rank: 65}", "training.lora_rank: 65 is more than dim=64; choose at most 64."),
        ("training: {tune: lorra}", "training.tune: 'lorra' will not do; did you mean lora?"),
        ("training: {tuned_block: 1}", "training.tuned_block: unknown key; did you mean tuned_blocks?"),
        ("training: {layer_decay: 1.1}", "training.layer_decay: 1.1 will not do; give at most 1."),
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
    began = time.process_time()
    with pytest.raises(SpecError, match=r"^t\.yaml:\d+: ") as refused:
        strict_yaml.parse(text, "t.yaml")
    assert "\n" not in str(refused.value)
    assert time.process_time() - began < 60  # of processor time, whatever else runs: a bound against blow-up, not a speed claim
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


@pytest.mark.parametrize("key", sorted(set(SearchSpec.model_fields) - {"name", "data", "trials", "epochs"}))
def test_a_misspelt_key_of_the_file_itself_is_told_its_nearest_name(key):
    assert f"t.yaml:5: {key}q: unknown key; did you mean {key}?" in refusal(HEAD + f"{key}q: 1\n")


@pytest.mark.parametrize("key", Objective.model_fields)
def test_a_misspelt_key_of_an_objective_is_told_its_nearest_name(key):
    assert f"t.yaml:7: objectives.1.{key}q: unknown key; did you mean {key}?" in refusal(
        HEAD + f"objectives:\n  - {{metric: params}}\n  - {{{key}q: params}}\n"
    )


DEPTH = "model: {depth: {int: [1, 4]}}"
COND = 'dropout: {float: [0, 0.5], when: "depth > 2"'

BAD = [  # (what stands from line 5 on, the line, where and what was seen, the mend)
    # constraints
    ("constraints: params <= 5e6", 5, "constraints: 'params <= 5e6' will not do", "write a list of texts, as"),
    ("constraints: [5]", 5, "constraints.0: 5 will not do", "write a list of texts, as"),
    ('constraints: [""]', 5, "constraints.0: the expression is empty", "write a comparison, as depth * dim <= 2048."),
    ("constraints:\n  - dim > 3\n  - params <=", 7, "constraints.1: `params <=`: breaks off", "write what follows."),
    ("constraints: [parms <= 5e6]", 5, "constraints.0: `parms <= 5e6`: unknown name parms", "did you mean params?"),
    ("constraints: [params <= 5M]", 5, "constraints.0: `params <= 5M`: 5M is no number", "write a plain one as 5e6"),
    ("constraints: [dim = 64]", 5, "constraints.0: `dim = 64`: '=' may not stand here", "write == to compare."),
    ("constraints: [dim % heads]", 5, "constraints.0: `dim % heads`: gives a value", "compare it, as in dim % heads == 0."),
    ("constraints: [depth]", 5, "constraints.0: depth stands alone", "compare it with something."),
    ("constraints: [not params or flip]", 5, "constraints.0: params stands alone", "compare it with something."),
    ("constraints: [pool == cls]", 5, "constraints.0: `pool == cls`: unknown name cls", "A text is quoted: 'cls'."),
    ("constraints: [pool == 'clss']", 5, "constraints.0: pool is never clss", "did you mean cls?"),
    ("constraints: [depth == 'deep']", 5, "constraints.0: depth is never deep", "compare it with a number."),
    ("constraints: [flip == 'true']", 5, "constraints.0: flip is never true", "compare it with true or false."),
    ("constraints: [model.dim > 3]", 5, "'.' may not stand here", "write the name alone, as dim for model.dim."),
    ("constraints: [\"open('x') == 1\"]", 5, "unknown function open", "write min(a, b), max(a, b), log2(a)."),
    ("constraints: [" + ", ".join(["dim > 3"] * 101) + "]", 5, "constraints: 101 entries", "give at most 100."),
    # conditions
    (
        'model: {dropout: {float: [0, 0.5], when: "dept > 2"}}',
        5, "model.dropout.when: `dept > 2`: unknown name dept", "did you mean depth?",
    ),
    (
        'model: {dropout: {float: [0, 0.5], when: "dropout > 2"}}',
        5, "model.dropout.when: it asks for dropout itself", "name other parameters.",
    ),
    ('model: {dropout: {float: [0, 0.5], when: "params > 2"}}', 5, "model.dropout.when: params is no parameter", "use it in constraints."),
    ('model: {dropout: {float: [0, 0.5], when: "depth"}}', 5, "model.dropout.when: depth stands alone", "compare it with something."),
    ("model: {dropout: {float: [0, 0.5], when: \"pool == 'cl'\"}}", 5, "model.dropout.when: pool is never cl", "did you mean cls?"),
    ("model: {dropout: {float: [0, 0.5], when: 3}}", 5, "model.dropout.when: 3 will not do", "write a condition in quotes"),
    ('model:\n  dropout: {float: [0, 0.5],\n    wen: "depth > 2"}', 7, "model.dropout.wen: unknown key", "did you mean when?"),
    ("model: {dropout: {float: [0, 0.5], else: 0}}", 5, "model.dropout.else: stands without when", "add a condition or drop it."),
    (f"model: {{{COND}, else: 2}}}}", 5, "model.dropout.else: 2 is out of bounds", "give at least 0, less than 1."),
    (f"model: {{{COND}, else: none}}}}", 5, "model.dropout.else: none will not do", "give a number."),
    (f"model: {{{COND}, else: true}}}}", 5, "model.dropout.else: true will not do", "give a number."),
    (f"model: {{{COND}, else: [0]}}}}", 5, "model.dropout.else: [0] will not do", "give a number."),
    ('model: {dim: {int: [32, 64], when: "depth > 2", else: null}}', 5, "model.dim.else: null will not do", "give a value."),
    ('model: {pool: {choice: [cls], when: "depth > 2", else: max}}', 5, "model.pool.else: max will not do", "choose from mean, cls."),
    ("model: {dropout: {choice: [0, 0.5], step: 0.1}}", 5, "model.dropout.step: step does not go with choice", "drop it."),
    ("model: {dropout: {choice: [0, 0.5], int: [1, 2]}}", 5, "model.dropout.int: int does not go with choice", "drop it."),
    (
        'model:\n  dropout: {float: [0, 0.5],\n    when: "drop_path > 0"}\n  drop_path: {float: [0, 0.5], when: "dropout > 0"}',
        7, "model.dropout.when: dropout waits for drop_path waits for dropout", "drop one of these conditions.",
    ),
    # points to start with
    ("start_with: {depth: 2}", 5, "start_with: {depth: 2} will not do", "write a list of mappings, as [{lr: 1e-3}]."),
    ("start_with: [2]", 5, "start_with.0: 2 will not do", "write a list of mappings, as [{lr: 1e-3}]."),
    ("start_with: [{}]", 5, "start_with.0: names no parameter", "give at least one, or leave the point out."),
    ("start_with: [{dim: 64}]", 5, "start_with.0.dim: the file fixes it at 64", "drop it, or give it a distribution."),
    (DEPTH + "\nstart_with:\n  - depth: 2\n  - dept: 2", 8, "start_with.1.dept: unknown parameter", "did you mean depth?"),
    (DEPTH + "\nstart_with: [{model.depth: 2}]", 6, "start_with.0: unknown parameter 'model.depth'", "did you mean depth?"),
    (DEPTH + "\nstart_with: [{depth: 9}]", 6, "start_with.0.depth: 9 lies outside 1 to 4", "choose a value inside, or widen the range."),
    (DEPTH + "\nstart_with: [{depth: 2.5}]", 6, "start_with.0.depth: 2.5 is no whole number", "choose from 1 to 4."),
    (DEPTH + "\nstart_with: [{depth: true}]", 6, "start_with.0.depth: true is no whole number", "choose from 1 to 4."),
    ("model: {depth: {int: [1, 5], step: 2}}\nstart_with: [{depth: 4}]", 6, "4 is not on the steps of 2 from 1", "choose 3 or 5."),
    (
        "model: {dropout: {float: [0, 0.5], step: 0.1}}\nstart_with: [{dropout: 0.25}]",
        6, "0.25 is not on the steps of 0.1", "choose 0.2 or 0.3.",
    ),
    (
        "model: {pool: {choice: [mean, cls]}}\nstart_with: [{pool: max}]",
        6, "start_with.0.pool: max is none of its choices", "choose from mean, cls.",
    ),
    (DEPTH + "\nstart_with: [{depth: 2}, {depth: 2}]", 6, "start_with.1: the same point as one above", "list each once."),
    (
        DEPTH + "\nconstraints: [depth < 4]\nstart_with: [{depth: 4}]",
        7, "start_with.0: cannot be run: depth < 4 does not hold: depth is 4", "change it or leave it out.",
    ),
    (
        DEPTH + "\nconstraints: [params < 1e5]\nstart_with:\n  - depth: 1\n  - depth: 4",
        9, "start_with.1: cannot be run: params < 1e5 does not hold: params is 202,058", "change it or leave it out.",
    ),
    (
        f"model: {{depth: {{int: [1, 4]}}, {COND}}}}}\nstart_with: [{{depth: 1, dropout: 0.1}}]",
        6, "start_with.0.dropout: is not searched here, since depth > 2 does not hold: depth is 1", "drop it.",
    ),
    (
        "model: {dim: {choice: [32, 64]}, heads: {choice: [4, 5]}}\nstart_with: [{heads: 5, dim: 32}]",
        6, "start_with.0: cannot be run: heads: 5 does not divide dim=32", "change it or leave it out.",
    ),
    # earlier searches
    ("learn_from: digits-1", 5, "learn_from: 'digits-1' will not do", "write a list of names or folders, as [digits-1]."),
    ('learn_from: ["", a]', 5, "learn_from.0: '' is no search", "write its name or its folder."),
    ("learn_from: [a, a]", 5, "learn_from.1: a stands twice", "list each search once."),
    # presets
    ("preset: tny", 5, "preset: 'tny' will not do", "did you mean tiny?"),
    ("preset: large", 5, "preset: 'large' will not do", "choose from tiny, small, base, finetune."),
    ("preset: [tiny]", 5, "preset: ['tiny'] will not do", "did you mean tiny?"),
    ("preset: finetine", 5, "preset: 'finetine' will not do", "did you mean finetune?"),
    (
        "model: {depth: 2}\npreset: finetune", 6, "preset: finetune needs model.pretrained, which names no weights",
        "write it, as model: {pretrained: weights/model.safetensors}; or write preset: small, for a random start.",
    ),
    ("preset: finetune\nmodel: {pretrained: ''}", 5, "preset: finetune needs model.pretrained", "or write preset: small"),
    ("preset: finetune\nmodel: {pretraned: a.safetensors}", 6, "model.pretraned: unknown key", "did you mean pretrained?"),
    ("preset: tiny\nmodel: {dim: 64}", 6, "model.heads: 0 of 2 pairs of heads and dim fit", "for dim=64 choose from 1, 2, 4"),
    # objectives
    ("objectives: {metric: params}", 5, "objectives: {metric: 'params'} will not do", "write a list, as [{metric: params}]."),
    ("objectives: [params]", 5, "objectives.0: 'params' will not do", "write a list, as [{metric: params}]."),
    ("objectives: [{mode: min}]", 5, "objectives.0.metric: missing", "add it."),
    ("objectives: [{metric: parms}]", 5, "objectives.0.metric: 'parms' will not do", "did you mean params?"),
    ("objectives: [{metric: val_loss, mode: max}]", 5, "objectives.0.mode: max contradicts val_loss", "drop the key, or write min."),
    ("metric: val_loss\nmode: max", 6, "mode: max contradicts val_loss", "drop the key, or write min."),
    (
        "objectives: [{metric: params, mode: least}]",
        5, "objectives.0.mode: 'least' will not do", "choose from min, max.",
    ),
    (
        "objectives: [{metric: params}, {metric: params}]",
        5, "objectives.1.metric: params is an objective already", "list each metric once.",
    ),
    (
        "objectives: [{metric: val_accuracy, mode: max}]",
        5, "objectives.0.metric: val_accuracy is an objective already", "list each metric once.",
    ),
    (
        "objectives: [{metric: params}, {metric: flops}, {metric: train_flops}, {metric: latency_ms}]",
        5, "objectives: 4 entries", "give at most 3.",
    ),
    ("stopping: none", 5, "stopping: 'none' will not do", "write a mapping, as {kind: none}"),
    ("sampler: bayes", 5, "sampler: 'bayes' will not do", "choose from auto, gp, tpe, cmaes, random, grid, qmc."),
    # samplers
    ("sampler: tpee", 5, "sampler: 'tpee' will not do", "did you mean tpe?"),
    (
        "sampler: grid\ntraining: {lr: {float: [0.1, 1]}}",
        5, "sampler: grid cannot try every number of training.lr", "give it a step or a choice",
    ),
    (
        "sampler: cmaes\nmodel: {depth: {choice: [1, 2]}}",
        5, "sampler: cmaes moves along two ranges or more, and this space has 0", "write tpe",
    ),
    (
        "sampler: cmaes\nmodel: {depth: {int: [1, 2]}, dim: {int: [32, 64], step: 32}}\nobjectives: [{metric: params}]",
        5, "sampler: cmaes knows one metric, and objectives lists more", "drop them, or write tpe.",
    ),
    (
        f"sampler: cmaes\nmodel: {{{COND}}}}}",
        5, "sampler: cmaes knows no conditions, and model.dropout has one", "drop its when, or write tpe.",
    ),
    # stopping, limits, and the rest
    ("stopping: {kind: ahsa}", 5, "stopping.kind: 'ahsa' will not do", "did you mean asha?"),
    ("stopping: {audit_share: 1}", 5, "stopping.audit_share: 1 will not do", "give less than 1."),
    ("stopping: {audit_share: 5%}", 5, "stopping.audit_share: '5%' will not do", "give a number."),
    ("stopping: {strata: 0}", 5, "stopping.strata: 0 will not do", "give at least 1."),
    ("stopping: {strata: 11}", 5, "stopping.strata: 11 will not do", "give at most 10."),
    ("stopping: {kind: none, strata: 3}", 5, "stopping.strata: 3 groups, but kind: none stops no trial", "drop one of the two."),
    ("limits: 3", 5, "limits: 3 will not do", "write `key: value` lines under it."),
    ("limits: {hours: 0}", 5, "limits.hours: 0 will not do", "give more than 0."),
    ("limits: {hours: two}", 5, "limits.hours: 'two' will not do", "give a number."),
    ("limits: {hours: 1:30}", 5, "1:30 can be read in more than one way", "write a decimal number"),
    ("limits: {device_hours: -1}", 5, "limits.device_hours: -1 will not do", "give more than 0."),
    ("limits: {patience: 1.5}", 5, "limits.patience: 1.5 will not do", "give a whole number."),
    ("limits: {target: 97}", 5, "limits.target: 97 cannot be reached, since val_accuracy is a fraction in [0, 1]", "write 0.97."),
    ("limits: {target: -1}", 5, "limits.target: -1 cannot be reached", "give a value in it."),
    ("keep_checkpoints: 0", 5, "keep_checkpoints: 0 will not do", "give at least 1."),
    ("stall_minutes: 0", 5, "stall_minutes: 0 will not do", "give more than 0."),
    ("stall_minutes: true", 5, "stall_minutes: true will not do", "give a number."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "seen", "mend"), BAD)
def test_a_bad_file_gets_one_line_with_where_what_and_the_mend(text, line, seen, mend):
    said = refusal(HEAD + text + "\n")
    assert said.startswith(f"t.yaml:{line}: ")
    assert seen in said
    assert mend in said[said.index(seen) :]


FIELDS = [("", key) for key in SearchSpec.model_fields] + [
    (section, key)
    for section, kind in (("stopping", Stopping), ("resources", Resources), ("limits", Limits), ("model", ModelSection))
    for key in kind.model_fields
]


@pytest.mark.parametrize(("section", "key"), FIELDS, ids=".".join)
def test_no_refusal_speaks_the_language_of_pydantic(section, key):
    whole = {"name": "t", "data": {"name": "digits"}, "trials": 2, "epochs": 3}
    for value in (None, "abc", 1.5, -1, True, [1], [], {"a": 1}, 1e30, {"choice": 3}, {"float": 3}, {"int": ["a", 2], "log": "maybe"}):
        try:
            search_file.validated(strict_yaml.Document(whole | ({section: {key: value}} if section else {key: value}), {}), "t.yaml", "")
        except SpecError as error:
            said = str(error)
            assert not re.search(r"should|valid|instance|dictionary|tuple|integer|boolean|permitted|pattern|None|True", said), said


def test_an_image_that_a_preset_cannot_cut_is_told_to_give_a_patch_size():
    text = "name: t\ndata: {name: image_folder, path: p, image_size: 97}\ntrials: 2\nepochs: 3\npreset: tiny\n"
    assert "t.yaml:5: preset: no patch size cuts 97x97 pixels into 16 to 256 patches; give model.patch_size" in refusal(text)
    assert search_file.parse(text + "model: {patch_size: 97}\n").model.patch_size == 97


@settings(deadline=None, max_examples=200)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.recursive(
                st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.sampled_from(["", "tiny", "params", "depth > 1"]),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["metric", "mode", "depth", "kind", "hours", "a.b", "0"]), inner, max_size=3)
                ),
                max_leaves=4,
            )
            for key in (
                "constraints", "start_with", "learn_from", "preset", "objectives", "sampler",
                "stopping", "limits", "keep_checkpoints", "stall_minutes",
            )
        },
    )
)  # fmt: skip
def test_anything_in_the_new_sections_is_taken_or_refused_and_nothing_else_happens(values):
    base = {"name": "t", "data": {"name": "digits"}, "trials": 1, "epochs": 3, "model": {"depth": {"int": [1, 3]}}}
    try:
        spec = search_file.validated(strict_yaml.Document(base | values, {}), "t.yaml", "")
    except SpecError as error:
        assert "\n" not in str(error)
    else:
        assert search_file.parse(spec.text).space == spec.space
