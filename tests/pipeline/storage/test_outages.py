"""Outages of storage: what is waited for, how long, what is said, and what is not an outage."""

import errno
import pickle
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import aiohttp
import botocore.exceptions
import fsspec
import httpx
import pytest
import s3fs
from s3fs.errors import translate_boto_error
from support.clusters import an_s3_bucket
from support.faulty_proxy import a_proxy_that_goes_away

from pipeline.errors import PipelineError
from pipeline.storage import outages
from pipeline.storage.listing import list_files
from pipeline.storage.outages import (
    Outage,
    is_outage,
    let_s3fs_wait,
    not_waited_for,
    patient,
    say_by,
)
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import filesystem_of, open_input

REQUEST = SimpleNamespace(real_url="http://s3")
ENDPOINT = botocore.exceptions.EndpointConnectionError(endpoint_url="http://s3")


def refused(status: int, code: str) -> BaseException:
    """An answer of S3 as s3fs raises it."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(botocore.exceptions.ClientError(answer, "PutObject"))


@pytest.fixture
def said(monkeypatch):
    """What is said of outages, which here pass a hundred times as fast."""
    for name in ("PATIENCE_S", "FIRST_CONTACT_S", "FIRST_WAIT_S", "LONGEST_WAIT_S"):
        monkeypatch.setattr(outages, name, getattr(outages, name) / 100)
    messages: list[str] = []
    say_by(messages.append)
    yield messages
    say_by(outages._log)


@pytest.mark.parametrize(
    "error",
    [
        ENDPOINT,
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://s3"),
        botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        aiohttp.ServerDisconnectedError(),
        httpx.ConnectError("no route"),
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.EBUSY, "Please reduce your request rate."),
        OSError(errno.EIO, "An error occurred (502)"),
        aiohttp.ClientResponseError(REQUEST, (), status=503),
        refused(500, "InternalError"),
        refused(503, "SlowDown"),
        refused(502, "Bad Gateway"),
        refused(409, "ConditionalRequestConflict"),
        refused(400, "RequestTimeout"),
        refused(400, "KMS.ThrottlingException"),
        refused(509, "BandwidthLimitExceeded"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_may_pass_are_waited_out(said, error):
    failures = [error, error]

    def operation():
        if failures:
            raise failures.pop()
        return "read"

    assert is_outage(error)
    assert Outage("s3://bucket").wait_out(operation) == "read"
    first, last = said
    assert first.startswith("s3://bucket: does not answer (") and first.endswith("3 s for it")
    assert last == "s3://bucket: answers again; the job goes on"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError("Access Denied"),
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.ParamValidationError(report="key"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EINVAL, "The specified bucket is not valid."),
        aiohttp.ClientResponseError(REQUEST, (), status=403),
        aiohttp.InvalidURL("x"),
        ValueError("text"),
        KeyError("text"),
        refused(403, "QuotaExceeded"),
        refused(507, "XMinioStorageFull"),
        refused(400, "EntityTooLarge"),
        refused(403, "SomethingOfAnotherStore"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_do_not_pass_are_raised_at_once(said, error):
    attempts = []

    def operation():
        attempts.append(1)
        raise error

    with pytest.raises(type(error)):
        Outage("s3://bucket").wait_out(operation)
    assert attempts == [1] and not said


def fail():
    raise ENDPOINT


def test_an_outage_has_one_duration_for_all_operations(said):
    outage = Outage("s3://bucket")
    outage.wait_out(lambda: None)
    began = time.monotonic()
    for _ in range(20):  # of the first waiting, all others are told
        with pytest.raises(botocore.exceptions.EndpointConnectionError):
            outage.wait_out(fail)
    assert 3 <= time.monotonic() - began < 5
    assert len(said) == 1
    outage.wait_out(lambda: None)
    assert len(said) == 2


def test_a_command_doubts_an_address_that_has_never_answered(said):
    say_by(said.append, doubt_addresses=True)
    outage = Outage("s3://misspelled")
    began = time.monotonic()
    with pytest.raises(botocore.exceptions.EndpointConnectionError):
        outage.wait_out(fail)
    assert time.monotonic() - began < 1


def test_who_does_not_wait_gets_the_error_at_once(said):
    outage, began = Outage("s3://bucket"), time.monotonic()
    with not_waited_for(), pytest.raises(botocore.exceptions.EndpointConnectionError):
        outage.wait_out(fail)
    assert time.monotonic() - began < 0.5 and not said


def test_local_files_are_not_waited_for(said, tmp_path):
    filesystem, _ = filesystem_of(str(tmp_path))
    assert not isinstance(filesystem, outages.PatientFileSystem)
    assert filesystem_of(f"file://{tmp_path}")[0] is not None and not said


def test_a_removal_whose_answer_was_lost_is_done(said):
    memory = fsspec.filesystem("memory")

    class Lossy:
        def __getattr__(self, name):
            return getattr(memory, name)

        def rm(self, path):
            if not memory.exists(path):
                raise FileNotFoundError(path)
            memory.rm(path)
            raise ConnectionResetError

    memory.pipe_file("/lossy/a", b"")
    store = patient(Lossy(), "memory://lossy")
    store.rm("/lossy/a")
    assert not store.exists("/lossy/a")
    with pytest.raises(FileNotFoundError):
        store.info("/lossy/a")


@pytest.fixture(scope="module")
def bucket(s3_server):
    with an_s3_bucket(s3_server, "outages"):
        yield


@pytest.fixture
def away(bucket, s3_server, monkeypatch):
    """A function that makes the S3 server of this test go away for so many seconds."""
    with (
        a_proxy_that_goes_away(s3_server["AWS_ENDPOINT_URL"]) as (url, go_away),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        # The clients' own repetitions would hide short outages.
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        yield go_away
    s3fs.S3FileSystem.clear_instance_cache()


def test_nothing_that_reads_or_writes_s3_notices_an_outage(away, said, monkeypatch):
    monkeypatch.setattr(outages, "PATIENCE_S", 30.0)
    output = OutputDirectory("s3://outages/out")
    output.write("a.json", b"[1]")
    output.write("big", bytes(20 << 20))
    with open_input("s3://outages/out/big") as opened:
        opened.read(10)
        for act, expected in (
            (lambda: output.write("b.json", b"[2]"), None),
            (lambda: output.read("a.json"), b"[1]"),
            (lambda: output.names(), ["a.json", "b.json", "big"]),
            (lambda: output.sizes()["a.json"], 3),
            (lambda: output.exists("none"), False),
            (lambda: output.read_all(["a.json", "b.json"]), [b"[1]", b"[2]"]),
            (lambda: output.read_ranges(["a.json"] * 2, [0, 1], [1, 2]), [b"[", b"1"]),
            (lambda: output.read_into("a.json", 1, memoryview(bytearray(1))), 1),
            (lambda: output.create("c", b""), True),
            (lambda: output.remove("c"), None),
            (lambda: len(list_files("s3://outages/out").files), 3),
            (lambda: len(opened.read()), (20 << 20) - 10),
        ):
            s3fs.S3FileSystem.clear_instance_cache()
            away(0.2)
            assert act() == expected
    assert said.count("s3://outages: answers again; the job goes on") >= 8, said


def test_an_outage_that_stays_is_an_error_that_names_the_output(away, said):
    output = OutputDirectory("s3://outages/out")
    assert not output.exists("a")
    away(60)
    with pytest.raises(PipelineError, match="s3://outages/out: cannot be used: "):
        output.names()
    with pytest.raises(PipelineError, match="cannot write s3://outages/out/a: "):
        output.write("a", b"")
    away(0)
    output.write("a", b"")


def test_a_filesystem_is_sent_to_other_processes():
    filesystem, _ = filesystem_of("memory://x")
    assert isinstance(filesystem, outages.PatientFileSystem)
    assert pickle.loads(pickle.dumps(filesystem)) is filesystem  # of this process, again


def test_threads_say_it_once(said):
    outage = Outage("s3://bucket")
    until = time.monotonic() + 0.5

    def operation():
        if time.monotonic() < until:
            raise ENDPOINT

    threads = [threading.Thread(target=outage.wait_out, args=(operation,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2, said


class TemporaryCredentials(BaseHTTPRequestHandler):
    """An S3 server that takes the session token ``valid`` and no other."""

    protocol_version = "HTTP/1.1"
    valid = ""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refuses = self.headers.get("X-Amz-Security-Token") != self.valid
        body = b"" if self.command == "PUT" else b"abcd"
        if refuses:
            code, text = "ExpiredToken", "The token has expired."
            body = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
        self.send_response(400 if refuses else 200)
        for name, value in {"Content-Length": len(body), "ETag": '"e"'}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_HEAD = do_PUT = do_GET

    def log_message(self, *_):
        pass


def test_credentials_that_are_renewed_in_a_file_are_used(said, tmp_path, monkeypatch):
    """Tokens of STS count for hours, a job takes days: somebody keeps the file fresh."""

    def write_token(token: str) -> None:
        lines = ("aws_access_key_id=k", "aws_secret_access_key=s", f"aws_session_token={token}")
        (tmp_path / "credentials").write_text("\n".join(("[default]", *lines)))

    server = ThreadingHTTPServer(("127.0.0.1", 0), TemporaryCredentials)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setattr(outages, "RENEWAL_S", 0.0)
    s3fs.S3FileSystem.clear_instance_cache()
    TemporaryCredentials.valid = "0"
    write_token("0")
    output = OutputDirectory("s3://bucket/out")
    opened = open_input("s3://bucket/out/a")
    for n, act in enumerate(
        (
            lambda: output.write("a", b"abcd"),
            lambda: output.read("a"),
            lambda: output.size("a"),
            lambda: output.read_ranges(["a", "b"], [0, 0], [4, 4])[1],
            lambda: open_input("s3://bucket/out/a").read(),
            opened.read,
        )
    ):
        TemporaryCredentials.valid = str(n + 1)
        with pytest.raises(PipelineError if n < 4 else PermissionError) as refusal:
            act()
        assert "credentials" in str(refusal.value) and "renew them" in str(refusal.value)
        write_token(str(n + 1))
        assert act() in (None, b"abcd", 4)
    assert not said
    server.shutdown()
    server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


def test_requests_that_go_around_wait_too_once_s3fs_is_told(away, said, monkeypatch):
    let_s3fs_wait()  # the fixture sets it back
    try:
        filesystem = s3fs.S3FileSystem()
        away(1.0)
        filesystem.pipe_file("outages/checkpoint", b"step")
        away(1.0)
        assert filesystem.cat_file("outages/checkpoint") == b"step"
    finally:
        s3fs.core.set_custom_error_handler(lambda error: False)
    assert not said
