"""Suspected labels: how many of 5 % flipped labels are found, beside the package cleanlab, and what looking at mistakes costs a search.

    python tests/benchmarks/label_errors.py digits
    python tests/benchmarks/label_errors.py fashion_mnist FOLDER

FOLDER is torchvision's root. cleanlab is compared where it is installed; the project does not need it.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.trained import trained_search

from vit_search.config import search_file
from vit_search.data.batches import Split, load_split
from vit_search.data.cache import prepare
from vit_search.report import mistakes, report
from vit_search.vit import evaluation, label_errors, training
from vit_search.vit.checkpoint import ServedModel
from vit_search.vit.split_probabilities import split_probabilities

FILES = {
    "digits": (
        "data: {name: digits, val_fraction: 0.3}\nepochs: 40\nmodel: {patch_size: 2, dim: 48}\n"
        "training: {lr: 4e-3, batch_size: 64, shift: 1}\n"
    ),
    "fashion_mnist": (
        "data: {name: fashion_mnist, path: %s, train_limit: 10000}\nepochs: 6\nmodel: {patch_size: 4, dim: 48, depth: 2}\n"
        "training: {lr: 2e-3, batch_size: 128}\n"
    ),
}


SEEDS = {"digits": 3, "fashion_mnist": 1}


def main(name: str, path: str = "") -> None:
    text = f"name: b\ntrials: 1\n{FILES[name] % path if path else FILES[name]}"
    spec = search_file.parse(text)
    data = prepare(spec.data_config)
    for seed in range(SEEDS[name]):
        planted(spec, data, seed)
    with tempfile.TemporaryDirectory() as home:
        folder = trained_search(Path(home), text.replace("epochs: 40", "epochs: 2").replace("epochs: 6", "epochs: 2"), {})
        d = report.digest(folder)
        began = time.monotonic()
        found = mistakes.find(folder, d.spec, d.standing, d.data_hash)
        sizes = [(folder / name).stat().st_size // 1000 for name in (mistakes.FILE, *report.TABLES)]
        assert isinstance(found, mistakes.Mistakes)
        print(f"find: {time.monotonic() - began:.1f} s for {found.images} images; kB of {mistakes.FILE} and {report.TABLES}: {sizes}")


def planted(spec: search_file.SearchSpec, data, seed: int) -> None:
    """Flip 5 % of the labels of both splits, train, and count."""
    rng = np.random.default_rng(seed)
    splits, wrong = [], []
    for name in ("train", "val"):
        split = load_split(data, name)
        chosen = rng.random(len(split)) < 0.05
        labels = split.labels.numpy().copy()
        labels[chosen] = (labels[chosen] + rng.integers(1, len(data.classes), chosen.sum())) % len(data.classes)
        splits.append(Split(split.images, torch.from_numpy(labels)))
        wrong.append(chosen)
    config = spec.trial_config({}, in_channels=data.channels, num_classes=len(data.classes), trial=seed)
    state = training.start(config, evaluation.Normalisation.of(data.mean, data.std))
    for _ in training.fit(state, *splits):
        pass
    served = ServedModel(
        model=state.outcome.eval(),
        config=config,
        normalisation=state.normalisation,
        classes=data.classes,
        data_hash="",
        trained_on=("train",),
    )
    said = split_probabilities(served, splits[1], 600)
    rows = {"ours": [one.index for one in label_errors.suspects(said.labels, said.probabilities)]}
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        print("cleanlab is not installed")
    else:
        rows["cleanlab"] = find_label_issues(
            said.labels, said.probabilities, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
        ).tolist()
    rows["all wrong answers"] = np.flatnonzero(said.probabilities.argmax(1) != said.labels).tolist()
    true = load_split(data, "val").labels.numpy()
    for who, found in rows.items():
        hits = wrong[1][found]
        print(
            f"seed {seed} {who}: {len(found)} of {len(true)} listed, recall {hits.sum() / wrong[1].sum():.3f}, "
            f"precision {hits.mean():.3f}, of the first 25 {hits[:25].mean():.2f}; "
            f"accuracy on true labels {(said.probabilities.argmax(1) == true).mean():.4f}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
