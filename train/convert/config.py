"""The configuration of ``jobs/convert_checkpoint.py``: each field is a flag."""

from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.names import Layout
from pipeline.cli.flags import check_at_least, refuse_url
from pipeline.cli.optional import OrNone
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ConvertCheckpointConfig:
    """Convert a checkpoint into another layout, in the dtype that it has: a step of the trainer, or
    weights in any layout that can be loaded.

    Exit status: 0 if it was written, 1 if it could not be, 2 if a flag is wrong or the checkpoint
    cannot be read.
    """

    checkpoint: str
    """A step of the trainer (such as outputs/checkpoint/step-1000), or directory, URL or hub id of
    weights."""
    output: str
    """Directory to create."""
    layout: Layout = "own"
    """own; transformers: for its BltForCausalLM, or LlamaForCausalLM where the model reads tokens;
    published: what the published code loads, with the names and arguments of its weights."""
    entropy_model: OrNone[str] = None
    """Directory, URL or hub id of the entropy model to put with a BLT; by default the one that the
    checkpoint holds or names."""
    average: int = 1
    """Steps whose weights are averaged, in float32: the given one and those before it."""
    allow_other_entropies: bool = False
    """Put an entropy model with a BLT that was trained with another one."""
    json: bool = False
    """Print the result as JSON."""

    def check(self) -> None:
        """
        Raises:
            ConfigError: a value makes no sense, or the output holds something; names the flag.
        """
        check_at_least(self, average=1)
        refuse_url(self.output)
        output = Path(self.output)
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise ConfigError(
                f"--output: {self.output} exists; give another directory, or remove it"
            )
