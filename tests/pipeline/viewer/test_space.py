"""The directory of a Space; tests/jobs/test_patch_viewer.py serves one."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from support.bpe import byte_level
from support.rooms import imports, modules

from model import save_entropy_model
from pipeline.errors import ConfigError
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.space import REQUIREMENTS, write_space


def test_everything_comes_along(tmp_path, ngram_model):
    save_entropy_model(ngram_model, tmp_path / "my model")
    (tmp_path / "tokenizer.json").write_bytes(byte_level([b"some text"], 300))
    config = PatchViewerConfig(
        entropy_model=("entropy-1m", str(tmp_path / "my model")),
        tokenizers=(str(tmp_path / "tokenizer.json"),),
        shards=("hf://datasets/owner/name",),
        threshold=1.25,
    )
    space = tmp_path / "new" / "space"
    written = write_space(config, str(space))
    assert {"app.py", "README.md", "requirements.txt", "model", "pipeline", "models"} < set(written)
    assert (space / "models/my model/model.safetensors").stat().st_size > 0
    _, front, _ = (space / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["sdk_version"] == metadata.version("gradio")
    app = ast.parse((space / "app.py").read_text())
    (call,) = (
        n.value for n in app.body if isinstance(n, ast.Assign) and n.targets[0].id == "CONFIG"
    )
    settings = {k.arg: k.value for k in call.keywords}
    assert ast.literal_eval(settings["entropy_model"]) == ("entropy-1m", "models/my model")
    (tokenizer,) = ast.literal_eval(settings["tokenizers"])
    assert (space / tokenizer).is_file()
    assert ast.literal_eval(settings["threshold"]) == 1.25
    assert str(tmp_path) not in (space / "app.py").read_text()
    assert list(tmp_path.glob("new/*")) == [space]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": ("patched/",)}, "--shards patched/: lies on this machine"),
        ({"tokenizers": ("./nowhere.json",)}, "--tokenizers ./nowhere.json"),
        ({"entropy_model": ("./nowhere",)}, "--entropy-model: ./nowhere"),
        ({"entropy_model": ("s3://me:secret@b/x",)}, "--entropy-model: no credentials"),
    ],
    ids=str,
)
def test_what_a_space_cannot_have(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        write_space(PatchViewerConfig(**changes), str(tmp_path / "space"))
    assert list(tmp_path.iterdir()) == []


def test_a_space_listens_nowhere(tmp_path):
    with pytest.raises(ConfigError, match=r"^--port: --write-space serves no page; leave it out"):
        PatchViewerConfig(port=1, write_space=str(tmp_path / "space")).check()


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="is not an empty directory"):
        write_space(PatchViewerConfig(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_requirements_are_what_the_viewer_imports():
    """All modules that the page leads to, imports within functions among them."""
    graph: dict[str, set[str]] = {}
    for module, _, target in imports():
        graph.setdefault(module, set()).add(target)
    reached, left = set(), ["pipeline.viewer.page", "pipeline.viewer.config"]
    while left:
        module = left.pop()
        parents = {module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)}
        if module not in reached:
            reached.add(module)
            left += [*graph.get(module, ()), *(parents & modules().keys())]
    roots = set().union(*(outside(modules()[module]) for module in reached))
    packages = metadata.packages_distributions()
    needed = {packages[root][0].lower().replace("-", "_") for root in roots if root in packages}
    # Triton is imported on GPUs alone, where it comes with torch.
    others = {"gradio", "blt_titan", "triton"}
    assert needed - {name.replace("-", "_") for name in REQUIREMENTS} <= others


def outside(path: Path) -> set[str]:
    """The roots of what a file imports, without the standard library."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names
