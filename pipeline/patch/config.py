"""The configuration of ``jobs/patch_corpus.py``: each field is a flag."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import tyro

from model.checkpoints.files import BUILT_IN
from model.patcher import Patcher
from model.rules import BoundaryRule, find_rule
from pipeline.cli.flags import check_at_least, flag_name
from pipeline.cli.rule_flag import rule_flag
from pipeline.corpus.documents import Columns
from pipeline.corpus.formats import FORMAT_TITLES, FormatName
from pipeline.errors import ConfigError
from pipeline.shards.format import OWN_COLUMNS

NGRAM = "ngram"


@dataclass(frozen=True)
class PatchCorpusConfig:
    """Cut a corpus into entropy patches: text files in, Arrow shards with patch boundaries out.

    A rerun of the same command continues where the last one stopped. Exit status: 0 if everything
    was done, 1 if a file could not be read or the job stopped, 2 if a flag is wrong.
    """

    input: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="PATH [PATH ...]",
            help=f"Files, directories, globs or URLs (s3://, hf://, ...) of {FORMAT_TITLES}.",
        ),
    ]
    output: str
    """Directory or URL for shards, manifest and rejects."""
    entropy_model: str | None = None
    """Directory, URL or hub id of an entropy model. "entropy-1m" and, for CPUs, the far cheaper
    "entropy-conv" come with blt-titan; "ngram" fits a byte n-gram model on a sample of the corpus,
    cheaper still. By default entropy-1m, or ngram if the rule does not look at entropies."""
    format: FormatName = "auto"
    """Format of the input files; auto goes by their names."""
    text_column: str = "text"
    """Column or JSON field with the text."""
    id_column: str | None = None
    """Column or JSON field with the id; documents are called file#position without one."""
    keep_columns: tuple[str, ...] = ()
    """Further columns to copy into the shards, as strings."""

    rule: Annotated[str, rule_flag("Where patches start.")] = "global"
    threshold: float | None = None
    """Nats: entropy (global, combined) or its rise (monotonic) above which a patch starts."""
    target_patch_size: float | None = None
    """Mean bytes per patch, instead of a threshold, which is then calibrated on a sample."""
    threshold_add: float | None = None
    """Nats: rise of the entropy that the combined rule asks for as well."""
    patch_size: float | None = None
    """Tokens per patch, for top-k and static."""
    max_patch_length: int | None = None
    """The most tokens per patch; longer patches are cut."""
    reset_at_newline: bool = False
    """The entropy model's context starts again after each newline."""
    published_rules: bool = False
    """Apply monotonic, combined and static exactly as the published code, see model/rules.py."""

    num_workers: int | None = None
    """Workers, one CPU each; as many as the cluster has room for (autoscaling) by default."""
    gpus_per_worker: float | None = None
    """GPUs per worker; 1 by default if the cluster has any and the model can use it."""
    seed: int = 0
    """Chooses the sample that calibrates the threshold and that the n-gram model is fitted on."""
    calibration_bytes: int = 2 << 20
    """Bytes of the sample that the threshold is calibrated on."""
    ngram_bytes: int = 64 << 20
    """Bytes of the sample that the n-gram model is fitted on."""
    shard_bytes: int = 64 << 20
    """Bytes of text per shard, about; large files are split into pieces of this size."""
    max_document_bytes: int = 64 << 20
    """Longer documents are rejected, because a document has to fit into memory."""
    keep_entropies: bool = True
    """Store the entropies, so that shards can be re-patched without the model."""
    on_bad_document: Literal["reject", "fail"] = "reject"
    """A broken document is counted and stored in rejects/, or stops the job."""
    overwrite: bool = False
    """Start again: remove what an earlier run left in the output."""
    retry_failed: bool = False
    """Read the files again that an earlier run could not read to their end."""
    verify: bool = False
    """When done, read everything back and check it."""
    json: bool = False
    """Print the result as JSON."""

    @property
    def scored_with(self) -> str:
        """The entropy model that is used: the one asked for, or the default."""
        return self.entropy_model or (BUILT_IN if self.boundary_rule.reads_entropies else NGRAM)

    @property
    def columns(self) -> Columns:
        """The columns of the input that are used."""
        return Columns(self.text_column, self.id_column, self.keep_columns)

    @property
    def calibrates(self) -> bool:
        """True if the threshold is calibrated, not given."""
        return self.target_patch_size is not None

    def check(self) -> None:
        """Check all values before any work begins.

        Raises:
            ConfigError: a value, or a combination of values, makes no sense; names the flag.
        """
        has_threshold = self.boundary_rule.compares is not None
        if has_threshold and (self.threshold is None) != self.calibrates:
            raise ConfigError(
                f"--threshold: the {self.rule} rule needs either it or --target-patch-size "
                "(4.5 is usual), not both"
            )
        if self.calibrates and not has_threshold:
            raise ConfigError(f"--target-patch-size: the {self.rule} rule has no threshold")
        for name in ("threshold", "threshold_add"):
            if not math.isfinite(getattr(self, name) or 0):
                raise ConfigError(f"{flag_name(name)}: must be a finite number of nats")
        if self.calibrates and not 0.5 <= float(self.target_patch_size or 0) <= 10_000:
            raise ConfigError(f"--target-patch-size: {self.target_patch_size} bytes is no size")
        _ = self.patcher  # built here for its own checks
        check_at_least(
            self,
            num_workers=1,
            calibration_bytes=1,
            ngram_bytes=1,
            shard_bytes=1,
            max_document_bytes=1,
        )
        if self.max_document_bytes > 1 << 30:
            raise ConfigError("--max-document-bytes: at most 1 GiB, what one Arrow row can hold")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"--gpus-per-worker: must not be negative: {self.gpus_per_worker}")
        columns = [self.text_column, *self.keep_columns]
        for name in self.keep_columns:
            if name in OWN_COLUMNS or columns.count(name) > 1:
                raise ConfigError(f"--keep-columns: {name!r} is in the shards already")

    @property
    def boundary_rule(self) -> BoundaryRule:
        """The facts about the rule.

        Raises:
            ConfigError: there is no such rule.
        """
        try:
            return find_rule(self.rule)
        except ValueError as error:
            raise _naming_flag(error) from error

    @cached_property
    def patcher(self) -> Patcher:
        """The boundary rule with its settings; its threshold is 0 until it is calibrated.

        Raises:
            ConfigError: the flags of the rule do not fit together.
        """
        try:
            return Patcher(
                threshold=0.0 if self.calibrates else self.threshold,
                rule=self.rule,
                threshold_add=self.threshold_add,
                patch_size=self.patch_size,
                max_patch_length=self.max_patch_length,
                published=self.published_rules,
            )
        except ValueError as error:
            raise _naming_flag(error) from error

    def content(self) -> dict[str, Any]:
        """The settings that decide what is in the shards: those that a resumed run must share."""
        names = (
            *("entropy_model", "format", "text_column", "id_column", "keep_columns"),
            *("rule", "threshold", "target_patch_size", "threshold_add", "patch_size"),
            *("max_patch_length", "reset_at_newline", "published_rules", "seed"),
            *("calibration_bytes", "ngram_bytes", "shard_bytes", "max_document_bytes"),
            "keep_entropies",
        )
        values = {name: getattr(self, name) for name in names}
        return values | {
            "entropy_model": self.scored_with,
            "keep_columns": list(self.keep_columns),
        }


def _naming_flag(error: ValueError) -> ConfigError:
    """An error whose message begins with a setting's name, naming the flag instead."""
    name, _, rest = str(error).partition(":")
    return ConfigError(f"{flag_name(name)}:{rest}")
