"""Noise in texts, as somebody types, shouts or scans them.

The first five kinds are those that the paper tests robustness with (arXiv 2412.09871, section 6.1);
swaps, and spaces that are added or lost, are beside them. A character is a Unicode code point. All
choices follow from a random generator, whose seed should tell the text, the kind and the seed of
the experiment: then a text has the same noise everywhere, and others have noise of their own.
"""

import random
from collections.abc import Callable

Noise = Callable[[str, random.Random], str]


def _some(text: str, share: float, change: Callable[[str], str], draw: random.Random) -> str:
    return "".join(change(c) if draw.random() < share else c for c in text)


def _repeated(character: str, draw: random.Random) -> str:
    return character * draw.randint(2, 4)


def _swapped(text: str, draw: random.Random) -> str:
    """A tenth of the pairs of neighbours change places; a character takes part in one swap."""
    characters, place = list(text), 0
    while place + 1 < len(characters):
        if draw.random() < 0.1:
            characters[place : place + 2] = characters[place + 1], characters[place]
            place += 1
        place += 1
    return "".join(characters)


NOISES: dict[str, Noise] = {
    "antspeak": lambda text, draw: " ".join(text.upper()),
    "drop": lambda text, draw: _some(text, 0.1, lambda c: "", draw),
    "random_case": lambda text, draw: _some(text.lower(), 0.5, str.upper, draw),
    "repeat": lambda text, draw: _some(text, 0.2, lambda c: _repeated(c, draw), draw),
    "upper_case": lambda text, draw: text.upper(),
    "swap": _swapped,
    "spaces_added": lambda text, draw: _some(text, 0.1, lambda c: f"{c} ", draw),
    "spaces_lost": lambda text, draw: _some(text, 0.5, lambda c: c.strip(" "), draw),
}
"""Noises by name: a tenth of the characters are dropped, swapped or followed by a space; a fifth
are there two to four times; half of the letters have the other case; half of the spaces are lost;
all letters are capitals; all are capitals with a space between them."""


def noised(text: str, kind: str, seed: str) -> str:
    """A text with noise.

    Args:
        kind: a name of :data:`NOISES`.
        seed: decides the noise, together with the kind; it should name the text.
    """
    return NOISES[kind](text, random.Random(f"{seed} {kind}"))
