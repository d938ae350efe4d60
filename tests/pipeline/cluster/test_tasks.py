"""Pieces of work in processes of their own, on Ray."""

import os
import time
from pathlib import Path

import pytest

from pipeline.cluster.tasks import in_processes
from pipeline.errors import ConfigError, PipelineError


def work(item: tuple[str, str]) -> int:
    kind, folder = item
    started = Path(folder, kind)
    started.touch()
    if kind == "dies":
        os._exit(3)
    if kind == "raises":
        raise ConfigError("a flag is wrong")
    while kind == "waits" and not Path(folder, "last").exists():
        time.sleep(0.05)
    return os.getpid()


def test_calls_run_together_each_in_a_process(local_ray, tmp_path):
    items = [(kind, str(tmp_path)) for kind in ("waits", "dies", "last")]
    # The first call waits for the last one, which begins when the second has ended.
    outcomes = {
        item[0]: outcome
        for item, outcome in in_processes(work, items, at_once=2, num_cpus=0.5, num_gpus=0)
    }
    failed = outcomes.pop("dies")
    assert isinstance(failed, PipelineError) and "the process ended" in str(failed)
    assert len(set(outcomes.values())) == 2 and os.getpid() not in outcomes.values()
    with pytest.raises(ConfigError, match="a flag is wrong"):
        list(in_processes(work, [("raises", str(tmp_path))], at_once=1, num_cpus=0.5, num_gpus=0))
