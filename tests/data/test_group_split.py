"""Groups: no group is in two splits, each class keeps about its share, and the choice is a function of its arguments alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare, read_split
from vit_search.data.group_split import divide
from vit_search.data.sources import open_source
from vit_search.data.split import split_indices
from vit_search.errors import DataError
from vit_search.planning.image_counts import Images, images_of

PATIENTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=25)
"""The labels of the images of each group."""


def flat(patients):
    labels = np.array([label for patient in patients for label in patient], np.int64)
    groups = np.array([group for group, patient in enumerate(patients) for _ in patient], np.int64)
    return labels, groups


def off(labels, taken, share):
    """The sum of squares that `divide` makes small, computed in another way."""
    parts = [taken[labels == label].mean() - share for label in np.unique(labels)]
    return sum(part**2 for part in [*parts, taken.mean() - share])


def groups_on_each_side(labels, groups, taken):
    return [
        (len(set(groups[(labels == label) & taken])), len(set(groups[(labels == label) & ~taken]))) for label in np.unique(labels).tolist()
    ]


@settings(deadline=None, max_examples=200)
@given(patients=PATIENTS, share=st.floats(0.05, 0.9), seed=st.integers(0, 5))
def test_no_group_is_divided_and_no_single_group_moved_brings_the_shares_closer(patients, share, seed):
    labels, groups = flat(patients)
    division = divide(labels, groups, share, np.random.default_rng(seed), least=0, leave=0)
    taken = division.taken
    assert division.lacking == ()
    assert all(len(set(taken[groups == group])) == 1 for group in range(len(patients)))
    for group in range(len(patients)):
        moved = np.where(groups == group, ~taken, taken)
        assert off(labels, moved, share) >= off(labels, taken, share) - 1e-9
    again = divide(labels, groups, share, np.random.default_rng(seed), least=0, leave=0)
    assert np.array_equal(again.taken, taken)


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=40), share=st.floats(0.05, 0.9))
def test_where_each_group_has_one_class_a_class_is_off_by_less_than_its_largest_group(sizes, share):
    labels, groups = flat([[label] * size for label, size in sizes])
    taken = divide(labels, groups, share, np.random.default_rng(0), least=0, leave=0).taken
    for label in np.unique(labels).tolist():
        largest = max(size for other, size in sizes if other == label)
        assert abs(taken[labels == label].sum() - share * (labels == label).sum()) < largest


@settings(deadline=None, max_examples=100)
@given(patients=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8), share=st.floats(0.1, 0.6))
def test_with_few_groups_the_choice_is_close_to_the_best_of_all(patients, share):
    labels, groups = flat(patients)
    taken = divide(labels, groups, share, np.random.default_rng(0), least=0, leave=0).taken
    every = (np.isin(groups, [g for g in range(len(patients)) if bits >> g & 1]) for bits in range(2 ** len(patients)))
    best = min(off(labels, choice, share) for choice in every)
    assert off(labels, taken, share) <= best + 0.05


@settings(deadline=None, max_examples=100)
@given(labels=st.lists(st.integers(0, 3), min_size=4, max_size=80), share=st.floats(0.05, 0.9))
def test_groups_of_one_image_give_the_shares_of_a_split_without_groups(labels, share):
    labels = np.array(labels)
    taken = divide(labels, np.arange(len(labels)), share, np.random.default_rng(0), least=0, leave=0).taken
    for label in np.unique(labels).tolist():
        assert abs(taken[labels == label].sum() - share * (labels == label).sum()) <= 1
    assert abs(taken.sum() - share * len(labels)) <= 1 + len(set(labels.tolist())) / 2


@settings(deadline=None, max_examples=100)
@given(patients=PATIENTS, share=st.floats(0.05, 0.9))
def test_each_class_has_groups_on_both_sides_or_is_named(patients, share):
    labels, groups = flat(patients)
    division = divide(labels, groups, share, np.random.default_rng(1), least=1, leave=2)
    sides = dict(zip(np.unique(labels).tolist(), groups_on_each_side(labels, groups, division.taken), strict=True))
    assert {label for label, (taken, left) in sides.items() if taken < 1 or left < 2} == set(division.lacking)


def test_the_same_seed_gives_the_same_choice_whatever_the_version():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), 5)
    labels = rng.integers(0, 2, 60)
    taken = divide(labels, groups, 0.25, np.random.default_rng(7)).taken
    assert sorted(set(groups[taken].tolist())) == [5, 8, 9]


class Patients:
    """A source of 400 images of 100 patients, three classes of very different size."""

    title, classes, splits, weights = "patients", ("a", "b", "c"), None, None
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 100, 400)
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 2])[(groups * 7) % 10]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), holdout=st.sampled_from([0.0, 0.05, 0.1]))
def test_all_four_splits_keep_groups_together_and_classes_in_their_shares(seed, holdout):
    config = DataConfig(name="table", path="p", split_seed=seed, holdout_fraction=holdout)
    splits = split_indices(config, Patients)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(400))
    inside = {name: set(Patients.groups[indices].tolist()) for name, indices in splits.items()}
    assert sum(map(len, inside.values())) == len(set(Patients.groups.tolist()))
    for name, share in (("test", 0.15), ("val", 0.1)):
        for label in range(3):
            images = (Patients.labels == label).sum()
            assert (Patients.labels[splits[name]] == label).sum() == pytest.approx(share * images, abs=0.05 * images + 3)


def folder(root, names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)


def config(root, **fields):
    return DataConfig(name="image_folder", path=str(root), image_size=8, **fields)


def test_a_folder_has_groups_by_a_pattern_over_the_names_of_its_files(tmp_path):
    names = [f"{'cat' if patient % 2 else 'dog'}/p{patient:02d}_{i}.png" for patient in range(20) for i in range(4)]
    folder(tmp_path / "f", names)
    grouped = config(tmp_path / "f", group=r"(p\d+)_")
    source = open_source(grouped)
    assert (len(source.group_names), source.group_names[3]) == (20, "p03")
    assert source.summary() == "2 classes: cat, dog; 80 images of 20 groups"
    data = prepare(grouped, cache=tmp_path / "cache")
    patients = [{int(image[0, 0, 0]) // 4 for image in read_split(data, split)[0]} for split in ("train", "val", "holdout", "test")]
    assert sum(map(len, patients)) == 20
    assert data.counts["test"] == 12
    assert images_of(grouped) == Images(*(data.counts[split] for split in ("train", "val", "holdout")))  # as `plan` and `lint` say
    assert data.summary.startswith("2 classes: cat, dog; 80 images of 20 groups (train ")
    assert data.data_hash != prepare(config(tmp_path / "f"), cache=tmp_path / "cache").data_hash


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("p[0-9]+", r"data\.group: 'p\[0-9\]\+' has no parentheses; put them around the group"),
        ("(p", r"data\.group: '\(p' is no regular expression \(.*\); write one, as"),
        (r"(p0)_", r"data\.group: '\(p0\)_' does not fit 6 files of 12: cat/p1_0\.png, .*, … 1 more; change it"),
    ],
)
def test_a_pattern_that_finds_no_group_is_refused(tmp_path, pattern, message):
    folder(tmp_path, [f"{name}/p{patient}_{i}.png" for name in ("cat", "dog") for patient in (0, 1) for i in range(3)])
    with pytest.raises(DataError, match=message):
        open_source(config(tmp_path, group=pattern))


def test_groups_of_a_folder_that_straddle_its_splits_are_named(tmp_path):
    folder(tmp_path, [f"{split}/{name}/p{i}.png" for split in ("train", "test") for name in ("cat", "dog") for i in range(3)])
    with pytest.raises(DataError, match=r"3 groups are in more than one split: p0 \(test/cat/p0\.png test, train/cat/p0\.png train\), p1"):
        open_source(config(tmp_path, group=r"(p\d)"))
