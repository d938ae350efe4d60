"""Pretraining on Ray and SLURM: undisturbed, with a worker or a driver that is killed, on S3; and
what is refused.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import s3fs
import tiny
import torch
from clusters import a_head_node, an_s3_server, ray_cli
from conftest import ROOT, environment, topics, write_jsonl

from model import Patcher
from pipeline.errors import ConfigError
from train.steps import read_step

JOB, SLURM = ROOT / "jobs" / "pretrain.py", ROOT / "train" / "slurm.sh"
SMALL = (
    *("--config", "blt_debug", "--training.seq-len", "128", "--training.local-batch-size", "2"),
    *("--metrics.log-freq", "1", "--checkpoint.interval", "2"),
    "--metrics.disable-color-printing",
)
STEPS = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    text = [(name, text[:3000]) for name, text in topics()[:40]]
    corpus = write_jsonl(directory / "in" / "topics.jsonl", text)
    tiny.make_shards(
        directory / "shards", corpus.parent, tiny.entropy_model(), Patcher(tiny.THRESHOLD)
    )
    return directory / "shards"


def arguments(shards: object, dump: object, *more: object, steps: int = STEPS) -> list[str]:
    flags = ("--dataloader.shards", shards, "--dump-folder", dump, "--training.steps", steps)
    return [*SMALL, *map(str, flags), *map(str, more)]


def variables(**more: str) -> dict[str, str]:
    # Deaths of workers are seen at once.
    return environment(OMP_NUM_THREADS="1", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5", **more)


class Run:
    """A command that is watched, and may be disturbed, while it runs."""

    def __init__(self, command: list[object], env: dict[str, str], cwd: Path = ROOT):
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env=env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def until(self, text: str) -> None:
        """Go on until it says so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"{text!r} was never said:\n{self.output}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait(120)

    def losses(self) -> list[tuple[int, str]]:
        return [
            (int(n), loss) for n, loss in re.findall(r"step: +(\d+) +loss: +(\S+)", self.output)
        ]


def pretrain(*flags: str, env: dict[str, str] | None = None) -> Run:
    return Run([sys.executable, JOB, *flags], env or variables())


def weights(step: object) -> dict[str, torch.Tensor]:
    return read_step(str(step)).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> dict[str, str]:
    """The environment of a SLURM job on one node, with commands that stand in for SLURM's."""
    directory = tmp_path_factory.mktemp("slurm")
    for name, script in (
        ("srun", 'while [[ $1 == -* ]]; do shift; done\nexec "$@"'),
        (
            "scontrol",
            f'if [[ $1 == show ]]; then echo localhost; fi\necho "$@" >> {directory}/said',
        ),
    ):
        (directory / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (directory / name).chmod(0o755)
    path = os.pathsep.join([str(directory), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1]"}
    job |= {"SLURM_JOB_NUM_NODES": "1", "NPROC_PER_NODE": "2", "MAX_RESTARTS": "0"}
    return variables(PATH=path, SAID=str(directory / "said"), **job)


@pytest.fixture(scope="module")
def undisturbed(shards, slurm, tmp_path_factory) -> tuple[Run, Path]:
    """A run of two processes, without Ray, and where its checkpoints are."""
    dump = tmp_path_factory.mktemp("undisturbed")
    run = Run([SLURM, *arguments(shards, dump)], slurm)
    assert run.end() == 0, run.output
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
    return run, dump / "checkpoint"


def test_slurm_requeues_before_its_time_is_up(shards, slurm, undisturbed, tmp_path):
    run = Run([SLURM, *arguments(shards, tmp_path)], slurm)
    run.until("step:  3")
    run.process.send_signal(signal.SIGUSR1)
    assert run.end() != 0
    assert f"requeue {slurm['SLURM_JOB_ID']}\n" in Path(slurm["SAID"]).read_text()
    again = Run([SLURM, *arguments(shards, tmp_path)], slurm | {"SLURM_RESTART_COUNT": "1"})
    assert again.end() == 0, again.output
    reference, checkpoints = undisturbed
    # The last step before the signal may have been saved, or not.
    assert again.losses()[0][0] in (3, 5)
    assert set(run.losses() + again.losses()) == set(reference.losses())
    assert equal(weights(tmp_path / "checkpoint/step-8"), weights(checkpoints / "step-8"))


def workers_of(run: Run) -> list[psutil.Process]:
    children = psutil.Process(run.process.pid).children(recursive=True)
    return [p for p in children if "ray::" in p.name() and "Worker" in " ".join(p.cmdline())]


def test_a_killed_worker_changes_nothing(shards, undisturbed, tmp_path):
    """On a local Ray, called from elsewhere with relative paths."""
    (tmp_path / "here").symlink_to(shards)
    flags = arguments("here", "run", "--num-workers", 2)
    run = Run([sys.executable, JOB, *flags], variables(), tmp_path)
    run.until("step:  5")
    killed = [p for p in workers_of(run) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert len(killed) == 2
    killed[1].kill()
    assert run.end() == 0, run.output
    assert "workers are started again, from the last checkpoint" in run.output
    assert "pid=" not in run.output and "Traceback" not in run.output
    assert run.output.endswith(f"checkpoint: {tmp_path}/run/checkpoint/step-8\n")
    reference, checkpoints = undisturbed
    assert len(run.losses()) > STEPS
    assert set(run.losses()) == set(reference.losses())
    assert equal(weights(tmp_path / "run/checkpoint/step-8"), weights(checkpoints / "step-8"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A Ray cluster whose nodes can use an S3 server; gives the environment of who submits."""
    with (
        an_s3_server(tmp_path_factory.mktemp("s3")),
        a_head_node(tmp_path_factory.mktemp("ray")) as env,
    ):
        yield variables() | env


def test_on_s3_with_other_numbers_of_workers(shards, cluster, undisturbed):
    s3fs.S3FileSystem(skip_instance_cache=True).put(str(shards), "corpus/shards", recursive=True)
    s3 = ("s3://corpus/shards", "s3://corpus/run")
    submit = ("job", "submit", "--working-dir", ".", "--", "python", "jobs/pretrain.py")
    done = ray_cli(*submit, *arguments(*s3, "--num-workers", 2, steps=3), env=cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkpoint: s3://corpus/run/checkpoint/step-3" in done.stdout
    assert "Traceback" not in done.stdout
    relative = ray_cli(*submit, *arguments("shards", "s3://corpus/run"), env=cluster)
    assert relative.returncode != 0
    assert "--dataloader.shards shards: is relative to a copy" in relative.stdout
    del undisturbed
