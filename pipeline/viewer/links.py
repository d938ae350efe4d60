"""Links that reproduce what the page shows: its settings, as parameters of its address.

A link comes from anybody, so that whatever it holds is checked as if it had been typed: it chooses
among what the page offers and loads nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pipeline.errors import ConfigError

MOST_LINK = 6000
"""Characters of a link; servers and chats cut longer ones."""


class Field(NamedTuple):
    """A setting of the page, as a link holds it."""

    read: Callable[[str], Any]
    """Raises ValueError if this is no value of the setting; the message completes "has to be"."""
    write: Callable[[Any], str] = str


def choice(choices: Sequence[str]) -> Field:
    """One of some names."""

    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}, which this page has")
        return value

    return Field(read)


def several(choices: Sequence[str]) -> Field:
    """Any of some names, none of which holds a comma."""

    def read(value: str) -> list[str]:
        chosen = [name for name in value.split(",") if name]
        if not set(chosen) <= set(choices):
            raise ValueError(f"some of {', '.join(choices) or 'nothing'}, which this page has")
        return list(dict.fromkeys(chosen))

    return Field(read, ",".join)


def number(least: float, most: float | None) -> Field:
    """A number within limits."""

    def read(value: str) -> float:
        within = f"a number from {least}" + (f" to {most}" if most is not None else "")
        try:
            found = float(value)
        except ValueError:
            raise ValueError(within) from None
        if not least <= found <= (most if most is not None else 1e15):  # so are no NaN
            raise ValueError(within)
        return found

    return Field(read, lambda value: f"{value:.10g}")


def switch() -> Field:
    """Yes or no."""

    def read(value: str) -> bool:
        if value not in ("0", "1"):
            raise ValueError("0 or 1")
        return value == "1"

    return Field(read, lambda value: str(int(bool(value))))


def text(most_bytes: int) -> Field:
    """Any text."""

    def read(value: str) -> str:
        if len(value.encode(errors="replace")) > most_bytes:
            raise ValueError(f"of at most {most_bytes:,} bytes")
        return value

    return Field(read, lambda value: value or "")


def read_link(
    fields: Mapping[str, Field], parameters: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The settings that a link holds, by name; and a sentence for each that cannot be used."""
    values, problems = {}, []
    for name, field in fields.items():
        if name in parameters:
            try:
                values[name] = field.read(parameters[name])
            except ValueError as error:
                given = parameters[name]
                given = given if len(given) <= 60 else f"{given[:60]}…"
                problems.append(f"The link's {name} is {given!r}, and has to be {error}.")
    return values, problems


def write_link(fields: Mapping[str, Field], values: Mapping[str, Any]) -> str:
    """The parameters of a link to these settings, with the question mark before them.

    Raises:
        ConfigError: the link would be too long.
    """
    pairs = {name: fields[name].write(value) for name, value in values.items()}
    link = f"?{urlencode(pairs, errors='replace')}"
    if len(link) > MOST_LINK:
        raise ConfigError(
            f"no link: with this text it would have {len(link):,} characters, and links have "
            f"{MOST_LINK:,} at most"
        )
    return link


def link_html(fields: Mapping[str, Field], values: Mapping[str, Any]) -> str:
    """A link to these settings, or the reason why there is none."""
    try:
        address = escape(write_link(fields, values))
    except ConfigError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    return f'<p class="note"><a href="{address}" target="_blank">link to what is shown here</a></p>'
