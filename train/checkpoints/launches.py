"""Starts of one command: a launcher starts it again when a process or node dies, or when a time
limit is up. Such a start continues what an earlier one began; another launch does what its flags
say."""

import os

RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Variables in which launchers count how often they have started the same command again."""
LAUNCHES = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
"""Variables that are the same in all starts of one launch, and others in another one; the first
that is there counts, because a requeued job of SLURM makes another run of torchrun."""


def is_restart() -> bool:
    """True if a launcher has started this command before."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in RESTARTS)


def launch() -> str:
    """A name that all starts of this launch have; empty if no launcher gives one."""
    return next((os.environ[name] for name in LAUNCHES if os.environ.get(name)), "")
