"""Configurations, and what is refused: in one sentence that names the flag, before any work."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support.jobs import ROOT, environment
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, start, tiny
from torchtitan.config import ConfigManager

from model import BLT_SIZES
from pipeline.errors import ConfigError
from pipeline.storage.outages import PATIENCE_S
from train import __main__ as program
from train.config_registry import blt_1b
from train.flags.configurations import configurations
from train.model_spec import ENTROPY_SIZES
from train.trainer import ByteTrainer

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("shards")
    write_shards(str(url), real_texts(20))
    return url


def parse(*arguments: str):
    return ConfigManager().parse_args(["--module", "train", *arguments])


def test_every_size_has_a_configuration():
    names = configurations()
    assert {f"blt_{size}" for size in BLT_SIZES} <= set(names)
    assert {f"entropy_{size}" for size in ENTROPY_SIZES} <= set(names)
    for name, says in names.items():
        config = parse("--config", name, "--dataloader.shards", "a,b", "--training.steps", "7")
        assert says and config.dataloader.shards == ["a", "b"] and config.training.steps == 7
        is_blt = name.startswith("blt")
        assert config.dataloader.patches == config.validator.dataloader.patches == is_blt
        # A run that is started again continues.
        assert config.checkpoint.enable and not config.checkpoint.last_save_model_only
        # A rank that waits for storage does not end the others.
        assert config.comm.train_timeout_seconds > PATIENCE_S < config.comm.init_timeout_seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--parallelism.pipeline-parallel-degree 2", "--parallelism.pipeline-parallel-degree: not"),
        ("--parallelism.context-parallel-degree 2", "--parallelism.context-parallel-degree: not"),
        ("--parallelism.expert-parallel-degree 2", "--parallelism.expert-parallel-degree: not"),
        ("--parallelism.spmd-backend full_dtensor", "--parallelism.spmd-backend: full_dtensor"),
        *(
            pytest.param(*given, marks=CPU_ONLY)
            for given in (
                ("--compile.enable", "--compile.enable: needs a GPU"),
                ("--training.mixed-precision-param bfloat16", "--training.mixed-precision-param: "),
                ("--training.enable-cpu-offload", "--training.enable-cpu-offload: there is no"),
                ("--training.no-disable-cuda-graphs", "--training.disable-cuda-graphs: there is"),
            )
        ),
        (
            "--parallelism.tensor-parallel-degree 4 --shape.hidden-dim-global 510",
            "--parallelism.tensor-parallel-degree: 4 ranks cannot share the 510 features",
        ),
        ("--training.steps -3", "--training.steps: must not be negative, got -3"),
        ("--metrics.log-freq 0", "--metrics.log-freq: every so many steps, at least 1, got 0"),
        ("--training.gc-freq 0", "--training.gc-freq: every so many steps, at least 1, got 0"),
        ("--validator.freq -1", "--validator.freq: every so many steps, at least 1, got -1; --v"),
        *(
            (f"--optimizer.param-groups.0.optimizer-kwargs.{given}", f"--optimizer.param-g{says}")
            for given, says in (
                ("lr -1e-3", "roups.0.optimizer-kwargs.lr: from 0 on, got -0.001"),
                ("lr nan", "roups.0.optimizer-kwargs.lr: from 0 on, got nan"),
                ("eps 0", "roups.0.optimizer-kwargs.eps: above 0, got 0.0"),
                ("betas 0.9 1", "roups.0.optimizer-kwargs.betas: from 0 to below 1, got 1.0"),
                ("weight-decay -1", "roups.0.optimizer-kwargs.weight-decay: from 0 on, got -1.0"),
            )
        ),
        ("--training.max-norm 0", "--training.max-norm: 0.0 would leave nothing of a gradient"),
        ("--training.max-norm nan", "--training.max-norm: nan would leave"),
        ("--lr-scheduler.min-lr-factor 2", "--lr-scheduler.min-lr-factor: from 0 to 1, got 2.0"),
        ("--lr-scheduler.decay-ratio -1", "--lr-scheduler.decay-ratio: from 0 to 1, got -1.0"),
        ("--lr-scheduler.warmup-steps -1", "--lr-scheduler.warmup-steps: from 0 on, got -1"),
        (
            "--training.steps 9 --lr-scheduler.total-steps 8",
            "--lr-scheduler.total-steps: the schedule ends after 8 steps, and the training has 9",
        ),
        (
            "--checkpoint.exclude-from-loading dataloader,optimiser",
            "--checkpoint.exclude-from-loading: optimiser is no part of a step",
        ),
        ("--dataloader.no-infinite", "--dataloader.no-infinite: is for validation"),
        (
            "--dump-folder s3://bucket/run --metrics.enable-tensorboard",
            "--metrics.enable_tensorboard: writes local files",
        ),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ConfigError) as raised:
        parse("--config", "blt_debug", *arguments.split())
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("has_units", [True, False])
def test_precision_is_what_the_gpu_has_units_for(monkeypatch, has_units):
    """Nothing is compiled in bfloat16 for a T4 or V100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_units)
    config = parse("--config", "blt_1b")
    assert config.training.mixed_precision_param == ("bfloat16" if has_units else "float32")
    assert config.compile.enable
    given = ["--config", "blt_1b", "--training.mixed-precision-param", "bfloat16"]
    with nullcontext() if has_units else pytest.raises(ConfigError, match="use float32"):
        parse(*given)


@CPU_ONLY
def test_the_loss_alone_can_be_compiled_on_a_cpu():
    parse("--config", "blt_debug", "--compile.enable", "--compile.components", "loss")


@pytest.mark.slow
def test_one_process_needs_no_launcher(shards, tmp_path):
    """And Weights & Biases works."""
    given = (*tiny("entropy_debug", shards, rows=ROWS, steps=1), "--metrics.enable-wandb")
    done = subprocess.run(
        [sys.executable, "-m", "train", *map(str, given), "--dump-folder", str(tmp_path)],
        env=environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", WANDB_MODE="offline"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step:  1  loss: " in done.stdout and " bits per byte, " in done.stdout
    assert (tmp_path / "checkpoint" / "step-1" / ".metadata").exists()
    (history,) = tmp_path.glob("tb/*/wandb/offline-run-*/*.wandb")
    assert b"bits_per_byte" in history.read_bytes()


def refusals(shards: Path, other: Path, used: Path) -> list[tuple[list[object], int, int, str]]:
    """Arguments, ranks, exit status, and what is printed."""
    blt = list(tiny("blt_debug", shards, rows=ROWS))
    entropy = list(tiny("entropy_debug", shards, rows=ROWS))
    nothing = str(shards / "nothing")

    def where(place: object) -> list[object]:
        return [place if value == shards else value for value in blt]

    validating = [*blt, "--validator.enable"]
    return [
        ([], 1, 0, "python -m train --config NAME --dataloader.shards"),
        (["--help"], 1, 0, "  blt_8b_float8         blt_8b with the latent transformer's"),
        (blt[2:], 1, 2, "--config: is not given; choose one of blt_debug, "),
        (["--config", "blt_9b"], 1, 2, "--config: there is no blt_9b; there are blt_debug, "),
        (["--config", "blt_debug"], 1, 2, "dataloader.shards: name at least one"),
        (where(nothing), 1, 2, f"--dataloader.shards: {nothing}: no such directory"),
        ([*blt, "--dataloader.weights", 1, 2], 1, 2, "dataloader.weights: 2 for 1"),
        (validating, 1, 2, "validator.dataloader.shards: name at least one"),
        (
            [*validating, "--validator.dataloader.shards", nothing],
            *(1, 2, f"--validator.dataloader.shards: {nothing}: no such directory"),
        ),
        ([*blt, "--debug.seed", 1, "--debug.seed", 2], 1, 2, "--debug.seed: is given more than"),
        (
            [5 if value == ROWS else value for value in blt[:8]] + [*blt[8:]],
            *(1, 2, "--training.global-batch-size: 12 is no multiple of 5"),
        ),
        (
            [*blt, "--parallelism.data-parallel-replicate-degree", 2],
            *(1, 2, "--parallelism.*-degree: data_parallel_replicate 2, "),
        ),
        (
            [*blt, "--parallelism.tensor-parallel-degree", 3],
            *(3, 2, "--parallelism.tensor-parallel-degree: 3 ranks cannot share the 4"),
        ),
        (
            [*blt, "--checkpoint.initial-load-path", nothing, "--checkpoint.initial-load-in-hf"],
            *(1, 1, f"--checkpoint.initial-load-path: {nothing}: is no directory"),
        ),
        (
            [*blt, "--checkpoint.initial-load-path", shards, "--checkpoint.initial-load-in-hf"],
            *(1, 1, f"{shards}: no BLT in a known layout"),
        ),
        (
            [*entropy, "--dump-folder", used],
            1,
            1,
            "holds steps of another model: it is a BLT there",
        ),
        (
            [*where(other), "--dump-folder", used],
            *(1, 2, "dataloader: the checkpoint was made with other rows: shards"),
        ),
        (["--config", "blt_debug", "--nothing"], 1, 2, "Unrecognized options: --nothing"),
        (["--config", "blt_debug", "--checkpoint.interval", 0], 1, 2, "interval needs to be at"),
    ]


@pytest.mark.slow
def test_refusals(shards, tmp_path):
    """In one sentence, and without a traceback."""
    other = tmp_path / "other"
    write_shards(str(other), real_texts(20, seed=5))
    used = start(tmp_path / "used", *tiny("blt_debug", shards, rows=ROWS, steps=1)).wait().folder
    cases = refusals(shards, other, used)
    begun = []
    for i, (arguments, ranks, _, _) in enumerate(cases):
        begun.append(start(tmp_path / str(i), *arguments, ranks=ranks))
        if i % 2:  # So many at a time.
            for run in begun:
                run.wait()
    for run, (arguments, ranks, status, message) in zip(begun, cases, strict=True):
        run.wait()
        assert message in run.output, (arguments, run.output)
        assert "Traceback" not in run.output, run.output
        assert run.exit_codes == [status] * ranks, (arguments, run.output)
        assert not run.metrics
        if status and "Unrecognized" not in message and "interval" not in message:
            (line,) = {s for s in run.output.splitlines() if s.startswith("error: ")}
            assert message in line


def test_a_tilde_that_a_shell_leaves_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    given = ["train", "--config=blt_debug", "--dump-folder=~/runs", "--x", "~/y", "--prompt=a ~/b"]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(program, "main", lambda: None)
    assert program.command() == 0
    expected = ["--dump-folder=/home/somebody/runs", "--x", "~/y", "--prompt=a ~/b"]
    assert sys.argv[2:] == expected


@pytest.mark.parametrize(
    ("rows", "rows_of_step", "advice"),
    [
        (4, 512, "give 2, and a step takes as many rows as before, in more parts; jobs/plan.py"),
        (3, -1, "give 1; jobs/plan.py"),
        (1, 512, "activation-checkpoint:full at the end of the command keeps less"),
    ],
)
def test_a_gpu_without_memory_is_told(monkeypatch, rows, rows_of_step, advice):
    """CUDA's message, as it is on a GPU, and what to do."""
    config = blt_1b()
    config.training.local_batch_size, config.training.global_batch_size = rows, rows_of_step
    trainer = ByteTrainer.__new__(ByteTrainer)
    trainer.config = config

    def without_memory(self, data_iterator):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 "
            "GiB of which 1.21 GiB is free. If reserved but unallocated memory is large try "
            "setting PYTORCH_ALLOC_CONF"
        )

    monkeypatch.setattr(ByteTrainer, "_train_or_skip", without_memory)
    with pytest.raises(ConfigError) as raised:
        trainer.train_step(iter(()))
    said = str(raised.value)
    assert said.startswith(f"--training.local-batch-size: {rows} rows of {config.training.seq_len}")
    assert "GPU 0 has a total capacity of 79.11 GiB of which 1.21 GiB is free); " in said
    assert advice in said and "PYTORCH_ALLOC_CONF" not in said
