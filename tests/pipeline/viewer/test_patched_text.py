"""What the viewer shows of a text, and documents found in shard sets, against the library."""

import re
import shutil
import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.texts import topics, write_jsonl

from model import ByteTokenizer, Patcher, load_entropy_model
from pipeline.drawing.entropy_svg import SHOWN_BYTES, curve_svg
from pipeline.errors import ConfigError, PipelineError
from pipeline.shards.random_access import DocumentIndex
from pipeline.shards.shard_set import ShardSet
from pipeline.viewer.patched_text import (
    MOST_BYTES,
    MOST_PATCHES,
    PatchView,
    ids_html,
    repatched,
    view_text,
)

TEXT = "Straße 日本 <b>&amp;</b> 👩‍🚀 مرحبا\n\tdef f(x): return x"


@pytest.mark.parametrize(
    "rule",
    [
        Patcher(1.5),
        Patcher(0.2, rule="monotonic"),
        Patcher(0.5, rule="combined", threshold_add=0.1, max_patch_length=5),
        Patcher(rule="top-k", patch_size=4),
        Patcher(rule="space"),
    ],
    ids=lambda rule: rule.rule,
)
def test_patches_are_the_librarys(rule):
    tokens = torch.tensor([ByteTokenizer().encode(TEXT)])
    model = load_entropy_model("entropy-1m", device="cpu")
    h = model.entropies(tokens).to(torch.float16)
    expected = rule.patch_lengths(h, tokens)[0].tolist()
    view = view_text(TEXT, "entropy-1m", rule)
    assert view.patch_lengths_P.tolist() == expected
    assert b"".join(view.patches()).decode() == TEXT
    assert repatched(view, Patcher(1.0)).patch_lengths_P.tolist() == (
        view_text(TEXT, "entropy-1m", Patcher(1.0)).patch_lengths_P.tolist()
    )
    counts = dict(view.counts())
    assert counts["bytes"] == str(len(TEXT.encode())) and counts["characters"] == str(len(TEXT))
    assert counts["patches"] == str(len(expected))


def test_texts_that_are_empty_broken_or_too_long():
    empty = view_text("", "entropy-1m", Patcher(1.0))
    assert empty.patches() == [] and dict(empty.counts())["bytes"] == "0"
    assert 'class="patch ' not in empty.patches_html() and empty.curve_html() == ""
    assert view_text("a\ud800b", "entropy-1m", Patcher(1.0)).data == b"a?b"
    with pytest.raises(ConfigError, match="at most"):
        view_text("é" * (MOST_BYTES // 2 + 1), "entropy-1m", Patcher(1.0))
    with pytest.raises(ConfigError, match="--entropy-model"):
        view_text("a", "no/such/directory", Patcher(1.0))


def test_of_a_long_text_the_page_shows_the_beginning():
    data = b"x" * 50_000
    view = PatchView(data, np.ones(50_002, np.float16), np.ones(50_002, np.int64))
    assert view.patches_html().count('class="patch ') == MOST_PATCHES
    assert f"and {50_000 - MOST_PATCHES:,} more patches" in view.patches_html()
    assert view.curve_html().count("<title>") == SHOWN_BYTES
    assert f"the first {SHOWN_BYTES} bytes" in view.curve_html()


def test_the_curve_has_a_bar_a_byte_as_high_as_its_entropy():
    data = "aé<".encode()
    h_T = np.array([0.5, 1.0, 2.0, 4.0, 0.25, 9.0], np.float16)
    svg = xml.dom.minidom.parseString(curve_svg(data, h_T, np.array([1, 2, 1, 2]), 1.5))
    bars = [
        r for r in svg.getElementsByTagName("rect") if r.getAttribute("class").startswith("bar")
    ]
    heights = [float(bar.getAttribute("height")) for bar in bars]
    assert np.array(heights) / heights[0] == pytest.approx([1, 2, 4, 8], abs=0.05)
    # Patches start at the first byte, in the middle of the é, and at its end.
    assert ["start" in bar.getAttribute("class") for bar in bars] == [True, False, True, True]
    letters = [t.firstChild.data for t in svg.getElementsByTagName("text")][:3]
    assert letters == ["a", "é", "<"]
    (threshold,) = (
        e for e in svg.getElementsByTagName("line") if e.getAttribute("class") == "threshold"
    )
    floor = float(bars[0].getAttribute("y")) + heights[0]
    assert floor - float(threshold.getAttribute("y1")) == pytest.approx(3 * heights[0], abs=0.2)


@given(st.text(max_size=40), st.integers(1, 5))
def test_any_text_gives_a_whole_picture(text, size):
    data = text.encode()
    tokens = len(data) + 2
    lengths = np.full(-(-tokens // size), size)
    lengths[-1] = tokens - size * (len(lengths) - 1)
    drawn = curve_svg(data, np.full(tokens, 1.0, np.float16), lengths, None)
    assert re.search(r"[\0-\x08\x0b\x0c\x0e-\x1f]", drawn) is None
    svg = xml.dom.minidom.parseString(drawn)
    assert {e.tagName for e in svg.getElementsByTagName("*")} <= {
        *("div", "svg", "rect", "line", "text", "title")
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory, ngram_model) -> ShardSet:
    """Several shards of several record batches each, one of them empty."""
    directory = tmp_path_factory.mktemp("browse")
    for i, part in enumerate((topics()[:9], [], topics()[9:30])):
        long = [(f"{name}/{i}", text * 40) for name, text in part]
        write_jsonl(directory / "in" / f"{i}.jsonl", long)
    settings = {"id_column": "id", "shard_bytes": 3 << 20}
    return tiny.make_shards(
        directory / "set", directory / "in", ngram_model, Patcher(1.0), **settings
    )


def test_any_document_is_found(shards):
    documents = DocumentIndex(shards)
    expected = list(shards)
    assert len(documents) == len(expected) == 30
    for number in (0, 29, 9, 8, 17, 3, 20):
        found, wanted = documents[number], expected[number]
        assert (found.sample_id, found.text) == (wanted.sample_id, wanted.text)
        assert np.array_equal(found.entropies, wanted.entropies)
        assert np.array_equal(found.patch_lengths, wanted.patch_lengths)
        assert documents.find(wanted.sample_id) == number
    assert documents.find("nobody") is None
    for number in (-1, 30):
        with pytest.raises(IndexError):
            documents[number]


def test_a_damaged_shard_is_named(shards, tmp_path):
    shutil.copytree(shards.output.path, tmp_path / "set")
    mine = ShardSet(str(tmp_path / "set"))
    path = Path(mine.output.locate(mine.entries[0].path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PipelineError, match=str(path)):
        DocumentIndex(mine)[0]
    with pytest.raises(PipelineError, match=str(path)):
        DocumentIndex(mine).find("nobody")


def test_an_id_that_is_written_backwards_leaves_what_follows_it_alone():
    html = ids_html(["\u202e<id>", "document 3 of 9"])
    assert "<bdi>\u202e&lt;id&gt;</bdi> · <bdi>document 3 of 9</bdi>" in html
