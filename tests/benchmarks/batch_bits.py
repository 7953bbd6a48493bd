"""How far the answer to an image depends on the images beside it: alone, and in batches of 2 to 32.

    python tests/benchmarks/batch_bits.py [--images 32]

Float32 sums are added in another order in batches of other sizes. Three models of random weights, their logits scaled to a deviation of
3, as trained ones have: what `search_spaces/digits.yaml`, `cifar10.yaml` and `vit_s16.yaml` find. Prints the largest difference of a
logit and of a probability over all images and all batches.
"""

from __future__ import annotations

import argparse

import torch

from vit_search.config.model_config import ModelConfig
from vit_search.vit.model import ViT

MODELS = {
    "digits": ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=96, depth=3, heads=4, mlp_ratio=2),
    "cifar10": ModelConfig(image_size=(32, 32), in_channels=3, num_classes=10, patch_size=4, dim=256, depth=6, heads=8),
    "vit_s16": ModelConfig(image_size=(224, 224), in_channels=3, num_classes=1000, patch_size=16, dim=384, depth=12, heads=6),
}


@torch.inference_mode()
def main() -> None:
    """Print a line for each model."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--images", default=32, type=int)
    count = ask.parse_args().images
    for name, config in MODELS.items():
        torch.manual_seed(0)
        model = ViT(config).eval()
        images = torch.randn(count, config.in_channels, *config.image_size)
        alone = torch.cat([model(image[None]) for image in images])
        scale = 3 / float(alone.std())
        logits, probability, where = 0.0, 0.0, 0
        for batch in range(2, 33):
            together = torch.cat([model(part) for part in images.split(batch)])
            logits = max(logits, float((scale * (together - alone)).abs().max()))
            changed = float(((scale * together).softmax(-1) - (scale * alone).softmax(-1)).abs().max())
            if changed > probability:
                probability, where = changed, batch
        print(f"{name:8s} logits {logits:.1e}, probabilities {probability:.1e} (batches of {where})", flush=True)


if __name__ == "__main__":
    main()
