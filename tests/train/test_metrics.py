"""Metrics of unusual batches and steps."""

import os
import subprocess
import sys
import textwrap

from support.jobs import ROOT

EMPTY = """
    from train.shim import prepare

    prepare()
    from types import SimpleNamespace

    import torch
    from pipeline.bpe.token_bytes import BYTES
    from train.metrics import ByteMetrics, latest
    from model import BLT_SIZES, EntropyModelConfig

    class Alone:
        non_data_parallel_size, pp_enabled = 1, False

        def get_optional_mesh(self, name):
            return None

    for shape in (BLT_SIZES["debug"], EntropyModelConfig()):
        metrics = ByteMetrics(
            ByteMetrics.Config(log_freq=5),
            parallel_dims=Alone(),
            config_dict={"training": {"seq_len": 8, "steps": 7}},
        )
        metrics.model_parts = [SimpleNamespace(config=shape)]
        inputs = {"input": torch.full((2, 8), -1)}
        inputs["input"][:, 0] = 2
        if hasattr(shape, "dim_global"):
            inputs["patch_lengths"] = torch.tensor([[1, 0], [1, 0]])
        logged = []
        metrics.logger.log = lambda values, step: logged.append(values)
        metrics.time_last_log -= 1000  # in which a checkpoint was read
        for step in (6, 7):  # of a run that was resumed
            metrics.begin_step()
            metrics.time_last_log -= 30
            metrics.count(inputs, torch.full((2, 8), -100), BYTES)
            metrics.data_loading_times.append(0.0)
        metrics.log(7, 0.0, 0.0, 0.0)
        assert 30 < logged[0]["time_metrics/end_to_end(s)"] < 40, logged
        assert [step for step in range(1, 8) if metrics.should_log(step)] == [1, 5, 7]
        print(latest)
"""


def test_a_rank_without_text_logs_like_the_others():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EMPTY)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'bits_per_byte': 0.0") == 2
