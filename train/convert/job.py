"""Converting a checkpoint: a step of the trainer, a mean of steps, or weights in any layout."""

import json
import shutil
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError

from model.blt import BLT
from model.blt_config import BLTConfig
from model.checkpoints.blt import ENTROPY_MODEL, load_blt, other_reading, save_blt
from model.checkpoints.blt_entropy_model import load_recorded_entropy_model, own_entropy_model
from model.checkpoints.entropy_model import (
    AnyEntropyModel,
    fingerprint,
    holds_entropy_model_alone,
    layout_refusal,
    load_entropy_model,
    save_entropy_model,
)
from model.checkpoints.files import CheckpointError, reading
from model.checkpoints.names import Layout
from model.checkpoints.places import local_directory
from model.checkpoints.token_transformer import (
    TOKENIZER,
    holds_token_transformer,
    load_token_transformer,
    save_token_transformer,
)
from model.entropy_model import EntropyModel
from model.provenance import EntropyModelIdentity
from model.short_context import ShortContextModel
from model.token_transformer import TokenTransformer
from pipeline.cli.results import print_line
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluate.provenance import compare_entropy_model
from train.checkpoints.average import read_average, steps_until
from train.checkpoints.entropy_model import kept_entropy_model
from train.checkpoints.model_json import read_beside
from train.checkpoints.steps import complete_steps, is_step, read_step
from train.convert.config import ConvertCheckpointConfig

Model = BLT | EntropyModel | ShortContextModel | TokenTransformer


def convert_checkpoint(config: ConvertCheckpointConfig, console: Console) -> int:
    """Convert the checkpoint and print the files; returns the exit status."""
    config.check()
    output = Path(config.output).absolute()
    steps = [config.checkpoint]
    model: Model
    if is_step(config.checkpoint):
        try:
            if config.average > 1:
                steps = steps_until(config.checkpoint, config.average)
            model = read_average(steps) if len(steps) > 1 else read_step(config.checkpoint)
            tokenizer = _tokenizer_of(model, config.checkpoint)
        except CheckpointError as error:
            raise ConfigError(f"--checkpoint: {error}") from error
        entropy_model = _entropy_model(config, model, None, console)
        _compare(config, model, entropy_model, console)
        _write(config, output, model, entropy_model, tokenizer, console)
    elif config.average > 1:
        raise ConfigError(f"--average: {config.checkpoint} is no step of the trainer; leave it out")
    else:
        model = _convert_weights(config, output, console)
    if broken := without_numbers(model):
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        print_line(
            console,
            f"note: there is NaN or infinity in {', '.join(broken[:5])}{more}: the model gives no "
            "numbers; take a step from before the training diverged",
        )
    if isinstance(model, BLT):
        for note in reading_notes(model.config, config.layout):
            print_line(console, f"note: {note}")
    kind = _kind(model)
    files = sorted(str(f.relative_to(output)) for f in output.rglob("*") if f.is_file())
    if config.json:
        result = {"output": config.output, "layout": config.layout, "model": kind, "files": files}
        print(json.dumps(result | ({"averaged": steps} if len(steps) > 1 else {})))
    else:
        if len(steps) > 1:
            print(f"mean of {', '.join(steps)}")
        print(f"{kind} written to {config.output} ({config.layout} layout): {', '.join(files)}")
    return 0


def reading_notes(shape: BLTConfig, layout: Layout) -> Iterator[str]:
    """Yield a sentence for each way in which the programs that a layout belongs to read rows
    otherwise than a model of this shape, or place patches otherwise than its training."""
    programs = f"programs that the {layout} layout belongs to"
    others = other_reading(shape, layout)
    if others:
        listed = ", ".join(f"{name} {not value}" for name, value in others.items())
        yield (
            f"{programs} read rows of several documents, and patch lengths that leave out the next "
            f"token, otherwise than this model ({listed}); single documents they read alike"
        )
    known = [each.entropy_model for each in shape.patch_provenance]
    if layout != "own" and any(each is not None and each.reset_at_newline for each in known):
        yield (
            f"{programs} do not start the entropy model's context again after a newline, as was "
            "done for this model's training: they place other patches"
        )
    if layout == "transformers" and shape.patcher and shape.patcher.max_patch_length is not None:
        yield (
            f"{programs} forget the patch that begins with the next byte where max_patch_length is "
            "set, as it is here: the last byte's prediction is another one, and so is what they "
            "write; give them patch_lengths that count the next byte"
        )


@torch.no_grad()
def without_numbers(model: Model) -> list[str]:
    """The names of the weights that hold NaN or infinity."""
    if isinstance(model, ShortContextModel):
        return []
    state = model.state_dict()
    # There is no least float8. Others are looked at where they lie: some are gigabytes.
    ranges = {n: torch.aminmax(w if w.element_size() > 1 else w.float()) for n, w in state.items()}
    return [name for name, ends in ranges.items() if not all(map(torch.isfinite, ends))]


def _kind(model: Model) -> str:
    if isinstance(model, TokenTransformer):
        return "token transformer"
    return "BLT" if isinstance(model, BLT) else "entropy model"


def _write(
    config: ConvertCheckpointConfig,
    output: Path,
    model: Model,
    entropy_model: AnyEntropyModel | None,
    tokenizer: bytes | None,
    console: Console,
) -> None:
    """Write the checkpoint. An entropy model that came along with the weights, and that the layout
    cannot hold, stays as it is; one that was asked for is refused."""
    refusal = None
    if entropy_model is not None and config.entropy_model is None:
        refusal = layout_refusal(entropy_model, config.layout)
    below = refusal is not None
    write_checkpoint(output, model, entropy_model, config.layout, tokenizer, below=below)
    if refusal is not None:
        print_line(
            console,
            f"note: {refusal}; the entropy model lies in {ENTROPY_MODEL}/ in our own layout, by "
            "which generate.py and evaluate.py place the patches, and other programs cannot",
        )


def write_checkpoint(
    output: Path,
    model: Model,
    entropy_model: AnyEntropyModel | None,
    layout: Layout,
    tokenizer: bytes | None = None,
    *,
    below: bool = False,
) -> None:
    """Write the whole checkpoint or nothing.

    Args:
        output: may be a link to an empty directory, or to none, on another disk.
        below: the entropy model is written in our own layout, into a directory of its own.
        tokenizer: the content of a token transformer's ``tokenizer.json``.

    Raises:
        ConfigError: the layout cannot hold the model.
        PipelineError: the output cannot be written.
    """
    place = output.resolve()  # a directory does not take the place of a link
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        if isinstance(model, BLT):
            within = None if below else entropy_model
            save_blt(model, temporary, layout=layout, entropy_model=within)
            if below and entropy_model is not None:
                save_entropy_model(entropy_model, temporary / ENTROPY_MODEL)
        elif isinstance(model, TokenTransformer):
            assert tokenizer is not None
            save_token_transformer(model, temporary, tokenizer, layout=layout)
        else:
            save_entropy_model(model, temporary, layout=layout)
        temporary.replace(place)
    except CheckpointError as error:
        raise ConfigError(f"--layout: {error}") from error
    except (OSError, SafetensorError) as error:
        raise PipelineError(f"--output: {output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_weights(config: ConvertCheckpointConfig, output: Path, console: Console) -> Model:
    """Convert weights, which are mapped from files that must exist until all is written.

    Returns:
        the model.
    """
    source = config.checkpoint
    try:
        with local_directory("checkpoint", source) as directory:
            try:
                model = _load(directory)
                entropy_model = _entropy_model(config, model, directory, console)
            except CheckpointError as error:  # name it as the user named it
                message = str(error)
                if directory.is_absolute():  # else the names are the same
                    message = message.replace(str(directory), source.rstrip("/"))
                raise CheckpointError(message) from error
            _compare(config, model, entropy_model, console)
            tokenizer = _tokenizer_of(model, source)
            _write(config, output, model, entropy_model, tokenizer, console)
            return model
    except CheckpointError as error:
        step = next(complete_steps(source), None) if Path(source).is_dir() else None
        hint = f"; give one of its steps, such as {step}" if step else ""
        raise ConfigError(f"--checkpoint: {error}{hint}") from error


def _tokenizer_of(model: Model, checkpoint: str) -> bytes | None:
    """The content of a token transformer's ``tokenizer.json``; None for other models.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not isinstance(model, TokenTransformer):
        return None
    return read_beside(checkpoint, TOKENIZER, "to make tokens of text")


def _compare(
    config: ConvertCheckpointConfig,
    model: Model,
    entropy_model: AnyEntropyModel | None,
    console: Console,
) -> None:
    """Compare the entropy model that a BLT gets with those that its checkpoint records.

    Raises:
        ConfigError: it is another one, and that is not allowed.
    """
    if not isinstance(model, BLT) or not any(e.identified for e in model.config.patch_provenance):
        return
    if entropy_model is not None:
        source = config.entropy_model or config.checkpoint
        compare_entropy_model(
            model.config,
            EntropyModelIdentity(source, fingerprint(entropy_model)),
            allowed=config.allow_other_entropies,
            say=partial(print_line, console),
        )


def _load(directory: Path) -> Model:
    with reading("checkpoint", str(directory)):
        alone = holds_entropy_model_alone(directory)
        if holds_token_transformer(directory):
            return load_token_transformer(directory, device="cpu", dtype="stored")
    if alone:
        return load_entropy_model(directory, device="cpu", dtype="stored")
    return load_blt(directory, device="cpu", dtype="stored")


def _entropy_model(
    config: ConvertCheckpointConfig, model: Model, directory: Path | None, console: Console
) -> AnyEntropyModel | None:
    """The entropy model to write with a BLT, if there is one: the given one, that of the
    checkpoint, or the one that its record names. Where that one is gone, this says so.

    Args:
        directory: where the checkpoint is; None for a step of the trainer.

    Raises:
        ConfigError: the flag makes no sense, or its model cannot be loaded.
        CheckpointError: the checkpoint's own entropy model cannot be loaded.
    """
    if not isinstance(model, BLT):
        if config.entropy_model is not None:
            kind = f"{'a' if isinstance(model, TokenTransformer) else 'an'} {_kind(model)}"
            raise ConfigError(f"--entropy-model: the checkpoint is {kind}; leave it out")
        return None
    if config.entropy_model is not None:
        try:
            return load_entropy_model(config.entropy_model, device="cpu", dtype="stored")
        except CheckpointError as error:
            raise ConfigError(f"--entropy-model: {error}") from error
    if directory is None:
        kept = kept_entropy_model(config.checkpoint)
    else:
        place = own_entropy_model(directory)
        kept = load_entropy_model(place, device="cpu", dtype="stored") if place else None
    return kept if kept is not None else _recorded_entropy_model(model, console)


def _recorded_entropy_model(model: BLT, console: Console) -> AnyEntropyModel | None:
    """The entropy model that a BLT's record names; None if it names none that can be read."""
    record = model.config.patch_provenance
    named = {str(each.entropy_model) for each in record if each.patcher.reads_entropies}
    try:
        found = load_recorded_entropy_model(record, device="cpu", dtype="stored")
        why = "the checkpoint names no place" if len(named) == 1 else "there are several"
    except CheckpointError as error:
        found, why = None, str(error)
    if found is None and named:
        print_line(
            console,
            f"note: written without the entropy model {' or '.join(sorted(named))}: {why}; give it "
            "with --entropy-model, here or to generate.py and evaluate.py",
        )
    return found
