"""The sections of a report about parameters: importance, parallel coordinates, slices, range ends, the next search file."""

from __future__ import annotations

from collections.abc import Sequence

from vit_search.report import importance, parameter_figures
from vit_search.report.digest import Digest
from vit_search.report.importance import Importance
from vit_search.report.page import Block, Code, Row, Table, Text, value_cell
from vit_search.text import counted


def importance_blocks(weighed: dict[str, list[Importance]]) -> list[Block]:
    """How important each parameter is, for each search by name."""
    by_search = {name: ones for name, ones in weighed.items() if ones}
    if not by_search:
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
        for name, ones in by_search.items()
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
        Row([parameter_figures.importance(by_search)]),
        Table((*(["search"] if searches else []), "parameter", "share>", "90 % of resamples>", "trials>"), rows),
    ]


def parallel_blocks(d: Digest, order: Sequence[str]) -> list[Block]:
    """Parallel coordinates of one search."""
    if not order or not any(t.over and t.value(d.metric) is not None for t in d.standing):
        return [Text("No trial that is over has a value yet." if order else "No parameter was searched.")]
    return [
        Text(
            "Each line is a trial, from its parameters on the left to its metric on the right; a gap is a parameter that it did not have."
        ),
        Row([parameter_figures.parallel(d, order)]),
    ]


def slice_blocks(d: Digest, order: Sequence[str]) -> list[Block]:
    """The metric over each single parameter."""
    if not order or d.winner is None:
        return [Text("No trial has a value yet." if order else "No parameter was searched.")]
    text = "Trials that were stopped stand at the value of their last epoch, which is an earlier one."
    if len(order) > parameter_figures.SLICES:
        text += f" The {parameter_figures.SLICES} most important of {len(order)} parameters are shown."
    return [Text(text), Row(parameter_figures.slices(d, order))]


def border_blocks(d: Digest) -> list[Block]:
    """Parameters whose good trials are concentrated at an end of their range."""
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


def next_file_blocks(d: Digest) -> list[Block]:
    """The next search file, and what it changes."""
    blocks: list[Block] = [
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


def range_table(a: Digest, b: Digest) -> Table:
    """What two searches searched, parameter by parameter."""

    def searched_text(d: Digest, name: str) -> str:
        if name not in d.space.searched:
            return f"fixed: {value_cell(d.space.parameters.get(name))}"
        values = d.space.searched[name].model_dump(by_alias=True, exclude_defaults=True)
        return ", ".join(f"{key} {value}" for key, value in values.items())

    names = dict.fromkeys([*a.space.searched, *b.space.searched])
    return Table(("parameter", a.name, b.name), [[name, searched_text(a, name), searched_text(b, name)] for name in names])
