"""Promotes the best model of a search.

The steps: choose a candidate, measure it, read the test split once, decide, register, move the alias.

All evidence is kept in the promotion's folder and in its MLflow run. So a promotion that dies can continue without reading the test split
again. The alias `champion` moves last (registry/champion.py), and only to a complete version that has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from vit_search.config.metrics import METRICS
from vit_search.data.batches import load_split
from vit_search.data.cache import DataSet, absent_classes, prepare
from vit_search.data.sources.source import in_short
from vit_search.data.split import SplitName
from vit_search.errors import PromotionError, PromotionRefusedError
from vit_search.ledger import searches
from vit_search.promotion import card, gates, mistakes
from vit_search.promotion.candidate import Candidate, choose_candidate, lineage_of
from vit_search.promotion.champion_model import fetched_champion, find_champion
from vit_search.promotion.decision import Decision, PromotionRequest, decide
from vit_search.promotion.evidence.answers import SplitAnswers, classify_split
from vit_search.promotion.evidence.duplicates import Duplicates, find_duplicates
from vit_search.promotion.evidence.weighted_metrics import answers_give, drawn_values, needs_probabilities
from vit_search.promotion.finalists import Finalist, Retrained
from vit_search.promotion.gates import Gate
from vit_search.promotion.measurements import Measurements, measure
from vit_search.promotion.policy import Policy
from vit_search.promotion.readings import Reading, count_readings, kept_reading, read_test_split, reading_path, unfit_corruptions
from vit_search.promotion.registration import (
    LoggedCandidate,
    create_registered_model,
    find_version_of,
    keep_duplicates,
    keep_evidence,
    log_candidate,
    register_version,
    smoke_problem,
    version_tags,
)
from vit_search.registry import smoke
from vit_search.registry.champion import move_champion, repair_champion
from vit_search.registry.lock import abandoned
from vit_search.registry.promotion_history import INTENT
from vit_search.registry.version_files import load_version
from vit_search.tracking.mlflow_client import client_for
from vit_search.vit.checkpoint import ServedModel

Say = Callable[[str], None]
"""Called with a few words before each step."""


READING, REGISTERING = "evaluating once on the test split", "registering"
"""Steps after which an interrupted promotion leaves something behind. Before them it leaves only models and measurements."""


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion."""

    name: str
    version: str
    verdict: str
    """`passed`; `refused`: the champion stays; `forced`; or `again`: it was the champion already, so nothing was done."""
    finalist: Finalist
    gates: list[Gate]
    """The gates that were judged. Those that need the test split are missing if another one refused before."""
    answers: SplitAnswers | None = None
    """The candidate's answers on the test images; None if the test split was not read."""
    reading: int = 0
    """The number of this reading of the test split, from 1; 0 if it was not read."""
    read_before: bool = False
    """Whether an earlier promotion of this candidate had read the test split, so that its answers were used again."""
    champion: str | None = None
    """The version that was champion before; None if there was none."""
    tags: Mapping[str, str] = field(default_factory=dict)
    page: Path | None = None
    """The page that shows the candidate's mistakes on the test images; None if they were not read."""


@dataclass(frozen=True)
class _Case:
    """What all steps need: the candidate, the policy, the request, and what the registry holds before the promotion."""

    client: mlflow.MlflowClient
    retrained: Retrained
    policy: Policy
    request: PromotionRequest
    candidate: Candidate
    model: Any
    """The registered model, as MLflow returns it."""
    champion: Any
    """Its champion; None if there is none."""
    version: Any
    """The version that an earlier promotion made of this candidate; None if there is none."""

    @property
    def champion_version(self) -> str | None:
        """The champion's version number."""
        return str(self.champion.version) if self.champion is not None else None

    @property
    def comparable(self) -> Any:
        """The champion if it was trained on the same data, otherwise None."""
        if self.champion is None or self.champion.tags.get("data_hash") != self.candidate.served.data_hash:
            return None
        return self.champion


@dataclass(frozen=True)
class _Judged:
    logged: LoggedCandidate
    decision: Decision


def promote(
    retrained: Retrained,
    policy: Policy,
    request: PromotionRequest,
    *,
    tracking_uri: str | None = None,
    say: Say = lambda text: None,
) -> Promotion:
    """Choose a candidate among the finalists, judge it, and make it the champion if every gate passes.

    Gates that need no test image come first. If one refuses, the test split is not read. Each reading is counted in the registry before it
    is made. Candidate and champion classify the same test images.

    Returns: what was measured and decided. A refused candidate becomes a version, too, with its evidence, and the champion stays.
    Raises: PromotionRefusedError if the champion was trained on other data or has moved meanwhile; PromotionError if the data has changed,
        if a run or a model cannot be found, or if another promotion is running; TrackingError.
    """
    client = client_for(tracking_uri)
    say("choosing among the finalists")
    case = _choose(client, retrained, policy, request)
    if case.version is not None and str(case.version.version) == case.champion_version:
        return Promotion(
            request.name,
            str(case.version.version),
            "again",
            case.candidate.finalist,
            [],
            champion=case.champion_version,
            tags=case.version.tags,
        )
    data = _check_data(case)
    with fetched_champion(client, case.comparable, lenient=bool(request.force)) as champion:
        judged = _judge(case, data, champion, say)
    say(REGISTERING)
    promotion = _register(case, data, judged)
    if promotion.verdict != "refused":
        _make_champion(case, promotion)
    return promotion


def _choose(client: mlflow.MlflowClient, retrained: Retrained, policy: Policy, request: PromotionRequest) -> _Case:
    """Choose the candidate and read the registered model. Before that, repair a move that a dead promotion did not complete.

    Raises: PromotionRefusedError if the champion is not the version that the person expects.
    """
    candidate = choose_candidate(client, retrained)
    model = create_registered_model(client, request.name)
    if INTENT in model.tags or abandoned(client, request.name):  # a promotion died in the middle of a move
        repair_champion(client, request.name)
    version = find_version_of(client, request.name, candidate)
    case = _Case(client, retrained, policy, request, candidate, model, find_champion(client, request.name), version)
    if request.expect and request.expect != (case.champion_version or "none"):
        now = f"version {case.champion_version}" if case.champion_version else "not there yet"
        raise PromotionRefusedError(
            f"{request.name}: the champion is {now}, and --expect-current says {request.expect}; look at it and promote again."
        )
    return case


def _check_data(case: _Case) -> DataSet:
    """Load the data set. It must be that of the search and of the champion.

    Raises: PromotionRefusedError if the champion was trained on other data; PromotionError if the data has changed, or if its test images
        cannot give the search's metric.
    """
    if case.champion is not None and case.comparable is None and not case.request.force:
        raise PromotionRefusedError(
            f"{case.request.name}: the champion, version {case.champion.version}, was trained on other data, and may have seen these test "
            "images; search over its data, or promote with --force --reason."
        )
    served, metric = case.candidate.served, case.retrained.spec.metric
    data = prepare(served.config.data)
    if data.data_hash != served.data_hash:
        raise PromotionError(
            f"{case.retrained.search}: the data set has changed since the search; its test split is another one. Search again."
        )
    absent = absent_classes(data, "test") if METRICS[metric].every_class else ()  # reads only the labels; no model runs yet
    if absent and not case.request.force:
        raise PromotionError(
            f"{case.retrained.search}: {metric} needs test images of each class, and there is none of {in_short(absent)}; add images and "
            "search again, or promote with --force --reason."
        )
    return data


def _judge(case: _Case, data: DataSet, champion: tuple[ServedModel, Path] | None, say: Say) -> _Judged:
    """Measure, log and judge the candidate. The test split is read only if no earlier gate refuses.

    Args:
        champion: its model and its checkpoint; None if there is none to compare with.
    """
    client, candidate, request = case.client, case.candidate, case.request
    say("measuring its costs and its exports")
    measured = measure(candidate, champion, case.policy)
    path = reading_path(case.retrained, candidate, case.champion if champion else None)
    reading = kept_reading(path)
    number = reading.number if reading else count_readings(case.model, data.data_hash) + 1
    say("answering in a fresh process")
    logged = log_candidate(client, candidate, case.retrained)
    smoke_found = smoke_problem(client, logged)
    say("looking for test images among the others")
    duplicates = find_duplicates(candidate.served.config.data, data)
    keep_duplicates(client, candidate, data, duplicates, images=case.retrained.spec.report.images)
    judged = _judge_before_test(case, data, measured, number, smoke_found, duplicates)
    if not (request.force or gates.verdict(judged)):
        return _Judged(logged, decide(judged, measured, None, request))
    if reading is None:
        say(READING)
        reading = read_test_split(
            client,
            request.name,
            path,
            candidate=candidate.served,
            champion=champion[0] if champion else None,
            data=data,
            policy=case.policy,
            metric=case.retrained.spec.metric,
        )
    judged += _judge_after_test(case, measured, reading)
    return _Judged(logged, decide(judged, measured, reading, request))


def _judge_before_test(
    case: _Case, data: DataSet, measured: Measurements, number: int, smoke_problem: str, duplicates: Duplicates
) -> list[Gate]:
    """Judge the gates that need no test image.

    Args:
        number: number of the next reading of the test split.
        smoke_problem: of the logged model; empty if there is none.
    """
    candidate, policy, spec = case.candidate, case.policy, case.retrained.spec
    split: SplitName = "val" if spec.train_on == "train" else "holdout"
    metric = spec.metric if answers_give(spec.metric) else "val_accuracy"
    values = candidate.finalist.accuracies if metric == "val_accuracy" else candidate.finalist.values
    return [
        gates.integrity(measured.parities, policy, expected_sha256=candidate.weights_sha256, found_sha256=measured.weights_sha256),
        gates.lineage(lineage_of(candidate, searches.read(case.retrained.folder)[1]), policy),
        gates.readings(number, policy),
        gates.cost(measured.costs, policy, measured.side_by_side),
        gates.seeds(
            values,
            policy,
            images=data.counts[split],
            registered=values[candidate.index],
            metric=metric,
            noise=None if METRICS[metric].of_images else _noise(candidate.served, data, split, metric),
        ),
        gates.smoke(smoke_problem),
        gates.approval("protected" in case.model.tags, case.request.approve_by, policy),
        gates.leak(duplicates, policy),
    ]


def _noise(served: ServedModel, data: DataSet, split: SplitName, metric: str) -> float:
    """Standard deviation of a metric by chance, on the images of a split."""
    answers = classify_split(served, load_split(data, split), probabilities=needs_probabilities(metric))
    return float(np.nanstd(drawn_values(answers, metric)))


def _judge_after_test(case: _Case, measured: Measurements, reading: Reading) -> list[Gate]:
    policy, answers, champion = case.policy, reading.answers, reading.champion
    compared, metric = None, case.retrained.spec.metric
    if champion is not None:
        compared = gates.comparison(answers, champion, reading.number, policy, metric)
    by = reading.baseline_metric(metric)
    judged = [
        gates.floors(answers, policy, majority=reading.majority[by], linear_probe=reading.linear_probe[by], metric=by),
        gates.better(compared, policy, measured.side_by_side),
        gates.classes(answers, champion, policy, metric),
        gates.calibration(answers, champion, policy),
        gates.corruption(answers, champion, policy, unfit_corruptions(policy, case.candidate.served.config)),
    ]
    if reading.policy != policy.digest:
        reason = "the policy has changed since this candidate's answers were seen, and a gate that is tuned to them proves nothing; "
        judged.append(Gate("G14", "policy", False, reason + "promote under the old one, or with --force --reason"))
    return judged


def _register(case: _Case, data: DataSet, judged: _Judged) -> Promotion:
    """Keep the evidence and register the candidate as a version, whatever the verdict is."""
    client, candidate, decision, name = case.client, case.candidate, judged.decision, case.request.name
    tags = version_tags(case.retrained, candidate, case.policy, case.request, decision)
    costs = decision.measured.costs
    text = card.model_card(name, case.retrained, candidate.finalist, candidate.served, tags, decision.gates, decision.answers, costs)
    reading = decision.reading
    shown: tuple[Path, ...] = ()
    if reading is not None:
        shown = mistakes.write(case.retrained.folder, case.retrained.spec, data, reading, f"{case.retrained.run_name}: mistakes")
    keep_evidence(client, candidate, decision, text, tags, shown)
    version = register_version(client, name, candidate, judged.logged, tags, text)
    return Promotion(
        name=name,
        version=version,
        verdict=decision.verdict,
        finalist=candidate.finalist,
        gates=decision.gates,
        answers=decision.answers,
        reading=reading.number if reading else 0,
        read_before=reading is not None and not reading.fresh,
        champion=case.champion_version,
        tags=tags,
        page=next(iter(shown), None),
    )


def _make_champion(case: _Case, promotion: Promotion) -> None:
    """Load the registered version, compare it with its golden logits, and move the alias to it."""
    client, name, version, tags = case.client, promotion.name, promotion.version, promotion.tags
    problem = smoke.problem(load_version(client, client.get_model_version(name, version)), tags["golden"])
    if problem:
        raise PromotionError(f"{name}: version {version} does not answer as it was registered ({problem}); the champion stays.")
    move_champion(
        client,
        name,
        version,
        action="force" if promotion.verdict == "forced" else "promote",
        expected=promotion.champion,
        reason=case.request.force,
        by=case.request.by,
        facts={key: tags[key] for key in ("test_accuracy", "data_hash", "promotion_id", "gate") if key in tags},
    )
