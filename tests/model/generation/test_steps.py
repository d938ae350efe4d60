"""Steps can be CUDA graphs: recorded once and replayed they write the same bytes; they make no
shape depend on values, wait for nothing and read no memory of the host; and they are few."""

from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from support.kernels import CountingRunner, Kernels, count_per_byte
from support.kernels_on_cpus import run_kernels_on_cpu, stand_for_kernels
from support.recorded_steps import RecordingRunner
from support.weights import sharpen

from model import BLT, BLT_SIZES, BLTConfig, EntropyModel, EntropyModelConfig, Patcher, generate
from model.generation import (
    cached_blocks,
    crossings,
    gathering,
    graphs,
    incremental,
    incremental_blt,
    kv_cache,
)
from model.generation.incremental_blt import IncrementalBLT
from model.generation.sampling import Sampling
from model.generation.writer import Writer

WINDOWED = replace(
    BLT_SIZES["debug"],
    n_layers_local_encoder=2,
    cross_attn_all_layers_encoder=True,
    cross_attn_window_encoder=2,
    cross_attn_window_decoder=3,
    local_attention_window_len=24,
    n_kv_heads_local_decoder=2,
)
UNBOUNDED = replace(BLT_SIZES["debug"], local_attention_window_len=None, cross_attn_decoder=False)
ABLATED = replace(BLT_SIZES["debug"], cross_attn_encoder=False, dim_global=64)
"""A patch goes into the latent transformer as it is."""
SMALL = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, window=40)
PROMPTS = ["", "Hello world, this is", "\n\nfür", "abc" * 40, "x"]


SHAPES = pytest.mark.parametrize(
    "models", [WINDOWED, UNBOUNDED], ids=["windowed", "unbounded"], indirect=True
)


@pytest.fixture(scope="module")
def models(request) -> tuple[BLT, EntropyModel]:
    return with_random_weights(request.param, SMALL)


def with_random_weights(
    shape: BLTConfig, entropy_shape: EntropyModelConfig
) -> tuple[BLT, EntropyModel]:
    torch.manual_seed(5)
    entropy_model, blt = EntropyModel(entropy_shape).eval(), BLT(shape).eval()
    sharpen(entropy_model, 4)
    sharpen(blt, 3)
    return blt, entropy_model


def keep_shapes(monkeypatch) -> None:
    """Let a CPU take the ways of a GPU."""
    for module in (kv_cache, cached_blocks, crossings, gathering):
        monkeypatch.setattr(module, "keeps_shapes", lambda device: True)


@SHAPES
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 5},  # too many for one graph
        {"batch_size": 3, "temperature": 0.9, "top_p": 0.9},
        {"draft_bytes": 3},
        {"reset_at_newline": True, "batch_size": 5},
    ],
    ids=str,
)
def test_replayed_steps_write_the_same(models, monkeypatch, options):
    check_replayed_steps(models, monkeypatch, options)


@pytest.mark.parametrize(
    ("models", "options"),
    [
        (UNBOUNDED, {"batch_size": 5}),
        (UNBOUNDED, {"batch_size": 5, "patcher": Patcher(rule="static", patch_size=13)}),
        (ABLATED, {"batch_size": 3, "temperature": 0.9}),
    ],
    ids=["unbounded", "prompts in the middle of patches", "ablated"],
    indirect=["models"],
)
def test_replayed_steps_with_kernels_write_the_same(models, monkeypatch, options):
    check_replayed_steps(models, monkeypatch, options, kernels=True)


def check_replayed_steps(models, monkeypatch, options, *, kernels: bool = False) -> None:
    options = {"patcher": Patcher(3.5), "max_new_bytes": 40, "batch_size": 2} | options
    expected = generate(*models, PROMPTS, **options)
    keep_shapes(monkeypatch)
    if kernels:
        stand_for_kernels(monkeypatch)
    # Rings grow, and graphs are recorded again.
    monkeypatch.setattr(kv_cache, "FIRST_SLOTS", 4)
    monkeypatch.setattr(incremental, "ROOM", 4)
    monkeypatch.setattr(incremental_blt, "StepRunner", RecordingRunner)
    monkeypatch.setattr(RecordingRunner, "recordings", 0)
    monkeypatch.setattr(RecordingRunner, "replays", 0)
    waited, write = [], Writer.write

    def noting(writer: Writer) -> list[list[int]]:
        waited.append(writer.state.unmade_B.sum())
        return write(writer)

    monkeypatch.setattr(Writer, "write", noting)
    assert generate(*models, PROMPTS, **options) == expected
    # Of two rows, one that ends a patch is half of them.
    assert sum(waited) > 2 if options["batch_size"] > 2 else not any(waited)
    assert 3 < RecordingRunner.recordings < RecordingRunner.replays / 2


@pytest.mark.parametrize(("shape", "rows"), [(WINDOWED, 1), (WINDOWED, 5), (UNBOUNDED, 3)])
def test_kernels_write_the_same(monkeypatch, shape, rows):
    """Triton's interpreter runs those of a GPU, for few rows and for more. It takes milliseconds
    for each head of each row."""
    two = {"n_heads_local_encoder": 2, "n_heads_local_decoder": 2, "n_heads_global": 2}
    two |= {"n_kv_heads_local_encoder": 1, "n_kv_heads_local_decoder": 1}
    two |= {"n_kv_heads_global": 2, "cross_attn_nheads": 2, "n_layers_global": 1}
    models = with_random_weights(replace(shape, **two), replace(SMALL, n_layers=1))
    prompts, options = PROMPTS[-rows:], {"patcher": Patcher(2.0), "max_new_bytes": 2}
    expected = generate(*models, prompts, **options)
    keep_shapes(monkeypatch)
    run_kernels_on_cpu(monkeypatch)
    assert generate(*models, prompts, **options) == expected


def on_meta(batch: int, sampling: Sampling, ahead: int = 0, shape=BLT_SIZES["1b"]) -> Writer:
    """A writer on the meta device, which stands for a GPU."""
    with torch.device("meta"):
        blt = BLT(shape).bfloat16().to("meta")
        entropy_model = EntropyModel(EntropyModelConfig()).bfloat16().to("meta")
    state = partial(IncrementalBLT, blt, entropy_model, Patcher(1.0), reset_at_newline=True)
    return Writer(state, batch, sampling, ahead)


@pytest.mark.parametrize(
    ("shape", "sampling"),
    [
        (BLT_SIZES["1b"], Sampling()),
        (WINDOWED, Sampling(0.7, 40, 0.9)),
        (UNBOUNDED, Sampling(0.7)),
    ],
    ids=["1b", "windowed", "unbounded"],
)
@torch.inference_mode()
def test_steps_can_be_recorded(shape, sampling):
    """On the meta device an operator that needs values fails, and ``Kernels`` finds the others that
    a CUDA graph forbids."""
    writer = on_meta(4, sampling, 3, shape)
    steps = writer.state.steps
    for step, sizes in (
        (steps.listen, (1,)),
        (steps.listen, (4,)),
        (steps.patch, (1, 32)),
        (steps.patch, (4, 64)),
        (steps.draft, (3,)),
        (writer._listen_and_guess, ()),
        (writer._predict, ()),
        (writer._begin, ()),
        (writer._check, (4,)),
    ):
        with Kernels() as kernels:
            step(*sizes)
        assert kernels.total > 20


def test_the_check_finds_what_a_graph_forbids():
    x = torch.zeros(4, device="meta")
    with Kernels(), pytest.raises(AssertionError, match="nonzero depends on values"):
        x.nonzero()
    with Kernels(), pytest.raises(AssertionError, match="reads memory of the host"):
        x[torch.tensor([1, 2])] = 1.0
    with Kernels(), pytest.raises(AssertionError, match="depends on values"):
        bool(x.any())


@torch.inference_mode()
def test_a_byte_is_few_kernels_even_within_its_graphs():
    """Plain PyTorch took 355 (334 when a patch ends, and then 170 once more)."""
    writer = on_meta(1, Sampling())
    for step, sizes, most in (
        (writer._listen_and_guess, (), 200),
        (writer.state.steps.patch, (1, 32), 160),
        (writer._predict, (), 105),
    ):
        with Kernels() as kernels:
            step(*sizes)
        assert 50 < kernels.total <= most, kernels.counts


@pytest.mark.parametrize(
    ("batch", "sampling", "most"), [(1, Sampling(), 6), (128, Sampling(0.8), 9)], ids=str
)
def test_launches_and_waits_per_byte(monkeypatch, batch, sampling, most):
    monkeypatch.setattr(incremental_blt, "StepRunner", CountingRunner)
    writer = on_meta(batch, sampling)
    writer._generators = [torch.Generator().manual_seed(row) for row in range(batch)]
    launches, waits = count_per_byte(writer, 50)
    assert 4 <= launches <= most and waits == 1
    # With many rows half of the patches wait for a step.
    read_B, patches_B = writer.state.lengths.read_B, writer.state.lengths.patches_B
    assert read_B.tolist() == [50] if batch == 1 else 42 < read_B.mean() < 48
    assert 5 < patches_B.mean() < 18


def test_other_devices_are_waited_for():
    """The host writes its memory again only when no copy reads it any more."""
    runner, place = graphs.StepRunner(torch.device("mps")), Mock()
    runner.put(place, np.zeros(2))
    assert not place.copy_.call_args.kwargs.get("non_blocking")


def test_pinned_memory_is_written_again_only_after_a_wait(monkeypatch):
    pinned: list[torch.Tensor] = []

    def pin(like: torch.Tensor) -> torch.Tensor:
        pinned.append(torch.empty_like(like))
        return pinned[-1]

    monkeypatch.setattr(graphs, "_pinned", pin)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock())
    runner = graphs.StepRunner(torch.device("cpu"))
    runner.device, runner._arrived = torch.device("cuda"), Mock()
    place = torch.zeros(2)
    for value in (1, 2):
        runner.put(place, np.full(2, value))
    assert [each.tolist() for each in pinned] == [[1, 1], [2, 2]]
    heard = runner.fetch(place)
    assert heard.tolist() == [2, 2] and runner._arrived.synchronize.call_count == 1
    for value in (3, 4):
        runner.put(place, np.full(2, value))
    assert [each.tolist() for each in pinned] == [[3, 3], [4, 4], [2, 2]]
    assert heard.tolist() == [2, 2]
    runner.ask(place)
    with pytest.raises(AssertionError, match="says nothing about later copies"):
        runner.put(place, np.zeros(2))
