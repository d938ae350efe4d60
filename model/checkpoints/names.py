"""Names that flags of checkpoints take: layouts, the model that comes along, those of the hub.

Commands read them to parse their flags, so this module imports nothing that takes time.
"""

from pathlib import Path
from typing import Literal

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Holds a directory, with a README.md, for each model that comes with this package."""

BUILT_IN = "entropy-1m"
"""The default among the entropy models that come with this package."""
PUBLISHED = ("facebook/blt-1b", "facebook/blt-7b")
PUBLISHED_ENTROPY_MODEL = "facebook/blt-entropy"
Layout = Literal["own", "transformers", "published"]
"""The layouts that weights are written in."""
NO_SUCH = "no such directory, and not a hub id (owner/name)"


def built_in() -> set[str]:
    """The names of the models that come with this package."""
    return {path.name for path in WEIGHTS.iterdir()}


def is_for_everybody(source: str) -> bool:
    """True for the name of a model that comes with this package, and for what may be a hub id."""
    if source in built_in():
        return True
    return source.removeprefix("hf://").count("/") == 1 and not source.startswith((".", "/", "~"))


def may_exist(source: str) -> bool:
    """True for a directory that there is, and for what only other machines can tell of."""
    return "://" in source or Path(source).is_dir() or is_for_everybody(source)
