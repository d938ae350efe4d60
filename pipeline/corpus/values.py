"""Values of Arrow columns as Python values that can be stored as text, exactly.

Dates, times, timestamps and durations become the text that Arrow writes, because Python's own types
end at the year 9999, at microseconds and at time zones that the machine knows. All other values
become Python's. A value that Python has no type for, such as a struct with two fields of one name,
becomes JSON text.

>>> values(pa.array([253402300800], pa.timestamp("s")))
['10000-01-01 00:00:00']
>>> values(pa.array([90], pa.duration("s")))
['90s']
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import message_of

_FAILURES = (ValueError, OverflowError, TypeError, KeyError, pa.ArrowException)
"""The errors with which pyarrow refuses to convert a value."""


def values(column: pa.Array) -> list[Any]:
    """The values of a column: strings as bytes, because Arrow does not check that they are UTF-8;
    None where there is none.

    A value that cannot be converted at all becomes an :class:`Unusable`.
    """
    if pa.types.is_run_end_encoded(column.type):
        column = _spread_out(column)
    # How a value is written must not depend on the others that it is read with.
    in_json = _needs_json(column.type)
    if not in_json:
        try:
            converted: list[Any] = _as_text(column).to_pylist()
            return converted
        except _FAILURES:
            pass
    return [_value(column.slice(i, 1), in_json=in_json) for i in range(len(column))]


def stored_values(column: pa.Array) -> list[Any]:
    """As :func:`values`, for columns that are stored beside a text: those of bytes become text, as
    :func:`bytes_as_text` writes it. Strings may still be broken ones.

    >>> stored_values(pa.array([b"\\xff\\x01", b"de"]))
    ['ff01', 'de']
    """
    kind = column.type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    if not _holds_bytes(kind):
        return values(column)
    return [bytes_as_text(v) if isinstance(v, bytes) else v for v in values(column)]


def bytes_as_text(data: bytes) -> str:
    """Bytes as text: their characters if they are UTF-8, as tables of older programs hold text, and
    hexadecimal digits if they are not, such as a digest or a UUID."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.hex()


def as_json(value: Any) -> Any:
    """A stand-in for a value that JSON does not have; ``json.dumps`` calls it."""
    return bytes_as_text(value) if isinstance(value, bytes) else str(value)


def _holds_bytes(kind: pa.DataType) -> bool:
    """True for the types of bytes that are not said to be text."""
    is_plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return is_plain or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind)


class Unusable(str):
    """Stands for a value that cannot be converted; the string says why."""


def _needs_json(kind: pa.DataType, *, inside: bool = False) -> bool:
    """True for a type that holds a time where :func:`_as_text` does not reach it, or a struct whose
    fields do not all have names of their own."""
    if pa.types.is_temporal(kind):
        return inside
    if pa.types.is_struct(kind):
        names = {field.name for field in kind}
        same = len(names) < kind.num_fields
        return same or any(_needs_json(field.type, inside=inside) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _needs_json(kind.value_type, inside=inside)
    return any(_needs_json(kind.field(i).type, inside=True) for i in range(kind.num_fields))


def _spread_out(column: Any) -> pa.Array:
    """The values of a column's rows, where it has a dictionary or run ends. Arrow's own functions
    know neither views nor runs of a dictionary's values."""
    if pa.types.is_dictionary(column.type):
        place_R, least = column.indices, pc.min(column.indices)
        # Of a large dictionary a few rows need little.
        count = pc.max(place_R).as_py() + 1 - least.as_py() if least.is_valid else 0
        held = column.dictionary.slice(least.as_py() or 0, count)
        place_R = pc.subtract(place_R, least)
    else:
        first, count = column.find_physical_offset(), column.find_physical_length()
        held = column.values.slice(first, count)
        runs = column.run_ends.slice(first, count), pa.array(range(count), pa.int64())
        runs = pa.RunEndEncodedArray.from_arrays(*runs).slice(column.offset, len(column))
        place_R = pc.run_end_decode(runs)
    if pa.types.is_dictionary(held.type):
        held = _spread_out(held)
    if pa.types.is_string_view(held.type):
        held = held.cast(pa.large_string())
    elif pa.types.is_binary_view(held.type):
        held = held.cast(pa.large_binary())
    return held.take(place_R)


def _as_text(column: pa.Array) -> pa.Array:
    """The column, with bytes in place of strings and text in place of times."""
    if pa.types.is_dictionary(column.type):
        column = _spread_out(column)
    kind = column.type
    if pa.types.is_string(kind):
        return column.cast(pa.binary())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_duration(kind):
        return pc.binary_join_element_wise(column.cast(pa.string()), kind.unit, "")
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _time_text(column)
    if pa.types.is_struct(kind):
        fields = [_nested(column.field(i)) for i in range(kind.num_fields)]
        names = [field.name for field in kind]
        return pa.StructArray.from_arrays(fields, names, mask=column.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        mask = column.is_null() if column.null_count else None
        # Offsets that are a slice of others are refused beside a mask.
        offsets = pa.array(column.offsets.to_numpy(), column.offsets.type)
        return type(column).from_arrays(offsets, _nested(column.values), mask=mask)
    return column


def _nested(column: pa.Array) -> pa.Array:
    """As :func:`_as_text`, with strings as they are: JSON is made of them."""
    if pa.types.is_dictionary(column.type):
        column = _spread_out(column)
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return column if is_text or pa.types.is_string_view(kind) else _as_text(column)


def _time_text(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        # The machine does not know the time zone. What is stored is the time in UTC.
        text = column.cast(pa.timestamp(column.type.unit)).cast(pa.string())
        return pc.binary_join_element_wise(text, "Z", "")


def _value(one: pa.Array, *, in_json: bool) -> Any:
    """The value of an array of one, where not all of a column can be converted at once."""
    if one[0].is_valid:
        try:
            return _json(one[0]) if in_json else _as_text(one).to_pylist()[0]
        except (*_FAILURES, RecursionError) as error:
            return Unusable(f"cannot be converted: {message_of(error)}")
    return None


def _json(scalar: Any) -> str:
    """JSON text of a value, whose structs may have several fields of one name."""
    if not scalar.is_valid:
        return "null"
    if isinstance(scalar, pa.UnionScalar | pa.DictionaryScalar):
        return _json(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        fields = ((field.name, scalar[i]) for i, field in enumerate(scalar.type))
        pairs = (f"{json.dumps(name, ensure_ascii=False)}: {_json(v)}" for name, v in fields)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(scalar, pa.ListScalar):
        return "[" + ", ".join(map(_json, scalar.values or ())) + "]"
    value = _as_text(pa.array([scalar], scalar.type)).to_pylist()[0]
    if isinstance(value, bytes) and not _holds_bytes(scalar.type):
        value = value.decode(errors="replace")
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=as_json)
