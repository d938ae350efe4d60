"""What every test may need: small models, a small corpus of real text; markers and order of tests.

Nothing here imports Ray or a browser: a test that needs them asks :mod:`support` for them.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from support.jobs import RAY_SETTINGS
from support.texts import topics, write_jsonl
from support.weights import sharpen

from model import EntropyModel, EntropyModelConfig, NGramEntropyModel, save_entropy_model
from model.tokenizer import encode_documents

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Of every process that tests start, too: there are as many tests at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ |= RAY_SETTINGS

torch.set_num_threads(1)

# A busy machine may take a second for what takes milliseconds otherwise.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


FILES = {
    "ray": (
        *("jobs/test_chaos.py", "jobs/test_cluster.py", "jobs/test_export_hub.py"),
        *("jobs/test_export_shards.py", "jobs/test_adopt_shards.py"),
        *("jobs/test_patch_corpus.py", "jobs/test_prepare_corpus.py", "jobs/test_prepare_hub.py"),
        *("jobs/test_prepare_s3.py", "jobs/test_pretrain.py", "pipeline/cluster/test_stage.py"),
        "jobs/test_wheel.py",
        *("pipeline/cluster/test_connect.py", "pipeline/cluster/test_tasks.py"),
        "pipeline/cluster/test_metrics.py",
        "test_tutorial.py",
        # These start none, but import what imports it.
        *("pipeline/storage/test_run_record.py", "pipeline/patch/test_collect.py"),
        *("pipeline/patch/test_plan.py", "pipeline/patch/test_job.py"),
        *("pipeline/cluster/test_stage_sums.py", "pipeline/cluster/test_plan_splits.py"),
        *("pipeline/shards/test_damage.py", "pipeline/export/test_reference_layout.py"),
        *("pipeline/adopt/test_adopting.py", "test_cluster_files.py", "test_pages.py"),
        *("pipeline/export/test_hub_upload.py", "train/test_cluster_messages.py"),
    ),
    "browser": ("jobs/test_patch_viewer.py",),
    "slow": (
        "pipeline/storage/test_two_writers.py",
        *("jobs/test_download_weights.py", "train/test_training.py", "train/test_resume.py"),
        *("train/test_metrics.py", "train/test_skipping.py", "train/test_validation.py"),
        *("jobs/test_compare.py", "train/test_baselines.py"),
        *("train/test_samples.py", "train/test_async_checkpoints.py"),
        *("train/test_sharded_tables.py", "train/test_recipes.py", "gpu/test_checks.py"),
        "jobs/test_wheel.py",
    ),
}
"""By marker, files whose tests all have it. Where a marker is left out, they are not imported."""
FIXTURES = {
    **{"local_ray": "ray", "patched": "ray", "run_job": "slow", "browser": "browser"},
    "s3_server": "slow",
}
"""Markers of the tests that ask for a fixture, themselves or through other fixtures."""
LONGEST_FIRST = (
    *("jobs/test_prepare_hub.py", "jobs/test_cluster.py", "jobs/test_pretrain.py"),
    *("jobs/test_export_hub.py", "jobs/test_prepare_s3.py"),
    *("pipeline/storage/test_two_writers.py", "jobs/test_prepare_corpus.py"),
    *("jobs/test_patch_corpus.py", "jobs/test_chaos.py", "jobs/test_export_shards.py"),
    *(
        "jobs/test_patch_report.py",
        "jobs/test_file_formats.py",
        "jobs/test_added_rule.py",
        "jobs/test_adopt_shards.py",
        "jobs/test_wheel.py",
        "pipeline/cluster/test_stage.py",
    ),
    "jobs/test_patch_viewer.py",
    *("train/test_training.py", "train/test_resume.py", "train/test_configs.py"),
    *("train/test_skipping.py", "train/test_validation.py", "train/test_sharded_tables.py"),
    *("train/test_samples.py", "train/test_async_checkpoints.py", "train/test_recipes.py"),
    "train/test_baselines.py",
)
"""Files that take long. Processes that share the work (pytest-xdist) take a file after the other:
if the last one were long, the other cores would idle. Files that share a Ray are neighbours."""

with_ray: set[Path] = set()
"""Files with tests that may use the local Ray."""


def within_tests(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).as_posix()


def left_out(config: pytest.Config) -> list[str]:
    """The markers that the command line leaves out, as in ``-m "not ray"``."""
    return [marker for marker in FILES if f"not {marker}" in config.option.markexpr]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    files = [file for marker in left_out(config) for file in FILES[marker]]
    return True if within_tests(collection_path) in files else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, files in FILES.items():
            if within_tests(item.path) in files:
                item.add_marker(marker)
        for fixture in FIXTURES.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(FIXTURES[fixture])
    with_ray.update(item.path for item in items if item.get_closest_marker("ray"))
    places = {file: i for i, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(within_tests(item.path), len(places)))


def pytest_collection_finish() -> None:
    """The modules of all tests are a million objects that stay. A stage that ends collects garbage
    (:func:`pipeline.cluster.pieces.release_lost_actors`); to look at them takes half a second."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # libraries tell of what is left when a process ends


@pytest.fixture
def local_ray() -> None:
    """One Ray for the tests of all files, as long as they want the same; see its module."""
    from support.local_ray import share_local_ray

    share_local_ray()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Before a file that has no use for it, end the local Ray: idle, it takes CPU time, too."""
    unused = nextitem is None or nextitem.path not in with_ray
    if unused and "support.local_ray" in sys.modules:
        from support.local_ray import end_local_ray

        end_local_ray()


@pytest.fixture(scope="session", autouse=True)
def libraries_of_markers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without the tests that are marked for a library, nothing imports it."""
    yield
    libraries = {"ray": "ray", "browser": "playwright"}
    for marker in libraries.keys() & left_out(request.config):
        imported = libraries[marker] in sys.modules
        assert not imported, f"a test without the marker {marker!r} imports {libraries[marker]}"


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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment to use it with; each file's tests have a bucket of their own."""
    from support.clusters import an_s3_server

    with an_s3_server(tmp_path_factory.mktemp("s3")) as variables:
        yield variables


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from support.browser import open_browser

    with open_browser() as running:
        yield running
