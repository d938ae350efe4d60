"""Reading piece by piece, taking back, reading on: the same boundaries and logits as in one go."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny
from support.weights import sharpen
from torch import Tensor

from model import BLT, BLT_SIZES, BLTConfig, EntropyModel, EntropyModelConfig, Patcher
from model.blt_config import ROW_READING
from model.entropy_model import entropy_of
from model.generation.cached_blocks import JoinedWeights
from model.generation.graphs import StepRunner
from model.generation.incremental import Incremental
from model.generation.incremental_blt import IncrementalBLT
from model.generation.incremental_entropies import EntropyModelSteps, ShortContextReader
from model.generation.kv_cache import PIECE
from model.generation.piece import Piece
from model.segments import NEWLINE_ID

TOLERANCE = 5e-5
"""Measured: at most 5e-6, of logits of deviation 1.7."""

PLAIN = BLT_SIZES["debug"]
WINDOWED = replace(
    PLAIN,
    n_layers_local_encoder=3,
    cross_attn_all_layers_encoder=True,
    cross_attn_window_encoder=3,
    cross_attn_window_decoder=2,
    local_attention_window_len=30,
    **dict.fromkeys(ROW_READING, True),
)
GROUPED = replace(
    PLAIN,
    cross_attn_all_layers_decoder=False,
    cross_attn_k=3,
    n_kv_heads_global=2,
    n_kv_heads_local_encoder=2,
    local_attention_window_len=None,
)
ABLATED = replace(
    PLAIN,
    cross_attn_encoder=False,
    cross_attn_decoder=False,
    encoder_hash_byte_group_size=(),
    dim_global=PLAIN.dim_local,
    projects_equal_widths=False,
)
RULES = [
    Patcher(3.3),
    Patcher(3.3, max_patch_length=5),
    Patcher(99.0),
    Patcher(0.1, "monotonic"),
    Patcher(0.1, "monotonic", published=True),
    Patcher(2.0, "combined", 0.05, published=True),
    Patcher(rule="space"),
    Patcher(rule="space", max_patch_length=3),
    Patcher(rule="byte"),
    Patcher(rule="static", patch_size=4.5),
    Patcher(rule="static", patch_size=4.5, max_patch_length=3),
]
LENGTHS = (PIECE + 444, 333, 1)


@pytest.fixture(scope="module")
def entropy_model() -> EntropyModel:
    """Context and window are short, so that both are passed."""
    torch.manual_seed(0)
    config = EntropyModelConfig(
        dim=32, n_layers=2, n_heads=2, hidden_dim=64, window=40, context_length=300
    )
    model = EntropyModel(config).eval()
    sharpen(model, 4)
    return model


@pytest.fixture(
    scope="module",
    params=[PLAIN, WINDOWED, GROUPED, ABLATED],
    ids=["plain", "windowed", "gqa", "ablated"],
)
def blt(request) -> BLT:
    torch.manual_seed(1)
    model = BLT(request.param).eval()
    sharpen(model, 3)
    return model


def text_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS))
    tokens = torch.randint(4, 260, shape, generator=generator)
    tokens[torch.rand(shape, generator=generator) < 0.02] = NEWLINE_ID
    tokens[:, 0] = 1
    return tokens


def reading(state: Incremental):
    """The functions of a state for ``in_pieces``, which has tensors."""
    return (
        lambda tokens, _, counts: state.read(tokens.numpy(), counts.numpy()),
        lambda kept: state.keep(kept.numpy()),
    )


def in_pieces(read, keep, tokens_BS: Tensor, seed: int) -> Tensor:
    """Read all rows to their ends in pieces of random sizes, taking some back at times."""
    draw = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor(LENGTHS)
    read_B = torch.zeros(len(LENGTHS), dtype=torch.int64)
    found: dict[tuple[int, int], Tensor] = {}
    while (read_B < lengths_B).any():
        longest = PIECE if torch.rand(1, generator=draw) < 0.2 else 60
        columns = int(torch.randint(1, longest + 1, (1,), generator=draw))
        counts_B = torch.randint(0, columns + 1, (len(LENGTHS),), generator=draw)
        counts_B = torch.minimum(counts_B, lengths_B - read_B)
        index_BM = (read_B[:, None] + torch.arange(columns)).clamp(max=max(LENGTHS) - 1)
        out_BM = read(tokens_BS.gather(1, index_BM), read_B, counts_B)
        if torch.rand(1, generator=draw) < 0.4:
            counts_B = (counts_B * torch.rand(len(LENGTHS), generator=draw)).long()
        keep(counts_B)
        for row, count in enumerate(counts_B.tolist()):
            for i in range(count):
                found[row, int(read_B[row]) + i] = out_BM[row, i]
        read_B = read_B + counts_B
    rows = [torch.stack([found[row, i] for i in range(n)]) for row, n in enumerate(LENGTHS)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.mark.parametrize("reset", [False, True])
def test_entropies(entropy_model, reset):
    """Of a transformer, through the logits of a model that writes alone (without resets), and with
    both through the boundaries of a BLT; here as they are."""
    tokens = text_tokens()
    runner = StepRunner(torch.device("cpu"))
    piece = Piece(len(LENGTHS), PIECE, 1, torch.device("cpu"))
    steps = EntropyModelSteps(entropy_model, piece, JoinedWeights(), reset_at_newline=reset)
    state = Incremental(steps, runner, reset_at_newline=reset)
    logits = in_pieces(*reading(state), tokens, seed=2)
    for row, n in enumerate(LENGTHS):
        expected = entropy_model.entropies(tokens[row : row + 1, :n], reset_at_newline=reset)
        h = entropy_of(logits[row, :n])[None]
        torch.testing.assert_close(h, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["ngram", "conv"])
@pytest.mark.parametrize("reset", [False, True])
def test_entropies_of_short_contexts(ngram_model, kind, reset):
    tokens = text_tokens()
    model = {"ngram": ngram_model, "conv": tiny.conv_model()}[kind]
    reader = ShortContextReader(model, len(LENGTHS), reset_at_newline=reset)
    h = in_pieces(lambda t, *_: reader.read(t), reader.keep, tokens, seed=2)
    for row, n in enumerate(LENGTHS):
        expected = model.entropies(tokens[row : row + 1, :n], reset_at_newline=reset)
        assert torch.equal(h[row : row + 1, :n], expected)


@pytest.mark.parametrize("patcher", RULES, ids=str)
def test_ends_in_pieces(patcher):
    """For entropies that are anything at all."""
    tokens = text_tokens()
    h = 6 * torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3))
    for row, n in enumerate(LENGTHS):
        lengths = patcher.patch_lengths(
            h[row : row + 1, :n], tokens[row : row + 1, :n], include_next_token=True
        )
        start = np.zeros(1, np.int64)
        first, ends = 0, []
        while first < n:
            stop = min(first + 1 + first % 7, n)
            piece = np.arange(first - 1, stop).clip(0)
            some = patcher.ends_in_piece(
                h.numpy()[row : row + 1, piece],
                tokens.numpy()[row : row + 1, piece],
                np.array([first]),
                start,
            )
            ends += [first + i for i in some[0].nonzero()[0].tolist()]
            start = np.array([ends[-1] + 1])
            first = stop
        assert [end + 1 for end in ends] == lengths[0].cumsum(0)[:-1].tolist()


@pytest.mark.parametrize("patcher", RULES, ids=str)
@torch.no_grad()
def test_logits(blt, entropy_model, patcher):
    tokens = text_tokens()
    reset = patcher.rule == "monotonic"
    state = IncrementalBLT(blt, entropy_model, patcher, len(LENGTHS), reset_at_newline=reset)
    logits = in_pieces(*reading(state), tokens, seed=4)
    assert state.lengths.read_B.tolist() == list(LENGTHS)
    for row, n in enumerate(LENGTHS):
        one = tokens[row : row + 1, :n]
        h = entropy_model.entropies(one, reset_at_newline=reset)
        expected = blt(one, patcher.patch_lengths(h, one, include_next_token=True))
        torch.testing.assert_close(logits[row : row + 1, :n], expected, rtol=0, atol=TOLERANCE)
        assert (logits[row, :n].argmax(-1) == expected[0].argmax(-1)).all()  # the greedy bytes


@torch.no_grad()
def test_patches_matter(blt):
    """Else the tests above would show nothing."""
    tokens = text_tokens()[:1]
    h = torch.zeros(tokens.shape)
    by_rule = [
        blt(tokens, Patcher(rule=rule).patch_lengths(h, tokens, include_next_token=True))
        for rule in ("byte", "space")
    ]
    assert (by_rule[0] - by_rule[1]).abs().mean() > 0.05


def test_what_cannot_be_read_in_pieces(entropy_model):
    one_too_many = np.zeros((1, PIECE + 1), np.int64)
    with pytest.raises(ValueError, match=f"at most {PIECE}, got {PIECE + 1}"):
        IncrementalBLT(BLT(PLAIN), None, Patcher(rule="byte"), 1).read(
            one_too_many, np.array([PIECE + 1])
        )
    model = BLT(BLTConfig(**{**vars(PLAIN), "patcher": None}))
    with pytest.raises(ValueError, match="entropy_model: the global rule needs one"):
        IncrementalBLT(model, None, Patcher(1.0), 1)
    with pytest.raises(ValueError, match="static rule as published has no patch at token 1"):
        IncrementalBLT(model, None, Patcher(rule="static", patch_size=4, published=True), 1)
    with pytest.raises(ValueError, match="top-k rule chooses among a whole document"):
        IncrementalBLT(model, entropy_model, Patcher(rule="top-k", patch_size=4), 1)
    with pytest.raises(ValueError, match="top-k"):
        Patcher(rule="top-k", patch_size=4).ends_in_piece(*[np.zeros((1, 2))] * 2, *[None] * 2)
