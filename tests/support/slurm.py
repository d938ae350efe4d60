"""Commands that stand in for SLURM's, on one machine."""

import os
import sys
from pathlib import Path

from support.jobs import environment


def in_slurm(directory: Path, **more: str) -> dict[str, str]:
    """The environment of a SLURM job, by default of one node, with commands below ``directory``:
    ``srun`` runs its command once, and ``scontrol`` writes what it is asked for into ``said``."""
    directory.mkdir()
    for name, script in (
        ("srun", 'while [[ $1 == -* ]]; do shift; done; exec "$@"'),
        ("scontrol", f'[[ $1 != show ]] || echo localhost; echo "$@" >> {directory}/said'),
    ):
        write_script(directory / name, script)
    path = os.pathsep.join([str(directory), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1]"}
    return environment(PATH=path, **{"SLURM_JOB_NUM_NODES": "1"} | job | more)


def write_script(path: Path, script: str) -> None:
    """Write a script of bash that can be run."""
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
