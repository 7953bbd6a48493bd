"""The house: which room may import which, and where the heavy libraries live. The picture is here; the code is held against it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT, TESTS

from vit_search.config.data_sets import DATA_SETS
from vit_search.tracking.model_package import CODE

PACKAGE = ROOT / "vit_search"

BASE = {"errors", "files", "text", "stats", "seeds"}
ARROWS = {
    "errors": set(),
    "text": set(),
    "stats": set(),
    "seeds": set(),
    "files": {"errors"},
    "config": BASE,
    "runtime": BASE | {"config"},
    "data": BASE | {"config", "runtime"},
    "stopping": BASE | {"config", "ledger"},
    "planning": BASE | {"config", "data", "ledger", "stopping"},
    "vit": BASE | {"config", "data", "planning", "runtime"},
    "ledger": BASE | {"config"},
    "report": BASE | {"config", "data", "ledger", "planning", "stopping", "vit"},
    "tracking": BASE | {"config", "data", "ledger", "planning", "report", "runtime", "stopping", "vit"},
    "search": BASE | {"config", "data", "ledger", "planning", "report", "runtime", "stopping", "tracking", "vit"},
    "registry": BASE | {"config", "data", "planning", "runtime", "tracking", "vit"},
    "promotion": BASE | {"config", "data", "ledger", "planning", "registry", "report", "runtime", "search", "tracking", "vit"},
    "serving": BASE | {"config", "data", "registry", "runtime", "tracking", "vit"},
    "cluster": BASE | {"config", "data", "ledger", "runtime", "tracking"},
    "cli": None,  # everything; nobody imports it
    "__init__": {"config", "registry", "runtime", "search", "serving", "vit"},
}
HEAVY = {
    "torch": {"vit", "data", "runtime/machine.py", "search/trial.py", "tracking/model_package.py", "registry", "promotion", "serving"},
    "ray": {"search", "cluster", "runtime/ray_session.py", "runtime/ray_ports.py", "serving/server.py", "serving/replica.py"},
    "uvicorn": {"serving/server.py", "serving/listener.py"},
    "prometheus_client": {"serving/server.py", "serving/metrics.py"},
    "optuna": {"search/proposals", "report/importance.py"},
    "plotly": {"report/report.py"},
    "jinja2": {"report/page.py"},
    "mlflow": {"tracking", "registry", "promotion", "serving"},
    "onnx": set(),  # promotion/export.py imports all three inside a function, as an extra
    "onnxruntime": set(),
    "onnxscript": set(),
    "pydantic": {"config", "promotion/policy.py"},
    "huggingface_hub": {"data/hugging_face.py"},
    "typer": {"cli"},
    "tifffile": {"data/image_headers.py"},
    "imagecodecs": {"data/exact_images.py", "data/plain_png.py"},
    "rich": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_one_way(path):
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "vit_search" and len(parts) > 1 and parts[1] != room(path):
            allowed = ARROWS[room(path)]
            assert parts[1] != "cli" and (allowed is None or parts[1] in allowed), f"{room(path)} must not import {parts[1]}: {path}"


def test_there_are_no_cycles():
    left = {name: set(allowed) - {name} for name, allowed in ARROWS.items() if allowed is not None}
    while free := {name for name, allowed in left.items() if not allowed & left.keys()}:
        left = {name: allowed for name, allowed in left.items() if name not in free}
    assert not left, "each of these can be reached from itself"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_heavy_library_stays_in_its_rooms(path):
    inside = str(path.relative_to(PACKAGE))
    for name in imports(path):
        homes = HEAVY.get(name.split(".")[0])
        at_home = homes is None or any(inside == home or inside.startswith(f"{home}/") for home in homes)
        assert at_home, f"{inside} must not import {name}"


def test_every_room_says_what_it_is_for():
    for path in FILES:
        text = path.read_text()
        assert not text or (ast.get_docstring(ast.parse(text)) or "").strip(), path


def test_no_code_branches_on_the_name_of_a_data_set():
    """Names stand in the table of what is known of each, and in data/sources/; everything else asks the source."""
    for path in FILES:
        inside = str(path.relative_to(PACKAGE))
        if not inside.startswith("data/sources/") and inside != "config/data_sets.py":
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not constants & DATA_SETS.keys(), path


def test_a_model_is_sent_with_all_of_our_code_that_it_runs():
    left, sent = [PACKAGE / "tracking" / "model_package.py", PACKAGE / "__init__.py"], set()
    while left:
        path = left.pop()
        inside = path.relative_to(PACKAGE)
        assert any(str(inside) == name or inside.parts[0] == name for name in CODE), f"{inside} is not sent"
        sent.add(path)
        for node in ast.parse(path.read_text()).body:  # what is imported inside a function belongs to other commands
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vit_search"):
                folder = PACKAGE.joinpath(*node.module.split(".")[1:])
                found = {folder / "__init__.py", folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)}
                left += [other for other in found if other.is_file() and other not in sent]
    assert len(sent) > 20


def test_nothing_loads_a_pickle_or_runs_text():
    """But in the process of `convert-weights`, which takes tensors and plain values only."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                restricted = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                if called == "torch.load" and restricted and path == PACKAGE / "vit" / "pickled_weights.py":
                    continue
                assert called not in {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "cloudpickle.load"}, path
                assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) == "True" for k in node.keywords), path
                assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords), path


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import vit_search.cli", {"ray", "torch", "optuna", "mlflow", "pydantic", "plotly"}),
        (
            "from vit_search.ledger import file, search_state, searches; from vit_search.report import digest",
            {"ray", "torch", "optuna", "mlflow", "plotly"},
        ),
        ("from vit_search.report import report", {"ray", "torch", "mlflow", "jinja2"}),
        ("from vit_search.serving import server, endpoint, state", {"ray", "mlflow", "optuna", "pydantic"}),
        (
            "from vit_search.vit import model, training; from vit_search.data import cache",
            {"ray", "optuna", "mlflow", "pydantic", "safetensors"},
        ),
    ],
)
def test_a_room_does_not_pull_in_what_it_does_not_need(statement, absent):
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & absent


COMMANDS = {
    "--help": {"mlflow", "pandas"},
    "status nothing": {"mlflow", "pandas"},
    "resume nothing": {"mlflow", "pandas"},
    "extend nothing --trials 9": {"mlflow", "pandas"},
    "history digits": set(),
    "doctor": set(),
    "config digits@champion": set(),
    "predict --model digits@champion x.png": set(),
}
"""What people wait for, and what each must not import besides torch, torchvision, Ray and Optuna."""


@pytest.mark.parametrize(("words", "absent"), COMMANDS.items(), ids=COMMANDS)
def test_a_command_imports_nothing_heavy_that_it_does_not_need(words, absent, tmp_path, migrated):
    """Each ends with an error, or with nothing to tell, once it has asked an empty MLflow or looked for the search."""
    shutil.copy(migrated, tmp_path / "mlruns.db")
    (tmp_path / "x.png").touch()
    assert not loaded_by(words, tmp_path) & ({"torch", "torchvision", "ray", "optuna"} | absent)


@pytest.mark.parametrize(
    "words",
    [
        "history digits", "rollback digits --reason x", "config digits@champion", "serve digits@champion", "serve digits",
        "export digits@champion --format onnx", "export digits@champion --format onx",
        "predict --model digits@champion here.png", "predict --model digits@champion gone.png",
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_seconds_of_heavy_imports(words, tmp_path):
    (tmp_path / "here.png").touch()
    assert not loaded_by(words, tmp_path) & {"torch", "ray", "optuna", "mlflow", "pandas"}
    assert not (tmp_path / "mlruns.db").exists()


def loaded_by(words, tmp_path):
    """The modules that a command imports."""
    code = "import sys; from vit_search import cli\ntry: cli.main()\nfinally: print(*sys.modules, file=open('loaded', 'w'))"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    loaded = set((tmp_path / "loaded").read_text().split())
    assert "typer" in loaded
    return loaded


def test_classifying_imports_neither_mlflow_nor_torchs_compiler():
    code = "import sys; from vit_search.serving import prediction; from vit_search.data import batches"
    code += "; from vit_search.vit import checkpoint, augment, train_once"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(*sys.modules)"], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"mlflow", "ray", "optuna", "torchvision", "torch._dynamo", "pandas", "scipy"}


@pytest.mark.parametrize("room", ["registry.champion", "promotion.promote", "tracking.doctor", "tracking.mlflow_client"])
def test_no_room_starts_mlflows_telemetry(room):
    """MLflow decides when it is imported; in a test's environment it stays silent by itself, so that is taken away."""
    code = f"import vit_search.{room}; from mlflow.telemetry import get_telemetry_client; print(get_telemetry_client())"
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


OTHERS = {
    "os._exit",
    "aws._create_default_inbound_rules",
    "utils._artifact_repos_cache",
    "avoiding._kwargs",
    "v2.RandAugment()._AUGMENTATION_SPACE",
    "POLICIES[policy]._AUGMENTATION_SPACE",
    "POLICIES[policy]._apply_image_or_video_transform",
}
"""Private names of libraries that tests may touch, since there is no other way."""


def test_tests_take_helpers_from_their_folder_and_touch_no_private_name_of_ours():
    for path in [path for path in TESTS.rglob("*.py") if "benchmarks" not in path.parts]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("test_"), f"{path}: helpers stand in tests/helpers"
                ours = (node.module or "").startswith("vit_search")
                assert not (ours and any(alias.name.startswith("_") for alias in node.names)), path
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                whole = ast.unparse(node)
                assert whole.split(".")[0] in ("self", "cls") or whole in OTHERS, f"{path}:{node.lineno}: {whole}"
