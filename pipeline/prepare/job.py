"""The driver of ``prepare_corpus.py``: download, sort, merge, write chunks; then the manifest.

Each step is a stage (see :mod:`pipeline.cluster.stage`): workers do a step of
:mod:`pipeline.prepare.shuffle` on one piece of work and commit an entry for it. A piece that has an
entry is not done again.
"""

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from pipeline.cli.command import refuse_lost_output
from pipeline.cli.progress_json import progress_lines
from pipeline.cli.results import print_line
from pipeline.cluster.connect import connect
from pipeline.cluster.packed import Packed
from pipeline.cluster.plan_splits import plan_files, splits_of
from pipeline.cluster.stage import StageOutcome, Work, run_stage, unshared_storage
from pipeline.corpus.documents import rejected_before
from pipeline.corpus.formats import known_format
from pipeline.corpus.ids import left_behind
from pipeline.corpus.inputs import Inputs, find_inputs
from pipeline.corpus.named import Corpus, list_corpus
from pipeline.corpus.prepared import EXCHANGE, PreparedManifest, read_prepared_manifest
from pipeline.corpus.splits import Split, whole_file
from pipeline.errors import PipelineError
from pipeline.prepare import stages
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.prepare.key_ranges import key_ranges, merge_groups, slices_of
from pipeline.prepare.manifest import check_chunks, manifest_of
from pipeline.prepare.plan import (
    Downloads,
    Preparation,
    chunks_done,
    merges_done,
    plan,
    remove_entries,
    units_done,
)
from pipeline.prepare.shuffle import Shuffle, Slice, Sorted
from pipeline.storage.checked_json import to_checked_json
from pipeline.storage.hub import download_directory, download_path, is_hub_file
from pipeline.storage.lease import held
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import refuse_credentials
from pipeline.storage.run_record import MANIFEST, changed_file_error, changed_files, reaching
from pipeline.storage.tokenizer_files import (
    download_tokenizer,
    downloaded_tokenizer,
    find_tokenizer,
)


@dataclass
class PrepareCorpusResult:
    """The result of a run."""

    output: str
    manifest: PreparedManifest | None
    """None if files could not be reached: then there are no chunks yet."""
    failures: list[str]
    """Files that could not be read (to their end), and why."""
    seconds: float = 0.0
    """Time that sorting and writing took."""
    bytes_sorted: int = 0
    """Text that this run sorted, without what an earlier one did."""


def prepare_corpus(config: PrepareCorpusConfig, console: Console) -> PrepareCorpusResult:
    """Prepare a corpus, or what is left of it.

    Raises:
        PipelineError: the job cannot begin or continue; what is committed stays.
    """
    config.check()
    corpus = config.find_corpus()
    for flag, url in (("--output", config.output), ("--downloads", config.downloads)):
        if url is not None:
            refuse_credentials(flag, url)
            refuse_lost_output(url, flag)
    with reaching("--output"):
        output = OutputDirectory(config.output)
    with progress_lines(config.progress_json), held(output, "--output", console):
        result = _prepare_corpus(config, corpus, output, console)
    rejects = 0 if result.manifest is None else result.manifest["counts"]["rejects"]
    if rejects and config.on_bad_document == "fail":
        result.failures.append(rejected_before(rejects))
    return result


def _prepare_corpus(
    config: PrepareCorpusConfig, corpus: Corpus | None, output: OutputDirectory, console: Console
) -> PrepareCorpusResult:
    preparation = None
    if config.retry_failed and output.exists(MANIFEST):
        failed = any(source["error"] for source in read_prepared_manifest(output)["sources"])
        config = replace(config, overwrite=config.overwrite or failed)
    if config.overwrite:
        Preparation.check_removable(output)
    else:
        preparation = Preparation.resume(output)
    inputs = _inputs(preparation, corpus, config, output, console)
    inputs.print_unread(console)
    files = inputs.files
    tokenizer = _tokenizer(config, output)
    if preparation is not None:
        _check_same(preparation, files, config, output)
        if output.exists(MANIFEST):
            if tokenizer:
                download_tokenizer(str(config.tokenizer), tokenizer, output)
            return _finished(output, read_prepared_manifest(output))
        console.print(f"continuing the run in {output.url}", highlight=False)
    connect(config.num_workers)
    output.remove_temporary()
    work = _Work(config, output, console, inputs)
    if preparation is None:
        output.check_writable()
        if config.downloads:
            Downloads(files, config.content()).begin(output)
            files, unreachable = work.download(files, OutputDirectory(config.downloads))
            if unreachable:
                return PrepareCorpusResult(output.url, None, unreachable)
        preparation = _begin(files, corpus, config, output, console)
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


def _inputs(
    preparation: Preparation | None,
    corpus: Corpus | None,
    config: PrepareCorpusConfig,
    output: OutputDirectory,
    console: Console,
) -> Inputs:
    if corpus is None:
        return find_inputs(config.input, config.input_format, output=output.url)
    if preparation is not None:  # at the commit that it began with
        return Inputs(preparation.files)
    begun = None if config.overwrite else Downloads.resume(output)
    if begun is None:
        files, left_out = list_corpus(corpus)
        Inputs(unread=left_out).print_unread(console)
        return Inputs(files)
    begun.check_settings(f"--output {output.url}", config.content())
    return Inputs(begun.files)


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
    preparation.check_settings(where, config.content())
    for file in changed_files(where, preparation.files, files):
        raise changed_file_error(where, file)


def _begin(
    files: list[InputFile],
    corpus: Corpus | None,
    config: PrepareCorpusConfig,
    output: OutputDirectory,
    console: Console,
) -> Preparation:
    """Plan a new run, and record it."""
    kind = corpus.format if corpus else config.input_format
    columns, flag = config.columns(corpus), "--input-format"
    if any(map(is_hub_file, files)):  # their content is not at hand: each is read as a whole
        splits = [whole_file(file, known_format(file, kind, flag)) for file in files]
    else:
        plans = plan_files(files, kind, columns, config.sort_bytes, format_flag=flag)
        splits = splits_of(plans)
        if note := left_behind(plans, columns):
            print_line(console, note)
    preparation = plan(files, splits, columns, config)
    if config.overwrite:  # only now: a wrong flag must not cost the earlier result
        Preparation.remove(output)
    remove_entries(output)  # of a run whose record somebody removed
    preparation.begin(output)
    return preparation


class _Work:
    """The stages; each does what is left of it."""

    def __init__(
        self,
        config: PrepareCorpusConfig,
        output: OutputDirectory,
        console: Console,
        inputs: Inputs,
    ):
        self._inputs = inputs
        self._output, self._console, self._workers = output, console, config.num_workers

    def _stage(
        self,
        doing: str,
        work: Work,
        pieces: Mapping[int, int],
        shared: tuple[object, ...],
        done: Mapping[int, int],
        *,
        gives_up: bool = False,
    ) -> StageOutcome:
        """Run a stage; unless it may give up deadly pieces, it has to do all of them."""
        return run_stage(
            doing,
            work,
            pieces,
            shared,
            self._console,
            done=done,
            workers=self._workers,
            gives_up=gives_up,
        )

    def download(
        self, files: list[InputFile], downloads: OutputDirectory
    ) -> tuple[list[InputFile], list[str]]:
        """Download what is missing; returns the files in their place among the downloads, and why
        some could not be reached."""
        sizes = downloads.sizes(download_directory(files[0]))
        done = {n: f.size for n, f in enumerate(files) if sizes.get(f.name) == f.size}
        waiting = {n: f.size for n, f in enumerate(files) if n not in done}
        shared = (files, downloads, _scratch(downloads))
        outcome = self._stage("downloading", stages.download_file, waiting, shared, done)
        unreachable = outcome.unreachable
        if not unreachable:
            downloads.remove(EXCHANGE)
            downloads.remove_temporary()
        return [replace(f, url=downloads.locate(download_path(f))) for f in files], unreachable

    def shuffle(self, preparation: Preparation) -> PrepareCorpusResult:
        """Sort, merge, write chunks and manifest."""
        began = time.monotonic()
        units = units_done(self._output)
        before = sum(map(_text_bytes, units.values()))
        unreachable: list[str] = []
        if len(units) < len(preparation.units):  # of 10 TB, entries are a gigabyte: read them once
            unreachable = self._sort(preparation, units)
            units = units_done(self._output)
        if unreachable:
            return PrepareCorpusResult(self._output.url, None, unreachable)
        self._check_seen(units, preparation.units)
        slices = self._merge(units, preparation.shuffle)
        self._write(units, slices, preparation)
        merges, chunks = merges_done(self._output), chunks_done(self._output)
        manifest = manifest_of(preparation, units, merges, chunks)
        manifest["unread"] = self._inputs.unread_record()
        self._output.write(MANIFEST, to_checked_json(dict(manifest)))
        result = _finished(self._output, manifest)
        result.seconds = time.monotonic() - began
        result.bytes_sorted = sum(map(_text_bytes, units.values())) - before
        return result

    def _sort(self, preparation: Preparation, done: Mapping[int, Sorted]) -> list[str]:
        units = preparation.units
        sizes = {
            n: sum(s.size + (s.file.size if is_hub_file(s.file) else 0) for s in unit)
            for n, unit in enumerate(units)
        }
        waiting = {n: size for n, size in sizes.items() if n not in done}
        doing = "downloading and sorting" if is_hub_file(preparation.files[0]) else "sorting"
        sorted_bytes = {n: _text_bytes(unit) for n, unit in done.items()}
        unreachable: list[str] = []
        deadly: dict[Split, str] = {}
        while waiting:
            shared = (
                Packed(units),
                deadly,
                preparation.shuffle,
                self._output,
                _scratch(self._output),
            )
            outcome = self._stage(
                doing, stages.sort_piece, waiting, shared, sorted_bytes, gives_up=True
            )
            unreachable += outcome.unreachable
            found = self._deadly_splits([units[n] for n in outcome.deadly], preparation.shuffle)
            if outcome.deadly and not found:
                number, how = next(iter(outcome.deadly.items()))
                names = ", ".join(sorted({split.file.url for split in units[number]}))
                raise PipelineError(f"sorting {names} {how}; see Ray's logs for more")
            deadly |= found
            waiting = {n: sizes[n] for n in outcome.deadly}
        return unreachable

    def _deadly_splits(
        self, units: Sequence[Sequence[Split]], shuffle: Shuffle
    ) -> dict[Split, str]:
        """The splits of some units that end the process which reads them, and how."""
        splits = [split for unit in units for split in unit]
        sizes = {n: split.size for n, split in enumerate(splits)}
        shared = (splits, shuffle, _scratch(self._output))
        outcome = self._stage(
            "looking for damage", stages.read_piece, sizes, shared, {}, gives_up=True
        )
        return {splits[n]: how for n, how in outcome.deadly.items()}

    def _check_seen(self, done: Sized, pieces: Sized) -> None:
        if len(done) < len(pieces):
            raise unshared_storage(f"--output {self._output.url}")

    def _merge(self, units: dict[int, Sorted], shuffle: Shuffle) -> list[Slice]:
        """The runs that chunks are made of."""
        runs = [run for _, unit in sorted(units.items()) for run in unit.runs]
        if shuffle.fine_cells is None:
            return [Slice(shuffle.grid, runs)]
        groups = merge_groups(runs)
        pieces = range(len(groups) * shuffle.cells)
        size = sum(map(_text_bytes, units.values())) // max(len(pieces), 1)
        done = merges_done(self._output)
        waiting = {n: size for n in pieces if n not in done}
        shared = (Packed(groups), shuffle, self._output)
        self._stage("merging", stages.merge_piece, waiting, shared, dict.fromkeys(done, size))
        done = merges_done(self._output)
        self._check_seen(done, pieces)
        self._output.remove(f"{EXCHANGE}/runs")
        return slices_of(done, shuffle)

    def _write(
        self, units: dict[int, Sorted], slices: list[Slice], preparation: Preparation
    ) -> None:
        sources = [source for unit in units.values() for source in unit.sources.values()]
        documents = sum(source.documents.documents for source in sources)
        broken = {
            f"{name}: {source.error}"
            for unit in units.values()
            for name, source in unit.sources.items()
            if source.error
        }
        if broken and not documents:
            first, *others = sorted(broken)
            more = f" (and {len(others)} files more, see rejects/ there)" if others else ""
            raise PipelineError(f"{self._output.url}: the input holds no document: {first}{more}")
        text_bytes = sum(map(_text_bytes, units.values()))
        ranges = key_ranges(documents, text_bytes, slices, preparation.settings, self._output)
        done = chunks_done(self._output)
        written = {n: chunk.documents.bytes for n, chunk in done.items()}
        each = text_bytes // len(ranges)
        waiting = {n: each for n in ranges if n not in done}
        chunk_format = preparation.settings["format"]
        grids = [part.grid for part in slices]
        shared = (ranges, grids, Packed(slices), preparation.shuffle, chunk_format, self._output)
        self._stage("writing chunks", stages.write_piece, waiting, shared, written)
        self._check_seen(chunks_done(self._output), ranges)


def _text_bytes(unit: Sorted) -> int:
    return sum(source.documents.bytes for source in unit.sources.values())


def _scratch(directory: OutputDirectory) -> Path:
    """The directory of files of the hub while a node reads them; every run has the same."""
    if directory.local:
        return Path(directory.path, EXCHANGE, "downloads")
    unique = hashlib.sha256(directory.url.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"blt-titan-{unique}")
