"""The configuration of ``jobs/prepare_corpus.py``: each field is a flag."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from pipeline.cli.flags import check_at_least
from pipeline.cli.optional import OrNone
from pipeline.cli.sizes import Size
from pipeline.corpus.formats import FORMAT_TITLES, FormatName, input_suffixes
from pipeline.corpus.named import CORPORA, Corpus, find_corpus
from pipeline.errors import ConfigError
from pipeline.storage.known_tokenizers import TOKENIZERS

if TYPE_CHECKING:
    from pipeline.corpus.documents import Columns

ChunkFormat = Literal["parquet", "jsonl"]
VALIDATION_DOCUMENTS = 10_000
LARGEST_SEED = 2**64 - 1
MOST_CHUNKS = 1_000_000


@dataclass(frozen=True)
class PrepareCorpusConfig:
    """Bring a corpus from the hub, object storage or disk to shuffled chunks, ready to be patched.

    The order is one random permutation of all documents, and depends on the corpus and the seed
    alone. A rerun of the same command continues where the last one stopped. Exit status: 0 if
    everything was done, 1 if a file could not be read or the job stopped, 2 if a flag is wrong.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"--format": "--chunk-format"}

    output: str
    """Directory or URL for chunks, validation set, rejects and manifest."""
    corpus: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"{', '.join(CORPORA)}, or any dataset of the hub: owner/name or "
            "owner/name@revision.",
            help_behavior_hint="",
        ),
    ] = None
    input: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help=f"Instead: files, directories, globs or URLs (s3://, ...) of {FORMAT_TITLES}."
        ),
    ] = ()
    files: tuple[str, ...] = ()
    """For a dataset of the hub: only files whose path matches one of these patterns."""
    name: OrNone[str] = None
    """Name of the chunks; by default that of the corpus or the input."""

    input_format: FormatName = "auto"
    """Format of the input files; auto goes by their names."""
    text_column: OrNone[str] = None
    """Column or JSON field with the text; by default that of the named corpus, or text."""
    id_column: OrNone[str] = None
    """Column or JSON field with the id; by default that of the named corpus; without one a
    document's id is file#position."""
    keep_columns: tuple[str, ...] = ()
    """Further columns to copy into the chunks, as strings."""

    seed: int = 0
    """Decides the permutation."""
    num_chunks: OrNone[int] = None
    """Chunks; by default as many as give each about 256 MB of text."""
    validation_documents: OrNone[int] = None
    """Documents held out for validation, the same whatever the number of chunks; by default 10,000,
    or a tenth of a corpus that has fewer than 20,000."""
    deduplicate: bool = False
    """Keep only the first of documents with exactly the same text."""
    format: Annotated[ChunkFormat, tyro.conf.arg(name="chunk-format")] = "parquet"
    """Format of the chunks; jsonl gives the names of the published recipe."""

    tokenizer: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"Also download a tokenizer, to tokenizer/: {', '.join(TOKENIZERS)}, or any hub "
            "id.",
            help_behavior_hint="",
        ),
    ] = None
    downloads: OrNone[str] = None
    """Directory or URL that keeps downloaded files; by default each is removed when it is read."""
    num_workers: OrNone[int] = None
    """Workers, one CPU each; as many as the cluster has room for by default."""
    sort_bytes: Size = 64 << 20
    """Text that a worker holds in memory and sorts at a time."""
    max_document_bytes: Size = 64 << 20
    """Longer documents are rejected: one has to fit into memory."""
    on_bad_document: Literal["reject", "fail"] = "reject"
    """A broken document is counted and kept in rejects/, or stops the job."""
    overwrite: bool = False
    """Start again: remove what an earlier run left in the output."""
    retry_failed: bool = False
    """Start again if an earlier run could not read a file to its end: where documents go depends on
    all of them."""
    progress_json: OrNone[str] = None
    """File to which a line of JSON is appended per minute: rates, counts and the estimated end."""
    json: bool = False
    """Print the result as JSON."""

    def check(self) -> None:
        """
        Raises:
            ConfigError: a value, or a combination of values, makes no sense; names the flag.
        """
        if (self.corpus is None) == (not self.input):
            raise ConfigError("--corpus: give either a corpus or --input, not both")
        if self.input and self.files:
            raise ConfigError("--files: chooses among files of a --corpus; name yours in --input")
        if self.input and self.downloads:
            raise ConfigError("--downloads: only files of a --corpus are downloaded")
        check_at_least(
            self,
            num_chunks=1,
            validation_documents=0,
            num_workers=1,
            sort_bytes=1,
            max_document_bytes=1,
        )
        if (self.num_chunks or 1) > MOST_CHUNKS:
            raise ConfigError(f"--num-chunks: at most {MOST_CHUNKS:,}, got {self.num_chunks:,}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ConfigError(f"--seed: must be between 0 and 2**64 - 1, got {self.seed}")
        if self.max_document_bytes > 1 << 30:
            raise ConfigError("--max-document-bytes: at most 1 GiB, what one Arrow row can hold")
        if self.name is not None and not re.fullmatch(r"[\w.-]+", self.name):
            raise ConfigError(f"--name: letters, digits, '.', '-' and '_' only, got {self.name!r}")
        for name in self.keep_columns:
            if name in ("sample_id", "text", "key", "place") or self.keep_columns.count(name) > 1:
                raise ConfigError(f"--keep-columns: {name!r} is in the chunks already, or reserved")

    def find_corpus(self) -> Corpus | None:
        """The corpus of the hub, as changed by other flags; None if the input is files.

        Raises:
            ConfigError: there is no such corpus.
        """
        if self.corpus is None:
            return None
        corpus = find_corpus(self.corpus)
        return replace(
            corpus,
            files=self.files or corpus.files,
            whole=corpus.whole and not self.files,
            format=corpus.format if self.input_format == "auto" else self.input_format,
            text_column=self.text_column or corpus.text_column,
            id_column=self.id_column or corpus.id_column,
        )

    def columns(self, corpus: Corpus | None) -> "Columns":
        """The fields of a record that are wanted."""
        from pipeline.corpus.documents import Columns

        if corpus is not None:
            return Columns(corpus.text_column, corpus.id_column, self.keep_columns)
        return Columns(self.text_column or "text", self.id_column, self.keep_columns)

    @property
    def chunks_called(self) -> str:
        """The name with which the names of chunks begin."""
        if self.name:
            return self.name
        source = PurePosixPath(self.corpus or self.input[0].rstrip("/"))
        known = [part for part in source.parts if not any(magic in part for magic in "*?[:")]
        name = (known or ["corpus"])[-1].partition("@")[0]
        for suffix in sorted(input_suffixes(), key=len, reverse=True):
            name = name.removesuffix(suffix)
        return re.sub(r"[^\w.-]", "_", name).strip(".") or "corpus"

    def content(self) -> dict[str, Any]:
        """The settings that decide what is in the chunks; a resumed run has to share them."""
        names = (
            *("corpus", "files", "input_format", "text_column", "id_column", "keep_columns"),
            *("seed", "num_chunks", "validation_documents", "deduplicate", "format"),
            *("downloads", "max_document_bytes"),
        )
        values = {name: getattr(self, name) for name in names}
        lists = {"files": list(self.files), "keep_columns": list(self.keep_columns)}
        return values | lists | {"name": self.chunks_called}
