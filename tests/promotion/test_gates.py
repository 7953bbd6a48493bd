"""The gates: each limit alone refuses, and its neighbour just inside passes; what chance does refuses seldom; nothing raises."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.models import static, untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_search.promotion import class_drops, gates, mcnemar, policy
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.evidence.costs import Costs, Latency, Ratio, SideBySide
from vit_search.promotion.evidence.duplicates import Duplicates, Pair
from vit_search.promotion.evidence.parity import Parity, file_exporter, measure_parity, weights_sha256
from vit_search.promotion.gates import Gate
from vit_search.promotion.mcnemar import AccuracyComparison
from vit_search.promotion.policy import CORRUPTIONS, Policy
from vit_search.vit import checkpoint

DEFAULT = policy.load(None)
CLASSES = tuple("0123456789")


def asking(text: str) -> Policy:
    return policy.parse(text, "policy")


def answers(right, *, labels=None, confidence=None, corrupted=None, classes=CLASSES) -> SplitAnswers:
    """A model that is right on some images, and names the next class on the others."""
    right = np.asarray(right, bool)
    labels = np.zeros(len(right), int) if labels is None else np.asarray(labels)

    def named(correct):
        return np.where(correct, labels, (labels + 1) % len(classes))

    return SplitAnswers(
        classes=classes,
        labels=labels,
        predictions=named(right),
        label_nll=np.zeros(len(right)),
        confidence=np.ones(len(right)) if confidence is None else np.asarray(confidence, float),
        loss=0.0,
        brier=0.0,
        corrupted={kind: named(np.asarray(share, bool)) for kind, share in (corrupted or {}).items()},
    )


def first(count, of):
    """True for the first `count` of so many."""
    return np.arange(of) < count


def pair(losses, wins, images):
    """Candidate and champion on images of one class: which each alone gets right, and the rest both."""
    ours = np.ones(images, bool)
    theirs = np.ones(images, bool)
    ours[:losses] = False
    theirs[losses : losses + wins] = False
    return answers(ours), answers(theirs)


def costs(*, params=1000, file_bytes=4000, peak=10_000, p50=1.0, p95=2.0) -> Costs:
    latency = {name: Latency(p50, p95, 300, False) for name in ("cpu_batch_1", "cpu_batch_32")}
    return Costs(params, file_bytes, 10**6, latency, {"cpu": peak})


def duplicates(*, equal=0, near=0) -> Duplicates:
    """Of 100 test images that were compared."""
    return Duplicates(equal, tuple(Pair("near", i, "train", i, 0.97, False, "cat", "cat") for i in range(near)), judged=100)


def beside(candidate=None, champion=None, **ratios) -> SideBySide:
    """Two models measured in turn; ratios of latency as (value, low, high), 1 by default."""
    names = [f"cpu_batch_{batch}_{word}" for batch in (1, 32) for word in ("p50", "p95")]
    return SideBySide(candidate or costs(), champion or costs(), {name: Ratio(*ratios.get(name, (1.0, 0.99, 1.01))) for name in names})


FACTS = {
    "search_id": "a1",
    "trial": "4",
    "config_sha256": "c" * 64,
    "data_hash": "d" * 64,
    "git_commit": "e" * 40,
    "packages_sha256": "f" * 64,
    "seeds": "1, 2, 3",
    "hardware": "x86_64, 2 cores",
    "versions": "python 3.13, torch 2.15",
}
SOUND = [Parity("safetensors", 0.0, 10), Parity("pt2", 1e-6, 10)]


def integrity(parities=SOUND, asked=DEFAULT, expected="a" * 64, found="a" * 64):
    return gates.integrity(parities, asked, expected_sha256=expected, found_sha256=found)


def held(parity, asked=DEFAULT):
    return integrity([one for one in SOUND if one.format != parity.format] + [parity], asked)


def whole_number(text, value):
    """A cost that is `value` under a limit."""
    return gates.cost(costs(**{text: value}), asking(f"limits: {{{ {'peak': 'peak_memory_bytes'}.get(text, text) }: 1000}}"))


def timed(key, ms):
    word = key.rpartition("_")[2]
    return gates.cost(costs(**{"p50": 0.1, "p95": 0.1, word: ms}), asking(f"limits: {{latency_ms: {{{key}: 3}}}}"))


def champion_of(text, value):
    """A cost of `value` against a champion's 1000, where 1.1 x is allowed."""
    return gates.cost(costs(**{text: value}), DEFAULT, beside(costs(**{text: value}), costs(**{text: 1000})))


def slower(low):
    return gates.cost(costs(), DEFAULT, beside(cpu_batch_1_p95=(low + 0.1, low, low + 0.3)))


def ninety(right, **floors):
    asked = "floors: {" + ", ".join(f"{name}: {value}" for name, value in floors.items()) + ", above_majority: false, linear_probe: false}"
    return gates.floors(answers(first(right, 100)), asking(asked))


def against(right, **measured):
    return gates.floors(answers(first(right, 100)), DEFAULT, **({"majority": 0.1, "linear_probe": 0.1} | measured))


def worst_class(right):
    """100 images of class 0, all right, and 20 of class 1."""
    seen = answers(np.r_[np.ones(100), first(right, 20)], labels=[0] * 100 + [1] * 20)
    return gates.classes(seen, None, asking("floors: {worst_class: 0.8}"))


def calibrated(confidence):
    """All of 100 images are right, so that the error is what the confidence lacks of 1."""
    return gates.calibration(answers([True] * 100, confidence=[confidence] * 100), None, asking("calibration: {ece: 0.1}"))


def calibrated_against(confidence):
    """The champion's error is 0.1 on each image, so that nothing is left to chance."""
    ours, theirs = (answers([True] * 100, confidence=[c] * 100) for c in (confidence, 0.9))
    return gates.calibration(ours, theirs, DEFAULT)


def under_corruption(right, asked="robustness: {kinds: [blur], accuracy: 0.8}", champion=None):
    def seen(count):
        return answers([True] * 1000, corrupted={"blur": first(count, 1000)})

    return gates.corruption(seen(right), None if champion is None else seen(champion), asking(asked))


@pytest.mark.parametrize(
    ("judge", "inside", "outside"),
    [
        (lambda d: held(Parity("pt2", d, 1)), 1e-4, 1.01e-4),
        (lambda d: held(Parity("safetensors", d, 1)), 0.0, 1e-12),
        (lambda d: held(Parity("pt2", d, 1)), 0.0, math.inf),
        (lambda d: held(Parity("pt2", d, 1)), 0.0, math.nan),
        (lambda problem: held(Parity("pt2", 0.0, 1, problem)), "", "a batch of 8: no"),
        (lambda t: held(Parity("pt2", 0.5, 1), asking(f"export: {{tolerance: {t}}}")), 0.5, 0.49),
        (lambda sha: integrity(found=sha), "a" * 64, "b" * 64),
        (lambda sha: integrity(expected=sha, found=sha), "a" * 64, ""),
        (lambda formats: integrity(asked=asking(f"export: {{formats: [{formats}]}}")), "pt2", "onnx"),
        (lambda commit: gates.lineage(FACTS | {"git_commit": commit}, DEFAULT), "abc", "abc-dirty"),
        (lambda allow: gates.lineage(FACTS | {"git_commit": "abc-dirty"}, asking(f"allow_dirty: {allow}")), "true", "false"),
        (lambda reading: gates.readings(reading, DEFAULT), 20, 21),
        (lambda most: gates.readings(3, asking(f"better: {{most_readings: {most}}}")), 3, 2),
        (lambda n: whole_number("params", n), 1000, 1001),
        (lambda n: whole_number("file_bytes", n), 1000, 1001),
        (lambda n: whole_number("peak", n), 1000, 1001),
        (lambda ms: timed("cpu_batch_1_p50", ms), 3.0, 3.01),
        (lambda ms: timed("cpu_batch_1_p95", ms), 3.0, 3.01),
        (lambda ms: timed("cpu_batch_32_p50", ms), 3.0, 3.01),
        (lambda ms: timed("cpu_batch_32_p95", ms), 3.0, 3.01),
        (lambda device: timed(f"{device}_batch_1_p50", 0.1), "cpu", "cuda"),  # not measured: refused
        (lambda n: champion_of("file_bytes", n), 1100, 1101),
        (lambda n: champion_of("peak", n), 1100, 1101),
        (slower, 1.1, 1.11),  # the lower end of the interval counts
        (lambda most: gates.cost(costs(), asking(f"cost_above_champion: {most}"), beside(cpu_batch_32_p50=(2, 1.9, 2.1))), 1.9, 1.89),
        (lambda worst: gates.seeds([0.9 - worst, 0.9, 0.9 + worst], DEFAULT, images=10**9), 0.01, 0.0101),
        (lambda own: gates.seeds([0.89, 0.9, 0.91], DEFAULT, images=10**9, registered=own), 0.92, 0.921),
        (gates.smoke, "", "row 3: a 500"),
        (lambda name: gates.approval(True, name, DEFAULT), "ada", " "),
        (lambda protected: gates.approval(protected, "", DEFAULT), False, True),
        (lambda when: gates.approval(False, "", asking(f"approval: {when}")), "protected", "always"),
        (lambda when: gates.approval(True, "", asking(f"approval: {when}")), "never", "always"),
        (lambda count: gates.leak(duplicates(equal=count), DEFAULT), 0, 1),
        (lambda count: gates.leak(duplicates(equal=count), asking("leaked: 4")), 4, 5),
        (lambda count: gates.leak(duplicates(near=count), asking("near_duplicates: 0.02")), 2, 3),
        (lambda right: ninety(right, accuracy=0.9), 90, 89),
        (lambda share: against(90, majority=share), 0.89, 0.9),
        (lambda share: against(90, linear_probe=share), 0.94, 0.95),  # 90 of 100: 0.826 to 0.945
        (lambda share: against(90, linear_probe=share), 0.1, None),  # not measured: refused
        (lambda share: against(90, majority=share), 0.1, None),
        (worst_class, 16, 15),
        (calibrated, 0.9, 0.89),
        (calibrated_against, 0.8901, 0.8899),
        (under_corruption, 800, 799),
        (lambda kind: gates.corruption(answers([1], corrupted={kind: [1]}), None, asking("robustness: {kinds: [blur]}")), "blur", "jpeg"),
    ],
)
def test_each_limit_alone_refuses_and_its_neighbour_just_inside_passes(judge, inside, outside):
    passed, refused = judge(inside), judge(outside)
    assert passed.passed is not False, passed
    assert refused.passed is False, refused
    assert gates.reasons([passed, refused]) == [f"{refused.id} {refused.name}: {refused.said}"]
    assert not gates.verdict([passed, refused])
    for one in (passed, refused):
        assert one.said
        assert "\n" not in one.said


# --- lineage


@pytest.mark.parametrize("fact", FACTS)
def test_a_lineage_that_lacks_one_fact_is_refused_by_its_name(fact):
    without = {name: value for name, value in FACTS.items() if name != fact}
    found = gates.lineage(without, DEFAULT)
    assert found.passed is False
    assert found.said.startswith("not known: ")
    assert f"({fact})" in found.said
    assert found.said.count("(") == 1


@pytest.mark.parametrize("fact", sorted(set(FACTS) - {"git_commit"}))
def test_an_empty_fact_is_a_missing_one(fact):
    assert gates.lineage(FACTS | {fact: " "}, DEFAULT).passed is False


def test_a_search_outside_of_a_checkout_passes_and_it_is_said():
    found = gates.lineage(FACTS | {"git_commit": ""}, DEFAULT)
    assert (found.passed, found.said) == (True, "complete; started outside a git repository")
    assert gates.lineage(FACTS, DEFAULT).said == f"complete; commit {'e' * 40}"
    assert gates.lineage(FACTS | {"git_commit": "abc-dirty"}, asking("allow_dirty: true")).said.endswith("abc-dirty, allowed as it is")


# --- real files, tampered with


def test_an_archive_with_a_static_batch_and_a_weight_that_was_altered_are_refused(tmp_path):
    served, folder = untrained(tmp_path / "checkpoint")
    sha = checkpoint.weights_sha256(folder)

    def judged(exporter, model=served):
        found = measure_parity(model, folder, {"pt2": exporter})
        return gates.integrity(found, DEFAULT, expected_sha256=sha, found_sha256=weights_sha256(model))

    assert judged(file_exporter("pt2")).passed
    assert "pt2 cannot answer, a batch of 8: " in judged(static).said
    served.model.head.weight.data[0, 0] += 0.25
    altered = judged(file_exporter("pt2"))
    assert altered.passed is False
    assert "the weights' sha256 is" in altered.said
    assert "safetensors differs from eager mode by" in altered.said
    assert "pt2" not in altered.said.replace("largest", "")


# --- better, or no worse and cheaper


def compared(wins, losses, images=10_000, reading=1, asked=DEFAULT):
    ours, theirs = pair(losses, wins, images)
    return gates.comparison(ours, theirs, reading, asked)


SMALLER = beside(costs(file_bytes=750), costs(file_bytes=1000))
NON_INFERIOR = asking("better: {mode: non_inferior}")


def test_a_tie_is_refused_where_the_candidate_must_be_better_and_accepted_where_it_is_a_quarter_smaller():
    tie = compared(60, 60)
    assert gates.better(tie, DEFAULT, SMALLER).passed is False
    assert gates.better(tie, NON_INFERIOR, SMALLER).passed is True
    assert "its file is 0.75 x the champion's" in gates.better(tie, NON_INFERIOR, SMALLER).said


def test_a_tie_that_is_hardly_smaller_or_no_faster_beyond_chance_is_refused():
    tie = compared(60, 60)
    for side in (None, beside(), beside(costs(file_bytes=801), costs(file_bytes=1000)), beside(cpu_batch_1_p50=(0.75, 0.6, 0.81))):
        found = gates.better(tie, NON_INFERIOR, side)
        assert found.passed is False
        assert found.said == "neither its latency nor its file is shown to be 20% smaller than the champion's"
    assert gates.better(tie, NON_INFERIOR, beside(costs(file_bytes=800), costs(file_bytes=1000))).passed
    assert gates.better(tie, NON_INFERIOR, beside(cpu_batch_1_p50=(0.75, 0.7, 0.8))).passed
    assert not gates.better(tie, NON_INFERIOR, beside(cpu_batch_32_p95=(0.3, 0.2, 0.4))).passed  # a lucky tail of one batch does not count


def test_a_worse_candidate_is_refused_in_both_modes_however_small():
    worse = compared(60, 160)  # a point worse
    assert gates.better(worse, DEFAULT, SMALLER).passed is False
    found = gates.better(worse, NON_INFERIOR, SMALLER)
    assert found.passed is False
    assert found.said.startswith("not shown to be at most 0.005 worse than the champion: -0.0100")


def test_a_better_candidate_passes_in_both_modes():
    good = compared(200, 100)
    assert gates.better(good, DEFAULT).passed
    assert gates.better(good, NON_INFERIOR, SMALLER).passed


def test_two_models_that_never_differ_are_no_proof_where_images_are_few():
    """None of 500 images is lost with chance 0.995^500 = 0.08 where 5 of 1,000 are; of 1,000 with 0.0067."""
    assert gates.better(compared(0, 0, images=500), NON_INFERIOR, SMALLER).passed is False
    assert gates.better(compared(0, 0, images=1000), NON_INFERIOR, SMALLER).passed is True


def test_a_used_up_test_split_decides_nothing_in_either_mode():
    late = compared(500, 0, reading=21)
    for asked in (DEFAULT, NON_INFERIOR):
        found = gates.better(late, asked, SMALLER)
        assert found.passed is False
        assert "has been read 21 times; after 20 it decides nothing" in found.said


def of_rare_class(rare_right, frequent_right, *, rare=40, frequent=960, seed=0):
    """A model's answers on images of a rare and of a frequent class, of which it gets shares right."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.ones(rare, np.int64), np.zeros(frequent, np.int64)]
    right = np.r_[rng.random(rare) < rare_right, rng.random(frequent) < frequent_right]
    return answers(right, labels=labels, classes=("frequent", "rare"))


def test_by_a_score_a_model_that_learnt_the_rare_class_wins_which_accuracy_would_refuse():
    champion, candidate = of_rare_class(0.1, 0.995), of_rare_class(0.8, 0.95, seed=1)
    assert candidate.accuracy <= champion.accuracy
    assert not gates.better(gates.comparison(candidate, champion, 1, DEFAULT), DEFAULT).passed
    for metric in ("val_balanced_accuracy", "val_macro_f1"):
        found = gates.better(gates.comparison(candidate, champion, 1, DEFAULT, metric), DEFAULT)
        assert found.passed, found.said
        assert f"of {metric.removeprefix('val_')} on 1,000 test images" in found.said


def test_by_a_score_two_equal_models_win_as_seldom_as_is_allowed():
    wins = sum(
        gates.comparison(of_rare_class(0.6, 0.9, seed=2 * i), of_rare_class(0.6, 0.9, seed=2 * i + 1), 1, DEFAULT, "val_macro_f1").p < 0.05
        for i in range(20)
    )
    assert wins <= 4  # 1 is expected; 5 or more happen once in 400 times
    same = of_rare_class(0.6, 0.9)
    tie = gates.comparison(same, same, 1, DEFAULT, "val_macro_f1")
    assert (tie.gain, tie.p, tie.passes) == (0.0, 1.0, False)
    assert tie.no_worse_than(0.01)
    assert not gates.comparison(same, same, 10**6, DEFAULT, "val_macro_f1").no_worse_than(0.01)


def test_the_policy_s_chance_gain_and_readings_reach_the_comparison():
    strict = asking("better: {alpha: 0.001, least_gain: 0.05, most_readings: 2}")
    found = compared(20, 0, images=1000, asked=strict)
    assert (found.alpha, found.least_gain, found.most_readings) == (0.0005, 0.05, 2)
    assert "hardly better" in gates.better(found, strict).said
    assert gates.better(compared(20, 0, images=1000), DEFAULT).passed


def test_with_no_champion_the_floors_stand_in_and_it_is_said():
    found = gates.better(None, DEFAULT)
    assert (found.passed, found.said) == (None, "there is no champion to compare with; G3 decides")


def test_later_readings_say_that_the_interval_is_wider():
    assert "wider" not in gates.readings(1, DEFAULT).said
    assert gates.readings(3, DEFAULT).said == (
        "reading 3 of at most 20; chance allowed here: 0.0042 of 0.05 in all; the interval is 99.17%, wider than at the first reading"
    )


# --- classes


def test_holm_by_hand():
    """0.05 / 4 = 0.0125, / 3 = 0.0167, / 2 = 0.025, / 1: the third smallest, 0.03, stands, and so does 0.04 behind it, below 0.05."""
    assert class_drops.holm([0.01, 0.04, 0.03, 0.015], 0.05) == [True, False, False, True]
    assert class_drops.holm([0.0125, 0.0125, 0.025, 0.05], 0.05) == [True, True, True, True]
    assert class_drops.holm([0.013, 0.013, 0.013, 0.013], 0.05) == [False] * 4
    assert class_drops.holm([], 0.05) == []


def test_the_chance_of_a_class_s_drop_by_hand():
    """One class of 8 images, all lost. With no true drop a loss is as likely as a win: 1/256. With a true drop of 3 % it is likeliest that
    the models differ on every image, 51.5 % of them lost and 48.5 % won: 0.515^8, and the larger of the two counts."""
    ours, theirs = pair(8, 0, 8)
    drop = class_drops.class_drops(ours, theirs, 0.03)
    assert [(one.name, one.images, one.drop) for one in drop] == [("0", 8, 1.0)]
    assert drop[0].p == pytest.approx(0.515**8)
    assert class_drops.class_drops(ours, theirs, 0.0)[0].p == pytest.approx(1 / 256)


def test_four_lost_images_of_five_are_what_two_equal_models_show_once_in_16_times():
    """The estimated share of images that part the models makes chance look smaller than that in so small a class; the exact one counts."""
    ours, theirs = pair(4, 0, 5)
    assert mcnemar.chance(4, 0, 5, 0.03) < 0.05
    assert class_drops.class_drops(ours, theirs, 0.03)[0].p == pytest.approx(1 / 16)


def many_classes(drawn):
    """Both models on images of several classes; of each class (losses, wins, neither)."""
    ours, theirs, labels = [], [], []
    for label, (losses, wins, rest) in enumerate(drawn):
        ours.append(np.r_[np.zeros(losses), np.ones(wins), np.ones(rest)])
        theirs.append(np.r_[np.ones(losses), np.zeros(wins), np.ones(rest)])
        labels += [label] * (losses + wins + rest)
    return tuple(answers(np.concatenate(each), labels=labels) for each in (ours, theirs))


def refused(rng, rounds, images, parted, drops):
    """Share of rounds in which the gate refuses, of 10 classes with so many images each and these true drops."""
    count = 0
    for _ in range(rounds):
        drawn = [rng.multinomial(images, [(parted + drop) / 2, (parted - drop) / 2, 1 - parted]) for drop in drops]
        count += gates.classes(*many_classes(drawn), DEFAULT).passed is False
    return count / rounds


def limit(rounds):
    """5 %, and three deviations of the share that so many rounds show."""
    return 0.05 + 3 * (0.05 * 0.95 / rounds) ** 0.5


def test_small_classes_of_two_equal_models_do_not_fail_by_noise():
    """27 images a class, as the digits' test split has: in 4 of 5 rounds some class "drops" by more than 3 points."""
    rng = np.random.default_rng(0)
    assert refused(rng, 200, 27, 0.1, [0.0] * 10) <= limit(200)
    assert refused(rng, 200, 5, 0.4, [0.0] * 10) <= limit(200)
    drops = rng.multinomial(27, [0.05, 0.05, 0.9], (200, 10))
    assert (((drops[..., 0] - drops[..., 1]) / 27 > 0.03).any(1)).mean() > 0.8  # what a plain limit would refuse


@pytest.mark.parametrize("parted", [0.04, 0.1, 0.3])
def test_classes_that_all_drop_by_just_what_is_allowed_seldom_fail(parted):
    assert refused(np.random.default_rng(1), 200, 1000, parted, [0.03] * 10) <= limit(200)


def test_real_drops_are_caught():
    rng = np.random.default_rng(2)
    assert refused(rng, 100, 1000, 0.1, [0.08] + [0.0] * 9) >= 0.95
    assert refused(rng, 100, 100, 0.3, [0.3] + [0.0] * 9) >= 0.95
    assert refused(rng, 100, 27, 0.75, [0.7] + [0.0] * 9) >= 0.9


def test_the_class_that_dropped_is_named_and_the_others_are_not():
    ours, theirs = many_classes([(0, 10, 90), (40, 5, 55), (2, 2, 96)])
    found = gates.classes(ours, theirs, DEFAULT)
    assert found.said.startswith("class 1 lost 0.3500 of its 100 images to the champion, 0.03 is allowed (p = ")
    assert found.said.count("class ") == 1
    assert gates.classes(ours, theirs, asking("class_drop: null")).passed is None
    assert gates.classes(ours, theirs, asking("class_drop: 0.4")).passed is True


def test_a_class_without_images_has_no_worst_share():
    seen = answers([1, 1, 0, 1], labels=[0, 0, 1, 1])
    found = gates.classes(seen, None, asking("floors: {worst_class: 0.6}"))
    assert found.said == "worst class 1: 0.5000 of 2 images (95 % interval 0.0945 to 0.9055), at least 0.6 is asked for"


# --- what is held against the champion, beyond chance


def test_a_calibration_error_that_chance_explains_passes_and_a_real_one_does_not():
    """Two equally calibrated models of 270 images: a plain limit of 0.01 refuses one in ten and more."""
    rng = np.random.default_rng(0)
    plain = judged = real = 0
    for _ in range(60):
        chances = rng.uniform(0.5, 1, 270)
        ours, theirs = (answers(rng.random(270) < chances, confidence=chances) for _ in range(2))
        bold = answers(rng.random(270) < chances, confidence=np.minimum(chances + 0.2, 1))
        plain += ours.ece - theirs.ece > 0.01
        judged += gates.calibration(ours, theirs, DEFAULT).passed is False
        real += gates.calibration(bold, theirs, DEFAULT).passed is False
    assert plain >= 6
    assert judged <= 9  # 5 % of 60, and three deviations
    assert real >= 54


def test_a_loss_under_corruption_that_chance_explains_passes_and_a_real_one_does_not():
    asked = "robustness: {kinds: [blur]}"
    assert under_corruption(770, asked, champion=800).passed is True  # 0.03, just what is allowed
    assert under_corruption(769, asked, champion=800).passed is True  # hardly more, and chance explains it
    found = under_corruption(750, asked, champion=800)  # 50 images lost and none won
    assert found.passed is False
    assert "-0.0500 against the champion (at least 0.0387 lost beyond chance), a loss of 0.03 is allowed" in found.said
    assert under_corruption(750, "robustness: {kinds: [blur], drop: null}", champion=800).passed is None
    assert under_corruption(850, asked, champion=800).passed is True


def test_a_noisy_ratio_of_latency_passes_and_a_sure_one_does_not():
    assert gates.cost(costs(), DEFAULT, beside(cpu_batch_1_p95=(1.5, 0.8, 2.1))).passed
    found = gates.cost(costs(), DEFAULT, beside(cpu_batch_1_p95=(1.5, 1.3, 1.7)))
    assert found.said == "cpu_batch_1_p95 is 1.50 x the champion's (95 % interval 1.30 to 1.70), 1.1 x is allowed"
    assert gates.cost(costs(), asking("cost_above_champion: null"), beside(cpu_batch_1_p95=(9, 8, 10))).passed


def test_what_does_not_apply_says_why():
    seen = answers([1] * 4, corrupted={"blur": [1] * 4})
    for found in (
        gates.classes(seen, None, DEFAULT),
        gates.calibration(seen, None, DEFAULT),
        gates.corruption(seen, None, asking("robustness: {kinds: [blur]}")),
        gates.corruption(seen, None, asking("robustness: {kinds: []}")),
        gates.seeds([0.9], DEFAULT, images=100),
        gates.approval(False, "", DEFAULT),
        gates.better(None, DEFAULT),
    ):
        assert found.passed is None
        assert found.said


# --- all of them


def test_the_verdict_needs_something_judged_and_nothing_refused():
    yes, no, none = (Gate("G1", "one", passed, "said") for passed in (True, False, None))
    assert gates.verdict([yes, none])
    assert not gates.verdict([yes, no])
    assert not gates.verdict([none])
    assert not gates.verdict([])


def test_the_table_lists_gates_by_number_and_keeps_its_columns():
    drawn = gates.table(
        [Gate("G12", "corruption", None, "a | b"), Gate("G2", "lineage", False, "two\nlines"), Gate("G1", "integrity", True, "x")]
    )
    assert drawn == (
        "| gate | verdict | seen |\n|---|---|---|\n"
        "| G1 integrity | passed | x |\n"
        "| G2 lineage | **refused** | two lines |\n"
        "| G12 corruption | does not apply | a \\| b |\n"
    )


def every_gate(ours, theirs, asked, side, reading):
    with_champion = theirs is not None
    return [
        integrity(asked=asked),
        gates.lineage(FACTS, asked),
        gates.readings(reading, asked),
        gates.cost(side.candidate, asked, side if with_champion else None),
        gates.seeds([ours.accuracy, ours.accuracy], asked, images=ours.images, registered=ours.accuracy),
        gates.smoke(""),
        gates.approval(False, "", asked),
        gates.leak(duplicates(), asked),
        gates.floors(ours, asked, majority=0.1, linear_probe=0.2),
        gates.better(gates.comparison(ours, theirs, reading, asked) if with_champion else None, asked, side),
        gates.classes(ours, theirs, asked),
        gates.calibration(ours, theirs, asked),
        gates.corruption(ours, theirs, asked),
    ]


def test_evidence_that_went_through_json_is_judged_the_same():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 300)
    ours, theirs = (
        answers(
            rng.random(300) < 0.9,
            labels=labels,
            confidence=rng.uniform(0.1, 1, 300),
            corrupted={k: rng.random(300) < 0.7 for k in CORRUPTIONS},
        )
        for _ in range(2)
    )
    side = beside(costs(file_bytes=700), costs(file_bytes=1000), cpu_batch_1_p95=(1.5, 1.3, 1.7))
    for asked in (DEFAULT, NON_INFERIOR):
        before = every_gate(ours, theirs, asked, side, 2)
        kept = json.loads(json.dumps([ours.to_dict(), theirs.to_dict(), side.to_dict(), asked.to_dict()], allow_nan=False))
        again = every_gate(
            SplitAnswers.from_dict(kept[0]),
            SplitAnswers.from_dict(kept[1]),
            Policy.model_validate(kept[3]),
            SideBySide.from_dict(kept[2]),
            2,
        )
        assert again == before
        assert [Gate.from_dict(json.loads(json.dumps(one.to_dict()))) for one in before] == before


@st.composite
def legal(draw):
    """Two models' answers on the same images: as few as one, classes without images, models that never differ or always do."""
    images = draw(st.integers(1, 12))
    classes = draw(st.integers(2, 4))
    same = draw(st.booleans())

    def ints(high):
        return st.lists(st.integers(0, high), min_size=images, max_size=images)

    labels = draw(ints(classes - 1))
    kinds = draw(st.lists(st.sampled_from(CORRUPTIONS), unique=True))

    def model():
        return SplitAnswers(
            classes=CLASSES[:classes],
            labels=np.array(labels),
            predictions=np.array(draw(ints(classes - 1))),
            label_nll=np.zeros(images),
            confidence=np.array(draw(st.lists(st.floats(0, 1), min_size=images, max_size=images))),
            loss=0.0,
            brier=0.0,
            corrupted={kind: np.array(draw(ints(classes - 1))) for kind in kinds},
        )

    ours = model()
    theirs = ours if same else draw(st.one_of(st.none(), st.builds(model)))
    return ours, theirs


POLICIES = (
    DEFAULT,
    NON_INFERIOR,
    asking(
        "{class_drop: 0, calibration: {ece_above_champion: 0, ece: 0}, robustness: {drop: 0, accuracy: 1}, "
        "floors: {accuracy: 1, worst_class: 1}}"
    ),
    asking(
        "{class_drop: 1, robustness: {kinds: [], drop: null}, calibration: {ece_above_champion: null}, seed_sd: null, "
        "cost_above_champion: null}"
    ),
)


@settings(max_examples=60, deadline=None)
@given(legal(), st.sampled_from(POLICIES), st.integers(1, 1000))
def test_judging_never_raises_on_odd_but_legal_evidence(models, asked, reading):
    ours, theirs = models
    found = every_gate(ours, theirs, asked, beside(), reading)
    assert [one.id for one in found] == ["G1", "G2", "G5", "G8", "G9", "G10", "G11", "G13", "G3", "G4", "G6", "G7", "G12"]
    assert all(one.passed in (True, False, None) and one.said and "nan" not in one.said.split() for one in found)
    gates.table(found)
    json.dumps([ours.to_dict(), [one.to_dict() for one in found]], allow_nan=False)
    if theirs is ours:  # itself in the champion's place: no drop, no gap, no loss
        with_itself = {one.id: one for one in found}
        assert "lost" not in with_itself["G6"].said or "no class lost" in with_itself["G6"].said
        assert with_itself["G4"].passed is False


def test_a_comparison_knows_its_lower_bound():
    """With 10,000 images of which 100 part the models each way the gain's deviation is √200 / 10,000 = 0.0014: 1.96 of them below 0."""
    found = AccuracyComparison(10_000, 100, 100, 1)
    assert found.least == pytest.approx(-1.96 * 0.001414, rel=0.03)
    assert found.no_worse_than(0.0029)
    assert not found.no_worse_than(0.0027)
    assert AccuracyComparison(1000, 0, 0, 1).least == pytest.approx(-(1 - 0.025 ** (1 / 1000)), abs=1e-6)  # none of 1,000 is lost
    assert dataclasses.replace(found, reading=5).least < found.least


def test_near_duplicates_are_told_and_refuse_only_if_the_policy_limits_them():
    found = gates.leak(duplicates(near=60), DEFAULT)
    assert found.passed
    assert found.said == (
        "0 test images are also, byte for byte, among the images of training, validation or holdout; 60 of 100 (60.00%) look like "
        "copies of other images (encoded again, resized, cropped a little or mirrored); duplicates.csv in the run of the promotion "
        "names them"
    )
    examined = gates.leak(duplicates(near=60), DEFAULT, recorded=False)  # `vit-search gate`, which writes nothing
    assert examined.said.endswith("cropped a little or mirrored); `promote` lists them in duplicates.csv")
    assert not gates.leak(duplicates(near=60), asking("near_duplicates: 0.5")).passed
    both = gates.leak(duplicates(equal=3, near=2), DEFAULT)
    assert not both.passed
    assert "3 test images are also" in both.said and "2 of 100 (2.00%)" in both.said


def test_images_too_small_for_near_duplicates_pass_unless_the_policy_limits_them():
    small = Duplicates(0, not_judged="images of 8x8 pixels show too little (at least 32x32)")
    found = gates.leak(small, DEFAULT)
    assert found.passed
    assert found.said.endswith("; near duplicates were not looked for: images of 8x8 pixels show too little (at least 32x32)")
    refused = gates.leak(small, asking("near_duplicates: 0.5"))
    assert not refused.passed
    assert refused.said.endswith("(at least 32x32); leave out near_duplicates in the policy")
