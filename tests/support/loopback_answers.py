"""How the hub on loopback answers: the paths, statuses and headers of the real one, and faults."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, STRANGER = "hf_SecretOfTheTest", "hf_SecretOfAStranger"
"""Tokens: one that gated repositories are open to, and one that they are not."""
SMALL_FILES = (".json", ".jsonl", ".md", ".txt")
"""What git holds itself; of other files it holds pointers (LFS)."""
PAGE = 1000
"""Entries in a page of a tree."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer."""

    status: int | None = None
    """Instead of the answer, with the ``headers``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_up: bool = False
    """Nothing is answered."""
    cut: int | None = None
    """The connection ends after so many bytes of the body."""
    stall: int | None = None
    """Nothing comes any more after so many bytes of the body; the connection stays."""
    wrong: bool = False
    """The body has the right size and other bytes."""
    whole: bool = False
    """A range is not heeded: all of it comes."""
    shorter: int = 0
    """The body, and its headers, lack so many bytes."""


@dataclass
class Request:
    method: str
    path: str
    headers: Message
    status: int = 0
    sent: int = 0
    """Bytes of the body."""

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree_entry(path: str, data: bytes) -> dict[str, object]:
    if path.endswith(SMALL_FILES):
        return {"type": "file", "oid": git_oid(data), "size": len(data), "path": path}
    sha = sha256(data)
    lfs = {"oid": sha, "size": len(data), "pointerSize": 134}
    pointer = git_oid(sha.encode())  # an identity of its own: not the content's
    return {"type": "file", "oid": pointer, "size": len(data), "lfs": lfs, "path": path}


class RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str = ""):
        self.status = status
        self.headers = {"X-Error-Code": code} | ({"X-Error-Message": message} if message else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub = self.server.hub
        self.request_line = Request(self.command, unquote(self.path), self.headers)
        hub.requests.append(self.request_line)
        form = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        form = form.decode(errors="replace")  # pieces of files are none
        self.fault = hub.fault(f"{self.command} {unquote(self.path)}") or Fault()
        try:
            if self.fault.hang_up:
                self.close_connection = True
            elif self.fault.status:
                self.answer(self.fault.status, b"", self.fault.headers)
            else:
                self.route(urlsplit(self.path), form)
        except RefusedError as refusal:
            self.answer(refusal.status, b"", refusal.headers)
        except (BrokenPipeError, ConnectionResetError):  # the client was killed, or waits no more
            self.close_connection = True

    do_HEAD = do_POST = do_GET

    def route(self, url, form: str) -> None:
        path = unquote(url.path)
        kinds = r"(?P<kind>datasets/|models/)?(?P<name>[^/]+/[^/]+)"
        content = rf"/(cdn|api/resolve-cache)/{kinds}/(?P<sha>\w+)/(?P<path>.+)"
        if found := re.fullmatch(content, path):
            self.content(*self.find(found, found["sha"]), found["path"])
        elif found := re.fullmatch(rf"/{kinds}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", path):
            self.resolve(found)
        elif found := re.fullmatch(rf"/api/{kinds}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", path):
            self.tree(found, parse_qs(url.query))
        elif found := re.fullmatch(rf"/api/{kinds}/paths-info/(?P<revision>[^/]+)", path):
            wanted = set(parse_qs(form).get("paths", []))
            entries = [e for e in self.entries(found, "") if e["path"] in wanted]
            self.answer_json(entries)
        elif found := re.fullmatch(rf"/api/{kinds}(/revision/(?P<revision>[^/]+))?", path):
            commit, _ = self.find(found, found["revision"] or "main")
            private = self.server.hub.visibility.get(found["name"]) == "private"
            about = {"_id": "0", "id": found["name"], "sha": commit, "siblings": []}
            self.answer_json(about | {"private": private})
        else:
            raise RefusedError(404, "")

    def find(self, found: re.Match, revision: str, *, files: bool = False):
        """The commit, and its files."""
        key = f"{found['kind'] or 'models/'}{found['name']}"
        repository = self.server.hub.repositories.get(key)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, STRANGER):
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        if repository is None:
            raise RefusedError(404 if token else 401, "RepoNotFound", "Repository not found")
        closed = repository.gated == "all" or (files and repository.gated == "files")
        if closed and token != TOKEN and "/cdn/" not in self.path:
            raise RefusedError(403 if token else 401, "GatedRepo", "Access is restricted")
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            raise RefusedError(404, "RevisionNotFound", "Invalid rev id")
        return commit, repository.commits[commit]

    def resolve(self, found: re.Match) -> None:
        commit, files = self.find(found, found["revision"], files=True)
        path = found["path"]
        if path not in files:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        entry = tree_entry(path, files[path])
        where = f"{found['kind'] or 'models/'}{found['name']}/{commit}/{path}"
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" in entry:
            linked = {
                "X-Linked-Size": str(len(files[path])),
                "X-Linked-ETag": f'"{entry["lfs"]["oid"]}"',
            }
            location = f"{self.server.hub.cdn}/{where}?Signature=SecretOfTheCDN"
            self.answer(302, b"", headers | linked | {"Location": location})
        else:
            self.answer(307, b"", headers | {"Location": f"/api/resolve-cache/{where}"})

    def content(self, commit: str, files: Mapping[str, bytes], path: str) -> None:
        data = files[path]
        etag = {"ETag": f'"{git_oid(data)}"', "X-Repo-Commit": commit}
        if self.fault.wrong:
            data = bytes(byte ^ 1 for byte in data)
        data = data[: len(data) - self.fault.shorter]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or self.fault.whole:
            self.answer(200, data, etag)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        if start >= len(data):
            self.answer(416, b"", etag | {"Content-Range": f"bytes */{len(data)}"})
        else:
            span = f"bytes {start}-{stop - 1}/{len(data)}"
            self.answer(206, data[start:stop], etag | {"Content-Range": span})

    def entries(self, found: re.Match, below: str) -> list[dict]:
        _, files = self.find(found, found["revision"])
        parts = (path.split("/")[:-1] for path in files)
        folders = {"/".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}
        entries = [tree_entry(path, data) for path, data in files.items()]
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in folders]
        return sorted((e for e in entries if e["path"].startswith(below)), key=lambda e: e["path"])

    def tree(self, found: re.Match, query: dict[str, list[str]]) -> None:
        below = f"{found['path']}/" if found["path"] else ""
        entries = self.entries(found, below)
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = [e for e in entries if "/" not in e["path"].removeprefix(below)]
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(entries):
            here = f"{self.server.hub.endpoint}{urlsplit(self.path).path}"
            more["Link"] = f'<{here}?recursive=true&cursor={start + PAGE}>; rel="next"'
        self.answer_json(entries[start : start + PAGE], more)

    def answer_json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), headers or {})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.request_line.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = next((k for k in (self.fault.cut, self.fault.stall) if k is not None), len(body))
        self.wfile.write(body[:end])
        self.request_line.sent = len(body[:end])
        if self.fault.stall is not None:
            self.server.hub.closing.wait()
        self.close_connection |= end < len(body)

    def log_message(self, *_):
        pass
