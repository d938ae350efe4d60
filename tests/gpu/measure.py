"""What the steps share: where they run, timing, profiles, records, and the card's ceiling.

A record is a line of JSON. Rates are given as a share of the card's ceiling, the rate of a large
product that the same run measured (in bfloat16, if the card has units for it), so that cards and
days can be compared.
"""

import json
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.device import fast_dtype

CEILING_FILE, RECORDS_FILE, PROFILES_FILE = "ceiling.json", "records.jsonl", "profiles.txt"


@dataclass(frozen=True)
class Run:
    """One run of the checks."""

    output: Path
    """Records, profiles and the ceiling; what later steps compare with lies there, too."""
    work: Path
    """Text, shards and checkpoints that a step may keep."""
    tiny: bool
    """Everything small, on the CPU: it says whether the checks work, and nothing of speed."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """What models compute in where speed counts."""
        return fast_dtype(self.device)

    def record(
        self,
        check: str,
        *,
        aim: str = "",
        met: bool | None = None,
        fast: bool | None = None,
        **values: Any,
    ) -> None:
        """Write down what a check found.

        Args:
            aim: the aim in words.
            met: whether it is met; None where there is none.
            fast: the same for an aim of speed, which the tiny form cannot judge.
        """
        if fast is not None and not self.tiny:
            met = fast
        line: dict[str, Any] = {"check": check}
        if aim:
            line |= {"aim": aim}
        if met is not None:
            line |= {"met": met}
        line |= {name: _short(value) for name, value in values.items()}
        print(json.dumps(line), flush=True)
        with (self.output / RECORDS_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def note(self, text: str) -> None:
        """Keep what is too long for a record."""
        with (self.output / PROFILES_FILE).open("a") as file:
            file.write(text + "\n")

    def share(self, flops_per_second: float) -> float:
        """A rate as a share of the card's ceiling; not a number where that was not measured."""
        try:
            ceiling: float = json.loads((self.output / CEILING_FILE).read_text())["product"]
        except FileNotFoundError:
            return math.nan
        return flops_per_second / ceiling

    def use_all_cores(self) -> None:
        """Let this process compute what is compared with on every core."""
        if not self.tiny:
            torch.set_num_threads(os.cpu_count() or 1)

    def wait(self) -> None:
        """Wait until the device has done what was asked of it."""
        if not self.tiny:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], repeats: int = 5, warmup: int = 2) -> float:
        """The median time of a call, the device waited for."""
        for _ in range(warmup):
            function()
        times = []
        for _ in range(repeats):
            self.wait()
            began = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def peak_gib(self) -> float:
        """The most device memory that tensors took, GiB; 0 on a CPU."""
        return 0.0 if self.tiny else torch.cuda.max_memory_allocated() / 2**30

    def profile(self, name: str, function: Callable[[], object], rows: int = 24) -> dict[str, Any]:
        """Run once under torch's profiler; the kernels that take most go to the profiles, and what
        ran when to ``trace-NAME.json.gz``, for viewers of such traces.

        Returns:
            seconds, kernels, the share of the time in which no kernel ran, and the four kernels
            that took most, each with its share.
        """
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([] if self.tiny else [ProfilerActivity.CUDA])]
        self.wait()
        with profile(activities=activities) as recorded:
            began = time.perf_counter()
            function()
            self.wait()
            wall = time.perf_counter() - began
        recorded.export_chrome_trace(str(self.output / f"trace-{_file_name(name)}.json.gz"))
        spans, by_kernel = [], defaultdict[str, list[float]](list)
        for event in recorded.events() or []:
            of_device = event.device_type == torch.autograd.DeviceType.CUDA
            # Ranges that a program names are no kernels.
            if of_device and not getattr(event, "is_user_annotation", False):
                spans.append((event.time_range.start, event.time_range.end))
                by_kernel[event.name].append(event.time_range.end - event.time_range.start)
        top = sorted(by_kernel.items(), key=lambda item: -sum(item[1]))
        busy = _covered(spans) / 1e6
        total = sum(sum(times) for times in by_kernel.values()) or 1.0
        self.note(f"== {name}: {wall:.4f} s, busy {busy:.4f} s, {len(spans)} kernels")
        for kernel, times in top[:rows]:
            share, ms = sum(times) / total, sum(times) / 1e3
            self.note(f"  {share:6.1%} {ms:9.2f} ms {len(times):6} x  {kernel[:160]}")
        return {
            "seconds": wall,
            "kernels": len(spans),
            "idle": 1 - busy / wall if spans else 0.0,
            "top": [f"{sum(times) / total:.0%} {kernel[:40]}" for kernel, times in top[:4]],
        }


def _file_name(name: str) -> str:
    """The words of a name, joined.

    >>> _file_name("generation, 1 rows")
    'generation-1-rows'
    """
    return "-".join(re.findall(r"\w+", name))


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of spans of time."""
    covered, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(end - max(start, last), 0.0)
        last = max(last, end)
    return covered


def compiled() -> dict[str, int]:
    """What torch.compile made in this process so far."""
    from torch._dynamo.utils import counters

    return {
        "graphs": counters["stats"].get("unique_graphs", 0),
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def spread_logits(model: torch.nn.Module, factor: float = 3.0) -> torch.nn.Module:
    """A model of random weights that says something definite: entropies then range over nats."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("output.weight"):
                weight.mul_(factor)
    return model
