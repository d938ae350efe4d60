"""Initial weights that lie on the hub: each node downloads them once, before training."""

import os
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from model.checkpoints.files import CheckpointError
from model.checkpoints.places import download

HUB = "hf://"
PATIENCE = timedelta(hours=12)
"""How long ranks wait for a download; their other exchanges give up much earlier."""


def is_on_hub(source: str | None) -> bool:
    """True if weights lie on the hub: ``hf://owner/name`` or ``hf://owner/name@revision``."""
    return bool(source) and str(source).startswith(HUB)


def on_this_node(source: str) -> str:
    """The local directory of weights on the hub, in its cache.

    Rank 0 downloads first, and finds out which commit it is; then the first rank of each node, of
    the same commit. A cache that nodes share is filled once, and the hub is asked once per node.
    All ranks call this together.

    Args:
        source: as :func:`is_on_hub` describes it.

    Raises:
        CheckpointError: a node cannot download them, on all ranks alike; says why.
    """
    repository, _, revision = source.removeprefix(HUB).rstrip("/").partition("@")
    wanted = revision or None
    if not dist.is_initialized():
        return download(repository, revision=wanted)
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    is_first, of_node = dist.get_rank() == 0, int(os.environ.get("LOCAL_RANK", "0")) == 0
    directory = ""
    for turn, mine in enumerate((is_first, of_node, True)):
        problem = ""
        if mine and not directory:
            try:
                directory = download(repository, revision=wanted, offline=turn == 2)
            except CheckpointError as error:
                problem = str(error)
        answers: list[tuple[str, str]] = [("", "")] * dist.get_world_size()
        dist.all_gather_object(answers, (problem, directory), group=group)
        if problems := [problem for problem, _ in answers if problem]:
            raise CheckpointError(f"--checkpoint.initial-load-path: {problems[0]}")
        wanted = Path(answers[0][1]).name  # directories in the cache have the names of commits
    dist.destroy_process_group(group)
    return directory
