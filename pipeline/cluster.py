"""Joining Ray, and what a worker is given there."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import ray
import torch

import model as model_package
import pipeline as pipeline_package
from model.checkpoint import to_device
from model.entropy_model import EntropyModel
from model.ngram import NGramEntropyModel
from pipeline.config import PatchCorpusConfig
from pipeline.errors import ConfigError
from pipeline.scoring import Scorer

Model = EntropyModel | NGramEntropyModel


def connect(num_cpus: int | None, *more: ModuleType, worker_output: bool = True) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (a submitted job has one), or start a local Ray.

    Args:
        num_cpus: that a local Ray should have room for.
        more: packages that workers need, beside ``model`` and ``pipeline``.
        worker_output: show what workers print.
    """
    # What goes wrong in Ray comes as an exception; its warnings are about Ray's own affairs.
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    packages = [
        Path(cast(str, package.__file__)).parent
        for package in (model_package, pipeline_package, *more)
    ]
    if os.environ.get("RAY_ADDRESS"):
        # Inside a submitted job the working directory holds the code already.
        code = {} if _submitted() else {"py_modules": [str(package) for package in packages]}
        ray.init(logging_level=logging.ERROR, runtime_env=code, log_to_driver=worker_output)
    else:
        # Workers find the same packages, installed or not, wherever the job was called from.
        path = (str(packages[0].parent), os.environ.get("PYTHONPATH"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        ray.init(
            address="local",
            # More workers than cores may be asked for; Ray counts cores, it does not bind them.
            num_cpus=max(os.cpu_count() or 1, num_cpus or 1),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=worker_output,
        )


def _submitted() -> bool:
    """Whether this is the driver of a job that was submitted with ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_lost_output(output: str, flag: str = "--output") -> None:
    """
    Raises:
        ConfigError: the output would be in the copy of the working directory that Ray makes for a
            submitted job, and removes.
    """
    if _submitted() and "://" not in output and not Path(output).is_absolute():
        raise ConfigError(
            f"{flag} {output}: is relative to a copy of the working directory that Ray removes; "
            "give a submitted job an absolute path or a URL"
        )


def gpus_per_worker(config: PatchCorpusConfig, model: Model) -> float:
    """GPUs that each worker gets: none for an n-gram model or where there are none."""
    if isinstance(model, NGramEntropyModel):
        return 0
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0


def on_device(scorer: Scorer, gpus: float) -> Scorer:
    """The scorer with its model where a worker computes.

    On a CPU in one thread: each worker has one core, and results must not depend on how many there
    are.
    """
    torch.set_num_threads(1)
    device = "cuda" if gpus else "cpu"
    return replace(scorer, model=to_device(cast(Model, scorer.model), device))


def in_ray(task: Any, gpus: float, *arguments: Any) -> Any:
    """The result of a task that runs where a worker could; raises what the task raised."""
    try:
        return ray.get(task.options(num_gpus=gpus).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
