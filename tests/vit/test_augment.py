"""Augmentation: each operation is torchvision's, each draw has its law, each image its own draw, and the same seed the same bits."""

import gzip
import math

import numpy as np
import pytest
import torch
from helpers.paths import SHARED
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from vit_search.config.training_config import TrainingConfig
from vit_search.vit import augment
from vit_search.vit.augment import Targets
from vit_search.vit.loss import Loss

FASHION = SHARED / "data" / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz"

NAMES = tuple(v2.RandAugment()._AUGMENTATION_SPACE)  # torchvision's names, in the order of our OPERATIONS
RESAMPLED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
BLENDED = {"Brightness", "Color", "Contrast", "Sharpness"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clothes(count):
    """Real images of 28x28, or where FashionMNIST is not beside the project, drawn ones as black at the border."""
    if FASHION.is_file():
        with gzip.open(FASHION) as file:
            raw = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
        return torch.tensor(raw).view(count, 1, 28, 28)
    return F.pad(torch.randint(0, 256, (count, 1, 20, 20), generator=seeded(1), dtype=torch.uint8), (4, 4, 4, 4))


def photos(count, height=24, width=32):
    """Smooth RGB images, not square, with every level of a byte."""
    coarse = torch.randint(0, 256, (count, 3, 4, 5), generator=seeded(2)).float()
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)


IMAGES = {"grey": clothes(6), "rgb": photos(4), "noise": torch.randint(0, 256, (4, 3, 20, 20), generator=seeded(3), dtype=torch.uint8)}
POLICIES = {"trivial_augment": v2.TrivialAugmentWide(), "rand_augment": v2.RandAugment()}


def told_to_operations(policy, images, monkeypatch, magnitude=0):
    """Reaches and strengths with which a policy calls its operations."""
    seen = []

    def spy(part, strength, sign, reach):
        seen.append((strength, sign, reach))
        return part

    monkeypatch.setattr(augment, "OPERATIONS", (spy,) * len(NAMES))
    if policy == "trivial_augment":
        augment.trivial_augment(images, seeded())
    else:
        augment.rand_augment(images, 1, magnitude, seeded())
    monkeypatch.undo()
    return seen


@pytest.fixture(params=POLICIES)
def policy(request):
    return request.param


def magnitudes(policy, name, height, width):
    """torchvision's 31 magnitudes, but that TrivialAugment translates a small image by its side at most, not by 32 pixels."""
    if policy == "trivial_augment" and name.startswith("Translate"):
        return torch.linspace(0, min(32, height, width), 31)
    bins, _ = POLICIES[policy]._AUGMENTATION_SPACE[name]
    return bins(31, height, width)


def between_two_pixels(name, magnitude, height, width):
    """Where the point of the source lies on the border of two pixels, so that the last bit of a float decides; (height, width)."""
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij")
    if name == "ShearX":
        x = x + magnitude * (y + 0.5)
    elif name == "ShearY":
        y = y + magnitude * (x + 0.5)
    elif name == "Rotate":
        across, down, angle = x - (width - 1) / 2, y - (height - 1) / 2, math.radians(magnitude)
        x = math.cos(angle) * across - math.sin(angle) * down + (width - 1) / 2
        y = math.sin(angle) * across + math.cos(angle) * down + (height - 1) / 2
    return (((x + 0.5) % 1 - 0.5).abs() > 0.4999) | (((y + 0.5) % 1 - 0.5).abs() > 0.4999)


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_an_operation_is_torchvisions_at_every_level_and_both_signs(policy, number, images, monkeypatch):
    name, operation = NAMES[number], augment.OPERATIONS[number]
    reach = told_to_operations(policy, images, monkeypatch)[0][2]
    theirs_at = magnitudes(policy, name, *images.shape[-2:])
    signed = POLICIES[policy]._AUGMENTATION_SPACE[name][1]
    differences = []
    for level in range(31):
        for sign in (1, -1) if signed else (1,):
            magnitude = 0.0 if theirs_at is None else float(theirs_at[level]) * sign
            if name == "Solarize":  # torchvision's 255 * linspace(1, 0, 31) lies 1e-5 above the whole number at levels 16, 18 and 24
                theirs = vision.solarize(images, 255 - 8.5 * level)
            else:
                black = {torch.Tensor: None}
                theirs = POLICIES[policy]._apply_image_or_video_transform(images, name, magnitude, v2.InterpolationMode.NEAREST, black)
            every = torch.full((len(images),), level) / 30, torch.full((len(images),), sign)
            ours = operation(images, *every, reach)
            assert ours.dtype == torch.uint8
            difference = (ours.int() - theirs.int()).abs()
            if name in RESAMPLED:
                difference *= ~between_two_pixels(name, magnitude, *images.shape[-2:])
            differences.append(difference)
    difference = torch.stack(differences)
    if name in BLENDED:  # a product that lies a last bit below a whole number is cut to the byte below it
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01
    else:
        assert difference.max() == 0


def test_colour_leaves_a_grey_image_as_it_is():
    every = torch.linspace(0, 1, 6), torch.tensor([1, -1, 1, -1, 1, -1])
    reach = augment.Reach(0.99, (28, 28), 135.0, 0.99, 6)
    assert torch.equal(augment.OPERATIONS[NAMES.index("Color")](IMAGES["grey"], *every, reach), IMAGES["grey"])


def dot_moved_by(name, strength, sign):
    """Row and column of a dot that stood at row 2, column 5 of a 9x9 image, after an operation of TrivialAugment."""
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 2, 5] = 255
    reach = augment.Reach(0.99, (9, 9), 135.0, 0.99, 6)
    moved = augment.OPERATIONS[NAMES.index(name)](image, torch.tensor([strength]), torch.tensor([sign]), reach)
    assert set(moved.unique().tolist()) <= {0, 255}  # nearest pixel, no grey between; black comes in
    return [tuple(place.tolist()) for place in moved[0, 0].nonzero()]


def test_directions():
    assert dot_moved_by("TranslateX", 1 / 3, 1) == [(2, 8)]  # right by 3
    assert dot_moved_by("TranslateX", 1 / 3, -1) == [(2, 2)]
    assert dot_moved_by("TranslateY", 1 / 3, 1) == [(5, 5)]  # down by 3
    assert dot_moved_by("TranslateX", 1.0, 1) == []  # out of the image
    assert dot_moved_by("Rotate", 90 / 135, 1) == [(3, 2)]  # a quarter anticlockwise about the centre (4, 4): up goes left
    assert dot_moved_by("Rotate", 90 / 135, -1) == [(5, 6)]
    assert dot_moved_by("ShearX", 0.8 / 0.99, 1) == [(2, 3)]  # sheared left by 0.8 of 2.5 rows below the upper edge
    assert dot_moved_by("ShearY", 0.4 / 0.99, -1) == [(4, 5)]  # sheared down by 0.4 of 5.5 columns right of the left edge, 2.2


@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 40), (8, 8)])
def test_the_levels_reach_as_far_as_torchvisions(policy, height, width, monkeypatch):
    images = torch.zeros(2000, 1, height, width, dtype=torch.uint8)
    seen = told_to_operations(policy, images, monkeypatch, magnitude=30)
    reach = seen[0][2]
    last = {name: bins[-1] for name in NAMES if (bins := magnitudes(policy, name, height, width)) is not None}
    assert reach.shear == pytest.approx(float(last["ShearX"])) == pytest.approx(float(last["ShearY"]))
    assert reach.translate == pytest.approx((float(last["TranslateY"]), float(last["TranslateX"])))
    assert reach.degrees == pytest.approx(float(last["Rotate"]))
    assert all(reach.factor == pytest.approx(float(last[name])) for name in BLENDED)
    assert reach.bits == 8 - int(last["Posterize"])
    assert last["Solarize"] == 0
    strengths, signs = torch.cat([s for s, _, _ in seen]), torch.cat([s for _, s, _ in seen])
    assert set(signs.tolist()) == {1, -1}
    levels = (strengths * 30).round().long().bincount(minlength=31)
    if policy == "rand_augment":
        assert levels.tolist() == [0] * 30 + [2000]
    else:
        assert levels.min() > 30  # 2000 / 31 = 65, deviation 8
        assert levels.max() < 100


def test_rand_augment_works_at_the_magnitude_it_is_told(monkeypatch):
    seen = told_to_operations("rand_augment", IMAGES["grey"], monkeypatch, magnitude=9)
    assert all(float(s) == pytest.approx(9 / 30) for strengths, _, _ in seen for s in strengths)


def test_rand_augment_does_its_operations_one_after_another(monkeypatch):
    monkeypatch.setattr(augment, "OPERATIONS", (lambda part, *_: part + 1,) * len(NAMES))
    assert augment.rand_augment(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), 3, 9, seeded()).unique().tolist() == [3]
    assert augment.trivial_augment(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), seeded()).unique().tolist() == [1]


def test_every_operation_is_drawn_as_often_and_images_keep_their_places(policy, monkeypatch):
    marked = [lambda part, *_, n=n: part * 0 + n for n in range(len(NAMES))]
    monkeypatch.setattr(augment, "OPERATIONS", tuple(marked))
    images = torch.zeros(2800, 1, 2, 2, dtype=torch.uint8)
    drawn = augmented(policy, images, seeded())[:, 0, 0, 0].long()
    counts = drawn.bincount(minlength=14)
    assert counts.min() > 140  # 200 expected, deviation 14
    assert counts.max() < 260
    monkeypatch.setattr(augment, "OPERATIONS", (lambda part, *_: part,) * len(NAMES))
    numbered = torch.arange(250, dtype=torch.uint8)[:, None, None, None].expand(250, 1, 2, 2)
    assert torch.equal(augmented(policy, numbered, seeded()), numbered)


def augmented(policy, images, generator):
    config = TrainingConfig(auto_augment=policy, rand_augment_ops=1)
    return augment.moved(images, config, generator)


# Crop, shift and flip


def boxes_cut(least, count=4000, height=32, width=32):
    """Height, width, top and left of the boxes that a crop cuts, as shares of the image; read off a ramp in each direction."""
    ramp_y = torch.linspace(0, 255, height)[:, None].expand(height, width)
    ramp_x = torch.linspace(0, 255, width)[None].expand(height, width)
    thetas = []
    original = augment.warp
    try:
        augment.warp = lambda images, theta, *_: thetas.append(theta) or original(images, theta, *_)
        images = torch.stack([ramp_y, ramp_x, ramp_x]).to(torch.uint8)[None].expand(count, -1, -1, -1)
        out = augment.resized_crop(images, least, seeded())
    finally:
        augment.warp = original
    (theta,) = thetas
    tall, wide = theta[:, 1, 1], theta[:, 0, 0]
    top, left = (theta[:, 1, 2] - tall + 1) / 2, (theta[:, 0, 2] - wide + 1) / 2
    return out, tall, wide, top, left


def test_a_crop_keeps_its_share_of_the_area_and_its_shape_and_stays_inside():
    out, tall, wide, top, left = boxes_cut(0.25)
    area, ratio = tall * wide, wide / tall
    assert 0.25 <= area.min() < 0.26
    assert 0.99 < area.max() <= 1 + 1e-6
    assert area.mean() == pytest.approx(0.625, abs=0.01)  # uniform from 0.25 to 1
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.01)
    assert ratio.log().mean() == pytest.approx(0, abs=0.01)  # as often tall as wide
    for start, side in ((top, tall), (left, wide)):
        assert start.min() >= -1e-6
        assert (start + side).max() <= 1 + 1e-6
        place = (start / (1 - side))[side < 0.9]  # uniform among the places that fit
        assert place.mean() == pytest.approx(0.5, abs=0.02)
        assert place.std() == pytest.approx(1 / math.sqrt(12), abs=0.02)
    across = out[:, 0, -1, 16].float() - out[:, 0, 0, 16].float()  # what the cut pixels say: the ramp covers as much as the box
    assert (across / 255 - tall).abs().max() < 0.04  # half a pixel of 32 at each end


def test_even_a_crop_of_nearly_the_whole_keeps_its_least_area():
    _, tall, wide, _, _ = boxes_cut(0.9)
    assert (tall * wide).min() >= 0.9 - 1e-6  # an area of 0.95 leaves no room for 4:3
    assert max(tall.max(), wide.max()) <= 1 + 1e-6


def test_a_crop_of_the_whole_changes_nothing():
    assert all(torch.equal(augment.resized_crop(images, 1.0, seeded()), images) for images in IMAGES.values())


def test_no_black_comes_into_a_crop():
    white = torch.full((500, 1, 28, 28), 255, dtype=torch.uint8)
    assert augment.resized_crop(white, 0.08, seeded()).min() == 255


def test_a_crop_holds_what_torchvisions_resized_crop_holds(monkeypatch):
    corner = torch.tensor([[[0.5, 0.0, -0.5], [0.0, 0.25, -0.75]]])  # the left half of the upper quarter
    image = photos(1, 32, 32)
    ours = augment.warp(image, corner, "bilinear", "border").int()
    theirs = vision.resized_crop(image, 0, 0, 8, 16, [32, 32], antialias=False).int()
    assert (ours - theirs).abs()[..., :28, :30].max() <= 1  # torchvision repeats the box's last row, ours sees the next one


@pytest.mark.parametrize("images", [clothes(64), photos(64)], ids=["grey", "not square"])
def test_a_shift_cuts_a_window_of_the_padded_image(images):
    batch, _, height, width = images.shape
    moved = augment.shift(images, 3, seeded(5))
    down, right = torch.randint(0, 7, (2, batch), generator=seeded(5))
    padded = F.pad(images, (3, 3, 3, 3))
    for i in range(batch):
        assert torch.equal(moved[i], padded[i, :, down[i] : down[i] + height, right[i] : right[i] + width])


def test_a_shift_may_be_wider_than_the_image():
    moved = augment.shift(torch.full((400, 1, 2, 2), 7, dtype=torch.uint8), 8, seeded())
    assert (moved.sum((1, 2, 3)) == 0).float().mean() == pytest.approx(1 - (3 / 17) ** 2, abs=0.05)  # three of 17 places a direction


def test_half_of_the_images_are_mirrored_each_by_its_own_draw():
    images = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3).repeat(2000, 1, 1, 1)
    flipped = augment.flip(images, seeded())
    kept = (flipped == images).all((1, 2, 3))
    assert kept.float().mean() == pytest.approx(0.5, abs=0.04)  # deviation 0.011
    assert flipped[~kept].unique(dim=0).tolist() == [[[[2, 1, 0], [5, 4, 3]]]]
    after_kept = kept[1:][kept[:-1]].float().mean()
    assert after_kept == pytest.approx(0.5, abs=0.06)  # whether the one before was kept tells nothing


def test_normalised_bytes_are_a_straight_line():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).repeat(1, 2, 1, 1)
    values = augment.normalise(images, torch.tensor([0.2, 0.5]), torch.tensor([0.4, 0.25]))
    assert values.flatten().tolist() == pytest.approx([-0.5, 0.0, 2.0, -2.0, -1.2, 2.0], abs=1e-6)
    assert images.flatten().tolist() == [0, 51, 255] * 2  # as they were


# Erasing and mixing


def erased_boxes(images):
    """Rows and columns of the zeros in images that had none; every box must be a full rectangle."""
    gone = (images == 0).all(1)
    rows, cols = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), rows * cols)
    assert torch.equal(gone, (images == 0).any(1))  # the same place in all channels
    return rows, cols


def test_erasing_overwrites_a_box_of_2_to_33_per_cent_of_as_many_images_as_the_chance_says():
    out = augment.erase(torch.ones(4000, 3, 64, 64), 0.25, seeded())
    rows, cols = erased_boxes(out)
    picked = rows > 0
    assert picked.float().mean() == pytest.approx(0.25, abs=0.03)
    share = (rows * cols)[picked] / 64**2
    assert 0.018 < share.min() < 0.03  # 2 %, up to the rounding of its sides
    assert 0.32 < share.max() < 0.34
    assert share.mean() == pytest.approx(0.175, abs=0.01)
    ratio = rows[picked] / cols[picked]
    assert 0.27 < ratio.min() < 0.35
    assert 2.9 < ratio.max() < 3.7
    assert set(augment.erase(torch.ones(50, 1, 8, 8), 1.0, seeded()).sum((1, 2, 3)).lt(64).tolist()) == {True}
    assert augment.erase(torch.ones(50, 1, 8, 8), 0.0, seeded()).min() == 1


def test_an_erased_box_may_lie_anywhere():
    ever = (augment.erase(torch.ones(3000, 1, 16, 16), 1.0, seeded()) == 0).float().mean(0)[0]
    assert ever.min() > 0.01  # corners, too
    assert torch.allclose(ever, ever.flip(0), atol=0.06)
    assert torch.allclose(ever, ever.flip(1), atol=0.06)


def one_hot_images(count, side=16):
    """Image i is filled with i, and its label is i: what is mixed in can be read off its pixels."""
    values = torch.arange(float(count))
    return values[:, None, None, None].expand(count, 2, side, side).clone(), torch.arange(count)


def test_mixup_blends_images_and_targets_with_the_same_share():
    images, labels = one_hot_images(64)
    out, targets = augment.mix(images, labels, 0.8, 0.0, seeded())
    assert torch.equal(targets.labels, labels)
    assert torch.equal(targets.others, labels.roll(1))  # the neighbour in the batch
    blended = targets.share * targets.labels + (1 - targets.share) * targets.others
    assert torch.allclose(out, blended[:, None, None, None].expand_as(out), atol=1e-4)
    assert len(set(targets.share.tolist())) == 64


@pytest.mark.parametrize("parameter", [0.2, 1.0, 8.0])
def test_the_share_of_mixup_is_drawn_from_the_beta_distribution(parameter):
    share = augment.mix(torch.zeros(20_000, 1, 1, 1), torch.zeros(20_000, dtype=torch.int64), parameter, 0.0, seeded())[1].share
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / (4 * (2 * parameter + 1)), rel=0.05)


def test_the_share_of_cutmix_is_counted_in_pixels():
    images, labels = one_hot_images(64)
    out, targets = augment.mix(images, labels, 0.0, 1.0, seeded())
    own = (out == labels[:, None, None, None]).float()
    other = (out == labels.roll(1)[:, None, None, None]).float()
    assert torch.equal(own + other, torch.ones_like(own))  # each pixel is of one of the two, untouched
    assert torch.allclose(targets.share, own.mean((1, 2, 3)), atol=1e-6)
    rows, cols = erased_boxes(own)  # what is pasted is a rectangle
    assert ((rows - cols).abs() <= 1).all()  # in the image's shape
    assert targets.share.std() > 0.2


def test_with_both_each_image_gets_one_of_the_two():
    images, labels = one_hot_images(2000, side=8)
    out, targets = augment.mix(images, labels, 1.0, 1.0, seeded())
    flat = out.flatten(1)
    pasted = ((flat == labels[:, None]) | (flat == labels.roll(1)[:, None])).all(1)
    assert pasted.float().mean() == pytest.approx(0.5, abs=0.05)
    mean = targets.share * targets.labels + (1 - targets.share) * targets.others
    assert torch.allclose(flat.mean(1), mean, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_targets_is_the_cross_entropy_with_soft_labels(smoothing):
    logits = torch.randn(32, 10, generator=seeded(), dtype=torch.float64)
    labels, others = torch.randint(10, (2, 32), generator=seeded(1))
    share = torch.rand(32, generator=seeded(2), dtype=torch.float64)
    soft = share[:, None] * F.one_hot(labels, 10) + (1 - share)[:, None] * F.one_hot(others, 10)
    expected = F.cross_entropy(logits, soft * (1 - smoothing) + smoothing / 10)
    assert float(Loss(smoothing)(logits, Targets(labels, others, share))) == pytest.approx(float(expected), rel=1e-12)
    hard = F.one_hot(labels, 10).double() * (1 - smoothing) + smoothing / 10
    assert float(Loss(smoothing)(logits, Targets(labels))) == pytest.approx(float(F.cross_entropy(logits, hard)), rel=1e-12)


def test_targets_are_split_with_their_images():
    whole = Targets(torch.arange(5), torch.arange(5) + 10, torch.arange(5) / 10)
    first, last = whole.split(3)
    assert (first.labels.tolist(), first.others.tolist()) == ([0, 1, 2], [10, 11, 12])
    assert last.share.tolist() == pytest.approx([0.3, 0.4])
    assert [part.labels.tolist() for part in Targets(torch.arange(3)).split(2)] == [[0, 1], [2]]


# Laws of them all

FEATURES = {
    "crop": TrainingConfig(crop_scale=0.3),
    "shift": TrainingConfig(shift=3),
    "flip": TrainingConfig(flip=True),
    "trivial_augment": TrainingConfig(auto_augment="trivial_augment"),
    "rand_augment": TrainingConfig(auto_augment="rand_augment", rand_augment_magnitude=15),
    "erasing": TrainingConfig(erasing=0.7),
    "mixup": TrainingConfig(mixup=0.4),
    "cutmix": TrainingConfig(cutmix=1.0),
    "mixup and cutmix": TrainingConfig(mixup=0.4, cutmix=1.0),
}


def whole_way(images, config, seed):
    """As a training step does it."""
    generator, channels = seeded(seed), images.shape[1]
    out = augment.moved(images, config, generator)
    assert (out.dtype, out.shape) == (torch.uint8, images.shape)
    values = augment.normalise(out, torch.full((channels,), 0.3), torch.full((channels,), 0.3))
    mixed, targets = augment.mixed(values, torch.arange(len(images)), config, generator)
    assert (mixed.dtype, mixed.shape) == (torch.float32, images.shape)
    return mixed, targets


@pytest.fixture(params=FEATURES)
def feature(request):
    return FEATURES[request.param]


@pytest.mark.parametrize("shape", [(16, 1, 28, 28), (16, 3, 24, 40), (1, 1, 28, 28), (1, 3, 8, 8), (5, 3, 2, 2)])
def test_the_same_seed_gives_the_same_bits_and_leaves_the_originals_alone(feature, shape):
    images = torch.randint(0, 256, shape, generator=seeded(9), dtype=torch.uint8)
    before = images.clone()
    (first, told), (second, again) = (whole_way(images, feature, 4) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    assert told.share is None or torch.equal(told.share, again.share)


def test_images_of_one_batch_have_draws_of_their_own_and_another_seed_has_others(feature):
    images = torch.randint(0, 256, (1, 1, 28, 28), generator=seeded(9), dtype=torch.uint8).repeat(24, 1, 1, 1)
    images[:, :, ::7] = torch.arange(24, dtype=torch.uint8)[:, None, None, None] if feature.mixup or feature.cutmix else 0
    first, second = (whole_way(images, feature, seed)[0] for seed in (4, 5))
    assert not torch.equal(first, second)
    assert len(first.unique(dim=0)) >= 2  # flip has two outcomes, all others more
    if not feature.flip:
        assert len(first.unique(dim=0)) > 6


def test_nothing_asked_for_is_nothing_done():
    images = IMAGES["grey"]
    assert augment.moved(images, TrainingConfig(), seeded()) is images
    values = images.float()
    same, targets = augment.mixed(values, torch.arange(6), TrainingConfig(), seeded())
    assert same is values
    assert targets.others is None
