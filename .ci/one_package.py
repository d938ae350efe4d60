"""The build backend: setuptools' own, with wheels that hold one package, ``blt_titan``.

The repository's packages have short names, ``model``, ``pipeline``, ``train`` and ``jobs``.
Installed under these, they would hide a user's own modules, or be hidden by them. So a wheel that
setuptools built is packed anew:

* ``model/blt.py`` becomes ``blt_titan/model/blt.py``, and so on;
* ``from model.blt import BLT`` becomes ``from blt_titan.model.blt import BLT``. Imports are found
  in the syntax tree; nothing else names these packages (see :func:`check`);
* texts name the commands that are installed: ``python jobs/patch_report.py`` becomes ``blt-titan
  report``, and ``python -m train`` becomes ``python -m blt_titan.train``;
* jobs do not put the directory above them on ``sys.path``, and jobs that work in a checkout alone
  are left out.

An editable install is setuptools' own: modules keep their short names, those of the checkout.
"""

import ast
import base64
import hashlib
import io
import os
import re
import runpy
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
]

ROOT = Path(__file__).resolve().parents[1]
TOP = "blt_titan"
PACKAGES = ("model", "pipeline", "train", "jobs")
IMPORT = re.compile(rf"^\s*(from|import) ({'|'.join(PACKAGES)})[. ]", re.MULTILINE)
INIT = f'"""Tokenizer-free pretraining: {TOP}.model, {TOP}.pipeline, {TOP}.train."""\n'
MAIN = f"import sys\n\nfrom {TOP}.jobs.__main__ import main\n\nsys.exit(main())\n"


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel; returns its name. No hook makes its metadata alone: entry points change."""
    with tempfile.TemporaryDirectory() as temporary:
        # What an earlier build left in build/ would become part of the wheel.
        settings = Path(temporary, "setup.cfg")
        settings.write_text(f"[build]\nbuild_base={temporary}\n[egg_info]\negg_base={temporary}\n")
        before = os.environ.get("DIST_EXTRA_CONFIG")
        os.environ["DIST_EXTRA_CONFIG"] = str(settings)
        try:
            name = build_meta.build_wheel(temporary, dict(config_settings or {}))
        finally:
            os.environ.pop("DIST_EXTRA_CONFIG")
            if before is not None:
                os.environ["DIST_EXTRA_CONFIG"] = before
        repack(Path(temporary, name), Path(wheel_directory, name))
    return str(name)


def build_sdist(sdist_directory: str, config_settings: Mapping[str, Any] | None = None) -> str:
    """Build the source distribution, which holds this backend too; returns its name."""
    name = str(build_meta.build_sdist(sdist_directory, dict(config_settings or {})))
    path = Path(sdist_directory, name)
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member)) for member in archive.getmembers()]
        contents = [(member, file.read() if file else b"") for member, file in members]
    with tarfile.open(path, "w:gz") as archive:
        for member, content in contents:
            archive.addfile(member, io.BytesIO(content) if member.isfile() else None)
        archive.add(__file__, f"{name.removesuffix('.tar.gz')}/.ci/{Path(__file__).name}")
    return name


def repack(built: Path, wheel: Path) -> None:
    """Write a wheel of the one package from one of the repository's packages."""
    record = []
    with zipfile.ZipFile(built) as old, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        (record_name,) = (n for n in old.namelist() if n.endswith(".dist-info/RECORD"))
        for name, content in files(old):
            new.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record.append(f"{name},sha256={digest.decode()},{len(content)}\n")
        new.writestr(record_name, "".join([*record, f"{record_name},,\n"]))


def files(wheel: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of the wheel to write, without its RECORD."""
    texts = commands()
    yield f"{TOP}/__init__.py", INIT.encode()
    yield f"{TOP}/__main__.py", MAIN.encode()
    for name in wheel.namelist():
        content = wheel.read(name)
        package, _, rest = name.partition("/")
        if package in PACKAGES:
            if package == "jobs" and Path(rest).stem not in {*texts, "__init__", "__main__"}:
                continue  # a job that works in a checkout alone
            if name.endswith((".py", ".sh", ".j2", ".md", ".yaml", ".toml")):
                content = renamed(content.decode(), texts).encode()
            if name.endswith(".py"):
                content = moved(content.decode(), name).encode()
            yield f"{TOP}/{name}", content
        elif name.endswith("/entry_points.txt"):
            yield name, re.sub(rb"= *jobs\.", f"= {TOP}.jobs.".encode(), content)
        elif name.endswith("/top_level.txt"):
            yield name, f"{TOP}\n".encode()
        elif not name.endswith("/RECORD"):
            yield name, content


def commands() -> dict[str, str]:
    """The installed command for each job that has one."""
    module = runpy.run_path(str(ROOT / "pipeline" / "cli" / "commands.py"))
    return {each.job: f"{module['PROGRAM']} {name}" for name, each in module["COMMANDS"].items()}


def renamed(text: str, commands: Mapping[str, str]) -> str:
    """A text, whose commands are those that are installed. Of the jobs whose files are called as
    modules are, only those after ``jobs/`` are meant."""
    jobs, alone = "|".join(commands), "|".join(set(commands) - {"compare", "plan"})
    text = re.sub(rf"(?:python )?\bjobs/({jobs})\.py\b", lambda m: commands[m[1]], text)
    text = re.sub(rf"(?<![/.\w])({alone})\.py\b", lambda m: commands[m[1]], text)
    return re.sub(r"(?<=-m )train\b", f"{TOP}.train", text)


def moved(source: str, name: str) -> str:
    """A module's source, which imports this project's modules from within ``blt_titan``.

    Raises:
        ValueError: the module names a package in a way that would not survive.
    """
    check(source, name)
    lines = source.encode().split(b"\n")
    places = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module):
            places.append((node.lineno - 1, node.col_offset + len("from ")))
        elif isinstance(node, ast.Import):
            ours = [alias for alias in node.names if _is_ours(alias.name)]
            if bare := [alias.name for alias in ours if alias.asname is None]:
                raise ValueError(f"{name}:{node.lineno}: import {bare[0]}: give it a name (as)")
            places += [(alias.lineno - 1, alias.col_offset) for alias in ours]
        elif _puts_on_path(node):
            assert isinstance(node, ast.Expr) and node.lineno == node.end_lineno
            lines[node.lineno - 1] = b""
    for line, column in sorted(places, reverse=True):
        lines[line] = lines[line][:column] + f"{TOP}.".encode() + lines[line][column:]
    return b"\n".join(lines).decode()


def check(source: str, name: str) -> None:
    """Refuse what would name a package of the checkout while the program runs: in a string, the
    dotted name of a module, as ``importlib.import_module`` takes it, or an import of one.

    Raises:
        ValueError: there is one; names the place.
    """
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if IMPORT.search(node.value) and id(node) not in documentation:
                raise ValueError(
                    f"{name}:{node.lineno}: an import within a string: format its name"
                )
            words = node.value.split(".")
            path = ROOT.joinpath(*words)
            dotted = len(words) > 1 and _is_ours(words[0]) and all(map(str.isidentifier, words))
            if dotted and (path.is_dir() or path.with_suffix(".py").is_file()):
                raise ValueError(f"{name}:{node.lineno}: {node.value!r}: name it relatively")


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in PACKAGES


def _puts_on_path(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("sys.path.insert(")
