"""What is told of an export: its manifest and, for the hub, its card."""

from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from pipeline.export.config import ExportShardsConfig
from pipeline.export.dataset_card import write_card
from pipeline.export.export_shard import ExportedFile
from pipeline.shards.manifest import EXPORT, MANIFEST
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.output import OutputDirectory, to_json


def without_places(made: dict[str, Any]) -> dict[str, Any]:
    """What others may see: without directories and buckets of those who made it."""
    sources = [
        {
            **source,
            "name": _public(source["name"]),
            "url": _public(source["url"]) if _is_public(source["url"]) else None,
        }
        for source in made["sources"]
    ]
    model = made["entropy_model"]
    # A hub id is two words; a directory may look like one.
    source = _public(str(model.get("source", "")), directories=1)
    return made | {"sources": sources, "entropy_model": model | {"source": source}}


def _is_public(url: str) -> bool:
    return url.startswith(("hf://", "http://", "https://"))


def _public(name: str, directories: int = 100) -> str:
    """Without where it lies, if it tells: paths below an input may stay."""
    if _is_public(name):
        return name.partition("?")[0].partition("#")[0]
    private = name.startswith(("/", ".", "~")) or "://" in name or name.count("/") > directories
    return PurePosixPath(name).name if private else name


def finish(
    files: list[ExportedFile],
    shards: ShardSet,
    config: ExportShardsConfig,
    output: OutputDirectory,
) -> None:
    """Write the card, where there is one, and the manifest, which says that all is there."""
    statistics = PatchStatistics()
    for file in files:
        statistics += PatchStatistics.from_json(file.statistics)
    kept = ("tokenizer", "entropy_model", "patcher", "sources")
    made: dict[str, Any] = {k: value for k, value in shards.manifest.items() if k in kept}
    if config.threshold is not None:
        made["patcher"] = made["patcher"] | {"threshold": config.threshold}
    if config.has_card:
        made = without_places(made)
        name = (config.output if config.on_hub else output.url).rpartition("/")[2]
        write_card(name, files, made, statistics, shards, output)
    manifest = {
        "stage": EXPORT,
        "format": config.format,
        **made,
        "statistics": statistics.to_json(),
        "files": [asdict(file) for file in files],
    }
    output.write(MANIFEST, to_json(manifest))
