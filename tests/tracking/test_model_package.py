"""The model as MLflow serves it: any images in, labels out, to the bit what was trained, without pickle."""

import ast
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import servers
from helpers.paths import ROOT
from mlflow.exceptions import MlflowException
from PIL import Image

from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare, read_split
from vit_search.data.decode import read_image
from vit_search.serving import prediction
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import augment, checkpoint, evaluation, training

GUIDE = (ROOT / "docs/guides/mlflow.md").read_text()
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
RNG = np.random.default_rng(0)
PHOTO = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 9, 3), np.uint8)).resize((41, 30), Image.Resampling.BICUBIC))
"""RGB, 30 high and 41 wide: neither the size nor the channels that the model was trained on."""


def file(pixels, kind="PNG"):
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, kind)
    return raw.getvalue()


def text(raw):
    return base64.b64encode(raw).decode()


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A tiny model of the digits, logged with its archive and registered: its folder, tracking URI and model URI."""
    folder = tmp_path_factory.mktemp("package")
    config = TrialConfig(
        data=DataConfig(name="digits", train_limit=200),
        model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=16, heads=2, depth=2, dropout=0.1),
        training=TrainingConfig(epochs=2, batch_size=32, lr=3e-3),
        seed=1,
    )
    data = prepare(config.data)
    state = training.start(config, evaluation.Normalisation.of(data.mean, data.std))
    list(training.fit(state, load_split(data, "train"), load_split(data, "val")))
    checkpoint.save(folder / "checkpoint", state, classes=data.classes, data_hash=data.data_hash)
    tracking_uri = f"sqlite:///{folder / 'mlruns.db'}"
    client = client_for(tracking_uri)
    run = client.create_run(client.create_experiment("digits", artifact_location=(folder / "artifacts").as_uri())).info.run_id
    client.set_terminated(run)
    uri = log_model(folder / "checkpoint", run_id=run, pt2=True)
    return folder, tracking_uri, uri


@pytest.fixture(scope="module")
def registered(logged):
    _, tracking_uri, uri = logged
    client = client_for(tracking_uri)
    client.create_registered_model("digits")
    for alias in ("previous", "champion"):  # one model, registered twice
        version = client.create_model_version("digits", uri, model_id=uri.rpartition("/")[2]).version
        client.set_registered_model_alias("digits", alias, version)
    return "models:/digits@champion"


@pytest.fixture(scope="module")
def model(logged):
    client_for(logged[1])
    return mlflow.pyfunc.load_model(logged[2])


@pytest.fixture(scope="module")
def served(logged):
    return checkpoint.load_model(logged[0] / "checkpoint")


@pytest.fixture(scope="module")
def val():
    """Images as they lie in the data set: (n, 1, 8, 8)."""
    images, _ = read_split(prepare(DataConfig(name="digits", train_limit=200)), "val")
    return np.ascontiguousarray(images)


def chances(served, images):
    """The trained model's probabilities, straight from its logits."""
    with torch.inference_mode():
        logits = served.model(augment.normalise(torch.tensor(images), served.normalisation.mean, served.normalisation.std))
    return logits.softmax(-1).double().numpy()


def given(rows):
    return rows[[f"p_{name}" for name in "0123456789"]].to_numpy()


def folder_of(uri):
    return Path(mlflow.artifacts.download_artifacts(uri))


def test_pixels_of_the_trained_size_give_the_trained_model_s_numbers_to_the_bit(model, served, val):
    rows = model.predict(val[:100].transpose(0, 2, 3, 1))
    expected = chances(served, val[:100])
    assert (given(rows) == expected).all()
    assert list(rows["label"]) == [served.classes[i] for i in expected.argmax(1)]
    assert (rows["probability"] == expected.max(1)).all()


def test_a_file_its_base64_and_its_pixels_give_the_numbers_that_predict_gives(model, served):
    expected = chances(served, read_image(file(PHOTO), (8, 8), 1)[None])
    encoded = text(file(PHOTO))
    for form in (
        PHOTO[None],
        pd.DataFrame({"image": [encoded]}),
        pd.DataFrame({"id": [7], "image": [encoded]}),
        pd.DataFrame({"image": [file(PHOTO)]}),
        pd.DataFrame({"image": ["\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))]}),
        pd.Series([encoded], name="image"),
        np.array([encoded]),
        np.array([encoded], object),
        np.array([file(PHOTO)], object),
        {"image": np.array([encoded])},
        PHOTO[None].astype(int),
    ):
        assert (given(model.predict(form)) == expected).all(), form


def test_vit_search_predict_gives_the_same(model, logged, registered, tmp_path):
    (tmp_path / "photo.png").write_bytes(file(PHOTO))
    (tmp_path / "grey.jpeg").write_bytes(file(PHOTO[..., 0], "JPEG"))
    paths = [tmp_path / "photo.png", tmp_path / "grey.jpeg"]
    rows = model.predict(pd.DataFrame({"image": [path.read_bytes() for path in paths]}))
    told = prediction.predict(registered, paths, tracking_uri=logged[1])
    assert [(p.label, p.probability) for p in told] == list(zip(rows["label"], rows["probability"], strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("pixels", [PHOTO, PHOTO[..., 0]], ids=["RGB", "grey"])
def test_files_of_each_kind_and_their_decoded_pixels_are_one(model, kind, pixels):
    raw = file(pixels, kind)
    decoded = np.asarray(Image.open(io.BytesIO(raw)))
    decoded = decoded[..., None] if decoded.ndim == 2 else decoded
    by_pixels = model.predict(decoded[None])
    assert (given(by_pixels) == given(model.predict(pd.DataFrame({"image": [text(raw)]})))).all()


@pytest.fixture(scope="module")
def wide(logged):
    """An RGB model of images that are wider than high, with a class token: the checkpoint and the logged model's URI."""
    folder, tracking_uri, _ = logged
    config = TrialConfig(
        data=DataConfig(name="digits"),
        model=ModelConfig(image_size=(8, 12), in_channels=3, num_classes=2, patch_size=4, dim=16, heads=2, depth=2, pool="cls"),
        training=TrainingConfig(epochs=1),
        seed=2,
    )
    state = training.start(config, evaluation.Normalisation.of((0.4, 0.5, 0.6), (0.2, 0.3, 0.0)))
    checkpoint.save(folder / "wide", state, classes=("cat", "dog"), data_hash="h")
    client = client_for(tracking_uri)
    run = client.create_run(client.get_experiment_by_name("digits").experiment_id).info.run_id
    return checkpoint.load_model(folder / "wide"), log_model(folder / "wide", run_id=run, pt2=True)


def test_an_rgb_model_that_is_wider_than_high_takes_all_of_it_too(wide):
    trained, uri = wide
    model = mlflow.pyfunc.load_model(uri)
    pixels = RNG.integers(0, 256, (5, 8, 12, 3), np.uint8)
    expected = chances(trained, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    files = pd.DataFrame({"image": [text(file(image)) for image in pixels]})
    assert (model.predict(pixels)[["p_cat", "p_dog"]].to_numpy() == expected).all()
    assert (model.predict(files)[["p_cat", "p_dog"]].to_numpy() == expected).all()
    grey = model.predict(PHOTO[None, ..., :1])
    assert (grey["p_cat"] == chances(trained, read_image(file(PHOTO[..., 0]), (8, 12), 3)[None])[:, 0]).all()


def test_the_archive_gives_the_eager_logits_for_any_batch(wide):
    trained, uri = wide
    program = torch.export.load(folder_of(uri) / "artifacts/model.pt2").module()
    for batch in (1, 2, 7):
        pixels = torch.tensor(RNG.integers(0, 256, (batch, 8, 12, 3), np.uint8))
        normalised = augment.normalise(pixels.permute(0, 3, 1, 2), trained.normalisation.mean, trained.normalisation.std)
        assert torch.allclose(program(pixels), trained.model(normalised), atol=1e-5)


def test_images_of_one_call_may_differ_in_size(model):
    one, other = PHOTO, PHOTO[5:20, 3:10, :1]
    both = np.empty(2, object)
    both[:] = [one, other]
    rows = given(model.predict(both))
    assert np.allclose(rows[0], given(model.predict(one[None]))[0], atol=1e-6)
    assert np.allclose(rows[1], given(model.predict(other[None]))[0], atol=1e-6)


def test_many_rows_are_taken_in_batches_of_bounded_size(model, served, val, monkeypatch):
    sizes = []
    inside = model.unwrap_python_model().served.model
    hook = inside.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        rows = model.predict(np.concatenate([val, val])[:300].transpose(0, 2, 3, 1))
    finally:
        hook.remove()
    assert sizes == [128, 128, 44]
    assert np.allclose(given(rows), chances(served, np.concatenate([val, val])[:300]), atol=1e-6)


HEADER = b"IHDR" + (30_000).to_bytes(4, "big") + (3_000).to_bytes(4, "big") + file(PHOTO)[24:29]
BOMB = file(PHOTO)[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + file(PHOTO)[33:]
"""A PNG whose header says 90 million pixels."""

BAD = {
    "no batch axis": (PHOTO, "an array of 3 axes; give pixels as .batch, height, width, channels."),
    "floats": (PHOTO[None] / 255, "row 0: values of type float64; give uint8 pixels, 0 to 255"),
    "truth values": (PHOTO[None] > 7, "row 0: values of type bool; give uint8 pixels"),
    "too bright": (PHOTO[None].astype(int) + 200, "row 0: pixels from 2[0-9]{2} to [34][0-9]{2}; give 0 to 255"),
    "four channels": (np.zeros((1, 8, 8, 4), np.uint8), "row 0: shape .8, 8, 4.; give .height, width, channels. with 1 channel"),
    "no height": (np.zeros((1, 0, 8, 3), np.uint8), "row 0: shape .0, 8, 3.; give"),
    "empty batch": (np.zeros((0, 8, 8, 3), np.uint8), "no image: the batch is empty; give at least one"),
    "no base64": (
        np.array(["Grüße"]),
        "row 0: text that is not base64 .*; this model takes grey and colour images, .* in base64",
    ),
    "no image": (np.array([text(b"hello")]), "row 0: no image that can be decoded .of no known format."),
    "truncated": (np.array([text(file(PHOTO)), text(file(PHOTO)[:900])]), "row 1: no image that can be decoded .*truncated"),
    "bomb": (np.array([text(BOMB)]), "row 0: 30000x3000 pixels; give an image of at most 25,000,000"),
    "a name": (np.array([None], object), "row 0: nothing; give uint8 pixels"),
    "other column": (pd.DataFrame({"picture": ["x"]}), "missing inputs"),
    "no rows": (pd.DataFrame({"image": []}), "schema"),
    "list": (["x"], "missing inputs"),
}


@pytest.mark.parametrize(("form", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_as_the_caller_s_mistake(model, form, said):
    with pytest.raises(MlflowException, match=said) as refused:
        model.predict(form)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    assert refused.value.get_http_status_code() == 400


def test_any_damage_to_a_file_is_refused_or_read_and_nothing_else_happens(model):
    refusals = 0
    for raw in (file(PHOTO), file(PHOTO, "JPEG"), file(PHOTO, "TIFF"), file(PHOTO, "GIF"), file(PHOTO, "WEBP")):
        for _ in range(40):
            damaged = bytearray(raw[: RNG.integers(1, len(raw) + 1)])
            for place in RNG.integers(0, len(damaged), 4):
                damaged[place] = RNG.integers(256)
            try:
                assert len(model.predict(pd.DataFrame({"image": [bytes(damaged)]}))) == 1
            except MlflowException as error:
                assert error.error_code == "INVALID_PARAMETER_VALUE"
                assert "\n" not in error.message
                refusals += 1
    assert refusals > 100


def test_the_version_is_the_registered_one_else_the_model_s_id_else_the_weights_sha256(logged, registered, tmp_path):
    _, tracking_uri, uri = logged
    client_for(tracking_uri)
    copy = tmp_path / "copy"
    shutil.copytree(folder_of(uri), copy)
    (copy / "registered_model_meta").unlink(missing_ok=True)

    def version(place):
        (row,) = mlflow.pyfunc.load_model(str(place)).predict(PHOTO[None])["version"]
        return row

    assert version(copy) == uri.rpartition("/")[2]
    assert version(registered) == "digits/2"
    assert version("models:/digits@previous") == "digits/1"
    lines = (copy / "MLmodel").read_text().splitlines()
    (copy / "MLmodel").write_text("\n".join(line for line in lines if not line.startswith(("model_id", "model_uuid"))))
    assert version(copy) == json.loads((copy / "artifacts/checkpoint/config.json").read_text())["sha256"]["model.safetensors"]


def test_signature_example_and_preprocessing_are_logged(model, logged):
    assert [(c.name, str(c.type), c.shape) for c in model.metadata.signature.inputs] == [("image", "object", (-1,))]
    outputs = {c.name: c.type.name for c in model.metadata.signature.outputs}
    assert list(outputs) == list(model.predict(PHOTO[None]).columns)
    assert outputs["label"] == outputs["version"] == "string"
    assert outputs["p_9"] == "double"
    facts = model.metadata.metadata
    assert (facts["classes"], facts["image_size"], facts["channels"]) == (list("0123456789"), [8, 8], 1)
    assert len(model.predict(model.input_example)) == 1
    example = json.loads((folder_of(logged[2]) / "serving_input_example.json").read_text())
    assert list(example) == ["dataframe_split"]


def test_classes_named_like_the_other_columns_break_nothing(logged, tmp_path):
    folder, tracking_uri, _ = logged
    client = client_for(tracking_uri)
    classes = ("label", "probability", "version", "p_label", "a b", "ä", "%", "", "8", "9")
    document = json.loads((folder / "checkpoint/config.json").read_text()) | {"classes": classes}
    document["sha256"].pop("config.json")
    shutil.copytree(folder / "checkpoint", tmp_path / "named")
    (tmp_path / "named/config.json").write_text(json.dumps(document))
    run = client.create_run(client.get_experiment_by_name("digits").experiment_id).info.run_id
    rows = mlflow.pyfunc.load_model(log_model(tmp_path / "named", run_id=run)).predict(PHOTO[None])
    assert list(rows.columns) == ["label", "probability", "version", *(f"p_{name}" for name in classes)]
    assert rows["label"][0] in classes


FRESH = """
import json, pickle, sys
import mlflow, numpy as np, torch

class Refused:  # a class, since torch derives from pickle.Unpickler
    def __init__(self, *_, **__):
        raise AssertionError("a pickle was loaded")

pickle.load = pickle.loads = pickle.Unpickler = Refused
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
images = np.load("val.npy", allow_pickle=False)
rows = model.predict(images)
np.save("given.npy", rows.filter(like="p_").to_numpy())
program = torch.export.load(sys.argv[3]).module()
np.save("logits.npy", np.concatenate([program(torch.tensor(part)).detach() for part in np.split(images[:10], [1, 3])]))
import vit_search
print(json.dumps([vit_search.__file__, sorted({"ray", "optuna"} & set(sys.modules))]))
"""


def test_a_fresh_process_that_refuses_pickles_gives_the_same_bits_from_the_logged_code(logged, served, val, tmp_path):
    _, tracking_uri, uri = logged
    client_for(tracking_uri)
    np.save(tmp_path / "val.npy", val[:100].transpose(0, 2, 3, 1))
    done = subprocess.run(
        [sys.executable, "-c", FRESH, tracking_uri, uri, str(folder_of(uri) / "artifacts/model.pt2")],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    place, loaded = json.loads(done.stdout.splitlines()[-1])
    assert Path(place).is_relative_to(folder_of(uri) / "code")
    assert loaded == []
    assert (np.load(tmp_path / "given.npy") == chances(served, val[:100])).all()
    with torch.inference_mode():
        logits = served.model(augment.normalise(torch.tensor(val[:10]), served.normalisation.mean, served.normalisation.std))
    assert np.allclose(np.load(tmp_path / "logits.npy"), logits, atol=1e-5)  # batches of 1, 2 and 7


def test_nothing_in_the_model_s_folder_is_a_pickle_and_its_code_imports_neither_ray_nor_optuna(logged):
    place = folder_of(logged[2])
    files = [path for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.suffix for path in files} == {"", ".py", ".yaml", ".json", ".txt", ".safetensors", ".pt2"}
    assert not [path for path in files if path.suffix != ".pt2" and path.read_bytes()[:1] == b"\x80"]
    assert not (place / "artifacts/checkpoint/optimiser.safetensors").exists()
    assert "cloudpickle" not in (place / "MLmodel").read_text().partition("signature")[0].partition("python_function")[0]
    code = sorted((place / "code").rglob("*.py"))
    assert len(code) > 10
    for path in code:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            assert not {name.partition(".")[0] for name in names} & {"ray", "optuna"}, path


def test_a_flipped_byte_in_the_weights_is_refused(logged, tmp_path):
    client_for(logged[1])
    copy = tmp_path / "copy"
    shutil.copytree(folder_of(logged[2]), copy)
    weights = copy / "artifacts/checkpoint/model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(Exception, match="its sha256 is not the recorded one"):
        mlflow.pyfunc.load_model(str(copy))


def test_log_pt2_is_off_unless_the_search_file_asks_for_it():
    head = "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 3\n"
    assert search_file.parse(head).log_pt2 is False
    assert search_file.parse(head + "log_pt2: true\n").log_pt2 is True
    with pytest.raises(search_file.SpecError, match="log_pt2: 1 will not do"):
        search_file.parse(head + "log_pt2: 1\n")


@pytest.fixture(scope="module")
def server(logged, registered):
    """`mlflow models serve` of the champion, for real."""
    folder, tracking_uri, _ = logged
    port = servers.free_port()
    (command,) = re.findall("^mlflow models serve .* --port 5001(?= &$)", GUIDE, re.MULTILINE)
    process = servers.start(command.replace("5001", str(port)).split(), folder, port, MLFLOW_TRACKING_URI=tracking_uri, PATH=PATH)
    yield f"http://127.0.0.1:{port}/invocations"
    servers.end(process)


def asked(url, body):
    """The server's status and its answer."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_gives_one_answer_to_pixels_and_to_base64(server, model):
    encoded = text(file(PHOTO))
    (expected,) = model.predict(PHOTO[None]).to_dict("records")
    for body in (
        {"inputs": PHOTO[None].tolist()},
        {"instances": PHOTO[None].tolist()},
        {"inputs": {"image": PHOTO[None].tolist()}},
        {"dataframe_split": {"columns": ["image"], "data": [[encoded]]}},
        {"dataframe_records": [{"image": encoded}]},
        {"inputs": [encoded]},
        {"inputs": {"image": [encoded]}},
        {"instances": [encoded]},
        {"instances": [{"image": encoded}]},
    ):
        status, answer = asked(server, body)
        assert status == 200, answer
        assert answer == [expected | {"version": "digits/2"}], body
    status, answer = asked(server, {"inputs": [PHOTO.tolist(), PHOTO[:9].tolist()]})  # of two sizes
    assert (status, len(answer)) == (200, 2)


def test_the_guide_s_curl_line_classifies_an_image(server, tmp_path):
    (tmp_path / "IMAGE.png").write_bytes(file(PHOTO))
    (command,) = re.findall("^curl .*/invocations$", GUIDE, re.MULTILINE)
    command = command.replace("http://127.0.0.1:5001/invocations", server)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    (row,) = json.loads(done.stdout)["predictions"]
    assert row["version"] == "digits/2"


BAD_BODIES = {
    "not JSON": (b"{", "JSON"),
    "no known key": ({"images": []}, "input"),
    "empty": ({"inputs": []}, "the batch is empty"),
    "one image without a batch": ({"inputs": PHOTO.tolist()}, "row 0: shape"),
    "floats": ({"inputs": [[[[0.5]]]]}, "row 0: values of type float64"),
    "too bright": ({"inputs": [[[[256]]]]}, "row 0: pixels from 256 to 256; give 0 to 255"),
    "ragged": ({"inputs": [[[[1], [2]], [[3]]]]}, "row 0: rows of different lengths"),
    "no base64": ({"inputs": ["?"]}, "row 0: text that is not base64"),
    "no image": ({"dataframe_split": {"columns": ["image"], "data": [["aGVsbG8="]]}}, "row 0: no image that can be decoded"),
    "truncated": ({"inputs": [text(file(PHOTO)[:900])]}, "truncated"),
    "bomb": ({"inputs": [text(BOMB)]}, "row 0: 30000x3000 pixels"),
    "other column": ({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}, "missing inputs"),
    "no rows": ({"dataframe_split": {"columns": ["image"], "data": []}}, ""),
    "nothing": ({"inputs": None}, ""),
}


@pytest.mark.parametrize(("body", "said"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_the_server_refuses_a_malformed_request_with_400(server, body, said):
    status, answer = asked(server, body)
    assert status == 400, answer
    assert said in answer


def test_no_file_of_the_current_folder_is_sent_with_a_model(logged, tmp_path, monkeypatch):
    """MLflow takes a folder with these files for a project of uv's, and would follow the link."""
    folder, tracking_uri, _ = logged
    (tmp_path / "secret").write_text("of the account")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '0'\n")
    (tmp_path / "uv.lock").symlink_to("secret")
    monkeypatch.chdir(tmp_path)
    client = client_for(tracking_uri)
    run = client.create_run(client.get_experiment_by_name("digits").experiment_id).info.run_id
    uri = log_model(folder / "checkpoint", run_id=run)
    home = Path(client.get_logged_model(uri.rpartition("/")[2]).artifact_location.removeprefix("file://"))
    assert (home / "MLmodel").is_file()
    assert not [name for name in ("uv.lock", "pyproject.toml", ".python-version") if (home / name).exists()]
