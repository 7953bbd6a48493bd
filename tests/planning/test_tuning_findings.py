"""What lint says of pretrained weights and of ways of tuning, and the hint for few photos that start from random weights."""

import json

import numpy as np
import pytest
import yaml
from helpers import models
from helpers.commands import vit_search
from helpers.paths import ROOT
from helpers.weight_files import timm_shapes, write_file
from PIL import Image

from vit_search.config import search_file
from vit_search.config.backbone import read_backbone
from vit_search.planning import search_lint
from vit_search.planning.fixed_file import fixed_file
from vit_search.planning.tuning_findings import FEW_IMAGES, learned_from_validation, random_start

HEAD = "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 27\n"
FOLDER = "name: t\ndata: {name: image_folder, path: photos, image_size: 16}\ntrials: 9\nepochs: 27\n"
SHAPE = "patch_size: 4, dim: 32, depth: 2, heads: 2, dim_head: 16, mlp_dim: 64, pool: cls, registers: 0, positions: learned, "
SHAPE += "activation: gelu, norm: pre, norm_eps: 1e-6, qkv_bias: true, qk_norm: false, layer_scale: null"
"""All that weights would decide: so lint can look at the space although there are none."""


def findings(text, where=None, head=HEAD):
    found = [(f.severity, f.where, f.text) for f in search_lint.lint(search_file.parse(head + text), 500).findings]
    return [one for one in found if where is None or one[1] == where]


def photos(folder, *, cats, dogs):
    rng = np.random.default_rng(0)
    for name, count in (("cat", cats), ("dog", dogs)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / "photos" / name / f"{i}.png")


def named(finding):
    return (finding["severity"], finding["where"], finding["text"])


# Weights that have learned from the validation images


@pytest.mark.parametrize(
    ("data_hash", "trained_on", "validated_on", "told"),
    [("a", ("train", "val"), ("val",), True), ("a", ("train",), ("val",), False), ("b", ("train", "val"), ("val",), False)],
)
def test_weights_that_learned_from_the_validation_images_are_told(tmp_path, data_hash, trained_on, validated_on, told):
    _, made = models.untrained(tmp_path / "made", depth=1)
    text = (made / "config.json").read_text().replace('"data_hash": "h"', '"data_hash": "a"')
    (made / "config.json").write_text(text.replace('"trained_on": [\n  "train"\n ]', f'"trained_on": {json.dumps(trained_on)}'))
    backbone = read_backbone(made / "model.safetensors")
    assert (backbone.data_hash, backbone.trained_on) == ("a", trained_on)
    found = [*learned_from_validation({"models:/x@champion#sha256=" + "0" * 64: backbone}, data_hash, validated_on)]
    assert [one.text.partition(",")[0] for one in found] == [
        "models:/x@champion was trained on the images that this search validates on"
    ] * told


# Frozen weights that start at random


def test_parts_that_stay_as_they_are_and_start_at_random_are_told():
    (found,) = findings("training: {tune: head}\n", "training.tune")
    fact = "head leaves weights as they are, and these start at random"
    assert found == ("warning", "training.tune", f"{fact}; name pretrained weights in model.pretrained, or write tune: full.")
    ((_, _, text),) = findings("training: {tune: {choice: [full, lora, last_blocks]}}\n", "training.tune")
    assert text.startswith("last_blocks and lora leave weights as they are")


def test_a_random_start_among_the_choices_is_told_with_the_condition_that_mends_it():
    model = f"model: {{pretrained: {{choice: ['', a.safetensors]}}, {SHAPE}}}\n"
    ((severity, _, text),) = findings(model + "training: {tune: {choice: [head, full]}}\n", "training.tune")
    assert severity == "warning"
    assert text.startswith("in 2") and text.endswith("start at random; add when: \"pretrained != ''\".")
    condition = "training: {tune: {choice: [head, full], when: \"pretrained != ''\"}}\n"
    assert findings(model + condition, "training.tune") == []
    ((_, _, text),) = findings(model + "training: {tune: head}\n", "training.tune")
    assert text.endswith('; take "" out of model.pretrained.')


def test_pretrained_weights_may_stay_as_they_are():
    assert findings(f"model: {{pretrained: a.safetensors, {SHAPE}}}\ntraining: {{tune: head, lr: 0.01}}\n", "training.tune") == []


# One learning rate, written as two


@pytest.mark.parametrize("factor", ["10", "{float: [2, 30], log: true}"])
def test_a_factor_for_the_head_where_nothing_else_is_trained_is_told(factor):
    (found,) = findings(f"training: {{tune: head, head_lr_factor: {factor}}}\n", "training.head_lr_factor")
    fact = "the head alone is trained, so this factor and lr are one number"
    assert found == ("warning", "training.head_lr_factor", f"{fact}; drop it, and search lr.")


def test_a_factor_that_some_proposals_have_no_use_for_is_told_with_the_condition_that_mends_it():
    text = "training: {tune: {choice: [head, full]}, head_lr_factor: {float: [2, 30]WHEN}}\n"
    ((severity, _, said),) = findings(text.replace("WHEN", ""), "training.head_lr_factor")
    assert severity == "hint" and said.endswith("this factor and lr are one number; add when: \"tune != 'head'\".")
    assert findings(text.replace("WHEN", ", when: \"tune != 'head'\""), "training.head_lr_factor") == []
    assert findings("training: {tune: {choice: [head, full]}, head_lr_factor: 10}\n", "training.head_lr_factor") == []


@pytest.mark.parametrize(
    ("layer_scale", "pretrained", "told"),
    [
        ("1e-4", "a.safetensors", True),
        ("{choice: [1e-4, 1e-1]}", "a.safetensors", True),
        ("{choice: [null, 1]}", "a.safetensors", False),
        ("1e-4", '""', False),
        ("1e-4", '{choice: ["", a.safetensors]}', False),  # those from random weights take it
    ],
)
def test_a_start_value_of_layer_scale_that_the_weights_decide_is_told(layer_scale, pretrained, told):
    text = f"model: {{{SHAPE.replace('layer_scale: null', f'layer_scale: {layer_scale}')}, pretrained: {pretrained}}}\n"
    found = findings(text, "model.layer_scale")
    assert [(severity, said.endswith("so another number has no effect; write 1, or null for none.")) for severity, _, said in found] == [
        ("warning", True)
    ] * told


# Keys of another way of tuning


@pytest.mark.parametrize(
    ("training", "unused"),
    [
        ("", ["tuned_blocks", "lora_rank", "lora_alpha", "lora_layers"]),
        ("tune: lora, lora_rank: 4", ["tuned_blocks"]),
        ("tune: last_blocks, lora_rank: 4", ["lora_rank", "lora_alpha", "lora_layers"]),
        ("tune: head, lora_rank: 4, tuned_blocks: 2", ["tuned_blocks", "lora_rank"]),
        ("loss: focal, logit_tau: 2", ["logit_tau"]),
    ],
)
def test_a_configuration_that_is_written_out_has_no_key_without_effect(training, unused):
    spec = search_file.parse(f"{HEAD}model: {{pretrained: a.safetensors, {SHAPE}}}\ntraining: {{{training}}}\n")
    config = spec.trial_config({}, in_channels=1, num_classes=10, trial=0)
    written = fixed_file(config, name="t", about=[], rest={})
    assert written.same
    keys = yaml.safe_load(written.text)["training"]
    assert not set(unused) & set(keys)
    assert not [text for _, _, text in findings(written.text, head="") if "makes no difference" in text]
    values = search_file.parse(written.text).trial_config({}, in_channels=1, num_classes=10, trial=0).training
    assert all(getattr(values, key) == getattr(config.training, key) for key in keys if key != "epochs")


# Narrow models with wide parts


def written(folder, model, **shapes):
    (folder / "weights").mkdir()
    write_file(folder / "weights" / "a.safetensors", timm_shapes(dim=128, hidden=512, **shapes))
    (folder / "s.yaml").write_text(f"{HEAD}model: {{pretrained: weights/a.safetensors, {model}}}\ntraining: {{lr: 0.0001}}\n")
    return [named(one) for one in json.loads(vit_search(folder, "lint", "s.yaml", "--json").stdout)["findings"]]


def test_a_narrow_model_with_the_mlp_and_the_heads_of_the_backbone_is_told_what_to_write(tmp_path):
    fact = "models of dim 64 have an MLP of 512 and 2 heads of 64, as the backbone, because the file does not say otherwise"
    found = written(tmp_path, "dim: {choice: [64, 128]}")
    assert ("hint", "model.dim", f"{fact}; for narrower ones, write mlp_ratio: 4 and heads.") in found


@pytest.mark.parametrize("model", ["depth: 1", "dim: {choice: [64, 128]}, heads: 1, mlp_ratio: 4"])
def test_a_model_as_wide_as_the_backbone_or_with_parts_of_its_own_is_not_told(tmp_path, model):
    assert not [one for one in written(tmp_path, model) if one[1] == "model.dim"]


# Few photos that start at random


def test_few_photos_that_start_at_random_get_a_hint_of_lint(tmp_path):
    photos(tmp_path, cats=12, dogs=10)
    (tmp_path / "s.yaml").write_text(FOLDER + "training: {lr: 0.001}\nmodel: {patch_size: 4}\n")
    fact = "not given, and 22 images are few for a model that starts from random weights"
    mend = 'name pretrained weights, see docs/guides/pretrained.md, or write pretrained: "" if you want none.'
    line = f"hint: s.yaml:6: model.pretrained: {fact}; {mend}\n"
    assert vit_search(tmp_path, "lint", "s.yaml").stdout.count(line) == 1
    (tmp_path / "s.yaml").write_text(FOLDER + "model: {patch_size: 4, pretrained: ''}\n")
    assert "model.pretrained" not in vit_search(tmp_path, "lint", "s.yaml").stdout


@pytest.mark.parametrize(
    ("head", "images", "channels", "told"),
    [
        (FOLDER, FEW_IMAGES - 1, 3, True),
        (FOLDER, FEW_IMAGES, 3, False),
        (FOLDER, 100, 1, True),
        (FOLDER, 100, 8, False),  # of a satellite, not of a camera
        (HEAD, 100, 1, False),
        (HEAD.replace("digits", "digits, label_map: {'1': '0'}"), 100, 1, False),
    ],
)
def test_the_hint_is_for_few_photos_of_ones_own(head, images, channels, told):
    assert (random_start(search_file.parse(head), images, channels) is not None) == told


# The recipe


def test_the_recipe_needs_nothing_but_photos_and_a_file_of_weights(tmp_path):
    photos(tmp_path, cats=700, dogs=600)
    (tmp_path / "weights").mkdir()
    shapes = timm_shapes(dim=64, depth=2, hidden=128, patch=16, tokens=197, classes=1000)
    write_file(tmp_path / "weights" / "model.safetensors", shapes, metadata={"license": "apache-2.0"})
    done = vit_search(tmp_path, "lint", ROOT / "search_spaces/finetune_photos.yaml", "--json")
    report = json.loads(done.stdout)
    assert done.stderr == "2 classes: cat, dog; 1,300 images\n"
    assert [named(one) for one in report["findings"]] == []
    assert report["valid_share"] == 1
    plan = vit_search(tmp_path, "plan", ROOT / "search_spaces/finetune_photos.yaml").stdout
    assert plan.startswith("photos_finetuned: 24 trials of up to 15 epochs")


def test_the_recipe_and_the_preset_agree():
    recipe = search_file.load(ROOT / "search_spaces/finetune_photos.yaml")
    preset = search_file.parse(FOLDER + "preset: finetune\nmodel: {pretrained: a.safetensors}\n")
    for section in ("model", "training"):
        of_recipe, of_preset = getattr(recipe, section), getattr(preset, section)
        for name in of_preset.model_fields_set - {"pretrained"}:
            theirs, ours = getattr(of_recipe, name), getattr(of_preset, name)
            assert theirs.model_copy(update={"when": None}) == ours, name
