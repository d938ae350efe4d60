"""Pretrain a BLT or an entropy model from shards, on a Ray cluster or on this machine."""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.text import Text

from pipeline.cli.command import refuse_lost_output, run_command
from pipeline.cluster.connect import connect, in_ray
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    from torchtitan.config import TrainingConfig
    from torchtitan.trainer import Trainer

    from train.data.dataloader import ShardDataLoader

DESCRIPTION = """\
Pretrain a BLT or an entropy model from shards.

Ray Train spreads the workers over the cluster of RAY_ADDRESS (or over a local Ray), and starts
them again from the last checkpoint when one of them, or a node, dies. A run that was stopped goes
on when the same command is given again, also with another number of workers. Flags other than
those below are torchtitan's:

    --dataloader.shards DIR_OR_URL[,DIR_OR_URL...]
    --validator.enable --validator.dataloader.shards DIR_OR_URL
    --dump-folder DIR_OR_URL  checkpoints and metrics (default: ./outputs)
    --training.steps 1000 --training.local-batch-size 8 --checkpoint.interval 500 ...

All nodes have to reach what these name, with the credentials of their own environment;
python -m train --config blt_debug --help shows all flags. Exit status: 0 when all steps were
done, 1 when training failed, 2 when a flag is wrong."""

PATHS = (
    *("dump-folder", "checkpoint.initial-load-path"),
    *("dataloader.shards", "validator.dataloader.shards"),
)
"""Flags of torchtitan and ours that name directories, which workers elsewhere have to find."""


class Plan(NamedTuple):
    """What a configuration says of a run."""

    steps: int
    checkpoints: str
    """Directory or URL."""
    saves: bool


def main() -> int:
    """Run the job; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="NAME", help="blt_debug, blt_1b, entropy_100m, ...")
    add("--num-workers", type=int, help="processes (default: as many as GPUs, or 1)")
    add(
        "--gpus-per-worker",
        type=int,
        choices=(0, 1),
        help="0 to train on CPUs (default: 1 where there are GPUs)",
    )
    add("--cpus-per-worker", type=int, default=1, help="threads each (default: 1)")
    add(
        "--max-failures",
        type=int,
        default=3,
        help="how often workers are started again (default: 3; -1: without end)",
    )
    add("--json", action="store_true", help="print the result as JSON")
    flags, arguments = parser.parse_known_args()
    console = Console(stderr=True)
    again = "interrupted; the same command goes on from the last checkpoint"
    return run_command(lambda: run(flags, arguments, console), console, interrupted=again)


def run(flags: argparse.Namespace, arguments: list[str], console: Console) -> int:
    """Train, and print where the result is."""
    check_flags(flags)
    # Before the user's, which may end in a subcommand (activation-checkpoint:none).
    plain = [] if console.is_terminal else ["--metrics.disable-color-printing"]
    arguments = ["--config", flags.config, *plain, *absolute(arguments)]
    local = not os.environ.get("RAY_ADDRESS")
    if flags.gpus_per_worker == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if local:
        plan = check(arguments)
    cpus = (flags.num_workers or 1) * flags.cpus_per_worker
    connect(cpus, "train", worker_output=False)
    import ray

    from train.cluster.launch import Workers, gpus_of_cluster, train_on_ray

    all_gpus = gpus_of_cluster()
    gpus = min(all_gpus, 1) if flags.gpus_per_worker is None else flags.gpus_per_worker
    workers = Workers(flags.num_workers or all_gpus * gpus or 1, flags.cpus_per_worker, gpus)
    if local and workers.room() < workers.number:
        raise ConfigError(
            f"--num-workers: {workers} of {workers.each()} are asked for, but this machine has "
            f"room for {workers.room()}"
        )
    if not local:
        # What is allowed depends on whether there is a GPU, and the driver may have none.
        elsewhere = gpus and not torch.cuda.is_available()
        plan = in_ray(ray.remote(check), 1, arguments) if elsewhere else check(arguments)
    console.print(f"training on {workers}; checkpoints go to {plan.checkpoints}")
    start = time.monotonic()
    logged = train_on_ray(
        arguments,
        workers,
        max_failures=flags.max_failures,
        say=lambda line: console.print(Text.from_ansi(line), soft_wrap=True),
    )
    ray.shutdown()
    result = describe(plan, logged) | {
        "workers": workers.number,
        "seconds": round(time.monotonic() - start, 1),
    }
    if flags.json:
        print(json.dumps(result))
    else:
        print_result(result)
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: one of our own flags is wrong.
    """
    for name, least in (("num_workers", 1), ("cpus_per_worker", 1), ("max_failures", -1)):
        value = getattr(flags, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: must be at least {least}, got {value}")


def absolute(arguments: list[str]) -> list[str]:
    """The arguments with whole paths: workers have other working directories.

    Raises:
        ConfigError: a submitted job's path is relative to what is removed.
    """
    changed = list(arguments)
    given = set()
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        if not flag.startswith("--") or name not in PATHS:
            continue
        given.add(name)
        if equals:
            changed[i] = f"{flag}={_absolute(flag, value)}"
        elif i + 1 < len(arguments):
            changed[i + 1] = _absolute(flag, arguments[i + 1])
    if "dump-folder" not in given:
        changed = ["--dump-folder", _absolute("--dump-folder", "outputs"), *changed]
    return changed


def _absolute(flag: str, value: str) -> str:
    paths = value.split(",") if flag.endswith("shards") else [value]
    for path in paths:
        refuse_lost_output(path, flag)
    return ",".join(p if "://" in p else str(Path(p).expanduser().absolute()) for p in paths)


def check(arguments: list[str]) -> Plan:
    """Everything that can be said of a run before it.

    Raises:
        ConfigError: it cannot be done; names the flag.
    """
    from train.shim import prepare

    prepare()
    from torchtitan.tools import filesystem

    from train.__main__ import configurations
    from train.checkpoints.model_json import steps_in

    name = arguments[1]
    if name not in configurations():
        raise ConfigError(f"--config: there is no {name}; there are {', '.join(configurations())}")
    config = parse(arguments)
    try:
        check_data("--dataloader", config.dataloader, config.training)
        if config.validator.enable:
            check_data("--validator.dataloader", config.validator.dataloader, config.training)
        checkpoints = filesystem.join(config.dump_folder, config.checkpoint.folder)
        start = config.checkpoint.initial_load_path
        # Where there are steps the run goes on with the last one, and nothing else is read.
        there = steps_in(checkpoints)
        if start and not there and not filesystem.isdir(start):
            raise ConfigError(f"--checkpoint.initial-load-path {start}: there is no such directory")
    except ConfigError:
        raise
    except Exception as error:  # each filesystem has its own
        raise ConfigError(f"--dump-folder {config.dump_folder}: cannot be read: {error}") from error
    saves = config.checkpoint.enable and not config.checkpoint.load_only
    return Plan(config.training.steps, checkpoints, saves)


def parse(arguments: list[str]) -> "Trainer.Config":
    """torchtitan's configuration.

    Raises:
        ConfigError: a flag is wrong; what torchtitan's parser puts into a box is one sentence here.
    """
    from torchtitan.config import ConfigManager

    told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Rank 0 will say the same.
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            return ConfigManager().parse_args(["--module", "train", *arguments])
    except SystemExit as error:
        raise ConfigError(_first_paragraph(told)) from error
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    finally:
        logging.disable(before)


def _first_paragraph(box: io.TextIOWrapper) -> str:
    """What is wrong, of a box drawn around text."""
    box.seek(0)
    lines = [line.strip("│ \n") for line in box if line.startswith("│")]
    end = next((i for i, line in enumerate(lines) if not line.strip("─")), len(lines))
    return " ".join(lines[:end]).removeprefix("Error parsing Config: ")


def check_data(flag: str, loader: "ShardDataLoader.Config", training: "TrainingConfig") -> None:
    """
    Raises:
        ConfigError: the shards cannot be read, or not so.
    """
    try:
        loader.build(
            dp_world_size=1,
            dp_rank=0,
            seq_len=training.seq_len,
            local_batch_size=training.local_batch_size,
        )
    except PipelineError as error:
        text = str(error).removeprefix("dataloader.")
        separator = "." if text != str(error) else ".shards: "
        if text.startswith("training."):
            flag, separator = "--", ""
        raise ConfigError(f"{flag}{separator}{text}") from error


def describe(plan: Plan, logged: dict[str, float]) -> dict[str, object]:
    """What was done, as plain values.

    Args:
        logged: last by rank 0; empty if there was nothing left to do.
    """
    from train.checkpoints.model_json import filesystem_of, steps_in

    filesystem_of(plan.checkpoints)[0].invalidate_cache()  # It remembers what was there before.
    found = steps_in(plan.checkpoints) if plan.saves else []
    steps = int(found[0].rsplit("-", 1)[1]) if found else int(logged.get("step", 0))
    result: dict[str, object] = {"steps": steps, "checkpoint": found[0] if found else None}
    for name in ("loss", "bits_per_byte", "validation_bits_per_byte"):
        result[name] = logged.get(name)
    return result


def print_result(result: dict[str, object]) -> None:
    """The result for people."""
    measured = [
        f"{result[name]:.4f} bits per byte{where}"
        for name, where in (("bits_per_byte", ""), ("validation_bits_per_byte", " in validation"))
        if result[name] is not None
    ]
    print(", ".join([f"{result['steps']:,} steps done", *measured]))
    if result["checkpoint"]:
        print(f"checkpoint: {result['checkpoint']}")


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Not sys.exit: Ray would abort the process if a thread still waited for it. What Ray started
    # ends with this process.
    os._exit(status)
