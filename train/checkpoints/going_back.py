"""Going back to an earlier step (``--checkpoint.load-step``): the later ones are set aside.

A run that goes back begins a branch, and trains steps whose numbers the folder has. Left as they
are, the later steps of the branch that was given up would be those that the next start continues
from, and that ``--checkpoint.keep-latest-k`` keeps in place of new ones. So their indexes get
another name, which makes them incomplete: a small file for each, on any storage, and whoever wants
such a step back gives its index the old name.

A launcher starts the same command again (:mod:`train.checkpoints.launches`). Such a start does not
go back again, but continues from the branch's last step: :data:`WENT_BACK` tells that an earlier
start of the same launch has gone back. Another launch goes back again, with other settings, say,
also if its first start died before it came so far.

Example: of steps 2, 4, 6 and 8, a run goes back to 4, and dies once it has written a step 6 of its
own. Its next start continues from that 6; 8 stays aside until it is trained anew.
"""

import posixpath

from torchtitan.tools.logging import logger

from train.checkpoints.launches import is_restart, launch
from train.checkpoints.model_json import checkpoint_filesystem, steps_in, write_atomically
from train.checkpoints.steps import INDEXES, SET_ASIDE

WENT_BACK = "went-back-to"
"""A file beside the steps: the step that a run went back to last, and the launch of that run."""


def has_gone_back(folder: str, step: int) -> bool:
    """True if a launcher has started a command again that has gone back to this step before.

    Args:
        folder: directory or URL of the steps.
    """
    if not is_restart():
        return False
    files, path = checkpoint_filesystem(folder)
    file = posixpath.join(path, WENT_BACK)
    if not files.exists(file) or files.cat_file(file) != _record(step):
        return False
    logger.warning(
        f"--checkpoint.load-step: {step} is where an earlier start of this command went back to; "
        "this one continues from the last step"
    )
    return True


def go_back(folder: str, step: int) -> None:
    """Set aside the steps of a folder after ``step``, and log it; one rank calls this.

    Args:
        folder: directory or URL of the steps.
    """
    later = [place for place in steps_in(folder) if int(place.rpartition("-")[2]) > step]
    aside = [place for place in later if _set_aside(place)]
    files, path = checkpoint_filesystem(folder)
    write_atomically(files, posixpath.join(path, WENT_BACK), _record(step))
    if aside:
        names = ", ".join(place.rpartition("/")[2] for place in reversed(aside))
        logger.warning(
            f"{folder}: {names} came after step {step}, which training goes back to, and are set "
            f"aside; to continue from one of them instead, take {SET_ASIDE} off the name of its "
            "index"
        )


def _record(step: int) -> bytes:
    return f"{step} {launch()}".encode()


def _set_aside(place: str) -> bool:
    """Rename the index of a step; False if it has none."""
    files, path = checkpoint_filesystem(place)
    there = [name for name in INDEXES if files.exists(posixpath.join(path, name))]
    for name in there:
        index = posixpath.join(path, name)
        files.mv(index, index + SET_ASIDE)
    return bool(there)
