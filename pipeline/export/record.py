"""The record of an export: which files it writes, and from which shard set."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from pipeline.errors import ConfigError
from pipeline.export.config import ExportShardsConfig
from pipeline.export.export_shard import Piece
from pipeline.export.exported_file import ENTRIES, ExportedFile
from pipeline.export.hub_upload import PUSHED
from pipeline.export.layout import Layout
from pipeline.export.layouts import LAYOUTS
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.lease import LEASES
from pipeline.storage.output import TEMPORARY, OutputDirectory
from pipeline.storage.run_record import EXPORT, MANIFEST, RunRecord, Written

READ_TOGETHER = 1000
"""Commit records that are held at a time."""


@dataclass(frozen=True)
class ExportRun(RunRecord):
    """A planned run of ``export_shards.py``."""

    stage = EXPORT

    settings: dict[str, Any]
    paths: dict[str, str]
    """Path below the output of each shard's file, by the name of the shard."""

    @classmethod
    def plan(cls, pieces: list[Piece], shards: ShardSet, config: ExportShardsConfig) -> Self:
        manifest = hashlib.sha256(shards.output.read(MANIFEST)).hexdigest()
        settings = config.content() | {"shards (sha256 of the manifest)": manifest}
        return cls(settings, {piece.entry.name: piece.path for piece in pieces})

    def to_json(self) -> dict[str, Any]:
        return {"files": [{"name": name, "path": path} for name, path in self.paths.items()]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(values["content"], {file["name"]: file["path"] for file in values["files"]})

    @classmethod
    def written(cls, values: dict[str, Any], output: OutputDirectory) -> Written:
        if not values:
            return Written((ENTRIES,))
        layout = LAYOUTS[values["content"]["format"]]
        paths = [file["path"] for file in values["files"]]
        marks = [mark for path in paths for mark in layout.marks(path)]
        beside = [*layout.card_files, *layout.companions(paths)]
        return Written((ENTRIES,), [*beside, *marks, *paths])

    def check_begun(self, output: OutputDirectory, flag: str, *, overwrite: bool) -> None:
        """
        Args:
            overwrite: whether an earlier export is to be removed.

        Raises:
            PipelineError: the output holds something else, or another export that is to stay.
        """
        where = f"{flag} {output.url}"
        if overwrite:
            begun = output.exists(self.path)
            self.check_removable(output, flag)
        else:
            run = self.resume(output, flag)
            begun = run is not None
            if run is not None:
                run.check_settings(where, self.settings)
        others = set() if begun else set(output.names()) - {TEMPORARY, PUSHED, LEASES}
        # Some object stores list directories for a while after their last file was removed.
        if others and any(path.partition("/")[0] in others for path in output.sizes()):
            raise ConfigError(f"{where}: is not empty, and was not begun by an export")


def committed_files(
    names: Collection[str], layout: Layout, output: OutputDirectory
) -> tuple[dict[str, ExportedFile], PatchStatistics]:
    """Files that were written and are still there whole, by the name of their shard, and the sum of
    their statistics. The files come without histograms: those of 200,000 would be 4 GB.

    Args:
        names: of the shards that are exported.
    """
    sizes = output.sizes()
    written = [name for name in output.names(ENTRIES) if name.removesuffix(".json") in names]
    files, statistics = dict[str, ExportedFile](), PatchStatistics()
    for start in range(0, len(written), READ_TOGETHER):
        read = output.read_all_json(ENTRIES, written[start : start + READ_TOGETHER])
        for file in (ExportedFile(**values) for values in read.values()):
            marked = all(mark in sizes for mark in layout.marks(file.path))
            if marked and sizes.get(file.path) == file.bytes:
                files[file.name] = file.without_histograms()
                statistics += PatchStatistics.from_json(file.statistics)
    return files, statistics
