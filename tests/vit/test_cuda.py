"""The laws of training on a GPU: a CPU's numbers but for rounding, every feature on, and memory that runs out for real."""

import dataclasses
import gc
import logging
import math
import re
import warnings

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vit_search.config import search_file
from vit_search.config.cost import cost_of, in_units
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, StreamedSplit, load_split, training_weights
from vit_search.data.cache import prepare
from vit_search.errors import OutOfMemoryError
from vit_search.runtime import machine
from vit_search.vit import augment, calibrate, checkpoint, train_once
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.model import ViT
from vit_search.vit.training import DivergedError, fit, latency_ms, start

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

CUDA = torch.device("cuda")
PLAIN = TrialConfig(
    data=DataConfig(name="digits", train_limit=100),
    model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=2, dim=32, heads=2, depth=2),
    training=TrainingConfig(epochs=2, batch_size=32, lr=3e-3, precision="float32", tf32=False),
    seed=1,
)
EVERYTHING = dataclasses.replace(
    PLAIN,
    model=dataclasses.replace(PLAIN.model, dropout=0.1, attention_dropout=0.2, drop_path=0.2, pool="cls", layer_scale=0.5),
    training=TrainingConfig(
        epochs=3,
        batch_size=32,
        accumulation=3,
        lr=3e-3,
        crop_scale=0.5,
        shift=1,
        flip=True,
        auto_augment="trivial_augment",
        erasing=0.5,
        mixup=0.4,
        cutmix=1.0,
        ema_decay=0.9,
    ),
)
LARGE = TrialConfig(
    data=DataConfig(name="cifar10"),
    model=ModelConfig(image_size=(32, 32), in_channels=3, num_classes=10, patch_size=4, dim=256, heads=4, depth=4, mlp_ratio=4),
    training=TrainingConfig(epochs=2, batch_size=512, lr=1e-3, precision="float32", tf32=False),
    seed=0,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(PLAIN.data, cache=tmp_path_factory.mktemp("cache"))


def on(device, data):
    """Training images, validation images and normalisation."""
    return load_split(data, "train", device=device), load_split(data, "val", device=device), Normalisation.of(data.mean, data.std, device)


@pytest.fixture(scope="module")
def digits(prepared):
    return on("cuda", prepared)


@pytest.fixture
def share_of_memory():
    """Sets how many bytes of the GPU this process may have; all of them again at the end."""
    total = torch.cuda.mem_get_info()[1]

    def limit(count):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(count / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def changed(config, *, model=None, seed=None, **fields):
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **(model or {})),
        training=dataclasses.replace(config.training, **fields),
        seed=config.seed if seed is None else seed,
    )


def trained(config, splits, device="cuda"):
    train, val, normalisation = splits
    state = start(config, normalisation, device)
    list(fit(state, train, val))
    return state


def numbers(state):
    names = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5_accuracy", "lr")
    return [getattr(result, name) for result in state.history for name in names]


def losses(state):
    return [loss for result in state.history for loss in (result.train_loss, result.val_loss)]


def noise(count, side=32, channels=3, device="cuda"):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return Split(images.to(device), (torch.arange(count) % 10).to(device)), Normalisation.of((0.5,) * channels, (0.25,) * channels, device)


# The same numbers


def test_a_training_on_a_gpu_is_that_on_a_cpu_but_for_rounding(prepared, digits):
    config = changed(
        PLAIN, accumulation=2, crop_scale=0.5, shift=1, flip=True, erasing=0.5, mixup=0.4, cutmix=1.0, ema_decay=0.9, weight_decay=0.1
    )
    there, here = trained(config, digits), trained(config, on("cpu", prepared), "cpu")
    assert there.device.type == "cuda"
    assert losses(there) == pytest.approx(losses(here), rel=2e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_same_seed_gives_the_same_numbers_and_a_resume_changes_none(digits, tmp_path, precision):
    config = changed(EVERYTHING, precision=precision)
    train, val, normalisation = digits
    whole, again, state = trained(config, digits), trained(config, digits), start(config, normalisation, CUDA)
    assert losses(again) == pytest.approx(losses(whole), rel=1e-4)  # a fused kernel may add in any order
    for epoch in (1, 2, 3):
        next(fit(state, train, val))
        checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
        torch.manual_seed(epoch)
        state = checkpoint.load_training(tmp_path / "c", config, "cuda")
    assert state.device.type == "cuda"
    assert losses(state) == pytest.approx(losses(whole), rel=1e-4)
    assert state.scaler.is_enabled() == (precision == "float16")
    assert state.scaler.state_dict() == whole.scaler.state_dict()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", augment.OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_on_a_gpu_gives_the_pixels_of_a_cpu(operation, channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, channels, 16, 16), generator=generator, dtype=torch.uint8)
    strength, sign = torch.rand(64, generator=generator), torch.randint(2, (64,), generator=generator) * 2 - 1
    reach = augment.Reach(0.99, (16, 16), 135.0, 0.99, 6)
    here = operation(images, strength, sign, reach)
    there = operation(images.cuda(), strength.cuda(), sign.cuda(), reach).cpu()
    apart = (here.int() - there.int()).abs()
    assert float((apart > 1).float().mean()) < 0.005  # a pixel whose source lies half-way between two


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu_and_serves_the_same(prepared, digits, tmp_path):
    state = trained(changed(PLAIN, epochs=1), digits)
    state.config = changed(PLAIN, epochs=2)
    checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
    train, val, normalisation = on("cpu", prepared)
    served = checkpoint.load_model(tmp_path / "c")
    assert evaluate(served.model, val, normalisation).loss == pytest.approx(state.history[0].val_loss, rel=1e-4)
    resumed = checkpoint.load_training(tmp_path / "c", state.config)
    list(fit(resumed, train, val))
    list(fit(state, digits[0], digits[1]))
    assert losses(resumed) == pytest.approx(losses(state), rel=2e-3)


def weighted(splits):
    """The same with weights of the training images, of which a quarter is 0."""
    train, val, normalisation = splits
    weights = torch.from_numpy(training_weights((np.arange(len(train)) % 4).astype(float)))
    return dataclasses.replace(train, weights=weights.to(train.labels.device)), val, normalisation


@pytest.mark.parametrize("fields", [{"mixup": 0.4, "class_weights": "balanced"}, {"cuda_graphs": True, "loss": "focal"}], ids=str)
def test_weighted_images_train_on_a_gpu_as_on_a_cpu(prepared, digits, fields):
    config = changed(PLAIN, accumulation=2, **fields)
    there, here = trained(config, weighted(digits)), trained(config, weighted(on("cpu", prepared)), "cpu")
    assert losses(there) == pytest.approx(losses(here), rel=2e-3)


def test_no_batch_waits_for_the_weights_of_its_images():
    """75 and 38 batches of images with weights; what an epoch waits for has the same count."""

    def waits(count):
        train, normalisation = noise(count)
        splits = weighted((train, noise(10)[0], normalisation))
        config = changed(LARGE, model={"dim": 32, "depth": 1}, epochs=1, batch_size=10, mixup=0.4)
        plain, counted = (train, *splits[1:]), []
        for one in (plain, plain, splits):  # the first makes the kernels
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    trained(config, one)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            counted.append(sum("synchronizing" in str(warning.message) for warning in caught))
        # the images of weight 0 are not shown, so that an epoch with weights has three quarters of the batches
        return counted[2], counted[1]

    (few_weighted, _), (many_weighted, many_plain) = waits(500), waits(1000)
    per_batch = (many_weighted - few_weighted) / (75 - 38)
    assert per_batch <= many_plain / 100 + 0.1


# What a GPU has of its own


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    "fields",
    [
        {"cuda_graphs": True},
        {"cuda_graphs": True, "tune": "head"},
        {"cuda_graphs": True, "tune": "lora"},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        pytest.param({"compile": True, "tune": "last_blocks"}, marks=pytest.mark.slow),
        pytest.param({"compile": True, "tune": "lora"}, marks=pytest.mark.slow),
        pytest.param({"compile": True, "cuda_graphs": True}, marks=pytest.mark.slow),
    ],
    ids=lambda fields: "+".join(str(value if name == "tune" else name) for name, value in fields.items()),
)
def test_graphs_and_compilation_change_no_number_but_by_rounding(digits, fields, accumulation):
    tune = fields.get("tune", "full")
    plain = changed(PLAIN, accumulation=accumulation, batch_size=30, tune=tune)  # 100 images: 3 whole batches, and a rest of 10
    state = trained(changed(plain, **fields), digits)
    assert list(state.forwards) == [30 // accumulation]
    assert losses(state) == pytest.approx(losses(trained(plain, digits)), rel=2e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_graph_draws_new_dropout_at_each_step(digits, precision):
    config = changed(EVERYTHING, cuda_graphs=True, precision=precision)
    state, plain = trained(config, digits), trained(changed(config, cuda_graphs=False), digits)
    assert losses(state) == pytest.approx(losses(plain), rel=0.2)
    forward, images = next(iter(state.forwards.values())), torch.zeros(11, 1, 8, 8, device=CUDA)
    state.model.train()
    with torch.autocast("cuda", machine.autocast_type(config, CUDA), enabled=precision != "float32", cache_enabled=False):
        assert not torch.equal(forward(images).clone(), forward(images))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "auto"])
def test_precision_is_of_the_matrix_products_of_training_alone(digits, precision):
    seen = []
    state = start(changed(PLAIN, precision=precision, epochs=1), digits[2], CUDA)
    state.model.head.register_forward_hook(lambda head, inputs, out: seen.append((head.training, out.dtype)))
    list(fit(state, digits[0], digits[1]))
    half = machine.autocast_type(state.config, CUDA) or torch.float32
    assert precision == "auto" or half == getattr(torch, precision)
    assert set(seen) == {(True, half), (False, torch.float32)}
    assert all(p.dtype == torch.float32 for p in state.model.parameters())


@pytest.mark.parametrize(("step", "where"), [(1, "epoch 1, step 2 of 20"), (17, "epoch 1, step 18 of 20"), (22, "epoch 2, step 3 of 20")])
def test_a_loss_that_is_not_finite_is_told_by_its_step_though_looked_at_later(digits, step, where):
    state, count = start(changed(PLAIN, batch_size=5), digits[2], CUDA), iter(range(1, 100))

    def poison(*_):
        if next(count) == step:
            with torch.no_grad():
                state.model.head.bias[3] = math.nan

    state.optimiser.register_step_post_hook(poison)
    with pytest.raises(DivergedError, match=f"^the loss is nan in {where}$"):
        list(fit(state, digits[0], digits[1]))


def test_images_in_main_memory_train_as_those_on_the_gpu(digits):
    train, val, _ = digits
    beside = Split(train.images.cpu(), train.labels)
    assert losses(trained(PLAIN, (beside, val, digits[2]))) == pytest.approx(losses(trained(PLAIN, digits)), rel=1e-5)


def test_images_streamed_from_files_train_on_a_gpu_as_on_a_cpu(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    told = DataConfig(name="image_folder", path=str(tmp_path / "photos"), image_size=16)
    data = prepare(told, cache=tmp_path / "cache", stream_above=1)
    config = changed(PLAIN, model={"image_size": (16, 16), "in_channels": 3, "num_classes": 2}, batch_size=5, crop_scale=0.5)
    splits = on("cuda", data)
    assert isinstance(splits[0], StreamedSplit)
    assert losses(trained(config, splits)) == pytest.approx(losses(trained(config, on("cpu", data), "cpu")), rel=2e-3)


def test_a_speed_is_measured_and_a_latency_is_that_of_the_gpu(digits):
    spec = search_file.load(ROOT / "search_spaces" / "digits.yaml")
    for one in calibrate.measure(calibrate.proposals(spec)[:2], "cuda", 1, 0.5):
        assert all(0 < value < 60 for value in dataclasses.astuple(one))
    assert 0 < latency_ms(start(PLAIN, digits[2], CUDA).model) < 1000


def test_an_exported_model_gives_the_same_logits_on_the_gpu(tmp_path):
    model, images = ViT(EVERYTHING.model).eval().cuda(), torch.randn(3, 1, 8, 8, device=CUDA)
    torch.export.save(torch.export.export(model, (images,)), tmp_path / "model.pt2")
    read = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        assert torch.allclose(read(images), model(images), atol=1e-5)


def test_a_file_with_fixed_values_trains_on_the_gpu_that_it_asks_for_and_is_taken_up_there(prepared, tmp_path):
    told = (
        "name: d",
        "data: {name: digits, train_limit: 100}",
        "trials: 1",
        "epochs: 3",
        "resources: {cpus: 1, gpus: 1}",
        "model: {dim: 32}",
    )
    spec = search_file.parse("\n".join(told))
    config = spec.trial_config({}, in_channels=1, num_classes=10, trial=0)
    whole = list(train_once.train(spec, config, prepared, tmp_path / "c"))
    assert [result.epoch for result in whole] == [1, 2, 3]
    assert 0 < whole[0].peak_memory_bytes < 2**30
    assert list(train_once.train(spec, config, prepared, tmp_path / "c")) == whole


# Memory


def test_free_memory_is_the_process_s_share_less_what_it_holds(share_of_memory):
    held = torch.cuda.memory_allocated()
    share_of_memory(held + 2**30)
    free = machine.free_bytes(CUDA)
    assert free == pytest.approx(2**30, abs=2**20)
    taken = torch.zeros(2**28, dtype=torch.uint8, device=CUDA)
    assert machine.free_bytes(CUDA) == free - taken.nbytes
    del taken
    assert machine.free_bytes(CUDA) == free  # cached by the allocator, so free


@pytest.mark.parametrize(("tune", "off"), [("full", 0.1), ("lora", 0.15), ("last_blocks", 0.15), ("head", 0.15)])
def test_an_epoch_s_peak_is_that_of_the_gpu_s_allocator(tune, off):
    split, normalisation = noise(1024)
    config = changed(LARGE, epochs=1, tune=tune)
    state = start(config, normalisation, CUDA)
    held = torch.cuda.memory_allocated()
    (result,) = fit(state, split, Split(split.images[:8], split.labels[:8]))
    predicted = cost_of(config.model, 512, "adamw", config.training.tuning, device="cuda").train_bytes
    assert result.peak_memory_bytes == torch.cuda.max_memory_allocated()
    assert (1 - off) * predicted < result.peak_memory_bytes - held < (1 + off) * predicted


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_that_does_not_fit_goes_on_in_halves_and_no_further(share_of_memory, caplog, graphs):
    split, normalisation = noise(1024)
    val = Split(split.images[:8], split.labels[:8])
    config = changed(LARGE, cuda_graphs=graphs)
    need = cost_of(LARGE.model, 512, device="cuda").train_bytes
    free = trained(LARGE, (split, val, normalisation))
    with caplog.at_level(logging.WARNING):
        share_of_memory(torch.cuda.memory_allocated() + int(0.8 * need))
        tight = trained(config, (split, val, normalisation))
        assert (tight.accumulation, tight.epoch) == (2, 2)
        assert losses(tight) == pytest.approx(losses(free), rel=5e-3)
        (said,) = caplog.messages
        assert re.search(rf"{in_units(need)} predicted for 512 images, (\d+) MiB free; going on with 2 micro-batches", said)
        del free, tight
        share_of_memory(torch.cuda.memory_allocated() + int(0.2 * need))
        with pytest.raises(OutOfMemoryError, match=r"nor did it at half the size: .* predicted for 256 images, .* free; lower batch_size"):
            trained(config, (split, val, normalisation))
    share_of_memory(torch.cuda.mem_get_info()[1])
    assert trained(changed(config, epochs=1), (split, val, normalisation)).epoch == 1  # the process goes on


def test_a_validation_that_does_not_fit_is_done_in_smaller_batches(share_of_memory):
    split, normalisation = noise(512, side=64)
    config = changed(LARGE, model={"image_size": (64, 64)}, epochs=1, batch_size=8)
    few = Split(split.images[:16], split.labels[:16])
    share_of_memory(torch.cuda.mem_get_info()[1])
    held = torch.cuda.memory_allocated()  # by the tests before
    whole = trained(config, (few, split, normalisation)).history[0]
    need = whole.peak_memory_bytes - held
    share_of_memory(torch.cuda.memory_allocated() + need // 2)
    tight = trained(config, (few, split, normalisation)).history[0]
    assert (tight.train_loss, tight.val_loss) == pytest.approx((whole.train_loss, whole.val_loss), rel=1e-3)
    assert tight.peak_memory_bytes - held < 0.6 * need


# Cost

SHAPES = [
    {"patch_size": 4, "dim": 128, "depth": 4, "heads": 8, "mlp_ratio": 1},
    {"patch_size": 4, "dim": 384, "depth": 3, "heads": 4, "dropout": 0.1},
    {"patch_size": 2, "dim": 192, "depth": 2, "heads": 4, "mlp_ratio": 2, "dropout": 0.1, "drop_path": 0.1},
    {"patch_size": 8, "dim": 64, "depth": 2, "heads": 4, "pool": "cls", "layer_scale": 0.1, "activation": "relu", "norm": "post"},
]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("fields", SHAPES, ids=lambda fields: ",".join(f"{value}" for value in fields.values()))
def test_flops_and_kept_bytes_on_a_gpu_are_those_foretold(fields, half):
    config = ModelConfig(image_size=(32, 32), in_channels=3, num_classes=10, **fields)
    model, images = ViT(config).cuda().train(), torch.randn(16, 3, 32, 32, device=CUDA)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_cuda and storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cuda", torch.bfloat16, enabled=half):
        loss = nn.functional.cross_entropy(model(images).float(), torch.zeros(16, dtype=torch.int64, device=CUDA))
    cost = cost_of(config, 16, device="cuda", half=half)
    assert cost.kept_bytes == pytest.approx(sum(storage.nbytes() for storage in saved.values()), rel=0.03)
    loss.backward()
    with FlopCounterMode(display=False) as counted, torch.autocast("cuda", torch.bfloat16, enabled=half):
        nn.functional.cross_entropy(model(images), torch.zeros(16, dtype=torch.int64, device=CUDA)).backward()
    assert cost.train_flops * 16 == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_a_training_that_another_process_leaves_no_memory_for_is_told_so():
    for said in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"):
        assert machine.out_of_memory(RuntimeError(said))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=CUDA)
    assert machine.out_of_memory(caught.value)
