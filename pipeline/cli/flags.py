"""Names and limits of flags."""

import math
import os
from pathlib import Path

from pipeline.errors import ConfigError


def flag_name(field: str) -> str:
    """The flag of a configuration's field, for errors."""
    return "--" + field.replace("_", "-")


def check_at_least(config: object, **limits: int) -> None:
    """Check numbers of a configuration.

    Args:
        limits: the smallest value of each field; None is allowed beside those.

    Raises:
        ConfigError: a number is too small, infinite or none (NaN); names the flag.
    """
    for field, least in limits.items():
        value = getattr(config, field)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{flag_name(field)}: must be at least {least}, got {value}")


def check_new_output(path: Path) -> None:
    """Check before long work that ``--output`` is new, and can be written when the work is done.

    Raises:
        ConfigError: it exists, or its directory cannot be written to.
    """
    if path.exists():
        raise ConfigError(f"--output: {path} exists; give another, or remove it")
    parent = next(above for above in path.absolute().parents if above.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        why = "may not be written to" if parent.is_dir() else "is no directory"
        raise ConfigError(f"--output: {path} cannot be written: {parent} {why}")
