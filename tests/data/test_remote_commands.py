"""The commands with data behind a URL: `lint` and `plan` list and fetch nothing, mistakes are one line and exit code 2, steps are shown."""

import io
import re
from dataclasses import replace

import pytest
from helpers.commands import vit_search
from helpers.remote_files import KEY, SECRET, http_server, photos
from helpers.servers import free_port
from rich.console import Console

from vit_search.cli import data_progress
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data import parallel
from vit_search.data.cache import prepare
from vit_search.data.progress import shown_by, step
from vit_search.errors import DataError

FILE = """
name: pets
data: {{name: {name}, path: "{path}", image_size: 8}}
trials: 4
epochs: 2
stopping: {{kind: none}}
model: {{patch_size: 4, dim: 16, depth: 1, heads: 2}}
training: {{lr: {{float: [1e-3, 1e-2], log: true}}, batch_size: 4}}
"""


def written(folder, path, name="image_folder"):
    (folder / "pets.yaml").write_text(FILE.format(name=name, path=path))
    return "pets.yaml"


@pytest.fixture
def served(tmp_path):
    photos(tmp_path / "served" / "photos", each=20)
    with http_server(tmp_path / "served") as server:
        yield server


@pytest.mark.parametrize("command", ["lint", "plan"])
def test_images_behind_a_url_are_counted_by_their_names_and_not_fetched(served, tmp_path, command):
    file = written(tmp_path, f"{served.url}/photos")
    done = vit_search(tmp_path, command, file, VIT_SEARCH_CACHE=str(tmp_path / "cache"))
    assert re.search(rf"{served.url}/photos: 40 files, \d+ KiB, fetched into the cache when the search starts", done.stderr)
    assert "2 classes: cat, dog; 40 images" in done.stderr
    assert not (tmp_path / "cache").exists() and not any(path.endswith(".png") for path, _ in served.gets)


def test_a_layout_that_could_be_read_in_two_ways_is_told_with_the_url(served, tmp_path):
    photos(tmp_path / "served" / "photos" / "train", classes=("x",))
    done = vit_search(tmp_path, "lint", written(tmp_path, f"{served.url}/photos"), code=2)
    assert f"error: pets.yaml:3: data.path: {served.url}/photos: train looks like a split" in done.stderr


def test_shards_behind_a_url_are_listed_by_lint_and_plan_says_that_it_cannot_count_them(served, tmp_path):
    (tmp_path / "served" / "a.tar").write_bytes(bytes(1024))
    file = written(tmp_path, f"{served.url}/a.tar", "webdataset")
    around = {"VIT_SEARCH_CACHE": str(tmp_path / "cache")}
    assert f"{served.url}/a.tar: 1 file, 1 KiB, fetched into the cache" in vit_search(tmp_path, "lint", file, **around).stderr
    told = vit_search(tmp_path, "plan", file, code=2, **around).stderr
    assert re.search(
        r"pets\.yaml:3: data\.path: http\S+/a\.tar: 1 file, 1 KiB, not on this machine yet; `vit-search run` fetches them", told
    )


@pytest.mark.parametrize("command", ["lint", "plan", "run"])
def test_a_server_that_cannot_be_reached_is_one_line_and_exit_code_2(tmp_path, command):
    file = written(tmp_path, f"http://127.0.0.1:{free_port()}/photos")
    lines = vit_search(tmp_path, command, file, code=2, VIT_SEARCH_CACHE=str(tmp_path / "cache")).stderr.strip().splitlines()
    assert re.match(r"error: pets\.yaml:3: data\.path: http://\S+/photos: the server cannot be reached", lines[-1])
    assert not list(tmp_path.glob("searches/*"))


@pytest.mark.parametrize("path", [f"s3://{KEY}:{SECRET}@pets/x", f"https://example.org/x?X-Amz-Credential={KEY}&X-Amz-Signature={SECRET}"])
@pytest.mark.parametrize("command", ["lint", "run"])
def test_a_password_in_the_search_file_is_refused_and_repeated_nowhere(tmp_path, path, command):
    done = vit_search(tmp_path, command, written(tmp_path, path), code=2)
    assert "pets.yaml:3: data.path: the " in done.stderr
    for text in (
        done.stdout,
        done.stderr,
        *(file.read_text() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".yaml"),
    ):
        assert SECRET not in text and KEY not in text


def test_a_node_that_does_not_see_the_cache_makes_its_own_copy(served, tmp_path, monkeypatch):
    from vit_search.search.messages import TrialOrder
    from vit_search.search.trial import data_on_this_node

    config = DataConfig(name="image_folder", path=f"{served.url}/photos", image_size=8)
    data = prepare(config, cache=tmp_path / "head")
    model = ModelConfig(image_size=(8, 8), in_channels=3, num_classes=2)
    trial = TrialConfig(data=config, model=model, training=TrainingConfig(epochs=1), seed=0)
    order = TrialOrder(trial=0, config={}, folder=tmp_path, data=data)
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "worker"))
    assert data_on_this_node(order, trial) is data
    elsewhere = replace(order, data=replace(data, folder=tmp_path / "not-here"))
    own = data_on_this_node(elsewhere, trial)
    assert own.folder.is_relative_to(tmp_path / "worker") and own.data_hash == data.data_hash
    photos(tmp_path / "served" / "photos", each=1, first=99)
    with pytest.raises(DataError, match=r"/photos: its files have changed since the search began; start a new search"):
        data_on_this_node(elsewhere, trial)


def test_each_long_step_is_told_with_its_length(served, tmp_path):
    told = []

    def watcher(name, total, unit):
        class Shown:
            def __enter__(self):
                self.done = 0
                return self.advance

            def advance(self, more):
                self.done += more

            def __exit__(self, *_):
                told.append((name, total, unit, self.done))

        return Shown()

    with shown_by(watcher):
        prepare(DataConfig(name="image_folder", path=f"{served.url}/photos", image_size=8), cache=tmp_path / "cache")
    size = sum(path.stat().st_size for path in (tmp_path / "served").rglob("*.png"))
    assert told[:3] == [("listing", 40, "files", 40), ("fetching 40 files", size, "bytes", size), ("hashing", 40, "files", 40)]
    assert told[3:5] == [("looking at", 40, "files", 40), ("decoding", 40, "images", 40)]


def test_without_a_terminal_a_long_step_prints_a_line_every_ten_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(data_progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with data_progress.data_progress(Console(file=out, width=160)), step("decoding", 1000, "images") as advance:
        for _ in range(10):
            now[0] += 2.5
            advance(100)
    assert out.getvalue() == "decoding: 500 of 1,000 images (50%)\ndecoding: 1,000 of 1,000 images (100%)\n"


def test_many_things_are_done_in_other_processes_in_their_order():
    import os

    found = list(parallel.in_chunks(5_000, lambda chunk: (os.getpid(), sum(chunk))))
    assert sum(total for _, total in found) == sum(range(5_000)) and os.getpid() not in {pid for pid, _ in found}
    assert [total for _, total in found] == [sum(range(begin, begin + 500)) for begin in range(0, 5_000, 500)]


def test_a_mistake_in_another_process_is_raised_here_and_one_that_is_killed_is_one_line():
    def fails(chunk):
        if 3_000 in chunk:
            raise DataError("photo 3000: damaged")

    with pytest.raises(DataError, match=r"^photo 3000: damaged$"):
        list(parallel.in_chunks(5_000, fails))

    def dies(chunk):
        import os

        if 3_000 in chunk:
            os.kill(os.getpid(), 9)

    with pytest.raises(DataError, match=r"^a process that read images was killed, probably since the memory was full"):
        list(parallel.in_chunks(5_000, dies))
