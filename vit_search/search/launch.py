"""Start, resume and summarise a search: the ledger in the middle, Ray Tune to its left, MLflow and the screen to its right."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_search.spec.user import user_name

from vit_search.ray_session import Shape, check_limits, session, shapes, watched  # isort: skip  (before ray, whose settings it makes)
import ray
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution import class_cache
from ray.tune.progress_reporter import TrialProgressCallback

from vit_search.errors import LostClusterError, NoTrialCompletedError, SearchError, SpecError, VitSearchError
from vit_search.search import resumable
from vit_search.search.control import Control, Settings
from vit_search.search.packing import Packing, nodes_of, request
from vit_search.search.recovery import Patience, Recovery
from vit_search.search.stopping import Rungs, RungScheduler, false_kills
from vit_search.search.suggest import IN_A_ROW, OptunaSearcher
from vit_search.search.work import train_trial
from vit_search.spec import plan as planning
from vit_search.spec.config import EpochResult
from vit_search.spec.files import make_folder, write_whole
from vit_search.spec.numbers import counted, whole_number
from vit_search.spec.rungs import boundaries
from vit_search.spec.search_file import NAME, SearchSpec
from vit_search.spec.signals import ending_signals, leave_terminal
from vit_search.spec.space import Value
from vit_search.spec.worker_env import WORKER_ENV
from vit_search.tracking import searches
from vit_search.tracking.ledger import (
    Commanded,
    Ended,
    Event,
    Launched,
    Ledger,
    Left,
    Outcome,
    Reported,
    Spent,
    Trial,
    best,
    kept,
    ranked,
    read_trials,
    trial_folder,
)
from vit_search.tracking.searches import Hindsight, SearchFacts
from vit_search.tracking.uris import resolve_uri, to_keep
from vit_search.vit import checkpoint_files
from vit_search.vit.data import TRAINED_AND_VALIDATED_ON, DataSet, kept_speed, prepare

if TYPE_CHECKING:
    from vit_search.tracking.recorder import Recorder

_log = logging.getLogger(__name__)

EARLIER = "earlier.json"
PLAN = "plan.json"

# Tune hands these to its workers through their runtime environment, which Ray writes into its logs and shows to whoever asks.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
)

# Its snapshots are never read; where one cannot be written, our own line says what is wrong with the disk.
logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)

NODES_JOIN_WITHIN_S = 60.0
"""How long a search waits for a node that has room for a trial: after a restart the head is there before the others."""


@dataclass(frozen=True)
class SearchResult:
    """A search as it stands when its driver stops."""

    folder: Path
    spec: SearchSpec
    trials: list[Trial]
    """The leaderboard, best first."""
    interrupted: bool
    ended_by: str
    """The limit that ended it before all trials were run; empty where none did."""
    hindsight: Hindsight
    """What its end tells of its stopping and of its plan."""
    settings: Settings
    """As they stood at the end, after what was changed while it ran."""
    spent: Spent
    """In all its launches."""
    seconds: float
    """Wall time of this launch."""
    experiment_id: str
    parent_run: str
    recorded: bool
    """Whether MLflow has all of it; else `vit-search sync` sends the rest."""

    @property
    def best(self) -> Trial | None:
        """The winner, or None."""
        return best(self.trials, self.spec.metric, self.spec.mode)


Watcher = Callable[[Event], None]


def run(
    spec: SearchSpec,
    *,
    output: Path = Path("searches"),
    tracking_uri: str | None = None,
    download: bool = False,
    watch: Callable[[Ledger, SearchSpec, Control], Watcher] | None = None,
    work: Callable[[dict[str, Any]], None] = train_trial,
    address: str | None = None,
    name: str | None = None,
) -> SearchResult:
    """Start a search in a new folder under `output` and see it through.

    Args:
        spec: a checked search file.
        output: folder of all searches, on storage that every node sees; a new one is made in it, never an old one used again.
        tracking_uri: of MLflow; see `store.resolve_uri`.
        download: whether a missing data set may be fetched.
        watch: called once with the ledger and the control; what it returns is told every event.
        work: what a worker does with a trial; a benchmark of the driver puts something light here.
        address: of the Ray cluster, see `ray_session.session`; None for a Ray of our own.
        name: of the new folder; by default the next free `NAME-N`.
    Raises: DataError, TrackingError, SearchError before the first trial; NoTrialCompletedError at the end.
    """
    if spec.space.feasible_share() == 0:
        rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
        problem = spec.space.problem(spec.space.draw(rng))
        raise SpecError(f"none of 2000 random proposals can be run, the first because: {problem} See `vit-search lint`.")
    if address is None:
        check_limits()
    check_output(output)
    lessons = _lessons(spec, output)
    data = prepare(spec.data_config, download=download)
    spec.check_data(len(data.classes))
    with _ray_and_mlflow(spec, address, tracking_uri) as recorder:
        folder = new_folder(output, spec.name) if name is None else _named_folder(output, name)
        before = set(folder.iterdir())
        try:
            if lessons:
                write_whole(folder / EARLIER, json.dumps(lessons))
            write_whole(folder / PLAN, json.dumps(planning.plan(spec, _known_speed(spec)).to_dict(), indent=1))
            facts = facts_of(spec, folder, data, recorder)
            searches.write(folder, facts)
            return drive(spec, folder, data, recorder, facts, watch, work=work, address=address)
        except NoTrialCompletedError:
            raise
        except Exception:
            if not _has_trials(folder):
                _remove(folder, before)
            raise


def _has_trials(folder: Path) -> bool:
    """Whether a search has begun; also where its ledger cannot be read, since nothing of it may then be removed."""
    try:
        return (folder / "ledger.jsonl").exists() and bool(read_trials(folder / "ledger.jsonl"))
    except (SearchError, OSError):
        return True


def _remove(folder: Path, before: Collection[Path]) -> None:
    """Take a search away that was refused before its first trial; `before` was in its folder already, for a cluster's driver."""
    for path in set(folder.iterdir()) - set(before):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if not before:
        folder.rmdir()


@contextlib.contextmanager
def _ray_and_mlflow(spec: SearchSpec, address: str | None, tracking_uri: str | None) -> Iterator[Recorder]:
    """Both at once: Ray starts in processes of its own, while a thread imports MLflow and makes its database.

    Raises: TrackingError, ClusterError, SearchError.
    """
    with ThreadPoolExecutor(1) as apart:
        connecting = apart.submit(connect, tracking_uri, spec.name)
        with _ray(spec, address):
            yield connecting.result()


def connect(tracking_uri: str | None, name: str) -> Recorder:
    """The recorder of a search; MLflow is imported here, which takes seconds.

    Raises: TrackingError.
    """
    from vit_search.tracking.recorder import Recorder

    return Recorder.connect(tracking_uri, name)


def facts_of(spec: SearchSpec, folder: Path, data: DataSet, recorder: Recorder, *, name: str = "", promotes: str = "") -> SearchFacts:
    """What is true of a search that begins now, in this process; named after its folder unless it has a name."""
    return SearchFacts(
        search=name or folder.name,
        search_id=uuid.uuid4().hex,
        spec_name=spec.name,
        text=spec.text,
        resolved=spec.model_dump(mode="json", by_alias=True),
        metric=spec.metric,
        mode=spec.mode,
        data_hash=data.data_hash,
        images=data.summary,
        code_version=_code_version(),
        environment=_environment(),
        tracking_uri=to_keep(recorder.public_uri, folder),
        space_hash=spec.space.space_hash,
        git_commit=_git(Path.cwd(), "rev-parse", "HEAD"),
        packages=_packages(),
        promotes=promotes,
        splits=dict(data.counts),
        image_shape=(data.channels, *data.image_size),
        classes=len(data.classes),
    )


def resume(
    folder: Path,
    *,
    tracking_uri: str | None = None,
    extend: Mapping[str, float] | None = None,
    watch: Callable[[Ledger, SearchSpec, Control], Watcher] | None = None,
    address: str | None = None,
) -> SearchResult:
    """Take up a search where its ledger ends: same trials, same rungs, same MLflow runs.

    Args:
        extend: settings to change first, such as trials, hours; see `control.Settings`.
        address: as in `run`; it need not be the cluster on which the search began.

    Raises: SearchError when the folder holds no search, another driver has it, or its data has changed; SpecError for
        settings that mean nothing.
    """
    spec, facts = resumable.check(folder, extend or {})
    data = check_untouched(folder, spec, facts)
    spec.check_data(len(data.classes))
    recorder = connect(resolve_uri(tracking_uri, folder, facts), spec.name)
    return drive(spec, folder, data, recorder, facts, watch, extend or {}, address=address)


def check_untouched(folder: Path, spec: SearchSpec, facts: SearchFacts) -> DataSet:
    """The data of a search, as it began with them.

    Raises: SearchError when others may write into its folder, or its file or its data have changed.
    """
    searches.check_own(folder)
    resumable.check_unchanged(folder / "search.yaml", facts.text)
    data = prepare(spec.data_config)
    if data.data_hash != facts.data_hash:
        raise SearchError(f"{folder}: the data set has changed since this search began; start a new search with `vit-search run`.")
    return data


def drive(
    spec: SearchSpec,
    folder: Path,
    data: DataSet,
    recorder: Recorder,
    facts: SearchFacts,
    watch: Callable[[Ledger, SearchSpec, Control], Watcher] | None,
    extend: Mapping[str, float] | None = None,
    work: Callable[[dict[str, Any]], None] = train_trial,
    planned: Sequence[tuple[dict[str, Value], int]] = (),
    address: str | None = None,
) -> SearchResult:
    """Run the trials of a search whose folder has its facts, from where its ledger ends.

    Args:
        planned: parameters and `seed` (as a search file's) of every trial, in the place of proposals.
    """
    began = time.monotonic()
    searches.check_own(folder)
    if spec.train_on != "train" and not data.counts["holdout"]:
        raise SpecError("train_on: no image is left for the holdout to validate on; raise data.holdout_fraction, or train on train.")
    ledger = Ledger(folder / "ledger.jsonl", spec.epochs)
    try:
        searches.check_trials(folder, spec, ledger.trials.values())
        if extend:
            resumable.check_extension(spec, folder, ledger.events, extend)
    except (SpecError, SearchError):
        ledger.close()
        raise
    rungs = _rungs(spec)
    recorder.open(spec, facts, folder, ledger.events, ledger.sync)
    ledger.listeners.append(recorder.wake)
    ledger.append(Launched(host=socket.gethostname(), pid=os.getpid()))
    if extend:
        ledger.append(Commanded(name="set", arguments=dict(extend), answer="extended.", by=user_name()))
    _settle(ledger, rungs, spec)
    settings = Settings.of(spec, ledger.events)
    limits, alike = resumable.limits_of(spec, ledger.events, settings), _FailuresAlike()
    packing = Packing(spec, channels=data.channels, classes=len(data.classes), images=_images_bytes(spec, data))
    for event in ledger.events:
        alike.take(event)
        packing.take(event)
    ledger.listeners.append(packing.take)
    searcher = OptunaSearcher(
        spec.space,
        metric=spec.metric,
        mode=spec.mode,
        epochs=spec.epochs,
        trials=settings.trials,
        seed=spec.seed,
        sampler=spec.sampler,
        levels=rungs.levels,
        objectives=spec.objectives,
        first=[params for params, _ in planned] or spec.start_with,
        earlier=_earlier(folder),
        config=lambda number, params: _told(spec, folder, data, packing, number, params, planned[number][1] if planned else None),
        record=ledger.append,
    )
    searcher.replay(ledger.events)

    def obey() -> None:
        """Hand on what is asked of the search."""
        searcher.trials, searcher.concurrency = control.settings.trials, control.settings.concurrency
        packing.concurrency, packing.trials = control.settings.concurrency, control.settings.trials
        limits.change(control.settings)
        control.ending = control.ending or limits.reached(ledger.spent) or ""
        searcher.over = bool(control.ending or alike.reason or control.draining or control.cancelled.is_set())
        searcher.paused, recorder.wanted = control.paused, control.settings.trials

    def look(event: Event) -> None:
        """What an event means for what is to happen next."""
        limits.take(event, ledger.trials)
        alike.take(event)
        if isinstance(event, Ended):
            _collect(folder, ledger.trials, spec)
        obey()

    control = Control(folder, ledger, settings, obey, searcher.add, searcher.has_begun, spec.metric)
    recorder.obey = lambda text: control.obey_text(text, by="MLflow")
    obey()
    _collect(folder, ledger.trials, spec)
    ledger.listeners.append(look)
    left = settings.trials - sum(trial.over for trial in ledger.trials.values())
    ended = refused = False
    try:
        if left and not searcher.over:
            if watch:
                ledger.listeners.append(watch(ledger, spec, control))
            with control:
                _tune(spec, folder, ledger, rungs, searcher, control, packing, work, address)
        ended = True
    except Exception:
        refused = not ledger.trials and sum(isinstance(event, Launched) for event in ledger.events) == 1
        raise
    finally:  # an error of ours leaves a search that can be resumed, and no run open
        interrupted = control.cancelled.is_set()
        for trial in list(ledger.trials.values()):
            if trial.outcome == "running":
                waits = ended and not interrupted and searcher.waits(trial.number)
                reason = "the search was stopped before it began" if waits else "the driver stopped"
                with contextlib.suppress(SearchError):  # of a full disk: what brought us here says so; a resume takes it up all the same
                    ledger.append(Ended(trial=trial.number, outcome="interrupted", reason=reason))
                interrupted = interrupted or not waits
        trials = ranked(ledger.trials.values(), spec.metric, spec.mode)
        completed = any(trial.outcome == "completed" for trial in trials)
        status = "KILLED" if interrupted else "FINISHED" if ended and completed else "FAILED"
        with contextlib.suppress(SearchError):  # of a full disk, as above
            ledger.append(_left(interrupted, completed, control, trials, ended))
        finals = {
            trial.number: value for trial in trials if trial.outcome == "completed" and (value := trial.value(spec.metric)) is not None
        }
        doomed, wrongly, *interval = false_kills(rungs.audits(), finals, spec.mode)
        hindsight = Hindsight(doomed, wrongly, (interval[0], interval[1]), _beside_plan(folder, spec, trials, ledger.spent))
        if not interrupted:
            with contextlib.suppress(OSError):  # of a full disk, which has been said
                searches.write_hindsight(folder, hindsight)
        if refused:
            recorder.discard()
        recorded = not refused and recorder.close(status, None if interrupted else hindsight, patience_s=60 if ended else 30)
        ledger.close()
    if not interrupted and not completed:
        raise NoTrialCompletedError(
            f"{folder}: none of {counted(len(trials), 'trial')} reached full length; {control.ending or _why(trials)}"
        )
    return SearchResult(
        folder=folder,
        spec=spec,
        trials=trials,
        interrupted=interrupted,
        ended_by=control.ending,
        hindsight=hindsight,
        settings=control.settings,
        spent=ledger.spent,
        seconds=time.monotonic() - began,
        experiment_id=recorder.experiment_id,
        parent_run=recorder.parent_run,
        recorded=recorded,
    )


def _left(interrupted: bool, completed: bool, control: Control, trials: Sequence[Trial], ended: bool) -> Left:
    """What a driver leaves in the ledger when it lets the search go; with the error that is on its way, if there is one."""
    if interrupted or not ended:
        error = sys.exception()
        reason = str(error) if isinstance(error, VitSearchError) else _in_a_line(error) if isinstance(error, Exception) else ""
        return Left(state="interrupted", reason=reason)
    if not completed:
        return Left(state="failed", reason=control.ending or _why(trials))
    stopped = control.draining and not control.ending and sum(trial.over for trial in trials) < control.settings.trials
    return Left(state="stopped" if stopped else "finished", reason=control.ending)


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _images_bytes(spec: SearchSpec, data: DataSet) -> int:
    """Of the images that each trial has on its device; streamed ones never lie there."""
    if data.root is not None:
        return 0
    parts = TRAINED_AND_VALIDATED_ON[spec.train_on]
    return sum(data.counts[name] for names in parts for name in names) * data.channels * math.prod(data.image_size)


def _known_speed(spec: SearchSpec) -> planning.Speed | None:
    """What `vit-search plan --calibrate` last measured of this machine, where that can be read."""
    with contextlib.suppress(SpecError):
        return planning.load_speed(kept_speed(gpus=spec.resources.on_gpu))
    return None


def _beside_plan(folder: Path, spec: SearchSpec, trials: list[Trial], spent: Spent) -> dict[str, Any] | None:
    """What was foretold at the start beside what came; None where the plan is missing or damaged: it decides nothing."""
    try:
        plan = planning.Plan.from_dict(json.loads((folder / PLAN).read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    lengths = Counter(len(trial.results) for trial in trials)
    device_seconds = spent.device_seconds(spec.resources.devices)
    return planning.compare(plan, lengths, device_seconds=device_seconds, wall_seconds=spent.wall_seconds)


def _lessons(spec: SearchSpec, output: Path) -> list[tuple[dict[str, Value], dict[int, float], str]]:
    """Parameters, values by epoch and outcome of the trials of earlier searches that the search file names."""
    lessons: list[tuple[dict[str, Value], dict[int, float], str]] = []
    for name in spec.learn_from:
        trials = read_trials(searches.find(output, name) / "ledger.jsonl")
        for trial in trials:
            values = {result.epoch: getattr(result, spec.metric) for result in trial.results}
            known = {epoch: value for epoch, value in values.items() if value is not None and math.isfinite(value)}
            if trial.over and known:
                lessons.append((trial.params, known, trial.outcome))
    return lessons


def _earlier(folder: Path) -> list[tuple[dict[str, Value], dict[int, float], str]]:
    """The same as it stood when this search began: what a resume proposes must not change with the other searches."""
    if not (folder / EARLIER).exists():
        return []
    lessons = json.loads((folder / EARLIER).read_text())
    return [(params, {int(epoch): value for epoch, value in values.items()}, outcome) for params, values, outcome in lessons]


def _rungs(spec: SearchSpec) -> Rungs:
    parts = boundaries(spec.space, spec.stopping.strata)
    return Rungs(mode=spec.mode, epochs=spec.epochs, boundaries=parts, seed=spec.seed, **spec.stopping.model_dump())


def _flops(spec: SearchSpec, trial: Trial) -> float | None:
    """Predicted training FLOPs, where strata ask for them."""
    return float(spec.space.cost(trial.params).train_flops) if spec.stopping.strata > 1 else None


def _settle(ledger: Ledger, rungs: Rungs, spec: SearchSpec) -> None:
    """Rebuild the rungs, and end what a dead driver had decided or seen but not yet written down."""
    stopped: dict[int, bool] = {}
    for event in list(ledger.events):
        if isinstance(event, Reported):
            flops = _flops(spec, ledger.trials[event.trial])
            stopped[event.trial] = rungs.stops(event.trial, event.result.epoch, getattr(event.result, spec.metric), flops)
    for trial in list(ledger.trials.values()):
        if not trial.over and trial.results:
            if trial.results[-1].epoch >= spec.epochs:
                ledger.append(Ended(trial=trial.number, outcome="completed"))
            elif stopped[trial.number]:
                ledger.append(Ended(trial=trial.number, outcome="stopped"))


def _collect(folder: Path, trials: Mapping[int, Trial], spec: SearchSpec) -> None:
    """Remove the checkpoints that nobody will ask for: of the trials that are over, all but the best few are.

    So the disk holds at most `keep_checkpoints` of them, with several objectives those on the Pareto front besides, and two
    generations for each trial that is not over.
    """
    numbered = ((whole_number(place.parent.name), place) for place in (folder / "trials").glob("*/checkpoint"))
    places = {number: place for number, place in numbered if number is not None}
    over = [trials[number] for number in places if number in trials and trials[number].over]
    keep = kept(over, spec.metric, spec.mode, spec.keep_checkpoints) | searches.pareto(spec, over)
    for trial in over:
        checkpoint_files.drop_older(places[trial.number])
        if trial.number not in keep:
            shutil.rmtree(places[trial.number], ignore_errors=True)
            with contextlib.suppress(OSError):
                (places[trial.number].parent / "owner").unlink()
                places[trial.number].parent.rmdir()  # unless there is an error.txt to read


def _told(
    spec: SearchSpec, folder: Path, data: DataSet, packing: Packing, number: int, params: dict[str, Value], seed: int | None
) -> dict[str, Any]:
    """What a worker is told of a trial; with a seed, as the first trial of a search with that seed would be."""
    own, trial = (spec, number) if seed is None else (spec.model_copy(update={"seed": seed}), 0)
    config = own.trial_config(params, in_channels=data.channels, num_classes=len(data.classes), trial=trial)
    packing.ask(number)
    return {
        "trial": number,
        "config": config.to_dict(),
        "folder": str(trial_folder(folder.resolve(), number)),
        "data": data,
        "train_on": spec.train_on,
        **packing.told(number),
        "halvings": 0,
        "usage": spec.system_metrics,
        "latency": any(objective.metric == "latency_ms" for objective in spec.objectives),
    }


def _tune(
    spec: SearchSpec,
    folder: Path,
    ledger: Ledger,
    rungs: Rungs,
    searcher: OptunaSearcher,
    control: Control,
    packing: Packing,
    work: Callable[[dict[str, Any]], None],
    address: str | None,
) -> None:
    """Run the trials until all are over, a limit is reached, or a person ends the search."""

    def record(number: int, result: Mapping[str, Any]) -> bool:
        known = len(ledger.trials[number].results)
        epoch = EpochResult(**{f.name: result[f.name] for f in dataclasses.fields(EpochResult)})
        system = {name: value for name, value in result.items() if name.startswith("system/")}
        ledger.append(Reported(trial=number, result=epoch, system=system, devices=packing.devices(number)))
        return len(ledger.trials[number].results) > known

    def outgrown(number: int, reason: str) -> dict[str, Any]:
        event = packing.outgrown(number, reason)
        assert event is not None, "a trial with a whole GPU makes its micro-batches smaller"
        _log.warning("trial %d outgrew %g of a GPU: %s", number, event.gpus, reason)
        ledger.append(event)
        packing.ask(number)
        return packing.told(number)

    given_up: dict[int, str] = {}

    def give_up(number: int, reason: str) -> None:
        given_up[number] = reason
        searcher.give_up(number)

    recovery = Recovery(give_up, control.fail, ledger.append)
    with _ray(spec, address), watched(folder.name, control.fail) as head, _signals(control):
        if "auto" in (spec.resources.cpus, spec.resources.gpus):
            packing.nodes = nodes_of(spec.resources)
        if packing.nodes is not None and packing.nodes.gpu_memory:
            searcher.fit_into(packing.nodes.gpu_memory)
        searcher.places = lambda: packing.places(head.shapes)
        tuner = Tuner(
            tune.with_resources(work, request),
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=RungScheduler(
                    rungs,
                    spec.metric,
                    record,
                    flops=lambda number: _flops(spec, ledger.trials[number]),
                    paused=lambda: control.paused,
                    asked_to_stop=lambda number: bool(control.stop_reason(number)),
                    cancelled=control.cancelled.is_set,
                    outgrown=outgrown,
                    broke=recovery.broke,
                    given_up=given_up.__contains__,
                    withdrawn=searcher.withdrawn,
                    moves=lambda trial: recovery.moves(trial, head.leaving),
                ),
                num_samples=-1,  # the searcher says when it is enough, and how many at a time
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"{trial.config['trial']:04d}",
                trial_name_creator=lambda trial: f"trial_{trial.config['trial']:04d}",
            ),
            run_config=RunConfig(
                name="tune",
                storage_path=str(folder.resolve()),
                callbacks=[_EndCallback(ledger, spec, control, recovery, searcher, given_up), _NoProgress()],
                failure_config=FailureConfig(max_failures=-1),  # recovery.py says when it is enough
                verbose=0,
            ),
        )
        try:
            tuner.fit() if address is None else _fit_apart(tuner, control)
        except Exception as error:
            raise control.trouble or _storage_trouble(folder, error) or error from None
        if control.trouble:
            raise control.trouble


def _fit_apart(tuner: Tuner, control: Control) -> None:
    """Tune in a thread of its own, which is left behind where the cluster's head is lost: its calls would wait for it."""
    ended: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    thread.start()
    while thread.is_alive() and not isinstance(control.trouble, LostClusterError):
        thread.join(0.2)
    if ended:
        raise ended[0]


def _storage_trouble(folder: Path, error: BaseException) -> VitSearchError | None:
    """What Tune has wrapped up: an error of ours, or of the driver's own storage; None for any other."""
    causes, known = [error], {id(error)}
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and id(cause) not in known:
        causes.append(cause)
        known.add(id(cause))
    ours = next((cause for cause in causes if isinstance(cause, VitSearchError)), None)
    storage = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno), None)
    if ours is None and storage is not None:
        return SearchError(f"{folder}: cannot be written ({storage}); make room or mend it, then `vit-search resume {folder.name}`.")
    return ours


class _EndCallback(Callback):
    """Writes into the ledger how each trial ended, and ends those that hang."""

    def __init__(
        self,
        ledger: Ledger,
        spec: SearchSpec,
        control: Control,
        recovery: Recovery,
        searcher: OptunaSearcher,
        given_up: Mapping[int, str],
    ) -> None:
        self._ledger, self._epochs, self._control = ledger, spec.epochs, control
        self._recovery, self._searcher, self._given_up = recovery, searcher, given_up
        self._space, self._patience = spec.space, Patience(60 * spec.stall_minutes, spec.stall_epochs)

    def __reduce__(self) -> Any:
        """Nothing of it is in Tune's snapshots: the ledger is what a search is rebuilt from."""
        return object, ()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Kill the process of a trial that has not been heard of for too long; Tune then takes it for dead and tries again."""
        self._recovery.look(time.monotonic())
        self._searcher.allowed = IN_A_ROW
        silent = self._patience.silent(time.monotonic())
        for trial in trials if silent else ():
            number, actor = trial.config["trial"], trial.temporary_state.ray_actor
            if number in silent and actor is not None:
                _log.warning("trial %d has not reported for %.0f seconds; its process is ended.", number, silent[number])
                self._recovery.hung(number, silent[number])
                ray.kill(actor)
                self._patience.forget(number)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["trial"]
        self._recovery.started(number)
        self._searcher.begun(number)
        self._patience.start(number, self._space.cost(self._ledger.trials[number].params).train_flops, time.monotonic())

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if result.get("waiting"):
            _log.warning("trial %d waits for its storage: %s", trial.config["trial"], result["waiting"])
        if self._control.paused or result.get("outgrown"):  # it is about to be held
            self._patience.forget(trial.config["trial"])
        else:
            self._patience.hear(trial.config["trial"], time.monotonic(), result.get("seconds"))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._patience.forget(trial.config["trial"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result, number = trial.last_result or {}, trial.config["trial"]
        self._patience.forget(number)
        outcome: Outcome = "completed" if result.get("epoch", 0) >= self._epochs else "stopped"
        outcome = "failed" if number in self._given_up else result.get("failure", outcome)
        if outcome == "stopped" and (self._control.cancelled.is_set() or ("epoch" not in result and self._searcher.withdrawn(number))):
            return  # cut short by a person, not by a rung, or not begun
        reason = self._control.stop_reason(number) if outcome == "stopped" else result.get("reason", "")
        self._ledger.append(Ended(trial=number, outcome=outcome, reason=self._given_up.get(number, reason)))


class _NoProgress(TrialProgressCallback):
    """In the place of Tune's own, which prints each trial that ends without a result, whatever `verbose` says."""

    def _print(self, msg: str) -> None:
        pass


class _FailuresAlike:
    """Whether the first three trials to end failed for one reason: then the next would, too."""

    def __init__(self) -> None:
        self._first: list[Ended] = []

    def take(self, event: Event) -> None:
        """One more event."""
        if len(self._first) < 3 and isinstance(event, Ended) and event.outcome != "interrupted":
            self._first.append(event)

    @property
    def reason(self) -> str:
        """Their common reason; empty where they have none."""
        reasons = {event.reason.partition(" (see ")[0] for event in self._first if event.outcome == "failed"}
        failed = sum(event.outcome == "failed" for event in self._first)
        return reasons.pop() if failed == 3 and len(reasons) == 1 else ""


def _why(trials: Sequence[Trial]) -> str:
    reasons = [trial.reason for trial in trials if trial.reason]
    return f"the first reason: {reasons[0]}" if reasons else "see how they ended: vit-search show."


@contextlib.contextmanager
def _ray(spec: SearchSpec, address: str | None) -> Iterator[None]:
    """A Ray with a node that has what a trial asks for, or an autoscaler that may add one: Tune then waits for it."""
    told = spec.resources
    threads = {} if told.cpus == "auto" else {"OMP_NUM_THREADS": str(max(1, int(told.cpus)))}  # else Ray makes it the trial's cores
    with session(address, env=WORKER_ENV | threads):
        end = time.monotonic() + (0 if address is None else NODES_JOIN_WITHIN_S)
        while problem := _too_large(spec, shapes(), address):
            if time.monotonic() > end:
                raise SearchError(problem)
            time.sleep(1)
        yield


def _too_large(spec: SearchSpec, places: list[Shape], address: str | None) -> str:
    """Why a trial fits on no node; empty where it does, or where the file tells the memory of GPUs that start when they are asked for."""
    told = spec.resources
    if address is None:
        places = [place for place in places if place.count is None]
    elif told.gpu_bytes:
        return ""
    cpus, gpus = told.least
    if any(place.cpus >= cpus and place.gpus >= gpus for place in places):
        return ""
    where = "this machine" if address is None else "the largest node of the cluster"
    for name, asked, most in (("cpu", cpus, max(place.cpus for place in places)), ("gpu", gpus, max(place.gpus for place in places))):
        if asked > most:
            mend = "lower it"
            if getattr(told, f"{name}s") == "auto":
                mend = "write 0" if told.gpu_bytes else "write 0, or, where a cluster starts nodes by itself, add gpu_memory"
            return f"resources.{name}s: a trial asks for {counted(asked, name.upper())} and {where} has {most:g}; {mend}."
    return f"resources: a trial asks for {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}, and no node of the cluster has both; lower one."


@contextlib.contextmanager
def _signals(control: Control) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a lost terminal end the search cleanly the first time; the second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if control.cancelled.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            leave_terminal()
        control.cancel()  # a job's stop reaches a search twice, from Ray and from its driver

    before = {number: signal.signal(number, stop) for number in ending_signals()}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_output(output: Path) -> None:
    """Refuse a folder that cannot be written before anything else is made."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(output, os.W_OK | os.X_OK) else "permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise SearchError(f"{output}: cannot be written ({reason}); name another folder with --output.")


def new_folder(output: Path, name: str) -> Path:
    """The next free `name-N`; two launches at once get two folders."""
    taken = (whole_number(path.name.rpartition("-")[2]) for path in output.glob(f"{name}-*"))
    number = max((number for number in taken if number is not None), default=0) + 1
    while True:
        folder = output / f"{name}-{number}"
        try:
            folder.mkdir(mode=0o700)
            return folder
        except FileExistsError:
            number += 1


def _named_folder(output: Path, name: str) -> Path:
    """The folder of a search whose name was chosen for it; one that a death left without a search in it is used again."""
    if not re.fullmatch(NAME, name):
        raise SearchError(
            f"--as {name!r}: no name of a folder; use letters, digits, '.', '_' and '-', at most 64, a letter or digit first."
        )
    folder = output / name
    make_folder(folder)
    searches.check_own(folder)
    if (folder / "search.json").exists():
        raise SearchError(f"{folder}: a search is here already; `vit-search resume {name}` goes on with it.")
    return folder


def _environment() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy")}
    return {"python": platform.python_version(), "machine": platform.machine(), "cpus": str(os.cpu_count())} | packages


def _packages() -> str:
    """All installed distributions and their versions, a line each."""
    found = {(dist.name.lower().replace("_", "-"), dist.version) for dist in distributions() if dist.name}
    return "".join(f"{name}=={number}\n" for name, number in sorted(found))


def _code_version() -> str:
    """Package version, and the git commit where the package runs from a checkout."""
    root = Path(__file__).parents[2]
    own = f"vit_search {version('vit_search')}"
    commit = _git(root, "describe", "--always", "--dirty") if (root / ".git").exists() else ""
    return f"{own}, git {commit}" if commit else own


def _git(folder: Path, *words: str) -> str:
    """What git says of a folder; empty where it is no checkout, or git is not there."""
    try:
        said = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
