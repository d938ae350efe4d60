"""Training on a Ray cluster: Ray Train places the workers, and starts them again from the last
checkpoint when a node dies; torchtitan does the rest, as it does under torchrun.
"""

import logging
import os
import sys
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train_on_ray(
    arguments: list[str], *, num_workers: int, gpus: bool, max_failures: int, storage: str
) -> None:
    """Train until the end; Ray is running.

    Args:
        arguments: torchtitan's, as :mod:`train` takes them.
        num_workers: processes, one GPU or CPU each.
        max_failures: how often workers are started again.
        storage: a directory or URL that all nodes reach, for what Ray Train remembers of the run.

    Raises:
        ray.train.TrainingFailedError: workers failed more often than that.
    """
    TorchTrainer(
        _worker,
        train_loop_config={"arguments": arguments},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=gpus),
        run_config=RunConfig(
            storage_path=storage, failure_config=FailureConfig(max_failures=max_failures)
        ),
        # The process group that Ray Train makes is the one that torchtitan finds.
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
    ).fit()


def gpus_of_cluster() -> int:
    """All that there are."""
    return int(ray.cluster_resources().get("GPU", 0))


def _worker(config: dict[str, Any]) -> None:
    """What each worker does: torchtitan's command."""
    from train.__main__ import main

    if os.environ["RANK"] != "0":
        logging.disable(logging.INFO)  # All ranks would say the same.
    sys.argv = ["train", *config["arguments"]]
    main()
