"""The gates: checks that a candidate must pass before it becomes the champion. Pure functions of the evidence and the policy.

    before the test split is read   G1 integrity, G2 lineage, G5 readings, G8 cost, G9 seeds, G10 smoke, G11 approval, G13 leak
    after it                        G3 floors, G4 better, G6 classes, G7 calibration, G12 corruption

A limit of the policy is compared with the measured figure as it is. A comparison with the champion is noisy. So such a gate refuses only if
the difference is larger than allowed, and chance does not explain it (at 5 % for each gate). Only in G4 must the candidate prove that it is
better; its 5 % cover all readings of the test split together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from vit_search.config.metrics import METRICS
from vit_search.promotion.class_drops import class_drops, holm, metric_drops, metric_of_classes
from vit_search.promotion.evidence.answers import SplitAnswers, corruption_drop, ece_gap
from vit_search.promotion.evidence.costs import Costs, SideBySide
from vit_search.promotion.evidence.duplicates import Duplicates
from vit_search.promotion.evidence.parity import Parity
from vit_search.promotion.evidence.weighted_metrics import drawn_values, value_of
from vit_search.promotion.mcnemar import AccuracyComparison, compare
from vit_search.promotion.policy import Policy
from vit_search.promotion.score_comparison import ScoreComparison, compare_scores
from vit_search.stats import wilson
from vit_search.text import counted, markdown

BEYOND_CHANCE = 0.05
"""Probability that a gate refuses a candidate whose true difference is exactly the allowed one."""

LINEAGE = {
    "search_id": "search",
    "trial": "trial",
    "config_sha256": "configuration",
    "data_hash": "data",
    "packages_sha256": "installed packages",
    "seeds": "seeds",
    "hardware": "hardware",
    "versions": "library versions",
}
"""The facts about a model's origin that must be known, with their words in messages. `git_commit` must be known, too, but may be empty."""


@dataclass(frozen=True)
class Gate:
    """A gate and its verdict."""

    id: str
    name: str
    passed: bool | None
    """None if the gate does not apply."""
    said: str
    """One line with the figures, or why the gate does not apply."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Gate:
        """The inverse of `to_dict`."""
        return Gate(**values)


def verdict(gates: Iterable[Gate]) -> bool:
    """Whether a candidate may be promoted: at least one gate was judged, and none refused."""
    judged = [one.passed for one in gates if one.passed is not None]
    return bool(judged) and all(judged)


def reasons(gates: Iterable[Gate]) -> list[str]:
    """One line for each gate that refused."""
    return [f"{one.id} {one.name}: {one.said}" for one in gates if one.passed is False]


def table(gates: Iterable[Gate]) -> str:
    """All gates as a Markdown table, in the order of their numbers."""
    words = {True: "passed", False: "**refused**", None: "does not apply"}
    rows = [f"| {one.id} {one.name} | {words[one.passed]} | {markdown(one.said)} |" for one in sorted(gates, key=lambda g: int(g.id[1:]))]
    return "\n".join(["| gate | verdict | seen |", "|---|---|---|", *rows]) + "\n"


def _judged(id: str, name: str, problems: Sequence[str], figures: str) -> Gate:
    """A gate that refuses with its problems, or passes with its figures."""
    return Gate(id, name, not problems, "; ".join(problems) or figures)


# --- before the test split is read -----------------------------------------------------------------------------------------


def integrity(parities: Sequence[Parity], policy: Policy, *, expected_sha256: str, found_sha256: str) -> Gate:
    """G1: the weights are the recorded ones, and every exported file gives the same logits as the model in eager mode.

    Args:
        expected_sha256: of the recorded weights. found_sha256: of the weights now.
    """
    problems = []
    if not expected_sha256 or expected_sha256 != found_sha256:
        was = f"{expected_sha256[:12]}… is recorded" if expected_sha256 else "none is recorded"
        problems.append(f"the weights' sha256 is {found_sha256[:12]}…, {was}")
    measured = {one.format: one for one in parities}
    for name in policy.export.formats:
        one = measured.get(name)
        allowed = 0.0 if name == "safetensors" else policy.export.tolerance
        if one is None:
            problems.append(f"{name} was not measured")
        elif one.problem:
            problems.append(f"{name} cannot answer, {one.problem}")
        elif not one.difference <= allowed:
            problems.append(f"{name} differs from eager mode by {one.difference:.2g}, {allowed:.2g} is allowed")
    differences = ", ".join(f"{one.format} {one.difference:.2g}" for one in parities if one.format in policy.export.formats)
    return _judged("G1", "integrity", problems, f"weights {found_sha256[:12]}…; largest difference from eager mode: {differences}")


def lineage(facts: Mapping[str, str], policy: Policy) -> Gate:
    """G2: the origin of the model is fully known.

    Args:
        facts: by the names of LINEAGE, and `git_commit`. The latter is empty for a search that was launched outside of a checkout. It ends
            in `-dirty` if the checkout had changes that were not committed, as with `git describe --dirty`.
    """
    missing = [f"{words} ({name})" for name, words in LINEAGE.items() if not facts.get(name, "").strip()]
    commit = facts.get("git_commit")
    if commit is None:
        missing.append("git commit (git_commit)")
    problems = [f"not known: {', '.join(missing)}"] if missing else []
    dirty = commit is not None and commit.endswith("-dirty")
    if dirty and not policy.allow_dirty:
        code = facts.get("code_version", "")
        problems.append(f"the code that trained it ({code}) had changes that were not committed; give --allow-dirty to allow it")
    where = f"commit {commit}" if commit else "started outside a git repository"
    return _judged("G2", "lineage", problems, f"complete; {where}{', allowed as it is' if dirty else ''}")


def readings(reading: int, policy: Policy) -> Gate:
    """G5: the test split has not been read too often. `reading`: the number of the reading, from 1."""
    most, budget = policy.better.most_readings, policy.better.alpha
    allowed = AccuracyComparison(1, 0, 0, reading, budget).alpha
    if reading > most:
        return Gate(
            "G5", "readings", False, f"reading {reading} of this test split, and after {most} it decides nothing; give new test images"
        )
    wider = f"; the interval is {1 - 2 * allowed:.2%}, wider than at the first reading" if reading > 1 else ""
    return Gate(
        "G5", "readings", True, f"reading {reading} of at most {most}; chance allowed here: {allowed:.2g} of {budget:g} in all{wider}"
    )


def cost(costs: Costs, policy: Policy, side_by_side: SideBySide | None = None) -> Gate:
    """G8: within the policy's limits, and not much more expensive than the champion.

    A ratio of latencies exceeds its limit only if its whole interval does. File size and memory are exact, so they have no interval.

    Args:
        costs: of the candidate; with a champion, those of `side_by_side`. side_by_side: None if there is no champion.
    """
    limits, problems, measured = policy.limits, [], [f"{costs.params:,} parameters", f"{costs.file_bytes:,} bytes"]
    if limits.params is not None and costs.params > limits.params:
        problems.append(f"{costs.params:,} parameters, {limits.params:,} are allowed")
    if limits.file_bytes is not None and costs.file_bytes > limits.file_bytes:
        problems.append(f"a file of {costs.file_bytes:,} bytes, {limits.file_bytes:,} are allowed")
    for device, peak in costs.peak_memory_bytes.items():
        if limits.peak_memory_bytes is not None and peak > limits.peak_memory_bytes:
            problems.append(f"{peak:,} bytes of memory on {device} at their peak, {limits.peak_memory_bytes:,} are allowed")
    for key, most in limits.latency_ms.model_dump().items():
        name, _, word = key.rpartition("_")
        if most is None:
            continue
        if name not in costs.latency:
            problems.append(f"{key} was not measured, and has a limit of {most:g} ms; measure where the device is, or drop the limit")
            continue
        milliseconds = getattr(costs.latency[name], f"{word}_ms")
        if not milliseconds <= most:
            problems.append(f"{key} is {milliseconds:.3g} ms, {most:g} ms are allowed")
    measured += [f"{name} p50 {one.p50_ms:.3g} ms, p95 {one.p95_ms:.3g} ms" for name, one in costs.latency.items()]
    most_ratio = policy.cost_above_champion
    if side_by_side is not None and most_ratio is not None:
        counted_ratios = {"file": side_by_side.candidate.file_bytes / side_by_side.champion.file_bytes}
        for device, theirs in side_by_side.champion.peak_memory_bytes.items():
            if device in side_by_side.candidate.peak_memory_bytes:
                counted_ratios[f"peak memory on {device}"] = side_by_side.candidate.peak_memory_bytes[device] / theirs
        for name, value in counted_ratios.items():
            measured.append(f"{name} {value:.2f} x the champion's")
            if value > most_ratio:
                problems.append(f"{name} is {value:.2f} x the champion's, {most_ratio:g} x is allowed")
        for name, ratio in side_by_side.ratios.items():
            figures = f"{ratio.value:.2f} x the champion's (95 % interval {ratio.low:.2f} to {ratio.high:.2f})"
            measured.append(f"{name} {figures}")
            if ratio.low > most_ratio:
                problems.append(f"{name} is {figures}, {most_ratio:g} x is allowed")
    return _judged("G8", "cost", problems, "; ".join(measured))


def seeds(
    values: Sequence[float],
    policy: Policy,
    *,
    images: int,
    registered: float | None = None,
    metric: str = "val_accuracy",
    noise: float | None = None,
) -> Gate:
    """G9: the configuration does not owe its result to a lucky seed.

    With few images, equally good trainings differ by chance: in accuracy with a variance of at most p (1 - p) / images. So the deviation
    over the seeds may be as large as the policy's limit and chance together. The registered model must be within two deviations of the
    mean. Of n values, none is further than (n - 1) / √n deviations from their mean, so this check matters only from 6 seeds on.

    Args:
        values: of the metric, one per seed, on the same images. images: their number.
        registered: the value of the model that would be registered.
        noise: standard deviation of the metric by chance on these images; None for a metric that is a share of the images.
    """
    name = metric.removeprefix("val_")
    if len(values) < 2:
        return Gate("G9", "seeds", None, "one seed shows no spread; train with more seeds")
    spread, middle = stdev(values), mean(values)
    variance = max(middle * (1 - middle), 0.0) / max(images, 1) if noise is None else noise**2
    figures = (
        f"{name} {middle:.4f}, deviation {spread:.4f} over {len(values)} seeds on {counted(images, 'image')}, "
        f"chance alone {variance**0.5:.4f}"
    )
    problems = []
    if policy.seed_sd is not None and spread > (policy.seed_sd**2 + variance) ** 0.5 + 1e-12:
        problems.append(f"{figures}, {policy.seed_sd:g} is allowed beyond that")
    if registered is not None and abs(registered - middle) > 2 * spread + 1e-12:
        problems.append(f"the registered model's {registered:.4f} lies more than 2 deviations from the mean ({figures})")
    return _judged("G9", "seeds", problems, figures)


def smoke(problem: str) -> Gate:
    """G10: a fresh process serves the model and rejects malformed requests. `problem`: empty if it does."""
    return Gate("G10", "serving smoke test", not problem, problem or "a new process gives valid answers, and rejects malformed requests")


def approval(protected: bool, approve_by: str, policy: Policy) -> Gate:
    """G11: a person has approved, if the policy requires it. `protected`: whether the registered model has that tag."""
    if policy.approval == "never" or (policy.approval == "protected" and not protected):
        return Gate(
            "G11", "approval", None, "the policy asks for none" if policy.approval == "never" else "the model is not tagged protected"
        )
    approver = approve_by.strip()
    return Gate("G11", "approval", bool(approver), f"by {approver}" if approver else "nobody has approved; give --approve-by NAME")


def leak(duplicates: Duplicates, policy: Policy, *, recorded: bool = True) -> Gate:
    """G13: no test image is among those of training or selection, equal or slightly changed. `recorded`: whether a run lists them."""
    equal = f"{duplicates.equal:,} test images are also, byte for byte, among the images of training, validation or holdout"
    too_many = duplicates.equal > policy.leaked
    equal += f", {policy.leaked:,} are allowed; remove them" if too_many else ""
    most = policy.near_duplicates
    if duplicates.not_judged:
        refused = most is not None
        near = f"near duplicates were not looked for: {duplicates.not_judged}"
        near += "; leave out near_duplicates in the policy" if refused else ""
    else:
        refused = most is not None and duplicates.near_share > most
        near = (
            f"{duplicates.near:,} of {duplicates.judged:,} ({duplicates.near_share:.2%}) look like copies of other images (encoded again, "
            "resized, cropped a little or mirrored)"
        )
        near += f", {most:.2%} are allowed; remove them" if refused else ""
        if duplicates.near:
            near += "; duplicates.csv in the run of the promotion names them" if recorded else "; `promote` lists them in duplicates.csv"
    return Gate("G13", "leak", not (too_many or refused), f"{equal}; {near}")


# --- after it --------------------------------------------------------------------------------------------------------------


def floors(
    answers: SplitAnswers,
    policy: Policy,
    *,
    majority: float | None = None,
    linear_probe: float | None = None,
    metric: str = "val_accuracy",
) -> Gate:
    """G3: good enough, with or without a champion.

    Args:
        majority, linear_probe: the metric of two baselines: always the most frequent class, and logistic regression on the pixels; None if
            they were not measured.
        metric: of the baselines.
    """
    low, high = answers.interval
    figures = f"accuracy {answers.accuracy:.4f} on {answers.images:,} test images (95 % interval {low:.4f} to {high:.4f})"
    wanted, problems = policy.floors, []
    if wanted.accuracy is not None and answers.accuracy < wanted.accuracy:
        problems.append(f"{figures}, at least {wanted.accuracy:g} is asked for")
    value, sign = answers.accuracy, 1.0 if METRICS[metric].mode == "max" else -1.0
    if metric != "val_accuracy":
        measured = value_of(answers, metric)
        assert measured is not None
        low, high = np.nanquantile(drawn_values(answers, metric), [0.025, 0.975])
        value = measured
        figures += f"; {metric.removeprefix('val_')} {value:.4f} (95 % interval {low:.4f} to {high:.4f})"
    best = high if sign > 0 else low
    for required, theirs, words, enough in (
        (wanted.above_majority, majority, "always giving the most frequent class", sign * (value - (majority or 0.0)) > 0),
        (wanted.linear_probe, linear_probe, "logistic regression on the pixels", sign * (best - (linear_probe or 0.0)) >= 0),
    ):
        if required and theirs is None:
            problems.append(f"{words} was not measured")
        elif required and theirs is not None and not enough:
            problems.append(f"{figures}, {'no better' if words.startswith('always') else 'worse'} than {words} ({theirs:.4f})")
        elif theirs is not None:
            figures += f"; {words} has {theirs:.4f}"
    return _judged("G3", "floors", problems, figures)


def comparison(
    candidate: SplitAnswers, champion: SplitAnswers, reading: int, policy: Policy, metric: str = "val_accuracy"
) -> AccuracyComparison | ScoreComparison:
    """Compare the answers of both models on the same images, by the rules of the policy.

    Args:
        metric: by which trials were ranked. If the answers give it, it decides here, too; otherwise accuracy does.
    """
    assert (candidate.labels == champion.labels).all()
    wanted = policy.better
    limits = {"reading": reading, "budget": wanted.alpha, "least_gain": wanted.least_gain, "most_readings": wanted.most_readings}
    if METRICS[metric].of_images or None in (value_of(candidate, metric), value_of(champion, metric)):
        if metric == "val_top5_accuracy" and candidate.top5 is not None and champion.top5 is not None:
            return compare(candidate.top5, champion.top5, metric=metric, **limits)  # type: ignore[arg-type]
        return compare(candidate.correct, champion.correct, **limits)  # type: ignore[arg-type]
    return compare_scores(candidate, champion, metric, **limits)  # type: ignore[arg-type]


def better(compared: AccuracyComparison | ScoreComparison | None, policy: Policy, side_by_side: SideBySide | None = None) -> Gate:
    """G4: better than the champion; or, with mode non_inferior, not worse and cheaper.

    Args:
        compared: from `comparison`; None if there is no champion. side_by_side: needed for non_inferior.
    """
    name = "better than the champion"
    if compared is None:
        return Gate("G4", name, None, "there is no champion to compare with; G3 decides")
    if policy.better.mode == "better":
        return _judged("G4", name, [compared.problem] if compared.problem else [], compared.in_words())
    wanted, name = policy.better, "no worse than the champion, and cheaper"
    figures = f"{compared.in_words()}; lower bound of the gain {compared.least:+.4f}"
    problems = []
    if compared.reading > compared.most_readings:
        problems.append(compared.problem)
    elif not compared.no_worse_than(wanted.margin):
        problems.append(f"not shown to be at most {wanted.margin:g} worse than the champion: {figures}")
    cheaper = _cheaper(side_by_side, wanted.cheaper)
    if not cheaper:
        problems.append(f"neither its latency nor its file is shown to be {wanted.cheaper:.0%} smaller than the champion's")
    return _judged("G4", name, problems, f"{figures}; {cheaper}")


def _cheaper(side_by_side: SideBySide | None, share: float) -> str:
    """What is smaller than the champion's by at least `share`, in words; empty if nothing is."""
    if side_by_side is None:
        return ""
    savings = []
    file = side_by_side.candidate.file_bytes / side_by_side.champion.file_bytes
    if file <= 1 - share:
        savings.append(f"its file is {file:.2f} x the champion's")
    for name, ratio in side_by_side.ratios.items():
        if name.endswith("batch_1_p50") and ratio.high <= 1 - share:
            savings.append(f"{name} is {ratio.value:.2f} x the champion's (at most {ratio.high:.2f})")
    return ", ".join(savings)


def classes(candidate: SplitAnswers, champion: SplitAnswers | None, policy: Policy, metric: str = "val_accuracy") -> Gate:
    """G6: no class is too bad, and none lost more than the policy allows, beyond chance and corrected for the number of classes.

    Args:
        metric: by which trials were ranked. Classes are compared by it if each class has a value of it (as with F1), otherwise by recall.
    """
    recalls = [(recall, name) for recall, name in zip(candidate.recalls, candidate.classes, strict=True) if recall is not None]
    worst, name = min(recalls)
    counts = dict(zip(candidate.classes, candidate.confusion.sum(1).tolist(), strict=True))
    low, high = wilson(round(worst * counts[name]), counts[name])
    figures = f"worst class {name}: {worst:.4f} of {counted(counts[name], 'image')} (95 % interval {low:.4f} to {high:.4f})"
    floor, allowed, problems = policy.floors.worst_class, policy.class_drop, []
    if floor is not None and worst < floor:
        problems.append(f"{figures}, at least {floor:g} is asked for")
    if champion is not None and allowed is not None:
        by = metric_of_classes(metric) if value_of(candidate, metric) is not None and value_of(champion, metric) is not None else ""
        of = f" of {by.removeprefix('val_').removeprefix('macro_')}" if by else ""
        on = f"{of} on" if by else " of"
        drops = metric_drops(candidate, champion, by, allowed) if by else class_drops(candidate, champion, allowed)
        for drop, bad in zip(drops, holm([one.p for one in drops], BEYOND_CHANCE), strict=True):
            if bad:
                problems.append(
                    f"class {drop.name} lost {drop.drop:.4f}{on} its {counted(drop.images, 'image')} to the champion, "
                    f"{allowed:g} is allowed (p = {drop.p:.2g})"
                )
        largest = max(drops, key=lambda one: one.drop)
        if largest.drop > 0:
            figures += f"; largest drop {largest.drop:.4f}{of} in class {largest.name}, p = {largest.p:.2g} for more than {allowed:g}"
        else:
            figures += "; no class lost to the champion"
    if floor is None and (champion is None or allowed is None):
        return Gate("G6", "classes", None, f"no floor is set and there is no champion to compare with; {figures}")
    return _judged("G6", "classes", problems, figures)


def calibration(candidate: SplitAnswers, champion: SplitAnswers | None, policy: Policy) -> Gate:
    """G7: probabilities are calibrated, or not much worse than the champion's."""
    figures, problems = f"calibration error {candidate.ece:.4f} (15 bins)", []
    most, allowed = policy.calibration.ece, policy.calibration.ece_above_champion
    if most is not None and candidate.ece > most:
        problems.append(f"{figures}, {most:g} is allowed")
    if champion is not None and allowed is not None:
        gap, low, _ = ece_gap(candidate, champion)
        figures += f", the champion's {champion.ece:.4f}: {gap:+.4f}"
        if min(gap, low) > allowed:
            problems.append(f"{figures} (at least {low:+.4f} beyond chance), {allowed:+g} is allowed")
    if most is None and (champion is None or allowed is None):
        return Gate("G7", "calibration", None, f"no limit is set and there is no champion to compare with; {figures}")
    return _judged("G7", "calibration", problems, figures)


def corruption(candidate: SplitAnswers, champion: SplitAnswers | None, policy: Policy, unfit: Sequence[str] = ()) -> Gate:
    """G12: common image corruptions hurt it little, or no more than the champion. `unfit`: corruptions that these images cannot have."""
    wanted = policy.robustness
    if not wanted.kinds:
        return Gate("G12", "corruption", None, "the policy names no corruption")
    left_out = [kind for kind in wanted.kinds if kind in unfit]
    if len(left_out) == len(wanted.kinds):
        return Gate("G12", "corruption", None, f"images of this depth and these channels cannot have: {', '.join(left_out)}")
    missing = [kind for kind in wanted.kinds if kind not in candidate.corrupted and kind not in unfit]
    if missing or candidate.corrupted_accuracy is None:
        return Gate("G12", "corruption", False, f"not measured: {', '.join(missing)}")
    each = ", ".join(f"{name} {value:.4f}" for name, value in candidate.corrupted_accuracies.items())
    figures, problems = f"mean accuracy {candidate.corrupted_accuracy:.4f} on corrupted images ({each})", []
    if left_out:
        figures += f"; without {', '.join(left_out)}, which needs 8 bits and 1 or 3 channels"
    if wanted.accuracy is not None and candidate.corrupted_accuracy < wanted.accuracy:
        problems.append(f"{figures}, at least {wanted.accuracy:g} is asked for")
    comparable = champion is not None and bool(set(candidate.corrupted) & set(champion.corrupted))
    if champion is not None and comparable and wanted.drop is not None:
        drop, low, _ = corruption_drop(candidate, champion)
        figures += f"; {-drop:+.4f} against the champion"
        if min(drop, low) > wanted.drop:
            problems.append(f"{figures} (at least {low:.4f} lost beyond chance), a loss of {wanted.drop:g} is allowed")
    if wanted.accuracy is None and (not comparable or wanted.drop is None):
        return Gate("G12", "corruption", None, f"no floor is set and there is no champion to compare with; {figures}")
    return _judged("G12", "corruption", problems, figures)
