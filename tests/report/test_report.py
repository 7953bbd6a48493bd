"""The report: its numbers worked by hand on tiny searches, its page closed to the world, and the next search file."""

import contextlib
import io
import json
import math
import os
import pty
import random
import re
import subprocess
import zlib
from pathlib import Path

import pytest
from helpers.commands import COMMAND, vit_search
from helpers.synthetic import made
from rich.console import Console
from rich.markdown import Markdown

from vit_search.config import search_file
from vit_search.config.trial import EpochResult
from vit_search.errors import SearchError
from vit_search.ledger import searches
from vit_search.ledger.events import Commanded, Ended, Infeasible, Launched, Proposed, Reported
from vit_search.ledger.file import Ledger, read_trials
from vit_search.ledger.searches import Hindsight, SearchFacts
from vit_search.planning import next_search_file
from vit_search.planning.next_search_file import RankedTrial
from vit_search.report import importance, page, report
from vit_search.report.digest import apart, digest, optimism, standing
from vit_search.report.picture import Picture
from vit_search.report.progress_figures import curves, frontier
from vit_search.stats import wilson

SECTIONS = (
    "Winner", "Best so far", "Learning curves", "Importance of parameters", "Parallel coordinates", "Slices", "against cost",
    "Survival by rung and stratum", "Utilisation and waste", "Plan against actual", "How trials ended", "Parameters stuck at a border",
    "The next search file",
)  # fmt: skip

TINY = """
name: t
data: {name: digits}
metric: %(metric)s
mode: %(mode)s
trials: 4
epochs: 4
stopping: {grace_epochs: 1, reduction_factor: 2, audit_share: 0}
concurrency: 2
training: {lr: {float: [1e-4, 1e-2], log: true}}
"""

WIDE = """
name: wide
data: {name: digits}
trials: 60
epochs: 3
stopping: {grace_epochs: 1, reduction_factor: 3, strata: 2}
objectives: [{metric: params}, {metric: latency_ms}]
model:
  dim: {choice: [32, 64, 96]}
  depth: {int: [1, 4]}
  pool: {choice: [mean, cls]}
  layer_scale: {float: [1e-5, 1e-2], log: true, when: "depth >= 3"}
training:
  lr: {float: [1e-4, 1e-2], log: true}
  flip: {choice: [true, false]}
"""


def result(epoch, value, metric="val_accuracy", seconds=1.0, latency=None):
    values = {"train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5} | {metric: value}
    return EpochResult(
        epoch=epoch, train_accuracy=0.5, val_top5_accuracy=None, lr=1e-3, images_per_s=1.0, seconds=seconds, peak_memory_bytes=1,
        latency_ms=latency, **values,
    )  # fmt: skip


def begun(home, text, name="t-1", data_hash="d" * 64):
    """A search's folder, with a ledger to write."""
    folder = home / name
    folder.mkdir(parents=True)
    spec = search_file.parse(text)
    facts = SearchFacts(name, "id", spec.name, text, {}, spec.metric, spec.mode, data_hash, "v", {}, "sqlite://")
    searches.write(folder, facts)
    return folder, Ledger(folder / "ledger.jsonl")


def tiny(home, mode="max", metric="val_accuracy", name="t-1", **more):
    """Four trials: 0 ends at 0.90, 1 is stopped after 1 epoch, 2 ends at 0.95, 3 diverges; for `min`, losses of 1 - these."""
    folder, ledger = begun(home, TINY % {"mode": mode, "metric": metric}, name, **more)
    value = (lambda v: v) if mode == "max" else (lambda v: round(1 - v, 4))
    ledger.append(Launched(host="h", pid=1, at=1000.0))
    for event in (
        Proposed(trial=0, params={"lr": 1e-3}, at=1000.0),
        Proposed(trial=1, params={"lr": 1e-4}, at=1000.0),
        Reported(trial=0, result=result(1, value(0.6), metric), at=1001.0),
        Reported(trial=1, result=result(1, value(0.5), metric), at=1001.0),
        Ended(trial=1, outcome="stopped", at=1001.0),
        Proposed(trial=2, params={"lr": 2e-3}, at=1001.0),
        *(Reported(trial=0, result=result(e, value(0.7 + e / 20), metric), at=1000.0 + e) for e in (2, 3, 4)),
        Ended(trial=0, outcome="completed", at=1004.0),
        *(Reported(trial=2, result=result(e, value(0.75 + e / 20), metric), at=1003.0 + e) for e in (1, 2, 3, 4)),
        Ended(trial=2, outcome="completed", at=1007.0),
        Proposed(trial=3, params={"lr": 1e-3}, at=1007.0),
        Reported(trial=3, result=result(1, math.nan, metric), at=1008.0),
        Ended(trial=3, outcome="diverged", reason="loss <script>alert(1)</script> | is nan", at=1008.0),
    ):
        ledger.append(event)
    ledger.close()
    return folder


def wide(home, name="wide-1", trials=60, seed=0):
    """Sixty trials of a space with a condition: lr decides, near the upper end of its range; every seventh fails."""
    folder, ledger = begun(home, WIDE, name)
    spec = search_file.parse(WIDE)
    rng, at = random.Random(seed), 1000.0
    ledger.append(Launched(host="h", pid=1, at=at))
    for number in range(trials):
        params = spec.space.draw(rng)
        ledger.append(Proposed(trial=number, params=params, at=at))
        worth = 0.6 + 0.15 * math.log10(params["lr"] / 1e-4) + rng.gauss(0, 0.005)
        length = 3 if worth > 0.75 else 1
        for epoch in range(1, length + 1):
            at += 2.0
            ledger.append(
                Reported(trial=number, result=result(epoch, worth - 0.1 / epoch, seconds=2.0, latency=params["depth"] / 2), at=at)
            )
        outcome = "failed" if number % 7 == 6 else "completed" if length == 3 else "stopped"
        ledger.append(Ended(trial=number, outcome=outcome, reason="its worker process died" * (outcome == "failed"), at=at))
    ledger.append(Infeasible(params={"dim": 32}, reason="no", at=at))
    ledger.close()
    return folder


# Numbers by hand


@pytest.mark.parametrize(("mode", "metric", "values"), [("max", "val_accuracy", (0.9, 0.95)), ("min", "val_loss", (0.1, 0.05))])
def test_best_so_far_by_hand(tmp_path, mode, metric, values):
    d = digest(tiny(tmp_path, mode, metric))
    assert d.winner.trial.number == 2
    assert d.winner.value == pytest.approx(values[1])
    assert [(s.trial, s.ended) for s in d.steps] == [(0, 2), (2, 3)]
    assert [s.best for s in d.steps] == pytest.approx(values)
    assert [s.hours * 3600 for s in d.steps] == pytest.approx([4.0, 7.0])
    assert [s.device_hours * 3600 for s in d.steps] == pytest.approx([5.0, 9.0])  # trial 1's epoch is in it


def test_the_time_between_a_death_and_a_resume_does_not_count(tmp_path):
    folder, ledger = begun(tmp_path, TINY % {"mode": "max", "metric": "val_accuracy"})
    for event in (
        Launched(host="h", pid=1, at=0.0),
        Proposed(trial=0, params={"lr": 1e-3}, at=1.0),
        Reported(trial=0, result=result(1, 0.5), at=3.0),  # dies here
        Launched(host="h", pid=2, at=9000.0),
        *(Reported(trial=0, result=result(e, 0.5), at=9000.0 + e) for e in (2, 3, 4)),
        Ended(trial=0, outcome="completed", at=9004.0),
    ):
        ledger.append(event)
    ledger.close()
    d = digest(folder)
    assert d.steps[0].hours * 3600 == pytest.approx(3.0 + 4.0)
    assert [(bar.start * 3600, bar.end * 3600, bar.lane) for bar in d.bars] == [pytest.approx((1, 3, 0)), pytest.approx((4, 7, 0))]


def test_survival_waste_and_utilisation_by_hand(tmp_path):
    d = digest(tiny(tmp_path))
    assert d.levels == (1, 2)
    (all_of_them,) = d.survival
    assert all_of_them.reached == {0: 4, 1: 4, 2: 2, 4: 2}
    assert d.waste.by_outcome == {"completed": 8.0, "stopped": 1.0, "diverged": 1.0}
    assert (d.waste.repeated, d.waste.repeats) == (1.0, 1)  # trial 3 has the parameters of trial 0
    assert d.waste.saved == 3.0  # the 3 epochs that trial 1 did not train, at 1 s
    assert d.utilisation == pytest.approx(10 / 16)  # 10 s of training in 8 s with 2 places
    assert sum(busy * 8 / 100 for _, busy in d.busy) == pytest.approx(10)
    assert [(bar.trial, bar.lane) for bar in d.bars] == [(1, 0), (0, 1), (2, 0), (3, 0)]


def test_concurrency_that_was_changed_counts_from_then_on(tmp_path):
    folder, ledger = begun(tmp_path, TINY % {"mode": "max", "metric": "val_accuracy"})
    ledger.append(Launched(host="h", pid=1, at=0.0))
    ledger.append(Proposed(trial=0, params={"lr": 1e-3}, at=0.0))
    ledger.append(Reported(trial=0, result=result(1, 0.5, seconds=10.0), at=10.0))
    ledger.append(Commanded(name="set", arguments={"concurrency": 1, "trials": 9}, answer="", by="me", at=10.0))
    ledger.append(Reported(trial=0, result=result(2, 0.5, seconds=10.0), at=20.0))
    ledger.close()
    d = digest(folder)
    assert d.utilisation == pytest.approx(20 / 30)  # 10 s with 2 places, 10 s with 1
    assert d.wanted == 9


def test_wilsons_interval_by_hand():
    assert wilson(1, 2) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert wilson(256, 269) == pytest.approx((0.9191, 0.9715), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_winners_interval_is_of_the_validation_images(tmp_path):
    w = digest(tiny(tmp_path)).winner
    assert w.images == 179  # 10 % of 1,797
    assert w.interval == pytest.approx(wilson(0.95 * 179, 179))
    # 0.95 and 0.90 of 179: z = 0.05 / sqrt(2 * 0.925 * 0.075 / 179) = 1.80
    assert [(r.trial.number, r.p, r.alike) for r in w.rivals] == [(0, pytest.approx(0.0725, abs=2e-4), True)]
    assert digest(tiny(tmp_path / "loss", "min", "val_loss")).winner.interval is None  # a loss is no share of images


def test_the_plans_count_of_images_is_believed_first(tmp_path):
    folder = tiny(tmp_path)
    (folder / "plan.json").write_text(json.dumps({"images": {"train": 1, "val": 1000}}))
    assert digest(folder).winner.images == 1000


def test_two_equal_values_are_never_told_apart():
    assert apart(0.9, 0.9, 100) == apart(1.0, 1.0, 100) == 1.0
    assert apart(0.5, 0.6, 100) == pytest.approx(apart(0.6, 0.5, 100)) == pytest.approx(0.1556, abs=1e-3)  # z = 1.4213


def test_the_optimism_is_near_what_drawing_gives():
    rng, images, count = random.Random(0), 400, 8
    best = [max(sum(rng.random() < 0.9 for _ in range(images)) / images for _ in range(count)) for _ in range(300)]
    assert optimism([0.9] * count, images) == pytest.approx(sum(best) / 300 - 0.9, abs=0.002)
    assert optimism([0.9], images) == 0.0


@pytest.mark.parametrize(("mode", "metric"), [("max", "val_accuracy"), ("min", "val_loss")])
def test_a_trial_that_came_further_stands_before_one_that_was_stopped_sooner(tmp_path, mode, metric):
    trials = read_trials(tiny(tmp_path, mode, metric) / "ledger.jsonl")
    assert [t.number for t in standing(trials, metric, mode)] == [2, 0, 1, 3]


def test_the_front_keeps_what_no_cheaper_model_equals():
    points = [(10, 0.5), (20, 0.4), (30, 0.9), (30, 0.8), (40, 0.9)]
    assert frontier(points, "max") == [(10, 0.5), (30, 0.9)]
    assert frontier([(c, 1 - v) for c, v in points], "min") == [(10, 0.5), (30, pytest.approx(0.1))]


def test_strata_part_the_survivors(tmp_path):
    d = digest(wide(tmp_path))
    small, large = d.survival
    assert small.reached[0] + large.reached[0] == 60
    assert min(small.reached[0], large.reached[0]) > 15
    assert small.reached[3] + large.reached[3] == sum(len(t.results) == 3 for t in d.standing)


# Importance


def test_what_decides_is_found_and_chance_has_its_error(tmp_path):
    d = digest(wide(tmp_path, trials=120))
    found = importance.importances(d.space, [t.params for t in d.standing])
    assert found[0].parameter == "lr"
    assert sum(one.share for one in found) == pytest.approx(1)
    assert found == importance.importances(d.space, [t.params for t in d.standing])
    assert all(0 <= one.interval[0] <= one.share <= one.interval[1] <= 1 for one in found)
    trials = {one.parameter: one.trials for one in found}
    assert trials["layer_scale"] == sum("layer_scale" in t.params for t in d.standing) < 120  # judged where it was asked for
    assert importance.importances(d.space, [t.params for t in d.standing[:24]]) == []


# Borders and the next file


def seen(space, count, score, completed=20, seed=0):
    rng = random.Random(seed)
    drawn = sorted((space.draw(rng) for _ in range(count)), key=score)
    return [RankedTrial(params, i < completed) for i, params in enumerate(drawn)]


ONE = "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 3\n"


@pytest.mark.parametrize(
    ("line", "name", "score", "side", "extended"),
    [
        ("training: {lr: {float: [1e-4, 1e-2], log: true}}", "lr", lambda v: -v, "high", 0.03),
        ("training: {lr: {float: [1e-4, 1e-2], log: true}}", "lr", lambda v: v, "low", 3.3e-05),
        ("model: {dim: {int: [32, 96], step: 16}, heads: 4}", "dim", lambda v: -v, "high", 128),
        ("model: {depth: {int: [2, 30], log: true}}", "depth", lambda v: v, "low", 1),
        ("model: {depth: {int: [3, 12]}}", "depth", lambda v: v, "low", 1),  # half of the width would be -2
        ("training: {weight_decay: {float: [0.2, 1]}}", "weight_decay", lambda v: v, "low", 0.0),  # no less than its bound
        ("model: {dropout: {float: [0.1, 0.8]}}", "dropout", lambda v: -v, "high", 0.98),  # 1 is not allowed
    ],
)
def test_a_range_whose_good_trials_crowd_at_an_end_is_widened_there(line, name, score, side, extended):
    spec = search_file.parse(ONE + line)
    trials = seen(spec.space, 200, lambda params: score(params[name]))
    (stuck,) = next_search_file.stuck(spec.space, trials)
    assert (stuck.parameter, stuck.side, stuck.legal_end) == (name, side, False)
    made = next_search_file.next_file(spec, "t-1", trials)
    low, high = search_file.parse(made.text).space.searched[name].range
    assert (low if side == "low" else high) == pytest.approx(extended, rel=0.02)
    assert high - low > 0
    assert f"lie at the {'lower' if side == 'low' else 'upper'} end" in made.text


def test_a_range_is_not_widened_beyond_what_makes_sense():
    spec = search_file.parse(ONE + "model: {dropout: {float: [0, 0.4]}}")
    trials = seen(spec.space, 200, lambda params: params["dropout"])
    (stuck,) = next_search_file.stuck(spec.space, trials)
    assert stuck.legal_end
    low, high = search_file.parse(next_search_file.next_file(spec, "t-1", trials).text).space.searched["dropout"].range
    assert (low, high) == (0.0, pytest.approx(0.12, abs=0.03))  # the best fifth covers 0 to 0.08, and a tenth of the range is left


def test_chance_alone_is_no_border():
    spec = search_file.parse(WIDE)
    alarms = sum(
        bool(next_search_file.stuck(spec.space, seen(spec.space, 100, lambda p: zlib.crc32(repr(p).encode()), seed=i))) for i in range(20)
    )
    assert alarms <= 3  # 6 ends at less than 1 % each


def test_a_range_is_drawn_in_around_the_good_trials_and_never_to_nothing():
    spec = search_file.parse(ONE + "training: {lr: {float: [1e-5, 1e-1], log: true}}")
    trials = [RankedTrial({"lr": 1e-3 * (1 + i / 1e4)}, True) for i in range(40)]
    made = next_search_file.next_file(spec, "t-1", trials)
    low, high = search_file.parse(made.text).space.searched["lr"].range
    assert low < 1e-3 < high
    assert math.log10(high / low) == pytest.approx(1.0, abs=0.1)  # a quarter of four decades
    assert "was [1.0e-05, 0.1]: the best 8 lie between 0.001 and 0.001" in made.text


def test_a_choice_is_dropped_that_had_its_chance():
    spec = search_file.parse(ONE + "model: {patch_size: {choice: [1, 2, 4]}}\ntraining: {lr: {float: [1e-4, 1e-2], log: true}}")
    trials = seen(spec.space, 90, lambda params: (params["patch_size"] == 1, params["lr"] % 1e-4))
    made = next_search_file.next_file(spec, "t-1", trials)
    assert search_file.parse(made.text).space.searched["patch_size"].choice == [2, 4]
    few = [t for t in trials if t.params["patch_size"] != 1] + [t for t in trials if t.params["patch_size"] == 1][:4]
    assert search_file.parse(next_search_file.next_file(spec, "t-1", few).text).space.searched["patch_size"].choice == [1, 2, 4]


def test_a_choice_that_a_condition_names_stays():
    spec = search_file.parse(ONE + "model: {pool: {choice: [mean, cls]}, layer_scale: {float: [1e-4, 1e-2], when: \"pool == 'cls'\"}}")
    trials = seen(spec.space, 90, lambda params: params["pool"] == "cls")
    again = search_file.parse(next_search_file.next_file(spec, "t-1", trials).text).space
    assert again.searched["pool"].choice == ["mean", "cls"]
    assert again.searched["layer_scale"].when == "pool == 'cls'"


def test_the_next_file_of_a_whole_search_keeps_the_rest_and_starts_with_its_best(tmp_path):
    d = digest(wide(tmp_path))
    made = search_file.parse(d.next.text)
    assert d.next.changes
    kept = ("name", "data", "metric", "mode", "trials", "epochs", "stopping", "objectives", "constraints", "concurrency", "resources")
    assert all(getattr(made, key) == getattr(d.spec, key) for key in kept)
    assert made.space.searched["layer_scale"].when == "depth >= 3"
    assert made.learn_from == ["wide-1"]
    assert made.start_with[0] == d.winner.trial.params
    assert len(made.start_with) == 3
    assert made.seed == d.spec.seed + 1
    for change in d.next.changes:
        assert re.search(rf"^  {change.parameter}: .* # was {re.escape(change.before)}: ", d.next.text, re.MULTILINE)


def test_with_too_few_full_length_trials_no_range_changes(tmp_path):
    d = digest(tiny(tmp_path))
    made = search_file.parse(d.next.text)
    assert made.space.space_hash == d.space.space_hash
    assert made.start_with == [{"lr": 2e-3}, {"lr": 1e-3}]
    assert (d.next.changes, d.next.note) == ((), "only 2 trials have reached full length, and 5 are needed for new ranges")


def test_a_preset_is_written_out(tmp_path):
    spec = search_file.parse("name: t\ndata: {name: cifar10}\ntrials: 9\nepochs: 30\npreset: tiny\n")
    made = search_file.parse(next_search_file.next_file(spec, "t-1", seen(spec.space, 60, lambda params: params["lr"])).text)
    assert set(made.space.searched) == set(spec.space.searched)
    assert made.space.searched["lr"].range[1] < spec.space.searched["lr"].range[1]


# The page and its twin


def test_the_page_holds_every_section_and_nothing_that_is_fetched(tmp_path):
    path, twin = report.write(wide(tmp_path))
    text = path.read_text()
    for title in SECTIONS:
        assert re.search(rf"<h2 [^>]*>[^<]*{title}</h2>", text), title
        assert f"{title}\n" in twin.read_text(), title
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href|action|data|poster)\s*=\s*[\"'](?!#)", markup)
    assert not re.search(r"@import|url\(", markup)
    assert "default-src 'none'" in markup
    assert markup.count('role="img"') == len(re.findall(r'aria-label="[^"]+" data-picture', markup)) > 12
    assert [p.name for p in path.parent.glob("report*")] in (["report.html", "report.md"], ["report.md", "report.html"])


def test_what_a_person_wrote_is_escaped(tmp_path):
    path, twin = report.write(tiny(tmp_path))
    text = path.read_text()
    assert "loss <script>" not in text
    assert "loss &lt;script&gt;alert(1)&lt;/script&gt; | is nan" in text
    assert "loss \\<script>alert(1)\\</script> \\| is nan" in twin.read_text()


def test_data_in_the_page_cannot_end_its_script():
    picture = Picture("</script><b>", 'a" onload="x', [{"name": "</script><b>"}])
    made = page.render(page.Page("<t>", "", [], [page.Section("s", "S", [page.Row([picture])])]), "")
    assert "</script><b>" not in made
    assert 'onload="x' not in made
    (told,) = re.findall(r'<script type="application/json" id="told">(.*?)</script>', made)
    assert json.loads(told)[0]["data"] == [{"name": "</script><b>"}]


def test_text_of_others_is_escaped_and_its_control_characters_are_spelt_out():
    evil = "<i>&\x1b]0;"
    table = page.Table((evil, "n>"), [[evil, "7"]], evil)
    made = page.render(page.Page(evil, evil, [(evil, evil)], [page.Section("s", evil, [page.Text(evil), page.Code(evil), table])]), "")
    # title, h1, lead, dt, dd, contents, h2, p, code, caption, head and cell
    assert made.count("&lt;i&gt;&amp;\\x1b]0;") == 12
    assert "<i>" not in made
    assert "\x1b" not in made
    assert '<th scope="col" class="r">n</th>' in made
    assert '<td class="r">7</td>' in made


@pytest.mark.parametrize("trials", [0, 1])
def test_a_search_that_has_hardly_begun_has_a_report(tmp_path, trials):
    folder, ledger = begun(tmp_path, WIDE)
    ledger.append(Launched(host="h", pid=1))
    if trials:
        ledger.append(Proposed(trial=0, params={"dim": 32, "depth": 1, "pool": "mean", "lr": 1e-3, "flip": True}))
        ledger.append(Reported(trial=0, result=result(1, 0.5, latency=1.0)))
    path, twin = report.write(folder)  # its driver holds the ledger
    assert "the search is running" in twin.read_text()
    assert ("0.5000" in twin.read_text()) == bool(trials)
    assert "It is running: no trial has reached full length yet." in twin.read_text() or not trials
    assert "<h2" in path.read_text()
    ledger.close()


def test_a_search_of_which_nothing_came_has_a_report(tmp_path):
    folder, ledger = begun(tmp_path, TINY % {"mode": "min", "metric": "val_loss"})
    ledger.append(Launched(host="h", pid=1))
    for number, value in enumerate((math.nan, math.inf, None)):
        ledger.append(Proposed(trial=number, params={"lr": 1e-3}))
        if value is not None:
            ledger.append(Reported(trial=number, result=result(1, value, "val_loss")))
        ledger.append(Ended(trial=number, outcome="failed" if value is None else "diverged", reason="it broke"))
    ledger.close()
    text = report.write(folder)[1].read_text()
    assert "No trial has a value yet." in text
    assert "| 2 | diverged | it broke |" in text


def test_a_search_without_parameters_has_a_report(tmp_path):
    folder, ledger = begun(tmp_path, (TINY % {"mode": "max", "metric": "val_accuracy"}).replace("training:", "#"))
    ledger.append(Proposed(trial=0, params={}))
    ledger.append(Reported(trial=0, result=result(1, 0.5)))
    ledger.close()
    assert "No parameter was searched." in report.write(folder)[1].read_text()


def test_the_end_of_a_search_tells_of_false_kills_and_of_the_plan(tmp_path):
    folder = tiny(tmp_path)
    pair = {"predicted": 4, "actual": 5, "ratio": 1.25}
    plan = {
        "trials": pair,
        "trials_at": {"1": pair},
        "epochs": pair,
        "device_seconds": pair,
        "wall_seconds": {**pair, "predicted": None, "ratio": None},
    }
    searches.write_hindsight(folder, Hindsight(4, 1, (0.05, 0.7), {**plan, "speed": None}))
    text = report.write(folder)[1].read_text()
    assert "of 4 audited trials that would have been stopped, 1 ended better than the median of those let through: 25%" in text
    assert "| epochs | 4 | 5 | 1.25 |" in text
    assert "| time at work | – | 5 s | – |" in text


def test_what_is_thinned_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_search.report.progress_figures.CURVES", 8)
    d = digest(wide(tmp_path))
    full = d.outcomes["completed"]
    others = sum(t.outcome != "completed" and bool(t.results) for t in d.standing)
    assert full > 9
    told = f"full length: 8 of {full - 1} (the best 2 and a sample) drawn. stopped and others: 12 of {others} (a sample) drawn."
    assert curves([d]).note == told
    assert curves([d]).data[1]["x"].count(None) == 8


# Two searches


def test_two_searches_stand_side_by_side(tmp_path):
    one, two = wide(tmp_path), wide(tmp_path, "wide-2", seed=1)
    path, twin = report.compare(one, two)
    assert (path, twin) == (tmp_path / "compare-wide-1-wide-2.html", tmp_path / "compare-wide-1-wide-2.md")
    text = twin.read_text()
    ahead = max((digest(folder) for folder in (one, two)), key=lambda d: d.winner.value)
    assert f"{ahead.name} is ahead by" in text
    assert all(title in text for title in ("Key figures", "Winners", "Best so far", "Importance", "Survival", "waste", "What was searched"))


@pytest.mark.parametrize(("mode", "metric"), [("max", "val_accuracy"), ("min", "val_loss")])
def test_a_search_beside_itself_is_equally_good(tmp_path, mode, metric):
    one, two = tiny(tmp_path, mode, metric), tiny(tmp_path, mode, metric, name="t-2")
    assert "Both are equally good" in report.compare(one, two)[1].read_text()


def test_searches_that_cannot_be_compared_are_refused(tmp_path):
    one = tiny(tmp_path)
    with pytest.raises(
        SearchError, match="t-2: its images or their split are not those of t-1; compare searches whose data sections are alike"
    ):
        report.compare(one, tiny(tmp_path, name="t-2", data_hash="e" * 64))
    with pytest.raises(
        SearchError, match="t-3: looks for the min of val_loss, and t-1 for the max of val_accuracy; compare searches with one"
    ):
        report.compare(one, tiny(tmp_path, "min", "val_loss", name="t-3"))
    assert not list(tmp_path.glob("compare*"))


# Commands


def test_the_commands_write_print_and_never_write_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wide(tmp_path / "searches"), wide(tmp_path / "searches", "wide-2")
    assert "# wide-1: report" in vit_search(tmp_path, "report", "wide-1").stdout
    assert Path("searches/wide-1/report.html").exists()
    vit_search(tmp_path, "compare", "wide-1", "wide-2")
    assert Path("searches/compare-wide-1-wide-2.html").exists()
    vit_search(tmp_path, "report", "wide-1", "--next", "next.yaml")
    assert search_file.load(Path("next.yaml")).learn_from == ["wide-1"]
    Path("next.yaml").write_text("mine")
    refused = vit_search(tmp_path, "report", "wide-1", "--next", "next.yaml", code=2)
    assert "next.yaml: a file is there already; name another one after --next." in refused.stderr
    assert Path("next.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("digits-1: val_accuracy of 0.98", "digits-1: val_accuracy of 0.98"),
        ("3 > 2 and #1", "3 > 2 and #1"),
        ("_start_ and __init__", r"\_start\_ and \_\_init\_\_"),
        ("a*b*c `d` <b>", r"a\*b\*c \`d\` \<b>"),
        ("[x](y) | z", r"\[x](y) \| z"),
        ("# no heading", r"\# no heading"),
        ("1. no list", r"1\. no list"),
        ("-0.5", "-0.5"),
    ],
)
def test_markdown_escapes_what_would_be_a_mark_and_nothing_else(text, source):
    told = page.markdown(page.Page(title="t", lead=text, figures=(), sections=()))
    assert told.splitlines()[2] == source
    shown = io.StringIO()
    Console(file=shown, width=100).print(Markdown(source))
    assert shown.getvalue().strip() == text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_metric_s_name_is_plain_on_a_terminal_and_in_a_pipe(tmp_path, terminal):
    made(tmp_path / "searches")
    reader, writer = pty.openpty() if terminal else os.pipe()
    shown = b""
    with subprocess.Popen([COMMAND, "report"], cwd=tmp_path, stdout=writer, stderr=subprocess.DEVNULL) as running:
        os.close(writer)
        with contextlib.suppress(OSError):  # a terminal that is closed
            while part := os.read(reader, 65536):
                shown += part
    os.close(reader)
    assert running.returncode == 0
    assert b"val_accuracy" in shown
    assert b"\\_" not in shown
    assert "\\_" not in (tmp_path / "searches" / "made-1" / "report.md").read_text()
