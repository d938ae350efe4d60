"""The record of a run's GPUs, and what is said when it continues on others, and of its plan.
Ray's answers are given here: no GPU is at hand."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.corpus.splits import Split
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch import devices, plan
from pipeline.patch.calibrate import Calibration
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.printed import print_calibration, print_largest, print_left_out
from pipeline.patch.record import PatchRun
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory

H100 = "cuda bfloat16 on NVIDIA H100 80GB HBM3 (capability 9.0, 132 multiprocessors)"
H200 = "cuda bfloat16 on NVIDIA H200 (capability 9.0, 132 multiprocessors)"
OLD, NEW = ({"torch": torch, "cuda": "13.0"} for torch in ("2.11.0", "2.13.0"))
CONFIG = PatchCorpusConfig(("in",), "out", threshold=1.0)


class Cluster:
    """A cluster with GPUs of one kind, and one release of torch."""

    def __init__(self, monkeypatch):
        self.answers = {devices._gpu: H200, devices._software: OLD}
        monkeypatch.setattr(devices, "in_ray", lambda task, gpus: self.answers[task])
        monkeypatch.setattr(devices, "gpus_per_worker", lambda config, model: 1)
        monkeypatch.setattr(devices, "most_gpus", lambda: 1)
        self.said = io.StringIO()
        self.console = Console(file=self.said, width=1000)

    def resume(self, output, model):
        run = PatchRun.resume(output)
        run, _ = plan.resume_run(run, CONFIG, [], model, output, self.console)
        devices.record_software(run, 1, output, self.console)
        return run


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    return Cluster(monkeypatch)


def begin(output, model, cluster):
    run, _ = plan.begin_run(CONFIG, [], model, output, cluster.console)
    devices.record_software(run, 1, output, cluster.console)


def test_a_run_continues_where_it_began(tmp_path, small_model, cluster):
    output = OutputDirectory(str(tmp_path))
    begin(output, small_model, cluster)
    before = output.read(PatchRun.path)
    run = cluster.resume(output, small_model)
    model = run.provenance["entropy_model"]
    assert (model["computed_in"], model["software"]) == (H200, [OLD])
    assert output.read(PatchRun.path) == before and "rounded" not in cluster.said.getvalue()


def test_another_kind_of_gpu_is_refused(tmp_path, small_model, cluster):
    output = OutputDirectory(str(tmp_path))
    begin(output, small_model, cluster)
    cluster.answers[devices._gpu] = H100
    with pytest.raises(PipelineError, match=r"was begun with device and dtype .*H200.*now.*H100"):
        cluster.resume(output, small_model)


def test_other_software_is_said_and_recorded(tmp_path, small_model, cluster):
    output = OutputDirectory(str(tmp_path))
    begin(output, small_model, cluster)
    cluster.answers[devices._software] = NEW
    cluster.resume(output, small_model)
    said = "was scored with cuda 13.0, torch 2.11.0 so far, now with cuda 13.0, torch 2.13.0"
    assert said in cluster.said.getvalue()
    assert PatchRun.resume(output).provenance["entropy_model"]["software"] == [OLD, NEW]
    cluster.said.truncate(0)
    cluster.resume(output, small_model)
    assert "was scored with" not in cluster.said.getvalue()


def test_a_set_of_an_early_release_continues(tmp_path, small_model, cluster):
    """Its record says that a GPU computed, and not which one."""
    output = OutputDirectory(str(tmp_path))
    cluster.answers[devices._gpu] = "cuda bfloat16"
    plan.begin_run(CONFIG, [], small_model, output, cluster.console)
    cluster.answers[devices._gpu] = H200
    run = cluster.resume(output, small_model)
    assert "was begun in cuda bfloat16, on a GPU that its record does not name" in (
        cluster.said.getvalue()
    )
    assert run.provenance["entropy_model"]["computed_in"] == "cuda bfloat16"


def test_a_set_without_gpus_records_none(tmp_path, small_model, cluster, monkeypatch):
    monkeypatch.setattr(devices, "gpus_per_worker", lambda config, model: 0)
    output = OutputDirectory(str(tmp_path))
    plan.begin_run(CONFIG, [], small_model, output, cluster.console)
    model = PatchRun.resume(output).provenance["entropy_model"]
    assert model["computed_in"] == "cpu float32" and "software" not in model


def test_a_fitted_model_that_is_another_today_is_refused(
    tmp_path, small_model, ngram_model, cluster, monkeypatch
):
    output = OutputDirectory(str(tmp_path))
    begin(output, ngram_model, cluster)
    monkeypatch.setattr(plan, "load_fitted_model", lambda output: ngram_model)
    cluster.resume(output, None)
    monkeypatch.setattr(plan, "load_fitted_model", lambda output: small_model)
    with pytest.raises(PipelineError, match=r"is damaged: it is not the model .*--overwrite"):
        cluster.resume(output, None)


def split_of(name: str, size: int) -> Split:
    return Split(InputFile(name, name, size, "1"), "jsonl", 0, 0, None, size)


@pytest.mark.parametrize(
    ("name", "size", "others", "what"),
    [
        ("a.jsonl.gz", 801, 1, "a compressed file of about 0.0 MB"),
        ("a.parquet", 10**7, 1, "a part of about 10.0 MB"),
        ("a.jsonl.gz", 800, 1, None),
        ("a.jsonl.gz", 10**7, 0, None),  # nobody waits for it
    ],
)
def test_a_file_that_one_worker_reads_long_after_the_others_is_named(
    cluster, name, size, others, what
):
    units = [(split_of(name, size),), *[(split_of("b.jsonl", 9), split_of("c.jsonl", 9))] * others]
    print_largest(units, 100, cluster.console)
    said = cluster.said.getvalue()
    assert said == "" if what is None else said.startswith(f"{name}: {what} of text that cannot be")
    print_largest([], 100, cluster.console)


def test_what_is_said_of_a_calibration(cluster):
    for size, error in ((4.51, 0.0123), (4.3, 0.0)):
        found = Calibration(CONFIG.patcher, size, error, 2_000_000)
        print_calibration(found, 4.5, cluster.console)
    calibrated = "calibrated on 2.00 MB of text; standard error of the mean patch size:"
    assert cluster.said.getvalue().splitlines() == [
        f"{calibrated} 1.23%",
        f"{calibrated} none, as that is all of it",
        "4.300 bytes per patch is as near to 4.5 as a threshold comes: too many places of this "
        "text have the very same entropy",
    ]


def test_what_a_calibration_could_not_read_is_said(cluster):
    printed = cluster.said.getvalue
    print_left_out("calibrated", [], cluster.console)
    assert printed() == ""
    print_left_out(
        "calibrated", ["a: cut", "b: cut", "a: cut", "c: cut", "d: cut"], cluster.console
    )
    said = ["  a: cut", "  b: cut", "  c: cut", "  and 1 more"]
    assert printed().splitlines() == ["calibrated without what cannot be read:", *said]


def test_more_gpus_than_there_are_are_refused_or_waited_for(
    tmp_path, small_model, cluster, monkeypatch
):
    """Ray waits without a word; a local one for ever."""
    monkeypatch.setattr(devices, "most_gpus", lambda: 0.0)
    output = OutputDirectory(str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="--gpus-per-worker 1: Ray finds 0 GPUs on this machine"):
        plan.begin_run(CONFIG, [], small_model, output, cluster.console)
    assert PatchRun.resume(output) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    plan.begin_run(CONFIG, [], small_model, output, cluster.console)
    assert "waiting for a node with 1 GPUs" in cluster.said.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ngram_bytes": 1 << 20}, "--ngram-bytes: only --entropy-model ngram is fitted"),
        ({"calibration_bytes": 1 << 20}, "--calibration-bytes: nothing is calibrated without"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        replace(CONFIG, **changes).check()
    replace(CONFIG, entropy_model="ngram", ngram_bytes=1 << 20).check()
    replace(CONFIG, threshold=None, target_patch_size=4.5, calibration_bytes=1 << 20).check()
