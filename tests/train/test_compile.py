"""The model compiles whole, and once, as far as a CPU can show it: forward with the attention that
GPUs use, training with one that has the same form."""

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.blt_cases import rows_of
from support.fake_ranks import fake_ranks, parallelized, with_weights
from support.shard_sets import real_texts, write_shards
from torch import Tensor, fx
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.config import CompileConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

from model import BLT, BLT_SIZES
from model.layers import attention
from model.layers.transformer import Block
from train.checkpointing import ProductsAC
from train.config_registry import blt_debug
from train.data.dataloader import ShardDataLoader
from train.parallelize import checkpoint_activations, compile_model


class Graphs:
    """A backend that keeps what it is given and runs it as it is."""

    def __init__(self) -> None:
        self.inputs: list[list[object]] = []

    def __call__(self, graph: fx.GraphModule, inputs: list[object]) -> object:
        self.inputs.append(inputs)
        return graph.forward


@contextmanager
def as_before() -> Iterator[None]:
    """Settings that compiling changes for the whole process are put back."""
    names = ("automatic_dynamic_shapes", "capture_scalar_outputs", "recompile_limit")
    names += ("skip_fwd_side_effects_in_bwd_under_checkpoint",)
    torch._dynamo.reset()
    with torch._dynamo.config.patch({name: getattr(torch._dynamo.config, name) for name in names}):
        yield


@pytest.mark.parametrize("checkpointing", [None, ProductsAC, FullAC])
@torch.no_grad()
def test_blocks_compile_once(checkpointing, tmp_path, monkeypatch):
    texts = [text[: 20 + 9 * i] for i, text in enumerate(real_texts(30))]
    write_shards(str(tmp_path), texts)
    config = ShardDataLoader.Config(shards=[str(tmp_path)])
    loader = ShardDataLoader(config, dp_world_size=1, dp_rank=0, seq_len=250, local_batch_size=2)
    torch.manual_seed(0)
    model = BLT(BLT_SIZES["debug"])
    model.init_weights()
    rows = iter(loader)
    batches = [next(rows) for _ in range(4)]
    # The next batch has other documents.
    counts = {int((inputs["input"] == 2).sum()) for inputs, _ in batches}
    assert len(counts) > 1
    expected = [model(*inputs.values()) for inputs, _ in batches]

    def of_gpus(position_T: torch.Tensor, window: int) -> attention.Attend:
        mask = attention.window_block_mask(position_T, window)
        return functools.partial(attention._compiled_flex(), mask=mask)

    monkeypatch.setattr(attention, "BlockedAttention", of_gpus)
    # It is only the backward pass that FlexAttention lacks on CPUs.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    graphs = Graphs()
    with as_before(), torch.enable_grad():
        if checkpointing is not None:
            checkpoint_activations(model, checkpointing.Config(), str(tmp_path))
        compiling = CompileConfig(enable=True, backend=graphs)
        compile_model(model, compiling, SimpleNamespace(tp_enabled=False))
        found = [model(*batches[0][0].values())]
        # Layout, ids, patches and logits; blocks of the encoder, latent ones, and the decoder's.
        assert len(graphs.inputs) == 7
        with torch._dynamo.config.patch(error_on_recompile=True):
            found += [model(*inputs.values()) for inputs, _ in batches[1:]]
    assert len(graphs.inputs) == 7
    assert all(isinstance(given, torch.Tensor) for inputs in graphs.inputs for given in inputs)
    for ours, theirs, (_, labels) in zip(found, expected, batches, strict=True):
        torch.testing.assert_close(ours[labels >= 0], theirs[labels >= 0], rtol=0, atol=1e-4)


def all_pairs(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, sees_TT: Tensor) -> Tensor:
    """The CPU's own attention has shapes that depend on the documents."""
    score_HTT = torch.einsum("thd,shd->hts", q_THD, k_TKD) * q_THD.shape[-1] ** -0.5
    weight_HTT = score_HTT.masked_fill(~sees_TT, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weight_HTT, v_TKD)


def attend_all_pairs(position_T: Tensor, window: int) -> attention.Attend:
    token_T = torch.arange(len(position_T))
    back_TT = token_T[:, None] - token_T
    sees_TT = (back_TT >= 0) & (back_TT <= position_T.clamp(max=window - 1)[:, None])
    return functools.partial(all_pairs, sees_TT=sees_TT)


def packed(seed: int, patches: int) -> tuple[Tensor, Tensor]:
    """Two rows of 256, one of them padded, with documents in other places for each seed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 260, (2, 256), generator=generator)
    tokens[:, [50, 99 + seed]] = 2
    tokens[1, 240:] = -1
    lengths = []
    for n in (256, 240):
        cuts = torch.randperm(n - 1, generator=generator)[: patches - 2].sort().values + 2
        lengths.append(torch.tensor([0, 1, *cuts.tolist(), n + 1]).diff().tolist())
    return tokens, rows_of(lengths, 0)


def trained(checkpointing: object, compiled: bool) -> tuple[list[dict[str, Tensor]], Tensor]:
    """The gradients of two steps on one rank, and the logits of a validation batch, which has
    another number of patches."""
    config = blt_debug()
    config.compile = CompileConfig(enable=compiled, backend="aot_eager")
    config.activation_checkpoint = checkpointing
    gradients = []
    with fake_ranks(1):
        model = with_weights(parallelized(config, 1))
        for seed in range(2):
            tokens, lengths = packed(seed, 60)
            with torch._dynamo.config.patch(error_on_recompile=seed > 0):
                logits = model(tokens, lengths)
                F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], ignore_index=-1).backward()
            named = dict(model.named_parameters())
            gradients.append(
                {
                    name.replace("_checkpoint_wrapped_module.", ""): weight.grad.to_local().clone()
                    for name, weight in named.items()
                    if weight.grad is not None
                }
            )
            model.zero_grad()
        with torch.no_grad():
            tokens, lengths = packed(2, 40)
            return gradients, model.eval()(tokens, lengths)[tokens >= 0]


def test_compiled_training(monkeypatch):
    """With FSDP, sharded tables and the backward pass, and without a recompilation in step 2."""
    monkeypatch.setattr(attention, "BlockedAttention", attend_all_pairs)
    expected, expected_logits = trained(None, compiled=False)
    with as_before():
        found, logits = trained(ProductsAC.Config(), compiled=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() and len(ours) == 68
        for name, gradient in theirs.items():
            error = (ours[name] - gradient).norm() / gradient.norm()
            assert error < 1e-5, name
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-5)


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_no_product_is_computed_twice(tmp_path):
    def products(config: object) -> int:
        model = torch.nn.Module()
        model.layers = torch.nn.ModuleList([Block(64, 4, 4, 128, 1e-5)])
        config.build(dump_folder=str(tmp_path)).apply(model)
        x, rotary = torch.randn(20, 64, requires_grad=True), torch.randn(20, 8, 2)
        with Operations() as operations:
            model.layers[0](x, rotary, lambda q, k, v: q + k + v).sum().backward()
        return operations.counts["aten::mm"]

    # A block has 7, and each of them has two in the backward pass.
    assert products(ProductsAC.Config()) == 21
    assert products(SelectiveAC.Config()) == 24 and products(FullAC.Config()) == 28
