"""What one trial is: its data, model and training, as frozen dataclasses of plain Python.

Every default and every bound stands here once. The search file's sections (config/sections.py), the JSON Schema, the
model and its training all read them from these classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from vit_search.config import class_weights
from vit_search.config.data_sets import DATA_SETS
from vit_search.config.optimizers import OPTIMIZERS
from vit_search.config.strict_json import Seconds, Share, build
from vit_search.errors import SpecError


def knob(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    late: bool = False,
) -> Any:
    """A dataclass field with its meaning and its bounds, which `check_bounds` and the JSON Schema read; `...` is no default.

    Args:
        late: for every field that is added after version 0.2. Searches and models of older versions have hashes without it, which stay
            as they are while it has its default; see `hashed`.
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    metadata = {"doc": doc, "bounds": bounds, "late": late}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def bounds_text(bounds: dict[str, float]) -> str:
    """The bounds in words: `at least 1, at most 256`."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return ", ".join(f"{words[name]} {bound:.10g}" for name, bound in bounds.items())


def within(value: float, bounds: dict[str, float]) -> bool:
    """Whether a number is finite and inside its bounds."""
    return (
        math.isfinite(value)
        and value >= bounds.get("ge", -math.inf)
        and value > bounds.get("gt", -math.inf)
        and value <= bounds.get("le", math.inf)
        and value < bounds.get("lt", math.inf)
    )


def hashed(config: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that its hash is made of: all but late fields that have their default.

    Args:
        config: one of the classes below. values: by field, and others, which are kept.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.metadata.get("late")}
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def check_bounds(config: Any) -> None:
    """Refuse a dataclass of knobs whose numbers lie outside their bounds.

    Raises: SpecError that names the field, its value and the bounds.
    """
    for f in dataclasses.fields(config):
        value, bounds = getattr(config, f.name), f.metadata.get("bounds", {})
        numbers = [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, (int, float))]
        if bounds and not all(within(number, bounds) for number in numbers):
            raise SpecError(f"{f.name} is {value!r}; give {bounds_text(bounds)}.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split."""

    name: str = knob(..., f"Data set: one of {', '.join(DATA_SETS)}.")
    path: str | None = knob(
        None,
        "Where the data set is: a path, or a URL (s3://, gs://, https://, http:// or file://). image_folder: a folder with one sub-folder "
        "of images for each class. table: a CSV or Parquet file, or a folder of Parquet files. webdataset: a folder of .tar shards, one "
        ".tar file, or several as shards-{000..009}.tar. mnist, fashion_mnist, cifar10, cifar100: the folder that torchvision calls root. "
        "digits needs none.",
    )
    image_size: int | None = knob(
        None,
        "Side length in pixels to which images of image_folder, table and webdataset are resized. Other data sets have a fixed size.",
        ge=1,
        le=1024,
    )
    channels: int | Literal["auto"] = knob(
        3,
        "Channels of the images of image_folder, table and webdataset: 1 (grey) or 3 (RGB). Other numbers, up to 16, are for TIFF and NPY "
        "files that have so many. auto: as many as the files have.",
        ge=1,
        le=16,
    )
    bit_depth: Literal[8, 16] | None = knob(
        None,
        "Bits of each value of an image. If you give it, each file must have exactly this depth and the number of channels of "
        "data.channels, and NPY files are read, too. Without it, all images are read as 8 bits, and converted to grey or RGB.",
        late=True,
    )
    image: str | None = knob(
        None,
        "Column of a table with the images: file names, relative to the table's folder, or the bytes of image files. Default: image.",
        late=True,
    )
    label: str | None = knob(
        None,
        "Column of a table with the class of each image; in shards of webdataset, the key of KEY.json that holds it. Default: label.",
        late=True,
    )
    split: str | None = knob(
        None,
        "Column of a table with the split of each image: train, val or test; if empty, the seed decides. Default: split, if it is there.",
        late=True,
    )
    group: str | None = knob(
        None,
        "What belongs together, for example all images of a patient: no group is divided between two splits. In a table, it is the column "
        "with the group; for image_folder, a regular expression that finds the group in a file's name. Default: group, if the table has "
        "such a column.",
        late=True,
    )
    weight: str | None = knob(
        None,
        "How much each training image counts in the loss: a number of at least 0 for each image. In a table, it is the column with the "
        "weights; in shards of webdataset, the key of KEY.json that holds it. Only ratios matter, because the weights are divided by their "
        "mean. Images of weight 0 are not trained on. Validation and test images always count the same. Default: all images count the "
        "same.",
        late=True,
    )
    label_map: Mapping[str, str | None] | None = knob(
        None,
        "Classes to merge, rename or drop: the old name and the new one, as `{kitten: cat, bird: null}`; `null` drops the class and its "
        "images. Classes that are not listed stay as they are. Default: all stay.",
        late=True,
    )
    val_fraction: float = knob(0.1, "Share of the labelled images that the search uses for validation.", gt=0, lt=0.9)
    holdout_fraction: float = knob(
        0.05,
        "Share of the labelled images that only promotion uses, to choose among the best trials. With 0, promotion uses the search's own "
        "validation images.",
        ge=0,
        lt=0.9,
    )
    test_fraction: float = knob(
        0.15,
        "Share of the labelled images that only promotion uses, for the final test. Not used if the data set has a test split of its own.",
        gt=0,
        lt=0.9,
    )
    split_seed: int = knob(0, "Seed of the stratified split. With another seed, it counts as another data set.", ge=0, le=2**31 - 1)
    train_limit: int | None = knob(None, "Number of images to train on, stratified by class. Default: all of them.", ge=2)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def exact(self) -> bool:
        """Whether values are read as the files have them, and files of another depth or number of channels are refused."""
        return self.bit_depth is not None or self.channels not in (1, 3)

    @property
    def bits(self) -> int:
        """Bits of a value of a decoded image: 8 or 16."""
        return self.bit_depth or 8

    @property
    def channel_count(self) -> int:
        """Channels of a decoded image; 3 while `auto` has not looked at the files, which `prepare` does."""
        return 3 if self.channels == "auto" else self.channels

    @property
    def labelled(self) -> int | None:
        """Labelled images, without a test split of the set's own; None where only the open source knows."""
        return None if self.label_map else DATA_SETS[self.name].labelled


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One Vision Transformer. The first three fields come from the data, all others from the search file."""

    image_size: tuple[int, int] = knob(..., "Height and width in pixels.", ge=1, le=1024)
    in_channels: int = knob(..., "Channels of an image.", ge=1, le=1024)
    num_classes: int = knob(..., "Classes; 0 gives token features instead of logits.", ge=0, le=1_000_000)
    patch_size: int = knob(
        4,
        "Side length of a patch in pixels. It must divide the height and width of the image. Half the side makes four times the tokens.",
        ge=1,
        le=1024,
    )
    dim: int = knob(64, "Width of a token.", ge=1, le=16384)
    depth: int = knob(3, "Number of encoder blocks.", ge=1, le=256)
    heads: int = knob(4, "Number of attention heads. It must divide dim, unless dim_head is given.", ge=1, le=256)
    dim_head: int | None = knob(None, "Width of one attention head. Default: dim / heads.", ge=1, le=4096)
    mlp_ratio: float = knob(4.0, "Hidden width of the MLP in each block, as a multiple of dim.", gt=0, le=64)
    mlp_dim: int | None = knob(None, "Hidden width of the MLP in each block. If it is given, mlp_ratio is not used.", ge=1, le=65536)
    dropout: float = knob(
        0.0, "Dropout rate of embedding, attention, projection and MLP. Each of them has a key of its own that overrides it.", ge=0, lt=1
    )
    embedding_dropout: float | None = knob(None, "Dropout rate after patches and positions are added. Default: dropout.", ge=0, lt=1)
    attention_dropout: float | None = knob(None, "Dropout rate of the attention weights. Default: dropout.", ge=0, lt=1)
    projection_dropout: float | None = knob(None, "Dropout rate after the output projection of attention. Default: dropout.", ge=0, lt=1)
    mlp_dropout: float | None = knob(None, "Dropout rate after each of the two layers of the MLP. Default: dropout.", ge=0, lt=1)
    drop_path: float = knob(
        0.0,
        "Stochastic depth: probability that a sample skips a branch of a block. It grows linearly from 0 in the first block to this value "
        "in the last.",
        ge=0,
        lt=1,
    )
    activation: Literal["gelu", "relu"] = knob("gelu", "Activation function of the MLP.")
    norm: Literal["pre", "post"] = knob(
        "pre", "Place of LayerNorm: pre is before each branch (as in the ViT paper), post is after each sum (as in Vaswani et al. 2017)."
    )
    pool: Literal["mean", "cls"] = knob("mean", "Input of the classification head: the mean of the tokens, or a class token.")
    positions: Literal["learned", "sincos2d"] = knob(
        "learned", "Position embedding: learned, or fixed sines and cosines of row and column."
    )
    init: Literal["xavier", "trunc_normal_02"] = knob("xavier", "Initialisation of the linear layers. The ViT paper uses trunc_normal_02.")
    pos_init_std: float = knob(
        0.3, "Standard deviation of learned positions and class token before training. The ViT paper uses 0.02.", gt=0, le=10
    )
    qkv_bias: bool = knob(True, "Whether queries, keys and values have a bias.")
    layer_scale: float | None = knob(
        None, "LayerScale (Touvron et al. 2021): initial scale of each branch. Default: no LayerScale.", gt=0, le=10
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        problem = model_problem(self.image_size, self.patch_size, self.dim, self.heads, self.dim_head)
        if problem:
            raise SpecError(problem)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def tokens(self) -> int:
        """Length of the sequence that the encoder sees, class token included."""
        return self.grid[0] * self.grid[1] + (self.pool == "cls")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.dim_head or self.dim // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP, at least 1."""
        return self.mlp_dim or max(1, round(self.dim * self.mlp_ratio))


def model_problem(image_size: tuple[int, int], patch_size: int, dim: int, heads: int, dim_head: int | None = None) -> str | None:
    """Why these numbers make no ViT, in one line, or None when they do."""
    if image_size[0] % patch_size or image_size[1] % patch_size:
        return f"patch_size: {patch_size} does not divide the image of {image_size[0]}x{image_size[1]} pixels."
    if dim_head is None and dim % heads:
        return f"heads: {heads} does not divide dim={dim}; choose a divisor, or give dim_head."
    return None


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How one model is trained."""

    epochs: int = knob(25, "Length of a full training.", ge=1, le=100_000)
    batch_size: int = knob(32, "Number of images in one optimizer step.", ge=1, le=1_048_576)
    accumulation: int = knob(
        1,
        "Number of micro-batches that make one optimizer step. More of them need less memory; batch_size is divided among them.",
        ge=1,
        le=4096,
    )
    optimizer: Literal[tuple(OPTIMIZERS)] = knob(  # type: ignore[valid-type]
        "adamw",
        "Optimizer. muon trains the matrices of the encoder blocks, and adamw all other weights. sgd needs a higher lr, for example 0.1.",
        late=True,
    )
    lr: float = knob(1e-3, "Highest learning rate, at the end of the warm-up. It then follows a cosine.", gt=0, le=10)
    weight_decay: float = knob(0.05, "Weight decay of the weight matrices. Norms, biases, tokens and positions have none.", ge=0, le=10)
    beta2: float = knob(0.99, "Decay rate of AdamW's second moment, for adamw and muon.", gt=0, lt=1)
    momentum: float = knob(0.9, "Momentum of sgd and muon.", ge=0, lt=1, late=True)
    warmup_fraction: float = knob(0.1, "Share of all steps in which the learning rate rises from 0 to lr.", ge=0, lt=1)
    clip_norm: float | None = knob(1.0, "Largest norm of the gradient; a larger gradient is scaled down to it. null: no clipping.", gt=0)
    label_smoothing: float = knob(0.1, "Share of the target probability that is spread evenly over all classes.", ge=0, lt=1)
    class_weights: str = knob(
        "none",
        "How much an image counts in the loss, by its class. With none, all count the same. With balanced, images of rare classes count "
        "more: the weight of a class is images / (classes x images of the class), as in scikit-learn. Or give the weights of some "
        "classes, as {cat: 2}; the others have 1. The loss of a batch is the sum of the weighted losses of its images, divided by the "
        "number of its images. Validation uses no weights.",
        late=True,
    )
    sampling: Literal["uniform", "balanced"] = knob(
        "uniform",
        "Which training images an epoch shows. uniform shows each image once. balanced shows equally many images of each class, and as "
        "many in all: images of rare classes come several times, and of frequent classes only some come, other ones in each epoch.",
        late=True,
    )
    loss: Literal["cross_entropy", "focal", "logit_adjusted"] = knob(
        "cross_entropy",
        "What training minimises. Validation and val_loss always use cross_entropy. With focal (Lin et al. 2017), an image counts less, "
        "the surer the model is of its class. With logit_adjusted (Menon et al. 2021), the model must tell rare classes from frequent "
        "ones by a larger margin: during training, logit_tau times the logarithm of a class's share of the images is added to its "
        "logit. Label smoothing is then spread by these shares.",
        late=True,
    )
    focal_gamma: float = knob(
        2.0, "Strength of the loss focal, which multiplies cross-entropy by (1 - probability) to this power.", ge=0, le=10, late=True
    )
    logit_tau: float = knob(1.0, "Strength of the loss logit_adjusted. 0: as cross_entropy.", ge=0, le=10, late=True)
    shift: int = knob(
        0,
        "Augmentation: training images are moved by up to this many pixels in each direction, like a random crop of a padded image.",
        ge=0,
        le=256,
    )
    crop_scale: float = knob(1.0, "Augmentation: smallest share of the area that a random resized crop keeps. 1: no crop.", gt=0, le=1)
    flip: bool = knob(False, "Augmentation: half of the training images, chosen at random, are mirrored left to right.")
    auto_augment: Literal["none", "trivial_augment", "rand_augment"] = knob(
        "none", "Augmentation: random changes of colour and shape, different for each image."
    )
    rand_augment_ops: int = knob(2, "Number of operations of rand_augment on each image.", ge=1, le=14)
    rand_augment_magnitude: int = knob(9, "Strength of the operations of rand_augment.", ge=0, le=30)
    erasing: float = knob(
        0.0, "Augmentation: probability that a box of 2 to 33 % of a training image is overwritten with the mean.", ge=0, le=1
    )
    mixup: float = knob(
        0.0,
        "Augmentation: two images are blended; this is the parameter of the Beta distribution of their shares. 0: no mixup.",
        ge=0,
        le=100,
    )
    cutmix: float = knob(
        0.0,
        "Augmentation: like mixup, but a box of the other image is pasted in. If both are on, each image gets one of them. 0: no cutmix.",
        ge=0,
        le=100,
    )
    ema_decay: float | None = knob(
        None,
        "Decay per step of a moving average (EMA) of the weights. If it is given, the average is validated and served. null: no average.",
        gt=0,
        lt=1,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto",
        "Number format of the matrix products in training. auto: bfloat16 if the machine has it and gains by it, else float32. The weights "
        "and the validation are float32.",
    )
    tf32: bool = knob(True, "Whether a GPU may round the inputs of float32 matrix products to TF32.")
    compile: bool = knob(False, "Whether the model is compiled with torch.compile. It has no effect on a CPU, where it does not pay.")
    cuda_graphs: bool = knob(
        False,
        "Whether a GPU runs the kernels of the model as one CUDA graph. It pays where kernels take longer to start than to run.",
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        try:
            class_weights.as_text(self.class_weights)
        except ValueError as error:
            raise SpecError(f"class_weights: {error}.") from None


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """All that one worker is told, and all that a checkpoint needs to be rebuilt."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    seed: int = knob(..., "Of all random numbers of the training.", ge=0, le=2**63 - 1)

    def __post_init__(self) -> None:
        check_bounds(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {"schema": 1}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrialConfig:
        """The inverse of `to_dict`.

        Raises: SpecError for a field that this version does not know, or an unknown schema number.
        """
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != 1:
            raise SpecError(f"config schema is {schema!r}; this version reads 1. Use the version of vit_search that wrote it.")
        try:
            return build(TrialConfig, {key: value for key, value in values.items() if key != "schema"}, "config")
        except ValueError as error:
            raise SpecError(f"{error}; it was written by another version of vit_search, or changed.") from None


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The metrics of one epoch."""

    epoch: Annotated[int, (1, 100_000)]
    """1 for the first."""
    train_loss: float
    train_accuracy: Share
    """Fraction in [0, 1], of the augmented training images."""
    val_loss: float
    val_accuracy: Share
    """Fraction in [0, 1], of the whole validation split."""
    val_top5_accuracy: Share | None
    """None with fewer than 5 classes."""
    lr: float
    """Learning rate of the last step."""
    images_per_s: Annotated[float, (0, 1e15)]
    """Training images per second, without evaluation."""
    seconds: Seconds
    """Seconds of wall time, for training and evaluation."""
    peak_memory_bytes: Annotated[int, (0, 2**63)]
    """Peak memory: of torch's allocator on a GPU, of the process on a CPU."""
    latency_ms: Annotated[float, (0, 1e12)] | None = None
    """Median time to classify one image; None unless it is an objective of the search."""
    scores: dict[str, float] = field(default_factory=dict)
    """Further metrics, by their names; see vit/evaluation.py. Empty in results of versions before 0.3."""

    def value(self, metric: str) -> float | None:
        """The value of a metric; None if this epoch does not have it."""
        value = self.scores[metric] if metric in self.scores else getattr(self, metric, None)
        return None if value is None else float(value)


FROM_DATA = ("image_size", "in_channels", "num_classes")
"""Fields of ModelConfig that the data set decides."""


def field_types(config: type[Any]) -> dict[str, Any]:
    """Name to resolved type of a config's fields."""
    return get_type_hints(config)
