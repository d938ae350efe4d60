"""Windows: every document once an epoch, sets in their shares, and a cursor to continue from."""

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

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
from train.data.lanes import Cursor, LaneCursor, lane_from_json, lane_to_json
from train.data.packing import PackedWindow
from train.data.row_settings import RowSettings, RuleSettings
from train.data.row_stream import PACKING_VERSION, LaneWindow, RowStream
from train.data.window import split_long_patches


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


def opened(stream: RowStream, *, infinite: bool = False) -> Iterator[LaneWindow]:
    """Windows of all lanes."""
    return stream.windows(stream.start(range(stream.lanes)), infinite=infinite)


def epoch(stream: RowStream) -> list:
    return [opened.window for opened in opened(stream) if opened.window is not None]


@pytest.mark.parametrize("patches", [True, False])
@pytest.mark.parametrize(
    ("lanes", "shuffle_bytes"), [(1, 3_000), (5, 40_000), (64, 20_000), (9, None)]
)
def test_every_token_once_an_epoch(sets, lanes, shuffle_bytes, patches):
    stream = RowStream(
        sets, RowSettings(512, patches=patches, shuffle_bytes=shuffle_bytes, lanes=lanes)
    )
    windows = epoch(stream)
    assert Counter(text for window in windows for text in texts_in(window)) == texts_of(sets)
    for documents, rows in windows:
        # Bytes that say where they are from instead of the text's.
        text = np.arange(len(documents.text)) + FIRST - BYTE_OFFSET - 1
        widths = (512, 512, stream.patches_per_row or 0)
        arrays = [np.zeros((len(rows), width), np.int32) for width in widths]
        lengths = arrays[2] if patches else None
        window = PackedWindow(documents._replace(text=text), rows)
        fill_rows([(window, row) for row in range(len(rows))], *arrays[:2], lengths)
        # The documents' patches are in another order there; each one's own are checked above.
        unpatched = documents._replace(text=text, patch_lengths_P=None)
        check_coverage(unpatched, pieces_of(*arrays[:2], lengths))


def test_patches_are_the_stored_ones(sets):
    stream = RowStream(sets, RowSettings(512))
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
    byte_N, tokens_N, patch_N, _, opens_N, closes_N, _ = window.rows.pieces_NF.T
    for n in np.flatnonzero(opens_N & ((closes_N == 0) | (tokens_N > 2))):
        start = int(byte_N[n])
        size = bytes_from[start]
        ends = window.documents.patch_lengths_P[patch_N[n] :][: size + 2].cumsum(dtype=int)
        ends = ends[: np.searchsorted(ends, size + 2) + 1]
        cuts = np.clip(np.append(0, ends) - 1, 0, size)
        data = window.documents.text[start + 1 :].tobytes()
        found[tuple(data[a:b] for a, b in itertools.pairwise(cuts))] += 1
    assert found == stored


def test_epochs_differ_and_a_cursor_goes_on(sets):
    settings = RowSettings(512, seed=3, shuffle_bytes=8_000, lanes=4)
    stream = RowStream(sets, settings)
    assert stream.lanes == 4
    by_epoch: list[list[LaneWindow]] = [[], []]
    done: set[int] = set()
    for one in opened(stream, infinite=True):
        number = one.cursor.window // stream.windows_per_epoch
        if number < 2:
            by_epoch[number].append(one)
        else:
            done.add(one.lane)
        if len(done) == 4:
            break
    first, second = ([t for one in part for t in texts_in(one.window)] for part in by_epoch)
    assert Counter(first) == Counter(second) == texts_of(sets) and first != second
    other = RowStream(sets, replace(settings, seed=4))
    assert [text for window in epoch(other) for text in texts_in(window)] != first
    # Also from the text that a checkpoint holds.
    for one in by_epoch[1][:: len(by_epoch[1]) // 3]:
        held = lane_from_json(json.loads(json.dumps(lane_to_json(one.cursor))))
        rows = held.first * stream.lanes + one.lane
        again = next(stream.windows(Cursor(rows, {one.lane: held}), infinite=True))
        assert again.cursor == held == one.cursor
        assert texts_in(again.window) == texts_in(one.window)
        assert (again.window.rows.pieces_NF == one.window.rows.pieces_NF).all()
    # A cursor at the end of its window.
    one, after = [one for one in by_epoch[0] if one.lane == 1][:2]
    rows = (one.cursor.first + len(one.window.rows)) * stream.lanes + 1
    assert next(stream.windows(Cursor(rows, {1: one.cursor}), infinite=True)).cursor == after.cursor


def test_other_rows_need_another_packing_version(tmp_path):
    """A run goes on with the rows of the release that began it. Where this fails, PACKING_VERSION
    has to rise: then such a run is told so, instead of repeating and leaving out documents."""
    words = ("of ", "the ", "entropies, ")
    texts = [(words[i % 3] * (i * 371 % 499) + str(i)).encode() for i in range(32)]
    texts[5] = b"x" * 1500  # a patch longer than a row
    urls = [f"{tmp_path}/a", f"{tmp_path}/b"]
    write_shards(urls[0], texts[:24], per_batch=1, per_shard=8)
    write_shards(urls[1], texts[24:], per_batch=1, per_shard=4)
    settings = RowSettings(
        512, seed=3, rule=RuleSettings(rule="space"), shuffle_bytes=30_000, lanes=4
    )
    for changes, expected in (
        ({}, "4807792276d975ff"),
        ({"weights": (1, 2)}, "b456ec2f4c3d3f11"),
        ({"patches": False, "rule": RuleSettings()}, "3fcc843b842a2e1a"),
    ):
        stream = RowStream(urls, replace(settings, **changes))
        for n, source in enumerate(stream.sources):
            assert source.seed == (3, 2, int(source.fingerprint, 16), 0)
            source.seed = (3, 2, n)  # not the hash of files, which other releases of Arrow write
        digest = hashlib.sha256(str((PACKING_VERSION, stream.patches_per_row)).encode())
        for one in itertools.islice(opened(stream, infinite=True), 16):
            documents, rows = one.window
            digest.update(str((one.lane, one.cursor)).encode())
            for array in (documents.text, documents.patch_lengths_P, rows.first_R, rows.pieces_NF):
                digest.update(b"" if array is None else array.astype("<i8").tobytes())
        assert one.cursor.begin[0].epoch > 0 and digest.hexdigest()[:16] == expected


@pytest.mark.parametrize("lanes", [1, 3])
def test_weights_are_shares_of_the_text(sets, lanes):
    """In every lane, to within a record batch per epoch, however often a set has been read."""
    stream = RowStream(
        sets, RowSettings(512, weights=(1, 3), shuffle_bytes=2_000 * lanes, lanes=lanes)
    )
    assert stream.lanes == lanes
    of_set = [texts_of([url]) for url in sets]
    read = np.zeros((lanes, 2))
    last = [LaneCursor(0, 0, ())] * lanes
    for one in itertools.islice(opened(stream, infinite=True), 120 * lanes):
        last[one.lane] = one.cursor
        for text in texts_in(one.window):
            read[one.lane, int(text not in of_set[0])] += len(text)
    for lane, cursor in enumerate(last):
        share = read[lane, 1] / read[lane].sum()
        assert share == pytest.approx(0.75, abs=0.06)
        assert cursor.begin[1].epoch > cursor.begin[0].epoch


def test_a_small_weighted_set_is_in_every_lane(sets, tmp_path):
    urls = [f"{tmp_path}/one", sets[0]]
    write_shards(urls[0], [b"the only document of its set"])
    stream = RowStream(urls, RowSettings(512, weights=(1, 9), shuffle_bytes=2_000, lanes=8))
    assert stream.lanes == 8
    found = Counter()
    for one in itertools.islice(opened(stream, infinite=True), 500):
        if one.cursor.window < 48:
            found[one.lane] += texts_in(one.window).count(b"the only document of its set")
    # 25 tokens of each window of 250 are the set's; its document has 30.
    assert set(found) == set(range(8)) and set(found.values()) <= {39, 40}


def test_lanes_without_a_record_batch_go_on_to_the_next_epoch(tmp_path):
    """Three documents for eight lanes: every lane has one after some epochs."""
    write_shards(str(tmp_path), [b"a" * 900, b"b" * 900, b"c" * 900], per_batch=1)
    stream = RowStream([str(tmp_path)], RowSettings(512, shuffle_bytes=80, lanes=8))
    assert stream.lanes == 8 and {text[:1] for w in epoch(stream) for text in texts_in(w)} == {
        b"a",
        b"b",
        b"c",
    }
    lanes = {one.lane for one in itertools.islice(opened(stream, infinite=True), 40)}
    assert lanes == set(range(8))


def test_another_threshold_gives_what_the_patcher_gives(sets):
    stream = RowStream(sets, RowSettings(512, rule=RuleSettings(threshold=1.05)))
    (window,) = epoch(stream)
    assert len(window.documents.patch_lengths_P) == patches_by(Patcher(1.05), sets)
    stored = RowStream(sets, RowSettings(512))
    assert stream.patches_per_row < stored.patches_per_row


def patches_by(patcher: Patcher, urls: list[str]) -> int:
    """Patches of all documents."""
    expected = 0
    for url in urls:
        for document in open_shards(url):
            text = document.text.encode()
            lengths_D = np.array([len(text) + 2])
            patched = recut(patcher, document.entropies, lengths_D, [text])
            expected += len(patched.patch_lengths_P)
    return expected


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "monotonic", "threshold": 0.3},
        {"rule": "combined", "threshold": 0.5, "threshold_add": 0.2},
        {"rule": "top-k", "patch_size": 4.5},
        {"rule": "static", "patch_size": 6},
        {"rule": "space"},
        {"rule": "byte"},
        {"max_patch_length": 5},
        {"threshold": 1.1, "max_patch_length": 7},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_any_rule_at_load_time(sets, settings):
    stream = RowStream(sets, RowSettings(512, rule=RuleSettings(**settings)))
    other = "rule" in settings
    expected = Patcher(**settings) if other else replace(PATCHER, **settings)
    assert [each.patcher for each in stream.provenance] == [expected, expected]
    (window,) = epoch(stream)
    # Rows have no room for longer patches.
    cut = split_long_patches(window.documents, 510)
    assert len(cut.patch_lengths_P) == len(window.documents.patch_lengths_P)
    most = min(expected.max_patch_length or 510, 510)
    limited = replace(expected, max_patch_length=most)
    assert len(window.documents.patch_lengths_P) == patches_by(limited, sets)
    assert stream.fingerprint()["rule"] == settings


def test_text_alone_is_enough_for_some_rules(tmp_path):
    none = write_shards(f"{tmp_path}/none", [b"some text, and more"], entropies=False)
    stream = RowStream([none.output.url], RowSettings(64, rule=RuleSettings("space")))
    (window,) = epoch(stream)
    assert window.documents.patches_D.tolist() == [5]  # BOS some_ text, _and_ more
    published = Patcher(rule="static", patch_size=4, published=True)
    static = write_shards(f"{tmp_path}/static", [b"some text"], patcher=published).output.url
    with pytest.raises(PipelineError, match="first patch has more than the one token BOS"):
        epoch(RowStream([static], RowSettings(512)))
    epoch(RowStream([static], RowSettings(512, rule=RuleSettings("byte"))))
    # The rule that is stored, named: patches as they are stored.
    stored = RowStream([static], RowSettings(512, rule=RuleSettings("static")))
    assert [each.patcher for each in stored.provenance] == [published]


def test_settings_that_are_refused(sets, tmp_path):
    none, spaces = f"{tmp_path}/none", f"{tmp_path}/space"
    write_shards(none, [b"text"], entropies=False)
    write_shards(spaces, [b"some text"], patcher=Patcher(rule="space"))
    for urls, changes, message in (
        ([], {}, "dataloader.shards: name at least one"),
        (sets, {"weights": (1.0,)}, "dataloader.weights: 1 for 2 shard sets"),
        (
            sets,
            {"weights": (1.0, 1.0), "shuffle_bytes": 1 << 30, "lanes": 1},
            r"dataloader.weights: .* would be in each shuffle window [\d,]+ times",
        ),
        (sets, {"weights": (1.0, 0.0)}, "dataloader.weights: must be positive"),
        (sets, {"weights": (1.0, float("nan"))}, "dataloader.weights: must be positive"),
        (sets, {"seq_len": 7}, "training.seq_len: must be at least 8"),
        (sets, {"seed": -1}, "dataloader.seed: must not be negative"),
        (sets, {"shuffle_bytes": 511}, "shuffle_bytes: must be at least 1 for each of the 512"),
        (sets, {"lanes": 0}, "dataloader.lanes: must be at least 1"),
        (sets, {"patches_per_row": 3}, "dataloader.patches_per_row: must be 4 to 512"),
        (sets, {"patches_per_row": 513}, "dataloader.patches_per_row: must be 4 to 512"),
        (sets, {"patches": False, "rule": {"threshold": 1.0}}, "patches: without patches"),
        ([none], {"rule": {"threshold": 1.0}}, "threshold: .*/none was made without entropies"),
        ([none], {"rule": {"rule": "top-k", "patch_size": 4.0}}, "rule: .*/none was made without"),
        ([spaces], {"rule": {"threshold": 1.0}}, "threshold: .*/space cannot .* space rule"),
        (sets, {"rule": {"rule": "wrods"}}, "dataloader.rule: 'wrods' is not one of global, "),
        (sets, {"rule": {"rule": "bpe"}}, "dataloader.rule: the bpe rule needs the tokenizer"),
        (sets, {"rule": {"rule": "monotonic"}}, "threshold: .* the monotonic rule needs it"),
        (sets, {"rule": {"threshold_add": 0.1}}, "threshold_add: .* the global rule does not"),
        (sets, {"rule": {"max_patch_length": 0}}, "max_patch_length: .* must be 1 to"),
    ):
        rule = RuleSettings(**changes.pop("rule", {}))
        with pytest.raises(ConfigError, match=message):
            RowStream(urls, RowSettings(**{"seq_len": 512} | changes, rule=rule))
    for patches in (4, 512):  # the least and the most
        assert RowStream(sets, RowSettings(512, patches_per_row=patches)).patches_per_row == patches
    with pytest.raises(PipelineError, match=f"{tmp_path}/nothing: no such directory"):
        RowStream([f"{tmp_path}/nothing"], RowSettings(512))
    empty = write_shards(f"{tmp_path}/empty", [])
    with pytest.raises(PipelineError, match="/empty: holds no documents"):
        RowStream([empty.output.url], RowSettings(512))


def test_the_fingerprint_is_of_content(sets, tmp_path):
    shutil.copytree(sets[0], tmp_path / "moved")
    own = RowStream([sets[0]], RowSettings(512)).fingerprint()
    assert RowStream([str(tmp_path / "moved")], RowSettings(512)).fingerprint() == own
    content = "\n".join(f"{one.name} {one.sha256}" for one in open_shards(sets[0]).entries)
    assert own["shards"] == [hashlib.sha256(content.encode()).hexdigest()[:16]]
    assert RowStream([sets[1]], RowSettings(512)).fingerprint()["shards"] != own["shards"]


@pytest.mark.parametrize("order", [1, -1])
def test_sets_in_a_filesystem_of_fsspec(order):
    texts = real_texts(20)
    urls = ["memory://sets/a", "memory://sets/b"][::order]
    for url in urls:
        write_shards(url, texts)
    stream = RowStream(urls, RowSettings(256))
    assert Counter(t for window in epoch(stream) for t in texts_in(window)) == texts_of(urls)
