"""The report's job: shard sets → figures → files."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from pipeline.cli.command import refuse_lost_output
from pipeline.errors import ConfigError, PipelineError
from pipeline.report.config import PatchReportConfig
from pipeline.report.figures import (
    MADE,
    Counted,
    TokenizerFigures,
    check_alike,
    counted_before,
    merge,
    merge_parts,
    part,
    set_figures,
)
from pipeline.report.page import PAGE, Report, whole_text
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory, refuse_credentials

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")
READERS = 32
"""Manifests that are read at a time."""
MANY, MOST_PROCESSES = 1000, 8
"""Sets to merge that are worth processes: a manifest takes about half a millisecond."""


@dataclass
class PatchReport:
    """What was found."""

    figures: dict[str, Any]
    """What report.json holds."""
    overview: list[tuple[str, list[str]]]
    """In brief: a label, and a cell for each set."""
    page: str
    """Where the page is."""
    problems: list[str]
    """Damaged shards, which are left out."""


def patch_report(config: PatchReportConfig, console: Console) -> PatchReport:
    """Make a report.

    Raises:
        PipelineError: a set cannot be read, or the output not be written.
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
    found = list(_count(config, output, console))
    sampled = _sampled(config, tokenizer) if tokenizer is not None else None
    figures: list[dict[str, Any]] = []
    problems: list[str] = []
    for i, counted in enumerate(found):
        bpe, unread = sampled[i] if sampled else (None, [])
        counted = replace(counted, problems=[*counted.problems, *unread])
        problems += counted.problems
        figures.append(
            set_figures(
                counted,
                targets=config.target_patch_size,
                context_bytes=config.context_bytes,
                tokenizer=bpe,
            )
        )
    report = Report(figures, config.context_bytes, config.recompute)
    report.write(output)
    output.leave()
    return PatchReport(report.to_json(), report.overview(), output.locate(PAGE), problems)


def _count(
    config: PatchReportConfig, output: OutputDirectory, console: Console
) -> Iterator[Counted]:
    """All sets, or what they are together."""
    named = dict(zip(config.shards, short_names(config.shards), strict=True))
    counted: Iterator[Counted]
    if config.recompute:
        from pipeline.report.recount import recompute  # with Ray Data, which takes its time

        sets = ((name, _open(url)) for url, name in named.items())
        counted = (recompute(name, shards, console, config.num_workers) for name, shards in sets)
    elif config.merge and len(named) >= MANY and not any("://" in url for url in named):
        return iter([_merged_in_processes(config, output, named)])
    else:
        counted = _read(partial(_counted, config, output, named), named)
    return iter([merge(counted)]) if config.merge else counted


def _counted(
    config: PatchReportConfig, output: OutputDirectory, named: Mapping[str, str], url: str
) -> Counted:
    """What a manifest says."""
    shards = _open(url)
    _refuse_output_in(shards, config, output)
    return counted_before(named[url], shards)


def _merged_in_processes(
    config: PatchReportConfig, output: OutputDirectory, named: Mapping[str, str]
) -> Counted:
    """To read local manifests is work for a processor, which other processes have as well."""
    urls = list(named)
    number = min(os.cpu_count() or 1, MOST_PROCESSES)
    edges = [i * len(urls) // number for i in range(number + 1)]
    pieces = [{url: named[url] for url in urls[a:b]} for a, b in pairwise(edges)]
    with ProcessPoolExecutor(number) as pool:
        return merge_parts(pool.map(partial(_part, config, output), pieces))


def _part(config: PatchReportConfig, output: OutputDirectory, named: Mapping[str, str]) -> Counted:
    return part(_read(partial(_counted, config, output, named), named))


def _tokenizer(config: PatchReportConfig) -> "Tokenizer | None":
    """
    Raises:
        ConfigError: there is none of that name.
    """
    if config.tokenizer is None:
        return None
    from pipeline.report.bpe import load_tokenizer  # with the hub's client, which takes its time

    return load_tokenizer(config.tokenizer)


def _sampled(
    config: PatchReportConfig, tokenizer: "Tokenizer"
) -> list[tuple[TokenizerFigures | None, list[str]]]:
    """What the tokenizer does to the text of each set, or of all together."""
    from pipeline.report.bpe import PLACES, evenly_spaced, tokenizer_figures

    together = [evenly_spaced(config.shards, PLACES)] if config.merge else []
    return [
        tokenizer_figures(str(config.tokenizer), tokenizer, [_open(url) for url in urls])
        for urls in together or [[url] for url in config.shards]
    ]


def _check_before(config: PatchReportConfig, output: OutputDirectory) -> None:
    """
    Raises:
        ConfigError: what would be found wrong after shards were counted for hours.
        PipelineError: the output cannot be written.
    """

    def check(url: str) -> tuple[str, dict[str, Any]]:
        shards = _open(url)
        _refuse_output_in(shards, config, output)
        return shards.output.url, {key: shards.manifest.get(key, {}) for key in MADE}

    first, *others = _read(check, config.shards)
    if config.merge:
        for other in others:
            check_alike(first, other)
    output.check_writable()


def _refuse_output_in(shards: ShardSet, config: PatchReportConfig, output: OutputDirectory) -> None:
    if shards.output.url == output.url:
        raise ConfigError(f"--output {config.output}: is a shard set; choose another directory")


def _open(url: str) -> ShardSet:
    try:
        return ShardSet(url)
    except PipelineError as error:
        raise ConfigError(f"--shards {error}") from error


def _read(read: Callable[[str], T], urls: Iterable[str]) -> Iterator[T]:
    """What is read of sets, in order; those of object stores are read many at a time."""
    with ThreadPoolExecutor(READERS) as readers:
        for remote, group in groupby(urls, lambda url: "://" in url):
            while part := list(islice(group, READERS)):
                yield from readers.map(read, part) if remote else map(read, part)


def short_names(urls: Sequence[str]) -> list[str]:
    """The last parts of URLs: as few as tell them apart."""
    parts = [[part for part in whole_text(url).split("/") if part] for url in urls]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(some[-count:]) for some in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return list(map(whole_text, urls))
