"""From retrained finalists to production: who gets through, who does not, what is kept, and what a crash leaves."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from helpers import candidates
from helpers.paths import TESTS
from PIL import Image

from vit_search.config import search_file
from vit_search.data.cache import prepare
from vit_search.errors import PromotionError, PromotionRefusedError
from vit_search.promotion import gates, policy
from vit_search.promotion import promote as promoting
from vit_search.promotion.decision import PromotionRequest
from vit_search.promotion.readings import readings_of
from vit_search.registry.champion import move_champion
from vit_search.registry.promotion_history import read_history, verify_history
from vit_search.registry.version_files import load_problem, load_version
from vit_search.tracking.mlflow_client import client_for

POLICY = """
floors: {linear_probe: false}
cost_above_champion: null
seed_sd: 0.2
allow_dirty: true
"""
"""The tiny models are worse than a linear probe, and a busy machine's clock and three seeds decide nothing here."""

SMALLER = POLICY + "better: {mode: non_inferior, margin: 0.2, cheaper: 0.2}\n"


def request(**options):
    return PromotionRequest("tiny", "somebody", **options)


def promote(retrained, store, text=POLICY, **options):
    return promoting.promote(retrained, policy.parse(text), request(**options), tracking_uri=store)


def refused(done):
    return [one.id for one in done.gates if one.passed is False]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("promotion")


@pytest.fixture(scope="module")
def made(home):
    """A store in which a weak model is champion; a strong one and a small one that is nearly as good, trained and waiting."""
    store = f"sqlite:///{home / 'mlruns.db'}"
    weak = candidates.trained(home, store, "weak", epochs=2)
    strong = candidates.trained(home, store, "strong", epochs=15, seeds=3)
    small = candidates.trained(home, store, "small", epochs=15, dim=20)
    first = promote(weak, store)
    for one in (strong, small):  # logged, and asked in a fresh process, once for all tests
        done = promote(one, store, POLICY + "limits: {params: 1}\n")
        assert refused(done) == ["G8"]
        client_for(store).delete_model_version("tiny", done.version)
    return store, first, weak, strong, small


@pytest.fixture
def copied(made, home, tmp_path):
    """The same store as it was when it was made, for one test to change: its URI."""
    shutil.copy(home / "mlruns.db", tmp_path / "mlruns.db")
    return f"sqlite:///{tmp_path / 'mlruns.db'}"


@pytest.fixture
def fresh(made, tmp_path):
    """A copy of a candidate's folder, whose readings of the test split are its own."""

    def copy(retrained):
        shutil.copytree(retrained.folder, tmp_path / retrained.search)
        shutil.rmtree(tmp_path / retrained.search / "readings", ignore_errors=True)
        places = tuple(tmp_path / retrained.search / p.relative_to(retrained.folder) for p in retrained.finalists[0].checkpoints)
        one = replace(retrained.finalists[0], checkpoints=places)
        return replace(retrained, folder=tmp_path / retrained.search, finalists=(one,))

    return copy


def champion(store):
    return client_for(store).get_model_version_by_alias("tiny", "champion")


def test_the_first_candidate_becomes_champion_with_its_lineage_card_and_history(made):
    store, first, weak, _, _ = made
    client = client_for(store)
    version = client.get_model_version("tiny", first.version)
    assert (first.verdict, first.version, first.reading, first.champion) == ("passed", "1", 1, None)
    assert {"G3", "G4", "G6", "G7", "G12"} <= {one.id for one in first.gates}
    assert next(one for one in first.gates if one.id == "G4").passed is None
    wanted = {
        "search",
        "trial",
        "search_id",
        "data_hash",
        "git_commit",
        "packages_sha256",
        "config_sha256",
        "seeds",
        "hardware",
        "versions",
    }
    wanted |= {"policy_sha256", "weights_sha256", "golden", "promotion_id", "verdict", "test_accuracy", "test_reading", "created_by"}
    assert wanted <= version.tags.keys()
    assert (version.tags["verdict"], version.tags["trial"], version.tags["search"]) == ("passed", "7", "weak")
    assert float(version.tags["test_accuracy"]) == first.answers.accuracy
    assert float(version.tags["optimism"]) == pytest.approx(0.99 - weak.finalists[0].values[0], abs=1e-6)
    for part in ("## Intended use", "## Limits", "95 % interval", "| is \\ taken for |", "| G1 integrity | passed |"):
        assert part in version.description
    report = json.loads(Path(mlflow.artifacts.download_artifacts(version.tags["gate_report"], tracking_uri=store)).read_text())
    assert [gates.Gate.from_dict(one) for one in report["gates"]] == first.gates
    (record,) = read_history(client, "tiny")
    assert (record.version, record.came_from, record.by) == ("1", None, "somebody")
    assert verify_history(client, "tiny") == []


def test_the_seed_in_the_middle_is_the_one_that_is_registered(made, copied, fresh):
    _, _, _, strong, _ = made
    done = promote(fresh(strong), copied)
    values = strong.finalists[0].values
    index = sorted(range(3), key=lambda i: (values[i], i))[1]
    version = champion(copied)
    assert version.tags["seed"] == str(strong.finalists[0].seeds[index])
    assert (done.verdict, done.champion, str(version.version)) == ("passed", "1", done.version)
    assert str(client_for(copied).get_model_version_by_alias("tiny", "previous").version) == "1"
    assert done.reading == 2
    served = load_version(client_for(copied), version)
    assert (served.trained_on, served.config.seed) == (("train", "val"), strong.finalists[0].seeds[index] * 1_000_003)


def test_a_worse_one_is_refused_kept_with_its_evidence_and_not_tested_twice(made, copied, fresh):
    _, _, weak, strong, _ = made
    promote(fresh(strong), copied)
    worse = fresh(replace(weak, search="worse"))
    worse = replace(worse, finalists=(replace(worse.finalists[0], trial=8),))
    retold = replace(worse, run_name="worse-promotion-1")
    before = str(champion(copied).version)
    client = client_for(copied)
    client.delete_model_version("tiny", "1")  # the weak one comes as a new candidate
    done = promote(retold, copied)
    assert done.verdict == "refused"
    assert "G4" in refused(done)
    assert str(champion(copied).version) == before
    version = client.get_model_version("tiny", done.version)
    assert version.tags["verdict"] == "refused"
    assert "no better than the champion" in version.tags["gate"]
    again = promote(retold, copied)
    assert (again.verdict, again.version, again.read_before, again.reading) == ("refused", done.version, True, done.reading)
    assert readings_of(client, "tiny", prepare(worse.spec.data_config).data_hash) == done.reading
    changed = promote(retold, copied, POLICY + "top: 4\n")
    assert "G14" in refused(changed)
    with pytest.raises(PromotionRefusedError, match="has not passed the gates"):
        move_champion(client, "tiny", done.version, action="promote", expected=before, by="somebody")
    forced = promote(retold, copied, force="a drill")
    assert (forced.verdict, forced.version, str(champion(copied).version)) == ("forced", done.version, done.version)
    assert champion(copied).tags["forced"] == "a drill"
    assert read_history(client, "tiny")[-1].reason == "a drill"


def test_a_tie_is_refused_unless_the_policy_takes_a_smaller_one(made, copied, fresh):
    _, _, _, strong, small = made
    promote(fresh(strong), copied)
    waiting = fresh(small)
    tie = promote(waiting, copied)
    assert refused(tie) == ["G4"]
    shutil.rmtree(waiting.folder / "readings")  # the policy is another from the first look on
    smaller = promote(waiting, copied, SMALLER)
    assert (smaller.verdict, str(champion(copied).version)) == ("passed", smaller.version)
    assert "its file is" in next(one for one in smaller.gates if one.id == "G4").said


def test_what_is_the_champion_already_is_left_alone(made, copied):
    _, first, weak, _, _ = made
    again = promote(weak, copied)
    assert (again.verdict, again.version, again.gates) == ("again", first.version, [])
    assert len(read_history(client_for(copied), "tiny")) == 1


def test_a_gate_before_the_test_split_leaves_it_unread(made, copied, fresh):
    """Three reasons at once, and each is told; the files of the test split are damaged, so whoever reads them fails."""
    _, _, _, strong, _ = made
    client_for(copied).set_registered_model_tag("tiny", "protected", "true")
    data = prepare(strong.spec.data_config)
    hidden = {path: path.read_bytes() for path in data.folder.glob("test_*.npy")}
    for path, raw in hidden.items():
        path.write_bytes(bytes(len(raw)))
    try:
        done = promote(fresh(strong), copied, POLICY + "limits: {params: 1000, file_bytes: 1000}\n")
    finally:
        for path, raw in hidden.items():
            path.write_bytes(raw)
    assert refused(done) == ["G8", "G11"]
    assert (done.verdict, done.answers, done.reading) == ("refused", None, 0)
    assert readings_of(client_for(copied), "tiny", data.data_hash) == 1
    assert str(champion(copied).version) == "1"
    assert "1,000 are allowed" in client_for(copied).get_model_version("tiny", done.version).tags["gate"]


def test_a_champion_of_other_data_is_not_compared_with(made, copied, fresh):
    _, _, _, strong, _ = made
    client_for(copied).set_model_version_tag("tiny", "1", "data_hash", "0" * 64)
    with pytest.raises(PromotionRefusedError, match="trained on other data, and may have seen these test images"):
        promote(fresh(strong), copied)
    assert str(champion(copied).version) == "1"


def test_a_champion_that_moved_is_told_before_anything_is_done(made, copied):
    _, _, _, strong, _ = made
    with pytest.raises(PromotionRefusedError, match="the champion is version 1, and --expect-current says 3; look at it and promote again"):
        promote(strong, copied, expect="3")
    with pytest.raises(PromotionRefusedError, match="--expect-current says none"):
        promote(strong, copied, expect="none")


def test_test_images_that_were_trained_on_refuse(home, tmp_path):
    """Each image stands twice in the folder, so that many fall into two splits."""
    rng = np.random.default_rng(0)
    for name, base in (("dark", 30), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(base + rng.integers(-30, 30, (8, 8)), 0, 255).astype(np.uint8)
            for twin in "ab":
                Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}{twin}.png")
    store = f"sqlite:///{tmp_path / 'mlruns.db'}"
    data = f"{{name: image_folder, path: {tmp_path / 'images'}, image_size: 8, channels: 1, holdout_fraction: 0.1}}"
    leaky = candidates.trained(tmp_path, store, "leaky", data=data, epochs=1)
    found = prepare(leaky.spec.data_config).test_duplicates
    assert found > 0
    done = promote(leaky, store)
    assert refused(done) == ["G13"]
    assert next(one for one in done.gates if one.id == "G13").said.startswith(f"{found} test images are also, byte for byte, among")
    assert done.answers is None
    run, _, report = done.tags["gate_report"].removeprefix("runs:/").partition("/")
    client = mlflow.MlflowClient(store)
    kept = {Path(one.path).name for one in client.list_artifacts(run, str(Path(report).parent))}
    assert {"duplicates.csv", "duplicates.png"} < kept
    extra = Image.fromarray(np.zeros((8, 8), np.uint8))
    extra.save(tmp_path / "images/dark/more.png")
    with pytest.raises(PromotionError, match="the data set has changed since the search; its test split is another one"):
        promote(leaky, store)


def run(*arguments):
    command = [sys.executable, "-m", "helpers.candidates", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=1800)


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(made, copied, fresh):
    """Both are better than the champion that both were compared with."""
    _, _, _, strong, small = made
    told = [candidates.as_arguments(fresh(one), POLICY, copied) for one in (strong, small)]
    with ThreadPoolExecutor(2) as both:
        ends = list(both.map(run, told))
    (won,) = [end for end in ends if end.returncode == 0]
    (lost,) = [end for end in ends if end.returncode != 0]
    version = json.loads(won.stdout.splitlines()[-1])["version"]
    assert str(champion(copied).version) == version
    assert f"the champion moved to version {version} while this promotion ran (expected 1); look at it and promote again" in lost.stderr
    client = client_for(copied)
    assert [record.version for record in read_history(client, "tiny")] == ["1", version]
    assert verify_history(client, "tiny") == []
    assert readings_of(client, "tiny", champion(copied).tags["data_hash"]) == 3  # each has read the test split


def assert_nothing_half(store, versions):
    """The champion is the old one or a version that has passed, and its files are whole."""
    client = client_for(store)
    now = champion(store)
    assert str(now.version) in versions
    assert now.tags["verdict"] == "passed"
    assert load_problem(client, now) == ""
    return str(now.version)


@pytest.mark.parametrize("place", [16, 22])
def test_a_promotion_that_is_killed_leaves_the_champion_and_goes_on(place, made, copied, fresh):
    """Killed before a write to MLflow: of the version, and of the history once the alias has moved."""
    killed_and_gone_on(place, True, made, copied, fresh)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("place", range(1, 26))
def test_a_promotion_killed_at_any_write_leaves_the_champion_and_goes_on(place, before, made, copied, fresh):
    killed_and_gone_on(place, before, made, copied, fresh)


def killed_and_gone_on(place, before, made, store, fresh):
    _, _, _, strong, _ = made
    waiting = fresh(strong)
    dead = run(candidates.as_arguments(waiting, POLICY, store, die_at=place, before=before))
    assert dead.returncode == -9, dead.stdout + dead.stderr
    assert_nothing_half(store, {"1", "4"})
    done = run(candidates.as_arguments(waiting, POLICY, store))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["verdict"] in ("passed", "again")
    assert assert_nothing_half(store, {"4"}) == "4"
    client = client_for(store)
    assert [str(v.version) for v in client.search_model_versions("name = 'tiny'")] == ["4", "1"]
    assert [record.version for record in read_history(client, "tiny")] == ["1", "4"]
    assert verify_history(client, "tiny") == []
    assert [model.name for model in client.search_registered_models()] == ["tiny"]  # no lock is left
    assert readings_of(client, "tiny", champion(store).tags["data_hash"]) in (2, 3)  # a crash counts, too


def test_the_default_policy_refuses_what_a_linear_probe_does_better(made, copied, fresh):
    """A ViT of one block that has seen the digits twice does worse than logistic regression on their pixels."""
    _, _, weak, _, _ = made
    client = client_for(copied)
    client.delete_registered_model("tiny")
    done = promote(fresh(weak), copied, "allow_dirty: true\n")
    assert refused(done) == ["G3"]
    assert "worse than logistic regression on the pixels" in next(one for one in done.gates if one.id == "G3").said
    with pytest.raises(mlflow.exceptions.MlflowException):
        champion(copied)


def test_a_search_file_names_the_metric_that_finalists_are_chosen_by():
    assert search_file.parse(candidates.FILE % ("{name: digits}", 1)).metric == "val_accuracy"


@pytest.mark.parametrize("metric", ["val_auroc", "val_loss"])
def test_what_was_ranked_by_another_metric_is_judged_and_recorded_by_it(metric, tmp_path):
    store, name = f"sqlite:///{tmp_path / 'mlruns.db'}", metric.removeprefix("val_")
    first = promote(candidates.trained(tmp_path, store, "weak", epochs=2, metric=metric), store)
    assert (first.verdict, first.champion) == ("passed", None)
    done = promote(candidates.trained(tmp_path, store, "strong", epochs=15, seeds=2, metric=metric), store)
    assert (done.verdict, done.champion, done.reading) == ("passed", "1", 2), gates.reasons(done.gates)
    said = {one.id: one.said for one in done.gates}
    assert f"; {name} " in said["G3"]
    assert f" of {name} on 270 test images" in said["G4"]
    assert said["G9"].startswith(f"{name} ")
    assert ("auroc" in said["G6"]) == (metric == "val_auroc") or "no class lost" in said["G6"]
    tags = client_for(store).get_model_version("tiny", done.version).tags
    better = (lambda a, b: a < b) if metric == "val_loss" else (lambda a, b: a > b)
    assert better(float(tags[f"test_{name}"]), float(first.tags[f"test_{name}"]))
    assert tags["metric"] == metric
    again = next((tmp_path / "strong" / "promotions" / "1" / "readings").iterdir())
    kept = json.loads(again.read_text())
    assert (kept["seen"]["probabilities"] is not None) == (metric == "val_auroc")
    assert kept["majority"].keys() == {"val_accuracy", metric}
