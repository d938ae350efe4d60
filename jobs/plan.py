"""Plan a training: memory, FLOPs, time and checkpoints of a configuration on 1 to 512 GPUs; or the
patching of a corpus: hours, cost, storage and memory on so many GPUs or cores."""

import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from model.checkpoints.names import PUBLISHED_ENTROPY_MODEL
from pipeline.cli.command import run_job, run_job_that_passes_on
from pipeline.cli.flags import check_at_least, flag_name
from pipeline.cli.optional import OrNone
from pipeline.cli.results import print_whole
from pipeline.cli.sizes import Size
from pipeline.errors import ConfigError
from train.flags.assumptions import Assumptions, assumption_texts
from train.flags.configurations import check_configuration

MEASURED_MFU = 0.34
"""Share of a GPU's dense bfloat16 peak that one worker reaches which scores documents of 2 KB with
the published entropy model and writes shards: 1.60 MB/s of an H200, of 989 TFLOP/s
(tests/benchmarks/RESULTS.md)."""
CONFIGURATIONS = ("blt_400m", "blt_1b", "blt_2b", "blt_4b", "blt_8b")


@dataclass(frozen=True)
class PlanTrainingConfig(Assumptions):
    """Plan a training: memory per GPU, FLOPs, days, the checkpoint interval and what a node's loss
    costs, for each configuration and number of GPUs. Nothing is built, and no GPU is needed.

    All flags but those below are those of python -m train, such as --shape.dim-global 3072 and
    --training.local-batch-size 1.

    With --corpus-bytes it plans the patching of a corpus instead, and has other flags:
    --corpus-bytes 4TB --help tells them.

    docs/many-nodes.md and docs/cluster.md explain the columns. Exit status: 0, or 2 if a flag is
    wrong.
    """

    config: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = CONFIGURATIONS
    """Configurations of the trainer."""
    gpus: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N [N ...]")] = ("1", "8", "64", "512")
    """Numbers of GPUs."""
    json: bool = False
    """Print the plans as JSON, in bytes and seconds."""


@dataclass(frozen=True)
class PlanPatchingConfig:
    """Plan the patching of a corpus: hours, cost, storage and memory. Nothing is read or run.

    Exit status: 0, or 2 if a flag is wrong.
    """

    corpus_bytes: Size
    """Text of the corpus, uncompressed: 4TB, 200GiB, ..."""
    entropy_model: str = PUBLISHED_ENTROPY_MODEL
    """Name or directory of the entropy model, as patch_corpus.py takes it; "none" for rules that
    look at no entropies."""
    gpus: tuple[int, ...] = ()
    """Numbers of GPUs to plan for; 8 and 64 by default, for models that GPUs can run."""
    cores: tuple[int, ...] = ()
    """Numbers of cores to plan for instead; 16 and 256 by default, for models of CPUs."""
    gpu_tflops: float = 989.0
    """Peak of a GPU's dense bfloat16 products, in TFLOP/s; that of an H100."""
    scoring_mfu: float = MEASURED_MFU
    """Share of the peak that a worker reaches."""
    gpu_hour_price: OrNone[float] = None
    """Price of a GPU, or of a core, for an hour."""
    json: bool = False
    """Print the plans as JSON, in bytes and seconds."""

    def check(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is wrong; names the flag.
        """
        check_at_least(self, corpus_bytes=1, gpu_hour_price=0)
        if self.gpus and self.cores:
            raise ConfigError("--cores: give GPUs or cores, not both")
        for name in ("gpu_tflops", "scoring_mfu"):
            if self.cores and getattr(self, name) != getattr(PlanPatchingConfig, name):
                raise ConfigError(f"{flag_name(name)}: says what a GPU does; --cores has none")
        for name in ("gpus", "cores"):
            if any(number < 1 for number in getattr(self, name)):
                raise ConfigError(f"--{name}: must be at least 1")
        for name in ("gpu_tflops", "scoring_mfu"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{flag_name(name)}: has to be positive")
        if self.scoring_mfu > 1:
            raise ConfigError("--scoring-mfu: is a share of the peak, at most 1")


def main() -> int:
    """Run the job; returns the exit status."""
    if any(word.split("=")[0] == "--corpus-bytes" for word in sys.argv[1:]):
        return run_job(PlanPatchingConfig, run_patching, interrupted="interrupted")
    return run_job_that_passes_on(PlanTrainingConfig, run, interrupted="interrupted")


def run_patching(config: PlanPatchingConfig, console: Console) -> int:
    """Print the table of a corpus' patching; returns the exit status."""
    config.check()
    from pipeline.patch.needs import device_rate, plan_patching, runs_on_gpus, storage_of

    on_gpus = not config.cores and (bool(config.gpus) or runs_on_gpus(config.entropy_model))
    numbers = config.gpus or config.cores or ((8, 64) if on_gpus else (16, 256))
    rate = device_rate(
        config.entropy_model, gpu_tflops=config.gpu_tflops, mfu=config.scoring_mfu, gpu=on_gpus
    )
    price = config.gpu_hour_price
    plans = [plan_patching(config.corpus_bytes, rate, number, price) for number in numbers]
    storage = storage_of(config.corpus_bytes)
    if config.json:
        print(json.dumps({"plans": [asdict(each) for each in plans], "storage": asdict(storage)}))
        return 0
    device = "GPUs" if on_gpus else "cores"
    table = Table(device, "MB/s", "hours", f"{device[:-1]} hours", "cost", "memory, GB", box=SIMPLE)
    for each in plans:
        cost = "" if each.cost is None else _figure(each.cost)
        numbers_of = map(_figure, (each.rate / 1e6, each.hours, each.device_hours))
        table.add_row(f"{each.devices:,}", *numbers_of, cost, f"{each.memory / 1e9:,.0f}")
    print_whole(Console(), table)
    print(
        f"Storage: {_figure(storage.chunks / 1e9)} GB of prepared chunks, "
        f"{_figure(storage.shards / 1e9)} GB of shards, "
        f"{_figure(storage.without_entropies / 1e9)} GB with --drop-entropies."
    )
    print(
        f"Assumed: {rate / 1e6:.3g} MB/s per {device[:-1]}"
        + (f" ({config.scoring_mfu:g} of {config.gpu_tflops:g} TFLOP/s)." if on_gpus else ".")
    )
    return 0


def _figure(value: float) -> str:
    """A number with a digit after the point where it is small, with two digits where it is tiny."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 or not value else f"{value:.2g}"


def run(flags: PlanTrainingConfig, arguments: list[str], console: Console) -> int:
    """Print the table.

    Raises:
        ConfigError: a flag is wrong.
    """
    names = [field.name for field in fields(Assumptions)]
    assumed = Assumptions(**{name: getattr(flags, name) for name in names})
    # torchtitan's subcommand (activation-checkpoint:full) ends the command line, perhaps here.
    arguments += [word for word in (*flags.config, *flags.gpus) if ":" in word]
    chosen, gpus = ([w for w in words if ":" not in w] for words in (flags.config, flags.gpus))
    if wrong := [number for number in gpus if not number.isdecimal() or not int(number)]:
        raise ConfigError(f"--gpus: {wrong[0]} is no number of GPUs")
    for name in names:
        if not 0 < getattr(assumed, name) < math.inf:
            raise ConfigError(f"{flag_name(name)}: has to be positive")
    if assumed.mfu > 1:
        raise ConfigError("--mfu: is a share of the peak, at most 1")
    for name, words in (("--config", chosen), ("--gpus", gpus)):
        if not words:
            raise ConfigError(f"{name}: name at least one")
    for name in chosen:
        check_configuration(name)
    # torchtitan takes seconds to load: only when the flags are right.
    from train.cluster.checks import parse_config
    from train.plan import activations_of, markdown_table, plan
    from train.refusals import for_gpus_elsewhere
    from train.shim import prepare

    prepare()
    plans = {}
    for name in chosen:
        # Where a flag is given twice, the later one counts.
        on_gpus = ["--config", name, "--training.mixed-precision-param", "bfloat16"]
        with for_gpus_elsewhere():
            config = parse_config([*on_gpus, *arguments])
        activations = activations_of(config, assumed)
        plans[name] = [plan(config, n, assumed, activations) for n in map(int, gpus)]
    if flags.json:
        print(json.dumps({name: [asdict(one) for one in found] for name, found in plans.items()}))
    else:
        print(markdown_table(plans))
        print(f"Assumed: {', '.join(assumption_texts(assumed))}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
