"""The record of a run: what it reads and with which settings, so that a rerun continues from there.

Each job writes ``run.json`` into its output before anything else. A rerun reads it, checks that the
command and the input are those that the run began with, and does what is left. All jobs share this
form; each job's record is a subclass that adds what that job needs.

A record names the job that wrote it in ``stage``: ``prepare`` or ``export``. The record of patch
shards has no ``stage``: it is older than the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from pipeline.errors import ConfigError, PipelineError
from pipeline.storage.checked_json import parse_checked_json, to_checked_json
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory

RECORD = "run.json"
MANIFEST = "manifest.json"
"""Each job writes its manifest last: an output that has one is finished."""
PREPARE, EXPORT = "prepare", "export"
"""The values of ``stage`` in records and manifests; patch shards have none."""
CONTENTS = {None: "patch shards", PREPARE: "a prepared corpus", EXPORT: "an export"}
"""The content of an output in words, by the stage that its record names."""
ANEW = "; --overwrite starts anew"
T = TypeVar("T")


@contextmanager
def reaching(flag: str) -> Iterator[None]:
    """
    Raises:
        ConfigError: an output cannot be reached; names the flag.
    """
    try:
        yield
    except PipelineError as error:
        raise ConfigError(f"{flag}: {error}") from error


class Written(NamedTuple):
    """All that a run writes beside its manifest and its record, in the order of removal."""

    directories: Sequence[str]
    files: Sequence[str] = ()


class RunRecord(ABC):
    """The task of a run: the base of each job's own record."""

    path: ClassVar[str] = RECORD
    stage: ClassVar[str | None] = None
    format_version: ClassVar[int | None] = None
    """The version of the record's form; None where records do not state one."""
    older_versions: ClassVar[tuple[int, ...]] = ()
    """Versions of records that are continued, too."""
    tells_what_to_remove: ClassVar[bool] = True
    """True if only the record knows which files the run wrote."""

    settings: dict[str, Any]
    """The settings that decide what is written: a rerun must share them."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The record's content beside stage, version and settings, as plain values."""

    @classmethod
    @abstractmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The record with these values. Values of a wrong shape may raise any exception."""

    @classmethod
    @abstractmethod
    def written(cls, values: dict[str, Any], output: OutputDirectory) -> Written:
        """All that a run with these values wrote, or may have written.

        Args:
            values: those of the record; none if there is no record, or a damaged one.
        """

    def begin(self, output: OutputDirectory) -> None:
        """Write the record: from now on the output belongs to this run."""
        head = {"stage": self.stage, "format_version": self.format_version}
        stated = {name: value for name, value in head.items() if value is not None}
        output.write(
            self.path, to_checked_json(stated | {"content": self.settings} | self.to_json())
        )

    @classmethod
    def resume(cls, output: OutputDirectory, flag: str = "--output") -> Self | None:
        """The run that the output belongs to; None if there is no record.

        Args:
            flag: the flag that names the output; errors begin with it.

        Raises:
            ConfigError: the record is another job's or another release's, it is damaged, or the
                output cannot be reached.
        """
        values = cls._values(output, flag)
        if values is None:
            return None
        version = values.get("format_version")
        if version not in (cls.format_version, *cls.older_versions):
            raise ConfigError(
                f"{flag} {output.url}: was begun by another release (format {version}){ANEW}"
            )
        return cls._parsed(cls.from_json, values, output, flag)

    @classmethod
    def check_removable(cls, output: OutputDirectory, flag: str = "--output") -> Written:
        """All that ``--overwrite`` has to remove.

        Raises:
            ConfigError: the record is another job's, or it is damaged and nothing else tells what
                the run wrote.
        """
        try:
            values = cls._values(output, flag) or {}
        except DamagedRecordError:
            if cls.tells_what_to_remove:
                raise
            values = {}
        return cls._parsed(lambda found: cls.written(found, output), values, output, flag)

    @classmethod
    def remove(cls, output: OutputDirectory, flag: str = "--output") -> None:
        """Remove all that a run has written, so that a new one can begin.

        The manifest goes first: what is half removed never looks finished. Where only the record
        knows what to remove it goes last, so that a removal that was killed can be repeated.

        Raises:
            ConfigError: see :meth:`check_removable`.
        """
        written = cls.check_removable(output, flag)
        output.remove(MANIFEST)
        if not cls.tells_what_to_remove:
            output.remove(cls.path)
        for directory in written.directories:
            output.remove(directory)
        if written.files:
            output.remove_files(written.files)
        output.remove(cls.path)

    @classmethod
    def _values(cls, output: OutputDirectory, flag: str) -> dict[str, Any] | None:
        """The values of this job's record."""
        with reaching(flag):
            if not output.exists(cls.path):
                return None
            data = output.read(cls.path)
        try:
            values = parse_checked_json(data)
        except ValueError as error:
            raise cls._damaged(output, flag, error) from error
        if not isinstance(values, dict):
            raise cls._damaged(output, flag, f"it is a {type(values).__name__}, not an object")
        stage = values.get("stage")
        if stage != cls.stage:
            contents = CONTENTS.get(
                stage if isinstance(stage, str | None) else "", "something else"
            )
            raise ConfigError(f"{flag} {output.url}: holds {contents}; choose another directory")
        if not isinstance(values.get("content"), dict):
            raise cls._damaged(output, flag, "it holds no settings (content)")
        return values

    @classmethod
    def _parsed(
        cls,
        parse: Callable[[dict[str, Any]], T],
        values: dict[str, Any],
        output: OutputDirectory,
        flag: str,
    ) -> T:
        try:
            return parse(values)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise cls._damaged(output, flag, what) from error

    @classmethod
    def _damaged(cls, output: OutputDirectory, flag: str, what: object) -> "DamagedRecordError":
        way_on = (
            "restore it, or choose another directory"
            if cls.tells_what_to_remove
            else "restore it, or start anew with --overwrite"
        )
        return DamagedRecordError(f"{flag} {output.url}: {cls.path} is damaged: {what}; {way_on}")

    def check_settings(self, where: str, now: Mapping[str, Any]) -> None:
        """
        Args:
            where: flag and URL of the output: errors begin with it.
            now: the settings of the command.

        Raises:
            PipelineError: a setting has changed since the run began; names it.
        """
        for name, value in now.items():
            if self.settings.get(name) != value:
                raise PipelineError(
                    f"{where}: was begun with {name.replace('_', '-')} "
                    f"{self.settings.get(name)!r}, now it is {value!r}{ANEW}"
                )


class DamagedRecordError(ConfigError):
    """A record cannot be read, or does not hold what a record holds."""


def changed_files(where: str, before: list[InputFile], now: list[InputFile]) -> list[InputFile]:
    """The files whose content is not what it was when the run began.

    Raises:
        PipelineError: a file is new or gone.
    """
    old = {file.url: file for file in before}
    new = {file.url: file for file in now}
    for url in sorted(old.keys() ^ new.keys()):
        what = "is gone" if url in old else "is new"
        raise PipelineError(f"{where}: input file {url} {what} since it was begun{ANEW}")
    return [file for url, file in new.items() if file != old[url]]


def changed_file_error(where: str, file: InputFile) -> PipelineError:
    """The error for an input file that has changed since the run began."""
    return PipelineError(f"{where}: input file {file.url} changed since it was begun{ANEW}")
