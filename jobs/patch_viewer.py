"""Serve a page to look at patches: type text, or browse the documents of shard sets."""

import sys
from pathlib import Path

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import run_job
from pipeline.errors import ConfigError
from pipeline.viewer.address import free_port
from pipeline.viewer.config import PatchViewerConfig


def main() -> int:
    """Run the page; returns the exit status."""
    return run_job(PatchViewerConfig, run, interrupted="ended")


def run(config: PatchViewerConfig, console: Console) -> int:
    """Serve the page until it is interrupted, or write it as a Space; returns the exit status."""
    config.check()
    if config.write_space is None:
        free_port(config)
    try:
        from pipeline.viewer.page import serve
        from pipeline.viewer.space import write_space
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ConfigError("the viewer needs Gradio: pip install 'blt-titan[viewer]'") from error
    if config.write_space is not None:
        paths = write_space(config, config.write_space)
        print(f"{config.write_space}: {', '.join(paths)}")
        print("Run app.py in it to see it here, or push it to a Space of the hub: README.md in it.")
        return 0
    serve(config, lambda url: print(f"page: {url} (Ctrl-C ends it)", flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
