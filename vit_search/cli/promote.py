"""The commands for registered models: promote, gate, rollback, history, repair, config and export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_search.cli.app import (
    FOUND,
    INTERRUPTED,
    NOT_PROMOTED,
    ModelName,
    Nice,
    Output,
    PolicyFile,
    Tracking,
    app,
    as_text,
    err,
    given_options,
    nothing_started,
    out,
    print_note,
    registry_uri,
    registry_uri_unless_folder,
    set_niceness,
    write_new,
)
from vit_search.cli.progress import watched
from vit_search.cli.promotion_steps import interrupted_promotion, promotion_steps
from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_rounded_time
from vit_search.errors import PromotionError, SearchError
from vit_search.runtime.user import user_name
from vit_search.text import counted, plain

if TYPE_CHECKING:
    from vit_search.promotion.finalists import FinalistPlan, Retrained
    from vit_search.promotion.gates import Gate
    from vit_search.promotion.policy import Policy
    from vit_search.promotion.promote import Promotion


@app.command()
def promote(
    search: Annotated[
        str | None, typer.Argument(help="Name or folder of a search, or a folder that `vit-search train` made. Default: the newest search.")
    ] = None,
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    top: Annotated[int | None, typer.Option(help="Number of trials to train again. Default: that of the policy.", min=1, max=100)] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of new seeds for each of them. Default: that of the policy.", min=1, max=100)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the registered model. Default: the `name` of the search file.")] = None,
    policy: PolicyFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen. Nothing is trained, tested or registered.")] = False,
    expect_current: Annotated[
        str, typer.Option(help="Refuse unless this version is the champion now; `none`: unless there is no champion.")
    ] = "",
    allow_dirty: Annotated[bool, typer.Option("--allow-dirty", help="Allow code with changes that are not committed.")] = False,
    approve_by: Annotated[str, typer.Option(help="Who approves the promotion, if the policy asks for it.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Make it the champion even if a gate refuses.")] = False,
    reason: Annotated[str, typer.Option(help="The reason, which is kept in the history.")] = "",
    nice: Nice = None,
) -> None:
    """Make a search's best model the champion, if every gate agrees.

    It trains the best trials again with new seeds and chooses one of these models. It tests that model once, and moves the alias
    `champion` to it if it passes every gate.
    """
    set_niceness(nice)
    reason, approve_by = as_text(reason), as_text(approve_by)
    if force != bool(reason.strip()):
        raise SearchError("--force and --reason go together: say why the gates are to be passed over, e.g. --force --reason 'a fix'.")
    from vit_search.ledger import searches
    from vit_search.ledger.file import check_free
    from vit_search.promotion import finalists
    from vit_search.promotion.policy import load
    from vit_search.tracking.uris import resolve_uri

    name = None if name is None else _model_name(name)
    options = given_options(top=top, seeds=seeds) | ({"allow_dirty": True} if allow_dirty else {})
    rules = load(policy).model_copy(update=options)
    folder = _trained(search, output, tracking_uri) or searches.find(output, search)
    spec, facts = searches.read(folder)
    planned = finalists.plan(folder, top=rules.top, seeds=rules.seeds, train_on=rules.retrain_on)
    uri = resolve_uri(tracking_uri, folder, facts)
    if dry_run:
        _print_promotion_plan(planned, rules, name or spec.name, uri)
        return
    check_free(folder / "ledger.jsonl")  # a search that still runs may find a better trial
    _retrain(planned, uri)
    retrained = finalists.read(planned)
    with promotion_steps(retrained.folder, folder.name) as say:
        from vit_search.promotion.decision import PromotionRequest
        from vit_search.promotion.promote import promote as promote_best

        request = PromotionRequest(name or spec.name, user_name(), reason.strip(), approve_by.strip(), expect_current.strip())
        done = promote_best(retrained, rules, request, tracking_uri=uri, say=say)
    _print_promotion(done, retrained)
    if done.verdict == "refused":
        sys.exit(NOT_PROMOTED)


def _model_name(name: str) -> str:
    """Check the model name given with --name, and return it."""
    from vit_search.config import search_file
    from vit_search.registry import references

    name = references.name_of(name)
    search_file.check_name(name, "--name")
    return name


def _trained(search: str | None, output: Path, tracking_uri: str | None) -> Path | None:
    """Make a search of one trial from a folder of `vit-search train`, and return its folder. None if `search` is something else."""
    trained = Path(search or "")
    if search is None or not (trained / "config.json").is_file() or (output / search / "search.json").is_file():
        return None
    with err.status("preparing the data and MLflow …"):
        from vit_search.promotion import adopted

        folder = adopted.adopt(trained, output, tracking_uri=tracking_uri)
    err.print(escaped(f"{folder}: a search of one trial, which is {trained}"), soft_wrap=True)
    return folder


def _retrain(planned: FinalistPlan, uri: str) -> None:
    """Train the finalists again, as far as this is not done yet. On Ctrl-C, print what is kept, and exit."""
    if planned.left:
        err.print(_trainings(planned))
    with err.status("preparing the data, MLflow and Ray …"), nothing_started():
        from vit_search.promotion.retrain import retrain
    stands = interrupted_promotion(planned.search.name, "The epochs that were trained are kept; the test split was not read.")
    result = watched(lambda screen: retrain(planned, tracking_uri=uri, watch=screen.watch), before=stands, later=stands)
    if result is not None and result.interrupted:
        err.print(stands, soft_wrap=True)
        sys.exit(INTERRUPTED)


@app.command()
def gate(
    search: Annotated[str, typer.Argument(help="Name or folder of a search.")],
    trial: Annotated[int, typer.Argument(help="Number of a trial whose checkpoint is kept.")],
    output: Output = Path("searches"),
    tracking_uri: Tracking = None,
    name: Annotated[str | None, typer.Option(help="Name of the registered model. Default: the `name` of the search file.")] = None,
    policy: PolicyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check one trial against the gates that need no test image.

    Nothing is trained or registered. Exit code 3: a gate refuses.
    """
    from vit_search.config import search_file
    from vit_search.ledger import searches
    from vit_search.promotion.policy import load
    from vit_search.registry import references

    if name is not None:
        name = references.name_of(name)
        search_file.check_name(name, "--name")
    rules, folder = load(policy), searches.find(output, search)
    spec, facts = searches.read(folder)
    with err.status("measuring …"):
        from vit_search.promotion import gates
        from vit_search.promotion.examine import examine
        from vit_search.tracking.uris import resolve_uri

        uri = resolve_uri(tracking_uri, folder, facts)
        judged = examine(folder, trial, rules, name or spec.name, tracking_uri=uri)
    if as_json:
        sys.stdout.write(json.dumps([one.to_dict() for one in judged], indent=1) + "\n")
    else:
        _print_gates(judged)
    if not gates.verdict(judged):
        sys.exit(NOT_PROMOTED)


def _trainings(planned: FinalistPlan) -> str:
    """What will be trained, in words."""
    spec, which = planned.spec, ", ".join(str(trial.number) for trial in planned.finalists)
    on = "training and validation images" if spec.train_on == "train+val" else "training images"
    judged_on = "holdout" if spec.train_on == "train+val" else "validation images"
    all_of_them = counted(spec.trials, "training run")
    some = f"{planned.left} of {all_of_them} {'are' if planned.left > 1 else 'is'} left" if planned.left < spec.trials else all_of_them
    seeds = counted(len(planned.seeds), "new seed")
    trials, each = ("trials", " each") if len(planned.finalists) > 1 else ("trial", "")
    return f"{some}: {trials} {which} with {seeds}{each}, {counted(spec.epochs, 'epoch')} on {on}, measured on the {judged_on}"


def _print_promotion_plan(planned: FinalistPlan, rules: Policy, name: str, uri: str) -> None:
    """Print what a promotion would do."""
    from rich.table import Table

    from vit_search.promotion import gates
    from vit_search.promotion.champion_model import champion_of
    from vit_search.promotion.readings import readings_of
    from vit_search.tracking import mlflow_client

    client = mlflow_client.client_for(uri, needs="read")
    champion = champion_of(client, name)
    readings = readings_of(client, name, json.loads(planned.text)["data"])
    trained = [result for trial in planned.finalists for result in trial.results]
    epoch_s = sum(result.seconds for result in trained) / max(len(trained), 1)
    now = "there is none yet" if champion is None else f"version {champion.version}, {champion.tags.get('search', 'made elsewhere')}"
    rows = [
        ("training", _trainings(planned) if planned.left else "done already"),
        ("time", f"about {in_rounded_time(planned.left * planned.spec.epochs * epoch_s / planned.spec.concurrency)} of training"),
        ("champion", now),
        ("test split", gates.readings(readings + 1, rules).said),
        ("policy", f"{rules.digest[:12]}…, mode {rules.better.mode}"),
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in rows:
        table.add_row(f"[dim]{label}[/]", escaped(text))
    out.print(f"[bold]{escaped(name)}[/] from {escaped(planned.search.name)}: nothing is trained, read or registered by --dry-run")
    out.print(table)


def _print_promotion(done: Promotion, retrained: Retrained) -> None:
    from rich.table import Table

    finalist, metric = done.finalist, retrained.spec.metric
    table = Table("trial", f"{metric} in the search", "retrained", "deviation", "", box=None, header_style="dim")
    for one in retrained.finalists:
        chosen = "[bold green]chosen[/]" if one.trial == finalist.trial else ""
        table.add_row(str(one.trial), f"{one.searched_value:.4f}", f"{one.mean:.4f}", f"{one.deviation:.4f}", chosen)
    for trial, reason in retrained.lost.items():
        table.add_row(str(trial), "", "", "", f"[red]{escaped(reason)}[/]")
    out.print(table)
    if done.verdict == "again":
        out.print(
            f"\n[bold]{escaped(done.name)}[/] version {done.version} is the [bold green]champion[/] already; "
            "the test split was not read again"
        )
        return
    out.print()
    _print_gates(done.gates)
    if done.answers is not None:
        low, high = done.answers.interval
        when = f"seen at reading {done.reading}, and not read again" if done.read_before else f"reading {done.reading} of this test split"
        out.print(
            f"\ntest accuracy [bold]{done.answers.accuracy:.4f}[/] on {counted(done.answers.images, 'image')} "
            f"(95 % interval {low:.4f} to {high:.4f}; {when})"
        )
        metric = done.tags.get("metric", "val_accuracy").removeprefix("val_")
        if metric != "accuracy" and f"test_{metric}" in done.tags:
            out.print(f"test {metric} [bold]{float(done.tags[f'test_{metric}']):.4f}[/], by which the search ranked its trials")
        if done.page is not None:
            out.print(f"mistakes: {escaped(str(done.page))}", soft_wrap=True)
    else:
        out.print("\nthe test split was not read")
    if done.verdict == "refused":
        stays = f"version {done.champion} stays champion" if done.champion else "there is no champion"
        out.print(f"[bold red]not promoted[/]: version {done.version} of {escaped(done.name)} is refused, and {stays}")
        return
    if done.verdict == "forced":
        out.print(f"[bold red]forced[/]: {escaped(done.tags['forced'])}", soft_wrap=True)
    before = f", in place of version {done.champion}" if done.champion else ""
    out.print(
        f"[bold]{escaped(done.name)}[/] version {done.version} is now [bold green]champion[/]{before}: trial {finalist.trial}, retrained"
    )
    out.print(f"\nNext:  vit-search predict --model {escaped(done.name)}@champion IMAGE…")
    out.print(f"       vit-search serve {escaped(done.name)}@champion")


def _print_gates(judged: list[Gate]) -> None:
    from rich.table import Table

    words = {True: "[green]passed[/]", False: "[bold red]refused[/]", None: "[dim]–[/]"}
    table = Table("gate", "", "seen", box=None, header_style="dim")
    for one in sorted(judged, key=lambda one: int(one.id[1:])):
        table.add_row(f"{one.id} {one.name}", words[one.passed], escaped(one.said))
    out.print(table)


@app.command()
def rollback(
    name: ModelName,
    reason: Annotated[str, typer.Option(help="The reason, which is kept in the history.")],
    to: Annotated[str | None, typer.Option(help="A version that was champion before. Default: the previous champion.")] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Make an earlier version the champion again.

    The version is loaded first. If it does not load, the champion stays.
    """
    reason = as_text(reason)
    if not reason.strip():
        raise PromotionError("--reason is empty; say why, e.g. --reason 'wrong on night photos'.")
    from vit_search.registry import references

    name = references.name_of(name)
    tracking_uri = registry_uri(name, tracking_uri)
    from vit_search.registry.champion import rollback_champion
    from vit_search.registry.version_files import load_problem
    from vit_search.tracking import mlflow_client

    with err.status("loading the version …"):
        client = mlflow_client.client_for(tracking_uri, needs="write")
        done = rollback_champion(
            client, name, to=to, reason=reason.strip(), by=user_name(), check=lambda version: load_problem(client, version)
        )
    out.print(f"[bold]{escaped(name)}[/] version {done.version} is [bold green]champion[/] again, in place of version {done.came_from}")


@app.command()
def history(
    name: ModelName,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check that the history is complete and agrees with the aliases and the files of the versions. Exit code 1: it does not.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    tracking_uri: Tracking = None,
) -> None:
    """Show who made which version the champion, when and why."""
    from rich.table import Table

    from vit_search.registry import references

    name = references.name_of(name)
    tracking_uri = registry_uri(name, tracking_uri)
    from vit_search.registry.promotion_history import read_history, verify_history
    from vit_search.registry.version_files import verify_files
    from vit_search.tracking import mlflow_client

    client = mlflow_client.client_for(tracking_uri, needs="read")
    records = read_history(client, name)
    problems = verify_history(client, name) if verify else []
    notes: list[str] = []
    if verify:
        with err.status("verifying …") as shown_status:
            wrong, notes = verify_files(client, name, say=lambda text: shown_status.update(f"{text} …"))
        problems += wrong
    if as_json:
        shown: Any = [json.loads(record.text()) for record in records]
        sys.stdout.write(json.dumps({"records": shown, "problems": problems, "notes": notes} if verify else shown, indent=1) + "\n")
    else:
        table = Table("when (UTC)", "who", "action", "version", "test accuracy", "reason", box=None, header_style="dim")
        for record in records:
            accuracy = _decimals(record.facts.get("test_accuracy", ""))
            versions = f"{record.came_from or '–'} → {record.version}"
            when = record.at[:19].replace("T", " ")
            table.add_row(*map(escaped, (when, f"{record.by} on {record.host}", record.action, versions, accuracy, record.reason)))
        out.print(table if records else f"{escaped(name)}: no version has been made the champion yet.")
        for note in notes:
            print_note(f"{name}: {note}")
        for problem in problems:
            err.print(f"[bold red]error:[/] {escaped(f'{name}: {problem}')}", soft_wrap=True)
        if verify and not problems:
            files = "all files of its versions are those" if not notes else "the files of its versions, as far as covered, are those"
            out.print(f"The history is complete, the aliases of {escaped(name)} agree with it, and {files} that were registered.")
    if problems:
        sys.exit(FOUND)


def _decimals(text: str) -> str:
    """Format the text of a number with four decimal places. Other text stays as it is; empty text becomes a dash."""
    try:
        return f"{float(text):.4f}"
    except ValueError:
        return text or "–"


@app.command()
def repair(name: ModelName, tracking_uri: Tracking = None) -> None:
    """Finish or undo a promotion that was killed.

    It also removes the lock that the promotion has left.
    """
    from vit_search.registry import references

    name = references.name_of(name)
    tracking_uri = registry_uri(name, tracking_uri)
    from vit_search.registry.champion import repair_champion
    from vit_search.tracking import mlflow_client

    out.print(escaped(repair_champion(mlflow_client.client_for(tracking_uri, needs="write"), name)), soft_wrap=True)


@app.command()
def config(
    model: Annotated[str, typer.Argument(help="NAME@champion, NAME/3, or a folder that `vit-search train` made.", metavar="MODEL")],
    output: Annotated[Path | None, typer.Option(help="Write the file here. Default: print it.", metavar="FILE")] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Print a registered model's configuration.

    It is a search file with fixed values, for `vit-search train`.
    """
    from vit_search.registry import configuration

    made = configuration.configuration(model, tracking_uri=registry_uri_unless_folder(model, tracking_uri))
    if output is None:
        sys.stdout.write(plain(made.text))
    else:
        write_new(output, made.text, "--output")
        out.print(f"Next:  vit-search train {escaped(str(output))}", soft_wrap=True)
    if not made.same:
        err.print(
            f"[yellow]note:[/] {escaped(model)} was not made by `promote`: no file can tell its seed, and train gives another model.",
            soft_wrap=True,
        )


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="NAME@champion, NAME/3, or a folder that `vit-search train` made.", metavar="MODEL")],
    format: Annotated[str, typer.Option("--format", help="Format: safetensors, pt2 or onnx.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write, or folder for safetensors. Default: NAME-VERSION in the current folder.")
    ] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Write a registered model as a file for other programs.

    The file is kept only if its logits agree with those of the model.
    """
    from vit_search.promotion.formats import check_format

    check_format(format)
    tracking_uri = registry_uri_unless_folder(model, tracking_uri)
    with err.status("exporting …"):
        from vit_search.promotion import export as exporting

        done = exporting.export(model, format, output, tracking_uri=tracking_uri)
    out.print(
        f"[bold]{escaped(str(done.path))}[/]: {escaped(done.name)}{f' version {done.version}' if done.version else ''}", soft_wrap=True
    )
    batches = " and ".join(map(str, exporting.BATCHES))
    out.print(
        f"its logits differ from the model's own by at most {done.difference:.1e}, in batches of {batches} "
        f"({exporting.TOLERANCE:.0e} is allowed)",
        soft_wrap=True,
    )
