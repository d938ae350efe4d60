"""The manifest of an export, which says that all of it is there."""

from dataclasses import asdict
from typing import Any

from pipeline.export.config import ExportShardsConfig
from pipeline.export.exported_file import ExportedFile
from pipeline.export.layout import Layout
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.checked_json import to_checked_json
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import EXPORT, MANIFEST

PROVENANCE = ("tokenizer", "entropy_model", "patcher", "sources")
"""Keys of a shard set's manifest that an export's manifest takes over."""


def write_export_manifest(
    files: list[ExportedFile],
    statistics: PatchStatistics,
    shards: ShardSet,
    layout: Layout,
    config: ExportShardsConfig,
    output: OutputDirectory,
) -> None:
    """Write what the layout keeps beside the data, then the manifest.

    Args:
        files: without histograms, which would make a manifest of gigabytes.
        statistics: the sum of the files'.
    """
    for name in layout.companions([file.path for file in files]):
        output.write(name, b"")
    provenance: dict[str, Any] = {
        key: value for key, value in shards.manifest.items() if key in PROVENANCE
    }
    if config.threshold is not None:
        provenance["patcher"] = provenance["patcher"] | {"threshold": config.threshold}
    provenance = layout.public(provenance)
    layout.finish(files, provenance, statistics, shards, output, config)
    manifest = {
        "stage": EXPORT,
        "format": layout.name,
        **provenance,
        "statistics": statistics.to_json(),
        "files": [asdict(file) for file in files],
    }
    output.write(MANIFEST, to_checked_json(manifest))
