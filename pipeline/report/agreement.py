"""The figures of how two shard sets agree about the patches of the documents that both hold.

The first set of a report is the *reference*; each other one is compared with it by
:mod:`pipeline.report.compare`.
"""

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np

from pipeline.statistics.boundary_agreement import BOTH, OTHER_ALONE, REFERENCE_ALONE, Scores

CONFIDENCE = 0.95
"""The level of bootstrap intervals over texts."""


@dataclass(frozen=True)
class ScoreFigures:
    """The agreement about some places; see :mod:`pipeline.statistics.boundary_agreement`."""

    places: int
    """Tokens where a rule decides whether a patch starts."""
    reference_starts: int
    other_starts: int
    common_starts: int
    precision: float | None
    """None, as the others, where it is not defined."""
    recall: float | None
    f1: float | None
    chance_f1: float | None
    kappa: float | None

    @classmethod
    def of(cls, counts_4: np.ndarray) -> "ScoreFigures":
        scores = {name: known(value) for name, value in vars(Scores.of(counts_4)).items()}
        of_reference = int(counts_4[REFERENCE_ALONE] + counts_4[BOTH])
        of_other = int(counts_4[OTHER_ALONE] + counts_4[BOTH])
        total, common = int(counts_4.sum()), int(counts_4[BOTH])
        return cls(total, of_reference, of_other, common, **scores)


def known(value: float) -> float | None:
    """A figure as JSON has it: None for NaN."""
    return None if isnan(value) else float(value)


@dataclass(frozen=True)
class GroupScores:
    """The agreement within a group: documents of one script, or places at one kind of byte."""

    name: str
    documents: int | None
    """None for a kind of byte, which all documents share."""
    scores: ScoreFigures


@dataclass(frozen=True)
class Intervals:
    """The ends of bootstrap intervals at CONFIDENCE."""

    precision: tuple[float, float] | None
    """None, as the others, if there are less than two texts."""
    recall: tuple[float, float] | None
    f1: tuple[float, float] | None
    kappa: tuple[float, float] | None


@dataclass(frozen=True)
class BoundaryAgreement:
    """The agreement by one pair of rules."""

    reference_threshold: float | None
    """Nats; None if the rule has none."""
    other_threshold: float | None
    reference_patch_bytes: float
    """Mean bytes per patch of the documents that are compared."""
    other_patch_bytes: float
    total: ScoreFigures
    intervals: Intervals
    chance_f1_by_kind: float | None
    """The F1 of two patchers that know the kind of a byte and nothing else: within each kind, they
    start as many patches each at places that they draw."""
    scripts: list[GroupScores]
    """By writing system of the document's beginning, those with the most text first."""
    kinds: list[GroupScores]
    """By kind of the byte that a patch may begin with."""


@dataclass(frozen=True)
class EntropyAgreement:
    """The entropies of both sets, over the places that are compared."""

    pearson: float | None
    """None, as the next, if the entropies of a set are constant."""
    spearman: float | None
    reference_mean_bits: float | None
    """Bits per byte: the loss that the model expects of itself, which is no measured loss. None if
    there is no place to compare."""
    other_mean_bits: float | None


@dataclass(frozen=True)
class ModelLoss:
    """The loss of a set's entropy model on text that both sets hold."""

    bits_per_byte: float | None
    """EOS included, as :mod:`pipeline.evaluate` counts; None if it cannot be known."""
    note: str
    """Why it cannot be known."""


@dataclass(frozen=True)
class MeasuredLosses:
    """The losses of both sets' entropy models on the same text."""

    bytes: int
    """Bytes of the text."""
    reference: ModelLoss
    other: ModelLoss


@dataclass(frozen=True)
class Example:
    """Some text with the patches of both sets."""

    sample_id: str
    script: str
    position: int
    """Byte of the document's text that the excerpt begins at."""
    text: str
    f1: float
    """The agreement over the whole document."""
    reference_patch_bytes: list[int]
    other_patch_bytes: list[int]


@dataclass(frozen=True)
class Overlap:
    """How much two sets have in common."""

    share: float
    """The share of texts that were looked at, chosen by their hashes; 1 for all."""
    reference_documents: int
    """Documents that were looked at."""
    other_documents: int
    common_documents: int
    """Documents of both sets, which are compared."""
    common_texts: int
    """Different texts among them."""
    common_bytes: int
    same_id_other_text: int
    """Ids in both sets, with a text that only the reference has and another that only the other set
    has; 0 if not all documents were looked at."""


@dataclass(frozen=True)
class SetAgreement:
    """The agreement of a set with the reference."""

    reference: str
    other: str
    overlap: Overlap
    as_stored: BoundaryAgreement | None
    """None, as all others, if the sets have no text in common."""
    equal_size: BoundaryAgreement | None
    """With the threshold of one set moved so that both have about as many patches; None if neither
    set can be re-patched."""
    entropies: EntropyAgreement | None
    """None if a set holds none."""
    losses: MeasuredLosses | None
    """None if that was not asked for."""
    typical: list[Example]
    """One of each script: the text that agrees as its script does."""
    unlike: list[Example]
    """Texts that agree least."""
    problems: list[str]
    """Shards that could not be read to their end, or that there is nothing to compare."""
    confidence: float = CONFIDENCE

    @property
    def at_one_size(self) -> BoundaryAgreement | None:
        """The agreement at equal size, or else by the patches that the sets hold."""
        return self.equal_size or self.as_stored

    def to_json(self) -> dict[str, Any]:
        """The value of report.json."""
        return asdict(self)
