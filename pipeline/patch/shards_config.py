"""The flags of the jobs that make patch shards: of text (``patch_corpus.py``), or of text that
comes with entropies (``adopt_shards.py``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from model.patcher import Patcher
from model.rules import BoundaryRule, find_rule
from pipeline.cli.flags import check_at_least, flag_name
from pipeline.cli.optional import OrNone
from pipeline.cli.rule_flag import rule_flag
from pipeline.cli.sizes import Size
from pipeline.corpus.formats import FORMAT_TITLES, FormatName
from pipeline.errors import ConfigError
from pipeline.shards.names import OWN_COLUMNS, PATCH_LENGTHS

if TYPE_CHECKING:
    from pipeline.bpe.byte_level import BPE
    from pipeline.corpus.documents import Columns


@dataclass(frozen=True)
class ShardsConfig:
    """Flags that all jobs have which make patch shards."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "--format": "--input-format",
        "--no-keep-entropies": "--drop-entropies",
    }

    input: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="PATH [PATH ...]",
            help=f"Files, directories, globs or URLs (s3://, hf://, ...) of {FORMAT_TITLES}.",
        ),
    ]
    output: str
    """Directory or URL for shards, manifest and rejects."""
    format: Annotated[FormatName, tyro.conf.arg(name="input-format")] = "auto"
    """Format of the input files; auto goes by their names."""
    text_column: str = "text"
    """Column or JSON field with the text."""
    id_column: OrNone[str] = None
    """Column or JSON field with the id; by default the first of sample_id, title, qid, paper_id,
    path, url, id, doc_id and the like that all files have, or else file#position."""
    keep_columns: tuple[str, ...] = ()
    """Further columns to copy into the shards, as strings."""

    rule: Annotated[str, rule_flag("Where patches start.", ("bpe", "given"))] = "global"
    threshold: OrNone[float] = None
    """Nats: entropy (global, combined) or its rise (monotonic) above which a patch starts."""
    target_patch_size: OrNone[float] = None
    """Mean bytes per patch, instead of a threshold, which is then calibrated on a sample."""
    threshold_add: OrNone[float] = None
    """Nats: rise of the entropy that the combined rule asks for as well."""
    patch_size: OrNone[float] = None
    """Tokens per patch, for top-k and static."""
    max_patch_length: OrNone[int] = None
    """The most tokens per patch; longer patches are cut."""
    published_rules: bool = False
    """Apply monotonic, combined and static exactly as the published code, see model/rules.py."""
    tokenizer: OrNone[str] = None
    """For bpe: llama3, gpt2, a hub id, a tokenizer.json or a directory that holds one; byte-level,
    and a patch per token."""
    patch_lengths_column: OrNone[str] = None
    """For given: column with a list of patch lengths for each document, of its bytes, or of BOS
    alone, bytes and EOS; patch_lengths by default."""
    patch_offsets_column: OrNone[str] = None
    """For given: instead, a column with a list of the bytes of the text at which patches start."""

    num_workers: OrNone[int] = None
    """Workers, one CPU each; as many as the cluster has room for (autoscaling) by default."""
    seed: int = 0
    """Chooses the sample that calibrates the threshold and that the n-gram model is fitted on."""
    calibration_bytes: Size = 2 << 20
    """The most text that the threshold is calibrated on; cheap entropy models take up to 8 times as
    much, if they have to, to meet the target within 1 %."""
    shard_bytes: Size = 64 << 20
    """The most bytes of text per shard, about. Small corpora get smaller ones, so that all workers
    have work; many small files share shards."""
    max_document_bytes: Size = 64 << 20
    """Longer documents are rejected, because a document has to fit into memory."""
    drop_entropies: bool = False
    """Store no entropies: a fifth of the size, but shards then cannot be re-patched."""
    on_bad_document: Literal["reject", "fail"] = "reject"
    """A broken document is counted and stored in rejects/, or stops the job."""
    overwrite: bool = False
    """Start again: remove what an earlier run left in the output."""
    retry_failed: bool = False
    """Read the files again that an earlier run could not read to their end."""
    verify: bool = False
    """When done, read everything back and check it."""
    progress_json: OrNone[str] = None
    """File to which a line of JSON is appended per minute: rates, counts and the estimated end."""
    json: bool = False
    """Print the result as JSON."""
    usual_id: Annotated[str | None, tyro.conf.Suppress] = None
    """No flag: the column that gives ids where nobody named one, once the input is known."""

    @property
    def keep_entropies(self) -> bool:
        """True if the shards store the entropies."""
        return not self.drop_entropies

    @property
    def reset_at_newline(self) -> bool:
        """True if the entropy model's context starts again after each newline."""
        return False

    @property
    def columns(self) -> "Columns":
        """The columns of the input that are used."""
        from pipeline.corpus.documents import Columns

        lengths = self.patch_lengths_column
        if self.rule == "given" and self.patch_offsets_column is None:
            lengths = lengths or PATCH_LENGTHS
        return Columns(
            self.text_column,
            self.id_column,
            self.keep_columns,
            usual_id=self.usual_id,
            patch_lengths=lengths,
            patch_offsets=self.patch_offsets_column,
        )

    @property
    def split_bytes(self) -> int:
        """Bytes of text per split, about: what a file's size tells of them."""
        return self.shard_bytes

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
        if not self.calibrates and self.calibration_bytes != ShardsConfig.calibration_bytes:
            raise ConfigError(
                "--calibration-bytes: nothing is calibrated without --target-patch-size; "
                "leave it out"
            )
        if self.calibrates and not 0.5 <= float(self.target_patch_size or 0) <= 10_000:
            raise ConfigError(f"--target-patch-size: {self.target_patch_size} bytes is no size")
        self._check_ends()
        _ = self.patcher  # built here for its own checks
        check_at_least(
            self, num_workers=1, seed=0, calibration_bytes=1, shard_bytes=1, max_document_bytes=1
        )
        if self.max_document_bytes > 1 << 30:
            raise ConfigError("--max-document-bytes: at most 1 GiB, what one Arrow row can hold")
        columns = [self.text_column, *self.columns.numbers, *self.keep_columns]
        for name in self.keep_columns:
            if name in OWN_COLUMNS or columns.count(name) > 1:
                raise ConfigError(f"--keep-columns: {name!r} is in the shards already")

    def _check_ends(self) -> None:
        """
        Raises:
            ConfigError: a rule lacks the place that its boundaries come from, or has one that it
                does not use.
        """
        given = [
            flag_name(name)
            for name in ("patch_lengths_column", "patch_offsets_column")
            if getattr(self, name) is not None
        ]
        if given and self.rule != "given":
            raise ConfigError(f"{given[0]}: only the given rule reads it (--rule given)")
        if len(given) > 1:
            raise ConfigError(f"{given[1]}: give either it or {given[0]}, not both")
        if (self.rule == "bpe") != (self.tokenizer is not None):
            raise ConfigError(
                "--tokenizer: the bpe rule needs one: llama3, gpt2, a hub id or a tokenizer.json"
                if self.rule == "bpe"
                else "--tokenizer: only the bpe rule reads it (--rule bpe)"
            )

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

    @property
    def bpe(self) -> "BPE | None":
        """The tokenizer whose tokens become patches; None for other rules than bpe.

        Raises:
            ConfigError: there is no such tokenizer, or it cannot be used.
        """
        if self.tokenizer is None:
            return None
        from pipeline.bpe.byte_level import load_bpe

        return load_bpe(self.tokenizer)

    @cached_property
    def patcher(self) -> Patcher:
        """The boundary rule with its settings; its threshold is 0 until it is calibrated.

        Raises:
            ConfigError: the flags of the rule do not fit together.
        """
        bpe = self.bpe
        try:
            return Patcher(
                threshold=0.0 if self.calibrates else self.threshold,
                rule=self.rule,
                threshold_add=self.threshold_add,
                patch_size=self.patch_size,
                max_patch_length=self.max_patch_length,
                published=self.published_rules,
                tokenizer=None if bpe is None else bpe.sha256,
            )
        except ValueError as error:
            raise _naming_flag(error) from error

    def content(self) -> dict[str, Any]:
        """The settings that decide what is in the shards: those that a resumed run must share."""
        names = (
            *("format", "text_column", "id_column", "keep_columns"),
            *("rule", "threshold", "target_patch_size", "threshold_add", "patch_size"),
            *("max_patch_length", "published_rules", "seed", "reset_at_newline"),
            *("patch_lengths_column", "patch_offsets_column"),
            *("calibration_bytes", "shard_bytes", "max_document_bytes", "keep_entropies"),
        )
        values = {name: getattr(self, name) for name in names}
        return values | {
            "keep_columns": list(self.keep_columns),
            "tokenizer sha256": self.patcher.tokenizer,
        }


def _naming_flag(error: ValueError) -> ConfigError:
    """An error whose message begins with a setting's name, naming the flag instead."""
    name, _, rest = str(error).partition(":")
    return ConfigError(f"{flag_name(name)}:{rest}")
