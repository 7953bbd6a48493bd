"""The policy of a promotion: how a winner is confirmed, and what it must show to become the champion.

The YAML file is read as strictly as a search file. Without a file, the defaults apply.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator

from vit_search.config import strict_yaml
from vit_search.config.validation_messages import expected, spelt
from vit_search.errors import SpecError
from vit_search.text import nearest

Corruption = Literal["gaussian_noise", "blur", "contrast", "brightness", "translate", "jpeg"]
CORRUPTIONS: tuple[Corruption, ...] = ("gaussian_noise", "blur", "contrast", "brightness", "translate", "jpeg")
"""The corruptions of promotion/evidence/corruptions.py."""

Format = Literal["safetensors", "pt2", "onnx"]

Count = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]


class _PolicySection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Better(_PolicySection):
    """The comparison with the champion on the same test images (gates G4 and G5)."""

    mode: Literal["better", "non_inferior"] = "better"
    """better: the candidate must be better than the champion. non_inferior: it may be worse by less than `margin`, but must be cheaper by
    `cheaper`."""
    alpha: Number = Field(0.05, gt=0, le=0.5)
    """Largest probability that a candidate which is no better (or, in non_inferior, worse by the margin) ever passes, over all test
    readings of one test split. The t-th reading may use alpha / (t (t + 1)) of it."""
    least_gain: Number = Field(0.002, ge=0, lt=1)
    """Smallest gain that is worth a change of model, in the unit of the search's metric: a share of the test images for accuracy."""
    most_readings: Count = Field(20, ge=1, le=100_000)
    """Largest number of test readings of one test split. After that, the split decides nothing."""
    margin: Number = Field(0.005, gt=0, lt=1)
    """In non_inferior: the lower bound of the gain must be above -margin."""
    cheaper: Number = Field(0.2, ge=0, lt=1)
    """In non_inferior: share by which the latency (median of one image) or the file must be smaller than that of the champion."""


class Floors(_PolicySection):
    """What a candidate must reach, with or without a champion (gates G3 and G6)."""

    accuracy: Number | None = Field(None, ge=0, le=1)
    """Smallest accuracy on the test images."""
    worst_class: Number | None = Field(None, ge=0, le=1)
    """Smallest recall of any class: the share of its test images that are recognised."""
    above_majority: Switch = True
    """Whether the search's metric must be better than that of always answering the most frequent class."""
    linear_probe: Switch = True
    """Whether a candidate fails if logistic regression on the pixels is better by the search's metric, beyond chance."""


class Calibration(_PolicySection):
    """Expected calibration error on the test images (gate G7)."""

    ece_above_champion: Number | None = Field(0.01, ge=0, le=1)
    """How much higher than the champion's it may be, beyond chance. null: no comparison."""
    ece: Number | None = Field(None, ge=0, le=1)
    """Largest value."""


class LatencyLimits(_PolicySection):
    """Milliseconds from pixels to logits. A limit for a device that the machine does not have refuses the candidate."""

    cpu_batch_1_p50: Number | None = Field(None, gt=0)
    """Median of one image on the CPU."""
    cpu_batch_1_p95: Number | None = Field(None, gt=0)
    """95th percentile of one image on the CPU."""
    cpu_batch_32_p50: Number | None = Field(None, gt=0)
    """Median of 32 images on the CPU."""
    cpu_batch_32_p95: Number | None = Field(None, gt=0)
    """95th percentile of 32 images on the CPU."""
    cuda_batch_1_p50: Number | None = Field(None, gt=0)
    """Median of one image on the GPU."""
    cuda_batch_1_p95: Number | None = Field(None, gt=0)
    """95th percentile of one image on the GPU."""
    cuda_batch_32_p50: Number | None = Field(None, gt=0)
    """Median of 32 images on the GPU."""
    cuda_batch_32_p95: Number | None = Field(None, gt=0)
    """95th percentile of 32 images on the GPU."""


class CostLimits(_PolicySection):
    """Largest costs of a candidate (gate G8). null: no limit."""

    params: Count | None = Field(None, ge=1)
    """Number of parameters of the model."""
    file_bytes: Count | None = Field(None, ge=1)
    """Size of model.safetensors in bytes."""
    peak_memory_bytes: Count | None = Field(None, ge=1)
    """Peak memory in bytes for weights and activations with 32 images, on each measured device."""
    latency_ms: LatencyLimits = LatencyLimits.model_validate({})
    """Milliseconds from pixels to logits."""


class Robustness(_PolicySection):
    """Accuracy on corrupted test images (gate G12)."""

    kinds: tuple[Corruption, ...] = Field(CORRUPTIONS, max_length=len(CORRUPTIONS))
    """Corruptions that are tried, each at one fixed strength. An empty list: none."""
    accuracy: Number | None = Field(None, ge=0, le=1)
    """Smallest mean accuracy over the corruptions."""
    drop: Number | None = Field(0.03, ge=0, le=1)
    """How far the mean may be below the champion's, beyond chance. null: no comparison."""

    @field_validator("kinds", mode="before")
    @classmethod
    def _each_once(cls, kinds: Any) -> Any:
        if isinstance(kinds, (list, tuple)):
            for i, kind in enumerate(kinds):
                if kind in kinds[:i]:
                    raise ValueError(f"{kind} stands twice; list each once")
        return kinds


class Export(_PolicySection):
    """File formats of a promoted model (gate G1)."""

    formats: tuple[Format, ...] = Field(("safetensors", "pt2"), max_length=3)
    """Formats that must agree with the trained model. safetensors is always one of them; onnx needs the extra `onnx`."""
    tolerance: Number = Field(1e-4, ge=0, le=1)
    """Largest difference between a logit and that of the trained model. safetensors must agree to the bit."""

    @field_validator("formats", mode="before")
    @classmethod
    def _each_once(cls, formats: Any) -> Any:
        if isinstance(formats, (list, tuple)):
            for i, name in enumerate(formats):
                if name in formats[:i]:
                    raise ValueError(f"{name} stands twice; list each once")
            return formats if "safetensors" in formats else ["safetensors", *formats]
        return formats


_LATE = {"near_duplicates"}
"""Keys that earlier versions did not have. null is not part of the digest, so a promotion of an earlier version can continue."""


class Policy(_PolicySection):
    """How a winner is confirmed, and what it must show before it takes the champion's place."""

    top: Count = Field(3, ge=1, le=100)
    """Number of the best configurations of a search that are trained again."""
    seeds: Count = Field(3, ge=1, le=100)
    """Number of new seeds with which each of them is trained."""
    retrain_on: Literal["train+val", "train"] = "train+val"
    """Splits that they are trained on. With train+val, the validation images are used for training, and the holdout images choose among the
    trained models."""
    better: Better = Better.model_validate({})
    """The comparison with the champion on the same test images."""
    floors: Floors = Floors.model_validate({})
    """What a candidate must reach, with or without a champion."""
    class_drop: Number | None = Field(0.03, ge=0, le=1)
    """How much lower than the champion's the recall of a class may be, beyond chance. If trials were ranked by val_macro_f1, val_auroc or
    val_average_precision, this value of the class is compared instead. null: no comparison."""
    calibration: Calibration = Calibration.model_validate({})
    """Expected calibration error on the test images."""
    limits: CostLimits = CostLimits.model_validate({})
    """Largest costs of a candidate."""
    cost_above_champion: Number | None = Field(1.10, gt=0, le=1000)
    """Largest ratio of latency (beyond chance), file size and peak memory to those of the champion. null: no comparison."""
    robustness: Robustness = Robustness.model_validate({})
    """Accuracy on corrupted test images."""
    export: Export = Export.model_validate({})
    """File formats of a promoted model."""
    seed_sd: Number | None = Field(0.01, ge=0, le=1)
    """Largest standard deviation of the search's metric over the seeds, beyond what few images explain. null: no limit."""
    leaked: Count = Field(0, ge=0)
    """Number of test images that may also be, byte for byte, among the images of training or selection."""
    near_duplicates: Number | None = Field(None, ge=0, le=1)
    """Largest share of the test images that may look like copies of images of training or selection: encoded again, resized, cropped by up
    to 5 % or mirrored. null: they are counted and shown, but do not refuse, because images of a fixed camera all look alike."""
    allow_dirty: Switch = False
    """Whether a search may have been launched from a checkout with changes that are not committed."""
    approval: Literal["protected", "always", "never"] = "protected"
    """When a promotion needs the name of a person who approves it. protected: only for models with the tag `protected`."""

    @property
    def digest(self) -> str:
        """sha256 of the policy with every default filled in. The same digest means the same requirements."""
        demands = {key: value for key, value in self.to_dict().items() if key not in _LATE or value is not None}
        return hashlib.sha256(json.dumps(demands, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values with every default filled in. `Policy.model_validate` reads them."""
        return self.model_dump(mode="json")


def load(path: Path | None) -> Policy:
    """Read and check a policy file. Without a file, the defaults.

    Raises: SpecError in one line: file, line, key, what was found, how to fix it.
    """
    return Policy.model_validate({}) if path is None else parse(strict_yaml.read_text(path), str(path))


def parse(text: str, source: str = "policy") -> Policy:
    """Read and check the text of a policy file; see `load`."""
    document = strict_yaml.parse(text, source)
    try:
        return Policy.model_validate(document.values)
    except ValidationError as error:
        problems = [_in_words(dict(detail)) for detail in error.errors(include_url=False)]
        path, message = min(problems, key=lambda problem: document.line(problem[0]))
        raise SpecError(f"{source}:{document.line(path)}: {message}") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a policy file, for editors."""
    return Policy.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def _in_words(error: dict[str, Any]) -> tuple[strict_yaml.NodePath, str]:
    """A pydantic error as (path in the file, one line that says how to fix it)."""
    path: strict_yaml.NodePath = error["loc"]
    key = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        return path, f"{key}: unknown key; {nearest(str(path[-1]), list(_section(path[:-1]).model_fields))}"
    finding = "has no value" if error["input"] is None else f"{spelt(error['input'])} will not do"
    if error["type"] == "value_error":
        return path, f"{key}: {error['ctx']['error']}."
    return path, f"{key}: {finding}; {expected(error)}"


def _section(path: strict_yaml.NodePath) -> type[BaseModel]:
    section: type[BaseModel] = Policy
    for step in path:
        inner = section.model_fields[str(step)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        section = inner
    return section
