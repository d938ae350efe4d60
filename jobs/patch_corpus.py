"""Patch a corpus: text files in, Arrow shards with entropies and patch boundaries out."""

import sys
from pathlib import Path

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import leave, run_job
from pipeline.patch.config import PatchCorpusConfig


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(PatchCorpusConfig, run)


def run(config: PatchCorpusConfig, console: Console) -> int:
    """Patch, and print the result."""
    config.check()
    # torch and Ray take seconds to load: only when the flags are right.
    from pipeline.patch.job import patch_corpus
    from pipeline.patch.printed import report_result

    return report_result(patch_corpus(config, console), as_json=config.json)


if __name__ == "__main__":
    leave(main())
