"""The leaderboard fits the terminal: a line of scores for each trial, and its parameters beside it or below."""

import os
import re
import subprocess

import pytest
from helpers.commands import COMMAND
from helpers.synthetic import made, result

from vit_search.cli import leaderboard
from vit_search.config import search_file
from vit_search.ledger.trials import Trial

LONG = """
name: long
data: {name: digits}
trials: 9
epochs: 4
stopping: {grace_epochs: 1}
objectives: [{metric: train_flops}, {metric: latency_ms}]
model:
  patch_size: {choice: [1, 2, 4]}
  depth: {int: [1, 4]}
  dim: {int: [32, 96], step: 16}
  heads: {choice: [1, 2, 4, 8]}
  attention_dropout: {float: [0, 0.2]}
  projection_dropout: {float: [0, 0.2]}
  layer_scale: {choice: [1e-5, 1e-4], when: "depth >= 3"}
  pos_init_std: {float: [0.1, 1], when: "depth < 3", else: 0.02}
training:
  lr: {float: [3e-4, 5e-3], log: true}
  weight_decay: {float: [1e-3, 0.3], log: true}
  warmup_fraction: {float: [0, 0.3]}
  auto_augment: {choice: [none, trivial_augment, rand_augment]}
"""
ONE = {"patch_size": 2, "depth": 3, "dim": 64, "heads": 4, "attention_dropout": 0.1, "projection_dropout": 0.05, "layer_scale": 1e-4}
ONE |= {"lr": 1e-3, "weight_decay": 0.0512345, "warmup_fraction": 0.1, "auto_augment": "trivial_augment"}
TWO = ONE | {"depth": 2, "pos_init_std": 0.5, "auto_augment": "rand_augment"}
del TWO["layer_scale"]


def trials(*params, outcome="completed"):
    made = []
    for i, values in enumerate(params):
        results = [result(epoch, 0.9 - 0.1 * i, latency_ms=1.25) for epoch in range(1, 5)]
        made.append(Trial(number=i, params=values, results=results, outcome=outcome))
    return made


def plain(lines):
    return [re.sub(r"\[/?[a-z ]*\]", "", line) for line in lines]


def flops(params):
    return search_file.parse(LONG).space.cost(params).train_flops


def lines(text, params, width, top=10):
    spec = search_file.parse(text)
    return plain(leaderboard.lines("long-1", trials(*params), spec, top=top, width=width))


def test_at_80_columns_scores_stay_in_the_table_and_parameters_stand_below():
    shown = lines(LONG, [ONE, TWO], 80)
    assert shown == [
        "long-1: val_accuracy, max",
        "in all rows: outcome completed, epochs 4, patch_size 2, dim 64, heads 4,",
        "    attention_dropout 0.1, projection_dropout 0.05, lr 0.001,",
        "    weight_decay 0.0512, warmup_fraction 0.1",
        "#  trial  val_accuracy  train_flops  latency_ms  front",
        f"1      0        0.9000  {flops(ONE):11,}        1.25  *",
        "    depth 3, pos_init_std 0.02, layer_scale 0.0001, auto_augment trivial_augment",
        f"2      1        0.8000  {flops(TWO):11,}        1.25  *",
        "    depth 2, pos_init_std 0.5, layer_scale –, auto_augment rand_augment",
    ]


def test_where_they_fit_parameters_are_columns():
    _, _, header, first, second = lines(LONG, [ONE, TWO], 200)
    assert header.split()[5:] == ["front", "depth", "pos_init_std", "layer_scale", "auto_augment"]
    assert first.split()[6:] == ["3", "0.02", "0.0001", "trivial_augment"]
    assert second.split()[6:] == ["2", "0.5", "–", "rand_augment"]
    assert len(header) == len(first)  # what is right-justified ends in one column


def test_what_differs_in_one_row_alone_stays_in_the_table():
    spec = search_file.parse(LONG)
    both = trials(ONE, TWO)
    both[1].outcome, both[1].results = "stopped", both[1].results[:1]
    _, same, *_, header, first, below, second, _ = plain(leaderboard.lines("long-1", both, spec, top=10, width=100))
    assert "outcome" not in same
    assert header.split()[-2:] == ["outcome", "epochs"]
    assert first.split()[-2:] == ["completed", "4"]
    assert second.split()[-2:] == ["stopped", "1"]
    assert "depth 3" in below


def test_one_row_says_all_of_itself():
    _, header, row = lines(LONG, [ONE], 300)
    assert header.split()[6:] == ["outcome", "epochs", *search_file.parse(LONG).space.searched]
    assert row.split()[6:8] == ["completed", "4"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_parameter_is_cut_in_two(width):
    shown = lines(LONG, [ONE, TWO, ONE | {"dim": 96}], width, top=2)
    assert shown[-1] == "1 more: vit-search show long-1 --top 0"
    text = "\n".join(shown)
    for name in search_file.parse(LONG).space.searched:
        assert len(re.findall(rf"\b{name}\b", text)) in (1, 2), name
    assert "…" not in text
    if width >= 60:
        assert max(map(len, shown)) <= width


@pytest.mark.parametrize(("columns", "most"), [("60", 60), ("80", 80), ("", 160), ("no number", 160), ("0", 160)])
def test_a_pipe_is_as_wide_as_columns_says(tmp_path, columns, most):
    made(tmp_path / "searches")
    done = subprocess.run(
        [COMMAND, "show"], cwd=tmp_path, env=os.environ | {"COLUMNS": columns}, capture_output=True, text=True, timeout=1800, check=True
    )
    longest = max(map(len, done.stdout.splitlines()))
    assert longest <= most
    assert ("    dim " in done.stdout) == (most == 60)  # the table with parameters takes 65 columns


def test_a_parameter_without_effect_has_no_value():
    ways = """
name: long
data: {name: digits}
trials: 9
epochs: 4
model: {pretrained: a.safetensors, dim: 32, depth: 2, heads: 2, patch_size: 2}
training:
  tune: {choice: [head, lora]}
  lora_rank: {choice: [4, 16], when: "tune == 'lora'"}
  lr: 0.001
"""
    _, same, header, first, second = lines(ways, [{"tune": "lora", "lora_rank": 16}, {"tune": "head"}], 100)
    assert "lora_rank" not in same
    assert header.split()[-2:] == ["tune", "lora_rank"]
    assert (first.split()[-2:], second.split()[-2:]) == (["lora", "16"], ["head", "–"])
