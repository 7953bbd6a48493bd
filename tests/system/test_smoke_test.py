"""The smoke test lets a sound model through and says in one line what is wrong with any other."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.registry import smoke
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint, evaluation, training


def saved(folder, seed=1, channels=1, size=(8, 8), classes=tuple("0123456789"), **model):
    """An untrained ViT's checkpoint."""
    config = TrialConfig(
        data=DataConfig(name="digits"),
        model=ModelConfig(image_size=size, in_channels=channels, num_classes=len(classes), patch_size=4, dim=16, heads=2, depth=2, **model),
        training=TrainingConfig(epochs=1),
        seed=seed,
    )
    state = training.start(config, evaluation.Normalisation.of((0.4,) * channels, (0.3,) * channels))
    checkpoint.save(folder, state, classes=classes, data_hash="h")
    return folder


@pytest.fixture
def served(tmp_path):
    return checkpoint.load_model(saved(tmp_path / "checkpoint"))


def test_a_sound_model_answers_as_it_did_when_its_golden_logits_were_written(served, tmp_path):
    golden = smoke.golden(served)
    assert smoke.problem(served) == ""
    assert smoke.problem(served, golden) == ""
    assert smoke.problem(checkpoint.load_model(tmp_path / "checkpoint"), golden) == ""
    table = json.loads(golden)
    assert [len(row) for row in table] == [10] * 8
    assert len({tuple(row) for row in table}) == 8  # eight images, not one eight times


def test_an_rgb_model_of_wide_images_has_golden_logits_too(tmp_path):
    model = checkpoint.load_model(saved(tmp_path / "wide", channels=3, size=(8, 12), classes=("cat", "dog"), pool="cls"))
    assert smoke.problem(model, smoke.golden(model)) == ""


def test_golden_logits_of_many_classes_fit_into_a_tag(tmp_path):
    model = checkpoint.load_model(saved(tmp_path / "many", classes=tuple(str(i) for i in range(3000))))
    golden = smoke.golden(model)
    assert len(golden) < 100_000
    assert smoke.problem(model, golden) == ""
    with torch.no_grad():
        model.model.head.bias[999] += 1
    assert "from the golden ones" in smoke.problem(model, golden)


def test_another_model_is_not_the_golden_one(served, tmp_path):
    other = checkpoint.load_model(saved(tmp_path / "other", seed=2))
    assert "from the golden ones" in smoke.problem(other, smoke.golden(served))


def test_a_weight_that_moved_a_little_is_noticed_and_rounding_is_not(served):
    golden = smoke.golden(served)
    with torch.no_grad():
        served.model.head.bias[3] += 5e-5
        assert smoke.problem(served, golden) == ""
        served.model.head.bias[3] += 5e-4
    assert "from the golden ones" in smoke.problem(served, golden)


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ("{", "no table of numbers"),
        ("[[1, 2], [3]]", "no table of numbers"),
        ('[["a"]]', "no table of numbers"),
        ("[[1.0, 2.0]]", r"golden logits are \(1, 2\), the model's \(8, 10\)"),
        (json.dumps([[float("nan")] * 10] * 8), "from the golden ones"),
    ],
)
def test_golden_logits_that_are_none_are_a_problem_and_no_crash(served, expected, said):
    found = smoke.problem(served, expected)
    assert re.search(said, found), found
    assert "\n" not in found


def test_logits_that_are_not_finite_are_a_problem(served):
    with torch.no_grad():
        served.model.head.bias[0] = float("nan")
    assert smoke.problem(served) == "the logits are not finite"


def test_a_model_with_another_number_of_classes_than_names_is_a_problem(served):
    assert "the logits are (8, 10), for 2 classes" in smoke.problem(dataclasses.replace(served, classes=("a", "b")))


def test_answers_that_depend_on_the_other_images_of_a_batch_are_a_problem(served):
    served.model.head.register_forward_hook(lambda _, __, logits: logits - logits.mean(0))  # as batch normalisation in train mode
    assert "from those in a batch of 8" in smoke.problem(served)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    uri = f"sqlite:///{folder / 'mlruns.db'}"
    client = client_for(uri)
    run = client.create_run(client.create_experiment("t", artifact_location=(folder / "artifacts").as_uri())).info.run_id
    client.set_terminated(run)
    model = log_model(saved(folder / "checkpoint"), run_id=run)
    client.create_registered_model("digits")
    client.create_model_version("digits", model, model_id=model.rpartition("/")[2])
    return folder, uri, model


def test_a_fresh_process_answers_200_requests_from_the_logged_code(logged):
    assert smoke.in_fresh_process("models:/digits/1", logged[1]) == ""


def test_a_fresh_process_says_what_it_cannot_load(logged):
    found = smoke.in_fresh_process("models:/digits/7", logged[1])
    assert "version=7) not found" in found
    assert "\n" not in found


def test_a_fresh_process_that_takes_too_long_is_ended(logged):
    assert "after 0.1 s" in smoke.in_fresh_process("models:/digits/1", logged[1], timeout_s=0.1)


def changed(logged, target, old, new):
    """A copy of the logged model whose own code differs in one place."""
    client_for(logged[1])
    import mlflow

    shutil.copytree(mlflow.artifacts.download_artifacts(logged[2]), target)
    (code,) = target.glob("model_package.py")
    assert old in code.read_text()
    code.write_text(code.read_text().replace(old, new))
    return str(target)


def test_a_model_that_swallows_a_bad_image_is_refused(logged, tmp_path):
    lenient = changed(
        logged,
        tmp_path / "lenient",
        "    except DataError as error:\n        raise MlflowException",
        "    except DataError as error:\n        return np.zeros((1, 8, 8), np.uint8)\n        raise MlflowException",
    )
    assert "malformed (no base64): answered, not refused" in smoke.in_fresh_process(lenient, logged[1])


def test_a_model_whose_code_fails_on_some_input_is_refused(logged, tmp_path):
    broken = changed(logged, tmp_path / "broken", "np.atleast_1d(", "np.atleast_one(")
    assert "AttributeError" in smoke.in_fresh_process(broken, logged[1])


def test_the_script_of_the_fresh_process_imports_nothing_of_this_package(logged):
    code = "import sys; sys.argv = ['x']; import runpy; runpy.run_path(sys.orig_argv[-1]); print('vit_search' in ' '.join(sys.modules))"
    script = Path(smoke.__file__).with_name("smoke_requests.py")
    done = subprocess.run([sys.executable, "-c", code, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_guide_says_how_far_an_answer_depends_on_its_batch(tmp_path):
    """One image alone, and in batches of 2 to 32: float32 sums in another order."""
    guide = (ROOT / "docs/guides/serving.md").read_text()
    ((most, refused),) = re.findall(r"\(at most (\S+); measured.*?\(logits\)\s+differ by more than\s+(\S+) ", guide, re.DOTALL)
    assert float(refused) == smoke.TOLERANCE
    model = checkpoint.load_model(saved(tmp_path / "wide", channels=3, size=(32, 32)))
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.head.weight *= 20  # logits as far apart as a trained model's
    alone = torch.cat([smoke.logits_of(model, image[None]) for image in images])
    assert alone.std() > 1
    for batch in range(2, 33):
        together = torch.cat([smoke.logits_of(model, part) for part in images.split(batch)])
        assert (together.softmax(-1) - alone.softmax(-1)).abs().max() <= float(most)
        again = torch.cat([smoke.logits_of(model, part) for part in images.split(batch)])
        assert torch.equal(together, again)  # the same batch, the same bits
