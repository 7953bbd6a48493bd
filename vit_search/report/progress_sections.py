"""The sections of a report about the course of a search: progress, cost, survival, stopping, utilisation, plan, outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from vit_search.config.cost import in_time
from vit_search.report import progress_figures
from vit_search.report.digest import Digest
from vit_search.report.page import ROWS, Block, Row, Table, Text, metric_text
from vit_search.text import counted


def improvement_blocks(d: Digest) -> list[Block]:
    """When the best value so far improved."""
    better = progress_figures.better_ones(d.steps)
    if not better:
        return [Text("No trial has reached full length yet.")]
    rows = [
        [str(s.trial), f"{s.ended:,}", in_time(s.hours * 3600), in_time(s.device_hours * 3600), metric_text(s.best)] for s in better[-ROWS:]
    ]
    return [
        Table(
            ("trial", "trials over>", "after>", "device time>", f"{d.metric}>"),
            rows,
            "When the best so far became better: the latest times.",
        )
    ]


def cost_blocks(d: Digest) -> list[Block]:
    """The metric against the cost of a model, and the Pareto front."""
    drawn = progress_figures.costs([d])
    if not drawn:
        return [Text("No trial has a value yet.")]
    blocks: list[Block] = [Row(drawn)]
    full = {t.number: t for t in d.standing if t.outcome == "completed"}
    points = [(float(d.costs[n].params), v, n) for n, t in full.items() if (v := t.value(d.metric)) is not None]
    ahead = progress_figures.frontier([(c, v) for c, v, _ in points], d.spec.mode)
    rows = []
    for cost, value in ahead[-ROWS:]:
        number = next(n for c, v, n in points if (c, v) == (cost, value))
        latency = full[number].value("latency_ms")
        rows.append(
            [
                str(number),
                f"{cost:,.0f}",
                f"{d.costs[number].forward_flops:,}",
                "–" if latency is None else f"{latency:.3g}",
                metric_text(value),
            ]
        )
    if rows:
        caption = "Full-length trials that no smaller one equals" + (f", the last {ROWS} of {len(ahead):,}." if len(ahead) > ROWS else ".")
        blocks.append(Table(("trial", "params>", "FLOPs an image>", "latency in ms>", f"{d.metric}>"), rows, caption))
    if d.front:
        goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in d.spec.objectives)
        listed = ", ".join(map(str, sorted(d.front)[:50])) + (", …" if len(d.front) > 50 else "")
        blocks.append(Text(f"On the front of all objectives, {d.metric} ({d.spec.mode}), {goals}: trials {listed}."))
    return blocks


def survival_table(digests: Sequence[Digest]) -> Table:
    """How many trials of each stratum reached each rung."""
    rows = []
    for d in digests:
        for one in d.survival:
            begun = one.reached[0]
            for epoch, count in one.reached.items():
                cells = ["begun" if epoch == 0 else str(epoch), f"{count:,}", f"{count / begun:.0%}" if begun else "–"]
                rows.append([d.name, one.label, *cells])
    names = len(digests) > 1
    head = (*(["search"] if names else []), "stratum", "epoch>", "trials>", "of those begun>")
    return Table(
        head, rows if names else [row[1:] for row in rows], "Trials that trained so long; strata are groups by training FLOPs of an image."
    )


def stopping_blocks(d: Digest) -> list[Block]:
    """How often stopping was wrong."""
    kind = d.spec.stopping.kind
    if kind == "none":
        return [Text(f"{d.name} stopped no trial early.")]
    if d.hindsight is None:
        return [Text(f"How often stopping was wrong is told when {d.name} has come to its end.")]
    h = d.hindsight
    if not h.doomed:
        return [
            Text(
                f"False kills of {d.name}: unknown, since none of the trials that nothing could stop (audit_share) would have been stopped."
            )
        ]
    low, high = h.interval
    return [Text(
        f"False kills of {d.name}: of {counted(h.doomed, 'audited trial')} that would have been stopped, {h.wrongly} ended better than "
        f"the median of those let through: {h.wrongly / h.doomed:.0%}, 95 % interval {low:.0%} to {high:.0%}."
    )]  # fmt: skip


def utilisation_blocks(d: Digest) -> list[Block]:
    """How busy the devices were, and how the time was spent."""
    if not d.spent.epochs:
        return [Text("Nothing has been trained yet.")]
    text = "" if d.utilisation is None else (
        f"{d.utilisation:.0%} of the time at work, times the trials allowed at once, was training and evaluation; the rest went into "
        "starting workers, waiting, and epochs lost in a crash. The time between a death and a resume does not count."
    )  # fmt: skip
    return [Text(text), Row([progress_figures.busy([d])]), Row([progress_figures.timeline(d)]), waste_table([d])]


def waste_table(digests: Sequence[Digest]) -> Table:
    """How the training time was spent, for each search."""

    def share(d: Digest, seconds: float) -> str:
        return f"{in_time(seconds)} ({seconds / d.spent.trial_seconds:.0%})" if d.spent.trial_seconds else "–"

    outcomes = list(dict.fromkeys(name for d in digests for name in d.waste.by_outcome))
    rows = [[f"in {name} trials", *(share(d, d.waste.by_outcome.get(name, 0.0)) for d in digests)] for name in outcomes]
    rows.append(
        ["in repeats of parameters tried before", *(f"{share(d, d.waste.repeated)}, {counted(d.waste.repeats, 'trial')}" for d in digests)]
    )
    rows.append(["saved by stopping", *(in_time(d.waste.saved) for d in digests)])
    rows.append(["refused proposals, never trained", *(f"{d.infeasible:,}" for d in digests)])
    return Table(("training time", *(f"{d.name}>" for d in digests)), rows, "Where the training time of all trials went.")


def plan_blocks(d: Digest) -> list[Block]:
    """What was planned, beside what happened."""
    comparison = d.hindsight.plan if d.hindsight else None
    if not comparison:
        return [Text("What was planned is set beside what came when the search has come to its end.")]
    rows: list[list[str]] = []

    def beside(name: str, pair: dict[str, Any], shown: Callable[[float], str]) -> None:
        cells = ["–" if pair[key] is None else shown(pair[key]) for key in ("predicted", "actual")]
        rows.append([name, *cells, "–" if pair["ratio"] is None else f"{pair['ratio']:.2f}"])

    beside("trials", comparison["trials"], lambda v: f"{v:,.0f}")
    for epoch, pair in comparison["trials_at"].items():
        beside(f"trials that reach epoch {epoch}", pair, lambda v: f"{v:,.1f}".removesuffix(".0"))
    beside("epochs", comparison["epochs"], lambda v: f"{v:,.0f}")
    beside("device time", comparison["device_seconds"], in_time)
    beside("time at work", comparison["wall_seconds"], in_time)
    speed = comparison.get("speed")
    by = "No speed was known, so no seconds were planned."
    if speed:
        by = f"Seconds were planned by the speed of {speed['device']}{', measured ' + speed['measured'] if speed['measured'] else ''}"
        by += f" for {speed['borrowed']}." if speed.get("borrowed") else "."
    return [Table(("", "planned>", "came>", "came / planned>"), rows), Text(by)]


def end_blocks(d: Digest) -> list[Block]:
    """How trials ended, and why."""
    rows = [[name, f"{count:,}"] for name, count in d.outcomes.items()]
    blocks: list[Block] = [Table(("outcome", "trials>"), rows)] if rows else [Text("No trial has begun yet.")]
    reasons = Counter((t.outcome, t.reason) for t in d.standing if t.reason)
    if reasons:
        listed = [[f"{count:,}", outcome, reason] for (outcome, reason), count in reasons.most_common(ROWS)]
        more = f", the {ROWS} most frequent of {len(reasons):,}" if len(reasons) > ROWS else ""
        blocks.append(Table(("trials>", "outcome", "reason"), listed, f"Reasons{more}."))
    broke = Counter((t.number, why) for t in d.standing for why in t.breakdowns)
    if broke:
        listed = [[str(number), f"{count:,}", why] for (number, why), count in broke.most_common(ROWS)]
        more = f", the {ROWS} most frequent of {len(broke):,}" if len(broke) > ROWS else ""
        blocks.append(Table(("trial>", "times>", "reason"), listed, f"Breakdowns, after which a trial goes on from its checkpoint{more}."))
    return blocks
