"""The model leaves Python: compiled without graph breaks, exported, as ONNX; and its gradients are right."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from benchmarks.dispatch import operators, training_step
from torch._dynamo.testing import CompileCounterWithBackend

from vit_search.config.model_config import ModelConfig
from vit_search.vit.model import ViT

VARIANTS = {
    "default": {},
    "class token": {"pool": "cls"},
    "post norm": {"norm": "post", "activation": "relu"},
    "all options": {"layer_scale": 0.1, "qkv_bias": False, "positions": "sincos2d", "dim_head": 5, "pool": "cls"},
    "token features": {"num_classes": 0},
    "as DINOv3": {"positions": "rope", "registers": 2, "activation": "swiglu", "pool": "cls", "qk_norm": True},
    "registers": {"registers": 2},
}


def vit(**fields):
    torch.manual_seed(0)
    return ViT(
        ModelConfig(
            **{"image_size": (8, 12), "in_channels": 3, "num_classes": 5, "patch_size": 4, "dim": 16, "heads": 2, "depth": 2} | fields
        )
    )


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    return vit(**request.param)


@pytest.mark.usefixtures("fresh_compiler")
def test_it_compiles_without_graph_breaks_forward_and_backward(model):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(3, 3, 8, 12)
    output = compiled(images)
    assert torch.allclose(output, model(images), atol=1e-6)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.usefixtures("fresh_compiler")
def test_drop_path_and_dropout_do_not_break_the_graph():
    model = vit(dropout=0.1, drop_path=0.2).train()
    torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(3, 3, 8, 12)).sum().backward()


@pytest.mark.usefixtures("fresh_compiler")
def test_models_of_one_shape_share_their_compiled_code():
    counter = CompileCounterWithBackend("aot_eager")
    forward = torch.compile(ViT.forward, backend=counter, dynamic=False)
    images = torch.randn(3, 3, 8, 12)
    for seed in range(3):
        torch.manual_seed(seed)
        model = vit(dropout=0.1)
        assert forward(model, images).shape == (3, 5)
    assert counter.frame_count == 1
    forward(vit(depth=3), images)
    assert counter.frame_count == 2


def test_torch_export_keeps_the_numbers_at_any_batch_size(model):
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 8, 12),), dynamic_shapes={"images": {0: batch}})
    images = torch.randn(7, 3, 8, 12)
    assert torch.allclose(program.module()(images), model(images), atol=1e-6)


def test_onnx_keeps_the_numbers_at_any_batch_size(model, tmp_path):
    model.eval()
    path = tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 8, 12),),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: batch}},
        dynamo=True,
        verbose=False,
    )
    images = torch.randn(7, 3, 8, 12)
    (logits,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})
    assert np.allclose(logits, model(images).detach(), atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"pool": "cls", "norm": "post"}, {"layer_scale": 0.5}], ids=str)
def test_gradients_equal_finite_differences(fields):
    model = vit(image_size=(4, 4), patch_size=2, dim=4, depth=1, in_channels=1, num_classes=2, **fields).double()
    names = dict(model.named_parameters())

    def logits(images, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), images)

    inputs = [torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)]
    inputs += [p.detach().requires_grad_() for p in names.values()]
    assert torch.autograd.gradcheck(logits, inputs, atol=1e-6)


def saved_sizes(model, mask=None, dtype=torch.float32):
    sizes = []
    images = torch.randn(2, model.config.in_channels, *model.config.image_size, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(tuple(t.shape[-2:])) or t, lambda t: t):
        model(images, mask)
    return Counter(sizes)


def test_no_attention_matrix_is_kept():
    model = vit(image_size=(20, 20), patch_size=4).train()  # 25 tokens: no other tensor is 25 x 25
    assert (25, 25) not in saved_sizes(model)


def test_a_step_of_six_blocks_dispatches_at_most_205_operators():
    model = vit(image_size=(32, 32), dim=32, depth=6, pool="cls")
    counts = operators(training_step(model, torch.zeros(4, 3, 32, 32)))
    assert counts.total() <= 205, counts
