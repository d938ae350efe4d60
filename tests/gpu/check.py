"""All checks that need a GPU, each in a process of its own with a time limit, most worthy first.

    make gpu-check                                  # on the machine with the GPU
    python tests/gpu/check.py --only training generation
    python tests/gpu/check.py --tiny                # on any machine: do the checks work?

Needs no Ray. One step that fails or takes too long stops no other. Records (JSON lines), profiles
and logs go to the output directory; a table ends the run. The exit status is 1 if a step failed or
something aimed at was missed.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

LIMIT = 540
"""Seconds for all steps: ten minutes with a card are enough."""


@dataclass(frozen=True)
class Step:
    """A step: a function of one of the modules beside this one."""

    name: str
    seconds: int
    """Its limit on a GPU."""
    timed: bool = True
    """It measures speed, and runs alone; neighbours that do not run side by side."""

    @property
    def function(self) -> Any:
        module, function = self.name.split(".")
        return getattr(importlib.import_module(f"gpu.{module}"), function)


STEPS = (
    Step("ceiling.ceiling", 60),
    Step("scoring.agreement", 180, timed=False),
    Step("blt.gradients", 180, timed=False),
    Step("generation.same_text", 180, timed=False),
    Step("blt.evaluation", 180, timed=False),
    Step("scoring.speed", 110),
    Step("training.blt_1b", 170),
    Step("generation.generation", 150),
    Step("evaluation.speed", 130),
    Step("scoring.second_process", 60, timed=False),
    Step("training.entropy_100m", 100),
    Step("training.blt_1b_float8", 110),
    Step("training.blt_1b_eager", 60),
)
COMPARED = {"ceiling.ceiling": ("ceiling.json",), "scoring.agreement": ("stored_hash.json",)}
"""Files of the output directory that a step writes for later ones."""
TINY = {"training.blt_1b_float8": "its tiny layers have no widths for float8"}
"""Steps that have no tiny form, and why: the tests of float8 are in tests/train."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), metavar="DIR")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="STEP", help="steps, by (the start of) their names"
    )
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds for all steps")
    parser.add_argument("--tiny", action="store_true", help="everything small, on the CPU")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)  # these, in this process
    options = parser.parse_args(arguments)
    if not options.tiny and not _sees_gpu():
        print("error: no GPU is visible to torch; --tiny runs the checks on the CPU")
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    if options.step:
        return run_here(options.step, options.output, options.tiny)
    return Checks(options.output, options.limit, options.tiny).run(options.only)


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_here(names: Sequence[str], output: Path, tiny: bool) -> int:
    """Run steps in this process."""
    import torch

    from gpu.measure import Run

    if tiny:
        torch.set_num_threads(1)
    work = output / "work"
    work.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if step.name in names:
            step.function(Run(output, work, tiny))
    return 0


@dataclass(frozen=True)
class Checks:
    """One run of all steps."""

    output: Path
    limit: float
    tiny: bool

    def run(self, only: Sequence[str]) -> int:
        """Run the steps, and print the table; 0 if all went well."""
        chosen = [
            step
            for step in STEPS
            if (not only or step.name.startswith(tuple(only)) or step is STEPS[0])
            and not (self.tiny and step.name in TINY)
        ]
        records = self.output / "records.jsonl"
        records.write_text("")
        # What other steps compare with is this run's, or there is none.
        for step in chosen:
            for name in COMPARED.get(step.name, ()):
                (self.output / name).unlink(missing_ok=True)
        ends = time.monotonic() + self.limit
        failed = 0
        while chosen:
            together = [chosen.pop(0)]
            while chosen and not together[0].timed and not chosen[0].timed:
                together.append(chosen.pop(0))
            failed += self._run_together(together, ends)
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        print("\n" + table(lines))
        missed = sum(line.get("met") is False for line in lines)
        print(f"\n{failed} steps failed, {missed} aims were missed; profiles: {self.output}")
        return 1 if failed or (missed and not self.tiny) else 0

    def _run_together(self, steps: list[Step], ends: float) -> int:
        """Run steps side by side; the number of those that failed."""
        with tempfile.TemporaryDirectory() as caches:
            # Nothing compiled before: a step times its own compilation.
            environment = os.environ | {
                "TORCHINDUCTOR_CACHE_DIR": caches,
                "HF_HUB_OFFLINE": "1",
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            }
            began = time.monotonic()
            running = [(step, self._start(step, environment)) for step in steps]
            return sum(not self._finish(step, process, began, ends) for step, process in running)

    def _start(self, step: Step, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--step", step.name, "--output", str(self.output)]
        with (self.output / f"{step.name}.log").open("wb") as log:
            return subprocess.Popen(
                [*command, *(["--tiny"] if self.tiny else [])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _finish(
        self, step: Step, process: subprocess.Popen[bytes], began: float, ends: float
    ) -> bool:
        limit = min(began + step.seconds * (8 if self.tiny else 1), ends)
        try:
            status = process.wait(max(limit - time.monotonic(), 0.01))
            outcome = "ok" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = "stopped at its time limit"
        print(f"{step.name:28} {time.monotonic() - began:6.1f} s  {outcome}", flush=True)
        if outcome != "ok":
            log = (self.output / f"{step.name}.log").read_text(errors="replace")
            print("  " + "\n  ".join(log.splitlines()[-8:]), flush=True)
        return outcome == "ok"


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table, in the form of RESULTS.md."""
    rows = ["| what | measured | aim | |", "|---|---|---|---|"]
    for line in lines:
        verdict = {True: "met", False: "**missed**", None: ""}[line.get("met")]
        left_out = ("check", "aim", "met", "top")
        values = ", ".join(f"{k} {_said(v)}" for k, v in line.items() if k not in left_out)
        rows.append(f"| {line['check']} | {values} | {line.get('aim', '–')} | {verdict} |")
    return "\n".join(rows)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_said(v)}" for k, v in value.items()) + ")"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
