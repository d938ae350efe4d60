"""The start of each job: ``--help`` as a multiple of ``python -c "import tyro, rich"``; and a whole
small run of ``patch_corpus.py`` as a multiple of starting Ray, one task, and ending it.

All are processes of their own, measured in turn: for help the processor time in user mode, for the
small run the time that a user waits. Targets: at most 3, for every job; at most 1.5.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import ROOT, verdict  # isort: skip

ROUNDS = 5
LIMIT, RUN_LIMIT = 3.0, 1.5
RAY_ALONE = """
import ray
ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
ray.get(ray.remote(lambda: None).remote())
"""


def user_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def seconds(*command: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, *command], capture_output=True, check=True, cwd=ROOT)
    return time.monotonic() - began


def small_run() -> float:
    """The small run as a multiple of Ray alone."""
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory) / "text.txt"
        text.write_text("hello world, this is a small file\n" * 30)
        flags = ("--input", str(text), "--output", f"{directory}/out", "--threshold", "1.5")
        job = ("jobs/patch_corpus.py", *flags, "--overwrite")
        rounds = [(seconds(*job), seconds("-c", RAY_ALONE)) for _ in range(ROUNDS + 1)][1:]
    quotients = [ours / theirs for ours, theirs in rounds]
    print(
        f"patch_corpus.py on 1 kB / Ray alone: {median(quotients):.2f} ({min(quotients):.2f} to "
        f"{max(quotients):.2f} in {ROUNDS} rounds; {median(ours for ours, _ in rounds):.1f} s and "
        f"{median(theirs for _, theirs in rounds):.1f} s)"
    )
    return median(quotients)


def main() -> int:
    worst = 0.0
    for job in sorted((ROOT / "jobs").glob("[a-z]*.py")):
        rounds = [
            (user_seconds(str(job), "--help"), user_seconds("-c", "import tyro, rich"))
            for _ in range(ROUNDS + 1)
        ][1:]  # the first one may compile modules
        quotients = [ours / theirs for ours, theirs in rounds]
        worst = max(worst, median(quotients))
        print(
            f"{job.name} --help / import tyro, rich: {median(quotients):.2f} "
            f"({min(quotients):.2f} to {max(quotients):.2f} in {ROUNDS} rounds; "
            f"{median(ours for ours, _ in rounds):.2f} s)"
        )
    print(f"the slowest: {worst:.2f}, target {LIMIT}: {verdict(worst <= LIMIT)}")
    run = small_run()
    print(f"the small run: {run:.2f}, target {RUN_LIMIT}: {verdict(run <= RUN_LIMIT)}")
    return 0 if worst <= LIMIT and run <= RUN_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
