"""Ids of documents where nobody named their column: the usual columns, in one order.

The order is that of the published preprocessing, followed by names that it does not know. One
column gives the ids of a whole input: it has to be in every file. A directory ``id=7`` names none:
all documents below it would have one id. Where there is none, a document is called by its place,
``file name#position``.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from pipeline.corpus.documents import Columns
from pipeline.corpus.formats import FORMATS
from pipeline.corpus.splits import FilePlan

USUAL = (
    *("sample_id", "title", "qid", "paper_id", "path", "url", "id"),
    *("doc_id", "docid", "document_id", "uuid", "_id"),
)


class Ids(NamedTuple):
    """The column that gives ids."""

    column: str | None
    """None: documents are called by their places."""
    others: tuple[str, ...] = ()
    """Further usual columns, in all files or in some, which nobody chose between."""

    @classmethod
    def choose(cls, plans: Iterable[FilePlan], columns: Columns) -> Self:
        """The first usual column that is in every file. Files that do not tell their columns, and
        those that have none, such as plain text, are not asked.

        Args:
            columns: those that are wanted: a text or a list of numbers is no id.
        """
        offered = list(_offered(plans))
        here = [
            name
            for name in USUAL
            if any(name in names for names in offered)
            and name not in (columns.text, *columns.numbers)
        ]
        chosen = next((n for n in here if all(n in names for names in offered)), None)
        return cls(chosen, tuple(name for name in here if name != chosen))

    def __str__(self) -> str:
        """The choice as a sentence for people; empty if there was nothing to choose."""
        others = ", ".join(self.others)
        if self.column is None:
            return (
                f"ids are file#position: not every file has a column {others}; --id-column names "
                "one"
                if others
                else ""
            )
        also = f"; there are also {others} (--id-column names another)" if others else ""
        return f"ids are taken from the column {self.column!r}{also}"


def left_behind(plans: Iterable[FilePlan], columns: Columns) -> str:
    """A sentence for people where documents are called by their places, and usual columns that
    would give ids are not kept either; else empty."""
    if columns.id is not None:
        return ""
    chosen, others = Ids.choose(plans, columns)
    names = [name for name in (chosen, *others) if name and name not in columns.metadata]
    return (
        f"ids are file#position; the input also has {', '.join(names)}, and none of it is kept "
        "(--id-column or --keep-columns name columns)"
        if names
        else ""
    )


def _offered(plans: Iterable[FilePlan]) -> Iterable[Sequence[str]]:
    for plan in plans:
        split = plan.splits[0]
        if plan.columns is not None and FORMATS[split.format].has_columns:
            yield plan.columns
