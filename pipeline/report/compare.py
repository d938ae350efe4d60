"""How two shard sets agree: reads the documents that both hold, and counts where patches start.

The documents are read once from the sets (:mod:`pipeline.report.common_documents`), and then
several times from a temporary file: for the entropies, for thresholds that give patches of one size
(:mod:`pipeline.report.equal_size`), and for where patches start by each pair of rules.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from math import log
from pathlib import Path

import numpy as np
from rich.console import Console

from model.patcher import Patcher
from pipeline.cli.progress_bar import metered
from pipeline.report.agreement import (
    CONFIDENCE,
    BoundaryAgreement,
    EntropyAgreement,
    GroupScores,
    Intervals,
    MeasuredLosses,
    Overlap,
    ScoreFigures,
    SetAgreement,
    known,
)
from pipeline.report.common_documents import (
    Pair,
    Sample,
    pair_up,
    read_pairs,
    same_id_other_text,
)
from pipeline.report.equal_size import Blocks, Rules, equal_size_rules
from pipeline.report.examples import Texts, find_examples
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.bootstrap import percentile_interval, resampled_sums
from pipeline.statistics.boundary_agreement import (
    Places,
    Scores,
    cases,
    chance_f1,
    count_cases,
    first_decided,
)
from pipeline.statistics.byte_kinds import KINDS, kinds_of_tokens
from pipeline.statistics.rank_correlation import Column, RankCorrelation
from pipeline.statistics.writing_systems import script_of

DOCUMENTS, SAMPLE_BYTES = 20_000, 256 << 20
"""Documents, and bytes of their text, that are compared by default, about: a sample of them gives
F1 to less than 0.01."""
SEED = 0
"""The seed of the bootstrap."""
MOST_DRAWN = 1 << 13
"""Texts that the bootstrap draws one by one; if there are more, it draws as many groups of them."""


def share_of(shards: ShardSet, documents: int | None) -> float:
    """The share of a set's texts to look at.

    Args:
        documents: about how many; None: DOCUMENTS, or fewer if they have more than SAMPLE_BYTES.
    """
    total = shards.statistics
    share = (documents or DOCUMENTS) / max(total.documents, 1)
    if documents is None:
        share = min(share, SAMPLE_BYTES / max(total.bytes, 1))
    return min(share, 1.0)


def compare_sets(
    sets: Sequence[tuple[str, ShardSet]],
    documents: int | None,
    loss_bytes: int,
    console: Console,
) -> list[SetAgreement]:
    """Compare each set with the first one.

    Args:
        sets: names and sets; two or more.
        documents: see :func:`share_of`.
        loss_bytes: bytes of text that the sets' entropy models are run on.

    Returns:
        the agreement of each set but the first.

    Raises:
        PipelineError: there is no room for the documents.
    """
    (name, first), *others = sets
    share = share_of(first, documents)
    total = sum(shards.statistics.bytes for _, shards in sets)
    found: list[SetAgreement] = []
    with (
        tempfile.TemporaryDirectory(prefix="patch-report-") as directory,
        metered(console, "comparing", total) as report,
    ):
        path = Path(directory) / "reference"
        reference = Sample(first, share, path, report)
        for other_name, shards in others:
            path = Path(directory) / "other"
            other = Sample(shards, share, path, report, only=reference)
            comparison = _Comparison((name, first, reference), (other_name, shards, other))
            found.append(comparison.agreement(share, loss_bytes))
            other.close()
            path.unlink()
        reference.close()
    return found


class _Comparison:
    """The reference and another set, and the documents that both hold."""

    def __init__(
        self, reference: tuple[str, ShardSet, Sample], other: tuple[str, ShardSet, Sample]
    ):
        self.reference, self.other = reference, other
        self.samples = (reference[2], other[2])
        self.pairs = pair_up(*self.samples)
        self.blocks: Blocks = partial(read_pairs, *self.samples, self.pairs)
        rules = [shards.patcher.boundary_rule for _, shards, _ in (reference, other)]
        self.first = first_decided([rule.first_starts for rule in rules])
        self.texts = _describe_texts(self.pairs, self.blocks)

    def _problems(self) -> Iterator[str]:
        """Messages: of shards that cannot be read, and if there is nothing to compare."""
        for sample in self.samples:
            yield from sample.problems
        if not self.pairs:
            yield (
                f"{self.other[1].output.url}: none of the {self.samples[0].documents:,} documents "
                f"that were looked at in {self.reference[1].output.url} is in it; --agreement "
                "compares sets of the same texts"
            )

    def agreement(self, share: float, loss_bytes: int) -> SetAgreement:
        """Everything that the report says of the two sets."""
        overlap = self._overlap(share)
        names = (self.reference[0], self.other[0])
        if not self.pairs:
            return SetAgreement(
                *names, overlap, None, None, None, None, [], [], [*self._problems()]
            )
        as_stored, by_text = self._count(Rules())
        equal_size = None
        movable = _movable(self.reference[1]), _movable(self.other[1])
        rules = equal_size_rules(*movable, self.blocks)
        if rules is not None:
            equal_size, by_text = self._count(rules)
        typical, unlike = find_examples(
            self.samples, self.pairs, self.texts, by_text, rules or Rules(), self.first
        )
        return SetAgreement(
            *names,
            overlap,
            as_stored,
            equal_size,
            self._entropies(),
            self._losses(loss_bytes) if loss_bytes else None,
            typical,
            unlike,
            [*self._problems()],
        )

    def _overlap(self, share: float) -> Overlap:
        reference, other = self.samples
        return Overlap(
            share=share,
            reference_documents=reference.documents,
            other_documents=other.documents,
            common_documents=len(self.pairs),
            common_texts=len(self.texts.scripts),
            common_bytes=sum(pair.reference.tokens - 2 for pair in self.pairs),
            same_id_other_text=same_id_other_text(reference, other),
        )

    def _count(self, rules: Rules) -> tuple[BoundaryAgreement, np.ndarray]:
        """The agreement by some rules, and the cases by text: int64 ``[texts, 4]``."""
        by_text = np.zeros((len(self.texts.scripts), 4), np.int64)
        by_kind = np.zeros((len(KINDS), 4), np.int64)
        patches = np.zeros(2, np.int64)
        for block in self.blocks():
            of_reference, of_other = rules.patches(block)
            patches += [len(of_reference.patch_lengths_P), len(of_other.patch_lengths_P)]
            places = Places.of(of_reference.lengths_D, self.first)
            case_C = cases(of_reference, of_other, places)
            by_document = count_cases(case_C, places.document_C, len(block.texts))
            np.add.at(by_text, block.text_D, by_document)
            kind_T = kinds_of_tokens(block.texts, of_reference.lengths_D)
            by_kind += count_cases(case_C, kind_T[places.at_C].astype(np.int64), len(KINDS))
        reference_size, other_size = (self.texts.bytes.sum() / patches).tolist()
        agreement = BoundaryAgreement(
            reference_threshold=(rules.reference or self.reference[1].patcher).threshold,
            other_threshold=(rules.other or self.other[1].patcher).threshold,
            reference_patch_bytes=reference_size,
            other_patch_bytes=other_size,
            total=ScoreFigures.of(by_kind.sum(axis=0)),
            intervals=_intervals(by_text),
            chance_f1_by_kind=known(chance_f1(by_kind)),
            scripts=self.texts.by_script(by_text),
            kinds=[
                GroupScores(name, None, ScoreFigures.of(counts_4))
                for name, counts_4 in zip(KINDS, by_kind, strict=True)
                if counts_4.any()
            ],
        )
        return agreement, by_text

    def _entropies(self) -> EntropyAgreement | None:
        if not all(sample.has_entropies for sample in self.samples):
            return None
        columns = (Column(), Column())
        for h_C in self._compared_entropies():
            for column, h in zip(columns, h_C, strict=True):
                column.add(h)
        both = RankCorrelation(*columns)
        for h_C in self._compared_entropies():
            both.add(*h_C)
        result = both.result()
        bits = (known(column.mean / log(2)) for column in columns)
        return EntropyAgreement(result.pearson, result.spearman, *bits)

    def _losses(self, most: int) -> MeasuredLosses:
        """The losses of both models on the beginning of what is compared, in the order of hashes:
        a text is cut where ``most`` bytes are reached."""
        texts: list[bytes] = []
        left = most
        for digest in sorted(self.samples[0].places):
            if left and digest in self.samples[1].places:
                (text,), _ = self.samples[0].read(self.samples[0].places[digest][:1])
                texts.append(text[:left].decode(errors="ignore").encode())
                left -= min(left, len(text))
        from pipeline.report.model_loss import model_loss  # needs torch, as no other part does

        losses = (model_loss(shards, texts) for _, shards, _ in (self.reference, self.other))
        return MeasuredLosses(sum(map(len, texts)), *losses)

    def _compared_entropies(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The entropies that decide about the places: those after the token before each."""
        for block in self.blocks():
            before_C = Places.of(block.reference.lengths_D, self.first).at_C - 1
            yield block.reference.entropies_T[before_C], block.other.entropies_T[before_C]


def _movable(shards: ShardSet) -> Patcher | None:
    """The rule of a set; None if no other threshold can be tried."""
    patcher = shards.patcher
    return patcher if shards.has_entropies and patcher.has_threshold else None


def _describe_texts(pairs: Sequence[Pair], blocks: Blocks) -> Texts:
    texts = len({pair.text for pair in pairs})
    sizes, documents = np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    scripts = [""] * texts
    for block in blocks():
        np.add.at(sizes, block.text_D, block.reference.lengths_D - 2)
        np.add.at(documents, block.text_D, 1)
        for number, text in zip(block.text_D.tolist(), block.texts, strict=True):
            scripts[number] = scripts[number] or script_of(text)
    return Texts(scripts, sizes, documents)


def _intervals(by_text: np.ndarray) -> Intervals:
    """Bootstrap intervals over texts: copies of one are drawn together."""
    if len(by_text) < 2:
        return Intervals(None, None, None, None)
    groups = min(len(by_text), MOST_DRAWN)
    drawn = np.zeros((groups, 4), np.int64)
    np.add.at(drawn, np.arange(len(by_text)) % groups, by_text)
    scores = Scores.of(resampled_sums(drawn, SEED))

    def ends(values_R: np.ndarray) -> tuple[float, float] | None:
        known_R = values_R[~np.isnan(values_R)]
        return percentile_interval(known_R, CONFIDENCE) if len(known_R) else None

    return Intervals(*map(ends, (scores.precision, scores.recall, scores.f1, scores.kappa)))
