"""Links hold what the page shows, and nothing that the page does not offer."""

from urllib.parse import parse_qsl

import pytest

from pipeline.errors import ConfigError
from pipeline.viewer.links import (
    MOST_LINK,
    choice,
    link_html,
    number,
    read_link,
    several,
    switch,
    text,
    write_link,
)

FIELDS = {
    "text": text(100_000),
    "model": choice(["entropy-1m", "a/b & c"]),
    "tokenizers": several(["gpt2", "llama3"]),
    "threshold": number(-2, 6),
    "document": number(0, None),
    "reset": switch(),
}
VALUES = {
    "text": "a=b&c #1\n日本 <b> '\" %20 +",
    "model": "a/b & c",
    "tokenizers": ["llama3", "gpt2"],
    "threshold": 1.335442066,
    "document": 123456789,
    "reset": True,
}


@pytest.mark.parametrize("changes", [{}, {"text": "", "tokenizers": [], "reset": False}])
def test_a_link_gives_back_what_is_shown(changes):
    values = VALUES | changes
    link = write_link(FIELDS, values)
    parameters = dict(parse_qsl(link[1:], keep_blank_values=True, strict_parsing=True))
    assert read_link(FIELDS, parameters | {"__theme": "dark"}) == (values, [])


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"model": "/etc"}, "model is '/etc', and has to be one of entropy-1m, a/b & c"),
        ({"tokenizers": "gpt2,x"}, "tokenizers is 'gpt2,x', and has to be some of gpt2, llama3"),
        ({"threshold": "7"}, "threshold is '7', and has to be a number from -2 to 6"),
        ({"threshold": "nan"}, "has to be a number from -2 to 6"),
        ({"threshold": ""}, "has to be a number from -2 to 6"),
        ({"document": "inf"}, "has to be a number from 0"),
        ({"reset": "yes"}, "has to be 0 or 1"),
        ({"text": "é" * 50_001}, "has to be of at most 100,000 bytes"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_told(parameters, problem):
    values, problems = read_link(FIELDS, {"reset": "1"} | parameters)
    assert values == ({} if "reset" in parameters else {"reset": True})
    assert len(problems) == 1 and problem in problems[0] and len(problems[0]) < 200


def test_a_text_that_is_too_long():
    most = {"text": "x" * (MOST_LINK - len("?text="))}
    assert len(write_link(FIELDS, most)) == MOST_LINK
    longer = {"text": most["text"] + "x"}
    with pytest.raises(ConfigError, match="no link: with this text it would have 6,001 characters"):
        write_link(FIELDS, longer)
    assert "no link" in link_html(FIELDS, longer) and "href" not in link_html(FIELDS, longer)


def test_characters_that_are_none():
    assert write_link(FIELDS, {"text": "a\ud800"}) == "?text=a%3F"
