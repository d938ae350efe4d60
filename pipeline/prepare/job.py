"""The Ray stages of ``prepare_corpus.py``: download, sort, merge, write chunks; then the manifest.

Each stage is a pool of tasks (see :mod:`pipeline.cluster.stage`) that do a step of
:mod:`pipeline.prepare.shuffle` on a piece of work and commit an entry for it; what has an entry is
not done again.
"""

import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from pipeline.cli.command import refuse_lost_output
from pipeline.cluster.connect import connect
from pipeline.cluster.plan_splits import plan_splits
from pipeline.cluster.stage import new_board, work_off
from pipeline.corpus.formats import input_suffixes, known_format
from pipeline.corpus.named import Corpus, list_corpus
from pipeline.corpus.prepared import EXCHANGE, MANIFEST, PreparedManifest, read_manifest
from pipeline.corpus.splits import whole_file
from pipeline.errors import ConfigError, PipelineError
from pipeline.prepare import stages as tasks
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.prepare.key_ranges import key_ranges, merge_groups, slices_of
from pipeline.prepare.manifest import check_chunks, manifest_of
from pipeline.prepare.plan import (
    Preparation,
    chunks_done,
    merges_done,
    plan,
    remove_entries,
    remove_preparation,
    save_files,
    saved_files,
    units_done,
)
from pipeline.prepare.shuffle import Shuffle, Slice, Sorted
from pipeline.storage.hub import download_directory, download_path, is_hub_file
from pipeline.storage.listing import InputFile, list_inputs
from pipeline.storage.output import OutputDirectory, refuse_credentials, to_json
from pipeline.storage.run_record import changed, changed_files, check_command
from pipeline.storage.tokenizer_files import (
    download_tokenizer,
    downloaded_tokenizer,
    find_tokenizer,
)


@dataclass
class PrepareCorpusResult:
    """What a run did."""

    output: str
    manifest: PreparedManifest | None
    """None if files could not be reached: then there are no chunks yet."""
    failures: list[str]
    """Files that could not be read (to their end), and why."""
    seconds: float = 0.0
    """Spent on sorting and writing."""
    bytes_sorted: int = 0
    """Text sorted by this run; what an earlier one did is not counted."""


def prepare_corpus(config: PrepareCorpusConfig, console: Console) -> PrepareCorpusResult:
    """Prepare a corpus, or what is left of it.

    Raises:
        PipelineError: the job cannot begin or go on; what is committed stays.
    """
    config.check()
    corpus = config.find_corpus()
    for flag, url in (("--output", config.output), ("--downloads", config.downloads)):
        if url is not None:
            refuse_credentials(flag, url)
            refuse_lost_output(url, flag)
    try:
        output = OutputDirectory(config.output)
        preparation = None if config.overwrite else Preparation.load(output)
    except PipelineError as error:
        raise ConfigError(f"--output: {error}") from error
    files = _files(preparation, corpus, config, output)
    tokenizer = _tokenizer(config, output)
    if preparation is not None:
        _check_same(preparation, files, config, output)
        if output.exists(MANIFEST):
            if tokenizer:
                download_tokenizer(str(config.tokenizer), tokenizer, output)
            return _finished(output, read_manifest(output))
        console.print(f"going on with the run in {output.url}", highlight=False)
    connect(config.num_workers)
    output.remove_temporary()
    work = _Work(config, output, console)
    if preparation is None:
        output.check_writable()
        if config.downloads:
            save_files(files, config.content(), output)
            files, unreachable = work.download(files, OutputDirectory(config.downloads))
            if unreachable:
                return PrepareCorpusResult(output.url, None, unreachable)
        preparation = _begin(files, corpus, config, output)
    if tokenizer:
        download_tokenizer(str(config.tokenizer), tokenizer, output)
    return work.shuffle(preparation)


def _finished(output: OutputDirectory, manifest: PreparedManifest) -> PrepareCorpusResult:
    """The result where all is done."""
    check_chunks(manifest, output)
    output.remove(EXCHANGE)
    output.remove_temporary()
    broken = [source for source in manifest["sources"] if source["error"]]
    failures = [f"{source['name']}: {source['error']}" for source in broken]
    return PrepareCorpusResult(output.url, manifest, failures)


def _files(
    preparation: Preparation | None,
    corpus: Corpus | None,
    config: PrepareCorpusConfig,
    output: OutputDirectory,
) -> list[InputFile]:
    if corpus is None:
        return list_inputs(config.input, suffixes=input_suffixes(), output=output.url)
    if preparation is not None:  # at the commit that it began with
        return preparation.files
    begun = None if config.overwrite else saved_files(config.content(), output)
    return begun or list_corpus(corpus)


def _tokenizer(config: PrepareCorpusConfig, output: OutputDirectory) -> list[InputFile]:
    """The files of the tokenizer that is asked for, unless they are there."""
    if config.tokenizer is None:
        return []
    if not config.overwrite and downloaded_tokenizer(output) == config.tokenizer:
        return []
    return find_tokenizer(config.tokenizer)


def _check_same(
    preparation: Preparation,
    files: list[InputFile],
    config: PrepareCorpusConfig,
    output: OutputDirectory,
) -> None:
    where = f"--output {output.url}"
    check_command(where, preparation.content, config.content())
    for file in changed_files(where, preparation.files, files):
        raise changed(where, file)


def _begin(
    files: list[InputFile],
    corpus: Corpus | None,
    config: PrepareCorpusConfig,
    output: OutputDirectory,
) -> Preparation:
    """Plan a new run, and record it."""
    kind = corpus.format if corpus else config.input_format
    columns, flag = config.columns(corpus), "--input-format"
    if any(map(is_hub_file, files)):  # their content is not at hand: each is read as a whole
        splits = [whole_file(file, known_format(file, kind, flag)) for file in files]
    else:
        splits = plan_splits(files, kind, columns, config.sort_bytes, format_flag=flag)
    preparation = plan(files, splits, columns, config)
    if config.overwrite:  # only now: a wrong flag must not cost the earlier result
        remove_preparation(output)
    remove_entries(output)  # of a run whose record somebody removed
    preparation.save(output)
    return preparation


class _Work:
    """The stages; each has what is left of it done."""

    def __init__(self, config: PrepareCorpusConfig, output: OutputDirectory, console: Console):
        self._output, self._console = output, console
        size = config.num_workers
        self._compute = ray.data.TaskPoolStrategy(size) if size else ray.data.TaskPoolStrategy()

    def _done(
        self,
        doing: str,
        worker: Any,
        pieces: Mapping[int, int],
        done: Mapping[int, int],
        **arguments: Any,
    ) -> list[str]:
        """Have pieces done by one of the tasks; what is said of unreachable files."""
        if not pieces:
            return []
        board = new_board()
        arguments |= {"output": self._output, "board": board}
        return work_off(
            pieces,
            done,
            self._console,
            doing,
            board,
            worker,
            fn_kwargs=arguments,
            compute=self._compute,
        )

    def download(
        self, files: list[InputFile], downloads: OutputDirectory
    ) -> tuple[list[InputFile], list[str]]:
        """The files where they are kept, and what is said of those that could not be reached."""
        kept = downloads.sizes(download_directory(files[0]))
        there = {n: f.size for n, f in enumerate(files) if kept.get(f.name) == f.size}
        waiting = {n: f.size for n, f in enumerate(files) if n not in there}
        shared = ray.put((files, downloads, _scratch(downloads)))
        unreachable = self._done("downloading", tasks.download, waiting, there, shared=shared)
        if not unreachable:
            downloads.remove(EXCHANGE)
            downloads.remove_temporary()
        return [replace(f, url=downloads.locate(download_path(f))) for f in files], unreachable

    def shuffle(self, preparation: Preparation) -> PrepareCorpusResult:
        """Sort, merge, write chunks and manifest."""
        began = time.monotonic()
        before = sum(map(_text_bytes, units_done(self._output).values()))
        unreachable = self._sort(preparation)
        units = units_done(self._output)
        if unreachable:
            return PrepareCorpusResult(self._output.url, None, unreachable)
        self._check_seen(units, preparation.units)
        slices = self._merge(units, preparation.shuffle)
        self._write(units, slices, preparation)
        merges, chunks = merges_done(self._output), chunks_done(self._output)
        manifest = manifest_of(preparation, units, merges, chunks)
        self._output.write(MANIFEST, to_json(manifest))
        result = _finished(self._output, manifest)
        result.seconds = time.monotonic() - began
        result.bytes_sorted = sum(map(_text_bytes, units.values())) - before
        return result

    def _sort(self, preparation: Preparation) -> list[str]:
        done = units_done(self._output)
        units = preparation.units
        work = {
            n: sum(s.size + (s.file.size if is_hub_file(s.file) else 0) for s in unit)
            for n, unit in enumerate(units)
        }
        waiting = {n: size for n, size in work.items() if n not in done}
        doing = "downloading and sorting" if is_hub_file(preparation.files[0]) else "sorting"
        there = {n: _text_bytes(unit) for n, unit in done.items()}
        shared = ray.put((units, preparation.shuffle, _scratch(self._output)))
        return self._done(doing, tasks.sort, waiting, there, shared=shared)

    def _check_seen(self, done: Mapping[int, Any], pieces: list[Any]) -> None:
        if len(done) < len(pieces):
            raise PipelineError(
                f"--output {self._output.url}: what workers committed cannot be seen from here; "
                "is it on storage that all nodes share?"
            )

    def _merge(self, units: dict[int, Sorted], shuffle: Shuffle) -> list[Slice]:
        """The runs that chunks are made of."""
        runs = [run for _, unit in sorted(units.items()) for run in unit.runs]
        if shuffle.fine_cells is None:
            return [Slice(shuffle.grid, runs)]
        groups = merge_groups(runs)
        pieces = [(group, cell) for group in groups for cell in range(shuffle.cells)]
        size = sum(map(_text_bytes, units.values())) // max(len(pieces), 1)
        done = merges_done(self._output)
        waiting = {n: size for n in range(len(pieces)) if n not in done}
        shared = ray.put((pieces, shuffle))
        self._done("merging", tasks.merge, waiting, dict.fromkeys(done, size), shared=shared)
        done = merges_done(self._output)
        self._check_seen(done, pieces)
        self._output.remove(f"{EXCHANGE}/runs")
        return slices_of(done, shuffle)

    def _write(
        self, units: dict[int, Sorted], slices: list[Slice], preparation: Preparation
    ) -> None:
        sources = [source for unit in units.values() for source in unit.sources.values()]
        documents = sum(source.documents.documents for source in sources)
        text_bytes = sum(map(_text_bytes, units.values()))
        ranges = key_ranges(documents, text_bytes, slices, preparation.content, self._output)
        done = chunks_done(self._output)
        there = {n: chunk.documents.bytes for n, chunk in done.items()}
        each = text_bytes // len(ranges)
        waiting = {n: each for n in ranges if n not in done}
        shared = ray.put((ranges, slices, preparation.shuffle, preparation.content["format"]))
        self._done("writing chunks", tasks.write, waiting, there, shared=shared)
        self._check_seen(chunks_done(self._output), list(ranges))


def _text_bytes(unit: Sorted) -> int:
    return sum(source.documents.bytes for source in unit.sources.values())


def _scratch(directory: OutputDirectory) -> Path:
    """Where a node keeps files of the hub while they are read; the same in every run."""
    if directory.local:
        return Path(directory.path, EXCHANGE, "downloads")
    unique = hashlib.sha256(directory.url.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"blt-titan-{unique}")
