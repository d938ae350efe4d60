"""A comparison's numbers are those of the library and of the tokenizers, by other ways."""

import re
import tracemalloc
from itertools import pairwise

import pytest
import torch
from support.bpe import byte_level
from support.texts import topics
from tokenizers import Tokenizer, normalizers

from model import ByteTokenizer, Patcher, load_entropy_model
from pipeline.errors import ConfigError
from pipeline.viewer.comparison import (
    MOST_TOKENIZERS,
    Tokenizers,
    comparison_html,
    cut_of_patches,
    tokenizer_names,
)
from pipeline.viewer.patched_text import view_text

TEXT = "Straße 日本 <b>&amp;</b> 👩‍🚀 مرحبا\n\tdef f(x): return x"
TEXTS = [text.encode() for _, text in topics()[:5]]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "mine").mkdir()
    (folder / "mine" / "tokenizer.json").write_bytes(byte_level(TEXTS, 600))
    (folder / "nfc.json").write_bytes(byte_level(TEXTS, normalizer=normalizers.NFC()))
    return [str(folder / "mine" / "tokenizer.json"), str(folder / "nfc.json")]


def test_counts_and_units(files):
    tokenizers = Tokenizers(files)
    assert tokenizers.names == ["mine", "nfc"]
    rule = Patcher(1.2)
    view = view_text(TEXT, "entropy-1m", rule)
    tokens, problems = tokenizers.cuts(TEXT, ["mine"])
    table, drawn = comparison_html(
        view.data, [cut_of_patches(view, "entropy-1m", str(rule)), *tokens]
    )
    size = len(TEXT.encode())

    h = load_entropy_model("entropy-1m", device="cpu").entropies(
        torch.tensor([ByteTokenizer().encode(TEXT)])
    )
    lengths = rule.patch_lengths(h.to(torch.float16))[0].tolist()
    # Without the patch of BOS; EOS may be a patch by itself.
    patches = len(lengths) - 1 - (lengths[-1] == 1 and sum(lengths[:-1]) == size + 1)
    count = len(Tokenizer.from_file(files[0]).encode(TEXT).ids)
    rows = [re.findall(r"<td>(.*?)</td>", line) for line in table.split("</tr>")[1:3]]
    assert rows[0][:4] == [
        *("<b>A</b>", "entropy-1m, global (threshold 1.2)"),
        *(f"{patches} patches", f"{size / patches:.3f}"),
    ]
    assert rows[1][:4] == ["<b>B</b>", "mine", f"{count} tokens", f"{size / count:.3f}"]
    assert problems == "" and "the first" not in drawn
    # Each unit's tooltip tells where it is.
    found = re.findall(r'"token (\d+): (\d+) bytes? from (\d+); id (\d+)"', drawn)
    edges = [int(start) for _, _, start, _ in dict.fromkeys(found)]
    assert edges == tokens[0].edges_U[:-1].tolist()
    assert [b - a for a, b in pairwise([*edges, size])] == [
        int(n) for _, n, *_ in dict.fromkeys(found)
    ]


def test_the_tokens_of_many_long_texts_are_not_kept(files):
    tokenizers, text = Tokenizers(files[:1]), " ".join(map(bytes.decode, TEXTS))
    tracemalloc.start()
    try:
        for number in range(32):
            ((cut, *_), _) = tokenizers.cuts(f"{number} {text}", ["mine"])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < MOST_TOKENIZERS * (12 * cut.count + 4 * len(text))


def test_nothing_to_cut(files):
    tokens, _ = Tokenizers(files).cuts("", ["mine"])
    view = view_text("", "entropy-1m", Patcher(1.0))
    table, drawn = comparison_html(b"", [cut_of_patches(view, None, "x"), *tokens])
    assert table.count("0.000") == 2 and "0 tokens" in table and 'class="column"' not in drawn


def test_of_a_long_text_the_beginning_is_drawn(files):
    text = "one two " * 5000
    tokens, _ = Tokenizers(files).cuts(text, ["mine"])
    table, drawn = comparison_html(text.encode(), tokens)
    assert re.search(r"the first [\d,]+ of 40,000 bytes; the table counts all", drawn)
    assert f"{tokens[0].count:,} tokens" in table and tokens[0].edges_U[-1] == 40_000


def test_a_tokenizer_that_changes_this_text_is_named(files):
    tokens, problems = Tokenizers(files).cuts("cafe\u0301", ["mine", "nfc"])
    assert [cut.name for cut in tokens] == ["mine"]
    assert "the tokens of" in problems and 'class="error"' in problems


def test_which_tokenizers(files):
    assert tokenizer_names(()) == []
    assert tokenizer_names(["gpt2", "meta/Llama-3", "x/cl100k_base.tiktoken", "a,b.json"]) == [
        *("gpt2", "Llama-3", "cl100k_base", "a_b")
    ]
    assert tokenizer_names(["a/tokenizer.json", "b/tokenizer.json"]) == ["a", "b"]
    assert tokenizer_names(["a/x", "b/x/"]) == ["a/x", "b/x"]
    for sources, message in (
        ([files[0], files[0]], "is named more than once"),
        (["no such one"], "--tokenizers no such one: no such tokenizer"),
        (["gpt2"] * 30, "--tokenizers: at most 24, got 30"),
    ):
        with pytest.raises(ConfigError, match=message):
            Tokenizers(sources)
