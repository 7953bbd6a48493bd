"""The model card of a version, in Markdown: intended use, origin, quality and limits.

After Mitchell et al. 2019, Model Cards for Model Reporting, https://doi.org/10.1145/3287560.3287596.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vit_search.config import tuning
from vit_search.promotion import gates
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.evidence.costs import Costs
from vit_search.promotion.evidence.weighted_metrics import value_of
from vit_search.promotion.finalists import Finalist, Retrained
from vit_search.promotion.gates import Gate
from vit_search.text import counted, markdown
from vit_search.vit.checkpoint import ServedModel

MOST_CLASSES = 20
"""With more classes, the card lists the worst ones instead of a confusion matrix."""


def model_card(
    name: str,
    retrained: Retrained,
    finalist: Finalist,
    served: ServedModel,
    tags: Mapping[str, str],
    judged: Sequence[Gate],
    answers: SplitAnswers | None,
    costs: Costs,
) -> str:
    """Write the card of a version.

    Args:
        name: of the registered model. tags: of the version.
        answers: of the candidate on the test images; None if they were not read.
    """
    config, spec = served.config, retrained.spec
    height, width = config.model.image_size
    kind = {1: "grey", 3: "RGB"}.get(config.model.in_channels, f"{config.model.in_channels} channels")
    kind += ", 16 bits a value" if config.data.bits == 16 else ""
    verdict = {"passed": "passed every gate", "refused": "**refused**", "forced": f"**forced**: {markdown(tags.get('forced', ''))}"}[
        tags["verdict"]
    ]
    parts = [
        f"# {markdown(name)}: a Vision Transformer for {counted(len(served.classes), 'class')}",
        f"This version {verdict}. It is trial {finalist.trial} of search {markdown(retrained.search)}, "
        f"retrained as {markdown(retrained.run_name)}.",
        "## Intended use",
        f"Images of the kind of data set {markdown(config.data.name)}, {kind}, of any size "
        f"(resized to {height}x{width} as in training), are given "
        f"one of {_some(served.classes)}. Every image gets one of these classes, whatever it shows: nothing tells that it is none of them.",
        "## Model and training",
        _pairs(
            {
                "patch, depth, dim, heads": f"{config.model.patch_size}, {config.model.depth}, {config.model.dim}, {config.model.heads}",
                "parameters": f"{costs.params:,}",
                "file": f"{costs.file_bytes:,} bytes",
                "latency": "; ".join(f"{key}: {one.p50_ms:.3g} ms (95 %: {one.p95_ms:.3g})" for key, one in costs.latency.items()),
                "trained on": markdown(
                    f"{' and '.join(served.trained_on)}, {counted(config.training.epochs, 'epoch')}, seed {tags['seed']}"
                ),
                **_start(tags),
                **_tuning(tags),
                "data": f"{markdown(config.data.name)}, data hash {markdown(served.data_hash[:16])}…",
                "code": markdown(tags["code_version"]),
            }
        ),
        "## How it was chosen",
        _finalists(retrained, finalist),
        f"The search saw {spec.metric} {finalist.searched_value:.4f} of this configuration; {len(finalist.values)} fresh trainings have "
        f"{finalist.mean:.4f} in the mean: the search {_overstated(float(tags['optimism']))}.",
    ]
    parts += (
        ["## Test", *_test(answers, spec.metric)]
        if answers is not None
        else ["## Test", "The test split was not read: a gate before it refused."]
    )
    parts += ["## Gates", gates.table(judged), "## Limits", *_limits(answers, tags)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _start(tags: Mapping[str, str]) -> dict[str, str]:
    """The pretrained weights that the training started from; nothing for a random start."""
    if "pretrained_source" not in tags:
        return {}
    revision = f", revision {tags['pretrained_revision']}" if "pretrained_revision" in tags else ""
    licence = f"licence {tags['pretrained_licence']}" if "pretrained_licence" in tags else "licence not stated"
    return {"starts from": markdown(f"{tags['pretrained_source']}{revision}, sha256 {tags['pretrained_sha256'][:16]}…, {licence}")}


def _tuning(tags: Mapping[str, str]) -> dict[str, str]:
    """Which weights were trained, by the keys of the search file; nothing for a model that was trained as usual from random weights."""
    if "tune" not in tags:
        return {}
    given = [f"{name} {tags[name]}" for name in ("tune", *tuning.OF_ONE_WAY, *tuning.RATES) if name in tags]
    return {"trained weights": markdown("; ".join([tuning.IN_WORDS.get(tags["tune"], "unknown"), *given]))}


def _test(answers: SplitAnswers, metric: str) -> list[str]:
    low, high = answers.interval
    value = value_of(answers, metric)
    shown = metric in ("val_accuracy", "val_macro_f1", "val_loss", "val_ece") or value is None
    figures = (
        ({} if shown else {metric.removeprefix("val_").replace("_", " "): f"**{value:.4f}**"})
        | {
            "accuracy": f"**{answers.accuracy:.4f}** on {counted(answers.images, 'image')} (95 % interval {low:.4f} to {high:.4f})",
            "macro F1": f"{answers.macro_f1:.4f}",
            "loss": f"{answers.loss:.4f} nats",
            "calibration error": f"{answers.ece:.4f} (15 bins)",
        }
        | {f"accuracy under {kind}": f"{value:.4f}" for kind, value in answers.corrupted_accuracies.items()}
    )
    recalls = sorted(((recall, name) for recall, name in zip(answers.recalls, answers.classes, strict=True) if recall is not None))
    parts = [_pairs(figures), "Worst classes: " + ", ".join(f"{markdown(name)} {recall:.3f}" for recall, name in recalls[:5]) + "."]
    if len(answers.classes) <= MOST_CLASSES:
        names = [markdown(name) for name in answers.classes]
        rows = [f"| **{name}** |{''.join(map(_count, row))}" for name, row in zip(names, answers.confusion.tolist(), strict=True)]
        head = [f"| is \\ taken for | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
        parts.append("\n".join([*head, *rows]))
    return parts


def _overstated(optimism: float) -> str:
    return f"overstated it by {optimism:.4f}" if optimism > 0 else f"did not overstate it ({optimism:+.4f})"


def _limits(answers: SplitAnswers | None, tags: Mapping[str, str]) -> list[str]:
    limits = ["Accuracy holds for images that come from where the test images come from; nothing here says how it is elsewhere."]
    if answers is not None and answers.corrupted_accuracies:
        worst = min(answers.corrupted_accuracies.items(), key=lambda one: one[1])
        limits.append(f"Of the corruptions that were tried, {worst[0]} harms it most: {answers.accuracy:.4f} falls to {worst[1]:.4f}.")
    if int(tags.get("test_reading", 0)) > 1:
        limits.append(
            f"This test split had been read {counted(int(tags['test_reading']) - 1, 'time')} before, "
            "so its figures are less fresh than they look."
        )
    return limits


def _finalists(retrained: Retrained, chosen: Finalist) -> str:
    on = "validation" if retrained.spec.train_on == "train" else "holdout"
    rows = [f"| trial | in the search | mean on {on} images | deviation | seeds | |", "|---|---:|---:|---:|---:|---|"]
    for one in retrained.finalists:
        mark = "chosen" if one.trial == chosen.trial else ""
        rows.append(f"| {one.trial} | {one.searched_value:.4f} | {one.mean:.4f} | {one.deviation:.4f} | {len(one.values)} | {mark} |")
    return "\n".join([*rows, *(f"| {trial} | | | | | {markdown(reason)} |" for trial, reason in retrained.lost.items())])


def _count(images: int) -> str:
    """A cell of the confusion matrix. It has its own spaces, because MLflow's pages leave none between columns."""
    return f"\u2002{images or '·'}\u2002|"


def _pairs(values: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])


def _some(classes: Sequence[str]) -> str:
    shown = ", ".join(markdown(name) for name in classes[:MOST_CLASSES])
    return shown if len(classes) <= MOST_CLASSES else f"{shown} and {counted(len(classes) - MOST_CLASSES, 'more class')}"
