"""Examples of text with the patches of two sets: typical ones, and those that differ most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.patches import PatchedTokens
from pipeline.report.agreement import Example, GroupScores, ScoreFigures
from pipeline.report.common_documents import Pair, Sample, read_pairs
from pipeline.report.equal_size import Rules
from pipeline.report.figures import MOST_SHOWN
from pipeline.statistics.boundary_agreement import BOTH, NEITHER, Places, Scores, cases
from pipeline.statistics.excerpts import SHOWN_BYTES, DocumentLayout

MOST_TYPICAL, MOST_UNLIKE = 4, 4
LEAST_BYTES = 256
"""Shorter texts are no examples: one start more makes them look unlike."""


@dataclass(frozen=True)
class Texts:
    """The texts that two sets have in common, by their numbers."""

    scripts: list[str]
    bytes: np.ndarray
    """int64: all documents of a text together."""
    documents: np.ndarray
    """int64: documents of each text."""

    def by_script(self, by_text: np.ndarray) -> list[GroupScores]:
        """The agreement by script, those with the most text first, MOST_SHOWN of them.

        Args:
            by_text: int64 ``[texts, 4]``, places by case.
        """
        names, script_N = np.unique(self.scripts, return_inverse=True)
        sizes = np.bincount(script_N, self.bytes, len(names))
        documents = np.bincount(script_N, self.documents, len(names)).astype(int)
        counts = np.zeros((len(names), 4), np.int64)
        np.add.at(counts, script_N, by_text)
        order = np.argsort(-sizes, kind="stable")[:MOST_SHOWN].tolist()
        return [
            GroupScores(str(names[i]), int(documents[i]), ScoreFigures.of(counts[i])) for i in order
        ]


def find_examples(
    samples: tuple[Sample, Sample],
    pairs: Sequence[Pair],
    texts: Texts,
    by_text: np.ndarray,
    rules: Rules,
    first: int,
) -> tuple[list[Example], list[Example]]:
    """Examples of texts that are typical of their scripts, and of those that agree least.

    Args:
        by_text: int64 ``[texts, 4]``, places by case.
        rules: those that the patches of the examples, and ``by_text``, come from.
        first: the first token of a document that is compared.
    """
    f1_N = Scores.of(by_text).f1
    long_N = (texts.bytes >= LEAST_BYTES * texts.documents) & ~np.isnan(f1_N)
    scripts = np.array(texts.scripts)
    typical = []
    for group in texts.by_script(by_text)[:MOST_TYPICAL]:
        usual = group.scores.f1 or 0.0
        distance_N = np.abs(f1_N - usual)
        distance_N[~long_N | (scripts != group.name)] = np.inf
        typical += [n for n in [int(distance_N.argmin())] if np.isfinite(distance_N[n])]
    order = np.argsort(np.where(long_N, f1_N, np.inf), kind="stable")
    unlike = [n for n in order[:MOST_UNLIKE].tolist() if long_N[n] and n not in typical]
    place = {pair.text: pair for pair in reversed(pairs)}

    def example(number: int, most_unlike: bool) -> Example:
        (block,) = read_pairs(*samples, [place[number]])
        patched = rules.patches(block)
        begin = _most_unlike(patched, first) if most_unlike else 0
        sample_id = place[number].reference.sample_id
        of_reference, of_other = (
            DocumentLayout(block.texts, [sample_id], *_layout(each)).excerpt(0, begin, 0.0)
            for each in patched
        )
        return Example(
            sample_id,
            texts.scripts[number],
            of_reference.position,
            of_reference.text,
            float(f1_N[number]),
            of_reference.patch_bytes,
            of_other.patch_bytes,
        )

    return [example(n, False) for n in typical], [example(n, True) for n in unlike]


def _layout(patched: PatchedTokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return patched.lengths_D, patched.patch_lengths_P, patched.patches_D


def _most_unlike(patched: tuple[PatchedTokens, PatchedTokens], first: int) -> int:
    """The byte from which an excerpt of a single document shows most places where one set alone
    starts a patch."""
    places = Places.of(patched[0].lengths_D, first)
    case_C = cases(*patched, places)
    alone_T = np.zeros(int(patched[0].lengths_D[0]))
    alone_T[places.at_C] = (case_C != BOTH) & (case_C != NEITHER)
    sums_T = np.concatenate([[0], alone_T[1:].cumsum()])  # byte i is token i + 1
    window = min(SHOWN_BYTES, len(sums_T) - 1)
    return int((sums_T[window:] - sums_T[:-window]).argmax())
