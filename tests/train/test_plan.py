"""Plans are computed: what they say is held against the models themselves."""

import json
import math
import runpy
import sys
from dataclasses import replace

import pytest
import torch
from pictures.many_nodes import PAGE, parts
from support.blt_cases import tiny
from support.fake_ranks import fake_ranks, parallelized
from support.jobs import ROOT
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

from model import BLT, BLT_SIZES
from pipeline.errors import ConfigError
from train import plan as plans
from train.config_registry import blt_1b, blt_8b, blt_debug, entropy_100m
from train.flags.assumptions import Assumptions
from train.live_memory import LiveMemory, activation_bytes
from train.plan import best_interval, count_parameters, markdown_table, plan

GB = 10**9


@pytest.mark.parametrize("copies", [1, 8])
def test_parameters_are_those_of_the_first_rank(copies):
    """Of 64 ranks, as FSDP deals them out; tables are exact by another way."""
    config = blt_1b()
    config.parallelism.data_parallel_replicate_degree = copies
    with fake_ranks(64):
        model = parallelized(config, 64)
        dense = {n: p for n, p in model.named_parameters() if "hash_tok" not in n}
        held = sum(p.to_local().numel() for p in dense.values())
    count = count_parameters(BLT_SIZES["1b"], shard=64 // copies, ranks=64)
    assert count.held == held
    assert count.dense == sum(p.numel() for p in dense.values())
    assert count.tables == 6 * 500_002 * 1024 and count.tables_held == count.tables // 64
    # Ranks whose number does not divide the columns hold as many as DTensor deals out.
    assert count_parameters(BLT_SIZES["1b"], shard=8, ranks=100).tables_held == 6 * 500_002 * 11
    largest = 4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048
    assert count.largest_block == largest
    blocks = 25 * largest + 10 * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024)
    assert count.around == count.dense - blocks


def test_bytes_of_a_parameter_are_those_of_its_optimizer():
    model = BLT(tiny())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    parameters = sum(weight.numel() for weight in model.parameters())
    moments = [t for state in optimizer.state.values() for n, t in state.items() if n != "step"]
    assert sum(t.nbytes for t in moments) == plans.MOMENTS * parameters
    assert sum(weight.grad.nbytes for weight in model.parameters()) == plans.MASTER * parameters


def test_memory_that_is_held():
    """By hand: relu keeps its result, a product its input; the rest is gone."""
    x = torch.empty(1000, 100, device="meta")
    weight = torch.empty(100, 100, device="meta", requires_grad=True)
    with LiveMemory() as memory:
        kept = torch.relu((x + 1) @ weight)
        assert memory.look() == 2 * 400_000  # x + 1 for the weight's gradient, and the result
        kept = (kept * 2).sum()
        assert memory.look() == 2 * 400_000 + 4
        kept.backward()
        assert memory.look() == 4 + 40_000  # the gradient of the weight
    assert memory.peak >= 2 * 400_000 + 4


def test_activations_grow_with_rows_and_shrink_with_checkpointing():
    shape = replace(BLT_SIZES["debug"], n_layers_global=8)

    def counted(rows: int, checkpointing: object = None) -> int:
        given = {"seq_len": 512, "patches": 128, "checkpointing": checkpointing}
        return activation_bytes(shape, rows=rows, **given)

    assert counted(8) == pytest.approx(2 * counted(4), rel=0.05)
    assert 0.9 * counted(4) > counted(4, SelectiveAC.Config()) > counted(4, FullAC.Config())
    # At least the result of each layer is kept: bytes 64 wide, patches 128 wide, in bfloat16.
    assert counted(4, FullAC.Config()) > 2 * 4 * (3 * 512 * 64 + 8 * 128 * 128)
    entropy = activation_bytes(
        entropy_100m().model_spec.model.shape, rows=1, seq_len=512, patches=1, checkpointing=None
    )
    assert entropy > 2 * 14 * 512 * 768


def test_the_best_interval_is_the_best():
    def lost(interval: float) -> float:
        return 50 / interval + interval / 2 / 100_000

    best = best_interval(50, 100_000)
    assert best == pytest.approx(3162, abs=1) and lost(best) == pytest.approx(0.0316, abs=1e-4)
    assert lost(best) < min(lost(0.9 * best), lost(1.1 * best))


def test_the_smallest_group_that_fits():
    config, activations = blt_8b(), 32 * GB
    roomy = plan(config, 64, Assumptions(), activations)
    assert (roomy.shard, roomy.copies, roomy.fits) == (8, 8, True)
    assert roomy.memory <= 72 * GB and roomy.most_rows >= config.training.local_batch_size
    tight = plan(config, 64, Assumptions(gpu_memory=48), activations)
    assert (tight.shard, tight.copies, tight.fits) == (16, 4, True)
    none = plan(config, 64, Assumptions(gpu_memory=20), activations)
    assert (none.shard, none.copies, none.fits) == (64, 1, False)
    config.training.global_batch_size = -1
    three_nodes = plan(config, 24, Assumptions(gpu_memory=52), activations)
    assert (three_nodes.shard, three_nodes.copies, three_nodes.fits) == (24, 1, True)
    # 16 bytes a parameter, 12 in the checkpoint.
    count = count_parameters(BLT_SIZES["8b"], shard=8, ranks=64)
    assert roomy.state == 16 * count.held
    assert roomy.checkpoint == 12 * (count.dense + count.tables)
    # The layout that the flags ask for.
    config.parallelism.data_parallel_replicate_degree = 2
    assert plan(config, 64, Assumptions(), activations).shard == 32
    config.parallelism.data_parallel_shard_degree = 4
    with pytest.raises(ConfigError, match=r"shard-degree: 4 ranks times 2 copies .* are not 64 "):
        plan(config, 64, Assumptions(), activations)
    config.parallelism.data_parallel_replicate_degree = 16
    assert plan(config, 64, Assumptions(), activations).shard == 4
    config.parallelism.data_parallel_shard_degree = -1
    config.parallelism.data_parallel_replicate_degree = 2
    with pytest.raises(ConfigError, match="replicate-degree: 63 GPUs cannot hold 2 copies"):
        plan(config, 63, Assumptions(), activations)
    config.parallelism.tensor_parallel_degree = 2
    with pytest.raises(ConfigError, match="tensor-parallel-degree: is not planned"):
        plan(config, 64, Assumptions(), activations)


def test_whole_weights_that_ranks_keep_until_backward():
    config = blt_8b()
    config.training.mixed_precision_param = "bfloat16"
    count = count_parameters(BLT_SIZES["8b"], shard=8, ranks=8)
    usual = plan(config, 8, Assumptions(), GB).gathered
    config.parallelism.fsdp_reshard_after_forward = "never"
    kept = plan(config, 8, Assumptions(), GB).gathered
    assert kept - usual == 2 * (count.dense - count.around - 2 * count.largest_block)
    config.training.mixed_precision_param = "float32"
    assert plan(config, 8, Assumptions(), GB).gathered == kept + 2 * count.dense


def test_time_and_text_of_a_step():
    config = blt_1b()
    config.training.global_batch_size, config.training.steps = 2048, 1000
    assumed = Assumptions()
    one, many = (plan(config, gpus, assumed, 25 * GB) for gpus in (8, 512))
    assert one.step_bytes == many.step_bytes == 2048 * 8192
    assert (one.microbatches, many.microbatches) == (64, 1)
    assert one.step_flops == many.step_flops
    assert one.step_seconds == pytest.approx(64 * many.step_seconds)
    rate = 8 * 989e12 * 0.4
    assert one.step_seconds == pytest.approx(one.step_flops / rate)
    assert one.days == pytest.approx(1000 * one.step_seconds / 86_400)
    # 64 nodes fail 64 times as often: every 4 days.
    assert many.failures == pytest.approx(64 / 264)
    # Half an interval of seconds, and ten minutes, on all GPUs.
    lost_s = many.interval * many.step_seconds / 2 + 600
    assert many.lost == pytest.approx(512 * lost_s / 3600, rel=1e-3)


def test_a_step_without_a_batch_is_what_all_ranks_take_at_once():
    """As in the trainer."""
    config = entropy_100m()
    for gpus in (1, 96):
        one = plan(config, gpus, Assumptions(), GB)
        assert (one.microbatches, one.step_bytes) == (1, gpus * 8 * 8192)


def test_the_page_has_the_table_that_the_job_prints():
    _, table, _ = parts()
    rows = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")}
    assert {f"blt_{size}" for size in BLT_SIZES if size != "debug"} < rows
    config, assumed = blt_1b(), Assumptions()
    config.training.mixed_precision_param = "bfloat16"  # as on GPUs
    found = [
        plan(config, n, assumed, plans.activations_of(config, assumed)) for n in (1, 8, 64, 512)
    ]
    printed = [
        [*map(str.strip, s.split("|"))] for s in markdown_table({"blt_1b": found}).splitlines()
    ]
    written = [[*map(str.strip, s.split("|"))] for s in table.splitlines()]
    missing = [line for line in printed[:1] + printed[2:] if line not in written]
    assert not missing, f"{PAGE}: run python tests/pictures/many_nodes.py"


def run_job(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jobs/plan.py", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "jobs" / "plan.py"), run_name="__main__")
    return (left.value.code, *capsys.readouterr())


def test_the_job(monkeypatch, capsys):
    given = ("--config", "blt_debug", "entropy_debug", "--gpus", "2", "16")
    code, out, _ = run_job(monkeypatch, capsys, *given, "--training.seq-len", "256", "--json")
    found = json.loads(out)
    assert code == 0 and list(found) == ["blt_debug", "entropy_debug"]
    assert [one["gpus"] for one in found["blt_debug"]] == [2, 16]
    assert found["entropy_debug"][0]["tables"] == 0 < found["blt_debug"][0]["tables"]
    code, out, _ = run_job(monkeypatch, capsys, *given[:2], "--shape.n-layers-global", "4")
    assert code == 0 and out.count("blt_debug") == 4 and "Assumed: bytes_per_patch = 4.5" in out
    less = ("--json", *given[:2], "--gpus", "8", "activation-checkpoint:full")
    code, out, _ = run_job(monkeypatch, capsys, *less)
    (one,) = json.loads(out)["blt_debug"]
    code, out, _ = run_job(monkeypatch, capsys, *less[:-1])
    (plain,) = json.loads(out)["blt_debug"]
    assert one["activations"] < plain["activations"]
    # Flags of GPUs, which this machine may lack; and what takes more memory there.
    on_gpus = ("--compile.enable", "--checkpoint.async-mode", "async_with_pinned_mem")
    code, out, _ = run_job(monkeypatch, capsys, *less[:-1], *on_gpus)
    assert code == 0 and json.loads(out)["blt_debug"] == [plain]
    wide = ("--training.mixed-precision-param", "float32")
    code, out, _ = run_job(monkeypatch, capsys, *less[:-1], *wide)
    assert json.loads(out)["blt_debug"][0]["activations"] > 1.3 * plain["activations"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--config blt_9b", "--config: there is no blt_9b; there are blt_debug, "),
        ("--config blt_1b --gpus 8 96", "--training.global-batch-size: 2048 is no multiple of 384"),
        ("--config blt_debug --mfu 0", "--mfu: has to be positive"),
        ("--config blt_debug --gpus 0 8", "--gpus: 0 is no number of GPUs"),
        ("--config blt_debug --shape.dim-global 3", "--shape.n-heads-global: 4 heads do not"),
        ("--config blt_debug --parallelism.tensor-parallel-degree 2", "--parallelism.tensor-par"),
        ("--config blt_debug --training.dtype bfloat16", "--training.dtype: is not planned"),
        ("--config blt_debug --parallelism.hash-tables plain", "--parallelism.hash-tables: is not"),
        ("--config blt_debug --training.enable-cpu-offload", "--training.enable-cpu-offload: is n"),
    ],
)
def test_flags_that_are_refused(arguments, message, monkeypatch, capsys):
    code, out, errors = run_job(monkeypatch, capsys, *arguments.split())
    assert code == 2 and not out and errors.startswith(f"error: {message}")
    assert "Traceback" not in errors


def test_debug_model_needs_next_to_nothing():
    config = blt_debug()
    one = plan(config, 1, Assumptions(), plans.activations_of(config, Assumptions()))
    assert one.fits and one.memory < 2 * GB and math.isfinite(one.overhead)
