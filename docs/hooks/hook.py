"""What `mkdocs build` does besides turning Markdown into pages: it fills in what comes from code, and shows notebooks.

A line `<!-- generated: NAME -->` in a page is replaced by the Markdown of the generator of that name. A paragraph right below it says
where somebody who reads the file itself, as on GitHub, finds the same; the site leaves it out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import generated
from mkdocs.exceptions import PluginError
from notebook_pages import NotebookPage, pictures

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SHORT_CODE = re.compile(r"(?<!<pre>)<code>(?=[^<\n]{1,40}</code>)")
"""Code in a sentence that fits on a line of a phone."""

MARK = re.compile(r"^<!-- generated: (\w+) -->$(?:\n\S.*$)*", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig, **_: object) -> Files:
    """Notebooks are pages, and their pictures are files beside them."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            page = NotebookPage.of(file, config)
            files.append(page)
            for picture in pictures(page, config):
                files.append(picture)
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Each mark is replaced by what its generator gives."""
    return MARK.sub(lambda mark: _generate(mark[1]), markdown)


def on_page_content(html: str, **_: object) -> str:
    """Short code gets a class, so that no line ends inside it."""
    return SHORT_CODE.sub('<code class="short">', html)


def _generate(name: str) -> str:
    try:
        return generated.GENERATORS[name]()
    except KeyError:
        raise PluginError(
            f"<!-- generated: {name} -->: no generator of that name; choose from {', '.join(generated.GENERATORS)}."
        ) from None
