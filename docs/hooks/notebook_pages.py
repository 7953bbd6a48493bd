"""A Jupyter notebook as a page: its text, its code, and the outputs that were stored with it. Nothing is run."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

PICTURES = {"image/svg+xml": "svg", "image/png": "png"}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class NotebookPage(File):
    """A page whose source is a notebook."""

    images: dict[str, bytes]

    @classmethod
    def of(cls, file: File, config: MkDocsConfig) -> NotebookPage:
        """The page of a notebook that mkdocs has found among the sources."""
        assert file.abs_src_path is not None
        name = Path(file.src_uri).stem
        text, images = as_markdown(Path(file.abs_src_path).read_text(encoding="utf-8"), name)
        page = cls(file.src_uri, src_dir=None, dest_dir=config.site_dir, use_directory_urls=config.use_directory_urls)
        page._content = text
        page.images = images
        return page

    def is_documentation_page(self) -> bool:
        """Mkdocs would take it for a file to be copied."""
        return True


def pictures(page: NotebookPage, config: MkDocsConfig) -> list[File]:
    """The files of a notebook's pictures."""
    folder = Path(page.src_uri).parent
    return [File.generated(config, (folder / name).as_posix(), content=content) for name, content in page.images.items()]


def as_markdown(text: str, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by the names that the Markdown links.

    Args:
        text: the notebook. name: what the pictures' names begin with.
    """
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip("\n")
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            parts += [_output(output, name, images) for output in cell["outputs"]]
    return "\n\n".join(part for part in parts if part) + "\n", images


def _output(output: dict[str, Any], name: str, images: dict[str, bytes]) -> str:
    """One output of a cell: a picture before a table, a table before text."""
    data = output.get("data", {})
    for kind, ending in PICTURES.items():
        if kind in data:
            file = f"{name}-{len(images) + 1}.{ending}"
            content = "".join(data[kind])
            images[file] = content.encode() if ending == "svg" else base64.b64decode(content)
            return f"![Figure {len(images)} of the notebook]({file})"
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        return "\n".join(line.strip() for line in table.splitlines() if line.strip())
    shown = "".join(output.get("text") or data.get("text/plain") or "")
    return f"```text\n{ESCAPES.sub('', shown).rstrip()}\n```" if shown.strip() else ""
