"""Token transformers in their two layouts: transformers' Llama computes the same."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.bpe import byte_level
from support.shard_sets import real_texts
from support.weights import sharpen
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from model import load_blt, load_entropy_model
from model.checkpoints.files import CheckpointError
from model.checkpoints.token_transformer import (
    load_token_transformer,
    number_of_tokens,
    save_token_transformer,
)
from model.token_transformer import TokenTransformer, TokenTransformerConfig, padded_vocab_size
from model.tokenizer import BOS_ID, EOS_ID

TEXTS = [*real_texts(6), "né 中文 👩‍👩‍👧 <|endoftext|>".encode(), b""]
TOKENIZER = byte_level(real_texts(20), 600, special=["<|endoftext|>"])
SHAPE = TokenTransformerConfig(
    dim=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    rope_theta=1000.0,
    vocab_size=padded_vocab_size(600),
)


@pytest.fixture(scope="module")
def model() -> TokenTransformer:
    torch.manual_seed(0)
    model = TokenTransformer(SHAPE).eval()
    model.init_weights()
    sharpen(model, 2)
    return model


def encoded(text: str) -> list[int]:
    tokenizer = Tokenizer.from_buffer(TOKENIZER)
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [BOS_ID, *(i + 4 for i in ids), EOS_ID]


@torch.no_grad()
def test_bits_per_byte_are_those_of_transformers(model, tmp_path):
    """On the same text, which transformers tokenizes for itself; ours in one packed row."""
    save_token_transformer(model, tmp_path, TOKENIZER, layout="transformers")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    assert isinstance(theirs, LlamaForCausalLM)
    row, nats = [], 0.0
    for text in (text.decode() for text in TEXTS):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids[1:]) == text
        assert ids[0] == tokenizer.bos_token_id == 600 and tokenizer.eos_token_id == 601
        ids.append(tokenizer.eos_token_id)
        logits = theirs(torch.tensor([ids])).logits[0, :-1].double()
        nats += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        row += encoded(text)
    tokens = torch.tensor([[*row, -1, -1]])
    logits, labels = model(tokens)[0, :-1].double(), tokens[0, 1:]
    counted = (labels != BOS_ID) & (labels >= 0)
    ours = F.cross_entropy(logits[counted], labels[counted], reduction="sum").item()
    size = sum(map(len, TEXTS)) * math.log(2)
    assert nats / size > 3 and ours / size == pytest.approx(nats / size, rel=1e-6)


def test_own_layout(model, tmp_path):
    save_token_transformer(model, tmp_path, TOKENIZER)
    assert (tmp_path / "tokenizer.json").read_bytes() == TOKENIZER
    found = load_token_transformer(tmp_path, device="cpu")
    assert found.config == SHAPE
    tokens = torch.tensor([encoded("some text")])
    assert torch.equal(found(tokens), model(tokens))


def test_documents_and_rows_do_not_see_one_another(model):
    a, b = encoded("one document"), encoded("another one")
    packed = model(torch.tensor([[*a, *b], [*b, *a]]))
    alone = model(torch.tensor([b]))[0]
    assert torch.allclose(packed[0, len(a) :], alone, atol=1e-5)
    assert torch.allclose(packed[1, : len(b)], alone, atol=1e-5)


def test_refusals(model, tmp_path):
    for layout, message in (
        ("published", "published layout has no place"),
        ("x", "layout: 'x' is"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_token_transformer(model, tmp_path / "no", TOKENIZER, layout=layout)
    known = TokenTransformer(replace(SHAPE, tokenizer="another"))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: its sha256 is \w{64}, and that of"):
        save_token_transformer(known, tmp_path / "no", TOKENIZER)
    definition = json.loads(TOKENIZER)
    definition["model"]["vocab"]["far"] = 700
    wide = TokenTransformer(replace(SHAPE, vocab_size=896))
    assert number_of_tokens(definition) == 701
    with pytest.raises(CheckpointError, match=r"100 ids below 701 stand for no token"):
        gaps = json.dumps(definition).encode()
        save_token_transformer(wide, tmp_path / "no", gaps, layout="transformers")
    assert not (tmp_path / "no").exists()
    save_token_transformer(model, tmp_path, TOKENIZER)
    for load in (load_blt, load_entropy_model):  # for jobs that read bytes
        with pytest.raises(CheckpointError, match=r"is a token transformer, which reads"):
            load(tmp_path)
    config = Path(tmp_path, "config.json")
    for change, message in (
        ({"n_layers": 3}, "lacks weights: layers.2"),
        ({"wings": 2}, "unknown argument 'wings'"),
        ({"n_heads": 5}, "n_heads: 5 heads do not divide"),
        ({"vocab_size": 200}, "vocab_size: bytes need 260"),
        ({"format": "other"}, "no token transformer"),
    ):
        values = {"format": "blt-titan/token-transformer/1", **asdict(SHAPE), **change}
        config.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=message):
            load_token_transformer(tmp_path)
