"""What is written into a folder that somebody else may have filled: no link is followed, and others may not be able to change it."""

import os
import stat
import subprocess
import sys

import pytest
from helpers.commands import vit_search
from helpers.synthetic import begin, made

from vit_search import files
from vit_search.cluster import record
from vit_search.cluster.head.folders import HeadServices, locked_folders
from vit_search.config.data_config import DataConfig
from vit_search.data.cache import prepare
from vit_search.errors import ClusterError, LinkError, SearchError
from vit_search.ledger import searches
from vit_search.ledger.file import Ledger, copy_path
from vit_search.promotion import finalists
from vit_search.runtime import ray_folder
from vit_search.search import control, resume_checks, search_folder, trial
from vit_search.search.messages import TrialOrder
from vit_search.text import counted, whole_number
from vit_search.tracking import mlflow_client
from vit_search.tracking.recorded_file import RECORDED
from vit_search.tracking.sync import sync_search

KEPT = b"not ours\n"
ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def victim(tmp_path):
    """A file that must stay as it is, and a folder that must stay empty."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "victim").write_bytes(KEPT)
    yield tmp_path / "victim"
    assert (tmp_path / "victim").read_bytes() == KEPT
    assert list(folder.iterdir()) == []


def submitted(folder):
    record.begin(folder, record.Submission(search="made-1", user="me", key="", version="1", space_hash="", download=False, at=0.0), "text")


WRITING = {
    "sync": sync_search,
    "resume": lambda folder: resume_checks.check(folder, {}),
    "extend": lambda folder: resume_checks.check(folder, {"trials": 9}),
    "promote": lambda folder: finalists.plan(folder, top=1, seeds=1),
    "cluster": lambda folder: record.change(folder, wanted="stopped"),
}


@pytest.fixture
def search(tmp_path):
    folder, _, _ = made(tmp_path / "searches")
    submitted(folder)
    return folder


@pytest.fixture
def driven(search):
    """A search that a driver runs, so that it takes commands."""
    held = Ledger(search / "ledger.jsonl")
    yield search
    held.close()


# Links


@pytest.mark.parametrize("act", WRITING.values(), ids=WRITING)
@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.copy.jsonl", RECORDED, "hindsight.json", "trials/0000"])
def test_a_search_with_a_link_in_it_is_not_written_to(name, act, search, victim):
    place = search / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(victim.with_name("elsewhere") if "/" in name else victim)
    with pytest.raises(SearchError, match=rf"{place}: a link, which is not followed for writing; remove it, or put what it names there\.$"):
        act(search)


@pytest.mark.parametrize("name", ["commands", "ledger.copy.jsonl"])
def test_no_command_is_given_through_a_link(name, driven, victim):
    (driven / name).unlink(missing_ok=True)
    (driven / name).symlink_to(victim.with_name("elsewhere"))
    with pytest.raises(SearchError, match="a link, which is not followed for writing"):
        control.ask(driven, "pause", {}, wait_s=0.1)


def test_a_ledger_that_is_a_link_or_a_pipe_is_not_opened(tmp_path, victim):
    path = tmp_path / "ledger.jsonl"
    path.symlink_to(victim)
    with pytest.raises(LinkError, match=f"^{path}: a link, which is not followed for writing; remove it, or put the file itself there"):
        Ledger(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(LinkError, match=f"^{path}: not a file; remove it"):
        Ledger(path)
    path.unlink()
    copy_path(path).symlink_to(victim)  # holds something else than the ledger, so it is made anew
    Ledger(path).close()
    assert not copy_path(path).is_symlink()


def test_a_command_that_only_reads_does_not_empty_what_a_lock_leads_to(tmp_path, victim, migrated):
    (tmp_path / "mlruns.db").write_bytes(migrated.read_bytes())
    (tmp_path / ".mlruns.db.lock").symlink_to(victim)
    said = vit_search(".", "doctor", code=2).stderr
    assert (
        said
        == f"error: {tmp_path / '.mlruns.db.lock'}: a link, which is not followed for writing; remove it, or put the file itself there.\n"
    )


def test_a_lock_is_never_emptied(tmp_path, migrated):
    (tmp_path / "mlruns.db").write_bytes(migrated.read_bytes())
    (tmp_path / ".mlruns.db.lock").write_bytes(KEPT)
    mlflow_client.client_for(f"sqlite:///{tmp_path / 'mlruns.db'}")
    assert (tmp_path / ".mlruns.db.lock").read_bytes() == KEPT


def test_locks_and_marks_of_a_cluster_follow_no_link(tmp_path, victim):
    folder, _, _ = begin(tmp_path)
    submitted(folder)
    (folder / record.LOCK).symlink_to(victim)
    with pytest.raises(LinkError):
        record.driven(folder)
    head = HeadServices(tmp_path / "head")
    head.state.mkdir(mode=0o700)
    (head.state / "lock").symlink_to(victim)
    with pytest.raises(LinkError), locked_folders(head, tmp_path / "storage"):
        pass
    (head.state / "lock").unlink()
    head.secrets.rmdir()
    head.secrets.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LinkError), locked_folders(head, tmp_path / "storage"):
        pass
    elsewhere = tmp_path / "searches"
    elsewhere.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LinkError):
        submitted(elsewhere)


def test_a_data_cache_s_lock_follows_no_link(tmp_path, victim):
    config, cache = DataConfig(name="digits"), tmp_path / "cache"
    key = prepare(config, cache=cache).folder.name
    (cache / f".{key}.lock").unlink()
    (cache / f".{key}.lock").symlink_to(victim)
    (cache / key / "data.json").unlink()
    with pytest.raises(LinkError):
        prepare(config, cache=cache)


def test_a_trial_s_error_replaces_a_link(tmp_path, victim):
    (tmp_path / "error.txt").symlink_to(victim)
    failed = trial.failure_report(TrialOrder(trial=0, config={}, folder=tmp_path), RuntimeError("broken"))
    assert failed.reason.startswith("RuntimeError: broken") and not (tmp_path / "error.txt").is_symlink()


def test_what_is_written_whole_replaces_a_link(tmp_path, victim):
    (tmp_path / "link").symlink_to(victim)
    files.write_whole(tmp_path / "link", "ours")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "ours"


# Owners and modes


@pytest.mark.parametrize("act", WRITING.values(), ids=WRITING)
@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777])
def test_a_search_that_others_can_change_is_not_written_to(mode, act, search):
    search.chmod(mode)
    with pytest.raises(SearchError, match=rf"other accounts may write into {search} \(mode {mode:04o}\); make it yours alone with chown"):
        act(search)


@ROOT
@pytest.mark.parametrize("act", WRITING.values(), ids=WRITING)
def test_a_search_of_another_account_is_not_written_to(act, search):
    os.chown(search, 12345, -1)
    with pytest.raises(SearchError, match=rf"{search} belongs to another account \(uid 12345\); make it yours alone"):
        act(search)


def test_commands_go_to_searches_of_ours_alone(driven):
    driven.chmod(0o770)
    with pytest.raises(SearchError, match="make it yours alone"):
        control.ask(driven, "pause", {}, wait_s=0.1)


def test_a_folder_in_an_open_search_counts_too(search):
    (search / "trials").mkdir(exist_ok=True)
    (search / "trials").chmod(0o777)
    searches.check_own(search)  # nobody else can enter the search's own folder
    search.chmod(0o755)
    with pytest.raises(SearchError, match=r"other accounts may write into .*/trials"):
        searches.check_own(search)


def test_one_rule_says_who_may_change_a_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for mode, inside, way in ((0o755, False, False), (0o775, True, True), (0o757, True, True), (0o1777, True, False)):
        folder.chmod(mode)
        assert bool(files.open_to_others(folder)) is inside, oct(mode)
        assert bool(files.way_open_to_others(folder)) is way, oct(mode)
    assert not files.open_to_others(folder.parents[-1])  # root's


@ROOT
def test_an_owner_whom_a_container_does_not_know_counts_as_ours_there_and_as_another_elsewhere(tmp_path):
    nobody = int(files.NOBODY.read_text())
    (tmp_path / "folder").mkdir(mode=0o700)
    os.chown(tmp_path / "folder", nobody, -1)
    assert files.open_to_others(tmp_path / "folder") == f"{tmp_path / 'folder'} belongs to another account (uid {nobody})"
    inside = "from vit_search.files import open_to_others as f; import pathlib, sys; sys.exit(f(pathlib.Path(sys.argv[1])) or 0)"
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", inside, str(tmp_path / "folder")]
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ray_s_folder_is_judged_by_the_same_rule(tmp_path, monkeypatch):
    place = tmp_path / "r"
    place.mkdir()
    place.chmod(0o1777)
    monkeypatch.setattr(ray_folder, "LONGEST", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    assert ray_folder.around() == place
    place.chmod(0o777)
    with pytest.raises(ClusterError, match=rf"other accounts may write into {place} \(mode 0777\)"):
        ray_folder.around()


# Numbers in names


@pytest.mark.parametrize("name", ["tiny-²", "tiny-٣", "tiny-" + "9" * 200, "tiny--1", "tiny-x"])
def test_a_folder_with_an_odd_name_stops_no_search(name, tmp_path):
    (tmp_path / "tiny-4").mkdir()
    (tmp_path / name).mkdir()
    folder = search_folder.new_folder(tmp_path, "tiny")
    assert folder.name == "tiny-5" and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_whole_numbers_are_ascii_digits():
    assert [whole_number(text) for text in ("0", "0012", "²", "٣", "", "-1", "1_0", "9" * 19)] == [0, 12, *[None] * 6]


def test_a_count_of_one_has_a_noun_in_the_singular():
    assert [counted(number, "trial") for number in (0, 1, 2, 1562)] == ["0 trials", "1 trial", "2 trials", "1,562 trials"]
    assert [counted(number, "class") for number in (1, 10)] == ["1 class", "10 classes"]
    assert [counted(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]
    assert [counted(number, "GPU") for number in (0.5, 1.0, 2.0)] == ["0.5 GPUs", "1 GPU", "2 GPUs"]
