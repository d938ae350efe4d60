"""The software of a process, as far as it decides the bytes that are written.

All nodes of a cluster should have the same. Ray refuses nodes of another Python or Ray; another
release of a library it takes: shards would be right and differ in their bytes, or entropies would
be rounded otherwise, and nobody would know why. So each worker compares itself with its driver.
"""

import hashlib
import socket
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("numpy", "orjson", "pyarrow", "torch")
"""Libraries that compute, or write files. A release of torch for GPUs is told from one for CPUs
elsewhere (:mod:`pipeline.patch.devices`)."""
SOURCES = "sources of blt-titan"

Software = tuple[tuple[str, str], ...]
"""Names and versions."""


@lru_cache(maxsize=1)
def software() -> Software:
    """That of this process."""
    versions = {SOURCES: _sources()}
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):  # a driver may lack what workers need
            versions[library] = metadata.version(library).partition("+")[0]
    return tuple(versions.items())


def _sources() -> str:
    """The beginning of a hash of our sources."""
    digest = hashlib.sha256()
    packages = Path(__file__).parents[2]  # each worker runs this: nothing is imported to find them
    for package in ("model", "pipeline"):
        for path in sorted((packages / package).rglob("*.py")):
            digest.update(f"{path.relative_to(packages)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def difference(driver: Software) -> str | None:
    """A sentence for whoever watches, if this process has other software than its driver."""
    there = dict(driver)
    other = {n: v for n, v in software() if n in there and there[n] != v}
    if not other:
        return None
    here = ", ".join(f"{name} {version}" for name, version in other.items())
    of_driver = ", ".join(f"{name} {there[name]}" for name in other)
    return (
        f"{socket.gethostname()} has {here}; the driver of this job has {of_driver}: what they "
        "write may differ in its bytes; install the same on all nodes"
    )
