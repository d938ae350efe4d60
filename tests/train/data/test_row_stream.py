"""Windows: every document once an epoch, sets in their shares, and a cursor to continue from."""

import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from support.packed_rows import FIRST, check_coverage, pieces_of
from support.shard_sets import PATCHER, real_texts, write_shards

from model import Patcher
from model.tokenizer import BYTE_OFFSET
from pipeline import open_shards
from pipeline.errors import ConfigError, PipelineError
from pipeline.patches import recut
from train.data.filling import fill_rows
from train.data.row_stream import Cursor, RowSettings, RowStream


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> list[str]:
    """Two sets, of 5 and 2 shards, of different density."""
    root = tmp_path_factory.mktemp("sets")
    texts = real_texts(80)
    write_shards(f"{root}/a", texts[:60], rates=(0.2, 0.3, 0.25))
    write_shards(f"{root}/b", texts[60:], rates=(0.1, 0.15), seed=1)
    return [f"{root}/a", f"{root}/b"]


def texts_of(urls: list[str]) -> Counter:
    return Counter(document.text.encode() for url in urls for document in open_shards(url))


def texts_in(window) -> list[bytes]:
    lengths_D = window.documents.lengths_D - 2
    stop_D = lengths_D.cumsum() + 1
    data = window.documents.text.tobytes()
    return [data[stop - n : stop] for stop, n in zip(stop_D, lengths_D, strict=True)]


def epoch(stream: RowStream) -> list:
    return [window for window, _ in stream.windows(stream.start(), infinite=False)]


@pytest.mark.parametrize("patches", [True, False])
@pytest.mark.parametrize("shuffle_bytes", [3_000, 40_000, 1 << 30])
def test_every_token_once_an_epoch(sets, shuffle_bytes, patches):
    stream = RowStream(sets, RowSettings(512, patches=patches, shuffle_bytes=shuffle_bytes))
    windows = epoch(stream)
    assert Counter(text for window in windows for text in texts_in(window)) == texts_of(sets)
    for documents, rows in windows:
        # Bytes that say where they are from instead of the text's.
        text = np.arange(len(documents.text)) + FIRST - BYTE_OFFSET - 1
        widths = (512, 512, stream.patches_per_row or 0)
        arrays = [np.zeros((len(rows), width), np.int32) for width in widths]
        lengths = arrays[2] if patches else None
        fill_rows(documents._replace(text=text), rows, 0, *arrays[:2], lengths)
        # The documents' patches are in another order there; each one's own are checked above.
        unpatched = documents._replace(text=text, patch_lengths_P=None)
        check_coverage(unpatched, pieces_of(*arrays[:2], lengths))


def test_patches_are_the_stored_ones(sets):
    stream = RowStream(sets, RowSettings(512, shuffle_bytes=1 << 30))
    (window,) = epoch(stream)
    stored = Counter(
        tuple(document.patches()) for url in sets for document in open_shards(url) if document.text
    )
    lengths_D = window.documents.lengths_D - 2
    bytes_from = {
        int(start): int(n)
        for start, n in zip(lengths_D.cumsum() - lengths_D, lengths_D, strict=True)
        if n
    }
    found = Counter()
    rows = window.rows
    for n in np.flatnonzero(rows.opens_N & ~(rows.closes_N & (rows.tokens_N == 2))):
        start = int(rows.byte_N[n])
        size = bytes_from[start]
        ends = window.documents.patch_lengths_P[rows.patch_N[n] :][: size + 2].cumsum(dtype=int)
        ends = ends[: np.searchsorted(ends, size + 2) + 1]
        cuts = np.clip(np.append(0, ends) - 1, 0, size)
        data = window.documents.text[start + 1 :].tobytes()
        found[tuple(data[a:b] for a, b in itertools.pairwise(cuts))] += 1
    assert found == stored


def test_epochs_differ_and_a_cursor_goes_on(sets):
    stream = RowStream(sets, RowSettings(512, seed=3, shuffle_bytes=30_000))
    count = 2 * stream.windows_per_epoch + 1
    windows = list(itertools.islice(stream.windows(stream.start(), infinite=True), count))
    half = count // 2
    first, second = (
        [text for window, _ in part for text in texts_in(window)]
        for part in (windows[:half], windows[half : 2 * half])
    )
    assert Counter(first) == Counter(second) == texts_of(sets) and first != second
    other = RowStream(sets, RowSettings(512, seed=4, shuffle_bytes=30_000))
    assert [text for window in epoch(other) for text in texts_in(window)] != first
    # Also from the text that a checkpoint holds.
    for window, cursor in windows[:: half - 1]:
        same = Cursor.from_json(json.loads(json.dumps(cursor)))
        again, _ = next(stream.windows(same, infinite=True))
        assert same == cursor
        assert texts_in(again) == texts_in(window)
        assert (again.rows.byte_N == window.rows.byte_N).all()
    window, cursor = windows[1]
    at_its_end = cursor._replace(row=len(window.rows))
    _, after = next(stream.windows(at_its_end, infinite=True))
    assert after == windows[2][1]._replace(rows=after.rows)


def test_weights_are_shares_of_the_text(sets):
    settings = RowSettings(512, weights=(1, 3), shuffle_bytes=20_000)
    stream = RowStream(sets, settings)
    read = [0, 0]
    epochs = [0, 0]
    for _, cursor in itertools.islice(stream.windows(stream.start(), infinite=True), 40):
        read = [position.tokens for position in cursor.positions]
        epochs = [position.epoch for position in cursor.positions]
    # To within one record batch, however often each set has been read.
    assert (
        abs(read[0] - 0.25 * 39 * 20_000) < 120_000 and abs(read[1] - 0.75 * 39 * 20_000) < 120_000
    )
    assert epochs[1] > 3 * max(epochs[0], 1)


def test_another_threshold_gives_what_the_patcher_gives(sets):
    settings = RowSettings(512, threshold=1.05, shuffle_bytes=1 << 30)
    stream = RowStream(sets, settings)
    (window,) = epoch(stream)
    expected = 0
    for url in sets:
        for document in open_shards(url):
            lengths_D = np.array([len(document.text.encode()) + 2])
            expected += len(recut(Patcher(1.05), document.entropies, lengths_D).patch_lengths_P)
    assert len(window.documents.patch_lengths_P) == expected
    stored = RowStream(sets, RowSettings(512))
    assert stream.patches_per_row < stored.patches_per_row
    # The same threshold gives the same rows as the stored patches.
    same = RowStream(sets, RowSettings(512, threshold=PATCHER.threshold, patches_per_row=120))
    plain = RowStream(sets, RowSettings(512, patches_per_row=120))
    for a, b in zip(epoch(same), epoch(plain), strict=True):
        assert (a.documents.patch_lengths_P == b.documents.patch_lengths_P).all()
        assert (a.rows.byte_N == b.rows.byte_N).all()


def test_settings_that_are_refused(sets, tmp_path):
    none = write_shards(f"{tmp_path}/none", [b"text"], entropies=False)
    spaces = write_shards(f"{tmp_path}/space", [b"some text"], patcher=Patcher(rule="space"))
    published = Patcher(rule="static", patch_size=4, published=True)
    static = write_shards(f"{tmp_path}/static", [b"some text"], patcher=published)
    for urls, changes, message in (
        ([], {}, "dataloader.shards: name at least one"),
        (sets, {"weights": (1.0,)}, "dataloader.weights: 1 for 2 shard sets"),
        (
            sets,
            {"weights": (1.0, 1.0), "shuffle_bytes": 1 << 30},
            r"dataloader.weights: .* would be in each shuffle window [\d,]+ times",
        ),
        (sets, {"weights": (1.0, 0.0)}, "dataloader.weights: must be positive"),
        (sets, {"weights": (1.0, float("nan"))}, "dataloader.weights: must be positive"),
        (sets, {"seq_len": 7}, "training.seq_len: must be at least 8"),
        (sets, {"seed": -1}, "dataloader.seed: must not be negative"),
        (sets, {"shuffle_bytes": 0}, "dataloader.shuffle_bytes: must be at least 1"),
        (sets, {"patches_per_row": 3}, "dataloader.patches_per_row: must be 4 to 512"),
        (sets, {"patches_per_row": 513}, "dataloader.patches_per_row: must be 4 to 512"),
        (sets, {"patches": False, "threshold": 1.0}, "dataloader.patches: without patches"),
        ([none.output.url], {"threshold": 1.0}, "threshold: .*/none was made without entropies"),
        ([spaces.output.url], {"threshold": 1.0}, "threshold: .*/space cannot .* space rule"),
    ):
        with pytest.raises(ConfigError, match=message):
            RowStream(urls, RowSettings(**{"seq_len": 512} | changes))
    with pytest.raises(PipelineError, match=f"{tmp_path}/nothing: no manifest.json"):
        RowStream([f"{tmp_path}/nothing"], RowSettings(512))
    empty = write_shards(f"{tmp_path}/empty", [])
    with pytest.raises(PipelineError, match="/empty: holds no documents"):
        RowStream([empty.output.url], RowSettings(512))
    with pytest.raises(PipelineError, match="first patch has more than the one token BOS"):
        epoch(RowStream([static.output.url], RowSettings(512)))


def test_the_fingerprint_is_of_content(sets, tmp_path):
    shutil.copytree(sets[0], tmp_path / "moved")
    own = RowStream([sets[0]], RowSettings(512)).fingerprint()
    assert RowStream([str(tmp_path / "moved")], RowSettings(512)).fingerprint() == own
    assert RowStream([sets[1]], RowSettings(512)).fingerprint()["shards"] != own["shards"]


@pytest.mark.parametrize("order", [1, -1])
def test_sets_in_a_filesystem_of_fsspec(order):
    texts = real_texts(20)
    urls = ["memory://sets/a", "memory://sets/b"][::order]
    for url in urls:
        write_shards(url, texts)
    stream = RowStream(urls, RowSettings(256))
    assert Counter(t for window in epoch(stream) for t in texts_in(window)) == texts_of(urls)
