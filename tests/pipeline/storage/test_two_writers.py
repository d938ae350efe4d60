"""Two jobs that want one output, in every order of their operations: locally, on a store that is
another server's (S3), and on one that takes conditional writes and ignores them.

A store knows nothing of leases but the operations that it is asked for, so a job is run through
these one by one; :mod:`support.stepping` tells how.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support.stepping import (
    Killed,
    Schedule,
    SteppedFileSystem,
    Writer,
    orders,
    random_orders,
)

from pipeline.errors import PipelineError
from pipeline.storage import lease
from pipeline.storage.lease import _Holder, _take
from pipeline.storage.output import OutputDirectory

KINDS = ("local", "s3", "s3 without conditions")


@pytest.fixture(scope="module")
def bucket(s3_server: dict[str, str]) -> Iterator[None]:
    from support.clusters import an_s3_bucket

    with an_s3_bucket(s3_server, "leases"):
        yield


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    if request.param != "local":
        request.getfixturevalue("bucket")
    return request.param


@dataclass
class Run:
    """One order of two writers' operations."""

    kind: str
    url: str
    choose: Callable[[int], int]
    sleepers_last: bool = True
    offsets: tuple[float, float] = (0.0, 0.0)
    """Of the writers' clocks, in seconds."""
    one_machine: bool = True
    inside: set[str] = field(default_factory=set)
    """The writers that believe that they hold the output."""
    most: int = 0
    """How many did so at a time."""

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.choose, sleepers_last=self.sleepers_last)
        for name, offset in zip("AB", self.offsets, strict=True):
            self.schedule.add(name, offset)

    def go(self, monkeypatch, *programs: Callable[["Run", Writer], Any]) -> list[Any]:
        me = _Holder.me()

        def who() -> _Holder:
            name = self.schedule.current.name
            # One machine: this process, so that it lives. Another one: nothing is known of it.
            machine = me.machine if self.one_machine else name
            return replace(me, token=name, host=f"host-{name}", machine=machine)

        with monkeypatch.context() as patch:
            clock = SimpleNamespace(monotonic=self.schedule.monotonic, sleep=self.schedule.sleep)
            patch.setattr(lease, "time", clock)
            patch.setattr(_Holder, "me", who)
            patch.setattr(lease, "_machine", lambda: who().machine)
            self.schedule.run(*(lambda writer, p=program: p(self, writer) for program in programs))
        return [writer.result for writer in self.schedule.writers]

    def output(self, writer: Writer) -> OutputDirectory:
        output = OutputDirectory(self.url)
        if output.local:
            return _SteppedDirectory(self.url, writer)
        ignores = self.kind == "s3 without conditions"
        output.filesystem = SteppedFileSystem(output.filesystem, writer, ignores_conditions=ignores)
        return output

    def leases(self) -> list[str]:
        return OutputDirectory(self.url).names("lease")


class _SteppedDirectory(OutputDirectory):
    """A local output, each of whose operations is a step."""

    def __init__(self, url: str, writer: Writer):
        super().__init__(url)
        for name in ("names", "read", "write", "create", "remove"):
            setattr(self, name, self._stepped(getattr(self, name), writer))

    @staticmethod
    def _stepped(operation: Callable[..., Any], writer: Writer) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            writer.gate()
            return operation(*arguments)

        return step


def take(run: Run, writer: Writer) -> Any:
    return _take(run.output(writer), "--output", Console(file=StringIO(), width=500))


def work(run: Run, writer: Writer) -> str:
    """A job: it takes the lease, works as long as two renewals succeed, and releases it."""
    held = take(run, writer)
    run.inside.add(writer.name)
    run.most = max(run.most, len(run.inside))
    for _ in range(2):
        run.schedule.sleep(10.0)
        if not held.renew():
            run.inside.discard(writer.name)
            held.release()
            return f"lost to {held.taken_by}"
    run.inside.discard(writer.name)
    held.release()
    return "done"


def chosen(kind: str, count: int) -> Iterator[Callable[[int], int]]:
    """Locally all orders in which A comes first; on a server, where steps take time, so many."""
    return orders() if kind == "local" else random_orders(range(count))


def test_of_two_writers_one_gets_the_output(kind, tmp_path, monkeypatch):
    results: dict[tuple[str, ...], int] = {}
    for n, choose in enumerate(chosen(kind, 8)):
        url = str(tmp_path / f"{n}") if kind == "local" else f"s3://leases/{tmp_path.name}-{n}"
        run = Run(kind, url, choose)
        ended = run.go(monkeypatch, work, work)
        assert run.most == 1, ended
        for result in ended:
            assert result == "done" or (
                isinstance(result, PipelineError) and "is being written to by" in str(result)
            ), ended
        assert "done" in ended and run.leases() == []
        said = tuple("done" if result == "done" else "refused" for result in ended)
        results[said] = results.get(said, 0) + 1
    # Each can be the one, or they come after each other.
    assert {("done", "refused"), ("refused", "done")} <= results.keys(), results
    print(kind, results)


def stopped_after(steps: int, run: Run) -> Callable[[int], int]:
    """B is stopped after so many steps until A works, and then goes on until it works, too."""

    def choose(count: int) -> int:
        b_goes = run.schedule.writers[1].steps < steps or (
            "A" in run.inside and "B" not in run.inside
        )
        return int(b_goes)

    return choose


def test_without_conditions_one_that_was_stopped_may_win_too_and_the_other_ends(
    bucket, tmp_path, monkeypatch
):
    both = 0
    for steps in range(1, 6):
        url = f"s3://leases/{tmp_path.name}-{steps}"
        run = Run("s3 without conditions", url, lambda count: 0, sleepers_last=False)
        run.schedule._choose = stopped_after(steps, run)
        ended = run.go(monkeypatch, work, work)
        assert run.leases() == []
        if run.most == 2:
            both += 1
            assert ended[1] == "done" and "lost to process" in ended[0] and "host-B" in ended[0]
        else:
            assert "done" in ended
    assert both


def killed(run: Run, writer: Writer) -> None:
    """A job that is killed at a step of taking the lease, or right after."""
    take(run, writer)
    raise Killed


@pytest.mark.parametrize("one_machine", [True, False])
def test_the_lease_of_a_driver_killed_at_any_step_is_taken_over(
    kind, tmp_path, monkeypatch, one_machine
):
    """Clocks of the machines differ by an hour, and nobody minds."""
    for n in range(12) if kind == "local" else range(1, 12, 3):
        url = str(tmp_path / f"{n}") if kind == "local" else f"s3://leases/{tmp_path.name}-{n}"
        offsets = (0.0, (-1) ** n * 3600.0)
        run = Run(kind, url, lambda count: 0, offsets=offsets, one_machine=one_machine)
        run.schedule.writers[0].kill_after = n
        with monkeypatch.context() as patch:
            if one_machine:  # what the system says of A's process
                alive = property(lambda holder: holder.token == "A")
                patch.setattr(_Holder, "has_ended", alive)
            ended = run.go(patch, killed, work)
        assert ended == [Killed, "done"], ended
        assert run.leases() == []
        waited = run.schedule.now - 20.0  # the two renewals of B
        assert waited < 5.1 if one_machine or n < 3 else waited < 200, (n, waited)


def taken_over(run: Run, writer: Writer) -> str:
    """A job on another machine that begins while A is stopped."""
    run.schedule.sleep(1.0)
    return work(run, writer)


def stops(run: Run, writer: Writer) -> str:
    """A job that is stopped for long, in virtual time, and then goes on."""
    held = take(run, writer)
    run.inside.add("A")
    run.schedule.sleep(300.0)
    alive = held.renew()
    run.inside.discard("A")
    held.release()
    return "renewed" if alive else f"lost to {held.taken_by}"


def test_a_holder_that_was_stopped_ends_whether_the_other_is_done_or_not(
    kind, tmp_path, monkeypatch
):
    url = str(tmp_path / "out") if kind == "local" else f"s3://leases/{tmp_path.name}"
    run = Run(kind, url, lambda count: 0, one_machine=False)
    ended = run.go(monkeypatch, stops, taken_over)
    assert ended == ["lost to another process", "done"] and run.leases() == []

    # B works when A goes on.
    def longer(run: Run, writer: Writer) -> str:
        run.schedule.sleep(1.0)
        held = take(run, writer)
        run.schedule.sleep(1000.0)
        renewed = held.renew()
        held.release()
        return "done" if renewed else "lost"

    run = Run(kind, f"{url}-2", lambda count: 0, one_machine=False)
    ended = run.go(monkeypatch, stops, longer)
    assert ended[0].startswith("lost to process") and "host-B" in ended[0]
    assert ended[1] == "done" and run.leases() == []


def test_a_takeover_of_one_that_goes_on_leaves_one_in_every_order(kind, tmp_path, monkeypatch):
    """A was stopped for so long that B, which watches it, may take it for dead; now both go on."""
    monkeypatch.setattr(lease, "PATIENCE_S", 8.0)

    def awakes(run: Run, writer: Writer) -> str:
        held = take(run, writer)
        run.schedule.sleep(20.0)
        alive = held.renew() and held.renew()
        held.release()
        return "renewed" if alive else f"lost to {held.taken_by}"

    results = set()
    for n, choose in enumerate(random_orders(range(40 if kind == "local" else 5))):
        url = str(tmp_path / f"{n}") if kind == "local" else f"s3://leases/{tmp_path.name}-{n}"
        run = Run(kind, url, choose, one_machine=False, sleepers_last=kind != "local")
        a, b = run.go(monkeypatch, awakes, taken_over)
        a_lost, b_done = str(a).startswith("lost"), b == "done"
        # B works only when A is done, or finds that it has lost the output.
        assert isinstance(a, PipelineError) or a_lost or a == "renewed", a
        assert run.leases() == [], (a, b)
        results.add((type(a).__name__ if isinstance(a, Exception) else a[:4], b_done))
    assert results


def test_the_time_of_an_outage_is_not_the_holders_silence(tmp_path, monkeypatch):
    """B's look at the lease takes as long as the storage is away, and A could not renew either."""

    def renews(run: Run, writer: Writer) -> str:
        held = take(run, writer)
        for pause in (10.0, 195.0, 10.0):  # the second one is the outage
            run.schedule.sleep(pause)
            assert held.renew()
        held.release()
        return "done"

    run = Run("local", str(tmp_path / "out"), lambda count: 0, one_machine=False)

    def watches(run: Run, writer: Writer) -> None:
        run.schedule.sleep(11.0)
        output = run.output(writer)
        names, looks = output.names, []

        def away(directory: str) -> list[str]:
            looks.append(directory)
            if len(looks) == 2:
                run.schedule.sleep(190.0)
            return names(directory)

        output.names = away
        _take(output, "--output", Console(file=StringIO(), width=500))

    done, refused = run.go(monkeypatch, renews, watches)
    assert done == "done" and "is being written to by" in str(refused), (done, refused)


def test_an_answer_that_is_lost_costs_no_lease(bucket, tmp_path, monkeypatch):
    """The store has created the file; the request is repeated, and is refused by what it wrote."""
    output = OutputDirectory(f"s3://leases/{tmp_path.name}")
    real, lost = output.filesystem._filesystem, []

    def pipe_file(*arguments: Any, **options: Any) -> None:
        type(real).pipe_file(real, *arguments, **options)
        if not lost:
            lost.append(arguments)
            raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(real, "pipe_file", pipe_file)
    with lease.held(output, "--output", Console(file=StringIO(), width=500)):
        assert lost and output.names("lease") == ["000001.json"]
    assert not output.names("lease")
