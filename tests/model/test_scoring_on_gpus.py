"""What scoring does on GPUs alone, as near as a CPU comes: fixed packs, states in place."""

import pytest
import torch
import torch.nn.functional as F
from support.weights import sharpen
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from model import EntropyModel, EntropyModelConfig
from model import entropy_model as hot_path
from model.entropies import segment_entropies
from model.entropy_model import FIXED_KERNELS, entropy_of
from model.layers.attention import BlockedAttention, RotaryAngles
from model.layers.transformer import Block, run_blocks, run_blocks_in_place


def attend_all_pairs(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, mask: BlockMask, scale: float, **_: object
) -> Tensor:
    """What the mask of FlexAttention means. (Its kernel runs in layers/test_flex_kernel.py.)"""
    index_T = torch.arange(len(q_THD))
    allowed_TT = mask.mask_mod(index_T[0], index_T[0], index_T[:, None], index_T[None])
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_TKD, v_TKD))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed_TT, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


class AsOnGPU(EntropyModel):
    """A model on a CPU that takes the path of GPUs; nothing is compiled."""

    _on_cpu = False
    _compiled_logits = EntropyModel._logits_in_place

    def __init__(self, config: EntropyModelConfig):
        super().__init__(config)
        self.sizes: list[int] = []
        """Tokens of each pack whose entropies were computed."""

    def _compiled_entropies(self, tokens_T, *rest) -> Tensor:
        self.sizes.append(len(tokens_T))
        return self._entropies_in_place(tokens_T, *rest)


@pytest.fixture
def models(monkeypatch) -> tuple[EntropyModel, AsOnGPU]:
    """One model twice: as it runs on a CPU, and as on a GPU."""
    monkeypatch.setattr(hot_path, "GPU_TOKENS", 2048)
    monkeypatch.setattr(hot_path, "attend_flex", attend_all_pairs)
    config = EntropyModelConfig(
        dim=32, n_layers=3, n_heads=2, n_kv_heads=1, context_length=500, window=200
    )
    torch.manual_seed(0)
    model, gpu = EntropyModel(config).eval(), AsOnGPU(config).eval()
    sharpen(model, 3)
    gpu.load_state_dict(model.state_dict())
    return model, gpu


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_packs_of_fixed_sizes(models):
    model, gpu = models
    assert (model.pack_sizes, gpu.pack_sizes) == ((), (512, 2048))
    lengths = torch.tensor([500, 480, 300, 10] * 5 + [250])
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(4, 260, (int(lengths.sum()),), generator=generator)
    reported: list[int] = []
    h = segment_entropies(gpu, tokens, lengths, reported.append)
    close(h, segment_entropies(model, tokens, lengths))
    assert h.std() > 0.2
    assert set(gpu.sizes) == {512, 2048} and sum(reported) == len(tokens)
    assert len(reported) == len(gpu.sizes) and sum(gpu.sizes) < 1.2 * len(tokens)
    # The same text gives the same packs, and therefore the same bits.
    assert torch.equal(segment_entropies(gpu, tokens, lengths), h)


@torch.no_grad()
def test_one_pack(models):
    """A short one takes the smallest size, one beyond the largest a multiple of it."""
    model, gpu = models
    tokens, lengths = torch.arange(2100) % 256 + 4, torch.tensor([300, 200])
    close(gpu.logits_packed(tokens[:500], lengths), model.logits_packed(tokens[:500], lengths))
    gpu.entropies_packed(tokens[:500], lengths)
    gpu.entropies_packed(tokens, torch.full((2100,), 1))
    assert gpu.sizes == [512, 4096]
    with pytest.raises(ValueError, match="longer than the context"):
        gpu.logits_packed(tokens[:600], torch.tensor([600]))


@torch.no_grad()
def test_packs_that_fused_operators_score(models, monkeypatch):
    """The mask has small blocks where they fit, and values are what they are elsewhere."""
    model, gpu = models
    asked, masks = [], []
    monkeypatch.setattr(hot_path, "fits", lambda *pack: asked.append(pack) or True)

    def attend(*qkv: Tensor, mask: BlockMask, **kwargs: object) -> Tensor:
        masks.append(mask)
        return attend_all_pairs(*qkv, mask=mask, **kwargs)

    monkeypatch.setattr(hot_path, "attend_flex", attend)
    tokens, lengths = torch.arange(500) % 256 + 4, torch.tensor([300, 200])
    close(gpu.logits_packed(tokens, lengths), model.logits_packed(tokens, lengths))
    assert asked == [(torch.device("cpu"), torch.float32, 512, 16, (32, 256))]
    assert {mask.BLOCK_SIZE for mask in masks} == {(64, 64)}


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_blocks_in_place(models, fused):
    torch.manual_seed(1)
    layers = torch.nn.ModuleList(Block(32, 2, 1, 64, 1e-5) for _ in range(3))
    position, x = torch.arange(256), torch.randn(256, 32)
    rotary, attend = RotaryAngles(16, 10_000.0)(position), BlockedAttention(position, 100)
    expected = run_blocks(layers, x, rotary, [attend] * 3)
    if fused:
        rotary = rotary.transpose(1, 2).contiguous()
    run_blocks_in_place(layers, x, rotary, lambda q, k, v: attend(4.0 * q, k, v), fused=fused)
    close(x, expected)


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_states_are_added_to_and_not_copied(fused):
    """In the graph that inductor makes, each product adds to the one tensor of states."""
    torch.manual_seed(1)
    layers = torch.nn.ModuleList(Block(32, 2, 2, 64, 1e-5) for _ in range(1))
    position, tokens = torch.arange(256), torch.randint(0, 260, (256,))
    table = torch.randn(260, 32)
    rotary = RotaryAngles(16, 10_000.0)(position)
    if fused:
        rotary = rotary.transpose(1, 2).contiguous()

    def trunk(tokens: Tensor) -> Tensor:
        x = table[tokens]
        run_blocks_in_place(layers, x, rotary, lambda q, k, v: q + k + v, fused=fused)
        return x * 2

    compiled = torch.compile(trunk, dynamic=False, options=FIXED_KERNELS)
    found, (code,) = torch._inductor.utils.run_and_get_code(compiled, tokens)
    close(found, trunk(tokens))
    added = [line for line in code.splitlines() if "blt_titan.add_product.default(" in line]
    states = {line.split("(")[1].split(",")[0] for line in added}
    assert len(added) == 2 and len(states) == 1
    assert code.count("blt_titan.gate.default(") == code.count("blt_titan.heads.default(") == fused


def test_entropy_in_both_forms():
    logits = torch.randn(50, 260, generator=torch.Generator().manual_seed(0)) * 3
    meta = entropy_of(logits.to("meta"))
    assert meta.shape == (50,) and meta.dtype == torch.float32
    logp = logits.log_softmax(-1)
    close(-(logp.exp() * logp).sum(-1), entropy_of(logits))


def test_kernels_for_scoring_are_fixed():
    """Each setting is one that this release of inductor knows."""
    known = torch._inductor.config.get_config_copy()
    assert known.keys() >= FIXED_KERNELS.keys()
    assert FIXED_KERNELS["deterministic"] and not FIXED_KERNELS["max_autotune"]
    model = EntropyModel(EntropyModelConfig(dim=32, n_layers=1, n_heads=2))
    asked: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **given: asked.append(given) or function)
        assert model._compiled_logits and model._compiled_entropies
    settings = {"fullgraph": True, "dynamic": False, "options": FIXED_KERNELS}
    assert asked == [settings] * 2
