"""Patches that are a tokenizer's tokens: on plain text, and on streams with delimiters."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.bpe import byte_level
from support.shard_sets import real_texts
from support.texts import write_jsonl

from model import Patcher
from model.tokenizer import BOS_ID, BPE_ID, BYTE_OFFSET, EOS_ID, encode_documents
from pipeline.bpe import byte_level as byte_level_module
from pipeline.bpe.byte_level import BPE, load_bpe
from pipeline.errors import DamagedShardError, PipelineError
from pipeline.patches import recut
from pipeline.shards.verify import verify

TEXTS = [*real_texts(20), "né 中文 👩‍👩‍👧 <|endoftext|>".encode(), b"", b"z" * 70]
CONTENT = byte_level(TEXTS, special=["<|endoftext|>"])
TOKENIZER = BPE("mine", CONTENT)


def from_stream(bpe: BPE, texts: list[str]) -> list[list[int]]:
    """Patch lengths in bytes, BOS and EOS, by the rule on ids with a delimiter between tokens."""
    found = []
    for text in texts:
        ids, _ = bpe.encode([text])
        stream = [BOS_ID]
        for number, token in enumerate(ids.tolist()):
            stream += [BPE_ID] * (number > 0)
            stream += [byte + BYTE_OFFSET for byte in bpe.bytes_V[token]]
        stream.append(EOS_ID)
        tokens = torch.tensor([stream])
        lengths = Patcher(rule="bpe").patch_lengths(tokens.float(), tokens)[0].tolist()
        pieces = torch.tensor(stream).split(lengths)
        found.append([int((piece != BPE_ID).sum()) for piece in pieces])
    return found


def of_text(bpe: BPE, texts: list[str]) -> list[list[int]]:
    data = [text.encode() for text in texts]
    tokens_T, lengths_D = encode_documents(data)
    patcher = Patcher(rule="bpe", tokenizer=bpe.sha256)
    h_T = np.zeros(len(tokens_T), np.float16)
    patched = recut(patcher, h_T, lengths_D, data, bpe.ends(texts))
    parts = np.split(patched.patch_lengths_P, patched.patches_D.cumsum()[:-1])
    return [part.tolist() for part in parts]


def test_a_case_by_hand():
    texts = ["", "ab", "é"]
    tokens = [TOKENIZER.encode([text])[0] for text in texts]
    counts = [[len(TOKENIZER.bytes_V[token]) for token in ids] for ids in tokens]
    expected = [[1, *sizes] if sizes else [1, 0] for sizes in counts]
    for lengths in expected:
        lengths[-1] += 1
    assert of_text(TOKENIZER, texts) == expected
    ends = TOKENIZER.ends(["", "ab"])
    assert len(ends) == 2 + 4 and not ends[[0, 1, 2, 4, 5]].any()


def test_real_text_as_in_a_stream(monkeypatch):
    texts = [text.decode() for text in TEXTS]
    monkeypatch.setattr(byte_level_module, "BATCH_CHARACTERS", 900)  # several texts, or one
    found = of_text(TOKENIZER, texts)
    ids, counts = zip(*(TOKENIZER.encode([text]) for text in texts), strict=True)
    together = TOKENIZER.encode(texts)
    assert np.array_equal(together[0], np.concatenate(ids))
    assert np.array_equal(together[1], np.concatenate(counts))
    assert found == from_stream(TOKENIZER, texts)
    assert sum(map(len, found)) > 1000
    # Some tokens end within a character: patches are bytes.
    wide = TOKENIZER.ends(["中文" * 9])
    assert len(wide) == 56 and wide.sum() > 18


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_random_text_as_in_a_stream(texts):
    assert of_text(TOKENIZER, texts) == from_stream(TOKENIZER, texts)


def test_another_process_has_the_same_tokenizer():
    other = pickle.loads(pickle.dumps(TOKENIZER))
    texts = ["<|endoftext|> is text", "中文"]
    assert np.array_equal(other.ends(texts), TOKENIZER.ends(texts))


@pytest.fixture
def patched(ngram_model, tmp_path):
    (tmp_path / "mine.json").write_bytes(CONTENT)
    source = write_jsonl(tmp_path / "a.jsonl", [(str(i), t.decode()) for i, t in enumerate(TEXTS)])
    patcher = Patcher(rule="bpe", tokenizer=TOKENIZER.sha256)
    settings = {"rule": "bpe", "tokenizer": str(tmp_path / "mine.json")}
    return tiny.make_shards(tmp_path / "out", source, ngram_model, patcher, **settings)


def test_a_set_holds_its_tokenizer(patched, tmp_path):
    """Verification, and whoever places the boundaries again, need nothing else."""
    (tmp_path / "mine.json").unlink()
    assert patched.patcher.tokenizer == TOKENIZER.sha256
    texts = [document.text for document in patched]
    stored = [document.patch_lengths.tolist() for document in patched]
    assert stored == of_text(TOKENIZER, texts)
    assert list(verify(patched)) == []
    assert load_bpe(str(tmp_path / "out")).sha256 == TOKENIZER.sha256


def test_a_tokenizer_that_is_lost_or_another(patched, tmp_path):
    place = tmp_path / "out" / "tokenizer" / "tokenizer.json"
    place.write_bytes(byte_level(TEXTS, size=400))
    with pytest.raises(DamagedShardError, match=r"tokenizer\.json: sha256 is .* was written"):
        patched.bpe  # noqa: B018
    place.unlink()
    (problem,) = verify(patched)
    assert "tokenizer.json: " in problem and "restore it" in problem


def test_a_text_that_is_changed():
    from tokenizers import normalizers

    bpe = BPE("mine", byte_level(TEXTS, normalizer=normalizers.Replace("zzz", "z")))
    with pytest.raises(PipelineError, match=r"--tokenizer mine: the document that begins with 'zz"):
        bpe.ends(["z" * 70])
