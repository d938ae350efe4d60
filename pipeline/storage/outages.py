"""Outages of remote storage are waited out, here and nowhere else.

A server that restarts, a network that is gone for a minute, a store that is too busy: the clients
of stores (botocore, s3fs, …) repeat a request for some seconds, and then raise. Whoever uses
storage through :func:`patient` does not see that: each operation is repeated until it succeeds, or
until the outage has lasted :data:`PATIENCE_S` seconds. Someone who watches is told when the waiting
begins, and when it is over.

What is waited for :mod:`pipeline.storage.refusals` decides: errors of the transport and of a server
that is not well. Refusals (permission, credentials, a full quota), missing files, and all errors of
local disks (no room, no permission) are raised at once: waiting does not mend them.

An outage is one of a whole store, so its duration is counted per filesystem and not per operation:
at 300 s without a success all operations that wait raise, and each later one is tried once, until
one succeeds. Example: 1,000 files lie on a store that is gone for good. The first takes 300 s to
fail, the others take no longer than one attempt each.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.errors import message_of
from pipeline.storage.refusals import UNSAID, has_expired, is_outage, s3_answer

PATIENCE_S = 300.0
"""Seconds without any success after which an outage is an error."""
FIRST_CONTACT_S = 15.0
"""The same for a store that has not answered yet: the user may have misspelled its address."""
FIRST_WAIT_S = 1.0
"""Seconds before the first repetition; each further one waits twice as long, up to the longest."""
LONGEST_WAIT_S = 15.0
S3FS_TRIES = 16
"""How often s3fs tries a request by itself after :func:`let_s3fs_wait`; it waits 0.1 s and then 1.7
times as long each time, up to 15 s."""
RENEWAL_S = 10.0
"""Seconds within which credentials are looked for once."""

T = TypeVar("T")


def _log(message: str) -> None:
    logging.getLogger(__name__).warning(message)


class _Process:
    """The way from this process to whoever watches, and how far it trusts addresses."""

    say: Callable[[str], None] = staticmethod(_log)
    doubts_addresses = False


def say_by(say: Callable[[str], None], *, doubt_addresses: bool = False) -> None:
    """Choose who hears of outages; without a choice the log does.

    Args:
        say: gets the messages.
        doubt_addresses: a store that has never answered this process is not waited for as long as
            others: for commands, whose user has just typed the address. Workers get addresses that
            have answered their driver.
    """
    _Process.say, _Process.doubts_addresses = staticmethod(say), doubt_addresses


def say(message: str) -> None:
    """Tell whoever watches this process."""
    _Process.say(message)


_this_thread = threading.local()


@contextmanager
def not_waited_for() -> Iterator[None]:
    """Let operations of this thread fail at once while the block runs: the caller repeats them, or
    can do without them."""
    _this_thread.hurried = True
    try:
        yield
    finally:
        _this_thread.hurried = False


class Outage:
    """The state of one store, as this process has seen it."""

    def __init__(self, store: str):
        """
        Args:
            store: its name in messages.
        """
        self._store = store
        self._lock = threading.Lock()
        self._has_answered = False
        self._began: float | None = None
        self._announced = False

    def wait_out(self, operation: Callable[[], T]) -> T:
        """The result of an operation, which is repeated while there is an outage.

        Raises:
            Exception: the operation's own, if it is none of an outage, or one that has lasted too
                long.
        """
        failures = 0
        while True:
            try:
                result = operation()
            except Exception as error:
                if not is_outage(error):
                    raise
                failures += 1
                if not self._is_worth_waiting(error):
                    raise
                longest = min(FIRST_WAIT_S * 2 ** (failures - 1), LONGEST_WAIT_S)
                time.sleep(longest * random.uniform(0.5, 1))  # many workers fail at one moment
            else:
                self.ended()
                return result

    def ended(self) -> None:
        """Take note that the store has answered."""
        if self._has_answered and self._began is None:
            return
        with self._lock:
            announced, self._announced = self._announced, False
            self._has_answered, self._began = True, None
        if announced:
            _Process.say(f"{self._store}: answers again; the job goes on")

    def _is_worth_waiting(self, error: Exception) -> bool:
        if getattr(_this_thread, "hurried", False):
            return False
        now = time.monotonic()
        with self._lock:
            self._began = now if self._began is None else self._began
            is_doubtful = _Process.doubts_addresses and not self._has_answered
            patience = FIRST_CONTACT_S if is_doubtful else PATIENCE_S
            if now - self._began >= patience:
                return False
            is_first, self._announced = not self._announced, True
        if is_first:
            _Process.say(
                f"{self._store}: does not answer ({message_of(error)}); waiting up to "
                f"{patience:.0f} s for it"
            )
        return True


class PatientFileSystem:
    """A filesystem of fsspec whose operations wait outages out. It has the filesystem's own
    methods; opened files wait, too."""

    _WAITING = frozenset(
        [
            *("cat", "cat_file", "find", "glob", "info", "isdir", "isfile", "ls"),
            *("pipe_file", "put_file", "rm", "rm_file", "size"),
        ]
    )
    _REMOVING = frozenset(("rm", "rm_file"))

    def __init__(self, filesystem: Any, store: str):
        self._filesystem, self._store = filesystem, store
        self._outage = Outage(store)
        self._renewing, self._renewed = threading.Lock(), -RENEWAL_S

    def __reduce__(self) -> tuple[Any, ...]:
        return patient, (self._filesystem, self._store)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._filesystem, name)
        if name not in self._WAITING:
            return value

        def waiting(*arguments: Any, **options: Any) -> Any:
            attempts = 0

            def operation() -> Any:
                nonlocal attempts
                attempts += 1
                try:
                    return value(*arguments, **options)
                except FileNotFoundError:
                    # An attempt whose answer was lost has removed it.
                    if name not in self._REMOVING or attempts == 1:
                        raise

            return self._ask(operation)

        return waiting

    def _ask(self, operation: Callable[[], T]) -> T:
        """The result of an operation, which waits outages out.

        Credentials may expire in the middle of a long job. Those of roles and services renew
        themselves; those in the environment and in files are read once, when a filesystem is made.
        So they are looked for again when the store refuses them: somebody may keep a file of them
        fresh.

        Raises:
            PermissionError: they have expired, and there are no others.
        """
        try:
            return self._outage.wait_out(operation)
        except Exception as error:
            if not has_expired(error):
                raise
        with self._renewing:
            if time.monotonic() - self._renewed > RENEWAL_S:
                self._filesystem.connect(refresh=True)
                self._renewed = time.monotonic()
        try:
            return self._outage.wait_out(operation)
        except Exception as error:
            if not has_expired(error):
                raise
            is_sure = s3_answer(error)[0] != UNSAID
            what = "the credentials have expired" if is_sure else "have the credentials expired?"
            raise PermissionError(f"{message_of(error)} ({what}; renew them)") from error

    def exists(self, path: str) -> bool:
        """True if there is such a file or directory. The filesystems' own methods take any error
        for an answer."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def cat_ranges(
        self, paths: list[str], starts: list[int], stops: list[int], on_error: str = "return"
    ) -> list[Any]:
        """As the filesystem's own; those ranges that an outage cost are read again."""
        assert on_error == "return"
        results: list[Any] = [None] * len(paths)
        left = list(range(len(paths)))

        def operation() -> None:
            nonlocal left
            arguments = ([values[i] for i in left] for values in (paths, starts, stops))
            found = self._filesystem.cat_ranges(*arguments, on_error="return")
            for i, result in zip(left, found, strict=True):
                results[i] = result
            failed = (i for i in left if isinstance(results[i], Exception))
            left = [i for i in failed if is_outage(results[i]) or has_expired(results[i])]
            if left:
                raise results[left[0]]

        try:
            self._ask(operation)
        except Exception as error:
            if not left:
                raise
            results[left[0]] = error
        return results

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """A file whose reads wait, too, if it is one of fsspec that is read in blocks."""
        file = self._ask(lambda: self._filesystem.open(path, mode, **options))
        cache: Any = getattr(file, "cache", None)
        if mode == "rb" and hasattr(cache, "fetcher"):
            fetch = cache.fetcher
            # A cache that gets no block is as it was before: the block can be fetched again.
            cache.fetcher = lambda *range_: self._ask(lambda: fetch(*range_))
        return file


def let_s3fs_wait() -> None:
    """Let requests to S3 that go around :func:`patient` wait for some two minutes, too: those of
    PyTorch's checkpoints, which open files by themselves. s3fs repeats them, and says nothing."""
    import s3fs  # PyTorch imports it only where there are URLs of S3

    s3fs.S3FileSystem.retries = S3FS_TRIES
    s3fs.core.set_custom_error_handler(is_outage)


_patient: dict[tuple[int, str], PatientFileSystem] = {}
"""By identity: filesystems are equal that were made with the same arguments for other servers."""


def patient(filesystem: Any, store: str) -> PatientFileSystem:
    """A remote filesystem as this process uses it: one for all who name the same.

    Args:
        store: its name in messages.
    """
    key = (id(filesystem), store)
    return _patient.get(key) or _patient.setdefault(key, PatientFileSystem(filesystem, store))
