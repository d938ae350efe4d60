"""Every command of every page is one: the program's own parser reads its flags."""

import dataclasses
import importlib
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import tyro
from campaigns.doc_commands import run
from support import llamas, tiny
from support.bpe import byte_level
from support.jobs import ROOT
from support.page_commands import CHANGES, NOT_RUN, PAGES, Command, commands, small
from support.page_world import GIVEN
from torchtitan.config import ConfigManager

from model import save_blt
from pipeline.cli.commands import COMMANDS
from pipeline.cli.optional import REGISTRY

CONFIGS = {
    "adopt_shards": "pipeline.adopt.config",
    "convert_checkpoint": "train.convert.config",
    "evaluate": "pipeline.evaluate.config",
    "export_shards": "pipeline.export.config",
    "patch_corpus": "pipeline.patch.config",
    "patch_report": "pipeline.report.config",
    "patch_viewer": "pipeline.viewer.config",
    "prepare_corpus": "pipeline.prepare.config",
}
"""Modules with the flags of jobs; other jobs have them in their script."""
OTHERS = {".", "cd", "docker", "export", "git", "kubectl", "pip", "test"}
"""Programs that are not ours, and are not looked at."""


ALL = [command for page in PAGES for command in commands(page)]
TYPED = [(c.page, c.text) for c in ALL if not c.python and "<<" not in c.text]


def config_class(job: str) -> type:
    name = "".join(word.capitalize() for word in job.split("_")) + "Config"
    if job in CONFIGS:
        return getattr(importlib.import_module(CONFIGS[job]), name)
    return runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))[name]


def trains(flags: list[str]) -> None:
    """Check flags of the trainer."""
    own = ("--num-workers", "--gpus-per-worker", "--max-failures", "--nproc-per-node")
    kept, skip = [], False
    for flag in flags:
        if not skip and flag not in own:
            kept.append(flag)
        skip = flag in own
    if "--config" not in kept:
        kept += ["--config", "blt_debug"]
    ConfigManager().parse_args(["--module", "train", *kept])


def plans(flags: list[str]) -> None:
    if "--corpus-bytes" in flags:
        config = runpy.run_path(str(ROOT / "jobs" / "plan.py"))["PlanPatchingConfig"]
        tyro.cli(config, args=flags, registry=REGISTRY).check()
        return
    for flag, value in zip(flags, [*flags[1:], ""], strict=True):
        if flag == "--config":
            assert value in ("blt_1b", "blt_8b"), value


def runs_job(job: str, flags: list[str]) -> None:
    assert (ROOT / "jobs" / f"{job}.py").is_file(), job
    if job == "pretrain":
        trains(flags)
    elif job == "plan":
        plans(flags)
    elif job in ("demo", "tutorial"):
        assert not flags
    else:
        cuts = (tyro.conf.FlagCreatePairsOff,)
        config = tyro.cli(config_class(job), args=flags, config=cuts, registry=REGISTRY)
        assert dataclasses.is_dataclass(config)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A directory for files that some commands take their shapes from."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("page", "command"), TYPED, ids=lambda value: str(value)[:60])
def test_a_command_is_understood(page, command, tmp_path):
    if "hf-weights" in command:
        save_blt(tiny.blt(), tmp_path / "hf-weights" / "blt_1b", layout="published")
    if "tokenizer.json" in command:
        (tmp_path / "tokenizer.json").write_bytes(byte_level([b"a text of words, twice: a text"]))
    if "Llama-3.2-1B" in command:
        llamas.llama().config.save_pretrained(tmp_path / "Llama-3.2-1B")
    words = shlex.split(command.replace("$PWD", "/here"))
    if "…" in words and "jobs/patch_corpus.py" in words and "--input" not in words:
        words += ["--input", "x", "--output", "y"]  # what a page leaves out
    words = [word for word in words if word != "…"]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    while words and words[0] in ("(", "nice"):
        words.pop(0)
    while "||" in words:
        understand(words[: words.index("||")])
        words = words[words.index("||") + 1 :]
    understand(words)


def understand(words: list[str]) -> None:
    if not words or words[0] in OTHERS:
        return
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program == "ray":
        if "--" in rest:  # ray job submit
            understand(rest[rest.index("--") + 1 :])
    elif program == "sbatch":
        scripts = [word for word in rest if word.endswith(".sh")]
        assert (ROOT / scripts[0]).is_file()
        rest = rest[rest.index(scripts[0]) + 1 :]
        understand(["python", *rest] if rest and rest[0].endswith(".py") else ["slurm", *rest])
    elif program in ("torchrun", "slurm"):
        trains(rest[rest.index("--config") :] if "--config" in rest else [])
    elif program == "blt-titan":
        runs_job(COMMANDS[rest[0]].job, rest[1:])
    else:
        assert Path(program).name in ("python", "python3.11"), program
        python(rest)


def python(rest: list[str]) -> None:
    if rest[:2] == ["-m", "train"]:
        trains(rest[2:])
    elif rest[0].startswith("jobs/"):
        runs_job(rest[0].removeprefix("jobs/").removesuffix(".py"), rest[1:])
    elif rest[0] not in ("-", "-c", "-m"):
        assert (ROOT / rest[0]).is_file() or rest[0] == "space/app.py", rest[0]


def test_what_is_not_run_and_what_is_changed_is_on_a_page():
    texts = [command.text for command in ALL]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, text) for text in texts), f"no page has {pattern}"
    # Patterns may apply to what those before them have made.
    changed = "\n".join(command.small for command in ALL if not command.not_run)
    assert "…" not in re.sub("#.*", "", changed), "a page leaves open what CHANGES does not say"
    for pattern in CHANGES:
        rest = {each: by for each, by in CHANGES.items() if each != pattern}
        assert any(small(text, rest) != small(text, CHANGES) for text in texts), pattern
    pages = {command.page for command in ALL if not command.not_run}
    assert GIVEN.keys() <= pages
    assert sum(command.not_run is None for command in ALL) > 70


@pytest.mark.parametrize(
    ("text", "outcome", "said"),
    [
        ("sbatch train/slurm.sh", "not run", "needs SLURM"),
        ("echo one && false", "failed", "exit status 1\none"),
        ("export PART=two", "ran", ""),
    ],
)
def test_the_campaign_tells_what_came_of_a_command(text, outcome, said, tmp_path):
    variables = {"PATH": os.environ["PATH"]}
    result = run(Command("page.md", text), tmp_path, variables)
    assert result.outcome == outcome and result.said.startswith(said)
    # What a command exports is there for the next one.
    after = run(Command("page.md", "test $PART = two"), tmp_path, variables)
    assert after.outcome == ("ran" if "PART" in text else "failed")


def test_python_on_a_page_is_run(tmp_path):
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for code, outcome in (("print(1 + 1)\n", "ran"), ("assert 1 + 1 == 3\n", "failed")):
        assert run(Command("page.md", code, python=True), tmp_path, variables).outcome == outcome


def test_commands_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Type `python jobs/plan.py --config blt_1b`, not `python jobs/plan.py …`:\n\n"
        "```sh\n# a comment\na b \\\n    c   # more\ntest -d x ||\n    d\n"
        "cat <<'END'\n# kept\n\nEND\ne\n```\n\n```text\nf\n```\n```python\ng()\n\nh()\n```\n"
    )
    assert [command.text for command in commands(page)] == [
        *("python jobs/plan.py --config blt_1b", "a b c", "test -d x || d"),
        *("cat <<'END'\n# kept\n\nEND\n", "e", "g()\n\nh()\n"),
    ]


def test_the_readme_lists_all_commands():
    text = (ROOT / "README.md").read_text()
    for name, command in COMMANDS.items():
        assert re.search(rf"^\| \[`{command.job}`\]\(.+\) \| `{name}` \|", text, re.MULTILINE), name


def test_jobs_and_flags_that_the_migration_page_names_are_there():
    page = (ROOT / "docs" / "from-facebookresearch-blt.md").read_text()
    for job in set(re.findall(r"`(?:jobs/)?(\w+)\.py", page)):
        ours = (ROOT / "jobs" / f"{job}.py").exists()
        published = f"{job}.py " in page or job in ("download_blt_weights", "demo")
        assert ours or published, job
    flags = set(
        re.findall(
            r"`(--(?:shape|training|optimizer|checkpoint|debug|metrics|lr-scheduler"
            r"|compile|dataloader|validator|parallelism)\.[\w-]+)",
            page,
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
