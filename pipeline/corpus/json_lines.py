"""Lines of JSONL files as Python values, one at a time; a line that is wrong is wrong alone."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from types import NoneType
from typing import Any, cast

import orjson

from pipeline.corpus.fields import MISSING, field_of, names_of
from pipeline.corpus.headers.limits import MOST_VALUES
from pipeline.corpus.lines import read_lines
from pipeline.errors import BadFileError

FIRST_LINES = 100
"""Records of a file that are asked for the names of their fields."""
MOST_NAMES = 10_000
"""Names of fields, in those records, beyond which a file does not tell them."""
BYTES_PER_BYTE = 3
"""Bytes that JSON takes for one of text, at most on average: escapes take six for two or three."""
EXTRA_BYTES = 4 << 20
"""Bytes that a line may have beside its text, at least."""
BOM = b"\xef\xbb\xbf"
FIRST_BYTES = 256
"""Bytes that tell a JSON array."""
ARRAY = re.compile(rb"\[\s*(\{|$)")
"""The beginning of an array of objects."""


def json_rows(
    file: io.BufferedIOBase,
    start: int,
    stop: int | None,
    columns: Sequence[str],
    max_document_bytes: int,
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Offset and fields, or what is wrong, of the lines that begin from ``start`` to ``stop``.

    Args:
        columns: names of the fields that are wanted.
        max_document_bytes: a line that is far longer than such a text needs is not read.

    Raises:
        BadFileError: the file is a JSON array of the records.
    """
    longest = BYTES_PER_BYTE * max_document_bytes + EXTRA_BYTES
    if start == 0:
        _check_start(file)
    for offset, line in read_lines(file, start, stop, longest):
        if line is None:
            yield str(offset), f"line of more than {longest} bytes (--max-document-bytes)"
        elif not line.isspace():
            yield str(offset), _parse_line(offset, line, columns)


def _check_start(file: io.BufferedIOBase) -> None:
    """Look at the first bytes of a file, and leave it at its beginning.

    Raises:
        BadFileError: no JSONL begins so. Of an array with an object per line, the last one alone
            would be taken, because no comma follows it; one in a single line may be too long.
    """
    if file.seekable():
        head = file.read1(FIRST_BYTES)  # read would lose what comes before a broken place
        file.seek(0)
    else:
        head = cast(io.BufferedReader, file).peek(FIRST_BYTES)[:FIRST_BYTES]
    if ARRAY.match(head.removeprefix(BOM).lstrip()):
        raise BadFileError(
            "is a JSON array and not JSONL: each object has to be a line, as jq -c '.[]' writes "
            "them"
        )


def first_keys(file: io.BufferedIOBase) -> list[str] | None:
    """Fields of the first records: not all need to have all of them."""
    keys: dict[str, None] = {}
    for offset, line in islice(read_lines(file, 0, None, EXTRA_BYTES), FIRST_LINES):
        with suppress(ValueError, RecursionError):  # reading it tells what is wrong
            value = _line_value(offset, line or b"")
            names = names_of(value) if isinstance(value, dict) else ()
            keys |= dict.fromkeys(islice(names, MOST_NAMES + 1))
        if len(keys) > MOST_NAMES:
            return None
    return list(keys) or None


def _parse_line(offset: int, line: bytes, columns: Sequence[str]) -> dict[str, Any] | str:
    """The fields in the line that begins at ``offset``, or what is wrong with it."""
    if len(line) > MOST_VALUES and _values_in(line) > MOST_VALUES:
        return f"line holds more than {MOST_VALUES:,} values"
    try:
        value = _line_value(offset, line, columns)
    except UnicodeDecodeError as error:
        return f"line is not valid UTF-8: {error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return f"line is not valid JSON: {error}"
    if not isinstance(value, dict):
        return "line is not a JSON object"
    fields = ((name, field_of(value, name)) for name in columns)
    return {name: field for name, field in fields if field is not MISSING}


def _values_in(line: bytes) -> int:
    """How many values a line holds, in lists and objects, about: strings may hold commas, too."""
    if sum(map(line.count, (b",", b"[", b"{"))) <= MOST_VALUES:
        return 0
    line = line.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = line.count(b'"') // 2
    if strings > MOST_VALUES:
        return strings
    return sum(sum(map(part.count, (b",", b"[", b"{"))) for part in line.split(b'"')[::2])


def _line_value(offset: int, line: bytes, columns: Sequence[str] = ()) -> Any:
    """The value in a line, of which these fields are wanted."""
    if not offset:
        line = line.removeprefix(BOM)
    with suppress(orjson.JSONDecodeError):
        value = orjson.loads(line)
        if isinstance(value, dict) and all(
            isinstance(field, (str, NoneType)) or field is MISSING
            for field in (field_of(value, name) for name in columns)
        ):
            return value
    # Slower, but it knows large integers, NaN and lone surrogates, and says where a line is wrong.
    return json.loads(line.decode())
