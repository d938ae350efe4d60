"""Wheels hold one package: how imports, texts and the list of commands get there."""

import importlib.util
import sys
from types import ModuleType

import pytest
from support.jobs import ROOT

from pipeline.cli.commands import COMMANDS, PROGRAM, command_line


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_package", ROOT / ".ci" / "one_package.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = """
import json, model.blt as blt
from model import Patcher
from torch import nn; from pipeline.errors import (
    ConfigError,
)
def später(): "é"; from train.shim import prepare
from . import pipeline
from models import model
"from model import Patcher"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
"""
MOVED = """
import json, blt_titan.model.blt as blt
from blt_titan.model import Patcher
from torch import nn; from blt_titan.pipeline.errors import (
    ConfigError,
)
def später(): "é"; from blt_titan.train.shim import prepare
from . import pipeline
from models import model
"from model import Patcher"

"""


def test_imports_are_moved_and_nothing_else(backend):
    assert backend.moved(SOURCE, "x.py") == MOVED


@pytest.mark.parametrize(
    "source",
    [
        "import pipeline.errors",
        'import_module("model.blt")',
        'x = "train.compare"',
        'APP = "from pipeline import open_shards"',
    ],
)
def test_what_would_not_survive_is_refused(backend, source):
    with pytest.raises(ValueError, match=r"x\.py:1: "):
        backend.moved(source, "x.py")


def test_names_that_are_no_modules_stay(backend):
    source = 'x = ["model.safetensors", "train.jsonl", "model.patcher.", "model"]'
    assert backend.moved(source, "x.py") == source


@pytest.mark.parametrize(
    ("text", "installed"),
    [
        ("python jobs/patch_report.py --shards x", "blt-titan report --shards x"),
        ("its patch_corpus.py command", "its blt-titan patch command"),
        ("(``jobs/generate.py``)", "(``blt-titan generate``)"),
        ("python jobs/plan.py, plan.py", "blt-titan plan, plan.py"),
        ("model/generation/generate.py", "model/generation/generate.py"),
        ("jobs/demo.py", "jobs/demo.py"),
        ("torchrun -m train, python -m train --config", None),
    ],
)
def test_texts_name_what_is_installed(backend, text, installed):
    if installed is None:
        installed = text.replace("-m train", "-m blt_titan.train")
    assert backend.renamed(text, backend.commands()) == installed


def test_every_job_is_a_command_or_belongs_to_the_checkout():
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__", "__main__"}
    in_checkout = {"demo", "train_entropy_model"}
    assert {command.job for command in COMMANDS.values()} == jobs - in_checkout


def test_messages_name_commands_as_this_process_was_started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/patch_corpus.py"])
    assert command_line("patch_report") == "python jobs/patch_report.py"
    monkeypatch.setattr(sys, "argv", [f"{PROGRAM} patch"])
    assert command_line("patch_report") == f"{PROGRAM} report"
