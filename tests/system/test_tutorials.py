"""The tutorials, the notebook and the Python guide, run as they stand; only their searches are made small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import timm
from helpers import servers
from helpers.notebook import executed
from helpers.pages import blocks, text
from helpers.paths import ROOT
from safetensors.torch import save_file

from vit_search.ledger.file import read_trials

SCRIPTS = Path(sys.executable).parent
LENIENT = "top: 1\nseeds: 1\nfloors: {linear_probe: false}\ncost_above_champion: null\nseed_sd: null\nallow_dirty: true\n"
"""A policy that the models of very small searches pass."""


def commands(page):
    """The lines of a tutorial that a person types, in their order."""
    return [line for block in blocks(page, "sh") for line in block.splitlines()]


def run(line, folder):
    """A line in a shell that finds vit-search."""
    around = os.environ | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", line], cwd=folder, env=around, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def smaller(text, **values):
    """A search file with other numbers."""
    for key, value in values.items():
        text, found = re.subn(rf"^{key}: \d+", f"{key}: {value}", text, flags=re.MULTILINE)
        assert found == 1, key
    return text


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of the first tutorial after its last command but `serve`, and what each command printed."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "search_spaces").mkdir()
    file = smaller((ROOT / "search_spaces/digits.yaml").read_text(), trials=3, epochs=5)
    (folder / "search_spaces/digits.yaml").write_text(file)
    (folder / "policy.yaml").write_text(LENIENT)
    (picture,) = blocks("docs/tutorials/digits.md", "python")
    run(f"python - <<'END'\n{picture}\nEND", folder)
    printed = {}
    for line in commands("docs/tutorials/digits.md"):
        if line.startswith("vit-search ") and "serve" not in line:
            line = line.replace("vit-search promote", "vit-search promote --policy policy.yaml")
            printed[line] = run(line, folder)
    return folder, printed


def test_the_commands_of_the_digits_tutorial_do_what_it_says(digits):
    folder, printed = digits
    out = {line.split()[1]: said for line, said in printed.items()}
    assert list(out) == ["lint", "plan", "run", "show", "report", "promote", "predict"]
    assert "3 of 3 trials" in out["run"]
    assert (folder / "searches/digits-1/report.html").stat().st_size > 1e6
    assert "digits version 1 is now champion" in out["promote"]
    assert re.search(r"^ digit\.png +\d +0\.\d+", out["predict"], re.MULTILINE)


def test_the_server_of_the_digits_tutorial_answers_its_curl_line(digits):
    folder, _ = digits
    (serve,) = (line for line in commands("docs/tutorials/digits.md") if "serve" in line)
    (curl,) = (line for line in commands("docs/tutorials/digits.md") if line.startswith("curl"))
    port = servers.free_port()
    command = [str(SCRIPTS / "vit-search"), *serve.replace("8000", str(port)).split()[1:]]
    process = servers.start(command, folder, port, health="readyz")
    try:
        (answer,) = json.loads(run(curl.replace("8000", str(port)), folder))["predictions"]
    finally:
        servers.end(process)
    (shown,) = (json.loads(block) for block in blocks("docs/tutorials/digits.md", "json"))
    assert set(answer) == set(shown["predictions"][0])
    assert answer["version"] == "digits/1"


def test_the_commands_of_the_photos_tutorial_do_what_it_says(tmp_path):
    page = "docs/tutorials/photos.md"
    (make,) = blocks(page, "python")
    run(f"python - <<'END'\n{make}\nEND", tmp_path)
    file, shown_policy = blocks(page, "yaml")
    (tmp_path / "photos.yaml").write_text(smaller(file, trials=2, epochs=2))
    (tmp_path / "policy.yaml").write_text(shown_policy.replace("floors: {worst_class: 0.8}\nseeds: 2", LENIENT.strip()))
    printed = {line.split()[1]: run(f"{line} 2>&1", tmp_path) for line in commands(page)}
    assert list(printed) == ["lint", "plan", "run", "report", "promote", "predict"]
    for command, kind in (("lint", "hint"), ("run", "note")):
        (note,) = (block for block in blocks(page, "text") if f"{kind}: photos.yaml" in block and "model.pretrained" in block)
        (line,) = (line for line in printed[command].splitlines() if "model.pretrained" in line)
        assert line in " ".join(note.split())
    assert "photos version 1 is now champion" in printed["promote"]
    assert (tmp_path / "photos-next.yaml").is_file()


def test_the_examples_of_the_python_guide_run_one_after_another(tmp_path):
    """With one search; its result is the one that the examples print."""
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path / "vit_small.safetensors")
    code = "\n".join(blocks("docs/guides/python.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing.yaml: cannot be read" in done.stdout
    assert "(3, 10)" in done.stdout


def test_what_the_python_guide_says_of_a_promoted_model(digits, monkeypatch):
    folder, printed = digits
    monkeypatch.chdir(folder)
    (shown,) = (block for block in blocks("docs/guides/python.md", "text") if "digits@champion" in block)
    code = shown.replace("digits/3", "digits/1").replace('device="cuda"', 'device="cpu"')
    code += "\nprediction = model.predict(['digit.png'])[0]; print(prediction.label, f'{prediction.probability:.3f}')"
    said = run(f"python - <<'END'\n{code}\nEND", folder).split()
    row = next(line for line in printed["vit-search predict --model digits@champion digit.png"].splitlines() if "digit.png" in line)
    assert said == row.split()[1:]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook, run in a Jupyter kernel."""
    return executed(tmp_path_factory.mktemp("notebook"))


def outputs(notebook):
    """The kinds of output that each cell of code has."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted({kind for output in cell.outputs for kind in output.get("data", {output.output_type: 0})}) for cell in cells]


def test_the_notebook_runs_and_shows_what_is_stored_with_it(notebook):
    stored = nbformat.reads(text("docs/tutorials/quickstart.ipynb"), as_version=4)
    nbformat.validate(stored)
    assert outputs(notebook) == outputs(stored)
    shown = [kind for kinds in outputs(stored) for kind in kinds]
    assert shown.count("image/png") == 3
    assert "text/html" in shown


def test_the_readme_s_python_example_runs(tmp_path):
    (code,) = blocks("README.md", "python")
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    number, value, _ = done.stdout.strip().splitlines()[-1].split(maxsplit=2)
    trials = {t.number: t for t in read_trials(tmp_path / "searches/digits-1/ledger.jsonl")}
    assert len(trials) == 2
    assert float(value) == trials[int(number)].value("val_accuracy")
