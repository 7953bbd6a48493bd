"""Which images an epoch shows."""

from collections import Counter

import torch

from vit_search.data.epoch_order import balanced_order, uniform_order


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uniform_shows_each_image_once_in_the_order_of_torch():
    assert torch.equal(uniform_order(9, seeded(3)), torch.randperm(9, generator=seeded(3)))


def test_balanced_shows_as_many_of_each_class():
    labels = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1])  # six and two images: four of each class are shown
    shown = Counter(balanced_order(labels, seeded()).tolist())
    assert shown[0] == shown[7] == 2  # the rare ones twice
    frequent = [shown[i] for i in range(1, 7)]
    assert sorted(frequent) == [0, 0, 1, 1, 1, 1]  # four of the six, each once


def test_an_epoch_keeps_its_length_and_classes_differ_by_one_image():
    labels = torch.tensor([0] * 20 + [1] * 4 + [3] * 2)  # 26 images of three classes, and none of class 2
    order = balanced_order(labels, seeded())
    counts = torch.bincount(labels[order], minlength=4).tolist()
    assert len(order) == 26
    assert sorted(counts) == [0, 8, 9, 9]
    assert counts[2] == 0
    rare = Counter(order.tolist())
    assert {rare[24], rare[25]} <= {4, 5}


def test_the_order_comes_from_the_seed_and_each_epoch_draws_other_images():
    labels = torch.arange(200) % 20 // 18  # 180 images of class 0, 20 of class 1
    first, again, other = (balanced_order(labels, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    seen = set().union(*(balanced_order(labels, seeded(seed)).tolist() for seed in range(20)))
    assert len(seen) == 200


def test_the_classes_are_mixed_within_an_epoch():
    labels = torch.tensor([0] * 900 + [1] * 100)
    halves = labels[balanced_order(labels, seeded())].view(2, 500).float().mean(1)
    assert (halves - 0.5).abs().max() < 0.1


def test_of_classes_of_one_size_each_image_is_shown_once():
    order = balanced_order(torch.arange(30) % 3, seeded())
    assert sorted(order.tolist()) == list(range(30))
