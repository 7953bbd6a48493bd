"""The commands for a Ray cluster, from a laptop and on its head; app.py joins them to the others."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_search.cli import terminal
from vit_search.cli.terminal import escaped
from vit_search.config.cost import in_time, in_units
from vit_search.errors import SearchError
from vit_search.text import counted, one_line, plain, value_text, whole_number

if TYPE_CHECKING:
    from rich.console import Console

    from vit_search.cluster.jobs import Cluster
    from vit_search.cluster.preflight import Facts, Finding, Node
    from vit_search.cluster.services import Service
    from vit_search.ledger.ledger import Event

cluster = typer.Typer(help="Make a Ray cluster, and look one over.", no_args_is_help=True, rich_markup_mode=None)
out = terminal.console()
err = terminal.console(stderr=True)


def join(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command()(submit)
    app.command(name="list")(list_)
    app.command()(logs)
    app.command(name="check")(check_there)
    app.add_typer(cluster, name="cluster")


# --- searches on a cluster: submit, list, logs, check -------------------------------------------------------------------

Url = Annotated[str, typer.Option(help="Of the cluster's Jobs API, e.g. http://127.0.0.1:8265 at the end of a tunnel.", metavar="URL")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Also where the cluster asks for no token.")]
There = Annotated[str | None, typer.Option(help="URL of a cluster's Jobs API: of the search NAME that was submitted there.", metavar="URL")]


def submit(
    file: Annotated[Path, typer.Argument(help="A search file; paths in it are the cluster's.")],
    address: Url,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end, and leave with its exit code.")] = False,
    key: Annotated[str, typer.Option(help="Makes another search of the same file, e.g. a date.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Start another search, although this file was submitted before.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Have the cluster fetch the data set if it is missing.")] = False,
    insecure: Insecure = False,
) -> None:
    """Hand a search over to a Ray cluster, which sees it through.

    The same file twice is one search.
    """
    jobs, there = _connect(address, insecure)
    with err.status("measuring the cluster …"):
        handed = jobs.submit(there, file, key=key, again=again, download=download)
    for warning in handed.warnings:
        err.print(f"[yellow]warning:[/] {escaped(warning)}", soft_wrap=True)
    if handed.new:
        out.print(f"[bold]{escaped(handed.search)}[/] is submitted.", soft_wrap=True)
    else:
        out.print(
            f"[bold]{escaped(handed.search)}[/] was submitted before: {escaped(handed.state)}. --again starts another search.",
            soft_wrap=True,
        )
    where = escaped(f"{handed.search} --address {there.address}")
    if wait:
        try:
            with _writing(there.address) as write:
                code = jobs.wait(there, handed.search, write=write)
            sys.exit(code)
        except KeyboardInterrupt:
            err.print(f"It goes on without you; to end it:  vit-search cancel {where}", soft_wrap=True)
            raise
    out.print(f"\nNext:  vit-search status {where} --watch", soft_wrap=True)
    out.print(f"       vit-search logs {where} -f", soft_wrap=True)


def list_(address: Url, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False, insecure: Insecure = False) -> None:
    """List the searches that were submitted to a cluster.

    It knows those since the cluster's Ray was started.
    """
    jobs, there = _connect(address, insecure)
    known = jobs.launches(there.client)
    with err.status("asking the head …"):
        states = jobs.states(there, [all_of[-1] for all_of in known.values()]) if known else {}
    if as_json:
        shown = [{"search": search, "state": states[search], "jobs": [asdict(job) for job in all_of]} for search, all_of in known.items()]
        sys.stdout.write(json.dumps(shown, indent=1) + "\n")
        return
    rows = []
    for search, all_of in known.items():
        first, last = all_of[0], all_of[-1]
        took = in_time((last.ended or time.time()) - first.began)
        began = time.strftime("%m-%d %H:%M", time.localtime(first.began))
        rows.append([*map(escaped, (search, states[search], str(len(all_of)), began, took, first.user, last.version))])
    if not known:
        out.print(f"{escaped(there.address)}: no search was submitted since its Ray was started.")
        return
    for line in terminal.table(("search", "state", "jobs", "submitted", "took", "by", "vit_search"), rows, width=out.width):
        out.print(line, soft_wrap=True)


def logs(
    search: Annotated[
        str | None,
        typer.Argument(help="A search, or one trial of it as SEARCH/TRIAL; the newest search by default.", metavar="SEARCH[/TRIAL]"),
    ] = None,
    address: There = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of all searches, without --address.")] = Path("searches"),
    insecure: Insecure = False,
) -> None:
    """Print what happened in a search or a trial.

    Of a search on a cluster, print what its driver has said.
    """
    name, trial = (None, None) if search is None else _trial(search)
    if address is None:
        _events(output, name, trial, follow)
    elif search is None or trial is None:
        jobs, there = _connect(address, insecure)
        name = name or jobs.newest(there)
        if name is None:
            raise SearchError(
                f"{there.address}: no search was submitted since its Ray was started; submit one with `vit-search submit FILE`."
            )
        with _writing(there.address) as write:
            jobs.logs(there, name, write=write, follow=follow)
    else:
        remotely(address, ["logs", search, *(["--follow"] if follow else [])], insecure=insecure, follow=follow)


def check_there(
    address: Url,
    file: Annotated[Path | None, typer.Argument(help="A search file that is to run there.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that was measured, as JSON.")] = False,
    insecure: Insecure = False,
) -> None:
    """Measure a cluster: nodes, versions, storage, MLflow, clocks.

    Exit code 2 where something is wrong.
    """
    from vit_search.config import search_file

    spec = search_file.load(file) if file else None
    jobs, there = _connect(address, insecure)
    if spec is not None:
        jobs.check_paths(spec, str(file))
    with err.status("measuring the cluster …"):
        facts = jobs.measure(there, spec)
    from vit_search.cluster import preflight

    found = preflight.findings(facts, spec)
    wrong = any(finding.severity == "error" for finding in found)
    if as_json:
        sys.stdout.write(json.dumps(asdict(facts) | {"findings": [asdict(one) for one in found], "ready": not wrong}, indent=1) + "\n")
    else:
        _print_facts(facts, found)
    if wrong:
        sys.exit(2)


def remotely(
    address: str, words: Sequence[str], *, insecure: bool = False, follow: bool = False, files: Mapping[str, str] | None = None
) -> None:
    """Run one of our commands on a cluster's head, over the searches in its storage; print what it says, leave with its exit code.

    Args:
        files: texts by their names, which the command reads there.
    """
    jobs, there = _connect(address, insecure)
    with _writing(there.address) as write:
        code, said = jobs.on_head(there, ["vit-search", *words], write=write if follow else None, files=files)
    if not follow:
        (sys.stdout if code == 0 else sys.stderr).write(plain(addressed(said, there.address)))
    if code:
        sys.exit(code)


def status_there(address: str, search: str | None, *, as_json: bool, watch: bool, insecure: bool) -> None:
    """Say how a search on a cluster stands, by default the one that was submitted last."""
    jobs, there = _connect(address, insecure)
    name = search or jobs.newest(there)
    told = False
    while name and jobs.is_beginning(there, name):
        if not told:
            print_unbegun(name, "starting", as_json)
        if not watch:
            return
        told = True
        time.sleep(2)
    words = ["status", *([name] if name else []), *(["--json"] if as_json else []), *(["--watch"] if watch else [])]
    remotely(address, words, insecure=insecure, follow=watch)


def print_unbegun(search: str, state: str, as_json: bool) -> None:
    """How a search stands that was submitted to a cluster and has no trials yet."""
    from vit_search.ledger import search_state

    if as_json:
        sys.stdout.write(json.dumps({"search": search, "state": state, "running": False}, indent=1) + "\n")
    else:
        out.print(f"[bold]{escaped(search)}[/] is {state}: {search_state.WORDS[state]}.", soft_wrap=True)


def resume_there(address: str, search: str | None, insecure: bool) -> None:
    """Have a cluster take up a search that was submitted to it."""
    jobs, there = _connect(address, insecure)
    job = jobs.resume(there, _named(search))
    out.print(f"[bold]{escaped(search)}[/] is taken up again, as job {escaped(job)}.", soft_wrap=True)


def cancel_there(address: str, search: str | None, insecure: bool) -> None:
    """End a search on a cluster now."""
    jobs, there = _connect(address, insecure)
    if not jobs.cancel(there, _named(search)):
        raise SearchError(f"{search}: no job runs it now.")
    out.print(
        escaped(f"{search}: ending now; `vit-search resume {search} --address {there.address}` goes on from the last checkpoints."),
        soft_wrap=True,
    )


def _named(search: str | None) -> str:
    if search is None:
        raise SearchError("which search? `vit-search list --address URL` shows those of a cluster.")
    return search


def _connect(address: str, insecure: bool) -> tuple[Any, Cluster]:
    """The room `jobs`, whose imports take a second, and the cluster."""
    from vit_search.cluster import jobs

    there = jobs.connect(address, insecure=insecure)
    if there.warning:
        err.print(f"[yellow]warning:[/] {escaped(there.warning)}", soft_wrap=True)
    return jobs, there


def _write(text: str) -> None:
    sys.stdout.write(plain(text))
    sys.stdout.flush()


HINTED = re.compile(r"(vit-search (?:status|logs|resume|pause|continue|stop|cancel|set) )([\w./-]+)( --address [^\s`]+)?")
"""A command on a search, in what the head says; from a laptop it takes the same name and an address."""


def addressed(text: str, address: str) -> str:
    """What the head has said, with the cluster's address in the commands that it names, so that they work where they are read."""

    def command(found: re.Match[str]) -> str:
        start, name, there = found.groups()
        search = name.rstrip(".")  # the sentence may end there
        return found[0] if there not in (None, " --address URL") else f"{start}{search} --address {address}{name[len(search) :]}"

    return HINTED.sub(command, text)


@contextlib.contextmanager
def _writing(address: str) -> Iterator[Callable[[str], None]]:
    """What prints, whole lines at a time, what the head says piece by piece."""
    held = ""

    def write(text: str) -> None:
        nonlocal held
        lines, newline, held = (held + text).rpartition("\n")
        if newline:
            _write(addressed(lines + newline, address))

    try:
        yield write
    finally:
        _write(addressed(held, address))


def _trial(search: str) -> tuple[str, int | None]:
    name, slash, trial = search.rpartition("/")
    number = whole_number(trial) if slash else None
    return (search, None) if number is None else (name, number)


def _events(output: Path, search: str | None, trial: int | None, follow: bool) -> None:
    """What happened in a search, or in one of its trials, a line each, with the error that it left."""
    from vit_search.ledger import ledger, searches

    folder = searches.find(output, search)
    path, metric = folder / "ledger.jsonl", searches.read(folder)[0].metric
    said = 0
    while True:
        running = ledger.held(path)
        events = ledger.read_events(path)
        events = events if trial is None else _of_trial(events, trial)
        if trial is not None and not events:
            raise SearchError(f"{folder.name}: there is no trial {trial} yet; `vit-search show {folder.name}` lists its trials.")
        for event in events[said:]:
            _write(f"{time.strftime('%m-%d %H:%M:%S', time.localtime(event.at))}  {one_line(_told(event, metric, trial is None))}\n")
        said = len(events)
        ended = trial is not None and isinstance(events[-1], ledger.Ended) and events[-1].outcome != "interrupted"
        if not follow or ended or not running:
            break
        time.sleep(1)
    error = ledger.trial_folder(folder, trial) / "error.txt" if trial is not None else None
    if error is not None and error.is_file():
        _write(f"\n{error}:\n{error.read_text(encoding='utf-8', errors='replace')}")


def _of_trial(events: Sequence[Event], trial: int) -> list[Event]:
    """A trial's events, and the drivers that took it up again."""
    from vit_search.ledger import ledger

    found: list[Event] = []
    goes_on = False
    for event in events:
        if getattr(event, "trial", None) == trial:
            found.append(event)
            goes_on = not isinstance(event, ledger.Ended) or event.outcome == "interrupted"
        elif isinstance(event, ledger.Launched) and goes_on:
            found.append(event)
    return found


def _told(event: Event, metric: str, named: bool) -> str:
    """An event in words."""
    from vit_search.ledger import ledger

    trial = f"trial {event.trial}: " if named and hasattr(event, "trial") else ""
    if isinstance(event, ledger.Launched):
        return f"a driver took it up: process {event.pid} on {event.host}"
    if isinstance(event, ledger.Proposed):
        return trial + "proposed: " + ", ".join(f"{name} {value_text(value)}" for name, value in event.params.items())
    if isinstance(event, ledger.Infeasible):
        return f"not run: {event.reason}"
    if isinstance(event, ledger.Reported):
        result = event.result
        value = result.value(metric)
        shown = "" if value is None or metric == "train_loss" else f", {metric} {value:.4f}"
        return f"{trial}epoch {result.epoch}: train_loss {result.train_loss:.4f}{shown}, {result.seconds:.2f} s"
    if isinstance(event, ledger.Ended):
        return trial + event.outcome + (f": {event.reason}" if event.reason else "")
    if isinstance(event, ledger.Broke):
        return f"{trial}broke down: {event.reason}" + ("; it is tried again from its last checkpoint" if event.again else "")
    if isinstance(event, ledger.OutgrewShare):
        return f"{trial}outgrew its {event.gpus:g} of a GPU, goes on with more: {event.reason}"
    if isinstance(event, ledger.Left):
        return f"the driver let it go: {event.state}" + (f", {event.reason}" if event.reason else "")
    return f"{event.by}: {event.name}: {event.answer}"


RIGHT = ("CPUs", "GPUs", "memory", "free", "clock")
"""Columns of numbers."""


def _print_facts(facts: Facts, found: list[Finding]) -> None:
    from rich.table import Table

    columns = ("node", "address", "CPUs", "GPUs", "memory", "free", "versions", "storage", "cache", "clock")
    for line in terminal.table(columns, [_cells(node, facts.head.versions) for node in facts.nodes], width=out.width, right=RIGHT):
        out.print(line, soft_wrap=True)
    versions = ", ".join(f"{name} {number}" for name, number in facts.head.versions.items())
    lines = [("versions", versions), ("storage", facts.storage), ("cache", facts.cache), ("MLflow", facts.mlflow)]
    for shape in facts.types:
        size = f"{counted(shape.cpus, 'CPU')} and {counted(shape.gpus, 'GPU')}" if shape.cpus < float("inf") else "of unknown size"
        lines.append(("may come", f"up to {shape.count} of {shape.name}, {size} each"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, text in lines:
        grid.add_row(f"[dim]{label}[/]", escaped(text))
    for finding in found:
        grid.add_row(f"[{'bold red' if finding.severity == 'error' else 'yellow'}]{finding.severity}[/]", escaped(finding.text))
    out.print(grid)
    wrong = sum(finding.severity == "error" for finding in found)
    out.print("[bold green]ready[/]" if not wrong else f"[bold red]not ready[/]: {wrong} to mend")


def _cells(node: Node, versions: dict[str, str]) -> list[str]:
    """A node's row; what is unknown is a dash."""
    name = f"{node.name}{' (head)' if node.head else ''}"
    gpus = f"{node.gpus:g}{f' {node.accelerator}' if node.accelerator else ''}"
    start = [escaped(name), escaped(node.address), f"{node.cpus:g}", escaped(gpus), in_units(node.memory)]
    if node.trouble:
        return [*start, *["–"] * 5]
    fine = [node.versions == versions, not node.storage, not node.cache]
    clock = f"{node.skew_s:+.3f} s" if abs(node.skew_s) < 100 else f"{node.skew_s:+.0f} s"
    return [*start, in_units(node.free_memory), *("ok" if good else "[red]no[/]" for good in fine), clock]


@cluster.command(hidden=True)
def drive(
    search: Annotated[str, typer.Argument(help="Name of a search in this cluster's storage.")],
    file: Annotated[Path | None, typer.Option(help="Its search file, where it is new.")] = None,
    user: Annotated[str, typer.Option(help="Who submitted it.")] = "",
    key: Annotated[str, typer.Option(help="By which the same file is another search.")] = "",
    pin: Annotated[str | None, typer.Option(help="Version of vit_search where it was submitted.")] = None,
    space: Annotated[str, typer.Option(help="Hash of its search space there.")] = "",
    download: Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Although it was stopped or has ended.")] = False,
) -> None:
    """What a submitted job runs on the head."""
    from vit_search.cluster import driver

    if file is not None:
        driver.begin(search, file, user=user, key=key, pinned=pin or "", space_hash=space, download=download)
    sys.exit(driver.drive(search, _say(err), again=again, pinned=pin if again else None))


@cluster.command(hidden=True)
def preflight(
    data: Annotated[Path | None, typer.Option(help="Images that a search file names.")] = None,
    search: Annotated[str | None, typer.Option(help="A search to tell of.")] = None,
) -> None:
    """Measure the cluster that this node is the head of, and print it as JSON."""
    from vit_search.cluster import preflight as measuring

    facts = measuring.measure(data=data, search=search)
    sys.stdout.write(json.dumps(asdict(facts)) + "\n")


@cluster.command(hidden=True)
def states(
    stopped: Annotated[str | None, typer.Option(help="A search that is not to be taken up any more, written down first.")] = None,
) -> None:
    """How the searches in this cluster's storage stand, as JSON."""
    from vit_search.cluster import record

    if stopped is not None:
        record.change(record.folder_of(stopped), wanted="stopped")
    sys.stdout.write(json.dumps(record.states()) + "\n")


@cluster.command()
def keep(
    address: Annotated[str, typer.Option(help="Of the Jobs API, on this machine.", metavar="URL")] = "http://127.0.0.1:8265",
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 10.0,
) -> None:
    """On the head: take up each search whose driver was killed.

    It goes on until it is ended.
    """
    from vit_search.cluster import keeper

    keeper.keep(address, _say(out), every_s=every)


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(escaped(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"), soft_wrap=True)


# --- the cluster itself: cluster check, render, kuberay, token, head, keep ----------------------------------------------

ClusterFile = Annotated[Path, typer.Argument(help="The cluster's file.", metavar="FILE")]
State = Annotated[
    Path | None,
    typer.Option(help="Folder of the services' data, secrets and logs, on a disk of the head's own; /mnt/vit_search-head by default."),
]
Port = Annotated[int, typer.Option(help="MLflow's, on 127.0.0.1.")]

FOUND = 2
"""Exit code of a check that found something."""

UNWELL = 1
"""Exit code where a service does not run."""


@cluster.command()
def check(file: ClusterFile = Path("cluster.yaml")) -> None:
    """Hold a cluster's file against Ray's schema and our rules."""
    from vit_search.cluster import lint

    report = lint.check(file)
    for finding in report.findings:
        typer.echo(f"{file}:{finding.line}: {finding.rule}: {finding.text}")
    if report.findings:
        sys.exit(FOUND)
    for finding in report.blanks:
        typer.echo(f"{file}:{finding.line}: fill in: {finding.text}")
    typer.echo(f"{file}: nothing odd by Ray's schema and {lint.RULES} rules of ours")


@cluster.command()
def render(
    local: Annotated[str, typer.Option(help="The machines: the head first, then the workers, e.g. head,w1,w2.", metavar="HEAD,WORKER,…")],
    file: ClusterFile = Path("cluster.yaml"),
    user: Annotated[str, typer.Option(help="Account on each of them, reached by ssh.")] = "ubuntu",
    key: Annotated[str | None, typer.Option(help="Its private key on this machine; what ssh takes by default.")] = None,
) -> None:
    """Print the cluster's file for machines of your own.

    It has the same packages, commands and settings, without a cloud.
    """
    from vit_search.cluster import render as rendering

    sys.stdout.write(rendering.local(file, local.split(","), user=user, key=key))


@cluster.command()
def kuberay(
    image: Annotated[str, typer.Option(help="With this package in it; how to build one stands at the top of what is printed.")],
    file: ClusterFile = Path("cluster.yaml"),
    job: Annotated[Path | None, typer.Option(help="A search file: a RayJob that runs it on a cluster of its own.", metavar="FILE")] = None,
    namespace: Annotated[str, typer.Option(help="Kubernetes namespace.")] = "vit-search",
    storage_class: Annotated[str, typer.Option(help="Of a volume that many nodes can write to.")] = "efs-sc",
) -> None:
    """Print manifests for Kubernetes with KubeRay.

    They are the cluster, MLflow, PostgreSQL, volumes and the network policy.
    """
    from vit_search.cluster import render as rendering

    sys.stdout.write(rendering.kuberay(file, image=image, job=job, namespace=namespace, storage_class=storage_class))


@cluster.command()
def token(show: Annotated[bool, typer.Option("--show", help="Print the token itself.")] = False) -> None:
    """Make the token of a cluster, once.

    It also sees that nobody else can read it.
    """
    from vit_search.runtime import ray_token as tokens

    made = tokens.ensure()
    for line in made.mended:
        typer.echo(line, err=True)
    if show:
        typer.echo(tokens.read())
    else:
        typer.echo(f"{made.path}: {'made' if made.made else 'there'}, and its owner alone can read it")


@cluster.command()
def head(
    state: State = None,
    port: Port = 5000,
    look: Annotated[bool, typer.Option("--status", help="Start nothing; say how they stand. Exit code 1 where one is not well.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End them.")] = False,
) -> None:
    """On the head: run PostgreSQL, MLflow and the keeper.

    The keeper takes up searches again. All are started again when they die.
    """
    from vit_search.cluster import record, services

    this = services.Head(state or record.HEAD_STATE, port)
    if stop:
        services.stop(this.state)
        return
    found = services.status(this) if look else services.start(this, storage=record.storage())
    _print_services(found)
    if not look:
        typer.echo(f"MLflow: {this.uri}   accounts: {services.ADMIN} and {services.SEARCHES}, passwords in {this.secrets}")
    elif not all(service.well for service in found):
        sys.exit(UNWELL)


@cluster.command()
def worker(
    state: Annotated[Path | None, typer.Option(help="Folder of its log; ~/.vit_search-worker by default.")] = None,
) -> None:
    """On a worker: run the watcher for the cloud's spot notice.

    It is started again when it dies.
    """
    from vit_search.cluster import services

    watcher = services.Program("spot", (*services.vit_search(), "cluster", "watch-spot"))
    services.supervise(state or Path.home() / ".vit_search-worker", [watcher])


@cluster.command(name="watch-spot")
def watch_spot(
    metadata: Annotated[str, typer.Option(help="The metadata service.", hidden=True)] = "http://169.254.169.254",
    node_id: Annotated[str | None, typer.Option(help="Of the node to drain; this machine's by default.", hidden=True)] = None,
) -> None:
    """Drain this node when AWS is about to take it.

    It waits for the two-minute notice on a spot instance.
    """
    from vit_search.cluster import spot

    for line in spot.watch(spot.Metadata(metadata), node_id=node_id):
        typer.echo(line)
        sys.stdout.flush()


@cluster.command(hidden=True)
def serve(service: Annotated[str, typer.Argument()], state: State = None, port: Port = 5000) -> None:
    """Become one of the head's services; for supervisord."""
    from vit_search.cluster import record, services
    from vit_search.errors import ClusterError

    become = {"postgres": services.run_postgres, "mlflow": services.run_mlflow}.get(service)
    if become is None:
        raise ClusterError(f"{service}: no service of the head; say postgres or mlflow.")
    become(services.Head(state or record.HEAD_STATE, port))


def _print_services(found: list[Service]) -> None:
    from rich.table import Table

    table = Table("service", "state", "since", "answers", "where", "log", box=None, header_style="dim")
    for service in found:
        answers = "" if service.answers is None else "yes" if service.answers else "[red]no[/]"
        style = "green" if service.well else "red"
        cells = (service.detail, service.where, str(service.log))
        table.add_row(escaped(service.name), f"[{style}]{escaped(service.state)}[/]", escaped(cells[0]), answers, *map(escaped, cells[1:]))
    out.print(table, soft_wrap=True)
