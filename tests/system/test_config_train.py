"""The production configuration as a file: what `config` prints, `train` makes the promoted model of again, to the bit."""

import re
import shutil
import signal
import subprocess
from dataclasses import replace

import pytest
from helpers import servers
from helpers.commands import COMMAND, vit_search, vit_search_process
from PIL import Image

from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import load_split
from vit_search.data.cache import prepare
from vit_search.errors import CheckpointError, SearchError, SpecError
from vit_search.planning.fixed_file import check_fixed, fixed_file
from vit_search.registry.configuration import configuration
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint, evaluation, train_once, training

FIXED = "name: t\ndata: {name: digits, train_limit: 100}\ntrials: 1\nepochs: 1\nstopping: {kind: none}\nmodel: {dim: 16, depth: 1}\n"
DATA = DataConfig(name="digits", train_limit=300, split_seed=4)
CONFIG = TrialConfig(
    data=DATA,
    model=ModelConfig(
        image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=24, heads=2, depth=2, dropout=0.1, layer_scale=1e-5
    ),
    training=TrainingConfig(epochs=4, batch_size=32, lr=0.0030000000000000001 / 3, ema_decay=0.9, mixup=0.2, clip_norm=None, shift=1),
    seed=12 * 1_000_003,
)


def trained(folder, config, trained_on=("train",), validated_on=("val",)):
    """As a trial trains."""
    data = prepare(config.data)
    state = training.start(config, evaluation.Normalisation.of(data.mean, data.std))
    for _ in training.fit(state, load_split(data, *trained_on), load_split(data, *validated_on)):
        checkpoint.save(folder, state, classes=data.classes, data_hash=data.data_hash, trained_on=trained_on)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A registry: version 1 is champion, trained on train+val; version 2 of another seed, on train; version 3 knows no search."""
    home = tmp_path_factory.mktemp("configured")
    trained(home / "1", CONFIG, ("train", "val"), ("holdout",))
    other = TrialConfig(data=DATA, model=CONFIG.model, training=TrainingConfig(epochs=1), seed=12 * 1_000_003 + 5)
    trained(home / "2", other)
    client = client_for(f"sqlite:///{home / 'mlruns.db'}")
    experiment = client.create_experiment("small", artifact_location=(home / "artifacts").as_uri())
    client.create_registered_model("small")
    parent = client.create_run(experiment).info.run_id
    client.log_dict(parent, {"metric": "val_loss", "mode": "min", "resources": {"cpus": 1.5, "gpus": 0.0}}, "resolved.json")
    tags = {"search": "small-1", "trial": "7", "test_accuracy": "0.81249"}
    for version, tags_of_run in (("1", {"mlflow.parentRunId": parent}), ("2", {"mlflow.parentRunId": parent}), ("1", {})):
        run = client.create_run(experiment, tags=tags_of_run).info.run_id
        client.set_terminated(run)
        uri = log_model(home / version, run_id=run)
        told = tags if tags_of_run and version == "1" else {}
        client.create_model_version("small", uri, run_id=run, model_id=uri.rpartition("/")[2], tags=told)
    client.set_registered_model_alias("small", "champion", "1")
    return home


def of(home, model):
    return configuration(model, tracking_uri=f"sqlite:///{home / 'mlruns.db'}")


def test_train_makes_of_what_config_prints_the_promoted_model_to_the_bit(home, tmp_path):
    shutil.copy(home / "mlruns.db", tmp_path)
    printed = vit_search(home, "config", "small@champion", code=None)
    assert (printed.returncode, printed.stderr) == (0, "")
    (tmp_path / "champion.yaml").write_text(printed.stdout)
    done = vit_search_process(tmp_path, "train", "champion.yaml", code=None)
    assert done.returncode == 0, done.stderr
    promoted = home / "1"
    assert (tmp_path / "trained/small/model.safetensors").read_bytes() == (promoted / "model.safetensors").read_bytes()
    assert checkpoint.load_model(tmp_path / "trained/small").trained_on == ("train", "val")
    lines = done.stdout.splitlines()
    assert [re.match("epoch +([0-9]) of 4  val_loss [0-9.]+  train_loss", line).group(1) for line in lines[:4]] == ["1", "2", "3", "4"]
    digest = checkpoint.weights_sha256(promoted)
    assert lines[4] == f"trained/small holds the model; weights: sha256 {digest}"
    assert f"# weights: sha256 {digest}\n" in printed.stdout
    assert sorted(path.name for path in (tmp_path / "trained").iterdir()) == ["small"]
    again = vit_search_process(tmp_path, "train", "champion.yaml", code=None)  # nothing is left to train
    assert again.stdout == f"trained/small holds this model already, and nothing was trained; weights: sha256 {digest}\n"


def test_the_file_says_where_it_comes_from_and_has_a_value_for_each_parameter(home):
    made = of(home, "small@champion")
    assert made.same
    assert made.text.startswith("# small version 1: trial 7 of small-1, test accuracy 0.8125\n# weights: sha256 ")
    spec = search_file.parse(made.text)
    check_fixed(spec, "file")
    assert (spec.name, spec.trials, spec.epochs, spec.seed, spec.train_on) == ("small", 1, 4, 12, "train+val")
    assert (spec.metric, spec.mode, spec.resources.cpus) == ("val_loss", "min", 1.5)  # of the search
    assert spec.data_config == DATA
    assert spec.trial_config({}, in_channels=1, num_classes=10, trial=0) == CONFIG
    assert "\n  clip_norm: null\n" in made.text  # no clipping, where a file that leaves it out has 1.0
    assert "mlp_dim" not in made.text  # null by default, and here


def test_a_seed_that_no_file_can_tell_is_said_and_the_file_printed_all_the_same(home):
    done = vit_search(home, "config", "small/2", code=None)
    assert done.returncode == 0
    assert done.stderr == "note: small/2 was not made by `promote`: no file can tell its seed, and train gives another model.\n"
    spec = search_file.parse(done.stdout)
    assert (spec.seed, spec.train_on) == (12, "train")


def test_a_model_whose_search_mlflow_does_not_have_gets_the_defaults_and_says_so(home):
    made = of(home, "small/3")
    assert "# metric, mode and resources are the defaults: MLflow has no search of this model\n" in made.text
    assert search_file.parse(made.text).metric == "val_accuracy"


def test_config_writes_a_file_and_never_over_one(home, tmp_path):
    path = tmp_path / "fixed.yaml"
    done = vit_search(home, "config", "models:/small/1", "--output", str(path), code=None)
    assert done.stdout == f"Next:  vit-search train {path}\n"
    assert path.read_text() == of(home, "small/1").text
    again = vit_search(home, "config", "small/1", "--output", str(path), code=None)
    assert (again.returncode, again.stderr) == (2, f"error: {path}: a file is there already; name another one after --output.\n")


def test_every_field_comes_back_from_its_file():
    odd = TrialConfig(
        data=DataConfig(name="image_folder", path="a: b #c", image_size=16, channels=1, val_fraction=0.2, train_limit=7),
        model=ModelConfig(
            image_size=(16, 16), in_channels=1, num_classes=3, dim=8, heads=3, dim_head=5, mlp_ratio=0.1 + 0.2, mlp_dim=9, dropout=0.1,
            embedding_dropout=0.0, attention_dropout=0.2, projection_dropout=0.3, mlp_dropout=0.4, drop_path=0.5, activation="relu",
            norm="post", pool="cls", positions="sincos2d", init="trunc_normal_02", pos_init_std=0.02, qkv_bias=False, layer_scale=1e-6,
        ),
        training=TrainingConfig(
            epochs=3, batch_size=5, accumulation=2, lr=1.2345678901234567e-05, weight_decay=0.0, beta2=0.95, warmup_fraction=0.0,
            clip_norm=None, label_smoothing=0.0, shift=2, crop_scale=0.5, flip=True, auto_augment="rand_augment", rand_augment_ops=3,
            rand_augment_magnitude=4, erasing=0.25, mixup=0.2, cutmix=1.0, ema_decay=0.999, precision="float32", tf32=False,
            compile=True, cuda_graphs=True, tune="lora", lora_rank=3, lora_alpha=0.5, lora_layers="all", layer_decay=0.65,
            head_lr_factor=12.5,
        ),
        seed=(2**31 - 1) * 1_000_003,
    )  # fmt: skip
    blocks = replace(odd.training, tune="last_blocks", tuned_blocks=2, lora_rank=8, lora_alpha=8.0, lora_layers="attention")
    for config in (odd, replace(odd, training=blocks)):
        made = fixed_file(config, name="odd", about=["a line"], rest={"train_on": "train"})
        assert search_file.parse(made.text).trial_config({}, in_channels=1, num_classes=3, trial=0) == config
        assert made.same


def test_a_training_that_was_killed_goes_on_to_the_same_bits(home, tmp_path):
    text = of(home, "small@champion").text.replace("epochs: 4", "epochs: 20")
    (tmp_path / "long.yaml").write_text(text)
    whole = vit_search_process(tmp_path, "train", "long.yaml", "--output", "whole", code=None)
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen([COMMAND, "train", "long.yaml", "--output", "cut"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        servers.until(lambda: process.stdout.readline().startswith("epoch   3 "))
        process.send_signal(signal.SIGKILL)
    resumed = vit_search_process(tmp_path, "train", "long.yaml", "--output", "cut", code=None)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "long.yaml", "whole"]


def test_a_file_that_searches_something_is_refused_by_its_first_key(tmp_path):
    (tmp_path / "search.yaml").write_text(FIXED.replace("depth: 1", "depth: {int: [1, 2]}") + "training: {lr: {choice: [0.1, 0.2]}}\n")
    done = vit_search_process(tmp_path, "train", "search.yaml", code=None)
    assert done.returncode == 2
    assert done.stderr == "error: search.yaml: model.depth: searched, and one fixed configuration is trained; give it a value.\n"


def train(text, folder):
    spec = search_file.parse(text)
    data = prepare(spec.data_config)
    config = spec.trial_config({}, in_channels=data.channels, num_classes=len(data.classes), trial=0)
    return list(train_once.train(spec, config, data, folder))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("dear to me")
    with pytest.raises(CheckpointError, match="photos: holds something that is no checkpoint; name another folder with --output"):
        train(FIXED, tmp_path / "photos")
    assert (tmp_path / "photos/cat.jpg").read_text() == "dear to me"
    (tmp_path / "empty").mkdir()
    assert len(train(FIXED, tmp_path / "empty")) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("seed: 1\n", "one: seed was 0 when it was saved and is now 1000003; it is left as it is. {mend}"),
        ("train_on: train+val\n", "one: trained on other images than the file asks for; it is left as it is. {mend}"),
    ],
)
def test_a_folder_of_another_training_is_refused(more, said, tmp_path):
    train(FIXED, tmp_path / "one")
    before = (tmp_path / "one/model.safetensors").read_bytes()
    mend = f"Name another folder with --output, or remove {tmp_path / 'one'}."
    with pytest.raises(CheckpointError) as raised:
        train(FIXED + more, tmp_path / "one")
    assert str(raised.value).endswith(said.format(mend=mend))
    assert (tmp_path / "one/model.safetensors").read_bytes() == before


def test_a_training_that_is_done_is_not_trained_again_and_says_so(tmp_path):
    (tmp_path / "t.yaml").write_text(FIXED)
    assert vit_search_process(tmp_path, "train", "t.yaml", code=None).stdout.startswith("epoch   1 of 1  ")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trained/t").glob("*.safetensors")}
    again = vit_search_process(tmp_path, "train", "t.yaml", code=None)
    assert again.returncode == 0
    assert again.stdout.startswith("trained/t holds this model already, and nothing was trained; weights: sha256 ")
    assert again.stdout.count("\n") == 1
    (tmp_path / "t.yaml").write_text(FIXED.replace("epochs: 1", "epochs: 2"))
    longer = vit_search_process(tmp_path, "train", "t.yaml", code=None)
    assert (longer.returncode, longer.stdout) == (2, "")
    assert longer.stderr == (
        "error: trained/t: training.epochs was 1 when it was saved and is now 2; it is left as it is. "
        "Name another folder with --output, or remove trained/t.\n"
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trained/t").glob("*.safetensors")} == before


def test_train_says_which_images_it_reads_and_what_their_folder_lacks(tmp_path):
    for name, count in {"train/cat": 4, "train/dog": 4, "val/cat": 2}.items():
        (tmp_path / "p" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, len(name), ord(name[-1]))).save(tmp_path / "p" / name / f"{number}.png")
    (tmp_path / "t.yaml").write_text(FIXED.replace("{name: digits, train_limit: 100}", "{name: image_folder, path: p, image_size: 8}"))
    done = vit_search_process(tmp_path, "train", "t.yaml", code=None)
    assert done.returncode == 0
    assert "2 classes: cat, dog; 10 images (train 4, val 2, holdout 2, test 2); val has no image of dog\n" in done.stderr


def test_what_this_machine_or_the_data_lack_is_said_before_training(tmp_path):
    with pytest.raises(SpecError, match=r"resources\.gpus: 1 asked for, and this machine has none; write 0"):
        train(FIXED + "resources: {gpus: 1}\n", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_loss_that_is_not_finite_ends_with_its_mend(tmp_path):
    with pytest.raises(SearchError, match=r"none: .*nan.*; lower training\.lr"):
        train(FIXED + "training: {lr: 10, clip_norm: null, warmup_fraction: 0, weight_decay: 10, batch_size: 1}\n", tmp_path / "none")
