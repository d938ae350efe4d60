"""The driver of ``jobs/patch_report.py``: shard sets → counts → figures → files."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from pipeline.cli.command import refuse_lost_output
from pipeline.drawing.page import printable
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.record import SHARD_DIRECTORIES
from pipeline.report.agreement import SetAgreement
from pipeline.report.compare import compare_sets
from pipeline.report.config import PatchReportConfig
from pipeline.report.figures import TokenizerFigures
from pipeline.report.held_out import read_held_out
from pipeline.report.page import PAGE, Report
from pipeline.report.set_counts import (
    Provenance,
    SetCounts,
    check_mergeable,
    merge_part,
    merge_parts,
    merge_sets,
    read_counts,
)
from pipeline.report.set_figures import set_figures
from pipeline.report.unfinished import counts_so_far
from pipeline.shards.named import named_set
from pipeline.shards.provenance import short_names
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import refuse_credentials

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")
READERS = 32
"""Manifests that are read at a time."""
MANY = 1000
"""From so many sets on, several processes merge them: a manifest takes about half a millisecond."""
MOST_PROCESSES = 8


def patch_report(config: PatchReportConfig, console: Console) -> tuple[Report, str]:
    """Make a report.

    Returns:
        the report, and where its page is.

    Raises:
        ConfigError: a flag is wrong.
        PipelineError: a set cannot be read, or the output cannot be written.
    """
    config.check()
    for url in config.shards:
        refuse_credentials("--shards", url)
    refuse_credentials("--output", config.output)
    refuse_lost_output(config.output)
    output = OutputDirectory(config.output)
    if config.recompute:
        _check_before(config, output)
    tokenizer = _tokenizer(config)
    counted = list(_count(config, output, console))
    if not config.merge:
        held_out = _read(read_held_out, (counts.url for counts in counted))
        counted = [replace(c, held_out=h) for c, h in zip(counted, held_out, strict=True)]
    sampled = _sampled(config, tokenizer) if tokenizer is not None else [(None, [])] * len(counted)
    figures = [
        set_figures(
            replace(counts, problems=[*counts.problems, *unread]),
            targets=config.target_patch_size,
            context_bytes=config.context_bytes,
            tokenizer=bpe,
        )
        for counts, (bpe, unread) in zip(counted, sampled, strict=True)
    ]
    report = Report(figures, config.context_bytes, config.recompute, _agreement(config, console))
    try:
        report.write(output)
    except PipelineError as error:
        raise PipelineError(f"--output: {error}") from error
    output.leave()
    return report, output.locate(PAGE)


def _count(
    config: PatchReportConfig, output: OutputDirectory, console: Console
) -> Iterator[SetCounts]:
    """The counts of each set, or of all sets as one."""
    named = dict(zip(config.shards, short_names(map(printable, config.shards)), strict=True))
    counts: Iterator[SetCounts]
    if config.recompute:
        from pipeline.report.recount import recompute  # with Ray Data, which takes its time

        sets = ((name, named_set(url)) for url, name in named.items())
        counts = (recompute(name, shards, console, config.num_workers) for name, shards in sets)
    elif config.merge and len(named) >= MANY and not any("://" in url for url in named):
        return iter([_merged_in_processes(config, output, named)])
    else:
        counts = _read(partial(_read_counts, config, output, named), named)
    return iter([merge_sets(counts)]) if config.merge else counts


def _read_counts(
    config: PatchReportConfig, output: OutputDirectory, named: Mapping[str, str], url: str
) -> SetCounts:
    """The counts that the manifest of a set holds."""
    so_far = counts_so_far(named[url], url)
    if so_far is not None:
        if config.merge or config.agreement:
            flag = "--merge" if config.merge else "--agreement"
            raise ConfigError(f"{flag}: {url} is not finished; report on it alone, or finish it")
        if so_far.url == output.url:
            raise ConfigError(f"--output {config.output}: is a shard set; choose another directory")
        return so_far
    shards = named_set(url)
    _refuse_output_in(shards, config, output)
    return read_counts(named[url], shards)


def _merged_in_processes(
    config: PatchReportConfig, output: OutputDirectory, named: Mapping[str, str]
) -> SetCounts:
    """All sets as one, read by several processes: for local manifests, the processor is the
    bottleneck."""
    urls = list(named)
    number = min(os.cpu_count() or 1, MOST_PROCESSES)
    edges = [i * len(urls) // number for i in range(number + 1)]
    pieces = [{url: named[url] for url in urls[a:b]} for a, b in pairwise(edges)]
    with ProcessPoolExecutor(number) as pool:
        return merge_parts(pool.map(partial(_merge_part, config, output), pieces))


def _merge_part(
    config: PatchReportConfig, output: OutputDirectory, named: Mapping[str, str]
) -> SetCounts:
    """One process's part of a merge."""
    return merge_part(_read(partial(_read_counts, config, output, named), named))


def _agreement(config: PatchReportConfig, console: Console) -> list[SetAgreement]:
    """How each set agrees with the first one, if that was asked for."""
    if not config.agreement:
        return []
    names = short_names(map(printable, config.shards))
    sets = [(name, named_set(url)) for name, url in zip(names, config.shards, strict=True)]
    return compare_sets(sets, config.documents, config.loss_bytes, console)


def _tokenizer(config: PatchReportConfig) -> "Tokenizer | None":
    """
    Raises:
        ConfigError: there is no tokenizer of that name, or it cannot be read.
    """
    if config.tokenizer is None:
        return None
    from pipeline.report.bpe import load_tokenizer  # with the hub's client, which takes its time

    return load_tokenizer(config.tokenizer)


def _sampled(
    config: PatchReportConfig, tokenizer: "Tokenizer"
) -> list[tuple[TokenizerFigures | None, list[str]]]:
    """The tokenizer's figures on the text of each set, or of all together, with messages about
    shards that cannot be read."""
    from pipeline.report.bpe import SAMPLED_SHARDS, evenly_spaced, tokenizer_figures

    together = [evenly_spaced(config.shards, SAMPLED_SHARDS)] if config.merge else []
    return [
        tokenizer_figures(str(config.tokenizer), tokenizer, [named_set(url) for url in urls])
        for urls in together or [[url] for url in config.shards]
    ]


def _check_before(config: PatchReportConfig, output: OutputDirectory) -> None:
    """Check everything that would otherwise only fail after hours of counting.

    Raises:
        ConfigError: a set cannot be opened, or sets cannot be merged.
        PipelineError: the output cannot be written.
    """

    def check(url: str) -> tuple[str, Provenance]:
        shards = named_set(url)
        _refuse_output_in(shards, config, output)
        return shards.output.url, Provenance.of(shards.manifest)

    first, *others = _read(check, config.shards)
    if config.merge:
        for other in others:
            check_mergeable(first, other)
    output.check_writable()


def _refuse_output_in(shards: ShardSet, config: PatchReportConfig, output: OutputDirectory) -> None:
    if shards.output.url == output.url:
        raise ConfigError(f"--output {config.output}: is a shard set; choose another directory")
    taken = (shards.output.locate(name) for name in SHARD_DIRECTORIES)
    if any(f"{output.url}/".startswith(f"{place}/") for place in taken):
        raise ConfigError(f"--output {config.output}: is a part of a shard set; choose another")


def _read(read: Callable[[str], T], urls: Iterable[str]) -> Iterator[T]:
    """Call ``read`` with each URL; gives the results in order. Sets in object stores are read many
    at a time."""
    with ThreadPoolExecutor(READERS) as readers:
        for remote, group in groupby(urls, lambda url: "://" in url):
            while part := list(islice(group, READERS)):
                yield from readers.map(read, part) if remote else map(read, part)
