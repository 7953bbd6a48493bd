"""A registered model as a file for other programs: it gives the model's own logits, or it is not handed out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.commands import vit_search
from torch import nn

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.errors import PromotionError
from vit_search.promotion import export
from vit_search.tracking import model_package
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import augment, checkpoint, evaluation, training

IMAGES = np.random.default_rng(7).integers(0, 256, (11, 8, 12, 3), np.uint8)
VARIANTS = {
    "default": {},
    "class token": {"pool": "cls", "positions": "sincos2d"},
    "post norm": {"norm": "post", "activation": "relu", "layer_scale": 0.1, "qkv_bias": False, "dim_head": 5},
}


def trained(folder, **fields):
    """A checkpoint of a model of RGB images that are wider than high, one channel of which never changed."""
    model = {"image_size": (8, 12), "in_channels": 3, "num_classes": 2, "patch_size": 4, "dim": 16, "heads": 2, "depth": 2} | fields
    config = TrialConfig(data=DataConfig(name="digits"), model=ModelConfig(**model), training=TrainingConfig(epochs=1), seed=2)
    state = training.start(config, evaluation.Normalisation.of((0.4, 0.5, 0.6), (0.2, 0.3, 0.0)))
    checkpoint.save(folder, state, classes=("cat", "Hündin"), data_hash="h")
    return checkpoint.load_model(folder)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A folder with mlruns.db, in which version 1 of `pets` is champion, and its checkpoint."""
    home = tmp_path_factory.mktemp("registry")
    trained(home / "checkpoint", dropout=0.1)
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    run = client.create_run(client.create_experiment("pets", artifact_location=(home / "artifacts").as_uri())).info.run_id
    client.set_terminated(run)
    uri = log_model(home / "checkpoint", run_id=run)
    client.create_registered_model("pets")
    client.create_model_version("pets", uri, model_id=uri.rpartition("/")[2])
    client.set_registered_model_alias("pets", "champion", "1")
    return home


def logits(served, images=IMAGES):
    """Straight from the trained model."""
    with torch.inference_mode():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        return served.model(augment.normalise(pixels, served.normalisation.mean, served.normalisation.std)).numpy()


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("format", ["safetensors", "pt2", "onnx"])
def test_every_format_gives_the_model_s_logits_for_any_batch(fields, format, tmp_path):
    served = trained(tmp_path / "checkpoint", **fields)
    told = export.write(served, tmp_path / "out" / "model", format, folder=tmp_path / "checkpoint")
    ask = export.reader(tmp_path / "out" / "model", format)
    assert told <= 1e-5
    for batch in (1, 3, 11):
        given = ask(IMAGES[:batch])
        assert (given.dtype, given.shape) == (np.float32, (batch, 2))
        assert np.abs(given - logits(served, IMAGES[:batch])).max() <= 1e-5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]  # nothing temporary is left


def test_the_command_writes_each_format_and_says_how_near_it_is(registry, tmp_path):
    uri = f"sqlite:///{registry / 'mlruns.db'}"
    for format, model, name in (
        ("safetensors", "pets@champion", "pets-1"),
        ("pt2", "pets/1", "pets-1.pt2"),
        ("onnx", "models:/pets@champion", "pets-1.onnx"),
    ):
        done = vit_search(tmp_path, "export", model, "--format", format, "--tracking-uri", uri, code=None)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{name}: pets version 1\nits logits differ from the model's own by at most ")
        assert done.stdout.endswith("in batches of 1 and 8 (1e-04 is allowed)\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets-1", "pets-1.onnx", "pets-1.pt2"]
    assert (tmp_path / "pets-1/model.safetensors").read_bytes() == (registry / "checkpoint/model.safetensors").read_bytes()
    assert sorted(path.name for path in (tmp_path / "pets-1").iterdir()) == ["config.json", "export.json", "model.safetensors"]
    assert (logits(checkpoint.load_model(tmp_path / "pets-1")) == logits(checkpoint.load_model(registry / "checkpoint"))).all()


def test_the_facts_are_in_every_format(registry, tmp_path):
    uri = f"sqlite:///{registry / 'mlruns.db'}"
    for format in export.FORMATS:
        export.export("pets@champion", format, tmp_path / format, tracking_uri=uri)
    found = {"pt2": {"export.json": ""}}
    torch.export.load(tmp_path / "pt2", extra_files=found["pt2"])
    beside = json.loads((tmp_path / "safetensors/export.json").read_text())
    assert json.loads(found["pt2"]["export.json"]) == beside
    inside = {entry.key: entry.value for entry in onnx.load(tmp_path / "onnx").metadata_props}
    assert {key: value if isinstance(value, str) else json.dumps(value) for key, value in beside.items()}.items() <= inside.items()
    assert beside["classes"] == ["cat", "Hündin"]
    assert (beside["image_size"], beside["channels"], beside["version"]) == ([8, 12], 3, "pets/1")
    assert beside["mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert beside["std"] == pytest.approx([0.2, 0.3, 1.0])  # a channel that never changes is divided by 1
    assert beside["weights_sha256"] == json.loads((registry / "checkpoint/config.json").read_text())["sha256"]["model.safetensors"]


STRANGER = """
import sys, numpy, onnxruntime, torch
images = numpy.load("images.npy")
session = onnxruntime.InferenceSession("pets.onnx", providers=["CPUExecutionProvider"])
numpy.save("onnx.npy", session.run(None, {"images": images})[0])
numpy.save("pt2.npy", torch.export.load("pets.pt2").module()(torch.from_numpy(images)).detach())
print(*{"vit_search", "einops", "mlflow"} & set(sys.modules))
"""


def test_a_program_without_our_code_reads_both_files(registry, tmp_path):
    served = checkpoint.load_model(registry / "checkpoint")
    export.write(served, tmp_path / "pets.pt2", "pt2")
    export.write(served, tmp_path / "pets.onnx", "onnx")
    np.save(tmp_path / "images.npy", IMAGES)
    environment = {**os.environ, "PYTHONPATH": "", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", STRANGER], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    for name in ("onnx.npy", "pt2.npy"):
        assert np.abs(np.load(tmp_path / name) - logits(served)).max() <= 1e-5


def test_the_onnx_file_is_of_the_opset_stated_and_takes_bytes(registry, tmp_path):
    export.write(checkpoint.load_model(registry / "checkpoint"), tmp_path / "m.onnx", "onnx")
    assert [one.version for one in onnx.load(tmp_path / "m.onnx").opset_import if one.domain == ""] == [18] == [export.OPSET]
    (images,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [8, 12, 3])
    assert isinstance(images.shape[0], str)  # any batch


class _Shifted(nn.Module):
    """What an exporter gone wrong would write: logits that are off by so much."""

    def __init__(self, served, by):
        super().__init__()
        self.right, self.by = model_package.RawPixels(served), by

    def forward(self, images):
        return self.right(images) + self.by


def _program(module, batch):
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}} if batch is None else None
    with torch.no_grad():
        return torch.export.export(module.eval(), (torch.zeros(batch or 2, 8, 12, 3, dtype=torch.uint8),), dynamic_shapes=shapes)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize(
    ("by", "batch", "said"),
    [(2e-4, None, "2.0e-04"), (float("nan"), None, "nan"), (0.0, 1, "inf")],
    ids=["other numbers", "NaN", "one image alone"],
)
def test_a_file_that_disagrees_is_not_handed_out(format, by, batch, said, registry, tmp_path, monkeypatch):
    served = checkpoint.load_model(registry / "checkpoint")
    monkeypatch.setattr(model_package, "exported", lambda served: _program(_Shifted(served, by), batch))
    with pytest.raises(PromotionError, match=rf"model: the {format} export differs from the model by {said} where 1e-04 is allowed"):
        export.write(served, tmp_path / "out" / "model", format)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("by", [0.9e-4, 1.1e-4])
def test_the_tolerance_is_one_in_ten_thousand(by, registry, tmp_path, monkeypatch):
    served = checkpoint.load_model(registry / "checkpoint")
    monkeypatch.setattr(model_package, "exported", lambda served: _program(_Shifted(served, by), None))
    if by < 1e-4:
        assert export.write(served, tmp_path / "m.pt2", "pt2") == pytest.approx(by, abs=1e-6)
    else:
        with pytest.raises(PromotionError, match="differs"):
            export.write(served, tmp_path / "m.pt2", "pt2")


@pytest.mark.parametrize("format", ["safetensors", "pt2", "onnx"])
def test_nothing_that_is_there_is_written_over(format, registry, tmp_path):
    (tmp_path / "mine").write_text("years of work")
    with pytest.raises(PromotionError, match="mine: is there already; name another place with --output"):
        export.export("pets@champion", format, tmp_path / "mine", tracking_uri=f"sqlite:///{registry / 'mlruns.db'}")
    assert (tmp_path / "mine").read_text() == "years of work"


def test_an_archive_that_this_process_has_not_written_is_not_read(registry, tmp_path):
    served = checkpoint.load_model(registry / "checkpoint")
    export.write(served, tmp_path / "m.pt2", "pt2")
    export.reader(tmp_path / "m.pt2", "pt2")
    torch.export.save(model_package.exported(served), tmp_path / "other.pt2")
    with pytest.raises(PromotionError, match="not written by this process, and an archive may hold code; export it again"):
        export.reader(tmp_path / "other.pt2", "pt2")


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_extra_is_one_line_with_its_mend(missing, registry, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # what an import of it then finds
    with pytest.raises(PromotionError, match=rf"onnx needs the library {missing}: pip install 'vit_search\[onnx\]'\."):
        export.write(checkpoint.load_model(registry / "checkpoint"), tmp_path / "m.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


MISTAKES = {
    "no version named": ("pets", "pt2", "out", "pets: names no version; write pets@champion, or pets/1 for one version."),
    "no such alias": ("pets@chief", "pt2", "out", "pets@chief: pets has no alias chief; choose from champion."),
    "no such version": ("pets/9", "pt2", "out", "pets/9: pets has no version 9; there are 1"),
    "no such format": ("pets@champion", "onyx", "out", "--format onyx: unknown; did you mean onnx?"),
    "a file for a folder": ("pets/1", "pt2", "mlruns.db/x", "mlruns.db/x: cannot be written (File exists); name another place"),
}


@pytest.mark.parametrize(("model", "format", "path", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_with_its_mend(model, format, path, said, registry, monkeypatch):
    monkeypatch.chdir(registry)
    with pytest.raises(PromotionError) as refused:
        export.export(model, format, Path(path))
    assert str(refused.value).startswith(said)
    assert len(str(refused.value).splitlines()) == 1


def test_the_command_tells_a_mistake_in_one_line_and_exits_with_2(registry):
    done = vit_search(registry, "export", "pets@chief", "--format", "pt2", code=None)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: pets@chief: pets has no alias chief")
    assert done.stderr.count("\n") == 1


def test_weights_other_than_the_registered_ones_are_not_exported(registry, tmp_path):
    client = client_for(f"sqlite:///{registry / 'mlruns.db'}")
    uri = client.get_model_version("pets", "1").source
    version = client.create_model_version("pets", uri, model_id=uri.rpartition("/")[2], tags={"weights_sha256": "0" * 64}).version
    with pytest.raises(PromotionError, match=r"pets: version \d+ holds other weights than were registered"):
        export.export(f"pets/{version}", "safetensors", tmp_path / "out", tracking_uri=mlflow.get_tracking_uri())
    client.delete_model_version("pets", version)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_all_exported_files_follow_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        served = trained(tmp_path / "checkpoint")
        for format in export.FORMATS:
            export.write(served, tmp_path / f"model.{format}", format, folder=tmp_path / "checkpoint")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 + 3 + 2  # the checkpoint, the folder of safetensors, and two files
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_a_private_checkpoint_of_an_earlier_version_is_exported_as_the_umask_says(tmp_path):
    served = trained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").chmod(0o600)
    export.write(served, tmp_path / "out", "safetensors", folder=tmp_path / "checkpoint")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
