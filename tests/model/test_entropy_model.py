"""The transformer against transformers' BltPatcher and against a dense mask; packing, documents."""

import math

import pytest
import torch
from support.weights import sharpen
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.models.blt.configuration_blt import BltPatcherConfig
from transformers.models.blt.modeling_blt import BltPatcher

from model import EntropyModel, EntropyModelConfig, Patcher, load_entropy_model
from model.entropy_model import FIXED_KERNELS
from model.layers.attention import (
    BLOCK,
    SMALL_BLOCK,
    BlockedAttention,
    attend_flex,
    window_block_mask,
)
from model.segments import pack_segments, token_positions

LOGIT_TOLERANCE = 5e-4
"""Measured: at most 6e-5, of logits up to 22. (Rotary frequencies must be the published ones to the
last bit: an error of one unit in the last place makes 1.6e-3 at position 1,400.)"""
ENTROPY_TOLERANCE = 1e-4
"""Measured: at most 2e-5 nats between references, packings and batches."""

AWKWARD = [127, 1, 700, 2, 128, 1300, 129, 1, 1, 130]


def tokens_of(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 260, sizes, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = ENTROPY_TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=[4, 2], ids=["heads", "grouped"])
def oracle(request) -> BltPatcher:
    torch.manual_seed(request.param)
    shape = BltPatcherConfig(
        vocab_size=260,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=request.param,
        intermediate_size=256,
        max_position_embeddings=8192,
    )
    patcher = BltPatcher(shape).eval()
    sharpen(patcher, 4)
    return patcher


@pytest.fixture(scope="module")
def ours(oracle: BltPatcher, tmp_path_factory: pytest.TempPathFactory) -> EntropyModel:
    directory = tmp_path_factory.mktemp("oracle")
    oracle.save_pretrained(directory)
    return load_entropy_model(directory, device="cpu")


@torch.no_grad()
def test_transformers_agrees(oracle, ours):
    x = tokens_of(2, 1500)
    x[:, 0] = 1
    ask = {"patch_size": 4, "max_patch_length": None, "use_cache": False}
    h, _, logits = oracle(x, threshold=0.0, **ask)
    assert h.max() - h.min() > 2  # the test is worth something only if entropies differ
    for row in (0, 1):
        ours_logits = ours.logits_packed(x[row], torch.tensor([1500]))
        close(ours_logits, logits[row], LOGIT_TOLERANCE)
    close(ours.entropies(x), h)
    for quantile in (0.02, 0.3, 0.7, 0.98):
        threshold = h.quantile(quantile).item()
        for row in (0, 1):
            _, lengths, _ = oracle(x[row : row + 1], threshold=threshold, **ask)
            expected = [n for n in lengths[0].tolist() if n]  # a last one of 0 is theirs only
            actual = Patcher(threshold).patch_lengths(h[row : row + 1])[0].tolist()
            assert actual == expected
            assert len(actual) > 1500 * (1 - quantile) - 60


def dense_logits(model: EntropyModel, tokens_T: Tensor, lengths: list[int]) -> Tensor:
    """The model's definition, with the mask written out in full."""
    c, w = model.config, model.state_dict()
    segment = torch.repeat_interleave(torch.tensor(lengths))
    position = torch.cat([torch.arange(n) for n in lengths])
    index = torch.arange(len(tokens_T))
    apart = index[:, None] - index[None]
    seen = (segment[:, None] == segment[None]) & (apart >= 0) & (apart < c.window)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * w[f"{name}.weight"]

    def rotate(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for i in range(c.head_dim // 2):
            angle = position * c.rope_theta ** (-2 * i / c.head_dim)
            a, b, cos, sin = x[:, 2 * i], x[:, 2 * i + 1], angle.cos(), angle.sin()
            out[:, 2 * i], out[:, 2 * i + 1] = a * cos - b * sin, a * sin + b * cos
        return out

    x = w["tok_embeddings.weight"][tokens_T]
    for layer in (f"layers.{i}" for i in range(c.n_layers)):
        y, out = norm(x, f"{layer}.attention_norm"), []
        q, k, v = (y @ w[f"{layer}.attention.w{n}.weight"].T for n in "qkv")
        for head in range(c.n_heads):
            of_q = slice(head * c.head_dim, (head + 1) * c.head_dim)
            kv = head // (c.n_heads // c.kv_heads)
            of_kv = slice(kv * c.head_dim, (kv + 1) * c.head_dim)
            score = rotate(q[:, of_q]) @ rotate(k[:, of_kv]).T / math.sqrt(c.head_dim)
            out.append(score.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, of_kv])
        x = x + torch.cat(out, -1) @ w[f"{layer}.attention.wo.weight"].T
        y = norm(x, f"{layer}.ffn_norm")
        w1, w2, w3 = (w[f"{layer}.feed_forward.w{n}.weight"].T for n in "123")
        gate = y @ w1
        x = x + (gate * gate.sigmoid() * (y @ w3)) @ w2
    return norm(x, "norm") @ w["output.weight"].T


@pytest.mark.parametrize(("window", "kv_heads"), [(512, 2), (512, 1), (100, 2), (1, 2)])
@torch.no_grad()
def test_dense_mask_agrees(window, kv_heads):
    torch.manual_seed(1)
    config = EntropyModelConfig(
        dim=32, n_layers=2, n_heads=2, n_kv_heads=kv_heads, hidden_dim=64, window=window
    )
    model = EntropyModel(config).eval()
    sharpen(model, 3)
    tokens = tokens_of(sum(AWKWARD))
    logits = model.logits_packed(tokens, torch.tensor(AWKWARD))
    assert logits.shape == (sum(AWKWARD), 260)
    close(logits, dense_logits(model, tokens, AWKWARD), LOGIT_TOLERANCE)


def test_entropy_is_that_of_the_logits(small_model):
    tokens, lengths = tokens_of(300), torch.tensor([200, 100])
    p = small_model.logits_packed(tokens, lengths).double().softmax(-1).detach()
    close(small_model.entropies_packed(tokens, lengths).double(), -(p * p.log()).sum(-1))


def test_packing_changes_nothing(small_model):
    documents = [tokens_of(n, seed=n) for n in AWKWARD]
    alone = [small_model.entropies_packed(d, torch.tensor([len(d)])) for d in documents]
    assert torch.cat(alone).std() > 0.2
    for budget in (1, 300, 2000, 1 << 30):
        generator = torch.Generator().manual_seed(budget)
        order = torch.randperm(len(documents), generator=generator).tolist()
        tokens = torch.cat([documents[i] for i in order])
        lengths = torch.tensor([len(documents[i]) for i in order])
        packs = [
            small_model.entropies_packed(tokens[t], lengths[s])
            for s, t in pack_segments(lengths, budget)
        ]
        close(torch.cat(packs), torch.cat([alone[i] for i in order]))


def test_rows_and_documents_are_independent(small_model):
    a, b, c = tokens_of(40, seed=1), tokens_of(200, seed=2), tokens_of(140, seed=3)
    a[-1] = 2  # EOS ends the first document of the first row
    rows = torch.full((3, 260), -1)
    rows[0, :240] = torch.cat([a, b])
    rows[2, :140] = c  # and the second row is empty
    h = small_model.entropies(rows)
    assert h.dtype == torch.float32
    for row, start, document in ((0, 0, a), (0, 40, b), (2, 0, c)):
        close(h[row, start : start + len(document)], small_model.entropies(document[None])[0])
    assert not h[rows == -1].any()
    assert (h[rows != -1] > 0).all()
    # Without the EOS, context reaches across.
    rows[0, 39] = 5
    assert (small_model.entropies(rows)[0, 40:60] - h[0, 40:60]).abs().max() > 0.01
    assert small_model.entropies(torch.full((2, 3), -1)).tolist() == [[0.0] * 3] * 2


def test_context_and_positions_restart_after_context_length(small_model):
    config = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, context_length=64)
    short = EntropyModel(config).eval()
    short.load_state_dict(small_model.state_dict())
    x = tokens_of(150)
    h = short.entropies(x[None])[0]
    for start in (0, 64, 128):
        piece = x[start : start + 64]
        close(h[start : start + 64], short.entropies_packed(piece, torch.tensor([len(piece)])))
    assert (h[64:] - small_model.entropies(x[None])[0, 64:]).abs().max() > 0.01


def test_reset_at_newline(small_model):
    x = tokens_of(90)
    x[x == 14] = 15
    x[[20, 21, 60]] = 14  # newlines
    h = small_model.entropies(x[None], reset_at_newline=True)[0]
    for start, end in ((0, 21), (21, 22), (22, 61), (61, 90)):
        close(h[start:end], small_model.entropies(x[None, start:end])[0])
    assert (h[22:] - small_model.entropies(x[None])[0, 22:]).abs().max() > 0.01


@pytest.mark.parametrize("window", [1, 100, 128, 129, 512])
@pytest.mark.parametrize("lengths", [AWKWARD, [128] * 3, [1] * 128, [1024], [100, 924]])
@pytest.mark.parametrize("block", [BLOCK, SMALL_BLOCK])
def test_block_mask(lengths, window, block):
    lengths = [*lengths, *[1] * (-sum(lengths) % BLOCK)]
    position = token_positions(torch.tensor(lengths), sum(lengths))
    assert position.tolist() == [i for n in lengths for i in range(n)]
    index = torch.arange(sum(lengths))
    segment = torch.repeat_interleave(torch.tensor(lengths))
    apart = index[:, None] - index[None]
    allowed = (segment[:, None] == segment[None]) & (apart >= 0) & (apart < window)

    mask = window_block_mask(position, window, block)
    zero = torch.zeros((), dtype=torch.int64)
    inside = mask.mask_mod(zero, zero, index[:, None], index[None])
    assert torch.equal(inside, allowed)  # the mask alone is right too: eager runs use no list
    # torch's own lists of the same mask, which it makes from all pairs of tokens.
    size = len(index)
    expected = create_block_mask(
        mask.mask_mod, None, None, size, size, device="cpu", BLOCK_SIZE=block
    )
    for kind in ("kv", "full_kv", "q", "full_q"):
        ours, theirs = (listed_blocks(of, kind) for of in (mask, expected))
        assert ours == theirs, kind
        assert getattr(mask, f"{kind}_indices").stride() == mask.kv_indices.stride()
    with torch.no_grad():
        forward = window_block_mask(position, window, block)
    assert listed_blocks(forward, "full_kv") == listed_blocks(mask, "full_kv")
    assert forward.q_num_blocks is forward.q_indices is forward.full_q_indices is None


def listed_blocks(mask: BlockMask, kind: str) -> list[list[int]]:
    counts, blocks = (getattr(mask, f"{kind}_{what}")[0, 0] for what in ("num_blocks", "indices"))
    found = [row[:count].tolist() for row, count in zip(blocks, counts.tolist(), strict=True)]
    assert all(len(set(row)) == len(row) for row in found)
    return [sorted(row) for row in found]


@torch.no_grad()
def test_compiled_attention_reads_the_lists():
    """FlexAttention as inductor compiles it for a CPU: full blocks are those without a mask."""
    lengths = torch.tensor([1, 127, 129, 2, 1001, 20])
    position = token_positions(lengths, 1280)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1280, 2, 16, generator=generator) for _ in range(3))
    compiled = torch.compile(flex_attention, dynamic=False, options=FIXED_KERNELS)

    def attend(mask: BlockMask) -> Tensor:
        q4, k4, v4 = (x.transpose(0, 1)[None].contiguous() for x in (q, k, v))
        return compiled(q4, k4, v4, block_mask=mask)[0].transpose(0, 1)

    mask, expected = window_block_mask(position, 512), BlockedAttention(position, 512)(q, k, v)
    close(attend(mask), expected, 1e-5)
    assert mask.full_kv_num_blocks.sum() > 9
    mask.full_kv_num_blocks.zero_()
    assert (attend(mask) - expected).abs().max() > 0.1


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_and_blocked_attention_agree(kv_heads):
    lengths = torch.tensor([1, 127, 128, 129, 2, 380, 1])
    position = token_positions(lengths, 768)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(768, heads, 16, generator=generator) for heads in (4, kv_heads, kv_heads)
    )
    for window in (100, 512):
        expected = BlockedAttention(position, window)(q, k, v)
        actual = attend_flex(q, k, v, window_block_mask(position, window))
        close(actual, expected, 1e-5)


def test_input_that_does_not_fit(small_model):
    with pytest.raises(ValueError, match="8193 tokens is longer than the context of 8192"):
        small_model.logits_packed(tokens_of(8193), torch.tensor([8193]))
    for outside in (260, -2):
        with pytest.raises(ValueError, match="0 to 259"):
            small_model.entropies(torch.tensor([[1, outside, 70]]))
    for name, value in {"dim": 34, "n_kv_heads": 3, "vocab_size": 259, "window": 0}.items():
        with pytest.raises(ValueError, match=name if name != "dim" else "n_heads"):
            EntropyModelConfig(**{"dim": 32, "n_heads": 4, name: value})
