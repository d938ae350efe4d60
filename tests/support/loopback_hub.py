"""A hub on loopback, for the genuine client: repositories, gated or not, and faults.

Clients may be other processes: :func:`serve` runs the server in a thread of the test, which sees
all requests and plans faults.
"""

import hashlib
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from support.jobs import ROOT, environment
from support.loopback_answers import Fault, Handler, Request

LOAD_ALL = """
import json, sys
from model.checkpoints.files import CheckpointError
{imports}
for source in sys.argv[1:]:
    try:
        print(json.dumps({expression}))
    except CheckpointError as error:
        print(json.dumps(str(error)))
"""


@dataclass
class Repository:
    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    head: str = ""
    gated: Literal["no", "files", "all"] = "no"


class Hub:
    """What is published, what was asked, and what is to go wrong."""

    def __init__(self, port: int):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.cdn = f"http://localhost:{port}/cdn"  # another host, to which tokens must not go
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.plans: list[tuple[str, Iterator[Fault | None]]] = []
        self.closing = threading.Event()
        self.objects: dict[str, bytes] = {}
        """What was uploaded, by SHA-256, committed or not."""
        self.has_xet = False
        """True while it has Xet storage, which some hubs lack."""
        self.xorbs: dict[str, int] = {}
        """Sizes of what that storage was given, by hash."""
        self.visibility: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def publish(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        kind: Literal["dataset", "model"] = "dataset",
        gated: Literal["no", "files", "all"] = "no",
        commit: str | None = None,
    ) -> str:
        """Commit these files to a repository's ``main``; gives the commit.

        Args:
            gated: "files" can be listed by anybody, as with most gated repositories.
        """
        content = repr(sorted(files.items())).encode()
        commit = commit or hashlib.sha1(content).hexdigest()
        repository = self.repositories.setdefault(f"{kind}s/{name}", Repository())
        repository.commits[commit] = dict(files)
        repository.head, repository.gated = commit, gated
        return commit

    def publish_models(self, directory: Path, write: Callable[[Path], None]) -> None:
        """What ``write`` writes, and a photo that nobody wants, as ``someone/model``, as
        ``gated/listed`` and ``gated/closed``, and as ``drops/it``, where connections end."""
        directory.mkdir(parents=True)
        write(directory)
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        files["photo.png"] = b"never fetched"
        for name, gated in (("someone/model", "no"), ("gated/listed", "files")):
            self.publish(name, files, kind="model", gated=gated)
        self.publish("gated/closed", files, kind="model", gated="all")
        self.faults("drops/it", itertools.repeat(Fault(hang_up=True)))

    def faults(self, pattern: str, faults: Iterable[Fault | None]) -> None:
        """The next answers to requests like ``GET /cdn/…`` in which ``pattern`` is found get these
        faults, one each; ``itertools.repeat(…)`` for all of them."""
        self.plans.append((pattern, iter(faults)))

    def fault(self, line: str) -> Fault | None:
        with self._lock:
            for pattern, faults in self.plans:
                if re.search(pattern, line):
                    for fault in faults:
                        return fault
        return None

    def asked(self, pattern: str) -> list[Request]:
        """Requests like ``GET /cdn/…`` in which ``pattern`` is found."""
        return [r for r in self.requests if re.search(pattern, f"{r.method} {r.path}")]

    def settings(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment of a client: huggingface_hub reads it when it is imported."""
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        settings |= {"no_proxy": "127.0.0.1,localhost", "PYTHONPATH": str(ROOT)}
        return environment(**settings, HF_TOKEN=token or "")  # and not the developer's own


@contextmanager
def serve(handler: type[Handler] = Handler) -> Iterator[Hub]:
    """A hub with nothing in it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub = server.hub = Hub(server.server_address[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()


def load_from_hub(
    hub: Hub, home: Path, sources: list[str], imports: str, expression: str
) -> list[str]:
    """``expression`` of each ``source``, or what is wrong with it, in a process of its own."""
    program = LOAD_ALL.format(imports=imports, expression=expression)
    run = [sys.executable, "-c", program, *sources]
    done = subprocess.run(run, env=hub.settings(home), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]
