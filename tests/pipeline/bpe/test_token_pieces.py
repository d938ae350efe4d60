"""The bytes of a text's tokens."""

import json

import pytest
from support.bpe import byte_level
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from pipeline.bpe.token_pieces import TokenPieces
from pipeline.errors import ConfigError

TEXTS = [b"The quick brown fox; 12 times " * 3, "Straße, 日本, мир <|endoftext|> ".encode() * 3]
TEXT = " The fox\n\nis 日本's 👩‍🚀 <|endoftext|> x"


def pieces(content: bytes) -> TokenPieces:
    return TokenPieces("mine", content, "--tokenizers")


def sentencepiece() -> bytes:
    """As Llama 2's: a blank before the text, blanks as ▁, bytes where a character is unknown."""
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    blank = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", *letters], show_progress=False
    )
    tokenizer.train_from_iterator([text.decode() for text in TEXTS], trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = saved["added_tokens"][:1]  # bytes are ordinary tokens
    return json.dumps(saved).encode()


@pytest.mark.parametrize("content", [byte_level(TEXTS, special=["<|endoftext|>"]), sentencepiece()])
@pytest.mark.parametrize("text", [TEXT, "", " ", "日", "plain"])
def test_tokens_are_the_text(content, text):
    ids, found = pieces(content).cut(text)
    assert b"".join(found) == text.encode() and len(ids) == len(found)


def test_a_character_over_several_tokens():
    _, found = pieces(byte_level(TEXTS[:1])).cut("日本")
    assert found == [bytes([byte]) for byte in "日本".encode()]


def test_saved_settings_do_not_cut_text():
    saved = Tokenizer.from_buffer(byte_level(TEXTS))
    saved.enable_truncation(3)
    saved.enable_padding(length=50)
    _, found = pieces(saved.to_str().encode()).cut(TEXT)
    assert b"".join(found) == TEXT.encode()


def test_a_text_has_one_way_to_be_cut():
    saved = json.loads(byte_level(TEXTS))
    plain, _ = pieces(json.dumps(saved).encode()).cut(TEXT)
    saved["model"]["dropout"] = 0.5
    random = pieces(json.dumps(saved).encode())
    assert all(random.cut(TEXT)[0] == plain for _ in range(10))


def test_tokenizers_that_change_text():
    with pytest.raises(ConfigError, match=r"--tokenizers mine: the tokens .* near 'The quick br"):
        pieces(byte_level(TEXTS, normalizer=normalizers.Lowercase()))
    composing = pieces(byte_level(TEXTS, normalizer=normalizers.NFC()))
    assert b"".join(composing.cut("é")[1]).decode() == "é"
    with pytest.raises(ConfigError, match="the tokens of mine do not give text back, near 'cafe"):
        composing.cut("cafe\u0301")
    with pytest.raises(ConfigError, match="--tokenizers mine: cannot be read"):
        pieces(b"{}")
