"""States that a run leaves out of the step that it begins with
(``--checkpoint.exclude-from-loading``): once per launch.

A run without the dataloader's state, say, begins again with the first row. A launcher starts the
same command again when a process or node dies (:mod:`train.checkpoints.launches`). Left out again,
the state would let each of these starts read the same rows. So :data:`LEFT_OUT` tells out of which
step states were left: later steps are the launch's own, and are loaded as they are.

Example: a launch leaves the dataloader out of step 4, saves step 6, and dies. Its next start takes
all of step 6. Had it died before that, the next start would leave the state out of step 4 again.
"""

import json
import posixpath
from collections.abc import Sequence

from torchtitan.components.checkpointer.base import TRAIN_STATE
from torchtitan.tools.logging import logger

from pipeline.errors import ConfigError
from train.checkpoints.launches import is_restart, launch
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically

LEFT_OUT = "left-out-of"
"""A file beside the steps: the step that states were left out of last, which, and the launch."""
FLAG = "--checkpoint.exclude-from-loading"


def still_left_out(folder: str, step: int, states: Sequence[str]) -> list[str]:
    """The states that a start leaves out of the step that it begins with: those of the flag, or
    none if an earlier start of its launch has left them out of a step before.

    Args:
        folder: directory or URL of the steps.
        step: its number; -1 if the run has no step yet.

    Raises:
        ConfigError: without the number of the step, the run would write steps that count as older
            than those that are there.
    """
    files, path = checkpoint_filesystem(folder)
    file = posixpath.join(path, LEFT_OUT)
    if is_restart() and files.exists(file):
        before = json.loads(files.cat_file(file))
        if before == _record(before["step"], states) and before["step"] < step:
            logger.warning(
                f"{FLAG}: an earlier start of this command left {', '.join(states)} out; this one "
                f"continues with all that step {step} holds"
            )
            return []
    if TRAIN_STATE in states and step > 0:
        raise ConfigError(
            f"{FLAG}: without {TRAIN_STATE}, steps count from 1 again, and {folder} holds step "
            f"{step}, which later starts would take for the last; leave the flag out to continue, "
            f"or begin in another --dump-folder with --checkpoint.initial-load-path "
            f"{folder}/step-{step} --checkpoint.no-initial-load-model-only"
        )
    return list(states)


def record_left_out(folder: str, step: int, states: Sequence[str]) -> None:
    """Record that states were left out of a step; one rank calls this once it is loaded.

    Args:
        folder, step: see :func:`still_left_out`.
    """
    files, path = checkpoint_filesystem(folder)
    record = json.dumps(_record(step, states)).encode()
    write_atomically(files, posixpath.join(path, LEFT_OUT), record)


def _record(step: int, states: Sequence[str]) -> dict[str, object]:
    return {"step": step, "states": sorted(states), "launch": launch()}
