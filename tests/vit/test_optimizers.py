"""What an optimizer keeps can be made before its first step, for CUDA graphs, and changes no weight."""

import copy

import pytest
import torch

from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.errors import SpecError
from vit_search.vit.model import ViT
from vit_search.vit.optimizers import MAKERS, fill_state, make_optimizer, state_of

MODEL = ModelConfig(image_size=(8, 8), in_channels=1, num_classes=4, dim=16, heads=2, depth=1)


def two_steps(model, optimizer):
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("name", MAKERS)
def test_two_steps_from_a_filled_state_are_those_from_none(name, momentum):
    torch.manual_seed(0)
    plain = ViT(MODEL)
    filled = copy.deepcopy(plain)
    config = TrainingConfig(epochs=1, optimizer=name, momentum=momentum)
    one, other = make_optimizer(plain, config), make_optimizer(filled, config)
    for weight in filled.parameters():
        fill_state(other, weight)
    made = [{key: (value.shape, value.dtype) for key, value in state_of(other, p).items()} for p in filled.parameters()]
    two_steps(plain, one)
    two_steps(filled, other)
    kept = [{key: (v.shape, v.dtype) for key, v in state_of(one, p).items() if v is not None} for p in plain.parameters()]
    assert made == kept
    for before, after in zip(plain.parameters(), filled.parameters(), strict=True):
        assert torch.equal(before, after)


def test_an_optimizer_whose_first_state_is_not_known_is_refused_in_one_line():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.RMSprop([weight])
    with pytest.raises(SpecError, match=r"^training\.cuda_graphs: it needs what RMSprop keeps .* add RMSprop to FIRST_STATES of "):
        fill_state(optimizer, weight)
