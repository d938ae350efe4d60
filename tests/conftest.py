"""Shared pieces: small models, a small corpus of real text, a way to run the job."""

import json
import os
import pydoc_data.topics
import random
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from browser import open_browser
from playwright.sync_api import Browser
from xdist.scheduler import LoadFileScheduling

from model import EntropyModel, EntropyModelConfig, NGramEntropyModel, save_entropy_model
from model.tokenizer import encode_documents
from pipeline.cluster.connect import connect

# Of every process that tests start, too: there are as many tests at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "jobs" / "patch_corpus.py"

torch.set_num_threads(1)


class OneProcessAFile(LoadFileScheduling):
    """With several processes (pytest-xdist), a file's tests share one, for their fixtures; so do
    the files that start a Ray head node, whose agents have ports of their own."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        head_node = Path(file).stem in ("test_cluster", "test_pretrain")
        return "head nodes" if head_node else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneProcessAFile:
    return OneProcessAFile(config, log)


def topics() -> list[tuple[str, str]]:
    """Real text that every Python has: ``(id, text)`` of its documentation's topics, 0.7 MB."""
    return sorted(pydoc_data.topics.topics.items())


def sharpen(model: torch.nn.Module, factor: float, seed: int = 0) -> None:
    """Spread scores and logits, and tell norms from one another: all are 1 to begin with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def small_model() -> EntropyModel:
    """Random weights, sharp enough that entropies spread over their whole range."""
    torch.manual_seed(0)
    config = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    model = EntropyModel(config).eval()
    sharpen(model, 3)
    return model


@pytest.fixture(scope="session")
def small_model_directory(
    small_model: EntropyModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("entropy-model")
    save_entropy_model(small_model, directory)
    return directory


@pytest.fixture(scope="session")
def ngram_model() -> NGramEntropyModel:
    texts = [text.encode() for _, text in topics()[:20]]
    return NGramEntropyModel.fit([encode_documents(texts)])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The topics as one JSONL file."""
    return write_jsonl(tmp_path / "corpus" / "topics.jsonl", topics())


class Malicious:
    """Whoever unpickles it makes a directory."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def write_jsonl(path: Path, documents: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": name, "text": text}) for name, text in documents]
    path.write_text("\n".join(lines) + "\n")
    return path


def noise(documents: int) -> list[tuple[str, str]]:
    """Documents of 1 MB that hardly compress: files of them are larger than what Ray writes."""
    draw = random.Random(0)
    return [(str(i), draw.randbytes(500_000).hex()) for i in range(documents)]


def full_disk(directory: Path) -> dict[str, str]:
    """An environment in which Ray's workers, alone of its processes, can write no file of more than
    500 kB. ``directory`` takes what is needed for that."""
    (directory / "sitecustomize.py").write_text(
        "import resource, sys\n"
        "if 'default_worker.py' in ' '.join(sys.orig_argv):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
    )
    return environment(PYTHONPATH=str(directory))


def environment(**more: str) -> dict[str, str]:
    """The environment of a user without a cluster and without our tests' settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | {"COLUMNS": "200"} | more


def hear_ctrl_c() -> None:
    """To be called in a new process: where tests run in the background they are deaf to it, and so
    is what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


RunJob = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: object, job: Path = JOB) -> list[str]:
    return [sys.executable, str(job), *map(str, arguments)]


def job_alone(job: Path) -> RunJob:
    """A job in a process of its own, as a user runs it; gives the finished process."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(*arguments, job=job),
            env=env or environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def run_job() -> RunJob:
    return job_alone(JOB)


@contextmanager
def a_local_ray(num_cpus: int, *packages: str, worker_output: bool = True) -> Iterator[None]:
    """A Ray that jobs of this process find started: to start one takes longer than most of them."""
    with pytest.MonkeyPatch.context() as kept:
        # Joining prepends to it; what tests start should find the packages by itself.
        kept.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        connect(num_cpus, *packages, worker_output=worker_output)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with a_local_ray(4):
        yield


@pytest.fixture
def run_here(local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> RunJob:
    return job_here(JOB, monkeypatch, capsys)


def job_here(job: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> RunJob:
    """A job in this process, which has loaded its libraries and started Ray already."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [str(job), *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(job), run_name="__main__")
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code, said.out, said.err)

    return run


def contents(output: Path) -> dict[str, bytes]:
    """Everything that a run promises to make the same each time."""
    kept = ("shards", "rejects", "summaries", "entries", "manifest.json")
    paths = [path for path in sorted(output.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(output) for path in paths}
    return {str(n): p.read_bytes() for p, n in names.items() if n.parts[0] in kept}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running
