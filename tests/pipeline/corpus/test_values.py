"""Values of Arrow columns become text exactly, whatever Python can represent."""

import json

import pyarrow as pa
import pytest

from pipeline.corpus.values import Unusable, stored_values, values

FAR = 10**17
NS = pa.timestamp("ns")
VIEW = pa.array(["", "a string of more than 12 bytes"], pa.string_view())
RUNS = pa.array([1, 2], pa.int32())


def runs(values: pa.Array) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(RUNS, values)


def last(column: pa.Array) -> pa.Array:
    """The last row, as a slice of the others."""
    return column.slice(len(column) - 1)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([253402300800], pa.timestamp("s")), "10000-01-01 00:00:00"),
        (pa.array([1], NS), "1970-01-01 00:00:00.000000001"),
        (pa.array([FAR], pa.timestamp("s")), "<value out of range: 100000000000000000>"),
        (pa.array([-800000], pa.date32()), "-0221-09-04"),
        (pa.array([1], pa.timestamp("s", tz="Mars/Phobos")), "1970-01-01 00:00:01Z"),
        (pa.array([1], pa.timestamp("s", tz="+05:30")), "1970-01-01 05:30:01+0530"),
        (pa.array([FAR], pa.duration("s")), "100000000000000000s"),
        (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
        (pa.array([[1]], pa.list_(NS)), ["1970-01-01 00:00:00.000000001"]),
        (pa.array([{"a": 1}], pa.struct([("a", NS)])), {"a": "1970-01-01 00:00:00.000000001"}),
        (pa.array([1], NS).dictionary_encode(), "1970-01-01 00:00:00.000000001"),
        (pa.array(["x"]), b"x"),
        (pa.array([["x"]]), ["x"]),
        # Parquet's lists of strings are read so.
        (pa.array([["x"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))), ["x"]),
        (pa.array([5]), 5),
        # Polars writes its categories so; Arrow's own functions refuse to decode them.
        (last(VIEW.dictionary_encode()), b"a string of more than 12 bytes"),
        (last(runs(VIEW)), b"a string of more than 12 bytes"),
        (last(runs(pa.array(["", "x"]).dictionary_encode())), b"x"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_the_text_is_what_arrow_writes(column, expected):
    assert values(column) == [expected]
    with_null = pa.concat_arrays([column, pa.nulls(1, column.type)])
    assert values(with_null) == [expected, None]


def test_what_has_no_python_value_becomes_json():
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array(["x"])], names=["a", "a"])
    assert values(twice) == ['{"a": 1, "a": "x"}']
    times = pa.array([[("a", FAR)]], pa.map_(pa.string(), pa.timestamp("s")))
    (text,) = values(times)
    assert json.loads(text) == [{"key": "a", "value": f"<value out of range: {FAR}>"}]


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())],
)
def test_bytes_that_are_no_text_are_stored_and_not_replaced(kind):
    column = pa.array([b"\xff\x00", b"caf\xc3\xa9", None])
    stored = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    assert stored_values(stored) == ["ff00", "café", None]
    assert stored_values(pa.array([b"\xfe\xff"], pa.binary(2))) == ["feff"]
    assert stored_values(pa.array(["a"])) == [b"a"]


def test_a_value_does_not_depend_on_its_neighbours():
    maps = pa.array([[("a", 1)], [("a", FAR)]], pa.map_(pa.string(), pa.timestamp("s")))
    assert values(maps) == values(maps[:1]) + values(maps[1:])
    lists = pa.array([{"a": ["x"]}, {"a": None}, None, {"a": []}])
    assert values(lists[1:]) == [{"a": None}, None, {"a": []}]


def test_a_value_that_cannot_be_converted_says_so(monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("pipeline.corpus.values._as_text", refuse)
    (value,) = values(pa.array([1]))
    assert type(value) is Unusable and value == "cannot be converted: ValueError"
