"""What one replica counts, and the text in which Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from vit_search.serving.loaded_model import LoadedModel

LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts of values up to each bound, as Prometheus has them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        """In Prometheus's text form."""
        lines, running = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {running}')
        return [*lines, f"{name}_sum{{{labels}}} {self.total:.6f}", f"{name}_count{{{labels}}} {running}"]


HELP = {
    "requests_total": ("counter", "Requests answered, by path and status code."),
    "request_seconds": ("histogram", "From a prediction request's headers to its answer."),
    "batch_images": ("histogram", "Images classified at once."),
    "queue_length": ("gauge", "Requests that wait or are classified."),
    "reloads_total": ("counter", "Models taken after the first."),
    "reload_failures_total": ("counter", "Models that were not taken; the one before stays. The follower is the driver's process."),
    "model_info": ("gauge", "The model that answers."),
    "alias_seen_timestamp_seconds": ("gauge", "When the registry last told what the alias names."),
}


class Metrics:
    """What one replica counts. All of it is written in the event loop."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds, self.batches = Histogram(LATENCIES_S), Histogram(BATCHES)
        self.queue_length = self.reloads = self.reload_failures = 0

    def samples(self, model: LoadedModel) -> dict[str, list[str]]:
        """Lines by metric; each carries this replica's name, so that those of several replicas can stand together."""
        labels = f'replica="{self.replica}"'
        requests = sorted(self.requests.items())
        return {
            "requests_total": [
                f'vit_search_requests_total{{{labels},path="{path}",code="{code}"}} {count}' for (path, code), count in requests
            ],
            "request_seconds": self.seconds.lines("vit_search_request_seconds", labels),
            "batch_images": self.batches.lines("vit_search_batch_images", labels),
            "queue_length": [f"vit_search_queue_length{{{labels}}} {self.queue_length}"],
            "reloads_total": [f"vit_search_reloads_total{{{labels}}} {self.reloads}"],
            "reload_failures_total": [f"vit_search_reload_failures_total{{{labels}}} {self.reload_failures}"],
            "model_info": [
                f'vit_search_model_info{{{labels},version="{_label(model.version)}",weights_sha256="{model.weights_sha256}"}} 1'
            ],
        }


def exposition(parts: list[Mapping[str, list[str]]]) -> bytes:
    """The samples of all replicas in Prometheus's text form."""
    lines = []
    for name, (kind, text) in HELP.items():
        lines += [f"# HELP vit_search_{name} {text}", f"# TYPE vit_search_{name} {kind}"]
        lines += [line for part in parts for line in part.get(name, ())]
    return ("\n".join(lines) + "\n").encode()


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
