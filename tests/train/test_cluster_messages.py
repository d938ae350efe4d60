"""The driver reads its workers' messages: whom it blames, and when it gives up."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from model.checkpoints.files import CheckpointError
from pipeline.errors import ConfigError, PipelineError
from train.cluster import launch
from train.cluster.failures import portable_error, training_error
from train.cluster.launch import MessageReader
from train.cluster.messages import FailureMessage, LineMessage, ResultMessage, StartMessage

LOST = RuntimeError("Connection closed by peer\nstack")


def failure(rank: int, error: Exception, permanent: bool = False) -> FailureMessage:
    return FailureMessage(rank, portable_error(error), permanent)


def test_lines_and_the_result_pass():
    lines: list[str] = []
    reader = MessageReader(lines.append)
    for message in (StartMessage(), LineMessage("step 1"), ResultMessage({"loss": 1.0})):
        reader.handle(message)
    assert lines == ["step 1"] and reader.metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([], "a worker's process died"),
        ([failure(0, LOST)], "rank 0 lost the connection to another one"),
        ([failure(0, LOST), failure(7, ValueError("x"))], "rank 7: ValueError: x"),
        (
            [
                failure(0, LOST),
                failure(3, ValueError("x")),
                failure(2, PipelineError("shard a: y")),
            ],
            "shard a: y",
        ),
    ],
)
def test_a_restart_names_the_failure_that_began_it(failures, cause):
    lines: list[str] = []
    reader = MessageReader(lines.append)
    for message in (StartMessage(), *failures, StartMessage()):
        reader.handle(message)
    told = "workers were started again, to continue from the last checkpoint: "
    assert lines == [told + cause]
    reader.handle(StartMessage())  # it was about the former start
    assert lines[1:] == [told + "a worker's process died"]


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (ConfigError("--x: is wrong"), ConfigError, "--x: is wrong"),
        (CheckpointError("step-3: is another model's"), ConfigError, "step-3: is another model's"),
        (TypeError("x"), PipelineError, "cannot begin: rank 1: TypeError: x"),
    ],
)
def test_wrong_settings_are_not_tried_again(error, raised, told):
    reader = MessageReader(print)
    reader.handle(StartMessage())
    with pytest.raises(raised) as caught:
        reader.handle(failure(1, error, permanent=True))
    assert type(caught.value) is raised and str(caught.value) == told
    # After a restart the settings are known to be right.
    reader = MessageReader(lambda line: None)
    for message in (StartMessage(), failure(0, LOST), StartMessage()):
        reader.handle(message)
    reader.handle(failure(1, error, permanent=True))


def test_what_is_said_when_restarts_are_used_up():
    error = RuntimeError()
    error.worker_failures = {0: LOST, 1: ValueError("x")}  # type: ignore[attr-defined]
    advice = "; the same command continues from the last checkpoint"
    assert str(training_error(error)) == f"training failed: rank 1: ValueError: x{advice}"
    assert str(training_error(OSError("no room\n"))) == f"training failed: no room{advice}"


def test_messages_that_are_gone_with_their_node(monkeypatch):
    """One sentence, and no traceback of Ray's."""

    class Gone:
        def __init__(self, **_: object):
            pass

        def get(self, timeout: float) -> None:
            raise ActorDiedError

    here = SimpleNamespace(get_node_id=lambda: "00" * 28)
    monkeypatch.setattr(launch.ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(launch, "Queue", Gone)
    monkeypatch.setattr(launch, "_Trainer", lambda *_, **__: None)
    monkeypatch.setattr(launch, "_Fit", lambda _: SimpleNamespace(is_alive=lambda: True))
    with pytest.raises(PipelineError, match=r"training failed: The actor died .* continues from"):
        launch.train_on_ray([], launch.Workers(1, 1, 0), max_failures=0, print_line=print)
