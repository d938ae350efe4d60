"""Train a byte-level BPE tokenizer on the text of shards, for the baseline ``bpe_...``."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import run_job
from pipeline.cli.flags import check_at_least, check_new_output, refuse_url
from pipeline.cli.sizes import Size
from pipeline.errors import ConfigError, PipelineError

BYTES = 256
MOST_TOKENS = 1 << 20
"""Tokens that every tokenizer has: one per byte."""


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """Train a byte-level BPE tokenizer on a sample of shard sets' text, evenly from all shards.

    The trainer reads it: python -m train --config bpe_debug --tokenizer.source OUTPUT. The same
    shards and flags give the same file. Exit status: 0 if it was written, 1 if a shard cannot be
    read or the output not be written, 2 if a flag is wrong.
    """

    shards: tuple[str, ...]
    """Directories or URLs of shard sets, those that the model is trained on."""
    output: str
    """tokenizer.json to write."""
    vocab_size: int = 32_000
    """Tokens, 256 bytes among them."""
    sample_bytes: Size = 100_000_000
    """Text to count; about 10 bytes of memory per byte of it are needed."""
    json: bool = False
    """Print the result as JSON."""


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(TrainTokenizerConfig, run, interrupted="interrupted: nothing was written")


def run(config: TrainTokenizerConfig, console: Console) -> int:
    """Train the tokenizer, write it, and print what it is; returns the exit status."""
    check_at_least(config, vocab_size=BYTES, sample_bytes=1)
    if config.vocab_size > MOST_TOKENS:
        raise ConfigError(f"--vocab-size: at most {MOST_TOKENS:,}, got {config.vocab_size:,}")
    if not config.shards:
        raise ConfigError("--shards: name at least one shard set that patch_corpus.py wrote")
    refuse_url(config.output)
    target = Path(config.output)
    check_new_output(target)
    # torch takes a second to load: only when the flags are right.
    from pipeline.bpe.byte_level import BPE
    from pipeline.shards.named import named_set
    from train.checkpoints.model_json import checkpoint_filesystem, write_atomically
    from train.data.bpe_training import sample, train

    texts = list(sample([named_set(url) for url in config.shards], config.sample_bytes))
    content = train(texts, config.vocab_size)
    bpe = BPE(config.output, content)  # which refuses what would not give text back
    try:
        write_atomically(*checkpoint_filesystem(config.output), content)
    except OSError as error:
        raise PipelineError(f"--output: {target} cannot be written: {error}") from error
    size = sum(len(text.encode()) for text in texts)
    per_token = size / max(len(bpe.encode(texts)[0]), 1)
    if config.json:
        result = {"output": config.output, "tokens": bpe.tokens, "sample_bytes": size}
        print(json.dumps({**result, "bytes_per_token": per_token, "sha256": bpe.sha256}))
    else:
        print(
            f"{config.output}: {bpe.tokens:,} tokens from {size:,} bytes of text, "
            f"{per_token:.2f} bytes per token there"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
