"""The result of a patching run, as its job prints it."""

from dataclasses import dataclass

from pipeline.statistics.counts import PatchStatistics


@dataclass
class PatchCorpusResult:
    """The result of a run; ``complete`` is false if anything asked for was not done."""

    output: str
    complete: bool
    threshold: float | None
    target_patch_size: float | None
    """Bytes per patch that were asked for."""
    statistics: PatchStatistics
    shards: int
    rejects: int
    failures: list[str]
    """Files that could not be read (to their end), and why."""
    problems: list[str]
    """Problems that verification found, if it was asked for."""
    seconds: float
    """Time that patching took, without planning and calibration."""
    bytes_patched: int
    """Text that this run patched, without what an earlier one did."""
    validation: "PatchCorpusResult | None" = None
    """The set of held-out documents, if there is one."""

    @property
    def succeeded(self) -> bool:
        """True if everything asked for was done, and no problem found."""
        held_out = self.validation is None or self.validation.succeeded
        return self.complete and not self.problems and held_out
