"""Write on from prompts with a Byte Latent Transformer."""

import codecs
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from model.generation import BATCH_SIZE
from pipeline.cli.command import run_job
from pipeline.cli.flags import flag_name
from pipeline.cli.optional import OrNone
from pipeline.cli.results import print_line
from pipeline.errors import ConfigError, PipelineError


@dataclass(frozen=True)
class GenerateConfig:
    """Write on from prompts. The new text goes to standard output, without the prompt: as it is
    written for one prompt; at the end, with an empty line between texts, for several.

    Exit status: 0 if everything was written, 1 if a model gives what is no number, 2 if a flag is
    wrong or a model cannot be loaded.
    """

    TEXTS: ClassVar[tuple[str, ...]] = ("--prompt", "--stop")

    model: str
    """Directory, URL or hub id of a BLT: published, transformers' or our own layout."""
    prompt: tuple[str, ...] = ()
    """Texts to write on from, each on its own; standard input, as one text, by default."""
    entropy_model: OrNone[str] = None
    """Directory, URL or hub id of the entropy model; the one that lies with the BLT by default."""
    rule: OrNone[str] = None
    """Name of the rule that places the boundaries, instead of the checkpoint's, or which of its
    rules where it was trained on sets of several."""
    threshold: OrNone[float] = None
    """Nats: where a patch starts, instead of the checkpoint's own."""
    reset_at_newline: bool = False
    """The entropy model's context starts again after each newline; by default as the checkpoint
    records it."""
    allow_other_entropies: bool = False
    """Go on with entropies of another model than the one that the checkpoint was trained with."""
    max_new_bytes: int = 256
    """The most bytes to write after each prompt."""
    temperature: float = 0.0
    """0 always takes the likeliest byte (greedy); higher draws more freely."""
    top_k: OrNone[int] = None
    """Draw from the k likeliest bytes only."""
    top_p: OrNone[float] = None
    """Draw from the likeliest bytes that together have this probability only."""
    stop: tuple[str, ...] = ()
    """Texts that end the writing; they are not part of the result."""
    seed: int = 0
    """Decides what is drawn: the same seed gives the same text."""
    batch_size: int = BATCH_SIZE
    """The most texts that are written at a time; a finished one makes room for the next."""
    draft_bytes: int = 0
    """Bytes that the local models write ahead before the whole model checks them; greedy only. It
    changes the speed, never the text."""
    json: bool = False
    """Print the result as JSON."""


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(GenerateConfig, run, interrupted="")


def run(config: GenerateConfig, console: Console) -> int:
    """Write on from the prompts and print the texts; returns the exit status."""
    for name in ("top_k", "top_p"):
        if getattr(config, name) is not None and config.temperature == 0:
            what = f"{flag_name(name)} changes nothing without --temperature"
            print_line(console, f"note: {what}: 0 always takes the likeliest byte")
    # As bytes, because a command line need not be UTF-8.
    prompts = [os.fsencode(text) for text in config.prompt] or [sys.stdin.buffer.read()]
    import torch  # which takes a second to load: only when the flags are right

    try:
        pieces = _pieces(config, prompts, console)
    except ValueError as error:  # the model refuses an argument and names it
        raise ConfigError(_flag_of(str(error))) from error
    began = time.monotonic()
    try:
        if len(prompts) == 1 and not config.json:
            texts = [_print_as_written(new for piece in pieces for _, new in piece)]
        else:
            texts = [b""] * len(prompts)
            for index, new in chain.from_iterable(pieces):
                texts[index] += new
        seconds = time.monotonic() - began
        if config.json:
            _print(json.dumps(_result(prompts, texts, seconds)) + "\n")
        elif len(prompts) > 1:
            _print("\n".join(text.decode(errors="replace") + "\n" for text in texts))
    except torch.OutOfMemoryError as error:
        raise ConfigError(_flag_of(str(error))) from error
    except FloatingPointError as error:  # a model's weights are broken
        raise PipelineError(_flag_of(str(error))) from error
    except BrokenPipeError:  # the reader of standard output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    written = sum(map(len, texts))
    rate = written / max(seconds, 1e-9)
    console.print(f"{written} bytes in {seconds:.1f} s, {rate:.1f} bytes/s", highlight=False)
    return 0


def _pieces(
    config: GenerateConfig, prompts: Sequence[bytes], console: Console
) -> Iterator[list[tuple[int, bytes]]]:
    from model.blt import BLT
    from model.generation.generate import stream
    from model.generation.sampling import Sampling
    from pipeline.evaluate.models import PatchFlags, fetched, load_model, load_patching

    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    with fetched(config.model) as directory:
        model = load_model(directory)
        if not isinstance(model, BLT):
            raise ConfigError(f"--model: {config.model} is an entropy model; give a BLT")
        say = partial(print_line, console)
        patching = load_patching(model, config.model, directory, PatchFlags.of(config), say)
    return stream(
        model,
        patching.entropy_model,
        prompts,
        sampling=sampling,
        patcher=patching.patcher,
        max_new_bytes=config.max_new_bytes,
        stop=[os.fsencode(text) for text in config.stop],
        seed=config.seed,
        draft_bytes=config.draft_bytes,
        reset_at_newline=patching.reset_at_newline,
        batch_size=config.batch_size,
    )


def _print(text: str) -> None:
    """Print text as UTF-8, whatever the locale."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _print_as_written(pieces: Iterator[bytes]) -> bytes:
    """Print bytes as soon as their characters are complete; invalid UTF-8 becomes U+FFFD.

    Returns:
        all bytes.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    written = bytearray()
    for piece in pieces:
        written += piece
        _print(decoder.decode(piece))
    _print(decoder.decode(b"", final=True) + "\n")
    return bytes(written)


def _result(prompts: Sequence[bytes], texts: Sequence[bytes], seconds: float) -> dict[str, object]:
    written = sum(map(len, texts))
    return {
        "prompts": [prompt.decode(errors="replace") for prompt in prompts],
        "texts": [text.decode(errors="replace") for text in texts],
        "bytes": written,
        "seconds": seconds,
        "bytes_per_second": written / max(seconds, 1e-9),
    }


def _flag_of(message: str) -> str:
    """The message, naming the flag where it begins with the name of an argument."""
    name, colon, rest = message.partition(":")
    if name in GenerateConfig.__dataclass_fields__:
        return f"{flag_name(name)}{colon}{rest}"
    return message


if __name__ == "__main__":
    sys.exit(main())
