"""Saved views for a search's experiment in MLflow: columns for the metric and the searched parameters.

MLflow 3.17 stores views as tags of the experiment. Its page lists them in the menu `Views`, and opens the one in its address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from vit_search.config.strict_json import parse

SEARCHES, TRIALS = "searches", "trials"
"""Names of the two views, in tags and addresses."""


def tag(name: str) -> str:
    """Name of the experiment's tag that holds a view."""
    return f"mlflow.sharedViewState.{name}"


def tags(*, metric: str, mode: str, searched: Iterable[str], created_at: int) -> dict[str, str]:
    """The experiment's tags: its kind, its metric and its views.

    Args:
        searched: names of the searched parameters.
        created_at: in milliseconds. MLflow sorts views by it.
    """
    value = column("metrics", metric)
    columns = [column("metrics", f"best/{metric}"), value, column("metrics", "epochs"), column("tags", "outcome")]
    columns += [column("params", name) for name in searched]
    by_time = {"orderByKey": "attributes.start_time", "orderByAsc": False, "searchFilter": ""}
    by_value = {"orderByKey": value, "orderByAsc": mode == "min", "searchFilter": "tags.trial LIKE '%'"}
    return {
        "mlflow.experimentKind": "custom_model_development",  # MLflow's pages for training, not those for chat
        "mlflow.experiment.primaryMetric.name": metric,
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(mode == "max").lower(),
        tag(SEARCHES): _saved("searches, newest first", by_time | {"selectedColumns": columns}, created_at + 1),
        tag(TRIALS): _saved(f"trials, best {metric} first", by_value | {"selectedColumns": columns}, created_at),
    }


def column(kind: str, name: str) -> str:
    """A column's name on MLflow's page. `kind` is metrics, params, tags or attributes."""
    return f"{kind}.`{name}`"


def first_state(experiment_tags: Mapping[str, str]) -> dict[str, Any] | None:
    """Order and columns of the first view; None if the tags have no view in this form."""
    try:
        state = parse(parse(experiment_tags[tag(SEARCHES)])["state"])
        sound = all(isinstance(name, str) for name in state["selectedColumns"])
    except (KeyError, TypeError, ValueError):
        return None
    return state if sound else None


def _saved(title: str, state: dict[str, Any], created_at: int) -> str:
    return json.dumps({"name": title, "createdAt": created_at, "state": json.dumps(state)})
