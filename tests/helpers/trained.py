"""A search of one trial that was really trained, without Ray and MLflow: its folder, ledger and checkpoint."""

from vit_search.config import search_file
from vit_search.data.cache import prepare
from vit_search.ledger import searches
from vit_search.ledger.events import Ended, Launched, Left, Proposed, Reported
from vit_search.ledger.file import Ledger
from vit_search.ledger.searches import SearchFacts
from vit_search.vit import train_once


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
