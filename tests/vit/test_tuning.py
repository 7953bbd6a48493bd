"""Ways of tuning: what is trained, how fast, what it costs, and that the served model is the trained one."""

import dataclasses
import weakref

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vit_search.config import gpu_share
from vit_search.config.cost import cost_of
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split
from vit_search.errors import DamagedCheckpointError, SpecError
from vit_search.vit import checkpoint, tuning
from vit_search.vit.augment import Targets
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.model import ViT
from vit_search.vit.optimizers import MAKERS, make_optimizer, state_of
from vit_search.vit.training import fit, start, train_step

MODEL = ModelConfig(
    image_size=(8, 8), in_channels=1, num_classes=10, dim=16, heads=2, depth=2, dropout=0.1, drop_path=0.2, pool="cls", layer_scale=0.5
)
CONFIG = TrialConfig(
    data=DataConfig(name="digits"),
    model=MODEL,
    training=TrainingConfig(epochs=1, batch_size=8, lr=3e-3, precision="float32", warmup_fraction=0.0),
    seed=1,
)
WAYS = [
    {"tune": "head"},
    {"tune": "last_blocks", "tuned_blocks": 1},
    {"tune": "last_blocks", "tuned_blocks": 2},
    {"tune": "lora", "lora_rank": 2},
    {"tune": "lora", "lora_rank": 2, "lora_layers": "mlp"},
    {"tune": "lora", "lora_rank": 2, "lora_layers": "all", "ema_decay": 0.9},
    {"tune": "full"},
]
PARTLY = WAYS[:-1]


def tuned(fields, **model):
    return dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, **model), training=dataclasses.replace(CONFIG.training, **fields))


def images(count=24):
    generator = torch.Generator().manual_seed(0)
    return Split(
        torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(count) % 10, tuple("0123456789")
    )


PLAIN = Normalisation.of((0.5,), (0.25,))


def trained(fields):
    state = start(tuned(fields), PLAIN)
    list(fit(state, images(), images(20)))
    return state


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


# What is trained


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"tune": "head"}, 170),  # 16 x 10, and 10 biases
        # qkv 816, projection 272, up 1088, down 1040, two norms 64, two scales 32; the last norm 32; the head
        ({"tune": "last_blocks", "tuned_blocks": 1}, 3312 + 32 + 170),
        ({"tune": "last_blocks", "tuned_blocks": 2}, 2 * 3312 + 32 + 170),
        # of two blocks: 2 x (16 + 48) of qkv, 2 x (16 + 16) of the projection; twice 2 x (16 + 64) of the mlp
        ({"tune": "lora", "lora_rank": 2}, 2 * (128 + 64) + 170),
        ({"tune": "lora", "lora_rank": 2, "lora_layers": "mlp"}, 2 * 320 + 170),
        ({"tune": "lora", "lora_rank": 2, "lora_layers": "all"}, 2 * (128 + 64 + 320) + 170),
    ],
)
def test_as_many_weights_are_trained_as_by_hand(fields, count):
    state = start(tuned(fields), PLAIN)
    assert sum(p.numel() for p in state.model.parameters() if p.requires_grad) == count
    assert sum(p.numel() for group in state.optimiser.param_groups for p in group["params"]) == count
    assert cost_of(MODEL, 1, "adamw", state.config.training.tuning).trained_params == count


@pytest.mark.parametrize("fields", PARTLY, ids=str)
def test_training_starts_with_the_logits_of_the_model_that_it_starts_from(fields):
    batch = torch.randn(4, 1, 8, 8)
    full, partly = (start(tuned(way), PLAIN) for way in ({"tune": "full"}, fields))
    with torch.inference_mode():
        logits = full.model.eval()(batch)
        assert torch.equal(partly.model.eval()(batch), logits)
        assert torch.equal(partly.outcome.eval()(batch), logits)


@pytest.mark.parametrize("fields", PARTLY, ids=str)
def test_what_is_not_trained_stays_to_the_bit_and_all_else_changes(fields):
    before, state = weights(start(tuned({"tune": "full"}), PLAIN).model), trained(fields)
    after = weights(state.outcome)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {"head.weight", "head.bias"}
    if fields["tune"] == "last_blocks":
        blocks = [f"encoder.blocks.{i}." for i in range(2 - fields["tuned_blocks"], 2)]
        expected |= {name for name in before if name.startswith(("encoder.norm.", *blocks))}
    if fields["tune"] == "lora":
        layers = {"attention": ("qkv", "projection"), "mlp": ("up", "down")}
        adapted = layers.get(fields.get("lora_layers", "attention"), (*layers["attention"], *layers["mlp"]))
        expected |= {name for name in before if name.endswith(tuple(f".{layer}.weight" for layer in adapted))}
    assert changed == expected


def test_a_merged_weight_is_by_hand_the_sum_of_both():
    layer = tuning.LoraLinear(torch.nn.Linear(2, 2), rank=1, alpha=0.5, generator=torch.Generator().manual_seed(0))
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    layer.lora_a.data, layer.lora_b.data = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [3.0]])
    assert layer.merged().weight.tolist() == [[2.0, 2.0], [4.5, 4.0]]  # 0.5 / 1 times [[2, 0], [3, 0]] is added
    layer.bias.data = torch.tensor([1.0, -1.0])
    batch = torch.tensor([[1.0, 1.0]])
    assert layer(batch).tolist() == layer.merged()(batch).tolist() == [[5.0, 7.5]]


def test_frozen_parts_have_no_gradient_and_no_dropout():
    for fields, shape in (({"tune": "head"}, (3, 16)), ({"tune": "last_blocks", "tuned_blocks": 1}, (3, 5, 16))):
        model = start(tuned(fields), PLAIN).model.train()
        batch = torch.randn(3, 1, 8, 8)
        first, second = model.frozen_output(batch), model.frozen_output(batch)
        assert first.shape == shape
        assert torch.equal(first, second)
        assert not first.requires_grad
        model(batch).sum().backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == {
            name for name, p in model.named_parameters() if p.requires_grad
        }


def test_the_head_is_trained_on_the_features_of_the_served_model():
    model = start(tuned({"tune": "head"}), PLAIN).model.train()
    batch = torch.randn(3, 1, 8, 8)
    assert torch.allclose(model.after_frozen(model.frozen_output(batch)), model.eval()(batch), atol=1e-6)


@pytest.mark.parametrize("fields", WAYS[:3], ids=str)
def test_what_is_trained_has_the_gradient_that_it_has_in_a_model_that_is_trained_whole(fields):
    gradients = []
    for way in ({"tune": "full"}, fields):
        model = start(tuned(way, dropout=0.0, drop_path=0.0), PLAIN).model.double().train()
        F.cross_entropy(model(torch.linspace(-1, 1, 256).double().view(4, 1, 8, 8)), torch.arange(4)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    whole, partly = gradients
    assert 0 < len(partly) < len(whole)
    for name, gradient in partly.items():
        assert torch.allclose(gradient, whole[name], rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize(
    "shape", [{}, {"norm": "post", "activation": "swiglu"}, {"qk_norm": True, "positions": "rope", "pool": "mean"}], ids=str
)
def test_the_gradients_of_a_correction_follow_from_the_gradient_of_the_sum(shape):
    """Of W + s B A with the gradient G: that of B is s G Aᵀ, and that of A is s Bᵀ G."""
    fields = {"tune": "lora", "lora_rank": 2, "lora_alpha": 6.0, "lora_layers": "all"}
    model = start(tuned(fields, dropout=0.0, drop_path=0.0, **shape), PLAIN).model.double().train()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.3, generator=generator)
    plain = tuning.merged(model)
    batch, labels = torch.linspace(-1, 1, 256).double().view(4, 1, 8, 8), torch.arange(4)
    F.cross_entropy(model(batch), labels).backward()
    sums = {name: p.detach().requires_grad_() for name, p in plain.named_parameters()}
    F.cross_entropy(torch.func.functional_call(plain, sums, (batch,)), labels).backward()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, tuning.LoraLinear)}
    assert len(layers) == 2 * (5 if shape.get("activation") == "swiglu" else 4)
    for name, layer in layers.items():
        of_sum = sums[f"{name}.weight"].grad
        assert torch.allclose(layer.lora_b.grad, 3 * of_sum @ layer.lora_a.T, rtol=1e-10, atol=1e-14), name
        assert torch.allclose(layer.lora_a.grad, 3 * layer.lora_b.T @ of_sum, rtol=1e-10, atol=1e-14), name


# How fast


@pytest.mark.parametrize("optimizer", MAKERS)
@pytest.mark.parametrize("way", ["full", "lora"])
def test_each_block_learns_half_as_fast_as_the_next(optimizer, way):
    config = tuned({"tune": way, "layer_decay": 0.5, "head_lr_factor": 10.0, "optimizer": optimizer}, depth=3)
    state = start(config, PLAIN)
    list(fit(state, images(), images(20)))
    names = {id(p): name for name, p in state.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] / state.history[-1].lr for group in state.optimiser.param_groups for p in group["params"]}
    by_hand = {"embed.": 1 / 16, "positions": 1 / 16, "cls_token": 1 / 16, "encoder.norm.": 1.0, "head.": 10.0}
    by_hand |= {"encoder.blocks.0.": 1 / 8, "encoder.blocks.1.": 1 / 4, "encoder.blocks.2.": 1 / 2}
    for name, rate in rates.items():
        assert rate == pytest.approx(next(value for prefix, value in by_hand.items() if name.startswith(prefix))), name
    assert len(rates) == sum(p.requires_grad for p in state.model.parameters())


def test_without_decay_the_groups_are_those_of_versions_before():
    model = ViT(MODEL)
    groups = make_optimizer(model, CONFIG.training).param_groups
    assert [(group["weight_decay"], group["lr_factor"]) for group in groups] == [(0.05, 1.0), (0.0, 1.0)]
    assert [p.ndim > 1 for p in groups[0]["params"]] == [True] * len(groups[0]["params"])


@pytest.mark.parametrize("fields", WAYS, ids=str)
@pytest.mark.parametrize("optimizer", MAKERS)
def test_the_optimizer_keeps_as_many_bytes_as_the_cost_model_says(fields, optimizer):
    state = trained(fields | {"optimizer": optimizer})
    kept = [
        value for p in state.model.parameters() if p.requires_grad for key, value in state_of(state.optimiser, p).items() if key != "step"
    ]
    assert sum(value.nbytes for value in kept) == cost_of(MODEL, 1, optimizer, state.config.training.tuning).optimizer_bytes


# Checkpoints


@pytest.mark.parametrize("fields", PARTLY, ids=str)
def test_the_served_model_is_a_plain_one_with_the_logits_that_were_validated(fields, tmp_path):
    state = trained(fields)
    checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
    checkpoint.copy_for_serving(tmp_path / "c", tmp_path / "served")
    served, batch = checkpoint.load_model(tmp_path / "served").model, torch.randn(5, 1, 8, 8)
    assert not tuning.has_lora(served)
    with torch.inference_mode():
        assert torch.equal(served(batch), state.outcome.eval()(batch))


def test_a_checkpoint_holds_optimizer_state_of_trained_weights_alone(tmp_path):
    checkpoint.save(tmp_path / "c", trained({"tune": "head", "ema_decay": 0.9}), classes=tuple("0123456789"), data_hash="h")
    names = {path.rpartition("/")[0] for path in load_file(tmp_path / "c" / checkpoint.OPTIMISER)}
    assert names == {"head.weight", "head.bias"}


def test_what_is_frozen_is_there_once_beside_an_average():
    state = start(tuned({"tune": "head", "ema_decay": 0.9}), PLAIN)
    pairs = zip(state.model.named_parameters(), state.average.parameters(), strict=True)
    assert {name for (name, p), average in pairs if p is not average} == {"head.weight", "head.bias"}


def test_a_checkpoint_that_lacks_lora_s_weights_is_damaged(tmp_path, monkeypatch):
    state = trained(WAYS[3])
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "beside_served", lambda model: {})
        checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
    with pytest.raises(
        DamagedCheckpointError, match=r"does not fit its config.json \(encoder\.blocks\.0\.attention\.projection\.lora_a/weight: "
    ):
        checkpoint.load_training(tmp_path / "c", state.config)


# Compiled


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("fields", [WAYS[0], WAYS[1], WAYS[3]], ids=str)
def test_a_compiled_model_has_the_gradients_of_the_plain_one(fields):
    model = start(tuned(fields, dropout=0.0, drop_path=0.0), PLAIN).model.train()
    batch, gradients = torch.randn(4, 1, 8, 8), []
    for forward in (ViT.forward, torch.compile(ViT.forward, backend="eager", fullgraph=True)):
        model.zero_grad()
        F.cross_entropy(forward(model, batch), torch.arange(4)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for plain, other in zip(*gradients, strict=True):
        assert torch.allclose(plain, other, atol=1e-6)


# Memory


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that are made while it is on, now and at most; views of those that were there before are none of them."""

    def __init__(self, before):
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.known.add(storage.data_ptr())
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, storage.data_ptr(), storage.nbytes())
        return out

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("fields", [*WAYS[:4], WAYS[-1]], ids=str)
def test_a_step_takes_as_much_memory_as_predicted(fields):
    model = {"image_size": (32, 32), "in_channels": 3, "dim": 48, "heads": 3, "depth": 4, "dropout": 0.0, "drop_path": 0.0, "pool": "mean"}
    config = tuned(fields | {"batch_size": 32}, **model, layer_scale=None)
    batch, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    state = start(config, Normalisation.of((0.5,) * 3, (0.25,) * 3))
    state.model.train()
    train_step(state, batch, Targets(labels), 1e-3, 0)  # the optimizer has its state
    held = list(state.model.parameters())
    held += [value for p in state.model.parameters() if p.requires_grad for value in state_of(state.optimiser, p).values()]
    state.optimiser.zero_grad(set_to_none=True)
    with Allocated([*held, batch, labels]) as allocated:
        train_step(state, batch, Targets(labels), 1e-3, 1)
    measured = sum(tensor.nbytes for tensor in held) + allocated.most
    predicted = cost_of(config.model, 32, "adamw", config.training.tuning).train_bytes
    assert measured == pytest.approx(predicted, rel=0.15)


def test_less_to_train_takes_less_memory_and_work():
    order = [{"tune": "head"}, {"tune": "last_blocks", "tuned_blocks": 1}, {"tune": "lora", "lora_layers": "all"}, {"tune": "full"}]
    large = {"image_size": (32, 32), "in_channels": 3, "dim": 192, "heads": 3, "depth": 12}
    configs = [tuned(fields | {"batch_size": 64}, **large) for fields in order]
    costs = [cost_of(config.model, 64, "adamw", config.training.tuning) for config in configs]
    on_gpu = [gpu_share.training_bytes(config.model, config.training) for config in configs]
    for figures in ([cost.train_flops for cost in costs], [cost.train_bytes for cost in costs]):
        assert figures == sorted(figures)
        assert len(set(figures)) == 4
    head, block, lora, full = (cost.optimizer_bytes for cost in costs)
    assert head < lora < block < full  # a block has more weights than all of LoRA's corrections of rank 8
    assert on_gpu == sorted(on_gpu)
    assert len({(cost.params, cost.forward_flops) for cost in costs}) == 1  # what is served is the same


# Contradictions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tune": "last_blocks", "tuned_blocks": 3},
            r"^training\.tuned_blocks: 3 is more than depth=2; choose at most 2, or tune: full\.$",
        ),
        ({"tune": "lora", "lora_rank": 17}, r"^training\.lora_rank: 17 is more than dim=16; choose at most 16\.$"),
        ({"layer_decay": 0.0}, r"^layer_decay is 0\.0; give more than 0, at most 1\.$"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(fields, message):
    with pytest.raises(SpecError, match=message):
        tuned(fields)
