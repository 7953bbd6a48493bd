"""Packed training: a member's numbers are those it would have alone, whoever trains beside it."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from vit_search.errors import PackError
from vit_search.spec.config import DataConfig, EpochResult, ModelConfig, TrainingConfig, TrialConfig
from vit_search.vit import checkpoint, packed
from vit_search.vit.data import prepare, read_split
from vit_search.vit.packed import fit_packed
from vit_search.vit.splits import Split, StreamedSplit
from vit_search.vit.training import DivergedError, Normalisation, fit, start

CONFIG = TrialConfig(
    data=DataConfig(name="digits", train_limit=100),
    model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=16, heads=2, depth=2, mlp_ratio=2),
    training=TrainingConfig(epochs=2, batch_size=32, lr=3e-3, precision="float32"),  # 100 images: 3 whole batches and a rest of 4
    seed=1,
)
CLOSE = 1e-6


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = prepare(CONFIG.data, cache=tmp_path_factory.mktemp("cache"))
    splits = {name: Split(*(torch.tensor(part) for part in read_split(data, name))) for name in ("train", "val")}
    return splits["train"], splits["val"], Normalisation.of(data.mean, data.std)


def config(seed=1, model=None, **training):
    return dataclasses.replace(
        CONFIG,
        seed=seed,
        model=dataclasses.replace(CONFIG.model, **(model or {})),
        training=dataclasses.replace(CONFIG.training, **training),
    )


def alone(told, digits):
    train, val, normalisation = digits
    state = start(told, normalisation)
    list(fit(state, train, val))
    return state


def together(configs, digits, stopped=()):
    train, val, normalisation = digits
    states = [start(told, normalisation) for told in configs]
    list(fit_packed(states, train, val, stopped))
    return states


def weights(model):
    """All of a model's numbers but the biases of the keys: softmax cancels them, so AdamW walks them along rounding errors."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if name.endswith("qkv.bias"):
            tensor[len(tensor) // 3 : 2 * len(tensor) // 3] = 0
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def numbers(state):
    names = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5_accuracy", "lr")
    return [getattr(result, name) for result in state.history for name in names]


def assert_same(state, other):
    assert numbers(state) == pytest.approx(numbers(other), rel=CLOSE)
    assert torch.allclose(weights(state.outcome), weights(other.outcome), rtol=CLOSE, atol=2 * CLOSE)
    moments = [torch.cat([one.optimiser.state[p]["exp_avg_sq"].flatten() for p in one.model.parameters()]) for one in (state, other)]
    assert torch.allclose(*moments, rtol=1e-4, atol=CLOSE)


@pytest.mark.parametrize(
    "model",
    [
        {"pool": "cls"},
        {"norm": "post", "activation": "relu"},
        {"layer_scale": 0.1, "qkv_bias": False},
        {"positions": "sincos2d", "pool": "cls", "dim_head": 4},
        {"patch_size": 1, "depth": 1},  # 64 tokens: the flash kernel
    ],
    ids=lambda model: ",".join(f"{name}={value}" for name, value in model.items()),
)
def test_a_member_equals_the_same_training_alone(digits, model):
    configs = [config(seed, model) for seed in (1, 2)]
    for state, told in zip(together(configs, digits), configs, strict=True):
        assert_same(state, alone(told, digits))


def test_members_may_differ_in_all_but_their_shape(digits):
    configs = [
        config(1, lr=1e-2, weight_decay=0.5, clip_norm=None, shift=1, flip=True),
        config(2, {"init": "trunc_normal_02", "pos_init_std": 0.02}, beta2=0.9, label_smoothing=0.0, warmup_fraction=0.5),
        config(3, clip_norm=0.1, erasing=0.5, mixup=0.4, cutmix=0.4, ema_decay=0.9, epochs=3),
        config(3, lr=1e-4, auto_augment="trivial_augment", crop_scale=0.5, epochs=1),
    ]
    for state, told in zip(together(configs, digits), configs, strict=True):
        assert state.epoch == told.training.epochs
        assert_same(state, alone(told, digits))


def test_dropout_masks_on_a_cpu_are_those_of_the_same_training_alone(digits):
    rates = [
        {"dropout": 0.2, "drop_path": 0.3},
        {},
        {"attention_dropout": 0.5, "mlp_dropout": 0.1},
        {"embedding_dropout": 0.1, "projection_dropout": 0.3, "drop_path": 0.1},
    ]
    configs = [config(4, own) for own in rates]
    for state, told in zip(together(configs, digits), configs, strict=True):
        assert_same(state, alone(told, digits))


def test_neighbours_and_the_global_random_state_change_nothing(digits):
    told = config(5, {"dropout": 0.2})
    first = together([told, config(6)], digits)[0]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = together([config(7, {"drop_path": 0.5}), config(8, shift=1), told], digits)[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(first, second)


def test_who_is_stopped_trains_no_further_and_touches_no_one(digits):
    train, val, normalisation = digits
    configs = [config(seed, {"dropout": 0.1}, epochs=3) for seed in (1, 2, 3)]
    states = [start(told, normalisation) for told in configs]
    stopped = set()
    seen = []
    for results in fit_packed(states, train, val, stopped):
        seen.append(sorted(results))
        stopped.add(1)
    assert seen == [[0, 1, 2], [0, 2], [0, 2]]
    assert [state.epoch for state in states] == [3, 1, 3]
    for i in (0, 2):
        assert_same(states[i], alone(configs[i], digits))


def test_a_member_that_diverges_is_told_apart_and_touches_no_one(digits):
    train, val, normalisation = digits
    configs = [config(seed) for seed in (1, 2)]
    states = [start(told, normalisation) for told in configs]
    with torch.no_grad():
        states[0].model.head.weight[0, 0] = float("nan")
    first, second = fit_packed(states, train, val)
    assert isinstance(first[0], DivergedError)
    assert str(first[0]) == "the loss is nan in epoch 1, step 1 of 4"
    assert isinstance(first[1], EpochResult)
    assert list(second) == [1]
    assert states[0].history == []
    assert_same(states[1], alone(configs[1], digits))


@pytest.mark.parametrize("packed_first", [True, False])
def test_a_training_goes_on_in_a_pack_and_out_of_it(digits, tmp_path, packed_first):
    train, val, normalisation = digits
    told = config(1, {"dropout": 0.1}, epochs=3, ema_decay=0.9)
    state, fresh = start(told, normalisation), start(config(2), normalisation)
    next(fit_packed([fresh, state], train, val) if packed_first else fit(state, train, val))
    checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
    resumed = checkpoint.load_training(tmp_path / "c", told)
    assert resumed.epoch == 1
    list(fit(resumed, train, val) if packed_first else fit_packed([fresh, resumed], train, val))  # beside one at its first epoch
    assert_same(resumed, alone(told, digits))
    assert torch.allclose(weights(resumed.model), weights(alone(told, digits).model), atol=2 * CLOSE)


def test_bfloat16_members_stay_near_the_same_training_alone(digits):
    told = config(1, precision="bfloat16")
    state = together([told, config(2, precision="bfloat16")], digits)[0]
    assert numbers(state)[1::7] == pytest.approx(numbers(alone(told, digits))[1::7], rel=0.01)


def test_a_row_of_masks_drawn_at_once_keeps_its_share_at_each_site_and_depends_on_its_generator_alone():
    rates = torch.tensor([[0.0, 0.5], [0.25, 0.0]])

    def masks(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return packed.masks_at_once(rates, [3000, 6000], generators, [[False, True], [True, False]])

    first, second = masks(1, 2).split([3000, 6000], dim=1)
    assert [{round(value, 6) for value in part.unique().tolist()} for part in (first[0], first[1], second[0], second[1])] == [
        {1},
        {0, 1.333333},
        {0, 2},
        {1},
    ]
    assert first[1].mean() == pytest.approx(1, abs=0.05)
    assert second[0].mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(masks(1, 2)[1], masks(3, 2)[1])
    alone = packed.masks_at_once(rates[1:, :1], [3000], [torch.Generator().manual_seed(2)], [[True]])
    assert torch.equal(masks(1, 2)[1, :3000], alone[0])  # without the site at which only its neighbour drops


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (config(model={"dim": 32}), r"member 1: model\.dim is 32 where member 0 has 16; pack trainings of one shape"),
        (config(model={"mlp_ratio": 4}), r"member 1: model\.mlp_dim is 64 where member 0 has 32"),
        (config(model={"layer_scale": 0.1}), r"member 1: model\.layer_scale is some where member 0 has none"),
        (config(batch_size=16), r"member 1: training\.batch_size is 16 where member 0 has 32"),
        (config(precision="bfloat16"), r"member 1: training\.precision is torch\.bfloat16 where member 0 has torch\.float32"),
        (config(accumulation=2), r"member 1: training\.accumulation is 2; a pack takes a batch whole"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_member_and_field(digits, other, message):
    train, val, normalisation = digits
    members = [start(told, normalisation) for told in (CONFIG, other)]
    with pytest.raises(PackError, match=message):
        next(fit_packed(members, train, val))


def test_a_replaced_encoder_is_refused(digits):
    train, val, normalisation = digits
    member = start(CONFIG, normalisation)
    member.model.encoder = nn.Identity()
    with pytest.raises(PackError, match=r"member 0: model\.encoder is Identity; only the standard one can be packed"):
        next(fit_packed([member], train, val))


def test_images_streamed_from_files_are_refused(digits, tmp_path):
    _, val, normalisation = digits
    streamed = StreamedSplit(tmp_path, np.array(["a.png"]), torch.zeros(1, dtype=torch.int64), (8, 8), 1, workers=0)
    with pytest.raises(PackError, match="train is streamed from files; a pack needs its training images in memory"):
        next(fit_packed([start(CONFIG, normalisation)], streamed, val))


def test_members_of_equal_width_by_different_words_are_one_shape(digits):
    ratio, width = (start(config(model=model), digits[2]) for model in ({"mlp_ratio": 2}, {"mlp_ratio": 4, "mlp_dim": 32, "dim_head": 8}))
    assert packed.shape(ratio) == packed.shape(width)
