"""For tests of jobs on clusters: a Ray cluster to submit to, and an object store."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import s3fs

from support.jobs import ROOT, environment


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def ray_cli(*arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "ray"), *map(str, arguments)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@contextmanager
def a_head_node(directory: Path, **variables: str) -> Iterator[dict[str, str]]:
    """A head node with its job server; gives the environment of someone who submits to it.

    ``HEAD_NODE`` in it is the address for drivers that join.

    Args:
        variables: of its environment, which jobs inherit.
    """
    port, dashboard, agent = free_port(), free_port(), free_port()
    # The cluster has a token of its own: whether Ray asks for one by default depends on what else
    # was run on the machine.
    token = secrets.token_hex(32)
    # `python`, which the job is started with, is that of an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, PATH=path, **variables)
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
            *("--port", str(port), "--num-cpus", "3", "--include-dashboard", "true"),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            # Another Ray on this machine has the usual one.
            *("--dashboard-agent-listen-port", str(agent)),
        ],
        env=env,
        stdout=(directory / "head.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        # Asked by HTTP: each `ray job list` would take seconds of CPU time.
        authorization = {"Authorization": f"Bearer {token}"}
        for _ in range(240):
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{address}/api/jobs/", headers=authorization, trust_env=False)
                if answer.is_success:
                    break
            assert head.poll() is None, (directory / "head.log").read_text()
            time.sleep(0.25)
        assert answer.is_success, answer.text
        yield env | {"RAY_ADDRESS": address, "HEAD_NODE": f"127.0.0.1:{port}"}
    finally:
        # It would take half a minute to end by itself.
        lose(head)


@contextmanager
def another_node(directory: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A node of two CPUs that joins the cluster of a head node; gives its process.

    Args:
        env: as :func:`a_head_node` gives it.
    """
    log = directory / "node.log"
    with log.open("w") as said:
        node = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus", "2"),
                *("--address", env["HEAD_NODE"]),
                *("--dashboard-agent-listen-port", str(free_port())),
            ],
            env={name: value for name, value in env.items() if name != "RAY_ADDRESS"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            time.sleep(0.1)
        yield node
    finally:
        lose(node)


def lose(node: subprocess.Popen[bytes]) -> None:
    """Kill a node and all that runs on it."""
    if node.poll() is not None:
        return
    for process in [*psutil.Process(node.pid).children(recursive=True), node]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait(60)


class S3Server:
    """A real S3 server that checks signatures. It may be killed and started again, with what is
    stored on it and at the same address."""

    variables: dict[str, str]
    """The environment to use it with."""
    process: subprocess.Popen[bytes]

    def __init__(self, directory: Path):
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": "test-key", "secretKey": "test-secret"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
        ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        grpc = [f"-{name}.port.grpc={free_port()}" for name in ports]
        self._log = directory / "server.log"
        self._command = [
            *(str(Path(sys.executable).parent / "weed"), "server", f"-dir={directory}"),
            *("-ip=127.0.0.1", "-s3", f"-s3.config={directory}/s3.json"),
            *(f"-{name}.port={port}" for name, port in ports.items()),
            *grpc,
            *("-volume.max=200", "-master.volumeSizeLimitMB=64"),
            # Their ports are fixed: a second server at the same time would end at once.
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def an_s3_server(directory: Path) -> Iterator[dict[str, str]]:
    """An S3 server; gives the environment to use it with."""
    server = S3Server(directory)
    server.start()
    try:
        yield server.variables
    finally:
        server.kill()


@contextmanager
def an_s3_bucket(server: dict[str, str], name: str) -> Iterator[None]:
    """A new bucket, with the environment to use it. Files of tests share a server, not a bucket."""
    with pytest.MonkeyPatch.context() as settings:
        for variable, value in server.items():
            settings.setenv(variable, value)
        s3fs.S3FileSystem.clear_instance_cache()  # of other servers
        filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
        for attempt in range(60):
            try:
                filesystem.mkdir(name)
                break
            except Exception:  # the server may have been started this moment
                if attempt == 59:
                    raise
                time.sleep(1)
        yield
