"""Failures of ranks in one sentence: the error that began them, when several ranks fail."""

from model.checkpoints.files import CheckpointError
from pipeline.errors import PipelineError
from train.checkpoints.collective import LOST_CONNECTION

CONNECTION_WORDS = ("gloo", "nccl", "connection", *LOST_CONNECTION)
"""Words in the errors of ranks that fail only because another rank is gone."""


def training_error(error: Exception) -> PipelineError:
    """The error for users, in one sentence, for what ``fit`` raised."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        cause = min(rank_failure(rank, failure) for rank, failure in failures.items())[1]
    else:
        cause = _first_line(getattr(error, "controller_failure", error))
    return PipelineError(
        f"training failed: {cause}; the same command continues from the last checkpoint"
    )


def rank_failure(rank: int, error: Exception) -> tuple[int, str]:
    """How far a rank's error is from the cause (0 is nearest), and a text for it.

    When one rank fails, the others fail as well, because they wait for it. The smallest pair of all
    ranks names the cause: rank 1's ``(1, "rank 1: ValueError: x")`` comes before rank 0's
    ``(3, "rank 0 lost the connection to another one")``.
    """
    if isinstance(error, PipelineError | CheckpointError):
        return 0, str(error)
    if _is_rays(error):
        return 2, f"the process of rank {rank} died ({_first_line(error)})"
    text = _first_line(error)
    if not isinstance(error, _OtherError):
        text = f"{type(error).__name__}: {text}"
    if any(word in text.lower() for word in CONNECTION_WORDS):
        return 3, f"rank {rank} lost the connection to another one"
    return 1, f"rank {rank}: {text}"


class _OtherError(Exception):
    """The text of an error whose class the driver might not be able to load."""


def _is_rays(error: Exception) -> bool:
    return type(error).__module__.startswith("ray.")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def portable_error(error: Exception) -> Exception:
    """An error that the driver can unpickle: our own keep their class, others become text."""
    if isinstance(error, PipelineError | CheckpointError):
        return type(error)(str(error))
    return _OtherError(f"{type(error).__name__}: {_first_line(error)}")
