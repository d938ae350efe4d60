"""Keep one known line of Ray's from users, an error that is none, and have the last word where Ray
ends this process.

Ray's C++ core, within the driver's process, writes a line to file descriptor 2 whenever it creates
an actor that has arguments in the object store and is started again when it ends. Each pool of Ray
Data's actors has such arguments, and ours have to be started again (see
:mod:`pipeline.cluster.stage`): the line is written in every run, as an error, and says nothing that
a user could act on. Their owner is the driver, and where that ends there is nothing to restart.

Why not otherwise: ``RAY_BACKEND_LOG_LEVEL`` would silence the core altogether, and with it the logs
of a local Ray's raylet, which inherits the driver's environment, and which people need when a node
runs out of memory. So whatever is written to the descriptor passes through a small process, which
leaves out this line and nothing else. It is a process and no thread, so that the last words of a
driver that crashes arrive. Python's own ``sys.stderr`` goes around it: a terminal stays one.

Ray's Python prints to standard output, from a thread of the driver, that a worker ended: among the
results, which another program may read as JSON. Within the block it prints to standard error.

Where the raylet of this machine ends, the core ends the driver, which cannot say anything any more.
So a driver says goodbye to the process when the block is over; where it ends without, the process
tells what to do.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

KNOWN = "has constructor arguments in the object store and max_restarts > 0"
"""A part of the line."""
GOODBYE = "<blt-titan: nothing more to filter>"
"""The line that a driver which is still there writes at the end of the block."""
LAST_WORD = (
    "error: this command was ended by force (killed, out of memory, or with Ray's raylet on this "
    "machine); what is committed stays, run it again to continue"
)
END_S = 5.0
_FILTER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
known, goodbye, last_word = (text.encode() for text in sys.argv[1:])
rest, is_over = b"", False
while data := os.read(0, 1 << 16):
    *lines, rest = (rest + data).split(b"\\n")
    is_over = is_over or any(goodbye in line for line in (*lines, rest))
    kept = (line.replace(goodbye, b"") for line in lines if known not in line)
    os.write(1, b"".join(line + b"\\n" for line in kept))
os.write(1, rest.replace(goodbye, b""))
if not is_over:
    os.write(1, b"\\n" + last_word + b"\\n" if rest else last_word + b"\\n")
"""


@contextmanager
def without_known_lines() -> Iterator[None]:
    """While the block runs, leave the line out of what is written to file descriptor 2, and send to
    standard error what is printed to standard output."""
    own, python = os.dup(2), sys.stderr
    process = subprocess.Popen(
        [sys.executable, "-ISc", _FILTER, KNOWN, GOODBYE, LAST_WORD],
        stdin=subprocess.PIPE,
        stdout=own,
        stderr=own,
        start_new_session=True,
    )
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    if python is sys.__stderr__:
        sys.stderr = os.fdopen(os.dup(own), "w", buffering=1, errors="backslashreplace")
    try:
        with redirect_stdout(python):
            yield
    finally:
        if sys.stderr is not python:
            sys.stderr.close()
            sys.stderr = python
        os.write(2, GOODBYE.encode())
        os.dup2(own, 2)  # closes the pipe: the filter writes the rest and ends
        os.close(own)
        with suppress(subprocess.TimeoutExpired):  # a child of this process may have the pipe, too
            process.wait(END_S)
