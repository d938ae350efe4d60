"""Checks of a pretraining command before any worker starts: flags, paths, configuration and data.

Every error is one sentence that names the flag. Nothing here needs Ray, so the driver can run the
checks itself, or a node with a GPU can run them for a driver that has none.
"""

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.cli.command import refuse_lost_output
from pipeline.errors import ConfigError, PipelineError, translated
from train import MODULE
from train.checkpoints.hub import is_on_hub
from train.checkpoints.model_json import steps_in
from train.data.provenance import compare_validation
from train.flags.configurations import check_configuration
from train.shim import prepare

if TYPE_CHECKING:
    from torchtitan.config import TrainingConfig
    from torchtitan.trainer import Trainer

    from train.data.dataloader import ShardDataLoader

PATH_FLAGS = (
    *("dump-folder", "checkpoint.initial-load-path", "samples.prompts-file"),
    *("shape.file", "tokenizer.source"),
    *("dataloader.shards", "validator.dataloader.shards"),
)
"""Flags, without ``--``, whose values name files or directories that every worker reads."""


class RunPlan(NamedTuple):
    """The facts about a run that its driver needs."""

    steps: int
    checkpoints: str
    """Directory or URL of the steps."""
    saves: bool
    """True if the run saves steps at all."""


def absolute_paths(arguments: list[str]) -> list[str]:
    """torchtitan's arguments with absolute paths, because each worker has its own directory.

    Both spellings of a flag are found, ``--flag value`` and ``--flag=value``; URLs stay as they
    are. A missing ``--dump-folder`` becomes ``outputs`` in the current directory.

    Raises:
        ConfigError: a submitted job's path is relative to a directory that Ray removes.
    """
    changed = list(arguments)
    given = set()
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        if not flag.startswith("--") or name not in PATH_FLAGS:
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
    if flag.endswith("source") and not Path(value).expanduser().exists():
        return value  # the name of a tokenizer on the hub
    paths = value.split(",") if flag.endswith("shards") else [value]
    for path in paths:
        refuse_lost_output(path, flag)
    return ",".join(p if "://" in p else str(Path(p).expanduser().absolute()) for p in paths)


def check_run(arguments: list[str]) -> RunPlan:
    """Check a run's configuration, its shards and where its checkpoints go.

    Args:
        arguments: ``--config NAME`` first, then torchtitan's flags with absolute paths.

    Raises:
        ConfigError: the run cannot begin; names the flag.
    """
    prepare()
    from torchtitan.tools import filesystem  # only after prepare(): see train.shim

    from train.validator import open_sets

    name = arguments[1]
    check_configuration(name)
    config = parse_config(arguments)
    with translated(f"--dump-folder {config.dump_folder}", ConfigError):
        tokenizer = config.tokenizer.build(tokenizer_path=config.hf_assets_path)
        (loader,) = _check_data(
            "--dataloader",
            config.training,
            lambda **share: [config.dataloader.build(tokenizer=tokenizer, **share)],
        )
        if config.validator.enable:
            validation = _check_data(
                "--validator.dataloader",
                config.training,
                lambda **share: list(
                    open_sets(config.validator, tokenizer=tokenizer, **share).values()
                ),
            )
            if config.dataloader.patches:
                compare_validation(
                    [each for held_out in validation for each in held_out.stream.provenance],
                    loader.stream.provenance,
                    allowed=config.dataloader.allow_mixed_patches,
                )
        checkpoints = filesystem.join(config.dump_folder, config.checkpoint.folder)
        initial = config.checkpoint.initial_load_path
        # A run that has saved steps resumes from the last one, and reads no initial weights.
        resumes = bool(steps_in(checkpoints))
        on_hub = config.checkpoint.initial_load_in_hf and is_on_hub(initial)
        if initial and not on_hub and not resumes and not filesystem.isdir(initial):
            raise ConfigError(
                f"--checkpoint.initial-load-path {initial}: there is no such directory"
            )
    saves = config.checkpoint.enable and not config.checkpoint.load_only
    return RunPlan(config.training.steps, checkpoints, saves)


def parse_config(arguments: list[str]) -> "Trainer.Config":
    """torchtitan's configuration; :func:`train.shim.prepare` has been called.

    Raises:
        ConfigError: a flag is wrong. torchtitan's parser draws a box around its message and exits;
            the error holds the message alone.
    """
    from torchtitan.config import ConfigManager  # only after prepare(): see train.shim

    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    logging_level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # rank 0 repeats the warnings
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return ConfigManager().parse_args(["--module", MODULE, *arguments])
    except SystemExit as error:
        raise ConfigError(_first_paragraph(output)) from error
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    finally:
        logging.disable(logging_level)


def _first_paragraph(box: io.TextIOWrapper) -> str:
    """The first paragraph of a text in a box that is drawn with characters."""
    box.seek(0)
    lines = [line.strip("│ \n") for line in box if line.startswith("│")]
    end = next((i for i, line in enumerate(lines) if not line.strip("─")), len(lines))
    return " ".join(lines[:end]).removeprefix("Error parsing Config: ")


def _check_data(
    flag: str, training: "TrainingConfig", open_shards: "Callable[..., list[ShardDataLoader]]"
) -> "list[ShardDataLoader]":
    """Open the shards of ``flag`` as the trainer will.

    Args:
        open_shards: gets a rank's place and the size of its batches.

    Raises:
        ConfigError: the shards cannot be read, or not with these settings.
    """
    try:
        return open_shards(
            dp_world_size=1,
            dp_rank=0,
            seq_len=training.seq_len,
            local_batch_size=training.local_batch_size,
        )
    except PipelineError as error:
        text = str(error).removeprefix("dataloader.")
        separator = "." if text != str(error) else ".shards: "
        if text.startswith("--"):
            flag = separator = ""
        elif text.startswith("training."):
            flag, separator = "--", ""
        raise ConfigError(f"{flag}{separator}{text}") from error
