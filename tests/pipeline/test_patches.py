"""Re-patching from stored entropies: the same as patching, and text is read by few rules."""

import numpy as np
import pytest
from support.texts import topics

from model import Patcher
from model.rules import RULES
from model.tokenizer import encode_documents
from pipeline import patches
from pipeline.patches import patch_stored, recut

TEXTS = [text[:300].encode() for _, text in topics()[:5]] + [b"", "é".encode()]
PATCHERS = [
    Patcher(1.0),
    Patcher(0.5, rule="monotonic", max_patch_length=9),
    Patcher(1.0, rule="combined", threshold_add=0.1, published=True),
    Patcher(rule="top-k", patch_size=4.5),
    Patcher(rule="space"),
    Patcher(rule="static", patch_size=4),
    Patcher(rule="byte"),
    Patcher(rule="bpe"),
]


@pytest.fixture
def stored() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens_T, lengths_D = encode_documents(TEXTS)
    h_T = np.random.default_rng(0).gamma(1, 1, len(tokens_T)).astype(np.float16)
    h_T.flags.writeable = False  # as arrays of Arrow are
    return h_T, lengths_D, tokens_T


@pytest.mark.parametrize("patcher", PATCHERS, ids=lambda patcher: patcher.rule)
def test_re_patching_gives_what_patching_gives(stored, patcher, monkeypatch):
    h_T, lengths_D, tokens_T = stored
    expected = patch_stored(patcher, h_T, lengths_D, tokens_T)
    assert expected.patch_lengths_P.sum() == len(tokens_T)
    assert expected.patches_D.sum() == len(expected.patch_lengths_P)
    calls = []
    encode = lambda texts: calls.append(len(texts)) or encode_documents(texts)  # noqa: E731
    monkeypatch.setattr(patches, "encode_documents", encode)
    for found, values in zip(recut(patcher, h_T, lengths_D, TEXTS), expected, strict=True):
        np.testing.assert_array_equal(found, values, strict=True)
    assert calls == ([len(TEXTS)] if patcher.rule in ("space", "bpe") else [])


def test_every_rule_is_known_to_read_tokens_or_not(stored):
    # A column of the input holds what the rule given starts; nothing can be patched by it again.
    assert {patcher.rule for patcher in PATCHERS} == set(RULES) - {"given"}
    h_T, lengths_D, _ = stored
    for patcher in PATCHERS:
        if patcher.reads_tokens:
            with pytest.raises(ValueError, match=r"tokens: the .* rule needs them"):
                patch_stored(patcher, h_T, lengths_D)
            with pytest.raises(ValueError, match="texts: are not those of the documents"):
                recut(patcher, h_T, lengths_D)
        else:
            assert len(recut(patcher, h_T, lengths_D).patches_D) == len(TEXTS)
