"""The text of a search file in which weights are pinned, however it is written."""

import pytest

from vit_search.config import strict_yaml
from vit_search.config.backbone_text import with_backbone

PINS = {"a": "a#sha256=1", "b": "b#sha256=2"}
REST = "  dim: 64\n"


@pytest.mark.parametrize(
    "value", ["a", "'a'", '"a"', ">-\n    a", "|-\n    a", ">-\n    a\n", "|-  # why\n    a\n\n  # that was it"], ids=repr
)
def test_a_source_is_pinned_however_it_is_written(value):
    text = with_backbone(f"name: x\nmodel:\n  pretrained: {value}\n{REST}", PINS, {"depth": 2, "norm_eps": 1e-6})
    model = {"depth": 2, "norm_eps": 1e-6, "pretrained": "a#sha256=1", "dim": 64}
    assert strict_yaml.parse(text, "x").values == {"name": "x", "model": model}


@pytest.mark.parametrize("begin", ["", ">-\n        ", "|-\n        "], ids=repr)
def test_a_condition_and_a_constraint_that_name_a_source_are_changed_with_it(begin):
    text = f"""model:
  pretrained: {{choice: [a, b]}}
  dim:
    choice: [64, 128]
    when: {begin}pretrained == 'a'
    else: 64
constraints:
    - {begin}dim < 100 or pretrained == "b"
    - dim > 1
"""
    values = strict_yaml.parse(with_backbone(text, PINS, {}), "x").values
    assert values["model"]["pretrained"] == {"choice": ["a#sha256=1", "b#sha256=2"]}
    assert values["model"]["dim"] == {"choice": [64, 128], "when": "pretrained == 'a#sha256=1'", "else": 64}
    assert values["constraints"] == ['dim < 100 or pretrained == "b#sha256=2"', "dim > 1"]
