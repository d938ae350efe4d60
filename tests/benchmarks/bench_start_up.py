"""The start of each job: ``--help`` as a multiple of ``python -c "import tyro, rich"``.

Both are processes of their own; what is compared is their processor time in user mode, measured in
turn. Target: at most 3, for every job.
"""

import resource
import subprocess
import sys
from statistics import median

from common import ROOT, verdict  # isort: skip

ROUNDS = 5
LIMIT = 3.0


def user_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


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
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
