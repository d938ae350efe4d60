"""A folder of steps that all machines see.

Each rank writes its part of a step itself. Where a local path means another disk on each machine,
all of them would be written without an error, and no machine would hold a whole step.
"""

import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError
from train.checkpoints.collective import gathered, on_rank_0
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically

PATIENCE_S = 30.0
"""Seconds after which a new file is seen elsewhere, even if a network filesystem caches."""
POLL_S = 0.5


def check_shared(folder: str) -> None:
    """Look whether the first rank of each machine sees a file that rank 0 writes. All ranks call
    this together; URLs of remote storage mean the same everywhere, and are not looked at.

    Args:
        folder: directory of the steps; rank 0 creates it if need be.

    Raises:
        ConfigError: a machine does not see it; names one, on all ranks alike.
    """
    filesystem, path = checkpoint_filesystem(folder)
    if dist.get_world_size() == 1 or not isinstance(filesystem, LocalFileSystem):
        return
    name = f"seen-by-all-{uuid.uuid4().hex}"

    def write() -> tuple[str, str]:
        write_atomically(filesystem, f"{path}/{name}", b"")
        return name, socket.gethostname()

    name, writer = on_rank_0(write)
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    sees = not is_first or _appears(Path(path, name))
    blind = [host for host in gathered(None if sees else socket.gethostname()) if host]
    if dist.get_rank() == 0:
        with suppress(OSError):
            Path(path, name).unlink()
    if blind:
        more = f" and {len(blind) - 1} more" if len(blind) > 1 else ""
        raise ConfigError(
            f"--dump-folder: {folder}: what {writer} writes there is not seen on {blind[0]}{more}, "
            "so no machine would hold a whole step; give a directory that all machines share, or a "
            "URL"
        )


def _appears(file: Path) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True
