"""How a report is written down: blocks of text, tables and pictures, as one HTML page that loads nothing, and as Markdown."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vit_search.report.figures import Picture
from vit_search.text import code_block, plain
from vit_search.text import markdown as escape_markdown


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text below a head; columns whose name ends in `>` are set to the right, the first is a row's own name."""

    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """A file to copy."""

    text: str


@dataclass(frozen=True)
class Row:
    """Pictures that stand side by side where there is room."""

    pictures: Sequence[Picture]


Block = Text | Table | Code | Row


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report, however it is written down."""

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    """The key figures: (name, value)."""
    sections: Sequence[Section]


def markdown(page: Page) -> str:
    """For a terminal; pictures are named and left to the page, tables hold their numbers."""
    parts = [f"# {escape_markdown(page.title)}", escape_markdown(page.lead)]
    if page.figures:
        parts.append("\n".join(f"- {escape_markdown(name)}: **{escape_markdown(value)}**" for name, value in page.figures))
    for section in page.sections:
        parts.append(f"## {escape_markdown(section.title)}")
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(escape_markdown(block.text))
            elif isinstance(block, Table):
                parts += [escape_markdown(block.caption)] if block.caption else []
                lines = [
                    [escape_markdown(name.removesuffix(">")) for name in block.head],
                    ["--:" if name.endswith(">") else ":--" for name in block.head],
                ]
                lines += [[escape_markdown(cell) for cell in row] for row in block.rows]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            elif isinstance(block, Code):
                parts.append(code_block(block.text, "yaml"))
            else:
                parts.append("On the page: " + " ".join(escape_markdown(picture.alt) for picture in block.pictures))
    return "\n\n".join(parts) + "\n"


def render(page: Page, plotly_js: str) -> str:
    """One self-contained page.

    Args:
        plotly_js: the library's source, which the page carries.
    """
    drawn: list[Picture] = []
    body = []
    for section in page.sections:
        inside = "\n".join(_block(block, drawn) for block in section.blocks)
        body.append(
            f'<section id="{section.key}" aria-labelledby="{section.key}-h">'
            f'<h2 id="{section.key}-h">{_escaped(section.title)}</h2>\n{inside}</section>'
        )
    contents = "".join(f'<li><a href="#{section.key}">{_escaped(section.title)}</a></li>' for section in page.sections)
    figures = "".join(f"<div><dt>{_escaped(name)}</dt><dd>{_escaped(value)}</dd></div>" for name, value in page.figures)
    told = json.dumps([{"data": p.data, "layout": p.layout} for p in drawn], separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<title>{_escaped(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">to the content</a>
<header><h1>{_escaped(page.title)}</h1><p>{_escaped(page.lead)}</p><dl class="figures">{figures}</dl></header>
<div class="columns">
<nav aria-label="contents"><ol>{contents}</ol></nav>
<main id="main">
<noscript><p>Pictures need JavaScript; the tables hold the numbers.</p></noscript>
{chr(10).join(body)}
</main>
</div>
<script type="application/json" id="told">{told}</script>
<script>{plotly_js}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _block(block: Block, drawn: list[Picture]) -> str:
    if isinstance(block, Text):
        return f"<p>{_escaped(block.text)}</p>"
    if isinstance(block, Code):
        return f'<pre tabindex="0"><code>{_escaped(block.text)}</code></pre>'
    if isinstance(block, Table):
        return _table(block)
    parts = []
    for picture in block.pictures:
        parts.append(
            f'<figure><figcaption>{_escaped(picture.title)}</figcaption><div class="picture{" broad" * picture.broad}" '
            f'role="img" aria-label="{_escaped(picture.alt)}" data-picture="{len(drawn)}" style="height:{picture.height}px"></div>'
            + (f'<p class="note">{_escaped(picture.note)}</p>' if picture.note else "")
            + "</figure>"
        )
        drawn.append(picture)
    alone = all(picture.wide for picture in block.pictures)
    return f'<div class="{"alone" if alone else "row"}">{"".join(parts)}</div>'


def _table(table: Table) -> str:
    right = [name.endswith(">") for name in table.head]
    head = "".join(f'<th scope="col"{_right(r)}>{_escaped(name.removesuffix(">"))}</th>' for name, r in zip(table.head, right, strict=True))
    rows = "".join("<tr>" + "".join(_cells(row, right)) + "</tr>" for row in table.rows)
    caption = f"<caption>{_escaped(table.caption)}</caption>" if table.caption else ""
    return f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(row: Sequence[str], right: Sequence[bool]) -> Iterable[str]:
    for i, (cell, r) in enumerate(zip(row, right, strict=True)):
        yield f'<th scope="row"{_right(r)}>{_escaped(cell)}</th>' if i == 0 else f"<td{_right(r)}>{_escaped(cell)}</td>"


def _right(right: bool) -> str:
    return ' class="r"' if right else ""


def _escaped(text: str) -> str:
    return html.escape(plain(text))


POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What the page may do: nothing that leaves it."""

STYLE = """
:root { --page: #ffffff; --panel: #f5f6f8; --text: #1b1f24; --muted: #5b6570; --rule: #d8dde3;
 --link: #0058a3; --veil: rgba(255,255,255,.75);
 --completed: #0072b2; --stopped: #7d7365; --diverged: #d55e00; --failed: #b5518f; --interrupted: #8a6d00; --running: #00805d;
 --best: #c25500; --a: #0072b2; --b: #c25500; }
@media (prefers-color-scheme: dark) { :root:not(.light) { --page: #14171b; --panel: #1d2228; --text: #e6e9ec; --muted: #a3adb8;
 --rule: #38404a; --link: #7cc0f5; --veil: rgba(20,23,27,.75); --completed: #56b4e9; --stopped: #b3a999;
 --diverged: #ff8a3d; --failed: #e39ac6; --interrupted: #e6c84f; --running: #2fc795; --best: #f0a030; --a: #56b4e9; --b: #f0a030; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
a { color: var(--link); }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; }
header { padding: 1.5rem max(1rem, calc((100vw - 1320px) / 2)) 1rem; background: var(--panel); border-bottom: 1px solid var(--rule); }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.2rem; }
header p { margin: .3rem 0 1rem; max-width: 80ch; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem 1.2rem; margin: 0; }
.figures dt { color: var(--muted); font-size: .8rem; }
.figures dd { margin: 0; font-size: 1.1rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.columns { display: grid; grid-template-columns: 12.5rem minmax(0, 1fr); gap: 2rem; max-width: 1320px;
 margin: 0 auto; padding: 0 1rem 4rem; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding-top: 2.2rem; font-size: .9rem; }
nav ol { list-style: none; margin: 0; padding: 0; } nav li { margin: .3rem 0; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
section > p { max-width: 85ch; }
figure { margin: .6rem 0; padding: .6rem; border: 1px solid var(--rule); border-radius: 6px; min-width: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .9rem; } .note { margin: .2rem 0 0; color: var(--muted); font-size: .85rem; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .8rem; } .row figure { margin: 0; }
figure:has(.broad) { overflow-x: auto; } .broad { min-width: 42rem; }
.scroll { overflow-x: auto; margin: .8rem 0; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: .2rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; } .r { text-align: right; white-space: nowrap; }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: .8rem; overflow-x: auto;
 font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
@media (max-width: 800px) { .columns { display: block; } .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
 nav { background: var(--page); border-bottom: 1px solid var(--rule); padding: .5rem 0; z-index: 5; overflow-x: auto; }
 nav ol { display: flex; gap: 1rem; white-space: nowrap; } html { scroll-padding-top: 3.5rem; } figure { padding: .3rem; } }
@media print { nav, .skip { display: none; } .columns { display: block; } pre { white-space: pre-wrap; } }
"""
"""Okabe and Ito's colours, darker on white and lighter on black where theirs would not be read; widths from a phone up."""

SCRIPT = """
(() => {
  const told = JSON.parse(document.getElementById('told').textContent);
  const places = [...document.querySelectorAll('.picture')];
  const drawn = new Set();
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
  const dyed = value => Array.isArray(value) ? value.map(dyed)
    : value && typeof value === 'object' ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, dyed(one)]))
    : typeof value === 'string' && /^[$][a-z]+$/.test(value) ? colour(value.slice(1)) : value;
  const axis = () => ({gridcolor: colour('rule'), linecolor: colour('rule'), zeroline: false, automargin: true, title: {standoff: 8}});
  const draw = place => {
    const {data, layout} = told[+place.dataset.picture];
    const narrow = place.clientWidth < 480;
    const base = {font: {color: colour('text'), size: narrow ? 11 : 12, family: getComputedStyle(document.body).fontFamily},
      paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', xaxis: axis(), yaxis: axis(),
      legend: {orientation: 'h', yanchor: 'bottom', y: 1.02, x: 0, xanchor: 'left'},
      hoverlabel: {bgcolor: colour('panel'), bordercolor: colour('rule'), font: {color: colour('text')}}};
    const whole = {...dyed(layout), template: {layout: base}, autosize: true, height: place.clientHeight};
    whole.margin = {l: 50, r: 16, t: 36, b: 44, ...(layout.margin || {})};
    Plotly.react(place, dyed(data), whole, {responsive: true, displaylogo: false, displayModeBar: narrow ? false : 'hover',
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'], plotlyServerURL: ''});
    drawn.add(place);
  };
  const seen = new IntersectionObserver(entries => entries.forEach(entry => {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }), {rootMargin: '600px'});
  places.forEach(place => seen.observe(place));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawn.forEach(draw));
  addEventListener('beforeprint', () => { document.documentElement.classList.add('light'); places.forEach(draw); });
  addEventListener('afterprint', () => { document.documentElement.classList.remove('light'); drawn.forEach(draw); });
})();
"""
"""Draws a picture when it comes near the screen, in the colours of the page, and anew when those change or it is printed."""
