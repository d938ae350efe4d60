"""The report's job: shard sets → figures → files."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import Any, TypeVar

from rich.console import Console

from pipeline.cluster import refuse_lost_output
from pipeline.errors import ConfigError, PipelineError
from pipeline.report import PAGE, Report
from pipeline.report_config import PatchReportConfig
from pipeline.report_data import MADE, Counted, check_alike, counted_before, merge, set_figures
from pipeline.shards import ShardSet
from pipeline.storage import OutputDirectory, refuse_credentials

T = TypeVar("T")
READERS = 32
"""Manifests that are read at a time."""


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
    named = dict(zip(config.shards, _names(config.shards), strict=True))
    first = _open(config.shards[0])
    tokenizer = None
    if config.tokenizer:
        from pipeline.bpe import tokenizer_figures  # with the hub's client

        tokenizer = tokenizer_figures(config.tokenizer, first)

    def count(url: str) -> Counted:
        shards = _open(url)
        _refuse_output_in(shards, config, output)
        if config.recompute:
            from pipeline.recomputing import recompute  # with Ray Data, which takes its time

            return recompute(named[url], shards, console, config.num_workers)
        return counted_before(named[url], shards)

    found = map(count, named) if config.recompute else _read(count, named)
    counted = [merge(found)] if config.merge else list(found)
    figures = [
        set_figures(
            of_set,
            targets=config.target_patch_size,
            context_bytes=config.context_bytes,
            tokenizer=tokenizer,
        )
        for of_set in counted
    ]
    report = Report(figures, tokenizer, config.context_bytes, config.recompute)
    report.write(output)
    output.leave()
    problems = [problem for of_set in counted for problem in of_set.problems]
    return PatchReport(report.to_json(), report.overview(), output.locate(PAGE), problems)


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


def _names(urls: Sequence[str]) -> list[str]:
    """The last parts of URLs; the whole ones where those are the same."""
    names = [PurePosixPath(url).name for url in urls]
    times = Counter(names)
    return [
        name if name and times[name] == 1 else url for name, url in zip(names, urls, strict=True)
    ]
