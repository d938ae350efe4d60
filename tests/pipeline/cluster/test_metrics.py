"""What is exported, what the page says of it, and what the dashboard plots."""

import json
import re

import pytest
from support.jobs import ROOT

from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster import metrics
from pipeline.cluster.metrics import METRICS, WorkerMetrics

EXPORTED = {metric.exported: metric for metric in METRICS}
NAME = re.compile(r"ray_\w+")
STATES = {"device_seconds": {"busy", "idle"}, "pieces": {"waiting", "working", "done"}}


def test_the_page_lists_every_metric_with_its_labels():
    page = (ROOT / "docs" / "watching.md").read_text()
    rows = re.findall(r"^\| `(ray_\w+)` \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    assert {name for name, *_ in rows} == EXPORTED.keys()
    for name, labels, meaning in rows:
        metric = EXPORTED[name]
        assert re.findall(r"`(\w+)`", labels) == list(metric.tags)
        assert meaning.replace("`", "").startswith(metric.meaning)


def test_the_dashboard_plots_what_is_exported():
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert len({(place["x"], place["y"]) for place in places}) == len(panels)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    queries = [each["query"] for each in dashboard["templating"]["list"]][1:]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    plotted: set[str] = set()
    for expression in [*expressions, *(query["query"] for query in queries)]:
        names = set(NAME.findall(expression))
        assert names and names <= EXPORTED.keys(), expression
        plotted |= names
        assert set(re.findall(r"\$(\w+)", expression)) <= variables
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing)
        for name, state in re.findall(r'(ray_\w+)\{[^}]*state="(\w+)"', expression):
            assert state in STATES[EXPORTED[name].name]
        # A counter is only looked at as a rate or a sum; a gauge has no rate.
        for name in re.findall(r"rate\((ray_\w+)", expression):
            assert EXPORTED[name].kind is metrics.Counter
    assert plotted == EXPORTED.keys()


def test_busy_and_idle_are_all_of_a_worker_s_time(monkeypatch):
    now, counted = [100.0], {}

    class Fake:
        def __init__(self, name):
            self.name = name

        def inc(self, value, tags):
            assert value > 0
            key = (self.name, tags.get("state"))
            counted[key] = counted.get(key, 0) + value

    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metrics, "_counter", lambda metric: Fake(metric.name))
    worker = WorkerMetrics("patching")
    now[0] += 2
    worker.add(WorkCounts(bytes=10))  # the device has begun, but nobody has waited for it
    assert counted == {("text_bytes", None): 10}
    now[0] += 1
    worker.add(WorkCounts(documents=3, rejects=1, device_seconds=2.5))
    assert counted[("device_seconds", "busy")] == 2.5
    assert counted[("device_seconds", "idle")] == pytest.approx(0.5)
    now[0] += 1
    worker.add(WorkCounts(device_seconds=1.5))  # of the second before, too
    now[0] += 4
    worker.add(WorkCounts())
    assert counted[("device_seconds", "busy")] == 4
    assert sum(v for (n, _), v in counted.items() if n == "device_seconds") == pytest.approx(8)
    assert counted[("documents", None)] == 3 and counted[("rejects", None)] == 1
