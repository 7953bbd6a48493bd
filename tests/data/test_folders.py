"""Image folders as people keep them: their splits, links, hidden folders, endings and damaged files."""

import os

import numpy as np
import pytest
from helpers.commands import vit_search
from PIL import Image
from typer.testing import CliRunner

from vit_search.cli.app import app
from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.data.cache import absent_classes, prepare, read_split
from vit_search.data.decode import read_image
from vit_search.data.sources import open_source
from vit_search.data.sources.image_folder import scan
from vit_search.data.split import classes_not_validated
from vit_search.errors import DataError
from vit_search.planning import search_lint
from vit_search.planning.image_counts import images_of
from vit_search.text import plain


def write(root, *names, seed=0):
    for name in names:
        rng = np.random.default_rng((seed, *os.fsencode(name)))  # no two files alike
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def many(folder, count):
    return [f"{folder}/{i}.png" for i in range(count)]


def config(root, **more):
    return DataConfig(name="image_folder", path=str(root), image_size=8, **more)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_the_splits_of_a_folder_are_used_and_are_no_classes(tmp_path, val):
    counts = {"train/cat": 10, "train/dog": 20, f"{val}/cat": 2, f"{val}/dog": 3, "test/cat": 4, "test/dog": 5}
    for folder, count in counts.items():
        write(tmp_path / "photos", *many(folder, count), seed=len(folder))
    data = prepare(config(tmp_path / "photos", holdout_fraction=0.1), cache=tmp_path / "cache")
    assert data.classes == ("cat", "dog")
    assert data.counts == {"train": 27, "val": 5, "holdout": 3, "test": 9}
    assert data.summary == "2 classes: cat, dog; 44 images (train 27, val 5, holdout 3, test 9)"
    assert np.bincount(read_split(data, "test")[1]).tolist() == [4, 5]
    assert np.bincount(read_split(data, "val")[1]).tolist() == [2, 3]
    expected = read_image(tmp_path / "photos" / "test" / "dog" / "4.png", (8, 8), 3)
    assert (read_split(data, "test")[0][-1] == expected).all()
    planned = images_of(config(tmp_path / "photos", holdout_fraction=0.1))
    assert (planned.train, planned.val, planned.holdout) == (27, 5, 3)


def test_the_images_of_each_split_are_counted_as_they_are_used(tmp_path):
    write(tmp_path / "plain", *many("cat", 40), *many("dog", 40))
    plain = prepare(config(tmp_path / "plain"), cache=tmp_path / "cache")
    assert plain.summary == "2 classes: cat, dog; 80 images (train 56, val 8, holdout 4, test 12)"
    write(
        tmp_path / "own",
        *(file for split, count in (("train", 20), ("test", 5)) for name in "ab" for file in many(f"{split}/{name}", count)),
    )
    limited = prepare(config(tmp_path / "own", train_limit=20), cache=tmp_path / "cache")
    assert limited.summary == "2 classes: a, b; 36 images (train 20, val 4, holdout 2, test 10)"


def test_a_split_that_is_missing_is_taken_from_the_training_images(tmp_path):
    write(tmp_path / "p", *many("train/cat", 50), *many("train/dog", 50))
    shares = {"val_fraction": 0.2, "holdout_fraction": 0.1, "test_fraction": 0.2}
    alone = prepare(config(tmp_path / "p", **shares), cache=tmp_path / "cache")
    assert alone.counts == {"train": 50, "val": 20, "holdout": 10, "test": 20}
    write(tmp_path / "p", *many("test/cat", 7), *many("test/dog", 7), seed=1)
    tested = prepare(config(tmp_path / "p", **shares), cache=tmp_path / "cache")
    assert tested.counts == {"train": 70, "val": 20, "holdout": 10, "test": 14}
    for data in (alone, tested):
        planned = images_of(config(tmp_path / "p", **shares))
        assert data.counts["train"] + data.counts["val"] + data.counts["holdout"] + data.counts["test"] in (100, 114)
    assert (planned.train, planned.val, planned.holdout) == (70, 20, 10)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/cat/1.png", "val/cat/1.png", "bird/1.png"],
            r"train, val look like splits, and bird beside them does not; if they are splits,",
        ),
        (["train/1.png", "test/1.png"], r"test, train look like splits; if they are splits, put only class folders into each"),
        (["val/cat/1.png", "test/cat/1.png"], r"test, val look like splits; if they are splits, add a folder train"),
        (["train/cat/1.png", "train/dog/1.png", "val/a/1.png", "valid/a/1.png"], r"val and valid are the same split"),
        (["photos/cat/1.png", "photos/dog/1.png"], r"one folder only, 'photos', which holds 2 folders; give data\.path: .*photos"),
        (["cat/1.png"], r"one class only, 'cat'; put the images into at least two folders"),
        (["train/cat/1.png", "val/cat/1.png"], r"train: one class only, 'cat'"),
    ],
)
def test_a_layout_that_can_be_read_in_two_ways_is_refused_with_both(tmp_path, names, message):
    write(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        scan(tmp_path)


def test_a_class_that_only_a_later_split_has_is_refused(tmp_path):
    write(tmp_path, *many("train/cat", 3), *many("train/dog", 3), "val/bird/1.png")
    with pytest.raises(DataError, match=r"val: the class 'bird' is not in train; add images of it there, or remove the folder"):
        scan(tmp_path)


def test_a_class_that_a_later_split_lacks_is_named(tmp_path):
    for name in ("bird", "cat", "dog"):
        write(tmp_path / "p", *many(f"train/{name}", 5))
    write(tmp_path / "p", *many("val/cat", 2), *many("test/cat", 2), *many("test/dog", 2), *many("test/bird", 1))
    (tmp_path / "p" / "val" / "dog").mkdir()  # a folder without an image is as good as none
    assert scan(tmp_path / "p").missing == {"val": ("bird", "dog")}
    expected = "3 classes: bird, cat, dog; 22 images (train 15, val 2, test 5); val has no image of bird, dog"
    assert scan(tmp_path / "p").summary() == expected
    used = expected.replace("train 15, val 2, test 5", "train 12, val 2, holdout 3, test 5")  # there is no folder for the holdout
    assert prepare(config(tmp_path / "p"), cache=tmp_path / "cache").summary == used
    (tmp_path / "p" / "test" / "bird" / "0.png").unlink()
    assert scan(tmp_path / "p").missing == {"val": ("bird", "dog"), "test": ("bird",)}
    file = "name: t\ndata: {name: image_folder, path: %s, image_size: 8}\ntrials: 9\nepochs: 9\nmodel: {depth: {int: [1, 4]}}\n"
    found = search_lint.lint(search_file.parse(file % (tmp_path / "p")), 50).findings
    ending = "recognised; add images, or remove"
    assert [one.text for one in found if (one.severity, one.where) == ("warning", "data.path") and "no image" in one.text] == [
        f"val has no image of bird, dog, so nothing tells how well they are {ending} val to have it split off train.",
        f"test has no image of bird, so nothing tells how well it is {ending} test to have it split off train.",
    ]


def test_no_class_is_missing_where_all_are_there(tmp_path):
    write(tmp_path / "flat", *many("cat", 3), *many("dog", 3))
    assert scan(tmp_path / "flat").missing == {}
    write(tmp_path / "p", *many("train/cat", 3), *many("train/dog", 3), *many("val/cat", 1), *many("val/dog", 1))
    assert scan(tmp_path / "p").missing == {}


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, *many("car", 3), *many("train", 3))
    assert scan(tmp_path).classes == ("car", "train")


def test_what_is_left_out_is_counted_by_its_reason(tmp_path):
    write(tmp_path, *many("cat", 3), *many("dog", 3), "cat/.ipynb_checkpoints/0.png", "dog/.1.png")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/notes.txt", "labels.csv"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert scan(tmp_path).summary() == ("2 classes: cat, dog; 6 images; 7 files skipped: 2 .heic, 2 hidden, 1 .csv, 1 .txt, 1 broken link")


def test_links_are_followed_and_a_link_in_a_circle_ends(tmp_path):
    write(tmp_path / "store", *many("felis", 3), "one.png")
    write(tmp_path / "photos", *many("dog", 3))
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "store" / "felis")
    (tmp_path / "photos" / "dog" / "more.png").symlink_to(tmp_path / "store" / "one.png")
    (tmp_path / "photos" / "dog" / "again").symlink_to(tmp_path / "photos" / "dog")
    found = scan(tmp_path / "photos")
    assert (found.classes, len(found.files), found.labels.tolist().count(0)) == (("cat", "dog"), 7, 3)


def test_many_classes_are_shortened(tmp_path):
    for i in range(12):
        write(tmp_path, *many(f"c{i:02d}", 3))
    assert scan(tmp_path).summary().startswith("12 classes: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, … 2 more; 36 images")


def test_a_class_whose_images_are_of_no_kind_that_is_read_is_refused_with_what_was_skipped(tmp_path):
    write(tmp_path, *many("cat", 4))
    (tmp_path / "dog").mkdir()
    for number in range(2):
        (tmp_path / "dog" / f"{number}.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"dog: 0 images; each class needs .* and test \(2 files skipped: 2 \.heic\)\.$"):
        scan(tmp_path)


def test_an_empty_class_folder_is_refused_with_an_empty_and_a_filled_cache(tmp_path):
    write(tmp_path / "p", *many("cat", 4), *many("dog", 4))
    prepare(config(tmp_path / "p"), cache=tmp_path / "cache")
    (tmp_path / "p" / "bird").mkdir()
    for cache in ("cache", "another"):
        with pytest.raises(DataError, match=r"bird: 0 images; each class needs at least 3"):
            prepare(config(tmp_path / "p"), cache=tmp_path / cache)


@pytest.mark.parametrize("ending", ["jfif", "jpe", "avif", "jp2", "ppm", "pgm", "tga", "bmp", "dib", "webp", "tiff"])
def test_what_pillow_reads_is_read(tmp_path, ending):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "pgm": "PPM", "jp2": "JPEG2000", "tiff": "TIFF"}.get(ending, ending.upper())
    grey = Image.new("L" if ending == "pgm" else "RGB", (16, 16), 128 if ending == "pgm" else (128, 128, 128))
    grey.save(tmp_path / f"a.{ending}", format=kind)
    pixels = read_image(tmp_path / f"a.{ending}", (8, 8), 1)
    assert pixels.shape == (1, 8, 8)
    assert np.abs(pixels.astype(int) - 128).max() <= 2


RAMP = np.array([[0, 51], [102, 255]])


@pytest.mark.parametrize(
    "pixels",
    [
        RAMP.astype(np.int32),
        (RAMP / 255).astype(np.float32),
        RAMP.astype(np.float32),
        (RAMP * 257).astype(np.uint16),
        (RAMP * 257).astype(np.int32),
    ],
    ids=["32-bit 0 to 255", "fraction", "float 0 to 255", "16-bit", "32-bit 0 to 65535"],
)
def test_deep_pixels_keep_their_brightness(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", None, 1)[0].tolist() == RAMP.tolist()
    assert read_image((tmp_path / "a.tif").read_bytes(), None, 1)[0].tolist() == RAMP.tolist()


@pytest.mark.parametrize("pixels", [[[-5, 3]], [[0, 90_000]], [[0.0, float("nan")]], [[-0.5, 0.5]], [[0.0, 300.0]]])
def test_deep_pixels_of_an_unknown_scale_are_refused(tmp_path, pixels):
    kind = np.int32 if isinstance(pixels[0][0], int) else np.float32
    Image.fromarray(np.array(pixels, kind)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="whose scale is unknown; save it with 8 or 16 bits a pixel"):
        read_image(tmp_path / "a.tif", None, 1)


def test_a_file_name_in_latin_1_is_read_and_such_a_class_name_is_refused(tmp_path):
    write(tmp_path / "p", *many("cat", 4), *many("dog", 4))
    (tmp_path / "p" / "cat" / "0.png").rename(tmp_path / "p" / "cat" / os.fsdecode(b"caf\xe9.png"))
    assert prepare(config(tmp_path / "p"), cache=tmp_path / "cache").classes == ("cat", "dog")
    (tmp_path / "p" / "dog").rename(tmp_path / "p" / os.fsdecode(b"chi\xe9n"))
    with pytest.raises(DataError, match=r"has a name that cannot be printed; rename it"):
        scan(tmp_path / "p")


def test_all_damaged_images_are_named_at_once_up_to_twenty(tmp_path):
    write(tmp_path / "p", *many("cat", 4), *many("dog", 30))
    for i in range(25):
        (tmp_path / "p" / "dog" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        prepare(config(tmp_path / "p"), cache=tmp_path / "cache")
    lines = str(refused.value).splitlines()
    assert lines[0].endswith("25 images cannot be used:")
    assert len(lines) == 22
    assert lines[-1].strip() == "and 5 more"


def test_a_folder_of_classes_keeps_the_hash_that_older_searches_know(tmp_path):
    for name, level in (("cat/a.bmp", 10), ("cat/b.bmp", 20), ("cat/c.bmp", 30), ("dog/a.bmp", 40), ("dog/b.bmp", 50), ("dog/c.bmp", 60)):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level).save(tmp_path / "p" / name)
    data = prepare(config(tmp_path / "p"), cache=tmp_path / "cache")
    assert data.data_hash == "39298f3a031bff2d8b5158b46febc887a36303f021e7cc3507967d9f6adbf35a"
    assert data.counts == {"train": 2, "val": 2, "holdout": 0, "test": 2}


@pytest.mark.parametrize("command", ["run", "lint", "plan", "train"])
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "photos: missing; data.path names a folder of class folders."),
        (many("train/cat", 3) + many("cat", 3), "photos: "),
        (many("cat", 3), "photos: one class only, 'cat'; put the images into at least two folders, one per class."),
        (many("cat", 3) + many("d\udcf6g", 3), "photos: the class folder 'd\\xf6g' has a name that cannot be printed; rename it."),
    ],
)
def test_what_is_wrong_with_the_images_is_told_at_the_line_that_names_them(tmp_path, monkeypatch, command, files, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text("name: t\ntrials: 1\nepochs: 1\ndata:\n  name: image_folder\n  path: photos\n  image_size: 8\n")
    write(tmp_path / "photos", *files)
    if command != "run" and not files and command != "train":
        return  # a folder that is elsewhere is no mistake for lint
    done = CliRunner().invoke(app, [command, "t.yaml"])
    assert isinstance(done.exception, DataError)
    assert plain(str(done.exception)).startswith(f"t.yaml:6: data.path: {said}")


def test_a_class_without_validation_images_is_named_before_anything_is_decoded_and_refuses_a_metric_that_needs_it(tmp_path):
    write(
        tmp_path / "photos", *many("train/cat", 9), *many("train/dog", 9), *many("train/lynx", 9), *many("val/cat", 3), *many("val/dog", 3)
    )
    found = config(tmp_path / "photos", holdout_fraction=0.2)
    assert classes_not_validated(found, open_source(found), "train") == ("lynx",)
    assert classes_not_validated(found, open_source(found), "train+val") == ()
    data = prepare(found, cache=tmp_path / "cache")
    assert (absent_classes(data, "val"), absent_classes(data, "holdout"), absent_classes(data, "val", "holdout")) == (("lynx",), (), ())
    file = "name: t\ndata: {name: image_folder, path: photos, image_size: 8, holdout_fraction: 0.2}\ntrials: 1\nepochs: 1\n"
    (tmp_path / "t.yaml").write_text(file + "metric: val_auroc\n")
    said = "metric: val_auroc needs validation images of each class, and there is none of lynx; add images, or choose"
    assert f"t.yaml:5: {said}" in " ".join(vit_search(tmp_path, "plan", "t.yaml", code=2).stderr.split())
    assert said in " ".join(
        vit_search(tmp_path, "train", "t.yaml", "--output", "m", code=2, VIT_SEARCH_CACHE=str(tmp_path / "c")).stderr.split()
    )
    (tmp_path / "t.yaml").write_text(file + "metric: val_balanced_accuracy\n")
    vit_search(tmp_path, "plan", "t.yaml")
