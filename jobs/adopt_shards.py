"""Adopt a corpus that comes with entropies: files with texts and entropies in, patch shards out."""

import sys
from pathlib import Path

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.adopt.config import AdoptShardsConfig
from pipeline.cli.command import leave, run_job


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(AdoptShardsConfig, run)


def run(config: AdoptShardsConfig, console: Console) -> int:
    """Adopt, and print the result."""
    config.check()
    # torch and Ray take seconds to load: only when the flags are right.
    from pipeline.adopt.job import adopt_shards
    from pipeline.patch.printed import report_result

    return report_result(adopt_shards(config, console), as_json=config.json)


if __name__ == "__main__":
    leave(main())
