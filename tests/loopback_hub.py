"""A model hub on loopback, with open, gated and missing repositories."""

import functools
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conftest import ROOT, environment

SHA = "0123456789" * 4
LOAD_ALL = """
import json, sys
from model.checkpoint_files import CheckpointError
{imports}
for source in sys.argv[1:]:
    try:
        print(json.dumps({expression}))
    except CheckpointError as error:
        print(json.dumps(str(error)))
"""


def load_from_hub(
    endpoint: str, home: Path, sources: list[str], imports: str, expression: str
) -> list[str]:
    """``expression`` of each ``source``, or what is wrong with it.

    In a process of its own: huggingface_hub reads its settings when it is imported.
    """
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    settings |= {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    program = LOAD_ALL.format(imports=imports, expression=expression)
    run = [sys.executable, "-c", program, *sources]
    done = subprocess.run(run, env=environment(**settings), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


class Hub(SimpleHTTPRequestHandler):
    """The answers that huggingface_hub asks for lie in files; the rest of the hub is refusals.

    Of ``gated/listed`` the list of files is open, of ``gated/closed`` nothing; ``drops/it`` hangs
    up.
    """

    asked: list[str]

    def send_head(self):
        self.asked.append(self.path)
        owner, name = re.match(r"(?:/api/models)?/(\w+)/(\w+)/", self.path + "/").groups()
        listed = name == "listed" and self.path.startswith("/api")
        if owner == "drops":
            self.close_connection = True
        elif owner == "no" or (owner == "gated" and not listed):
            self.send_response(403 if owner == "gated" else 401)
            self.send_header("X-Error-Code", "GatedRepo" if owner == "gated" else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            return super().send_head()

    def end_headers(self):
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
        super().end_headers()

    def log_message(self, *_):
        pass


def publish(root: Path, name: str, write: Callable[[Path], None]) -> None:
    """Put what ``write`` writes into a repository."""
    files, api = root / name / "resolve" / SHA, root / "api" / "models" / name
    for directory in (files, api / "revision", api / "tree"):
        directory.mkdir(parents=True)
    write(files)
    (files / "photo.png").write_bytes(b"never fetched")
    (api / "revision" / "main").write_text(json.dumps({"id": name, "sha": SHA, "siblings": []}))
    listing = [(path.name, path.stat().st_size) for path in files.iterdir()]
    tree = [{"type": "file", "path": n, "size": size, "oid": n} for n, size in listing]
    (api / "tree" / SHA).write_text(json.dumps(tree))


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The endpoint, and the paths that were asked of it."""
    asked: list[str] = []
    handler = functools.partial(type("_", (Hub,), {"asked": asked}), directory=root)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
