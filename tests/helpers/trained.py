"""Searches that were really trained, without Ray and MLflow: their folders, ledgers and checkpoints."""

import dataclasses

from helpers import models
from vit_search.config import search_file
from vit_search.data import backbones
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare
from vit_search.ledger import searches
from vit_search.ledger.events import Ended, Launched, Left, Proposed, Reported
from vit_search.ledger.file import Ledger
from vit_search.ledger.searches import SearchFacts
from vit_search.search import kept_weights
from vit_search.vit import checkpoint, evaluation, train_once, training
from vit_search.vit.pretrained import read_pretrained


def trained_search(home, text, params):
    """The folder of the search; `params` are those of its trial 0."""
    spec = search_file.parse(text)
    data = prepare(spec.data_config)
    folder = home / f"{spec.name}-1"
    folder.mkdir(parents=True)
    facts = SearchFacts(folder.name, "id", spec.name, text, {}, spec.metric, spec.mode, data.data_hash, "v", {}, "sqlite://")
    searches.write(folder, facts)
    config = spec.trial_config(params, in_channels=data.channels, num_classes=len(data.classes), trial=0)
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(Launched(host="h", pid=1))
    ledger.append(Proposed(trial=0, params=params))
    for result in train_once.train(spec, config, data, searches.trial_folder(folder, 0) / "checkpoint"):
        ledger.append(Reported(trial=0, result=result))
    ledger.append(Ended(trial=0, outcome="completed"))
    ledger.append(Left(state="finished"))
    ledger.close()
    return folder


WAYS = ("head", "last_blocks", "full")


def search_from_weights(home, ways=WAYS, *, epochs=1):
    """A finished search `fine-1` whose trials started from the weights in home/backbone, each with its own way of tuning; all are kept."""
    _, backbone = models.untrained(home / "backbone", dim=16, depth=2, heads=2, patch_size=2)
    text = (
        f"name: fine\ndata: {{name: digits, train_limit: 64}}\ntrials: {len(ways)}\nepochs: {epochs}\nsampler: grid\n"
        f"stopping: {{kind: none}}\nkeep_checkpoints: {len(ways)}\nmodel: {{pretrained: {backbone}}}\n"
        f"training: {{tune: {{choice: [{', '.join(ways)}]}}, lr: 0.01, batch_size: 16}}\n"
    )
    spec = search_file.parse(text)
    found = backbones.find_all(spec)
    spec, data = backbones.pinned(spec, found), prepare(spec.data_config)
    folder = home / f"{spec.name}-1"
    folder.mkdir(parents=True, mode=0o700)
    facts = SearchFacts(folder.name, "id", spec.name, spec.text, {}, spec.metric, spec.mode, data.data_hash, "v", {}, "sqlite://")
    resolved = spec.model_dump(mode="json", by_alias=True)
    facts = dataclasses.replace(facts, resolved=resolved, pretrained=backbones.records(found), packages="torch==2\n")
    weights = kept_weights.folder_of(folder, facts)
    kept_weights.keep(spec, weights)
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(Launched(host="h", pid=1))
    for trial, way in enumerate(ways):
        ledger.append(Proposed(trial=trial, params={"tune": way}))
        config = spec.trial_config({"tune": way}, in_channels=data.channels, num_classes=len(data.classes), trial=trial)
        pretrained = read_pretrained(kept_weights.checked(weights, spec.pretrained[0]), data.classes)
        state = training.start(config, evaluation.Normalisation.of(data.mean, data.std), pretrained=pretrained)
        for result in training.fit(state, load_split(data, "train"), load_split(data, "val")):
            ledger.append(Reported(trial=trial, result=result))
        place = searches.trial_folder(folder, trial) / "checkpoint"
        checkpoint.save(place, state, classes=data.classes, data_hash=data.data_hash)
        ledger.append(Ended(trial=trial, outcome="completed"))
    ledger.append(Left(state="finished"))
    ledger.close()
    searches.write(folder, facts)
    searches.write_hindsight(folder, searches.Hindsight(0, 0, (0.0, 1.0), None))
    return folder


def image_folder(root, images, labels):
    """Grey images, (n, height, width) in uint8, as PNG files below a folder for each label; their names below the root."""
    from PIL import Image

    names = []
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        path = root / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        names.append(str(path.relative_to(root)))
    return names
