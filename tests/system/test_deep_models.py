"""Promotion of models of 16-bit and many-channel images: corruptions, exports, MLflow's package, and all gates of one model."""

import io

import numpy as np
import pytest
import tifffile
import torch
from helpers import candidates

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split
from vit_search.data.near_duplicates import find_near_duplicates
from vit_search.promotion import export, gates, policy
from vit_search.promotion import promote as promoting
from vit_search.promotion.decision import PromotionRequest
from vit_search.promotion.evidence.answers import classify_split
from vit_search.promotion.evidence.corruptions import corrupted, fits
from vit_search.promotion.policy import CORRUPTIONS
from vit_search.promotion.readings import unfit_corruptions
from vit_search.registry import smoke
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint, training
from vit_search.vit.evaluation import Normalisation

POLICY = """
floors: {linear_probe: false}
cost_above_champion: null
seed_sd: null
allow_dirty: true
"""


def noise(count=6, channels=5, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(65_536, (count, channels, side, side), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind != "jpeg"])
def test_16_bits_are_corrupted_as_8_bits_are(kind):
    """On the same scale: within half a level of 8 bits, to which those round."""
    bytes_ = torch.randint(256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    index = torch.arange(6)
    deep = corrupted(bytes_.to(torch.int32) * 257, kind, index)
    assert deep.dtype == torch.int32 and int(deep.max()) <= 65_535 and int(deep.min()) >= 0
    assert (deep / 257 - corrupted(bytes_, kind, index)).abs().max() <= 1.01  # blur rounds once; the rest within half a level


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind not in ("jpeg", "gaussian_noise")])
def test_each_channel_is_corrupted_as_it_would_be_alone(kind):
    images, index = noise(), torch.arange(6)
    out = corrupted(images, kind, index)
    for channel in range(5):
        alone = corrupted(images[:, channel : channel + 1], kind, index)
        assert (out[:, channel : channel + 1] - alone).abs().max() <= 1  # convolutions of other widths add in another order


def test_jpeg_needs_8_bits_and_1_or_3_channels():
    assert [fits("jpeg", channels, bits) for channels, bits in ((1, 8), (3, 8), (4, 8), (1, 16), (3, 16))] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert all(fits(kind, 16, 16) for kind in CORRUPTIONS if kind != "jpeg")


def model_config(channels, bits, side=8, depth=None):
    return TrialConfig(
        data=DataConfig(name="image_folder", path="none", image_size=side, channels=channels, bit_depth=depth or bits),
        model=ModelConfig(image_size=(side, side), in_channels=channels, num_classes=2, patch_size=4, dim=16, heads=2, depth=1),
        training=TrainingConfig(epochs=1),
        seed=1,
    )


def saved(folder, channels, bits):
    state = training.start(model_config(channels, bits), Normalisation.of((0.4,) * channels, (0.01,) * channels))
    checkpoint.save(folder, state, classes=("cat", "dog"), data_hash="h")
    return folder


def answers(config, kinds):
    served = checkpoint.ServedModel(
        training.start(config, Normalisation.of((0.5,) * 5, (0.3,) * 5)).model,
        config,
        Normalisation.of((0.5,) * 5, (0.3,) * 5),
        ("a", "b"),
        "h",
    )
    split = Split(noise(8, 5, 8).to(torch.uint16), torch.arange(8) % 2)
    return classify_split(served, split, kinds)


def test_the_gate_of_corruptions_leaves_out_what_does_not_fit():
    config = model_config(5, 16)
    asked = policy.parse("robustness: {kinds: [blur, jpeg], accuracy: 0.0}")
    unfit = unfit_corruptions(asked, config)
    assert unfit == ["jpeg"]
    found = gates.corruption(answers(config, ["blur"]), None, asked, unfit)
    assert found.passed and found.said.endswith("without jpeg, which needs 8 bits and 1 or 3 channels")
    alone = policy.parse("robustness: {kinds: [jpeg]}")
    none = gates.corruption(answers(config, []), None, alone, ["jpeg"])
    assert none.passed is None and none.said == "images of this depth and these channels cannot have: jpeg"
    assert unfit_corruptions(asked, model_config(3, 8, depth=8)) == []


@pytest.mark.parametrize(("channels", "bits"), [(5, 16), (1, 16), (4, 8)])
@pytest.mark.parametrize("format", ["safetensors", "pt2", "onnx"])
def test_an_export_takes_the_depth_and_the_channels_of_the_model(format, channels, bits, tmp_path):
    folder = saved(tmp_path / "checkpoint", channels, bits)
    served = checkpoint.load_model(folder)
    assert export.write(served, tmp_path / "exported", format, folder=folder) <= export.TOLERANCE
    images = np.random.default_rng(1).integers(0, 2**bits, (3, 8, 8, channels), f"uint{bits}")
    assert np.allclose(export.reader(tmp_path / "exported", format)(images), export.eager(served)(images), atol=1e-4)


@pytest.mark.parametrize(("channels", "bits"), [(5, 16), (4, 8)])
def test_a_logged_model_answers_200_requests_in_a_fresh_process(channels, bits, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    client = client_for(uri)
    run = client.create_run(client.create_experiment("deep", artifact_location=(tmp_path / "artifacts").as_uri())).info.run_id
    client.set_terminated(run)
    model = log_model(saved(tmp_path / "checkpoint", channels, bits), run_id=run)
    assert smoke.in_fresh_process(model, uri) == ""


def images_of_two_classes(root, count, copies=0):
    """TIFF files of 5 channels and 16 bits; the last ones are copies of the first, a little darker."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 3000, (count, 4, 4, 5)).repeat(8, 1).repeat(8, 2)
    values = 20_000 + shapes + rng.integers(0, 400, (count, 32, 32, 5))
    values[1::2] += 8_000
    if copies:
        values[-copies:] = values[:copies]
    for i, one in enumerate(values.astype(np.uint16)):
        path = root / ("light" if i % 2 else "dark") / f"{i:03}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        tifffile.imwrite(file, one, photometric="minisblack", planarconfig="contig")
        path.write_bytes(file.getvalue())
    return values.astype(np.uint16)


def test_near_duplicates_of_16_bits_are_found():
    values = np.random.default_rng(0).integers(0, 65_536, (20, 5, 4, 4)).repeat(8, 2).repeat(8, 3).astype(np.uint16)
    found = find_near_duplicates(values[:3] - (values[:3] > 300) * np.uint16(300), [values[5:], values[:5]]).found
    assert sorted((one.test, one.other) for one in found) == [(0, 15), (1, 16), (2, 17)]


def test_a_model_of_16_bits_passes_every_gate_and_becomes_the_champion(tmp_path):
    images_of_two_classes(tmp_path / "set", 160)
    store = f"sqlite:///{tmp_path / 'mlruns.db'}"
    data = f"{{name: image_folder, path: {tmp_path / 'set'}, image_size: 32, channels: 5, bit_depth: 16}}"
    retrained = candidates.trained(tmp_path, store, "deep", data=data, epochs=6)
    request = PromotionRequest("tiny", "somebody")
    done = promoting.promote(retrained, policy.parse(POLICY), request, tracking_uri=store)
    assert [(one.id, one.said) for one in done.gates if one.passed is False] == []
    assert done.verdict == "passed"
    (corruption,) = [one for one in done.gates if one.id == "G12"]
    assert "without jpeg" in corruption.said
    (leak,) = [one for one in done.gates if one.id == "G13"]
    assert leak.passed and "not compared" not in leak.said
