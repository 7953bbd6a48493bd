"""Run docs/tutorials/quickstart.ipynb in a folder of its own, and store its outputs in it: `make notebook`."""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/tutorials/quickstart.ipynb"


def executed(folder):
    """The notebook with new outputs; what it writes lies in the folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    return client.execute()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        nbformat.write(executed(temporary), NOTEBOOK)
