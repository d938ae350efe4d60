"""The card of an exported dataset: what it is, its figures, how to load it."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import yaml
from pyarrow import Schema

from pipeline.export.exported_file import ExportedFile
from pipeline.report.config import CONTEXT_BYTES, TARGETS
from pipeline.report.set_counts import Provenance, SetCounts
from pipeline.report.set_figures import set_figures
from pipeline.shards.format import ENTROPIES, PATCH_LENGTHS, SAMPLE_ID, TEXT
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.output import OutputDirectory

CARD, PICTURES = "README.md", "pictures"
CARD_PLOTS = ("threshold", "patch-lengths", "entropies")
"""The plots of a report that go beside the card."""
COLUMNS = {
    SAMPLE_ID: "the document's id",
    TEXT: "its text",
    ENTROPIES: "nats, one per token (BOS, bytes, EOS): the entropy of the prediction after it",
    PATCH_LENGTHS: "tokens of each patch; they sum to the bytes of the text and 2",
}


def write_card(
    name: str,
    files: Sequence[ExportedFile],
    made: dict[str, Any],
    statistics: PatchStatistics,
    shards: ShardSet,
    output: OutputDirectory,
) -> None:
    """Write the card of an export, and its plots where the shards' manifest has what they need.

    Args:
        name: the dataset's name.
        made: ``patcher``, ``entropy_model`` and ``sources`` of the exported documents.
        statistics: counts over these documents.
    """
    pictures = {}
    if files and shards.summary is not None:  # pictures alone would be taken for the data
        from pipeline.report.plots import PLOTS, png  # not before a card is written: it takes long

        provenance = Provenance(made["patcher"], made["entropy_model"])
        # Entropies that the shards do not hold were counted while patching; no cut changes them.
        statistics = replace(statistics, entropies=shards.statistics.entropies)
        counts = SetCounts(name, output.url, provenance, statistics, shards.summary, shards.entries)
        figures = set_figures(counts, targets=TARGETS, context_bytes=CONTEXT_BYTES)
        for picture in CARD_PLOTS:
            path = f"{PICTURES}/{picture}.png"
            output.write(path, png(picture, [figures]))
            pictures[PLOTS[picture].title] = path
    schema = None
    if files:
        with output.open(files[0].path) as opened:
            schema = pq.read_schema(opened)
    rejects = sum(entry.rejects for entry in shards.entries)
    size = sum(file.bytes for file in files)
    # An export that was begun by an earlier release does not know it of all its files.
    known = all(file.arrow_bytes or not file.rows for file in files)
    sizes = size, sum(file.arrow_bytes for file in files) if known else size
    card = dataset_card(name, schema, made, statistics, rejects, sizes, pictures)
    output.write(CARD, card.encode())


def dataset_card(
    name: str,
    schema: Schema | None,
    made: dict[str, Any],
    statistics: PatchStatistics,
    rejects: int,
    sizes: tuple[int, int],
    pictures: Mapping[str, str],
) -> str:
    """The text of README.md, with the metadata that ``datasets`` and the hub read.

    Args:
        name: the dataset's name.
        schema: the schema of its files; None if there are none.
        made: ``patcher``, ``entropy_model`` and ``sources``, as the manifest says.
        sizes: bytes of all files, and of their rows as Arrow.
        pictures: files beside the card, by title.
    """
    metadata: dict[str, Any] = {"pretty_name": name, "tags": ["byte-latent-transformer"]}
    if schema is not None:
        from datasets import Features  # only now: its import takes long, and workers need it not

        metadata["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}
        ]
        split = {
            "name": "train",
            "num_bytes": sizes[1],
            "num_examples": statistics.documents,
        }
        # Names like that of its own key have no description; datasets then looks at the files.
        described = {}
        with suppress(TypeError):
            described["features"] = Features.from_arrow_schema(schema)._to_yaml_list()
        metadata["dataset_info"] = {
            **described,
            "splits": [split],
            "download_size": sizes[0],
            "dataset_size": sizes[1],
        }
    names = schema.names if schema is not None else []
    sections = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {plain(name)}",
        "Documents cut into entropy patches for Byte Latent Transformers (arXiv 2412.09871), by "
        "blt-titan.",
        _table(_figures(made, statistics, rejects)),
        *(f"![{plain(title)}]({file})" for title, file in pictures.items()),
        "## Columns",
        _table([(plain(n), COLUMNS.get(n, "metadata of the document")) for n in names]),
        "## Sources",
        "\n".join(f"- {plain(source['name'])}" for source in made["sources"][:100]),
    ]
    if len(made["sources"]) > 100:
        sections.append(f"and {len(made['sources']) - 100:,} more")
    return "\n\n".join(filter(None, sections)) + "\n"


def _figures(
    made: dict[str, Any], statistics: PatchStatistics, rejects: int
) -> list[tuple[str, str]]:
    model = made["entropy_model"]
    percentiles = (f"{statistics.patch_length_percentile(p)} ({p} %)" for p in (10, 50, 90, 99))
    rule = ", ".join(f"{key} {value}" for key, value in made["patcher"].items())
    return [
        ("documents", f"{statistics.documents:,}"),
        ("bytes of text", f"{statistics.bytes:,}"),
        ("patches", f"{statistics.patches:,}"),
        ("mean bytes per patch", f"{statistics.mean_patch_bytes:.3f}"),
        ("patch lengths (tokens)", ", ".join(percentiles)),
        ("documents left out", f"{rejects:,}"),
        ("boundary rule (nats)", plain(rule)),
        ("entropy model", plain(str(model.get("source", "unknown")))),
        ("its fingerprint", plain(str(model.get("fingerprint", "unknown")))),
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return "| | |\n|---|---|\n" + "\n".join(f"| {a} | {b} |" for a, b in rows)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line: no markup, no links, no cells."""
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # GitHub's Markdown makes links of addresses, too.
    marks = r"([\\`*_{}\[\]()#+!|~:@]|(?<=www)\.)"
    return re.sub(marks, r"\\\1", " ".join(shown.split()), flags=re.IGNORECASE)
