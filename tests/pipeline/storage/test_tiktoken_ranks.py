"""tiktoken's files of ranks: the tokens are those that the ranks define."""

import base64
import random
from itertools import pairwise

import pytest
from support.bpe import ranks_file
from tokenizers import Tokenizer

from pipeline.bpe.byte_level import BPE
from pipeline.errors import ConfigError
from pipeline.storage.tiktoken_ranks import WORDS, is_ranks, tokenizer_json
from pipeline.storage.tokenizer_files import read_tokenizer

BYTES = [bytes([byte]) for byte in range(256)]


def joined(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The definition: of all neighbours, those with the lowest rank become one, from the left."""
    parts = [word] if word in ranks else [bytes([byte]) for byte in word]
    while True:
        whole = [a + b for a, b in pairwise(parts)]
        pairs = [(ranks[pair], i) for i, pair in enumerate(whole) if pair in ranks]
        if not pairs:
            return parts
        place = min(pairs)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_tokens_are_those_of_the_ranks(letters):
    """Any tokens in any order, more than training would give, and words of few letters, in which
    pairs overlap."""
    chance = random.Random(letters)
    for _ in range(20):
        made = [letter.encode() for letter in letters]
        for _ in range(chance.randrange(1, 12)):
            made.append((chance.choice(made) + chance.choice(made))[:8])
        tokens = list(dict.fromkeys([*BYTES, *made]))
        ranks = {token: rank for rank, token in enumerate(tokens)}
        content = tokenizer_json(ranks_file(tokens), "cl100k_base.tiktoken", "--tokenizers")
        tokenizer = Tokenizer.from_buffer(content)
        for _ in range(10):
            word = "".join(chance.choice(letters) for _ in range(chance.randrange(1, 30)))
            found = [tokens[i] for i in tokenizer.encode(word).ids]
            assert found == joined(word.encode(), ranks)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("r50k_base.tiktoken", ["I", "'ll", " pay", " 12345", " €!!", "\n\n ", " now", " \n "]),
        ("cl100k_base.tiktoken", ["I", "'ll", " pay", " ", "123", "45", " €!!\n\n", " ", " now",
                                  " \n "]),
        ("o200k_base.tiktoken", ["I'll", " pay", " ", "123", "45", " €!!\n\n", " ", " now", " \n",
                                 " "]),
        ("tokenizer.model", ["I", "'ll", " pay", " ", "123", "45", " €!!\n\n", " ", " now", " \n",
                             " "]),
    ],
)  # fmt: skip
def test_words_end_where_the_names_say(name, words):
    """By hand; tiktoken gives the same words."""
    content = tokenizer_json(ranks_file(BYTES), name, "--tokenizers")
    splits = Tokenizer.from_buffer(content).pre_tokenizer.pre_tokenize_str("".join(words))
    assert ["".join(words)[a:b] for _, (a, b) in splits] == words


def test_text_comes_back(tmp_path):
    """The strict check that training makes of its tokenizer."""
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(ranks_file([*BYTES, b"th", b"the", b" the", "é".encode()]))
    bpe = BPE("mine", read_tokenizer(str(path)))
    ids, _ = bpe.encode(["the the é"])
    assert ids.tolist() == [257, 258, 32, 259]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (ranks_file(BYTES), "mine.tiktoken", "has to keep the name under which it was published"),
        (ranks_file(BYTES[:200]), "cl100k_base.tiktoken", "the byte 0xc8 has no rank"),
        (ranks_file(BYTES) + b"x 1\n", "cl100k_base.tiktoken", "line 257 is no new token"),
        (ranks_file(BYTES) + b"YQ== 7\n", "cl100k_base.tiktoken", "line 257 is no new token"),
        (ranks_file(BYTES) + b"YWI= 7\n", "cl100k_base.tiktoken", "a rank occurs twice"),
    ],
)
def test_damaged_and_unknown_files_are_named(content, name, message):
    with pytest.raises(ConfigError, match=f"--tokenizers {name}: .*{message}"):
        tokenizer_json(content, name, "--tokenizers")


def test_what_is_no_file_of_ranks():
    for content in (b"", b"{}", b"YQ==", b'{"version": "1.0"}\n', b"\n" + ranks_file(BYTES)):
        assert not is_ranks(content)
    assert is_ranks(base64.b64encode(b"a") + b" 0") and len(WORDS) == 5
