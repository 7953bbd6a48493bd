"""Tiny models without training, and a careless export."""

import torch

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.tracking.model_package import RawPixels
from vit_search.vit import checkpoint, evaluation, training


def config(*, epochs=6, train_limit=600, seed=1, **model):
    shape = {"image_size": (8, 8), "in_channels": 1, "num_classes": 10, "patch_size": 2, "dim": 16, "heads": 2, "depth": 1}
    return TrialConfig(
        data=DataConfig(name="digits", train_limit=train_limit),
        model=ModelConfig(**(shape | model)),
        training=TrainingConfig(epochs=epochs, batch_size=32, lr=3e-3),
        seed=seed,
    )


def untrained(folder, **model):
    """A model as it was initialised, and its checkpoint."""
    state = training.start(
        config(**model), evaluation.Normalisation.of((0.3,) * model.get("in_channels", 1), (0.4,) * model.get("in_channels", 1))
    )
    checkpoint.save(folder, state, classes=tuple("0123456789")[: model.get("num_classes", 10)], data_hash="h")
    return checkpoint.load_model(folder), folder


def static(served, place):
    """An export as a careless one is: the batch of its example, 1, is all that it takes."""
    raw = RawPixels(served).eval()
    height, width = served.config.model.image_size
    example = torch.zeros(1, height, width, served.config.model.in_channels, dtype=torch.uint8)
    with torch.no_grad():
        torch.export.save(torch.export.export(raw, (example,)), place / "model.pt2")
    program = torch.export.load(place / "model.pt2").module()
    return lambda images: program(torch.from_numpy(images)).detach().numpy()
