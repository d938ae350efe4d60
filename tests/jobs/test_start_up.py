"""Flags are parsed before anything heavy is imported: help and refusals come at once."""

import json
import subprocess
import sys

import pytest
from support.jobs import ROOT

HEAVY = {
    *("aiohttp", "datasets", "fsspec", "gradio", "httpx", "huggingface_hub", "matplotlib"),
    *("numpy", "pyarrow", "ray", "safetensors", "tokenizers", "torch", "torchtitan"),
    *("transformers", "yaml"),
}
"""Libraries that take longer to import than help may take."""
PROGRAM = f"""
import contextlib, importlib, io, json, pathlib, sys

def imports(job, *flags):
    sys.argv = [job, *flags]
    said = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = importlib.import_module(pathlib.Path(job).stem).main()
        except SystemExit as ended:
            status = ended.code
    heavy = sorted({HEAVY!r} & set(sys.modules))
    return [job, list(flags), status or 0, heavy, said.buffer.getvalue().decode()]

sys.path.insert(0, {str(ROOT / "jobs")!r})
print(json.dumps([imports(*each) for each in json.loads(sys.argv[1])]))
"""
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("[a-z]*.py"))
OWN_FLAGS = [job for job in JOBS if job not in ("plan.py", "pretrain.py")]
"""Jobs all of whose flags are their own; the other flags of these two are torchtitan's."""
REFUSED = {
    "patch_corpus.py": ["--input", "x", "--output", "y"],
    "patch_report.py": ["--shards", "x", "--documents", "3"],
    "patch_viewer.py": ["--port", "-1"],
    "evaluate.py": ["--model", "x"],
    "export_shards.py": ["--shards", "x", "--output", "y", "--layout", "hub"],
    "convert_checkpoint.py": ["--checkpoint", "x", "--output", "s3://y"],
    "distil_entropy_model.py": ["--shards", "x", "--output", "y", "--steps", "0"],
    "train_tokenizer.py": ["--shards", "x", "--output", "y", "--vocab-size", "1"],
    "pretrain.py": ["--config", "blt_1bb"],
    "plan.py": ["--config", "blt_1bb"],
}
"""By job, flags whose values it refuses by themselves."""


@pytest.fixture(scope="module")
def seen() -> dict[tuple[str, str], tuple[int, list[str], str]]:
    """By job and first flag: exit status, heavy libraries that were imported until then, output.

    One process runs all, so that a library that one job imports is in the way of all after it."""
    runs = [[job, "--help"] for job in JOBS]
    runs += [[job, "--no-such-flag"] for job in OWN_FLAGS]
    runs += [[job, *flags] for job, flags in REFUSED.items()]
    given = json.dumps([[str(ROOT / "jobs" / job), *flags] for job, *flags in runs])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    found = json.loads(done.stdout)
    return {
        (job.rpartition("/")[2], flags[0]): (status, heavy, said)
        for job, flags, status, heavy, said in found
    }


@pytest.mark.parametrize("job", JOBS)
def test_help_imports_nothing_heavy(job, seen):
    status, heavy, said = seen[job, "--help"]
    assert (status, heavy) == (0, [])
    assert "usage" in said


@pytest.mark.parametrize("job", OWN_FLAGS)
def test_a_mistyped_flag_is_refused_before_anything_heavy_is_imported(job, seen):
    status, heavy, said = seen[job, "--no-such-flag"]
    assert (status, heavy) == (2, [])
    assert "--no-such-flag" in said


@pytest.mark.parametrize("job", REFUSED)
def test_a_wrong_value_is_refused_without_torch_and_ray(job, seen):
    status, heavy, said = seen[job, REFUSED[job][0]]
    assert status == 2, said
    assert not {"torch", "ray", "torchtitan"} & set(heavy)
    assert said.startswith("error: --")


def test_a_model_is_loaded_without_torchs_compiler():
    program = (
        "import sys; from model import load_entropy_model; load_entropy_model('entropy-1m');"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
