"""Directories that people have at hand: what their files tell of how the others are to be read.

Output of this project, downloaded repositories of the hub and its cache, and datasets that
``save_to_disk`` wrote are known by files that lie in them, such as manifests.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Any

from pipeline.corpus.formats import AUTO, FORMATS, file_format
from pipeline.corpus.named import ABOUT_DATA, HIDDEN, NOT_DATA, OTHER_SPLIT, in_other_splits
from pipeline.corpus.prepared import ManifestChunk, prepared_chunks, prepared_validation
from pipeline.errors import ConfigError, translated
from pipeline.storage.checked_json import parse_json
from pipeline.storage.listing import InputFile, Listing
from pipeline.storage.places import filesystem_of, open_input
from pipeline.storage.run_record import EXPORT, MANIFEST, PREPARE, RECORD

HELD_OUT = re.compile(r"(?P<name>.+)\.val\.[a-z.]+")
CHUNK = re.compile(r"(?P<name>.+)\.chunk\.\d+\.[a-z.]+")
DOCUMENTS = re.compile(r"(readme|licen[sc]e|copying|notice|citation|changelog|contributing)\b.*")
"""Names of files that come with data and are no part of it, in lower case."""
SNAPSHOT = re.compile(r"(?P<snapshot>(?P<repository>.*/datasets--[^/]+)/snapshots/[^/]+)/.+")
"""Paths of files of a dataset in the cache of ``huggingface_hub``."""
SPLIT_FILE = re.compile(r".+?-(?P<split>[\w.]+?)(-\d+-of-\d+)?\.arrow")
"""Names of files in the cache of the ``datasets`` library, such as ``my-data-test.arrow`` and
``my-data-train-00000-of-00002.arrow``."""
RESULT = "a result that the datasets library keeps"
CUT_OFF = "what a killed load_dataset left of a dataset that was built again"
MOST_RECORD_BYTES = 256 << 20
"""Larger files are no records of this project."""


class Directories:
    """Knows the kinds of the directories in a listing, from files that lie there."""

    def __init__(self, pattern: str, listing: Listing):
        """
        Raises:
            ConfigError: a prepared corpus, shard set or export is not finished, or a directory
                holds several splits and none for training, or several snapshots of one dataset.
        """
        self._chunks: dict[str, ManifestChunk] = {}
        self.held_out: dict[str, ManifestChunk] = {}
        """Validation files of prepared corpora, by URL."""
        self._prepared: set[str] = set()
        self._shard_sets: set[str] = set()
        self._exports: set[str] = set()
        self._have_manifests: set[str] = set()
        self._hub_copies: set[str] = set()
        self._saved: dict[str, set[str]] = {}
        """Files of saved datasets, by directory."""
        self._other_splits: set[str] = set()
        """Directories of splits other than train, in saved datasets."""
        self._held_out_files: set[str] = set()
        """Files of other splits than train, in copies of the hub's repositories."""
        self._built: dict[str, Collection[str]] = {}
        """Splits of the datasets that ``load_dataset`` built, by directory."""
        self._results: set[str] = set()
        """Files of ``map`` and the like beside those."""
        self._has_data = False
        files = listing.files
        filesystem, path = filesystem_of(pattern)
        self._is_directory = filesystem.isdir(path)
        for file in files:
            self._look_at(file)
        self._check_finished()
        # Of two snapshots that share a file, one has it, and it is skipped in the other.
        self._check_snapshots([*(file.url for file in files), *listing.skipped])
        self._check_chunks({file.url: file.size for file in files})
        self._know_built_splits(files)
        data = [form for form in FORMATS.values() if form.is_data]
        suffixes = tuple(suffix for form in data for suffix in form.suffixes)
        for copy in self._hub_copies:
            names = {
                file.url.removeprefix(f"{copy}/"): file.url
                for file in files
                if self._is_below(file, copy) and file.typed_name.endswith(suffixes)
            }
            self._held_out_files |= {names[name] for name in in_other_splits(names)}
        self._has_data = any(
            file.typed_name.endswith(suffixes) and self.reason_against(file) is None
            for file in files
        )

    def _look_at(self, file: InputFile) -> None:
        directory, _, name = file.url.rpartition("/")
        if name == MANIFEST:
            self._have_manifests.add(directory)
        if name in (MANIFEST, RECORD) and directory not in self._prepared:
            self._know_output(directory, _kind_of_output(file))
        elif name == ".gitattributes" or (name == "README.md" and _has_front_matter(file)):
            self._hub_copies.add(directory)
        elif "/.cache/huggingface/" in file.url:
            self._hub_copies.add(file.url.partition("/.cache/huggingface/")[0])
        elif name == "state.json":
            listed = _json(file).get("_data_files")
            if isinstance(listed, list):
                names = {part.get("filename") for part in listed if isinstance(part, dict)}
                self._saved[directory] = {f"{directory}/{name}" for name in names}
        elif name == "dataset_info.json":
            splits = _json(file).get("splits")
            self._built[directory] = splits if isinstance(splits, dict) else ()
        elif name == "dataset_dict.json":
            splits = _json(file).get("splits")
            if isinstance(splits, list) and len(splits) > 1:
                self._know_splits(directory, splits)

    def _know_output(self, directory: str, kind: str | None) -> None:
        if kind == PREPARE:
            self._prepared.add(directory)
            if self._is_directory:
                self._chunks |= prepared_chunks(directory) or {}
                if (validation := prepared_validation(directory)) is not None:
                    self.held_out[validation[0]] = validation[1]
        elif kind == "shards":
            self._shard_sets.add(directory)
        elif kind == EXPORT:
            self._exports.add(directory)

    def _know_splits(self, directory: str, splits: list[Any]) -> None:
        """
        Raises:
            ConfigError: none of the splits that were saved together is for training.
        """
        if "train" not in splits:
            raise _no_train(directory, splits, "the directory of one of them")
        self._other_splits |= {f"{directory}/{split}" for split in splits if split != "train"}

    def _know_built_splits(self, files: Iterable[InputFile]) -> None:
        """Know the files in the cache of the ``datasets`` library: ``NAME-SPLIT.arrow``, and
        ``cache-HASH.arrow``, which a program made of them.

        Raises:
            ConfigError: a directory holds several splits and none for training.
        """
        by_split: dict[str, dict[str, set[str]]] = {}
        for file in files:
            directory, _, name = file.url.rpartition("/")
            match = SPLIT_FILE.fullmatch(name)
            if match is None or directory not in self._built or directory in self._saved:
                continue
            if name.startswith("cache-"):
                self._results.add(file.url)
            elif match["split"] in self._built[directory]:
                splits = by_split.setdefault(directory, {})
                splits.setdefault(match["split"], set()).add(file.url)
        for directory, splits in by_split.items():
            if len(splits) > 1 and "train" not in splits:
                raise _no_train(directory, splits, "the files of one of them")
            for split in splits.keys() - {"train"} if len(splits) > 1 else ():
                self._held_out_files |= splits[split]

    def _check_finished(self) -> None:
        """
        Raises:
            ConfigError: an export or a shard set, and no validation set within another, is not
                finished: a part of its text would be read.
        """
        for directory in sorted(self._exports - self._have_manifests):
            raise ConfigError(
                f"--input {directory}: this export is not finished; run the command that makes it "
                "again, or name its files themselves for what is there"
            )
        for directory in sorted(self._shard_sets - self._have_manifests):
            if not any(directory.startswith(f"{other}/") for other in self._shard_sets):
                raise ConfigError(
                    f"--input {directory}: this shard set is not finished; run the command that "
                    f"makes it again, or name {directory}/shards/* for what is there"
                )

    def _check_snapshots(self, paths: Iterable[str]) -> None:
        """Know the snapshots of datasets as copies of their repositories.

        Raises:
            ConfigError: there are several of one dataset: most documents would be read twice.
        """
        snapshots: dict[str, str] = {}
        for path in paths:
            if match := SNAPSHOT.fullmatch(path):
                snapshot = match["snapshot"]
                self._hub_copies.add(snapshot)
                other = snapshots.setdefault(match["repository"], snapshot)
                if other != snapshot:
                    raise ConfigError(
                        f"--input {match['repository']}: holds the snapshots {other} and "
                        f"{snapshot} of one dataset; name the directory of one of them"
                    )

    def _check_chunks(self, sizes: dict[str, int]) -> None:
        """
        Raises:
            ConfigError: a chunk of a prepared corpus is gone, or has another size than was written.
        """
        for url, chunk in self._chunks.items():
            size = sizes.get(url)
            if size != chunk["file_bytes"]:
                what = "is gone" if size is None else f"has {size:,} bytes"
                raise ConfigError(
                    f"--input {url}: {what}; {chunk['file_bytes']:,} bytes were written: "
                    "restore it, or prepare the corpus anew with --overwrite"
                )

    def hash_of(self, file: InputFile) -> str | None:
        """The SHA-256 that a chunk's manifest states; None for other files."""
        chunk = self._chunks.get(file.url)
        return None if chunk is None else chunk["sha256"]

    def holds_chunk(self, file: InputFile) -> bool:
        """True if the file is a chunk of a prepared corpus."""
        return file.url in self._chunks

    def reason_against(self, file: InputFile) -> str | None:
        """Why the file is not read, as far as its place and name tell; None if it may be."""
        directory, _, name = file.url.rpartition("/")
        if file.url in self._chunks:
            return None
        if any(part.startswith((".", "_")) for part in PurePosixPath(file.name).parts):
            return HIDDEN
        if any(self._is_below(file, prepared) for prepared in self._prepared):
            is_chunk = directory in self._prepared and not self._is_directory
            if not (is_chunk and (CHUNK.fullmatch(name) or HELD_OUT.fullmatch(name))):
                return "part of a prepared corpus and no chunk of it"
        for shard_set in self._shard_sets:
            if self._is_below(file, shard_set) and directory != f"{shard_set}/shards":
                return "part of a shard set and no shard"
        if any(self._is_below(file, export) for export in self._exports):
            form = FORMATS.get(file_format(file, AUTO) or "")
            if form is not None and form.is_data and not form.is_columnar:
                return "part of an export and none of its data"
        if any(self._is_below(file, split) for split in self._other_splits):
            return OTHER_SPLIT
        if file.url in self._held_out_files:
            return OTHER_SPLIT
        if file.url in self._results:
            return RESULT
        built = directory.removesuffix(".incomplete")
        if built != directory and built in self._built:
            return CUT_OFF
        if directory in self._saved and file.url not in self._saved[directory]:
            return "not in the state.json of the saved dataset"
        if name in NOT_DATA:
            return ABOUT_DATA
        return None

    def is_data(self, file: InputFile) -> bool:
        """True unless the file comes with data and is no part of it."""
        name = PurePosixPath(file.name).name
        known = file_format(file, AUTO)
        if known is None or FORMATS[known].is_data:
            return True
        if any(self._is_below(file, copy) for copy in self._hub_copies):
            return False
        return not (self._has_data and DOCUMENTS.fullmatch(name.lower()))

    @staticmethod
    def _is_below(file: InputFile, directory: str) -> bool:
        return file.url.startswith(f"{directory}/")


def _no_train(directory: str, splits: Iterable[str], what: str) -> ConfigError:
    names = ", ".join(map(str, splits))
    return ConfigError(
        f"--input {directory}: holds the splits {names} and none called train; name {what}"
    )


def _kind_of_output(file: InputFile) -> str | None:
    """The job of this project that wrote a record or manifest; None for one of somebody else's."""
    values = _json(file)
    if values.get("stage") in (PREPARE, EXPORT):
        return str(values["stage"])
    is_shards = {"patcher", "columns"} <= values.keys() or {"splits", "made_with"} <= values.keys()
    return "shards" if is_shards else None


def _json(file: InputFile) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    if file.size > MOST_RECORD_BYTES:
        return {}
    with translated(f"--input {file.url}", ConfigError), open_input(file.url) as raw:
        data = raw.read()
    try:
        values = parse_json(data)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _has_front_matter(file: InputFile) -> bool:
    with translated(f"--input {file.url}", ConfigError), open_input(file.url) as raw:
        return raw.read(4) == b"---\n"
