"""Names of fields: nested ones are named by their path, and directories may name fields, too.

``metadata.language`` is the field ``language`` of the struct or object ``metadata``, unless there
is a field of that very name. A file in a directory ``language=en``, as Hive and Spark lay tables
out, has the field ``language`` with the value ``en``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.listing import InputFile

PARTITION = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)=(?P<value>[^/]*)")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
MOST_LISTED = 100
"""Names of fields that a message lists."""
MISSING = object()
"""Stands for a field that a record lacks."""


def partition_values(file: InputFile) -> dict[str, str | None]:
    """The fields that the directories of a file name, such as ``{"language": "en"}``."""
    parts = [*file.url.split("/")[:-1], *file.name.split("/")[:-1]]
    matches = filter(None, map(PARTITION.fullmatch, parts))
    return {
        match["name"]: None if match["value"] == NO_VALUE else unquote(match["value"])
        for match in matches
    }


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field of a record; MISSING if there is none.

    >>> field_of({"metadata": {"language": "en"}}, "metadata.language")
    'en'
    """
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first)
    return field_of(inner, rest) if dot and isinstance(inner, dict) else MISSING


def names_of(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all fields of a record, nested ones after those that hold them."""
    for name, value in record.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from names_of(value, f"{prefix}{name}.")


def listed(names: Iterable[str]) -> str:
    """Names for a message, which may be very many."""
    every = list(names)
    more = len(every) - MOST_LISTED
    first = ", ".join(name[:100] for name in every[:MOST_LISTED])
    return (first or "none") + (f" and {more:,} more" if more > 0 else "")


def schema_names(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[str]:
    """The names of all fields of a schema, nested ones after those that hold them."""
    for field in fields:
        yield prefix + field.name
        if pa.types.is_struct(field.type):
            yield from schema_names(field.type, f"{prefix}{field.name}.")


def type_of(schema: pa.Schema, name: str) -> pa.DataType:
    """The type of a field that :func:`schema_names` names."""
    if name in schema.names:
        return schema.field(name).type
    first, *rest = name.split(".")
    kind = schema.field(first).type
    for part in rest:
        kind = kind.field(part).type
    return kind


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The values of a field that :func:`schema_names` names; null where a struct is."""
    index = batch.schema.get_field_index(name)
    if index >= 0:
        return batch.column(index)
    first, *rest = name.split(".")
    return pc.struct_field(batch.column(first), rest)
