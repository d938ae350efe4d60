"""The parts of the viewer that show a text: counts, coloured patches, the curve; not the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from html import escape

import numpy as np

from model.checkpoints.entropy_model import CheckpointError, load_entropy_model
from model.patcher import Patcher
from model.tokenizer import encode_documents
from pipeline.drawing.entropy_svg import SHOWN_BYTES, curve_svg
from pipeline.drawing.patches_html import patches_html
from pipeline.errors import ConfigError
from pipeline.patch.scoring import AnyEntropyModel, Scorer
from pipeline.patches import recut

MOST_BYTES = 100_000
"""Bytes of the longest text that is patched: more would keep the page waiting."""
MOST_PATCHES = 3000
"""Patches that are shown in colours."""
SCORED_TEXTS = 64
"""Texts whose entropies are remembered, so that a change of the rule is quick."""


@dataclass(frozen=True)
class PatchView:
    """A text with its entropies and patches."""

    data: bytes
    """UTF-8."""
    h_T: np.ndarray | None
    """float16, nats, one for each token (BOS, bytes, EOS); None if they are not known."""
    patch_lengths_P: np.ndarray
    """Tokens."""
    threshold: float | None = None
    """Nats, drawn as a line; None where entropies are not compared with a threshold."""

    def patches(self) -> list[bytes]:
        """The patches that hold text."""
        return [self.data[a:b] for a, b in self._spans.tolist()]

    @cached_property
    def _spans(self) -> np.ndarray:
        """Start and end (bytes) of each patch that holds text; there may be millions."""
        edges = (np.concatenate([[0], self.patch_lengths_P.cumsum()]) - 1).clip(0, len(self.data))
        spans_P2 = np.stack([edges[:-1], edges[1:]], axis=1)
        return spans_P2[spans_P2[:, 0] < spans_P2[:, 1]]

    def edges(self) -> np.ndarray:
        """Where patches that hold text start (int64, bytes), and last the text's end."""
        return np.append(self._spans[:, 0], len(self.data))

    def counts(self) -> list[tuple[str, str]]:
        """Values and names above the patches; patches are counted as the job counts them."""
        longest = np.diff(self._spans).max(initial=0)
        patches = len(self.patch_lengths_P)
        return [
            ("bytes", f"{len(self.data):,}"),
            ("characters", f"{len(self.data.decode()):,}"),
            ("patches", f"{patches:,}"),
            ("bytes per patch", f"{len(self.data) / max(patches, 1):.3f}"),
            ("longest patch", f"{longest:,} byte{'s' * int(longest != 1)}"),
        ]

    def counts_html(self) -> str:
        cells = (f"<div><b>{value}</b> {name}</div>" for name, value in self.counts())
        return f'<div class="counts">{"".join(cells)}</div>'

    def patches_html(self) -> str:
        """The first patches, each in a colour."""
        spans_P2 = self._spans
        spans = spans_P2[:MOST_PATCHES].tolist()
        titles = [self._title(number, a, b) for number, (a, b) in enumerate(spans, 1)]
        shown = patches_html([self.data[a:b] for a, b in spans], titles)
        rest = len(spans_P2) - len(spans)
        return shown + (f'<p class="note">and {rest:,} more patches</p>' if rest else "")

    def title(self, index: int) -> str:
        """The tooltip of a patch, by its index among those that hold text."""
        return self._title(index + 1, *self._spans[index].tolist())

    def _title(self, number: int, start: int, stop: int) -> str:
        size = f"{stop - start} byte" + "s" * (stop - start > 1)
        entropy = "" if self.h_T is None else f"; {float(self.h_T[start]):.3f} nats before it"
        return f"patch {number}: {size} from {start}{entropy}"

    def curve_html(self) -> str:
        """The curve of the first bytes; nothing for a text without any."""
        if not self.data:
            return ""
        if self.h_T is None:
            return '<p class="note">The shards hold no entropies.</p>'
        drawn = curve_svg(self.data, self.h_T, self.patch_lengths_P, self.threshold)
        more = len(self.data) > SHOWN_BYTES
        return drawn + (f'<p class="note">the first {SHOWN_BYTES} bytes</p>' if more else "")

    def shown(self) -> list[str]:
        """Counts, patches and curve, as HTML."""
        return [self.counts_html(), self.patches_html(), self.curve_html()]


def view_text(text: str, model: str, patcher: Patcher, reset_at_newline: bool = False) -> PatchView:
    """A text patched as ``patch_corpus.py`` would.

    Args:
        model: source of the entropy model: a directory, a URL or a hub id.

    Raises:
        ConfigError: the model cannot be loaded, or the text cannot be used.
    """
    data = text.encode(errors="replace")
    if len(data) > MOST_BYTES:
        raise ConfigError(f"the text has {len(data):,} bytes; at most {MOST_BYTES:,}, please")
    return _view(data, _entropies(data, model, reset_at_newline), patcher)


def repatched(view: PatchView, patcher: Patcher) -> PatchView:
    """The view's text with the patches that another rule gives for its entropies."""
    assert view.h_T is not None
    return _view(view.data, view.h_T, patcher)


def _view(data: bytes, h_T: np.ndarray, patcher: Patcher) -> PatchView:
    patched = recut(patcher, h_T, np.array([len(h_T)]), [data])
    return PatchView(data, h_T, patched.patch_lengths_P, line(patcher))


def line(patcher: Patcher) -> float | None:
    """The threshold (nats) to draw; None where entropies themselves are not compared with one."""
    return patcher.threshold if patcher.compares in ("entropy", "both") else None


@lru_cache(maxsize=SCORED_TEXTS)
def _entropies(data: bytes, model: str, reset_at_newline: bool) -> np.ndarray:
    tokens_T, lengths_D = encode_documents([data])
    return Scorer(load(model), Patcher(rule="byte"), reset_at_newline).entropies(
        tokens_T, lengths_D
    )


@lru_cache(maxsize=4)
def load(model: str) -> AnyEntropyModel:
    """An entropy model, loaded once.

    Raises:
        ConfigError: it cannot be loaded.
    """
    try:
        return load_entropy_model(model)
    except CheckpointError as error:
        raise ConfigError(f"--entropy-model: {error}") from error


def error_html(error: Exception) -> str:
    """An error, as the page shows it."""
    return f'<p class="error" role="alert">{escape(str(error))}</p>'


def ids_html(ids: Sequence[str]) -> str:
    """The name and place of a document, as the page shows them. An id that changes the direction of
    writing changes its own."""
    shown = (f"<bdi>{escape(part)}</bdi>" for part in ids)
    return f'<p class="note">{" · ".join(shown)}</p>'
