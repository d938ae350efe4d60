"""BLT against transformers' and against its definition written out; packing, rows, gradients."""

import random

import pytest
import torch
from support.blt_cases import (
    random_batch,
    random_config,
    random_lengths,
    random_tokens,
    rows_of,
    sharp_blt,
    tiny,
)
from support.blt_dense import DenseBLT, hash_rows
from support.weights import sharpen
from torch import Tensor
from transformers.models.blt.configuration_blt import BltConfig
from transformers.models.blt.modeling_blt import BltForCausalLM

from model import BLT, load_blt

TRANSFORMERS_TOLERANCE = 5e-4
"""Measured: up to 16 tokens at most 1e-5, up to 700 at most 2e-4, of logits up to 12."""
DENSE_TOLERANCE = 1e-4
"""Measured over 300 random models and batches: at most 2e-5, of logits up to 7."""

ORACLES = {
    "k-2": {},
    "k-3-projected-grouped": {"k": 3, "kv_heads": 2, "functions": 2},
    "k-1-hash-functions": {"k": 1, "functions": 3, "sizes": [4, 3, 8]},
    "k-4-layers-window": {"k": 4, "layers": (2, 3, 3), "window": 16, "kv_heads": 1},
    "first-layer-decoder": {"all_decoder": False, "kv_heads": 2, "global_kv_heads": 1},
}


def transformers_blt(
    k=2,
    kv_heads=4,
    global_kv_heads=4,
    layers=(1, 2, 2),
    functions=1,
    sizes=None,
    window=512,
    all_decoder=True,
) -> BltForCausalLM:
    torch.manual_seed(k)
    local = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": kv_heads}
    local |= {"intermediate_size": 80, "cross_attn_k": k, "hidden_size_global": 64}
    encoder, latent, decoder = layers
    config = BltConfig(
        patch_in_forward=False,
        cross_attn_k=k,
        local_attention_window_len=window,
        encoder_hash_byte_group_vocab=500,
        encoder_hash_byte_group_size=sizes,
        encoder_hash_byte_group_nb_functions=functions,
        encoder_config={**local, "num_hidden_layers": encoder, "cross_attn_all_layers": False},
        decoder_config={
            **local,
            "num_hidden_layers": decoder,
            "cross_attn_all_layers": all_decoder,
        },
        global_config={
            "hidden_size": 64,
            "num_hidden_layers": latent,
            "num_attention_heads": 4,
            "num_key_value_heads": global_kv_heads,
            "intermediate_size": 128,
        },
        patcher_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    model = BltForCausalLM(config).eval()
    sharpen(model, 2)
    return model


@pytest.fixture(scope="module", params=ORACLES, ids=str)
def pair(request, tmp_path_factory) -> tuple[BltForCausalLM, BLT]:
    """Theirs and ours with the same weights."""
    theirs = transformers_blt(**ORACLES[request.param])
    directory = tmp_path_factory.mktemp("oracle")
    theirs.save_pretrained(directory)
    return theirs, load_blt(directory, device="cpu")


def oracle_batch(rng: random.Random, rows: int, n: int, more: int = 1) -> tuple[Tensor, Tensor]:
    """What transformers can be trusted with: no EOS, no padding, and sums of n + 1."""
    tokens = [[1, *rng.choices(range(4, 260), k=n - 1)] for _ in range(rows)]
    return torch.tensor(tokens), rows_of([random_lengths(rng, n + more) for _ in tokens], 0)


def close(actual: Tensor, expected: Tensor, tolerance: float = DENSE_TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_transformers_agrees(pair):
    theirs, ours = pair
    rng = random.Random(0)
    sizes = [(3, n) for n in (2, 5, 9, 33, 70, 129, 130, 300)] + [(1, 700)]
    for rows, n in sizes:
        for _ in range(3):
            tokens, lengths = oracle_batch(rng, rows, n)
            expected = theirs(tokens, patch_lengths=lengths, use_cache=False).logits
            close(ours(tokens, lengths), expected, TRANSFORMERS_TOLERANCE)
    assert expected.std() > 1  # weights are such that differences would show


@torch.no_grad()
def test_transformers_agrees_where_the_next_token_has_no_patch(pair):
    """Lengths that sum to n. In rows with zeros behind them, theirs lets the last token read an
    empty patch, so that the zeros change what it says; it is left out there."""
    theirs, ours = pair
    rng = random.Random(6)
    for n in (2, 3, 9, 60, 129):
        tokens, lengths = oracle_batch(rng, 6, n, more=0)
        expected = theirs(tokens, patch_lengths=lengths, use_cache=False).logits
        logits, full = ours(tokens, lengths), (lengths > 0).all(1)
        assert full.any()
        close(logits[:, :-1], expected[:, :-1], TRANSFORMERS_TOLERANCE)
        close(logits[full], expected[full], TRANSFORMERS_TOLERANCE)


@torch.no_grad()
def test_transformers_agrees_with_the_definition(pair):
    theirs, ours = pair
    dense = DenseBLT(ours.config, ours.state_dict())
    rng = random.Random(1)
    for n in (2, 9, 33, 64):
        tokens, lengths = oracle_batch(rng, 2, n)
        expected = theirs(tokens, patch_lengths=lengths, use_cache=False).logits
        close(dense(tokens, lengths), expected, TRANSFORMERS_TOLERANCE)


def agrees_with_the_definition(model: BLT, tokens: Tensor, lengths: Tensor) -> Tensor:
    """At tokens; what is said at padding has no meaning."""
    logits, inside = model(tokens, lengths), tokens != -1
    assert logits.shape == (*tokens.shape, 260)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    expected = DenseBLT(model.config, dict(model.named_parameters()))(tokens, lengths)
    close(logits[inside], expected[inside])
    return logits[inside]


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_definition(seed):
    """EOS anywhere, patches that straddle documents, rows of unequal lengths, every variant."""
    rng = random.Random(seed)
    model = sharp_blt(random_config(rng), seed)
    tokens, lengths = random_batch(rng)
    logits = agrees_with_the_definition(model, tokens, lengths)
    more_zeros = torch.nn.functional.pad(lengths, (0, 3))
    close(model(tokens, more_zeros)[tokens != -1], logits, 1e-5)


@pytest.mark.parametrize("window", [100, 512, None])
@torch.no_grad()
def test_definition_over_more_tokens_than_a_block_of_the_attention(window):
    rng = random.Random(5)
    windows = {"cross_attn_window_encoder": 3, "cross_attn_window_decoder": 2}
    model = sharp_blt(tiny(local_attention_window_len=window, **windows))
    tokens = [random_tokens(rng, n, eos=0.005) for n in (300, 128, 257)]
    lengths = [random_lengths(rng, len(row) + 1) for row in tokens]
    agrees_with_the_definition(model, rows_of(tokens, -1), rows_of(lengths, 0))


@torch.no_grad()
def test_the_smallest_inputs():
    model = sharp_blt(tiny(n_layers_local_encoder=2, cross_attn_all_layers_encoder=True))
    for tokens, lengths in (
        ([[1]], [[1]]),
        ([[1]], [[1, 1]]),
        ([[2]], [[1, 1, 0]]),
        ([[1, 2]], [[1, 1]]),
        ([[1, 2]], [[1, 2]]),
        ([[2, 2, 2]], [[1, 1, 1]]),
        ([[1, 70, -1], [2, 1, 2]], [[1, 1], [1, 3]]),
        ([[-1, -1], [1, 5]], [[1, 0], [1, 1]]),  # a row of padding
    ):
        agrees_with_the_definition(model, torch.tensor(tokens), torch.tensor(lengths))
    for empty in ((2, 0), (0, 5)):
        tokens, lengths = torch.zeros(empty).long(), torch.ones(empty[0], 1).long()
        assert model(tokens, lengths).shape == (*empty, 260)
    # Types don't matter.
    tokens, lengths = torch.tensor([[1, 70, 71]]), torch.tensor([[1, 2]])
    assert torch.equal(model(tokens.int(), lengths.int()), model(tokens, lengths))


PACKED = {
    "published": {},
    "windows": {"cross_attn_window_encoder": 3, "cross_attn_window_decoder": 4},
    "all-layers": {"n_layers_local_encoder": 3, "cross_attn_all_layers_encoder": True},
    "no-window": {"local_attention_window_len": None, "cross_attn_k": 3},
}


@pytest.mark.parametrize("variant", PACKED)
@torch.no_grad()
def test_packed_documents_equal_the_same_documents_alone(variant):
    rng = random.Random(2)
    model = sharp_blt(tiny(**PACKED[variant]))
    documents = [[1, *random_tokens(rng, n - 2, eos=0), 2] for n in (2, 150, 3, 40, 2, 61, 300)]
    lengths = [random_lengths(rng, len(document)) for document in documents]
    alone = []
    for document, of_patches in zip(documents, lengths, strict=True):
        # In a row, the token after a document's last starts a patch.
        known = torch.tensor([[*of_patches, 1]])
        alone.append(model(torch.tensor([document]), known)[0])
    row = [sum(documents, []), documents[3]]
    of_row = [[*sum(lengths, []), 1], [*lengths[3], 1]]
    logits = model(rows_of(row, -1), rows_of(of_row, 0))
    close(logits[0], torch.cat(alone), 2e-5)
    close(logits[1, : len(documents[3])], alone[3], 2e-5)
    # It is EOS that keeps them apart.
    row[0] = [5 if token == 2 else token for token in row[0]]
    assert (model(rows_of(row, -1), rows_of(of_row, 0))[0, 2:] - logits[0, 2:]).abs().max() > 0.1


@torch.no_grad()
def test_ngrams_across_documents():
    """As the published weights were trained: that alone makes packed documents differ."""
    rng = random.Random(3)
    model = sharp_blt(tiny(hash_across_documents=True))
    a, b = ([1, *random_tokens(rng, n, eos=0), 2] for n in (20, 30))
    lengths_a, lengths_b = random_lengths(rng, len(a)), random_lengths(rng, len(b))
    packed = agrees_with_the_definition(
        model, torch.tensor([a + b]), torch.tensor([lengths_a + lengths_b])
    )[len(a) :]
    alone = model(torch.tensor([b]), torch.tensor([lengths_b]))[0]
    assert (packed - alone).abs().max() > 0.01
    model = sharp_blt(tiny())
    packed = model(torch.tensor([a + b]), torch.tensor([lengths_a + lengths_b]))[0, len(a) :]
    close(packed, model(torch.tensor([b]), torch.tensor([lengths_b]))[0], 2e-5)


@torch.no_grad()
def test_rows_are_independent():
    for seed in range(10):
        rng = random.Random(seed)
        model = sharp_blt(random_config(rng), seed)
        tokens, lengths = random_batch(rng)
        logits = model(tokens, lengths)
        for row, of_patches, expected in zip(tokens, lengths, logits, strict=True):
            n = int((row != -1).sum())
            alone = model(row[None, :n], of_patches[of_patches > 0][None])[0]
            close(alone, expected[:n], 2e-5)


GRADIENT_VARIANTS = {
    "published": {},
    "projected": {"dim_global": 24, "n_kv_heads_local_encoder": 1, "n_kv_heads_local_decoder": 1},
    "all-layers": {"n_layers_local_encoder": 2, "cross_attn_all_layers_encoder": True},
    "windows": {"cross_attn_window_encoder": 2, "cross_attn_window_decoder": 3},
    "ablated": {"cross_attn_encoder": False, "cross_attn_decoder": False, "dim_global": 24},
}


@pytest.mark.parametrize("variant", GRADIENT_VARIANTS)
def test_gradients(variant):
    rng = random.Random(4)
    config = tiny(encoder_hash_byte_group_nb_functions=2, **GRADIENT_VARIANTS[variant])
    model = sharp_blt(config)
    rows = [random_tokens(rng, n) for n in (40, 25)]
    tokens, lengths = rows_of(rows, -1), rows_of([random_lengths(rng, len(r) + 1) for r in rows], 0)
    targets = torch.randint(0, 260, tokens.shape, generator=torch.Generator().manual_seed(0))
    targets[tokens == -1] = -1

    def gradients(logits: Tensor) -> dict[str, Tensor]:
        loss = torch.nn.functional.cross_entropy(logits.mT, targets, ignore_index=-1)
        names, parameters = zip(*model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    ours = gradients(model(tokens, lengths))
    dense = gradients(DenseBLT(config, dict(model.named_parameters()))(tokens, lengths))
    for name, gradient in ours.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
        torch.testing.assert_close(
            gradient, dense[name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    # Exactly the rows that were looked up.
    sizes = config.encoder_hash_byte_group_size
    for function in (0, 1):
        for s, size in enumerate(sizes):
            gradient = ours[f"encoder_hash_tok_embedding.{function * len(sizes) + s}.weight"]
            looked_up = {i for row in rows for i in hash_rows(config, row, function, size)}
            assert set(gradient.any(1).nonzero()[:, 0].tolist()) == looked_up
