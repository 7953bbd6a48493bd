"""The training of a trial: optimizer, loss, augmentation and number formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vit_search.config import class_weights
from vit_search.config.knobs import check_bounds, knob
from vit_search.config.optimizers import OPTIMIZERS
from vit_search.config.tuning import FIELDS, LORA_LAYERS, WAYS, Tuning
from vit_search.errors import SpecError


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
    tune: Literal[WAYS] = knob(  # type: ignore[valid-type]
        "full",
        "Which weights are trained. full: all of them. head: the classification head alone (a linear probe). last_blocks: the last blocks, "
        "with what follows them. lora (Hu et al. 2022): the head, and in each block a small correction of some matrices, which is added to "
        "them before the model is validated and served. What is not trained has no dropout and no drop path, and takes no weight decay. "
        "The ways other than full are meant for pretrained weights.",
        late=True,
    )
    tuned_blocks: int = knob(
        1, "With tune: last_blocks, how many of the last blocks are trained. Not more than the model has.", ge=1, le=256, late=True
    )
    lora_rank: int = knob(8, "With tune: lora, the rank of each correction. More is more to train. At most dim.", ge=1, le=1024, late=True)
    lora_alpha: float = knob(
        8.0, "With tune: lora, the strength of the corrections: each is multiplied by lora_alpha / lora_rank.", gt=0, le=4096, late=True
    )
    lora_layers: Literal[tuple(LORA_LAYERS)] = knob(  # type: ignore[valid-type]
        "attention",
        "With tune: lora, the matrices that are corrected: those of attention (queries, keys, values, projection), of the mlp, or all.",
        late=True,
    )
    feature_views: int = knob(
        1,
        "With tune: head or last_blocks and pretrained weights, how many versions of each training image go through the frozen part once, "
        "so that its output is kept for all epochs and trials. Version 1 is the image itself, the others are augmented; an epoch trains on "
        "one version, and the epochs take turns. 1: the output is kept if there is no augmentation, else each epoch augments anew and runs "
        "the whole model. 0: nothing is kept. With erasing, mixup or cutmix, nothing is kept either.",
        ge=0,
        le=1000,
        late=True,
    )
    layer_decay: float = knob(
        1.0,
        "How much slower a block learns than the next one. The head and the last norm learn with lr, the last block with lr times this "
        "value, the block before it with lr times its square, and so on; the embedding is the slowest. As in BEiT, MAE and timm. 1: all "
        "learn with lr.",
        gt=0,
        le=1,
        late=True,
    )
    head_lr_factor: float = knob(
        1.0,
        "The classification head learns with this multiple of lr. More than 1 is for a new head on pretrained weights.",
        gt=0,
        le=1000,
        late=True,
    )
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

    @property
    def tuning(self) -> Tuning:
        """Which weights are trained."""
        return Tuning(**{name: getattr(self, name) for name in FIELDS})
