"""Every command of docs/from-facebookresearch-blt.md is one: its job's own parser reads it."""

import dataclasses
import importlib
import re
import runpy
import shlex

import pytest
import tyro
from support import tiny
from support.jobs import ROOT
from torchtitan.config import ConfigManager

from model import save_blt

PAGE = (ROOT / "docs" / "from-facebookresearch-blt.md").read_text()
CONFIGS = {
    "adopt_shards": "pipeline.adopt.config",
    "evaluate": "pipeline.evaluate.config",
    "export_shards": "pipeline.export.config",
    "patch_corpus": "pipeline.patch.config",
    "prepare_corpus": "pipeline.prepare.config",
}
"""Modules with the flags of jobs; other jobs have them in their script."""


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def config_class(job: str) -> type:
    name = "".join(word.capitalize() for word in job.split("_")) + "Config"
    if job in CONFIGS:
        return getattr(importlib.import_module(CONFIGS[job]), name)
    return runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))[name]


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_blt(tiny.blt(), tmp_path / "hf-weights" / "blt_1b", layout="published")
    program, *arguments = shlex.split(command)
    assert program == "python"
    if arguments[:2] == ["-m", "train"]:
        config = ConfigManager().parse_args(["--module", "train", *arguments[2:]])
        assert config.dataloader.shards[0].startswith("patched/")
        return
    script, *flags = arguments
    assert (ROOT / script).is_file()
    job = script.removeprefix("jobs/").removesuffix(".py")
    config = tyro.cli(config_class(job), args=flags, config=(tyro.conf.FlagCreatePairsOff,))
    assert dataclasses.is_dataclass(config)
    if hasattr(config, "check"):
        config.check()


def test_jobs_flags_and_pages_that_it_names_are_there():
    for job in set(re.findall(r"`(?:jobs/)?(\w+)\.py", PAGE)):
        ours = (ROOT / "jobs" / f"{job}.py").exists()
        published = f"{job}.py " in PAGE or job in ("download_blt_weights", "demo")
        assert ours or published, job
    for target in re.findall(r"\]\(([\w.-]+\.md)", PAGE):
        assert (ROOT / "docs" / target).exists()
    flags = set(
        re.findall(
            r"`(--(?:shape|training|optimizer|checkpoint|debug|metrics|lr-scheduler"
            r"|compile|dataloader|validator|parallelism)\.[\w-]+)",
            PAGE,
        )
    )
    from train.config_registry import blt_debug

    assert len(flags) > 15
    for flag in flags:
        value = blt_debug()
        for part in flag.removeprefix("--").replace("-", "_").split("."):
            if part in ("shape", "param_groups"):  # parsed by a command above
                break
            assert hasattr(value, part), flag
            value = getattr(value, part)
