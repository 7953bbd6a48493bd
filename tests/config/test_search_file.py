"""A search file: what is read, what is refused, and the very line a user sees."""

import jsonschema
import pytest
from helpers.paths import ROOT

from vit_search import load_search
from vit_search.config import search_file, strict_yaml
from vit_search.config.metrics import METRICS, RANKING
from vit_search.config.search_file_blocks import OBJECTIVES
from vit_search.errors import SpecError

HEAD = "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 3\n"


def test_every_shipped_search_file_loads_and_fits_the_json_schema():
    files = sorted((ROOT / "search_spaces").glob("*.yaml"))
    assert files
    for file in files:
        load_search(file)
        jsonschema.validate(strict_yaml.load(file).values, search_file.json_schema())


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (
            "model: {activation: tanh}",
            "t.yaml:5: model.activation: 'tanh' will not do; write gelu, relu or swiglu, or {choice",
        ),
        ("model: {depht: 3}", "t.yaml:5: model.depht: unknown key; did you mean depth?"),
        ("model: {depth: fast}", "t.yaml:5: model.depth: 'fast' will not do; write a whole number, as 64,"),
        ("model: {depth: true}", "t.yaml:5: model.depth: true will not do"),
        ("model: {depth: {choice: []}}", "t.yaml:5: model.depth.choice: the list is empty; give at least one value."),
        ("model: {depth: {choice: [1, 1]}}", "t.yaml:5: model.depth.choice: 1 is listed twice; list each value once."),
        ("model: {depth: {coice: [1]}}", "t.yaml:5: model.depth: {coice: [1]} is no value and no distribution"),
        ("model: {dim: {int: [96, 32]}}", "t.yaml:5: model.dim.int: low 96 is above high 32; swap them."),
        ("model: {dim: {int: [32, 1000000000]}}", "t.yaml:5: model.dim: 1e+09 is out of bounds; give at least 1, at most 16384."),
        ("training: {lr: {float: [0, 1], log: true}}", "t.yaml:5: training.lr.float: a log range starts above 0, not at 0"),
        ("training: {lr: .nan}", "t.yaml:5: .nan can be read in more than one way; write a finite number."),
        ("model: {patch_size: {choice: [3, 5]}}", "t.yaml:5: model.patch_size: 0 of 2 values divide the image of 8x8 pixels"),
        ("model: {dim: {choice: [32, 64]}, heads: {choice: [3, 7]}}", "t.yaml:5: model.heads: 0 of 4 pairs of heads and dim fit"),
        (
            "model: {dim: 60, heads: {choice: [2, 6]}, positions: rope}",
            "t.yaml:5: model.positions: rope needs heads whose width is a multiple of 4, and dim=60 and heads=6 give 10",
        ),
        ("model: {dim: 16, heads: 16, qk_norm: true}", "t.yaml:5: model.qk_norm: dim=16 and heads=16 give heads of width 1"),
        ("stopping: {grace_epochs: 9}", "t.yaml:5: stopping.grace_epochs: 9 is more than epochs=3; lower it."),
        ("metric: val_acuracy", "t.yaml:5: metric: 'val_acuracy' will not do"),
        ("trials: 3", "t.yaml:5: the key trials stands twice, first in line 3; keep one."),
        ("training: {lr: 1, lr: 2}", "t.yaml:5: training: the key lr stands twice, first in line 5; keep one."),
        ("7: x", "t.yaml:5: the key 7 is no text; quote it."),
        ("model: {7: 1}", "t.yaml:5: model: the key 7 is no text; quote it."),
        ("start_with: [{? [a] : 1}]", "t.yaml:5: start_with.0: a key that is no text; write a name before the colon."),
        ("model: {<<: {dim: 1}}", "t.yaml:5: model: an anchor, a tag or a merge at a key; write the keys out."),
    ],
)
def test_a_mistake_gets_one_line_with_where_what_and_the_mend(section, line):
    with pytest.raises(SpecError) as refused:
        search_file.parse(HEAD + section + "\n", "t.yaml")
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_an_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match=r"data\.name: unknown data set 'digit'; did you mean digits\?"):
        search_file.parse(HEAD.replace("digits", "digit"), "t.yaml")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("7", 7), ("'010'", "010"), ("null", None)])
def test_plain_numbers_are_read_as_written(text, value):
    assert strict_yaml.parse(f"a: {text}", "t.yaml").values == {"a": value}


@pytest.mark.parametrize("text", ["010", "0x10", "1:30", "1_000", "on", "No", "True", "2026-11-23", ".inf", "1e999", "&a 1", "!!int 1"])
def test_what_two_readers_read_differently_is_refused(text):
    with pytest.raises(SpecError, match=r"^t\.yaml:1: "):
        strict_yaml.parse(f"a: {text}", "t.yaml")


def test_a_yaml_bomb_is_refused_at_its_first_anchor():
    bomb = "a: &a [x,x]\n" + "".join(f"{c}: &{c} [*{p},*{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(SpecError, match=r"t\.yaml:1: the anchor &a; write the value out"):
        strict_yaml.parse(bomb, "t.yaml")


def test_deep_nesting_is_refused():
    with pytest.raises(SpecError, match="nested more than 20 deep"):
        strict_yaml.parse("a: " + "[" * 3000 + "]" * 3000, "t.yaml")


@pytest.mark.parametrize("raw", [b"\xff\xfea\x00", b"\xef\xbb\xbfa: 1", b"a: \xe9", b"a: \x00"])
def test_a_file_that_is_no_plain_utf8_is_refused(tmp_path, raw):
    (tmp_path / "t.yaml").write_bytes(raw)
    with pytest.raises(SpecError, match=r"t\.yaml:1: "):
        strict_yaml.load(tmp_path / "t.yaml")


def test_gradients_of_micro_batches_make_room_for_a_batch_that_would_not_fit_whole():
    model = "model: {dim: 512, depth: 8, heads: 8, dropout: {float: [0, 0.1]}}\n"
    with pytest.raises(SpecError, match="even the smallest model of this space takes about"):
        search_file.parse(HEAD + model + "training: {batch_size: 1048576}\n")
    spec = search_file.parse(HEAD + model + "training: {batch_size: 1048576, accumulation: 4096}\n")
    assert spec.space.feasible_share(20) == 1


def test_a_file_of_an_earlier_version_has_the_defaults_of_every_new_key():
    spec = search_file.parse(HEAD)
    assert (spec.objectives, spec.constraints, spec.start_with, spec.learn_from) == ([], [], [], [])
    assert (spec.sampler, spec.preset) == ("auto", None)
    assert spec.stopping.model_dump() == {"kind": "asha", "grace_epochs": 3, "reduction_factor": 3, "audit_share": 0.05, "strata": 1}
    assert set(spec.limits.model_dump().values()) == {None}
    assert (spec.keep_checkpoints, spec.stall_minutes) == (3, 30)


def test_every_metric_and_cost_has_one_direction():
    assert {name for name, metric in METRICS.items() if metric.mode == "max"} == {
        "train_accuracy", "val_accuracy", "val_top5_accuracy", "val_macro_f1", "val_balanced_accuracy", "val_worst_class_recall",
        "val_auroc", "val_average_precision", "images_per_s",
    }  # fmt: skip


@pytest.mark.parametrize("metric", RANKING)
def test_the_mode_follows_from_the_metric(metric):
    right = METRICS[metric].mode
    wrong = {"min": "max", "max": "min"}[right]
    assert search_file.parse(HEAD + f"metric: {metric}\n").mode == right
    assert search_file.parse(HEAD + f"metric: {metric}\nmode: {right}\n").mode == right
    with pytest.raises(SpecError, match=rf"mode: {wrong} contradicts {metric}, .* drop the key, or write {right}\."):
        search_file.parse(HEAD + f"metric: {metric}\nmode: {wrong}\n")


@pytest.mark.parametrize("metric", [name for name in OBJECTIVES if name != "val_accuracy"])
def test_the_mode_of_an_objective_follows_from_its_metric(metric):
    assert search_file.parse(HEAD + f"objectives: [{{metric: {metric}}}]\n").objectives[0].mode == METRICS[metric].mode
    wrong = {"min": "max", "max": "min"}[METRICS[metric].mode]
    with pytest.raises(SpecError, match=rf"objectives\.0\.mode: {wrong} contradicts {metric}"):
        search_file.parse(HEAD + f"objectives: [{{metric: {metric}, mode: {wrong}}}]\n")


def test_a_metric_that_the_classes_cannot_give_is_refused():
    spec = search_file.parse(HEAD + "metric: val_top5_accuracy\n")
    spec.check_data("abcde")
    with pytest.raises(SpecError, match=r"^metric: val_top5_accuracy needs at least 5 classes, and the data has 4; choose"):
        spec.check_data("abcd")
    areas = search_file.parse(HEAD + "metric: val_auroc\n")
    areas.check_data("ab")
    with pytest.raises(SpecError, match=r"^metric: val_auroc needs validation images of each class, and there is none of cat, dog; add"):
        areas.check_data("abcdefghi", ("cat", "dog"))
    search_file.parse(HEAD + "metric: val_worst_class_recall\n").check_data("abcdefghi", ("cat", "dog"))
    beside = search_file.parse(HEAD + "objectives: [{metric: params}, {metric: val_top5_accuracy}]\n")
    with pytest.raises(SpecError, match=r"^objectives\.1\.metric: val_top5_accuracy needs at least 5 classes, and the data has 2"):
        beside.check_data("ab")


def test_grace_counts_only_where_trials_are_stopped():
    assert search_file.parse(HEAD.replace("epochs: 3", "epochs: 2") + "stopping: {kind: none}\n").epochs == 2
    with pytest.raises(SpecError, match=r"stopping\.grace_epochs: 3 is more than epochs=2; lower it"):
        search_file.parse(HEAD.replace("epochs: 3", "epochs: 2") + "stopping: {grace_epochs: 3}\n")


@pytest.mark.parametrize("stopping", ["", "stopping: {kind: median}\n"])
def test_a_default_adapts_to_a_short_training_and_never_refuses(stopping):
    for epochs, grace in ((1, 1), (2, 2), (3, 3), (30, 3)):
        assert search_file.parse(HEAD.replace("epochs: 3", f"epochs: {epochs}") + stopping).stopping.grace_epochs == grace


def test_a_target_of_a_loss_may_be_any_number():
    assert search_file.parse(HEAD + "metric: val_loss\nmode: min\nlimits: {target: 1.5}\n").limits.target == 1.5
    assert search_file.parse(HEAD + "limits: {target: 1}\n").limits.target == 1


@pytest.mark.parametrize(
    ("sampler", "model"),
    [
        ("grid", "{depth: {int: [1, 3]}, dropout: {float: [0, 0.5], step: 0.1, when: 'depth > 1'}}"),
        ("cmaes", "{depth: {int: [1, 3]}, dropout: {float: [0, 0.5]}, heads: {choice: [2, 4]}}"),
        ("gp", "{depth: {choice: [1, 3]}}"),
        ("random", "{depth: {int: [1, 3]}, dropout: {float: [0, 0.5], when: 'depth > 1'}}"),
        ("qmc", "{depth: {int: [1, 3]}, dropout: {float: [0, 0.5], when: 'depth > 1'}}"),
    ],
)
def test_a_sampler_that_can_propose_from_the_space_is_taken(sampler, model):
    assert search_file.parse(HEAD + f"sampler: {sampler}\nmodel: {model}\n").sampler == sampler


def test_points_to_start_with_may_be_partial():
    text = "model: {depth: {int: [1, 3]}, dim: {int: [32, 64], step: 16}, dropout: {float: [0, 0.5], when: 'depth > 1'}}\n"
    rules = "constraints: ['params < 1e5', 'depth < 3']\n"
    points = "start_with: [{depth: 1}, {dim: 64, depth: 1}, {dropout: 0.1, depth: 2}, {dropout: 0.2}]\n"
    spec = search_file.parse(HEAD + text + rules + points)
    assert spec.start_with[2] == {"dropout": 0.1, "depth": 2}
    with pytest.raises(SpecError, match=r"start_with\.0: cannot be run: depth < 3 does not hold: depth is 3; change it"):
        search_file.parse(HEAD + text + rules + points.replace("[{depth: 1}", "[{depth: 3}"))


def test_the_new_keys_fit_the_json_schema():
    text = """preset: tiny
objectives: [{metric: params}]
sampler: random
stopping: {kind: median, audit_share: 0.1, strata: 3}
limits: {hours: 1.5, target: 0.9, patience: 20}
keep_checkpoints: 5
stall_minutes: 10
model: {pool: {choice: [mean, cls]}, pos_init_std: {float: [0.01, 0.3], when: "pool == 'cls'", else: 0.02}}
constraints: [params <= 5e6, train_memory <= 8GiB]
start_with: [{pool: cls, pos_init_std: 0.1}]
learn_from: [digits-1]
"""
    search_file.parse(HEAD + text)
    schema = search_file.json_schema()
    jsonschema.validate(strict_yaml.parse(HEAD + text, "t.yaml").values, schema)
    assert all("description" in key or "$ref" in key for key in schema["properties"].values())
    assert all("description" in key for part in ("Objective", "Limits", "Stopping") for key in schema["$defs"][part]["properties"].values())


def test_a_misspelt_key_is_told_before_the_one_that_is_missing_for_it():
    with pytest.raises(SpecError, match=r"^t\.yaml:3: trails: unknown key; did you mean trials\?"):
        search_file.parse(HEAD.replace("trials", "trails"), "t.yaml")


def test_the_schema_says_what_each_sampler_and_stopping_rule_does():
    schema = search_file.json_schema()
    sampler, kind = schema["properties"]["sampler"], schema["$defs"]["Stopping"]["properties"]["kind"]
    assert sampler["enum"] == ["auto", "gp", "tpe", "cmaes", "random", "grid", "qmc"]
    assert "tpe: tree-structured Parzen estimators; cmaes: CMA-ES;" in sampler["description"]
    assert kind["enum"] == ["asha", "pasha", "freeze_thaw", "hyperband", "median", "none"]
    assert "median: trials below the median of the others;" in kind["description"]
