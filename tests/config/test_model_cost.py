"""The cost model against the model itself."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vit_search.config.cost import cost_of
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.tuning import LORA_LAYERS, WAYS, tuning_problem
from vit_search.runtime.machine import native_bfloat16
from vit_search.vit import tuning
from vit_search.vit.model import ViT

ANY_MODEL = st.fixed_dictionaries(
    {
        "patch_size": st.sampled_from([2, 4]),
        "dim": st.sampled_from([8, 12, 24]),
        "depth": st.integers(1, 3),
        "heads": st.sampled_from([1, 2, 4]),
        "dim_head": st.sampled_from([None, 5]),
        "mlp_ratio": st.sampled_from([0.5, 2, 4]),
        "mlp_dim": st.sampled_from([None, 7]),
        "dropout": st.sampled_from([0.0, 0.1]),
        "embedding_dropout": st.sampled_from([None, 0.0, 0.2]),
        "attention_dropout": st.sampled_from([None, 0.0, 0.2]),
        "projection_dropout": st.sampled_from([None, 0.0, 0.2]),
        "mlp_dropout": st.sampled_from([None, 0.0, 0.2]),
        "activation": st.sampled_from(["gelu", "relu", "swiglu"]),
        "norm": st.sampled_from(["pre", "post"]),
        "pool": st.sampled_from(["mean", "cls"]),
        "registers": st.sampled_from([0, 3]),
        "positions": st.sampled_from(["learned", "sincos2d", "rope"]),
        "qk_norm": st.booleans(),
        "qkv_bias": st.booleans(),
        "layer_scale": st.sampled_from([None, 0.1]),
        "num_classes": st.sampled_from([0, 10]),
        "in_channels": st.sampled_from([1, 3]),
    }
).filter(lambda fields: fields["positions"] != "rope" or (fields["dim_head"] or fields["dim"] // fields["heads"]) % 4 == 0)
ANY_TUNING = st.builds(
    TrainingConfig,
    epochs=st.just(1),
    tune=st.sampled_from(WAYS),
    tuned_blocks=st.integers(1, 3),
    lora_rank=st.integers(1, 3),
    lora_layers=st.sampled_from(sorted(LORA_LAYERS)),
)
HALF = [False, pytest.param(True, marks=pytest.mark.skipif(not native_bfloat16(torch.device("cpu")), reason="no bfloat16 in this CPU"))]


def model_of(fields, training):
    config = ModelConfig(image_size=(8, 12), **fields)
    assume(config.num_classes or training.tune == "full")
    assume(tuning_problem(training.tuning, config.depth, config.dim) is None)
    model = ViT(config).train()
    tuning.prepare(model, training, 0)
    return config, model, torch.randn(4, config.in_channels, 8, 12)


def loss_of(output):
    return F.cross_entropy(output, torch.zeros(len(output), dtype=torch.int64)) if output.ndim == 2 else output.sum()


@settings(deadline=None, max_examples=60)
@given(ANY_MODEL, ANY_TUNING)
def test_the_parameter_count_is_exact(fields, training):
    config, model, _ = model_of(fields, training)
    cost = cost_of(config, 1, "adamw", training.tuning)
    assert cost.params == sum(p.numel() for p in ViT(config).parameters())
    assert cost.trained_params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cost.weight_bytes == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("half", HALF)
@settings(deadline=None, max_examples=40)
@given(fields=ANY_MODEL, training=ANY_TUNING)
def test_the_flops_are_those_that_torch_counts(half, fields, training):
    config, model, images = model_of(fields, training)
    with FlopCounterMode(display=False) as served, torch.autocast("cpu", torch.bfloat16, enabled=half), torch.no_grad():
        ViT(config)(images)
    with FlopCounterMode(display=False) as counted, torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = model(images)
    forward = counted.get_total_flops()
    with counted:
        output.sum().backward()
    backward = counted.get_total_flops()
    cost = cost_of(config, 4, "adamw", training.tuning, half=half)
    assert cost.forward_flops * 4 == pytest.approx(served.get_total_flops(), rel=0.01)
    assert cost.train_flops * 4 == pytest.approx(forward + backward, rel=0.01)


@pytest.mark.parametrize("half", HALF)
@settings(deadline=None, max_examples=60)
@given(fields=ANY_MODEL, training=ANY_TUNING)
def test_the_kept_bytes_are_those_of_the_tensors_that_autograd_saves(half, fields, training):
    config, model, images = model_of(fields, training)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss_of(model(images))
    kept = sum(storage.nbytes() for storage in saved.values())
    few = 100  # of the loss: labels and a count
    assert cost_of(config, 4, "adamw", training.tuning, half=half).kept_bytes == pytest.approx(kept, rel=0.002, abs=few)


def test_kept_activations_grow_with_the_batch_and_the_square_of_the_patches():
    def kept_bytes(patch_size, batch_size):
        config = ModelConfig(image_size=(32, 32), in_channels=1, num_classes=0, patch_size=patch_size)
        return cost_of(config, batch_size).kept_bytes

    assert kept_bytes(4, 64) == 64 * kept_bytes(4, 1)
    pixels = 4 * 32 * 32  # the only part that does not grow with the number of patches
    assert kept_bytes(4, 1) - pixels == 4 * (kept_bytes(8, 1) - pixels)
