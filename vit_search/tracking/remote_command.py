"""Sends a command to a running search through MLflow, from a machine that does not have the search's folder."""

from __future__ import annotations

import re
import time

from vit_search.errors import SearchError
from vit_search.tracking.mlflow_client import client_for
from vit_search.tracking.uris import public


def send_command(tracking_uri: str, search: str, text: str, wait_s: float) -> str:
    """Send a command to a running search through MLflow. Returns the answer.

    Raises: SearchError if no running search has this name, or it does not answer in time. The command is then withdrawn.
    """
    client = client_for(tracking_uri)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", search):
        raise SearchError(f"{search!r} is no search's name; give it as MLflow's run is named, e.g. digits-1.")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(
        experiments, f"attributes.run_name = '{search}' and tags.search = '{search}' and attributes.status = 'RUNNING'"
    )
    if not runs:
        raise SearchError(f"{search}: no running search of this name in {public(tracking_uri)}; see its page for its state.")
    run = runs[0].info.run_id
    if "command_answer" in runs[0].data.tags:
        client.delete_tag(run, "command_answer")
    client.set_tag(run, "command", text)
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        tags = client.get_run(run).data.tags
        if "command_answer" in tags:
            return tags["command_answer"].removeprefix(f"{text}: ")
        time.sleep(0.5)
    if "command" in client.get_run(run).data.tags:
        client.delete_tag(run, "command")
    raise SearchError(f"{search}: the search did not answer within {wait_s:g} s; see whether its driver still runs, then ask again.")
