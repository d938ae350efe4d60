"""The work of a preparation: its stages on the cluster, one after the other; then the manifest.

In each stage (:mod:`pipeline.cluster.stage`) workers do a step of :mod:`pipeline.prepare.shuffle`
on one piece of work and commit an entry for it. A piece that has an entry is not done again.
:mod:`pipeline.prepare.job` begins or resumes the preparation.
"""

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from pipeline.cluster.packed import Packed
from pipeline.cluster.stage import StageOutcome, Work, run_stage, unshared_storage
from pipeline.corpus.inputs import Inputs
from pipeline.corpus.prepared import EXCHANGE, PreparedManifest
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError
from pipeline.prepare import stages
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.prepare.key_ranges import key_ranges, merge_groups, slices_of
from pipeline.prepare.manifest import check_chunks, manifest_of
from pipeline.prepare.plan import Preparation, chunks_done, merges_done, units_done
from pipeline.prepare.result import PrepareCorpusResult
from pipeline.prepare.shuffle import Shuffle, Slice, Sorted
from pipeline.storage.checked_json import to_checked_json
from pipeline.storage.hub import download_directory, download_path, is_hub_file
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST


def finished(output: OutputDirectory, manifest: PreparedManifest) -> PrepareCorpusResult:
    """The result where all is done."""
    check_chunks(manifest, output)
    output.remove(EXCHANGE)
    output.remove_temporary()
    broken = [source for source in manifest["sources"] if source["error"]]
    failures = [f"{source['name']}: {source['error']}" for source in broken]
    return PrepareCorpusResult(output.url, manifest, failures)


class Stages:
    """The stages of a preparation; each does what is left of it."""

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
        result = finished(self._output, manifest)
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
