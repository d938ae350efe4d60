"""The configuration of ``jobs/evaluate.py``: each field is a flag."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from pipeline.cli.flags import flag_name
from pipeline.cli.optional import OrNone
from pipeline.cli.sizes import Size
from pipeline.corpus.formats import FORMAT_TITLES, FormatName
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.corpus.documents import Columns


OF_TEXT = ("format", "text_column", "id_column", "max_document_bytes", "on_bad_document")
"""Fields that only say how text is read."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How well a model predicts text: bits per byte, in all and by source, or harness tasks.

    Bits per byte: minus the log2-probabilities of all bytes and of the end of each document, given
    everything before them in it, divided by the UTF-8 bytes. The interval is a bootstrap over
    documents.

    Long documents are read in windows of --context bytes, each half a context after the one before.
    The first window is scored from its start, each other window only where it is new. So every byte
    is scored exactly once, with at least half a context before it, and memory stays bounded.

    Exit status: 0 if everything was done, 1 if a file could not be read or the job stopped, 2 if a
    flag is wrong.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"--format": "--input-format"}

    model: str
    """Directory, URL or hub id of a BLT, or of a (transformer) entropy model."""
    input: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="PATH [PATH ...]",
            help=f"Files, directories, globs or URLs (s3://, hf://, ...) of {FORMAT_TITLES}.",
        ),
    ] = ()
    shards: OrNone[str] = None
    """Directory or URL of a finished shard set to read instead of text; its patches are used."""
    harness_tasks: OrNone[str] = None
    """Tasks of lm-evaluation-harness to run instead, TASK[,TASK...]: names of tasks and groups, or
    patterns of names, or paths of YAML files. noised_hellaswag, manipulation and
    sentence_translation come with this package."""
    harness_data: OrNone[str] = None
    """JSONL file or URL with the data of a task that comes with this package."""

    entropy_model: OrNone[str] = None
    """Directory, URL or hub id of the entropy model that places the patches in text; by default the
    one that lies with the model, or belongs to it on the hub."""
    rule: OrNone[str] = None
    """Name of the rule that places the boundaries, instead of the checkpoint's, or which of its
    rules where it was trained on sets of several."""
    threshold: OrNone[float] = None
    """Nats above which a patch starts, instead of the checkpoint's threshold. Shards are re-patched
    with it from their stored entropies."""
    reset_at_newline: bool = False
    """The entropy model's context starts again after each newline; by default as the checkpoint
    records it."""
    allow_other_entropies: bool = False
    """Go on with entropies of another model than the one that the checkpoint was trained with."""
    context: int = 8192
    """Bytes per window."""

    format: Annotated[FormatName, tyro.conf.arg(name="input-format")] = "auto"
    """Format of the input files; auto goes by their names."""
    text_column: str = "text"
    """Column or JSON field with the text."""
    id_column: OrNone[str] = None
    """Column or JSON field with the id; documents are called file#position without one."""
    by: OrNone[str] = None
    """Column or JSON field that tells the source of a document; by default its file's name, or the
    directory (DIRECTORY/*) of small files that share a shard."""
    max_document_bytes: Size = 64 << 20
    """Longer documents are rejected, because a document has to fit into memory."""
    on_bad_document: Literal["reject", "fail"] = "reject"
    """A broken document is counted and listed at the end, or stops the job."""

    confidence: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Chooses the documents of the bootstrap, and what harness tasks sample."""
    json: bool = False
    """Print the result as JSON."""

    @property
    def columns(self) -> "Columns":
        from pipeline.corpus.documents import Columns

        return Columns(self.text_column, self.id_column, (self.by,) if self.by else ())

    def check(self) -> None:
        """
        Raises:
            ConfigError: a value, or a combination of values, makes no sense; names the flag.
        """
        given = [
            f"--{name}"
            for name, value in (
                ("input", self.input),
                ("shards", self.shards),
                ("harness-tasks", self.harness_tasks),
            )
            if value
        ]
        if len(given) != 1:
            raise ConfigError(
                f"{' and '.join(given) or '--input'}: give one of --input (text), --shards and "
                "--harness-tasks"
            )
        self._check_used(given[0])
        for name in ("entropy_model", "rule", "reset_at_newline"):
            if self.shards and getattr(self, name):
                raise ConfigError(
                    f"{flag_name(name)}: the patches of --shards are there already; leave it out"
                )
        if self.harness_data and not self.harness_tasks:
            raise ConfigError("--harness-data: is the data of --harness-tasks; give these, too")
        if self.context < 2:
            raise ConfigError(f"--context: must be at least 2 bytes, got {self.context}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"--confidence: must lie between 0 and 1, got {self.confidence}")
        if self.seed < 0:
            raise ConfigError(f"--seed: must not be negative, got {self.seed}")
        if self.threshold is not None and not isfinite(self.threshold):
            raise ConfigError(f"--threshold: must be a finite number, got {self.threshold}")
        if not 1 <= self.max_document_bytes <= 1 << 30:
            raise ConfigError(
                f"--max-document-bytes: from 1 to 1 GiB, got {self.max_document_bytes}"
            )

    def _check_used(self, source: str) -> None:
        """
        Args:
            source: the flag that says what is read.

        Raises:
            ConfigError: a flag is given that changes nothing with it.
        """
        readers: dict[str, tuple[str, ...]] = dict.fromkeys(OF_TEXT, ("--input",))
        readers |= dict.fromkeys(("by", "confidence"), ("--input", "--shards"))
        for field in fields(self):
            allowed = readers.get(field.name, (source,))
            if source not in allowed and getattr(self, field.name) != field.default:
                flag = flag_name("input_format" if field.name == "format" else field.name)
                raise ConfigError(f"{flag}: only {' and '.join(allowed)} read it; leave it out")
