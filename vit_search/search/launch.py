"""Start a search and run it to its end. Connects the driver with Ray Tune, which runs the trials, and with MLflow and the screen."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_search.config.distributions import Value
from vit_search.runtime.ray_session import check_limits

from vit_search.runtime.ray_session import WatchedHead  # isort: skip  (before ray: it sets ray's environment)
from vit_search.config.search_file import SearchSpec
from vit_search.data import backbones
from vit_search.data.cache import DataSet, absent_classes, kept_speed, prepare
from vit_search.data.split import TRAINED_AND_VALIDATED_ON
from vit_search.errors import NoTrialCompletedError, SearchError, SpecError, VitSearchError
from vit_search.files import write_whole
from vit_search.ledger import searches
from vit_search.ledger.events import Commanded, Ended, Event, Launched, Left
from vit_search.ledger.file import Ledger
from vit_search.ledger.searches import Hindsight, SearchFacts
from vit_search.ledger.trials import Progress, Spent, Trial, ranked
from vit_search.planning import plan as planning
from vit_search.planning import speed
from vit_search.runtime.signals import restored
from vit_search.runtime.user import user_name
from vit_search.search import kept_weights, resume_checks
from vit_search.search.commands import Settings
from vit_search.search.components import ImageFacts, components_of
from vit_search.search.control import Control, obey_text
from vit_search.search.driver import Driver
from vit_search.search.execution import cluster_of, ray_for, run_trials
from vit_search.search.hindsight import PLAN, look_back
from vit_search.search.orders import Orders
from vit_search.search.proposals.proposals import cheap_first
from vit_search.search.ray_nodes import nodes_of
from vit_search.search.recovery import Patience
from vit_search.search.result import Search
from vit_search.search.search_facts import facts_of
from vit_search.search.search_folder import (
    EARLIER,
    check_output,
    delete_old_checkpoints,
    has_trials,
    kept_lessons,
    named_folder,
    new_folder,
    read_lessons,
    remove,
)
from vit_search.search.work import train_trial
from vit_search.stopping import train_flops_of
from vit_search.text import counted

if TYPE_CHECKING:
    from vit_search.data.weight_files import Registry
    from vit_search.tracking.recorder import Recorder


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult(Search):
    """A search at the time when its driver stops."""

    interrupted: bool
    ended_by: str
    """The limit that ended it before all trials were run; empty if none did."""
    hindsight: Hindsight
    """How often early stopping was wrong, and how good the plan was."""
    settings: Settings
    """Settings at the end, with the changes made while it ran."""
    spent: Spent
    """What all its launches cost."""
    seconds: float
    """Wall time of this launch."""
    experiment_id: str
    parent_run: str
    recorded: bool
    """Whether MLflow has all records. If not, `vit-search sync` sends the rest."""


Known = Callable[[DataSet | None], None]
"""Called with None once the search is known to be startable, and then with its data once they are ready. Ray starts after that."""

Watch = Callable[[Driver, SearchSpec, Path], Callable[[Event], None]]
"""Called once with the driver, the search file and the folder. Returns a function that is called with every event."""

Work = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a search. Nothing here changes what is searched."""

    watch: Watch | None = None
    work: Work = train_trial
    """The function that trains a trial in a worker. A benchmark of the driver replaces it with a light one."""
    address: str | None = None
    """The Ray cluster; None to start a Ray on this machine."""


def run(
    spec: SearchSpec,
    *,
    output: Path = Path("searches"),
    tracking_uri: str | None = None,
    download: bool = False,
    known: Known = lambda data: None,
    watch: Watch | None = None,
    work: Work = train_trial,
    address: str | None = None,
    name: str | None = None,
    registry: Registry | None = None,
) -> SearchResult:
    """Start a search in a new folder under `output` and run it to its end.

    Args:
        spec: a checked search file.
        output: folder of all searches, on storage that every node sees. A new folder is always made in it.
        tracking_uri: of MLflow; see `store.resolve_uri`.
        download: whether a missing data set may be fetched.
        known, watch, work, address: see Known and Options.
        name: of the new folder; by default the next free `NAME-N`. registry: of registered versions that a model may start from.
    Raises: DataError, TrackingError, SearchError before the first trial; NoTrialCompletedError at the end.
    """
    found = backbones.find_all(spec, download=download, registry=registry)
    spec = backbones.pinned(spec, found)
    if spec.space.feasible_share() == 0:
        rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
        problem = spec.space.problem(spec.space.draw(rng))
        raise SpecError(f"none of 2000 random proposals can be run, the first because: {problem} See `vit-search lint`.")
    if address is None:
        check_limits()
    check_output(output)
    lessons = read_lessons(spec, output)
    known(None)
    data = prepare(spec.data_config, download=download)
    spec = spec.with_channels(data.channels)
    spec.check_data(data.classes, absent_classes(data, *TRAINED_AND_VALIDATED_ON[spec.train_on][1]))
    known(data)
    with _ray_and_mlflow(spec, address, tracking_uri) as recorder:
        folder = new_folder(output, spec.name) if name is None else named_folder(output, name)
        before = set(folder.iterdir())
        try:
            if lessons:
                write_whole(folder / EARLIER, json.dumps(lessons))
            write_whole(folder / PLAN, json.dumps(planning.plan(spec, _known_speed(spec)).to_dict(), indent=1))
            facts = facts_of(spec, folder, data, recorder, weights=backbones.records(found))
            searches.write(folder, facts)
            return drive(spec, folder, data, recorder, facts, options=Options(watch=watch, work=work, address=address))
        except NoTrialCompletedError:
            raise
        except BaseException:  # also for Ctrl-C
            if not has_trials(folder):
                remove(folder, before)
            raise


@contextlib.contextmanager
def _ray_and_mlflow(spec: SearchSpec, address: str | None, tracking_uri: str | None) -> Iterator[Recorder]:
    """Start both at the same time: Ray in its own processes, while a thread imports MLflow and makes its database.

    Raises: TrackingError, ClusterError, SearchError.
    """
    with ThreadPoolExecutor(1) as apart:
        connecting = apart.submit(connect, tracking_uri, spec.name)
        with ray_for(spec, address):
            yield connecting.result()


def connect(tracking_uri: str | None, name: str) -> Recorder:
    """Make the recorder of a search. This imports MLflow, which takes seconds.

    Raises: TrackingError.
    """
    from vit_search.tracking.recorder import Recorder

    return Recorder.connect(tracking_uri, name)


def _check_holdout(spec: SearchSpec, data: DataSet) -> None:
    if spec.train_on != "train" and not data.counts["holdout"]:
        raise SpecError("train_on: no image is left for the holdout to validate on; raise data.holdout_fraction, or train on train.")


@restored()
def drive(
    spec: SearchSpec,
    folder: Path,
    data: DataSet,
    recorder: Recorder,
    facts: SearchFacts,
    *,
    options: Options,
    extend: Mapping[str, float] | None = None,
    planned: Sequence[tuple[dict[str, Value], int]] = (),
) -> SearchResult:
    """Run the trials of a search from where its ledger ends. The folder must have the search's facts.

    Args:
        extend: settings to change first.
        planned: parameters and `seed` (as in a search file) of every trial, to use instead of proposals.
    """
    began = time.monotonic()
    searches.check_own(folder)
    _check_holdout(spec, data)
    weights = kept_weights.folder_of(folder, facts)
    ledger = _opened(spec, folder, extend or {}, weights)
    first = not ledger.events
    ledger.append(Launched(host=socket.gethostname(), pid=os.getpid()))
    if extend:
        ledger.append(Commanded(name="set", arguments=dict(extend), answer="extended.", by=user_name()))
    driver: Driver | None = None
    ended = False
    try:
        with _cluster_if_needed(spec, folder, ledger, options.address) as head:
            orders = Orders(spec, folder, data, [seed for _, seed in planned], weights)
            driver = _driver_of(orders, ledger, head, [params for params, _ in planned])
            recorder.open(spec, facts, folder, ledger.events, ledger.sync, lambda text: obey_text(driver, text, by="MLflow"))
            delete_old_checkpoints(folder, driver.trials, spec)
            ledger.listeners += [recorder.wake, _cleaner(folder, driver, spec)]
            if driver.work_left:
                if options.watch:
                    ledger.listeners.append(options.watch(driver, spec, folder))
                with Control(folder, driver):
                    run_trials(driver, folder, options.work, head, apart=options.address is not None)
        ended = True
    finally:  # after an error, the search can be resumed, and no run stays open
        asked = None if facts.promotes else data
        end = finish(spec, folder, ledger, driver, recorder, ended=ended, refused=first and not ended, data=asked)
    if end.nothing_completed:
        raise _nothing_completed(folder, end.trials, driver.ending)
    return SearchResult(
        folder=folder,
        spec=spec,
        trials=end.trials,
        interrupted=end.interrupted,
        ended_by=driver.ending,
        hindsight=end.hindsight,
        settings=driver.settings,
        spent=driver.progress.spent,
        seconds=time.monotonic() - began,
        experiment_id=recorder.experiment_id,
        parent_run=recorder.parent_run,
        recorded=end.recorded,
    )


def _nothing_completed(folder: Path, trials: Sequence[Trial], ending: str) -> NoTrialCompletedError:
    return NoTrialCompletedError(f"{folder}: none of {counted(len(trials), 'trial')} reached full length; {ending or _why(trials)}")


def _opened(spec: SearchSpec, folder: Path, extend: Mapping[str, float], weights: Path) -> Ledger:
    """Open the search's ledger for this process, and copy the pretrained weights into their folder if they are not there.

    Raises: SpecError, SearchError if the trials are not of this search file, the extension is invalid, or weights are needed and missing.
    """
    ledger = Ledger(folder / "ledger.jsonl")
    try:
        searches.check_trials(folder, spec, Progress.of(ledger.events, spec.epochs).trials.values())
        if extend:
            resume_checks.check_extension(spec, folder, ledger.events, extend)
        kept_weights.keep(spec, weights, needed=bool(extend) or resume_checks.is_work_left(spec, ledger.events))
    except (SpecError, SearchError):
        ledger.close()
        raise
    return ledger


@contextlib.contextmanager
def _cluster_if_needed(spec: SearchSpec, folder: Path, ledger: Ledger, address: str | None) -> Iterator[WatchedHead]:
    """The Ray cluster; an empty one if no trial is left to run."""
    if not resume_checks.is_work_left(spec, ledger.events):
        yield WatchedHead([])
        return
    with cluster_of(spec, folder.name, address) as head:
        yield head


def _driver_of(orders: Orders, ledger: Ledger, head: WatchedHead, planned: Sequence[dict[str, Value]]) -> Driver:
    spec, data = orders.spec, orders.data
    shared = head.shapes and "auto" in (spec.resources.cpus, spec.resources.gpus)
    components = components_of(
        spec,
        ImageFacts(data.channels, len(data.classes), _resident_bytes(spec, data), _images_read(spec, data)),
        nodes=nodes_of(spec.resources) if shared else None,
        first=planned or [*spec.start_with, *cheap_first(spec.space, spec.start_with)],
        lessons=kept_lessons(orders.folder),
    )
    return Driver(
        ledger,
        components,
        orders,
        cluster=head,
        patience=Patience(60 * spec.stall_minutes, spec.stall_epochs),
        train_flops=train_flops_of(spec),
    )


def _cleaner(folder: Path, driver: Driver, spec: SearchSpec) -> Callable[[Event], None]:
    """A listener that deletes unneeded checkpoints whenever a trial ends."""

    def clean(event: Event) -> None:
        if isinstance(event, Ended):
            delete_old_checkpoints(folder, driver.trials, spec)

    return clean


@dataclass(frozen=True)
class _End:
    """How a launch ended."""

    trials: list[Trial]
    """The leaderboard, best first."""
    interrupted: bool
    nothing_completed: bool
    """Whether the search is over and no trial reached full length."""
    hindsight: Hindsight
    recorded: bool


def finish(
    spec: SearchSpec,
    folder: Path,
    ledger: Ledger,
    driver: Driver | None,
    recorder: Recorder,
    *,
    ended: bool,
    refused: bool,
    data: DataSet | None = None,
) -> _End:
    """Record the state of the search in its folder and in MLflow, and close the ledger. A full disk is ignored: it was reported before.

    Args:
        ended: False if an error ended the search. refused: whether that error came at its first launch.
        data: to find the mistakes of a finished search's best model for the report; None: do not.
    """
    try:
        return _finish(spec, folder, ledger, driver, recorder, ended=ended, refused=refused, data=data)
    except KeyboardInterrupt:  # the user does not wait for the last records; `vit-search sync` sends them
        recorder.abandon()
        ledger.close()
        raise


def _finish(
    spec: SearchSpec,
    folder: Path,
    ledger: Ledger,
    driver: Driver | None,
    recorder: Recorder,
    *,
    ended: bool,
    refused: bool,
    data: DataSet | None,
) -> _End:
    interrupted = driver is not None and driver.cancelled
    if driver is not None:
        with contextlib.suppress(SearchError):
            interrupted = driver.interrupt(ended=ended) or interrupted
    progress = Progress.of(ledger.events, spec.epochs)
    trials = ranked(progress.trials.values(), spec.metric, spec.mode)
    refused = refused and not trials
    completed = any(trial.outcome == "completed" for trial in trials)
    stopped = driver is not None and driver.draining and not driver.ending and any(not trial.over for trial in trials)
    nothing_completed = ended and not interrupted and not completed and not stopped
    left = _left(driver, trials, interrupted=interrupted or not ended, failed=nothing_completed)
    with contextlib.suppress(SearchError):
        ledger.append(left)
        progress.apply(left)
    hindsight = look_back(folder, spec, progress, driver.audits() if driver else ())
    if not interrupted:
        with contextlib.suppress(OSError):
            searches.write_hindsight(folder, hindsight)
    status = "KILLED" if interrupted else "FAILED" if nothing_completed or not ended else "FINISHED"
    if status == "FINISHED" and data is not None:
        _find_mistakes(folder, spec, trials, data)
    if refused and driver is not None:
        recorder.discard()
    recorded = (
        driver is not None and not refused and recorder.close(status, None if interrupted else hindsight, patience_s=60 if ended else 30)
    )
    ledger.close()
    return _End(trials, interrupted, nothing_completed, hindsight, recorded)


def _find_mistakes(folder: Path, spec: SearchSpec, trials: Sequence[Trial], data: DataSet) -> None:
    """Find the validation images that the best model gets wrong, for the report. It takes a minute at most, and never fails."""
    from vit_search.report import mistakes

    try:
        mistakes.find(folder, spec, trials, data.data_hash, data=data)
    except Exception as error:
        _log.warning("the mistakes of the best model could not be looked at (%s: %s).", type(error).__name__, error)


def _left(driver: Driver | None, trials: Sequence[Trial], *, interrupted: bool, failed: bool) -> Left:
    """The ledger's last event of a launch. It has the error that is being raised, if there is one."""
    if driver is None or interrupted:
        error = sys.exception()
        reason = str(error) if isinstance(error, VitSearchError) else _in_a_line(error) if isinstance(error, Exception) else ""
        return Left(state="interrupted", reason=reason)
    if failed:
        return Left(state="failed", reason=driver.ending or _why(trials))
    stopped = driver.draining and not driver.ending and sum(trial.over for trial in trials) < driver.settings.trials
    return Left(state="stopped" if stopped else "finished", reason=driver.ending)


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _why(trials: Sequence[Trial]) -> str:
    reasons = [trial.reason for trial in trials if trial.reason]
    return f"the first reason: {reasons[0]}" if reasons else "see how they ended: vit-search show."


def _resident_bytes(spec: SearchSpec, data: DataSet) -> int:
    """Of the images that each trial has on its device; streamed ones never lie there."""
    return 0 if data.reader is not None else _images_read(spec, data) * data.image_bytes


def _images_read(spec: SearchSpec, data: DataSet) -> int:
    """Images that each trial trains or validates on."""
    return sum(data.counts[name] for names in TRAINED_AND_VALIDATED_ON[spec.train_on] for name in names)


def _known_speed(spec: SearchSpec) -> speed.Speed | None:
    """The speed of this machine that `vit-search plan --calibrate` last measured, if it can be read."""
    with contextlib.suppress(SpecError):
        return speed.load_speed(kept_speed(gpus=spec.resources.on_gpu))
    return None
