"""Where models compute: GPUs for each worker, models on them."""

from dataclasses import replace
from typing import cast

import ray
import torch

from model.checkpoints.entropy_model import to_device
from model.entropy_model import EntropyModel
from model.ngram import NGramEntropyModel
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.scoring import Scorer

Model = EntropyModel | NGramEntropyModel


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
