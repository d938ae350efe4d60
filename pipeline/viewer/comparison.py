"""One text as different models, rules and tokenizers cut it: how many units, and which."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape

import numpy as np

from pipeline.bpe.token_pieces import TokenPieces, load_token_pieces
from pipeline.drawing.aligned_html import Row, aligned_html
from pipeline.errors import ConfigError
from pipeline.shards.provenance import short_names
from pipeline.viewer.patched_text import PatchView, error_html

FLAG = "--tokenizers"
_ENDING = re.compile(r"(/tokenizer)?\.(json|tiktoken)$")
KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the rows of a comparison, in their order."""
MOST_TOKENIZERS = len(KEYS) - 2
"""Beside the patches of two rules."""


@dataclass(frozen=True)
class Cut:
    """A text in units: patches, or tokens. Units without text (BOS and EOS) do not count."""

    unit: str
    """"patch" or "token"."""
    name: str
    """Short: what cut it."""
    description: str
    """The same with its settings."""
    edges_U: np.ndarray
    """int64, bytes: where units start, and last the text's end."""
    title: Callable[[int], str]
    """The tooltip of a unit, by its index."""

    @property
    def count(self) -> int:
        """Units that hold text."""
        return len(self.edges_U) - 1

    def figures(self) -> tuple[str, str, str]:
        """The number of units, bytes per unit, and the bytes of the longest one, in words."""
        size, longest = int(self.edges_U[-1]), int(np.diff(self.edges_U).max(initial=0))
        several = {"patch": "patches", "token": "tokens"}[self.unit]
        units = f"{self.count:,} {self.unit if self.count == 1 else several}"
        return units, f"{size / max(self.count, 1):.3f}", f"{longest:,}"


def cut_of_patches(view: PatchView, model: str | None, rule: str) -> Cut:
    """The patches of a view.

    Args:
        model: the entropy model, where the rule reads entropies.
        rule: in words.
    """
    description = f"{model}, {rule}" if model else rule
    return Cut("patch", "patches", description, view.edges(), view.title)


def cut_of_tokens(text: str, name: str, tokenizer: TokenPieces) -> Cut:
    """The tokens of a text.

    Raises:
        ConfigError: the tokenizer changes this text.
    """
    ids, pieces = tokenizer.cut(text)
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    ids_U = np.array(ids, np.int32)[sizes > 0]
    edges_U = np.concatenate([[0], sizes[sizes > 0].cumsum()])

    def title(number: int) -> str:
        start, stop = edges_U[number : number + 2].tolist()
        size = f"{stop - start} byte" + "s" * (stop - start > 1)
        return f"token {number + 1}: {size} from {start}; id {ids_U[number]}"

    return Cut("token", name, name, edges_U, title)


def comparison_html(data: bytes, cuts: Sequence[Cut]) -> tuple[str, str]:
    """A table of what each cut gives, and the text with all of them aligned."""
    rows = [
        Row(key, cut.name, cut.edges_U, cut.title) for key, cut in zip(KEYS, cuts, strict=False)
    ]
    drawn, shown = aligned_html(data, rows)
    if shown < len(data):
        drawn += (
            f'<p class="note">the first {shown:,} of {len(data):,} bytes; the table counts all</p>'
        )
    return _table(cuts), drawn


def _table(cuts: Sequence[Cut]) -> str:
    heads = ("", "cut by", "units", "bytes per unit", "longest (bytes)")
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    for key, cut in zip(KEYS, cuts, strict=False):
        cells = (f"<b>{key}</b>", escape(cut.description), *cut.figures())
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    rows = "".join(f'<tr class="compared-row">{line}</tr>' for line in lines)
    note = "Units that hold text: the beginning of a document is one more patch."
    return f'<table class="compared">{rows}</table><p class="note">{note}</p>'


def tokenizer_names(sources: Sequence[str]) -> list[str]:
    """Short names of tokenizers, without a comma, which stands between them in links."""
    if not sources:
        return []
    plain = [_ENDING.sub("", source.rstrip("/")) for source in sources]
    return [name.replace(",", "_") for name in short_names(plain)]


class Tokenizers:
    """The tokenizers of a page, by short names."""

    def __init__(self, sources: Sequence[str]):
        """
        Args:
            sources: what :func:`load_token_pieces` takes.

        Raises:
            ConfigError: one cannot be loaded, or is named twice.
        """
        if len(sources) > MOST_TOKENIZERS:
            raise ConfigError(f"{FLAG}: at most {MOST_TOKENIZERS}, got {len(sources)}")
        twice = next((source for source in sources if sources.count(source) > 1), None)
        if twice is not None:
            raise ConfigError(f"{FLAG} {twice}: is named more than once")
        names = tokenizer_names(sources)
        self._by_name = {
            name: load_token_pieces(source, FLAG)
            for name, source in zip(names, sources, strict=True)
        }

    @property
    def names(self) -> list[str]:
        """Names to choose from."""
        return list(self._by_name)

    def cuts(self, text: str, chosen: Sequence[str]) -> tuple[list[Cut], str]:
        """The tokens of a text by each tokenizer that is chosen; and HTML that names those which
        change this text, and so cannot be shown on it."""
        cuts, problems = [], []
        for name in chosen:
            try:
                cuts.append(_cut(text, name, self._by_name[name]))
            except ConfigError as error:
                problems.append(error_html(error))
        return cuts, "".join(problems)


# So that a change of a threshold is quick. One text by as many tokenizers as a page may have, and
# no more: a token takes 12 bytes, and documents may have any size.
@lru_cache(maxsize=MOST_TOKENIZERS)
def _cut(text: str, name: str, tokenizer: TokenPieces) -> Cut:
    return cut_of_tokens(text, name, tokenizer)
