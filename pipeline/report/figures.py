"""The figures of a report: what the page, the plots and report.json say of a set.

:mod:`pipeline.report.set_figures` makes them of its counts.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.report.held_out import HeldOut
from pipeline.report.set_counts import Provenance, RunTime, SoFar
from pipeline.statistics.excerpts import Excerpt

MOST_SHOWN = 50
"""Groups that a table of a report names; all others are one row."""
JSON_KEYS = {"provenance": "made"}
"""Fields of :class:`SetFigures` that report.json calls something else."""


@dataclass(frozen=True)
class TokenizerFigures:
    """A BPE tokenizer on a sample of text."""

    name: str
    vocabulary: int
    bytes_per_token: float
    sample_bytes: int


@dataclass(frozen=True)
class LengthFigures:
    """Lengths of patches, in tokens."""

    counts: dict[int, int]
    """Patches by length, shortest first."""
    percentiles: dict[int, int]
    """The length that so many per cent of the patches do not exceed."""

    def to_json(self) -> dict[str, dict[str, int]]:
        """Plain values; keys are strings, as in all JSON."""
        return {
            name: {str(key): value for key, value in values.items()}
            for name, values in vars(self).items()
        }


@dataclass(frozen=True)
class EntropyFigures:
    """A histogram of entropies."""

    bin: float
    """Nats: the width of a bin; the first bin begins at 0."""
    counts: list[int]
    """Tokens in each bin."""


@dataclass(frozen=True)
class CurveFigures:
    """The patches that rising thresholds give."""

    thresholds: list[float]
    """Nats."""
    mean_patch_bytes: list[float]


@dataclass(frozen=True)
class Suggestion:
    """The threshold that comes closest to a mean patch size; None if there is no curve."""

    target: float
    """Bytes per patch that were asked for."""
    threshold: float | None
    """Nats."""
    mean_patch_bytes: float | None
    """Bytes per patch that the threshold gives."""


@dataclass(frozen=True)
class GroupFigures:
    """A group of documents."""

    name: str
    documents: int
    bytes: int
    patches: int
    mean_patch_bytes: float
    mean_entropy: float | None
    """Nats per token; None if the entropies of some tokens are not known."""


@dataclass(frozen=True)
class ShardFigures:
    """One shard, for the plot over all shards."""

    shard: str
    bytes: int
    mean_patch_bytes: float


@dataclass(frozen=True)
class RejectFigures:
    """Documents that could not be used."""

    count: int
    reasons: dict[str, int]
    failures: list[str]
    """One message for each file that could not be read to its end."""


@dataclass(frozen=True)
class BpeFlops:
    """FLOPs per byte of a transformer on BPE tokens."""

    inference: float
    training: float


@dataclass(frozen=True)
class FlopsFigures:
    """FLOPs per byte of one size of BLT, see :func:`model.flops.flops_by_size`."""

    size: str
    parts: dict[str, float]
    """A forward pass by part of the model, without the entropy model."""
    entropy_model: float | None
    """Its forward pass; 0 if the rule reads no entropies, None if nobody named the model that gave
    them."""
    inference: float
    """A forward pass, with the entropy model's as far as it is known."""
    training: float
    """Without the entropy model: training takes patches as given."""
    bpe: BpeFlops | None = None
    """None, and not in report.json, if there is no tokenizer to compare with."""

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        if self.bpe is None:
            del values["bpe"]
        return values


@dataclass(frozen=True)
class SetFigures:
    """The figures of a set in a report. The order of the fields is that of ``--json``."""

    name: str
    url: str
    documents: int
    bytes: int
    """UTF-8 bytes of text."""
    tokens: int
    """Bytes, and BOS and EOS of each document."""
    scored_tokens: int
    """Tokens whose entropies are known."""
    patches: int
    shards: int
    shard_bytes: int
    """Size of the Arrow files."""
    mean_patch_bytes: float
    mean_entropy: float | None
    """Nats per token, over the tokens whose entropies are known; None if there are none."""
    rule: str
    threshold: float | None
    """Nats; None if the rule has none, or if merged sets have different ones."""
    thresholds_differ: bool
    """True if merged sets have different thresholds."""
    max_patch_length: int | None
    """Tokens."""
    provenance: Provenance
    patch_lengths: LengthFigures
    entropies: EntropyFigures
    curve: CurveFigures
    curve_has_cuts: bool
    """True if the curve counts the splits at ``max_patch_length``."""
    suggested: list[Suggestion]
    scripts: list[GroupFigures]
    columns: dict[str, list[GroupFigures]]
    """Groups by metadata column, by value."""
    columns_in_part: list[str]
    """Columns with more values than shards count separately."""
    sources: list[GroupFigures]
    """Groups by input file or, where files share shards, by directory; of merged sets, by set."""
    drift: list[ShardFigures]
    """All shards, in their order."""
    longest: list[Excerpt]
    shortest: list[Excerpt]
    rejects: RejectFigures
    problems: list[str]
    """One message for each damaged shard."""
    runs: list[RunTime]
    tokenizer: TokenizerFigures | None
    flops: list[FlopsFigures]
    """One for each size; empty if there are no patches."""
    so_far: SoFar | None
    """How much of the input is done; None for a set that is finished."""
    held_out: HeldOut | None
    """The validation set; None if there is none."""

    def to_json(self) -> dict[str, Any]:
        """The set as report.json holds it."""
        values = asdict(self)
        values["patch_lengths"] = self.patch_lengths.to_json()
        values["flops"] = [row.to_json() for row in self.flops]
        return {JSON_KEYS.get(name, name): value for name, value in values.items()}
