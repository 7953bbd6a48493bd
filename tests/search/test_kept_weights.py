"""The pretrained weights in the folder of a search."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from helpers.remote_files import http_server
from helpers.weight_files import timm_shapes, write_file

from vit_search.config import search_file
from vit_search.data import backbones
from vit_search.errors import LinkError, SearchError, SpecError
from vit_search.search import kept_weights


@pytest.fixture
def spec(tmp_path):
    path = write_file(tmp_path / "a.safetensors", timm_shapes())
    spec = search_file.parse(f"name: a\ndata: {{name: digits}}\ntrials: 1\nepochs: 1\nmodel: {{pretrained: {path}, patch_size: 4}}\n")
    return backbones.pinned(spec, backbones.find_all(spec))


def test_weights_are_kept_once_and_a_damaged_copy_is_made_again(spec, tmp_path):
    folder = tmp_path / "search" / "weights"
    folder.parent.mkdir()
    kept_weights.keep(spec, folder)
    kept = kept_weights.checked(folder, spec.pretrained[0])
    inode = kept.stat().st_ino
    kept_weights.keep(spec, folder)
    assert kept.stat().st_ino == inode
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(SearchError, match="the pretrained weights are damaged"):
        kept_weights.checked(folder, spec.pretrained[0])
    kept_weights.keep(spec, folder)
    assert kept_weights.checked(folder, spec.pretrained[0]) == kept


def test_a_storage_that_fails_is_not_taken_for_damaged_weights(spec, tmp_path):
    """An OSError is tried again for a minute; damaged weights end the trial."""
    kept_weights.keep(spec, tmp_path / "weights")
    kept = kept_weights.checked(tmp_path / "weights", spec.pretrained[0])
    kept.unlink()
    with pytest.raises(FileNotFoundError):
        kept_weights.checked(tmp_path / "weights", spec.pretrained[0])
    kept.symlink_to("/proc/self/mem")  # can be opened, and not be read
    with pytest.raises(OSError, match="Input/output error"):
        kept_weights.checked(tmp_path / "weights", spec.pretrained[0])


def test_what_a_killed_process_left_of_a_copy_is_removed(spec, tmp_path):
    left = tmp_path / "weights" / f"{'0' * 64}.123.new"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(bytes(100))
    kept_weights.keep(spec, tmp_path / "weights")
    assert not left.exists()


def test_weights_that_change_while_they_are_copied_are_told_before_a_trial_begins(spec, tmp_path, monkeypatch):
    copyfile = shutil.copyfile

    def slow(source, target):
        write_file(Path(source), timm_shapes(), metadata={"seed": "2"})
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", slow)
    with pytest.raises(SearchError, match=r"a\.safetensors: changed while the search copied it; start the search again"):
        kept_weights.keep(spec, tmp_path / "weights")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda path: path.unlink(), r"a\.safetensors: no such file"),
        (
            lambda path: write_file(path, timm_shapes(), metadata={"seed": "2"}),
            r"a\.safetensors: the file has changed: its sha256 is .* is expected",
        ),
    ],
    ids=["gone", "changed"],
)
def test_weights_that_are_gone_or_changed_say_where_to_put_them_and_are_an_error_only_where_they_are_needed(spec, tmp_path, change, fact):
    change(tmp_path / "a.safetensors")
    folder = tmp_path / "weights"
    place = folder / spec.pretrained[0].partition("#sha256=")[2]
    with pytest.raises(SpecError, match=rf"^model\.pretrained: .*{fact}; put the file that the search began with back, .* into {place}\.$"):
        kept_weights.keep(spec, folder)
    kept_weights.keep(spec, folder, needed=False)
    assert not place.exists()


def test_where_nobody_may_need_the_weights_a_copy_in_the_cache_is_taken_and_no_server_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_SEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "there").mkdir()
    write_file(tmp_path / "there" / "a.safetensors", timm_shapes())
    with http_server(tmp_path / "there") as served:
        source = f"{served.url}/a.safetensors"
        spec = search_file.parse(
            f"name: a\ndata: {{name: digits}}\ntrials: 1\nepochs: 1\nmodel: {{pretrained: '{source}', patch_size: 4}}\n"
        )
        spec = backbones.pinned(spec, backbones.find_all(spec))
        gets = len(served.gets)
        kept_weights.keep(spec, tmp_path / "weights", needed=False)
        assert kept_weights.checked(tmp_path / "weights", spec.pretrained[0]).is_file()
        shutil.rmtree(tmp_path / "cache")
        kept_weights.keep(spec, tmp_path / "others", needed=False)
        assert not list((tmp_path / "others").glob("*/model.safetensors"))
        assert len(served.gets) == gets
        kept_weights.keep(spec, tmp_path / "others")  # a trial starts from them
        assert kept_weights.checked(tmp_path / "others", spec.pretrained[0]).is_file()


def test_a_place_that_cannot_hold_the_weights_is_an_error_only_where_they_are_needed(spec, tmp_path):
    (tmp_path / "weights").write_text("somebody's own file")
    with pytest.raises(SearchError, match=r"weights: the pretrained weights cannot be written \(File exists\); make room or mend it"):
        kept_weights.keep(spec, tmp_path / "weights")
    kept_weights.keep(spec, tmp_path / "weights", needed=False)
    assert (tmp_path / "weights").read_text() == "somebody's own file"


def test_rights_follow_the_umask_as_those_of_the_folders_beside_it(spec, tmp_path):
    before = os.umask(0o027)
    try:
        kept_weights.keep(spec, tmp_path / "weights")
    finally:
        os.umask(before)
    kept = kept_weights.checked(tmp_path / "weights", spec.pretrained[0])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "weights", kept.parent, kept)] == [0o750, 0o750, 0o640]


def test_nothing_is_written_through_a_link(spec, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LinkError, match="weights: a link, which is not followed for writing"):
        kept_weights.keep(spec, tmp_path / "weights")
    assert not list((tmp_path / "elsewhere").iterdir())
