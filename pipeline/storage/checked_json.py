"""JSON as this project writes it: equal values give equal bytes, and an object carries its hash."""

import contextlib
import json
import re
from collections.abc import Mapping
from itertools import islice
from math import isfinite
from typing import Any

import orjson
import xxhash

_DIGITS_AS_0 = bytes(ord("0" if chr(i).isdecimal() else " ") for i in range(256))
CHECK = "check"
"""The key of an object's own hash in JSON."""
_CHECKED = re.compile(rb'\n "check": "([0-9a-f]{16})"')
_UNCHECKED = b'\n "check": "' + b"0" * 16 + b'"'
"""It is the object's own key: those of objects in it are indented further."""
_ENCODER = json.JSONEncoder(indent=1, sort_keys=True, ensure_ascii=False)


def to_json(value: Any) -> bytes:
    """JSON with sorted keys: equal values give equal bytes."""
    tokens = _ENCODER.iterencode(value)
    parts = []
    # json.dumps would hold all tokens at once: 0.4 GB of a record with 200,000 files.
    while some := "".join(islice(tokens, 1 << 14)):
        # Names of local files may be no UTF-8: what stands for such bytes is escaped.
        parts.append(some.encode(errors="backslashreplace"))
    return b"".join([*parts, b"\n"])


def to_checked_json(values: dict[str, Any]) -> bytes:
    """The same of an object, with the hash of its text in the key ``check``: XXH3-64 of the text
    that has zeros in the place of the hash."""
    data = to_json(values | {CHECK: "0" * 16})
    return data.replace(_UNCHECKED, b'\n "check": "%016x"' % xxhash.xxh3_64_intdigest(data))


def parse_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON.
    """
    # orjson takes a third of the time, but makes floats of integers of more than 64 bits.
    if b"0" * 20 not in data.translate(_DIGITS_AS_0):
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(data)
    # It also knows the lone surrogates that stand for bytes of file names that are no UTF-8.
    return json.loads(data)


def parse_checked_json(data: bytes) -> Any:
    """The value of a JSON text of this project's. A ``check`` is compared, and left out; earlier
    releases wrote none.

    Raises:
        ValueError: it is not JSON, or not what was written.
    """
    values = parse_json(data)
    # No single damaged bit makes the key vanish and something else change.
    if isinstance(values, dict) and values.pop(CHECK, None) is not None:
        found = _CHECKED.search(data)
        whole = data.replace(found[0], _UNCHECKED) if found else b""
        if found is None or xxhash.xxh3_64_intdigest(whole) != int(found[1], 16):
            raise ValueError("its check is not the hash of its content")
    return values


def strict_json(value: Any) -> Any:
    """A value without the numbers that JSON lacks, such as the loss of a run that diverged."""
    if isinstance(value, Mapping):
        return {key: strict_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
