"""Blocks compile whole, and once, as far as a CPU can show it: with the attention that GPUs use."""

import functools
from types import SimpleNamespace

import pytest
import torch
from support.shard_sets import real_texts, write_shards
from torch import fx
from torch.nn.attention import flex_attention
from torchtitan.config import CompileConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

from model import BLT, BLT_SIZES
from model.layers import attention
from train.data.dataloader import ShardDataLoader
from train.parallelize import checkpoint_activations, compile_model


class Graphs:
    """A backend that keeps what it is given and runs it as it is."""

    def __init__(self) -> None:
        self.inputs: list[list[object]] = []

    def __call__(self, graph: fx.GraphModule, inputs: list[object]) -> object:
        self.inputs.append(inputs)
        return graph.forward


@pytest.mark.parametrize("checkpointing", [None, SelectiveAC, FullAC])
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
    names = ("automatic_dynamic_shapes", "capture_scalar_outputs", "recompile_limit")
    names += ("skip_fwd_side_effects_in_bwd_under_checkpoint",)
    settings = {name: getattr(torch._dynamo.config, name) for name in names}
    torch._dynamo.reset()
    with torch._dynamo.config.patch(settings), torch.enable_grad():
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
