"""The trainer runs on machines without Ray: only ``train/cluster`` imports it."""

import subprocess
import sys

from support.jobs import ROOT

IMPORT_ALL = """
import pkgutil
import sys

sys.modules["ray"] = None  # `import ray` raises ImportError
import train

names = [module.name for module in pkgutil.walk_packages(train.__path__, "train.")]
others = [name for name in names if not name.startswith("train.cluster.")]
for name in [*others, "train.cluster.checks"]:
    __import__(name)
print(len(others))
"""


def test_only_the_cluster_needs_ray():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15
