"""The report of a search, or of two side by side: one self-contained HTML page, and its twin in Markdown for a terminal.

All of it follows from the search's folder, so it can be written at any time, also of a search that runs. The parent run gets
both files as artifacts from whoever ends the search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from vit_search.config.cost import in_time
from vit_search.config.metrics import METRICS
from vit_search.errors import SearchError
from vit_search.files import write_whole
from vit_search.ledger.trials import Trial
from vit_search.report import figures, importance, page
from vit_search.report.digest import SURE, Digest, Winner, apart, digest
from vit_search.report.importance import Importance
from vit_search.report.page import Code, Page, Row, Section, Table, Text
from vit_search.text import counted

HTML, MARKDOWN = "report.html", "report.md"

ROWS = 10
"""Of a table, where more would not be read."""


def write(folder: Path, *, driven: bool | None = None, awaited: bool = False) -> tuple[Path, Path]:
    """Write a search's report into its folder: the page, and its twin in Markdown; `driven` and `awaited` as search_state.read has them.

    Raises: SearchError where the folder holds no search, or cannot be written.
    """
    return _kept(folder / HTML, folder / MARKDOWN, of_search(digest(folder, driven=driven, awaited=awaited)))


def compare(first: Path, second: Path) -> tuple[Path, Path]:
    """Write the comparison of two searches beside the first: the page, and its twin in Markdown.

    Raises: SearchError where they searched over other data, or for another metric or mode.
    """
    a, b = digest(first), digest(second)
    home = first.resolve().parent
    stem = f"compare-{a.name}-{b.name}"
    return _kept(home / f"{stem}.html", home / f"{stem}.md", of_two(a, b))


def html(told: Page) -> str:
    """The page, with everything that it needs."""
    return page.render(told, get_plotlyjs())


def markdown(told: Page) -> str:
    """Its twin."""
    return page.markdown(told)


def _kept(html_path: Path, markdown_path: Path, told: Page) -> tuple[Path, Path]:
    for path, text in ((html_path, html(told)), (markdown_path, markdown(told))):
        try:
            write_whole(path, text)
        except OSError as error:
            raise SearchError(f"{path}: cannot be written ({error.strerror}); make room, or make the folder yours.") from None
    return html_path, markdown_path


def of_search(d: Digest) -> Page:
    """What there is to tell of one search."""
    weighed = importance.importances(d.space, [t.params for t in d.standing if t.over and t.outcome != "failed" and t.results])
    order = [one.parameter for one in weighed] + [name for name in d.space.searched if name not in {one.parameter for one in weighed}]
    sections = [
        Section("winner", "Winner", _winner(d)),
        Section("progress", "Best so far", [Row(figures.progress([d])), *_improvements(d)]),
        Section("curves", "Learning curves", [Row([figures.curves([d])])] if d.spent.epochs else [Text("No epoch has been trained yet.")]),
        Section("importance", "Importance of parameters", _importance({d.name: weighed})),
        Section("parallel", "Parallel coordinates", _parallel(d, order)),
        Section("slices", "Slices", _slices(d, order)),
        Section("front", f"{d.metric} against cost", _costs(d)),
        Section("survival", "Survival by rung and stratum", [Row([figures.survival([d])]), _survival_table([d]), *_stopping(d)]),
        Section("utilisation", "Utilisation and waste", _utilisation(d)),
        Section("plan", "Plan against actual", _plan(d)),
        Section("ends", "How trials ended", _ends(d)),
        Section("borders", "Parameters stuck at a border", _borders(d)),
        Section("next", "The next search file", _next(d)),
    ]
    goal = f"{d.metric} to be made {'large' if d.spec.mode == 'max' else 'small'}"
    reason = f" ({d.state.reason})" if d.state.reason else ""
    lead = f"{counted(len(d.standing), 'trial')} of {d.wanted:,} begun, {goal}; the search is {d.state.word}{reason}."
    lead += f" Images: {d.images}." if d.images else ""
    return Page(f"{d.name}: report", lead, _figures(d), sections)


def of_two(a: Digest, b: Digest) -> Page:
    """What there is to tell of two searches over the same data.

    Raises: SearchError where they searched over other data, or for another metric or mode.
    """
    if a.data_hash != b.data_hash:
        raise SearchError(f"{b.name}: its images or their split are not those of {a.name}; compare searches whose data sections are alike.")
    if (a.metric, a.spec.mode) != (b.metric, b.spec.mode):
        raise SearchError(
            f"{b.name}: looks for the {b.spec.mode} of {b.metric}, and {a.name} for the {a.spec.mode} of {a.metric}; "
            "compare searches with one metric and mode."
        )
    both = [a, b]
    weighed = {
        d.name: importance.importances(d.space, [t.params for t in d.standing if t.over and t.outcome != "failed" and t.results])
        for d in both
    }
    sides = [dict(_figures(d)) for d in both]
    table = Table(("", f"{a.name}>", f"{b.name}>"), [[name, sides[0][name], sides[1].get(name, "–")] for name in sides[0]])
    curves = Row([figures.curves(both)]) if a.spent.epochs or b.spent.epochs else Text("No epoch has been trained yet.")
    sections = [
        Section("figures", "Key figures", [table]),
        Section("winners", "Winners", _winners(a, b)),
        Section("progress", "Best so far", [Row(figures.progress(both))]),
        Section("curves", "Learning curves", [curves]),
        Section("importance", "Importance of parameters", _importance(weighed)),
        Section(
            "front", f"{a.metric} against cost", [Row(found)] if (found := figures.costs(both)) else [Text("No trial has a value yet.")]
        ),
        Section(
            "survival",
            "Survival by rung and stratum",
            [Row([figures.survival(both)]), _survival_table(both), *_stopping(a), *_stopping(b)],
        ),
        Section("utilisation", "Utilisation and waste", [Row([figures.busy(both)]), _waste_table(both)]),
        Section("parameters", "What was searched", [_ranges(a, b)]),
        Section(
            "next",
            "The next search files",
            [Text(f"Each search's own report holds its next file: vit-search report {a.name}, vit-search report {b.name}.")],
        ),
    ]
    lead = f"Two searches over the same images, for the {'largest' if a.spec.mode == 'max' else 'smallest'} {a.metric}."
    if a.spec.epochs != b.spec.epochs:
        lead += f" A full training is {counted(a.spec.epochs, 'epoch')} in {a.name} and {b.spec.epochs} in {b.name}."
    return Page(f"{a.name} and {b.name} compared", lead, [], sections)


def _figures(d: Digest) -> list[tuple[str, str]]:
    over = sum(t.over for t in d.standing)
    found = [
        (f"best {d.metric}", _value(d.winner.value) if d.winner else "none yet"),
        ("trials over", f"{over:,} of {d.wanted:,}"),
        ("full length", f"{d.outcomes.get('completed', 0):,}"),
        ("stopped early", f"{d.outcomes.get('stopped', 0):,}"),
        ("failed or diverged", f"{d.outcomes.get('failed', 0) + d.outcomes.get('diverged', 0):,}"),
        ("epochs trained", f"{d.spent.epochs:,}"),
        ("epochs saved by stopping", f"{d.spent.saved_share:.0%}" if d.spent.epochs else "–"),
        ("time at work", in_time(d.spent.wall_seconds)),
        ("device time", in_time(d.spent.device_seconds(d.devices))),
        ("utilisation", "–" if d.utilisation is None else f"{d.utilisation:.0%}"),
    ]
    return found


def _winner(d: Digest) -> list[page.Block]:
    if d.winner is None:
        return [Text("No trial has a value yet.")]
    w = d.winner
    blocks: list[page.Block] = [Text(_who(d, w))]
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
    rows = [[name, _cell(value)] for name, value in d.space.complete(w.trial.params).items() if name in d.space.searched]
    rows += [["parameters of the model", f"{cost.params:,}"], ["FLOPs an image", f"{cost.forward_flops:,}"]]
    blocks.append(Table(("parameter", "value>"), rows, "The winner."))
    if w.rivals:
        names = list(d.space.searched)[:8]
        told = any(rival.p is not None for rival in w.rivals)
        head = ("trial", f"{d.metric}>", *(["p>", "told apart"] if told else []), "params>", *(f"{name}>" for name in names))
        rows = [_rival(d, w.trial, w.value, ["–", "the winner"] if told else [], names)]
        for rival in w.rivals[: ROWS - 1]:
            extra = [f"{rival.p:.3f}" if rival.p and rival.p >= 0.0005 else "< 0.001", "no" if rival.alike else "yes"] if told else []
            rows.append(_rival(d, rival.trial, rival.value, extra, names))
        blocks.append(
            Table(head, rows, f"Runners-up of full length{'' if len(w.rivals) < ROWS else f', the first {ROWS - 1} of {len(w.rivals):,}'}.")
        )
        if told:
            alike = f"{counted(w.alike, 'runner-up', 'runners-up')} cannot be told from the winner on {w.images:,} images"
            blocks.append(Text(
                f"{alike if w.alike else 'Every runner-up can be told from the winner'} (two-proportion test, "
                f"which tells them apart where p is below {SURE:g}); it is "
                "conservative, since all trials see the same images and so differ less by chance than it takes them to."
            ))  # fmt: skip
    return blocks


def _rival(d: Digest, trial: Trial, value: float, extra: Sequence[str], names: Sequence[str]) -> list[str]:
    return [
        str(trial.number),
        _value(value),
        *extra,
        f"{d.costs[trial.number].params:,}",
        *(_cell(d.space.trained(trial.params)[name]) for name in names),
    ]


def _who(d: Digest, w: Winner) -> str:
    text = f"Trial {w.trial.number}: {d.metric} {_value(w.value)} after {counted(len(w.trial.results), 'epoch')}."
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


def _winners(a: Digest, b: Digest) -> list[page.Block]:
    blocks: list[page.Block] = [Text(f"{d.name}: {_who(d, d.winner) if d.winner else 'no trial has a value yet.'}") for d in (a, b)]
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
                _cell(a.space.complete(a.winner.trial.params).get(name, "–")),
                _cell(b.space.complete(b.winner.trial.params).get(name, "–")),
            ]
            for name in dict.fromkeys([*a.space.searched, *b.space.searched])
        ]
        for label, get in (("parameters of the model", "params"), ("FLOPs an image", "forward_flops")):
            rows.append([label, *(f"{getattr(d.costs[d.winner.trial.number], get):,}" for d in (a, b) if d.winner)])
        blocks.append(Table(("", f"{a.name}>", f"{b.name}>"), rows, "The two winners."))
    return blocks


def _improvements(d: Digest) -> list[page.Block]:
    better = figures.better_ones(d.steps)
    if not better:
        return [Text("No trial has reached full length yet.")]
    rows = [[str(s.trial), f"{s.ended:,}", in_time(s.hours * 3600), in_time(s.device_hours * 3600), _value(s.best)] for s in better[-ROWS:]]
    return [
        Table(
            ("trial", "trials over>", "after>", "device time>", f"{d.metric}>"),
            rows,
            "When the best so far became better: the latest times.",
        )
    ]


def _importance(weighed: dict[str, list[Importance]]) -> list[page.Block]:
    found = {name: ones for name, ones in weighed.items() if ones}
    if not found:
        return [Text(f"Fewer than {importance.FEWEST} trials are over, or nothing parts them: too few to weigh parameters by.")]
    searches = len(weighed) > 1
    rows = [
        [
            *([name] if searches else []),
            one.parameter,
            f"{one.share:.0%}",
            f"{one.interval[0]:.0%} to {one.interval[1]:.0%}",
            f"{one.trials:,}",
        ]
        for name, ones in found.items()
        for one in ones
    ]
    return [
        Text(
            "How much each parameter parts the best fifth of the trials from all (PED-ANOVA), as a share of all parameters, what chance "
            "would do taken off. Stopped trials count below those that came further. The error is what "
            f"{importance.RESAMPLES} resamples of the trials make of it: 90 % of them lie within. At most {importance.MOST} trials are "
            "weighed, a sample of more; a parameter with a condition is judged among the trials that have it. What parameters do only "
            "together is not seen."
        ),
        Row([figures.importance(found)]),
        Table((*(["search"] if searches else []), "parameter", "share>", "90 % of resamples>", "trials>"), rows),
    ]


def _parallel(d: Digest, order: Sequence[str]) -> list[page.Block]:
    if not order or not any(t.over and t.value(d.metric) is not None for t in d.standing):
        return [Text("No trial that is over has a value yet." if order else "No parameter was searched.")]
    return [
        Text(
            "Each line is a trial, from its parameters on the left to its metric on the right; a gap is a parameter that it did not have."
        ),
        Row([figures.parallel(d, order)]),
    ]


def _slices(d: Digest, order: Sequence[str]) -> list[page.Block]:
    if not order or d.winner is None:
        return [Text("No trial has a value yet." if order else "No parameter was searched.")]
    text = "Trials that were stopped stand at the value of their last epoch, which is an earlier one."
    if len(order) > figures.SLICES:
        text += f" The {figures.SLICES} most important of {len(order)} parameters are shown."
    return [Text(text), Row(figures.slices(d, order))]


def _costs(d: Digest) -> list[page.Block]:
    drawn = figures.costs([d])
    if not drawn:
        return [Text("No trial has a value yet.")]
    blocks: list[page.Block] = [Row(drawn)]
    full = {t.number: t for t in d.standing if t.outcome == "completed"}
    points = [(float(d.costs[n].params), v, n) for n, t in full.items() if (v := t.value(d.metric)) is not None]
    ahead = figures.frontier([(c, v) for c, v, _ in points], d.spec.mode)
    rows = []
    for cost, value in ahead[-ROWS:]:
        number = next(n for c, v, n in points if (c, v) == (cost, value))
        latency = full[number].value("latency_ms")
        rows.append(
            [str(number), f"{cost:,.0f}", f"{d.costs[number].forward_flops:,}", "–" if latency is None else f"{latency:.3g}", _value(value)]
        )
    if rows:
        said = "Full-length trials that no smaller one equals" + (f", the last {ROWS} of {len(ahead):,}." if len(ahead) > ROWS else ".")
        blocks.append(Table(("trial", "params>", "FLOPs an image>", "latency in ms>", f"{d.metric}>"), rows, said))
    if d.front:
        goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in d.spec.objectives)
        listed = ", ".join(map(str, sorted(d.front)[:50])) + (", …" if len(d.front) > 50 else "")
        blocks.append(Text(f"On the front of all objectives, {d.metric} ({d.spec.mode}), {goals}: trials {listed}."))
    return blocks


def _survival_table(digests: Sequence[Digest]) -> Table:
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


def _stopping(d: Digest) -> list[page.Block]:
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


def _utilisation(d: Digest) -> list[page.Block]:
    if not d.spent.epochs:
        return [Text("Nothing has been trained yet.")]
    said = "" if d.utilisation is None else (
        f"{d.utilisation:.0%} of the time at work, times the trials allowed at once, was training and evaluation; the rest went into "
        "starting workers, waiting, and epochs lost in a crash. The time between a death and a resume does not count."
    )  # fmt: skip
    return [Text(said), Row([figures.busy([d])]), Row([figures.timeline(d)]), _waste_table([d])]


def _waste_table(digests: Sequence[Digest]) -> Table:
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


def _plan(d: Digest) -> list[page.Block]:
    told = d.hindsight.plan if d.hindsight else None
    if not told:
        return [Text("What was planned is set beside what came when the search has come to its end.")]
    rows: list[list[str]] = []

    def beside(name: str, pair: dict[str, Any], shown: Callable[[float], str]) -> None:
        cells = ["–" if pair[key] is None else shown(pair[key]) for key in ("predicted", "actual")]
        rows.append([name, *cells, "–" if pair["ratio"] is None else f"{pair['ratio']:.2f}"])

    beside("trials", told["trials"], lambda v: f"{v:,.0f}")
    for epoch, pair in told["trials_at"].items():
        beside(f"trials that reach epoch {epoch}", pair, lambda v: f"{v:,.1f}".removesuffix(".0"))
    beside("epochs", told["epochs"], lambda v: f"{v:,.0f}")
    beside("device time", told["device_seconds"], in_time)
    beside("time at work", told["wall_seconds"], in_time)
    speed = told.get("speed")
    by = "No speed was known, so no seconds were planned."
    if speed:
        by = f"Seconds were planned by the speed of {speed['device']}{', measured ' + speed['measured'] if speed['measured'] else ''}"
        by += f" for {speed['borrowed']}." if speed.get("borrowed") else "."
    return [Table(("", "planned>", "came>", "came / planned>"), rows), Text(by)]


def _ends(d: Digest) -> list[page.Block]:
    rows = [[name, f"{count:,}"] for name, count in d.outcomes.items()]
    blocks: list[page.Block] = [Table(("outcome", "trials>"), rows)] if rows else [Text("No trial has begun yet.")]
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


def _borders(d: Digest) -> list[page.Block]:
    if not d.next.good:
        return [Text(d.next.note + ".")]
    if not d.stuck:
        return [Text(f"None: the best {d.next.good} of {counted(d.next.of, 'trial')} crowd at no end of a range.")]
    rows = [
        [
            s.parameter,
            f"{'lower' if s.side == 'low' else 'upper'}, {s.end:.3g}",
            f"{s.crowd} of {s.good}",
            f"{s.expected:.1f}",
            "no value beyond makes sense" if s.legal_end else "widen it",
        ]
        for s in d.stuck
    ]
    return [
        Text(
            "Of the best fifth of the trials, more lie in the outer tenth of the range than chance would put there "
            "(binomial test, p below 0.01, and twice as many)."
        ),
        Table(("parameter", "end", "good trials there>", "by chance>", "mend"), rows),
    ]


def _next(d: Digest) -> list[page.Block]:
    blocks: list[page.Block] = [
        Text(
            f"Write it with: vit-search report {d.name} --next FILE; look it over with: vit-search lint FILE; "
            "launch it with: vit-search run FILE."
        )
    ]
    if d.next.changes:
        rows = [[c.parameter, c.before, c.after, c.why] for c in d.next.changes]
        blocks.append(Table(("parameter", "was", "is", "why"), rows))
    else:
        blocks.append(Text(f"No range is changed: {d.next.note}."))
    return [*blocks, Code(d.next.text)]


def _ranges(a: Digest, b: Digest) -> Table:
    def said(d: Digest, name: str) -> str:
        if name not in d.space.searched:
            return f"fixed: {_cell(d.space.parameters.get(name))}"
        values = d.space.searched[name].model_dump(by_alias=True, exclude_defaults=True)
        return ", ".join(f"{key} {value}" for key, value in values.items())

    names = dict.fromkeys([*a.space.searched, *b.space.searched])
    return Table(("parameter", a.name, b.name), [[name, said(a, name), said(b, name)] for name in names])


def _value(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _cell(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
