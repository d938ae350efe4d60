"""What every test may need: small models, a small corpus of real text, and how files are dealt out.

Nothing here imports Ray or a browser: a test that needs them asks :mod:`support` for them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.texts import topics, write_jsonl
from support.weights import sharpen
from xdist.scheduler import LoadFileScheduling

from model import EntropyModel, EntropyModelConfig, NGramEntropyModel, save_entropy_model
from model.tokenizer import encode_documents

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Of every process that tests start, too: there are as many tests at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"

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


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from support.browser import open_browser

    with open_browser() as running:
        yield running
