"""Plan a training: memory, FLOPs, time and checkpoints of a configuration on 1 to 512 GPUs."""

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import run_command
from pipeline.errors import ConfigError
from train.flags.assumptions import Assumptions, assumption_texts
from train.flags.configurations import check_configuration
from train.flags.field_docstrings import field_docstrings

CONFIGURATIONS = ("blt_400m", "blt_1b", "blt_2b", "blt_4b", "blt_8b")
DESCRIPTION = """\
Plan a training: memory per GPU, FLOPs, days, the checkpoint interval and what a node's loss costs,
for each configuration and number of GPUs. Nothing is built, and no GPU is needed. All flags but
those below are those of python -m train:

    python jobs/plan.py --config blt_1b --gpus 64 128 --shape.dim-global 3072
    python jobs/plan.py --config blt_8b --training.local-batch-size 1

docs/many-nodes.md explains the columns. Exit status: 0, or 2 if a flag is wrong."""


def main() -> int:
    """Run the job; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", nargs="+", default=[*CONFIGURATIONS], metavar="NAME", help="blt_1b, ...")
    add("--gpus", nargs="+", default=["1", "8", "64", "512"], metavar="N", help="1 8 64 512")
    for field in fields(Assumptions):
        flag, text = f"--{field.name.replace('_', '-')}", field_docstrings(Assumptions)[field.name]
        add(flag, type=float, default=field.default, help=f"{text} (default: %(default)s)")
    add("--json", action="store_true", help="print the plans as JSON, in bytes and seconds")
    flags, arguments = parser.parse_known_args()
    console = Console(stderr=True)
    return run_command(lambda: run(flags, arguments), console, interrupted="interrupted")


def run(flags: argparse.Namespace, arguments: list[str]) -> int:
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
        if not getattr(assumed, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: has to be positive")
    for name in chosen:
        check_configuration(name)
    # torchtitan takes seconds to load: only when the flags are right.
    from train.cluster.checks import parse_config
    from train.plan import activations_of, markdown_table, plan
    from train.shim import prepare

    prepare()
    plans = {}
    for name in chosen:
        config = parse_config(["--config", name, *arguments])
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
