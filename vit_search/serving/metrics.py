"""The metrics of one replica, and their text form for Prometheus. Each replica has its own registry of prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from vit_search.serving.loaded_model import LoadedModel

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
RELOAD_FAILURES = (
    "vit_search_reload_failures_total",
    "Versions that were rejected; the one before stays. The follower is the driver's process.",
)


class Metrics:
    """The metrics of one replica. Only the event loop changes them."""

    def __init__(self, replica: str) -> None:
        disable_created_metrics()  # they add a gauge to each counter and histogram, which no query needs
        self._replica, self._registry = replica, CollectorRegistry()
        labels, registry = ["replica"], self._registry
        self._requests = Counter(
            "vit_search_requests_total", "Requests answered, by path and status code.", [*labels, "path", "code"], registry=registry
        )
        self.seconds = Histogram(
            "vit_search_request_seconds",
            "From a prediction request's headers to its answer.",
            labels,
            registry=registry,
            buckets=LATENCIES_S,
        ).labels(replica)
        self.batches = Histogram(
            "vit_search_batch_images", "Images classified at once.", labels, registry=registry, buckets=BATCHES
        ).labels(replica)
        self.queue_length = 0
        queue_length = Gauge("vit_search_queue_length", "Requests that wait or are classified.", labels, registry=registry)
        queue_length.labels(replica).set_function(lambda: self.queue_length)
        self.reloads = Counter("vit_search_reloads_total", "Models taken after the first.", labels, registry=registry).labels(replica)
        self.reload_failures = Counter(*RELOAD_FAILURES, labels, registry=registry).labels(replica)
        self._model = Info("vit_search_model", "The model that answers.", labels, registry=registry).labels(replica)

    def count_request(self, path: str, code: int) -> None:
        """Count one answer."""
        self._requests.labels(self._replica, path, code).inc()

    def text(self, model: LoadedModel) -> str:
        """The metrics in Prometheus's text form. Each sample has this replica's name as a label, so that several replicas can be joined."""
        self._model.info({"version": model.version, "weights_sha256": model.weights_sha256})
        return generate_latest(self._registry).decode()


def follower_text(failures: int, alias_seen: float) -> str:
    """The metrics of the process that follows the alias, in Prometheus's text form.

    Args:
        failures: number of rejected versions.
        alias_seen: Unix time.
    """
    registry = CollectorRegistry()
    Counter(*RELOAD_FAILURES, ["replica"], registry=registry).labels("follower").inc(failures)
    seen = Gauge(
        "vit_search_alias_seen_timestamp_seconds", "When the registry last told what the alias names.", ["replica"], registry=registry
    )
    seen.labels("follower").set(alias_seen)
    return generate_latest(registry).decode()


class _Joined(Collector):
    """Joins several texts: each metric occurs once, with the samples of all texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        metrics: dict[str, Metric] = {}
        for metric in chain.from_iterable(map(text_string_to_metric_families, self._texts)):
            if metric.name in metrics:
                metrics[metric.name].samples += metric.samples
            else:
                metrics[metric.name] = metric
        return metrics.values()


def joined(texts: Iterable[str]) -> bytes:
    """The texts of all replicas and of the follower as one text. Prometheus needs each metric to occur once."""
    return generate_latest(_Joined(texts))
