"""A trial as a competent user writes it from Ray's tutorials; a module of its own, so that a worker imports nothing else."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from ray import tune
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Images(Dataset):
    """One image at a time, as torchvision's datasets give them."""

    def __init__(self, folder: str, split: str, transform: transforms.Compose) -> None:
        self.images = np.load(Path(folder) / f"{split}_images.npy", mmap_mode="r")
        self.labels = np.load(Path(folder) / f"{split}_labels.npy", mmap_mode="r")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index].transpose(1, 2, 0)), int(self.labels[index])


def usual_trial(config: dict) -> None:
    """Train timm's Vision Transformer and report an epoch at a time."""
    from timm.models.vision_transformer import VisionTransformer

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])])
    train_set, val_set = (Images(config["folder"], split, transform) for split in ("train", "val"))
    train = DataLoader(train_set, config["batch_size"], shuffle=True)
    val = DataLoader(val_set, 256)
    model = VisionTransformer(
        img_size=train_set.images.shape[-1],
        patch_size=config["patch_size"],
        in_chans=train_set.images.shape[1],
        num_classes=10,
        embed_dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=2,
        drop_rate=config["dropout"],
        proj_drop_rate=config["dropout"],
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=len(train) * config["epochs"])
    criterion = nn.CrossEntropyLoss()
    for epoch in range(1, config["epochs"] + 1):
        model.train()
        total = 0.0
        for images, labels in train:
            optimiser.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(labels)
        model.eval()
        correct, val_loss = 0, 0.0
        with torch.no_grad():
            for images, labels in val:
                logits = model(images)
                val_loss += criterion(logits, labels).item() * len(labels)
                correct += (logits.argmax(1) == labels).sum().item()
        with tempfile.TemporaryDirectory() as place:
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, Path(place) / "checkpoint.pt")
            metrics = {
                "epoch": epoch,
                "train_loss": total / len(train_set),
                "val_loss": val_loss / len(val_set),
                "val_accuracy": correct / len(val_set),
            }
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(place))
