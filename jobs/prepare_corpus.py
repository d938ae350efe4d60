"""Prepare a corpus: the hub, object storage or disk in, shuffled chunks out."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import leave, run_job
from pipeline.cli.progress_bar import rate_text
from pipeline.cli.results import print_line, print_problems, print_table
from pipeline.prepare.config import PrepareCorpusConfig

if TYPE_CHECKING:
    from pipeline.corpus.prepared import PreparedManifest
    from pipeline.prepare.result import PrepareCorpusResult


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(PrepareCorpusConfig, run)


def run(config: PrepareCorpusConfig, console: Console) -> int:
    """Prepare, and print the result."""
    config.check()
    # Ray takes a second to load: only when the flags are right.
    from pipeline.prepare.job import prepare_corpus

    result = prepare_corpus(config, console)
    if config.json:
        print(json.dumps(vars(result)))
    else:
        print_result(result, Console())
    return 1 if result.failures else 0


def print_result(result: "PrepareCorpusResult", console: Console) -> None:
    """The result as a table, then what went wrong."""
    manifest = result.manifest
    if manifest is not None:
        print_table(console, _rows(result, manifest))
        if manifest["counts"]["rejects"]:
            print_line(console, f"rejected documents, with reasons: {result.output}/rejects")
    print_problems(console, [f"failed: {failure}" for failure in result.failures])
    if manifest is None:
        print_line(console, "no chunks were written yet; run the same command again to continue")


def _rows(result: "PrepareCorpusResult", manifest: "PreparedManifest") -> Iterator[tuple[str, str]]:
    from pipeline.statistics.counts import DocumentStatistics

    counts = manifest["counts"]
    statistics = DocumentStatistics.from_json(manifest["statistics"])
    yield "input files", f"{len(manifest['sources']):,}"
    yield "documents", f"{statistics.documents:,}"
    yield "bytes", f"{statistics.bytes:,}"
    lengths = [f"{statistics.length_percentile(p):,} ({p}%)" for p in (50, 90, 99)]
    yield "bytes per document", f"{statistics.mean_bytes:,.0f} on average"
    # Percentiles are ends of the histogram's bins, up to 9 % above the exact ones.
    yield "", "at most " + "  ".join([*lengths, f"{statistics.longest:,} (longest)"])
    yield "rejected documents", f"{counts['rejects']:,}"
    if manifest["configuration"]["deduplicate"]:
        yield "duplicates dropped", f"{counts['duplicates']:,}"
    if manifest["validation"]:
        held_out = f"{counts['validation']:,} documents in {manifest['validation']['name']}"
        yield "validation", held_out
    chunks = manifest["chunks"]
    yield "chunks", f"{len(chunks)} in {result.output}: {chunks[0]['name']} …"
    if result.bytes_sorted:
        rate = rate_text(result.bytes_sorted / result.seconds)
        yield "speed", f"{rate} ({result.seconds:.1f} s)"


if __name__ == "__main__":
    leave(main())
