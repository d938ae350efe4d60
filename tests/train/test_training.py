"""Training is the same on any number of ranks and in any way, and measures what it says."""

import math
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from support.jobs import ROOT, environment
from support.shard_sets import real_texts, write_shards
from support.trainings import (
    LANES,
    LOSS,
    PEAK_FLOPS,
    ROWS,
    SEQ_LEN,
    SHUFFLE_BYTES,
    STEPS,
    Training,
    digests,
    start,
    tiny,
    train,
)
from support.weights import sharpen

from model import BLT, BLT_SIZES, EntropyModel, load_blt, load_entropy_model, save_blt
from model.tokenizer import EOS_ID
from model.training_flops import training_flops
from pipeline.shards.shard_set import open_shards
from train.data.dataloader import ShardDataLoader

CLOSE = {"rel": 2e-6, "abs": 0}
LATENT = "--parallelism.tensor-parallel-degree"
COPIES = "--parallelism.data-parallel-replicate-degree"
HELD_OUT = 21
"""Documents; two fill a row, so that the last row has one, and three ranks have an empty row."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("shards")
    write_shards(str(url), real_texts(40), rates=(0.15, 0.3))
    return url


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that rows of the trainer hold whole: two of them fill one."""
    url = tmp_path_factory.mktemp("held-out")
    texts = [text.ljust(SEQ_LEN)[:62] for text in real_texts(HELD_OUT, seed=1)]
    write_shards(str(url), texts, rates=(0.1, 0.4), per_batch=3)
    return url


@pytest.fixture(scope="module")
def runs(shards, held_out, tmp_path_factory) -> dict[str, Training]:
    """One training, done in many ways."""
    folder = tmp_path_factory.mktemp("runs")

    validating = ("--validator.enable", "--validator.dataloader.shards", held_out)
    validating += ("--validator.freq", STEPS)
    whole = (*validating, "--validator.dataloader.patches-per-row", SEQ_LEN)
    ways = {
        # Rows of a microbatch of a rank; ranks; how.
        "alone": ("blt_debug", ROWS, 1, whole),
        "in 4 parts": ("blt_debug", 3, 1, ("activation-checkpoint:selective",)),
        "entropy alone": ("entropy_debug", ROWS, 1, validating),
        "other seed": ("blt_debug", ROWS, 1, ("--debug.seed", 1)),
        "on 2": ("blt_debug", 3, 2, (COPIES, 2)),
        "entropy on 2": ("entropy_debug", 6, 2, validating),
        "on 3": ("blt_debug", 4, 3, (*whole, "activation-checkpoint:full")),
        "on 2 x 2": ("blt_debug", 3, 4, (COPIES, 2)),
        "latent on 2 x 2": ("blt_debug", 3, 4, (LATENT, 2)),
    }
    found: dict[str, Training] = {}
    for name, (config, rows, ranks, how) in ways.items():
        keep = () if name.endswith("alone") else ("--checkpoint.no-enable",)
        given = (*tiny(config, shards, rows=rows), *keep, *how)
        found[name] = start(folder / name, *given, ranks=ranks)
        if ranks > 1 or len(found) % 2 == 0:  # Two processes at a time: so many cores there are.
            for run in found.values():
                run.wait()
    for name, run in found.items():
        assert not any(run.exit_codes), f"{name}\n{run.output}"
    return found


BLT_RUNS = ("in 4 parts", "on 2", "on 3", "on 2 x 2", "latent on 2 x 2")


@pytest.mark.parametrize(
    ("one", "other"),
    [*(("alone", name) for name in BLT_RUNS), ("entropy alone", "entropy on 2")],
)
def test_any_way_is_the_same_training(runs, one, other):
    one, other = runs[one], runs[other]
    assert sorted(one.losses) == [*range(1, STEPS + 1)]
    assert one.rows == other.rows
    assert other.losses == pytest.approx(one.losses, **CLOSE)
    for step, of_step in one.metrics.items():
        for name in ("grad_norm", "bits_per_byte", "n_tokens_seen"):
            assert other.metrics[step][name] == pytest.approx(of_step[name], rel=1e-5), name
    assert one.losses[STEPS] < one.losses[1] - 0.5


def test_first_weights(runs):
    """Every bit of them."""
    expected = runs["alone"].first_weights
    assert set(expected) == set(BLT(BLT_SIZES["debug"]).state_dict())
    assert all(runs[name].first_weights == expected for name in BLT_RUNS)
    assert runs["entropy on 2"].first_weights == runs["entropy alone"].first_weights
    other = runs["other seed"].first_weights
    assert {name for name in expected if other[name] == expected[name]} == {
        name for name in expected if "norm" in name
    }
    assert runs["other seed"].rows[1] == runs["alone"].rows[1]


def loss_of(model: BLT | EntropyModel, tokens: torch.Tensor, patch_lengths: torch.Tensor) -> float:
    """Nats of one document."""
    if isinstance(model, BLT):
        logits = model(tokens[None], patch_lengths[None])[0]
    else:
        logits = model.logits_packed(tokens, torch.tensor([len(tokens)]))
    return float(F.cross_entropy(logits[:-1].double(), tokens[1:], reduction="sum"))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["blt", "entropy"])
def test_validation_is_a_loop_over_the_documents(runs, held_out, kind, tmp_path):
    """With the weights that were trained, converted; so these are right, too."""
    alone, spread = ("alone", "on 3") if kind == "blt" else ("entropy alone", "entropy on 2")
    step = runs[alone].folder / "checkpoint" / f"step-{STEPS}"
    job = runpy.run_path(str(ROOT / "jobs" / "convert_checkpoint.py"))
    config = job["ConvertCheckpointConfig"](str(step), str(tmp_path / "weights"), "transformers")
    assert job["run"](config, Console(stderr=True)) == 0
    model = (load_blt if kind == "blt" else load_entropy_model)(tmp_path / "weights", device="cpu")
    nats, of_bytes, labels = 0.0, 0, 0
    for document in open_shards(str(held_out)):
        text = document.text.encode()
        tokens = torch.tensor([1, *(byte + 4 for byte in text), EOS_ID])
        nats += loss_of(model, tokens, torch.tensor(document.patch_lengths))
        of_bytes, labels = of_bytes + len(text), labels + len(text) + 1
    assert of_bytes == HELD_OUT * 62
    for name in (alone, spread):
        metrics = runs[name].metrics[STEPS]
        assert metrics["validation_metrics/loss"] == pytest.approx(nats / labels, rel=1e-6)
        expected = nats / of_bytes / math.log(2)
        assert metrics["validation_metrics/bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    assert "validation_metrics/loss" not in runs[alone].metrics[2]


def batches(shards: Path, count: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """All rows of each step."""
    config = ShardDataLoader.Config(shards=[str(shards)], shuffle_bytes=SHUFFLE_BYTES, lanes=LANES)
    loader = ShardDataLoader(
        config, dp_world_size=1, dp_rank=0, seq_len=SEQ_LEN, local_batch_size=ROWS
    )
    rows = iter(loader)
    yield from (next(rows) for _ in range(count))


def test_metrics(runs, shards):
    for name in ("alone", "in 4 parts"):
        for step, (inputs, labels) in enumerate(batches(shards, STEPS), 1):
            metrics = runs[name].metrics[step]
            known = labels[labels >= 0]
            of_bytes = int((known != EOS_ID).sum())
            patches = int((inputs["patch_lengths"] > 0).sum())
            expected = metrics[LOSS] * len(known) / of_bytes / math.log(2)
            assert metrics["bits_per_byte"] == pytest.approx(expected)
            assert metrics["patch_length(bytes)"] == of_bytes / patches
            padding = 100 * float((inputs["input"] < 0).float().mean())
            assert metrics["padding(%)"] == pytest.approx(padding)
            parts = [v for part, v in metrics.items() if part.startswith("flops_per_byte/")]
            size = of_bytes / patches
            by_part = training_flops(BLT_SIZES["debug"], patch_size=size, context=SEQ_LEN)
            flops = sum(by_part.values())
            assert len(parts) == 4 and sum(parts) == pytest.approx(flops)
            rate = metrics["throughput(bytes/s)"]
            assert metrics["throughput(patches/s)"] == pytest.approx(rate * patches / of_bytes)
            # torchtitan's clock is read a little later.
            positions = labels.numel() / of_bytes
            assert metrics["throughput(tps)"] == pytest.approx(rate * positions, rel=0.5)
            achieved = flops * metrics["throughput(tps)"] / positions
            assert metrics["tflops"] == pytest.approx(achieved / 1e12)
            assert metrics["mfu(%)"] == pytest.approx(100 * achieved / PEAK_FLOPS)
            assert 0 <= metrics["time_metrics/data_loading(%)"] <= 100
    for name, ranks in (("on 3", 3), ("latent on 2 x 2", 4)):
        # A device's: what the first of the ranks that share rows counted, shared by them. (Twice:
        # a busy machine lets time pass between the two clocks.)
        metrics = runs[name].metrics[STEPS]
        assert 0 < metrics["throughput(bytes/s)"] < 2 * metrics["throughput(tps)"], ranks
    assert "throughput(patches/s)" not in runs["entropy alone"].metrics[STEPS]
    assert "flops_per_byte/entropy_model" in runs["entropy alone"].metrics[STEPS]


@pytest.mark.parametrize("layout", ["published", "transformers"])
@torch.no_grad()
def test_training_begins_with_weights(layout, shards, tmp_path):
    torch.manual_seed(3)
    model = BLT(BLT_SIZES["debug"]).eval()
    sharpen(model, 1.2)
    save_blt(model, tmp_path / "weights", layout=layout)
    given = (
        "--checkpoint.initial-load-path",
        tmp_path / "weights",
        "--checkpoint.initial-load-in-hf",
    )
    once = tiny("blt_debug", shards, rows=ROWS // 2, steps=1)
    run = train(tmp_path / "run", *once, *given, ranks=2)
    assert run.first_weights == digests(model.state_dict())
    [(inputs, labels)] = batches(shards, 1)
    logits = load_blt(tmp_path / "weights", device="cpu")(inputs["input"], inputs["patch_lengths"])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.long().flatten(), ignore_index=-100)
    assert run.losses[1] == pytest.approx(float(expected), **CLOSE)


def test_torchrun(runs, shards, tmp_path):
    """torchtitan's own command, as a user gives it; and TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    launch = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"]
    launch += ["--standalone", "-m", "torchtitan.train", "--module", "train"]
    given = tiny("blt_debug", shards, rows=ROWS // 2, steps=2)
    given += ("--dump-folder", tmp_path, "--metrics.enable-tensorboard")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launch, *map(str, given)],
        env=environment(OMP_NUM_THREADS="1", PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (events,) = (tmp_path / "tb").iterdir()
    board = EventAccumulator(str(events)).Reload()
    losses = {event.step: event.value for event in board.Scalars(LOSS)}
    assert losses == pytest.approx({s: runs["alone"].losses[s] for s in (1, 2)}, **CLOSE)
    assert {
        *("bits_per_byte", "throughput(bytes/s)", "throughput(patches/s)", "patch_length(bytes)"),
        *("padding(%)", "mfu(%)", "flops_per_byte/latent"),
    } <= set(board.Tags()["scalars"])
    assert (tmp_path / "checkpoint" / "step-2" / ".metadata").exists()
