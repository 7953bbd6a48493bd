"""Searches on a Ray cluster, from a laptop outside of it: handed over, listed, followed and stopped through Ray's Jobs API.

A search is one or more jobs there: the first has the search's name as its id, and `NAME-2`, `NAME-3` … take it up again. That
the Jobs API gives an id out once makes a submission idempotent. What a folder in the cluster's storage must be asked for is
asked by a short job that runs the same command on the head.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vit_search.text import nearest

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray, whose settings it makes)
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from vit_search.cluster import preflight
from vit_search.cluster.preflight import Facts
from vit_search.config import search_file
from vit_search.config.search_file import SearchSpec
from vit_search.config.strict_json import parse
from vit_search.errors import ClusterError, SpecError
from vit_search.runtime import ray_token as token
from vit_search.runtime.user import user_name
from vit_search.text import whole_number

for _chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_chatty}").setLevel(logging.WARNING)

OVER = ("STOPPED", "SUCCEEDED", "FAILED")
STOPS_WITHIN_S = 120
"""What a driver gets to end cleanly when its job is stopped; Ray's own default of 3 s cuts it off."""

KEPT_WITHIN_S = 120.0
"""How long a killed job is given to be taken up by the keeper, by who waits for its end."""

INTERRUPTED = 130
NOT_RECORDED = 5
"""Exit code of a driver that saw its search through while MLflow was away: it is taken up again to send the rest."""

NO_AGENT = "No available agent"
AGENT_STARTS_WITHIN_S = 120.0
"""How long a head that was just started may take until its agent runs jobs; Ray's own 10 s are too short on a busy machine."""

BEGINS_WITHIN_S = 300.0
"""What a submitted job gets to make its search's folder."""

ANSWERS_WITHIN_S = 300.0
"""What a short job on the head gets."""

FORGOTTEN_AFTER_S = 30.0

STORAGE = '"${VIT_SEARCH_STORAGE:?is not set on the head}/searches"'

TUNNEL = "see that the head runs and its tunnel is up: `ray dashboard cluster.yaml`, or `ssh -N -L 8265:127.0.0.1:8265 HEAD`"

OPEN = (
    "its Jobs API answers without a token, so that whoever reaches it runs code there (ShadowRay, CVE-2023-48022); "
    "start Ray with RAY_AUTH_MODE=token"
)


@dataclass(frozen=True)
class Cluster:
    """A Jobs API that answers us."""

    address: str
    client: JobSubmissionClient
    warning: str = ""
    """What is unsafe about it, although it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One job of a search."""

    job: str
    search: str
    status: str
    """Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    code: int | None
    """Exit code of its driver; None before its end, and where it was killed."""
    began: float
    ended: float | None
    user: str
    version: str

    @property
    def over(self) -> bool:
        """Whether it has come to an end of whatever kind."""
        return self.status in OVER

    @property
    def state(self) -> str:
        """How this job stands, in a word or two; how its search does, `states` says."""
        if self.status == "FAILED":
            codes = {130: "stopped", 4: "no trial completed", 5: "finished, MLflow was away", 2: "refused"}
            return "killed" if self.code is None or self.code < 0 else codes.get(self.code, f"failed ({self.code})")
        return {"PENDING": "starting", "RUNNING": "running", "STOPPED": "stopped", "SUCCEEDED": "finished"}[self.status]


@dataclass(frozen=True)
class Handed:
    """What became of a submission."""

    search: str
    new: bool
    """Whether it started a search; else the same one was there already."""
    state: str
    warnings: tuple[str, ...] = ()
    """What is odd about the cluster."""


def connect(address: str, *, insecure: bool = False) -> Cluster:
    """Reach the Jobs API of a cluster, with the token of this machine where it asks for one.

    Args:
        address: its URL.
        insecure: whether one will do that asks for no token; it is then sent none.
    Raises: ClusterError, one line.
    """
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise ClusterError(f"--address {address}: no URL of a Jobs API; give one such as http://127.0.0.1:8265.")
    address = address.rstrip("/")
    if _is_open(address):
        if not insecure:
            raise ClusterError(f"{address}: {OPEN} (`vit-search cluster token`), or add --insecure.")
        return Cluster(address, _client(address, None), f"{address}: {OPEN}.")
    known = _token()
    if known is None:
        raise ClusterError(
            f"{address}: it asks for a token and this machine has none; copy the head's ~/.ray/auth_token to the same place here, "
            "mode 0600, or name another file in RAY_AUTH_TOKEN_PATH."
        )
    return Cluster(address, _client(address, known))


def _is_open(address: str) -> bool:
    """Whether the Jobs API answers without a token."""
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"User-Agent": "vit-search"})  # noqa: S310 -- http(s), by `connect`
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            answer.read()
            return True
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False
        raise ClusterError(f"{address}: no Jobs API of Ray answers there (HTTP {error.code}); {TUNNEL}.") from None
    except (OSError, ValueError) as error:
        raise ClusterError(f"{address}: cannot be reached ({getattr(error, 'reason', error)}); {TUNNEL}.") from None


def _token() -> str | None:
    """The token where Ray looks for it, never from an argument.

    Raises: ClusterError where others can read it, or it cannot be read.
    """
    if named := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return named
    if not token.token_path().exists():
        return None
    if problem := token.problem():
        raise ClusterError(problem)
    return token.read().strip() or None


def _client(address: str, known: str | None) -> JobSubmissionClient:
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:  # Ray would let these two overrule the address that was given
        with _talking(address):
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {known}"} if known else None)
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _talking(address: str) -> Iterator[None]:
    """Say in one line what went wrong between us and the Jobs API."""
    try:
        yield
    except (RuntimeError, OSError, RayError) as error:  # requests' errors are OSErrors
        said = " ".join(str(error).split())
        if isinstance(error, AuthenticationError):
            raise ClusterError(f"{address}: it refuses this machine's token; copy the head's ~/.ray/auth_token anew, mode 0600.") from None
        if "ray[default]" in said:
            raise ClusterError("Ray's Jobs API is not installed here; pip install 'vit_search[cluster]'.") from None
        if NO_AGENT in said:
            mend = "see its dashboard_agent.log: another Ray there may have its port; then start Ray with --dashboard-agent-listen-port 0"
            raise ClusterError(f"{address}: the head has no agent that runs jobs; {mend}.") from None
        raise ClusterError(f"{address}: the Jobs API failed ({said[:300]}); {TUNNEL}.") from None


def submit(cluster: Cluster, file: Path, *, key: str = "", again: bool = False, download: bool = False) -> Handed:
    """Hand a search file over; the same file with the same key, at the same version, is one search however often it comes.

    Args:
        key: makes another search of the same file.
        again: start another search of it in any case.
        download: whether a data set that is missing may be fetched there.
    Raises: SpecError for the file; ClusterError when the cluster is not fit for it. Nothing is then left there.
    """
    spec = search_file.load(file)
    check_paths(spec, str(file))
    search = search_name(spec, uuid.uuid4().hex if again else key)
    known = launches(cluster.client).get(search)
    if known:
        return Handed(search, False, states(cluster, known[-1:])[search])
    facts = measure(cluster, spec, search=search, download=download)
    found = preflight.findings(facts, spec)
    if error := preflight.refusal(found):
        raise error
    if facts.search and (facts.search["driven"] or facts.search["ended"] is not None or facts.search["wanted"] == "stopped"):
        return Handed(search, False, facts.search["state"])
    handed = hand_over(cluster, spec, search, key=key, download=download)
    return replace(handed, warnings=tuple(finding.text for finding in found))


def hand_over(cluster: Cluster, spec: SearchSpec, search: str, *, key: str = "", download: bool = False) -> Handed:
    """The last step of `submit`, whose checks have been passed."""
    pins = {"--user": user_name(), "--key": key, "--pin": version("vit_search"), "--space": spec.space.space_hash}
    words = ["vit-search", "cluster", "drive", search, "--file", "search.yaml"]
    words += [word for name, value in pins.items() if value for word in (name, value)] + ["--download"] * download
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "search.yaml").write_text(spec.text, encoding="utf-8")
        new = _start(cluster.client, search, search, words, {"key": key, "space": spec.space.space_hash}, folder)
    return Handed(search, new, "starting")


def search_name(spec: SearchSpec, key: str) -> str:
    """The name of the search that a file makes: the same for the same text, version and key."""
    told = json.dumps([spec.text, version("vit_search"), key]).encode()
    return f"{spec.name}-{hashlib.sha256(told).hexdigest()[:10]}"


def check_paths(spec: SearchSpec, file: str) -> None:
    """Refuse a path that means something on this machine alone.

    Raises: SpecError.
    """
    path = spec.data_config.path
    if path is not None and not Path(path).is_absolute():
        raise SpecError(f"{file}: data.path: {str(path)!r} is a path of this machine; name the folder on the cluster in full.")


def resume(cluster: Cluster, search: str) -> str:
    """Have a search taken up that was stopped, has failed, or has ended before its last trial.

    Returns: the job's id.
    Raises: ClusterError where it runs, is finished, or is not there.
    """
    known = launches(cluster.client).get(search, [])
    told = _states_of_folders(cluster)
    if known and not known[-1].over:
        state = told.get(search, known[-1].state)
        raise ClusterError(f"{search}: a job has it, and it is {state}; `vit-search status {search} --address {cluster.address}`.")
    if not known:  # this Ray is younger than the search, or the name is wrong
        code, said = on_head(cluster, ["vit-search", "status", search, "--json"])
        if code != 0:
            raise ClusterError(said.strip().rpartition("error: ")[2])
    if told.get(search) == "finished" and not (known and known[-1].code == NOT_RECORDED):
        mend = f"`vit-search extend {search} --trials N --address auto`, on the head, goes on beyond its limits"
        raise ClusterError(f"{search}: this search is finished; {mend}.")
    words = ["vit-search", "cluster", "drive", search, "--again", "--pin", version("vit_search")]
    return submit_again(cluster.client, search, 2, words)


def submit_again(client: JobSubmissionClient, search: str, number: int, words: Sequence[str]) -> str:
    """Submit a further job of a search, under the first number from `number` on that no job has had.

    Returns: its id; whoever else asks at this moment gets the same.
    """
    numbers = (launch.job.removeprefix(f"{search}-") for launch in launches(client).get(search, []))
    taken = [one for text in numbers if (one := whole_number(text)) is not None]
    job = f"{search}-{max([number, *(one + 1 for one in taken)])}"
    _start(client, job, search, words, {}, None)
    return job


def cancel(cluster: Cluster, search: str) -> bool:
    """Stop a search's job: the driver ends cleanly, and `resume` goes on. Whether there was one to stop."""
    known = _known(cluster, search)
    if known[-1].over:
        return False
    with _talking(cluster.address):
        stopped = bool(cluster.client.stop_job(known[-1].job))
    with contextlib.suppress(ClusterError):  # of a head that cannot: the keeper writes it down when it sees the job
        on_head(cluster, ["vit-search", "cluster", "states", "--stopped", search], storage=False)
    return stopped


def _start(client: JobSubmissionClient, job: str, search: str, words: Sequence[str], told: dict[str, str], folder: str | None) -> bool:
    """Submit a driver; False where a job of this id exists already."""
    runtime: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOPS_WITHIN_S)}}  # shown by Ray to all: never a secret
    if folder is not None:
        runtime["working_dir"] = folder
    facts = {"vit_search": "driver", "search": search, "user": user_name(), "version": version("vit_search")}
    try:
        submit_job(client, entrypoint=f"exec {shlex.join(words)}", submission_id=job, metadata=facts | told, runtime_env=runtime)
    except RuntimeError as error:
        if "already exists" in str(error):
            return False
        with _talking(client.get_address()):
            raise
    return True


def submit_job(client: JobSubmissionClient, *, patience_s: float = AGENT_STARTS_WITHIN_S, **job: Any) -> None:
    """Submit a job. A head that was started a moment ago has no agent yet that runs jobs; wait for it.

    Raises: RuntimeError, as Ray's client does.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > end:
                raise
            time.sleep(1)


def launches(client: JobSubmissionClient) -> dict[str, list[Launch]]:
    """The jobs of all searches that this Ray knows of, each search's in their order, the newest search last."""
    with _talking(client.get_address()):
        jobs = client.list_jobs()
    found: dict[str, list[Launch]] = {}
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        facts = job.metadata or {}
        if facts.get("vit_search") == "driver" and job.submission_id:
            launch = Launch(
                job=job.submission_id,
                search=facts.get("search", job.submission_id),
                status=str(job.status.value),
                code=job.driver_exit_code,
                began=(job.start_time or 0) / 1000,
                ended=job.end_time / 1000 if job.end_time else None,
                user=facts.get("user", ""),
                version=facts.get("version", ""),
            )
            found.setdefault(launch.search, []).append(launch)
    return found


def states(cluster: Cluster, last: Sequence[Launch]) -> dict[str, str]:
    """How searches stand: as their folders on the head say, and where one has none yet, as its last job does.

    Args:
        last: of each search, its last job.
    """
    told = _states_of_folders(cluster)
    return {launch.search: told.get(launch.search, launch.state) for launch in last}


def _states_of_folders(cluster: Cluster) -> dict[str, str]:
    """What the folders on the head say, by search."""
    with contextlib.suppress(ClusterError, ValueError):  # a head of another version, or without its storage
        code, said = on_head(cluster, ["vit-search", "cluster", "states"], storage=False)
        if code == 0:
            return {name: state["word"] for name, state in parse(said.strip().rpartition("\n")[2]).items()}
    return {}


def newest(cluster: Cluster) -> str | None:
    """The search that was submitted last; None where this Ray knows of none."""
    return next(reversed(launches(cluster.client)), None)


def is_beginning(cluster: Cluster, search: str) -> bool:
    """Whether a search was submitted a moment ago, and its job has not made its folder yet."""
    last = launches(cluster.client).get(search, [])[-1:]
    young = bool(last) and not last[0].over and time.time() - last[0].began < BEGINS_WITHIN_S
    return young and search not in _states_of_folders(cluster)


def _known(cluster: Cluster, search: str) -> list[Launch]:
    """A search's jobs.

    Raises: ClusterError where there is none.
    """
    known = launches(cluster.client)
    if search not in known:
        hint = f"; {nearest(search, list(known))}" if known else "; submit one with `vit-search submit FILE`."
        raise ClusterError(f"{cluster.address}: no search named {search!r} since this Ray was started{hint}")
    return known[search]


def logs(cluster: Cluster, search: str, *, write: Callable[[str], None], follow: bool = False) -> None:
    """What a search's drivers have said, job by job; to the end of the last one if followed."""
    known = _known(cluster, search)
    for launch in known:
        if len(known) > 1:
            write(f"--- {launch.job}, {launch.state}\n")
        if follow and launch is known[-1]:
            _follow(cluster, launch.job, write)
        else:
            write(_said(cluster.client, launch.job))


def wait(cluster: Cluster, search: str, *, write: Callable[[str], None]) -> int:
    """Follow a search to its end, across its jobs.

    Returns: its exit code; 1 where its job was killed and the keeper has not taken it up.
    """
    killed = 0.0
    while True:
        last = _known(cluster, search)[-1]
        if not last.over:
            _follow(cluster, last.job, write)
        elif last.state != "killed":
            return INTERRUPTED if last.status == "STOPPED" else last.code or 0
        else:
            killed = killed or time.monotonic()
            if time.monotonic() - killed > KEPT_WITHIN_S:
                return 1
            time.sleep(2)


def on_head(
    cluster: Cluster,
    words: Sequence[str],
    *,
    storage: bool = True,
    write: Callable[[str], None] | None = None,
    files: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run one of our commands on the head, as a short job that the next one removes.

    Args:
        words: `vit-search` and what follows it.
        files: texts by their names, which the command finds in the folder where it runs.
        storage: whether it takes `--output`, which is then the folder of searches there.
        write: told what it says while it runs, if given.
    Returns: its exit code, and what it said.
    Raises: ClusterError when it does not come to an end.
    """
    job = f"vit-search-{uuid.uuid4().hex[:12]}"
    entry = f"exec {shlex.join(words)}" + (f" --output {STORAGE}" if storage else "")
    client = cluster.client
    with _talking(cluster.address), tempfile.TemporaryDirectory() as folder:
        _remove_old(client)
        for name, text in (files or {}).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        runtime = {"working_dir": folder} if files else None
        submit_job(
            client, entrypoint=entry, submission_id=job, metadata={"vit_search": "command", "user": user_name()}, runtime_env=runtime
        )
        try:
            if write is not None:
                _follow(cluster, job, write)
            end = time.monotonic() + ANSWERS_WITHIN_S
            while (info := client.get_job_info(job)).status.value not in OVER:
                if time.monotonic() > end:
                    client.stop_job(job)
                    raise ClusterError(f"{cluster.address}: the head did not answer within {ANSWERS_WITHIN_S:g} s; see its Ray's logs.")
                time.sleep(0.2)
            said = _said(client, job)
        except KeyboardInterrupt:
            client.stop_job(job)
            raise
    if info.driver_exit_code == 127:
        raise ClusterError(
            f"{cluster.address}: the head's Ray does not find vit-search; install it there, and start Ray with its bin folder on PATH."
        )
    if info.driver_exit_code is None:
        raise ClusterError(f"{cluster.address}: a job on the head failed ({' '.join((info.message or '').split())[:300]}).")
    return info.driver_exit_code, said


def _remove_old(client: JobSubmissionClient) -> None:
    """Have Ray forget the short jobs that are over; at once it would not: its monitor writes one down again that is gone too soon."""
    for job in client.list_jobs():
        short = (job.metadata or {}).get("vit_search") == "command"
        if short and job.submission_id and job.end_time and time.time() - job.end_time / 1000 > FORGOTTEN_AFTER_S:
            with contextlib.suppress(RuntimeError):  # somebody else was faster
                client.delete_job(job.submission_id)


def measure(cluster: Cluster, spec: SearchSpec | None = None, *, search: str = "", download: bool = False) -> Facts:
    """Measure the cluster; with a search, also whether its images are there and how it stands.

    Raises: ClusterError.
    """
    words = ["vit-search", "cluster", "preflight"]
    if spec is not None and spec.data_config.path is not None and not download:
        words += ["--data", str(spec.data_config.path)]
    if search:
        words += ["--search", search]
    code, said = on_head(cluster, words, storage=False)
    last = (said.strip().splitlines() or [""])[-1]
    if code != 0 or not last.startswith("{"):
        raise ClusterError(f"{cluster.address}: {last.removeprefix('error: ') or 'the head said nothing'}")
    try:
        return Facts.from_dict(parse(last))
    except (ValueError, TypeError, KeyError):
        raise ClusterError(f"{cluster.address}: its vit_search is of another version than this one; install the same on both.") from None


def _said(client: JobSubmissionClient, job: str) -> str:
    """What a job has said, without Ray's own lines before it."""
    with _talking(client.get_address()):
        return _own(client.get_job_logs(job), job)


def _own(text: str, job: str) -> str:
    found = re.search(rf"^Running entrypoint for job {re.escape(job)}: .*\n", text, re.MULTILINE)
    return text[found.end() :] if found else ""


def _follow(cluster: Cluster, job: str, write: Callable[[str], None]) -> None:
    """Hand on what a job says until it ends."""
    from aiohttp import ClientError  # there, since the Jobs API has answered

    async def read() -> None:
        held, begun = "", False
        async for text in cluster.client.tail_job_logs(job):
            if begun:
                write(text)
                continue
            held += text
            if own := _own(held, job):
                write(own)
            begun = "Running entrypoint for job" in held

    with _talking(cluster.address):
        try:
            asyncio.run(read())
        except ClientError as error:
            raise RuntimeError(str(error)) from None
