"""Kinds of bytes, against a loop over characters."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import encode_documents
from pipeline.statistics.byte_kinds import KINDS, kinds_of_bytes, kinds_of_tokens


def naive(text: str) -> list[str]:
    found, after_letter = [], False
    for character in text:
        category = unicodedata.category(character)[0]
        letter = category in "LM"
        if letter:
            kind = "letter, within a word" if after_letter else "letter, first of a word"
        elif character in "\n\r\v\f\x85\u2028\u2029":
            kind = "newline"
        elif character == "\t" or category == "Z":
            kind = "space"
        else:
            names = {"N": "digit", "P": "punctuation or symbol", "S": "punctuation or symbol"}
            kind = names.get(category, "other character")
        found += [kind, *["continuation byte"] * (len(character.encode()) - 1)]
        after_letter = letter
    return found


TEXTS = st.lists(
    st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("a1 \n\t.é語")), max_size=20),
    max_size=4,
)


@given(TEXTS)
def test_kinds_are_those_of_a_loop(texts):
    data = [text.encode() for text in texts]
    found = [KINDS[kind] for kind in kinds_of_bytes(data)]
    assert found == [kind for text in texts for kind in naive(text)]
    _, lengths_D = encode_documents(data)
    of_tokens = [KINDS[kind] for kind in kinds_of_tokens(data, lengths_D)]
    end = "end of text"
    assert of_tokens == [kind for text in texts for kind in (end, *naive(text), end)]


def test_some_kinds():
    words = [KINDS[kind] for kind in kinds_of_bytes(["Aé 1\n".encode(), b"b"])]
    assert words == [
        *("letter, first of a word", "letter, within a word", "continuation byte", "space"),
        *("digit", "newline", "letter, first of a word"),
    ]
