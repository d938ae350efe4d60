"""The counts of a shard set whose job still runs, or was stopped: what is committed so far.

The set has no manifest yet. The record of the run knows the input and how it is cut; an entry
beside each committed shard says what is in it, and the job may go on meanwhile.
"""

from pipeline.errors import PipelineError
from pipeline.patch.record import PatchRun, is_complete
from pipeline.report.set_counts import Provenance, SetCounts, SoFar, run_times, sources_of
from pipeline.shards.closing import make_part
from pipeline.shards.entries import Shard, committed_names, read_entries
from pipeline.shards.tables import SHARDS_PER_PART, as_shards
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST, RECORD


def counts_so_far(name: str, url: str) -> SetCounts | None:
    """What a run of ``patch_corpus.py`` has committed; None for a set that is finished, and for
    what is none.

    Args:
        url: the set's directory.

    Raises:
        ConfigError: the directory holds something else.
        PipelineError: an entry is damaged, or an earlier release began the run.
    """
    output = OutputDirectory(url)
    if output.exists(MANIFEST) or not output.exists(RECORD):
        return None
    run = PatchRun.resume(output, "--shards")
    if run is None:
        return None
    names = committed_names(output)
    statistics, summary, shards = PatchStatistics(), Summary(), list[Shard]()
    for start in range(0, len(names), SHARDS_PER_PART):  # all entries at a time would be gigabytes
        entries = read_entries(output, names[start : start + SHARDS_PER_PART])
        part = make_part(output, list(entries.values()))
        if part.summary is None:
            raise PipelineError(
                f"--shards {url}: an earlier release began this run; finish it first"
            )
        statistics += part.statistics
        summary += part.summary
        shards.extend(as_shards(part.entries))
    done = 0
    sizes = [sum(split.size for split in unit) for unit in run.units]
    for size, committed in zip(
        sizes, run.committed({shard.name: shard for shard in shards}), strict=True
    ):
        text = sum(shard.bytes for shard in committed)
        done += size if is_complete(committed) else min(text, size)
    return SetCounts(
        name,
        output.url,
        Provenance.of(run.provenance),
        statistics,
        summary,
        shards,
        run_times(output),
        sources_of(shards, [file.name for file in run.files]),
        so_far=SoFar(done, sum(sizes)),
    )
