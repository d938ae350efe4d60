"""Drivers and workers start sooner without the libraries that they do not need."""

import subprocess
import sys

from support.jobs import ROOT

PROGRAM = """
import sys

for library in ("torch", "matplotlib", "datasets"):
    sys.modules[library] = None  # its import raises ImportError
import pipeline.prepare.config, pipeline.prepare.job, pipeline.prepare.stages
del sys.modules["torch"]
import pipeline.export.config, pipeline.export.job, pipeline.export.export_shard
"""


def test_preparing_needs_no_torch_and_exporting_draws_and_describes_only_cards():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
