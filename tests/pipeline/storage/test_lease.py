"""One writer per output: who holds a lease, who may take it over, and what the others are told."""

import json
import signal
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from pipeline.errors import PipelineError
from pipeline.storage import lease
from pipeline.storage.lease import _Holder, held
from pipeline.storage.output import OutputDirectory


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path):
    url = str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}"
    yield OutputDirectory(url)
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    for name, seconds in (
        ("RENEWAL_S", 0.1),
        ("PATIENCE_S", 1.0),
        ("POLL_S", 0.02),
        ("AGAIN_S", 0.2),
    ):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def console():
    return Console(file=StringIO(), width=500)


def leave(output, number=1, **changes):
    """Leave the lease of another process."""
    holder = replace(_Holder.me(), **{"token": "other", "host": "far", "machine": "far"} | changes)
    output.write(f"lease/{number:06d}.json", json.dumps(asdict(holder)).encode())


def test_a_lease_is_held_renewed_and_removed(output, console):
    with held(output, "--output", console):
        (name,) = output.names("lease")
        deadline = time.monotonic() + 5
        while not output.read_json(f"lease/{name}")["renewals"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert output.read_json(f"lease/{name}")["renewals"]
    assert not output.names("lease")
    if output.local:  # as if nobody had been there
        assert not Path(output.path).exists()


def test_a_second_writer_on_this_machine_is_refused_at_once(output, console):
    with held(output, "--output", console):
        message = r"--output .*: is being written to by process \d+ on .*, since 2.*; wait until"
        with pytest.raises(PipelineError, match=message), held(output, "--output", console):
            pass
    with held(output, "--output", console):
        pass


def test_the_lease_of_a_killed_process_is_taken_over_at_once(output, console):
    leave(output, machine=lease._machine(), pid=1 << 22)
    leave_again = replace(_Holder.me(), started="before this process began")
    with held(output, "--output", console):
        assert output.names("lease") == ["000002.json"]
    output.write("lease/000007.json", json.dumps(asdict(leave_again)).encode())
    with held(output, "--output", console):
        assert output.names("lease") == ["000008.json"]
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("since", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_a_holder_elsewhere_is_dead_when_it_gives_no_sign(output, console, since):
    leave(output, since=since)
    began = time.monotonic()
    with held(output, "--output", console):
        assert time.monotonic() - began >= 1
        assert output.names("lease") == ["000002.json"]
    assert f"on far, since {since}; waiting up to 1 s" in console.file.getvalue()


def test_a_holder_elsewhere_that_renews_is_alive(output, console):
    leave(output)
    threading.Timer(0.3, leave, (output,), {"renewals": 1}).start()
    with pytest.raises(PipelineError, match="written to by process"):
        held(output, "--output", console).__enter__()
    assert output.names("lease") == ["000001.json"]


def test_of_many_that_wait_for_a_dead_holder_one_gets_the_lease(output, console, monkeypatch):
    leave(output)
    # Each thread stands for a machine.
    me = _Holder.me
    monkeypatch.setattr(
        _Holder, "me", lambda: replace(me(), machine=f"machine {threading.get_ident()}")
    )
    ready, results = threading.Barrier(5), []

    def wait_for_it():
        ready.wait()
        try:
            with held(output, "--output", console):
                results.append("held")
                time.sleep(1.5)
        except PipelineError as error:
            results.append(str(error))

    threads = [threading.Thread(target=wait_for_it) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("held") == 1
    assert sum("is being written to by" in result for result in results) == 4


def test_what_others_are_about_to_make_a_lease_of_stays(output, console):
    leave(output)
    output.write("lease/.a1", b"{}")  # a process is killed, or goes on, after it wrote this
    with held(output, "--output", console):
        assert output.names("lease") == [".a1", "000002.json"]


@pytest.fixture
def hears_ctrl_c():
    """Tests that run in the background are deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_holder_that_was_taken_for_dead_ends(output, console, hears_ctrl_c):
    message = r"was taken over by process \d+ on far, since"
    with pytest.raises(PipelineError, match=message), held(output, "--output", console):
        leave(output, number=2)
        with suppress(KeyboardInterrupt):  # as Python itself drops some
            time.sleep(60)
        time.sleep(60)
    assert output.names("lease") == ["000002.json"]


def test_a_damaged_lease_is_named(output, console):
    output.write("lease/000001.json", b'{"pid": 1}')
    with pytest.raises(PipelineError, match=r"lease/000001.json: is no lease: .*; remove it if no"):
        held(output, "--output", console).__enter__()


def test_a_file_is_created_once(output):
    with ExitStack() as stack:
        results = []
        for i in range(8):
            thread = threading.Thread(
                target=lambda i=i: results.append(output.create("a/b", b"%d" % i))
            )
            thread.start()
            stack.callback(thread.join)
    assert sorted(results) == [False] * 7 + [True]
    assert output.names("a") == ["b"]
