"""One writer per output: a job holds a lease while it writes, on local disks and object stores.

A lease is a file ``lease/NNNNNN.json`` in the output. The one with the highest number counts; it
names the process that holds it and how often it was renewed, and its holder removes it at the end.
Files are only ever created where there is none, in one atomic step, so of several jobs that want
the same number one gets it.

A job that finds a lease looks whether its holder lives. On the same machine the process tells.
From elsewhere only renewals do: a lease that does not change for :data:`PATIENCE_S` seconds, by the
clock of the one who waits, is dead, and the job takes the next number. Clocks of machines are never
compared, and time in which the storage did not answer does not count: the holder could not have
renewed its lease. A holder finds at its next renewal that it was stopped for longer, and ends its
job: there is a higher number, or its own file is gone or another's.

Example: job A holds 1 and is killed. B and C, on other machines, see 1 unchanged for the whole time
and both want 2. B creates it. C's creation fails, so C looks again, sees 2 being renewed and ends
with a sentence that names B.

**Stores that replace where they should create.** The atomic step is a conditional write
(``If-None-Match``), which some S3 servers take and ignore: B and C would both create 2. So whoever
has created a file on a remote store tries to create it again. If the store lets it, the store
ignores conditions, and the last of all who wrote counts: after :data:`SETTLING_S` seconds, in which
everybody who saw no file has long written one, the file names the holder. A job that was stopped
for these very seconds believes that it holds what another has written since; its next renewal ends
it as above.
"""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from pipeline.errors import PipelineError
from pipeline.storage.outages import not_waited_for
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import reaching

LEASES = "lease"
RENEWAL_S = 15.0
"""Seconds between two renewals."""
PATIENCE_S = 90.0
"""Seconds without a renewal after which a holder elsewhere is taken for dead."""
POLL_S = 1.0
AGAIN_S = 20.0
"""Seconds between two signals to a process that has lost its lease, which may have to clean up."""
SETTLING_S = 5.0
"""Seconds after which nobody is about to write who saw no lease, on stores without conditional
writes."""


@dataclass(frozen=True)
class _Holder:
    """The process that holds a lease."""

    token: str
    host: str
    machine: str
    """The running system and its process numbers: equal where :attr:`pid` means the same."""
    pid: int
    started: str
    """When the process started, as the system counts; process numbers are used again."""
    since: str
    """Time of the lease's creation, for people."""
    renewals: int = 0

    @classmethod
    def me(cls) -> "_Holder":
        pid = os.getpid()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid), now)

    @property
    def has_ended(self) -> bool:
        """True if it is known to be dead, from here."""
        return self.machine == _machine() and _started(self.pid) != self.started

    @property
    def is_here(self) -> bool:
        return self.machine == _machine()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def held(output: OutputDirectory, flag: str, console: Console) -> Iterator[None]:
    """Hold the lease of an output while the block runs.

    Args:
        flag: the flag that names the output, for errors.

    Raises:
        PipelineError: another process writes to the output, or took it over while this one was
            stopped.
    """
    lease = _take(output, flag, console)
    lease.start_renewing()
    try:
        yield
    except KeyboardInterrupt:
        if lease.taken_by is None:
            raise
        raise PipelineError(
            f"{flag} {output.url}: was taken over by {lease.taken_by}: this process gave no sign "
            "of life; what it committed stays"
        ) from None
    finally:
        lease.release()


class _Lease:
    """A lease that this process holds."""

    def __init__(self, output: OutputDirectory, number: int, holder: _Holder):
        self.taken_by: _Holder | str | None = None
        self._output, self._number, self._holder = output, number, holder
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def start_renewing(self) -> None:
        self._thread.start()

    def _renew(self) -> None:
        while not self._ends.wait(RENEWAL_S):
            # Storage that is away is tried again.
            with suppress(PipelineError, OSError), not_waited_for():
                if not self.renew():
                    break
        # Python drops what a signal raises within a callback of its own, such as one after a fork:
        # a process without its lease is told again.
        while not self._ends.is_set():
            # A job in the background may be deaf to Ctrl-C.
            hears = callable(signal.getsignal(signal.SIGINT))
            number = signal.SIGINT if hears else signal.SIGTERM
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            self._ends.wait(AGAIN_S)

    def renew(self) -> bool:
        """Give a sign of life; False if another process may have taken this one for dead.

        Raises:
            PipelineError: the storage does not answer.
        """
        latest = _latest(self._output)
        if latest is None or latest[1].token != self._holder.token:
            self.taken_by = "another process" if latest is None else latest[1]
            return False
        self._holder = replace(self._holder, renewals=self._holder.renewals + 1)
        self._output.write(_path(self._number), _content(self._holder))
        return True

    def release(self) -> None:
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()
        # A lease that cannot be removed now is one of a process that has ended.
        with suppress(PipelineError, OSError), not_waited_for():
            if not self._is_mine():
                return
            _remove(self._output, _path(self._number))
            if self._output.local:
                Path(self._output.path, LEASES).rmdir()
                self._output.leave()
                Path(self._output.path).rmdir()  # if nothing was written at all

    def _is_mine(self) -> bool:
        with suppress(FileNotFoundError):
            return _read(self._output, self._number).token == self._holder.token
        return False


def _take(output: OutputDirectory, flag: str, console: Console) -> _Lease:
    me = _Holder.me()
    watched: tuple[int, _Holder] | None = None
    began = 0.0
    while True:
        asked = time.monotonic()
        with reaching(flag):
            latest = _latest(output)
        if time.monotonic() - asked > RENEWAL_S:  # the holder may not have reached it either
            began = time.monotonic()
        number = 1 if latest is None else latest[0] + 1
        if latest is not None and not latest[1].has_ended:
            holder = latest[1]
            if holder.is_here or (watched is not None and watched != latest):
                raise PipelineError(
                    f"{flag} {output.url}: is being written to by {holder}; wait until it is done, "
                    "or stop it"
                )
            if watched is None:
                watched, began = latest, time.monotonic()
                console.print(
                    f"{flag} {output.url}: belongs to {holder}; waiting up to {PATIENCE_S:.0f} s "
                    "for a sign of life",
                    highlight=False,
                    markup=False,
                )
            if asked - began < PATIENCE_S:  # as of that look: this process may have stopped since
                time.sleep(POLL_S)
                continue
        with reaching(flag):
            if _create(output, number, me):
                for earlier in _numbers(output):
                    if earlier < number:
                        _remove(output, _path(earlier))
                return _Lease(output, number, me)
        watched = None


def _create(output: OutputDirectory, number: int, me: _Holder) -> bool:
    """Create a lease; False if another process has it, or a higher one."""
    output.create(_path(number), _content(me))
    # The answer alone does not tell: a repeated request finds what the first one has written.
    if not _counts(output, number, me):
        return False
    if output.local or not output.create(_path(number), _content(me)):
        return True
    time.sleep(SETTLING_S)
    return _counts(output, number, me)


def _counts(output: OutputDirectory, number: int, me: _Holder) -> bool:
    """True if the lease that counts is this one; a lesser one of this process is removed."""
    latest = _latest(output)
    if latest is not None and latest[1].token == me.token:
        return True
    with suppress(FileNotFoundError):
        if _read(output, number).token == me.token:
            _remove(output, _path(number))
    return False


def _latest(output: OutputDirectory) -> tuple[int, _Holder] | None:
    """The number and holder of the lease that counts."""
    for number in _numbers(output):
        with suppress(FileNotFoundError):  # released in between
            return number, _read(output, number)
    return None


def _numbers(output: OutputDirectory) -> list[int]:
    """The numbers of all leases, the highest first; not what other processes are about to make
    leases of."""
    names = (name.removesuffix(".json") for name in output.names(LEASES))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _read(output: OutputDirectory, number: int) -> _Holder:
    values = output.read_json(_path(number))
    try:
        return _Holder(**values)
    except TypeError as error:
        raise PipelineError(
            f"{output.locate(_path(number))}: is no lease: {error}; remove it if no job writes to "
            "this output"
        ) from error


def _remove(output: OutputDirectory, name: str) -> None:
    with suppress(FileNotFoundError):
        output.remove(name)


def _path(number: int) -> str:
    return f"{LEASES}/{number:06d}.json"


def _content(holder: _Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _machine() -> str:
    """Names the running system and its process numbers; differs from all others'."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 (no file)
    except OSError:  # no Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def _started(pid: int) -> str:
    """When a process started, in ticks; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self").exists():
        return ""
    try:  # no Linux: that it lives has to do
        os.kill(pid, 0)
    except OSError:
        return ""
    return "runs"
