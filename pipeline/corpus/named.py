"""Named corpora: where they live on the hub, which of its files they are, and in which columns.

To add one, add an entry to :data:`CORPORA`.
"""

import re
from dataclasses import dataclass

from pipeline.corpus.formats import AUTO, FORMATS, FormatName
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Corpus:
    """Files of a dataset repository on the hub."""

    name: str
    repository: str
    """Hub id: ``owner/name``."""
    files: tuple[str, ...]
    """Patterns of paths in the repository; a ``*`` matches ``/`` too, as in the hub's client."""
    format: FormatName
    text_column: str
    id_column: str | None
    """Documents are called ``file name#position`` without one."""
    revision: str
    """Commit, branch or tag. Named corpora have a commit, so that they stay what they are."""


def _fineweb_edu(name: str, files: str) -> Corpus:
    revision = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"
    return Corpus(
        name, "HuggingFaceFW/fineweb-edu", (files,), "parquet", "text", "id", revision=revision
    )


def _dclm_baseline(name: str, files: str) -> Corpus:
    revision = "a3b142c183aebe5af344955ae20836eb34dcf69b"
    return Corpus(
        name, "mlfoundations/dclm-baseline-1.0", (files,), "jsonl", "text", None, revision=revision
    )


CORPORA = {
    corpus.name: corpus
    for corpus in (
        _fineweb_edu("fineweb_edu", "data/*/*.parquet"),
        _fineweb_edu("fineweb_edu_10bt", "sample/10BT/*.parquet"),
        _dclm_baseline("dclm_baseline_1.0", "*.jsonl.zst"),
        _dclm_baseline("dclm_baseline_1.0_10prct", "global-shard_01_of_10/*.jsonl.zst"),
    )
}

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
"""``owner/name`` or ``owner/name@revision``."""


def find_corpus(name: str) -> Corpus:
    """The corpus that ``--corpus`` names.

    Of a hub id, everything in a format of data, in the column ``text``.

    Raises:
        ConfigError: it is neither a named corpus nor a hub id.
    """
    if name in CORPORA:
        return CORPORA[name]
    dataset = HUB_ID.fullmatch(name.removeprefix("hf://datasets/"))
    if dataset is None:
        raise ConfigError(
            f"--corpus {name}: no such corpus; there are {', '.join(CORPORA)}, and every dataset "
            "of the hub, as owner/name or owner/name@revision"
        )
    revision = dataset["revision"] or "main"
    data = [form for form in FORMATS.values() if form.is_data]
    files = tuple(f"*{suffix}" for form in data for suffix in form.suffixes)
    return Corpus(name, dataset["repository"], files, AUTO, "text", None, revision=revision)
