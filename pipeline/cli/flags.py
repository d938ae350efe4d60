"""Flags that jobs share, and the names and limits of all flags."""

from typing import Any, Literal, cast

import tyro

from model.patcher import Patcher
from model.rules import RULES, plain_text_rules
from pipeline.errors import ConfigError


def flag_name(field: str) -> str:
    """The flag of a configuration's field, for errors."""
    return "--" + field.replace("_", "-")


def check_at_least(config: object, **limits: int) -> None:
    """Check numbers of a configuration.

    Args:
        limits: the smallest value of each field; None is allowed beside those.

    Raises:
        ConfigError: a number is too small; names the flag.
    """
    for field, least in limits.items():
        value = getattr(config, field)
        if value is not None and value < least:
            raise ConfigError(f"{flag_name(field)}: must be at least {least}, got {value}")


def rule_flag(purpose: str, more: tuple[str, ...] = ()) -> Any:
    """The annotation of a ``str`` field that makes it the flag ``--rule``: the name of a boundary
    rule in :data:`model.rules.RULES`.

    The choices are looked up whenever a command line is read, so that rules that were added to the
    table meanwhile are among them.

    Args:
        purpose: the first sentence of the help text; a description of each rule follows.
        more: rules that are offered, too, though text alone cannot be patched by them.
    """
    names = (*plain_text_rules(), *more)
    rules = "; ".join(f"{name}: {RULES[name].description}" for name in names)
    return tyro.conf.arg(
        constructor_factory=lambda: cast(type, Literal[(*plain_text_rules(), *more)]),
        help=f"{purpose} {rules}.",
        help_behavior_hint=f"(default: {Patcher.rule})",
    )
