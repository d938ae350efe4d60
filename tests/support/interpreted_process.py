"""Checks in a process of their own: Triton is imported as a compiler or as an interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable


def run_interpreted(check: Callable[[], None], timeout: int = 300) -> None:
    """Call a function of a test's module in a new process; its failure is the test's.

    Args:
        check: takes nothing, and may import :mod:`support.interpreted`.
        timeout: seconds.
    """
    name = check.__name__
    done = subprocess.run(
        [sys.executable, "-c", f"from {check.__module__} import {name}; {name}()"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
