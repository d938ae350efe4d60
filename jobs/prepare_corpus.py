"""Prepare a corpus: the hub, object storage or disk in, shuffled chunks out."""

import json
import sys
from pathlib import Path

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.cli.command import run_command
from pipeline.corpus.prepared import PreparedManifest
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.prepare.job import PrepareCorpusResult, prepare_corpus
from pipeline.statistics.counts import DocumentStatistics


def main() -> int:
    """Run the job; returns the exit status."""
    config = tyro.cli(PrepareCorpusConfig, config=(tyro.conf.FlagCreatePairsOff,))
    # Standard output belongs to the result; progress and errors go beside it.
    console = Console(stderr=True)
    again = "interrupted; run the same command again to go on"
    return run_command(lambda: run(config, console), console, interrupted=again)


def run(config: PrepareCorpusConfig, console: Console) -> int:
    """Prepare, and print the result."""
    result = prepare_corpus(config, console)
    if config.json:
        print(json.dumps(vars(result)))
    else:
        print_result(result, Console())
    return 1 if result.failures else 0


def print_result(result: PrepareCorpusResult, console: Console) -> None:
    """The result as a table, then what went wrong."""
    manifest = result.manifest
    if manifest is not None:
        console.print(_table(result, manifest))
        if manifest["counts"]["rejects"]:
            console.print(f"rejected documents, with reasons: {result.output}/rejects")
    for failure in result.failures:
        text = f"failed: {failure}"
        console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
    if manifest is None:
        console.print("no chunks were written yet; run the same command again to go on")


def _table(result: PrepareCorpusResult, manifest: PreparedManifest) -> Table:
    counts = manifest["counts"]
    statistics = DocumentStatistics.from_json(manifest["statistics"])
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("input files", f"{len(manifest['sources']):,}")
    table.add_row("documents", f"{statistics.documents:,}")
    table.add_row("bytes", f"{statistics.bytes:,}")
    lengths = [f"{statistics.length_percentile(p):,} ({p}%)" for p in (50, 90, 99)]
    table.add_row("bytes a document", f"{statistics.mean_bytes:,.0f} on average")
    table.add_row("", "  ".join([*lengths, f"{statistics.longest:,} (longest)"]))
    table.add_row("rejected documents", f"{counts['rejects']:,}")
    if manifest["configuration"]["deduplicate"]:
        table.add_row("duplicates dropped", f"{counts['duplicates']:,}")
    if manifest["validation"]:
        held_out = f"{counts['validation']:,} documents in {manifest['validation']['name']}"
        table.add_row("validation", held_out)
    chunks = manifest["chunks"]
    table.add_row("chunks", f"{len(chunks)} in {result.output}: {chunks[0]['name']} …")
    if result.bytes_sorted:
        rate = result.bytes_sorted / result.seconds / 1e6
        table.add_row("speed", f"{rate:.1f} MB/s ({result.seconds:.1f} s)")
    return table


if __name__ == "__main__":
    sys.exit(main())
