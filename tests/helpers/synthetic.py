"""Searches as a driver leaves them, without training: real ledgers, of trials drawn from a seed."""

import random
import uuid

from vit_search.config import search_file
from vit_search.config.trial import EpochResult
from vit_search.ledger import searches
from vit_search.ledger.events import Ended, Launched, Proposed, Reported
from vit_search.ledger.file import Ledger
from vit_search.ledger.searches import SearchFacts

FILE = """
name: made
data: {name: digits}
trials: %d
epochs: %d
stopping: {grace_epochs: 1, reduction_factor: 2}
model: {dim: {int: [32, 64], step: 32}, depth: {int: [1, 3]}}
training: {lr: {float: [1e-3, 1e-2], log: true}}
"""


def begin(home, name="made-1", *, trials=6, epochs=4, more=""):
    """A search's folder, its spec and its facts, before its first event; `more` is added to its file."""
    folder = home / name
    folder.mkdir(parents=True, mode=0o700)
    spec = search_file.parse(FILE % (trials, epochs) + more)
    facts = SearchFacts(
        search=name,
        search_id=uuid.uuid4().hex,
        spec_name=spec.name,
        text=spec.text,
        resolved=spec.model_dump(mode="json", by_alias=True),
        metric=spec.metric,
        mode=spec.mode,
        data_hash="d" * 64,
        code_version="vit_search 0.1.0",
        environment={"python": "3"},
        tracking_uri="",
        space_hash=spec.space.space_hash,
        git_commit="c" * 40,
        packages="torch==2\n",
        splits={"train": 1258, "val": 179, "holdout": 90, "test": 270},
        image_shape=(1, 8, 8),
        classes=10,
    )
    searches.write(folder, facts)
    return folder, spec, facts


def result(epoch, value, **more):
    values = {
        "train_loss": 2 - value,
        "train_accuracy": value,
        "val_loss": 2 - value,
        "val_accuracy": value,
        "val_top5_accuracy": None,
        "lr": 1e-3,
        "images_per_s": 100.0,
        "seconds": 2.0,
        "peak_memory_bytes": 1000,
    }
    return EpochResult(epoch=epoch, **(values | more))


def events(spec, *, seed=0, at=1_700_000_000.0):
    """What happens in a whole search, in order: every third trial is stopped at half length, one trial diverges."""
    rng = random.Random(seed)
    yield Launched(host="here", pid=1, at=at)
    for number in range(spec.trials):
        at += 1
        yield Proposed(trial=number, params=spec.space.draw(rng), at=at)
        worth, outcome = rng.random(), "stopped" if number % 3 == 2 else "diverged" if number == 4 else "completed"
        for epoch in range(1, spec.epochs + 1 if outcome == "completed" else spec.epochs // 2 + 1):
            at += 2
            yield Reported(trial=number, result=result(epoch, worth * epoch / spec.epochs), at=at)
        yield Ended(trial=number, outcome=outcome, reason="the loss is nan" if outcome == "diverged" else "", at=at)


def made(home, name="made-1", *, trials=6, epochs=4, seed=0, more=""):
    """A whole search, over, that MLflow has not heard of."""
    folder, spec, facts = begin(home, name, trials=trials, epochs=epochs, more=more)
    ledger = Ledger(folder / "ledger.jsonl")
    for event in events(spec, seed=seed):
        ledger.append(event)
    ledger.close()
    searches.write_hindsight(folder, searches.Hindsight(0, 0, (0.0, 1.0), None))
    return folder, spec, facts
