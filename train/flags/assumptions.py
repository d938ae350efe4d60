"""The facts about data and machines that a plan takes for granted: flags of ``jobs/plan.py``."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Assumptions:
    """A plan takes these facts about data and machines for granted."""

    bytes_per_patch: float = 4.5
    """Mean bytes per patch of the shards, or per token of a tokenizer: see patch_report.py."""
    gpu_memory: float = 80.0
    """GB of a GPU; a tenth is left free for fragments and NCCL's buffers."""
    gpu_tflops: float = 989.0
    """Peak of dense bfloat16 products, in TFLOP/s; that of an H100."""
    mfu: float = 0.4
    """Share of the peak that the whole training reaches, where nothing is measured yet."""
    node_mtbf_days: float = 264.0
    """Days between two failures of a node. Llama 3's 419 unexpected interruptions within 54 days on
    2,048 nodes (arXiv 2407.21783, section 3.3.4) make 264."""
    node_write: float = 1.0
    """GB/s that a node writes to the checkpoints' storage, while all nodes write."""
    restart_minutes: float = 10.0
    """From the loss of a node to the first step after it."""


def assumption_texts(assumed: Assumptions) -> list[str]:
    """The assumptions, one a line."""
    return [f"{f.name} = {getattr(assumed, f.name):g}" for f in fields(assumed)]
