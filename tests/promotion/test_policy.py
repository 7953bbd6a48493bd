"""A promotion's policy: its defaults, what is refused and the very line a user sees, and the digest by which it is recorded."""

import re

import jsonschema
import pytest
from helpers.paths import ROOT
from pydantic import BaseModel

from vit_search.config import strict_yaml
from vit_search.errors import SpecError
from vit_search.promotion import policy
from vit_search.promotion.evidence.corruptions import corrupted

WHOLE = """
top: 5
seeds: 2
retrain_on: train
better: {mode: non_inferior, alpha: 0.01, least_gain: 0, most_readings: 3, margin: 0.01, cheaper: 0.5}
floors: {accuracy: 0.9, worst_class: 0.8, above_majority: false, linear_probe: false}
class_drop: null
calibration: {ece_above_champion: null, ece: 0.05}
limits:
  params: 5000000
  file_bytes: 20000000
  peak_memory_bytes: 100000000
  latency_ms: {cpu_batch_1_p95: 4, cuda_batch_32_p50: 1.5}
cost_above_champion: 1
robustness: {kinds: [blur, jpeg], accuracy: 0.6, drop: 0.1}
export: {formats: [onnx], tolerance: 1e-3}
seed_sd: null
leaked: 4
near_duplicates: 0.02
allow_dirty: true
approval: always
"""


def test_with_no_file_the_defaults_of_the_protocol_hold():
    found = policy.load(None)
    assert (found.top, found.seeds, found.retrain_on) == (3, 3, "train+val")
    assert found.better.model_dump() == {
        "mode": "better",
        "alpha": 0.05,
        "least_gain": 0.002,
        "most_readings": 20,
        "margin": 0.005,
        "cheaper": 0.2,
    }
    assert found.floors.model_dump() == {"accuracy": None, "worst_class": None, "above_majority": True, "linear_probe": True}
    assert (found.class_drop, found.calibration.ece_above_champion, found.calibration.ece) == (0.03, 0.01, None)
    assert (found.cost_above_champion, found.seed_sd, found.leaked, found.allow_dirty, found.approval) == (1.1, 0.01, 0, False, "protected")
    assert found.robustness.kinds == policy.CORRUPTIONS
    assert (found.robustness.accuracy, found.robustness.drop) == (None, 0.03)
    assert found.export.model_dump() == {"formats": ("safetensors", "pt2"), "tolerance": 1e-4}
    limits = found.limits.model_dump()
    assert not any([*limits.pop("latency_ms").values(), *limits.values()])


def test_every_key_can_be_written_and_a_file_fits_the_json_schema(tmp_path):
    (tmp_path / "p.yaml").write_text(WHOLE)
    found = policy.load(tmp_path / "p.yaml")
    assert found.model_fields_set == set(policy.Policy.model_fields)
    assert (found.better.mode, found.limits.latency_ms.cpu_batch_1_p95, found.robustness.kinds) == ("non_inferior", 4, ("blur", "jpeg"))
    assert found.export.formats == ("safetensors", "onnx")  # safetensors is always there
    jsonschema.validate(strict_yaml.parse(WHOLE, "p.yaml").values, policy.json_schema())


def test_the_schema_refuses_what_is_refused_here():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"tpo": 3}, policy.json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"top": 0}, policy.json_schema())


def test_every_key_says_what_it_means():
    def undescribed(section):
        for name, found in section.model_fields.items():
            if not (found.description or "").strip():
                yield name
            if isinstance(found.annotation, type) and issubclass(found.annotation, BaseModel):
                yield from undescribed(found.annotation)

    assert list(undescribed(policy.Policy)) == []


def test_every_corruption_that_can_be_asked_for_exists():
    import torch

    images = torch.full((1, 1, 8, 8), 90, dtype=torch.uint8)
    for kind in policy.CORRUPTIONS:
        assert corrupted(images, kind, torch.arange(1)).shape == images.shape


def test_the_digest_is_of_what_is_demanded_and_not_of_how_it_is_written():
    default = policy.load(None)
    assert policy.parse("top: 3\nbetter: {alpha: 0.05}\n").digest == default.digest
    assert policy.parse("top: 4\n").digest != default.digest
    assert policy.parse("calibration: {ece: 0.1}\n").digest != default.digest
    assert policy.Policy.model_validate(policy.parse(WHOLE).to_dict()).digest == policy.parse(WHOLE).digest


def test_a_policy_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        policy.load(None).better.alpha = 0.5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tpo: 3", "p.yaml:1: tpo: unknown key; did you mean top?"),
        ("top: 2\nbetter:\n  mode: better\n  alpah: 0.1", "p.yaml:4: better.alpah: unknown key; did you mean alpha?"),
        ("limits: {latency_ms: {cpu_p95: 3}}", "p.yaml:1: limits.latency_ms.cpu_p95: unknown key; did you mean cpu_batch_1_p95?"),
        ("top: 0", "p.yaml:1: top: 0 will not do; give at least 1."),
        ("top: 1.5", "p.yaml:1: top: 1.5 will not do; give a whole number."),
        ("top: true", "p.yaml:1: top: true will not do; give a whole number."),
        ("leaked: -1", "p.yaml:1: leaked: -1 will not do; give at least 0."),
        ("seeds: 2\nfloors:\n  accuracy: 90", "p.yaml:3: floors.accuracy: 90 will not do; give at most 1."),
        ("better: {alpha: 0}", "p.yaml:1: better.alpha: 0 will not do; give more than 0."),
        ("better: {margin: null}", "p.yaml:1: better.margin: has no value; give a number."),
        ("better: {mode: inferior}", "p.yaml:1: better.mode: 'inferior' will not do; did you mean non_inferior?"),
        ("better: 3", "p.yaml:1: better: 3 will not do; write `key: value` lines under it."),
        ("floors: {above_majority: 1}", "p.yaml:1: floors.above_majority: 1 will not do; give true or false."),
        ("robustness: {kinds: [blur, blurr]}", "p.yaml:1: robustness.kinds.1: 'blurr' will not do; did you mean blur?"),
        ("robustness: {kinds: [blur, blur]}", "p.yaml:1: robustness.kinds: blur stands twice; list each once."),
        ("robustness: {kinds: blur}", "p.yaml:1: robustness.kinds: 'blur' will not do; give a list."),
        ("export: {formats: [torchscript]}", "p.yaml:1: export.formats.1: 'torchscript' will not do; choose from safetensors, pt2, onnx."),
        ("export: {formats: [pt2, pt2]}", "p.yaml:1: export.formats: pt2 stands twice; list each once."),
        ("retrain_on: test", "p.yaml:1: retrain_on: 'test' will not do; choose from train+val, train."),
        ("", "p.yaml:1: the file is empty; write `key: value` lines."),
    ],
)
def test_a_mistake_gets_one_line_with_where_what_and_the_mend(tmp_path, text, line):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as refused:
        policy.load(path)
    assert str(refused.value) == f"{tmp_path}/{line}"
    assert refused.value.exit_code == 2


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"gone\.yaml: cannot be read"):
        policy.load(tmp_path / "gone.yaml")


GUIDE = (ROOT / "docs/guides/promotion.md").read_text()


def test_the_guide_s_policy_file_is_read():
    (shown,) = re.findall(r"```yaml title=\"policy.yaml\"\n(.*?)```", GUIDE, re.DOTALL)
    rules = policy.parse(shown)
    assert (rules.top, rules.approval, rules.limits.latency_ms.cpu_batch_1_p95) == (3, "always", 20)
    assert rules.export.formats == ("safetensors", "pt2", "onnx")


def test_the_guide_s_defaults_are_those_of_the_policy():
    rules = policy.load(None).to_dict()
    shown = dict(re.findall(r"^\| `(\S+)` \| (\S+) \|", GUIDE, re.MULTILINE))
    for key in ("better.alpha", "better.least_gain", "better.most_readings", "class_drop", "cost_above_champion", "seed_sd", "leaked"):
        value = rules
        for step in key.split("."):
            value = value[step]
        assert float(shown[key]) == value, key
    assert (rules["better"]["margin"], rules["better"]["cheaper"], rules["top"], rules["seeds"]) == (0.005, 0.2, 3, 3)
    assert rules["retrain_on"] == shown["retrain_on"].strip("`") and rules["approval"] == shown["approval"].strip("`")
    assert all(f"| G{n} " in GUIDE for n in range(1, 15))


def test_the_digest_of_a_policy_without_new_keys_is_that_of_earlier_versions():
    """A promotion that an earlier version began goes on: G14 compares this digest."""
    assert policy.load(None).digest == "9b0268a3a09402526aa415d6087a0bff1ee28d37875ce592acbc56062fb9d84a"
    assert policy.parse("near_duplicates: null").digest == policy.load(None).digest != policy.parse("near_duplicates: 1").digest
