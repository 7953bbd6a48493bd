"""The sections of a report about the best trial of a search, or of two."""

from __future__ import annotations

from collections.abc import Sequence

from vit_search.config.metrics import METRICS
from vit_search.ledger.trials import Trial
from vit_search.planning.space_findings import with_effect
from vit_search.report.digest import SURE, Digest, Winner, apart
from vit_search.report.page import ROWS, Block, Table, Text, metric_text, value_cell
from vit_search.text import counted


def winner_blocks(d: Digest) -> list[Block]:
    """The best trial, how certain that is, and its runners-up."""
    if d.winner is None:
        return [Text("No trial has a value yet.")]
    w = d.winner
    blocks: list[Block] = [Text(_who(d, w))]
    if w.interval:
        low, high = w.interval
        blocks.append(Text(
            f"95 % interval of its share of right answers on the {w.images:,} validation images: {low:.4f} to {high:.4f} (Wilson), "
            "as if it had been chosen without looking at them."
        ))  # fmt: skip
    elif METRICS[d.metric].of_images:
        blocks.append(Text("The number of validation images is unknown here, so there is no interval."))
    else:
        blocks.append(Text(f"{d.metric} is no share of the validation images, so no interval follows from their number."))
    blocks.append(Text(_too_good(d, w)))
    cost = d.costs[w.trial.number]
    rows = [[name, value_cell(value)] for name, value in d.space.complete(w.trial.params).items() if name in d.space.searched]
    rows += [["parameters of the model", f"{cost.params:,}"], ["FLOPs an image", f"{cost.forward_flops:,}"]]
    blocks.append(Table(("parameter", "value>"), rows, "The winner."))
    if w.rivals:
        names = list(d.space.searched)[:8]
        tested = any(rival.p is not None for rival in w.rivals)
        head = ("trial", f"{d.metric}>", *(["p>", "told apart"] if tested else []), "params>", *(f"{name}>" for name in names))
        rows = [_rival(d, w.trial, w.value, ["–", "the winner"] if tested else [], names)]
        for rival in w.rivals[: ROWS - 1]:
            extra = [f"{rival.p:.3f}" if rival.p and rival.p >= 0.0005 else "< 0.001", "no" if rival.alike else "yes"] if tested else []
            rows.append(_rival(d, rival.trial, rival.value, extra, names))
        blocks.append(
            Table(head, rows, f"Runners-up of full length{'' if len(w.rivals) < ROWS else f', the first {ROWS - 1} of {len(w.rivals):,}'}.")
        )
        if tested:
            alike = f"{counted(w.alike, 'runner-up', 'runners-up')} cannot be told from the winner on {w.images:,} images"
            blocks.append(Text(
                f"{alike if w.alike else 'Every runner-up can be told from the winner'} (two-proportion test, "
                f"which tells them apart where p is below {SURE:g}); it is "
                "conservative, since all trials see the same images and so differ less by chance than it takes them to."
            ))  # fmt: skip
    return blocks


def _rival(d: Digest, trial: Trial, value: float, extra: Sequence[str], names: Sequence[str]) -> list[str]:
    params = with_effect(d.space, trial.params)
    return [
        str(trial.number),
        metric_text(value),
        *extra,
        f"{d.costs[trial.number].params:,}",
        *(value_cell(params[name]) if name in params else "–" for name in names),
    ]


def _who(d: Digest, w: Winner) -> str:
    text = f"Trial {w.trial.number}: {d.metric} {metric_text(w.value)} after {counted(len(w.trial.results), 'epoch')}."
    return text if w.trial.outcome == "completed" else f"{text} It is {w.trial.outcome}: no trial has reached full length yet."


def _too_good(d: Digest, w: Winner) -> str:
    count = d.outcomes.get("completed", 0)
    text = f"The best of {counted(count, 'full-length trial')} looks better than it is, for it was chosen by these very images"
    if not w.optimism:
        return text + "; promote tests it on images that nothing was chosen by."
    return (
        f"{text}: by up to {w.optimism:.4f}, the expected largest of {w.alike + 1} draws of binomial noise, one for the winner and each "
        "trial that cannot be told from it, as if all were equally good and each had its own images; they share them, so it is less. "
        "promote tests it on images that nothing was chosen by."
    )


def winners_blocks(a: Digest, b: Digest) -> list[Block]:
    """The best trials of two searches, side by side."""
    blocks: list[Block] = [Text(f"{d.name}: {_who(d, d.winner) if d.winner else 'no trial has a value yet.'}") for d in (a, b)]
    if a.winner and b.winner:
        ahead = "Both are equally good" if a.winner.value == b.winner.value else (
            f"{(a if a.sign * (a.winner.value - b.winner.value) > 0 else b).name} is ahead by {abs(a.winner.value - b.winner.value):.4f}"
        )  # fmt: skip
        images = a.winner.images
        if a.winner.interval and b.winner.interval and images:
            p = apart(a.winner.value, b.winner.value, images)
            sure = "which chance explains" if p >= SURE else "more than chance explains"
            blocks.append(
                Text(
                    f"{ahead}, {sure} on {counted(images, 'image')} (two-proportion test, p = {p:.3f}; "
                    "conservative, since both see the same images)."
                )
            )
        else:
            blocks.append(Text(f"{ahead}."))
        rows = [
            [
                name,
                value_cell(a.space.complete(a.winner.trial.params).get(name, "–")),
                value_cell(b.space.complete(b.winner.trial.params).get(name, "–")),
            ]
            for name in dict.fromkeys([*a.space.searched, *b.space.searched])
        ]
        for label, get in (("parameters of the model", "params"), ("FLOPs an image", "forward_flops")):
            rows.append([label, *(f"{getattr(d.costs[d.winner.trial.number], get):,}" for d in (a, b) if d.winner)])
        blocks.append(Table(("", f"{a.name}>", f"{b.name}>"), rows, "The two winners."))
    return blocks
