"""The commands of ``blt-titan``: their names, and the modules of ``jobs/`` that they run.

This is the only place that lists them. A job that is not here works in a checkout alone.
"""

import sys
from typing import NamedTuple

PROGRAM = "blt-titan"


class Command(NamedTuple):
    """One command."""

    job: str
    """The module in ``jobs/``."""
    help: str
    """The line of the list of commands."""


COMMANDS = {
    "prepare": Command("prepare_corpus", "hub, object storage or disk → shuffled chunks of text"),
    "patch": Command("patch_corpus", "text → shards with entropies and patches"),
    "adopt": Command("adopt_shards", "text that comes with entropies → shards, without a model"),
    "report": Command("patch_report", "shards → a page with figures, plots and examples"),
    "view": Command("patch_viewer", "a page to type text and see its patches"),
    "export": Command("export_shards", "shards → Parquet, datasets, the hub, the published layout"),
    "plan": Command("plan", "memory, FLOPs and days of a training on 1 to 512 GPUs"),
    "pretrain": Command("pretrain", "shards → a BLT, an entropy model or a baseline"),
    "convert": Command("convert_checkpoint", "a checkpoint → weights in another layout"),
    "generate": Command("generate", "prompts → text that a BLT writes"),
    "evaluate": Command("evaluate", "bits per byte of a model, or tasks of lm-evaluation-harness"),
    "compare": Command("compare", "train models that cost the same, and show them on a page"),
    "tokenizer": Command("train_tokenizer", "train a BPE tokenizer on the text of shards"),
    "distil": Command("distil_entropy_model", "train a cheap entropy model on shards' entropies"),
    "download": Command("download_weights", "published weights from the hub"),
    "check": Command("check_device", "compare the entropies of this machine with another's"),
}
"""By name, in the order in which they are listed."""


def command_line(job: str) -> str:
    """The command that runs a job, in the form in which this process was started."""
    if sys.argv[0].startswith(f"{PROGRAM} "):
        return next(f"{PROGRAM} {name}" for name, each in COMMANDS.items() if each.job == job)
    return f"python jobs/{job}.py"
