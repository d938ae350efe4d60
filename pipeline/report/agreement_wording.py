"""The words of a report about agreement: see :mod:`pipeline.report.agreement`."""

from pipeline.report.agreement import BoundaryAgreement, ModelLoss, SetAgreement
from pipeline.report.wording import format_bytes

MISSING = "\u2013"
"""A dash, as in the tables of the page."""
Interval = tuple[float, float] | None


def format_score(value: float | None) -> str:
    """A share or a coefficient; a dash where it is not defined."""
    return MISSING if value is None else f"{value:.3f}"


def _with_interval(value: float | None, interval: Interval) -> str:
    ends = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"{format_score(value)}{ends}"


def _threshold(value: float | None) -> str:
    return "none" if value is None else repr(value)


def overlap_words(agreement: SetAgreement) -> str:
    """Which documents are compared, and which are not."""
    overlap, reference, other = agreement.overlap, agreement.reference, agreement.other
    looked = (
        "All documents were looked at"
        if overlap.share >= 1
        else f"A sample was looked at, {100 * overlap.share:.3g} % of texts by their hashes"
    )
    common = overlap.common_documents
    copies = f", {overlap.common_texts:,} different ones" * (overlap.common_texts != common)
    sentences = [
        f"{looked}: {overlap.reference_documents:,} of {reference} and "
        f"{overlap.other_documents:,} of {other}.",
        f"{common:,} are in both{copies}, with {format_bytes(overlap.common_bytes)} of text; "
        f"{overlap.reference_documents - common:,} are in {reference} alone, "
        f"{overlap.other_documents - common:,} in {other} alone.",
    ]
    if overlap.same_id_other_text:
        sentences.append(
            f"{overlap.same_id_other_text:,} ids are in both with different texts, which are not "
            "compared."
        )
    return " ".join(sentences)


def agreement_rows(agreement: SetAgreement) -> list[tuple[str, list[str]]]:
    """Rows of the table of a comparison: a label, a cell for the patches of equal size, if there
    are such, and one for those that are stored."""
    columns = [each for each in (agreement.equal_size, agreement.as_stored) if each is not None]

    names = (agreement.reference, agreement.other)
    threshold_labels = [f"threshold of {name} (nats)" for name in names]
    size_labels = [f"mean bytes per patch of {name}" for name in names]

    def cells(each: BoundaryAgreement) -> dict[str, str]:
        total, ends = each.total, each.intervals
        sizes = (each.reference_patch_bytes, each.other_patch_bytes)
        thresholds = (each.reference_threshold, each.other_threshold)
        return {
            **dict(zip(threshold_labels, map(_threshold, thresholds), strict=True)),
            **dict(zip(size_labels, (f"{size:.3f}" for size in sizes), strict=True)),
            "F1 of patch starts": _with_interval(total.f1, ends.f1),
            "F1 by chance": format_score(total.chance_f1),
            "F1 by kind of byte alone": format_score(each.chance_f1_by_kind),
            "precision": _with_interval(total.precision, ends.precision),
            "recall": _with_interval(total.recall, ends.recall),
            "kappa": _with_interval(total.kappa, ends.kappa),
        }

    of_columns = list(map(cells, columns))
    labels = of_columns[0] if of_columns else {}
    return [(label, [each[label] for each in of_columns]) for label in labels]


def entropy_rows(agreement: SetAgreement) -> list[tuple[str, list[str]]]:
    """Rows of the table of entropies and losses: a label, and a cell for each set."""
    rows = []
    if entropies := agreement.entropies:
        means = (entropies.reference_mean_bits, entropies.other_mean_bits)
        rows.append(("mean entropy (bits per byte)", [format_score(bits) for bits in means]))
    if losses := agreement.losses:
        label = f"measured bits per byte, on {format_bytes(losses.bytes)}"
        rows.append((label, [_loss(loss) for loss in (losses.reference, losses.other)]))
    return rows


def _loss(loss: ModelLoss) -> str:
    return "not known" if loss.bits_per_byte is None else f"{loss.bits_per_byte:.3f}"


def loss_notes(agreement: SetAgreement) -> list[str]:
    """Why losses are not known."""
    if agreement.losses is None:
        return []
    of_sets = (
        (agreement.reference, agreement.losses.reference),
        (
            agreement.other,
            agreement.losses.other,
        ),
    )
    return [
        f"The loss for {name} is not known: {loss.note}." for name, loss in of_sets if loss.note
    ]


def brief(agreement: SetAgreement) -> str:
    """The agreement in a sentence, for a terminal."""
    best = agreement.at_one_size
    if best is None:
        return f"{agreement.other} and {agreement.reference}: {overlap_words(agreement)}"
    size = "patches of equal size" if agreement.equal_size else "patches as stored"
    sample = "" if agreement.overlap.share >= 1 else ", a sample"
    of = f"{agreement.overlap.common_documents:,} common documents{sample}"
    f1 = _with_interval(best.total.f1, best.intervals.f1)
    correlation = agreement.entropies and agreement.entropies.spearman
    ranks = "" if correlation is None else f", rank correlation of entropies {correlation:.3f}"
    return (
        f"{agreement.other} and {agreement.reference}, {of}, {size}: F1 {f1}, by chance "
        f"{format_score(best.total.chance_f1)}{ranks}"
    )
