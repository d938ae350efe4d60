"""The configuration of ``jobs/export_shards.py``: each field is a flag."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.shards.shard_set import ShardSet

ExportFormat = Literal["parquet", "datasets", "reference", "hub"]
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
FOLDER = re.compile(r"[^/\0]+")


@dataclass(frozen=True)
class ExportShardsConfig:
    """Copy a shard set into another layout.

    parquet: one file a shard, in data/, which whatever reads Parquet can open. datasets: the same
    with names and a dataset card that datasets.load_dataset understands. hub: that, pushed to a
    dataset repository. reference: the Arrow files that facebookresearch/blt's own loader reads.

    A rerun of the same command goes on where the last one stopped. Exit status: 0 if everything was
    done, 1 if a shard is damaged or the job stopped, 2 if a flag is wrong.
    """

    shards: str
    """Shard set of patch_corpus.py, directory or URL."""
    output: str
    """Directory or URL to write to; for hub: owner/name of the dataset repository."""
    format: ExportFormat
    """Layout to write."""
    drop_entropies: bool = False
    """Leave the entropies out: four fifths of the size, but then no threshold can be changed."""
    threshold: float | None = None
    """Nats: cut anew from the stored entropies, with the rule that the shards were cut with."""
    corpus: str | None = None
    """reference: name of the corpus, in directory and file names; by default that of the chunks
    (NAME.chunk.NN...), or of the shard set's directory."""
    entropy_model_name: str | None = None
    """reference: name of the entropy model's directory; by default that of the model."""
    staging: str | None = None
    """hub: directory or URL that files are written to before they are pushed, and stay in; ./
    owner--name by default."""
    private: bool = False
    """hub: make the repository private, if it is new."""
    num_workers: int | None = None
    """Workers, one CPU each; as many as the cluster has room for (autoscaling) by default."""
    overwrite: bool = False
    """Start anew: remove what an earlier export left in the output (hub: in --staging)."""
    verify: bool = False
    """When done, read every file back and compare hashes of file and rows."""
    json: bool = False
    """Print the result as JSON."""

    @property
    def on_hub(self) -> bool:
        return self.format == "hub"

    @property
    def has_card(self) -> bool:
        return self.format in ("datasets", "hub")

    @property
    def directory(self) -> str:
        """Where files are written: the output, or what is pushed from."""
        return (self.staging or self.output.replace("/", "--")) if self.on_hub else self.output

    def check(self) -> None:
        """
        Raises:
            ConfigError: a value, or a combination of values, makes no sense; names the flag.
        """
        reference = self.format == "reference"
        for name, belongs, needed in (
            ("corpus", reference, "reference"),
            ("entropy_model_name", reference, "reference"),
            ("staging", self.on_hub, "hub"),
            ("private", self.on_hub, "hub"),
        ):
            if getattr(self, name) and not belongs:
                raise ConfigError(f"--{name.replace('_', '-')}: only --format {needed} uses it")
        if reference and self.drop_entropies:
            raise ConfigError("--drop-entropies: the reference layout is made of them")
        if reference and self.threshold is not None:
            raise ConfigError(
                "--threshold: the reference layout holds no patch lengths; its loader takes a "
                "threshold of its own"
            )
        for name in ("corpus", "entropy_model_name"):
            value = getattr(self, name)
            if value is not None and (not FOLDER.fullmatch(value) or value in (".", "..")):
                raise ConfigError(f"--{name.replace('_', '-')}: {value!r} is no directory's name")
        if self.on_hub and not REPOSITORY.fullmatch(self.output):
            raise ConfigError(f"--output {self.output}: a repository is called owner/name")
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigError(f"--num-workers: must be at least 1, got {self.num_workers}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError("--threshold: must be a finite number of nats")

    def check_shards(self, shards: ShardSet) -> None:
        """
        Raises:
            ConfigError: the set lacks what was asked for.
        """
        stored = "entropies" in shards.manifest["columns"]
        if not stored and (self.threshold is not None or self.format == "reference"):
            flag = "--threshold" if self.threshold is not None else "--format reference"
            raise ConfigError(f"{flag}: {self.shards} holds no entropies")
        if self.threshold is not None and not shards.patcher.has_threshold:
            raise ConfigError(f"--threshold: the {shards.patcher.rule} rule has none")

    def content(self) -> dict[str, Any]:
        """The settings that decide what is written: those that a resumed export must share."""
        names = ("format", "drop_entropies", "threshold", "corpus", "entropy_model_name")
        # What is staged for the hub is the datasets layout, and can be exported as such.
        return {name: getattr(self, name) for name in names} | {
            "format": "datasets" if self.on_hub else self.format
        }
