"""Pretraining on Ray and SLURM: undisturbed, interrupted, with a worker that is killed; what is
refused.
"""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import ray
import torch
from support import tiny
from support.jobs import ROOT, environment, hear_ctrl_c
from support.local_ray import a_worker_killed_when, share_local_ray, to_join_local_ray
from support.slurm import in_slurm, write_script
from support.texts import topics, write_jsonl

from model import Patcher
from pipeline.errors import ConfigError
from train.checkpoints.steps import read_step
from train.cluster.checks import RunPlan, absolute_paths, check_run

JOB, SLURM = ROOT / "jobs" / "pretrain.py", ROOT / "train" / "slurm.sh"
SMALL = (
    *("--config", "blt_debug", "--training.seq-len", "128", "--training.local-batch-size", "2"),
    *("--metrics.log-freq", "1", "--checkpoint.interval", "2"),
    "--metrics.disable-color-printing",
)
STEPS = 10


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


# Ends and deaths of workers are seen at once.
AT_ONCE = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


def variables(**more: str) -> dict[str, str]:
    return environment(OMP_NUM_THREADS="1", **AT_ONCE, **more)


def of_slurm(directory: Path, **more: str) -> dict[str, str]:
    return in_slurm(directory, OMP_NUM_THREADS="1", **AT_ONCE, **more)


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
            preexec_fn=hear_ctrl_c,
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


def losses(output: str) -> list[tuple[int, str]]:
    """What was logged of each step."""
    return [(int(n), loss) for n, loss in re.findall(r"step: +(\d+) +loss: +(\S+)", output)]


def pretrain(*flags: str, env: dict[str, str] | None = None) -> Run:
    return Run([sys.executable, JOB, *flags], env or variables())


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain", JOB)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def local_ray() -> None:
    share_local_ray(2, "train", settings=AT_ONCE)


@pytest.fixture
def pretrain_here(job, local_ray, monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """Run the job in this process, which has loaded its libraries and started Ray already; gives
    the exit status and what was said."""

    def run(*flags: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, flags)])
        monkeypatch.setenv("COLUMNS", "200")
        # The job ends its Ray, which here is that of other tests, too.
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        return job.main(), "".join(capfd.readouterr())

    return run


def weights(step: object) -> dict[str, torch.Tensor]:
    return read_step(str(step)).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> tuple[Run, Path]:
    """A run of two processes on SLURM, without Ray, and where its checkpoints are."""
    directory = tmp_path_factory.mktemp("undisturbed")
    env = of_slurm(directory / "bin", NPROC_PER_NODE="2")
    run = Run([SLURM, *arguments(shards, directory)], env)
    assert run.end() == 0, run.output
    assert [step for step, _ in losses(run.output)] == list(range(1, STEPS + 1))
    return run, directory / "checkpoint"


def test_slurm_requeues_before_its_time_is_up(tmp_path):
    env = of_slurm(tmp_path / "bin", SLURM_GPUS_ON_NODE="3", SLURM_RESTART_COUNT="4")
    said = tmp_path / "bin" / "said"
    write_script(tmp_path / "bin" / "python", f'echo "$@" >> {said}; echo begun; exec sleep 60')
    run = Run([SLURM, "--config", "a b"], env)
    run.until("begun")
    run.process.send_signal(signal.SIGUSR1)
    assert run.end() == 128 + signal.SIGTERM
    number = env["SLURM_JOB_ID"]
    nodes, training, requeue = said.read_text().splitlines()
    assert (nodes, requeue) == ("show hostnames n[1]", f"requeue {number}")
    assert "--nnodes 1 --nproc-per-node 3 --max-restarts 3" in training
    assert f"--rdzv-endpoint localhost:{20000 + int(number) % 10000}" in training
    assert f"--rdzv-id {number}-4" in training and training.endswith("-m train --config a b")
    write_script(tmp_path / "bin" / "python", "exit 3")
    assert Run([SLURM], env).end() == 3


@pytest.mark.parametrize("requeued", [True, False], ids=["requeued", "refused"])
def test_what_ends_by_itself_as_slurm_signals_keeps_its_status(tmp_path, requeued):
    env = of_slurm(tmp_path / "bin")
    write_script(tmp_path / "bin" / "python", "echo begun; sleep 0.3; exit 5")
    # It takes longer to answer than the training has left.
    answer = f"if [[ $1 == show ]]; then echo localhost; else sleep 1; exit {int(not requeued)}; fi"
    write_script(tmp_path / "bin" / "scontrol", answer)
    run = Run([SLURM], env)
    run.until("begun")
    run.process.send_signal(signal.SIGUSR1)
    assert run.end() == 5
    said = "goes back into the queue" if requeued else "training continues"
    assert said in run.output


def test_a_killed_worker_changes_nothing(shards, undisturbed, pretrain_here, tmp_path, monkeypatch):
    """On a local Ray, called from elsewhere with relative paths. A driver that is killed and run
    again: ``make chaos``."""
    (tmp_path / "here").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    complete = tmp_path / "run" / "checkpoint" / "step-4" / ".metadata"
    with a_worker_killed_when(complete.exists, "RayTrainWorker"):
        status, said = pretrain_here(*arguments("here", "run", "--num-workers", 2, "--json"))
    assert status == 0, said
    assert "workers were started again, to continue from the last checkpoint: " in said
    result = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    reference, checkpoints = undisturbed
    assert result["steps"] == STEPS and result["workers"] == 2
    assert result["checkpoint"] == f"{tmp_path}/run/checkpoint/step-10"
    assert f"{result['loss']:.5f}" == losses(reference.output)[-1][1]
    assert set(losses(said)) == set(losses(reference.output))
    assert equal(weights(result["checkpoint"]), weights(checkpoints / "step-10"))
    assert "pid=" not in said and "Traceback" not in said


def test_an_interrupted_run(shards, local_ray, tmp_path):
    """On a Ray that goes on without it, and has to be rid of its workers."""
    run = pretrain(*arguments(shards, tmp_path, steps=1000), env=variables(**to_join_local_ray()))
    run.until("step:  3")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert "interrupted; the same command continues from the last checkpoint" in run.output


def test_a_damaged_shard(shards, pretrain_here, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    (damaged,) = (copy / "shards").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    status, said = pretrain_here(*arguments(copy, tmp_path / "run", "--max-failures", 0))
    assert status == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"error: training failed: {damaged}: is damaged")
    assert last.endswith("; the same command continues from the last checkpoint")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "blt_9b"], r"--config: there is no blt_9b; there are blt_debug, blt_400m, "),
        (["--training.step", "3"], "Unrecognized options: --training.step, 3"),
        (["--training.steps", "x"], "--training.steps: invalid literal"),
        (["--parallelism.pipeline-parallel-degree", "2"], "--parallelism.pipeline-parallel-degree"),
        (["--dataloader.shards", "none"], r"--dataloader.shards: /.*/none: no such directory"),
        (["--dataloader.weights", "0"], r"--dataloader.weights: must be positive"),
        (["--training.seq-len", "4"], "--training.seq_len: must be at least 8"),
        (["--validator.enable"], "--validator.dataloader.shards: name at least one"),
        (["--checkpoint.initial-load-path=x"], "--checkpoint.initial-load-path /.*/x: there is no"),
        (["--dump-folder", "s4://x"], "--dump-folder s4://x: cannot be read: Protocol not known"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(shards, tmp_path, flags, message):
    given = {"--config": "blt_debug", "--dataloader.shards": str(shards)}
    given |= {"--dump-folder": str(tmp_path)}
    for flag, value in zip(flags[::2], flags[1::2], strict=False):
        given[flag] = value
    rest = flags if len(flags) == 1 else []
    name = given.pop("--config")
    told = [part for pair in given.items() for part in pair]
    with pytest.raises(ConfigError, match=message):
        check_run(["--config", name, *absolute_paths([*told, *rest])])


def test_the_result_names_the_last_complete_step(job, tmp_path):
    """Later ones may be set aside, after going back, or incomplete, after a kill."""
    for step, name in ((4, ".metadata"), (6, ".metadata"), (8, ".metadata.set-aside"), (9, "0")):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / name).touch()
    metrics = {"loss": 1.5, "validation_bits_per_byte": float("nan")}
    result = job.summarize(RunPlan(6, str(tmp_path), True), metrics, 1, 1.0)
    assert (result.steps, result.checkpoint) == (6, f"{tmp_path}/step-6")
    told = json.loads(result.line, parse_constant=pytest.fail)
    assert told["loss"] == 1.5 and told["validation_bits_per_byte"] is None


def test_paths_are_made_whole(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataloader.shards", "a,s3://b,/c", "--checkpoint.initial_load_path=d", "x:none"]
    made = [
        "--dump-folder",
        f"{tmp_path}/outputs",
        "--dataloader.shards",
        f"{tmp_path}/a,s3://b,/c",
    ]
    made += [f"--checkpoint.initial_load_path={tmp_path}/d", "x:none"]
    assert absolute_paths(flags) == made
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for flag in ("--dataloader.shards", "--validator.dataloader.shards", "--dump_folder"):
        with pytest.raises(ConfigError, match=f"{flag} e: is relative to a copy"):
            absolute_paths([flag, "e"])


def test_too_many_workers(pretrain_here, shards, tmp_path):
    for flags, message in (
        (("--num-workers", 0), "--num-workers: must be at least 1, got 0"),
        (("--gpus-per-worker", 1, "--num-workers", 1000), "this machine has room for"),
    ):
        status, said = pretrain_here(*arguments(shards, tmp_path, *flags))
        assert status == 2 and message in said
