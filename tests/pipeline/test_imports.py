"""Drivers and workers start sooner without the libraries that they do not need."""

import subprocess
import sys

from support.jobs import ROOT

PROGRAM = """
import sys

for library in ("torch", "matplotlib", "datasets"):
    sys.modules[library] = None  # its import raises ImportError
import pipeline.prepare.config, pipeline.prepare.job, pipeline.prepare.stages
import pipeline.export.config, pipeline.export.job, pipeline.export.export_shard
del sys.modules["matplotlib"]
import pipeline.report.job
"""


def test_preparing_exporting_and_reporting_need_no_torch_and_only_reports_draw():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
