"""The configuration of ``jobs/export_shards.py``: each field is a flag."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import tyro

from pipeline.cli.flags import check_at_least, flag_name
from pipeline.cli.optional import OrNone
from pipeline.errors import ConfigError
from pipeline.export.layouts import LAYOUTS

if TYPE_CHECKING:
    from pipeline.shards.shard_set import ShardSet

FOLDER = re.compile(r"[^/\0]+")


@dataclass(frozen=True)
class ExportShardsConfig:
    """Copy a shard set into another layout.

    parquet: one file per shard, in data/, for any program that reads Parquet. datasets: these files
    with names and a dataset card that datasets.load_dataset understands. hub: a datasets export,
    pushed to a dataset repository. reference: the Arrow files that facebookresearch/blt's own
    loader reads.

    A rerun of the same command continues where the last one stopped. Exit status: 0 if everything
    was done, 1 if a shard is damaged or the job stopped, 2 if a flag is wrong.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"--format": "--layout"}

    shards: str
    """Shard set of patch_corpus.py, directory or URL."""
    output: str
    """Directory or URL to write to; for hub: owner/name of the dataset repository."""
    # The choices are looked up whenever a command line is read: layouts may be added meanwhile.
    format: Annotated[
        str,
        tyro.conf.arg(
            name="layout", constructor_factory=lambda: cast(type, Literal[tuple(LAYOUTS)])
        ),
    ]
    """Layout to write."""
    drop_entropies: bool = False
    """Leave the entropies out: four fifths of the size, but then no threshold can be changed."""
    threshold: OrNone[float] = None
    """Nats: re-patch from the stored entropies, with the rule that the shards were patched with."""
    corpus: OrNone[str] = None
    """reference: name of the corpus, in directory and file names; by default that of the chunks
    (NAME.chunk.NN...), or of the shard set's directory."""
    entropy_model_name: OrNone[str] = None
    """reference: name of the entropy model's directory; by default that of the model."""
    staging: OrNone[str] = None
    """hub: directory or URL that files are written to before they are pushed, and stay in; ./
    owner--name by default."""
    private: bool = False
    """hub: make the repository private; one that is there and public is refused."""
    num_workers: OrNone[int] = None
    """Workers, one CPU each; as many as the cluster has room for (autoscaling) by default."""
    overwrite: bool = False
    """Start again: remove what an earlier export left in the output (hub: in --staging)."""
    verify: bool = False
    """When done, read every file back and compare hashes of file and rows."""
    progress_json: OrNone[str] = None
    """File to which a line of JSON is appended per minute: rates, counts and the estimated end."""
    json: bool = False
    """Print the result as JSON."""

    @property
    def repatches(self) -> bool:
        """True if the documents are re-patched from the stored entropies."""
        return self.threshold is not None

    def check(self) -> None:
        """
        Raises:
            ConfigError: a value, or a combination of values, makes no sense; names the flag.
        """
        for layout in LAYOUTS.values():
            for name in set(layout.own_flags).difference(LAYOUTS[self.format].own_flags):
                if getattr(self, name):
                    raise ConfigError(f"{flag_name(name)}: only --layout {layout.name} uses it")
        LAYOUTS[self.format].check(self)
        for name in ("corpus", "entropy_model_name"):
            value = getattr(self, name)
            if value is not None and (not FOLDER.fullmatch(value) or value in (".", "..")):
                raise ConfigError(f"{flag_name(name)}: {value!r} is no directory's name")
        check_at_least(self, num_workers=1)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError("--threshold: must be a finite number of nats")

    def check_shards(self, shards: "ShardSet") -> None:
        """
        Raises:
            ConfigError: the set lacks what was asked for.
        """
        needed = self.repatches or LAYOUTS[self.format].needs_entropies
        if needed and not shards.has_entropies:
            asked = "--threshold" if self.repatches else f"--layout {self.format}"
            raise ConfigError(f"{asked}: {self.shards} holds no entropies")
        if self.repatches and not shards.patcher.has_threshold:
            raise ConfigError(f"--threshold: the {shards.patcher.rule} rule has none")

    def content(self) -> dict[str, Any]:
        """The settings that decide what is written: those that a resumed export must share."""
        names = ("drop_entropies", "threshold", "corpus", "entropy_model_name")
        settings = {"format": LAYOUTS[self.format].written_as}
        return settings | {name: getattr(self, name) for name in names}
