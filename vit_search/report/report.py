"""The report of a search, or of two side by side: a self-contained HTML page, and Markdown for a terminal.

Everything comes from the search's folder. So you can write a report at any time, also while the search runs. When a search ends, both
files are added to its parent run in MLflow.
"""

from __future__ import annotations

from pathlib import Path

from plotly.offline import get_plotlyjs

from vit_search.config.cost import in_time
from vit_search.errors import SearchError
from vit_search.files import write_whole
from vit_search.ledger import searches
from vit_search.report import importance, mistakes, page, progress_figures
from vit_search.report.digest import Digest, digest
from vit_search.report.mistake_sections import mistake_blocks
from vit_search.report.mistakes import Missing, Mistakes
from vit_search.report.page import Page, Row, Section, Table, Text, metric_text
from vit_search.report.parameter_sections import (
    border_blocks,
    importance_blocks,
    next_file_blocks,
    parallel_blocks,
    range_table,
    slice_blocks,
)
from vit_search.report.progress_sections import (
    cost_blocks,
    end_blocks,
    improvement_blocks,
    plan_blocks,
    stopping_blocks,
    survival_table,
    utilisation_blocks,
    waste_table,
)
from vit_search.report.winner_sections import winner_blocks, winners_blocks
from vit_search.text import counted, last_line

HTML, MARKDOWN = "report.html", "report.md"

TABLES = (mistakes.LABEL_ERRORS, mistakes.CONFUSION)
"""Files beside the report, if the best model's mistakes were looked for."""


def write(folder: Path, *, driven: bool | None = None, awaited: bool = False, look: bool = False) -> tuple[Path, ...]:
    """Write a search's report into its folder.

    Args:
        driven: as for search_state.read.
        awaited: as for search_state.read.
        look: whether to look for the best model's mistakes, if no driver runs and this was not done yet.
    Returns: the HTML page, the Markdown file, and those of TABLES that exist.
    Raises: SearchError if the folder holds no search, or cannot be written.
    """
    d = digest(folder, driven=driven, awaited=awaited)
    found = _mistakes(folder, d, look=look)
    written = _written(folder / HTML, folder / MARKDOWN, of_search(d, found))
    return (*written, *(folder / name for name in TABLES if isinstance(found, Mistakes) and (folder / name).exists()))


def _mistakes(folder: Path, d: Digest, *, look: bool) -> Mistakes | Missing:
    """The mistakes of the best model. If this fails, the rest of the report is still written."""
    if searches.read_facts(folder).promotes:
        return Missing("These are the trainings of a promotion, whose images nobody looks at before the test.")
    if look and not d.state.driven:
        try:
            return mistakes.find(folder, d.spec, d.standing, d.data_hash)
        except Exception as error:
            return Missing(f"The mistakes could not be looked at ({type(error).__name__}: {last_line(error)}).")
    earlier = mistakes.read(folder)
    if isinstance(earlier, Missing) or (earlier is not None and earlier.shows_images == d.spec.report.images):
        return earlier
    return Missing(f"This section is made when the search has ended, or by `vit-search report {d.name}` after that.")


def compare(first: Path, second: Path) -> tuple[Path, Path]:
    """Write the comparison of two searches into the folder that contains the first: an HTML page and a Markdown file.

    Raises: SearchError if their data, metric or mode differ.
    """
    a, b = digest(first), digest(second)
    home = first.resolve().parent
    stem = f"compare-{a.name}-{b.name}"
    return _written(home / f"{stem}.html", home / f"{stem}.md", of_two(a, b))


def html(content: Page) -> str:
    """The HTML page, with everything that it needs."""
    return page.render(content, get_plotlyjs())


def markdown(content: Page) -> str:
    """The report as Markdown."""
    return page.markdown(content)


def _written(html_path: Path, markdown_path: Path, content: Page) -> tuple[Path, Path]:
    for path, text in ((html_path, html(content)), (markdown_path, markdown(content))):
        try:
            write_whole(path, text)
        except OSError as error:
            raise SearchError(f"{path}: cannot be written ({error.strerror}); make room, or make the folder yours.") from None
    return html_path, markdown_path


def of_search(d: Digest, found: Mistakes | Missing) -> Page:
    """The report of one search, and of its best model's mistakes."""
    weighed = importance.importances(d.space, [t.params for t in d.standing if t.over and t.outcome != "failed" and t.results])
    order = [one.parameter for one in weighed] + [name for name in d.space.searched if name not in {one.parameter for one in weighed}]
    sections = [
        Section("winner", "Winner", winner_blocks(d)),
        Section("mistakes", "Mistakes and suspected labels", mistake_blocks(found, d.winner.trial.number if d.winner else None)),
        Section("progress", "Best so far", [Row(progress_figures.progress([d])), *improvement_blocks(d)]),
        Section(
            "curves",
            "Learning curves",
            [Row([progress_figures.curves([d])])] if d.spent.epochs else [Text("No epoch has been trained yet.")],
        ),
        Section("importance", "Importance of parameters", importance_blocks({d.name: weighed})),
        Section("parallel", "Parallel coordinates", parallel_blocks(d, order)),
        Section("slices", "Slices", slice_blocks(d, order)),
        Section("front", f"{d.metric} against cost", cost_blocks(d)),
        Section(
            "survival", "Survival by rung and stratum", [Row([progress_figures.survival([d])]), survival_table([d]), *stopping_blocks(d)]
        ),
        Section("utilisation", "Utilisation and waste", utilisation_blocks(d)),
        Section("plan", "Plan against actual", plan_blocks(d)),
        Section("ends", "How trials ended", end_blocks(d)),
        Section("borders", "Parameters stuck at a border", border_blocks(d)),
        Section("next", "The next search file", next_file_blocks(d)),
    ]
    goal = f"{d.metric} to be made {'large' if d.spec.mode == 'max' else 'small'}"
    reason = f" ({d.state.reason})" if d.state.reason else ""
    lead = f"{counted(len(d.standing), 'trial')} of {d.wanted:,} begun, {goal}; the search is {d.state.word}{reason}."
    lead += f" Images: {d.images}." if d.images else ""
    return Page(f"{d.name}: report", lead, _figures(d), sections)


def of_two(a: Digest, b: Digest) -> Page:
    """The comparison of two searches over the same data.

    Raises: SearchError if their data, metric or mode differ.
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
    curves = Row([progress_figures.curves(both)]) if a.spent.epochs or b.spent.epochs else Text("No epoch has been trained yet.")
    sections = [
        Section("figures", "Key figures", [table]),
        Section("winners", "Winners", winners_blocks(a, b)),
        Section("progress", "Best so far", [Row(progress_figures.progress(both))]),
        Section("curves", "Learning curves", [curves]),
        Section("importance", "Importance of parameters", importance_blocks(weighed)),
        Section(
            "front",
            f"{a.metric} against cost",
            [Row(drawn)] if (drawn := progress_figures.costs(both)) else [Text("No trial has a value yet.")],
        ),
        Section(
            "survival",
            "Survival by rung and stratum",
            [Row([progress_figures.survival(both)]), survival_table(both), *stopping_blocks(a), *stopping_blocks(b)],
        ),
        Section("utilisation", "Utilisation and waste", [Row([progress_figures.busy(both)]), waste_table(both)]),
        Section("parameters", "What was searched", [range_table(a, b)]),
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
    rows = [
        (f"best {d.metric}", metric_text(d.winner.value) if d.winner else "none yet"),
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
    return rows
