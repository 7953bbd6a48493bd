"""The commands that start, steer and continue a search; and `train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_search.cli.app import (
    Address,
    Insecure,
    Nice,
    Output,
    SearchName,
    SearchNamedThere,
    There,
    Tracking,
    app,
    err,
    given_options,
    naming_file,
    nothing_started,
    out,
    set_niceness,
)
from vit_search.cli.pretrained import with_weights
from vit_search.cli.progress import Screen, finish, interrupted_text, watched
from vit_search.cli.remote import cancel_there, remotely, resume_there
from vit_search.cli.status import awaits_driver
from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_time
from vit_search.errors import SearchError
from vit_search.text import counted, whole_number

if TYPE_CHECKING:
    from vit_search.config.search_file import SearchSpec
    from vit_search.data.cache import DataSet


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A search file, for example search_spaces/digits.yaml.")],
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the data set and the pretrained weights if they are missing.")
    ] = False,
    address: Address = None,
    name: Annotated[str | None, typer.Option("--as", help="Name of the search's folder. Default: the next free NAME-N.")] = None,
    nice: Nice = None,
) -> None:
    """Start a search and run it to its end.

    It gets a new folder, searches/NAME-N.
    """
    set_niceness(nice, address)
    with nothing_started():
        from vit_search.config import search_file

        written = search_file.load(file)
        with naming_file(file):
            spec = with_weights(written, download=download, tracking_uri=tracking_uri)
        share = spec.space.feasible_share()
    if 0 < share < 0.05:
        err.print(f"[yellow]note:[/] only {share:.1%} of random proposals can be built; tighten the choices of patch_size, dim and heads.")
    with err.status("preparing the data, MLflow and Ray …"), nothing_started():  # these imports take a second or two
        from vit_search.search import launch
    options: dict[str, Any] = {"output": output, "tracking_uri": tracking_uri, "download": download, "address": address, "name": name}
    with naming_file(file):
        say = partial(_say_known, file=file, text=written.text, spec=spec)
        result = watched(lambda screen: launch.run(spec, known=partial(say, screen), watch=screen.watch, **options))
    finish(result)


def _say_known(screen: Screen, data: DataSet | None, *, file: Path, text: str, spec: SearchSpec) -> None:
    """Print what is known about a search before Ray starts: first its file, then its data, and how they go with its weights."""
    from vit_search.config import strict_yaml
    from vit_search.config.backbone import read_backbone
    from vit_search.data.split import TRAINED_AND_VALIDATED_ON
    from vit_search.data.weight_files import local_file
    from vit_search.planning.tuning_findings import learned_from_validation, random_start

    if data is None:
        screen.say(f"{file}: {counted(spec.trials, 'trial')}, at most {counted(spec.epochs, 'epoch')} each")
        return
    screen.data_are_ready(data.summary)
    backbones = {source: read_backbone(local_file(source).path) for source in spec.pretrained}
    findings = [*learned_from_validation(backbones, data.data_hash, TRAINED_AND_VALIDATED_ON[spec.train_on][1])]
    hint = random_start(spec, sum(data.counts.values()), data.channels)
    if hint is not None and spec.data.train_limit is None:  # with a limit, only some of the images are counted
        findings.append(hint)
    for hint in findings:
        line = strict_yaml.parse(text, str(file)).line(tuple(hint.where.split(".")))
        screen.note(f"{file}:{line}: {hint.where}: {hint.text}")


@app.command()
def resume(
    search: SearchNamedThere = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Continue on a Ray cluster: `auto` or HOST:6379 from one of its nodes; or http://…, its Jobs API, from anywhere, "
            "for a search that was submitted there. Default: this machine alone."
        ),
    ] = None,
    insecure: Insecure = False,
    nice: Nice = None,
) -> None:
    """Continue a search that was interrupted."""
    set_niceness(nice, address)
    if address is not None and address.startswith(("http://", "https://")):
        resume_there(address, search, insecure)
        return
    from vit_search.ledger import searches
    from vit_search.search import resume_checks

    folder = searches.find(output, search)
    resume_checks.check(folder, {})  # before ten seconds of imports
    with err.status("preparing MLflow and Ray …"), nothing_started():
        from vit_search.search import resume as resuming
    finish(
        watched(
            lambda screen: resuming.resume(folder, tracking_uri=tracking_uri, watch=screen.watch, address=address),
            before=interrupted_text(folder.name),
        )
    )


@app.command()
def extend(
    search: SearchName = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials in total, with those that have run.")] = None,
    hours: Annotated[float | None, typer.Option(help="Limit in hours, counted while the search runs or is paused.")] = None,
    device_hours: Annotated[float | None, typer.Option(help="Limit of device-hours of all trials together.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Number of trials that run at the same time.")] = None,
    target: Annotated[float | None, typer.Option(help="Value of the metric at which the search ends.")] = None,
    patience: Annotated[int | None, typer.Option(help="The search ends after this many trials in a row without a better metric.")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: Address = None,
    nice: Nice = None,
) -> None:
    """Continue a finished search beyond its limits.

    It keeps its sampler, its rungs and its MLflow run.
    """
    from vit_search.ledger import searches
    from vit_search.search import resume_checks

    set_niceness(nice, address)
    folder = searches.find(output, search)
    more = given_options(trials=trials, hours=hours, device_hours=device_hours, concurrency=concurrency, target=target, patience=patience)
    if not more:
        raise SearchError("extend by what? Give --trials, --hours, --device-hours, --concurrency, --target or --patience.")
    resume_checks.check(folder, more)
    with err.status("preparing MLflow and Ray …"), nothing_started():
        from vit_search.search import resume as resuming
    finish(
        watched(
            lambda screen: resuming.resume(folder, tracking_uri=tracking_uri, extend=more, watch=screen.watch, address=address),
            before=interrupted_text(folder.name),
        )
    )


@app.command()
def pause(
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: There = None,
    insecure: Insecure = False,
) -> None:
    """Pause a running search after the current epoch.

    Its trials release their CPUs and GPUs. `vit-search continue` continues the search.
    """
    if address is not None:
        remotely(address, ["pause", *_if_named(search)], insecure=insecure)
        return
    _command(search, output, tracking_uri, "pause")


@app.command(name="continue")
def continue_(
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: There = None,
    insecure: Insecure = False,
) -> None:
    """Continue a paused search."""
    if address is not None:
        remotely(address, ["continue", *_if_named(search)], insecure=insecure)
        return
    _command(search, output, tracking_uri, "continue")


@app.command()
def stop(
    search: Annotated[
        str | None,
        typer.Argument(help="A search, or one of its trials as SEARCH/TRIAL. Default: the newest search.", metavar="SEARCH[/TRIAL]"),
    ] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: There = None,
    insecure: Insecure = False,
) -> None:
    """Start no more trials, or stop one trial.

    Trials that are running train to their end. One trial, as SEARCH/TRIAL, stops after its current epoch.
    """
    if address is not None:
        remotely(address, ["stop", *_if_named(search)], insecure=insecure)
        return
    name, slash, trial = (search or "").rpartition("/")
    number = whole_number(trial) if slash else None
    if number is not None:
        _command(name or None, output, tracking_uri, "stop", {"trial": number})
    else:
        _command(search, output, tracking_uri, "stop")


@app.command()
def cancel(
    search: SearchNamedThere = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: There = None,
    insecure: Insecure = False,
) -> None:
    """End a running search now; `resume` can continue it.

    It continues from the last checkpoints.
    """
    if address is not None:
        cancel_there(address, search, insecure)
        return
    _command(search, output, tracking_uri, "cancel")


@app.command(name="set")
def set_(
    search: SearchName = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials in total.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Number of trials that run at the same time.")] = None,
    hours: Annotated[float | None, typer.Option(help="Limit in hours, counted while the search runs or is paused.")] = None,
    device_hours: Annotated[float | None, typer.Option(help="Limit of device-hours of all trials together.")] = None,
    target: Annotated[float | None, typer.Option(help="Value of the metric at which the search ends.")] = None,
    patience: Annotated[int | None, typer.Option(help="The search ends after this many trials in a row without a better metric.")] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: There = None,
    insecure: Insecure = False,
) -> None:
    """Change the limits or the concurrency of a running search."""
    options = given_options(
        trials=trials, concurrency=concurrency, hours=hours, device_hours=device_hours, target=target, patience=patience
    )
    if address is not None:
        changes = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        remotely(address, ["set", *_if_named(search), *changes], insecure=insecure)
        return
    _command(search, output, tracking_uri, "set", options)


@app.command()
def add(
    file: Annotated[
        Path, typer.Argument(help="A YAML file of parameters, for example `{dim: 64, lr: 1e-3}`. The sampler chooses the others.")
    ],
    search: SearchName = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    address: There = None,
    insecure: Insecure = False,
) -> None:
    """Make a running search try the parameters of a file next."""
    from vit_search.config import strict_yaml

    parameters = strict_yaml.load(file).values
    if address is not None:
        sent = {"parameters.yaml": file.read_text(encoding="utf-8")}
        remotely(address, ["add", *sent, *_if_named(search)], insecure=insecure, files=sent)
        return
    _command(search, output, tracking_uri, "add", parameters)


def _if_named(search: str | None) -> list[str]:
    """The search as an argument for a command on a cluster's head. Without a name, the command there takes the newest search."""
    return [search] if search else []


def _command(
    search: str | None, output: Path, tracking_uri: str | None, name: str, arguments: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Send a command to a running search: through its folder or, if the folder is not here, through MLflow."""
    from vit_search.ledger import searches
    from vit_search.search import control

    try:
        folder = searches.find(output, search)
    except SearchError:
        named = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if search is None or not named:
            raise
        from vit_search.tracking.recorder import LOOK_EVERY_S
        from vit_search.tracking.remote_command import send_command

        answer = send_command(named, search, control.in_words(name, dict(arguments)), control.ANSWER_WITHIN_S + LOOK_EVERY_S)
    else:
        ending = name in ("stop", "cancel") and not arguments and awaits_driver(folder)
        if ending:
            from vit_search.cluster import record

            record.change(folder, wanted="stopped")
        if ending and not record.driven(folder):
            answer = f"no driver runs it now, and none will be started; `vit-search resume {folder.name}` goes on with it."
        else:
            answer = control.ask(folder, name, arguments)
    out.print(escaped(answer))


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="A search file with fixed values only, as `vit-search config` prints it.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the checkpoint. Default: trained/NAME.", metavar="FOLDER")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the data set and the pretrained weights if they are missing.")
    ] = False,
) -> None:
    """Train one fixed configuration here, without Ray and MLflow.

    A training that was interrupted continues from its last checkpoint.
    """
    from vit_search.config import search_file
    from vit_search.data.cache import prepare
    from vit_search.planning import fixed_file
    from vit_search.vit import checkpoint, train_once

    spec = search_file.load(file)
    fixed_file.check_fixed(spec, str(file))
    folder = output or Path("trained") / spec.name
    with err.status("preparing the data …"), naming_file(file):
        spec = with_weights(spec, download=download)
        data = prepare(spec.data_config, download=download)
        spec = spec.with_channels(data.channels)
        spec.check_classes(data.classes)
    config = spec.trial_config({}, in_channels=data.channels, num_classes=len(data.classes), trial=0)
    done = train_once.is_done(folder, config)
    if spec.data_config.labelled is None and not done:
        err.print(escaped(data.summary), soft_wrap=True)
    for result in train_once.train(spec, config, data, folder):
        if done:
            continue
        value = result.value(spec.metric)
        shown = f"{spec.metric} {value:.4f}" if value is not None else ""
        took = _seconds(result.seconds)
        out.print(f"epoch {result.epoch:3d} of {spec.epochs}  {shown}  train_loss {result.train_loss:.4f}  {took}", soft_wrap=True)
    holds = "holds this model already, and nothing was trained" if done else "holds the model"
    out.print(f"[bold]{escaped(str(folder))}[/] {holds}; weights: sha256 {checkpoint.weights_sha256(folder)}", soft_wrap=True)


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else in_time(value)
