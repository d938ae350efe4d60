"""What only a GPU does, as near as a CPU comes: on the meta device, where shapes, dtypes and
devices are those of a GPU, and nothing can wait for a value."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.blt_cases import ABLATIONS, ablated, tiny
from support.fake_ranks import fake_ranks, parallelized, with_weights
from support.no_values import META, ScaledLinear, gpu_paths, multiply_scaled, without_values
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model import BLT, BLT_SIZES, BLTConfig, EntropyModel, EntropyModelConfig
from model.blt_config import ROW_READING
from model.entropies import segment_entropies
from model.layers.attention import BlockedAttention, RotaryAngles, turn_complex, turn_real
from model.layers.latent_transformer import LatentTransformer
from model.layers.patch_layout import PatchLayout
from pipeline.errors import ConfigError
from train import shim
from train.config_registry import blt_1b, blt_debug
from train.model_spec import TrainedBLT
from train.parallelize import fits_float8, multiply_in_float8

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

VARIANTS = {
    "published": tiny(),
    "windows": tiny(
        n_layers_local_encoder=2,
        cross_attn_all_layers_encoder=True,
        cross_attn_window_encoder=2,
        cross_attn_window_decoder=3,
        local_attention_window_len=None,
        n_kv_heads_global=1,
        **dict.fromkeys(ROW_READING, True),
    ),
    "ablated": ablated(tiny(), *ABLATIONS),
}


def batch(rows: int, width: int, patches: int) -> tuple[Tensor, Tensor]:
    shapes = (rows, width), (rows, patches)
    tokens, lengths = (torch.empty(shape, dtype=torch.int64, device=META) for shape in shapes)
    return tokens, lengths


def step(model: nn.Module, *inputs: Tensor) -> Tensor:
    """Forward and backward; every weight gets a gradient in its own dtype."""
    with gpu_paths():
        logits = model(*inputs)
        logits.sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.dtype == weight.dtype, name
        assert weight.grad.device == META, name
    return logits


@pytest.mark.parametrize(
    ("variant", "width"), [("published", 256), *((variant, 250) for variant in VARIANTS)]
)
def test_blt_trains(variant, width):
    model = without_values(BLT(VARIANTS[variant]))
    logits = step(model, *batch(2, width, 61))
    assert logits.dtype == torch.float32 and logits.shape == (2, width, 260)


def test_a_value_that_is_asked_for_would_be_noticed():
    """The attention of a CPU asks for values when it makes its blocks."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        BlockedAttention(torch.empty(256, dtype=torch.int64, device=META), 100)


def test_entropy_models_train_and_score():
    model = without_values(EntropyModel(EntropyModelConfig(dim=64, n_layers=2, n_heads=4)))
    tokens, _ = batch(2, 250, 1)
    assert step(model, tokens).dtype == torch.float32
    # Packs have fixed sizes, so that two compiled kernels serve for all.
    asked: list[int] = []
    in_place = model._entropies_in_place

    def counted(tokens_T: Tensor, *rest: object) -> Tensor:
        asked.append(len(tokens_T))
        return in_place(tokens_T, *rest)

    model._entropies_in_place = counted
    lengths = torch.tensor([*[8192] * 7, 60, 40])
    scored = torch.zeros(int(lengths.sum()), dtype=torch.int32)
    with gpu_paths(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        entropies = model.entropies_packed(tokens[0, :100], torch.tensor([60, 40]))
        # No value is waited for, however many packs there are.
        all_entropies = segment_entropies(model, scored, lengths)
    assert entropies.shape == (100,) and entropies.dtype == torch.float32
    assert all_entropies.shape == scored.shape and all_entropies.device == META
    assert asked == [8192, 65536] and model.pack_sizes == (8192, 65536)


def test_both_forms_of_turning_pairs_are_one():
    rotary = RotaryAngles(16, 10_000.0)(torch.arange(50))
    pairs = torch.randn(50, 3, 8, 2, generator=torch.Generator().manual_seed(0))
    real, complex_ = (turn(pairs, rotary.unsqueeze(1)) for turn in (turn_real, turn_complex))
    torch.testing.assert_close(real, complex_, rtol=0, atol=1e-6)
    assert not torch.allclose(real, pairs, atol=0.1)


@pytest.mark.parametrize(("made_on", "stands_on"), [("cuda", "cuda"), ("meta", "cpu")])
def test_rotary_angles_stand_where_the_weights_do(made_on, stands_on):
    """But on the meta device they would be lost."""
    with FakeTensorMode(), torch.device(made_on):
        assert RotaryAngles(16, 10_000.0).bits_F.device.type == stands_on


def test_what_float8_asks_of_shapes():
    """The rules of a GPU's kernel hold on the meta device: the dimension that is summed over, and
    the width of the result."""

    def multiply(m: int, k: int, n: int) -> Tensor:
        return multiply_scaled(torch.empty(m, k, device=META), torch.empty(k, n, device=META))

    assert multiply(1003, 64, 32).shape == (1003, 32)
    for k, n in ((1003, 32), (64, 1003)):
        with pytest.raises(RuntimeError, match="divisible by 16"):
            multiply(64, k, n)


SHAPE = replace(BLT_SIZES["debug"], cross_attn_k=3)
"""With a projection of 192 features to 128."""


def latent_step(latent: LatentTransformer, positions: int = 128) -> Tensor:
    patches = torch.empty(positions, 3, 64, device=META, dtype=torch.bfloat16, requires_grad=True)
    position = torch.empty(positions, dtype=torch.int64, device=META)
    out = latent(patches, position, [lambda q, k, v: q + k + v] * len(latent.layers))
    out.sum().backward()
    assert patches.grad is not None
    return out


def with_scaled_products(config: BLTConfig) -> LatentTransformer:
    """As torchao does it to the layers that our filter chooses."""
    latent = LatentTransformer(config)
    for part in list(latent.modules()):
        for name, child in list(part.named_children()):
            if fits_float8(child):
                scaled = ScaledLinear(child.in_features, child.out_features, bias=False)
                setattr(part, name, scaled)
    return without_values(latent)


@pytest.mark.parametrize(("rows", "patches"), [(1, 1003), (8, 126), (1, 1), (2, 61)])
def test_float8_takes_any_number_of_patches(rows, patches):
    """In training and validation, rows times patches are whatever the data says."""
    model = BLT(SHAPE)
    model.global_transformer = with_scaled_products(SHAPE)
    assert sum(isinstance(part, ScaledLinear) for part in model.modules()) == 1 + 7 * 2
    step(without_values(model), *batch(rows, 250, patches))
    if rows * patches % 16:  # as those of 3 of 4 data sets
        with pytest.raises(RuntimeError, match=r"divisible by 16|row_major"):
            latent_step(model.global_transformer, rows * patches)


def test_float8_leaves_other_widths_alone():
    for config in (tiny(hidden_dim_global=40), tiny(dim_global=24)):
        latent_step(with_scaled_products(replace(config, cross_attn_k=3, dim_local=64)))
    assert fits_float8(nn.Linear(96, 32)) and not fits_float8(nn.Linear(96, 40))
    # Each of 4 ranks multiplies a part.
    assert fits_float8(nn.Linear(64, 128), 4) and not fits_float8(nn.Linear(96, 128), 4)


@torch.no_grad()
def test_filling_up_positions_changes_no_state():
    torch.manual_seed(0)
    model = BLT(BLT_SIZES["debug"])
    model.init_weights()
    tokens = torch.randint(4, 260, (2, 40))
    lengths = torch.tensor([[1, 3, 7, 1, 20, 9], [1, 40, 0, 0, 0, 0]])
    expected = model(tokens, lengths)

    def as_on_a_gpu(*batch: Tensor) -> PatchLayout:
        return PatchLayout.of(*batch, 1, 1, multiple=128)

    model.layout = as_on_a_gpu
    assert len(model.layout(tokens, lengths).position_N) == 128
    torch.testing.assert_close(model(tokens, lengths), expected, rtol=0, atol=1e-5)


def test_float8_of_torchao(monkeypatch):
    """The whole model, with torchao's own products and without its emulation."""
    pytest.importorskip("torchao")
    model = BLT(SHAPE)
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.cuda, "is_available", lambda: True)
        gpu.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        multiply_in_float8(model.global_transformer, 1)
    model = without_values(model)
    inputs = batch(2, 250, 61)
    assert step(model, *inputs).shape == (2, 250, 260)


def test_float8_without_torchao_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match="pip install torchao"):
        multiply_in_float8(LatentTransformer(SHAPE), 1)


def test_layers_that_float8_leaves_out_are_said(monkeypatch, caplog):
    """torchao itself passes over them in silence."""
    converted: list[nn.Module] = []
    torchao = SimpleNamespace(
        Float8LinearConfig=SimpleNamespace,
        convert_to_float8_training=lambda module, **_: converted.append(module),
    )
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(float8=torchao))
    monkeypatch.setitem(sys.modules, "torchao.float8", torchao)
    with caplog.at_level("WARNING"):
        multiply_in_float8(LatentTransformer(tiny(hidden_dim_global=40)), 1)
    assert "6 of 14 layers of the latent transformer are not in float8" in caplog.text
    assert "layers.0.feed_forward.w1" in caplog.text and len(converted) == 1
    with pytest.raises(ConfigError, match="multiples of 512, and no layer"):
        multiply_in_float8(LatentTransformer(SHAPE), 32)


@pytest.mark.parametrize(("found", "on_cpu"), [("mps", True), ("cuda", False), (None, True)])
def test_what_torchtitan_trains_on(monkeypatch, found, on_cpu):
    """A Mac's GPU has no collectives, so its CPU trains."""
    accelerator = None if found is None else torch.device(found)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: accelerator)
    calls: list[bool] = []
    monkeypatch.setattr(shim, "_use_cpu", lambda: calls.append(True))
    shim.prepare()
    assert bool(calls) == on_cpu


TOKENS = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([[1, 3, 7, 1, 20, 9], [1, 40, 0, 0, 0, 0]])


def loss_of(**training: object) -> tuple[float, nn.Module]:
    """Of a step on one rank, with FSDP's casts and copies."""
    config = blt_debug()
    for name, value in training.items():
        setattr(config.training, name, value)
    with fake_ranks(1):
        model = with_weights(parallelized(config, 1))
        logits = model(TOKENS, LENGTHS)
        loss = F.cross_entropy(logits[:, :-1].mT, TOKENS[:, 1:])
        loss.backward()
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32, name
        # The gradients of tables are those of the rows that were looked up.
        if not name.startswith("encoder_hash_tok_embedding"):
            assert weight.grad.dtype == torch.float32, name
    assert logits.dtype == torch.float32
    return loss.item(), model


def test_mixed_precision():
    """Weights are cast to bfloat16 for their use; they and their gradients stay in float32."""
    expected, _ = loss_of()
    loss, _ = loss_of(mixed_precision_param="bfloat16")
    assert loss != expected and loss == pytest.approx(expected, rel=5e-3)


def test_offloading_to_the_cpu(monkeypatch):
    """Memory cannot be pinned where there is no GPU; nothing else differs."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    expected, _ = loss_of()
    assert not pinned
    loss, model = loss_of(enable_cpu_offload=True)
    assert loss == expected and len(pinned) >= len(list(model.parameters()))


@torch.no_grad()
def test_constants_of_an_offloaded_model_stand_where_it_computes():
    """Weights are brought there layer by layer, constants are not."""
    model = TrainedBLT(TrainedBLT.Config(shape=BLT_SIZES["debug"]))
    model.init_weights(buffer_device=META)
    assert {name: buffer.device for name, buffer in model.named_buffers()} == {
        f"{part}.rotary.bits_F": META
        for part in ("local_encoder", "global_transformer", "local_decoder")
    }
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("copies", [1, 8, 64])
def test_512_ranks(copies):
    """Each shard group holds the blocks once; a rank's part of them is the same in all copies."""
    config = blt_1b()
    config.parallelism.data_parallel_replicate_degree = copies
    with fake_ranks(512, rank=300):
        model = parallelized(config, 512)
        of_blocks = [p for name, p in model.named_parameters() if "hash" not in name]
        counts = [(p.to_local().numel(), p.numel()) for p in of_blocks]
        held, whole = (sum(n) for n in zip(*counts, strict=True))
    # Whole rows: where they do not divide evenly, the first ranks hold one more.
    assert held == pytest.approx(whole / (512 / copies), rel=0.02 if copies > 1 else 0.1)
