"""An HTTP proxy in front of a server, that breaks some of the requests, as networks do."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("busy", "drop", "cut")
BUSY = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on as they are, Host and all: their signatures cover it."""

    protocol_version = "HTTP/1.1"
    upstream: str
    share: float
    """Of requests that are broken."""
    draw: random.Random
    lock: threading.Lock
    done: Counter[str]
    """Requests by what became of them."""
    away_until = 0.0
    """The monotonic time until which all connections are closed without an answer."""

    def handle_request(self) -> None:
        with self.lock:
            broken = self.draw.random() < self.share
            kind = self.draw.choice(KINDS) if broken else "passed"
            if time.monotonic() < self.away_until:
                kind = "drop"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind == "drop":
            self._count(kind)
            self.close_connection = True
        elif kind == "busy":
            self._count(kind)
            self._answer(503, "Slow Down", [("Content-Type", "application/xml")], BUSY)
        else:
            self._forward(kind, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

    def _forward(self, kind: str, body: bytes) -> None:
        upstream = http.client.HTTPConnection(self.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if kind == "cut" and len(content) > 1:
            self._count(kind)
            self._answer(answer.status, answer.reason, answer.getheaders(), content, cut=True)
            self.close_connection = True
        else:
            self._count("passed")
            self._answer(answer.status, answer.reason, answer.getheaders(), content)

    def _answer(
        self,
        status: int,
        reason: str,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        cut: bool = False,
    ) -> None:
        self.send_response_only(status, reason)
        kept = ("content-length", "transfer-encoding", "connection")
        for name, value in headers:
            if name.lower() not in kept:
                self.send_header(name, value)
        known = {name.lower(): value for name, value in headers}.get("content-length")
        # What HEAD is answered tells the size of a body that is not sent.
        size = known if self.command == "HEAD" and known else str(len(content))
        if status != 204:
            self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def _count(self, kind: str) -> None:
        with self.lock:
            self.done[kind] += 1

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def a_proxy_that_goes_away(server: str) -> Iterator[tuple[str, Callable[[float], None]]]:
    """A proxy for a server: its URL, and a function that makes it an outage of so many seconds."""
    settings = {"upstream": urlsplit(server).netloc, "share": 0.0, "done": Counter()}
    settings |= {"draw": random.Random(0), "lock": threading.Lock()}
    handler = type("_", (Proxy,), settings)

    def go_away(seconds: float) -> None:
        handler.away_until = time.monotonic() + seconds

    with _running(handler) as url:
        yield url, go_away


@contextmanager
def a_faulty_proxy(server: str, share: float) -> Iterator[tuple[str, Counter[str]]]:
    """A proxy for a server: its URL, and requests by what became of them.

    Args:
        share: of requests that are broken: answered with 503, dropped, or cut in mid-body.
    """
    done: Counter[str] = Counter()
    settings = {"upstream": urlsplit(server).netloc, "share": share, "done": done}
    settings |= {"draw": random.Random(0), "lock": threading.Lock()}
    handler = type("_", (Proxy,), settings)
    with _running(handler) as url:
        yield url, done


@contextmanager
def _running(handler: type[Proxy]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()
