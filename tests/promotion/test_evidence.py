"""What is measured of a candidate: figures by hand, real tiny models, real files, and files that were tampered with."""

import dataclasses
import json
import math
import shutil
from types import MappingProxyType

import numpy as np
import pytest
import torch
from helpers.models import config, static, untrained
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from vit_search.config.data_config import DataConfig
from vit_search.data.batches import Split, StreamedSplit, load_split
from vit_search.data.cache import prepare, read_split
from vit_search.promotion import export
from vit_search.promotion.evidence.answers import SplitAnswers, classify_split
from vit_search.promotion.evidence.baselines import linear_probe, majority
from vit_search.promotion.evidence.corruptions import corrupted
from vit_search.promotion.evidence.costs import (
    LEAST_CALLS,
    Costs,
    Latency,
    SideBySide,
    measure_costs,
    measure_side_by_side,
    ratio_of_percentiles,
)
from vit_search.promotion.evidence.duplicates import as_csv, find_duplicates, sheet
from vit_search.promotion.evidence.parity import Parity, file_exporter, measure_parity, weights_sha256
from vit_search.promotion.policy import CORRUPTIONS
from vit_search.vit import checkpoint, evaluation, training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model of the digits, its checkpoint, and its data."""
    folder = tmp_path_factory.mktemp("evidence") / "checkpoint"
    told = config(dim=32)
    data = prepare(told.data)
    state = training.start(told, evaluation.Normalisation.of(data.mean, data.std))
    list(training.fit(state, load_split(data, "train"), load_split(data, "val")))
    checkpoint.save(folder, state, classes=data.classes, data_hash=data.data_hash)
    return checkpoint.load_model(folder), folder, data


def seen(labels, predictions, confidence=None, classes=("a", "b", "c"), corrupted=MappingProxyType({})):
    count = len(labels)
    return SplitAnswers(
        classes=classes,
        labels=np.array(labels),
        predictions=np.array(predictions),
        label_nll=np.zeros(count),
        confidence=np.array(confidence if confidence is not None else [1.0] * count),
        loss=0.0,
        brier=0.0,
        corrupted={name: np.array(found) for name, found in corrupted.items()},
    )


# --- answers on images


def test_accuracy_and_loss_are_those_of_evaluate_to_the_last_digit(trained):
    served, _, data = trained
    for name in ("val", "test"):
        split = load_split(data, name)
        found, expected = classify_split(served, split), evaluation.evaluate(served.model, split, served.normalisation)
        assert found.loss == expected.loss
        assert np.float32(found.accuracy) == np.float32(expected.accuracy)  # evaluate's is the nearest float32
        assert (found.predictions == expected.predictions.numpy()).all()
        assert found.label_nll.mean() == pytest.approx(expected.loss, abs=1e-6)
        assert found.accuracy > 0.5  # it learned something


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    """Two classes, dark and bright, of 12 RGB files each, no two alike."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, level in (("bright", 160), ("dark", 20)):
        (root / name).mkdir()
        for i in range(12):
            Image.fromarray((level + rng.integers(0, 60, (8, 8, 3))).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_a_streamed_split_gives_the_numbers_of_one_in_memory(folder_of_images, tmp_path):
    told = DataConfig(name="image_folder", path=str(folder_of_images), image_size=8, test_fraction=0.4)
    served, _ = untrained(tmp_path / "checkpoint", in_channels=3, num_classes=2)
    streamed = load_split(prepare(told, cache=tmp_path / "a", stream_above=0), "test")
    whole = load_split(prepare(told, cache=tmp_path / "b"), "test")
    assert isinstance(streamed, StreamedSplit)
    assert isinstance(whole, Split)
    assert classify_split(served, streamed, CORRUPTIONS).to_dict() == classify_split(served, whole, CORRUPTIONS).to_dict()


def test_the_confidence_and_the_brier_score_follow_from_the_logits(trained):
    """A model with a zero head gives every class 1 / 10: the Brier score is (9/10)² + 9 (1/10)² = 0.9."""
    served, _, data = trained
    state = {name: torch.zeros_like(t) if name.startswith("head") else t for name, t in served.model.state_dict().items()}
    model = type(served.model)(served.config.model)
    model.load_state_dict(state)
    found = classify_split(dataclasses.replace(served, model=model), load_split(data, "test"))
    assert found.brier == pytest.approx(0.9)
    assert found.confidence == pytest.approx(np.full(found.images, 0.1))
    assert found.label_nll == pytest.approx(np.full(found.images, math.log(10)))


def test_the_confusion_matrix_recalls_and_f1_by_hand():
    """Class a: 3 images, 2 recognised; b: 1 of 2; c has none. One of each of a and b is taken for the other."""
    found = seen([0, 0, 0, 1, 1], [0, 0, 1, 1, 0])
    assert found.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found.recalls == [2 / 3, 1 / 2, None]
    assert found.macro_f1 == pytest.approx((2 * 2 / (3 + 3) + 2 * 1 / (2 + 2)) / 2)
    assert found.accuracy == 3 / 5


def test_the_confusion_matrix_counts_a_class_that_only_predictions_name_and_f1_leaves_it_out():
    """Nothing is a c, and one a is taken for it: F1 of a is 2 · 1 / (2 + 1), of b 2 · 1 / (1 + 1), and c has no images."""
    found = seen([0, 0, 1], [0, 2, 1])
    assert found.confusion.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert found.confusion.dtype == np.int64
    assert found.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert found.recalls == [1 / 2, 1.0, None]


def test_the_calibration_error_by_hand():
    """Of 15 bins, 0.9 twice falls into the 14th (one of two is right), 0.6 into the 9th (right), 0.35 into the 6th (wrong)."""
    found = seen([0, 0, 0, 0], [0, 1, 0, 1], confidence=[0.9, 0.9, 0.6, 0.35])
    assert found.ece == pytest.approx(2 / 4 * abs(0.5 - 0.9) + 1 / 4 * abs(1 - 0.6) + 1 / 4 * abs(0 - 0.35))


def test_wilson_s_interval_by_hand():
    """9 of 10: (0.9 + 1.92/10 ± 1.96 √(0.09/10 + 0.9604/100)) / (1 + 3.8415/10) = 0.5958 to 0.9821."""
    assert seen([0] * 10, [0] * 9 + [1]).interval == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_nine_of_ten_is_ninety_percent_and_not_the_float32_below_it():
    assert seen([0] * 10, [0] * 9 + [1]).accuracy == 0.9


def test_all_that_is_measured_goes_through_json_and_comes_back(trained):
    served, folder, data = trained
    found = classify_split(served, load_split(data, "test"), ("blur",))
    back = SplitAnswers.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert back.to_dict() == found.to_dict()
    side = SideBySide.from_dict(json.loads(json.dumps(QUICK(served, folder).to_dict())))
    assert isinstance(side.candidate.latency["cpu_batch_1"], Latency)
    assert SideBySide.from_dict(side.to_dict()) == side
    assert Costs.from_dict(side.candidate.to_dict()) == side.candidate
    for one in (Parity("pt2", 0.25, 7), Parity("onnx", math.inf, 0, "a batch of 1: no")):
        assert Parity.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one


# --- corruptions


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20)], ids=["grey", "RGB"])
def test_a_corruption_keeps_shape_and_type_and_is_the_same_however_images_are_batched(kind, shape):
    images = torch.randint(0, 256, (7, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, indices = images.clone(), torch.arange(40, 47)
    whole = corrupted(images, kind, indices)
    assert (whole.shape, whole.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert not torch.equal(whole, images)
    parts = [corrupted(part, kind, own) for part, own in zip(images.split(3), indices.split(3), strict=True)]
    assert torch.equal(torch.cat(parts), whole)


def one(pixels):
    return torch.tensor(pixels, dtype=torch.uint8)[None, None]


def test_contrast_halves_the_distance_to_the_mean_and_brightness_adds_a_fifth():
    image = one([[100, 200], [100, 240]])  # the mean is 160
    assert corrupted(image, "contrast", torch.zeros(1)).flatten().tolist() == [130, 180, 130, 200]
    assert corrupted(image, "brightness", torch.zeros(1)).flatten().tolist() == [151, 251, 151, 255]


def test_translate_moves_towards_the_corner_that_the_index_names_and_repeats_the_edge():
    image = one([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    moved = [corrupted(image, "translate", torch.tensor([i]))[0, 0].tolist() for i in (0, 3, 4)]
    assert moved[0] == [[1, 1, 2], [1, 1, 2], [4, 4, 5]]  # down and to the right
    assert moved[1] == [[5, 6, 6], [8, 9, 9], [8, 9, 9]]  # up and to the left
    assert moved[2] == moved[0]


def test_noise_has_its_stated_deviation_and_differs_from_image_to_image():
    grey = torch.full((2, 1, 200, 200), 128, dtype=torch.uint8)
    noisy = corrupted(grey, "gaussian_noise", torch.arange(2)).float()
    assert float((noisy - 128).std()) == pytest.approx(0.08 * 255, rel=0.02)
    assert not torch.equal(noisy[0], noisy[1])


def test_blur_spreads_a_point_evenly_and_leaves_a_plain_image_as_it_is():
    plain = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(corrupted(plain, "blur", torch.zeros(1)), plain)
    point = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    point[0, 0, 16, 16] = 255
    spread = corrupted(point, "blur", torch.zeros(1))[0, 0].float()
    # the middle holds 1 / sum of exp(-i² / 2 sigma²) of each direction, so its square
    sigma = 0.7 * 33 / 32
    middle = 1 / sum(math.exp(-0.5 * (i / sigma) ** 2) for i in range(-2, 3))
    assert float(spread[16, 16]) == pytest.approx(255 * middle**2, abs=0.51)
    assert float(spread[15, 16]) == float(spread[17, 16]) == float(spread[16, 15]) == float(spread[16, 17])


def test_jpeg_loses_a_checkerboard_and_keeps_a_plain_image():
    plain = torch.full((1, 1, 8, 8), 128, dtype=torch.uint8)
    assert torch.equal(corrupted(plain, "jpeg", torch.zeros(1)), plain)
    board = one([[255 * ((x + y) % 2) for x in range(8)] for y in range(8)])
    assert not torch.equal(corrupted(board, "jpeg", torch.zeros(1)), board)


# --- exported files


def test_safetensors_is_equal_to_the_bit_and_pt2_within_a_hundred_thousandth(trained):
    served, folder, _ = trained
    copied, archive = measure_parity(served, folder, {"pt2": file_exporter("pt2")})
    assert (copied.format, copied.difference, copied.problem) == ("safetensors", 0.0, "")
    assert copied.file_bytes > (folder / "model.safetensors").stat().st_size
    assert (archive.format, archive.problem) == ("pt2", "")
    assert archive.difference <= 1e-5


def test_an_archive_with_a_batch_of_one_is_found_out(trained):
    served, folder, _ = trained
    found = measure_parity(served, folder, {"pt2": static})[1]
    assert found.difference == math.inf
    assert found.problem.startswith("a batch of 8: ")
    assert found.file_bytes > 0


def test_a_file_whose_weights_differ_from_the_model_s_is_found_out(trained):
    served, folder, _ = trained

    def altered(served, place):
        state = {name: tensor * 1.001 for name, tensor in served.model.state_dict().items()}
        model = type(served.model)(served.config.model)
        model.load_state_dict(state)
        return file_exporter("pt2")(dataclasses.replace(served, model=model), place)

    assert 1e-4 < measure_parity(served, folder, {"pt2": altered})[1].difference < 1


def test_a_flipped_byte_in_the_checkpoint_is_found_out(trained, tmp_path):
    served, folder, _ = trained
    shutil.copytree(folder, tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    found = measure_parity(served, tmp_path / "checkpoint", {})[0]
    assert found.difference == math.inf
    assert "its sha256 is not the recorded one" in found.problem
    assert checkpoint.weights_sha256(tmp_path / "checkpoint") != weights_sha256(served)


def test_an_exporter_that_fails_or_gives_other_classes_is_told_and_not_raised(trained):
    served, folder, _ = trained

    def fails(served, place):
        raise RuntimeError("no such operator\nmore")

    def fewer(served, place):
        return lambda images: export.eager(served)(images)[:, :9]

    def nan(served, place):
        return lambda images: np.full((len(images), 10), np.nan, np.float32)

    problems = {one.format: one for one in measure_parity(served, folder, {"a": fails, "b": fewer, "c": nan})}
    assert problems["a"].problem == "export: no such operator"
    assert problems["b"].problem == "a batch of 1: logits of shape (8, 9) for (8, 10)"
    assert [problems[name].difference for name in "abc"] == [math.inf] * 3


def test_the_weights_in_memory_have_the_sha256_of_their_file(trained):
    served, folder, _ = trained
    assert weights_sha256(served) == checkpoint.weights_sha256(folder)
    state = served.model.state_dict()
    assert json.loads((folder / "config.json").read_text())["sha256"]["model.safetensors"] == checkpoint.weights_sha256(folder)
    assert sum(t.nbytes for t in state.values()) < (folder / "model.safetensors").stat().st_size


# --- costs


def QUICK(served, folder):
    return measure_side_by_side(served, folder, served, folder, limit_s=0)


def test_counted_costs_are_those_of_the_model_and_of_its_file(trained):
    served, folder, _ = trained
    found = measure_costs(served, folder, limit_s=0)
    assert found.params == sum(p.numel() for p in served.model.parameters())
    assert found.file_bytes == (folder / "model.safetensors").stat().st_size
    assert {"cpu_batch_1", "cpu_batch_32"} <= set(found.latency)
    assert all(0 < one.p50_ms <= one.p95_ms for one in found.latency.values())


def test_the_time_limit_ends_a_measurement_and_it_says_so(trained):
    served, folder, _ = trained
    found = measure_costs(served, folder, limit_s=0).latency["cpu_batch_1"]
    assert (found.calls, found.cut) == (LEAST_CALLS, True)


def test_the_peak_of_memory_holds_the_weights_and_the_widest_layer_and_is_the_same_each_time(tmp_path):
    """32 images of 16 tokens: the MLP's hidden layer of 256 alone takes 32 x 16 x 256 x 4 bytes, and its GELU as much again."""
    narrow, wide = (untrained(tmp_path / str(ratio), mlp_ratio=ratio) for ratio in (4.0, 16.0))
    first, second = (measure_costs(*wide, limit_s=0).peak_memory_bytes["cpu"] for _ in range(2))
    hidden = 32 * 16 * 256 * 4
    weights = sum(p.nbytes for p in wide[0].model.parameters())
    assert first == second
    assert weights + 2 * hidden < first < weights + 3 * hidden
    assert measure_costs(*narrow, limit_s=0).peak_memory_bytes["cpu"] < first


def test_side_by_side_a_model_several_times_deeper_is_slower_and_one_as_deep_is_not(tmp_path):
    shallow, deep = untrained(tmp_path / "shallow", depth=1), untrained(tmp_path / "deep", depth=8)
    one_way = measure_side_by_side(*shallow, *deep)
    assert one_way.candidate.latency["cpu_batch_1"].calls == 300
    assert not one_way.candidate.latency["cpu_batch_1"].cut
    other_way = measure_side_by_side(*deep, *shallow)
    itself = measure_side_by_side(*shallow, *shallow).ratios["cpu_batch_1_p50"]
    assert itself.low <= itself.value <= itself.high
    for batch in (
        "cpu_batch_1_p50",
        "cpu_batch_32_p50",
    ):  # eight times as deep: a busy clock narrows the difference, and does not turn it round
        assert one_way.ratios[batch].high < 1 < other_way.ratios[batch].low
    assert one_way.ratios["cpu_batch_1_p50"].value < itself.value < other_way.ratios["cpu_batch_1_p50"].value


def test_the_ratio_s_interval_by_hand_where_every_call_takes_the_same():
    found = ratio_of_percentiles(np.array([[0.002, 0.004]] * 50), 95)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_two_equal_models_covers_one_nearly_always_even_on_a_busy_machine():
    """Times with bursts that slow both for 20 calls: of 100 such measurements the 95 % interval of p95 misses 1 in at most 15."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(100):
        busy = np.repeat(rng.exponential(1, 15), 20)
        times = 1 + busy[:, None] + rng.exponential(0.1, (300, 2))
        found = ratio_of_percentiles(times, 95, draws=500)
        missed += not found.low <= 1 <= found.high
    assert missed <= 15


# --- the data


def test_a_test_image_that_stands_among_the_others_is_a_leak(folder_of_images, tmp_path):
    told = DataConfig(name="image_folder", path=str(folder_of_images), image_size=8, test_fraction=0.4)
    data = prepare(told, cache=tmp_path / "clean")
    assert data.test_duplicates == 0
    leaking = tmp_path / "leaking"
    shutil.copytree(folder_of_images, leaking)
    test_images, test_labels = read_split(data, "test")
    for i, (pixels, label) in enumerate(zip(test_images, test_labels, strict=True)):  # every test image once more, 6 copies of each
        for copy in range(6):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(leaking / data.classes[label] / f"again-{i}-{copy}.png")
    assert prepare(dataclasses.replace(told, path=str(leaking)), cache=tmp_path / "c").test_duplicates > 0
    assert prepare(DataConfig(name="digits")).test_duplicates == 0


def test_the_commonest_class_of_training_is_what_the_majority_names():
    data = prepare(DataConfig(name="digits"))
    labels = read_split(data, "train")[1]
    commonest = np.bincount(labels).argmax()
    test = load_split(data, "test")
    assert majority(data, test).accuracy == pytest.approx(float((test.labels.numpy() == commonest).mean()))


def test_the_linear_probe_reads_digits_well_and_is_the_same_each_time():
    data = prepare(DataConfig(name="digits"))
    test = load_split(data, "test")
    found = linear_probe(data, test).accuracy
    assert 0.9 < found < 1  # sklearn's own documentation has 0.96 to 0.97 for logistic regression on these images
    assert linear_probe(data, test).accuracy == found


def test_the_linear_probe_parts_dark_from_bright_streamed_or_not(folder_of_images, tmp_path):
    told = DataConfig(name="image_folder", path=str(folder_of_images), image_size=8, test_fraction=0.4)
    for stream_above in (0, None):
        data = prepare(told, cache=tmp_path / str(stream_above), stream_above=stream_above)
        assert linear_probe(data, load_split(data, "test")).accuracy == 1.0


def test_duplicates_are_told_apart_with_their_files_and_pictured(tmp_path):
    """Of 30 photos in the test folder, two stand in training as they are, three mirrored, and one as a JPEG file in val."""
    root = tmp_path / "set"
    photos = [
        Image.fromarray(photo[y : y + 64, x : x + 64])
        for photo in load_sample_images().images
        for y in range(128, 300, 64)
        for x in range(192, 500, 64)
    ]
    rng = np.random.default_rng(0)
    photos = [one for one in photos if np.asarray(one.convert("L")).std() > 25][:24]
    half = len(photos) // 2
    for split, images in (("train", photos[:half]), ("test", photos[half:])):
        for i, photo in enumerate(images):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            photo.save(folder / f"{i:02}.png")
    for name in "ab":
        (root / "val" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(root / "val" / name / f"noise{i}.png")
    photos[half].save(root / "train/b/equal.png")
    ImageOps.mirror(photos[half + 1]).save(root / "train/b/mirrored.png")
    photos[half + 2].save(root / "val/a/again.jpg", quality=90)
    told = DataConfig(name="image_folder", path=str(root), image_size=64, holdout_fraction=0.1)
    found = find_duplicates(told, data := prepare(told, cache=tmp_path / "c"))
    assert (found.equal, found.near, found.not_judged) == (1, 2, "")
    assert found.near_share == 2 / found.judged
    kinds = {(one.kind, one.mirrored, one.test_name, one.other_name) for one in found.pairs}
    assert kinds == {
        ("near", True, "test/b/01.png", "train/b/mirrored.png"),
        ("near", False, "test/a/02.png", "val/a/again.jpg"),
        ("equal", False, "test/a/00.png", "train/b/equal.png"),
    }
    assert [one.kind for one in found.pairs] == ["near", "near", "equal"]
    lines = as_csv(found.pairs).splitlines()
    assert lines[0] == "kind,similarity,mirrored,test,test_class,test_name,split,other,other_class,other_name"
    assert len(lines) == 4 and lines[3].startswith("equal,1.0000,False,0,a,test/a/00.png,")
    paper = sheet(data, found.pairs)
    assert paper.size == (2 * (2 * 160 + 16) + 12, 2 * (160 + 45 + 12) + 12)
    streamed = find_duplicates(told, prepare(told, cache=tmp_path / "s", stream_above=0))
    assert (streamed.equal, streamed.near, streamed.judged) == (1, 0, 0)
    assert streamed.not_judged == "the set is too large for memory, so its images are not compared"


def test_small_images_are_compared_byte_for_byte_only():
    told = DataConfig(name="digits")
    found = find_duplicates(told, prepare(told))
    assert (found.equal, found.pairs, found.judged) == (0, (), 0)
    assert found.not_judged == "images of 8x8 pixels show too little (at least 32x32)"
