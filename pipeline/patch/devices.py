"""The devices that workers compute with: how many GPUs each has, their kind, and the software.

Entropies are rounded as the kind of device and its software round them, so that a set is computed
by one kind, and what changes is recorded and said.
"""

import os
import platform

import ray
import torch
from rich.console import Console

from model.device import computing_in, fast_dtype, software
from model.entropy_model import EntropyModel
from pipeline.cli.results import print_line
from pipeline.cluster.connect import in_ray, most_gpus
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.patch_split import Source
from pipeline.patch.record import PatchRun
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patch.stored import StoredEntropies
from pipeline.storage.output import OutputDirectory


def gpus_per_worker(config: ShardsConfig, model: Source) -> float:
    """GPUs that each worker gets: none for a model that uses none, or where there are none."""
    if not isinstance(model, EntropyModel):
        return 0
    assert isinstance(config, PatchCorpusConfig)
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0


def workers_compute_in(config: ShardsConfig, model: Source | None, console: Console) -> str | None:
    """The device on which the model, or an n-gram model that is to be fitted, will compute; None
    if entropies are stored.

    Raises:
        ConfigError: workers are to have more GPUs than this machine, on which a local Ray runs.
    """
    if isinstance(model, StoredEntropies):
        return None
    gpus = 0 if model is None else gpus_per_worker(config, model)
    if gpus and (most := most_gpus()) < gpus:
        if not os.environ.get("RAY_ADDRESS"):  # nothing will add a node: it would wait for ever
            raise ConfigError(
                f"--gpus-per-worker {gpus:g}: Ray finds {most:g} GPUs on this machine; leave the "
                "flag out to use what there is"
            )
        print_line(console, f"waiting for a node with {gpus:g} GPUs: the cluster has none now")
    return in_ray(_gpu, gpus) if gpus else computing_in(torch.device("cpu"), torch.float32)


def record_software(run: PatchRun, gpus: float, output: OutputDirectory, console: Console) -> None:
    """Record the versions with which GPUs compute from now on, and say if others did before."""
    model = run.provenance["entropy_model"]
    before, now = model.get("software", []), in_ray(_software, gpus)
    if now in before:
        return
    if before:
        console.print(
            f"{output.url} was scored with {_listed(before[-1])} so far, now with {_listed(now)}: "
            "entropies may be rounded differently from here on",
            highlight=False,
            markup=False,
        )
    model["software"] = [*before, now]
    run.begin(output)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


@ray.remote(num_cpus=1)
def _gpu() -> str:
    if not torch.cuda.is_available():
        raise PipelineError(
            f"--gpus-per-worker: {platform.node()} has GPUs for Ray, but torch finds none; check "
            "its driver, and that torch is installed for it"
        )
    device = torch.device("cuda")
    return computing_in(device, fast_dtype(device))


@ray.remote(num_cpus=1)
def _software() -> dict[str, str]:
    return software()
