"""A promotion's policy: how a winner is confirmed, and what it must show before it takes the champion's place.

Read from a YAML file as strictly as a search file, and described to editors by a JSON Schema. With no file the defaults hold.
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
"""What promotion/evidence/corruptions.py can do to an image."""

Format = Literal["safetensors", "pt2", "onnx"]

Count = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]


class _PolicySection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Better(_PolicySection):
    """The comparison with the champion on the same test images (gates G4 and G5)."""

    mode: Literal["better", "non_inferior"] = "better"
    """Whether a candidate must be better, or no worse than `margin` and cheaper by `cheaper`."""
    alpha: Number = Field(0.05, gt=0, le=0.5)
    """Chance that a candidate who is no better (or, in non_inferior, worse by the margin) ever passes, over all readings of one test
    split: alpha / (t (t + 1)) at the t-th."""
    least_gain: Number = Field(0.002, ge=0, lt=1)
    """A gain that is worth a change of model, as a share of the images."""
    most_readings: Count = Field(20, ge=1, le=100_000)
    """Of one test split; then it decides nothing."""
    margin: Number = Field(0.005, gt=0, lt=1)
    """In non_inferior: the lower bound of the gain must lie above -margin."""
    cheaper: Number = Field(0.2, ge=0, lt=1)
    """In non_inferior: share by which the latency (p50 at batch 1) or the file must be smaller than the champion's."""


class Floors(_PolicySection):
    """What any candidate must reach, champion or not (gates G3 and G6)."""

    accuracy: Number | None = Field(None, ge=0, le=1)
    """Least accuracy on the test images."""
    worst_class: Number | None = Field(None, ge=0, le=1)
    """Least share of the images of any class that are recognised."""
    above_majority: Switch = True
    """Whether the accuracy must exceed that of always naming the commonest class."""
    linear_probe: Switch = True
    """Whether logistic regression on the pixels must not be better, beyond chance."""


class Calibration(_PolicySection):
    """Expected calibration error on the test images (gate G7)."""

    ece_above_champion: Number | None = Field(0.01, ge=0, le=1)
    """By how much it may exceed the champion's, beyond chance; null for no comparison."""
    ece: Number | None = Field(None, ge=0, le=1)
    """The most it may be."""


class LatencyLimits(_PolicySection):
    """Milliseconds from pixels to logits; a device that is not there is not measured, and its limit refuses."""

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
    """What a candidate may cost at most (gate G8); null for no limit."""

    params: Count | None = Field(None, ge=1)
    """Trained parameters."""
    file_bytes: Count | None = Field(None, ge=1)
    """Bytes of model.safetensors."""
    peak_memory_bytes: Count | None = Field(None, ge=1)
    """Weights and activations of 32 images at their peak, on any measured device."""
    latency_ms: LatencyLimits = LatencyLimits.model_validate({})
    """Milliseconds from pixels to logits."""


class Robustness(_PolicySection):
    """Accuracy on corrupted test images (gate G12)."""

    kinds: tuple[Corruption, ...] = Field(CORRUPTIONS, max_length=len(CORRUPTIONS))
    """Which corruptions are tried, each at one stated strength; an empty list for none."""
    accuracy: Number | None = Field(None, ge=0, le=1)
    """Least mean accuracy over them."""
    drop: Number | None = Field(0.03, ge=0, le=1)
    """By how much the mean may lie below the champion's, beyond chance; null for no comparison."""

    @field_validator("kinds", mode="before")
    @classmethod
    def _each_once(cls, kinds: Any) -> Any:
        if isinstance(kinds, (list, tuple)):
            for i, kind in enumerate(kinds):
                if kind in kinds[:i]:
                    raise ValueError(f"{kind} stands twice; list each once")
        return kinds


class Export(_PolicySection):
    """The files that a promoted model is handed out as (gate G1)."""

    formats: tuple[Format, ...] = Field(("safetensors", "pt2"), max_length=3)
    """Which formats must agree with the trained model; safetensors is always among them, onnx needs the extra `onnx`."""
    tolerance: Number = Field(1e-4, ge=0, le=1)
    """Largest difference of a logit from the eager model's; safetensors must agree to the bit."""

    @field_validator("formats", mode="before")
    @classmethod
    def _each_once(cls, formats: Any) -> Any:
        if isinstance(formats, (list, tuple)):
            for i, name in enumerate(formats):
                if name in formats[:i]:
                    raise ValueError(f"{name} stands twice; list each once")
            return formats if "safetensors" in formats else ["safetensors", *formats]
        return formats


class Policy(_PolicySection):
    """How a winner is confirmed, and what it must show before it takes the champion's place."""

    top: Count = Field(3, ge=1, le=100)
    """How many of a search's best configurations are trained again."""
    seeds: Count = Field(3, ge=1, le=100)
    """Fresh seeds with which each of them is trained."""
    retrain_on: Literal["train+val", "train"] = "train+val"
    """Images that they are trained on. With train+val the search's validation images are used up, and holdout images choose."""
    better: Better = Better.model_validate({})
    """The comparison with the champion on the same test images."""
    floors: Floors = Floors.model_validate({})
    """What any candidate must reach."""
    class_drop: Number | None = Field(0.03, ge=0, le=1)
    """By how much any class may lose to the champion, beyond chance; null for no comparison."""
    calibration: Calibration = Calibration.model_validate({})
    """Expected calibration error on the test images."""
    limits: CostLimits = CostLimits.model_validate({})
    """What a candidate may cost at most."""
    cost_above_champion: Number | None = Field(1.10, gt=0, le=1000)
    """Largest ratio to the champion of latency (beyond chance), file and peak memory; null for no comparison."""
    robustness: Robustness = Robustness.model_validate({})
    """Accuracy on corrupted test images."""
    export: Export = Export.model_validate({})
    """The files that a promoted model is handed out as."""
    seed_sd: Number | None = Field(0.01, ge=0, le=1)
    """Largest standard deviation of the accuracy over seeds, beyond what few images explain; null for no limit."""
    leaked: Count = Field(0, ge=0)
    """How many test images may stand, byte for byte, among the images that training or selection sees."""
    allow_dirty: Switch = False
    """Whether a search may have been launched from a checkout with changes that are not committed."""
    approval: Literal["protected", "always", "never"] = "protected"
    """When a promotion needs the name of a person who approves it: for models tagged `protected`, always, or never."""

    @property
    def digest(self) -> str:
        """sha256 of the policy with every default filled in: the same digest, the same demands."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every default filled in; `Policy.model_validate` takes them back."""
        return self.model_dump(mode="json")


def load(path: Path | None) -> Policy:
    """Read and check a policy file; the defaults where there is none.

    Raises: SpecError, one line: file, line, key, what was seen, the mend.
    """
    return Policy.model_validate({}) if path is None else parse(strict_yaml.read_text(path), str(path))


def parse(text: str, source: str = "policy") -> Policy:
    """The same from text."""
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
    """A pydantic error as (path in the file, one line with the mend)."""
    path: strict_yaml.NodePath = error["loc"]
    key = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        return path, f"{key}: unknown key; {nearest(str(path[-1]), list(_section(path[:-1]).model_fields))}"
    finding = "has no value" if error["input"] is None else f"{spelt(error['input'])} will not do"
    if error["type"] == "value_error":
        return path, f"{key}: {error['ctx']['error']}."
    return path, f"{key}: {finding}; {expected(error)}"


def _section(path: strict_yaml.NodePath) -> type[BaseModel]:
    """The section at a path."""
    section: type[BaseModel] = Policy
    for step in path:
        inner = section.model_fields[str(step)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        section = inner
    return section
