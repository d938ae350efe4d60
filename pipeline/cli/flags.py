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
        ConfigError: a number is too small, infinite or none (NaN), or has more than 64 bits; names
            the flag.
    """
    for field, least in limits.items():
        value = getattr(config, field)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{flag_name(field)}: must be at least {least}, got {value}")
        if value is not None and value >= 1 << 63:
            raise ConfigError(f"{flag_name(field)}: must be below 2**63, got {value}")


def refuse_url(output: str) -> None:
    """Refuse a URL where files are written with libraries that know paths alone: as a path,
    ``s3://bucket/model`` is a directory ``s3:`` on this machine.

    Raises:
        ConfigError: ``--output`` is a URL.
    """
    if "://" in output:
        raise ConfigError(f"--output: {output} is a URL; give a path, and copy it from there")


def check_new_output(path: Path) -> None:
    """Check before long work that ``--output`` is new, and can be written when the work is done.

    Raises:
        ConfigError: it exists, or its directory cannot be written to.
    """
    if path.exists():
        raise ConfigError(f"--output: {path} exists; give another, or remove it")
    check_directory(path)


def check_directory(path: Path) -> None:
    """Check before long work that ``--output`` is a directory to write to, or can become one.

    Raises:
        ConfigError: it, or the nearest directory above that exists, cannot be written to.
    """
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        why = "may not be written to" if there.is_dir() else "is no directory"
        raise ConfigError(f"--output: {path} cannot be written: {there} {why}")
