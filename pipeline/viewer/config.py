"""The configuration of ``jobs/patch_viewer.py``: each field is a flag."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from model.checkpoints.names import BUILT_IN
from pipeline.cli.optional import OrNone
from pipeline.cli.rule_flag import rule_flag
from pipeline.errors import ConfigError

LEAST_THRESHOLD, MOST_THRESHOLD = -2, 6
"""Nats: the ends of sliders. Rises may be negative; entropies of bytes are below 5.6."""


@dataclass(frozen=True)
class PatchViewerConfig:
    """A page to try patches on: type text, choose a model, a rule and a threshold, and look; or
    browse the documents of shard sets.

    Only this machine can reach the page, unless --host says otherwise. Ctrl-C ends it.
    """

    entropy_model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = (
        BUILT_IN,
    )
    """Entropy models to choose from: directories, URLs or hub ids; "entropy-1m" and
    "entropy-conv" come with blt-titan."""
    shards: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[DIR ...]")] = ()
    """Shard sets to browse, directories or URLs."""
    tokenizers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Tokenizers to compare patches with: gpt2, llama3 or any hub id, a tokenizer.json or a
    directory that holds one, or tiktoken's file of ranks (cl100k_base.tiktoken)."""
    rule: Annotated[str, rule_flag("Where patches start, to begin with.")] = "global"
    threshold: float = 2.0
    """Nats, to begin with; 2 gives about 4.5 bytes per patch of English with entropy-1m."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, without a password."""
    port: int = 7860
    """Port to listen on; 0 takes any that is free."""
    public: bool = False
    """Answer under any name, as a page on the web or behind a proxy has to. Otherwise foreign names
    are refused, so that no page on the web can read this one through your browser."""
    write_space: Annotated[OrNone[str], tyro.conf.arg(metavar="DIR")] = None
    """Do not serve the page, but write it to this directory as a Space of the hub: app.py, and all
    that it needs."""

    def check(self) -> None:
        """Check all values before the page is served.

        Raises:
            ConfigError: a value makes no sense; names the flag.
        """
        for name in ("host", "port", "public"):
            changed = getattr(self, name) != getattr(PatchViewerConfig, name)
            if self.write_space is not None and changed:
                raise ConfigError(f"--{name}: --write-space serves no page; leave it out")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port: from 0 to 65535, got {self.port}")
        if not LEAST_THRESHOLD <= self.threshold <= MOST_THRESHOLD:
            limits = f"from {LEAST_THRESHOLD} to {MOST_THRESHOLD} nats"
            raise ConfigError(f"--threshold: {limits}, got {self.threshold}")
        if not self.entropy_model:
            raise ConfigError("--entropy-model: name at least one")
