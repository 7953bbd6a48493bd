"""The search space: conditions, constraints, draws, grids, points to start with, presets, and when two spaces are equal."""

import contextlib
import dataclasses
import itertools
import math
import random
import re
import warnings
from dataclasses import fields

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_search.config import presets, search_file
from vit_search.config.cost import cost_of
from vit_search.config.data_config import DataConfig
from vit_search.config.distributions import Choice, FloatRange, IntRange
from vit_search.config.model_config import ModelConfig
from vit_search.config.space import Space
from vit_search.config.space_checks import check_space
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.errors import SpecError

HEAD = "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 3\n"
POOL = """model:
  pos_init_std: {float: [0.01, 0.3], log: true, when: "pool == 'cls' and depth > 1", else: 0.02}
  pool: {choice: [mean, cls]}
  depth: {int: [1, 3]}
"""


class Asked:
    """An Optuna trial that answers from a list and remembers what it was asked for."""

    def __init__(self, **answers):
        self.answers, self.names = answers, []

    def _answer(self, name):
        self.names.append(name)
        return self.answers[name]

    def suggest_categorical(self, name, choices, /):
        assert self.answers[name] in choices
        return self._answer(name)

    def suggest_int(self, name, low, high, /, *, step, log):
        return self._answer(name)

    def suggest_float(self, name, low, high, /, *, step, log):
        return self._answer(name)


def space(text, head=HEAD):
    return search_file.parse(head + text).space


def bare(parameters, **others):
    return Space(parameters=parameters, image_size=(8, 8), in_channels=1, num_classes=10, memory_limit=2**40, **others)


# conditions


def test_a_trial_is_asked_for_active_parameters_alone_after_what_decides_them():
    trial = Asked(depth=2, pool="cls", pos_init_std=0.1)
    assert space(POOL).suggest(trial) == {"depth": 2, "pool": "cls", "pos_init_std": 0.1}
    assert trial.names == ["depth", "pool", "pos_init_std"]
    trial = Asked(depth=2, pool="mean")
    assert space(POOL).suggest(trial) == {"depth": 2, "pool": "mean"}


def test_without_conditions_a_trial_is_asked_in_the_order_of_the_sections():
    trial = Asked(dropout=0.1, depth=1, lr=0.1)
    found = space("training: {lr: {float: [0.1, 1]}}\nmodel: {dropout: {float: [0, 0.5]}, depth: {int: [1, 3]}}\n")
    found.suggest(trial)
    assert trial.names == ["depth", "dropout", "lr"]
    assert not found.conditional
    assert space(POOL).conditional


@pytest.mark.parametrize(
    ("params", "std"),
    [
        ({"depth": 2, "pool": "mean"}, 0.02),
        ({"depth": 1, "pool": "cls"}, 0.02),
        ({"depth": 2, "pool": "cls", "pos_init_std": 0.1}, 0.1),
        ({"depth": 2, "pool": "mean", "pos_init_std": 0.1}, 0.02),  # what is inactive has its `else`, whatever is said
    ],
)
def test_an_inactive_parameter_takes_its_else(params, std):
    found = space(POOL).complete(params)
    assert found["pos_init_std"] == std
    assert list(found) == list(space(POOL).parameters)


def test_an_inactive_parameter_without_else_takes_the_default_of_the_config():
    found = space("model: {pool: {choice: [mean, cls]}, pos_init_std: {float: [0.01, 0.2], when: \"pool == 'cls'\"}}\n")
    assert found.complete({"pool": "mean"})["pos_init_std"] == 0.3


def test_an_else_of_null_is_not_the_default():
    found = space('model: {depth: {int: [1, 3]}}\ntraining: {clip_norm: {float: [0.5, 2], when: "depth > 2", else: null}}\n')
    assert found.complete({"depth": 1})["clip_norm"] is None
    assert (
        space('model: {depth: {int: [1, 3]}}\ntraining: {clip_norm: {float: [0.5, 2], when: "depth > 2"}}\n').complete({"depth": 1})[
            "clip_norm"
        ]
        == 1
    )


def test_a_condition_on_an_inactive_parameter_sees_its_else():
    text = """model:
  dropout: {choice: [0, 0.1], when: "drop_path >= 0.2"}
  drop_path: {choice: [0, 0.2], when: "depth > 2", else: 0.4}
  depth: {choice: [1, 3]}
"""
    combinations = [
        {"depth": 1, "dropout": 0.0},  # drop_path is 0.4
        {"depth": 1, "dropout": 0.1},
        {"depth": 3, "drop_path": 0.0},
        {"depth": 3, "drop_path": 0.2, "dropout": 0.0},
        {"depth": 3, "drop_path": 0.2, "dropout": 0.1},
    ]
    assert list(space(text).grid()) == combinations
    assert space(text).grid_size() == 5


def test_a_condition_may_ask_for_a_fixed_parameter():
    found = space("model: {pool: mean, depth: {int: [1, 3], when: \"pool == 'cls'\", else: 2}}\n")
    assert found.suggest(Asked()) == {}
    assert found.complete({})["depth"] == 2


def test_the_worker_is_told_the_else():
    spec = search_file.parse(HEAD + POOL)
    config = spec.trial_config({"depth": 1, "pool": "mean"}, in_channels=1, num_classes=10, trial=0)
    assert (config.model.pos_init_std, config.model.depth) == (0.02, 1)


# constraints


def test_a_proposal_that_breaks_a_constraint_has_a_problem_with_the_numbers():
    found = space('model: {depth: {int: [1, 4]}}\nconstraints: ["params <= 150e3", "dim % depth == 0"]\n')
    assert found.problem({"depth": 2}) is None
    assert found.problem({"depth": 4}) == f"params <= 150e3 does not hold: params is {found.cost({'depth': 4}).params:,}."
    assert "does not hold: dim is 64, depth is 3" in space('model: {depth: {int: [1, 4]}}\nconstraints: ["dim % depth == 0"]\n').problem(
        {"depth": 3}
    )


@pytest.mark.parametrize("name", ["params", "flops", "train_flops", "train_memory", "tokens", "epochs", "image_height", "image_width"])
def test_a_constraint_asks_the_cost_model(name):
    config = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10)
    cost = cost_of(config, 16)
    value = {
        "params": cost.params,
        "flops": cost.forward_flops,
        "train_flops": cost.train_flops,
        "train_memory": cost.train_bytes,
        "tokens": 4,
        "epochs": 3,
        "image_height": 8,
        "image_width": 8,
    }[name]
    rest = "training: {batch_size: 32, accumulation: 2, lr: {float: [0.1, 1]}}\n"
    assert space(rest + f'constraints: ["{name} == {value}"]\n').problem({"lr": 0.1}) is None
    assert f"{name} < {value} does not hold: {name} is " in space(rest + f'constraints: ["{name} < {value}"]\n').problem({"lr": 0.1})


def test_memory_in_a_reason_has_units():
    assert " MiB." in space('model: {depth: {int: [1, 4]}}\nconstraints: ["train_memory < 1MiB"]\n').problem({"depth": 4})


def test_the_cost_is_computed_once_a_proposal(monkeypatch):
    parameters, calls = space("").parameters, []
    monkeypatch.setattr("vit_search.config.space.cost_of", lambda *args: calls.append(1) or cost_of(*args))
    found = bare(parameters, constraints=("params > 3", "flops > 3", "train_memory > 3"))
    assert found.problem({}) is None
    assert len(calls) == 1


def test_a_constraint_that_cannot_be_decided_does_not_hold():
    assert "none > 3 has no meaning" in space('constraints: ["mlp_dim > 3"]\n').problem({})


def test_constraints_count_in_the_feasible_share():
    assert space('model: {depth: {choice: [1, 2, 3, 4]}}\nconstraints: ["depth <= 2"]\n').feasible_share() == pytest.approx(0.5, abs=0.05)


# draws and grids

CONDITIONS = ("{0} > 1", "{0} == 0 or {0} == 2", "{0} != none and {0} <= 1", "not ({0} > 0)", "2 / {0} >= 1", "{0} + {1} > 2", "{0} < {1}")
"""Each also meets values for which it has none: none, and a division by zero."""


@st.composite
def spaces(draw, ranges=False):
    """Up to five parameters, each with a condition on others that come before it in an order which is not the space's."""
    names = draw(st.permutations("abcde"))[: draw(st.integers(1, 5))]
    parameters = {}
    for i, name in enumerate(names):
        extra = {}
        if i and draw(st.booleans()):
            earlier = st.sampled_from(names[:i])
            extra = {"when": draw(st.sampled_from(CONDITIONS)).format(draw(earlier), draw(earlier))}
            if draw(st.booleans()):
                extra["else"] = draw(st.sampled_from([0, 1, 2, None]))
        kind = draw(st.sampled_from(["choice", "fixed", "int", "float", "log"] if ranges else ["choice", "choice", "fixed", "int", "step"]))
        if kind == "choice":
            parameters[name] = Choice(
                choice=draw(st.lists(st.sampled_from([0, 1, 2, 3, None]), min_size=1, max_size=3, unique=True)), **extra
            )
        elif kind == "int":
            parameters[name] = IntRange(int=draw(st.sampled_from([(0, 2), (1, 3)])), step=draw(st.sampled_from([1, 2])), **extra)
        elif kind == "step":
            parameters[name] = FloatRange(float=(0, 1), step=0.5, **extra)
        elif kind == "float":
            parameters[name] = FloatRange(float=(0, 3), **extra)
        elif kind == "log":
            parameters[name] = IntRange(int=(1, 40), log=True, **extra)
        else:
            parameters[name] = draw(st.sampled_from([0, 1, 2, None]))
    return bare({name: parameters[name] for name in sorted(parameters)})


def is_active(parameter, value_of):
    """What a condition says, by Python's own eval; what raises does not hold."""
    if parameter.when is None:
        return True
    values = {name: value_of(name) for name in re.findall(r"\b[a-e]\b", parameter.when)}
    try:
        return bool(eval(parameter.when.replace("none", "None"), {"__builtins__": {}}, values))
    except (TypeError, ZeroDivisionError):
        return False


def active_of(found, assignment):
    """The active parameters of an assignment to every parameter, straight from the definition."""

    def value_of(name):
        if name not in found.searched:
            return found.parameters[name]
        return assignment[name] if is_active(found.searched[name], value_of) else found.searched[name].otherwise

    return {name: assignment[name] for name, parameter in found.searched.items() if is_active(parameter, value_of)}


@settings(deadline=None, max_examples=300)
@given(spaces())
def test_a_grid_is_what_brute_force_gives_each_once(found):
    names = list(found.searched)
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*(found.searched[n].values() for n in names))]
    expected = {tuple(sorted(active_of(found, assignment).items())) for assignment in every}
    grid = [tuple(sorted(active.items())) for active in found.grid()]
    assert len(grid) == len(set(grid)) == found.grid_size()
    assert set(grid) == expected


@settings(deadline=None, max_examples=300)
@given(spaces(ranges=True), st.integers(0, 2**32))
def test_a_draw_is_inside_and_of_active_parameters_alone(found, seed):
    params = found.draw(random.Random(seed))
    values = found.complete(params)
    assert found.draw(random.Random(seed)) == params
    for name, parameter in found.searched.items():
        assert (name in params) == is_active(parameter, values.get)
        assert values[name] == params.get(name, parameter.otherwise)
        if name in params:
            assert parameter.fault(params[name]) is None
    asked = Asked(**params)
    assert found.suggest(asked) == params
    assert sorted(asked.names) == sorted(params)


def test_a_log_range_of_whole_numbers_is_enumerated_whole():
    found = space("model: {depth: {int: [1, 5], log: true}}\n")
    assert [params["depth"] for params in found.grid()] == [1, 2, 3, 4, 5]


def test_a_range_without_steps_has_no_grid():
    found = space("training: {lr: {float: [0.1, 1]}}\n")
    with pytest.raises(SpecError, match=r"^training\.lr: a grid cannot try every number of a range; give a step or a choice\."):
        found.grid()
    assert found.grid_size() is None


def test_the_size_of_a_large_grid_is_known_without_going_through_it():
    many = {f"p{i}": IntRange(int=(1, 1000)) for i in range(20)}
    assert bare(many).grid_size() == 1000**20
    last = {"q": Choice(choice=[1, 2], when="p0 > 990")}
    assert bare(many | last).grid_size() == 1000**19 * (990 + 10 * 2)
    assert bare(many | {"q": Choice(choice=[1, 2], when=" + ".join(many) + " > 3")}).grid_size() is None
    assert len(list(itertools.islice(bare(many).grid(), 5))) == 5


def test_a_space_without_searched_parameters_has_one_combination():
    assert list(space("").grid()) == [{}]
    assert space("").grid_size() == 1


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (Choice(choice=[1, 2.5, None, "a"]), [1, 1.0, 2.5, None, "a"], [3, True, "b", [1], {}]),
        (Choice(choice=[True]), [True], [1, "true"]),
        (IntRange(int=(2, 8), step=3), [2, 5, 8], [3, 9, -1, 5.0, True, None, "5"]),
        (FloatRange(float=(0.1, 0.7), step=0.2), [0.1, 0.3, 0.5, 0.7, 0.1 + 0.2], [0.2, 0.9, True, None, "0.3", math.nan, math.inf]),
        (FloatRange(float=(1e-4, 1), log=True), [1e-4, 1, 0.5], [0, 2, 10**400]),
    ],
)
def test_a_distribution_knows_its_values(parameter, inside, outside):
    assert [value for value in inside if parameter.fault(value) is not None] == []
    assert [value for value in outside if parameter.fault(value) is None] == []
    if parameter.size() is not None:
        assert len(parameter.values()) == parameter.size()
        assert all(parameter.fault(value) is None for value in parameter.values())


# when two spaces are equal


def test_equal_spaces_have_equal_hashes_and_others_have_not():
    base = "model: {depth: {int: [1, 4]}, pool: {choice: [mean, cls]}, pos_init_std: {float: [0.01, 0.2], when: \"pool == 'cls'\"}}\n"
    rules = 'constraints: ["depth <= 3", "params <= 1e6"]\n'
    hashed = space(base + rules).space_hash
    assert len(hashed) == 64
    for same in (
        base + 'constraints: ["params<=1000000.0", "depth  <= 3"]\n',
        rules + base,
        base.replace("when: \"pool == 'cls'\"", "when: \"(pool == 'cls')\"").replace("(", "").replace(")", "") + rules,
        base.replace("'cls'\"", "'cls'\", else: 0.3") + rules,
        base + rules + "training: {lr: 0.001}\nseed: 3\nsampler: random\n",
    ):
        assert space(same).space_hash == hashed
    for other in (
        base,
        base.replace("4", "5") + rules,
        base.replace("'cls'\"", "'cls'\", else: 0.1") + rules,
        base.replace("'cls'", "'mean'") + rules,
        base.replace("[mean, cls]", "[cls, mean]") + rules,  # Optuna holds categories to be the same in the same order alone
        base + rules + "training: {lr: 0.002}\n",
    ):
        assert space(other).space_hash != hashed
    assert space(base + rules, HEAD.replace("digits", "mnist")).space_hash != hashed


# presets


@pytest.mark.parametrize("preset", [preset for preset in presets.PRESETS if preset != "finetune"])
@pytest.mark.parametrize("data", ["{name: digits}", "{name: mnist}", "{name: cifar10}", "{name: image_folder, path: p, image_size: 224}"])
def test_a_preset_is_a_space_that_can_be_built(preset, data):
    head = HEAD.replace("{name: digits}", data)
    spec = search_file.parse(f"{head}preset: {preset}\nresources: {{gpus: 1}}\n")
    rng = random.Random(0)
    for _ in range(50):
        params = spec.space.draw(rng)
        assert spec.space.problem(params) is None
        assert 16 <= spec.space.cost(params).tokens <= 257


def test_presets_lie_around_deit():
    for preset, (dim, heads, params) in {"tiny": (192, 3, 5.7e6), "small": (384, 6, 22e6), "base": (768, 12, 86e6)}.items():
        head = HEAD.replace("{name: digits}", "{name: image_folder, path: p, image_size: 224}")
        found = search_file.parse(f"{head}preset: {preset}\nresources: {{gpus: 1}}\n").space
        deit = {"dim": dim, "heads": heads, "depth": 12, "patch_size": 16}
        assert all(found.searched[name].fault(value) is None for name, value in deit.items())
        rest = found.draw(random.Random(0))
        classes = 999 * (dim + 1)  # theirs has 1,000 classes, ours 1
        assert found.cost(rest | deit).params + classes == pytest.approx(params, rel=0.01)


def test_what_the_file_writes_wins_over_the_preset():
    spec = search_file.parse(HEAD + "preset: tiny\nmodel: {depth: 2, dropout: 0.1}\ntraining: {lr: 0.002}\n")
    assert (spec.model.depth, spec.model.dropout, spec.training.lr) == (2, 0.1, 0.002)
    assert spec.space.searched["dim"].range == (144, 240)


def test_the_whole_preset_is_in_what_is_logged_and_reads_back_as_the_same_space():
    spec = search_file.parse(HEAD + "preset: small\n")
    dumped = spec.model_dump(mode="json", by_alias=True)
    assert dumped["preset"] == "small"
    assert dumped["model"]["dim"] == {"int": [288, 480], "step": 96, "log": False}
    again = search_file.SearchSpec.model_validate(dumped)
    assert again.space == spec.space
    assert search_file.parse(again.text).space == spec.space


def test_a_space_with_conditions_and_constraints_reads_back_as_the_same():
    spec = search_file.parse(HEAD + POOL + 'constraints: ["params <= 1e6"]\nstart_with: [{depth: 2}]\nobjectives: [{metric: params}]\n')
    again = search_file.SearchSpec.model_validate(spec.model_dump(exclude_unset=True, by_alias=True))
    assert search_file.parse(again.text).space == spec.space
    assert search_file.parse(again.text).objectives == spec.objectives
    assert spec.model_dump(by_alias=True)["model"]["pos_init_std"]["else"] == 0.02
    assert "when" not in spec.model_dump(by_alias=True)["model"]["depth"]


@pytest.mark.parametrize(
    ("size", "patches"),
    [((8, 8), [1, 2]), ((28, 28), [2, 4, 7]), ((32, 32), [2, 4, 8]), ((224, 224), [14, 16, 28, 32, 56]), ((32, 64), [4, 8])],
)
def test_patches_of_a_preset_divide_the_image(size, patches):
    assert presets.patch_sizes(size) == patches


def test_what_a_condition_sets_is_part_of_what_is_trained():
    spec = search_file.parse(
        HEAD + "model:\n  norm: {choice: [pre, post]}\n  mlp_dim: {int: [64, 256], step: 64, when: \"norm == 'post'\", else: 128}\n"
    )
    assert spec.space.trained({"norm": "pre"}) == {"norm": "pre", "mlp_dim": 128}
    assert spec.space.trained({"norm": "post", "mlp_dim": 64}) == {"norm": "post", "mlp_dim": 64}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("{depth: {int: [1, 1]}}", 1),
        ("{depth: {int: [2, 2], step: 3}}", 2),
        ("{depth: {int: [2, 2], log: true}}", 2),
        ("{dropout: {float: [0.1, 0.1]}}", 0.1),
        ("{dropout: {float: [0, 0], log: true}}", 0),
        ("{dropout: {float: [0.1, 0.1], step: 0.05}}", 0.1),
    ],
)
def test_a_range_with_equal_ends_is_that_value(written, value):
    spec = search_file.parse(HEAD + f"model: {written}\n")
    (name,) = yaml.safe_load(written)
    assert spec.space.parameters[name] == value
    assert name not in spec.space.searched
    plain = search_file.parse(HEAD + f"model: {{{name}: {value}}}\n")
    assert spec.space.space_hash == plain.space.space_hash
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of pydantic, where a value has not the type of its field
        assert spec.model_dump(mode="json", by_alias=True)["model"] == plain.model_dump(mode="json", by_alias=True)["model"]


def test_a_range_with_equal_ends_keeps_its_condition():
    spec = search_file.parse(HEAD + 'model: {depth: {int: [1, 4]}, mlp_dim: {int: [64, 64], when: "depth > 2", else: 32}}\n')
    assert spec.space.complete({"depth": 3, "mlp_dim": 64})["mlp_dim"] == 64
    assert spec.space.complete({"depth": 1})["mlp_dim"] == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = spec.model_dump(mode="json", by_alias=True)["model"]["mlp_dim"]
    assert shown == {"choice": [64], "when": "depth > 2", "else": 32}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("model: {depth: {int: [0, 0]}}", "model.depth: 0 is out of bounds; give at least 1, at most 256"),
        ("training: {lr: {float: [0, 0]}}", "training.lr: 0 is out of bounds; give more than 0, at most 10"),
        ("model: {depth: {int: [1.5, 1.5]}}", "model.depth.int.0: 1.5 will not do"),
        ("model: {depth: {int: [true, true]}}", "model.depth.int.0: true will not do"),
        ("model: {depth: {int: [1, 1], stp: 1}}", "model.depth.stp: unknown key; did you mean step?"),
    ],
)
def test_a_range_with_equal_ends_obeys_the_rules_of_a_range(written, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        search_file.parse(HEAD + written + "\n")


SHAPE = {"image_size": (8, 8), "in_channels": 1, "num_classes": 10}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_classes", -1, "num_classes is -1; give at least 0, at most 1000000."),
        ("num_classes", 1_000_001, "num_classes is 1000001; give"),
        ("in_channels", 0, "in_channels is 0; give at least 1, at most 1024."),
        ("image_size", (0, 8), "image_size is (0, 8); give at least 1, at most 1024."),
        ("image_size", (8, 2048), "image_size is (8, 2048); give"),
        ("image_size", (8, -8), "image_size is (8, -8); give"),
    ],
)
def test_what_comes_from_the_data_has_bounds_too(field, value, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        ModelConfig(**{**SHAPE, field: value})


def test_a_seed_is_no_negative_number():
    parts = {"data": DataConfig(name="digits"), "model": ModelConfig(**SHAPE), "training": TrainingConfig()}
    assert TrialConfig(**parts, seed=2**63 - 1).seed == 2**63 - 1
    for seed in (-1, 2**63):
        with pytest.raises(SpecError, match=r"seed is .*; give at least 0"):
            TrialConfig(**parts, seed=seed)


@pytest.mark.parametrize("config", [DataConfig, ModelConfig, TrainingConfig, TrialConfig])
def test_every_number_of_a_config_has_bounds(config):
    for field in fields(config):
        if re.search(r"\b(int|float)\b", str(field.type)):
            assert field.metadata["bounds"], field.name


def test_a_field_without_a_default_is_asked_for():
    for config in (DataConfig, ModelConfig, TrialConfig):
        with pytest.raises(TypeError, match="missing"):
            config()


OPEN = {
    "optimizer": "[muon, adamw]",
    "batch_size": "[16, 32]",
    "accumulation": "[1, 2]",
    "precision": "[float32, bfloat16]",
    "ema_decay": "[null, 0.99]",
    "cuda_graphs": "[true, false]",
    "lr": "[0.001, 0.01]",
}


@pytest.mark.parametrize("name", OPEN)
def test_a_point_may_leave_open_what_the_cost_depends_on(name):
    text = f"start_with: [{{dim: 32}}]\nmodel: {{dim: {{choice: [16, 32]}}, heads: 2}}\ntraining: {{{name}: {{choice: {OPEN[name]}}}}}\n"
    assert space(text).searched.keys() == {"dim", name}
    small = dataclasses.replace(space(text), gpu_memory=2**40)
    fixed = {key: value for key, value in small.parameters.items() if key not in small.searched}
    assert small.problem_so_far({**fixed, "dim": 32}) is None


def test_the_smallest_model_is_taken_with_the_optimizer_that_keeps_the_least():
    """The more weights, the more an optimizer counts: here are 50 million, and 1 image."""
    big = "model: {{dim: 2048, depth: 1, heads: 2, patch_size: 8}}\ntraining: {{optimizer: {}, batch_size: 1}}\n"
    need = {name: space(big.format(name)).cost({}).train_bytes for name in ("sgd", "adamw", "muon")}
    assert need["sgd"] < need["muon"] < need["adamw"]
    between = (need["muon"] + need["adamw"]) // 2
    for optimizers, fits in (("[adamw, sgd]", True), ("[adamw, muon]", True), ("[adamw]", False)):
        limited = dataclasses.replace(space(big.format(f"{{choice: {optimizers}}}")), memory_limit=between)
        with contextlib.nullcontext() if fits else pytest.raises(SpecError, match="even the smallest model of this space takes"):
            check_space(limited)


def test_the_smallest_model_is_taken_with_the_layers_of_lora_that_keep_the_least():
    """Where the MLP alone is corrected, no gradient comes to the attention of the first block, and nothing of it is kept."""
    lora = "model: {depth: 1, heads: 1, patch_size: 2}\ntraining: {tune: lora, lora_rank: 1, batch_size: 512, lora_layers: LAYERS}\n"
    need = {layers: space(lora.replace("LAYERS", layers)).cost({}).train_bytes for layers in ("attention", "mlp")}
    assert need["mlp"] < need["attention"]
    for layers, fits in (("mlp", True), ("{choice: [attention, mlp]}", True), ("attention", False)):
        limited = dataclasses.replace(space(lora.replace("LAYERS", layers)), memory_limit=sum(need.values()) // 2)
        with contextlib.nullcontext() if fits else pytest.raises(SpecError, match="even the smallest model of this space takes"):
            check_space(limited)


FILE_OF_0_2 = """
name: t
data: {name: digits}
trials: 20
epochs: 3
model: {dim: {choice: [16, 24]}, heads: 2, depth: {int: [1, 4], when: 'dim > 16', else: 2}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
"""
HASH_OF_0_2 = "1629a4559f6532e7f693d08d6b749b1e178d9ceab032f1c5348e05e0c018f4c2"


def test_a_field_that_came_later_changes_no_hash_while_it_has_its_default():
    assert search_file.parse(FILE_OF_0_2).space.space_hash == HASH_OF_0_2
    later = "optimizer: adamw, momentum: 0.9, class_weights: none, sampling: uniform, loss: cross_entropy, focal_gamma: 2, logit_tau: 1, "
    later += "feature_views: 1, "
    spelt = FILE_OF_0_2.replace("training: {", "training: {" + later)
    assert search_file.parse(spelt).space.space_hash == HASH_OF_0_2
    model = "registers: 0, norm_eps: 1e-6, rope_base: 100, qk_norm: false, pretrained: '', "
    assert search_file.parse(FILE_OF_0_2.replace("model: {", "model: {" + model)).space.space_hash == HASH_OF_0_2
    for other in (
        "registers: 4",
        "norm_eps: 1e-5",
        "rope_base: 10",
        "qk_norm: true",
        "positions: rope",
        "activation: swiglu",
        "pretrained: a.safetensors",
    ):
        assert search_file.parse(FILE_OF_0_2.replace("model: {", f"model: {{{other}, ")).space.space_hash != HASH_OF_0_2
    for other in (
        "optimizer: sgd",
        "momentum: 0.5",
        "feature_views: 2",
        "optimizer: {choice: [adamw]}",
        "class_weights: balanced",
        "sampling: balanced",
        "loss: focal",
        "logit_tau: 2",
    ):
        assert search_file.parse(FILE_OF_0_2.replace("training: {", f"training: {{{other}, ")).space.space_hash != HASH_OF_0_2
