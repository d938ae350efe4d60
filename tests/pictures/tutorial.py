"""Run the commands of docs/tutorial.md: ``make tutorial``.

With ``--record``, the page gets their output, and its pictures are made anew.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]

from support.pages import blocks_of, with_outputs

PAGE = ROOT / "docs" / "tutorial.md"
WINDOW = {"width": 1000, "height": 910}
SHOWN_STEPS = 10
"""Lines of the training's log that the page shows."""
PROGRESS = re.compile(r"^[a-z ]+: [\d.]+ of about ", re.MULTILINE)
"""A line of progress, of which a busy machine prints more."""
STOPPED = 128 + signal.SIGINT
"""The exit status after Ctrl-C."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Run the page; returns the exit status of the block that failed or was stopped, or 0."""
    outputs = []
    page = PAGE.read_text()
    for block in blocks_of(page):
        print(f"$ {block.script}", end="", flush=True)
        try:
            status, output = run(block.script)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here")
            return STOPPED
        if status:
            return status
        outputs.append(output)
        print(flush=True)
    if "--record" in sys.argv:
        PAGE.write_text(with_outputs(page, list(map(shown, outputs))))
        draw_loss()
        show_report()
    return 0


def run(script: str) -> tuple[int, str]:
    """Run a block in the repository, and print what it prints; returns its status and output."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    process = subprocess.Popen(
        ["bash", "-e", "-c", script],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)


def shown(output: str) -> str:
    """Output as a page shows it: without colours, this machine's paths, progress and most of a
    log."""
    lines = COLOURS.sub("", output).replace(f"{ROOT}/", "").splitlines()
    logged = [line.partition(" - INFO - ")[2] for line in lines if line.startswith("[titan]")]
    rest = [
        line.rstrip()
        for line in lines
        if not line.startswith("[titan]") and not PROGRESS.match(line)
    ]
    if not logged:
        return "\n".join(rest)
    steps, step = [], ""
    for line in logged:
        if found := re.match(r"step:\s*(\d+)", line):
            step = found[1]
        elif step and "bits per byte" in line:
            steps.append(f"step {step}: {line}")
    every = max(1, (len(steps) - 1) // (SHOWN_STEPS - 1))
    return "\n".join([*steps[:-1][::every][: SHOWN_STEPS - 1], *steps[-1:]])


def draw_loss() -> None:
    """Draw bits per byte by step, of all runs that the training took."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from pipeline.drawing.plots import Plot, plot_png

    found: dict[int, float] = {}
    for path in sorted((ROOT / "tutorial" / "run" / "tb").rglob("events*")):
        events = EventAccumulator(str(path))
        events.Reload()
        # A run that finds the training done logs nothing.
        for tag in events.Tags()["scalars"]:
            if tag.endswith("bits_per_byte"):
                found |= {event.step: event.value for event in events.Scalars(tag)}

    def draw(points: dict[int, float], axes: Any) -> None:
        axes.plot(*zip(*sorted(points.items()), strict=True))
        axes.set(xlabel="step", ylabel="bits per byte", ylim=(0, 9))

    picture = plot_png(Plot("Training", draw), found, legend=False)
    (ROOT / "docs" / "tutorial-loss.png").write_bytes(picture)


def show_report() -> None:
    """Photograph the report's plots."""
    from support.browser import Watched, open_browser

    with open_browser() as browser:
        report = Watched(browser, viewport=WINDOW)
        report.page.goto((ROOT / "tutorial" / "report" / "index.html").as_uri())
        report.picture(ROOT / "docs" / "tutorial-report.png", ".beside", ".plots")
        assert report.problems == []


if __name__ == "__main__":
    sys.exit(main())
