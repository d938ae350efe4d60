"""Rows of a tokenizer's ids: which tokenizers, and every byte of every document once."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from support.bpe import byte_level
from support.shard_sets import real_texts, write_shards
from tokenizers import Tokenizer, normalizers

from model.tokenizer import BOS_ID, EOS_ID
from pipeline import open_shards
from pipeline.bpe.byte_level import BPE, load_bpe
from pipeline.bpe.token_bytes import BYTES, HASH_BITS
from pipeline.errors import ConfigError, PipelineError
from train.data.dataloader import ShardDataLoader
from train.data.tokenizer import TitanBPETokenizer, TitanByteTokenizer, TitanTokenizer

TEXTS = [*real_texts(40), "né 中文 👩‍👩‍👧 <|endoftext|>".encode(), b"", b"z" * 700]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("shards"))
    write_shards(url, TEXTS)
    return url


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TitanBPETokenizer:
    return titan(tmp_path_factory.mktemp("tokenizer"), special=["<|endoftext|>"])


def titan(folder: Path, **changes: object) -> TitanBPETokenizer:
    (folder / "tokenizer.json").write_bytes(byte_level(TEXTS, **changes))
    return TitanBPETokenizer.Config(source=str(folder)).build()


def loader(
    shards: str, tokenizer: TitanTokenizer, rank: int = 0, ranks: int = 1, **settings: object
) -> ShardDataLoader:
    config = ShardDataLoader.Config(
        **{"shards": [shards], "patches": False, "shuffle_bytes": 20_000, "lanes": 4} | settings
    )
    share = {"dp_world_size": ranks, "dp_rank": rank, "seq_len": 64, "local_batch_size": 3}
    return config.build(**share, tokenizer=tokenizer)


def hash_of(batches, kind: TitanTokenizer) -> tuple[int, int]:
    """Bytes of the labels, and their hash."""
    found = [(inputs["input"].numpy(), labels.numpy()) for inputs, labels in batches]
    number = sum(kind.token_bytes.hash(*batch) for batch in found) % 2**HASH_BITS
    return sum(kind.token_bytes.count(labels) for _, labels in found), number


@pytest.mark.parametrize("ranks", [1, 3])
def test_labels_are_the_same_bytes_in_tokens_and_in_bytes(shards, tokenizer, ranks):
    expected = sum(map(len, TEXTS))
    hashes = set()
    for kind in (tokenizer, TitanByteTokenizer.Config().build()):
        for settings in ({}, {"seed": 3}):
            parts = [
                hash_of(loader(shards, kind, r, ranks, infinite=False, **settings), kind)
                for r in range(ranks)
            ]
            assert sum(count for count, _ in parts) == expected
            hashes.add(sum(number for _, number in parts) % 2**HASH_BITS)
    assert len(hashes) == 1


def test_a_hash_is_of_every_byte_in_its_place():
    def hashed(*texts: bytes) -> int:
        tokens = [np.array([BOS_ID, *(byte + 4 for byte in text), EOS_ID]) for text in texts]
        return sum(BYTES.hash(each[:-1], each[1:]) for each in tokens) % 2**HASH_BITS

    assert hashed(b"ab", b"cd") == hashed(b"cd", b"ab")
    others = [(b"ab",), (b"ab", b"cd", b"cd"), (b"abcd",), (b"ba", b"cd"), (b"ab", b"ce"), ()]
    assert len({hashed(b"ab", b"cd"), *(hashed(*texts) for texts in others)}) == 1 + len(others)


def test_rows_are_documents_of_ids(shards, tokenizer):
    """And each is in the rows once."""
    found: list[bytes] = []
    ends = 0
    for inputs, labels in loader(shards, tokenizer, infinite=False):
        input_T, label_T = inputs["input"].numpy().ravel(), labels.numpy().ravel()
        assert (input_T < tokenizer.get_vocab_size()).all()
        known = label_T >= 0
        followed = known[:-1] & known[1:]
        assert (label_T[:-1][followed] == input_T[1:][followed]).all()
        found += [tokenizer.token_bytes.bytes_V[i] for i in label_T[known].tolist()]
        ends += int((label_T == EOS_ID).sum())
    assert ends == len(TEXTS)
    assert sorted(b"".join(found)) == sorted(b"".join(TEXTS))
    expected = [tokenizer.encode(document.text) for document in open_shards(shards)]
    assert sum(map(len, expected)) == len(found) + ends
    assert tokenizer.decode(expected[0]) == TEXTS[0].decode()
    # A special token of the tokenizer is text like any other.
    assert (
        4 not in [i for ids in expected for i in ids] and len(tokenizer.encode("<|endoftext|>")) > 3
    )


def test_a_run_continues_on_another_number_of_ranks(shards, tokenizer):
    whole = [rows(batch) for batch in islice(loader(shards, tokenizer), 12)]
    first = [loader(shards, tokenizer, rank, 2) for rank in range(2)]
    states: dict = {}
    read = []
    for each in first:
        batches = iter(each)
        read.append([rows(next(batches)) for _ in range(2)])
        states |= each.state_dict()
        batches.close()
    resumed = loader(shards, tokenizer)
    resumed.load_state_dict(states)
    rest = [rows(batch) for batch in islice(resumed, 8)]
    assert {*sum(map(sum_rows, read), [])} == {*sum_rows(whole[:4])}
    assert sum_rows(rest) == sum_rows(whole[4:])


def rows(batch) -> list[bytes]:
    inputs, labels = batch
    return [
        a.numpy().tobytes() + b.numpy().tobytes()
        for a, b in zip(inputs["input"], labels, strict=True)
    ]


def sum_rows(batches: list[list[bytes]]) -> list[bytes]:
    return [row for batch in batches for row in batch]


def test_a_run_keeps_its_tokenizer(shards, tokenizer, tmp_path):
    state = loader(shards, tokenizer).state_dict()
    other = titan(tmp_path, size=400)
    for kind in (other, TitanByteTokenizer.Config().build()):
        for settings in ({}, {"change_on_resume": True}):
            with pytest.raises(ConfigError, match=r"made with other rows: .*tokenizer \(was "):
                loader(shards, kind, **settings).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"dataloader.patches: a tokenizer's tokens have no"):
        loader(shards, tokenizer, patches=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": True}, r"after '', 'Two  spa' is not what"),
        ({"normalizer": normalizers.NFC()}, r"after ' \\xc9 ', 'e\\u0301 "),
        ({"normalizer": normalizers.Lowercase()}, r"after '', 'Two"),
        ({"normalizer": normalizers.Strip()}, r"after ' the end', ' '"),
        ({"alphabet": False}, "is not what they stand for; take a byte-level tokenizer"),
    ],
)
def test_tokenizers_that_change_text_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as raised:
        BPE("mine", byte_level(TEXTS, **changes))
    assert str(raised.value).startswith("--tokenizer mine: its tokens do not give text back")


def test_what_is_no_tokenizer(tmp_path):
    for name, message in (("", "name the tokenizer"), (str(tmp_path), "holds no tokenizer.json")):
        with pytest.raises(ConfigError, match=f"--tokenizer.source.*: {message}"):
            TitanBPETokenizer.Config(source=name).build()
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"--tokenizer .*broken.json: cannot be read"):
        load_bpe(str(tmp_path / "broken.json"))


def test_a_document_whose_bytes_are_not_counted(shards):
    """The tokenizer's rule changes one word, which no probe holds."""
    change = normalizers.Replace("zzz", "z")
    bpe = BPE("mine", byte_level(TEXTS, normalizer=change))
    with pytest.raises(PipelineError, match=r"begins with 'zzzz.* has 700 bytes, and its tokens"):
        bpe.encode([text.decode() for text in TEXTS])


def test_saved_settings_do_not_cut_text():
    saved = Tokenizer.from_buffer(byte_level(TEXTS))
    saved.enable_truncation(5)
    saved.enable_padding(length=50)
    ids, counts = BPE("cut", saved.to_str().encode()).encode(["a longer text than five tokens", ""])
    assert len(ids) == counts[0] > 5 and counts[1] == 0


def test_large_vocabularies():
    bpe = BPE("small", byte_level(TEXTS))
    assert bpe.dtype == np.uint16
    definition = json.loads(byte_level(TEXTS))
    definition["model"]["vocab"] |= {f"unused {i}": 500 + i for i in range(2**16)}
    larger = Tokenizer.from_str(json.dumps(definition))
    larger.add_tokens(["one more token"])
    wide = BPE("wide", larger.to_str().encode())
    (number,), _ = wide.encode(["one more token"])
    assert number == wide.tokens - 1 == 2**16 + 500 and wide.dtype == np.int32
    assert wide.decode([number + 4]) == "one more token"
