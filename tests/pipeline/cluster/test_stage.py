"""A stage on a local Ray: what the driver learns, what ends it, how often workers fetch and set up.

The functions that workers run are nested: Ray sends those by value, and tests cannot be imported by
workers.
"""

import gc
import os
import signal
import socket
import time
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ray.actor import ActorHandle
from rich.console import Console

from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster import pool, progress, stage
from pipeline.cluster.alone import TRIES
from pipeline.cluster.progress import Reporter, show_progress, start_progress
from pipeline.cluster.software import LIBRARIES, SOURCES, difference, software
from pipeline.cluster.stage import StageOutcome, run_stage, unshared_storage
from pipeline.errors import BadDocumentError, PipelineError, UnreachableFileError

PIECES = dict.fromkeys(range(40), 10)


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=100)


def test_nothing_to_do_starts_nothing(console, monkeypatch):
    monkeypatch.setattr(stage, "connect", lambda workers: pytest.fail("joined Ray"))
    assert run_stage("idling", print, {}, "shared", console, done={0: 5}) == StageOutcome(
        {}, [], {}
    )


@pytest.mark.parametrize("setup", [None, lambda shared: shared], ids=["tasks", "actors"])
class TestRunStage:
    @pytest.fixture(autouse=True)
    def _joined(self, local_ray):
        pass

    def test_messages_come_back_by_piece(self, setup, console):
        def work(piece: int, shared: dict[int, str], report: Reporter) -> str | None:
            report(7)
            return shared.get(piece)

        words = {31: "late", 2: "early", 4: ""}
        outcome = run_stage("counting", work, PIECES, words, console, workers=2, setup=setup)
        assert list(outcome.messages.items()) == [(2, "early"), (31, "late")]
        assert outcome.unreachable == []

    def test_one_piece_per_worker_needs_no_pool(self, setup, console, monkeypatch):
        """The start of a pool takes longer than a small run does."""

        def work(piece: int, shared: int, report: Reporter) -> str:
            return str(piece * shared)

        monkeypatch.setattr(pool, "in_pool", lambda *_: pytest.fail("started a pool"))
        outcome = run_stage("counting", work, {3: 1, 7: 1}, 2, console, workers=2, setup=setup)
        assert outcome == StageOutcome({3: "6", 7: "14"}, [], {})
        with pytest.raises(pytest.fail.Exception, match="started a pool"):
            run_stage("counting", work, PIECES, 2, console, workers=2, setup=setup)

    def test_an_unreachable_file_is_listed_and_the_rest_is_done(self, setup, console, tmp_path):
        """Messages that are received are not kept."""

        def work(piece: int, directory: Path, report: Reporter) -> str | None:
            if piece in (5, 17):
                raise UnreachableFileError(f"file {piece}: the server went away")
            (directory / str(piece)).touch()
            return None if piece == 3 else str(2 * piece)

        received: dict[int, str] = {}
        outcome = run_stage(
            "reading", work, PIECES, tmp_path, console, setup=setup, receive=received.__setitem__
        )
        rest = PIECES.keys() - {5, 17}
        lost = [f"file {piece}: the server went away" for piece in (5, 17)]
        assert outcome == StageOutcome({}, lost, {})
        assert received == {piece: str(2 * piece) for piece in rest - {3}}
        assert {int(path.name) for path in tmp_path.iterdir()} == rest

    def test_a_piece_that_ends_its_worker_is_given_up_and_the_rest_is_done(
        self, setup, console, tmp_path
    ):
        def work(piece: int, directory: Path, report: Reporter) -> str:
            with (directory / f"{piece}.{uuid4().hex}").open("w"):
                pass
            tries = len(list(directory.glob(f"{piece}.*")))
            if piece == 5 or (piece == 9 and tries < 3):
                os.kill(os.getpid(), signal.SIGKILL)
            return str(piece)

        arguments = ("reading", work, PIECES, tmp_path, console)
        outcome = run_stage(*arguments, workers=2, setup=setup, gives_up=True)
        assert outcome.messages == {piece: str(piece) for piece in PIECES if piece != 5}
        assert outcome.deadly == {5: "ended the process that read it, each of 3 times"}
        # Once in the pool, and then alone.
        assert len(list(tmp_path.glob("5.*"))) == 1 + TRIES
        if setup is None:
            with pytest.raises(PipelineError, match="reading: piece 5 ended the process"):
                run_stage("reading", work, {5: 1}, tmp_path, console)

    def test_a_fatal_error_stops(self, setup, console, tmp_path):
        def work(piece: int, directory: Path, report: Reporter) -> None:
            if piece == 0:
                raise BadDocumentError("line 3: not JSON")
            time.sleep(0.2)
            (directory / str(piece)).touch()

        many = dict.fromkeys(range(200), 10)
        with pytest.raises(PipelineError, match=r"^line 3: not JSON$"):
            run_stage("reading", work, many, tmp_path, console, workers=1, setup=setup)
        assert len(list(tmp_path.iterdir())) < len(many) / 2


def test_actors_of_failed_tasks_are_let_go(local_ray, console, tmp_path):
    """Such an actor is started again, and would keep the CPU that the repeated piece waits for."""

    def work(piece: int, directory: Path, report: Reporter) -> str:
        if not list(directory.iterdir()):
            (directory / "ended").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return str(piece)

    def pool_actors() -> list[ActorHandle]:
        handles = (each for each in gc.get_objects() if isinstance(each, ActorHandle))
        return [handle for handle in handles if "MapWorker" in str(handle)]

    gc.collect()
    gc.disable()
    try:
        arguments = ("reading", work, PIECES, tmp_path, console)
        outcome = run_stage(*arguments, workers=1, setup=lambda shared: shared)
        left = pool_actors()
    finally:
        gc.enable()
    assert len(outcome.messages) == len(PIECES)
    assert left == []


def traced(directory: Path) -> Any:
    """An object that leaves a file, named by the process, each time that it is unpickled."""

    def unpickle(directory: Path) -> Path:
        (directory / f"{os.getpid()}-{uuid4()}").touch()
        return directory

    class Traced:
        def __reduce__(self) -> tuple[Any, ...]:
            return unpickle, (directory,)

    return Traced()


def processes(directory: Path) -> list[str]:
    """The processes that left the files, one item per file."""
    return [path.name.split("-")[0] for path in directory.iterdir()]


@pytest.mark.parametrize("setup", [None, lambda shared: shared], ids=["tasks", "actors"])
def test_shared_is_fetched_once_per_process(setup, local_ray, console, tmp_path):
    def work(piece: int, directory: Path, report: Reporter) -> str:
        assert directory.is_dir()
        return str(os.getpid())

    outcome = run_stage("working", work, PIECES, traced(tmp_path), console, setup=setup)
    fetches = processes(tmp_path)
    assert len(fetches) < len(PIECES) and len(set(fetches)) == len(fetches)
    assert set(outcome.messages.values()) <= set(fetches)
    assert len(outcome.messages) == len(PIECES)


@pytest.mark.parametrize("pieces", [1, len(PIECES)])
def test_a_setup_that_fails_is_told_in_its_own_words(local_ray, console, pieces):
    """A GPU may have no room for a model: every worker fails before its first piece."""

    def setup(shared: str) -> None:
        raise PipelineError(shared)

    def work(piece: int, shared: None, report: Reporter) -> None:
        raise AssertionError("there is nothing to work with")

    few = dict(list(PIECES.items())[:pieces])
    with pytest.raises(PipelineError) as told:
        run_stage("patching", work, few, "node7: no memory", console, workers=2, setup=setup)
    assert str(told.value) == "node7: no memory"


def test_setup_runs_once_per_actor(local_ray, console, tmp_path):
    def setup(directory: Path) -> tuple[str, int]:
        name = f"{os.getpid()}-{uuid4()}"
        (directory / name).touch()
        return name, os.getpid()

    def work(piece: int, state: tuple[str, int], report: Reporter) -> str:
        assert state[1] == os.getpid()
        return state[0]

    outcome = run_stage("working", work, PIECES, tmp_path, console, workers=2, setup=setup)
    actors = {path.name for path in tmp_path.iterdir()}
    assert len(actors) == len(set(processes(tmp_path))) <= 2
    assert len(outcome.messages) == len(PIECES) and set(outcome.messages.values()) <= actors


def test_progress_counts_reports_and_what_was_done_before(local_ray, console, monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.1)

    def wait_for(line: str) -> None:
        stop = time.monotonic() + 60
        while line not in console.file.getvalue():
            assert time.monotonic() < stop, console.file.getvalue()
            time.sleep(0.05)

    estimates, done = {0: 4_000_000, 1: 4_000_000}, {2: 2_000_000}
    earlier, of_stage = start_progress("before"), start_progress("working")
    with show_progress(console, estimates, done, of_stage) as finished:
        wait_for("working: 2.0 of about 10.0 MB · estimating the rate")
        earlier.put({1: WorkCounts(bytes=4_000_000)})  # late: that stage has ended
        report = Reporter(of_stage, 0)
        report(1_000_000)
        report(2_000_000)  # too soon after the first: not sent
        wait_for("working: 3.0 of about 10.0 MB")
        finished(0, report.finish())
        # What is left is thought to be as much less than expected as what is done.
        wait_for("working: 5.0 of about 8.0 MB")
    assert "5.0 of about 10.0 MB" not in console.file.getvalue()


def test_workers_with_other_software_than_their_driver_are_named(local_ray, console, monkeypatch):
    """They would write other bytes, and nobody would know why."""
    here = dict(software())
    assert here.keys() == {SOURCES, *LIBRARIES} and difference(software()) is None

    def work(piece: int, shared: None, report: Reporter) -> None:
        report(1)

    for other in ({}, {"torch": "1.0"}, {SOURCES: "0", "pyarrow": "9.0"}):
        driver = tuple((here | other).items())
        monkeypatch.setattr(progress, "software", lambda driver=driver: driver)
        run_stage("counting", work, {0: 1, 1: 1}, None, console, workers=2)
    said = " ".join(console.file.getvalue().split())
    assert said.count("install the same on all nodes") == 2
    host = socket.gethostname()
    assert f"{host} has torch {here['torch']}; the driver of this job has torch 1.0: " in said
    assert f"{SOURCES} {here[SOURCES]}, pyarrow {here['pyarrow']}; the driver" in said
    assert difference((("torch", here["torch"]),)) is None  # a driver may lack libraries


def test_unshared_storage_names_the_place():
    assert str(unshared_storage("--output /data")) == (
        "--output /data: what workers committed cannot be seen from here; is it on storage that "
        "all nodes share?"
    )
