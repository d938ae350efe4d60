"""Train a cheap entropy model, for CPUs, on the entropies that shards store."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import run_job
from pipeline.cli.flags import check_at_least, check_new_output, refuse_url
from pipeline.cli.progress_bar import metered
from pipeline.cli.sizes import Size
from pipeline.errors import ConfigError, PipelineError

LAST_STEPS = 50
"""Steps whose mean loss is told at the end."""


@dataclass(frozen=True)
class DistilEntropyModelConfig:
    """Train a cheap entropy model, for CPUs, on the entropies that shards store.

    The student gives about the entropies of the model that scored the shards, and no
    probabilities. patch_corpus.py takes it: --entropy-model OUTPUT. The same shards and flags give
    the same model on one kind of CPU. Exit status: 0 if it was written, 1 if a shard cannot be read
    or the output not be written, 2 if a flag is wrong.
    """

    shards: tuple[str, ...]
    """Directories or URLs of shard sets that one entropy model scored."""
    output: str
    """Directory to write the model to."""
    sample_bytes: Size = 12_000_000
    """Text to learn from, evenly from all shards; about 15 bytes of memory per byte are needed."""
    steps: int = 1400
    """Training steps, of 8,192 tokens each."""
    seed: int = 0
    """Chooses the initial weights and what is read."""
    json: bool = False
    """Print the result as JSON."""


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(DistilEntropyModelConfig, run, interrupted="interrupted: nothing was written")


def run(config: DistilEntropyModelConfig, console: Console) -> int:
    """Train the model, write it, and print what it is; returns the exit status."""
    check_at_least(config, sample_bytes=1, steps=1, seed=0)
    if not config.shards:
        raise ConfigError("--shards: name at least one shard set that patch_corpus.py wrote")
    refuse_url(config.output)
    check_new_output(Path(config.output))
    # torch takes a second to load: only when the flags are right.
    import torch

    from model.checkpoints.entropy_model import fingerprint
    from model.conv_entropy_model import ConvEntropyConfig
    from pipeline.shards.named import named_set
    from train.convert.job import write_checkpoint
    from train.distillation.learn import ROW_TOKENS, ROWS, distil
    from train.distillation.lesson import find_teacher, read_lesson

    sets = [named_set(url) for url in config.shards]
    teacher = find_teacher(sets)
    lesson = read_lesson(sets, config.sample_bytes, reset_at_newline=bool(teacher.reset_at_newline))
    torch.set_num_threads(1)
    losses: list[float] = []
    with metered(console, "distilling", config.steps * ROWS * ROW_TOKENS) as advance:

        def report(tokens: int, loss: float) -> None:
            losses.append(loss)
            advance(tokens)

        model = distil(
            lesson, ConvEntropyConfig(), steps=config.steps, seed=config.seed, report=report
        )
    loss = fmean(losses[-LAST_STEPS:])
    if not math.isfinite(loss):
        raise PipelineError("the training diverged: entropies of the shards are not numbers")
    write_checkpoint(Path(config.output), model, None, "own")
    result = {
        "output": config.output,
        "fingerprint": fingerprint(model),
        "teacher": str(teacher),
        "loss": loss,
        "tokens": len(lesson.tokens_T),
    }
    if config.json:
        print(json.dumps(result))
    else:
        print(
            f"{config.output}: learned from {len(lesson.tokens_T):,} tokens that {teacher} scored; "
            f"loss {loss:.4f}; patch with --entropy-model {config.output}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
