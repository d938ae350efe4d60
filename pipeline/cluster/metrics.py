"""What Prometheus sees of a run: metrics that Ray's agents export on every node.

Ray prefixes their names with ``ray_``, adds ``_total`` to counters, and labels each series with the
worker's id and the node's address. docs/watching.md lists them, and docs/grafana.json plots them.
"""

import time
from functools import lru_cache
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge

from pipeline.cli.progress_json import StageState
from pipeline.cli.work_counts import WorkCounts

PREFIX = "blt_titan_"


class Metric(NamedTuple):
    """A metric that is exported."""

    name: str
    kind: type[Counter] | type[Gauge]
    meaning: str
    tags: tuple[str, ...] = ("stage",)

    @property
    def exported(self) -> str:
        """Its name as Prometheus sees it."""
        return f"ray_{PREFIX}{self.name}{'_total' if self.kind is Counter else ''}"


TEXT_BYTES = Metric("text_bytes", Counter, "bytes of text that a worker did")
DOCUMENTS = Metric("documents", Counter, "documents that a worker wrote")
REJECTS = Metric("rejects", Counter, "documents that a worker rejected")
DEVICE_SECONDS = Metric(
    "device_seconds",
    Counter,
    "seconds that a worker's device computed entropies (busy) or waited for text (idle)",
    ("stage", "state"),
)
PIECES = Metric(
    "pieces",
    Gauge,
    "pieces of work that no worker has begun (waiting: the queue), that are worked on (working) "
    "or finished (done)",
    ("stage", "state"),
)
BYTES_LEFT = Metric("bytes_left", Gauge, "approximate bytes of text that are left")
METRICS = (TEXT_BYTES, DOCUMENTS, REJECTS, DEVICE_SECONDS, PIECES, BYTES_LEFT)


class WorkerMetrics:
    """The counters of one worker process in one stage."""

    def __init__(self, stage: str):
        self._stage = {"stage": stage}
        self._began = time.monotonic()
        self._busy = self._idle = 0.0

    def add(self, more: WorkCounts) -> None:
        """Count what the worker did since the last call."""
        for metric, count in (
            (TEXT_BYTES, more.bytes),
            (DOCUMENTS, more.documents),
            (REJECTS, more.rejects),
        ):
            if count > 0:
                _counter(metric).inc(count, self._stage)
        self._busy += more.device_seconds
        if more.device_seconds > 0:
            _counter(DEVICE_SECONDS).inc(more.device_seconds, {**self._stage, "state": "busy"})
        # A GPU's time is known when its work has ended: idle is what is left of the time by then.
        idle = time.monotonic() - self._began - self._busy - self._idle
        if self._busy and idle > 0:
            self._idle += idle
            _counter(DEVICE_SECONDS).inc(idle, {**self._stage, "state": "idle"})


def show_state(state: StageState) -> None:
    """Set the gauges of a stage, in its driver."""
    stage = {"stage": state.stage}
    _gauge(BYTES_LEFT).set(state.bytes_left, stage)
    for name in ("waiting", "working", "done"):
        _gauge(PIECES).set(getattr(state, f"pieces_{name}"), {**stage, "state": name})


@lru_cache
def _counter(metric: Metric) -> Counter:
    return Counter(PREFIX + metric.name, metric.meaning, metric.tags)


@lru_cache
def _gauge(metric: Metric) -> Gauge:
    return Gauge(PREFIX + metric.name, metric.meaning, metric.tags)
