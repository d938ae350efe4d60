"""The viewer as a Space of the hub: a directory with everything that its page needs.

| path | content |
|---|---|
| ``app.py`` | serves the page, with the settings of the command that wrote it |
| ``requirements.txt`` | packages, in the versions that are installed here |
| ``README.md`` | the Space's title, kind and versions, as the hub reads them |
| ``model/``, ``pipeline/`` | this project's code, so that nothing has to be published first |
| ``models/``, ``tokenizers/`` | what was named by paths on this machine; hub ids stay as they are |
"""

import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from model.checkpoints.entropy_model import load_entropy_model, save_entropy_model
from model.checkpoints.names import BUILT_IN
from pipeline.errors import ConfigError, PipelineError, translated
from pipeline.shards.provenance import short_names
from pipeline.storage.places import refuse_credentials
from pipeline.storage.tokenizer_files import read_tokenizer
from pipeline.viewer.comparison import FLAG, Tokenizers, tokenizer_names
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.patched_text import load

CODE = Path(__file__).resolve().parents[2]
PACKAGES = ("model", "pipeline")
WITHIN = __name__.rpartition("pipeline.viewer.")[0]
"""What names of modules begin with: nothing in a checkout, ``blt_titan.`` where it is installed."""
REQUIREMENTS = (
    *("fonttools", "fsspec", "httpx", "huggingface_hub", "numpy", "orjson", "pyarrow", "rich"),
    *("s3fs", "safetensors", "starlette", "tokenizers", "torch", "tyro", "xxhash", "zstandard"),
)
"""Distributions that the viewer imports, without Gradio, which the hub installs."""
APP = '''"""The patch viewer of blt-titan, as a Space: ``python app.py`` serves it here, too."""

import os
from pathlib import Path

os.chdir(Path(__file__).resolve().parent)  # models and tokenizers lie beside this file

from {within}pipeline.viewer.config import PatchViewerConfig
from {within}pipeline.viewer.page import serve

CONFIG = PatchViewerConfig(
    entropy_model={entropy_model!r},
    shards={shards!r},
    tokenizers={tokenizers!r},
    rule={rule!r},
    threshold={threshold!r},
    host="0.0.0.0",
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    public=True,
)

if __name__ == "__main__":
    serve(CONFIG, lambda url: print(f"page: {{url}}", flush=True))
'''
README = """---
title: Entropy patches and tokens
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: apache-2.0
---

Where the patches of a Byte Latent Transformer start in a text, beside the tokens of tokenizers. The
page is the viewer of blt-titan; its link reproduces what it shows.

To publish it, make a Space with the Gradio SDK on the hub and push this directory to it. Models and
tokenizers of gated repositories need the secret `HF_TOKEN` in the settings of the Space.
"""


def write_space(config: PatchViewerConfig, directory: str) -> list[str]:
    """Write the page as a Space.

    Args:
        directory: does not exist yet, or is empty.

    Returns:
        the paths in it, files or directories.

    Raises:
        ConfigError: something of the page cannot be loaded, or lies on this machine and cannot
            come along; the directory holds something.
        PipelineError: the directory cannot be written.
    """
    config.check()
    target = Path(directory).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--write-space {directory}: exists and is not an empty directory")
    for url in config.shards:
        refuse_credentials("--shards", url)
        if "://" not in url:
            raise ConfigError(
                f"--shards {url}: lies on this machine, where a Space cannot read it; push the set "
                "to the hub or to a bucket, and name it by its URL"
            )
    for model in config.entropy_model:
        refuse_credentials("--entropy-model", model)
        load(model)
    Tokenizers(config.tokenizers)  # which refuses what cannot be shown
    with translated(f"--write-space {directory}", PipelineError, "cannot be written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            space = Path(temporary) / "space"
            _write(config, space)
            if target.exists():
                target.rmdir()
            space.replace(target)
    return sorted(path.name for path in target.iterdir())


def _write(config: PatchViewerConfig, space: Path) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CODE / package, space / WITHIN.strip(".") / package, ignore=ignored)
    if WITHIN:
        shutil.copyfile(CODE / "__init__.py", space / WITHIN.strip(".") / "__init__.py")
    if (CODE / "LICENSE").exists():  # a checkout, not an installed package
        shutil.copyfile(CODE / "LICENSE", space / "LICENSE")
    app = APP.format(
        within=WITHIN,
        entropy_model=_models(config, space),
        shards=config.shards,
        tokenizers=_tokenizers(config, space),
        rule=config.rule,
        threshold=config.threshold,
    )
    (space / "app.py").write_text(app)
    python = ".".join(platform.python_version_tuple()[:2])
    (space / "README.md").write_text(README.format(gradio=_version("gradio"), python=python))
    lines = [f"{name}=={_version(name)}\n" for name in REQUIREMENTS]
    (space / "requirements.txt").write_text("".join(lines))


def _version(name: str) -> str:
    # Without the kind of build, as in 2.11.0+cpu, which a package index does not know.
    return metadata.version(name).partition("+")[0]


def _models(config: PatchViewerConfig, space: Path) -> tuple[str, ...]:
    """Names of the entropy models on the Space; those of this machine come along."""
    names = []
    for source, name in zip(config.entropy_model, short_names(config.entropy_model), strict=True):
        if source == BUILT_IN or not Path(source).expanduser().exists():
            names.append(source)
        else:
            names.append(f"models/{name.replace('/', '-')}")
            model = load_entropy_model(source, device="cpu", dtype="stored")
            save_entropy_model(model, space / names[-1])
    return tuple(names)


def _tokenizers(config: PatchViewerConfig, space: Path) -> tuple[str, ...]:
    """Names of the tokenizers on the Space; those of this machine come along."""
    names = []
    for source, name in zip(config.tokenizers, tokenizer_names(config.tokenizers), strict=True):
        if not Path(source).expanduser().exists():
            names.append(source)
        else:
            names.append(f"tokenizers/{name.replace('/', '-')}.json")
            path = space / names[-1]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(read_tokenizer(source, FLAG))
    return tuple(names)
