"""From the best trials to production: choose among them, judge, read the test split once, decide, move the alias.

What is decided on is kept: in the promotion's folder, so that a promotion that dies goes on without reading the test split
again, and in its run in MLflow. The champion moves last, by registry.py, and only to a version that is whole and has passed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

from vit_search.config.cost import cost_of
from vit_search.config.strict_json import parse
from vit_search.data.batches import load_split
from vit_search.data.data_set import DataSet, prepare
from vit_search.errors import PromotionError, PromotionRefusedError
from vit_search.files import make_folder, write_whole
from vit_search.ledger import searches
from vit_search.ledger.file import read_trials
from vit_search.ledger.searches import SearchFacts, trial_folder
from vit_search.promotion import card, evidence, export, finalists, gates
from vit_search.promotion.evidence import Costs, OnImages, SideBySide
from vit_search.promotion.finalists import Finalist, Retrained
from vit_search.promotion.gates import Gate
from vit_search.promotion.policy import Policy
from vit_search.registry import registry, smoke
from vit_search.registry.lock import abandoned, locked
from vit_search.tracking import model_files
from vit_search.tracking.model_package import link_to_parent, log_model
from vit_search.tracking.store import client_for
from vit_search.vit import checkpoint
from vit_search.vit.checkpoint import ServedModel


@dataclass(frozen=True)
class Asked:
    """What a person asks of a promotion, beside the policy."""

    name: str
    """Of the registered model."""
    by: str
    force: str = ""
    """A reason to make it the champion whatever the gates say."""
    approve_by: str = ""
    """Who approves, where the policy asks for that."""
    expect: str = ""
    """The champion's version as the person knows it; any by default."""


@dataclass(frozen=True)
class Candidate:
    """The one training that may become a version."""

    finalist: Finalist
    index: int
    """Of the seed among the finalist's."""
    served: ServedModel
    folder: Path
    """Its checkpoint."""
    weights_sha256: str
    run_id: str
    parent_run: str
    promotion_id: str
    """Of configuration, seed, data and weights: the same training, the same id."""


@dataclass(frozen=True)
class Promotion:
    """What a promotion did, or why it did not."""

    name: str
    version: str
    verdict: str
    """`passed`; `refused`, and the champion stays; `forced`; or `again`: it was the champion already, and nothing was done."""
    finalist: Finalist
    gates: list[Gate]
    """As far as they were judged: those that need the test split only where no other refused."""
    seen: OnImages | None = None
    """On the test images; None where they were not looked at."""
    reading: int = 0
    """Which reading of this test split that was, from 1; 0 for none."""
    read_before: bool = False
    """An earlier, interrupted or refused promotion of this candidate had read it, and nothing was read now."""
    champion: str | None = None
    """The version that was champion before; None where there was none."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the version."""


@dataclass(frozen=True)
class _Reading:
    """The test split, read."""

    number: int
    policy: str
    """Digest of the policy it was read under."""
    seen: OnImages
    rival: OnImages | None
    majority: float
    linear_probe: float
    fresh: bool = True


def promote(
    retrained: Retrained, policy: Policy, asked: Asked, *, tracking_uri: str | None = None, say: Callable[[str], None] = lambda text: None
) -> Promotion:
    """Choose among the finalists, judge the chosen one, and put it in the champion's place where every gate lets it through.

    The gates that need no test image come first; where one refuses, the test split is not read. Every reading is counted in
    the registry before it is made. Both models classify the same test images.

    Args:
        say: told what is done next, in a few words.
    Returns: what was seen and decided; a refused candidate is a version, too, with the evidence, and the champion stays.
    Raises: PromotionRefusedError when the champion was trained on other data or moved meanwhile; PromotionError when the data has
        changed, a run or a model cannot be found, or another promotion is at it; TrackingError.
    """
    client = client_for(tracking_uri)
    say("choosing among the finalists")
    candidate = _chosen(client, retrained)
    model = _registered_model(client, asked.name)
    if registry.INTENT in model.tags or abandoned(client, asked.name):  # of one that died in mid-move
        registry.repair(client, asked.name)
    known = next((v for v in client.search_model_versions(f"name = '{asked.name}'") if _is(v, candidate)), None)
    champion = _champion(client, asked.name)
    if asked.expect and asked.expect != (str(champion.version) if champion else "none"):
        raise PromotionRefusedError(
            f"{asked.name}: the champion is {f'version {champion.version}' if champion else 'not there yet'}, and --expect-current says "
            f"{asked.expect}; look at it and promote again."
        )
    if known is not None and champion is not None and str(known.version) == str(champion.version):
        return Promotion(asked.name, str(known.version), "again", candidate.finalist, [], champion=str(known.version), tags=known.tags)
    served = candidate.served
    other_data = champion is not None and champion.tags.get("data_hash") != served.data_hash
    if other_data and not asked.force:
        raise PromotionRefusedError(
            f"{asked.name}: the champion, version {champion.version}, was trained on other data, and may have seen these test images; "
            "search over its data, or promote with --force --reason."
        )
    data = prepare(served.config.data)
    if data.data_hash != served.data_hash:
        raise PromotionError(f"{retrained.search}: the data set has changed since the search; its test split is another one. Search again.")
    count = _readings_tag(served.data_hash)
    with _fetched(client, None if other_data else champion, lenient=bool(asked.force)) as rival:
        say("measuring its costs and its exports")
        costs, beside = _costs(candidate, rival)
        against = champion if rival else None
        kept = _kept_reading(retrained, candidate, against)
        reading = kept.number if kept else int(model.tags.get(count, 0)) + 1
        say("answering in a fresh process")
        uri, record = _logged(client, candidate, retrained)
        judged = [
            gates.integrity(
                _parities(candidate, policy), policy, expected_sha256=candidate.weights_sha256, found_sha256=evidence.weights_sha256(served)
            ),
            gates.lineage(_lineage(searches.read(retrained.folder)[1], candidate), policy),
            gates.readings(reading, policy),
            gates.cost(costs, policy, beside),
            gates.seeds(
                candidate.finalist.accuracies,
                policy,
                images=_validated_on(data, retrained),
                registered=candidate.finalist.accuracies[candidate.index],
            ),
            gates.smoke(_smoke_problem(client, uri)),
            gates.approval("protected" in model.tags, asked.approve_by, policy),
            gates.leak(evidence.leaks(data), policy),
        ]
        read: _Reading | None = None
        if asked.force or gates.verdict(judged):
            say("evaluating once on the test split")
            read = kept or _read(client, retrained, candidate, against, rival, data, policy, asked.name)
            judged = [*judged, *_after(read, policy, beside, retrained.spec.metric)]
    passed = gates.verdict(judged)
    verdict = "passed" if passed else "forced" if asked.force else "refused"
    say("registering")
    tags = _tags(retrained, candidate, policy, asked, judged, read, verdict, costs)
    text = card.written(asked.name, retrained, candidate.finalist, served, tags, judged, read.seen if read else None, costs)
    _keep_evidence(client, candidate, judged, read, costs, beside, text, tags)
    version = _registered(client, asked.name, candidate, uri, tags, text, record)
    done = Promotion(
        asked.name,
        version,
        verdict,
        candidate.finalist,
        judged,
        read.seen if read else None,
        read.number if read else 0,
        read is not None and not read.fresh,
        str(champion.version) if champion else None,
        tags,
    )
    if verdict == "refused":
        return done
    problem = smoke.problem(registry.load_version(client, client.get_model_version(asked.name, version)), tags["golden"])
    if problem:
        raise PromotionError(f"{asked.name}: version {version} does not answer as it was registered ({problem}); the champion stays.")
    registry.move(
        client,
        asked.name,
        version,
        action="force" if verdict == "forced" else "promote",
        expected=done.champion,
        reason=asked.force,
        by=asked.by,
        facts={name: tags[name] for name in ("test_accuracy", "data_hash", "promotion_id", "gate") if name in tags},
    )
    return done


def examine(folder: Path, number: int, policy: Policy, name: str, *, tracking_uri: str | None = None) -> list[Gate]:
    """The gates that need no test image, for one trial of a search as it stands; nothing is registered or trained.

    Args:
        folder: of the search. number: of a trial whose checkpoint is kept. name: of the registered model it would replace.
    """
    client = client_for(tracking_uri, needs="read")
    spec, facts = searches.read(folder)
    place = trial_folder(folder, number) / "checkpoint"
    if number not in {trial.number for trial in read_trials(folder / "ledger.jsonl")}:
        raise PromotionError(f"{folder.name}: there is no trial {number}; `vit-search show {folder.name}` lists its trials.")
    if not checkpoint.exists(place):
        raise PromotionError(f"{folder}: the checkpoint of trial {number} is not kept; raise keep_checkpoints, or name one of the best.")
    served = checkpoint.load_model(place)
    digest = checkpoint.weights_sha256(place)
    finalist = Finalist(number, {}, 0.0, (served.config.seed,), (0.0,), (place,), (number,), (0.0,))
    candidate = Candidate(finalist, 0, served, place, digest, "", "", "")
    data = prepare(spec.data_config)
    with _fetched(client, champion_of(client, name)) as rival:
        costs, beside = _costs(candidate, rival)
    readings = readings_of(client, name, served.data_hash) + 1
    problem = smoke.problem(served)
    judged = [
        gates.integrity(_parities(candidate, policy), policy, expected_sha256=digest, found_sha256=evidence.weights_sha256(served)),
        gates.lineage(_lineage(facts, candidate), policy),
        gates.readings(readings, policy),
        gates.cost(costs, policy, beside),
        Gate("G9", "seeds", None, "one training shows no spread; `vit-search promote` trains with fresh seeds"),
        replace(gates.smoke(problem), said=problem or "it answers here as it should; `vit-search promote` asks it in a process of its own"),
        gates.leak(evidence.leaks(data), policy),
    ]
    waiting = (("G3", "floors"), ("G4", "better than the champion"), ("G6", "classes"), ("G7", "calibration"), ("G12", "corruption"))
    return [*judged, *(Gate(id, words, None, "needs the test split, which `vit-search promote` alone reads") for id, words in waiting)]


def readings_of(client: mlflow.MlflowClient, name: str, data_hash: str) -> int:
    """How often the test split of this data has been read for a registered model."""
    try:
        return int(client.get_registered_model(name).tags.get(_readings_tag(data_hash), 0))
    except MlflowException:
        return 0


def champion_of(client: mlflow.MlflowClient, name: str) -> Any:
    """The version that `champion` names, as MLflow gives it; None where there is none."""
    try:
        return _champion(client, name)
    except MlflowException:
        return None


# --- the candidate


def _chosen(client: mlflow.MlflowClient, retrained: Retrained) -> Candidate:
    """Of the finalists the cheapest of the best, and of its seeds the one in the middle."""

    def params(finalist: Finalist) -> float:
        return cost_of(checkpoint.load_model(finalist.checkpoints[0]).config.model, 1).params

    finalist = finalists.choose(retrained.finalists, retrained.spec.mode, params)
    index = finalist.middle
    folder = finalist.checkpoints[index]
    served, digest = checkpoint.load_model(folder), checkpoint.weights_sha256(folder)
    parent, run = _runs_of(client, retrained, finalist.numbers[index])
    told = json.dumps([served.config.to_dict(), served.data_hash, list(served.trained_on), digest], sort_keys=True)
    return Candidate(finalist, index, served, folder, digest, run, parent, hashlib.sha256(told.encode()).hexdigest())


def _runs_of(client: mlflow.MlflowClient, retrained: Retrained, number: int) -> tuple[str, str]:
    """MLflow's runs: of the promotion's trainings, and of one of them."""
    experiment = client.get_experiment_by_name(retrained.spec.name)
    parents = client.search_runs([experiment.experiment_id], f"tags.search_id = '{retrained.search_id}'") if experiment else []
    for parent in parents:
        condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.trial = '{number}'"
        for run in client.search_runs([parent.info.experiment_id], condition):
            return str(parent.info.run_id), str(run.info.run_id)
    raise PromotionError(
        f"{retrained.run_name}: MLflow has no run of its training {number}; send it with `vit-search sync {retrained.folder}`, "
        "or give the --tracking-uri that it was trained with."
    )


def _validated_on(data: DataSet, retrained: Retrained) -> int:
    return data.counts["val" if retrained.spec.train_on == "train" else "holdout"]


def _lineage(facts: SearchFacts, candidate: Candidate) -> dict[str, str]:
    """Where a candidate comes from, by the names that gates.LINEAGE asks for."""
    served, environment = candidate.served, facts.environment
    config = json.dumps(served.config.to_dict(), sort_keys=True).encode()
    dirty = facts.code_version.endswith("-dirty")
    return {
        "search": facts.promotes or facts.search,
        "search_id": facts.search_id,
        "trial": str(candidate.finalist.trial),
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "data_hash": served.data_hash,
        "trained_on": "+".join(served.trained_on),
        "git_commit": (facts.git_commit or ("unknown" if dirty else "")) + ("-dirty" if dirty else ""),
        "code_version": facts.code_version,
        "packages_sha256": hashlib.sha256(facts.packages.encode()).hexdigest() if facts.packages else "",
        "seeds": ", ".join(map(str, candidate.finalist.seeds)),
        "hardware": f"{environment.get('machine', '')}, {environment.get('cpus', '')} cores" if environment.get("machine") else "",
        "versions": ", ".join(f"{name} {value}" for name, value in environment.items() if name not in ("machine", "cpus")),
    }


# --- what is measured


@contextlib.contextmanager
def _fetched(client: mlflow.MlflowClient, version: Any, *, lenient: bool = False) -> Iterator[tuple[ServedModel, Path] | None]:
    """The champion's model and its checkpoint, here for as long as the context lasts; None where there is no champion.

    Args:
        lenient: one that cannot be loaded is as none.
    """
    with tempfile.TemporaryDirectory() as place:
        found: tuple[ServedModel, Path] | None = None
        if version is not None:
            try:
                found = registry.fetch_version(client, version, Path(place))
            except PromotionError as error:
                if not lenient:
                    raise PromotionError(
                        f"{version.name}: the champion, version {version.version}, cannot be loaded to compare with ({error}); "
                        "mend it, roll back, or promote with --force --reason."
                    ) from None
        yield found


def _costs(candidate: Candidate, rival: tuple[ServedModel, Path] | None) -> tuple[Costs, SideBySide | None]:
    if rival is None:
        return evidence.costs(candidate.served, candidate.folder), None
    beside = evidence.costs_side_by_side(candidate.served, candidate.folder, *rival)
    return beside.candidate, beside


def _parities(candidate: Candidate, policy: Policy) -> list[evidence.Parity]:
    def exporter(name: str) -> evidence.Exporter:
        def written(served: ServedModel, place: Path) -> evidence.Call:
            path = place / f"model.{name}"
            export.write(served, path, name)
            return export.reader(path, name)

        return written

    others = [name for name in policy.export.formats if name != "safetensors"]
    return evidence.parity(candidate.served, candidate.folder, {name: exporter(name) for name in others})


def _read(
    client: mlflow.MlflowClient,
    retrained: Retrained,
    candidate: Candidate,
    champion: Any,
    rival: tuple[ServedModel, Path] | None,
    data: DataSet,
    policy: Policy,
    name: str,
) -> _Reading:
    """Count a reading of the test split, then make it, and keep what was seen."""
    tag = _readings_tag(data.data_hash)
    with locked(client, name):  # two promotions at once count two; and before the reading: a crash counts, too
        number = int(client.get_registered_model(name).tags.get(tag, 0)) + 1
        client.set_registered_model_tag(name, tag, str(number))
    split = load_split(data, "test")
    kinds = policy.robustness.kinds
    seen = evidence.on_images(candidate.served, split, kinds)
    theirs = evidence.on_images(rival[0], split, kinds) if rival is not None else None
    probe = evidence.linear_probe(data, split)
    read = _Reading(number, policy.digest, seen, theirs, evidence.majority(data, split), probe)
    told = {
        "reading": number,
        "policy": policy.digest,
        "seen": seen.to_dict(),
        "rival": theirs.to_dict() if theirs else None,
        "majority": read.majority,
        "linear_probe": probe,
    }
    path = _reading_path(retrained, candidate, champion)
    make_folder(path.parent)
    write_whole(path, json.dumps(told))
    return read


def _kept_reading(retrained: Retrained, candidate: Candidate, champion: Any) -> _Reading | None:
    """What an earlier promotion of this candidate against this champion has seen on the test split."""
    try:
        told = parse(_reading_path(retrained, candidate, champion).read_text(encoding="utf-8"))
        rival = OnImages.from_dict(told["rival"]) if told["rival"] else None
        seen = OnImages.from_dict(told["seen"])
        return _Reading(told["reading"], told["policy"], seen, rival, told["majority"], told["linear_probe"], fresh=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reading_path(retrained: Retrained, candidate: Candidate, champion: Any) -> Path:
    against = champion.tags.get("weights_sha256", f"version {champion.version}") if champion is not None else "nobody"
    key = hashlib.sha256(f"{candidate.promotion_id} {against}".encode()).hexdigest()[:16]
    return retrained.folder / "readings" / f"{key}.json"


def _after(read: _Reading, policy: Policy, beside: SideBySide | None, metric: str) -> list[Gate]:
    """The gates that need the test split."""
    compared = gates.comparison(read.seen, read.rival, read.number, policy, metric) if read.rival is not None else None
    found = [
        gates.floors(read.seen, policy, majority=read.majority, linear_probe=read.linear_probe),
        gates.better(compared, policy, beside),
        gates.classes(read.seen, read.rival, policy),
        gates.calibration(read.seen, read.rival, policy),
        gates.corruption(read.seen, read.rival, policy),
    ]
    if read.policy != policy.digest:
        said = "the policy has changed since this candidate's answers were seen, and a gate that is tuned to them proves nothing; "
        found.append(Gate("G14", "policy", False, said + "promote under the old one, or with --force --reason"))
    return found


# --- what is kept


def _readings_tag(data_hash: str) -> str:
    return f"test_readings.{data_hash[:16]}"


def _is(version: Any, candidate: Candidate) -> bool:
    return bool(version.tags.get("promotion_id") == candidate.promotion_id)


def _registered_model(client: mlflow.MlflowClient, name: str) -> Any:
    """The registered model, made where it is not there."""
    try:
        return client.create_registered_model(
            name, description=f"Vision Transformers that `vit-search promote` let into production as {name}."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise PromotionError(f"{name}: MLflow refuses this model name ({error.message}).") from None
    return client.get_registered_model(name)


def _champion(client: mlflow.MlflowClient, name: str) -> Any:
    version = client.get_registered_model(name).aliases.get(registry.CHAMPION)
    return client.get_model_version(name, version) if version is not None else None


def _logged(client: mlflow.MlflowClient, candidate: Candidate, retrained: Retrained) -> tuple[str, str]:
    """The model in the candidate's run and the record of its files, logged where an earlier promotion has not.

    The smoke test runs its code, so a model of an earlier promotion must be what that one has logged.

    Raises: PromotionError where its files have changed since.
    """
    experiment = client.get_run(candidate.run_id).info.experiment_id
    known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{candidate.run_id}'")
    with tempfile.TemporaryDirectory() as place:
        checkpoint.copy_for_serving(candidate.folder, Path(place) / "checkpoint")
        own = model_files.digests(Path(place) / "checkpoint", model_files.CHECKPOINT)
        for model in known:
            record, uri = model.tags.get(model_files.RECORD, ""), str(model.model_uri)
            if model.status == LoggedModelStatus.READY and record and own.items() <= model_files.read(record, uri).items():
                home = mlflow.artifacts.download_artifacts(uri, dst_path=f"{place}/model", tracking_uri=client.tracking_uri)
                model_files.check(Path(home), model.tags, uri, inside="")
                break
        else:
            name = f"{retrained.run_name}-trial-{candidate.finalist.numbers[candidate.index]}".replace(".", "-")
            spec = retrained.spec
            uri = log_model(candidate.folder, run_id=candidate.run_id, name=name, step=spec.epochs, pt2=spec.log_pt2)
            record = client.get_logged_model(uri.rpartition("/")[2]).tags[model_files.RECORD]
    link_to_parent(client, candidate.run_id, uri.rpartition("/")[2])
    return uri, record


def _smoke_problem(client: mlflow.MlflowClient, uri: str) -> str:
    """What a fresh process finds wrong with a logged model; one that has answered well here once is not asked again."""
    model_id = uri.rpartition("/")[2]
    here = ", ".join(f"{name} {metadata.version(name)}" for name in ("vit_search", "mlflow", "torch"))
    if client.get_logged_model(model_id).tags.get("smoke_passed") == here:
        return ""
    problem = smoke.in_fresh_process(uri, client.tracking_uri)
    if not problem:
        client.set_logged_model_tags(model_id, {"smoke_passed": here})
    return problem


def _tags(
    retrained: Retrained,
    candidate: Candidate,
    policy: Policy,
    asked: Asked,
    judged: list[Gate],
    read: _Reading | None,
    verdict: str,
    costs: Costs,
) -> dict[str, str]:
    finalist, spec = candidate.finalist, retrained.spec
    sign = 1.0 if spec.mode == "max" else -1.0
    refused = gates.reasons(judged)
    better = next((one.said for one in judged if one.id == "G4"), "")
    seen: dict[str, str] = {}
    if read is not None:
        low, high = read.seen.interval
        seen = {
            "test_accuracy": str(read.seen.accuracy),
            "test_accuracy_interval": f"{low:.4f} to {high:.4f}",
            "test_images": str(read.seen.images),
            "test_reading": str(read.number),
            "ece": f"{read.seen.ece:.4f}",
        }
    return {
        **_lineage(searches.read(retrained.folder)[1], candidate),
        "search": retrained.search,
        "promotion": retrained.run_name,
        "promotion_id": candidate.promotion_id,
        "verdict": verdict,
        "gate": "; ".join(refused)[:4000] or better,
        "gate_report": f"runs:/{candidate.parent_run}/{_evidence_folder(candidate)}/gates.json",
        "policy_sha256": policy.digest,
        "weights_sha256": candidate.weights_sha256,
        "golden": smoke.golden(candidate.served),
        "seed": str(finalist.seeds[candidate.index]),
        "metric": spec.metric,
        "searched_value": f"{finalist.searched_value:.6f}",
        "retrained_mean": f"{finalist.mean:.6f}",
        "retrained_deviation": f"{finalist.deviation:.6f}",
        "optimism": f"{sign * (finalist.searched_value - finalist.mean):.6f}",
        "params": str(costs.params),
        "created_by": asked.by,
        **seen,
        **({"forced": asked.force} if verdict == "forced" else {}),
        **({"approved_by": asked.approve_by} if asked.approve_by else {}),
    }


def _evidence_folder(candidate: Candidate) -> str:
    return f"promotion/{candidate.promotion_id[:12]}"


def _keep_evidence(
    client: mlflow.MlflowClient,
    candidate: Candidate,
    judged: list[Gate],
    read: _Reading | None,
    costs: Costs,
    beside: SideBySide | None,
    text: str,
    tags: Mapping[str, str],
) -> None:
    """All that the decision rests on, as artifacts of the promotion's run; its page shows the card."""
    parent, folder = candidate.parent_run, _evidence_folder(candidate)
    client.log_dict(parent, {"verdict": tags["verdict"], "gates": [one.to_dict() for one in judged]}, f"{folder}/gates.json")
    client.log_dict(parent, beside.to_dict() if beside else {"candidate": costs.to_dict()}, f"{folder}/costs.json")
    client.log_text(parent, text, f"{folder}/model_card.md")
    if read is not None:
        answers = {"reading": read.number, "candidate": read.seen.to_dict(), "champion": read.rival.to_dict() if read.rival else None}
        client.log_dict(parent, answers, f"{folder}/test_answers.json")
        client.log_metric(parent, "test_accuracy", read.seen.accuracy)
    client.log_metric(parent, "optimism", float(tags["optimism"]))
    for name in ("verdict", "promotion_id", "gate"):
        client.set_tag(parent, name, tags[name])
    client.set_tag(parent, "mlflow.note.content", text)


def _registered(
    client: mlflow.MlflowClient, name: str, candidate: Candidate, uri: str, tags: Mapping[str, str], text: str, record: str
) -> str:
    """The candidate's version with its evidence and the record of its files; made once, whatever is repeated."""
    model_id = uri.rpartition("/")[2]
    with locked(client, name):
        known = next((v for v in client.search_model_versions(f"name = '{name}'") if _is(v, candidate)), None)
        if known is None or known.source == uri:  # a version of vit_search 0.1 may be of another logged model
            tags = {**tags, model_files.RECORD: record}
        if known is None:
            made = client.create_model_version(name, uri, run_id=candidate.run_id, tags=dict(tags), description=text, model_id=model_id)
            return str(made.version)
        for key, value in tags.items():
            if known.tags.get(key) != value:
                client.set_model_version_tag(name, known.version, key, value)
        client.update_model_version(name, known.version, text)
        return str(known.version)
