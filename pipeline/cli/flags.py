"""Names and limits of flags."""

import math

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
