"""Recipes side by side: held-out bits per byte of short trainings, by arm and seed.

An arm changes one thing of a configuration: its initial weights, or flags of the trainer. All arms
of a seed train on the same rows in the same order, so that differences can be paired. The text is
Python's help topics and library sources; whole files are held out.

Runs go 100 steps at a time, all of them to step 100 first, on one thread. Steps and results are
kept in ``build/recipes``: a command that was stopped goes on where it was, and a new arm costs its
own runs only. 100 steps of blt_debug take a minute of a core.

    python tests/benchmarks/bench_recipes.py                # before and after, 100 steps
    python tests/benchmarks/bench_recipes.py --until 300 --arms published before current_depth
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from common import ROOT, sources, write_jsonl  # isort: skip

sys.path.insert(0, str(ROOT / "tests"))

RUNS = ROOT / "build" / "recipes"
SEEDS = (0, 1, 2)
STEPS = (100, 200, 300)
"""Steps after which the held-out text is read; the last one ends the schedule."""
TEXT_BYTES, HELD_OUT = 3_200_000, 40
"""Bytes of text; one document of so many is held out."""
THRESHOLD = 2.1
"""Nats: the patches of entropy-1m are then about 4.5 bytes long."""


CONFIGS = {
    "entropy_debug": (),
    "blt_debug": (),
    # A quarter of its rows.
    "entropy_1m": ("--training.local-batch-size", "2", "--training.global-batch-size", "2"),
}
"""Flags by configuration."""


def smaller_residuals(model: Any, name: str) -> float:
    """nanoGPT's factor: what writes to the residual stream is smaller by sqrt(2 * depth)."""
    part = model.get_submodule(name.split(".")[0]) if hasattr(model, "local_encoder") else model
    return (2 * len(part.layers)) ** -0.5 if name.endswith(("wo.weight", "w2.weight")) else 1.0


def as_before(model: Any, name: str) -> float:
    """Rows of the token and hash tables that sum to a deviation of 1, and smaller residuals."""
    if "tok_embedding" in name and hasattr(model, "local_encoder"):
        return (model.config.dim_local / (1 + len(model.encoder_hash_tok_embedding))) ** 0.5
    return smaller_residuals(model, name)


@dataclass(frozen=True)
class Arm:
    """What differs from the configuration."""

    flags: tuple[str, ...] = ()
    shape: dict[str, Any] = field(default_factory=dict)
    """Fields of BLTConfig or EntropyModelConfig."""
    rescale: Callable[[Any, str], float] | None = None
    """What each initial weight is multiplied by."""


DISABLED = {"init_std_factor": "disabled"}
ARMS = {
    "published": Arm(shape=DISABLED),
    "before": Arm(shape=DISABLED, rescale=as_before),
    "residuals": Arm(shape=DISABLED, rescale=smaller_residuals),
    "current_depth": Arm(shape={"init_std_factor": "current_depth"}),
    "global_depth": Arm(shape={"init_std_factor": "global_depth"}),
    "cosine to 0": Arm(flags=("--lr-scheduler.min-lr-factor", "0"), shape=DISABLED),
}


def make_shards() -> None:
    """``build/recipes/train`` and ``validation``, with the patches of entropy-1m."""
    from pydoc_data.topics import topics

    from support import tiny

    from model import Patcher, load_entropy_model

    texts = [text for _, text in sorted(topics.items())]
    for text in sources("stdlib", seed=0):
        if sum(map(len, texts)) > TEXT_BYTES:
            break
        texts.append(text)
    random.Random(0).shuffle(texts)
    parts: dict[str, list[bytes]] = {"train": [], "validation": []}
    for i, text in enumerate(texts):
        parts["train" if i % HELD_OUT else "validation"].append(text.encode())
    model = load_entropy_model("entropy-1m")
    for part, documents in parts.items():
        if not (RUNS / part / "manifest.json").exists():
            (RUNS / part).mkdir(parents=True, exist_ok=True)
            write_jsonl(RUNS / f"{part}.jsonl", documents)
            tiny.make_shards(RUNS / part, RUNS / f"{part}.jsonl", model, Patcher(THRESHOLD))


def run(config_name: str, arm_name: str, seed: int, until: int) -> float:
    """Train on to a step; held-out bits per byte there."""
    import torch

    from train.__main__ import set_single_process_environment
    from train.shim import prepare

    prepare()
    from torchtitan.config import ConfigManager

    from train.metrics import latest
    from train.model_spec import TrainedBLT, TrainedEntropyModel
    from train.validator import ShardValidator

    torch.set_num_threads(1)
    set_single_process_environment()
    arm = ARMS[arm_name]
    flags = {
        "--config": config_name,
        "--dataloader.shards": RUNS / "train",
        "--validator.dataloader.shards": RUNS / "validation",
        "--training.steps": until,
        "--lr-scheduler.total-steps": STEPS[-1],
        "--checkpoint.interval": until,
        "--checkpoint.keep-latest-k": 2,
        "--debug.seed": seed,
        "--dataloader.seed": seed,
        "--dump-folder": RUNS / "outputs" / f"{config_name}-{arm_name}-{seed}".replace(" ", "-"),
    }
    given = [str(part) for flag in flags.items() for part in flag]
    given += ["--validator.enable", *CONFIGS[config_name], *arm.flags]
    config: Any = ConfigManager().parse_args(["--module", "train", *given])
    spec = config.model_spec.model
    spec.shape = replace(spec.shape, **arm.shape)
    if arm.rescale is not None:
        _rescale(TrainedBLT if config_name.startswith("blt") else TrainedEntropyModel, arm.rescale)
    # torchtitan validates after the first step, too.
    ShardValidator.should_validate = lambda self, step: False  # type: ignore[method-assign]
    trainer = config.build()
    trainer.train()
    trainer.validator.validate(trainer.model_parts, until)
    trainer.close()
    return latest["validation_bits_per_byte"]


def _rescale(kind: Any, rescale: Callable[[Any, str], float]) -> None:
    """Let models of this kind begin with other weights."""
    published = kind.initializers

    def initializers(model: Any) -> dict[str, Any]:
        def scaled(name: str, initial: Any) -> Any:
            def fill(parameter: Any, generator: Any) -> None:
                initial(parameter, generator)
                parameter.mul_(rescale(model, name))

            return fill

        return {name: scaled(name, initial) for name, initial in published(model).items()}

    kind.initializers = initializers


def table(config: str, arms: list[str]) -> None:
    """Means over the seeds with their ranges; under them the paired differences."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm in arms:
        files = [RUNS / f"{config}-{arm}-{seed}.json" for seed in SEEDS]
        runs = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        shared = [step for step in map(str, STEPS) if all(step in run for run in runs)]
        found[arm] = {step: [run[step] for run in runs] for step in shared}
    print(f"\n{config}: held-out bits per byte, mean over {len(SEEDS)} seeds (least–most)")
    for arm, steps in found.items():
        cells = (f"{step}: {mean(v):.3f} ({min(v):.3f}–{max(v):.3f})" for step, v in steps.items())
        print(f"  {arm:16}", "   ".join(cells))
    for arm in list(found)[1:]:
        cells = []
        for step in (step for step in found[arm] if step in found[arms[0]]):
            values = found[arm][step]
            pairs = zip(values, found[arms[0]][step], strict=True)
            differences = [value - first for value, first in pairs]
            spread = f"{min(differences):+.3f} to {max(differences):+.3f}"
            cells.append(f"{step}: {mean(differences):+.3f} ({spread})")
        print(f"  {arm:16} - {arms[0]}:  " + "   ".join(cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    debug = ["entropy_debug", "blt_debug"]
    parser.add_argument("--configs", nargs="+", default=debug, choices=CONFIGS)
    parser.add_argument("--arms", nargs="+", default=["published", "before"], choices=ARMS)
    parser.add_argument("--until", type=int, default=STEPS[0], choices=STEPS)
    parser.add_argument("--seed", type=int, help="do one run to --until, and print its result")
    given = parser.parse_args()
    if given.seed is not None:
        print(run(*given.configs, *given.arms, given.seed, given.until))
        return 0
    make_shards()
    steps = [step for step in STEPS if step <= given.until]
    for step, seed, config, arm in itertools.product(steps, SEEDS, given.configs, given.arms):
        file = RUNS / f"{config}-{arm}-{seed}.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        if str(step) not in found:
            one = ["--configs", config, "--arms", arm, "--seed", str(seed), "--until", str(step)]
            command = [sys.executable, __file__, *one]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[str(step)] = float(done.stdout.splitlines()[-1])
            file.write_text(json.dumps(found))
            print(f"{config}, {arm}, seed {seed}, step {step}: {found[str(step)]:.4f}", flush=True)
    for config in given.configs:
        table(config, given.arms)
    return 0


if __name__ == "__main__":
    sys.exit(main())
