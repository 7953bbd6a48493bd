"""The champion: moved by one at a time, written down, mended after a kill at any moment, and rolled back."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import mlflow
import pytest
from helpers import servers
from helpers.commands import vit_search
from helpers.promoters import Cut, aliases, back, child, contestant, dies_with_the_lock, promote
from mlflow import MlflowClient

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.errors import PromotionError, PromotionRefusedError
from vit_search.registry import lock as locking
from vit_search.registry.champion import move_champion, repair_champion, rollback_champion
from vit_search.registry.promotion_history import INTENT, read_history, verify_history
from vit_search.registry.version_files import load_problem, load_version
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.model_package import log_model
from vit_search.vit import checkpoint, evaluation, training

SOURCE = "s3://nowhere/model"
"""Of versions whose files nobody reads."""

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["pytest", "vit_search.registry.champion", "mlflow.store.model_registry.sqlalchemy_store"])
"""Each child starts in milliseconds, and from a process that has no database open; so what it does is in a file that imports little."""


def made(client, versions, name="digits"):
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, SOURCE, tags={"verdict": "passed"})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store with a model `digits` of four versions that have passed; 1 was champion, 2 is it."""
    path = tmp_path_factory.mktemp("template") / "mlruns.db"
    client = MlflowClient(f"sqlite:///{path}")
    made(client, 4)
    promote(client, "1", None)
    promote(client, "2", "1")
    return path


@pytest.fixture
def client(template, tmp_path):
    return copy_of(template, tmp_path / "mlruns.db")


def copy_of(path, target):
    shutil.copy2(path, target)
    return MlflowClient(f"sqlite:///{target}")


def tags(client):
    return client.get_registered_model("digits").tags


def locks(client):
    return [model.name for model in client.search_registered_models() if locking.is_lock(model.name)]


BEFORE, AFTER = {"champion": "2", "previous": "1"}, {"champion": "3", "previous": "2"}


def assert_sound(client):
    """Nothing is half done, and nobody stands in the way."""
    assert verify_history(client, "digits") == []
    assert "promotion_intent" not in tags(client)
    assert locks(client) == []


# A move


def test_a_move_sets_both_aliases_and_is_written_down(client):
    record = promote(client, "3", "2", reason="better", facts={"test_accuracy": "0.97"})
    assert aliases(client) == AFTER
    assert (record.n, record.action, record.version, record.came_from) == (3, "promote", "3", "2")
    assert (record.by, record.reason, record.facts) == ("ann", "better", {"test_accuracy": "0.97"})
    assert read_history(client, "digits")[2] == record
    assert [r.version for r in read_history(client, "digits")] == ["1", "2", "3"]
    assert_sound(client)


def test_an_uncontended_move_takes_eleven_calls(client):
    counting = Cut(client)
    promote(counting, "3", "2")
    assert len(counting.calls) == 11
    assert counting.calls[0] == "create_registered_model"
    assert counting.calls[-1] == "delete_registered_model"


def test_a_champion_that_is_another_one_by_now_is_told_and_nothing_moves(client):
    promote(client, "3", "2")
    with pytest.raises(
        PromotionRefusedError, match=r"^digits: the champion moved to version 3 while this promotion ran .expected 2.; "
    ) as told:
        promote(client, "4", "2")
    assert told.value.exit_code == 3
    assert str(told.value).endswith("look at it and promote again.")
    with pytest.raises(PromotionRefusedError, match=r"moved to version 3 while this promotion ran .expected none."):
        promote(client, "4", None)
    client.delete_registered_model_alias("digits", "champion")
    with pytest.raises(PromotionRefusedError, match=r"the champion was taken away while this promotion ran .expected 3."):
        promote(client, "4", "3")
    assert len(read_history(client, "digits")) == 3
    assert locks(client) == []


@pytest.mark.parametrize(
    ("verdict", "seen"), [(None, "it has no verdict"), ("refused", "its verdict is refused"), ("", "it has no verdict")]
)
def test_a_version_that_has_not_passed_is_refused(client, verdict, seen):
    client.create_model_version("digits", SOURCE, tags={} if verdict is None else {"verdict": verdict})
    with pytest.raises(PromotionRefusedError, match=rf"version 5 has not passed the gates .{seen}.; promote it through the gates"):
        promote(client, "5", "2")
    assert aliases(client) == BEFORE
    assert_sound(client)


def test_a_forced_version_passes(client):
    client.create_model_version("digits", SOURCE, tags={"verdict": "forced"})
    assert promote(client, "5", "2").version == "5"


def test_unknown_names_and_versions_are_told_with_what_there_is(client):
    with pytest.raises(PromotionError, match=r"^digts: no registered model of this name; did you mean digits[?]$"):
        move_champion(client, "digts", "1", action="promote", expected=None, by="ann")
    for wrong in ("9", "two"):
        with pytest.raises(PromotionError, match=rf"^digits: there is no version {wrong}; there are 1, 2, 3, 4[.]$"):
            promote(client, wrong, "2")
    with pytest.raises(PromotionError, match=r"^digits: version 2 is the champion already[.]$"):
        promote(client, "2", "2")
    assert_sound(client)


def test_a_long_fact_is_cut_and_a_long_reason_is_refused(client):
    record = promote(client, "3", "2", reason="ä" * 1000, facts={"gate": "x" * 100_000, "test_accuracy": "0.97"})
    assert record.facts["test_accuracy"] == "0.97"
    assert 3000 < len(record.facts["gate"]) < 5000
    assert len(tags(client)["history.000003"]) <= 5000
    with pytest.raises(PromotionError, match=r"the reason has 1,001 characters; give at most 1,000"):
        promote(client, "4", "3", reason="x" * 1001)
    assert_sound(client)


def test_a_forced_promotion_is_called_a_promotion(client):
    with pytest.raises(
        PromotionRefusedError, match=r"moved to version 2 while this promotion ran .expected 1.; look at it and promote again"
    ):
        move_champion(client, "digits", "3", action="force", expected="1", by="ann")


def test_the_same_move_again_changes_nothing_and_gives_the_record_that_is_there(client):
    first = promote(client, "3", "2")
    assert promote(client, "3", "2") == first
    assert len(read_history(client, "digits")) == 3


# Killed at every call


def ran(*arguments):
    """The exit code of a child process."""
    process = FORK.Process(target=child, args=arguments)
    process.start()
    process.join(600)
    return process.exitcode


def calls_of(template, tmp_path, what):
    counting = Cut(copy_of(template, tmp_path / "counted.db"))
    promote(counting, "3", "2") if what == "move" else back(counting)
    return counting.calls


@pytest.mark.parametrize("what", ["move", "rollback"])
def test_killed_before_any_call_repair_leaves_it_as_before_or_as_after(template, tmp_path, what):
    calls = calls_of(template, tmp_path, what)
    new = AFTER if what == "move" else {"champion": "1", "previous": "2"}
    ends = []
    for k in range(1, len(calls) + 1):
        client = copy_of(template, tmp_path / f"{k}.db")
        assert ran(client.tracking_uri, what, k, "killed before") == -signal.SIGKILL
        assert aliases(client)["champion"] in (BEFORE["champion"], new["champion"])
        said = repair_champion(client, "digits")
        assert_sound(client)
        assert aliases(client) in (BEFORE, new), (k, said)
        assert len(read_history(client, "digits")) == (2 if aliases(client) == BEFORE else 3)
        assert repair_champion(client, "digits") == "digits: nothing to repair."
        ends.append(aliases(client) == new)
    assert ends == [k > calls.index("set_registered_model_alias") for k in range(len(calls))]  # the call that moves `champion` decides


@pytest.mark.parametrize("what", ["move", "rollback"])
def test_killed_after_any_call_the_next_move_mends_it_as_well(template, tmp_path, what):
    calls = calls_of(template, tmp_path, what)
    new = "3" if what == "move" else "1"
    for k in range(1, len(calls) + 1):
        client = copy_of(template, tmp_path / f"{k}.db")
        assert ran(client.tracking_uri, what, k, "killed after") == -signal.SIGKILL
        now = aliases(client)["champion"]
        assert now == (new if k > calls.index("set_registered_model_alias") else "2")
        promote(client, "4", now)
        assert aliases(client) == {"champion": "4", "previous": now}
        assert [r.version for r in read_history(client, "digits")] == ["1", "2", *([now] if now == new else []), "4"]
        assert_sound(client)


def test_repair_says_what_it_did(template, tmp_path):
    calls = calls_of(template, tmp_path, "move")
    moves = calls.index("set_registered_model_alias") + 1
    client = copy_of(template, tmp_path / "undone.db")
    ran(client.tracking_uri, "move", moves, "killed before")
    (problem,) = verify_history(client, "digits")
    assert problem.startswith("a promotion to version 3, begun at 2")
    assert problem.endswith("has not ended: wait for it, or vit-search repair digits")
    said = repair_champion(client, "digits")
    assert said.startswith("digits: dropped the promotion to version 3 that ann began on ")
    assert said.endswith(": `champion` names version 2 as before; cleared the lock of 1 dead process away.")
    client = copy_of(template, tmp_path / "done.db")
    ran(client.tracking_uri, "move", moves, "killed after")
    assert repair_champion(client, "digits").startswith("digits: finished the promotion to version 3 that ann began on ")


# Answers that are lost


@pytest.mark.parametrize("what", ["move", "rollback"])
def test_one_lost_answer_is_made_good_within_the_call_and_nothing_is_doubled(template, tmp_path, what):
    for k in range(1, len(calls_of(template, tmp_path, what)) + 1):
        client = copy_of(template, tmp_path / f"{k}.db")
        cut = Cut(client, k, "lost")
        promote(cut, "3", "2") if what == "move" else back(cut)
        assert aliases(client) == (AFTER if what == "move" else {"champion": "1", "previous": "2"})
        assert len(read_history(client, "digits")) == 3
        assert_sound(client)


def test_where_mlflow_goes_away_after_any_call_the_same_move_again_mends_and_doubles_nothing(template, tmp_path):
    for k in range(12):
        client = copy_of(template, tmp_path / f"{k}.db")
        assert ran(client.tracking_uri, "move", k, "lost, then away") == 0
        assert promote(client, "3", "2").n == 3
        assert aliases(client) == AFTER
        assert len(read_history(client, "digits")) == 3
        assert_sound(client)


def test_a_rollback_done_again_after_a_lost_answer_does_not_go_back_to_the_bad_version(client):
    back(client)
    with pytest.raises(PromotionError, match=r"^digits: rolled back already, from version 2 to 1 at .*; name the version with --to[.]$"):
        back(client)
    assert aliases(client) == {"champion": "1", "previous": "2"}


# Many at once


def contest(uri, workers, rounds):
    """All promote at once, again and again; asserts that one wins each round and the others are told so."""
    client = MlflowClient(uri)
    made(client, 2 * workers)
    barrier, results = FORK.Barrier(workers), FORK.Queue()
    contestants = [FORK.Process(target=contestant, args=(uri, worker, rounds, barrier, results)) for worker in range(workers)]
    for process in contestants:
        process.start()
    answers = [results.get(timeout=1800) for _ in range(workers * rounds)]
    for process in contestants:
        process.join(600)
    winners, champion = [], None
    for number in range(rounds):
        of_round = [answer for answer in answers if answer[0] == number]
        assert {expected for _, _, expected, _ in of_round} == {champion}
        ((_, winner, _, _),) = [answer for answer in of_round if not answer[3]]
        moved = f"digits: the champion moved to version {winner} while this promotion ran"
        told = f"{moved} (expected {champion or 'none'}); look at it and promote again."
        assert [answer[3] for answer in of_round if answer[3]] == [told] * (workers - 1)
        winners.append(winner)
        champion = winner
    chain = read_history(client, "digits")
    assert [record.version for record in chain] == winners
    assert [record.came_from for record in chain] == [None, *winners[:-1]]
    assert_sound(client)


@pytest.mark.parametrize("rounds", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_of_eight_promoters_at_once_one_wins_each_round_and_the_others_are_told(tmp_path, rounds):
    contest(f"sqlite:///{tmp_path / 'mlruns.db'}", 8, rounds)


def test_the_same_holds_through_a_server_of_two_processes_and_with_a_kill(tmp_path):
    with servers.mlflow_server(tmp_path, f"sqlite:///{tmp_path / 'mlruns.db'}", "--workers", "2") as uri:
        contest(uri, 4, 3)
        client = client_for(uri)
        champion = aliases(client)["champion"]
        with pytest.raises(PromotionRefusedError, match=rf"moved to version {champion} while"):
            promote(client, "3", "99")
        promote(client, "2", champion) if champion != "2" else None
        assert ran(uri, "move", 6, "killed after") == -signal.SIGKILL  # the call that sets `previous`
        began = time.monotonic()
        assert repair_champion(client, "digits").startswith("digits: finished the promotion to version 3")
        assert time.monotonic() - began >= locking.SETTLE_S
        assert aliases(client) == AFTER
        assert_sound(client)


@pytest.mark.skipif(servers.POSTGRES is None, reason="no PostgreSQL on this machine")
def test_the_same_holds_in_postgresql_where_a_tag_has_5000_characters(monkeypatch):
    with servers.postgres() as uri:
        contest(uri, 4, 2)
        client = MlflowClient(uri)
        champion = aliases(client)["champion"]
        record = promote(client, "1" if champion != "1" else "2", champion, reason="ä" * 1000, facts={"gate": "é" * 9000})
        assert read_history(client, "digits")[-1] == record
        assert_sound(client)


# The lock


def killed_holder(client):
    process = FORK.Process(target=dies_with_the_lock, args=(client.tracking_uri,))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL


FIRST, SECOND = "digits (promotion in progress)", "digits (promotion in progress, 2)"


def test_threads_that_take_the_lock_exclude_each_other(client):
    inside, most = [], []

    def work():
        for _ in range(4):
            with locking.locked(client, "digits"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
    assert locks(client) == []


def test_the_lock_of_a_killed_process_of_this_machine_is_passed_at_once(client):
    killed_holder(client)
    assert locks(client) == [FIRST]
    with locking.locked(client, "digits", wait_s=0) as held:
        assert (held.lock_name, held.dead) == (SECOND, (FIRST,))
        assert locks(client) == [FIRST, SECOND]
    assert locks(client) == []


def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(client):
    killed_holder(client)
    client.set_registered_model_tag(FIRST, "pid", os.getpid())
    with locking.locked(client, "digits", wait_s=0) as held:
        assert held.dead == (FIRST,)


def test_the_lock_of_another_machine_is_passed_after_its_lease_and_not_before(client):
    killed_holder(client)
    client.set_registered_model_tag(FIRST, "machine", "elsewhere 1234 pid:[1]")
    client.set_registered_model_tag(FIRST, "host", "elsewhere")
    client.set_registered_model_tag(FIRST, "lease_s", "1.5")
    with pytest.raises(
        PromotionError, match=r"^digits: .* on elsewhere .process [0-9]+. has held its lock since 20.*: vit-search repair digits$"
    ):
        promote(client, "3", "2", wait_s=0.3)
    began = time.monotonic()
    promote(client, "3", "2")
    assert time.monotonic() - began >= 1.5
    assert_sound(client)


def test_a_live_holder_is_not_robbed_within_its_lease(client):
    with locking.locked(client, "digits"):
        with pytest.raises(PromotionError, match=r"2 s of waiting were not enough"):
            promote(client, "3", "2", wait_s=2, lease_s=0.5)  # the lease is the holder's, not the waiter's
        assert locks(client) == [FIRST]
    assert promote(client, "3", "2").version == "3"


@pytest.mark.parametrize("call", ["set_registered_model_tag", "set_registered_model_alias"])
def test_an_owner_past_half_of_its_lease_neither_writes_nor_lets_go(client, call):
    at = (
        ["create_registered_model", "get_registered_model", "get_model_version", "set_registered_model_tag"].index(call)
        if "tag" in call
        else 4
    )
    slow = Cut(client, at, lambda: time.sleep(1.6))  # the call before it
    with pytest.raises(PromotionError, match=r"half of the 3 s of the lock went by; nothing more is written"):
        promote(slow, "3", "2", lease_s=3)
    assert call not in slow.calls[at:]
    assert aliases(client) == BEFORE
    assert locks(client) == [FIRST]
    repair_champion(client, "digits")
    assert aliases(client) == BEFORE
    assert_sound(client)


def test_a_breaker_that_dies_is_passed_as_well(client):
    killed_holder(client)
    killed_holder(client)
    assert locks(client) == [FIRST, SECOND]
    with locking.locked(client, "digits") as held:
        assert held.dead == (FIRST, SECOND)
    assert locks(client) == []


def test_what_a_breaker_left_that_died_while_letting_go_is_swept_by_repair(client):
    killed_holder(client)
    killed_holder(client)
    client.delete_registered_model(FIRST)
    assert repair_champion(client, "digits") == "digits: cleared the lock of 1 dead process away."
    assert locks(client) == []


def test_a_waiter_that_is_late_does_not_hold_the_lock_beside_the_next_holder(client):
    killed_holder(client)
    next_one = contextlib.ExitStack()

    def is_quicker():
        with locking.locked(client, "digits"):
            pass  # passes the dead one, and clears it away
        next_one.enter_context(locking.locked(client, "digits"))

    late = Cut(client, 4, is_quicker)  # as it makes the second, having found the first to be dead
    with pytest.raises(PromotionError, match=r"has held its lock since"):
        promote(late, "3", "2", wait_s=0.5)
    assert late.calls[:4] == ["create_registered_model", "get_registered_model", "get_registered_model", "create_registered_model"]
    assert locks(client) == [FIRST]
    next_one.close()
    assert locks(client) == []
    assert aliases(client) == BEFORE


def test_of_those_who_wait_for_a_dead_one_s_lease_one_at_a_time_gets_the_lock(client):
    killed_holder(client)
    client.set_registered_model_tag(FIRST, "machine", "elsewhere")
    client.set_registered_model_tag(FIRST, "lease_s", "1")
    inside, most = [], []

    def work():
        with locking.locked(client, "digits"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert locks(client) == []


def test_locks_of_two_names_do_not_meet(client):
    made(client, 1, "mnist")
    with locking.locked(client, "digits"):
        move_champion(client, "mnist", "1", action="promote", expected=None, by="ann", wait_s=0)
    assert [record.version for record in read_history(client, "mnist")] == ["1"]


# What does not agree


def edited(client, n, **values):
    """A record's text with other values, as somebody would write it who knows the format."""
    key = f"history.{n:06d}"
    client.set_registered_model_tag("digits", key, json.dumps(json.loads(tags(client)[key]) | values, ensure_ascii=False))


def last_two_removed(client):
    """Of four records, so that the aliases agree with the second again."""
    promote(client, "2", "3") if aliases(client)["champion"] == "3" else None
    for n in (3, 4):
        client.delete_registered_model_tag("digits", f"history.{n:06d}")


TAMPERED = {
    "edited in the middle": (lambda c: edited(c, 2, reason="other"), "record 2 is not the one that record 3 was written after"),
    "edited at the end": (lambda c: edited(c, 3, by="eve"), "record 3 was changed: its sha256 is not the one in the tag history_head"),
    "made unreadable": (lambda c: c.set_registered_model_tag("digits", "history.000002", "{}"), "record 2 was changed: it cannot be read"),
    "of other types": (lambda c: edited(c, 2, facts=[1]), "record 2 was changed: it cannot be read"),
    "of no version": (lambda c: edited(c, 2, version="two"), "record 2 was changed: it cannot be read"),
    "deleted in the middle": (lambda c: c.delete_registered_model_tag("digits", "history.000002"), "record 2 is missing"),
    "deleted at the end": (lambda c: c.delete_registered_model_tag("digits", "history.000003"), "record 3 is missing"),
    "deleted at the beginning": (lambda c: c.delete_registered_model_tag("digits", "history.000001"), "record 1 is missing"),
    "deleted so that the aliases agree": (last_two_removed, "record 3 is missing"),
    "put in at the end": (
        lambda c: c.set_registered_model_tag("digits", "history.000004", tags(c)["history.000003"]),
        "record 4 was changed: it says that it is record 3",
    ),
    "put in, head forgotten": (lambda c: c.delete_registered_model_tag("digits", "history_head"), "the tag history_head is missing"),
    "champion moved": (
        lambda c: c.set_registered_model_alias("digits", "champion", "4"),
        "`champion` names version 4, but the last record says version 3",
    ),
    "champion taken away": (
        lambda c: c.delete_registered_model_alias("digits", "champion"),
        "`champion` names no version, but the last record says version 3",
    ),
    "previous moved": (
        lambda c: c.set_registered_model_alias("digits", "previous", "1"),
        "`previous` names 1, but the last record says version 2",
    ),
    "champion deleted": (
        lambda c: c.delete_model_version("digits", "3"),
        "version 3, which the last record made the champion, was deleted",
    ),
    "old champion deleted": (lambda c: c.delete_model_version("digits", "1"), "version 1, which has been champion, was deleted"),
    "an intent that is none": (
        lambda c: c.set_registered_model_tag("digits", "promotion_intent", "soon"),
        "the tag promotion_intent cannot be read: vit-search repair digits",
    ),
}


@pytest.mark.parametrize(("act", "problem"), TAMPERED.values(), ids=TAMPERED.keys())
def test_what_was_tampered_with_is_found(client, act, problem):
    promote(client, "3", "2")
    assert verify_history(client, "digits") == []
    act(client)
    assert problem in "\n".join(verify_history(client, "digits"))


def test_after_records_were_removed_their_numbers_stay_missing(client):
    promote(client, "3", "2")
    client.delete_registered_model_tag("digits", "history.000003")
    promote(client, "4", "3")
    assert "record 3 is missing" in verify_history(client, "digits")
    assert [r.n for r in read_history(client, "digits")] == [1, 2, 4]


def test_a_record_of_too_many_brackets_is_told_as_one_that_cannot_be_read(client):
    for key in ("history.000003", INTENT):
        client.set_registered_model_tag("digits", key, "[" * 4900)
    assert [r.n for r in read_history(client, "digits")] == [1, 2]
    assert "the tag promotion_intent cannot be read" in "\n".join(verify_history(client, "digits"))


def test_a_champion_that_an_outsider_has_made_is_told_left_alone_and_stays_in_the_evidence(client):
    client.create_model_version("digits", SOURCE)
    client.set_registered_model_alias("digits", "champion", "5")
    said = "digits: `champion` names version 5, but the last record says version 2: somebody else moved the alias, and it is left so."
    assert repair_champion(client, "digits") == said
    assert aliases(client) == {"champion": "5", "previous": "1"}
    with pytest.raises(PromotionRefusedError, match=r"moved to version 5"):
        promote(client, "3", "2")
    promote(client, "3", "5")
    (problem,) = verify_history(client, "digits")
    assert problem == "between records 2 and 3 somebody else moved the champion from version 2 to version 5"
    with pytest.raises(
        PromotionRefusedError, match=r"version 5 has not passed the gates .it has no verdict.; it was never champion either"
    ):
        back(client)  # `previous` names the outsider's


def test_an_outsider_in_the_middle_of_a_killed_move_does_not_confuse_repair(template, tmp_path):
    client = copy_of(template, tmp_path / "x.db")
    ran(client.tracking_uri, "move", 5, "killed after")  # `champion` names 3, nothing else is done
    client.set_registered_model_alias("digits", "champion", "4")
    said = repair_champion(client, "digits")
    assert "dropped the promotion to version 3" in said
    assert "`champion` names version 4, but the last record says version 2: somebody else moved the alias" in said
    assert aliases(client) == {"champion": "4", "previous": "1"}
    assert "promotion_intent" not in tags(client)


def test_an_intent_that_cannot_be_read_is_removed(client):
    client.set_registered_model_tag("digits", "promotion_intent", "soon")
    assert repair_champion(client, "digits") == "digits: the tag promotion_intent could not be read and was removed."
    assert_sound(client)


def test_a_champion_without_a_history_is_told(client):
    made(client, 2, "old")
    client.set_registered_model_alias("old", "champion", "1")
    assert verify_history(client, "old") == ["`champion` names version 1, but there is no record"]
    move_champion(client, "old", "2", action="promote", expected="1", by="ann")
    assert verify_history(client, "old") == []
    assert rollback_champion(client, "old", reason="r", by="ann").version == "1"


# Rolled back


def test_a_rollback_goes_to_the_previous_champion(client):
    record = back(client)
    assert (record.action, record.version, record.came_from, record.reason, record.by) == ("rollback", "1", "2", "worse at night", "ben")
    assert aliases(client) == {"champion": "1", "previous": "2"}
    assert_sound(client)


def test_a_rollback_goes_to_a_named_version_that_was_champion_though_it_has_no_verdict(client):
    promote(client, "3", "2")
    client.delete_model_version_tag("digits", "1", "verdict")
    assert back(client, to="1").version == "1"
    assert aliases(client) == {"champion": "1", "previous": "3"}
    with pytest.raises(PromotionError, match=r"rolled back already, from version 3 to 1 at .*; name the version with --to, e.g. 2[.]"):
        back(client)
    assert back(client, to="3").version == "3"
    assert_sound(client)


def test_a_rollback_to_what_cannot_be_is_refused_and_nothing_moves(client):
    client.create_model_version("digits", SOURCE)
    made(client, 1, "fresh")
    with pytest.raises(PromotionError, match=r"version 2 is the champion already; name another one with --to"):
        back(client, to="2")
    with pytest.raises(PromotionError, match=r"there is no version 7; there are 1, 2, 3, 4, 5"):
        back(client, to="7")
    with pytest.raises(
        PromotionRefusedError, match=r"version 5 has not passed the gates .it has no verdict.; it was never champion either"
    ):
        back(client, to="5")
    with pytest.raises(PromotionRefusedError, match=r"version 1 cannot take over; the champion stays version 2 .it has no weights."):
        back(client, check=lambda version: "it has no weights" if version.version in ("1", 1) else "")
    client.delete_registered_model_alias("digits", "previous")
    with pytest.raises(PromotionError, match=r"there is no `previous` to roll back to; name a version with --to"):
        back(client)
    with pytest.raises(PromotionError, match=r"fresh: there is no champion to roll back from"):
        rollback_champion(client, "fresh", to="1", reason="r", by="ann")
    assert aliases(client) == {"champion": "2"}
    assert len(read_history(client, "digits")) == 2


def test_a_rollback_first_mends_what_a_dead_one_left(template, tmp_path):
    client = copy_of(template, tmp_path / "x.db")
    ran(client.tracking_uri, "move", 5, "killed after")  # `champion` names 3, `previous` still 1
    assert back(client).version == "2"
    assert [r.version for r in read_history(client, "digits")] == ["1", "2", "3", "2"]
    assert_sound(client)


# With models that load


@pytest.fixture
def loadable(tmp_path):
    """Two versions of a tiny model, the second one the champion; the client, and the folder of each one's weights."""
    client = client_for(f"sqlite:///{tmp_path / 'mlruns.db'}")
    client.create_registered_model("digits")
    experiment = client.create_experiment("digits", artifact_location=(tmp_path / "artifacts").as_uri())
    places = []
    for seed in (1, 2):
        config = TrialConfig(
            data=DataConfig(name="digits"),
            model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=2, patch_size=4, dim=16, heads=2, depth=1),
            training=TrainingConfig(epochs=1),
            seed=seed,
        )
        state = training.start(config, evaluation.Normalisation.of((0.4,), (0.2,)))
        checkpoint.save(tmp_path / f"checkpoint{seed}", state, classes=("even", "odd"), data_hash="h")
        run = client.create_run(experiment).info.run_id
        uri = log_model(tmp_path / f"checkpoint{seed}", run_id=run)
        place = Path(mlflow.artifacts.download_artifacts(uri)) / "artifacts/checkpoint"  # a local one is not copied
        digest = json.loads((place / "config.json").read_text())["sha256"]["model.safetensors"]
        client.create_model_version(
            "digits",
            uri,
            run_id=run,
            model_id=uri.rpartition("/")[2],
            tags={"verdict": "passed", "weights_sha256": digest, "test_accuracy": f"0.9{seed}"},
        )
        promote(client, str(seed), None if seed == 1 else "1", facts={"test_accuracy": f"0.9{seed}"})
        places.append(place)
    return client, places


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def test_a_version_is_loaded_with_its_own_weights_or_not_at_all(loadable, tmp_path):
    client, places = loadable
    served = load_version(client, client.get_model_version("digits", "1"))
    trained = checkpoint.load_model(tmp_path / "checkpoint1")
    assert served.classes == ("even", "odd")
    assert all((a == b).all() for a, b in zip(served.model.state_dict().values(), trained.model.state_dict().values(), strict=True))
    first = client.get_model_version("digits", "1")
    flip(places[0] / "model.safetensors")
    with pytest.raises(PromotionError, match=r"^digits: version 1 holds other weights than were registered"):
        load_version(client, first)
    client.delete_model_version_tag("digits", "1", "weights_sha256")  # as with a version made by hand
    with pytest.raises(
        PromotionError, match=r"^digits: version 1 cannot be loaded .*model.safetensors: its sha256 is not the recorded one"
    ):
        load_version(client, client.get_model_version("digits", "1"))
    for file in ("model.safetensors", "config.json"):  # whole, but another model
        shutil.copy2(places[1] / file, places[0] / file)
    with pytest.raises(PromotionError, match=r"^digits: version 1 holds other weights than were registered"):
        load_version(client, first)
    shutil.rmtree(places[0])
    assert load_problem(client, client.get_model_version("digits", "1")).startswith("digits: version 1 cannot be loaded (")
    assert load_problem(client, client.get_model_version("digits", "2")) == ""


def command(client, *arguments):
    """What `vit-search` answers to arguments: exit code, stdout, stderr."""
    done = vit_search(".", *arguments, "--tracking-uri", client.tracking_uri, code=None)
    return done.returncode, done.stdout, done.stderr


def test_the_commands_roll_back_once_the_version_is_seen_to_load_and_show_the_history(loadable):
    client, places = loadable
    whole = (places[0] / "model.safetensors").read_bytes()
    flip(places[0] / "model.safetensors")
    code, _, said = command(client, "rollback", "digits", "--reason", "worse at night")
    assert code == 3
    assert said.startswith(
        "error: digits: version 1 cannot take over; the champion stays version 2 (digits: version 1 holds other weights "
    )
    assert said.count("\n") == 1
    assert aliases(client) == {"champion": "2", "previous": "1"}

    (places[0] / "model.safetensors").write_bytes(whole)
    code, shown, _ = command(client, "rollback", "digits", "--reason", "worse at night")
    assert (code, shown) == (0, "digits version 1 is champion again, in place of version 2\n")
    assert aliases(client) == {"champion": "1", "previous": "2"}

    code, shown, said = command(client, "history", "digits", "--verify")
    assert said.startswith("note: digits: version 1, 2: only the weights are covered")  # as in versions of vit_search 0.1
    rows = [line.split() for line in shown.splitlines()]
    assert code == 0
    assert [row[5:] for row in rows[1:3]] == [["promote", "–", "→", "1", "0.9100"], ["promote", "1", "→", "2", "0.9200"]]
    assert rows[3][5:] == ["rollback", "2", "→", "1", "0.9100", "worse", "at", "night"]
    assert shown.splitlines()[-1] == (
        "The history is complete, the aliases of digits agree with it, "
        "and the files of its versions, as far as covered, are those that were registered."
    )

    edited(client, 2, reason="none")
    code, shown, said = command(client, "history", "digits", "--verify")
    assert code == 1
    assert said.splitlines()[-1] == (
        "error: digits: record 2 is not the one that record 3 was written after: one of the two was changed or put in"
    )
    code, shown, _ = command(client, "history", "digits", "--json")
    assert code == 0
    assert [record["from"] for record in json.loads(shown)] == [None, "1", "2"]


def test_the_commands_tell_an_unknown_name_and_an_empty_reason_in_one_line(client):
    for arguments in (["rollback", "digtis", "--reason", "r"], ["history", "digtis"], ["repair", "digtis"]):
        code, _, said = command(client, *arguments)
        assert (code, said) == (2, "error: digtis: no registered model of this name; did you mean digits?\n")
    code, _, said = command(client, "rollback", "digits", "--reason", " ")
    assert (code, said) == (2, "error: --reason is empty; say why, e.g. --reason 'wrong on night photos'.\n")
    assert command(client, "repair", "digits") == (0, "digits: nothing to repair.\n", "")
