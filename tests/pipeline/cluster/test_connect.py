"""Clusters that do not take a driver in, and Ray's lines: what a user is told. Starts no Ray."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import grpc
import pytest
from support.clusters import free_port
from support.jobs import ROOT, environment

from pipeline.cli.command import Ended
from pipeline.cluster.connect import _check_command_line, _starting, check_cluster
from pipeline.cluster.known_lines import LAST_WORD
from pipeline.errors import ConfigError, PipelineError

TOKEN = "right" * 8


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def cluster():
    """The address of a server that answers as a cluster with a token does."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    handler = grpc.method_handlers_generic_handler(
        "ray.rpc.NodeInfoGcsService",
        {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)},
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def refused(address: str) -> str:
    began = time.monotonic()
    with pytest.raises(PipelineError) as error:
        check_cluster(address)
    assert time.monotonic() - began < 5
    return str(error.value)


def test_a_token_is_asked_for_in_one_sentence(cluster, monkeypatch, tmp_path):
    way_on = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to what `ray get-auth-token` prints"
    assert f"the cluster asks for a token, and there is none; {way_on}" in refused(cluster)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "and refuses this process's; " in refused(cluster) and "wrong" not in refused(cluster)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    check_cluster(cluster)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "there is none" in refused(cluster)
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    check_cluster(cluster)


def test_a_stale_address_is_named():
    nobody = f"127.0.0.1:{free_port()}"
    assert refused(nobody).startswith(f"RAY_ADDRESS {nobody}: the cluster cannot be reached: ")
    assert "unset RAY_ADDRESS" in refused(nobody)


def test_what_is_no_cluster_is_named():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert "what listens there is no Ray cluster" in refused(address)
        server.shutdown()


@pytest.mark.parametrize("error", [OSError("no room\nmore lines"), SystemExit(1), KeyError("x")])
def test_whatever_ray_raises_becomes_a_sentence(error):
    with (
        pytest.raises(PipelineError, match=r"^Ray cannot be started: .*; see its logs$") as raised,
        _starting("Ray cannot be started", "see its logs"),
    ):
        raise error
    assert "\n" not in str(raised.value)


def test_a_command_line_that_ray_cannot_take_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["job", "--input", os.fsdecode(b"data\xff/in")])
    with pytest.raises(ConfigError, match=r"holds bytes that are no UTF-8 \(b'\\xff'\), which Ray"):
        _check_command_line()


def test_sigterm_while_ray_starts_ends_the_job():
    """Ray's own handler exits with the signal's number."""
    with pytest.raises(Ended) as raised, _starting("Ray cannot be started", "see its logs"):
        raise SystemExit(signal.SIGTERM)
    assert raised.value.signal == signal.SIGTERM


@pytest.mark.parametrize("ending", ["", "os.abort()"])
def test_one_line_of_rays_is_left_out_and_all_else_arrives(ending):
    """And where the process ends without a word, the filter has the last."""
    program = f"""
        import os, sys
        from pipeline.cluster.known_lines import KNOWN, without_known_lines
        os.write(2, b"before\\n")
        with without_known_lines():
            print("from Python", file=sys.stderr)  # before what is too long to be written at once
            print("no result", flush=True)  # as Ray prints that a worker ended
            os.write(2, b"one\\n[E] core_worker.cc: Actor x " + KNOWN.encode() + b". If\\ntw")
            os.write(2, b"o\\n" + b"long " * 50_000 + b"\\n")
            os.write(2, b"last words")
            {ending}
        os.write(2, b"\\nafter\\n")
        print("again", file=sys.stderr)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    expected = ["before", "one", "two", "long " * 50_000, "from Python", "last words"]
    expected += ["no result"]
    assert done.stdout == ""
    expected += [LAST_WORD] if ending else ["after", "again"]
    assert sorted(lines) == sorted(expected), lines[:3]
    assert done.returncode == (-6 if ending else 0)
