"""The commands that check a search file before it runs: lint, plan and schema."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_search.cli.app import Output, app, err, naming_file, out
from vit_search.cli.pretrained import with_weights_here
from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_rounded_time
from vit_search.errors import DataError, SearchError, SpecError
from vit_search.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from vit_search.config.search_file import SearchSpec
    from vit_search.data.backbones import FoundBackbone
    from vit_search.planning.lint_draws import LintFinding
    from vit_search.planning.plan import SearchPlan
    from vit_search.planning.search_lint import LintReport
    from vit_search.planning.speed import Speed


@app.command()
def lint(
    file: Annotated[Path, typer.Argument(help="A search file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Output = Path("searches"),
) -> None:
    """Find mistakes and waste in a search file.

    It reports what can never run, what is repeated and what has no effect. Nothing is trained.
    """
    from vit_search.config import cost, search_file
    from vit_search.planning import file_findings, search_lint, tuning_findings
    from vit_search.planning.run_findings import beyond_this_machine

    written = search_file.load(file)
    with naming_file(file):
        spec, found = with_weights_here(written)
        auto, spec = spec.data.channels == "auto", file_findings.counted(spec)
        beyond = beyond_this_machine(spec, cost.cpus_of_this_machine(), cost.gpus_of_this_machine())
        wide = tuning_findings.wide_parts(written, spec, [one.backbone for one in found.values()])
        few = tuning_findings.few_images_at_random(spec)
        report = search_lint.lint(spec, further=[*_missing_searches(spec, output), *_licences(found), *beyond, *wide, *few])
        _print_images(spec, auto=auto)
    if as_json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=1) + "\n")
    else:
        _print_report(report, file)
    if report.failed:
        sys.exit(SpecError.exit_code)


def _licences(found: Mapping[str, FoundBackbone]) -> Iterable[LintFinding]:
    """A warning for each licence of pretrained weights that the user should check."""
    from vit_search.config.weight_licences import licence_warning
    from vit_search.planning.lint_draws import LintFinding

    for source, one in found.items():
        warning = licence_warning(source, one.record["licence"])
        if warning:
            yield LintFinding("warning", "model.pretrained", warning)


def _missing_searches(spec: SearchSpec, output: Path) -> Iterable[LintFinding]:
    """A warning for each search in `learn_from` that is not here. `run` fails without it."""
    from vit_search.ledger import searches
    from vit_search.planning.lint_draws import LintFinding

    for i, name in enumerate(spec.learn_from):
        try:
            searches.find(output, name)
        except SearchError as error:
            yield LintFinding("warning", f"learn_from.{i}", f"{name}: {error} `run` needs it where the search will run.")


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="A search file.")],
    concurrency: Annotated[int | None, typer.Option(help="Number of trials that run at the same time. Default: that of the file.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First measure the speed of this machine (about 15 seconds), and remember it.")
    ] = False,
    flops_per_s: Annotated[
        float | None, typer.Option(help="FLOPs per second of a training step, for example 5e10, instead of a measurement.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what a search costs: epochs, memory, disk and time.

    The time is for this machine, and needs `--calibrate` once, or `--flops-per-s`. No trial is trained.
    """
    from vit_search.config import search_file
    from vit_search.data.cache import kept_speed
    from vit_search.planning import file_findings
    from vit_search.planning import plan as planning
    from vit_search.planning import speed as speeds

    spec = search_file.load(file)
    if concurrency is not None and not 1 <= concurrency <= 10_000:
        raise SearchError(f"--concurrency is {concurrency}; give 1 to 10,000 trials at once.")
    if calibrate and flops_per_s is not None:
        raise SearchError("--calibrate and --flops-per-s: a speed is measured or stated; drop one of the two.")
    kept = kept_speed(gpus=spec.resources.on_gpu)
    with naming_file(file):
        spec, _ = with_weights_here(spec)
        auto, spec = spec.data.channels == "auto", file_findings.counted(spec)
    if calibrate:
        with err.status("measuring this machine …"), naming_file(file):
            from vit_search.vit import calibrate as calibration

            speeds.save_speed(calibration.calibrate(spec, concurrency=concurrency), kept)
    speed = speeds.load_speed(kept) if flops_per_s is None else speeds.stated_speed(flops_per_s)
    with naming_file(file):
        made = planning.plan(spec, speed, concurrency=concurrency)
        _print_images(spec, auto=auto)
        findings = [*file_findings.of_files(spec), *file_findings.of_copies(spec)]
    _print_findings(err, file, findings)
    if any(finding.severity == "error" for finding in findings):
        sys.exit(DataError.exit_code)
    if as_json:
        sys.stdout.write(json.dumps(made.to_dict(), indent=1) + "\n")
    else:
        _print_plan(made)


def _print_images(spec: SearchSpec, *, auto: bool) -> None:
    """Print in one line what is at the data's path. Check that its classes suit the metric and the class weights.

    Args:
        auto: whether the search file has `channels: auto`.
    """
    from vit_search.config.class_weights import WORDS
    from vit_search.config.data_urls import has_files, is_remote, local_path, near_path
    from vit_search.data.auto_channels import channels_in_words
    from vit_search.data.listed import NotFetchedError, described
    from vit_search.data.sources import open_source
    from vit_search.data.split import classes_not_validated
    from vit_search.planning.file_findings import unknown_channels

    assumed = unknown_channels(spec)
    if assumed:
        err.print(escaped(f"note: {assumed}"))
    path = local_path(spec.data.path or "")
    behind_url = is_remote(spec.data.path)
    if behind_url:
        err.print(escaped(described(spec.data_config)))
    if spec.data_config.labelled is None and (behind_url or has_files(path)):
        try:
            source = open_source(spec.data_config)
        except NotFetchedError:
            return
        is_counted = spec.data_config.exact if not auto else spec.data.channels != "auto"
        channels = f"; {channels_in_words(spec.data_config)}" if is_counted else ""
        err.print(escaped(f"{source.summary()}{channels}"))
        spec.check_data(source.classes, classes_not_validated(spec.data_config, source, spec.train_on))
    elif spec.data.path and not behind_url and not has_files(path):
        mend = near_path(path) or "`run` needs them."
        err.print(escaped(f"note: {path} is not on this machine, so its images are not looked at; {mend}"))
    elif not set(spec.class_weights) <= set(WORDS):
        with contextlib.suppress(DataError):  # not downloaded yet: `run` checks it
            spec.check_classes(open_source(spec.data_config).classes)


SEVERITY_STYLE = {"error": "bold red", "warning": "yellow", "hint": "cyan"}


def _print_findings(console: Console, file: Path, findings: Sequence[LintFinding]) -> None:
    """Print each finding in one line: severity, file and line, key, text."""
    from vit_search.config import strict_yaml

    document = strict_yaml.load(file)
    for finding in findings:
        key = tuple(int(part) if part.isdecimal() else part for part in finding.where.split("."))
        text = escaped(f"{file}:{document.line(key)}: {finding.where}: {finding.text}")
        console.print(f"[{SEVERITY_STYLE[finding.severity]}]{finding.severity}:[/] {text}", soft_wrap=True)


def _print_report(report: LintReport, file: Path) -> None:
    from rich.table import Table

    from vit_search.config.cost import in_units

    out.print(f"[bold]{escaped(report.name)}[/]: {report.valid_share:.1%} of {report.draws:,} random proposals can be run")
    for reason, count in report.invalid.items():
        out.print(f"  {count / report.draws:6.1%}  {escaped(reason)}")
    if report.combinations is not None:
        possible = f"{report.valid_combinations or 0:,} of {report.combinations:,}"
        out.print(f"combinations that can be run: {possible}, for {counted(report.trials, 'trial')}")
    if report.spreads:
        table = Table(box=None, header_style="dim")
        for column in ("", "least", "10 %", "median", "90 %", "most"):
            table.add_column(column, justify="right" if column else "left")
        for name, label, shown in (
            ("params", "parameters", _count),
            ("flops", "FLOPs an image", _count),
            ("train_bytes", "memory", in_units),
        ):
            spread = report.spreads[name]
            values = (spread.least, spread.tenth, spread.median, spread.ninetieth, spread.most)
            table.add_row(label, *(shown(int(value)) for value in values))
        out.print(table)
    for limit in report.limits:
        out.print(f"[dim]limit[/]  {escaped(limit.limit)}: excludes {limit.excluded:.0%}, alone {limit.alone:.0%}")
    _print_findings(out, file, report.findings)
    if not report.findings:
        out.print("[green]nothing odd[/]")


def _print_plan(plan: SearchPlan) -> None:
    from rich.table import Table

    from vit_search.config.cost import in_units

    low, high = plan.trained_epochs_range
    epochs = f"about [bold]{_rounded(plan.trained_epochs)}[/] ({_rounded(low)} to {_rounded(high)})"
    if low == high:  # the number is certain
        epochs = f"[bold]{plan.trained_epochs:,.0f}[/]"
    rows = [
        ("images", f"{plan.images.train:,} to train on, {plan.images.val:,} to validate on"),
        ("epochs", f"{epochs}, {plan.saved_share:.0%} less than without stopping"),
        ("trials", ", ".join(f"{rung.trials:,.{rung.trials < 20:d}f} reach epoch {rung.epoch}" for rung in plan.rungs)),
        ("models", f"{_count(plan.params[0])} parameters in the middle, at most {_count(plan.params[1])}"),
        ("work", f"{_count(plan.flops)} floating-point operations"),
        ("memory", f"{in_units(plan.train_bytes[0])} a trial, at most {in_units(plan.train_bytes[1])}, beside what torch itself takes"),
        *([("GPUs", _gpu_shares(plan))] if plan.shares else []),
        ("disk", f"checkpoints take at most {in_units(plan.disk_bytes)}"),
    ]
    if plan.speed and plan.wall_seconds_range and plan.epoch_seconds:
        soonest, latest = map(in_rounded_time, plan.wall_seconds_range)
        rows += [
            (
                "time",
                f"about [bold]{in_rounded_time(plan.wall_seconds or 0)}[/] ({soonest} to {latest}), Ray's and MLflow's own not counted",
            ),
            (
                "",
                f"{in_rounded_time(plan.trial_seconds or 0)} of all trials, {in_rounded_time(plan.device_seconds or 0)} of GPUs or cores",
            ),
            ("", f"an epoch {in_rounded_time(plan.epoch_seconds[0])} in the middle, at most {in_rounded_time(plan.epoch_seconds[1])}"),
            ("speed", _speed(plan.speed, plan)),
        ]
    else:
        rows.append(("time", "unknown: add --calibrate to measure this machine, or --flops-per-s to state its speed"))
    if plan.limit:
        rows.append(("limit", f"[yellow]{plan.limit}[/]"))
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in rows:
        table.add_row(f"[dim]{label}[/]", text)
    head = f"{counted(plan.trials, 'trial')} of up to {counted(plan.epochs, 'epoch')}, stopping {plan.stopping}, {plan.concurrency} at once"
    out.print(f"[bold]{escaped(plan.name)}[/]: {head}")
    out.print(table)


def _gpu_shares(plan: SearchPlan) -> str:
    """How many trials share a GPU, in words."""
    from vit_search.config.cost import in_units

    parts = [f"{share.trials:.0%} of the trials run {1 / share.gpus:.0f} to a GPU" for share in plan.shares if share.gpus < 1]
    parts += [f"{share.trials:.0%} need a whole one" for share in plan.shares if share.gpus >= 1]
    return f"{', '.join(parts)} (of {in_units(plan.gpu_bytes)})"


def _speed(speed: Speed, plan: SearchPlan) -> str:
    """The speed that a plan uses, in words, and why its times may be wrong."""
    from vit_search.planning.speed import BORROWED

    if not speed.measured:
        return f"{_count(speed.flops_per_s)} floating-point operations a second, as stated"
    text = f"{escaped(speed.device)}, measured {speed.measured} with {speed.processes} at once"
    odd = [f"for {plan.borrowed}: the times may be wrong by a factor of {BORROWED:g}"] * bool(plan.borrowed)
    odd += [f"not {plan.concurrency}"] * (speed.processes != min(plan.concurrency, speed.room))
    text += f" [yellow]{', '.join(odd)}; --calibrate measures again[/]" if odd else ""
    return text + (f"; [yellow]it has room for {speed.room} at once[/]" if plan.concurrency > speed.room else "")


def _rounded(count: float) -> str:
    """Format an estimate with two digits."""
    return f"{float(f'{count:.2g}'):,.0f}"


def _count(value: float) -> str:
    """Format a large number with three digits: 37.4 k, 1.2 M, 3.4 T."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


@app.command()
def schema() -> None:
    """Print the JSON Schema of a search file, for editors."""
    from vit_search.config import search_file

    sys.stdout.write(json.dumps(search_file.json_schema(), indent=2) + "\n")
