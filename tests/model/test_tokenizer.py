import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import ByteTokenizer
from model.tokenizer import encode_documents


def test_known_ids():
    assert ByteTokenizer().encode("aé") == [1, 101, 199, 173, 2]
    assert ByteTokenizer().encode("", bos=False) == [2]
    assert ByteTokenizer.vocab_size == 260


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_says_which_id_is_wrong():
    assert ByteTokenizer().decode([1, -1, 0xC3 + 4, 2]) == "�"
    with pytest.raises(ValueError, match="260"):
        ByteTokenizer().decode([1, 260])


def test_lone_surrogate_is_an_error():
    with pytest.raises(UnicodeEncodeError):
        ByteTokenizer().encode("\ud800")


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_documents_end_to_end_are_the_documents(documents):
    tokens_T, lengths_D = encode_documents(documents)
    expected = [ByteTokenizer().encode(data) for data in documents]
    assert tokens_T.tolist() == sum(expected, [])
    assert lengths_D.tolist() == [len(ids) for ids in expected]
    assert tokens_T.dtype == np.int32
