"""Models of 16-bit and many-channel images: how they are augmented, normalised and trained, and that what is served is what was trained."""

import asyncio
import base64
import dataclasses
import io
import json

import numpy as np
import pytest
import tifffile
import torch

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split, load_split, widened
from vit_search.data.cache import prepare, read_split
from vit_search.data.request_images import pixels_of
from vit_search.errors import DataError
from vit_search.registry import smoke
from vit_search.serving.batching import Batcher
from vit_search.serving.loaded_model import LoadedModel, load, probabilities
from vit_search.serving.state import Version
from vit_search.tracking.model_package import RawPixels, exported, facts
from vit_search.vit import augment, checkpoint, training
from vit_search.vit.classifier import Classifier
from vit_search.vit.evaluation import Normalisation, evaluate
from vit_search.vit.split_probabilities import pixels_of as images_of_split


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count=32, channels=5, side=12):
    return torch.randint(65_536, (count, channels, side, side), generator=seeded(), dtype=torch.int32)


# --- augmentation -----------------------------------------------------------------------------------------------------------------


def test_16_bits_are_normalised_by_the_mean_and_deviation_of_each_channel():
    images = torch.tensor([0, 65_535, 13_107], dtype=torch.int32).view(1, 3, 1, 1)
    out = augment.normalise(images, torch.tensor([0.5, 0.5, 0.2]), torch.tensor([0.25, 0.5, 0.1]))
    assert out.flatten().tolist() == pytest.approx([-2, 1, 0], abs=1e-6)
    assert torch.equal(out, augment.normalise(images.to(torch.uint16), torch.tensor([0.5, 0.5, 0.2]), torch.tensor([0.25, 0.5, 0.1])))


def test_bytes_that_are_called_something_else_are_no_images():
    with pytest.raises(AssertionError, match=r"torch\.int64 is no type of images"):
        augment.normalise(torch.zeros(1, 1, 2, 2, dtype=torch.int64), torch.ones(1), torch.ones(1))


def test_uint16_becomes_int32_without_a_change():
    values = torch.tensor([0, 1, 255, 256, 32_767, 32_768, 65_535])
    for stored in (values.to(torch.uint16), values.to(torch.uint16).view(torch.int16)):
        assert widened(stored).dtype == torch.int32 and widened(stored).tolist() == values.tolist()


MOVES = {
    "shift": TrainingConfig(shift=3),
    "flip": TrainingConfig(flip=True),
    "crop": TrainingConfig(crop_scale=0.4),
    "all": TrainingConfig(shift=2, flip=True, crop_scale=0.6),
}


@pytest.mark.parametrize("config", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("channels", [1, 2, 5, 16])
def test_each_channel_is_moved_as_it_would_be_alone(config, channels):
    images = noise(channels=channels)
    out = augment.moved(images, config, seeded(1))
    assert out.dtype == torch.int32 and not torch.equal(out, images)
    for channel in range(channels):
        assert torch.equal(out[:, channel : channel + 1], augment.moved(images[:, channel : channel + 1], config, seeded(1)))


@pytest.mark.parametrize("config", MOVES.values(), ids=MOVES)
def test_16_bits_are_moved_as_8_bits_are(config):
    bytes_ = torch.randint(256, (32, 3, 12, 12), generator=seeded(), dtype=torch.uint8)
    deep = augment.moved(bytes_.to(torch.int32) * 257, config, seeded(1))
    assert (deep / 257 - augment.moved(bytes_, config, seeded(1))).abs().max() <= 0.51  # a crop rounds; 8 bits round more


@pytest.mark.parametrize("policy", ["trivial_augment", "rand_augment"])
@pytest.mark.parametrize(
    "images", [noise(64, 3), noise(64, 5), noise(64, 1), noise(64, 5).div(256).to(torch.uint8)], ids=["3", "5", "1", "bytes"]
)
def test_a_policy_uses_only_operations_that_fit(policy, images):
    assert augment.operations_for(images) is augment.PLAIN_OPERATIONS
    out = augment.moved(images, TrainingConfig(auto_augment=policy, rand_augment_ops=3), seeded(2))
    assert out.dtype == images.dtype and out.shape == images.shape
    assert int(out.min()) >= 0 and int(out.max()) <= augment.largest_value(images)
    assert not torch.equal(out, images)
    again = augment.moved(images, TrainingConfig(auto_augment=policy, rand_augment_ops=3), seeded(2))
    assert torch.equal(out, again)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_of_8_bits_have_all_operations(channels):
    assert augment.operations_for(torch.zeros(1, channels, 4, 4, dtype=torch.uint8)) is augment.OPERATIONS
    assert len(augment.OPERATIONS) == 14 and len(augment.PLAIN_OPERATIONS) == 9


@pytest.mark.parametrize("operation", augment.PLAIN_OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_changes_each_channel_by_itself(operation):
    images, count = noise(16, 4), 16
    drawn = torch.rand(count, generator=seeded(3)), torch.randint(2, (count,), generator=seeded(4)) * 2 - 1
    reach = augment.Reach(0.3, (4, 4), 30.0, 0.9, 4)
    out = operation(images, *drawn, reach)
    for channel in range(4):
        assert torch.equal(out[:, channel : channel + 1], operation(images[:, channel : channel + 1], *drawn, reach))


# --- training, and what is served -------------------------------------------------------------------------------------------------


def tiff(values):
    file = io.BytesIO()
    values = values[..., 0] if values.shape[2:] == (1,) else values
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig" if values.ndim == 3 else None)
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def faint(count, channels, side, bits):
    """Two classes that differ by 1/1000 of the scale in one channel, if that is not less than 8 levels: 8 bits do not show it."""
    rng = np.random.default_rng(0)
    step = max(8, 2**bits // 1000)
    values = 2**bits // 3 + rng.integers(0, step, (count, side, side, channels))
    values[1::2, :, :, -1] += step
    return values.astype(f"uint{bits}")


SETS = {"5 channels of 16 bits": (5, 16), "grey of 16 bits": (1, 16), "RGB of 16 bits": (3, 16), "4 channels of 8 bits": (4, 8)}


@pytest.fixture(params=SETS.values(), ids=SETS, scope="module")
def trained(request, tmp_path_factory):
    """A model of a folder of TIFF files, its data, its checkpoint, and the folder."""
    home, (channels, bits) = tmp_path_factory.mktemp("deep"), request.param
    for i, one in enumerate(faint(60, channels, 14, bits)):
        path = home / "set" / ("odd" if i % 2 else "even") / f"{i:03}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff(one if channels > 1 else one[..., 0]))
    depth = bits if channels in (1, 3) or bits == 16 else None  # of 4 channels, 8 bits need not be said
    data_config = DataConfig(name="image_folder", path=str(home / "set"), image_size=8, channels=channels, bit_depth=depth)
    data = prepare(data_config, cache=home / "cache")
    config = TrialConfig(
        data=data_config,
        model=ModelConfig(image_size=(8, 8), in_channels=channels, num_classes=2, patch_size=4, dim=16, heads=2, depth=1),
        training=TrainingConfig(epochs=12, batch_size=8, lr=5e-3, shift=1, flip=True, mixup=0.2, erasing=0.1, auto_augment="none"),
        seed=1,
    )
    state = training.start(config, Normalisation.of(data.mean, data.std))
    history = list(training.fit(state, load_split(data, "train"), load_split(data, "val")))
    checkpoint.save(home / "checkpoint", state, classes=data.classes, data_hash=data.data_hash)
    return checkpoint.load_model(home / "checkpoint"), data, home, history


def test_a_difference_that_8_bits_do_not_show_is_learnt(trained):
    served, data, _, history = trained
    if served.config.data.bits == 16:
        assert history[-1].val_accuracy == 1
        assert evaluate(served.model, load_split(data, "test"), served.normalisation).accuracy == 1


def test_a_file_gets_the_answer_that_its_image_of_the_cache_gets(trained):
    served, data, home, _ = trained
    classifier = Classifier(served, "deep")
    pixels, _ = read_split(data, "val")
    stored = {one.tobytes(): one for one in pixels}
    found = 0
    for path in sorted((home / "set").rglob("*.tif")):
        fitted = pixels_of(path.read_bytes(), (8, 8), data.channels, served.config.data.bit_depth)
        if fitted.tobytes() in stored:
            found += 1
            values = tifffile.imread(path)
            values = values[..., None] if values.ndim == 2 else values
            forms = [path, path.read_bytes(), npy(values), values]
            rows = np.concatenate([classifier.probabilities([form]) for form in forms])
            assert (rows == rows[0]).all()
            loaded = LoadedModel(served, "deep/1", "")
            asked = [base64.b64encode(npy(values)).decode(), values.tolist(), values]
            together = np.stack([pixels_of(one, (8, 8), data.channels, served.config.data.bit_depth) for one in asked])
            assert together.dtype == pixels.dtype and (together == fitted).all()
            assert np.allclose(probabilities(loaded, together), rows[0], atol=1e-6)
            split = Split(torch.from_numpy(fitted[None]), torch.zeros(1, dtype=torch.int64))
            ((batch, _),) = split.batches([torch.arange(1)])
            mean, std = served.normalisation.mean, served.normalisation.std
            with torch.inference_mode():
                as_trained = served.model(augment.normalise(batch, mean, std)).softmax(-1)
            assert np.allclose(as_trained.numpy(), rows[0], atol=1e-6)
    assert found == len(pixels)


def test_requests_of_another_depth_or_number_of_channels_are_refused(trained):
    served, data, _, _ = trained
    bits, channels, depth = data.bits, data.channels, served.config.data.bit_depth
    kind, other = f"uint{bits}", "uint8" if bits == 16 else "uint16"
    for value, problem in (
        (
            np.zeros((8, 8, channels + 1), kind),
            rf"shape \(8, 8, {channels + 1}\); give \(height, width, channels\) with {channels} channel",
        ),
        (np.full((8, 8, channels), 2**bits), f"pixels from {2**bits} to {2**bits}; give 0 to {2**bits - 1}"),
        (np.zeros((8, 8, channels)), f"values of type float64; give {kind} pixels, 0 to {2**bits - 1}"),
        (
            npy(np.zeros((8, 8, channels), other)),
            f"of {24 - bits} bits in this NPY file; this model takes {channels} channels? of {bits} bits, as ",
        ),
        (
            npy(np.zeros((8, 8, channels + 1), kind)),
            f"{channels + 1} channels of {bits} bits in this NPY file; this model takes {channels} ",
        ),
        (npy(np.zeros((8, 8, channels), np.float32)), f"of float32 in this NPY file; this model takes {channels} "),
    ):
        with pytest.raises(DataError, match=problem):
            pixels_of(value, (8, 8), channels, depth)
    if bits == 16:
        with pytest.raises(DataError, match="uint8 pixels; give uint16"):
            pixels_of(np.zeros((8, 8, channels), np.uint8), (8, 8), channels, depth)


def test_the_server_decodes_requests_by_the_depth_of_its_model(trained):
    served, data, home, _ = trained
    values = tifffile.imread(home / "set/odd/001.tif")
    values = values[..., None] if values.ndim == 2 else values
    photo = npy(np.zeros((8, 8, data.channels + 1), f"uint{data.bits}"))

    async def ask(images):
        model = load(Version("deep/1", "", "", str(home / "checkpoint"), 0), batch=4)
        batcher = Batcher(model, asyncio.get_running_loop(), 4, lambda images: None)
        return (await batcher.submit(images, named=True))[1]

    rows = asyncio.run(ask([tiff(values), npy(values), base64.b64encode(tiff(values)).decode(), values.tolist()]))
    assert np.allclose(rows, Classifier(served, "deep").probabilities([values]), atol=1e-6)
    with pytest.raises(
        DataError, match=f"row 1: {data.channels + 1} channels of {data.bits} bits in this NPY file; this model takes {data.channels} "
    ):
        asyncio.run(ask([npy(values), photo]))


def test_thumbnails_get_the_images_as_they_are_stored(trained):
    _, data, _, _ = trained
    pixels = images_of_split(load_split(data, "val"), [1, 0])
    stored, _ = read_split(data, "val")
    assert pixels[0].dtype == stored.dtype and (pixels[0] == stored[1]).all() and (pixels[1] == stored[0]).all()


def test_the_smoke_test_knows_such_models(trained):
    served, _, home, _ = trained
    golden = smoke.golden(served)
    assert smoke.problem(checkpoint.load_model(home / "checkpoint"), golden) == ""
    assert len({tuple(row) for row in json.loads(golden)}) == 8


def test_an_exported_graph_takes_the_depth(trained):
    served, data, _, _ = trained
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 2**data.bits, (3, 8, 8, data.channels), f"uint{data.bits}"))
    with torch.inference_mode():
        assert torch.allclose(exported(served).module()(images), RawPixels(served).eval()(images), atol=1e-5)


def test_the_facts_of_a_model_say_the_depth_where_it_counts(trained):
    served, data, _, _ = trained
    assert facts(served)["bit_depth"] == data.bits
    plain = dataclasses.replace(served.config, data=DataConfig(name="digits"))
    assert "bit_depth" not in facts(dataclasses.replace(served, config=plain))


def test_a_training_that_is_taken_up_again_gives_the_same_numbers(trained, tmp_path):
    served, data, _, history = trained
    config, normalisation = served.config, served.normalisation
    state = training.start(config, normalisation)
    parts = load_split(data, "train"), load_split(data, "val")
    for result in training.fit(state, *parts):
        if result.epoch == 4:
            break
    checkpoint.save(tmp_path / "half", state, classes=data.classes, data_hash=data.data_hash)
    rest = list(training.fit(checkpoint.load_training(tmp_path / "half", config, "cpu"), *parts))
    assert [result.train_loss for result in rest] == [result.train_loss for result in history[4:]]
